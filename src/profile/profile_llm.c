/* LLMs, in the engine that serves them: steps of one prompt's rows, and of many sequences that each
 * add a token. The steps are the engine's own, so scheduling, sampling and all it does beside the
 * component are in their times. A talker hears a row with each token and samples as speech does.
 *
 * The contexts behind which tokens are decoded are not computed: they come in as KV blocks, as a
 * prefill executor sends them. */
#include "base/error.h"
#include "base/os.h"
#include "engine/llm_engine.h"
#include "profile/profile_internal.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#define ROOM_TOKENS 256 /* that a sequence may add while it is measured */
#define KV_FRACTION_OF_FREE 0.5
#define DECODE_WARM_UP 3

enum { ITEM_PROMPT, ITEM_REPLY, N_ITEMS }; /* what a talker hears */

typedef struct {
    profile_run *run;
    const cs_speech *speech; /* of a talker; NULL else */
    GArray *bans;            /* cs_token_bias: a talker's, so that its speech does not end */
    cs_shared_tensor *heard; /* zeros [of the longest prompt or context, heard_size] */
    cs_llm_engine *engine;
    cs_llm *llm; /* the engine's */
    size_t kv_block_bytes;
    uint32_t max_context_tokens, step_tokens;
    cs_sampling_params sampling;
    cs_shared_tensor *blocks; /* of zeros, as long as the longest context */
    int32_t *token_ids;       /* [max_context_tokens] */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    cs_llm_engine_stats seen; /* at the end of the step before */
    uint32_t tokens;          /* of this step */
    uint32_t live;            /* requests without on_done */
    uint32_t batch;           /* decode: tokens of a full step; 0: prefill */
    bool was_full;            /* the step before had them all */
    uint32_t peak_blocks;     /* of the KV cache */
    bool quiet;               /* the step in which the last of them ended is over */
    profile_point *point;     /* NULL: nothing is measured now */
    GError *error;
} llm_bench;

/* ---- the engine's thread ---- */

static bool on_token(void *user, const cs_llm_token *token)
{
    llm_bench *b = user;
    pthread_mutex_lock(&b->lock);
    b->tokens++;
    pthread_mutex_unlock(&b->lock);
    return true;
}

static void on_finish(void *user, uint32_t choice, cs_llm_finish reason)
{
}

static void on_done(void *user, const cs_llm_usage *usage, const GError *error)
{
    llm_bench *b = user;
    pthread_mutex_lock(&b->lock);
    b->live--;
    if (error && !g_error_matches(error, CS_ERROR, CS_ERROR_CANCELLED) && !b->error)
        b->error = g_error_copy(error);
    pthread_mutex_unlock(&b->lock);
}

static const cs_llm_sink sink = {.on_token = on_token, .on_finish = on_finish, .on_done = on_done};

/* A decoding step counts when it and the one before had a token of every sequence: no rows of
 * prompts or blocks that come in then. */
static void count_decode(llm_bench *b, const cs_llm_engine_stats *now)
{
    bool full = b->tokens == b->batch && now->steps == b->seen.steps + 1;
    if (full && b->was_full)
        profile_point_add(b->point, (double)(now->step_time_us - b->seen.step_time_us) * 1e-6);
    b->was_full = full;
}

/* The steps of a prompt longer than one count as equal ones. */
static void count_prefill(llm_bench *b, const cs_llm_engine_stats *now)
{
    uint64_t steps = now->steps - b->seen.steps;
    if (steps > 0 && b->tokens > 0)
        profile_point_add(b->point, (double)(now->step_time_us - b->seen.step_time_us) * 1e-6 /
                                        (double)steps);
}

static void on_step(void *user)
{
    llm_bench *b = user;
    cs_llm_engine_stats now;
    cs_llm_engine_stats_get(b->engine, &now);
    pthread_mutex_lock(&b->lock);
    if (b->point && b->batch > 0)
        count_decode(b, &now);
    else if (b->point)
        count_prefill(b, &now);
    b->seen = now;
    b->peak_blocks = MAX(b->peak_blocks, now.kv_blocks_used);
    b->tokens = 0;
    b->quiet = b->live == 0;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

/* ---- the measuring thread ---- */

/* The rows that a talker hears: those of its prompt, and one that goes with all of its tokens. */
static void provide_rows(const llm_bench *b, cs_llm_request *request, uint32_t n_tokens)
{
    const uint32_t n_rows[N_ITEMS] = {[ITEM_PROMPT] = n_tokens, [ITEM_REPLY] = 1};
    for (uint32_t item = 0; item < N_ITEMS; item++) {
        g_autoptr(cs_shared_tensor) rows = cs_shared_tensor_wrap(
            b->heard->t.data, CS_DTYPE_F32, n_rows[item], b->heard->t.cols, NULL, NULL);
        cs_llm_request_provide(request, item, rows, true);
    }
}

static cs_llm_request *submit(llm_bench *b, uint32_t n_tokens, bool decode, GError **error)
{
    const cs_llm_input_span span = {0, n_tokens, ITEM_PROMPT, 0};
    const cs_llm_input_item items[N_ITEMS] = {[ITEM_PROMPT] = {.n_rows = n_tokens}};
    cs_llm_request_options options = {
        .n_tokens = n_tokens,
        .token_ids = b->token_ids,
        .sampling = b->sampling,
        .max_tokens = decode ? ROOM_TOKENS : 1,
    };
    if (b->speech) {
        options.n_spans = 1;
        options.spans = &span;
        options.n_items = N_ITEMS;
        options.items = items;
        options.has_reply_item = true;
        options.reply_item = ITEM_REPLY;
    }
    bool import = decode && b->blocks;
    if (import) {
        options.import_kv = true;
        options.n_generated = 1;
        options.generated = b->token_ids;
    }
    pthread_mutex_lock(&b->lock);
    b->live++;
    b->quiet = false;
    pthread_mutex_unlock(&b->lock);
    cs_llm_request *request = cs_llm_engine_submit(b->engine, &options, &sink, b, error);
    if (!request) {
        pthread_mutex_lock(&b->lock);
        b->quiet = --b->live == 0;
        pthread_mutex_unlock(&b->lock);
        return NULL;
    }
    if (b->speech)
        provide_rows(b, request, n_tokens);
    if (import) {
        cs_shared_tensor *all = b->blocks;
        g_autoptr(cs_shared_tensor) blocks = cs_shared_tensor_wrap(
            all->t.data, CS_DTYPE_U8, n_tokens / CS_LLM_BLOCK_TOKENS, all->t.cols, NULL, NULL);
        cs_llm_request_provide_kv(request, blocks);
    }
    return request;
}

/* Waits for the point, or for the end of all requests and of their last step. */
static void wait(llm_bench *b, bool for_point)
{
    pthread_mutex_lock(&b->lock);
    while (!b->quiet && !(for_point && profile_point_is_done(b->point))) {
        struct timespec soon; /* an interruption signals nobody */
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_sec++;
        pthread_cond_timedwait(&b->changed, &b->lock, &soon);
    }
    pthread_mutex_unlock(&b->lock);
}

static bool take_error(llm_bench *b, GError **error)
{
    pthread_mutex_lock(&b->lock);
    GError *found = g_steal_pointer(&b->error);
    pthread_mutex_unlock(&b->lock);
    if (found)
        g_propagate_error(error, found);
    return !found;
}

static void set_point(llm_bench *b, profile_point *point, uint32_t batch)
{
    pthread_mutex_lock(&b->lock);
    b->point = point;
    b->batch = batch;
    b->was_full = false;
    pthread_mutex_unlock(&b->lock);
}

/* One prompt after another, each alone in its steps. */
static bool time_prompts(llm_bench *b, profile_point *point, uint32_t n_tokens, GError **error)
{
    while (!profile_point_is_done(point)) {
        profile_let_others(b->run);
        set_point(b, point, 0);
        cs_llm_request *request = submit(b, n_tokens, false, error);
        if (!request)
            return false;
        wait(b, false);
        set_point(b, NULL, 0);
        cs_llm_request_release(request);
        if (!take_error(b, error))
            return false;
    }
    return true;
}

static bool time_decode(llm_bench *b, profile_point *point, uint32_t batch, uint32_t context,
                        GError **error)
{
    g_autoptr(GPtrArray) requests =
        g_ptr_array_new_with_free_func((GDestroyNotify)cs_llm_request_release);
    bool ok = true;
    set_point(b, point, batch);
    for (uint32_t i = 0; i < batch && ok; i++) {
        cs_llm_request *request = submit(b, context, true, error);
        ok = request != NULL;
        if (request)
            g_ptr_array_add(requests, request);
    }
    if (ok)
        wait(b, true);
    set_point(b, NULL, 0);
    for (guint i = 0; i < requests->len; i++)
        cs_llm_request_cancel(requests->pdata[i]);
    wait(b, false);
    return ok && take_error(b, error);
}

/* ---- points ---- */

static bool measure_prefill(llm_bench *b, GError **error)
{
    const cs_profiler_list *sizes = &b->run->options->prompt_tokens;
    cs_profiler_entry *entry = profile_add_entry(b->run, CS_ROLE_PREFILL);
    entry->max_batch = b->run->options->batches.values[b->run->options->batches.n - 1];
    entry->chunk_units = b->step_tokens;
    for (uint32_t i = 0; i < sizes->n; i++) {
        uint32_t n = sizes->values[i], work = MIN(n, b->step_tokens);
        if (n > b->step_tokens)
            n -= n % b->step_tokens; /* whole chunks only */
        if (n >= b->max_context_tokens)
            break;
        profile_point point =
            profile_point_new(b->run, entry, work, b->run->options->seconds / 2 / sizes->n, 1);
        if (!time_prompts(b, &point, n, error))
            return false;
        profile_point_say(b->run, &point, "prefill: %u tokens, %u in a step", n, work);
    }
    return true;
}

static bool measure_decode(llm_bench *b, uint32_t max_batch, GError **error)
{
    const cs_profiler_options *o = b->run->options;
    cs_profiler_entry *entry = profile_add_entry(b->run, CS_ROLE_DECODE);
    double share_s = o->seconds / 2 / (o->context.n * o->batches.n);
    for (uint32_t c = 0; c < o->context.n; c++)
        for (uint32_t i = 0; i < o->batches.n; i++) {
            uint32_t batch = o->batches.values[i], context = o->context.values[c];
            if (batch > max_batch || context + ROOM_TOKENS > b->max_context_tokens)
                continue;
            profile_point point = profile_point_new(b->run, entry, batch, share_s, DECODE_WARM_UP);
            if (!time_decode(b, &point, batch, context, error))
                return false;
            entry->max_batch = MAX(entry->max_batch, batch);
            profile_point_say(b->run, &point, "decode: %u sequence%s after %u tokens", batch,
                              batch == 1 ? "" : "s", context);
        }
    return true;
}

/* ---- life ---- */

static size_t sequence_bytes(const llm_bench *b)
{
    const cs_profiler_list *contexts = &b->run->options->context;
    const cs_profiler_list *prompts = &b->run->options->prompt_tokens;
    uint32_t tokens =
        MAX(contexts->values[contexts->n - 1] + ROOM_TOKENS, prompts->values[prompts->n - 1] + 1);
    tokens = MIN(tokens, b->max_context_tokens);
    return (tokens / CS_LLM_BLOCK_TOKENS + 1) * b->kv_block_bytes;
}

/* Of the batches asked for, the largest whose KV cache fits; at least 1. */
static uint32_t fitting_batch(const llm_bench *b)
{
    const cs_profiler_list *batches = &b->run->options->batches;
    double room = (double)cs_memory_free_bytes() * KV_FRACTION_OF_FREE;
    uint32_t fits = 1;
    for (uint32_t i = 0; i < batches->n; i++)
        if ((double)batches->values[i] * (double)sequence_bytes(b) <= room)
            fits = batches->values[i];
    return fits;
}

static bool make_inputs(llm_bench *b, GError **error)
{
    const cs_profiler_list *contexts = &b->run->options->context;
    const cs_profiler_list *prompts = &b->run->options->prompt_tokens;
    uint32_t longest = MAX(contexts->values[contexts->n - 1], prompts->values[prompts->n - 1]);
    b->token_ids = g_try_malloc_n(b->max_context_tokens, sizeof *b->token_ids);
    if (!b->token_ids)
        return cs_fail(error, CS_ERROR_FAILED, "%s: no memory for a prompt", b->run->component);
    for (uint32_t i = 0; i < b->max_context_tokens; i++)
        b->token_ids[i] = (int32_t)((i * 2654435761u >> 8) % b->llm->vocab_size);
    if (b->speech &&
        !(b->heard = cs_shared_tensor_new(CS_DTYPE_F32, longest, b->speech->heard_size)))
        return cs_fail(error, CS_ERROR_FAILED, "%s: no memory for what it hears",
                       b->run->component);
    if (!b->llm->ops->write_block)
        return true;
    b->blocks =
        cs_shared_tensor_new(CS_DTYPE_U8, contexts->values[contexts->n - 1] / CS_LLM_BLOCK_TOKENS,
                             (int64_t)b->kv_block_bytes);
    return b->blocks ||
           cs_fail(error, CS_ERROR_FAILED, "%s: no memory for a context", b->run->component);
}

/* As the model's own defaults say: what a request gets that says nothing. */
static cs_sampling_params default_sampling(const cs_generation_defaults *g)
{
    cs_sampling_params params = CS_SAMPLING_GREEDY;
    params.repetition_penalty = g->repetition_penalty;
    if (g->do_sample) {
        params.temperature = g->temperature;
        params.top_k = g->top_k;
        params.top_p = g->top_p;
    }
    return params;
}

/* As of a speech that says nothing, but that never ends. */
static cs_sampling_params speech_sampling(llm_bench *b)
{
    const cs_speech *speech = b->speech;
    b->bans = g_array_new(FALSE, FALSE, sizeof(cs_token_bias));
    for (uint32_t id = (uint32_t)speech->n_codes; id < b->llm->vocab_size; id++) {
        cs_token_bias ban = {(int32_t)id, -INFINITY};
        g_array_append_val(b->bans, ban);
    }
    return (cs_sampling_params){.temperature = speech->temperature,
                                .top_k = speech->top_k,
                                .top_p = speech->top_p,
                                .repetition_penalty = speech->repetition_penalty,
                                .n_logprobs = -1,
                                .n_biases = b->bans->len,
                                .biases = (const cs_token_bias *)(void *)b->bans->data};
}

static bool start(llm_bench *b, cs_llm *llm, uint32_t max_batch, GError **error)
{
    cs_llm_engine_options options = {
        .name = b->run->component,
        .kv_budget_bytes = sequence_bytes(b) * max_batch,
        .max_step_tokens = b->run->options->max_step_tokens,
        .max_sequences = max_batch,
        .mixed_step_target_us = UINT32_MAX,
        .no_prefix_cache = true,
        .on_step = on_step,
        .on_step_user = b,
    };
    b->engine = cs_llm_engine_new(llm, &options, error);
    return b->engine != NULL;
}

static bool measure(llm_bench *b, cs_llm *llm, GError **error)
{
    bool inputs = make_inputs(b, error);
    if (!inputs) {
        llm->ops->free(llm);
        return false;
    }
    uint32_t max_batch = fitting_batch(b);
    b->step_tokens = MAX(b->run->options->max_step_tokens, max_batch);
    if (!start(b, llm, max_batch, error) || !measure_prefill(b, error) ||
        !measure_decode(b, max_batch, error))
        return false;
    double inputs_bytes = b->blocks ? (double)b->blocks->t.rows * (double)b->blocks->t.cols : 0;
    if (b->heard)
        inputs_bytes += (double)b->heard->t.rows * (double)b->heard->t.cols * sizeof(float);
    double cache_bytes = (double)b->peak_blocks * (double)b->kv_block_bytes;
    profile_note_activations(b->run, inputs_bytes + cache_bytes);
    return true;
}

bool profile_llm(profile_run *run, cs_llm *llm, const cs_speech *speech, GError **error)
{
    if (!llm)
        return cs_fail(error, CS_ERROR_NOT_FOUND, "%s: the checkpoint has none", run->component);
    llm_bench b = {.run = run,
                   .speech = speech,
                   .llm = llm,
                   .kv_block_bytes = llm->kv_block_bytes,
                   .max_context_tokens = llm->max_context_tokens,
                   .quiet = true,
                   .lock = PTHREAD_MUTEX_INITIALIZER,
                   .changed = PTHREAD_COND_INITIALIZER};
    b.sampling = speech ? speech_sampling(&b) : default_sampling(&run->model->generation);
    if (speech) /* it hears a row of the reply with each code */
        run->stream = (cs_profiler_stream){.ahead = 1, .first_piece = 1, .piece = 1};
    run->memory.kv_bytes_per_token = (double)llm->kv_block_bytes / CS_LLM_BLOCK_TOKENS;
    bool ok = measure(&b, llm, error);
    cs_llm_engine_free(b.engine);
    cs_shared_tensor_unref(b.blocks);
    cs_shared_tensor_unref(b.heard);
    g_clear_pointer(&b.bans, g_array_unref);
    g_free(b.token_ids);
    g_clear_error(&b.error);
    pthread_cond_destroy(&b.changed);
    pthread_mutex_destroy(&b.lock);
    return ok;
}
