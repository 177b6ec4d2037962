/* src/engine/llm_engine under thousands of random requests from several threads: every answer is
 * the oracle's or the beginning of it, and no KV block is left over.
 */
#include "base/error.h"
#include "support/llm_case.h"

enum { THREADS = 3, REQUESTS = 300, IN_FLIGHT = 12 };

typedef struct {
    cs_llm_engine *engine;
    guint32 seed;
    uint32_t n_complete, n_ended;
} submitter;

typedef struct {
    llm_case *c;
    llm_client *client;
    uint32_t next_row[4]; /* of each item, when they come in pieces */
    bool pieces, may_end;
} flight;

static void take_off(submitter *s, GRand *rand, flight *f)
{
    g_autoptr(GError) error = NULL;
    *f = (flight){.c = llm_case_random(rand)};
    f->pieces = f->c->options.n_items > 0 && g_rand_boolean(rand);
    if (g_rand_int_range(rand, 0, 6) == 0) {
        f->may_end = true;
        f->c->cancel_after = (uint32_t)g_rand_int_range(rand, 1, 30);
    }
    f->client = llm_client_start(s->engine, f->c, !f->pieces, &error);
    g_assert_no_error(error);
}

/* Whether there is more to provide. */
static bool provide_some(GRand *rand, flight *f)
{
    bool more = false;
    for (uint32_t i = 0; f->pieces && i < f->c->options.n_items; i++) {
        uint32_t left = f->c->item_rows[i] - f->next_row[i];
        if (left == 0)
            continue;
        uint32_t n = (uint32_t)g_rand_int_range(rand, 1, (gint32)MIN(left, 20) + 1);
        llm_client_provide(f->client, i, f->next_row[i], n);
        f->next_row[i] += n;
        more |= n < left;
    }
    return more;
}

static void interfere(GRand *rand, flight *f)
{
    if (g_rand_int_range(rand, 0, 30) == 0) {
        f->may_end = true;
        cs_llm_request_cancel(f->client->request);
    } else if (g_rand_int_range(rand, 0, 60) == 0) {
        g_autoptr(GError) error = g_error_new(CS_ERROR, CS_ERROR_FAILED, "by chance");
        f->may_end = true;
        cs_llm_request_fail(f->client->request, error);
    }
}

static void land(submitter *s, GRand *rand, flight *f)
{
    while (provide_some(rand, f))
        interfere(rand, f);
    llm_client_wait(f->client);
    if (f->client->error) {
        g_assert_true(f->may_end);
        llm_client_check_beginning(f->client);
        s->n_ended++;
    } else {
        llm_client_check(f->client);
        s->n_complete++;
    }
    llm_client_free(f->client);
    llm_case_free(f->c);
}

static void *submit_many(void *user)
{
    submitter *s = user;
    g_autoptr(GRand) rand = g_rand_new_with_seed(s->seed);
    flight flights[IN_FLIGHT];
    for (int i = 0; i < REQUESTS; i++) {
        flight *f = &flights[i % IN_FLIGHT];
        if (i >= IN_FLIGHT)
            land(s, rand, f);
        take_off(s, rand, f);
        flight *other = &flights[g_rand_int_range(rand, 0, MIN(i + 1, IN_FLIGHT))];
        provide_some(rand, other);
        interfere(rand, other);
    }
    for (int i = REQUESTS; i < REQUESTS + IN_FLIGHT; i++)
        land(s, rand, &flights[i % IN_FLIGHT]);
    return NULL;
}

static void storm(guint32 seed, uint32_t n_blocks, const cs_llm_engine_options *options)
{
    fake_llm_control control = {0};
    cs_llm_engine_options o = *options;
    o.kv_budget_bytes = (size_t)n_blocks * FAKE_BLOCK_BYTES;
    o.hidden_states = true;
    g_autoptr(GError) error = NULL;
    cs_llm_engine *engine = cs_llm_engine_new(fake_llm_new(&control, 4096), &o, &error);
    g_assert_no_error(error);
    submitter submitters[THREADS];
    GThread *threads[THREADS];
    for (guint32 i = 0; i < THREADS; i++) {
        submitters[i] = (submitter){.engine = engine, .seed = seed * 100 + i};
        threads[i] = g_thread_new("submitter", submit_many, &submitters[i]);
    }
    uint32_t n_complete = 0;
    for (int i = 0; i < THREADS; i++) {
        g_thread_join(threads[i]);
        n_complete += submitters[i].n_complete;
    }
    g_assert_cmpuint(n_complete, >, THREADS * REQUESTS / 2);
    g_assert_cmpuint(llm_engine_blocks_held(engine), ==, 0);
    cs_llm_engine_stats stats;
    cs_llm_engine_stats_get(engine, &stats);
    g_assert_cmpuint(stats.requests_finished, ==, n_complete);
    g_assert_cmpuint(stats.requests_finished + stats.requests_failed + stats.requests_cancelled, ==,
                     THREADS * REQUESTS);
    g_test_message(
        "%u blocks: %" G_GUINT64_FORMAT " steps, %" G_GUINT64_FORMAT
        " preemptions, %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT " prompt tokens cached",
        n_blocks, stats.steps, stats.preemptions, stats.cached_tokens, stats.prompt_tokens);
    cs_llm_engine_free(engine);
}

static void test_roomy(void)
{
    storm(1, 2000, &(cs_llm_engine_options){0});
}

static void test_scarce(void)
{
    storm(2, 8, &(cs_llm_engine_options){.max_step_tokens = 48, .max_sequences = 16});
}

static void test_scarce_uncached(void)
{
    storm(3, 12, &(cs_llm_engine_options){.no_prefix_cache = true, .max_sequences = 7});
}

static void test_small_steps(void)
{
    storm(4, 40,
          &(cs_llm_engine_options){
              .max_step_tokens = 5, .max_sequences = 5, .mixed_step_target_us = 100});
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/llm-stress/roomy", test_roomy);
    g_test_add_func("/llm-stress/scarce", test_scarce);
    g_test_add_func("/llm-stress/scarce-uncached", test_scarce_uncached);
    g_test_add_func("/llm-stress/small-steps", test_small_steps);
    return g_test_run();
}
