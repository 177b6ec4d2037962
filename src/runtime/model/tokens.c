#include "runtime/model/tokens.h"

void model_tokens_pack(GByteArray *to, const Cornserve__Wire__Tokens *tokens)
{
    guint at = to->len;
    size_t size_bytes = cornserve__wire__tokens__get_packed_size(tokens);
    g_byte_array_set_size(to, at + (guint)size_bytes);
    cornserve__wire__tokens__pack(tokens, to->data + at);
}

void model_tokens_token(GByteArray *to, uint32_t choice, const cs_sampled_token *sampled)
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
    model_tokens_pack(to, &tokens);
}

void model_tokens_finish(GByteArray *to, uint32_t choice, bool length, bool stop_id)
{
    Cornserve__Wire__Tokens tokens = CORNSERVE__WIRE__TOKENS__INIT;
    Cornserve__Wire__Finish finish = CORNSERVE__WIRE__FINISH__INIT, *one = &finish;
    finish.choice = choice;
    finish.length = length;
    finish.stop_id = stop_id;
    tokens.n_finishes = 1;
    tokens.finishes = &one;
    model_tokens_pack(to, &tokens);
}

void model_tokens_usage(GByteArray *to, const cs_llm_usage *from)
{
    Cornserve__Wire__Tokens tokens = CORNSERVE__WIRE__TOKENS__INIT;
    Cornserve__Wire__Usage usage = CORNSERVE__WIRE__USAGE__INIT;
    usage.prompt_tokens = from->prompt_tokens;
    usage.cached_tokens = from->cached_tokens;
    usage.completion_tokens = from->completion_tokens;
    tokens.usage = &usage;
    model_tokens_pack(to, &tokens);
}
