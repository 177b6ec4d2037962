#include "runtime_case.h"

#include "base/error.h"
#include "base/json.h"
#include "base/os.h"
#include "graph/builtin.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- set-up --- */

void add_model(cs_tasks *tasks, const char *alias, const char *model)
{
    g_autoptr(GError) error = NULL;
    size_t size_bytes = 0;
    const char *source = cs_builtin_task("qwen2_5_omni", &size_bytes);
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "golden", "qwen2_5_omni",
                                                  "qwen2.5-omni-tiny", "config.json", NULL);
    json_t *config = cs_json_load_file(path, 1 << 20, &error);
    g_assert_no_error(error);
    cs_tasks_add_model(tasks, alias, model, source, size_bytes, "task", config, &error);
    g_assert_no_error(error);
    json_decref(config);
}

cs_tasks *plain_tasks(const char *model)
{
    g_autoptr(GError) error = NULL;
    cs_tasks *tasks = cs_tasks_new("plain", NULL, &error);
    add_model(tasks, "model", model);
    cs_tasks_set_plain_app(tasks, "model", &error);
    g_assert_no_error(error);
    return tasks;
}

json_t *devices(const char *extra, int us)
{
    g_autofree char *text =
        g_strdup_printf("{\"emu:test\": {\"components\": {"
                        "\"image_encoder\": {\"kind\": \"encoder\", \"fixed_us\": %d},"
                        "\"audio_encoder\": {\"kind\": \"encoder\", \"fixed_us\": %d},"
                        "\"thinker\": {\"kind\": \"llm\", \"fixed_us\": %d, \"chunk_units\": 64},"
                        "\"talker\": {\"kind\": \"llm\", \"fixed_us\": %d},"
                        "\"vocoder\": {\"kind\": \"generator\", \"fixed_us\": %d}}%s}}",
                        us, us, us, us, us, extra);
    return cs_json_load(text, strlen(text), "devices", NULL);
}

/* start_us bounds how long a process that was stopped while it started holds up its requests. */
const cs_runtime_options quick = {.ping_us = 50000,
                                  .watchdog_us = 400000,
                                  .start_us = 10000000,
                                  .restart_us = 10000,
                                  .attempts_max = 20};

cs_runtime *start_runtime(void)
{
    g_autoptr(GError) error = NULL;
    cs_runtime *rt = cs_runtime_new(&quick, &error);
    g_assert_no_error(error);
    return rt;
}

cs_plan *parse_plan(const char *text, GError **error)
{
    json_t *root = cs_json_load(text, strlen(text), "plan", error);
    cs_plan *plan = root ? cs_plan_from_json(root, "plan", error) : NULL;
    json_decref(root);
    return plan;
}

void deploy(cs_runtime *rt, const char *model, const char *plan_text, const char *extra, int us)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_tasks) tasks = plain_tasks(model);
    g_autoptr(cs_plan) plan = plan_text ? parse_plan(plan_text, &error)
                                        : cs_plan_colocated(tasks, "model", "emu:test", 1, &error);
    g_assert_no_error(error);
    json_t *config = devices(extra, us);
    cs_runtime_deploy(rt, model, plan, tasks, "model", config, &error);
    g_assert_no_error(error);
    json_decref(config);
}

void add_plain_app(cs_runtime *rt, const char *model)
{
    g_autoptr(GError) error = NULL;
    cs_runtime_add_app(rt, "plain", plain_tasks(model), &error);
    g_assert_no_error(error);
}

/* --- clients --- */

static void on_piece(void *user, uint32_t call, const char *unit, const char *output,
                     const void *data, size_t size_bytes, uint32_t units)
{
    client *c = user;
    pthread_mutex_lock(&c->lock);
    if (strcmp(output, "text") == 0) {
        g_string_append_len(c->text, data, (gssize)size_bytes);
    } else if (strcmp(output, "audio") == 0) {
        c->audio_bytes += size_bytes;
        c->audio_pieces++;
    }
    pthread_mutex_unlock(&c->lock);
}

static void on_event(void *user, const json_t *event)
{
    client *c = user;
    char *text = json_dumps(event, JSON_COMPACT | JSON_SORT_KEYS);
    pthread_mutex_lock(&c->lock);
    g_string_append_printf(c->events, "%s\n", text);
    pthread_mutex_unlock(&c->lock);
    free(text);
}

static void on_done(void *user, const json_t *result, const GError *error)
{
    client *c = user;
    pthread_mutex_lock(&c->lock);
    g_assert_false(c->done);
    c->done = true;
    c->error = error ? g_error_copy(error) : NULL;
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->lock);
}

const cs_runtime_sink client_sink = {on_piece, on_event, on_done};

static void client_init(client *c)
{
    *c = (client){.text = g_string_new(NULL), .events = g_string_new(NULL)};
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->cond, NULL);
}

void client_clear(client *c)
{
    g_string_free(c->text, TRUE);
    g_string_free(c->events, TRUE);
    g_clear_error(&c->error);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->cond);
}

void client_wait(client *c)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 60;
    pthread_mutex_lock(&c->lock);
    while (!c->done)
        if (pthread_cond_timedwait(&c->cond, &c->lock, &deadline) != 0)
            g_error("a request did not end within a minute");
    pthread_mutex_unlock(&c->lock);
}

json_t *make_request(int image_tokens, int audio_tokens, int n_out, int n_audio_out)
{
    json_t *media = json_array();
    if (image_tokens)
        json_array_append_new(media,
                              json_pack("{s:s, s:i}", "modality", "image", "tokens", image_tokens));
    if (audio_tokens)
        json_array_append_new(media,
                              json_pack("{s:s, s:i}", "modality", "audio", "tokens", audio_tokens));
    return json_pack("{s:o, s:i, s:i, s:i, s:b}", "media", media, "text_in_tokens", 20,
                     "text_out_tokens", n_out, "audio_out_tokens", n_audio_out, "speech",
                     n_audio_out > 0);
}

cs_runtime_request *submit(cs_runtime *rt, const char *app, client *c, json_t *request)
{
    g_autoptr(GError) error = NULL;
    client_init(c);
    cs_runtime_request *handle = cs_runtime_submit(rt, app, request, &client_sink, c, &error);
    g_assert_no_error(error);
    json_decref(request);
    return handle;
}

void assert_words(const client *c, int n)
{
    g_autoptr(GString) expected = g_string_new(NULL);
    for (int i = 0; i < n; i++)
        g_string_append_printf(expected, "w%d ", i);
    g_assert_cmpstr(c->text->str, ==, expected->str);
}

void ask(cs_runtime *rt, int image_tokens, int audio_tokens, int n_out, int n_audio_out)
{
    client c;
    cs_runtime_request *r =
        submit(rt, "plain", &c, make_request(image_tokens, audio_tokens, n_out, n_audio_out));
    client_wait(&c);
    cs_runtime_request_release(r);
    g_assert_no_error(c.error);
    assert_words(&c, n_out);
    g_assert_cmpuint(c.audio_pieces, ==, n_audio_out);
    g_assert_cmpuint(c.audio_bytes, ==, n_audio_out * 480 * 2);
    client_clear(&c);
}

/* --- what is left --- */

int64_t status_number(cs_runtime *rt, const char *object, const char *key)
{
    json_t *status = cs_runtime_status(rt);
    int64_t n = json_integer_value(json_object_get(json_object_get(status, object), key));
    json_decref(status);
    return n;
}

int open_descriptors(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    int n = 0;
    while (g_dir_read_name(dir))
        n++;
    return n;
}

/* Executors free what a cancelled request held a moment after the client was told. */
void assert_idle(cs_runtime *rt)
{
    for (int i = 0; i < 500; i++) {
        json_t *status = cs_runtime_status(rt);
        json_t *sidecar = json_object_get(status, "sidecar");
        int64_t left =
            json_integer_value(json_object_get(sidecar, "used_bytes")) +
            json_integer_value(json_object_get(sidecar, "requests")) +
            json_integer_value(json_object_get(sidecar, "streams")) +
            json_integer_value(json_object_get(json_object_get(status, "requests"), "active"));
        json_t *executors = json_object_get(status, "executors");
        for (size_t k = 0; k < json_array_size(executors); k++)
            left += json_integer_value(json_object_get(json_array_get(executors, k), "in_flight"));
        json_decref(status);
        if (left == 0)
            return;
        g_usleep(10000);
    }
    json_t *status = cs_runtime_status(rt);
    char *text = json_dumps(status, JSON_INDENT(1));
    g_error("something is left:\n%s", text);
}

static bool has_children(void)
{
    return g_file_test("/proc/self/task", G_FILE_TEST_EXISTS) &&
           waitid(P_ALL, 0, &(siginfo_t){0}, WEXITED | WNOHANG | WNOWAIT) == 0;
}

void stop_runtime(cs_runtime *rt)
{
    assert_idle(rt);
    int64_t start_us = cs_now_us();
    cs_runtime_free(rt, 1000000);
    g_assert_cmpint(cs_now_us() - start_us, <, 5 * G_USEC_PER_SEC);
    g_assert_false(has_children());
}

pid_t random_executor(cs_runtime *rt, GRand *random)
{
    json_t *status = cs_runtime_status(rt);
    json_t *executors = json_object_get(status, "executors");
    json_t *x = json_array_get(
        executors, (size_t)g_rand_int_range(random, 0, (int)json_array_size(executors)));
    pid_t pid = (pid_t)json_integer_value(json_object_get(x, "pid"));
    json_decref(status);
    return pid;
}
