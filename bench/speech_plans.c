/* What it costs, and brings, to have what speaks in executors of its own: the time until each of so
 * many users has heard so much speech, and the first of it.
 *
 *     build/bench/speech_plans CHECKPOINT [--where here|one|two|apart] [--threads A,B,C]
 *                              [--vocoders N] [--users N] [--seconds S] [--repeat N]
 *                              [--dtype f32|bf16]
 *
 * here: in this process, A threads; one: all in one executor of A threads; two: thinker and talker
 * in one of A threads, and N vocoders of B threads; apart: thinker, talker and N vocoders in
 * executors of A, B and C threads. CHECKPOINT is a Qwen2.5-Omni directory that
 * speaks; tools/reference/full_size --speech 3b makes one with random weights, whose speech knows
 * no end: users leave when they have heard enough. Medians of the repeats, after one that warms up.
 */
#include "media/decoder/child.h"
#include "runtime/executor.h"
#include "runtime/pipeline/pipeline.h"

#include "listeners.h"

#include <glib/gstdio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    const char *dir, *where, *dtype;
    int threads[3], vocoders, users, repeat;
    double seconds;
} options = {.where = "here",
             .dtype = "bf16",
             .threads = {2, 2, 2},
             .vocoders = 1,
             .users = 1,
             .repeat = 3,
             .seconds = 1};

/* ---- where ---- */

/* An entry of a plan; *device: the first that is free. */
static json_t *executor_of(int *device, const char *const *components, int threads, int replicas)
{
    json_t *hosted = json_array(), *devices = json_array();
    const char *name = *components;
    for (; *components; components++)
        json_array_append_new(hosted, json_pack("{s:s, s:s}", "name", *components, "role", "both"));
    for (int i = 0; i < replicas; i++)
        json_array_append_new(devices, json_integer((*device)++));
    return json_pack("{s:s, s:o, s:s, s:s, s:i, s:i, s:o, s:i, s:f}", "name", name, "components",
                     hosted, "node", "local", "device", "cpu", "devices_per_replica", 1, "replicas",
                     replicas, "devices", devices, "threads", threads, "kv_budget_bytes",
                     268435456.0);
}

static char *write_plan(const char *dir)
{
    static const struct {
        const char *where;
        const char *const entries[3][4];
    } plans[] = {{"one", {{"thinker", "talker", "vocoder"}}},
                 {"two", {{"thinker", "talker"}, {"vocoder"}}},
                 {"apart", {{"thinker"}, {"talker"}, {"vocoder"}}}};
    json_t *executors = json_array();
    for (size_t p = 0; p < G_N_ELEMENTS(plans); p++)
        for (int i = 0, device = 0; i < 3 && strcmp(options.where, plans[p].where) == 0; i++) {
            const char *const *entry = plans[p].entries[i];
            bool vocoder = entry[0] && strcmp(entry[0], "vocoder") == 0;
            if (entry[0])
                json_array_append_new(executors, executor_of(&device, entry, options.threads[i],
                                                             vocoder ? options.vocoders : 1));
        }
    json_t *plan = json_pack("{s:i, s:s, s:s, s:o, s:[]}", "version", 1, "model", "qwen2_5_omni",
                             "policy", "throughput", "executors", executors, "routes");
    char *path = g_build_filename(dir, "plan.json", NULL);
    if (json_dump_file(plan, path, 0) != 0)
        exit(1);
    json_decref(plan);
    return path;
}

static void measure(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_dir_make_tmp("speech-plans-XXXXXX", &error);
    fail_on(error);
    g_autofree char *plan = strcmp(options.where, "here") == 0 ? NULL : write_plan(dir);
    cs_pipeline *p =
        cs_pipeline_new(options.dir,
                        &(cs_pipeline_options){.dtype = options.dtype,
                                               .plan = plan,
                                               .kv_budget_bytes = 256u << 20,
                                               .n_threads = (uint32_t)options.threads[0]},
                        &error);
    if (plan)
        g_unlink(plan);
    g_rmdir(dir);
    fail_on(error);
    double took[MAX_REPEAT], first[MAX_REPEAT], warm;
    if (options.repeat > 1)
        listen(p, options.users, options.seconds, &warm);
    for (int i = 0; i < options.repeat; i++)
        took[i] = listen(p, options.users, options.seconds, &first[i]);
    printf("%-5s %d users: %.2f s of speech each after %.2f s, the first of it after %.2f s\n",
           options.where, options.users, options.seconds, median(took, options.repeat),
           median(first, options.repeat));
    cs_pipeline_free(p);
}

static bool read_threads(const char *text)
{
    int n = sscanf(text, "%d,%d,%d", &options.threads[0], &options.threads[1], &options.threads[2]);
    for (int i = MAX(n, 1); i < 3; i++)
        options.threads[i] = options.threads[0];
    return n >= 1;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "executor") == 0) /* as the pipeline starts itself */
        return cs_executor_main(CS_EXECUTOR_CONTROL_FD, CS_EXECUTOR_SIDECAR_FD);
    if (argc == 3 && strcmp(argv[1], "media-decoder") == 0)
        return cs_media_decoder_main(atoi(argv[2]));
    bool ok = argc >= 2 && argc % 2 == 0;
    for (int i = 2; ok && i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (strcmp(name, "--where") == 0)
            options.where = value;
        else if (strcmp(name, "--dtype") == 0)
            options.dtype = value;
        else if (strcmp(name, "--threads") == 0)
            ok = read_threads(value);
        else if (strcmp(name, "--seconds") == 0)
            options.seconds = atof(value);
        else if (strcmp(name, "--users") == 0)
            options.users = atoi(value);
        else if (strcmp(name, "--vocoders") == 0)
            options.vocoders = atoi(value);
        else
            options.repeat = atoi(value);
    }
    if (!ok || options.users < 1 || options.users > MAX_LISTENERS || options.repeat < 1 ||
        options.repeat > MAX_REPEAT) {
        fprintf(stderr, "speech_plans CHECKPOINT [--where here|one|two|apart] [--threads A,B,C] "
                        "[--vocoders N] [--users 1..64] [--seconds S] [--repeat 1..16] "
                        "[--dtype f32|bf16]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    options.dir = argv[1];
    measure();
    return 0;
}
