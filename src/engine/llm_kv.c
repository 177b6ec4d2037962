#include "engine/llm_internal.h"

#include "base/error.h"

/* ---- In ---- */

bool llm_kv_add(cs_llm_engine *engine, cs_llm_request *request, cs_shared_tensor *blocks,
                GError **error)
{
    const cs_tensor *t = &blocks->t;
    const uint32_t wanted = llm_blocks_of(request->n_prompt);
    if (!request->import_kv)
        return cs_fail(error, CS_ERROR_INVALID, "KV blocks for a request that imports none");
    if (t->dtype != CS_DTYPE_U8 || (uint64_t)t->cols != engine->llm->kv_block_bytes ||
        t->rows > (int64_t)(wanted - request->n_kv_arrived))
        return cs_fail(error, CS_ERROR_INVALID,
                       "KV blocks: %s [%" G_GINT64_FORMAT ", %" G_GINT64_FORMAT
                       "], expected u8 [up to %u, %zu]",
                       cs_dtype_name(t->dtype), t->rows, t->cols, wanted - request->n_kv_arrived,
                       engine->llm->kv_block_bytes);
    g_ptr_array_add(request->kv, cs_shared_tensor_ref(blocks));
    request->n_kv_arrived += (uint32_t)t->rows;
    return true;
}

bool llm_kv_is_awaited(const cs_llm_request *request)
{
    return request->import_kv && request->n_kv_arrived < llm_blocks_of(request->n_prompt);
}

void llm_kv_import(cs_llm_engine *engine, llm_sequence *sequence)
{
    if (sequence->n_past < sequence->request->n_prompt)
        engine->imports[engine->n_imports++] = sequence;
    sequence->n_past = MAX(sequence->n_past, sequence->request->n_prompt);
}

static bool has_all_embeddings(const cs_llm_request *request)
{
    for (uint32_t i = 0; i < request->n_spans; i++)
        if (!request->items[request->spans[i].item].closed)
            return false;
    return true;
}

static void write_blocks(cs_llm_engine *engine, const llm_sequence *sequence)
{
    cs_llm *llm = engine->llm;
    const GPtrArray *kv = sequence->request->kv;
    uint32_t block = 0;
    for (guint i = 0; i < kv->len; i++) {
        const cs_tensor *t = &((cs_shared_tensor *)kv->pdata[i])->t;
        for (int64_t row = 0; row < t->rows; row++, block++)
            /* What came from the prefix cache is published, and others read it. */
            if (block >= sequence->n_published)
                llm->ops->write_block(llm, sequence->blocks[block],
                                      (const char *)t->data + row * t->stride);
    }
}

void llm_kv_write_imports(cs_llm_engine *engine)
{
    for (uint32_t i = 0; i < engine->n_imports; i++) {
        cs_llm_request *request = engine->imports[i]->request;
        write_blocks(engine, engine->imports[i]);
        if (!has_all_embeddings(request))
            continue;
        request->import_kv = false;
        g_clear_pointer(&request->kv, g_ptr_array_unref);
    }
    engine->n_imports = 0;
}

/* ---- Out ---- */

void llm_kv_export(cs_llm_engine *engine, const llm_sequence *sequence)
{
    cs_llm *llm = engine->llm;
    cs_llm_request *request = sequence->request;
    const uint32_t end = sequence->n_past + sequence->n_new;
    const uint32_t ready =
        end < request->n_prompt ? end / CS_LLM_BLOCK_TOKENS : llm_blocks_of(request->n_prompt);
    if (!request->export_kv)
        return;
    for (; request->n_exported < ready; request->n_exported++) {
        llm->ops->read_block(llm, engine->kv_block, sequence->blocks[request->n_exported]);
        engine->called_sinks = true;
        request->sink.on_kv(request->user, request->n_exported, engine->kv_block);
    }
}
