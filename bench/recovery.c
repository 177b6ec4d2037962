/* Executors are killed at random under load: is every answer right, and how long is the pause?
 *
 *     build/bench/recovery CONFIG_JSON [REQUESTS] [CLIENTS] [KILL_EVERY_MS]
 *
 * Emulated executors (two encoders, two thinkers, two talkers with vocoders) that take 2 ms a step;
 * mixed requests, a quarter of them cancelled at a random moment. An executor, chosen at random, is
 * killed with SIGKILL at every interval. The pause of a request is its longest time without a
 * piece. */
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/os.h"
#include "runtime/executor.h"
#include "runtime/runtime.h"
#include "tasks.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    GString *text;
    uint64_t audio_pieces;
    int64_t last_us, pause_us;
    bool done, failed;
    char *error;
} client;

typedef struct {
    cs_runtime *rt;
    unsigned seed;
    atomic_uint *left;
    GArray *pauses; /* int64_t */
    unsigned n_right, n_cancelled, n_wrong;
} worker;

static void on_piece(void *user, uint32_t call, const char *unit, const char *output,
                     const void *data, size_t size_bytes, uint32_t units)
{
    client *c = user;
    int64_t now_us = cs_now_us();
    pthread_mutex_lock(&c->lock);
    c->pause_us = MAX(c->pause_us, now_us - c->last_us);
    c->last_us = now_us;
    if (strcmp(output, "text") == 0)
        g_string_append_len(c->text, data, (gssize)size_bytes);
    else
        c->audio_pieces++;
    pthread_mutex_unlock(&c->lock);
}

static void on_event(void *user, const json_t *event)
{
}

static void on_done(void *user, const json_t *result, const GError *error)
{
    client *c = user;
    pthread_mutex_lock(&c->lock);
    c->done = true;
    c->failed = error != NULL;
    c->error = error ? g_strdup(error->message) : NULL;
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->lock);
}

static bool wait_until(client *c, int64_t after_us)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    int64_t ns = until.tv_nsec + after_us * 1000;
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    pthread_mutex_lock(&c->lock);
    int result = 0;
    while (!c->done && result == 0)
        result = pthread_cond_timedwait(&c->cond, &c->lock, &until);
    bool done = c->done;
    pthread_mutex_unlock(&c->lock);
    return done;
}

static bool is_right(const client *c, int n_text, int n_audio)
{
    g_autoptr(GString) expected = g_string_new(NULL);
    for (int i = 0; i < n_text; i++)
        g_string_append_printf(expected, "w%d ", i);
    return !c->failed && strcmp(c->text->str, expected->str) == 0 &&
           c->audio_pieces == (uint64_t)n_audio;
}

static void one_request(worker *w, GRand *random)
{
    static const cs_runtime_sink sink = {on_piece, on_event, on_done};
    int n_text = g_rand_int_range(random, 10, 80);
    int n_audio = g_rand_boolean(random) ? g_rand_int_range(random, 10, 80) : 0;
    bool cancel = g_rand_int_range(random, 0, 4) == 0;
    client c = {.text = g_string_new(NULL), .last_us = cs_now_us()};
    pthread_mutex_init(&c.lock, NULL);
    pthread_cond_init(&c.cond, NULL);
    json_t *request =
        json_pack("{s:[{s:s, s:i}], s:i, s:i, s:i, s:b}", "media", "modality",
                  g_rand_boolean(random) ? "image" : "audio", "tokens", 200, "text_in_tokens", 50,
                  "text_out_tokens", n_text, "audio_out_tokens", n_audio, "speech", n_audio > 0);
    g_autoptr(GError) error = NULL;
    cs_runtime_request *r = cs_runtime_submit(w->rt, "app", request, &sink, &c, &error);
    json_decref(request);
    if (cancel && !wait_until(&c, g_rand_int_range(random, 0, 200000)))
        cs_runtime_request_cancel(r);
    while (!wait_until(&c, 1000000))
        ;
    cs_runtime_request_release(r);
    if (cancel && c.failed)
        w->n_cancelled++;
    else if (is_right(&c, n_text, n_audio))
        w->n_right++;
    else if (w->n_wrong++ == 0)
        fprintf(stderr, "recovery: wrong answer: %s\n", c.error ? c.error : c.text->str);
    if (!cancel)
        g_array_append_val(w->pauses, c.pause_us);
    g_string_free(c.text, TRUE);
    g_free(c.error);
}

static gpointer work(gpointer user)
{
    worker *w = user;
    g_autoptr(GRand) random = g_rand_new_with_seed(w->seed);
    unsigned left;
    while ((left = atomic_load(w->left)) > 0)
        if (atomic_compare_exchange_weak(w->left, &left, left - 1))
            one_request(w, random);
    return NULL;
}

/* --- set-up --- */

static const char plan_text[] =
    "{\"version\": 1, \"model\": \"m\", \"policy\": \"throughput\", \"executors\": ["
    "{\"name\": \"enc\", \"components\": [{\"name\": \"image_encoder\", \"role\": \"both\"},"
    " {\"name\": \"audio_encoder\", \"role\": \"both\"}], \"node\": \"local\","
    " \"device\": \"emu:2ms\", \"devices_per_replica\": 1, \"replicas\": 2, \"devices\": [0, 1]},"
    "{\"name\": \"think\", \"components\": [{\"name\": \"thinker\", \"role\": \"both\"}],"
    " \"node\": \"local\", \"device\": \"emu:2ms\", \"devices_per_replica\": 1, \"replicas\": 2,"
    " \"devices\": [2, 3]},"
    "{\"name\": \"speak\", \"components\": [{\"name\": \"talker\", \"role\": \"both\"},"
    " {\"name\": \"vocoder\", \"role\": \"both\"}], \"node\": \"local\", \"device\": \"emu:2ms\","
    " \"devices_per_replica\": 1, \"replicas\": 2, \"devices\": [4, 5]}], \"routes\": []}";

static const char devices_text[] =
    "{\"emu:2ms\": {\"components\": {"
    "\"image_encoder\": {\"kind\": \"encoder\", \"fixed_us\": 2000},"
    "\"audio_encoder\": {\"kind\": \"encoder\", \"fixed_us\": 2000},"
    "\"thinker\": {\"kind\": \"llm\", \"fixed_us\": 2000, \"prefill_fixed_us\": 2000},"
    "\"talker\": {\"kind\": \"llm\", \"fixed_us\": 2000, \"prefill_fixed_us\": 2000},"
    "\"vocoder\": {\"kind\": \"generator\", \"fixed_us\": 2000}}}}";

static cs_runtime *start(const char *config_path, GError **error)
{
    cs_runtime_options options = {.ping_us = 100000, .watchdog_us = 2000000, .attempts_max = 50};
    json_t *root = cs_json_load(plan_text, strlen(plan_text), "plan", error);
    json_t *devices = cs_json_load(devices_text, strlen(devices_text), "devices", error);
    g_autoptr(cs_plan) plan = cs_plan_from_json(root, "plan", error);
    cs_tasks *tasks = cs_bench_tasks(config_path, error);
    g_autoptr(cs_tasks) graph = tasks ? cs_bench_tasks(config_path, error) : NULL;
    cs_runtime *rt = graph ? cs_runtime_new(&options, error) : NULL;
    bool ok = rt && cs_runtime_deploy(rt, "m", plan, graph, "model", devices, error) &&
              cs_runtime_add_app(rt, "app", tasks, error);
    json_decref(root);
    json_decref(devices);
    if (ok)
        return rt;
    cs_runtime_free(rt, 0);
    return NULL;
}

static json_t *executor_at(json_t *status, int index)
{
    return json_array_get(json_object_get(status, "executors"), (size_t)index);
}

/* Kills one executor; the time until it is ready again, -1 if it was not ready. */
static int64_t kill_one(cs_runtime *rt, int index)
{
    json_t *status = cs_runtime_status(rt);
    json_t *x = executor_at(status, index);
    int64_t pid = json_integer_value(json_object_get(x, "pid"));
    bool ready = strcmp(json_string_value(json_object_get(x, "state")), "ready") == 0;
    json_decref(status);
    if (!ready)
        return -1;
    int64_t start_us = cs_now_us();
    kill((pid_t)pid, SIGKILL);
    for (;;) {
        g_usleep(1000);
        status = cs_runtime_status(rt);
        x = executor_at(status, index);
        bool back = json_integer_value(json_object_get(x, "pid")) != pid &&
                    strcmp(json_string_value(json_object_get(x, "state")), "ready") == 0;
        json_decref(status);
        if (back)
            return cs_now_us() - start_us;
    }
}

static int compare_times(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void print_times(const char *what, GArray *times)
{
    g_array_sort(times, compare_times);
    if (times->len == 0)
        return;
    printf("%s: median %.1f ms, p99 %.1f ms, worst %.1f ms (%u)\n", what,
           (double)g_array_index(times, int64_t, times->len / 2) / 1e3,
           (double)g_array_index(times, int64_t, times->len * 99 / 100) / 1e3,
           (double)g_array_index(times, int64_t, times->len - 1) / 1e3, times->len);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "executor") == 0)
        return cs_executor_main(CS_EXECUTOR_CONTROL_FD, CS_EXECUTOR_SIDECAR_FD);
    g_autoptr(GError) error = NULL;
    atomic_uint left = argc > 2 ? (unsigned)atoi(argv[2]) : 2000;
    int n_clients = argc > 3 ? atoi(argv[3]) : 64, every_ms = argc > 4 ? atoi(argv[4]) : 200;
    cs_log_set_level(CS_LOG_ERROR);
    cs_runtime *rt = argc > 1 ? start(argv[1], &error) : NULL;
    if (!rt) {
        fprintf(stderr, "recovery: %s\n", error ? error->message : "expected CONFIG_JSON");
        return 1;
    }
    g_autofree worker *workers = g_new0(worker, n_clients);
    g_autofree GThread **threads = g_new0(GThread *, n_clients);
    for (int i = 0; i < n_clients; i++) {
        workers[i] = (worker){.rt = rt,
                              .seed = (unsigned)i,
                              .left = &left,
                              .pauses = g_array_new(FALSE, FALSE, sizeof(int64_t))};
        threads[i] = g_thread_new("client", work, &workers[i]);
    }
    g_autoptr(GRand) random = g_rand_new_with_seed(1);
    g_autoptr(GArray) restarts = g_array_new(FALSE, FALSE, sizeof(int64_t));
    g_autoptr(GArray) pauses = g_array_new(FALSE, FALSE, sizeof(int64_t));
    while (atomic_load(&left) > 0) {
        g_usleep((gulong)every_ms * 1000);
        int64_t time_us = kill_one(rt, g_rand_int_range(random, 0, 6));
        if (time_us >= 0)
            g_array_append_val(restarts, time_us);
    }
    unsigned n_right = 0, n_cancelled = 0, n_wrong = 0;
    for (int i = 0; i < n_clients; i++) {
        g_thread_join(threads[i]);
        n_right += workers[i].n_right;
        n_cancelled += workers[i].n_cancelled;
        n_wrong += workers[i].n_wrong;
        g_array_append_vals(pauses, workers[i].pauses->data, workers[i].pauses->len);
        g_array_unref(workers[i].pauses);
    }
    printf("%u kills: %u answers right, %u cancelled by their clients, %u wrong or failed\n",
           restarts->len, n_right, n_cancelled, n_wrong);
    print_times("killed executor ready again after", restarts);
    print_times("longest pause of a request", pauses);
    g_usleep(300000); /* executors free what cancelled requests held */
    json_t *status = cs_runtime_status(rt);
    char *text = json_dumps(json_object_get(status, "sidecar"), JSON_COMPACT);
    printf("left in the sidecar: %s\n", text);
    free(text);
    json_decref(status);
    cs_runtime_free(rt, 0);
    return n_wrong > 0;
}
