#include "engine/llm_internal.h"

#include "base/error.h"
#include "base/os.h"

#include <string.h>

/* ---- Messages ---- */

static void accept_request(cs_llm_engine *engine, cs_llm_request *request)
{
    llm_request_ref(request);
    request->arrival = engine->n_arrivals++;
    request->next = engine->requests;
    if (request->next)
        request->next->previous = request;
    engine->requests = request;
    engine->stats.prompt_tokens += request->n_prompt;
    llm_sequence *first = &request->sequences[0];
    llm_schedule_wait(engine, first);
    if (first->n_generated == request->max_tokens)
        llm_finish_sequence(engine, first, CS_LLM_FINISH_LENGTH);
}

static void accept_rows(cs_llm_engine *engine, const llm_message *message)
{
    g_autoptr(GError) error = NULL;
    if (message->request->done)
        return;
    if (!llm_request_add_rows(message->request, message->item, message->rows, message->last,
                              llm_input_size(engine), &error)) {
        g_prefix_error(&error, "%s: ", engine->name);
        llm_end_request(engine, message->request, error);
    }
}

static void accept_kv(cs_llm_engine *engine, const llm_message *message)
{
    g_autoptr(GError) error = NULL;
    if (message->request->done || llm_kv_add(engine, message->request, message->rows, &error))
        return;
    g_prefix_error(&error, "%s: ", engine->name);
    llm_end_request(engine, message->request, error);
}

static void cancel(cs_llm_engine *engine, cs_llm_request *request)
{
    g_autoptr(GError) error = NULL;
    cs_fail(&error, CS_ERROR_CANCELLED, "%s: the request was cancelled", engine->name);
    llm_end_request(engine, request, error);
}

static void handle(cs_llm_engine *engine, const llm_message *message)
{
    switch (message->kind) {
    case MESSAGE_SUBMIT:
        accept_request(engine, message->request);
        break;
    case MESSAGE_ROWS:
        accept_rows(engine, message);
        break;
    case MESSAGE_KV:
        accept_kv(engine, message);
        break;
    case MESSAGE_HOLD:
        message->request->held = message->hold;
        break;
    case MESSAGE_FAIL:
        llm_end_request(engine, message->request, message->error);
        break;
    case MESSAGE_CANCEL:
        cancel(engine, message->request);
        break;
    }
}

/* False when the engine is to end. */
static bool receive(cs_llm_engine *engine, bool wait)
{
    bool closed;
    llm_message *messages = llm_inbox_take(engine->inbox, wait, &closed);
    while (messages) {
        llm_message *message = messages;
        messages = message->next;
        handle(engine, message);
        llm_message_free(message);
    }
    return !closed;
}

/* ---- The loop ---- */

static void free_ended(cs_llm_engine *engine)
{
    while (engine->ended) {
        cs_llm_request *request = engine->ended;
        engine->ended = request->next;
        llm_request_unref(request);
    }
}

void llm_publish_stats(cs_llm_engine *engine)
{
    cs_llm_engine_stats *stats = &engine->stats;
    uint32_t held = cs_kv_cache_total(engine->kv) - cs_kv_cache_available(engine->kv);
    stats->running = engine->n_running;
    stats->waiting = engine->n_waiting;
    stats->kv_blocks_used = held;
    stats->kv_blocks_cached = cs_kv_cache_cached(engine->kv);
    stats->kv_blocks_total = cs_kv_cache_total(engine->kv);
    pthread_mutex_lock(&engine->published_lock);
    engine->published = *stats;
    pthread_mutex_unlock(&engine->published_lock);
}

static void end_turn(cs_llm_engine *engine)
{
    free_ended(engine);
    llm_publish_stats(engine);
    if (engine->called_sinks && engine->options.on_step)
        engine->options.on_step(engine->options.on_step_user);
    engine->called_sinks = false;
}

static void *engine_main(void *data)
{
    cs_llm_engine *engine = data;
    bool idle = true;
    while (receive(engine, idle)) {
        int64_t start = cs_now_us();
        llm_schedule(engine);
        idle = engine->batch.n_rows == 0 && engine->n_imports == 0;
        if (!idle) {
            llm_step(engine);
            uint64_t took_us = (uint64_t)(cs_now_us() - start);
            engine->stats.step_time_us += took_us;
            engine->stats.max_step_time_us = MAX(engine->stats.max_step_time_us, took_us);
        }
        end_turn(engine);
    }
    while (engine->requests)
        cancel(engine, engine->requests);
    end_turn(engine);
    return NULL;
}

/* ---- Life ---- */

static void set_options(cs_llm_engine *engine, const cs_llm_engine_options *options)
{
    cs_llm_engine_options *o = &engine->options;
    *o = *options;
    engine->name = g_strdup(options->name ? options->name : "llm");
    o->name = engine->name;
    if (o->max_sequences == 0)
        o->max_sequences = 64;
    if (o->max_step_tokens == 0)
        o->max_step_tokens = 512;
    o->max_step_tokens = MAX(o->max_step_tokens, o->max_sequences);
    if (o->max_context_tokens == 0 || o->max_context_tokens > engine->llm->max_context_tokens)
        o->max_context_tokens = engine->llm->max_context_tokens;
    if (o->max_queued_requests == 0)
        o->max_queued_requests = 1024;
    if (o->mixed_step_target_us == 0)
        o->mixed_step_target_us = 150000;
    engine->mixed_chunk_rows =
        o->mixed_step_target_us == UINT32_MAX ? o->max_step_tokens : CS_LLM_BLOCK_TOKENS;
}

static bool allocate_step(cs_llm_engine *engine)
{
    const size_t rows = engine->options.max_step_tokens, n = engine->options.max_sequences;
    const cs_llm *llm = engine->llm;
    engine->token_ids = g_try_malloc_n(rows, sizeof *engine->token_ids);
    engine->positions = g_try_malloc_n(rows, sizeof *engine->positions);
    engine->spans = g_try_malloc_n(rows, sizeof *engine->spans);
    engine->sequences = g_try_malloc_n(n, sizeof *engine->sequences);
    engine->logit_rows = g_try_malloc_n(n, sizeof *engine->logit_rows);
    engine->in_step = g_try_malloc_n(n, sizeof *engine->in_step);
    engine->copies = g_try_malloc_n(n, sizeof *engine->copies);
    engine->imports = g_try_malloc_n(n, sizeof *engine->imports);
    engine->running = g_try_malloc_n(n, sizeof *engine->running);
    if (llm->ops->read_block)
        engine->kv_block = g_try_malloc(llm->kv_block_bytes);
    engine->logits = g_try_malloc_n(n * llm->vocab_size, sizeof(float));
    if (engine->options.hidden_states)
        engine->hidden = g_try_malloc_n(rows * llm->hidden_size, sizeof(float));
    engine->sampler = cs_sampler_new(llm->vocab_size);
    return engine->token_ids && engine->positions && engine->spans && engine->sequences &&
           engine->logit_rows && engine->in_step && engine->copies && engine->imports &&
           engine->running && (engine->kv_block || !llm->ops->read_block) && engine->logits &&
           (engine->hidden || !engine->options.hidden_states) && engine->sampler;
}

/* Blocks are numbered by int32_t, rows of a sequence by uint32_t. */
#define MAX_KV_BLOCKS (1u << 26)

static bool reserve_kv(cs_llm_engine *engine, GError **error)
{
    const cs_llm_engine_options *o = &engine->options;
    cs_llm *llm = engine->llm;
    size_t n_blocks = o->kv_budget_bytes / llm->kv_block_bytes;
    if (n_blocks == 0)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: KV budget of %zu bytes, expected at least one block of %zu",
                       engine->name, o->kv_budget_bytes, llm->kv_block_bytes);
    n_blocks = MIN(n_blocks, MAX_KV_BLOCKS);
    engine->capacity_tokens = (uint32_t)MIN(o->max_context_tokens, n_blocks * CS_LLM_BLOCK_TOKENS);
    engine->kv = cs_kv_cache_new((uint32_t)n_blocks, !o->no_prefix_cache, error);
    return engine->kv && llm->ops->reserve(llm, (uint32_t)n_blocks, o->max_step_tokens,
                                           o->max_sequences, o->max_sequences, error);
}

static bool start_engine(cs_llm_engine *engine, GError **error)
{
    if (!reserve_kv(engine, error))
        return false;
    if (!allocate_step(engine))
        return cs_fail(error, CS_ERROR_FAILED,
                       "%s: no memory for steps of %u rows and %u sequences", engine->name,
                       engine->options.max_step_tokens, engine->options.max_sequences);
    llm_publish_stats(engine);
    engine->thread = g_thread_try_new(engine->name, engine_main, engine, error);
    return engine->thread != NULL;
}

cs_llm_engine *cs_llm_engine_new(cs_llm *llm, const cs_llm_engine_options *options, GError **error)
{
    cs_llm_engine *engine = g_new0(cs_llm_engine, 1);
    engine->llm = llm;
    pthread_mutex_init(&engine->published_lock, NULL);
    set_options(engine, options);
    engine->inbox = llm_inbox_new(engine->options.max_queued_requests);
    if (!start_engine(engine, error)) {
        cs_llm_engine_free(engine);
        return NULL;
    }
    return engine;
}

static void free_step(cs_llm_engine *engine)
{
    g_free(engine->token_ids);
    g_free(engine->positions);
    g_free(engine->spans);
    g_free(engine->sequences);
    g_free(engine->logit_rows);
    g_free(engine->in_step);
    g_free(engine->copies);
    g_free(engine->imports);
    g_free(engine->kv_block);
    g_free(engine->running);
    g_free(engine->logits);
    g_free(engine->hidden);
    cs_sampler_free(engine->sampler);
}

void cs_llm_engine_free(cs_llm_engine *engine)
{
    if (!engine)
        return;
    llm_inbox_close(engine->inbox);
    if (engine->thread)
        g_thread_join(engine->thread);
    llm_inbox_unref(engine->inbox);
    free_step(engine);
    cs_kv_cache_free(engine->kv);
    engine->llm->ops->free(engine->llm);
    pthread_mutex_destroy(&engine->published_lock);
    g_free(engine->name);
    g_free(engine);
}

/* ---- Calls from any thread ---- */

cs_llm_request *cs_llm_engine_submit(cs_llm_engine *engine, const cs_llm_request_options *options,
                                     const cs_llm_sink *sink, void *user, GError **error)
{
    cs_llm_request *request = llm_request_new(engine, options, sink, user, error);
    if (!request)
        return NULL;
    llm_request_ref(request);
    if (llm_inbox_post(engine->inbox, (llm_message){.kind = MESSAGE_SUBMIT, .request = request}))
        return request;
    llm_request_unref(request);
    cs_fail(error, CS_ERROR_BUSY, "%s: %u requests are in work already", engine->name,
            engine->options.max_queued_requests);
    return NULL;
}

static void post(cs_llm_request *request, llm_message message)
{
    message.request = llm_request_ref(request);
    llm_inbox_post(request->inbox, message);
}

void cs_llm_request_provide(cs_llm_request *request, uint32_t item, cs_shared_tensor *rows,
                            bool last)
{
    post(request, (llm_message){.kind = MESSAGE_ROWS,
                                .item = item,
                                .rows = rows ? cs_shared_tensor_ref(rows) : NULL,
                                .last = last});
}

void cs_llm_request_provide_kv(cs_llm_request *request, cs_shared_tensor *blocks)
{
    post(request, (llm_message){.kind = MESSAGE_KV, .rows = cs_shared_tensor_ref(blocks)});
}

void cs_llm_request_hold(cs_llm_request *request, bool hold)
{
    post(request, (llm_message){.kind = MESSAGE_HOLD, .hold = hold});
}

void cs_llm_request_fail(cs_llm_request *request, const GError *error)
{
    post(request, (llm_message){.kind = MESSAGE_FAIL, .error = g_error_copy(error)});
}

void cs_llm_request_cancel(cs_llm_request *request)
{
    post(request, (llm_message){.kind = MESSAGE_CANCEL});
}

void cs_llm_request_release(cs_llm_request *request)
{
    llm_request_unref(request);
}

void cs_llm_engine_stats_get(cs_llm_engine *engine, cs_llm_engine_stats *stats)
{
    pthread_mutex_lock(&engine->published_lock);
    *stats = engine->published;
    pthread_mutex_unlock(&engine->published_lock);
    stats->requests = llm_inbox_requests(engine->inbox);
}

uint32_t cs_llm_engine_max_tokens(const cs_llm_engine *engine)
{
    return engine->capacity_tokens;
}
