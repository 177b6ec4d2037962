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
#include "runtime/model_internal.h"

#include <string.h>

typedef struct llm_job llm_job;

/* Tags of the chunks between the halves. */
enum { KV_BLOCKS, KV_TOKENS };

typedef struct {
    llm_job *job;
    cs_llm_request *request;
} llm_part;

/* What the client has of a choice. */
typedef struct {
    GArray *ids; /* int32_t */
    bool finished, stop_id;
} llm_seen;

struct llm_job {
    model_job base;
    uint32_t output;                 /* the text's */
    Cornserve__Wire__Prompt *prompt; /* NULL: has not come */
    llm_part *parts;
    uint32_t n_parts;
    uint32_t n_choices;
    llm_seen *seen;          /* [n_choices] */
    bool begun;              /* the engine has it */
    bool usage_seen;         /* the client has everything */
    cs_text_stream *streams; /* [n_choices], the engine's thread; NULL: no stop strings */
    bool *provided;          /* [n_inputs] */
    /* Of a decode: what has come from its prefill. */
    GPtrArray *blocks;              /* cs_shared_tensor * */
    Cornserve__Wire__Tokens *first; /* NULL: not all of it */
    uint64_t n_chunks;
    /* Of a prefill. */
    GQueue to_send; /* GBytes *, blocks that wait for room in the sidecar */
    bool tokens_sent;

    /* Under the model's lock. */
    GByteArray *pending; /* Tokens, packed */
    uint32_t pending_units;
    uint32_t parts_left;
    GPtrArray *exported; /* GBytes *, new blocks of a prefill */
    uint32_t n_held;     /* tensors over the sidecar's memory */
    cs_llm_usage usage;
    GError *error;
};

/* --- Tokens --- */

static void pack(GByteArray *to, const Cornserve__Wire__Tokens *tokens)
{
    guint at = to->len;
    size_t size_bytes = cornserve__wire__tokens__get_packed_size(tokens);
    g_byte_array_set_size(to, at + (guint)size_bytes);
    cornserve__wire__tokens__pack(tokens, to->data + at);
}

static void pack_token(GByteArray *to, uint32_t choice, const cs_sampled_token *sampled)
{
    Cornserve__Wire__Tokens tokens = CORNSERVE__WIRE__TOKENS__INIT;
    Cornserve__Wire__Token token = CORNSERVE__WIRE__TOKEN__INIT, *one = &token;
    int32_t ids[CS_MAX_LOGPROBS];
    float logprobs[CS_MAX_LOGPROBS];
    for (uint32_t i = 0; i < sampled->n_top; i++) {
        ids[i] = sampled->top[i].id;
        logprobs[i] = sampled->top[i].logprob;
    }
    token.choice = choice;
    token.id = sampled->id;
    token.logprob = sampled->logprob;
    token.n_top_ids = token.n_top_logprobs = sampled->n_top;
    token.top_ids = ids;
    token.top_logprobs = logprobs;
    tokens.n_tokens = 1;
    tokens.tokens = &one;
    pack(to, &tokens);
}

static void pack_finish(GByteArray *to, uint32_t choice, bool length, bool stop_id)
{
    Cornserve__Wire__Tokens tokens = CORNSERVE__WIRE__TOKENS__INIT;
    Cornserve__Wire__Finish finish = CORNSERVE__WIRE__FINISH__INIT, *one = &finish;
    finish.choice = choice;
    finish.length = length;
    finish.stop_id = stop_id;
    tokens.n_finishes = 1;
    tokens.finishes = &one;
    pack(to, &tokens);
}

static void pack_usage(GByteArray *to, const cs_llm_usage *from)
{
    Cornserve__Wire__Tokens tokens = CORNSERVE__WIRE__TOKENS__INIT;
    Cornserve__Wire__Usage usage = CORNSERVE__WIRE__USAGE__INIT;
    usage.prompt_tokens = from->prompt_tokens;
    usage.cached_tokens = from->cached_tokens;
    usage.completion_tokens = from->completion_tokens;
    tokens.usage = &usage;
    pack(to, &tokens);
}

/* --- the engine's calls --- */

static bool is_prefill(const llm_job *j)
{
    return j->base.job->role == CORNSERVE__WIRE__ROLE__PREFILL;
}

static bool is_decode(const llm_job *j)
{
    return j->base.job->role == CORNSERVE__WIRE__ROLE__DECODE;
}

static void on_kv(void *user, uint32_t block, const void *bytes)
{
    llm_job *j = ((llm_part *)user)->job;
    GBytes *copy = g_bytes_new(bytes, j->base.owner->kv_block_bytes);
    pthread_mutex_lock(&j->base.owner->lock);
    g_ptr_array_add(j->exported, copy);
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
}

static bool on_token(void *user, const cs_llm_token *token)
{
    llm_job *j = ((llm_part *)user)->job;
    bool goes_on = true;
    if (j->streams) {
        cs_text_stream *stream = &j->streams[token->choice];
        size_t show_bytes;
        goes_on = cs_text_stream_push(stream, token->token->id, &show_bytes);
        cs_text_stream_shown(stream, show_bytes);
    }
    pthread_mutex_lock(&j->base.owner->lock);
    pack_token(j->pending, token->choice, token->token);
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
    if (is_prefill(j) && reason != CS_LLM_FINISH_STOP_ID)
        return;
    pthread_mutex_lock(&j->base.owner->lock);
    pack_finish(j->pending, choice, reason == CS_LLM_FINISH_LENGTH,
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
        j->usage.completion_tokens += usage->completion_tokens;
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
    uint64_t room = chunk->size_bytes / sizeof(float);
    cs_shared_tensor *tensor = NULL;
    if (d->type != CS_DTYPE_F32 || d->rank != 2 || d->shape[0] == 0 || d->shape[1] == 0 ||
        d->shape[1] > room || d->shape[0] > room / d->shape[1]) {
        cs_fail(error, CS_ERROR_FAILED, "%s: embeddings that are malformed",
                j->base.job->component);
        return NULL;
    }
    tensor = cs_shared_tensor_wrap(chunk->data, CS_DTYPE_F32, (int64_t)d->shape[0],
                                   (int64_t)d->shape[1], on_released, j);
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

/* --- from prefill to decode --- */

/* False: there is no room now, or *error. */
static bool put_chunk(llm_job *j, GBytes *bytes, uint64_t tag, GError **error)
{
    g_autoptr(GError) why = NULL;
    cs_chunk_desc desc = {
        .type = CS_DTYPE_U8, .rank = 2, .shape = {1, g_bytes_get_size(bytes)}, .tag = tag};
    if (cs_sender_put_bytes(j->base.job->outputs[j->output].sender, bytes, &desc, 0, &why))
        return true;
    if (!g_error_matches(why, CS_ERROR, CS_ERROR_BUSY))
        g_propagate_error(error, g_steal_pointer(&why));
    return false;
}

/* Blocks, and once the engine is done its tokens. True when all is sent. */
static bool send_kv(llm_job *j, bool ended, GError **error)
{
    model *m = j->base.owner;
    pthread_mutex_lock(&m->lock);
    for (guint i = 0; i < j->exported->len; i++)
        g_queue_push_tail(&j->to_send, j->exported->pdata[i]);
    g_ptr_array_set_size(j->exported, 0);
    pthread_mutex_unlock(&m->lock);
    while (j->to_send.length > 0) {
        if (!put_chunk(j, j->to_send.head->data, KV_BLOCKS, error))
            return false;
        g_bytes_unref(g_queue_pop_head(&j->to_send));
    }
    if (!ended || j->tokens_sent)
        return j->tokens_sent;
    /* nothing adds to it any more */
    g_autoptr(GBytes) tokens = g_bytes_new(j->pending->data, j->pending->len);
    j->tokens_sent = put_chunk(j, tokens, KV_TOKENS, error);
    return j->tokens_sent;
}

static bool take_kv(llm_job *j, const cs_chunk *chunk, GError **error)
{
    if (chunk->desc.tag == KV_TOKENS) {
        j->first = cornserve__wire__tokens__unpack(NULL, chunk->size_bytes, chunk->data);
        return j->first || cs_fail(error, CS_ERROR_FAILED, "%s: tokens that are malformed",
                                   j->base.job->component);
    }
    if (chunk->size_bytes != j->base.owner->kv_block_bytes)
        return cs_fail(error, CS_ERROR_FAILED, "%s: a KV block of %zu bytes, expected %zu",
                       j->base.job->component, chunk->size_bytes, j->base.owner->kv_block_bytes);
    cs_shared_tensor *block = cs_shared_tensor_new(CS_DTYPE_U8, 1, (int64_t)chunk->size_bytes);
    if (!block)
        return cs_fail(error, CS_ERROR_FAILED, "%s: no memory", j->base.job->component);
    memcpy(block->t.data, chunk->data, chunk->size_bytes);
    g_ptr_array_add(j->blocks, block);
    return true;
}

/* True when everything is there. */
static bool poll_kv(llm_job *j, GError **error)
{
    cs_job *job = j->base.job;
    uint32_t input = model_find_input(job, "kv", 0);
    cs_receiver *receiver = job->inputs[input].receiver;
    while (!j->first) {
        cs_chunk chunk;
        cs_receive got = cs_receiver_get(receiver, j->n_chunks, 0, &chunk, error);
        if (got == CS_RECEIVE_END)
            cs_fail(error, CS_ERROR_EXECUTOR_LOST, "%s: its prefill ended early", job->component);
        if (got != CS_RECEIVE_CHUNK)
            return false;
        bool ok = take_kv(j, &chunk, error);
        cs_receiver_release(receiver, j->n_chunks++);
        if (!ok)
            return false;
    }
    return true;
}

/* Choices of which the client has nothing begin with the prefill's tokens. */
static bool use_first(llm_job *j, GError **error)
{
    const Cornserve__Wire__Tokens *first = j->first;
    bool *begins = g_new(bool, j->n_choices), ok = true;
    for (uint32_t i = 0; i < j->n_choices; i++)
        begins[i] = j->seen[i].ids->len == 0 && !j->seen[i].finished;
    for (size_t i = 0; ok && i < first->n_tokens; i++) {
        Cornserve__Wire__Token *token = first->tokens[i];
        Cornserve__Wire__Tokens one = CORNSERVE__WIRE__TOKENS__INIT;
        ok = token->choice < j->n_choices;
        if (!ok || !begins[token->choice])
            continue;
        one.n_tokens = 1;
        one.tokens = &token;
        pack(j->pending, &one);
        j->pending_units++;
        g_array_append_val(j->seen[token->choice].ids, token->id);
    }
    for (size_t i = 0; ok && i < first->n_finishes; i++) {
        const Cornserve__Wire__Finish *finish = first->finishes[i];
        ok = finish->choice < j->n_choices;
        if (!ok || !begins[finish->choice])
            continue;
        pack_finish(j->pending, finish->choice, finish->length, finish->stop_id);
        j->seen[finish->choice].finished = true;
        j->seen[finish->choice].stop_id = finish->stop_id;
    }
    for (uint32_t i = 0; ok && i < j->n_choices; i++)
        ok = j->seen[i].ids->len > 0 || j->seen[i].finished;
    g_free(begins);
    j->usage.cached_tokens = first->usage ? first->usage->cached_tokens : 0;
    return ok || cs_fail(error, CS_ERROR_FAILED, "%s: first tokens that are malformed",
                         j->base.job->component);
}

/* --- starting --- */

static bool check_prompt(const llm_job *j, const Cornserve__Wire__Prompt *p, GError **error)
{
    const cs_job *job = j->base.job;
    size_t n_tokens = p->token_ids.len / sizeof(int32_t), n_media = 0;
    for (uint32_t i = 0; i < job->n_inputs; i++)
        n_media += strcmp(job->inputs[i].name, "media") == 0;
    if (is_decode(j)) /* its embeddings go to the prefill */
        n_media = p->n_items;
    if (p->token_ids.len % sizeof(int32_t) == 0 && n_tokens > 0 && n_tokens <= INT32_MAX &&
        (p->positions.len == 0 || p->positions.len == n_tokens * sizeof(int32_t[3])) &&
        p->n_items == n_media && p->n_choices > 0 && p->n_choices <= 1024 &&
        p->n_biases == p->n_bias_ids)
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
    pack_finish(j->pending, choice, goes_on && length, false);
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
    static const cs_llm_sink sink = {
        .on_token = on_token, .on_kv = on_kv, .on_finish = on_finish, .on_done = on_done};
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

static bool submit_parts(llm_job *j, cs_llm_request_options options, GError **error)
{
    bool resumed = false;
    for (uint32_t i = 0; i < j->n_choices; i++)
        resumed = resumed || j->seen[i].ids->len > 0 || j->seen[i].finished;
    options.n_choices = j->n_choices;
    options.import_kv = is_decode(j);
    if (is_prefill(j)) {
        options.export_kv = true;
        options.max_tokens = 1;
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
    if (is_decode(j) && !j->usage_seen && !use_first(j, error))
        return;
    if (!is_prefill(j))
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
    if ((j->prompt || take_prompt(j, &error)) && (!is_decode(j) || poll_kv(j, &error)))
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
        pack_usage(j->pending, &j->usage);
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
    if (!is_prefill(j))
        send_pending(j);
    else if (!error && !send_kv(j, ended, &error) && !error)
        return; /* the doorbell rings when there is room */
    if (ended || error)
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
    if (is_prefill(j))
        look(j);
}

static void read_news(model_job *base)
{
    llm_job *j = (llm_job *)base;
    if (j->begun)
        look(j);
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
    g_queue_clear_full(&j->to_send, (GDestroyNotify)g_bytes_unref);
    g_ptr_array_foreach(j->exported, (GFunc)(void (*)(void))g_bytes_unref, NULL);
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

static bool check_job(const cs_job *job, uint32_t *output, GError **error)
{
    if (model_find_input(job, "attachment", 0) == job->n_inputs)
        return cs_fail(error, CS_ERROR_INVALID, "%s: there is no attachment", job->component);
    if (job->role != CORNSERVE__WIRE__ROLE__BOTH && !check_halves(job, output, error))
        return false;
    if (job->role == CORNSERVE__WIRE__ROLE__PREFILL)
        return true;
    for (uint32_t i = 0; i < job->n_outputs; i++)
        if (job->outputs[i].sender || job->outputs[i].n_local > 0)
            return cs_fail(error, CS_ERROR_UNSUPPORTED,
                           "%s: this executor does not hand out its %s", job->component,
                           job->outputs[i].name);
    while (*output < job->n_outputs && !job->outputs[*output].to_client)
        ++*output;
    return *output < job->n_outputs ||
           cs_fail(error, CS_ERROR_INVALID, "%s: nobody wants its text", job->component);
}

model_job *model_llm_job_new(model *m, cs_job *job, GError **error)
{
    static const model_job_ops ops = {poll_inputs, read_news, cancel, free_job};
    uint32_t output = 0;
    if (!check_job(job, &output, error))
        return NULL;
    llm_job *j = g_new0(llm_job, 1);
    j->base = (model_job){.owner = m, .job = job, .ops = &ops};
    j->output = output;
    j->pending = g_byte_array_new();
    j->exported = g_ptr_array_new();
    g_queue_init(&j->to_send);
    if (is_decode(j))
        j->blocks = g_ptr_array_new_with_free_func((GDestroyNotify)cs_shared_tensor_unref);
    j->provided = g_new0(bool, job->n_inputs + 1);
    return &j->base;
}
