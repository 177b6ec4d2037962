/* Each send, receive, spawn, descriptor and allocation of src/runtime and src/sidecar fails in
 * turn, in the gateway and in executors, over a whole life: start, deployment, mixed requests at
 * once, end. Whatever fails, a client has its answer or a clear error, and nothing is left: no
 * request, chunk, descriptor or process.
 *
 * Also executors that follow the protocol's grammar and none of its rules.
 *
 * This program is its own executor; the file that $CS_TEST_EXECUTOR names tells a new one what to
 * do: "POINT N" arms a fault, "hostile SEED" makes it answer nonsense. */
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "runtime/executor.h"
#include "runtime_case.h"

#include <glib/gstdio.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *order_path; /* $CS_TEST_EXECUTOR */

static void give_order(const char *order)
{
    if (order)
        g_assert_true(g_file_set_contents(order_path, order, -1, NULL));
    else
        g_unlink(order_path);
}

/* --- a life --- */

/* True: the answer is whole. */
static bool is_answered(const client *c, int n_out)
{
    if (!c->error) {
        assert_words(c, n_out);
        return true;
    }
    g_test_message("%s", c->error->message);
    g_assert_cmpint(c->error->domain, ==, CS_ERROR);
    g_assert_cmpint((int)strlen(c->error->message), >, 8);
    return false;
}

/* Three requests at once, one more that is cancelled. The number that was answered. */
static int ask_some(cs_runtime *rt)
{
    enum { N = 4, CANCELLED = 3 };
    static const int n_out[N] = {12, 5, 8, 3000};
    client clients[N];
    cs_runtime_request *requests[N] = {NULL};
    int answered = 0;
    for (int i = 0; i < N; i++)
        requests[i] = submit(rt, "plain", &clients[i],
                             make_request(i % 2 * 40, i == 2 ? 20 : 0, n_out[i], i == 0 ? 6 : 0));
    cs_runtime_request_cancel(requests[CANCELLED]);
    for (int i = 0; i < N; i++) {
        client_wait(&clients[i]);
        cs_runtime_request_release(requests[i]);
        if (i != CANCELLED)
            answered += is_answered(&clients[i], n_out[i]);
        client_clear(&clients[i]);
    }
    return answered;
}

typedef enum {
    LIFE_NO_START, /* the runtime or its executors did not start, and said so */
    LIFE_SOME,     /* requests ran; some failed */
    LIFE_ALL,      /* and all were answered */
} life;

/* The order is for executors of the deployment only, not for those that replace them. */
static life live(const char *order)
{
    g_autoptr(GError) error = NULL;
    life result = LIFE_NO_START;
    cs_runtime_options options = quick;
    options.watchdog_us = 5 * G_USEC_PER_SEC; /* nothing here hangs: only slow machines do */
    give_order(order);
    cs_runtime *rt = cs_runtime_new(&options, &error);
    if (!rt) {
        g_assert_nonnull(error);
        return LIFE_NO_START;
    }
    g_autoptr(cs_tasks) tasks = plain_tasks("m");
    g_autoptr(cs_plan) plan = parse_plan(SPLIT_PLAN, &error);
    json_t *config = devices("", 100);
    if (cs_runtime_deploy(rt, "m", plan, tasks, "model", config, &error)) {
        give_order(NULL);
        add_plain_app(rt, "m");
        result = ask_some(rt) == 3 ? LIFE_ALL : LIFE_SOME;
    } else {
        g_assert_cmpint((int)strlen(error->message), >, 8);
    }
    give_order(NULL);
    json_decref(config);
    stop_runtime(rt);
    return result;
}

/* --- faults in the gateway --- */

static const struct {
    const char *name;
    cs_fault_point point;
    uint32_t at_least; /* the gateway's life passes it so often; 0: it does not */
    bool recovers;     /* once executors run, every answer comes in spite of it */
} points[] = {
    {"sidecar-open", CS_FAULT_SIDECAR_OPEN, 2, true},
    {"sidecar-alloc", CS_FAULT_SIDECAR_ALLOC, 4, false},
    {"sidecar-send", CS_FAULT_SIDECAR_SEND, 0, false},
    {"sidecar-receive", CS_FAULT_SIDECAR_RECEIVE, 0, false},
    {"spawn", CS_FAULT_RUNTIME_SPAWN, 12, true},
    {"watch", CS_FAULT_RUNTIME_WATCH, 10, true},
    {"send", CS_FAULT_RUNTIME_SEND, 10, true},
    {"receive", CS_FAULT_RUNTIME_RECEIVE, 10, true},
    {"message-alloc", CS_FAULT_RUNTIME_ALLOC, 10, true},
};

static void test_gateway(const void *data)
{
    unsigned i = GPOINTER_TO_UINT(data);
    int before = open_descriptors();
    uint32_t n;
    for (n = 1;; n++) {
        cs_fault_arm(points[i].point, n);
        life l = live(NULL);
        bool unused = cs_fault_pending(points[i].point);
        cs_fault_disarm();
        g_assert_cmpint(open_descriptors(), ==, before);
        if (unused || points[i].recovers)
            g_assert_true(l == LIFE_ALL || (l == LIFE_NO_START && !unused));
        if (unused)
            break;
    }
    g_test_message("%s: %u calls failed in turn", points[i].name, n - 1);
    g_assert_cmpuint(n - 1, >=, points[i].at_least);
}

/* --- faults in executors --- */

/* All four at once have the fault; those that replace them have none. */
static void test_executors(const void *data)
{
    enum { CALLS_MAX = 24 };
    unsigned i = GPOINTER_TO_UINT(data);
    int before = open_descriptors();
    for (uint32_t n = 1; n <= CALLS_MAX; n += n < 8 ? 1 : 4) {
        g_autofree char *order = g_strdup_printf("%d %u", (int)points[i].point, n);
        life l = live(order);
        g_assert_cmpint(open_descriptors(), ==, before);
        if (points[i].recovers)
            g_assert_cmpint(l, !=, LIFE_SOME);
    }
    g_assert_cmpint(live(NULL), ==, LIFE_ALL);
}

/* --- executors that answer nonsense --- */

/* A field of a message: what it should be, near it, or anything. */
static uint64_t odd(GRand *random, uint64_t right)
{
    switch (g_rand_int_range(random, 0, 6)) {
    case 0:
        return right + 1;
    case 1:
        return (uint64_t)g_rand_int(random) << 32 | g_rand_int(random);
    case 2:
        return UINT64_MAX;
    default:
        return right;
    }
}

typedef struct {
    cs_loop *loop;
    cs_wire *wire;
    GRand *random;
} hostile;

static void send_step(hostile *h, const Cornserve__Wire__Submit *m)
{
    Cornserve__Wire__Step step = CORNSERVE__WIRE__STEP__INIT;
    Cornserve__Wire__Piece piece = CORNSERVE__WIRE__PIECE__INIT, *pieces[] = {&piece, &piece};
    Cornserve__Wire__Done done = CORNSERVE__WIRE__DONE__INIT, *dones[] = {&done, &done};
    uint8_t bytes[64];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)g_rand_int(h->random);
    piece.request = odd(h->random, m->request);
    piece.invocation = (uint32_t)odd(h->random, m->invocation);
    piece.output = (uint32_t)odd(h->random, 0);
    piece.units = (uint32_t)odd(h->random, 1);
    piece.data = (ProtobufCBinaryData){(size_t)g_rand_int_range(h->random, 0, 64), bytes};
    done.request = odd(h->random, m->request);
    done.invocation = (uint32_t)odd(h->random, m->invocation);
    done.code = (int32_t)odd(h->random, (uint64_t)g_rand_int_range(h->random, -1, 20));
    done.message = (char *)"\xff\xfe nonsense\n";
    step.pieces = pieces;
    step.n_pieces = (size_t)g_rand_int_range(h->random, 0, 3);
    step.done = dones;
    step.n_done = (size_t)g_rand_int_range(h->random, 0, 3);
    cs_wire_send(h->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_STEP, .step = &step));
}

static void send_other(hostile *h)
{
    Cornserve__Wire__Load load = CORNSERVE__WIRE__LOAD__INIT;
    Cornserve__Wire__Ready ready = CORNSERVE__WIRE__READY__INIT;
    Cornserve__Wire__Pong pong = CORNSERVE__WIRE__PONG__INIT;
    Cornserve__Wire__Failed failed = CORNSERVE__WIRE__FAILED__INIT;
    Cornserve__Wire__Drain drain = CORNSERVE__WIRE__DRAIN__INIT;
    load.running = load.kv_blocks_used = load.max_tokens = (uint32_t)odd(h->random, 0);
    load.waiting = load.kv_blocks_total = (uint32_t)odd(h->random, 0);
    load.kv_block_bytes = odd(h->random, 0);
    ready.load = g_rand_boolean(h->random) ? &load : NULL;
    pong.load = g_rand_boolean(h->random) ? &load : NULL;
    pong.n = odd(h->random, 0);
    failed.message = (char *)"\xff it failed";
    switch (g_rand_int_range(h->random, 0, 12)) {
    case 0:
        cs_wire_send(h->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_FAILED, .failed = &failed));
        break;
    case 1:
        cs_wire_send(h->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_DRAIN, .drain = &drain));
        break;
    case 2:
        exit(0);
    case 3:
    case 4:
    case 5:
        cs_wire_send(h->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_READY, .ready = &ready));
        break;
    default:
        cs_wire_send(h->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_PONG, .pong = &pong));
    }
}

static void hostile_frame(void *user, const cs_frame *frame)
{
    hostile *h = user;
    Cornserve__Wire__Ready ready = CORNSERVE__WIRE__READY__INIT;
    if (frame->body_case == CORNSERVE__WIRE__FRAME__BODY_SETUP)
        cs_wire_send(h->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_READY, .ready = &ready));
    else if (frame->body_case == CORNSERVE__WIRE__FRAME__BODY_SUBMIT)
        send_step(h, frame->submit);
    else if (frame->body_case == CORNSERVE__WIRE__FRAME__BODY_DRAIN)
        cs_loop_quit(h->loop);
    else
        send_other(h);
    cs_wire_flush(h->wire);
}

static void hostile_closed(void *user, const GError *error)
{
    cs_loop_quit(((hostile *)user)->loop);
}

static int hostile_main(unsigned seed)
{
    static const cs_wire_events events = {hostile_frame, hostile_closed};
    hostile h = {.loop = cs_loop_new(NULL),
                 .random = g_rand_new_with_seed(seed ^ (unsigned)getpid())};
    h.wire = cs_wire_new(h.loop, CS_EXECUTOR_CONTROL_FD, "gateway", &events, &h, NULL);
    cs_loop_run(h.loop);
    return 0;
}

static void kill_all(cs_runtime *rt)
{
    json_t *status = cs_runtime_status(rt), *executor;
    size_t i;
    json_array_foreach (json_object_get(status, "executors"), i, executor) {
        pid_t pid = (pid_t)json_integer_value(json_object_get(executor, "pid"));
        if (pid > 0)
            kill(pid, SIGKILL);
    }
    json_decref(status);
}

/* One that answers nonsense beside good ones: its requests fail or run again, and no others do. */
static void test_hostile(void)
{
    enum { ROUNDS = 12, AT_ONCE = 8 };
    int before = open_descriptors(), answered = 0;
    g_autoptr(GRand) random = g_rand_new_with_seed(11);
    for (int round = 0; round < ROUNDS; round++) {
        g_autoptr(GError) error = NULL;
        cs_runtime *rt = start_runtime();
        g_autofree char *order = g_strdup_printf("hostile %d", round);
        deploy(rt, "m", SPLIT_PLAN, "", 50);
        give_order(order); /* for those that take the place of the killed */
        add_plain_app(rt, "m");
        pid_t pid = random_executor(rt, random);
        if (round % 2 == 0)
            kill_all(rt);
        else if (pid > 0)
            kill(pid, SIGKILL);
        client clients[AT_ONCE];
        cs_runtime_request *requests[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++)
            requests[i] = submit(rt, "plain", &clients[i], make_request(20, i % 2 * 9, 6, 0));
        g_usleep(300000);
        give_order(NULL); /* sooner or later each breaks a rule, and an honest one takes over */
        for (int i = 0; i < AT_ONCE; i++) {
            client_wait(&clients[i]);
            cs_runtime_request_release(requests[i]);
            /* The text of a hostile thinker reaches the client: only an honest one can be checked
             */
            answered += !clients[i].error;
            client_clear(&clients[i]);
        }
        kill_all(rt);
        ask(rt, 20, 9, 6, 4); /* of honest ones only */
        assert_idle(rt);
        stop_runtime(rt);
        g_assert_cmpint(open_descriptors(), ==, before);
    }
    g_test_message("%d of %d answered", answered, ROUNDS * AT_ONCE);
    g_assert_cmpint(answered, >, 0);
}

/* --- main --- */

static int executor_main(void)
{
    const char *path = getenv("CS_TEST_EXECUTOR");
    g_autofree char *order = NULL;
    int point;
    unsigned n;
    if (path && g_file_get_contents(path, &order, NULL, NULL)) {
        if (sscanf(order, "hostile %u", &n) == 1)
            return hostile_main(n);
        if (sscanf(order, "%d %u", &point, &n) == 2 && point < CS_FAULT_POINTS)
            cs_fault_arm((cs_fault_point)point, n);
    }
    cs_log_set_level(CS_LOG_ERROR);
    return cs_executor_main(CS_EXECUTOR_CONTROL_FD, CS_EXECUTOR_SIDECAR_FD);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "executor") == 0)
        return executor_main();
    g_test_init(&argc, &argv, NULL);
    cs_log_set_level(CS_LOG_ERROR); /* deaths are expected here */
    g_autofree char *dir = g_dir_make_tmp("fault-XXXXXX", NULL);
    order_path = g_build_filename(dir, "order", NULL);
    g_setenv("CS_TEST_EXECUTOR", order_path, TRUE);
    for (guint i = 0; i < G_N_ELEMENTS(points); i++) {
        g_autofree char *gateway = g_strdup_printf("/fault/gateway/%s", points[i].name);
        g_autofree char *executors = g_strdup_printf("/fault/executors/%s", points[i].name);
        if (points[i].at_least > 0)
            g_test_add_data_func(gateway, GUINT_TO_POINTER(i), test_gateway);
        if (points[i].point != CS_FAULT_RUNTIME_SPAWN) /* they start none */
            g_test_add_data_func(executors, GUINT_TO_POINTER(i), test_executors);
    }
    g_test_add_func("/fault/hostile", test_hostile);
    int status = g_test_run();
    g_unlink(order_path);
    g_rmdir(dir);
    g_free(order_path);
    return status;
}
