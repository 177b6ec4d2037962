/* cornserve graph: what the requests of a model make its components do. */
#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "cli/cli.h"
#include "graph/builtin.h"
#include "graph/graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_SIZE 1000

static char *option_request, *option_svg;
static char **option_sizes;
static gboolean option_json;

static const GOptionEntry entries[] = {
    {"request", 'r', 0, G_OPTION_ARG_STRING, &option_request,
     "Kind of request, as the task file names it (without it: lists them)", "KIND"},
    {"size", 's', 0, G_OPTION_ARG_STRING_ARRAY, &option_sizes,
     "A size of the request, such as image_tokens=1200 (default: 1000 each)", "NAME=N"},
    {"svg", 0, 0, G_OPTION_ARG_FILENAME, &option_svg, "Also draw it into FILE", "FILE"},
    {"json", 0, 0, G_OPTION_ARG_NONE, &option_json,
     "Print the component graph of all request kinds, as `cornserve plan` reads it", NULL},
    {NULL},
};

static const cs_cli_spec spec = {
    .name = "graph",
    .arguments = "DIR",
    .description = "Shows the components that a request to the model in DIR uses, the data between "
                   "them and its expected bytes.",
    .example = "  cornserve graph Qwen2.5-Omni-7B --request image_to_speech -s image_tokens=1200\n"
               "  cornserve graph Qwen2.5-Omni-7B --json > graph.json",
    .entries = entries,
    .min_arguments = 1,
    .max_arguments = 1,
};

static bool known_size(const char *name)
{
    for (const char *const *s = cs_graph_sizes; *s; s++)
        if (strcmp(*s, name) == 0)
            return true;
    return false;
}

static json_t *read_sizes(GError **error)
{
    json_t *sizes = json_object();
    for (const char *const *s = cs_graph_sizes; *s; s++)
        json_object_set_new(sizes, *s, json_integer(DEFAULT_SIZE));
    for (char **given = option_sizes; given && *given; given++) {
        g_auto(GStrv) parts = g_strsplit(*given, "=", 2);
        guint64 n = 0;
        if (!parts[0] || !parts[1] || !known_size(parts[0]) ||
            !g_ascii_string_to_unsigned(parts[1], 10, 0, 1u << 30, &n, NULL)) {
            cs_fail(error, CS_ERROR_INVALID,
                    "--size %s: expected NAME=N, such as image_tokens=1200", *given);
            json_decref(sizes);
            return NULL;
        }
        json_object_set_new(sizes, parts[0], json_integer((json_int_t)n));
    }
    return sizes;
}

static bool show_request(cs_tasks *tasks, GError **error)
{
    json_t *sizes = read_sizes(error);
    json_t *request = sizes ? cs_tasks_example(tasks, "model", option_request, sizes, error) : NULL;
    json_decref(sizes);
    g_autoptr(cs_recording) r = request ? cs_tasks_record(tasks, "model", request, error) : NULL;
    json_decref(request);
    if (!r)
        return false;
    g_autofree char *text = cs_recording_to_text(r), *svg = cs_recording_to_svg(r);
    fputs(text, stdout);
    return !option_svg || g_file_set_contents(option_svg, svg, -1, error);
}

/* Bytes of the checkpoint's tensors whose names start with one of the unit's prefixes. */
static double weights_bytes(void *user, const cs_unit *unit)
{
    const cs_checkpoint *checkpoint = user;
    double bytes = 0;
    for (uint32_t i = 0; i < cs_checkpoint_n_tensors(checkpoint); i++) {
        const cs_checkpoint_tensor *t = cs_checkpoint_tensor_at(checkpoint, i);
        bool ours = false;
        for (char **prefix = unit->weights; *prefix && !ours; prefix++)
            ours = g_str_has_prefix(t->name, *prefix);
        bytes += ours ? (double)t->size_bytes : 0;
    }
    return bytes;
}

static bool show_json(cs_tasks *tasks, const cs_checkpoint *checkpoint, GError **error)
{
    json_t *graph =
        cs_tasks_to_plan_graph(tasks, "model", weights_bytes, (void *)checkpoint, error);
    if (!graph)
        return false;
    char *text = json_dumps(graph, JSON_INDENT(2));
    puts(text);
    free(text);
    json_decref(graph);
    return true;
}

static cs_tasks *load_tasks(const cs_checkpoint *checkpoint, GError **error)
{
    json_t *config = cs_checkpoint_config(checkpoint);
    const char *family = json_string_value(json_object_get(config, "model_type"));
    size_t size_bytes = 0;
    const char *source = family ? cs_builtin_task(family, &size_bytes) : NULL;
    if (!source) {
        cs_fail(error, CS_ERROR_UNSUPPORTED, "%s/config.json: no task file for model_type %s",
                cs_checkpoint_dir(checkpoint), family ? family : "(missing)");
        return NULL;
    }
    g_autoptr(cs_tasks) tasks = cs_tasks_new(family, NULL, error);
    g_autofree char *file = g_strdup_printf("%s.lua", family);
    if (!tasks || !cs_tasks_add_model(tasks, "model", cs_checkpoint_dir(checkpoint), source,
                                      size_bytes, file, config, error))
        return NULL;
    return g_steal_pointer(&tasks);
}

int cs_cli_graph(int argc, char **argv)
{
    int exit_code;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    GError *error = NULL;
    g_autoptr(cs_checkpoint) checkpoint = cs_checkpoint_open(argv[1], &error);
    g_autoptr(cs_tasks) tasks = checkpoint ? load_tasks(checkpoint, &error) : NULL;
    if (!tasks)
        return cs_cli_fail(spec.name, error);
    if (option_json) {
        if (!show_json(tasks, checkpoint, &error))
            return cs_cli_fail(spec.name, error);
    } else if (option_request) {
        if (!show_request(tasks, &error))
            return cs_cli_fail(spec.name, error);
    } else {
        for (const char *const *k = cs_tasks_request_kinds(tasks, "model"); *k; k++)
            puts(*k);
    }
    return CS_EXIT_OK;
}
