/* src/engine/encoder_engine over an encoder that hashes its input: batches, the cache, ends. */
#include "base/error.h"
#include "engine/encoder_engine.h"

#include <pthread.h>
#include <string.h>

/* ---- A fake encoder: an item's output is [rows / 2, 3] of (sum of the item, row, column) ---- */

typedef struct {
    cs_encoder base;
    pthread_mutex_t gate; /* held by a test that wants the device to stand still */
    gint n_forwards, n_items, max_batch, max_cost, busy;
    gint fail_value; /* a batch with an item whose first number is this fails */
    gint step_us;
    gint n_layers, layers_done; /* it yields after each */
} fake_encoder;

static uint32_t output_tokens(const cs_encoder *encoder, const cs_encoder_item *item)
{
    return (uint32_t)item->input.rows / 2;
}

static uint32_t cost_tokens(const cs_encoder *encoder, const cs_encoder_item *item)
{
    return (uint32_t)item->input.rows;
}

static float item_sum(const cs_encoder_item *item)
{
    float sum = 0;
    for (int64_t i = 0; i < item->input.rows; i++)
        sum += ((const float *)item->input.data)[i];
    return sum;
}

static void note_batch(fake_encoder *fake, uint32_t n, gint cost)
{
    g_atomic_int_add(&fake->n_forwards, 1);
    g_atomic_int_add(&fake->n_items, (gint)n);
    g_atomic_int_set(&fake->max_batch, MAX(fake->max_batch, (gint)n));
    g_atomic_int_set(&fake->max_cost, MAX(fake->max_cost, cost));
}

static bool forward(cs_encoder *encoder, uint32_t n, const cs_encoder_item *items,
                    cs_shared_tensor **outputs, GError **error)
{
    fake_encoder *fake = (fake_encoder *)encoder;
    gint cost = 0;
    g_atomic_int_set(&fake->busy, 1);
    pthread_mutex_lock(&fake->gate);
    pthread_mutex_unlock(&fake->gate);
    for (gint layer = 0; layer < fake->n_layers; layer++) {
        g_usleep((gulong)fake->step_us);
        g_atomic_int_add(&fake->layers_done, 1);
        if (!encoder->yield(encoder->yield_user))
            return cs_fail(error, CS_ERROR_CANCELLED, "fake: given up");
    }
    for (uint32_t i = 0; i < n; i++) {
        cost += (gint)items[i].input.rows;
        if (fake->fail_value != 0 && *(const float *)items[i].input.data == fake->fail_value)
            return cs_fail(error, CS_ERROR_FAILED, "fake: item of value %d", fake->fail_value);
    }
    for (uint32_t i = 0; i < n; i++) {
        outputs[i] = cs_shared_tensor_new(CS_DTYPE_F32, items[i].input.rows / 2, 3);
        for (int64_t j = 0; j < outputs[i]->t.rows * 3; j++)
            ((float *)outputs[i]->t.data)[j] = item_sum(&items[i]) + (float)j;
    }
    note_batch(fake, n, cost);
    return true;
}

static gint n_freed;

static void free_encoder(cs_encoder *encoder)
{
    fake_encoder *fake = (fake_encoder *)encoder;
    if (!fake)
        return;
    pthread_mutex_destroy(&fake->gate);
    g_free(fake);
    n_freed++;
}

static const cs_encoder_ops fake_ops = {.output_tokens = output_tokens,
                                        .cost_tokens = cost_tokens,
                                        .forward = forward,
                                        .free = free_encoder};

typedef struct {
    fake_encoder *fake;
    cs_encoder_engine_options options;
    cs_encoder_engine *engine;
} fixture;

static void start(fixture *f)
{
    f->fake = g_new0(fake_encoder, 1);
    f->fake->base = (cs_encoder){.ops = &fake_ops, .output_size = 3};
    pthread_mutex_init(&f->fake->gate, NULL);
    g_autoptr(GError) error = NULL;
    f->engine = cs_encoder_engine_new(&f->fake->base, &f->options, &error);
    g_assert_no_error(error);
}

static void stop(fixture *f)
{
    gint before = n_freed;
    cs_encoder_engine_free(f->engine);
    g_assert_cmpint(n_freed, ==, before + 1);
}

static cs_encoder_engine_stats stats_of(fixture *f)
{
    cs_encoder_engine_stats stats;
    cs_encoder_engine_stats_get(f->engine, &stats);
    return stats;
}

/* ---- A job and what became of it ---- */

typedef struct {
    cs_encoder_job *job;
    uint32_t rows;
    float value;
    uint64_t hash;
    bool fail_prepare;
    float *data; /* made by prepare, freed after on_done */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool prepared, done, freed;
    cs_shared_tensor *output;
    GError *error;
} client;

static bool prepare(void *user, cs_encoder_input *input, GError **error)
{
    client *c = user;
    c->prepared = true;
    if (c->fail_prepare)
        return cs_fail(error, CS_ERROR_INVALID, "the medium is broken");
    c->data = g_new(float, c->rows);
    for (uint32_t i = 0; i < c->rows; i++)
        c->data[i] = c->value;
    input->item.input = cs_tensor_view(c->data, CS_DTYPE_F32, c->rows, 1);
    input->content_hash[1] = c->hash;
    return true;
}

static void on_done(void *user, cs_shared_tensor *output, const GError *error)
{
    client *c = user;
    g_assert_false(c->done);
    g_assert_true((output == NULL) == (error != NULL));
    c->output = output ? cs_shared_tensor_ref(output) : NULL;
    c->error = error ? g_error_copy(error) : NULL;
}

static void free_user(void *user)
{
    client *c = user;
    g_clear_pointer(&c->data, g_free);
    pthread_mutex_lock(&c->lock);
    c->done = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static client *begin(fixture *f, uint32_t rows, float value, uint64_t hash)
{
    client *c = g_new0(client, 1);
    c->rows = rows, c->value = value, c->hash = hash;
    c->fail_prepare = value < 0;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    cs_encoder_job_options options = {
        .prepare = prepare, .on_done = on_done, .free_user = free_user, .user = c};
    g_autoptr(GError) error = NULL;
    c->job = cs_encoder_engine_submit(f->engine, &options, &error);
    g_assert_no_error(error);
    return c;
}

static void wait_done(client *c)
{
    pthread_mutex_lock(&c->lock);
    while (!c->done)
        pthread_cond_wait(&c->changed, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

static void finish(client *c)
{
    cs_encoder_job_release(c->job);
    cs_shared_tensor_unref(c->output);
    g_clear_error(&c->error);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    g_free(c);
}

static void check(client *c)
{
    wait_done(c);
    g_assert_no_error(c->error);
    g_assert_cmpint(c->output->t.rows, ==, c->rows / 2);
    for (int64_t i = 0; i < c->output->t.rows * 3; i++)
        g_assert_cmpfloat(((float *)c->output->t.data)[i], ==,
                          c->value * (float)c->rows + (float)i);
    finish(c);
}

static void check_fails(client *c, cs_error_code code)
{
    wait_done(c);
    g_assert_error(c->error, CS_ERROR, (gint)code);
    finish(c);
}

static void wait_ready(fixture *f, uint32_t n)
{
    while (stats_of(f).ready < n)
        g_usleep(500);
}

/* Keeps the device busy with a first job; open the gate to go on. */
static client *block_device(fixture *f)
{
    pthread_mutex_lock(&f->fake->gate);
    g_atomic_int_set(&f->fake->busy, 0);
    client *c = begin(f, 10, 99, 0);
    while (!g_atomic_int_get(&f->fake->busy))
        g_usleep(500);
    return c;
}

static void open_gate(fixture *f)
{
    pthread_mutex_unlock(&f->fake->gate);
}

/* ---- Tests ---- */

static void test_batches(void)
{
    fixture f = {.options = {.max_batch_cost = 100, .n_workers = 3}};
    start(&f);
    client *first = block_device(&f), *rest[12];
    for (int i = 0; i < 12; i++)
        rest[i] = begin(&f, i == 7 ? 300 : 30, (float)(i + 1), 0);
    wait_ready(&f, 12);
    open_gate(&f);
    check(first);
    for (int i = 0; i < 12; i++)
        check(rest[i]);
    /* 3 + 3 + 1, the large one alone, 3 + 1, after the first one. */
    g_assert_cmpint(f.fake->n_forwards, ==, 7);
    g_assert_cmpint(f.fake->max_batch, ==, 3);
    g_assert_cmpint(f.fake->max_cost, ==, 300);
    g_assert_cmpuint(stats_of(&f).items_done, ==, 13);
    stop(&f);
}

static void test_cache(void)
{
    fixture f = {.options = {.cache_bytes = 3 * 10 * 3 * sizeof(float)}};
    start(&f);
    for (uint64_t i = 1; i <= 3; i++)
        check(begin(&f, 20, (float)i, i));
    check(begin(&f, 20, 1, 1));
    g_assert_cmpuint(stats_of(&f).cache_hits, ==, 1);
    g_assert_cmpint(f.fake->n_items, ==, 3);
    check(begin(&f, 20, 4, 4)); /* pushes 2 out: 1 was used later */
    check(begin(&f, 20, 1, 1));
    check(begin(&f, 20, 3, 3));
    g_assert_cmpint(f.fake->n_items, ==, 4);
    check(begin(&f, 20, 2, 2));
    g_assert_cmpint(f.fake->n_items, ==, 5);
    check(begin(&f, 2000, 9, 9)); /* larger than the cache */
    check(begin(&f, 20, 7, 0));   /* without a hash */
    check(begin(&f, 20, 7, 0));
    g_assert_cmpint(f.fake->n_items, ==, 8);
    g_assert_cmpuint(stats_of(&f).cache_bytes, ==, 360);
    stop(&f);
}

/* Equal items that wait together are computed once, and so are those that come while it is. */
static void test_equal_in_flight(void)
{
    fixture f = {.options = {.cache_bytes = 1 << 20}};
    start(&f);
    client *first = block_device(&f), *same[5];
    for (int i = 0; i < 5; i++)
        same[i] = begin(&f, 20, 5, 5);
    wait_ready(&f, 5);
    open_gate(&f);
    check(first);
    for (int i = 0; i < 5; i++)
        check(same[i]);
    g_assert_cmpint(f.fake->n_items, ==, 2);
    g_assert_cmpuint(stats_of(&f).cache_hits, ==, 4);
    stop(&f);
}

static void test_cancel(void)
{
    fixture f = {.options = {.n_workers = 1}};
    start(&f);
    client *running = block_device(&f);
    client *ready = begin(&f, 20, 1, 0), *kept = begin(&f, 20, 2, 0);
    wait_ready(&f, 2);
    cs_encoder_job_cancel(running->job);
    cs_encoder_job_cancel(ready->job);
    open_gate(&f);
    check_fails(running, CS_ERROR_CANCELLED);
    check_fails(ready, CS_ERROR_CANCELLED);
    check(kept);
    g_assert_cmpint(f.fake->n_items, ==, 2);
    client *done = begin(&f, 20, 3, 0);
    wait_done(done);
    cs_encoder_job_cancel(done->job);
    check(done);
    g_assert_cmpuint(stats_of(&f).items_cancelled, ==, 2);
    stop(&f);
}

/* One bad item of a batch ends only itself. */
static void test_bad_item(void)
{
    fixture f = {0};
    start(&f);
    f.fake->fail_value = 3;
    client *first = block_device(&f), *items[5];
    for (int i = 0; i < 5; i++)
        items[i] = begin(&f, 20, (float)(i + 1), 0);
    client *broken = begin(&f, 20, -1, 0), *malformed = begin(&f, 1, 1, 0);
    wait_ready(&f, 5);
    check_fails(broken, CS_ERROR_INVALID);
    check_fails(malformed, CS_ERROR_INVALID);
    open_gate(&f);
    check(first);
    for (int i = 0; i < 5; i++)
        if (i == 2)
            check_fails(items[i], CS_ERROR_FAILED);
        else
            check(items[i]);
    check_fails(begin(&f, 20, 3, 0), CS_ERROR_FAILED);
    check(begin(&f, 20, 4, 0));
    g_assert_cmpuint(stats_of(&f).items_failed, ==, 4);
    stop(&f);
}

static void test_refusals(void)
{
    fixture f = {.options = {.max_queued_items = 3}};
    start(&f);
    client *first = block_device(&f);
    client *second = begin(&f, 20, 1, 0), *third = begin(&f, 20, 2, 0);
    float data[2] = {0};
    cs_encoder_job_options options = {.input.item.input = cs_tensor_view(data, CS_DTYPE_F32, 2, 1),
                                      .on_done = on_done};
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_encoder_engine_submit(f.engine, &options, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_BUSY);
    g_clear_error(&error);
    options.input.item.input.rows = 1;
    g_assert_null(cs_encoder_engine_submit(f.engine, &options, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    open_gate(&f);
    check(first);
    check(second);
    check(third);
    stop(&f);
}

static void *end_engine(void *user)
{
    stop(user);
    return NULL;
}

static void test_engine_ends_with_jobs(void)
{
    fixture f = {.options = {.n_workers = 1}};
    start(&f);
    client *jobs[9];
    jobs[0] = block_device(&f);
    for (int i = 1; i < 9; i++)
        jobs[i] = begin(&f, 20, 1, 0);
    wait_ready(&f, 8);
    GThread *ender = g_thread_new("ender", end_engine, &f);
    g_usleep(20000); /* to let it close the engine: opened earlier, one more batch is computed */
    open_gate(&f);
    g_thread_join(ender);
    for (int i = 0; i < 9; i++) {
        wait_done(jobs[i]);
        if (jobs[i]->error)
            g_assert_error(jobs[i]->error, CS_ERROR, CS_ERROR_CANCELLED);
        cs_encoder_job_cancel(jobs[i]->job); /* handles outlive the engine */
        finish(jobs[i]);
    }
}

/* Two engines on one device: never at the same time, and each gets its turn. */
typedef struct {
    cs_turn *turn;
    gint *inside, *most;
    gint n;
} turn_taker;

static void *take_turns(void *user)
{
    turn_taker *taker = user;
    for (int i = 0; i < 200; i++) {
        cs_turn_take(taker->turn, 0);
        gint inside = g_atomic_int_add(taker->inside, 1) + 1;
        if (inside > g_atomic_int_get(taker->most))
            g_atomic_int_set(taker->most, inside);
        g_usleep(20);
        taker->n++;
        g_atomic_int_add(taker->inside, -1);
        cs_turn_give(taker->turn);
    }
    return NULL;
}

static void test_turn(void)
{
    g_autoptr(cs_turn) turn = cs_turn_new();
    gint inside = 0, most = 0;
    turn_taker takers[3];
    GThread *threads[3];
    for (int i = 0; i < 3; i++) {
        takers[i] = (turn_taker){turn, &inside, &most, 0};
        threads[i] = g_thread_new("taker", take_turns, &takers[i]);
    }
    for (int i = 0; i < 3; i++) {
        g_thread_join(threads[i]);
        g_assert_cmpint(takers[i].n, ==, 200);
    }
    g_assert_cmpint(most, ==, 1);
    cs_turn_take(NULL, 0);
    cs_turn_give(NULL);
}

/* Another engine on the device waits for a layer, not for a batch. */
static void test_turn_between_layers(void)
{
    g_autoptr(cs_turn) turn = cs_turn_new();
    fixture f = {.options = {.turn = turn}};
    start(&f);
    f.fake->n_layers = 50;
    f.fake->step_us = 1000;
    client *c = begin(&f, 20, 1, 0);
    while (g_atomic_int_get(&f.fake->layers_done) == 0)
        g_usleep(500);
    gint least = G_MAXINT; /* this thread may sleep before it asks: the least of a few counts */
    for (int i = 0; i < 5; i++) {
        gint before = g_atomic_int_get(&f.fake->layers_done);
        cs_turn_take(turn, 0);
        gint at = g_atomic_int_get(&f.fake->layers_done);
        least = MIN(least, at - before);
        g_usleep(2000);
        g_assert_cmpint(g_atomic_int_get(&f.fake->layers_done), ==, at);
        cs_turn_give(turn);
    }
    g_assert_cmpint(least, <=, 1);
    check(c);
    g_assert_cmpint(f.fake->layers_done, ==, 50);
    stop(&f);
}

/* A batch that nobody wants is given up after a layer; one that somebody wants is not. */
static void test_given_up(void)
{
    fixture f = {0};
    start(&f);
    f.fake->n_layers = 2000;
    f.fake->step_us = 1000;
    client *c = begin(&f, 20, 1, 0);
    while (g_atomic_int_get(&f.fake->layers_done) == 0)
        g_usleep(500);
    cs_encoder_job_cancel(c->job);
    check_fails(c, CS_ERROR_CANCELLED);
    g_assert_cmpint(f.fake->layers_done, <, 1000);
    g_atomic_int_set(&f.fake->n_layers, 5);
    client *first = block_device(&f), *cancelled = begin(&f, 20, 2, 2), *same = begin(&f, 20, 2, 2);
    wait_ready(&f, 2);
    open_gate(&f);
    cs_encoder_job_cancel(cancelled->job);
    check_fails(cancelled, CS_ERROR_CANCELLED);
    check(first);
    check(same);
    /* And so is one that runs when the engine ends. */
    f.fake->n_layers = 5000;
    client *last = begin(&f, 20, 1, 0);
    gint before = g_atomic_int_get(&f.fake->layers_done);
    while (g_atomic_int_get(&f.fake->layers_done) == before)
        g_usleep(500);
    int64_t start_us = g_get_monotonic_time();
    stop(&f);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 2000000);
    check_fails(last, CS_ERROR_CANCELLED);
}

static void test_stress(void)
{
    fixture f = {.options = {.n_workers = 3, .cache_bytes = 4000, .max_batch_cost = 150}};
    start(&f);
    f.fake->fail_value = 13;
    g_autoptr(GRand) rand = g_rand_new_with_seed(5);
    enum { N = 200 };
    for (int round = 0; round < 10; round++) {
        client *jobs[N];
        bool cancelled[N];
        for (int i = 0; i < N; i++) {
            gint value = g_rand_int_range(rand, -1, 20);
            jobs[i] = begin(&f, (uint32_t)value * 2 + 10, (float)value, (uint64_t)value + 2);
            if ((cancelled[i] = g_rand_int_range(rand, 0, 5) == 0))
                cs_encoder_job_cancel(jobs[i]->job);
        }
        for (int i = 0; i < N; i++) {
            wait_done(jobs[i]);
            if (jobs[i]->error && jobs[i]->error->code == CS_ERROR_CANCELLED && cancelled[i])
                finish(jobs[i]);
            else if (jobs[i]->value < 0)
                check_fails(jobs[i], CS_ERROR_INVALID);
            else if (jobs[i]->value == 13)
                check_fails(jobs[i], CS_ERROR_FAILED);
            else
                check(jobs[i]);
        }
    }
    cs_encoder_engine_stats stats = stats_of(&f);
    g_assert_cmpuint(stats.preparing + stats.ready, ==, 0);
    g_assert_cmpuint(stats.items_done + stats.items_failed + stats.items_cancelled, ==, 10 * N);
    g_assert_cmpuint(stats.cache_bytes, <=, 4000);
    stop(&f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/encoder/batches", test_batches);
    g_test_add_func("/encoder/cache", test_cache);
    g_test_add_func("/encoder/equal-in-flight", test_equal_in_flight);
    g_test_add_func("/encoder/cancel", test_cancel);
    g_test_add_func("/encoder/bad-item", test_bad_item);
    g_test_add_func("/encoder/refusals", test_refusals);
    g_test_add_func("/encoder/engine-ends-with-jobs", test_engine_ends_with_jobs);
    g_test_add_func("/encoder/turn", test_turn);
    g_test_add_func("/encoder/turn-between-layers", test_turn_between_layers);
    g_test_add_func("/encoder/given-up", test_given_up);
    g_test_add_func("/encoder/stress", test_stress);
    return g_test_run();
}
