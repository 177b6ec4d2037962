#include "engine/generator_engine.h"

#include "base/error.h"
#include "base/os.h"

#include <string.h>

enum {
    MAX_PENDING = 1 << 16, /* codes pushed and not taken: the component's own limit is far below */
    READ_SAMPLES = 4096,   /* of one on_samples */
};

/* What requests share with the engine and outlives it while handles do. */
typedef struct {
    gint refs;
    GMutex lock;
    GCond wake;
} hub;

struct cs_generator_request {
    gint refs; /* the handle's and, until it is done, the engine's */
    hub *hub;
    cs_generator_sink sink;
    void *user;
    /* Under the hub's lock. */
    GArray *pending; /* int32_t */
    bool last;
    bool closed; /* last was handed to the component */
    uint64_t credit;
    GError *ending; /* why it ends before its time */
    bool done;
    /* The engine thread's. */
    cs_generation *generation;
    int64_t due_us; /* when the listener runs out of sound, or asked, if he has heard none */
};

struct cs_generator_engine {
    cs_generator *generator;
    char *name;
    cs_turn *turn;
    uint32_t max_requests, max_batch;
    hub *hub;
    GThread *thread;
    /* Under the hub's lock. */
    GPtrArray *requests; /* references, in order of arrival */
    bool stopping;
    cs_generator_engine_stats stats;
};

static hub *hub_ref(hub *h)
{
    g_atomic_int_inc(&h->refs);
    return h;
}

static void hub_unref(hub *h)
{
    if (!g_atomic_int_dec_and_test(&h->refs))
        return;
    g_mutex_clear(&h->lock);
    g_cond_clear(&h->wake);
    g_free(h);
}

static void request_unref(void *data)
{
    cs_generator_request *r = data;
    if (!g_atomic_int_dec_and_test(&r->refs))
        return;
    g_array_unref(r->pending);
    g_clear_error(&r->ending);
    hub_unref(r->hub);
    g_free(r);
}

/* ---- From any thread ---- */

cs_generator_request *cs_generator_engine_submit(cs_generator_engine *engine,
                                                 const cs_generator_request_options *options,
                                                 const cs_generator_sink *sink, void *user,
                                                 GError **error)
{
    cs_generation *generation = engine->generator->ops->open(
        engine->generator, options->voice, options->seed, options->first_sample, error);
    if (!generation)
        return NULL;
    cs_generator_request *r = g_new0(cs_generator_request, 1);
    r->refs = 2;
    r->hub = hub_ref(engine->hub);
    r->sink = *sink;
    r->user = user;
    r->pending = g_array_new(FALSE, FALSE, sizeof(int32_t));
    r->credit = !options->credit_samples ? UINT64_MAX
                : options->credit_samples > options->first_sample
                    ? options->credit_samples - options->first_sample
                    : 0;
    r->generation = generation;
    r->due_us = cs_now_us();
    g_mutex_lock(&r->hub->lock);
    bool accepted = engine->requests->len < engine->max_requests;
    if (accepted)
        g_ptr_array_add(engine->requests, r);
    g_mutex_unlock(&r->hub->lock);
    if (accepted)
        return r;
    cs_fail(error, CS_ERROR_BUSY, "%s: %u requests are being spoken", engine->name,
            engine->max_requests);
    engine->generator->ops->close(generation);
    request_unref(r);
    request_unref(r);
    return NULL;
}

static void wake(cs_generator_request *r)
{
    g_cond_signal(&r->hub->wake);
    g_mutex_unlock(&r->hub->lock);
}

void cs_generator_request_push(cs_generator_request *r, uint32_t n, const int32_t *codes, bool last)
{
    g_mutex_lock(&r->hub->lock);
    if (!r->done && !r->ending) {
        if (r->last)
            cs_fail(&r->ending, CS_ERROR_INVALID, "speech: codes after the last one");
        else if (n > MAX_PENDING - r->pending->len)
            cs_fail(&r->ending, CS_ERROR_TOO_LARGE, "speech: more than %d codes wait", MAX_PENDING);
        else if (n > 0)
            g_array_append_vals(r->pending, codes, n);
        r->last = r->last || last;
    }
    wake(r);
}

void cs_generator_request_allow(cs_generator_request *r, uint64_t n_samples)
{
    g_mutex_lock(&r->hub->lock);
    r->credit = r->credit > UINT64_MAX - n_samples ? UINT64_MAX : r->credit + n_samples;
    wake(r);
}

void cs_generator_request_fail(cs_generator_request *r, const GError *error)
{
    g_mutex_lock(&r->hub->lock);
    if (!r->done && !r->ending)
        r->ending = g_error_copy(error);
    wake(r);
}

void cs_generator_request_cancel(cs_generator_request *r)
{
    g_autoptr(GError) cancelled = NULL;
    cs_fail(&cancelled, CS_ERROR_CANCELLED, "speech: cancelled");
    cs_generator_request_fail(r, cancelled);
}

void cs_generator_request_release(cs_generator_request *r)
{
    request_unref(r);
}

void cs_generator_engine_stats_get(cs_generator_engine *engine, cs_generator_engine_stats *stats)
{
    g_mutex_lock(&engine->hub->lock);
    *stats = engine->stats;
    stats->requests = engine->requests->len;
    g_mutex_unlock(&engine->hub->lock);
}

/* ---- The engine's thread; the lock is held unless said otherwise ---- */

/* Hands codes that have come to the component. A refusal ends the request. */
static void take_codes(const cs_generator_engine *e, cs_generator_request *r)
{
    if (r->ending || r->closed || (r->pending->len == 0 && !r->last))
        return;
    if (e->generator->ops->push(r->generation, r->pending->len,
                                (const int32_t *)(void *)r->pending->data, r->last, &r->ending))
        r->closed = r->last;
    g_array_set_size(r->pending, 0);
}

static int64_t duration_us(const cs_generator_engine *e, uint32_t n_samples)
{
    return (int64_t)n_samples * G_USEC_PER_SEC / MAX(e->generator->sample_rate, 1);
}

/* When more has to be made: what waits for credit is made. */
static int64_t due_us(const cs_generator_engine *e, const cs_generator_request *r)
{
    return r->due_us + duration_us(e, e->generator->ops->unread(r->generation));
}

static gint compare_dates(gconstpointer a, gconstpointer b, gpointer engine)
{
    int64_t x = due_us(engine, *(cs_generator_request *const *)a);
    int64_t y = due_us(engine, *(cs_generator_request *const *)b);
    return (x > y) - (x < y);
}

/* The ready requests with the first dates, at most a full batch, with references. */
static GPtrArray *choose(cs_generator_engine *e)
{
    GPtrArray *batch = g_ptr_array_new_with_free_func(request_unref);
    for (guint i = 0; i < e->requests->len; i++) {
        cs_generator_request *r = g_ptr_array_index(e->requests, i);
        if (r->ending || !e->generator->ops->ready(r->generation))
            continue;
        g_atomic_int_inc(&r->refs);
        g_ptr_array_add(batch, r);
    }
    g_ptr_array_sort_with_data(batch, compare_dates, e);
    g_ptr_array_set_size(batch, (gint)MIN(batch->len, e->max_batch));
    return batch;
}

/* One step of the batch. Unlocks for it. A failed step ends all of its requests: each is safe to be
 * spoken again elsewhere. */
static void step(cs_generator_engine *e, GPtrArray *batch)
{
    g_autofree cs_generation **generations = g_new(cs_generation *, batch->len);
    for (guint i = 0; i < batch->len; i++)
        generations[i] = ((cs_generator_request *)g_ptr_array_index(batch, i))->generation;
    int64_t due = due_us(e, g_ptr_array_index(batch, 0));
    g_autoptr(GError) error = NULL;
    g_mutex_unlock(&e->hub->lock);
    cs_turn_take(e->turn, due);
    int64_t start = cs_now_us();
    bool ok = e->generator->ops->step(e->generator, batch->len, generations, &error);
    int64_t took = cs_now_us() - start;
    cs_turn_give(e->turn);
    g_mutex_lock(&e->hub->lock);
    e->stats.steps++;
    e->stats.step_streams += batch->len;
    e->stats.step_time_us += (uint64_t)took;
    for (guint i = 0; i < batch->len && !ok; i++) {
        cs_generator_request *r = g_ptr_array_index(batch, i);
        if (!r->ending)
            r->ending = g_error_copy(error);
    }
}

/* Hands out what the credit allows. Unlocks for the sink's calls. */
static uint64_t hand_out(cs_generator_engine *e, cs_generator_request *r)
{
    float samples[READ_SAMPLES];
    uint64_t total = 0;
    while (!r->ending && r->credit > 0) {
        uint32_t n = e->generator->ops->read(
            r->generation, (uint32_t)MIN(r->credit, (uint64_t)READ_SAMPLES), samples);
        if (n == 0)
            break;
        if (r->credit != UINT64_MAX)
            r->credit -= n;
        /* He who had run out before hears these from now on. */
        r->due_us = MAX(r->due_us, cs_now_us()) + duration_us(e, n);
        total += n;
        e->stats.samples += n;
        g_mutex_unlock(&e->hub->lock);
        r->sink.on_samples(r->user, n, samples);
        g_mutex_lock(&e->hub->lock);
    }
    return total;
}

/* Unlocks for the sink's call. Takes the list's reference. */
static void end(cs_generator_engine *e, cs_generator_request *r)
{
    g_autoptr(GError) error = g_steal_pointer(&r->ending);
    r->done = true;
    g_array_set_size(r->pending, 0);
    g_ptr_array_remove(e->requests, r);
    *(!error                                                 ? &e->stats.requests_finished
      : g_error_matches(error, CS_ERROR, CS_ERROR_CANCELLED) ? &e->stats.requests_cancelled
                                                             : &e->stats.requests_failed) += 1;
    g_mutex_unlock(&e->hub->lock);
    e->generator->ops->close(r->generation);
    r->generation = NULL;
    r->sink.on_done(r->user, error);
    request_unref(r);
    g_mutex_lock(&e->hub->lock);
}

/* Samples are out and nothing is to come. */
static bool is_over(const cs_generator_engine *e, const cs_generator_request *r)
{
    return r->closed && e->generator->ops->finished(r->generation) &&
           e->generator->ops->unread(r->generation) == 0;
}

static bool settle(cs_generator_engine *e)
{
    bool progress = false;
    for (guint i = 0; i < e->requests->len;) {
        cs_generator_request *r = g_ptr_array_index(e->requests, i);
        take_codes(e, r);
        progress |= hand_out(e, r) > 0;
        if (r->ending || is_over(e, r)) {
            end(e, r);
            progress = true;
        } else {
            i++;
        }
    }
    return progress;
}

static void *run(void *data)
{
    cs_generator_engine *e = data;
    g_mutex_lock(&e->hub->lock);
    for (;;) {
        for (guint i = 0; e->stopping && i < e->requests->len; i++) {
            cs_generator_request *r = g_ptr_array_index(e->requests, i);
            if (!r->ending)
                cs_fail(&r->ending, CS_ERROR_CANCELLED, "%s: is being stopped", e->name);
        }
        bool progress = settle(e);
        g_autoptr(GPtrArray) batch = choose(e);
        if (batch->len > 0)
            step(e, batch);
        else if (e->stopping && e->requests->len == 0)
            break;
        else if (!progress)
            g_cond_wait(&e->hub->wake, &e->hub->lock);
    }
    g_mutex_unlock(&e->hub->lock);
    return NULL;
}

/* ---- Life ---- */

cs_generator_engine *cs_generator_engine_new(cs_generator *generator,
                                             const cs_generator_engine_options *options,
                                             GError **error)
{
    cs_generator_engine *e = g_new0(cs_generator_engine, 1);
    e->generator = generator;
    e->name = g_strdup(options->name ? options->name : "generator");
    e->turn = options->turn;
    e->max_batch = generator->full_batch ? generator->full_batch : generator->max_batch;
    if (options->max_batch)
        e->max_batch = MIN(e->max_batch, options->max_batch);
    e->max_requests = options->max_requests ? options->max_requests : 256;
    e->requests = g_ptr_array_new();
    e->hub = g_new0(hub, 1);
    e->hub->refs = 1;
    g_mutex_init(&e->hub->lock);
    g_cond_init(&e->hub->wake);
    e->thread = g_thread_try_new(e->name, run, e, error);
    if (!e->thread)
        g_clear_pointer(&e, cs_generator_engine_free);
    return e;
}

void cs_generator_engine_free(cs_generator_engine *engine)
{
    if (!engine)
        return;
    if (engine->thread) {
        g_mutex_lock(&engine->hub->lock);
        engine->stopping = true;
        g_cond_signal(&engine->hub->wake);
        g_mutex_unlock(&engine->hub->lock);
        g_thread_join(engine->thread);
    }
    engine->generator->ops->free(engine->generator);
    g_ptr_array_unref(engine->requests);
    hub_unref(engine->hub);
    g_free(engine->name);
    g_free(engine);
}
