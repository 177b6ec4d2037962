#include "engine/encoder_engine.h"

#include "base/error.h"
#include "base/os.h"
#include "engine/encoder_cache.h"

#include <pthread.h>

struct cs_encoder_job {
    gint refs; /* the handle's and the engine's */
    cs_encoder_engine *engine;
    cs_encoder_job_options options;
    cs_encoder_input input;
    uint32_t cost;
    uint64_t arrival;
    gint cancelled;
    cs_encoder_job *same;    /* the next of equal content in the batch */
    cs_shared_tensor *found; /* in the cache, while it waited for the device */
    GList link;              /* in `queued` or `ready` */
};

/* Handles of jobs keep the structure, not the component or the threads. */
struct cs_encoder_engine {
    gint refs;
    char *name;
    cs_encoder_engine_options options; /* zeros replaced by what they stand for */
    cs_encoder *encoder;
    GThread *thread;
    GThread **workers;

    pthread_mutex_t lock; /* all below */
    pthread_cond_t has_queued, has_ready;
    GQueue queued; /* for the workers, oldest first */
    GQueue ready;  /* for the device, oldest first */
    uint64_t n_arrivals;
    uint32_t n_jobs;
    bool closed;
    cs_encoder_cache *cache; /* NULL: none */
    cs_encoder_engine_stats stats;

    /* The engine thread's, of the batch being made. */
    GPtrArray *batch; /* cs_encoder_job, without those of equal content */
    cs_encoder_item *items;
    cs_shared_tensor **outputs;
    uint32_t batch_capacity;
    guint first_computed, n_computed; /* of the batch, in the component now */
    int64_t yielded_us;               /* of that, others had the device */
};

/* ---- Lives ---- */

static void engine_unref(cs_encoder_engine *engine)
{
    if (!g_atomic_int_dec_and_test(&engine->refs))
        return;
    pthread_cond_destroy(&engine->has_queued);
    pthread_cond_destroy(&engine->has_ready);
    pthread_mutex_destroy(&engine->lock);
    g_free(engine->name);
    g_free(engine);
}

static void job_unref(cs_encoder_job *job)
{
    if (!g_atomic_int_dec_and_test(&job->refs))
        return;
    engine_unref(job->engine);
    g_free(job);
}

static void count_end(cs_encoder_engine *engine, const GError *error)
{
    cs_encoder_engine_stats *stats = &engine->stats;
    pthread_mutex_lock(&engine->lock);
    engine->n_jobs--;
    if (!error)
        stats->items_done++;
    else if (g_error_matches(error, CS_ERROR, CS_ERROR_CANCELLED))
        stats->items_cancelled++;
    else
        stats->items_failed++;
    pthread_mutex_unlock(&engine->lock);
}

/* Not under the lock. */
static void end_job(cs_encoder_job *job, cs_shared_tensor *output, const GError *error)
{
    g_autoptr(GError) cancelled = NULL;
    if (g_atomic_int_get(&job->cancelled)) {
        cs_fail(&cancelled, CS_ERROR_CANCELLED, "%s: the item was cancelled", job->engine->name);
        error = cancelled;
    }
    count_end(job->engine, error);
    job->options.on_done(job->options.user, error ? NULL : output, error);
    if (job->options.free_user)
        job->options.free_user(job->options.user);
    job_unref(job);
}

/* ---- Workers: prepare, look into the cache, hand to the device ---- */

static bool has_hash(const cs_encoder_job *job)
{
    return job->input.content_hash[0] != 0 || job->input.content_hash[1] != 0;
}

static bool check_input(const cs_encoder_engine *engine, const cs_encoder_input *input,
                        GError **error)
{
    if (engine->encoder->ops->output_tokens(engine->encoder, &input->item) > 0)
        return true;
    return cs_fail(error, CS_ERROR_INVALID,
                   "%s: an item of [%" G_GINT64_FORMAT ", %" G_GINT64_FORMAT
                   "] and grid %d, %d, %d is none this encoder takes",
                   engine->name, input->item.input.rows, input->item.input.cols,
                   input->item.grid[0], input->item.grid[1], input->item.grid[2]);
}

static bool prepare_job(cs_encoder_job *job, GError **error)
{
    if (!job->options.prepare)
        return true;
    return job->options.prepare(job->options.user, &job->input, error) &&
           check_input(job->engine, &job->input, error);
}

static void insert_by_arrival(GQueue *queue, cs_encoder_job *job)
{
    GList *after = queue->tail;
    while (after && ((cs_encoder_job *)after->data)->arrival > job->arrival)
        after = after->prev;
    if (after)
        g_queue_insert_after_link(queue, after, &job->link);
    else
        g_queue_push_head_link(queue, &job->link);
}

/* The cached output, or NULL when the job now waits for the device. */
static cs_shared_tensor *find_or_queue(cs_encoder_engine *engine, cs_encoder_job *job)
{
    cs_shared_tensor *output = NULL;
    job->cost = engine->encoder->ops->cost_tokens(engine->encoder, &job->input.item);
    pthread_mutex_lock(&engine->lock);
    engine->stats.preparing--;
    if (engine->cache && has_hash(job))
        output = cs_encoder_cache_find(engine->cache, job->input.content_hash);
    if (output) {
        engine->stats.cache_hits++;
    } else {
        insert_by_arrival(&engine->ready, job);
        pthread_cond_signal(&engine->has_ready);
    }
    pthread_mutex_unlock(&engine->lock);
    return output;
}

static void work_on(cs_encoder_engine *engine, cs_encoder_job *job)
{
    g_autoptr(GError) error = NULL;
    if (g_atomic_int_get(&job->cancelled) || !prepare_job(job, &error)) {
        pthread_mutex_lock(&engine->lock);
        engine->stats.preparing--;
        pthread_mutex_unlock(&engine->lock);
        end_job(job, NULL, error);
        return;
    }
    g_autoptr(cs_shared_tensor) output = find_or_queue(engine, job);
    if (output)
        end_job(job, output, NULL);
}

static cs_encoder_job *pop_queued(cs_encoder_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    while (!engine->queued.head && !engine->closed)
        pthread_cond_wait(&engine->has_queued, &engine->lock);
    GList *link = g_queue_pop_head_link(&engine->queued);
    pthread_mutex_unlock(&engine->lock);
    return link ? link->data : NULL;
}

/* Returns when the engine is closed and nothing is queued. */
static void *worker_main(void *data)
{
    cs_encoder_engine *engine = data;
    cs_encoder_job *job;
    while ((job = pop_queued(engine)))
        work_on(engine, job);
    return NULL;
}

/* ---- The device's thread ---- */

static cs_encoder_job *equal_in_batch(const cs_encoder_engine *engine, const cs_encoder_job *job)
{
    for (guint i = 0; has_hash(job) && i < engine->batch->len; i++) {
        cs_encoder_job *other = engine->batch->pdata[i];
        if (other->input.content_hash[0] == job->input.content_hash[0] &&
            other->input.content_hash[1] == job->input.content_hash[1])
            return other;
    }
    return NULL;
}

/* Takes jobs that need no computing off the ready ones: cancelled, or cached by now. */
static GList *take_ended(cs_encoder_engine *engine)
{
    GList *ended = NULL;
    for (GList *link = engine->ready.head, *next; link; link = next) {
        cs_encoder_job *job = link->data;
        next = link->next;
        if (engine->cache && has_hash(job))
            job->found = cs_encoder_cache_find(engine->cache, job->input.content_hash);
        if (!job->found && !g_atomic_int_get(&job->cancelled))
            continue;
        engine->stats.cache_hits += job->found != NULL;
        g_queue_unlink(&engine->ready, link);
        ended = g_list_prepend(ended, job);
    }
    return g_list_reverse(ended);
}

/* Oldest first; stops at the first that does not fit any more, or large items would starve. */
static void take_batch(cs_encoder_engine *engine)
{
    uint64_t cost = 0;
    g_ptr_array_set_size(engine->batch, 0);
    while (engine->ready.head) {
        cs_encoder_job *job = engine->ready.head->data;
        cs_encoder_job *equal = equal_in_batch(engine, job);
        bool fits = engine->batch->len == 0 || cost + job->cost <= engine->options.max_batch_cost;
        if (!equal && !fits)
            break;
        g_queue_unlink(&engine->ready, &job->link);
        if (equal) {
            job->same = equal->same;
            equal->same = job;
            engine->stats.cache_hits++;
        } else {
            cost += job->cost;
            g_ptr_array_add(engine->batch, job);
        }
    }
    engine->stats.running = engine->batch->len;
    engine->stats.batch_cost += cost;
}

static bool wanted(const cs_encoder_job *job)
{
    while (job && g_atomic_int_get(&job->cancelled))
        job = job->same;
    return job != NULL;
}

static bool is_closed(cs_encoder_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    bool closed = engine->closed;
    pthread_mutex_unlock(&engine->lock);
    return closed;
}

/* Between layers: who waits for the device has a turn, so that a large item holds up an LLM's steps
 * by a layer at most. */
static bool yield(void *user)
{
    cs_encoder_engine *engine = user;
    int64_t start = cs_now_us();
    cs_turn_give(engine->options.turn);
    cs_turn_take(engine->options.turn, 0);
    engine->yielded_us += cs_now_us() - start;
    if (is_closed(engine))
        return false;
    for (guint i = engine->first_computed; i < engine->first_computed + engine->n_computed; i++)
        if (wanted(engine->batch->pdata[i]))
            return true;
    return false;
}

static bool forward(cs_encoder_engine *engine, guint first, guint n, GError **error)
{
    cs_encoder *encoder = engine->encoder;
    engine->first_computed = first;
    engine->n_computed = n;
    engine->yielded_us = 0;
    cs_turn_take(engine->options.batches, 0);
    cs_turn_take(engine->options.turn, 0);
    int64_t start = cs_now_us();
    bool ok =
        encoder->ops->forward(encoder, n, engine->items + first, engine->outputs + first, error);
    int64_t took_us = cs_now_us() - start - engine->yielded_us;
    cs_turn_give(engine->options.turn);
    cs_turn_give(engine->options.batches);
    pthread_mutex_lock(&engine->lock);
    engine->stats.batches++;
    engine->stats.forward_time_us += (uint64_t)took_us;
    pthread_mutex_unlock(&engine->lock);
    return ok;
}

/* Takes the output over. */
static void end_computed(cs_encoder_engine *engine, cs_encoder_job *job, cs_shared_tensor *output,
                         const GError *error)
{
    if (output && engine->cache && has_hash(job)) {
        pthread_mutex_lock(&engine->lock);
        cs_encoder_cache_add(engine->cache, job->input.content_hash, output);
        pthread_mutex_unlock(&engine->lock);
    }
    while (job) {
        cs_encoder_job *next = job->same;
        end_job(job, output, error);
        job = next;
    }
    cs_shared_tensor_unref(output);
}

static void grow_batch(cs_encoder_engine *engine)
{
    if (engine->batch->len <= engine->batch_capacity)
        return;
    engine->batch_capacity = engine->batch->len;
    engine->items = g_renew(cs_encoder_item, engine->items, engine->batch_capacity);
    engine->outputs = g_renew(cs_shared_tensor *, engine->outputs, engine->batch_capacity);
}

/* When a batch fails each of its items is tried alone, so that one bad item ends only itself. */
static void run_batch(cs_encoder_engine *engine)
{
    const guint n = engine->batch->len;
    g_autoptr(GError) batch_error = NULL;
    grow_batch(engine);
    for (guint i = 0; i < n; i++) {
        engine->items[i] = ((cs_encoder_job *)engine->batch->pdata[i])->input.item;
        engine->outputs[i] = NULL;
    }
    bool together = forward(engine, 0, n, &batch_error);
    bool given_up = !together && is_closed(engine);
    for (guint i = 0; i < n; i++) {
        g_autoptr(GError) error = NULL;
        if (given_up)
            cs_fail(&error, CS_ERROR_CANCELLED, "%s: the engine ends", engine->name);
        else if (!together && n == 1)
            error = g_steal_pointer(&batch_error);
        else if (!together && wanted(engine->batch->pdata[i]))
            forward(engine, i, 1, &error);
        end_computed(engine, engine->batch->pdata[i], engine->outputs[i], error);
    }
}

static void end_without_computing(GList *ended)
{
    for (GList *l = ended; l; l = l->next) {
        cs_encoder_job *job = l->data;
        g_autoptr(cs_shared_tensor) output = g_steal_pointer(&job->found);
        end_job(job, output, NULL);
    }
    g_list_free(ended);
}

/* Waits for work; false when the engine is closed. */
static bool next_batch(cs_encoder_engine *engine, GList **ended)
{
    pthread_mutex_lock(&engine->lock);
    engine->stats.running = 0;
    while (!engine->ready.head && !engine->closed)
        pthread_cond_wait(&engine->has_ready, &engine->lock);
    bool open = !engine->closed;
    if (open) {
        *ended = take_ended(engine);
        take_batch(engine);
    }
    pthread_mutex_unlock(&engine->lock);
    return open;
}

static void *engine_main(void *data)
{
    cs_encoder_engine *engine = data;
    GList *ended;
    while (next_batch(engine, &ended)) {
        end_without_computing(ended);
        if (engine->batch->len > 0)
            run_batch(engine);
    }
    return NULL;
}

/* ---- The engine's life ---- */

static void set_options(cs_encoder_engine *engine, const cs_encoder_engine_options *options)
{
    cs_encoder_engine_options *o = &engine->options;
    *o = *options;
    engine->name = g_strdup(options->name ? options->name : "encoder");
    o->name = engine->name;
    if (o->max_batch_cost == 0)
        o->max_batch_cost = 8192;
    if (o->max_queued_items == 0)
        o->max_queued_items = 256;
    if (o->n_workers == 0)
        o->n_workers = 2;
    if (o->cache_bytes > 0)
        engine->cache = cs_encoder_cache_new(o->cache_bytes);
}

static bool start_threads(cs_encoder_engine *engine, GError **error)
{
    engine->workers = g_new0(GThread *, engine->options.n_workers);
    engine->thread = g_thread_try_new(engine->name, engine_main, engine, error);
    if (!engine->thread)
        return false;
    for (uint32_t i = 0; i < engine->options.n_workers; i++) {
        engine->workers[i] = g_thread_try_new(engine->name, worker_main, engine, error);
        if (!engine->workers[i])
            return false;
    }
    return true;
}

cs_encoder_engine *cs_encoder_engine_new(cs_encoder *encoder,
                                         const cs_encoder_engine_options *options, GError **error)
{
    cs_encoder_engine *engine = g_new0(cs_encoder_engine, 1);
    engine->refs = 1;
    engine->encoder = encoder;
    encoder->yield = yield;
    encoder->yield_user = engine;
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->has_queued, NULL);
    pthread_cond_init(&engine->has_ready, NULL);
    g_queue_init(&engine->queued);
    g_queue_init(&engine->ready);
    engine->batch = g_ptr_array_new();
    set_options(engine, options);
    if (!start_threads(engine, error)) {
        cs_encoder_engine_free(engine);
        return NULL;
    }
    return engine;
}

static void cancel_all(GQueue *queue)
{
    for (GList *l = queue->head; l; l = l->next)
        g_atomic_int_set(&((cs_encoder_job *)l->data)->cancelled, 1);
}

static void close_engine(cs_encoder_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->closed = true;
    cancel_all(&engine->queued);
    pthread_cond_broadcast(&engine->has_queued);
    pthread_cond_broadcast(&engine->has_ready);
    pthread_mutex_unlock(&engine->lock);
    for (uint32_t i = 0; i < engine->options.n_workers; i++)
        if (engine->workers[i])
            g_thread_join(engine->workers[i]);
    if (engine->thread)
        g_thread_join(engine->thread);
}

void cs_encoder_engine_free(cs_encoder_engine *engine)
{
    if (!engine)
        return;
    close_engine(engine);
    cancel_all(&engine->ready);
    for (GList *link; (link = g_queue_pop_head_link(&engine->ready));)
        end_job(link->data, NULL, NULL);
    cs_encoder_cache_free(engine->cache);
    g_ptr_array_unref(engine->batch);
    g_free(engine->items);
    g_free(engine->outputs);
    g_free(engine->workers);
    engine->encoder->ops->free(engine->encoder);
    engine_unref(engine);
}

/* ---- Calls from any thread ---- */

static bool enqueue(cs_encoder_engine *engine, cs_encoder_job *job, GError **error)
{
    pthread_mutex_lock(&engine->lock);
    bool full = engine->n_jobs >= engine->options.max_queued_items || engine->closed;
    if (!full) {
        engine->n_jobs++;
        engine->stats.preparing++;
        job->arrival = engine->n_arrivals++;
        g_queue_push_tail_link(&engine->queued, &job->link);
        pthread_cond_signal(&engine->has_queued);
    }
    pthread_mutex_unlock(&engine->lock);
    return !full || cs_fail(error, CS_ERROR_BUSY, "%s: %u items are in work already", engine->name,
                            engine->options.max_queued_items);
}

cs_encoder_job *cs_encoder_engine_submit(cs_encoder_engine *engine,
                                         const cs_encoder_job_options *options, GError **error)
{
    if (!options->prepare && !check_input(engine, &options->input, error))
        return NULL;
    cs_encoder_job *job = g_new0(cs_encoder_job, 1);
    job->refs = 2;
    job->engine = engine;
    g_atomic_int_inc(&engine->refs);
    job->options = *options;
    job->input = options->input;
    job->link.data = job;
    if (enqueue(engine, job, error))
        return job;
    job_unref(job);
    job_unref(job);
    return NULL;
}

void cs_encoder_job_cancel(cs_encoder_job *job)
{
    cs_encoder_engine *engine = job->engine;
    g_atomic_int_set(&job->cancelled, 1);
    pthread_mutex_lock(&engine->lock);
    pthread_cond_signal(&engine->has_ready);
    pthread_mutex_unlock(&engine->lock);
}

void cs_encoder_job_release(cs_encoder_job *job)
{
    job_unref(job);
}

void cs_encoder_engine_stats_get(cs_encoder_engine *engine, cs_encoder_engine_stats *stats)
{
    pthread_mutex_lock(&engine->lock);
    *stats = engine->stats;
    stats->ready = engine->ready.length;
    stats->cache_bytes = engine->cache ? cs_encoder_cache_bytes(engine->cache) : 0;
    pthread_mutex_unlock(&engine->lock);
}
