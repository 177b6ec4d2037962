/* cornserve profile: measures a model's components on this machine and writes what planning reads.
 */
#include "base/error.h"
#include "base/os.h"
#include "cli/cli.h"
#include "cli/model_graph.h"
#include "cli/plan_inputs.h"
#include "profile/profile.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#define NODE "local" /* the name of this machine, as `cornserve serve` calls it */

static char *output, *graph_path, *cluster_path, *dtype, *isa;
static char *threads_text, *image_text, *audio_text, *prompt_text, *context_text, *batch_text,
    *speech_text;
static char **only;
static double seconds = 3;
static int cores, max_batch_tokens;

static const GOptionEntry entries[] = {
    {"output", 'o', 0, G_OPTION_ARG_FILENAME, &output,
     "Where the profiles go; - for stdout (profiles.json)", "FILE"},
    {"graph", 'g', 0, G_OPTION_ARG_FILENAME, &graph_path,
     "Also write the model's task graph, with the memory that was measured", "FILE"},
    {"cluster", 'c', 0, G_OPTION_ARG_FILENAME, &cluster_path,
     "Also write this machine as a cluster of one node", "FILE"},
    {"component", 0, 0, G_OPTION_ARG_STRING_ARRAY, &only,
     "Only this one; may be repeated (all that executors run here)", "NAME"},
    {"threads", 0, 0, G_OPTION_ARG_STRING, &threads_text,
     "Threads of an executor (1, 2, 4 ... and all cores)", "N,N..."},
    {"cores", 0, 0, G_OPTION_ARG_INT, &cores,
     "That executors may use together (the CPUs of this process)", "N"},
    {"seconds", 0, 0, G_OPTION_ARG_DOUBLE, &seconds,
     "Time to measure a component with one count of threads; large steps may need more (3)", "S"},
    {"image-tokens", 0, 0, G_OPTION_ARG_STRING, &image_text,
     "Sizes of an image, in tokens of the LLM (64,256,1024)", "N,N..."},
    {"audio-seconds", 0, 0, G_OPTION_ARG_STRING, &audio_text, "Lengths of a sound (1,5,15)",
     "N,N..."},
    {"prompt-tokens", 0, 0, G_OPTION_ARG_STRING, &prompt_text,
     "Lengths of a prompt (32,128,512,1024)", "N,N..."},
    {"context", 0, 0, G_OPTION_ARG_STRING, &context_text,
     "Tokens before those that are written, in multiples of 32 (256,1024)", "N,N..."},
    {"batch", 0, 0, G_OPTION_ARG_STRING, &batch_text,
     "Answers written or spoken at the same time (1,2,4,8,16,32,64)", "N,N..."},
    {"speech-tokens", 0, 0, G_OPTION_ARG_STRING, &speech_text,
     "Lengths of a speech, in codes of the talker (50,200)", "N,N..."},
    {"max-batch-tokens", 0, 0, G_OPTION_ARG_INT, &max_batch_tokens,
     "Tokens computed in one step, as of `cornserve serve` (512)", "N"},
    {"dtype", 0, 0, G_OPTION_ARG_STRING, &dtype, "Precision: auto (the checkpoint's), f32 or bf16",
     "TYPE"},
    {"isa", 0, 0, G_OPTION_ARG_STRING, &isa, "Instruction set (the best there is)", "NAME"},
    {NULL},
};

static const cs_cli_spec spec = {
    .name = "profile",
    .arguments = "DIR",
    .description = "Measures the components of the model in DIR on this machine: the times of "
                   "their steps over "
                   "batches and sizes, with each count of threads, and their memory. With the "
                   "three files that "
                   "it writes and a workload, `cornserve plan` decides which components share an "
                   "executor, how "
                   "many there are of each, and with how many threads.\n"
                   "Ctrl-C ends it early; what was measured until then is written.",
    .example =
        "  cornserve profile models/demo -o profiles.json -g graph.json -c cluster.yaml\n"
        "  cornserve plan -g graph.json -p profiles.json -c cluster.yaml -w workload.yaml -o "
        "plan.json\n"
        "  cornserve serve models/demo --plan plan.json",
    .entries = entries,
    .min_arguments = 1,
    .max_arguments = 1,
};

/* ---- options ---- */

static bool read_list(const char *option, const char *text, uint32_t multiple, uint32_t max,
                      cs_profiler_list *list, GError **error)
{
    g_auto(GStrv) words = g_strsplit(text, ",", -1);
    list->n = 0;
    for (char **word = words; *word; word++) {
        guint64 n;
        bool number = g_ascii_string_to_unsigned(g_strstrip(*word), 10, 1, max, &n, NULL);
        if (!number || n % multiple != 0 || list->n == CS_PROFILER_LIST_MAX ||
            (list->n > 0 && n <= list->values[list->n - 1]))
            return cs_fail(error, CS_ERROR_INVALID,
                           "%s: expected up to %d numbers from %u to %u%s, ascending, such as "
                           "%u,%u; found %s",
                           option, CS_PROFILER_LIST_MAX, multiple, max,
                           multiple > 1 ? ", multiples of 32" : "", multiple, 2 * multiple, text);
        list->values[list->n++] = (uint32_t)n;
    }
    return list->n > 0 || cs_fail(error, CS_ERROR_INVALID, "%s: expected a number", option);
}

/* 1, 2, 4 ... and all. */
static cs_profiler_list default_threads(uint32_t n_cores)
{
    cs_profiler_list list = {0};
    for (uint32_t n = 1; n < n_cores && list.n < CS_PROFILER_LIST_MAX - 1; n *= 2)
        list.values[list.n++] = n;
    list.values[list.n++] = n_cores;
    return list;
}

static bool read_options(cs_profiler_options *o, GError **error)
{
    static const char *const dtypes[] = {"auto", "f32", "bf16", NULL};
    if (cores < 0 || cores > 4096)
        return cs_fail(error, CS_ERROR_INVALID, "--cores: expected 1 to 4096, found %d", cores);
    if (cores == 0)
        cores = cs_cpu_count();
    if (!(seconds > 0 && seconds <= 86400))
        return cs_fail(error, CS_ERROR_INVALID, "--seconds: expected up to 86400, found %g",
                       seconds);
    if (max_batch_tokens < 0 || max_batch_tokens > 1 << 20)
        return cs_fail(error, CS_ERROR_INVALID,
                       "--max-batch-tokens: expected a positive number, found %d",
                       max_batch_tokens);
    if (dtype && !g_strv_contains(dtypes, dtype))
        return cs_fail(error, CS_ERROR_INVALID, "--dtype: expected auto, f32 or bf16, found %s",
                       dtype);
    const struct {
        const char *option, *text, *fallback;
        uint32_t multiple, max;
        cs_profiler_list *list;
    } lists[] = {
        {"--image-tokens", image_text, "64,256,1024", 1, 1 << 16, &o->image_tokens},
        {"--audio-seconds", audio_text, "1,5,15", 1, 3600, &o->audio_seconds},
        {"--prompt-tokens", prompt_text, "32,128,512,1024", 1, 1 << 20, &o->prompt_tokens},
        {"--context", context_text, "256,1024", 32, 1 << 20, &o->context},
        {"--batch", batch_text, "1,2,4,8,16,32,64", 1, 1024, &o->batches},
        {"--speech-tokens", speech_text, "50,200", 1, 4096, &o->speech_codes},
        {"--threads", threads_text, "1", 1, (uint32_t)cores, &o->threads},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(lists); i++)
        if (!read_list(lists[i].option, lists[i].text ? lists[i].text : lists[i].fallback,
                       lists[i].multiple, lists[i].max, lists[i].list, error))
            return false;
    if (!threads_text)
        o->threads = default_threads((uint32_t)cores);
    o->max_step_tokens = max_batch_tokens ? (uint32_t)max_batch_tokens : 512;
    return true;
}

/* ---- components ---- */

static const char *component_name(const json_t *component)
{
    return json_string_value(json_object_get(component, "name"));
}

/* Those of the graph that were asked for, NULL-terminated; of all, those that can be measured. */
static GPtrArray *choose_components(const json_t *graph, GError **error)
{
    g_autoptr(GPtrArray) chosen = g_ptr_array_new();
    g_autoptr(GString) left_out = g_string_new(NULL);
    const json_t *all = json_object_get(graph, "components");
    for (size_t i = 0; i < json_array_size(all); i++) {
        const char *name = component_name(json_array_get(all, i));
        bool asked = !only || g_strv_contains((const char *const *)only, name);
        if (asked && (only || cs_profiler_knows(name)))
            g_ptr_array_add(chosen, (gpointer)name);
        else if (asked)
            g_string_append_printf(left_out, "%s%s", left_out->len ? ", " : "", name);
    }
    for (char **name = only; name && *name; name++)
        if (!g_ptr_array_find_with_equal_func(chosen, *name, g_str_equal, NULL)) {
            cs_fail(error, CS_ERROR_NOT_FOUND, "--component: the model has no %s", *name);
            return NULL;
        }
    if (left_out->len > 0)
        fprintf(stderr, "left out: %s: executors of this machine do not run them\n", left_out->str);
    g_ptr_array_add(chosen, NULL);
    return g_steal_pointer(&chosen);
}

static double weights_of(const json_t *graph, const char *name)
{
    double bytes = 0;
    const json_t *all = json_object_get(graph, "components");
    for (size_t i = 0; i < json_array_size(all); i++) {
        const json_t *component = json_array_get(all, i);
        if (!name || strcmp(component_name(component), name) == 0)
            bytes += json_number_value(json_object_get(component, "weights_bytes"));
    }
    return bytes;
}

/* Of each of the components: the weights of all others. */
static double *others_of(const json_t *graph, const GPtrArray *components)
{
    double *bytes = g_new0(double, components->len);
    for (guint i = 0; i + 1 < components->len; i++)
        bytes[i] = weights_of(graph, NULL) - weights_of(graph, components->pdata[i]);
    return bytes;
}

/* ---- files ---- */

static bool write_json(const char *path, const json_t *root, GError **error)
{
    char *text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    free(text);
    return cs_cli_write_text(path, line, error);
}

/* "demo on host, 2 cores, avx512bf16". */
static char *profiles_name(const char *dir, const cs_profiler_result *result)
{
    struct utsname host = {0};
    g_autofree char *absolute = g_canonicalize_filename(dir, NULL);
    g_autofree char *model = g_path_get_basename(absolute);
    uname(&host);
    return g_strdup_printf("%s on %s, %d cores, %s", model, host.nodename, cores,
                           result->isa ? result->isa : "nothing measured");
}

static bool write_profiles(const char *dir, const cs_profiler_result *result, GError **error)
{
    g_autofree char *name = profiles_name(dir, result);
    json_t *root = cs_profiler_to_json(result, name);
    bool ok = write_json(output ? output : "profiles.json", root, error);
    json_decref(root);
    return ok;
}

static bool write_graph(const cs_profiler_result *result, json_t *graph, GError **error)
{
    cs_profiler_set_graph(result, graph);
    return write_json(graph_path, graph, error);
}

/* Memory is one pool on such a machine; each core stands for its part of what is free. */
static bool write_cluster(double free_bytes, GError **error)
{
    double bytes_per_s, latency_s;
    if (!cs_profiler_transfer(&bytes_per_s, &latency_s, error))
        return false;
    g_autofree char *text = g_strdup_printf(
        "# This machine, as measured by `cornserve profile`. A device of kind cpu is one core with "
        "its part of the\n"
        "# memory that was free; an executor of n devices computes with n threads.\n"
        "version: 1\n"
        "devices:\n"
        "  cpu: {memory_bytes: %.0f, usable: 0.9, cost: 1}\n"
        "nodes:\n"
        "  - {name: " NODE ", devices: {cpu: %d}}\n"
        "topology:\n"
        "  kind: full\n"
        "  bandwidth_bytes_per_s: 1.25e9 # between nodes: there is only one here\n"
        "  intra_bandwidth_bytes_per_s: %.3g\n"
        "  intra_latency_s: %.3g\n",
        floor(free_bytes / cores), cores, bytes_per_s, latency_s);
    return cs_cli_write_text(cluster_path, text, error);
}

static void say_next(const char *dir)
{
    if (!graph_path || !cluster_path)
        return;
    fprintf(stderr,
            "next, with a workload of yours:\n"
            "  cornserve plan -g %s -p %s -c %s -w workload.yaml -o plan.json\n"
            "  cornserve serve %s --plan plan.json\n",
            graph_path, output ? output : "profiles.json", cluster_path, dir);
}

/* ---- the command ---- */

static void say(void *user, const char *line)
{
    fprintf(stderr, "%s\n", line);
}

static bool profile(const char *dir, cs_profiler_options *o, json_t *graph, GError **error)
{
    double free_bytes = (double)cs_memory_free_bytes();
    g_autoptr(GPtrArray) components = choose_components(graph, error);
    if (!components)
        return false;
    o->components = (const char *const *)components->pdata;
    g_autofree double *others_bytes = others_of(graph, components);
    o->others_bytes = others_bytes;
    g_autoptr(cs_profiler_result) result = cs_profiler_run(o, error);
    if (!result || !write_profiles(dir, result, error) ||
        (graph_path && !write_graph(result, graph, error)) ||
        (cluster_path && !write_cluster(free_bytes, error)))
        return false;
    if (result->cancelled)
        return cs_fail(error, CS_ERROR_CANCELLED,
                       "interrupted: what was measured until then is in %s",
                       output ? output : "profiles.json");
    say_next(dir);
    return true;
}

int cs_cli_profile(int argc, char **argv)
{
    int exit_code;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    GError *error = NULL;
    cs_cli_catch_interrupt();
    cs_profiler_options o = {.dir = argv[1],
                             .dtype = dtype,
                             .isa = isa,
                             .seconds = seconds,
                             .cancel = &cs_cli_interrupted,
                             .say = say};
    if (!read_options(&o, &error))
        return cs_cli_usage(spec.name, "%s", error->message);
    g_autoptr(cs_checkpoint) checkpoint = cs_checkpoint_open(argv[1], &error);
    g_autoptr(cs_tasks) tasks = checkpoint ? cs_cli_load_tasks(checkpoint, &error) : NULL;
    json_t *graph = tasks ? cs_cli_plan_graph(tasks, checkpoint, &error) : NULL;
    bool ok = graph && profile(argv[1], &o, graph, &error);
    json_decref(graph);
    return ok ? CS_EXIT_OK : cs_cli_fail(spec.name, error);
}
