/* From a prefill to its decode:  KV blocks, rows that a talker hears, at last the first Tokens. */
#include "base/error.h"
#include "runtime/model/llm_internal.h"

#include <string.h>

typedef enum { CHUNK_BLOCK, CHUNK_ROWS, CHUNK_TOKENS } chunk_kind; /* the chunk's tag */

struct llm_chunk {
    GBytes *bytes;
    chunk_kind kind;
};

static llm_chunk *new_chunk(GBytes *bytes, chunk_kind kind)
{
    llm_chunk *chunk = g_new(llm_chunk, 1);
    *chunk = (llm_chunk){bytes, kind};
    return chunk;
}

void llm_chunk_free(void *data)
{
    llm_chunk *chunk = data;
    g_bytes_unref(chunk->bytes);
    g_free(chunk);
}

llm_chunk *llm_chunk_of_block(const llm_job *j, const void *bytes)
{
    return new_chunk(g_bytes_new(bytes, j->base.owner->kv_block_bytes), CHUNK_BLOCK);
}

static void unref_rows(void *rows)
{
    cs_shared_tensor_unref(rows);
}

llm_chunk *llm_chunk_of_rows(cs_shared_tensor *rows)
{
    gsize size_bytes = (gsize)(rows->t.rows * rows->t.cols) * sizeof(float);
    return new_chunk(g_bytes_new_with_free_func(rows->t.data, size_bytes, unref_rows,
                                                cs_shared_tensor_ref(rows)),
                     CHUNK_ROWS);
}

/* --- sending --- */

/* False: there is no room now, or *error. */
static bool put_chunk(llm_job *j, GBytes *bytes, chunk_kind kind, GError **error)
{
    g_autoptr(GError) why = NULL;
    cs_chunk_desc desc = {
        .type = CS_DTYPE_U8, .rank = 2, .shape = {1, g_bytes_get_size(bytes)}, .tag = kind};
    if (cs_sender_put_bytes(j->base.job->outputs[j->output].sender, bytes, &desc, 0, &why))
        return true;
    if (!g_error_matches(why, CS_ERROR, CS_ERROR_BUSY))
        g_propagate_error(error, g_steal_pointer(&why));
    return false;
}

bool llm_send_kv(llm_job *j, bool ended, GError **error)
{
    model *m = j->base.owner;
    pthread_mutex_lock(&m->lock);
    for (guint i = 0; i < j->exported->len; i++)
        g_queue_push_tail(&j->to_send, j->exported->pdata[i]);
    g_ptr_array_set_size(j->exported, 0); /* they are not freed with it */
    pthread_mutex_unlock(&m->lock);
    while (j->to_send.length > 0) {
        const llm_chunk *chunk = j->to_send.head->data;
        if (!put_chunk(j, chunk->bytes, chunk->kind, error))
            return false;
        llm_chunk_free(g_queue_pop_head(&j->to_send));
    }
    if (!ended || j->tokens_sent)
        return j->tokens_sent;
    /* nothing adds to it any more */
    g_autoptr(GBytes) tokens = g_bytes_new(j->pending->data, j->pending->len);
    j->tokens_sent = put_chunk(j, tokens, CHUNK_TOKENS, error);
    return j->tokens_sent;
}

/* --- taking --- */

static bool take_block(llm_job *j, const cs_chunk *chunk, GError **error)
{
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

/* Goes on to the talker before the decode's own rows. */
static bool take_rows(llm_job *j, const cs_chunk *chunk, GError **error)
{
    const cs_speech *speech = j->base.owner->checkpoint->speech;
    size_t row_bytes = speech ? speech->heard_size * sizeof(float) : 0;
    if (j->hidden == j->base.job->n_outputs || row_bytes == 0 || chunk->size_bytes == 0 ||
        chunk->size_bytes % row_bytes != 0)
        return cs_fail(error, CS_ERROR_FAILED, "%s: states that are malformed",
                       j->base.job->component);
    g_autoptr(cs_shared_tensor) rows = cs_shared_tensor_new(
        CS_DTYPE_F32, (int64_t)(chunk->size_bytes / row_bytes), speech->heard_size);
    if (!rows)
        return cs_fail(error, CS_ERROR_FAILED, "%s: no memory", j->base.job->component);
    memcpy(rows->t.data, chunk->data, chunk->size_bytes);
    model_stream_put(&j->base, &j->heard, rows);
    return true;
}

static bool take_chunk(llm_job *j, const cs_chunk *chunk, GError **error)
{
    if (chunk->desc.tag == CHUNK_BLOCK)
        return take_block(j, chunk, error);
    if (chunk->desc.tag == CHUNK_ROWS)
        return take_rows(j, chunk, error);
    j->first = cornserve__wire__tokens__unpack(NULL, chunk->size_bytes, chunk->data);
    return j->first ||
           cs_fail(error, CS_ERROR_FAILED, "%s: tokens that are malformed", j->base.job->component);
}

bool llm_take_kv(llm_job *j, GError **error)
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
        bool ok = take_chunk(j, &chunk, error);
        cs_receiver_release(receiver, j->n_chunks++);
        if (!ok)
            return false;
    }
    return true;
}

bool llm_use_first(llm_job *j, GError **error)
{
    const Cornserve__Wire__Tokens *first = j->first;
    j->usage.cached_tokens = first->usage ? first->usage->cached_tokens : 0;
    if (j->prompt->aloud.len > 0) /* it begins with other words */
        return true;
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
        model_tokens_pack(j->pending, &one);
        j->pending_units++;
        g_array_append_val(j->seen[token->choice].ids, token->id);
    }
    for (size_t i = 0; ok && i < first->n_finishes; i++) {
        const Cornserve__Wire__Finish *finish = first->finishes[i];
        ok = finish->choice < j->n_choices;
        if (!ok || !begins[finish->choice])
            continue;
        model_tokens_finish(j->pending, finish->choice, finish->length, finish->stop_id);
        j->seen[finish->choice].finished = true;
        j->seen[finish->choice].stop_id = finish->stop_id;
    }
    for (uint32_t i = 0; ok && i < j->n_choices; i++)
        ok = j->seen[i].ids->len > 0 || j->seen[i].finished;
    g_free(begins);
    return ok || cs_fail(error, CS_ERROR_FAILED, "%s: first tokens that are malformed",
                         j->base.job->component);
}
