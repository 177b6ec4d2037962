/* A request in the LLM engine:  Prompt, embeddings as they come -> engine -> Tokens.
 *
 * A job is one request of the engine with all choices, or, when it goes on where another executor
 * stopped, one for each choice that is not finished. Tokens of a step are packed on the engine's
 * thread and leave with the loop's next round.
 *
 * In halves:  Prompt, embeddings -> prefill --KV blocks, then the first Tokens--> decode -> Tokens.
 * The decode goes on from these tokens as a resumed generation does, with blocks instead of the
 * prompt; it alone speaks to the client. */
#include "base/error.h"
#include "runtime/model/llm_internal.h"

#include <string.h>

static void unref_rows(void *rows)
{
    cs_shared_tensor_unref(rows);
}

static GPtrArray *new_rows(void)
{
    return g_ptr_array_new_with_free_func(unref_rows);
}

/* --- the engine's calls --- */

static void on_kv(void *user, uint32_t block, const void *bytes)
{
    llm_job *j = ((llm_part *)user)->job;
    llm_chunk *chunk = llm_chunk_of_block(j, bytes);
    pthread_mutex_lock(&j->base.owner->lock);
    g_ptr_array_add(j->exported, chunk);
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
}

/* Without memory for the rows the talker cannot go on: the request ends. */
static void on_hidden(void *user, uint32_t choice, uint32_t row, uint32_t n, const float *hidden)
{
    llm_part *part = user;
    llm_job *j = part->job;
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_shared_tensor) rows = cs_talk_rows(
        j->base.owner->checkpoint, n, &g_array_index(j->ids, int32_t, row), hidden, &error);
    pthread_mutex_lock(&j->base.owner->lock);
    if (!rows && !j->error)
        j->error = g_steal_pointer(&error);
    else if (rows && llm_is_prefill(j))
        g_ptr_array_add(j->exported, llm_chunk_of_rows(rows));
    else if (rows)
        g_ptr_array_add(j->rows, g_steal_pointer(&rows));
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
}

static bool on_token(void *user, const cs_llm_token *token)
{
    llm_job *j = ((llm_part *)user)->job;
    bool goes_on = true;
    if (j->replays)
        return false;
    if (j->ids)
        g_array_append_val(j->ids, token->token->id);
    if (j->streams) {
        cs_text_stream *stream = &j->streams[token->choice];
        size_t show_bytes;
        goes_on = cs_text_stream_push(stream, token->token->id, &show_bytes);
        cs_text_stream_shown(stream, show_bytes);
    }
    pthread_mutex_lock(&j->base.owner->lock);
    model_tokens_token(j->pending, token->choice, token->token);
    j->pending_units++;
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
    return goes_on;
}

/* A prefill always ends after a token: whether the answer does is for the decode to know, but for
 * a stop id, which is no token. */
static void on_finish(void *user, uint32_t choice, cs_llm_finish reason)
{
    llm_job *j = ((llm_part *)user)->job;
    if ((llm_is_prefill(j) && reason != CS_LLM_FINISH_STOP_ID) ||
        (j->replays && j->seen[choice].finished))
        return;
    pthread_mutex_lock(&j->base.owner->lock);
    model_tokens_finish(j->pending, choice, reason == CS_LLM_FINISH_LENGTH,
                        reason == CS_LLM_FINISH_STOP_ID);
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
}

static void on_done(void *user, const cs_llm_usage *usage, const GError *error)
{
    llm_job *j = ((llm_part *)user)->job;
    pthread_mutex_lock(&j->base.owner->lock);
    if (error && !j->error)
        j->error = g_error_copy(error);
    if (usage) {
        j->usage.cached_tokens = MAX(j->usage.cached_tokens, usage->cached_tokens);
        j->usage.completion_tokens += j->replays ? 0 : usage->completion_tokens;
    }
    j->parts_left--;
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
}

void model_llm_on_step(void *user)
{
    model_post(user);
}

/* --- embeddings --- */

static void on_released(void *user)
{
    llm_job *j = user;
    model *m = j->base.owner;
    pthread_mutex_lock(&m->lock);
    j->n_held--; /* the job may be gone with the lock */
    model_list(&j->base);
    pthread_mutex_unlock(&m->lock);
    model_post(m);
}

/* The chunk as a tensor over the sidecar's memory. */
static cs_shared_tensor *wrap_chunk(llm_job *j, const cs_chunk *chunk, GError **error)
{
    const cs_chunk_desc *d = &chunk->desc;
    if (!model_check_chunk(j->base.job, chunk, CS_DTYPE_F32, error))
        return NULL;
    cs_shared_tensor *tensor = cs_shared_tensor_wrap(
        chunk->data, CS_DTYPE_F32, (int64_t)d->shape[0], (int64_t)d->shape[1], on_released, j);
    if (!tensor) {
        cs_fail(error, CS_ERROR_FAILED, "%s: no memory", j->base.job->component);
        return NULL;
    }
    pthread_mutex_lock(&j->base.owner->lock);
    j->n_held++;
    pthread_mutex_unlock(&j->base.owner->lock);
    return tensor;
}

/* A reference, or NULL: not there yet, or *error. */
static cs_shared_tensor *take_embeddings(llm_job *j, uint32_t input, GError **error)
{
    cs_job *job = j->base.job;
    if (job->inputs[input].local) {
        cs_shared_tensor *tensor = model_handover_look(&j->base, input);
        return tensor ? cs_shared_tensor_ref(tensor) : NULL;
    }
    cs_chunk chunk;
    cs_receive got = model_take_chunk(job, input, &chunk, error);
    return got == CS_RECEIVE_CHUNK ? wrap_chunk(j, &chunk, error) : NULL;
}

static void fail_parts(llm_job *j, const GError *error)
{
    for (uint32_t i = 0; i < j->n_parts; i++)
        if (j->parts[i].request)
            cs_llm_request_fail(j->parts[i].request, error);
}

/* Hands new embeddings to the engine, which goes on with the prompt up to the first that is
 * missing. */
static void poll_embeddings(llm_job *j)
{
    const cs_job *job = j->base.job;
    uint32_t input = model_find_input(job, "media", 0);
    for (uint32_t item = 0; input < job->n_inputs;
         input = model_find_input(job, "media", input + 1), item++) {
        g_autoptr(GError) error = NULL;
        if (j->provided[input])
            continue;
        g_autoptr(cs_shared_tensor) tensor = take_embeddings(j, input, &error);
        if (error) {
            j->provided[input] = true; /* once is enough */
            fail_parts(j, error);
        } else if (tensor) {
            j->provided[input] = true;
            for (uint32_t i = 0; i < j->n_parts; i++)
                if (j->parts[i].request)
                    cs_llm_request_provide(j->parts[i].request, item, tensor, true);
        }
    }
}

/* --- starting --- */

static bool check_prompt(const llm_job *j, const Cornserve__Wire__Prompt *p, GError **error)
{
    const cs_job *job = j->base.job;
    size_t n_tokens = p->token_ids.len / sizeof(int32_t), n_media = 0;
    for (uint32_t i = 0; i < job->n_inputs; i++)
        n_media += strcmp(job->inputs[i].name, "media") == 0;
    if (llm_is_decode(j)) /* its embeddings go to the prefill */
        n_media = p->n_items;
    if (p->token_ids.len % sizeof(int32_t) == 0 && n_tokens > 0 && n_tokens <= INT32_MAX &&
        (p->positions.len == 0 || p->positions.len == n_tokens * sizeof(int32_t[3])) &&
        p->n_items == n_media && p->n_choices > 0 && p->n_choices <= 1024 &&
        p->aloud.len % sizeof(int32_t) == 0 && p->n_biases == p->n_bias_ids)
        return true;
    return cs_fail(error, CS_ERROR_INVALID, "%s: a prompt that is malformed", job->component);
}

/* Sorts what the client has by choice. */
static bool read_seen(llm_job *j, GError **error)
{
    const cs_job *job = j->base.job;
    GBytes *seen = job->outputs[j->output].seen;
    gsize size_bytes = 0;
    const void *data = seen ? g_bytes_get_data(seen, &size_bytes) : NULL;
    Cornserve__Wire__Tokens *tokens = cornserve__wire__tokens__unpack(NULL, size_bytes, data);
    bool ok = tokens != NULL;
    for (size_t i = 0; ok && i < tokens->n_tokens; i++) {
        ok = tokens->tokens[i]->choice < j->n_choices;
        if (ok)
            g_array_append_val(j->seen[tokens->tokens[i]->choice].ids, tokens->tokens[i]->id);
    }
    for (size_t i = 0; ok && i < tokens->n_finishes; i++) {
        ok = tokens->finishes[i]->choice < j->n_choices;
        if (ok) {
            j->seen[tokens->finishes[i]->choice].finished = true;
            j->seen[tokens->finishes[i]->choice].stop_id = tokens->finishes[i]->stop_id;
        }
    }
    j->usage_seen = ok && tokens->usage;
    if (tokens)
        cornserve__wire__tokens__free_unpacked(tokens, NULL);
    return ok || cs_fail(error, CS_ERROR_INVALID, "%s: what was seen before is malformed",
                         job->component);
}

static void open_streams(llm_job *j)
{
    const Cornserve__Wire__Prompt *p = j->prompt;
    if (p->n_stops == 0)
        return;
    const char **stops = g_new0(const char *, p->n_stops + 1);
    memcpy(stops, p->stops, p->n_stops * sizeof(*stops));
    j->streams = g_new0(cs_text_stream, j->n_choices);
    for (uint32_t i = 0; i < j->n_choices; i++)
        cs_text_stream_init(&j->streams[i], j->base.owner->checkpoint->tokenizer,
                            i == 0 ? stops : j->streams[0].stops);
}

/* A choice that ended with what the client has, of which nobody told it. */
static void finish_seen(llm_job *j, uint32_t choice)
{
    llm_seen *seen = &j->seen[choice];
    bool goes_on = true;
    for (guint i = 0; j->streams && i < seen->ids->len; i++) {
        size_t show_bytes;
        goes_on = cs_text_stream_push(&j->streams[choice], g_array_index(seen->ids, int32_t, i),
                                      &show_bytes);
        cs_text_stream_shown(&j->streams[choice], show_bytes);
    }
    bool length = j->prompt->max_tokens > 0 && seen->ids->len >= j->prompt->max_tokens;
    if (seen->finished || (goes_on && !length))
        return;
    seen->finished = true;
    model_tokens_finish(j->pending, choice, goes_on && length, false);
}

static cs_sampling_params sampling_params(const Cornserve__Wire__Prompt *p, cs_token_bias *biases)
{
    for (size_t i = 0; i < p->n_biases; i++)
        biases[i] = (cs_token_bias){p->bias_ids[i], p->biases[i]};
    return (cs_sampling_params){.temperature = p->temperature,
                                .top_k = p->top_k,
                                .top_p = p->top_p,
                                .min_p = p->min_p,
                                .repetition_penalty = p->repetition_penalty,
                                .presence_penalty = p->presence_penalty,
                                .frequency_penalty = p->frequency_penalty,
                                .seed = p->seed,
                                .n_logprobs = p->n_logprobs,
                                .n_biases = (uint32_t)p->n_biases,
                                .biases = biases};
}

/* What all parts have in common. Arrays are the caller's to free. */
static cs_llm_request_options request_options(const llm_job *j, cs_llm_input_item *items,
                                              cs_llm_input_span *spans, cs_token_bias *biases)
{
    const Cornserve__Wire__Prompt *p = j->prompt;
    for (size_t i = 0; i < p->n_items; i++)
        items[i] = (cs_llm_input_item){.content_hash = {p->items[i]->hash_0, p->items[i]->hash_1},
                                       .n_rows = p->items[i]->n_rows};
    for (size_t i = 0; i < p->n_spans; i++)
        spans[i] = (cs_llm_input_span){p->spans[i]->row, p->spans[i]->n, p->spans[i]->item,
                                       p->spans[i]->source_row};
    return (cs_llm_request_options){
        .n_tokens = (uint32_t)(p->token_ids.len / sizeof(int32_t)),
        .token_ids = (const int32_t *)(const void *)p->token_ids.data,
        .positions = p->positions.len ? (const int32_t(*)[3])(const void *)p->positions.data : NULL,
        .next_position = p->next_position,
        .n_spans = (uint32_t)p->n_spans,
        .spans = spans,
        .n_items = (uint32_t)p->n_items,
        .items = items,
        .sampling = sampling_params(p, biases),
        .max_tokens = p->max_tokens,
        .n_stop_ids = (uint32_t)p->n_stop_ids,
        .stop_ids = p->stop_ids,
    };
}

static bool submit_part(llm_job *j, const cs_llm_request_options *options, GError **error)
{
    static const cs_llm_sink sink = {on_token, on_hidden, on_kv, on_finish, on_done};
    model *m = j->base.owner;
    llm_part *part = &j->parts[j->n_parts];
    part->job = j;
    pthread_mutex_lock(&m->lock);
    j->parts_left++;
    pthread_mutex_unlock(&m->lock);
    part->request = cs_llm_engine_submit(m->llm, options, &sink, part, error);
    if (part->request) {
        j->n_parts++;
        for (guint i = 0; j->blocks && i < j->blocks->len; i++)
            cs_llm_request_provide_kv(part->request, j->blocks->pdata[i]);
        return true;
    }
    pthread_mutex_lock(&m->lock);
    j->parts_left--;
    pthread_mutex_unlock(&m->lock);
    return false;
}

/* An answer that is known, for the states of its rows: of all of them if it ended with a stop id,
 * which is drawn again, else of all but the last, which is. */
static bool submit_replay(llm_job *j, cs_llm_request_options options, GError **error)
{
    const Cornserve__Wire__Prompt *p = j->prompt;
    const llm_seen *seen = &j->seen[0];
    uint32_t n_aloud = (uint32_t)(p->aloud.len / sizeof(int32_t));
    j->replays = true;
    options.n_generated =
        n_aloud ? n_aloud : seen->ids->len - (seen->ids->len > 0 && !seen->stop_id);
    options.generated = n_aloud ? (const int32_t *)(const void *)p->aloud.data
                                : (const int32_t *)(const void *)seen->ids->data;
    options.max_tokens = options.n_generated + 1;
    return (options.import_kv && options.n_generated == 0) || submit_part(j, &options, error);
}

static bool submit_parts(llm_job *j, cs_llm_request_options options, GError **error)
{
    bool resumed = false;
    for (uint32_t i = 0; i < j->n_choices; i++)
        resumed = resumed || j->seen[i].ids->len > 0 || j->seen[i].finished;
    options.n_choices = j->n_choices;
    options.import_kv = llm_is_decode(j);
    options.hidden_states = j->ids != NULL;
    if (j->ids)
        options.pace = cs_talk_pace(j->base.owner->checkpoint->speech);
    options.hidden_from_row = llm_is_decode(j) ? options.n_tokens : 0; /* the prefill gives those */
    if (llm_is_prefill(j)) {
        options.export_kv = true;
        options.max_tokens = 1;
    } else if (j->ids && (j->prompt->aloud.len > 0 || j->seen[0].finished)) {
        return submit_replay(j, options, error);
    }
    if (!resumed)
        return submit_part(j, &options, error);
    for (uint32_t i = 0; i < j->n_choices; i++) {
        if (j->seen[i].finished)
            continue;
        options.n_choices = 1;
        options.first_choice = i;
        options.n_generated = j->seen[i].ids->len;
        options.generated = (const int32_t *)(const void *)j->seen[i].ids->data;
        if (!submit_part(j, &options, error))
            return false;
    }
    return true;
}

static void look(llm_job *j);

/* Of the rows whose states are wanted: the prompt's, and behind them the answer's as far as it is
 * known. */
static bool note_ids(llm_job *j, GError **error)
{
    const Cornserve__Wire__Prompt *p = j->prompt;
    if (p->n_choices != 1)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: of %u answers none can be spoken",
                       j->base.job->component, p->n_choices);
    if (!j->base.owner->checkpoint->speech)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: this checkpoint does not speak",
                       j->base.job->component);
    j->ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g_array_append_vals(j->ids, p->token_ids.data, (guint)(p->token_ids.len / sizeof(int32_t)));
    if (p->aloud.len > 0)
        g_array_append_vals(j->ids, p->aloud.data, (guint)(p->aloud.len / sizeof(int32_t)));
    else
        g_array_append_vals(j->ids, j->seen[0].ids->data, j->seen[0].ids->len);
    return true;
}

static void start(llm_job *j, GError **error)
{
    const Cornserve__Wire__Prompt *p = j->prompt;
    j->begun = true;
    j->n_choices = p->n_choices;
    j->parts = g_new0(llm_part, j->n_choices);
    j->seen = g_new0(llm_seen, j->n_choices);
    for (uint32_t i = 0; i < j->n_choices; i++)
        j->seen[i].ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    if (!read_seen(j, error))
        return;
    if (llm_is_decode(j) && !j->usage_seen && !llm_use_first(j, error))
        return;
    bool heard = llm_is_prefill(j) ? p->hidden : j->hidden < j->base.job->n_outputs;
    if (heard && !note_ids(j, error))
        return;
    if (!llm_is_prefill(j))
        open_streams(j);
    for (uint32_t i = 0; i < j->n_choices; i++)
        finish_seen(j, i);
    for (uint32_t i = 0; i < j->n_choices; i++)
        j->usage.completion_tokens += j->seen[i].ids->len + j->seen[i].stop_id;
    j->usage.prompt_tokens = (uint32_t)(p->token_ids.len / sizeof(int32_t));
    g_autofree cs_llm_input_item *items = g_new0(cs_llm_input_item, p->n_items + 1);
    g_autofree cs_llm_input_span *spans = g_new0(cs_llm_input_span, p->n_spans + 1);
    g_autofree cs_token_bias *biases = g_new0(cs_token_bias, p->n_biases + 1);
    submit_parts(j, request_options(j, items, spans, biases), error);
}

static bool read_prompt(llm_job *j, const cs_chunk *chunk, GError **error)
{
    Cornserve__Wire__Prompt *prompt =
        cornserve__wire__prompt__unpack(NULL, chunk->size_bytes, chunk->data);
    if (!prompt)
        return cs_fail(error, CS_ERROR_INVALID, "%s: a prompt that is malformed",
                       j->base.job->component);
    j->prompt = prompt;
    return check_prompt(j, prompt, error);
}

static bool take_prompt(llm_job *j, GError **error)
{
    cs_chunk chunk;
    uint32_t input = model_find_input(j->base.job, "attachment", 0);
    cs_receive got = model_take_chunk(j->base.job, input, &chunk, error);
    bool ok = got == CS_RECEIVE_CHUNK && read_prompt(j, &chunk, error);
    if (got == CS_RECEIVE_CHUNK)
        cs_receiver_release(j->base.job->inputs[input].receiver, 0);
    return ok;
}

/* As soon as all is there that it begins with. Parts that run end with the error, and the job with
 * them. */
static void begin(llm_job *j)
{
    GError *error = NULL;
    if ((j->prompt || take_prompt(j, &error)) && (!llm_is_decode(j) || llm_take_kv(j, &error)))
        start(j, &error);
    if (!error && !j->begun)
        return;
    if (!error) {
        poll_embeddings(j);
        look(j);
    } else if (j->n_parts == 0) {
        model_finish(&j->base, error);
    } else {
        fail_parts(j, error);
        g_error_free(error);
    }
}

/* --- going on --- */

static void send_pending(llm_job *j)
{
    model *m = j->base.owner;
    g_autoptr(GByteArray) pending = NULL;
    pthread_mutex_lock(&m->lock);
    uint32_t units = j->pending_units;
    if (j->pending->len > 0) {
        pending = j->pending;
        j->pending = g_byte_array_new();
        j->pending_units = 0;
    }
    pthread_mutex_unlock(&m->lock);
    if (pending && !j->base.job->cancelled)
        cs_executor_piece(j->base.job, j->output, pending->data, pending->len, units);
}

/* True when a talker has all rows so far. */
static bool send_rows(llm_job *j, GError **error)
{
    model *m = j->base.owner;
    if (!j->ids)
        return true;
    pthread_mutex_lock(&m->lock);
    g_autoptr(GPtrArray) rows = j->rows;
    j->rows = new_rows();
    pthread_mutex_unlock(&m->lock);
    for (guint i = 0; i < rows->len; i++)
        model_stream_put(&j->base, &j->heard, rows->pdata[i]);
    return model_outbox_flush(&j->base, &j->heard, error);
}

static void release_parts(llm_job *j)
{
    for (uint32_t i = 0; i < j->n_parts; i++)
        if (j->parts[i].request)
            cs_llm_request_release(g_steal_pointer(&j->parts[i].request));
}

/* The job is over, or will be with its parts. Takes the error. */
static void end(llm_job *j, bool ended, GError *error)
{
    if (ended) {
        model_finish(&j->base, error);
        return;
    }
    fail_parts(j, error);
    g_error_free(error);
}

/* The job's error, or NULL. *held: not all memory has been given back. */
static GError *settle(llm_job *j, bool *held)
{
    model *m = j->base.owner;
    release_parts(j);
    pthread_mutex_lock(&m->lock);
    *held = j->n_held > 0;
    GError *error = *held ? NULL : g_steal_pointer(&j->error);
    if (!*held && !error && !j->usage_seen) {
        model_tokens_usage(j->pending, &j->usage);
        j->usage_seen = true;
    }
    pthread_mutex_unlock(&m->lock);
    return error;
}

static void look(llm_job *j)
{
    model *m = j->base.owner;
    bool held = false;
    pthread_mutex_lock(&m->lock);
    bool ended = j->parts_left == 0;
    pthread_mutex_unlock(&m->lock);
    GError *error = ended ? settle(j, &held) : NULL;
    ended = ended && !held;
    if (!llm_is_prefill(j))
        send_pending(j);
    bool sent = error || (llm_is_prefill(j) ? llm_send_kv(j, ended, &error) : send_rows(j, &error));
    if (error || (ended && sent)) /* else the doorbell rings when there is room */
        end(j, ended, error);
}

static void poll_inputs(model_job *base)
{
    llm_job *j = (llm_job *)base;
    if (!j->begun) {
        begin(j);
        return;
    }
    poll_embeddings(j);
    if (llm_is_prefill(j) || !model_outbox_is_empty(&j->heard))
        look(j);
}

static void read_news(model_job *base)
{
    llm_job *j = (llm_job *)base;
    if (j->begun)
        look(j);
}

static void flush_later(model_job *base)
{
    llm_job *j = (llm_job *)base;
    GError *error = NULL;
    model_outbox_ripen(&j->heard);
    if (j->begun)
        look(j);
    else if (!model_outbox_flush(base, &j->heard, &error) && error)
        model_finish(base, error);
}

static bool has_ended(llm_job *j)
{
    pthread_mutex_lock(&j->base.owner->lock);
    bool ended = j->parts_left == 0 && j->n_held == 0;
    pthread_mutex_unlock(&j->base.owner->lock);
    return ended;
}

static void cancel(model_job *base)
{
    llm_job *j = (llm_job *)base;
    for (uint32_t i = 0; i < j->n_parts; i++)
        if (j->parts[i].request)
            cs_llm_request_cancel(j->parts[i].request);
    if (!j->begun || has_ended(j)) /* nothing else will end it */
        model_finish(
            base, g_error_new(CS_ERROR, CS_ERROR_CANCELLED, "%s: cancelled", base->job->component));
}

static void free_job(model_job *base)
{
    llm_job *j = (llm_job *)base;
    release_parts(j);
    for (uint32_t i = 0; j->streams && i < j->n_choices; i++)
        cs_text_stream_clear(&j->streams[i]);
    if (j->streams)
        g_free((void *)j->streams[0].stops);
    for (uint32_t i = 0; j->seen && i < j->n_choices; i++)
        g_array_unref(j->seen[i].ids);
    if (j->prompt)
        cornserve__wire__prompt__free_unpacked(j->prompt, NULL);
    if (j->first)
        cornserve__wire__tokens__free_unpacked(j->first, NULL);
    g_clear_pointer(&j->blocks, g_ptr_array_unref);
    g_clear_pointer(&j->ids, g_array_unref);
    model_outbox_clear(&j->heard);
    g_ptr_array_unref(j->rows);
    g_queue_clear_full(&j->to_send, llm_chunk_free);
    for (guint i = 0; i < j->exported->len; i++)
        llm_chunk_free(j->exported->pdata[i]);
    g_ptr_array_unref(j->exported);
    g_byte_array_unref(j->pending);
    g_clear_error(&j->error);
    g_free(j->streams);
    g_free(j->seen);
    g_free(j->parts);
    g_free(j->provided);
    g_free(j);
}

static bool check_halves(const cs_job *job, uint32_t *output, GError **error)
{
    *output = 0;
    if (job->role == CORNSERVE__WIRE__ROLE__PREFILL)
        return (job->n_outputs == 1 && job->outputs[0].sender) ||
               cs_fail(error, CS_ERROR_INVALID, "%s: a prefill without a decode", job->component);
    uint32_t kv = model_find_input(job, "kv", 0);
    return (kv < job->n_inputs && !job->inputs[kv].local) ||
           cs_fail(error, CS_ERROR_INVALID, "%s: a decode without a prefill", job->component);
}

/* Its states for a talker are all that other executors, or jobs of this one, may read of it. */
static bool check_outputs(const cs_job *job, uint32_t *hidden, GError **error)
{
    *hidden = job->n_outputs;
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        if (!job->outputs[i].sender && job->outputs[i].n_local == 0)
            continue;
        if (strcmp(job->outputs[i].name, "hidden") != 0)
            return cs_fail(error, CS_ERROR_UNSUPPORTED,
                           "%s: this executor does not hand out its %s", job->component,
                           job->outputs[i].name);
        *hidden = i;
    }
    return true;
}

static bool check_job(const cs_job *job, uint32_t *output, uint32_t *hidden, GError **error)
{
    *hidden = job->n_outputs;
    if (model_find_input(job, "attachment", 0) == job->n_inputs)
        return cs_fail(error, CS_ERROR_INVALID, "%s: there is no attachment", job->component);
    if (job->role != CORNSERVE__WIRE__ROLE__BOTH && !check_halves(job, output, error))
        return false;
    if (job->role == CORNSERVE__WIRE__ROLE__PREFILL)
        return true;
    if (!check_outputs(job, hidden, error))
        return false;
    while (*output < job->n_outputs && !job->outputs[*output].to_client)
        ++*output;
    return *output < job->n_outputs ||
           cs_fail(error, CS_ERROR_INVALID, "%s: nobody wants its text", job->component);
}

model_job *model_llm_job_new(model *m, cs_job *job, GError **error)
{
    static const model_job_ops ops = {.poll = poll_inputs,
                                      .news = read_news,
                                      .later = flush_later,
                                      .cancel = cancel,
                                      .free = free_job};
    uint32_t output = 0, hidden = 0;
    if (!check_job(job, &output, &hidden, error))
        return NULL;
    llm_job *j = g_new0(llm_job, 1);
    j->base = (model_job){.owner = m, .job = job, .ops = &ops};
    j->output = output;
    j->hidden = hidden;
    model_outbox_init(&j->heard, hidden);
    j->rows = new_rows();
    j->pending = g_byte_array_new();
    j->exported = g_ptr_array_new();
    g_queue_init(&j->to_send);
    if (llm_is_decode(j))
        j->blocks = g_ptr_array_new_with_free_func((GDestroyNotify)cs_shared_tensor_unref);
    j->provided = g_new0(bool, job->n_inputs + 1);
    return &j->base;
}
