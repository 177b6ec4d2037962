/* src/engine/llm_engine over the fake component: whatever else is in the batch, however a prompt is
 * cut, whoever was preempted, cancelled or resumed, the answer is the oracle's.
 */
#include "base/error.h"
#include "base/os.h"
#include "support/llm_case.h"

#include <string.h>

typedef struct {
    fake_llm_control control;
    cs_llm_engine_options options;
    cs_llm_engine *engine;
} fixture;

static void start(fixture *f, uint32_t n_blocks)
{
    g_autoptr(GError) error = NULL;
    f->options.kv_budget_bytes = (size_t)n_blocks * FAKE_BLOCK_BYTES;
    f->engine = cs_llm_engine_new(fake_llm_new(&f->control, 4096), &f->options, &error);
    g_assert_no_error(error);
}

static void stop(fixture *f)
{
    g_assert_cmpuint(llm_engine_blocks_held(f->engine), ==, 0);
    cs_llm_engine_free(f->engine);
    g_assert_true(f->control.freed);
}

static cs_llm_engine_stats stats_of(fixture *f)
{
    cs_llm_engine_stats stats;
    cs_llm_engine_stats_get(f->engine, &stats);
    return stats;
}

static llm_client *begin(fixture *f, const llm_case *c)
{
    g_autoptr(GError) error = NULL;
    llm_client *client = llm_client_start(f->engine, c, true, &error);
    g_assert_no_error(error);
    return client;
}

/* Runs one case to its end and returns how much of its prompt was cached. */
static uint32_t run(fixture *f, const llm_case *c)
{
    g_autoptr(llm_client) client = begin(f, c);
    llm_client_wait(client);
    llm_client_check(client);
    return client->usage.cached_tokens;
}

static llm_case *solved(llm_case *c)
{
    llm_case_solve(c);
    return c;
}

/* n random cases at once. */
static void run_mixed(fixture *f, uint32_t seed, uint32_t n)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    g_autofree llm_case **cases = g_new(llm_case *, n);
    g_autofree llm_client **clients = g_new(llm_client *, n);
    for (uint32_t i = 0; i < n; i++) {
        cases[i] = llm_case_random(rand);
        cases[i]->options.hidden_states &= f->options.hidden_states;
        if (!cases[i]->options.hidden_states)
            for (int c = 0; c < CASE_MAX_CHOICES; c++)
                g_array_set_size(cases[i]->expected[c].hidden, 0);
        clients[i] = begin(f, cases[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        llm_client_wait(clients[i]);
        llm_client_check(clients[i]);
        llm_client_free(clients[i]);
        llm_case_free(cases[i]);
    }
}

/* ---- Batches, chunks, memory ---- */

static void test_one(void)
{
    fixture f = {.options = {.hidden_states = true}};
    start(&f, 64);
    for (uint32_t seed = 0; seed < 40; seed++)
        run_mixed(&f, seed, 1);
    stop(&f);
}

static void test_batch_equals_one(void)
{
    fixture f = {.options = {.hidden_states = true}};
    start(&f, 1024);
    for (uint32_t seed = 0; seed < 10; seed++)
        run_mixed(&f, seed, 16);
    g_assert_cmpint(f.control.max_step_rows, >, 100);
    g_assert_cmpuint(stats_of(&f).preemptions, ==, 0);
    stop(&f);
}

static void test_chunked_equals_whole(void)
{
    for (uint32_t step = 4; step < 80; step += 13) {
        fixture f = {
            .options = {.hidden_states = true, .max_step_tokens = step, .max_sequences = 4}};
        start(&f, 1024);
        run_mixed(&f, 3, 16);
        g_assert_cmpint(f.control.max_step_rows, <=, (gint)step);
        stop(&f);
    }
}

static void test_preempted_equals_not(void)
{
    for (uint32_t blocks = 8; blocks <= 24; blocks += 8) {
        fixture f = {.options = {.hidden_states = true, .no_prefix_cache = blocks == 16}};
        start(&f, blocks);
        for (uint32_t seed = 0; seed < 4; seed++)
            run_mixed(&f, seed, 24);
        if (blocks == 8)
            g_assert_cmpuint(stats_of(&f).preemptions, >, 0);
        stop(&f);
    }
}

static void wait_at_gate(void *user, const cs_llm_batch *batch)
{
    pthread_mutex_lock(user);
    pthread_mutex_unlock(user);
}

/* Two that fit alone but not together: the later one is preempted, and neither is wrong. */
static void test_preemption_takes_the_latest(void)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    fixture f = {.options = {.no_prefix_cache = true},
                 .control = {.before_step = wait_at_gate, .user = &gate}};
    start(&f, 4);
    pthread_mutex_lock(&gate);
    g_autoptr(llm_case) first = solved(llm_case_new(1, 30, 90));
    g_autoptr(llm_case) second = solved(llm_case_new(2, 30, 90));
    g_autoptr(llm_client) a = begin(&f, first);
    g_autoptr(llm_client) b = begin(&f, second);
    pthread_mutex_unlock(&gate);
    llm_client_wait(a);
    llm_client_wait(b);
    g_assert_cmpint(a->done_us, <, b->done_us);
    llm_client_check(a);
    llm_client_check(b);
    g_assert_cmpuint(stats_of(&f).preemptions, >, 0);
    stop(&f);
}

/* ---- Turns ---- */

typedef struct {
    fixture *f;
    int64_t due_us;
    gint n_steps; /* that the engine had made when it was this one's turn */
} other_work;

static void *do_other_work(void *data)
{
    other_work *w = data;
    cs_turn_take(w->f->options.turn, w->due_us);
    w->n_steps = g_atomic_int_get(&w->f->control.n_steps);
    cs_turn_give(w->f->options.turn);
    return NULL;
}

/* Steps that an engine makes ahead of other work, which is due now and asks after it. */
static gint steps_before_other_work(cs_llm_pace pace)
{
    g_autoptr(cs_turn) turn = cs_turn_new();
    fixture f = {.options = {.turn = turn}, .control = {.step_us = 1000}};
    start(&f, 64);
    g_autoptr(llm_case) c = llm_case_new(1, 30, 300);
    c->options.pace = pace;
    llm_case_solve(c);
    g_autoptr(llm_client) client = begin(&f, c);
    llm_client_wait_tokens(client, 5);
    cs_turn_take(turn, 1);
    gint n_steps = g_atomic_int_get(&f.control.n_steps);
    g_usleep(50000); /* until the engine waits */
    other_work w = {&f, cs_now_us(), 0};
    GThread *thread = g_thread_new("other", do_other_work, &w);
    g_usleep(50000);
    cs_turn_give(turn);
    g_thread_join(thread);
    llm_client_wait(client);
    llm_client_check(client);
    stop(&f);
    return w.n_steps - n_steps;
}

static void test_pace(void)
{
    g_assert_cmpint(steps_before_other_work((cs_llm_pace){1, 1000000}), ==, 0);
    g_assert_cmpint(steps_before_other_work((cs_llm_pace){300, 1000000}), >, 0);
    g_assert_cmpint(steps_before_other_work((cs_llm_pace){0}), >, 0);
}

/* ---- The prefix cache ---- */

static void test_prefix_cache(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) a = solved(llm_case_new(1, 100, 5));
    g_autoptr(llm_case) longer = solved(llm_case_new(1, 130, 5));
    g_autoptr(llm_case) other = solved(llm_case_new(2, 130, 5));
    g_autoptr(llm_case) whole = solved(llm_case_new(1, 96, 5));
    g_autoptr(llm_case) salted = llm_case_new(1, 100, 5);
    salted->options.cache_salt[1] = 1;
    llm_case_solve(salted);
    g_assert_cmpuint(run(&f, a), ==, 0);
    g_assert_cmpuint(run(&f, a), ==, 96);
    g_assert_cmpuint(run(&f, longer), ==, 96);
    g_assert_cmpuint(run(&f, longer), ==, 128);
    g_assert_cmpuint(run(&f, other), ==, 0);
    /* The last row is always computed: its logits are wanted. */
    g_assert_cmpuint(run(&f, whole), ==, 64);
    g_assert_cmpuint(run(&f, salted), ==, 0);
    g_assert_cmpuint(run(&f, salted), ==, 96);
    g_assert_cmpuint(stats_of(&f).cached_tokens, ==, 96 + 96 + 128 + 64 + 96);
    stop(&f);
}

/* A conversation's next turn: what was generated is found as well. */
static void test_prefix_cache_of_output(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) a = solved(llm_case_new(1, 50, 50));
    run(&f, a);
    g_autoptr(llm_case) next = llm_case_new(9, 120, 5);
    int32_t *ids = (int32_t *)next->options.token_ids;
    memcpy(ids, a->options.token_ids, 50 * sizeof *ids);
    memcpy(ids + 50, a->expected[0].tokens->data, 50 * sizeof *ids);
    llm_case_solve(next);
    g_assert_cmpuint(run(&f, next), ==, 96);
    stop(&f);
}

static llm_case *with_medium(uint64_t content, uint32_t row)
{
    llm_case *c = llm_case_new(1, 120, 5);
    llm_case_add_item(c, content, row, 40);
    return solved(c);
}

static void test_prefix_cache_of_media(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) a = with_medium(5, 40), same = with_medium(5, 40);
    g_autoptr(llm_case) other = with_medium(6, 40), moved = with_medium(5, 41);
    g_autoptr(llm_case) unhashed = with_medium(5, 40);
    memset(((cs_llm_input_item *)unhashed->options.items)[0].content_hash, 0, 16);
    g_assert_cmpuint(run(&f, a), ==, 0);
    g_assert_cmpuint(run(&f, same), ==, 96);
    g_assert_cmpuint(run(&f, other), ==, 32);
    g_assert_cmpuint(run(&f, moved), ==, 32);
    g_assert_cmpuint(run(&f, unhashed), ==, 32);
    g_assert_cmpuint(run(&f, unhashed), ==, 32);
    stop(&f);
}

static void test_prefix_cache_off(void)
{
    fixture f = {.options = {.no_prefix_cache = true}};
    start(&f, 64);
    g_autoptr(llm_case) a = solved(llm_case_new(1, 100, 5));
    g_assert_cmpuint(run(&f, a), ==, 0);
    g_assert_cmpuint(run(&f, a), ==, 0);
    stop(&f);
}

/* A cached block is taken for something new, and its old contents are not found any more. */
static void test_prefix_cache_evicts(void)
{
    fixture f = {0};
    start(&f, 8);
    for (uint64_t round = 0; round < 60; round++) {
        g_autoptr(llm_case) c = solved(llm_case_new(round % 7 % 3, 100 + round % 5, 20));
        run(&f, c);
    }
    cs_llm_engine_stats stats = stats_of(&f);
    g_assert_cmpuint(stats.cached_tokens, >, 0);
    g_assert_cmpuint(stats.kv_blocks_cached, <=, 8);
    stop(&f);
}

/* ---- Choices ---- */

static void test_choices(void)
{
    fixture f = {.options = {.hidden_states = true}};
    start(&f, 64);
    for (uint32_t n = 30; n < 36; n++) {
        g_autoptr(llm_case) c = llm_case_new(4, n, 40);
        c->options.n_choices = 4;
        c->options.sampling.temperature = 1;
        c->options.sampling.seed = n;
        c->options.hidden_states = true;
        llm_case_solve(c);
        gint rows = f.control.n_rows;
        uint32_t cached = run(&f, c);
        /* The prompt is computed once. */
        g_assert_cmpint(f.control.n_rows - rows, ==, (gint)(n - cached + 4 * 39));
        g_assert_cmpint(memcmp(c->expected[0].tokens->data, c->expected[1].tokens->data, 160), !=,
                        0);
    }
    stop(&f);
}

static void test_choices_preempted(void)
{
    fixture f = {0};
    start(&f, 5);
    g_autoptr(llm_case) c = llm_case_new(4, 60, 90);
    c->options.n_choices = 4;
    c->options.sampling.temperature = 1;
    llm_case_solve(c);
    run(&f, c);
    g_assert_cmpuint(stats_of(&f).preemptions, >, 0);
    stop(&f);
}

/* Choice k asked for alone is choice k of n. */
static void test_choice_alone(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) all = llm_case_new(4, 20, 30);
    all->options.n_choices = 3;
    all->options.sampling.temperature = 1;
    llm_case_solve(all);
    g_autoptr(llm_case) third = llm_case_new(4, 20, 30);
    third->options.first_choice = 2;
    third->options.sampling.temperature = 1;
    llm_case_solve(third);
    g_assert_cmpmem(all->expected[2].tokens->data, 120, third->expected[0].tokens->data, 120);
    run(&f, all);
    run(&f, third);
    stop(&f);
}

/* ---- Embeddings that come late ---- */

static void wait_rows(fixture *f, gint rows)
{
    for (int i = 0; i < 5000 && g_atomic_int_get(&f->control.n_rows) < rows; i++)
        g_usleep(1000);
    g_usleep(5000); /* time to do more than it should */
    g_assert_cmpint(g_atomic_int_get(&f->control.n_rows), ==, rows);
}

static void test_prefill_runs_to_the_first_missing(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) c = llm_case_new(1, 150, 10);
    llm_case_add_item(c, 1, 40, 30);
    llm_case_add_item(c, 2, 80, 50);
    llm_case_solve(c);
    g_autoptr(llm_client) client = llm_client_start(f.engine, c, false, NULL);
    wait_rows(&f, 40);
    llm_client_provide(client, 0, 0, 12);
    wait_rows(&f, 52);
    llm_client_provide(client, 1, 0, 50);
    wait_rows(&f, 52);
    /* Others run meanwhile. */
    g_autoptr(llm_case) other = solved(llm_case_new(2, 10, 4));
    run(&f, other);
    wait_rows(&f, 52 + 13);
    llm_client_provide(client, 0, 12, 18);
    llm_client_wait(client);
    llm_client_check(client);
    stop(&f);
}

/* A prompt that begins with a missing embedding does not stand in the way of others. */
static void test_nothing_to_start_with(void)
{
    fixture f = {.options = {.max_sequences = 1}};
    start(&f, 64);
    g_autoptr(llm_case) c = llm_case_new(1, 50, 10);
    llm_case_add_item(c, 1, 0, 30);
    llm_case_solve(c);
    g_autoptr(llm_client) client = llm_client_start(f.engine, c, false, NULL);
    g_autoptr(llm_case) other = solved(llm_case_new(2, 10, 4));
    run(&f, other);
    llm_client_provide(client, 0, 0, 30);
    llm_client_wait(client);
    llm_client_check(client);
    stop(&f);
}

/* A request that waits for an embedding holds all memory, or the only place: it makes way, also for
 * one that came later, and goes on when its embedding comes. */
static void test_stalled_makes_way(void)
{
    for (int places = 1; places <= 2; places++) {
        fixture f = {.options = {.max_sequences = places}};
        start(&f, places == 1 ? 64 : 5);
        g_autoptr(llm_case) c = llm_case_new(1, 120, 10);
        llm_case_add_item(c, 1, 80, 30);
        llm_case_solve(c);
        g_autoptr(llm_case) other = solved(llm_case_new(2, 120, 30));
        g_autoptr(llm_client) stalled = llm_client_start(f.engine, c, false, NULL);
        wait_rows(&f, 80);
        run(&f, other);
        wait_rows(&f, 80 + 120 + 29);
        g_assert_cmpuint(stats_of(&f).preemptions, ==, 1);
        llm_client_provide(stalled, 0, 0, 30);
        llm_client_wait(stalled);
        llm_client_check(stalled);
        stop(&f);
    }
}

/* A talker: each generated token waits for its row of the reply item. */
static void test_reply_item(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) c = llm_case_new(1, 20, 30);
    llm_case_add_item(c, 3, 0, 10);
    c->options.n_spans = 0;
    ((cs_llm_input_item *)c->options.items)[0].n_rows = 0;
    c->options.has_reply_item = true;
    llm_case_solve(c);
    g_autoptr(llm_client) client = llm_client_start(f.engine, c, false, NULL);
    wait_rows(&f, 20);
    llm_client_provide(client, 0, 0, 4);
    wait_rows(&f, 24);
    llm_client_provide(client, 0, 4, 1);
    wait_rows(&f, 25);
    llm_client_provide(client, 0, 5, 5);
    llm_client_wait(client);
    llm_client_check(client);
    stop(&f);
}

static void assert_ends_with(llm_client *client, cs_error_code code, const char *part)
{
    llm_client_wait(client);
    g_assert_error(client->error, CS_ERROR, (gint)code);
    g_assert_nonnull(strstr(client->error->message, part));
    llm_client_check_beginning(client);
}

static void test_item_fails(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) c = llm_case_new(1, 50, 10);
    llm_case_add_item(c, 1, 10, 30);
    llm_case_solve(c);
    g_autoptr(llm_client) client = llm_client_start(f.engine, c, false, NULL);
    g_autoptr(GError) error = g_error_new(CS_ERROR, CS_ERROR_TOO_LARGE, "the image is a bomb");
    cs_llm_request_fail(client->request, error);
    assert_ends_with(client, CS_ERROR_TOO_LARGE, "bomb");
    /* Too late to matter. */
    llm_client_provide(client, 0, 0, 30);
    cs_llm_request_cancel(client->request);
    stop(&f);
}

static void test_items_that_do_not_fit(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) c = llm_case_new(1, 50, 10);
    llm_case_add_item(c, 1, 10, 30);
    llm_case_solve(c);
    struct {
        uint32_t item;
        cs_dtype dtype;
        int64_t rows, cols;
        bool last;
        const char *part;
    } bad[] = {
        {0, CS_DTYPE_F32, 30, FAKE_HIDDEN + 1, true, "width 9"},
        {0, CS_DTYPE_BF16, 30, FAKE_HIDDEN, true, "bf16"},
        {0, CS_DTYPE_F32, 31, FAKE_HIDDEN, true, "31 rows"},
        {0, CS_DTYPE_F32, 29, FAKE_HIDDEN, true, "29 rows"},
        {1, CS_DTYPE_F32, 30, FAKE_HIDDEN, true, "item 1"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(llm_client) client = llm_client_start(f.engine, c, false, NULL);
        g_autoptr(cs_shared_tensor) rows =
            cs_shared_tensor_new(bad[i].dtype, bad[i].rows, bad[i].cols);
        cs_llm_request_provide(client->request, bad[i].item, rows, bad[i].last);
        assert_ends_with(client, CS_ERROR_INVALID, bad[i].part);
    }
    stop(&f);
}

/* ---- Ends before the end ---- */

/* A request that is held gets no further, the others do; it goes on where it was, also when it had
 * to give its place away. */
static void test_held(void)
{
    for (uint32_t places = 1; places <= 2; places++) {
        fixture f = {.options = {.max_sequences = places}};
        start(&f, 64);
        g_autoptr(llm_case) c = solved(llm_case_new(1, 20, 2000));
        g_autoptr(llm_case) other = solved(llm_case_new(2, 10, 30));
        g_autoptr(llm_client) client = begin(&f, c);
        llm_client_wait_tokens(client, 3);
        cs_llm_request_hold(client->request, true);
        run(&f, other); /* by its end the message was read */
        gint rows = g_atomic_int_get(&f.control.n_rows);
        wait_rows(&f, rows);
        g_assert_false(client->done);
        cs_llm_request_hold(client->request, false);
        llm_client_wait(client);
        llm_client_check(client);
        g_autoptr(llm_client) cancelled = begin(&f, c);
        cs_llm_request_hold(cancelled->request, true);
        cs_llm_request_cancel(cancelled->request);
        assert_ends_with(cancelled, CS_ERROR_CANCELLED, "cancelled");
        stop(&f);
    }
}

static void test_cancel_within_a_step(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) c = solved(llm_case_new(1, 10, 1000));
    c->cancel_after = 3;
    g_autoptr(llm_case) neighbour = solved(llm_case_new(2, 10, 60));
    g_autoptr(llm_client) other = begin(&f, neighbour);
    g_autoptr(llm_client) client = begin(&f, c);
    assert_ends_with(client, CS_ERROR_CANCELLED, "cancelled");
    g_assert_cmpuint(client->n_tokens, ==, 3);
    llm_client_wait(other);
    llm_client_check(other);
    stop(&f);
    g_assert_cmpint(f.control.n_rows, ==, 10 + 2 + 10 + 59);
}

static void test_cancel_in_every_state(void)
{
    fixture f = {.options = {.max_sequences = 2}};
    start(&f, 16);
    f.control.step_us = 200;
    g_autoptr(llm_case) c = llm_case_new(1, 100, 100);
    llm_case_add_item(c, 1, 40, 30);
    llm_case_solve(c);
    for (int round = 0; round < 3; round++) {
        llm_client *clients[6];
        for (int i = 0; i < 6; i++)
            clients[i] = llm_client_start(f.engine, c, (i + round) % 3 != 0, NULL);
        for (int i = 0; i < 6; i++) {
            g_usleep(700);
            cs_llm_request_cancel(clients[i]->request);
            cs_llm_request_cancel(clients[i]->request);
        }
        for (int i = 0; i < 6; i++) {
            llm_client_wait(clients[i]);
            if (clients[i]->error) /* else it was done before */
                assert_ends_with(clients[i], CS_ERROR_CANCELLED, "cancelled");
            else
                llm_client_check(clients[i]);
            llm_client_free(clients[i]);
        }
    }
    g_assert_cmpuint(stats_of(&f).requests_cancelled, >=, 6); /* without embeddings none ends */
    stop(&f);
}

static void test_engine_ends_with_requests(void)
{
    fixture f = {.options = {.max_sequences = 2}};
    start(&f, 64);
    f.control.step_us = 2000;
    g_autoptr(llm_case) c = solved(llm_case_new(1, 100, 1900));
    llm_client *clients[5];
    for (int i = 0; i < 5; i++)
        clients[i] = begin(&f, c);
    llm_client_wait_tokens(clients[0], 3);
    cs_llm_engine_free(f.engine);
    g_assert_true(f.control.freed);
    for (int i = 0; i < 5; i++) {
        assert_ends_with(clients[i], CS_ERROR_CANCELLED, "cancelled");
        /* Handles outlive the engine. */
        cs_llm_request_cancel(clients[i]->request);
        llm_client_free(clients[i]);
    }
}

static void test_handle_released_early(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) c = solved(llm_case_new(1, 100, 20));
    g_autoptr(llm_client) client = begin(&f, c);
    cs_llm_request_release(g_steal_pointer(&client->request));
    llm_client_wait(client);
    llm_client_check(client);
    stop(&f);
}

/* ---- Resumed ---- */

static void test_resumed_equals_uninterrupted(void)
{
    fixture f = {.options = {.hidden_states = true}};
    start(&f, 64);
    g_autoptr(GRand) rand = g_rand_new_with_seed(21);
    for (int round = 0; round < 150; round++) {
        g_autoptr(llm_case) c = llm_case_random(rand);
        if (c->stop_after > 0 || c->options.has_reply_item)
            continue;
        GArray *whole = c->expected[0].tokens;
        uint32_t n = (uint32_t)g_rand_int_range(rand, 0, (gint32)whole->len + 1);
        g_autoptr(llm_case) rest = llm_case_resumed(c, n);
        GArray *tail = rest->expected[0].tokens;
        g_assert_cmpuint(tail->len, ==, whole->len - n);
        for (guint i = 0; i < tail->len; i++)
            g_assert_cmpint(g_array_index(tail, int32_t, i), ==,
                            g_array_index(whole, int32_t, n + i));
        run(&f, rest);
    }
    stop(&f);
}

/* ---- Prefill and decode apart ---- */

static void provide_kv(llm_client *client, const GPtrArray *kv)
{
    for (guint i = 0; i < kv->len; i++)
        cs_llm_request_provide_kv(client->request, kv->pdata[i]);
}

/* n random cases, prefilled by one engine and continued by the other. */
static void run_split(fixture *prefill, fixture *decode, guint32 seed, int n)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    g_autofree llm_case **rests = g_new0(llm_case *, n);
    g_autofree llm_client **clients = g_new0(llm_client *, n);
    for (int i = 0; i < n; i++) {
        g_autoptr(llm_case) c = llm_case_random(rand);
        if (c->expected[0].tokens->len == 0 || c->stop_after > 0)
            continue;
        g_autoptr(llm_case) head = llm_case_prefill(c);
        g_autoptr(llm_client) first = begin(prefill, head);
        llm_client_wait(first);
        llm_client_check(first);
        g_assert_cmpuint(first->kv->len, ==, (head->options.n_tokens + 31) / 32);
        rests[i] = llm_case_decode(c);
        /* Half of them have no embeddings to compute the prompt with. */
        bool with_items = rests[i]->options.has_reply_item || g_rand_boolean(rand);
        clients[i] = llm_client_start(decode->engine, rests[i], with_items, NULL);
        provide_kv(clients[i], first->kv);
    }
    for (int i = 0; i < n; i++) {
        if (!clients[i])
            continue;
        llm_client_wait(clients[i]);
        llm_client_check(clients[i]);
        llm_client_free(clients[i]);
        llm_case_free(rests[i]);
    }
}

static void test_split_equals_whole(void)
{
    for (int scarce = 0; scarce < 2; scarce++) {
        fixture prefill = {.options = {.hidden_states = true, .max_step_tokens = 70}};
        fixture decode = {.options = {.hidden_states = true, .no_prefix_cache = scarce}};
        start(&prefill, 64);
        start(&decode, scarce ? 9 : 512);
        decode.control.step_us = 100;
        for (guint32 seed = 0; seed < 6; seed++)
            run_split(&prefill, &decode, seed, 20);
        if (scarce)
            g_assert_cmpuint(stats_of(&decode).preemptions, >, 0);
        else /* nothing of the prompts was computed again */
            g_assert_cmpint(decode.control.n_rows, <,
                            (gint)stats_of(&decode).completion_tokens + 1);
        g_assert_cmpuint(stats_of(&prefill).cached_tokens, >, 0);
        stop(&prefill);
        stop(&decode);
    }
}

static void test_split_waits(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) c = solved(llm_case_new(1, 80, 20));
    g_autoptr(llm_case) head = llm_case_prefill(c), rest = llm_case_decode(c);
    g_autoptr(llm_client) first = begin(&f, head);
    llm_client_wait(first);
    gint rows = f.control.n_rows;
    g_autoptr(llm_client) second = begin(&f, rest);
    cs_llm_request_provide_kv(second->request, first->kv->pdata[0]);
    cs_llm_request_provide_kv(second->request, first->kv->pdata[1]);
    wait_rows(&f, rows);
    g_autoptr(llm_client) cancelled = begin(&f, rest);
    cs_llm_request_provide_kv(cancelled->request, first->kv->pdata[0]);
    cs_llm_request_cancel(cancelled->request);
    assert_ends_with(cancelled, CS_ERROR_CANCELLED, "cancelled");
    cs_llm_request_provide_kv(second->request, first->kv->pdata[2]);
    llm_client_wait(second);
    llm_client_check(second);
    g_assert_cmpint(f.control.n_rows - rows, ==, 19);
    stop(&f);
}

static void test_kv_that_does_not_fit(void)
{
    fixture f = {0};
    start(&f, 64);
    g_autoptr(llm_case) c = solved(llm_case_new(1, 80, 20));
    g_autoptr(llm_case) rest = llm_case_decode(c);
    g_autoptr(cs_shared_tensor) many = cs_shared_tensor_new(CS_DTYPE_U8, 4, FAKE_BLOCK_BYTES);
    g_autoptr(cs_shared_tensor) narrow = cs_shared_tensor_new(CS_DTYPE_U8, 3, FAKE_BLOCK_BYTES - 1);
    g_autoptr(cs_shared_tensor) floats = cs_shared_tensor_new(CS_DTYPE_F32, 3, FAKE_BLOCK_BYTES);
    cs_shared_tensor *bad[] = {many, narrow, floats};
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(llm_client) client = begin(&f, rest);
        cs_llm_request_provide_kv(client->request, bad[i]);
        assert_ends_with(client, CS_ERROR_INVALID, "expected u8 [up to 3, 4096]");
    }
    g_autoptr(llm_case) waits = llm_case_new(1, 80, 20);
    llm_case_add_item(waits, 1, 0, 30);
    llm_case_solve(waits);
    g_autoptr(llm_client) plain = llm_client_start(f.engine, waits, false, NULL);
    cs_llm_request_provide_kv(plain->request, many);
    assert_ends_with(plain, CS_ERROR_INVALID, "imports none");
    stop(&f);
}

/* ---- Faults ---- */

static void test_forward_fails(void)
{
    g_autoptr(llm_case) c = solved(llm_case_new(1, 100, 20));
    g_autoptr(llm_case) forked = llm_case_new(1, 10, 20);
    forked->options.n_choices = 3;
    llm_case_solve(forked);
    for (gint n = 1; n < 14; n++) {
        fixture f = {.options = {.max_step_tokens = 40, .max_sequences = 3}};
        f.control.fail_at_step = n;
        start(&f, 64);
        llm_client *clients[5];
        for (int i = 0; i < 5; i++)
            clients[i] = begin(&f, i % 2 ? forked : c);
        uint32_t failed = 0;
        for (int i = 0; i < 5; i++) {
            llm_client_wait(clients[i]);
            if (clients[i]->error) {
                assert_ends_with(clients[i], CS_ERROR_FAILED, "was to fail");
                failed++;
            } else {
                llm_client_check(clients[i]);
            }
            llm_client_free(clients[i]);
        }
        g_assert_cmpuint(failed, >=, 1);
        g_assert_cmpuint(failed, <=, 3);
        run(&f, c);
        stop(&f);
    }
}

static void test_nan_fails_one(void)
{
    fixture f = {0};
    start(&f, 64);
    f.control.step_us = 1000;
    f.control.nan_at_step = 10;
    g_autoptr(llm_case) a = solved(llm_case_new(1, 10, 40));
    g_autoptr(llm_case) b = solved(llm_case_new(2, 10, 40));
    g_autoptr(llm_client) first = begin(&f, a), second = begin(&f, b);
    assert_ends_with(first, CS_ERROR_FAILED, "NaN");
    llm_client_wait(second);
    llm_client_check(second);
    stop(&f);
}

static void test_engine_is_refused(void)
{
    fake_llm_control control = {.fail_reserve = true};
    cs_llm_engine_options options = {.kv_budget_bytes = FAKE_BLOCK_BYTES};
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_llm_engine_new(fake_llm_new(&control, 100), &options, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
    g_assert_true(control.freed);
    g_clear_error(&error);
    control = (fake_llm_control){0};
    options.kv_budget_bytes--;
    g_assert_null(cs_llm_engine_new(fake_llm_new(&control, 100), &options, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_assert_true(control.freed);
}

/* ---- Refusals ---- */

static void refuse(fixture *f, const cs_llm_request_options *options, cs_error_code code,
                   const char *message)
{
    llm_case c = {.options = *options};
    g_autoptr(GError) error = NULL;
    g_assert_null(llm_client_start(f->engine, &c, false, &error));
    g_assert_error(error, CS_ERROR, (gint)code);
    g_assert_cmpstr(error->message, ==, message);
}

static void test_refusals(void)
{
    fixture f = {.options = {.max_context_tokens = 400, .max_sequences = 8}};
    start(&f, 8);
    g_autoptr(llm_case) c = llm_case_new(1, 100, 10);
    llm_case_add_item(c, 1, 10, 30);
    const cs_llm_request_options good = c->options;
    cs_llm_request_options bad;
    bad = good, bad.n_tokens = 0;
    refuse(&f, &bad, CS_ERROR_INVALID, "prompt: no tokens, expected at least one");
    bad = good, bad.max_tokens = 157;
    refuse(&f, &bad, CS_ERROR_TOO_LARGE,
           "prompt of 100 tokens and 157 of output, over the whole KV memory of 256 tokens");
    bad = good, bad.max_tokens = 301;
    refuse(&f, &bad, CS_ERROR_OVER_CONTEXT,
           "prompt of 100 tokens and 301 of output, over the context of 400 tokens");
    bad = good, bad.n_choices = 9;
    refuse(&f, &bad, CS_ERROR_TOO_LARGE, "n: 9, expected at most 8");
    int32_t ids[] = {FAKE_VOCAB};
    bad = good, bad.stop_ids = ids, bad.n_stop_ids = 1;
    refuse(&f, &bad, CS_ERROR_INVALID, "stop id 0: id 97, expected 0 to 96");
    bad = good, bad.generated = ids, bad.n_generated = 1;
    refuse(&f, &bad, CS_ERROR_INVALID, "generated token 0: id 97, expected 0 to 96");
    ids[0] = -1;
    bad = good, bad.token_ids = ids, bad.n_tokens = 1, bad.n_spans = 0;
    refuse(&f, &bad, CS_ERROR_INVALID, "prompt token 0: id -1, expected 0 to 96");
    ids[0] = 1;
    bad = good, bad.generated = ids, bad.n_generated = 1, bad.n_choices = 2;
    refuse(&f, &bad, CS_ERROR_INVALID, "n: 2, a resumed generation has one choice");
    cs_llm_input_span span = {.row = 90, .n = 20};
    bad = good, bad.spans = &span;
    refuse(&f, &bad, CS_ERROR_INVALID, "span 0: rows 90 + 20, expected some from 0 to below 100");
    span = (cs_llm_input_span){.row = 10, .n = 20, .source_row = UINT32_MAX - 5};
    refuse(&f, &bad, CS_ERROR_INVALID, "span 0: rows 4294967290 + 20 of item 0, which has 30");
    span = (cs_llm_input_span){.row = 10, .n = 20, .item = 1};
    refuse(&f, &bad, CS_ERROR_INVALID, "span 0: item 1, expected below 1");
    bad = good, bad.has_reply_item = true, bad.reply_item = 1;
    refuse(&f, &bad, CS_ERROR_INVALID, "reply item 1, expected below 1");
    bad = good, bad.hidden_states = true;
    refuse(&f, &bad, CS_ERROR_UNSUPPORTED, "llm: this engine gives no hidden states");
    bad = good, bad.sampling.top_p = 2;
    refuse(&f, &bad, CS_ERROR_INVALID, "top_p: 2, expected 0 to 1");
    bad = good, bad.import_kv = true;
    refuse(&f, &bad, CS_ERROR_INVALID,
           "import of KV: no token generated, expected the prompt's first");
    int32_t position[1][3] = {{0, -4, 0}};
    bad = good, bad.n_tokens = 1, bad.n_spans = 0, bad.positions = (const int32_t(*)[3])position;
    refuse(&f, &bad, CS_ERROR_INVALID, "prompt token 0: position -4 on axis 1");
    g_assert_cmpuint(cs_llm_engine_max_tokens(f.engine), ==, 256);
    stop(&f);
}

static void test_busy(void)
{
    fixture f = {.options = {.max_queued_requests = 3}};
    start(&f, 64);
    g_autoptr(llm_case) c = llm_case_new(1, 50, 3);
    llm_case_add_item(c, 1, 10, 30);
    llm_case_solve(c);
    llm_client *clients[3];
    for (int i = 0; i < 3; i++)
        clients[i] = llm_client_start(f.engine, c, false, NULL);
    g_autoptr(GError) error = NULL;
    g_assert_null(llm_client_start(f.engine, c, false, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_BUSY);
    for (int i = 0; i < 3; i++)
        llm_client_provide(clients[i], 0, 0, 30);
    for (int i = 0; i < 3; i++) {
        llm_client_wait(clients[i]);
        llm_client_check(clients[i]);
        llm_client_free(clients[i]);
    }
    run(&f, c);
    stop(&f);
}

/* Without max_tokens an answer goes on to what context and memory allow. */
static void test_default_max_tokens(void)
{
    fixture f = {0};
    start(&f, 4);
    g_autoptr(llm_case) c = llm_case_new(1, 50, 78);
    llm_case_solve(c);
    c->options.max_tokens = 0;
    run(&f, c);
    stop(&f);
}

/* ---- Latency ---- */

typedef struct {
    bool generating; /* a stream of one row a step is there */
    gint n_mixed, max_mixed_rows, n_without;
} step_watch;

static void watch_step(void *user, const cs_llm_batch *batch)
{
    step_watch *watch = user;
    bool decodes = batch->n_sequences > 0 && batch->sequences[0].n_new == 1;
    if (decodes && batch->n_rows > 1) {
        watch->n_mixed++;
        watch->max_mixed_rows = MAX(watch->max_mixed_rows, (gint)batch->n_rows);
    }
    if (!decodes && watch->n_mixed > 0)
        watch->n_without++;
}

/* While a stream generates, a long prompt goes in chunks near the target, and the stream has its
 * row in every step. */
static void test_long_prompt_beside_a_stream(void)
{
    step_watch watch = {0};
    fixture f = {.options = {.mixed_step_target_us = 10000, .max_step_tokens = 2048}};
    start(&f, 256);
    f.control.row_us = 100;
    f.control.before_step = watch_step;
    f.control.user = &watch;
    g_autoptr(llm_case) stream = solved(llm_case_new(1, 10, 200));
    g_autoptr(llm_case) prompt = solved(llm_case_new(2, 2000, 1));
    g_autoptr(llm_client) a = begin(&f, stream);
    llm_client_wait_tokens(a, 2);
    g_autoptr(llm_client) b = begin(&f, prompt);
    llm_client_wait(b);
    llm_client_check(b);
    llm_client_wait(a);
    llm_client_check(a);
    g_assert_cmpint(watch.n_mixed, >, 5);
    g_assert_cmpint(watch.n_without, ==, 0);
    g_assert_cmpint(watch.max_mixed_rows, >, CS_LLM_BLOCK_TOKENS + 1);
    g_assert_cmpint(watch.max_mixed_rows, <=, 150);
    stop(&f);
}

static void count_call(void *user)
{
    (*(gint *)user)++;
}

/* One flush for the tokens of all streams. */
static void test_on_step(void)
{
    gint n_flushes = 0;
    fixture f = {.options = {.on_step = count_call, .on_step_user = &n_flushes}};
    f.control.step_us = 2000;
    start(&f, 64);
    g_autoptr(llm_case) c = solved(llm_case_new(1, 10, 20));
    llm_client *clients[8];
    for (int i = 0; i < 8; i++)
        clients[i] = begin(&f, c);
    for (int i = 0; i < 8; i++) {
        llm_client_wait(clients[i]);
        llm_client_free(clients[i]);
    }
    stop(&f);
    g_assert_cmpint(n_flushes, >=, 20);
    g_assert_cmpint(n_flushes, <=, f.control.n_steps + 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/llm/one", test_one);
    g_test_add_func("/llm/batch-equals-one", test_batch_equals_one);
    g_test_add_func("/llm/chunked-equals-whole", test_chunked_equals_whole);
    g_test_add_func("/llm/preempted-equals-not", test_preempted_equals_not);
    g_test_add_func("/llm/preemption-takes-the-latest", test_preemption_takes_the_latest);
    g_test_add_func("/llm/prefix-cache", test_prefix_cache);
    g_test_add_func("/llm/prefix-cache-of-output", test_prefix_cache_of_output);
    g_test_add_func("/llm/prefix-cache-of-media", test_prefix_cache_of_media);
    g_test_add_func("/llm/prefix-cache-off", test_prefix_cache_off);
    g_test_add_func("/llm/prefix-cache-evicts", test_prefix_cache_evicts);
    g_test_add_func("/llm/choices", test_choices);
    g_test_add_func("/llm/choices-preempted", test_choices_preempted);
    g_test_add_func("/llm/choice-alone", test_choice_alone);
    g_test_add_func("/llm/prefill-runs-to-the-first-missing",
                    test_prefill_runs_to_the_first_missing);
    g_test_add_func("/llm/nothing-to-start-with", test_nothing_to_start_with);
    g_test_add_func("/llm/stalled-makes-way", test_stalled_makes_way);
    g_test_add_func("/llm/reply-item", test_reply_item);
    g_test_add_func("/llm/item-fails", test_item_fails);
    g_test_add_func("/llm/items-that-do-not-fit", test_items_that_do_not_fit);
    g_test_add_func("/llm/held", test_held);
    g_test_add_func("/llm/cancel-within-a-step", test_cancel_within_a_step);
    g_test_add_func("/llm/cancel-in-every-state", test_cancel_in_every_state);
    g_test_add_func("/llm/engine-ends-with-requests", test_engine_ends_with_requests);
    g_test_add_func("/llm/handle-released-early", test_handle_released_early);
    g_test_add_func("/llm/resumed-equals-uninterrupted", test_resumed_equals_uninterrupted);
    g_test_add_func("/llm/split-equals-whole", test_split_equals_whole);
    g_test_add_func("/llm/split-waits", test_split_waits);
    g_test_add_func("/llm/kv-that-does-not-fit", test_kv_that_does_not_fit);
    g_test_add_func("/llm/forward-fails", test_forward_fails);
    g_test_add_func("/llm/nan-fails-one", test_nan_fails_one);
    g_test_add_func("/llm/engine-is-refused", test_engine_is_refused);
    g_test_add_func("/llm/refusals", test_refusals);
    g_test_add_func("/llm/busy", test_busy);
    g_test_add_func("/llm/default-max-tokens", test_default_max_tokens);
    g_test_add_func("/llm/long-prompt-beside-a-stream", test_long_prompt_beside_a_stream);
    g_test_add_func("/llm/on-step", test_on_step);
    g_test_add_func("/llm/pace", test_pace);
    return g_test_run();
}
