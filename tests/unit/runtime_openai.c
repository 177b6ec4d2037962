/* Executors of kind "openai" against a server on a local socket that answers well, badly, in parts
 * or never. This program is its own executor. */
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "graph/builtin.h"
#include "runtime/executor.h"
#include "runtime/runtime.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- the server --- */

static int listener, port;
static atomic_int n_broken, n_gone;

static bool say(int fd, const char *format, ...) G_GNUC_PRINTF(2, 3);

static bool say(int fd, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    return send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text);
}

static void say_words(int fd, int from, int to)
{
    for (int i = from; i < to; i++)
        say(fd, "data: {\"choices\":[{\"delta\":{\"content\":\"w%d \\u00e9\"}}]}\r\n\r\n", i);
}

static void say_status(int fd, const char *status, const char *body)
{
    say(fd,
        "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
        "Connection: close\r\n\r\n%s",
        status, strlen(body), body);
}

static void say_head(int fd)
{
    say(fd, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
    say(fd, ": a comment\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n");
}

static void answer(int fd, const char *request)
{
    if (strstr(request, "\"refuse\"")) {
        say_status(fd, "400 Bad Request", "{\"error\":{\"message\":\"no such thing\"}}");
    } else if (strstr(request, "\"busy\"")) {
        say_status(fd, "503 Service Unavailable", "later");
    } else if (strstr(request, "\"garbage\"")) {
        say_head(fd);
        say(fd, "data: {nonsense\n\n");
    } else if (strstr(request, "\"long line\"")) {
        say_head(fd);
        g_autofree char *line = g_strnfill(3 << 20, 'x');
        say(fd, "data: %s", line);
    } else if (strstr(request, "\"break\"") && atomic_fetch_add(&n_broken, 1) == 0) {
        say_head(fd);
        say_words(fd, 0, 3);
    } else if (strstr(request, "\"turn\"")) {
        say_head(fd);
        int first = atomic_fetch_add(&n_broken, 1) == 0 ? 0 : 5;
        say_words(fd, first, first + 3);
    } else if (strstr(request, "\"endless\"")) {
        say_head(fd);
        while (say(fd, "data: {\"choices\":[{\"delta\":{\"content\":\".\"}}]}\n\n"))
            g_usleep(1000);
        atomic_fetch_add(&n_gone, 1);
    } else {
        say_head(fd);
        say_words(fd, 0, 5);
        say(fd, "data: [DONE]\n\n");
    }
}

static gpointer serve_one(gpointer user)
{
    int fd = GPOINTER_TO_INT(user);
    char request[8192];
    size_t n = 0;
    ssize_t got;
    while (n < sizeof(request) - 1 &&
           (got = recv(fd, request + n, sizeof(request) - 1 - n, 0)) > 0) {
        n += (size_t)got;
        request[n] = '\0';
        if (strstr(request, "\"stream\":true")) /* the last member of the bodies sent here */
            break;
    }
    if (n > 0 && strstr(request, "POST /v1/chat/completions") &&
        strstr(request, "\"model\":\"their-name\"") && strstr(request, "Bearer secret"))
        answer(fd, request);
    close(fd);
    return NULL;
}

static gpointer serve(gpointer user)
{
    int fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0)
        g_thread_unref(g_thread_new("connection", serve_one, GINT_TO_POINTER(fd)));
    return NULL;
}

static void start_server(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(listener, (struct sockaddr *)&address, size), ==, 0);
    g_assert_cmpint(listen(listener, 16), ==, 0);
    getsockname(listener, (struct sockaddr *)&address, &size);
    port = ntohs(address.sin_port);
    g_thread_unref(g_thread_new("server", serve, NULL));
}

/* --- the client --- */

static cs_tasks *load_tasks(void)
{
    g_autoptr(GError) error = NULL;
    size_t size_bytes = 0;
    const char *source = cs_builtin_task("openai", &size_bytes);
    cs_tasks *tasks = cs_tasks_new("openai", NULL, &error);
    g_assert_true(cs_tasks_add_model(tasks, "model", "remote", source, size_bytes, "openai.lua",
                                     NULL, &error) &&
                  cs_tasks_set_plain_app(tasks, "model", &error));
    return tasks;
}

static cs_runtime *start(int at_port)
{
    static const cs_runtime_options options = {.restart_us = 10000, .start_us = 20000000};
    g_autoptr(GError) error = NULL;
    cs_runtime *rt = cs_runtime_new(&options, &error);
    g_autoptr(cs_tasks) tasks = load_tasks();
    g_autoptr(cs_plan) plan = cs_plan_colocated(tasks, "model", "openai", 1, &error);
    g_autofree char *url = g_strdup_printf("http://127.0.0.1:%d/v1", at_port);
    json_t *devices = json_pack("{s:{s:s, s:s, s:s}}", "openai", "url", url, "model", "their-name",
                                "key_env", "TEST_OPENAI_KEY");
    cs_runtime_deploy(rt, "remote", plan, tasks, "model", devices, &error);
    g_assert_no_error(error);
    cs_runtime_add_app(rt, "app", load_tasks(), &error);
    g_assert_no_error(error);
    json_decref(devices);
    return rt;
}

typedef struct {
    pthread_mutex_t lock;
    GString *text;
    GError *error;
    bool done;
} client;

static void on_piece(void *user, uint32_t call, const char *unit, const char *output,
                     const void *data, size_t size_bytes, uint32_t units)
{
    client *c = user;
    pthread_mutex_lock(&c->lock);
    g_string_append_len(c->text, data, (gssize)size_bytes);
    pthread_mutex_unlock(&c->lock);
}

static void on_event(void *user, const json_t *event)
{
}

static void on_done(void *user, const json_t *result, const GError *error)
{
    client *c = user;
    pthread_mutex_lock(&c->lock);
    c->error = error ? g_error_copy(error) : NULL;
    c->done = true;
    pthread_mutex_unlock(&c->lock);
}

static cs_runtime_request *ask(cs_runtime *rt, client *c, const char *content)
{
    static const cs_runtime_sink sink = {on_piece, on_event, on_done};
    g_autoptr(GError) error = NULL;
    *c = (client){.text = g_string_new(NULL)};
    pthread_mutex_init(&c->lock, NULL);
    json_t *request =
        json_pack("{s:{s:[{s:s, s:s}]}}", "body", "messages", "role", "user", "content", content);
    cs_runtime_request *r = cs_runtime_submit(rt, "app", request, &sink, c, &error);
    g_assert_no_error(error);
    json_decref(request);
    return r;
}

static bool look(client *c, bool *has_text)
{
    pthread_mutex_lock(&c->lock);
    bool done = c->done;
    *has_text = c->text->len > 0;
    pthread_mutex_unlock(&c->lock);
    return done;
}

static void wait_done(client *c)
{
    bool has_text;
    for (int i = 0; !look(c, &has_text); i++) {
        g_assert_cmpint(i, <, 20000);
        g_usleep(1000);
    }
}

static void expect(cs_runtime *rt, const char *content, int code, const char *text)
{
    client c;
    cs_runtime_request *r = ask(rt, &c, content);
    wait_done(&c);
    cs_runtime_request_release(r);
    if (code < 0)
        g_assert_no_error(c.error);
    else
        g_assert_error(c.error, CS_ERROR, code);
    g_assert_cmpstr(c.text->str, ==, text);
    g_clear_error(&c.error);
    g_string_free(c.text, TRUE);
    pthread_mutex_destroy(&c.lock);
}

#define FIVE_WORDS "w0 \u00e9w1 \u00e9w2 \u00e9w3 \u00e9w4 \u00e9"
#define THREE_WORDS "w0 \u00e9w1 \u00e9w2 \u00e9"

static void test_answers(void)
{
    cs_runtime *rt = start(port);
    expect(rt, "hello", -1, FIVE_WORDS);
    expect(rt, "refuse", CS_ERROR_INVALID, "");
    expect(rt, "busy", CS_ERROR_BUSY, "");
    expect(rt, "garbage", CS_ERROR_INVALID, "");
    expect(rt, "long line", CS_ERROR_FAILED, "");
    expect(rt, "hello", -1, FIVE_WORDS);
    cs_runtime_free(rt, 0);
}

/* The server breaks off once: the client gets the whole answer, nothing twice. If it then answers
 * otherwise, that is an error. */
static void test_resume(void)
{
    cs_runtime *rt = start(port);
    atomic_store(&n_broken, 0);
    expect(rt, "break", -1, FIVE_WORDS);
    g_assert_cmpint(atomic_load(&n_broken), ==, 2);
    atomic_store(&n_broken, 0);
    expect(rt, "turn", CS_ERROR_FAILED, THREE_WORDS);
    cs_runtime_free(rt, 0);
}

/* Cancelling closes the connection to the server. */
static void test_cancel(void)
{
    cs_runtime *rt = start(port);
    client c;
    cs_runtime_request *r = ask(rt, &c, "endless");
    bool has_text = false;
    while (!look(&c, &has_text) && !has_text)
        g_usleep(1000);
    cs_runtime_request_cancel(r);
    wait_done(&c);
    cs_runtime_request_release(r);
    g_assert_error(c.error, CS_ERROR, CS_ERROR_CANCELLED);
    for (int i = 0; atomic_load(&n_gone) == 0; i++) {
        g_assert_cmpint(i, <, 10000);
        g_usleep(1000);
    }
    g_clear_error(&c.error);
    g_string_free(c.text, TRUE);
    cs_runtime_free(rt, 0);
}

static void test_unreachable(void)
{
    cs_runtime *rt = start(1); /* nobody listens there */
    expect(rt, "hello", CS_ERROR_FAILED, "");
    cs_runtime_free(rt, 0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "executor") == 0)
        return cs_executor_main(CS_EXECUTOR_CONTROL_FD, CS_EXECUTOR_SIDECAR_FD);
    g_test_init(&argc, &argv, NULL);
    g_setenv("TEST_OPENAI_KEY", "secret", TRUE);
    g_setenv("no_proxy", "127.0.0.1", TRUE);
    cs_log_set_level(CS_LOG_ERROR);
    start_server();
    g_test_add_func("/openai/answers", test_answers);
    g_test_add_func("/openai/resume", test_resume);
    g_test_add_func("/openai/cancel", test_cancel);
    g_test_add_func("/openai/unreachable", test_unreachable);
    return g_test_run();
}
