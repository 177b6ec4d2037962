/* How much memory a KV cache may take when nobody says it. */
#ifndef CS_RUNTIME_MEMORY_H
#define CS_RUNTIME_MEMORY_H

#include "engine/llm_engine.h"

/* Half of this share (at most 1) of what is free once the weights are there, but no more than all
 * sequences at full length could fill, and at least a few blocks. */
size_t cs_kv_budget_bytes(const cs_llm *llm, const cs_llm_engine_options *options, double share);

#endif
