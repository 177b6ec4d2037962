/* The runtime over emulated executors: real processes, real messages, real shared memory. This
 * program is its own executor (`PROGRAM executor`). */
#include "base/error.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"
#include "base/os.h"
#include "graph/builtin.h"
#include "runtime/executor.h"
#include "runtime_case.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- tests --- */

static void test_colocated(void)
{
    int before = open_descriptors();
    cs_runtime *rt = start_runtime();
    deploy(rt, "m", NULL, "", 0);
    add_plain_app(rt, "m");
    ask(rt, 0, 0, 12, 0);
    ask(rt, 300, 0, 5, 0);
    ask(rt, 300, 100, 40, 60);
    g_assert_cmpint(status_number(rt, "sidecar", "bytes_total"), >, 300 * 108 * 4);
    stop_runtime(rt);
    g_assert_cmpint(open_descriptors(), ==, before);
}

static void test_split(void)
{
    cs_runtime *rt = start_runtime();
    deploy(rt, "m", SPLIT_PLAN, "", 200);
    add_plain_app(rt, "m");
    enum { N = 24 };
    client clients[N];
    cs_runtime_request *requests[N];
    for (int i = 0; i < N; i++)
        requests[i] = submit(rt, "plain", &clients[i],
                             make_request(i % 2 * 50, i % 3 * 20, 5 + i, i % 4 * 10));
    for (int i = 0; i < N; i++) {
        client_wait(&clients[i]);
        cs_runtime_request_release(requests[i]);
        g_assert_no_error(clients[i].error);
        assert_words(&clients[i], 5 + i);
        g_assert_cmpuint(clients[i].audio_pieces, ==, i % 4 * 10);
        client_clear(&clients[i]);
    }
    stop_runtime(rt);
}

/* The same mixed requests over plans that spread the components in other ways: the same answers. */
static void answer_all(const char *plan_text, GString *answers)
{
    enum { N = 200, AT_ONCE = 20 };
    client clients[AT_ONCE];
    cs_runtime_request *requests[AT_ONCE];
    cs_runtime *rt = start_runtime();
    deploy(rt, "m", plan_text, "", 0);
    add_plain_app(rt, "m");
    for (int i = 0; i < N; i += AT_ONCE) {
        for (int k = 0; k < AT_ONCE; k++) {
            int n = i + k;
            requests[k] = submit(rt, "plain", &clients[k],
                                 make_request(n % 2 * 64, n % 3 * 25, 1 + n % 37, n % 5 * 7));
        }
        for (int k = 0; k < AT_ONCE; k++) {
            client_wait(&clients[k]);
            cs_runtime_request_release(requests[k]);
            g_assert_no_error(clients[k].error);
            g_string_append_printf(answers, "%s|%d\n", clients[k].text->str,
                                   (int)clients[k].audio_bytes);
            client_clear(&clients[k]);
        }
    }
    stop_runtime(rt);
}

#define ENCODERS HOSTED("image_encoder") "," HOSTED("audio_encoder")
#define APART_PLAN                                                                                 \
    PLAN(ENTRY("enc", ENCODERS, "1", "0") "," ENTRY(                                               \
             "rest", HOSTED("thinker") "," HOSTED("talker") "," HOSTED("vocoder"), "1", "1"),      \
         "")
#define REPLICAS_PLAN                                                                              \
    PLAN(ENTRY("img", HOSTED("image_encoder"), "2", "0, 1") "," ENTRY(                             \
             "snd", HOSTED("audio_encoder"), "2",                                                  \
             "2, 3") "," ENTRY("think", HOSTED("thinker"), "2",                                    \
                               "4, 5") "," ENTRY("talk", HOSTED("talker"), "2",                    \
                                                 "6, 7") "," ENTRY("voice", HOSTED("vocoder"),     \
                                                                   "2", "8, 9"),                   \
         "")

static void test_plans_agree(void)
{
    g_autoptr(GString) colocated = g_string_new(NULL);
    answer_all(NULL, colocated);
    static const char *const others[] = {APART_PLAN, SPLIT_PLAN, REPLICAS_PLAN};
    for (unsigned i = 0; i < G_N_ELEMENTS(others); i++) {
        g_autoptr(GString) answers = g_string_new(NULL);
        answer_all(others[i], answers);
        g_assert_cmpstr(answers->str, ==, colocated->str);
    }
}

/* An app that asks two models at once; the encoders of equal models would be shared. */
static void test_arena(void)
{
    g_autoptr(GError) error = NULL;
    cs_runtime *rt = start_runtime();
    deploy(rt, "a", NULL, "", 100);
    deploy(rt, "b", SPLIT_PLAN, "", 100);
    cs_tasks *tasks = cs_tasks_new("arena", NULL, &error);
    size_t size_bytes = 0;
    const char *source = cs_builtin_app("arena", &size_bytes);
    add_model(tasks, "left", "a");
    add_model(tasks, "right", "b");
    cs_tasks_set_app(tasks, source, size_bytes, "arena", &error);
    cs_runtime_add_app(rt, "arena", tasks, &error);
    g_assert_no_error(error);
    client c;
    cs_runtime_request *r = submit(rt, "arena", &c, make_request(10, 0, 30, 0));
    client_wait(&c);
    cs_runtime_request_release(r);
    g_assert_no_error(c.error);
    for (int side = 0; side < 2; side++) {
        const char *at = c.events->str;
        for (int i = 0; i < 30; i++) {
            g_autofree char *event = g_strdup_printf("{\"answer\":\"%s\",\"text\":\"w%d \"}\n",
                                                     side ? "right" : "left", i);
            at = strstr(at, event);
            g_assert_nonnull(at);
        }
    }
    client_clear(&c);
    stop_runtime(rt);
}

static void test_refusals(void)
{
    g_autoptr(GError) error = NULL;
    cs_runtime *rt = start_runtime();
    json_t *request = make_request(0, 0, 5, 0);
    g_assert_null(cs_runtime_submit(rt, "plain", request, &client_sink, NULL, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_NOT_FOUND);
    g_clear_error(&error);
    add_plain_app(rt, "m"); /* of a model that is not deployed */
    client c;
    cs_runtime_request *r = submit(rt, "plain", &c, json_incref(request));
    client_wait(&c);
    cs_runtime_request_release(r);
    g_assert_error(c.error, CS_ERROR, CS_ERROR_NOT_FOUND);
    client_clear(&c);
    g_assert_false(cs_runtime_add_app(rt, "plain", plain_tasks("m"), &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_CONFLICT);
    g_clear_error(&error);
    deploy(rt, "m", NULL, "", 0);
    r = submit(rt, "plain", &c, json_pack("{s:s}", "media", "none"));
    client_wait(&c);
    cs_runtime_request_release(r);
    g_assert_error(c.error, CS_ERROR, CS_ERROR_INVALID);
    client_clear(&c);
    g_assert_true(cs_runtime_remove_app(rt, "plain", &error));
    g_assert_false(cs_runtime_remove_app(rt, "plain", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_NOT_FOUND);
    json_decref(request);
    stop_runtime(rt);
}

static void assert_plan_fails(const char *text, const char *part)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_tasks) tasks = plain_tasks("m");
    g_autoptr(cs_plan) plan = parse_plan(text, &error);
    g_assert_no_error(error);
    g_assert_false(cs_plan_check_graph(plan, tasks, "model", &error));
    if (!strstr(error->message, part))
        g_error("expected \"%s\" in \"%s\"", part, error->message);
}

static void test_plans(void)
{
    assert_plan_fails(PLAN(ENTRY("e", HOSTED("nose"), "1", "0"), ""), "no component nose");
    assert_plan_fails(PLAN(ENTRY("e", HOSTED("talker"), "1", "0"), ""),
                      "no executor has component");
    assert_plan_fails(
        PLAN(ENTRY("e", HOSTED("thinker"), "1", "0"), ROUTE("smell_to_text", "\"thinker\": \"e\"")),
        "no such request kind");
    assert_plan_fails(
        PLAN(ENTRY("e", HOSTED("thinker"), "1", "0"), ROUTE("image_to_text", "\"thinker\": \"e\"")),
        "no executor for image_encoder");
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_tasks) tasks = plain_tasks("m");
    g_autoptr(cs_plan) plan = parse_plan(
        PLAN(ENTRY("e", HOSTED("thinker"), "1", "0"), ROUTE("text_to_text", "\"thinker\": \"e\"")),
        &error);
    g_assert_true(cs_plan_check_graph(plan, tasks, "model", &error));
    g_assert_no_error(error);
}

static void test_no_start(void)
{
    g_autoptr(GError) error = NULL;
    cs_runtime *rt = start_runtime();
    g_autoptr(cs_tasks) tasks = plain_tasks("m");
    g_autoptr(cs_plan) plan = cs_plan_colocated(tasks, "model", "emu:test", 1, &error);
    g_assert_no_error(error);
    g_assert_false(cs_runtime_deploy(rt, "m", plan, tasks, "model", NULL, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, "emulation"));
    g_clear_error(&error);
    g_autoptr(cs_plan) other = cs_plan_colocated(tasks, "model", "abacus", 1, &error);
    g_assert_false(cs_runtime_deploy(rt, "m", other, tasks, "model", NULL, &error));
    g_assert_nonnull(strstr(error->message, "device abacus"));
    g_clear_error(&error);
    g_autoptr(cs_plan) crowd = cs_plan_colocated(tasks, "model", "emu:test", 1000000, &error);
    g_assert_no_error(error);
    g_assert_false(cs_runtime_deploy(rt, "m", crowd, tasks, "model", NULL, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
    stop_runtime(rt);
}

static void test_cancel(void)
{
    cs_runtime *rt = start_runtime();
    deploy(rt, "m", SPLIT_PLAN, "", 500);
    add_plain_app(rt, "m");
    client c[2];
    cs_runtime_request *r = submit(rt, "plain", &c[0], make_request(50, 0, 100000, 1000));
    cs_runtime_request *other = submit(rt, "plain", &c[1], make_request(50, 0, 20, 0));
    client_wait(&c[1]); /* the first is well under way */
    cs_runtime_request_cancel(r);
    client_wait(&c[0]);
    g_assert_error(c[0].error, CS_ERROR, CS_ERROR_CANCELLED);
    cs_runtime_request_cancel(r); /* again, after its end */
    cs_runtime_request_release(r);
    cs_runtime_request_release(other);
    client_clear(&c[0]);
    assert_words(&c[1], 20);
    client_clear(&c[1]);
    assert_idle(rt);
    stop_runtime(rt);
}

/* The third job of each executor process makes it exit, or hang until the watchdog acts. */
static void test_misbehaviour(const void *how)
{
    g_autofree char *extra =
        g_strdup_printf(", \"misbehave\": \"%s\", \"misbehave_at\": 3", (const char *)how);
    cs_runtime *rt = start_runtime();
    deploy(rt, "m", SPLIT_PLAN, extra, 300);
    add_plain_app(rt, "m");
    for (int i = 0; i < 4; i++)
        ask(rt, 30, 0, 20, 10);
    g_assert_cmpint(status_number(rt, "requests", "executor_deaths"), >, 1);
    g_assert_cmpint(status_number(rt, "requests", "retries"), >, 1);
    stop_runtime(rt);
}

typedef struct {
    client base;
    cs_runtime_request *handle;
    int n_out, n_audio;
    bool cancelled, live;
} storm_client;

static void storm_start(cs_runtime *rt, storm_client *c, GRand *random)
{
    c->n_out = g_rand_int_range(random, 1, 60);
    c->n_audio = g_rand_int_range(random, 0, 3) == 0 ? g_rand_int_range(random, 1, 40) : 0;
    c->cancelled = g_rand_int_range(random, 0, 4) == 0;
    c->live = true;
    c->handle = submit(rt, "plain", &c->base,
                       make_request(g_rand_int_range(random, 0, 200),
                                    g_rand_int_range(random, 0, 99), c->n_out, c->n_audio));
}

/* Every answer is whole and right, or cancelled by its own client. */
static void storm_end(storm_client *c)
{
    client_wait(&c->base);
    cs_runtime_request_release(c->handle);
    if (!c->cancelled || !c->base.error) {
        g_assert_no_error(c->base.error);
        assert_words(&c->base, c->n_out);
        g_assert_cmpuint(c->base.audio_pieces, ==, c->n_audio);
    } else {
        g_assert_error(c->base.error, CS_ERROR, CS_ERROR_CANCELLED);
    }
    client_clear(&c->base);
    c->live = false;
}

static void test_kill_storm(void)
{
    enum { CLIENTS = 32, REQUESTS = 400 };
    static storm_client clients[CLIENTS];
    int before = open_descriptors(), kills = 0;
    cs_runtime *rt = start_runtime();
    g_autoptr(GRand) random = g_rand_new_with_seed(3);
    deploy(rt, "m", SPLIT_PLAN, "", 200);
    add_plain_app(rt, "m");
    for (int i = 0; i < REQUESTS; i++) {
        storm_client *c = &clients[i % CLIENTS];
        if (c->live)
            storm_end(c);
        storm_start(rt, c, random);
        storm_client *other = &clients[g_rand_int_range(random, 0, CLIENTS)];
        if (other->live && other->cancelled)
            cs_runtime_request_cancel(other->handle);
        if (i % 16 == 7) {
            pid_t pid = random_executor(rt, random);
            if (pid > 0 && kill(pid, i % 64 == 7 ? SIGSTOP : SIGKILL) == 0)
                kills++;
        }
    }
    for (int i = 0; i < CLIENTS; i++)
        if (clients[i].live)
            storm_end(&clients[i]);
    assert_idle(rt);
    g_test_message("%d kills, %d retries", kills, (int)status_number(rt, "requests", "retries"));
    g_assert_cmpint(kills, >, 5);
    stop_runtime(rt);
    g_assert_cmpint(open_descriptors(), ==, before);
}

/* The N-th send, receive, spawn or message allocation of the gateway fails: an answer or an error,
 * and nothing is left. */
static void test_faults(void)
{
    static const cs_fault_point points[] = {CS_FAULT_RUNTIME_SEND, CS_FAULT_RUNTIME_RECEIVE,
                                            CS_FAULT_RUNTIME_ALLOC, CS_FAULT_RUNTIME_SPAWN,
                                            CS_FAULT_SIDECAR_ALLOC};
    cs_runtime *rt = start_runtime();
    deploy(rt, "m", SPLIT_PLAN, "", 0);
    add_plain_app(rt, "m");
    for (unsigned p = 0; p < G_N_ELEMENTS(points); p++) {
        for (uint32_t n = 1; n < 12; n++) {
            client c;
            cs_fault_arm(points[p], n);
            cs_runtime_request *r = submit(rt, "plain", &c, make_request(20, 0, 10, 5));
            client_wait(&c);
            cs_fault_disarm();
            cs_runtime_request_release(r);
            if (!c.error)
                assert_words(&c, 10);
            else if (points[p] != CS_FAULT_SIDECAR_ALLOC) /* only its refusal reaches a client */
                g_assert_no_error(c.error);
            client_clear(&c);
            if (points[p] == CS_FAULT_RUNTIME_SPAWN) {
                cs_fault_arm(points[p], 1);
                g_autoptr(GRand) random = g_rand_new_with_seed(n);
                pid_t pid = random_executor(rt, random);
                if (pid > 0)
                    kill(pid, SIGKILL);
            }
            assert_idle(rt);
        }
        cs_fault_disarm();
    }
    ask(rt, 10, 10, 10, 10);
    stop_runtime(rt);
}

/* --- frames that are none --- */

typedef struct {
    cs_loop *loop;
    int n_frames, n_closed, code;
} garbage_state;

static void count_frame(void *user, const cs_frame *frame)
{
    ((garbage_state *)user)->n_frames++;
}

static void count_closed(void *user, const GError *error)
{
    garbage_state *g = user;
    g->n_closed++;
    g->code = error ? error->code : -1;
    cs_loop_quit(g->loop);
}

static void feed(const uint8_t *bytes, size_t n, garbage_state *g)
{
    static const cs_wire_events events = {count_frame, count_closed};
    int pair[2];
    *g = (garbage_state){.loop = cs_loop_new(NULL)};
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), ==, 0);
    cs_wire *wire = cs_wire_new(g->loop, pair[0], "peer", &events, g, NULL);
    g_assert_cmpint(write(pair[1], bytes, n), ==, n);
    close(pair[1]);
    cs_loop_run(g->loop);
    g_assert_cmpint(g->n_closed, ==, 1);
    cs_wire_free(wire);
    cs_loop_free(g->loop);
}

static void test_garbage(void)
{
    garbage_state g;
    feed((const uint8_t *)"\xff\xff\xff\xff", 4, &g);
    g_assert_cmpint(g.code, ==, CS_ERROR_EXECUTOR_LOST);
    feed((const uint8_t *)"\x03\0\0\0abc", 7, &g);
    g_assert_cmpint(g.code, ==, CS_ERROR_EXECUTOR_LOST);
    feed((const uint8_t *)"\0\0\0\0", 4, &g); /* a frame of nothing */
    g_assert_cmpint(g.code, ==, CS_ERROR_EXECUTOR_LOST);
    feed((const uint8_t *)"\x09\0\0", 3, &g); /* cut off */
    g_assert_cmpint(g.code, ==, -1);
    g_assert_cmpint(g.n_frames, ==, 0);
    g_autoptr(GRand) random = g_rand_new_with_seed(5);
    for (int round = 0; round < 2000; round++) {
        uint8_t bytes[256];
        int n = g_rand_int_range(random, 1, sizeof(bytes));
        for (int i = 0; i < n; i++)
            bytes[i] = (uint8_t)g_rand_int(random);
        bytes[0] = (uint8_t)g_rand_int_range(random, 0, 64);
        bytes[1] = bytes[2] = bytes[3] = 0;
        feed(bytes, (size_t)n, &g);
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "executor") == 0)
        return cs_executor_main(CS_EXECUTOR_CONTROL_FD, CS_EXECUTOR_SIDECAR_FD);
    g_test_init(&argc, &argv, NULL);
    cs_log_set_level(CS_LOG_ERROR); /* deaths are expected here */
    g_test_add_func("/runtime/garbage", test_garbage);
    g_test_add_func("/runtime/plans", test_plans);
    g_test_add_func("/runtime/colocated", test_colocated);
    g_test_add_func("/runtime/split", test_split);
    g_test_add_func("/runtime/plans_agree", test_plans_agree);
    g_test_add_func("/runtime/arena", test_arena);
    g_test_add_func("/runtime/refusals", test_refusals);
    g_test_add_func("/runtime/no_start", test_no_start);
    g_test_add_func("/runtime/cancel", test_cancel);
    g_test_add_data_func("/runtime/exit", "exit", test_misbehaviour);
    g_test_add_data_func("/runtime/hang", "hang", test_misbehaviour);
    g_test_add_func("/runtime/kill_storm", test_kill_storm);
    g_test_add_func("/runtime/faults", test_faults);
    return g_test_run();
}
