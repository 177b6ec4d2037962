/* The generator engine over a component that turns code c into four samples c, c, c, c, one code a
 * step. */
#include "base/error.h"
#include "engine/generator_engine.h"

#include <string.h>

enum { PER_CODE = 4, MOST_UNREAD = 64, BATCH = 3, BAD_CODE = -1, FATAL_CODE = -2 };

typedef struct {
    cs_generator generator;
    gint n_open, max_batch_seen, freed;
    /* Or NULL each: what gives leave for a step, one token each; and which streams took part, by
     * their first codes. */
    GAsyncQueue *leave;
    GString *order;
} fake;

struct cs_generation {
    fake *owner;
    GArray *codes, *samples;
    guint n_spoken, n_read;
    uint64_t n_unwanted; /* samples that are left out */
    bool closed;
};

static cs_generation *fake_open(cs_generator *generator, const char *voice, uint64_t seed,
                                uint64_t first_sample, GError **error)
{
    if (strcmp(voice, "a") != 0) {
        cs_fail(error, CS_ERROR_NOT_FOUND, "voice \"%s\": there is a", voice);
        return NULL;
    }
    cs_generation *g = g_new0(cs_generation, 1);
    g->owner = (fake *)generator;
    g->n_unwanted = first_sample;
    g->codes = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g->samples = g_array_new(FALSE, FALSE, sizeof(float));
    g_atomic_int_inc(&g->owner->n_open);
    return g;
}

static void fake_close(cs_generation *g)
{
    g_atomic_int_add(&g->owner->n_open, -1);
    g_array_unref(g->codes);
    g_array_unref(g->samples);
    g_free(g);
}

static bool fake_push(cs_generation *g, uint32_t n, const int32_t *codes, bool last, GError **error)
{
    for (uint32_t i = 0; i < n; i++)
        if (codes[i] == BAD_CODE)
            return cs_fail(error, CS_ERROR_INVALID, "code %d", codes[i]);
    g_array_append_vals(g->codes, codes, n);
    g->closed = last;
    return true;
}

static uint32_t fake_unread(const cs_generation *g)
{
    return g->samples->len - g->n_read;
}

static bool fake_ready(const cs_generation *g)
{
    return g->n_spoken < g->codes->len && fake_unread(g) < MOST_UNREAD;
}

static bool fake_finished(const cs_generation *g)
{
    return g->closed && g->n_spoken == g->codes->len;
}

static bool fake_step(cs_generator *generator, uint32_t n, cs_generation *const *generations,
                      GError **error)
{
    fake *f = (fake *)generator;
    f->max_batch_seen = MAX(f->max_batch_seen, (gint)n);
    if (f->leave)
        g_async_queue_pop(f->leave);
    for (uint32_t i = 0; i < n; i++) {
        cs_generation *g = generations[i];
        int32_t code = g_array_index(g->codes, int32_t, g->n_spoken);
        float sample = (float)code;
        g_assert_true(fake_ready(g));
        if (f->order)
            g_string_append_c(f->order, (char)g_array_index(g->codes, int32_t, 0));
        if (code == FATAL_CODE)
            return cs_fail(error, CS_ERROR_FAILED, "out of breath");
        for (int j = 0; j < PER_CODE; j++)
            if (g->n_unwanted > 0)
                g->n_unwanted--;
            else
                g_array_append_val(g->samples, sample);
        g->n_spoken++;
    }
    return true;
}

static uint32_t fake_read(cs_generation *g, uint32_t n, float *out)
{
    n = MIN(n, fake_unread(g));
    if (n > 0)
        memcpy(out, (float *)(void *)g->samples->data + g->n_read, n * sizeof *out);
    g->n_read += n;
    return n;
}

static void fake_free(cs_generator *generator)
{
    fake *f = (fake *)generator;
    g_assert_cmpint(f->n_open, ==, 0);
    f->freed = 1;
}

static const cs_generator_ops fake_ops = {fake_open,   fake_close,    fake_push,
                                          fake_ready,  fake_finished, fake_step,
                                          fake_unread, fake_read,     fake_free};

static fake make_fake(void)
{
    return (fake){.generator = {.ops = &fake_ops, .max_batch = BATCH}};
}

static cs_generator_engine *start_with(fake *f, const cs_generator_engine_options *options)
{
    g_autoptr(GError) error = NULL;
    cs_generator_engine *e = cs_generator_engine_new(&f->generator, options, &error);
    g_assert_no_error(error);
    return e;
}

static cs_generator_engine *start(fake *f, uint32_t max_requests)
{
    return start_with(f, &(cs_generator_engine_options){.max_requests = max_requests});
}

typedef struct {
    GMutex lock;
    GCond changed;
    GArray *samples;
    bool done;
    GError *error;
} listener;

static void on_samples(void *user, uint32_t n, const float *samples)
{
    listener *l = user;
    g_mutex_lock(&l->lock);
    g_assert_false(l->done);
    g_array_append_vals(l->samples, samples, n);
    g_cond_signal(&l->changed);
    g_mutex_unlock(&l->lock);
}

static void on_done(void *user, const GError *error)
{
    listener *l = user;
    g_mutex_lock(&l->lock);
    g_assert_false(l->done);
    l->done = true;
    l->error = error ? g_error_copy(error) : NULL;
    g_cond_signal(&l->changed);
    g_mutex_unlock(&l->lock);
}

static const cs_generator_sink sink = {on_samples, on_done};

static void listener_init(listener *l)
{
    *l = (listener){.samples = g_array_new(FALSE, FALSE, sizeof(float))};
    g_mutex_init(&l->lock);
    g_cond_init(&l->changed);
}

static void listener_clear(listener *l)
{
    g_array_unref(l->samples);
    g_clear_error(&l->error);
    g_mutex_clear(&l->lock);
    g_cond_clear(&l->changed);
}

/* Until it is done, or has so many samples. */
static void await(listener *l, guint n_samples)
{
    gint64 end = g_get_monotonic_time() + 60 * G_TIME_SPAN_SECOND;
    g_mutex_lock(&l->lock);
    while (!l->done && (n_samples == 0 || l->samples->len < n_samples))
        g_assert_true(g_cond_wait_until(&l->changed, &l->lock, end));
    g_mutex_unlock(&l->lock);
}

static cs_generator_request *submit(cs_generator_engine *e, listener *l, uint64_t credit)
{
    g_autoptr(GError) error = NULL;
    listener_init(l);
    cs_generator_request *r = cs_generator_engine_submit(
        e, &(cs_generator_request_options){.voice = "a", .credit_samples = credit}, &sink, l,
        &error);
    g_assert_no_error(error);
    return r;
}

static void check_samples(const listener *l, int32_t first, guint n_codes)
{
    g_assert_no_error(l->error);
    g_assert_cmpuint(l->samples->len, ==, n_codes * PER_CODE);
    for (guint i = 0; i < l->samples->len; i++)
        g_assert_cmpfloat(g_array_index(l->samples, float, i), ==,
                          (float)(first + (int32_t)(i / PER_CODE)));
}

/* Steps have `most` streams when there are as many. */
static void speak_many(uint32_t max_batch, gint most)
{
    enum { N = 7, CODES = 40 };
    fake f = make_fake();
    f.leave = g_async_queue_new();
    cs_generator_engine *e = start_with(&f, &(cs_generator_engine_options){.max_batch = max_batch});
    listener l[N];
    cs_generator_request *r[N];
    for (int i = 0; i < N; i++)
        r[i] = submit(e, &l[i], 0);
    for (int32_t c = 0; c < CODES; c++)
        for (int i = 0; i < N; i++) {
            int32_t code = 100 * i + c;
            cs_generator_request_push(r[i], 1, &code, c == CODES - 1);
        }
    for (int i = 0; i < N * CODES; i++)
        g_async_queue_push(f.leave, &f);
    for (int i = 0; i < N; i++) {
        await(&l[i], 0);
        check_samples(&l[i], 100 * i, CODES);
        cs_generator_request_release(r[i]);
        listener_clear(&l[i]);
    }
    cs_generator_engine_stats stats;
    cs_generator_engine_stats_get(e, &stats);
    g_assert_cmpuint(stats.requests_finished, ==, N);
    g_assert_cmpuint(stats.samples, ==, N * CODES * PER_CODE);
    g_assert_cmpuint(stats.step_streams, ==, N * CODES);
    cs_generator_engine_free(e);
    g_assert_cmpint(f.max_batch_seen, ==, most);
    g_assert_cmpint(f.freed, ==, 1);
    g_async_queue_unref(f.leave);
}

static void test_streams(void)
{
    speak_many(0, BATCH);
    speak_many(1, 1);
    speak_many(2, 2);
    speak_many(BATCH + 1, BATCH);
}

/* A stream that takes another's place: what came before counts against the credit. */
static void test_begun_again(void)
{
    enum { CODES = 20, FIRST = 24 };
    fake f = make_fake();
    cs_generator_engine *e = start(&f, 0);
    listener l;
    int32_t codes[CODES];
    for (int i = 0; i < CODES; i++)
        codes[i] = i;
    for (uint64_t credit = FIRST - 4; credit <= FIRST + 4; credit += 4) {
        g_autoptr(GError) error = NULL;
        listener_init(&l);
        const cs_generator_request_options options = {
            .voice = "a", .credit_samples = credit, .first_sample = FIRST};
        cs_generator_request *r = cs_generator_engine_submit(e, &options, &sink, &l, &error);
        g_assert_no_error(error);
        cs_generator_request_push(r, CODES, codes, true);
        if (credit > FIRST)
            await(&l, (guint)(credit - FIRST));
        else
            g_usleep(20000); /* nothing may come */
        g_mutex_lock(&l.lock);
        g_assert_cmpuint(l.samples->len, ==, credit > FIRST ? credit - FIRST : 0);
        g_mutex_unlock(&l.lock);
        cs_generator_request_allow(r, CODES * PER_CODE);
        await(&l, 0);
        check_samples(&l, FIRST / PER_CODE, CODES - FIRST / PER_CODE);
        cs_generator_request_release(r);
        listener_clear(&l);
    }
    cs_generator_engine_free(e);
}

/* No more than the credit comes; the stream rests, another goes on. */
static void test_credit(void)
{
    enum { CODES = 50 };
    fake f = make_fake();
    cs_generator_engine *e = start(&f, 0);
    listener slow, quick;
    cs_generator_request *a = submit(e, &slow, 10), *b = submit(e, &quick, 0);
    int32_t codes[CODES];
    for (int i = 0; i < CODES; i++)
        codes[i] = i;
    cs_generator_request_push(a, CODES, codes, true);
    cs_generator_request_push(b, CODES, codes, true);
    await(&quick, 0);
    await(&slow, 10);
    check_samples(&quick, 0, CODES);
    g_mutex_lock(&slow.lock);
    g_assert_cmpuint(slow.samples->len, ==, 10);
    g_assert_false(slow.done);
    g_mutex_unlock(&slow.lock);
    cs_generator_request_allow(a, 33);
    await(&slow, 43);
    cs_generator_request_allow(a, CODES * PER_CODE - 43); /* exactly the rest */
    await(&slow, 0);
    check_samples(&slow, 0, CODES);
    cs_generator_request_release(a);
    cs_generator_request_release(b);
    listener_clear(&slow);
    listener_clear(&quick);
    cs_generator_engine_free(e);
}

static void expect(listener *l, int code)
{
    await(l, 0);
    g_assert_error(l->error, CS_ERROR, code);
    listener_clear(l);
}

static void test_endings(void)
{
    fake f = make_fake();
    cs_generator_engine *e = start(&f, 0);
    listener cancelled, refused, late, failed, stopped, empty;
    static const int32_t bad[] = {1, BAD_CODE}, fatal[] = {1, FATAL_CODE}, good[] = {5};

    cs_generator_request *r = submit(e, &cancelled, 0);
    cs_generator_request_push(r, 1, good, false);
    cs_generator_request_cancel(r);
    expect(&cancelled, CS_ERROR_CANCELLED);
    cs_generator_request_push(r, 1, good, true); /* without effect */
    cs_generator_request_release(r);

    r = submit(e, &refused, 0);
    cs_generator_request_push(r, 2, bad, true);
    expect(&refused, CS_ERROR_INVALID);
    cs_generator_request_release(r);

    r = submit(e, &late, 1); /* one sample of credit: it cannot be done when the next codes come */
    cs_generator_request_push(r, 1, good, true);
    cs_generator_request_push(r, 1, good, true);
    expect(&late, CS_ERROR_INVALID);
    cs_generator_request_release(r);

    r = submit(e, &failed, 0);
    cs_generator_request_push(r, 2, fatal, true);
    expect(&failed, CS_ERROR_FAILED);
    cs_generator_request_release(r);

    r = submit(e, &empty, 0);
    cs_generator_request_push(r, 0, NULL, true);
    await(&empty, 0);
    check_samples(&empty, 0, 0);
    listener_clear(&empty);
    cs_generator_request_release(r);

    cs_generator_request *left = submit(e, &stopped, 0);
    cs_generator_request_push(left, 1, good, false);
    cs_generator_engine_free(e);
    expect(&stopped, CS_ERROR_CANCELLED);
    cs_generator_request_cancel(left); /* the handle outlives the engine */
    cs_generator_request_release(left);
    g_assert_cmpint(f.freed, ==, 1);
}

static void test_refused(void)
{
    fake f = make_fake();
    cs_generator_engine *e = start(&f, 1);
    g_autoptr(GError) error = NULL;
    listener l;
    g_assert_null(cs_generator_engine_submit(e, &(cs_generator_request_options){.voice = "b"},
                                             &sink, &l, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_NOT_FOUND);
    g_clear_error(&error);
    cs_generator_request *r = submit(e, &l, 0);
    g_assert_null(cs_generator_engine_submit(e, &(cs_generator_request_options){.voice = "a"},
                                             &sink, &l, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_BUSY);
    cs_generator_request_cancel(r);
    expect(&l, CS_ERROR_CANCELLED);
    cs_generator_request_release(r);
    cs_generator_engine_free(e);
}

static void allow_steps(fake *f, int n)
{
    for (int i = 0; i < n; i++)
        g_async_queue_push(f->leave, f);
}

/* One stream a step: who has waited longest for his first sound, then who runs out first. The
 * engine has chosen a step when it waits for leave. */
static void test_order(void)
{
    enum { N = 4, N_CODES = 3, LATE = 3 };
    fake f = make_fake();
    f.leave = g_async_queue_new();
    f.order = g_string_new(NULL);
    f.generator.full_batch = 1;
    f.generator.sample_rate = PER_CODE;
    cs_generator_engine *e = start(&f, 0);
    listener l[N];
    cs_generator_request *r[N];
    for (int i = 0; i < N; i++) {
        int32_t codes[N_CODES] = {'a' + i, 'a' + i, 'a' + i};
        for (int heard = 0; i == LATE && heard < LATE; heard++) {
            allow_steps(&f, 1);
            await(&l[heard], PER_CODE);
        }
        r[i] = submit(e, &l[i], 0);
        cs_generator_request_push(r[i], N_CODES, codes, true);
    }
    allow_steps(&f, N * N_CODES);
    for (int i = 0; i < N; i++) {
        await(&l[i], 0);
        g_assert_no_error(l[i].error);
        cs_generator_request_release(r[i]);
        listener_clear(&l[i]);
    }
    cs_generator_engine_free(e);
    g_assert_true(g_str_has_prefix(f.order->str, "abcd") ||
                  g_str_has_prefix(f.order->str, "abcad"));
    g_assert_true(g_str_has_suffix(f.order->str, "abcd"));
    g_string_free(f.order, TRUE);
    g_async_queue_unref(f.leave);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/engine/generator/streams", test_streams);
    g_test_add_func("/engine/generator/begun_again", test_begun_again);
    g_test_add_func("/engine/generator/credit", test_credit);
    g_test_add_func("/engine/generator/endings", test_endings);
    g_test_add_func("/engine/generator/refused", test_refused);
    g_test_add_func("/engine/generator/order", test_order);
    return g_test_run();
}
