#include "engine/llm_internal.h"

#include "base/error.h"
#include "base/os.h"

#include <string.h>

/* ---- Checks ---- */

static bool check_ids(const cs_llm_engine *engine, const char *what, uint32_t n, const int32_t *ids,
                      GError **error)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= engine->llm->vocab_size)
            return cs_fail(error, CS_ERROR_INVALID, "%s %u: id %d, expected 0 to %u", what, i,
                           ids[i], engine->llm->vocab_size - 1);
    return true;
}

static bool check_positions(const cs_llm_engine *engine, const cs_llm_request_options *options,
                            GError **error)
{
    if (!options->positions)
        return true;
    for (uint32_t i = 0; i < options->n_tokens; i++)
        for (int axis = 0; axis < 3; axis++)
            if (options->positions[i][axis] < 0)
                return cs_fail(error, CS_ERROR_INVALID, "prompt token %u: position %d on axis %d",
                               i, options->positions[i][axis], axis);
    if (options->next_position < 0 ||
        (uint32_t)options->next_position > INT32_MAX - engine->capacity_tokens)
        return cs_fail(error, CS_ERROR_INVALID, "next position: %d", options->next_position);
    return true;
}

static bool check_item(const cs_llm_engine *engine, uint32_t index, const cs_llm_input_item *item,
                       GError **error)
{
    if (!item->tensor)
        return true;
    const cs_tensor *t = &item->tensor->t;
    if (t->dtype != CS_DTYPE_F32 || t->cols != llm_input_size(engine) || t->rows > UINT32_MAX ||
        (item->n_rows > 0 && t->rows != item->n_rows))
        return cs_fail(error, CS_ERROR_INVALID,
                       "embeddings of item %u: %s [%" G_GINT64_FORMAT ", %" G_GINT64_FORMAT
                       "], expected f32 [%u, %u]",
                       index, cs_dtype_name(t->dtype), t->rows, t->cols, item->n_rows,
                       llm_input_size(engine));
    return true;
}

static bool check_span(const cs_llm_request_options *options, uint32_t index, uint64_t free_row,
                       GError **error)
{
    const cs_llm_input_span *span = &options->spans[index];
    if (span->n == 0 || span->row < free_row || (uint64_t)span->row + span->n > options->n_tokens)
        return cs_fail(error, CS_ERROR_INVALID,
                       "span %u: rows %u + %u, expected some from %" G_GUINT64_FORMAT
                       " to below %u",
                       index, span->row, span->n, free_row, options->n_tokens);
    if (span->item >= options->n_items)
        return cs_fail(error, CS_ERROR_INVALID, "span %u: item %u, expected below %u", index,
                       span->item, options->n_items);
    if ((uint64_t)span->source_row + span->n > options->items[span->item].n_rows)
        return cs_fail(error, CS_ERROR_INVALID, "span %u: rows %u + %u of item %u, which has %u",
                       index, span->source_row, span->n, span->item,
                       options->items[span->item].n_rows);
    return true;
}

static bool check_inputs(const cs_llm_engine *engine, const cs_llm_request_options *options,
                         GError **error)
{
    for (uint32_t i = 0; i < options->n_items; i++)
        if (!check_item(engine, i, &options->items[i], error))
            return false;
    uint64_t free_row = 0;
    for (uint32_t i = 0; i < options->n_spans; i++) {
        if (!check_span(options, i, free_row, error))
            return false;
        free_row = (uint64_t)options->spans[i].row + options->spans[i].n;
    }
    if (options->has_reply_item && options->reply_item >= options->n_items)
        return cs_fail(error, CS_ERROR_INVALID, "reply item %u, expected below %u",
                       options->reply_item, options->n_items);
    return true;
}

static bool check_choices(const cs_llm_engine *engine, const cs_llm_request_options *options,
                          GError **error)
{
    if (options->n_choices > engine->options.max_sequences)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "n: %u, expected at most %u", options->n_choices,
                       engine->options.max_sequences);
    if (options->n_generated > 0 && options->n_choices > 1)
        return cs_fail(error, CS_ERROR_INVALID, "n: %u, a resumed generation has one choice",
                       options->n_choices);
    if ((uint64_t)options->first_choice + options->n_choices > UINT32_MAX)
        return cs_fail(error, CS_ERROR_INVALID, "first choice: %u", options->first_choice);
    if (options->hidden_states && !engine->hidden)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: this engine gives no hidden states",
                       engine->name);
    return true;
}

static bool check_transfer(const cs_llm_engine *engine, const cs_llm_request_options *options,
                           GError **error)
{
    const cs_llm_ops *ops = engine->llm->ops;
    if ((options->export_kv && !ops->read_block) || (options->import_kv && !ops->write_block))
        return cs_fail(error, CS_ERROR_UNSUPPORTED,
                       "%s: this component does not hand its KV cache out or in", engine->name);
    if (options->import_kv && options->n_generated == 0)
        return cs_fail(error, CS_ERROR_INVALID,
                       "import of KV: no token generated, expected the prompt's first");
    if (options->import_kv && options->hidden_states &&
        options->hidden_from_row < options->n_tokens)
        return cs_fail(error, CS_ERROR_INVALID,
                       "import of KV: hidden states from row %u on, those of the %u imported rows "
                       "are not computed",
                       options->hidden_from_row, options->n_tokens);
    return true;
}

static bool check_sizes(const cs_llm_engine *engine, const cs_llm_request_options *options,
                        GError **error)
{
    uint64_t total = (uint64_t)options->n_tokens + options->max_tokens;
    uint32_t kv_tokens = cs_kv_cache_total(engine->kv) * CS_LLM_BLOCK_TOKENS;
    if (options->max_tokens == 0)
        total = (uint64_t)options->n_tokens + MAX(options->n_generated, 1);
    if (total > engine->options.max_context_tokens)
        return cs_fail(error, CS_ERROR_OVER_CONTEXT,
                       "prompt of %u tokens and %" G_GUINT64_FORMAT
                       " of output, over the context of %u tokens",
                       options->n_tokens, total - options->n_tokens,
                       engine->options.max_context_tokens);
    if (total > engine->capacity_tokens)
        return cs_fail(error, CS_ERROR_TOO_LARGE,
                       "prompt of %u tokens and %" G_GUINT64_FORMAT
                       " of output, over the whole KV memory of %u tokens",
                       options->n_tokens, total - options->n_tokens, kv_tokens);
    if (options->max_tokens > 0 && options->n_generated > options->max_tokens)
        return cs_fail(error, CS_ERROR_INVALID, "%u tokens generated already, over max_tokens %u",
                       options->n_generated, options->max_tokens);
    return true;
}

static bool check_options(const cs_llm_engine *engine, const cs_llm_request_options *options,
                          GError **error)
{
    if (options->n_tokens == 0)
        return cs_fail(error, CS_ERROR_INVALID, "prompt: no tokens, expected at least one");
    return check_sizes(engine, options, error) &&
           check_ids(engine, "prompt token", options->n_tokens, options->token_ids, error) &&
           check_ids(engine, "generated token", options->n_generated, options->generated, error) &&
           check_ids(engine, "stop id", options->n_stop_ids, options->stop_ids, error) &&
           check_positions(engine, options, error) && check_inputs(engine, options, error) &&
           check_choices(engine, options, error) && check_transfer(engine, options, error) &&
           cs_sampling_params_check(&options->sampling, engine->llm->vocab_size, error);
}

/* ---- Copies ---- */

/* An array of at least one element, so that NULL means no memory. */
#define TRY_NEW(type, n) g_try_malloc_n(MAX((size_t)(n), 1), sizeof(type))

static void *try_copy(const void *from, size_t n, size_t size_bytes)
{
    void *copy = g_try_malloc_n(MAX(n, 1), size_bytes);
    if (copy && n > 0)
        memcpy(copy, from, n * size_bytes);
    return copy;
}

static bool copy_prompt(cs_llm_request *request, const cs_llm_request_options *options)
{
    uint32_t n = options->n_tokens;
    request->n_prompt = n;
    request->prompt = try_copy(options->token_ids, n, sizeof(int32_t));
    request->positions = TRY_NEW(int32_t[3], n);
    request->n_spans = options->n_spans;
    request->spans = try_copy(options->spans, options->n_spans, sizeof *options->spans);
    if (!request->prompt || !request->positions || !request->spans)
        return false;
    request->next_position = options->positions ? options->next_position : (int32_t)n;
    if (options->positions)
        memcpy(request->positions, options->positions, n * sizeof *request->positions);
    for (uint32_t row = 0; !options->positions && row < n; row++)
        for (int axis = 0; axis < 3; axis++)
            request->positions[row][axis] = (int32_t)row;
    return true;
}

static void add_chunk(llm_item *item, cs_shared_tensor *rows)
{
    llm_item_chunk chunk = {.rows = cs_shared_tensor_ref(rows), .first_row = item->n_arrived};
    g_array_append_val(item->chunks, chunk);
    item->n_arrived += (uint32_t)rows->t.rows;
}

static bool copy_items(cs_llm_request *request, const cs_llm_request_options *options)
{
    request->items = TRY_NEW(llm_item, options->n_items);
    if (!request->items)
        return false;
    request->n_items = options->n_items;
    for (uint32_t i = 0; i < options->n_items; i++) {
        const cs_llm_input_item *from = &options->items[i];
        llm_item *item = &request->items[i];
        *item = (llm_item){.n_rows = from->n_rows,
                           .chunks = g_array_new(FALSE, FALSE, sizeof(llm_item_chunk))};
        memcpy(item->content_hash, from->content_hash, sizeof item->content_hash);
        if (from->tensor) {
            add_chunk(item, from->tensor);
            item->n_rows = item->n_arrived;
            item->closed = true;
        }
    }
    request->has_reply_item = options->has_reply_item;
    request->reply_item = options->reply_item;
    return true;
}

static bool copy_sampling(cs_llm_request *request, const cs_llm_request_options *options)
{
    const cs_sampling_params *from = &options->sampling;
    request->sampling = *from;
    request->sampling.biases = try_copy(from->biases, from->n_biases, sizeof *from->biases);
    request->n_stop_ids = options->n_stop_ids;
    request->stop_ids = try_copy(options->stop_ids, options->n_stop_ids, sizeof(int32_t));
    request->min_tokens = options->min_tokens;
    return request->sampling.biases && request->stop_ids;
}

static bool count_tokens(const cs_llm_engine *engine, llm_sequence *sequence)
{
    const cs_llm_request *request = sequence->request;
    if (!cs_sampling_params_count_tokens(&request->sampling))
        return true;
    uint64_t distinct = (uint64_t)request->n_prompt + request->max_tokens;
    sequence->counts = cs_token_counts_new((uint32_t)MIN(distinct, engine->llm->vocab_size));
    if (!sequence->counts)
        return false;
    for (uint32_t i = 0; i < request->n_prompt; i++)
        cs_token_counts_add_prompt(sequence->counts, request->prompt[i]);
    for (uint32_t i = 0; i < sequence->n_generated; i++)
        cs_token_counts_add_output(sequence->counts, sequence->generated[i]);
    return true;
}

static bool make_sequence(const cs_llm_engine *engine, cs_llm_request *request, uint32_t index,
                          const cs_llm_request_options *options)
{
    llm_sequence *sequence = &request->sequences[index];
    sequence->request = request;
    sequence->choice = options->first_choice + index;
    sequence->generated = TRY_NEW(int32_t, request->max_tokens);
    sequence->blocks = TRY_NEW(int32_t, request->capacity_blocks);
    sequence->keys = TRY_NEW(cs_kv_key, request->capacity_blocks);
    if (!sequence->generated || !sequence->blocks || !sequence->keys)
        return false;
    sequence->n_generated = options->n_generated;
    if (options->n_generated > 0)
        memcpy(sequence->generated, options->generated, options->n_generated * sizeof(int32_t));
    sequence->n_hidden_done = request->hidden_states ? options->hidden_from_row : UINT32_MAX;
    return count_tokens(engine, sequence);
}

static bool make_sequences(const cs_llm_engine *engine, cs_llm_request *request,
                           const cs_llm_request_options *options)
{
    request->max_tokens =
        options->max_tokens > 0 ? options->max_tokens : engine->capacity_tokens - options->n_tokens;
    /* The last token is never an input. */
    request->capacity_blocks = llm_blocks_of((uint64_t)request->n_prompt + request->max_tokens - 1);
    request->n_choices = request->n_live = MAX(options->n_choices, 1);
    request->sequences = g_try_new0(llm_sequence, request->n_choices);
    if (!request->sequences)
        return false;
    for (uint32_t i = 0; i < request->n_choices; i++)
        if (!make_sequence(engine, request, i, options))
            return false;
    return true;
}

static uint32_t cacheable_rows(const cs_llm_request *request)
{
    for (uint32_t i = 0; i < request->n_spans; i++) {
        const llm_item *item = &request->items[request->spans[i].item];
        if (item->content_hash[0] == 0 && item->content_hash[1] == 0)
            return request->spans[i].row;
    }
    return request->has_reply_item ? request->n_prompt : UINT32_MAX;
}

static bool copy_options(const cs_llm_engine *engine, cs_llm_request *request,
                         const cs_llm_request_options *options)
{
    request->hidden_states = options->hidden_states;
    request->export_kv = options->export_kv;
    request->pace = options->pace;
    request->asked_us = cs_now_us();
    request->import_kv = options->import_kv;
    if (options->import_kv)
        request->kv = g_ptr_array_new_with_free_func((GDestroyNotify)cs_shared_tensor_unref);
    memcpy(request->cache_salt, options->cache_salt, sizeof request->cache_salt);
    if (!copy_prompt(request, options) || !copy_items(request, options) ||
        !copy_sampling(request, options) || !make_sequences(engine, request, options))
        return false;
    request->n_cacheable_rows = cacheable_rows(request);
    request->usage.prompt_tokens = request->n_prompt;
    return true;
}

/* ---- Life ---- */

cs_llm_request *llm_request_new(const cs_llm_engine *engine, const cs_llm_request_options *options,
                                const cs_llm_sink *sink, void *user, GError **error)
{
    if (!check_options(engine, options, error))
        return NULL;
    cs_llm_request *request = g_new0(cs_llm_request, 1);
    request->refs = 1;
    request->inbox = llm_inbox_ref(engine->inbox);
    request->sink = *sink;
    request->user = user;
    if (!copy_options(engine, request, options)) {
        llm_request_unref(request);
        cs_fail(error, CS_ERROR_FAILED, "%s: no memory for a request of %u tokens", engine->name,
                options->n_tokens);
        return NULL;
    }
    return request;
}

cs_llm_request *llm_request_ref(cs_llm_request *request)
{
    g_atomic_int_inc(&request->refs);
    return request;
}

static void free_items(cs_llm_request *request)
{
    for (uint32_t i = 0; i < request->n_items; i++) {
        GArray *chunks = request->items[i].chunks;
        for (guint j = 0; j < chunks->len; j++)
            cs_shared_tensor_unref(g_array_index(chunks, llm_item_chunk, j).rows);
        g_array_unref(chunks);
    }
    g_free(request->items);
}

static void free_sequences(cs_llm_request *request)
{
    for (uint32_t i = 0; request->sequences && i < request->n_choices; i++) {
        llm_sequence *sequence = &request->sequences[i];
        g_free(sequence->generated);
        g_free(sequence->blocks);
        g_free(sequence->keys);
        cs_token_counts_free(sequence->counts);
    }
    g_free(request->sequences);
}

void llm_request_unref(cs_llm_request *request)
{
    if (!request || !g_atomic_int_dec_and_test(&request->refs))
        return;
    free_sequences(request);
    free_items(request);
    g_clear_pointer(&request->kv, g_ptr_array_unref);
    g_free(request->prompt);
    g_free(request->positions);
    g_free(request->spans);
    g_free((void *)request->sampling.biases);
    g_free(request->stop_ids);
    llm_inbox_unref(request->inbox);
    g_free(request);
}

/* ---- Items ---- */

bool llm_request_add_rows(cs_llm_request *request, uint32_t index, cs_shared_tensor *rows,
                          bool last, uint32_t width, GError **error)
{
    if (index >= request->n_items)
        return cs_fail(error, CS_ERROR_INVALID, "embeddings of item %u, the request has %u", index,
                       request->n_items);
    llm_item *item = &request->items[index];
    const cs_tensor *t = rows ? &rows->t : NULL;
    if (item->closed)
        return cs_fail(error, CS_ERROR_INVALID, "embeddings of item %u: it is complete already",
                       index);
    if (t && (t->dtype != CS_DTYPE_F32 || t->cols != width))
        return cs_fail(error, CS_ERROR_INVALID,
                       "embeddings of item %u: %s of width %" G_GINT64_FORMAT
                       ", expected f32 of width %u",
                       index, cs_dtype_name(t->dtype), t->cols, width);
    uint64_t total = item->n_arrived + (uint64_t)(t ? t->rows : 0);
    uint64_t limit = item->n_rows > 0 ? item->n_rows : UINT32_MAX;
    if (total > limit || (last && item->n_rows > 0 && total < limit))
        return cs_fail(error, CS_ERROR_INVALID,
                       "embeddings of item %u: %" G_GUINT64_FORMAT
                       " rows, expected %" G_GUINT64_FORMAT,
                       index, total, limit);
    if (last && total == 0)
        return cs_fail(error, CS_ERROR_INVALID, "embeddings of item %u: no rows", index);
    if (t && t->rows > 0)
        add_chunk(item, rows);
    item->closed = last;
    return true;
}

/* The first span that ends after `row`; n_spans when there is none. */
static uint32_t span_after(const cs_llm_request *request, uint32_t row)
{
    uint32_t low = 0, high = request->n_spans;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const cs_llm_input_span *span = &request->spans[middle];
        if (span->row + span->n > row)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static bool reply_source(const cs_llm_request *request, uint32_t row, uint32_t *item,
                         uint32_t *source_row, uint32_t *n_run)
{
    const llm_item *reply = &request->items[request->reply_item];
    *item = request->reply_item;
    *source_row = row - request->n_prompt;
    if (reply->closed && *source_row >= reply->n_arrived)
        *source_row = reply->n_arrived - 1;
    *n_run = 1;
    return true;
}

bool llm_request_source(const cs_llm_request *request, uint32_t row, uint32_t limit, uint32_t *item,
                        uint32_t *source_row, uint32_t *n_run)
{
    *n_run = limit;
    if (row >= request->n_prompt)
        return request->has_reply_item && reply_source(request, row, item, source_row, n_run);
    *n_run = MIN(limit, request->n_prompt - row);
    uint32_t index = span_after(request, row);
    if (index == request->n_spans)
        return false;
    const cs_llm_input_span *span = &request->spans[index];
    if (row < span->row) {
        *n_run = MIN(*n_run, span->row - row);
        return false;
    }
    *item = span->item;
    *source_row = span->source_row + (row - span->row);
    *n_run = MIN(*n_run, span->row + span->n - row);
    return true;
}

/* ---- Rows of a sequence ---- */

int32_t llm_sequence_token(const llm_sequence *sequence, uint32_t row)
{
    const cs_llm_request *request = sequence->request;
    return row < request->n_prompt ? request->prompt[row]
                                   : sequence->generated[row - request->n_prompt];
}

void llm_sequence_position(const llm_sequence *sequence, uint32_t row, int32_t position[3])
{
    const cs_llm_request *request = sequence->request;
    for (int axis = 0; axis < 3; axis++)
        position[axis] = row < request->n_prompt
                             ? request->positions[row][axis]
                             : request->next_position + (int32_t)(row - request->n_prompt);
}

void llm_sequence_kv_rows(const llm_sequence *sequence, uint32_t block,
                          cs_kv_row rows[CS_LLM_BLOCK_TOKENS])
{
    const cs_llm_request *request = sequence->request;
    const uint32_t first = block * CS_LLM_BLOCK_TOKENS;
    for (uint32_t i = 0, n_run; i < CS_LLM_BLOCK_TOKENS; i += n_run) {
        uint32_t item = 0, source_row = 0;
        bool spanned = llm_request_source(request, first + i, CS_LLM_BLOCK_TOKENS - i, &item,
                                          &source_row, &n_run);
        for (uint32_t j = i; j < i + n_run; j++) {
            rows[j] = (cs_kv_row){.token_id = llm_sequence_token(sequence, first + j)};
            llm_sequence_position(sequence, first + j, rows[j].position);
            if (spanned) {
                memcpy(rows[j].content_hash, request->items[item].content_hash,
                       sizeof rows[j].content_hash);
                rows[j].source_row = source_row + (j - i);
            }
        }
    }
}

bool llm_sequence_row_is_ready(const llm_sequence *sequence, uint32_t row)
{
    const cs_llm_request *request = sequence->request;
    uint32_t item, source_row, n_run;
    return !request->held && (!llm_request_source(request, row, 1, &item, &source_row, &n_run) ||
                              source_row < request->items[item].n_arrived);
}

uint32_t llm_sequence_ready_rows(const llm_sequence *sequence, uint32_t limit)
{
    const cs_llm_request *request = sequence->request;
    const uint32_t todo =
        request->held ? 0 : MIN(limit, llm_sequence_rows(sequence) - sequence->n_past);
    uint32_t ready = 0;
    while (ready < todo) {
        uint32_t item, source_row, n_run;
        if (llm_request_source(request, sequence->n_past + ready, todo - ready, &item, &source_row,
                               &n_run)) {
            uint32_t arrived = request->items[item].n_arrived;
            if (arrived < source_row + n_run)
                return ready + (arrived > source_row ? arrived - source_row : 0);
        }
        ready += n_run;
    }
    return ready;
}
