/* What gateway, dispatcher and sidecar add to a request when the engines do no work: requests at a
 * steady rate through a plan with encoder, thinker, talker and vocoder apart, over emulated
 * executors whose steps take no time.
 *
 *     build/bench/gateway CONFIG_JSON [RATE] [SECONDS] [REPLICAS] [STREAMS]
 *
 * CONFIG_JSON is config.json of a Qwen2.5-Omni checkpoint. A request carries an image and gets
 * STEPS tokens; REPLICAS thinkers; with STREAMS, instead: so many long streaming requests at once.
 */
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/os.h"
#include "runtime/executor.h"
#include "runtime/runtime.h"
#include "tasks.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 8, REQUESTS_MAX = 200000 };

typedef struct {
    int64_t start_us, end_us;
    uint64_t pieces;
} sample;

static sample samples[REQUESTS_MAX];
static atomic_uint n_done, n_failed;
static atomic_ullong n_pieces;

static void on_piece(void *user, uint32_t call, const char *unit, const char *output,
                     const void *data, size_t size_bytes, uint32_t units)
{
    atomic_fetch_add(&n_pieces, 1);
}

static void on_event(void *user, const json_t *event)
{
}

static void on_done(void *user, const json_t *result, const GError *error)
{
    sample *s = user;
    s->end_us = cs_now_us();
    if (error && atomic_fetch_add(&n_failed, 1) == 0)
        fprintf(stderr, "gateway: %s\n", error->message);
    atomic_fetch_add(&n_done, 1);
}

static json_t *hosted(const char *a, const char *b)
{
    json_t *list = json_array();
    json_array_append_new(list, json_pack("{s:s, s:s}", "name", a, "role", "both"));
    if (b)
        json_array_append_new(list, json_pack("{s:s, s:s}", "name", b, "role", "both"));
    return list;
}

static void add_entry(json_t *executors, const char *name, json_t *components, int replicas,
                      int *device)
{
    json_t *ids = json_array();
    for (int i = 0; i < replicas; i++)
        json_array_append_new(ids, json_integer((*device)++));
    json_array_append_new(executors, json_pack("{s:s, s:o, s:s, s:s, s:i, s:i, s:o}", "name", name,
                                               "components", components, "node", "local", "device",
                                               "emu:none", "devices_per_replica", 1, "replicas",
                                               replicas, "devices", ids));
}

static cs_plan *make_plan(int replicas, GError **error)
{
    int device = 0;
    json_t *executors = json_array();
    add_entry(executors, "enc", hosted("image_encoder", "audio_encoder"), 1, &device);
    add_entry(executors, "think", hosted("thinker", NULL), replicas, &device);
    add_entry(executors, "speak", hosted("talker", "vocoder"), 1, &device);
    json_t *root = json_pack("{s:i, s:s, s:s, s:o, s:[]}", "version", 1, "model", "m", "policy",
                             "throughput", "executors", executors, "routes");
    cs_plan *plan = cs_plan_from_json(root, "plan", error);
    json_decref(root);
    return plan;
}

static json_t *make_devices(int step_us)
{
    json_t *encoder = json_pack("{s:s}", "kind", "encoder");
    return json_pack("{s:{s:{s:O, s:o, s:{s:s, s:i, s:i}, s:{s:s}, s:{s:s}}}}", "emu:none",
                     "components", "image_encoder", encoder, "audio_encoder", encoder, "thinker",
                     "kind", "llm", "max_batch", 4096, "fixed_us", step_us, "talker", "kind", "llm",
                     "vocoder", "kind", "generator");
}

static int compare_times(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void report(unsigned n)
{
    g_autofree int64_t *times = g_new(int64_t, n);
    for (unsigned i = 0; i < n; i++)
        times[i] = samples[i].end_us - samples[i].start_us;
    qsort(times, n, sizeof(times[0]), compare_times);
    printf("%u requests: median %.3f ms, p90 %.3f ms, p99 %.3f ms, worst %.3f ms; %u failed\n", n,
           (double)times[n / 2] / 1e3, (double)times[n * 9 / 10] / 1e3,
           (double)times[n * 99 / 100] / 1e3, (double)times[n - 1] / 1e3, atomic_load(&n_failed));
}

static bool send_one(cs_runtime *rt, const json_t *request, unsigned i)
{
    static const cs_runtime_sink sink = {on_piece, on_event, on_done};
    g_autoptr(GError) error = NULL;
    samples[i].start_us = cs_now_us();
    cs_runtime_request *r = cs_runtime_submit(rt, "app", request, &sink, &samples[i], &error);
    if (!r) {
        fprintf(stderr, "gateway: %s\n", error->message);
        return false;
    }
    cs_runtime_request_release(r);
    return true;
}

static void run(cs_runtime *rt, int rate, int seconds, unsigned streams)
{
    unsigned n = streams ? streams : MIN((unsigned)(rate * seconds), REQUESTS_MAX);
    json_t *request =
        json_pack("{s:[{s:s, s:i}], s:i, s:i}", "media", "modality", "image", "tokens", 256,
                  "text_in_tokens", 50, "text_out_tokens", streams ? 200 : TOKENS);
    int64_t start_us = cs_now_us();
    for (unsigned i = 0; i < n; i++) {
        int64_t due_us = streams ? 0 : start_us + (int64_t)i * 1000000 / rate;
        if (due_us > cs_now_us())
            g_usleep((gulong)(due_us - cs_now_us()));
        if (!send_one(rt, request, i))
            n = i;
    }
    while (atomic_load(&n_done) < n)
        g_usleep(10000);
    printf("%.0f requests/s, %.0f pieces/s, gateway %zu MB resident\n",
           n * 1e6 / (double)(cs_now_us() - start_us),
           (double)atomic_load(&n_pieces) * 1e6 / (double)(cs_now_us() - start_us),
           cs_process_resident_bytes() >> 20);
    report(n);
    json_decref(request);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "executor") == 0)
        return cs_executor_main(CS_EXECUTOR_CONTROL_FD, CS_EXECUTOR_SIDECAR_FD);
    g_autoptr(GError) error = NULL;
    int rate = argc > 2 ? atoi(argv[2]) : 500, seconds = argc > 3 ? atoi(argv[3]) : 10;
    int replicas = argc > 4 ? atoi(argv[4]) : 1, streams = argc > 5 ? atoi(argv[5]) : 0;
    cs_tasks *tasks = argc > 1 ? cs_bench_tasks(argv[1], &error) : NULL;
    g_autoptr(cs_tasks) graph = tasks ? cs_bench_tasks(argv[1], &error) : NULL;
    g_autoptr(cs_plan) plan = graph ? make_plan(replicas, &error) : NULL;
    cs_runtime_options options = {.max_requests = 100000, .watchdog_us = 60000000};
    cs_runtime *rt = plan ? cs_runtime_new(&options, &error) : NULL;
    json_t *devices = make_devices(streams ? 20000 : 0);
    if (!rt || !cs_runtime_deploy(rt, "m", plan, graph, "model", devices, &error) ||
        !cs_runtime_add_app(rt, "app", tasks, &error)) {
        fprintf(stderr, "gateway: %s\n",
                error ? error->message
                      : "expected CONFIG_JSON [RATE] [SECONDS] [REPLICAS] [STREAMS]");
        return 1;
    }
    printf("%d executors\n", replicas + 2);
    run(rt, rate, seconds, (unsigned)streams);
    json_decref(devices);
    cs_runtime_free(rt, 0);
    return 0;
}
