#include "runtime/memory.h"

#include "base/os.h"

/* The rest of what is free is for media, activations and everybody else. */
#define KV_FRACTION_OF_FREE 0.5

size_t cs_kv_budget_bytes(const cs_llm *llm, const cs_llm_engine_options *options, double share)
{
    uint64_t context =
        options->max_context_tokens ? options->max_context_tokens : llm->max_context_tokens;
    uint64_t useful =
        (context / CS_LLM_BLOCK_TOKENS + 1) * options->max_sequences * llm->kv_block_bytes;
    uint64_t budget = (uint64_t)((double)cs_memory_free_bytes() * KV_FRACTION_OF_FREE * share);
    return MAX(MIN(budget, useful), llm->kv_block_bytes * 4);
}
