/* Tokens of proto/runtime.proto, packed one behind the other: laid end to end they are one message.
 */
#ifndef CS_RUNTIME_MODEL_TOKENS_H
#define CS_RUNTIME_MODEL_TOKENS_H

#include "engine/llm_engine.h"
#include "runtime.pb-c.h"

void model_tokens_pack(GByteArray *to, const Cornserve__Wire__Tokens *tokens);
void model_tokens_token(GByteArray *to, uint32_t choice, const cs_sampled_token *sampled);
void model_tokens_finish(GByteArray *to, uint32_t choice, bool length, bool stop_id);
void model_tokens_usage(GByteArray *to, const cs_llm_usage *usage);

#endif
