/* Sampling: from one row of logits to a token.
 *
 * The order of operations is vLLM's and transformers': logit bias (and the ban on stop tokens while
 * fewer than min_tokens are out), repetition penalty, frequency and presence penalties, then
 * greedy (a temperature below 1e-5), or temperature -> top-k -> top-p -> min-p -> draw. Tokens
 * equal to the k-th largest logit all stay. Top-p keeps the shortest run of tokens, largest first
 * and lower ids first among equals, whose mass (after top-k) reaches top_p; min-p drops what is
 * less likely than min_p times the likeliest.
 *
 * Randomness is counter-based (Philox 4x32-10, Salmon et al. 2011): the draw of a token depends on
 * (seed, choice, index of the token) and on its logits alone, so neither batching, preemption nor a
 * resumed generation changes a result. Log-probabilities are of the model's own distribution:
 * before bias, penalties, temperature and truncation.
 *
 * A sampler belongs to one thread and allocates only in cs_sampler_new.
 */
#ifndef CS_ENGINE_SAMPLING_H
#define CS_ENGINE_SAMPLING_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define CS_MAX_LOGPROBS 20

typedef struct {
    int32_t id;
    float logprob;
} cs_token_logprob;

typedef struct {
    int32_t id;
    float bias; /* added to the logit; -INFINITY bans the token */
} cs_token_bias;

typedef struct {
    float temperature;        /* 0: greedy */
    int32_t top_k;            /* 0: off */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    float repetition_penalty; /* 1: off; over prompt and output, as transformers */
    float presence_penalty;   /* 0: off; over output, as the OpenAI API */
    float frequency_penalty;  /* 0: off */
    uint64_t seed;            /* callers draw one for a request that gives none, and keep it */
    int32_t n_logprobs;       /* -1: none; 0..CS_MAX_LOGPROBS alternatives */
    uint32_t n_biases;
    const cs_token_bias *biases; /* an id at most once */
} cs_sampling_params;

/* Greedy, no penalties, no log-probabilities. */
#define CS_SAMPLING_GREEDY                                                                         \
    ((cs_sampling_params){.top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1})

/* CS_ERROR_INVALID naming the parameter: out of its range, NaN, or an id outside the vocabulary. */
bool cs_sampling_params_check(const cs_sampling_params *params, uint32_t vocab_size,
                              GError **error);

/* The tokens of one sequence as the penalties see them. */
typedef struct cs_token_counts cs_token_counts;

/* Room for max_tokens distinct tokens; NULL when there is no memory. */
cs_token_counts *cs_token_counts_new(uint32_t max_tokens);
void cs_token_counts_free(cs_token_counts *counts); /* accepts NULL */
void cs_token_counts_add_prompt(cs_token_counts *counts, int32_t id);
void cs_token_counts_add_output(cs_token_counts *counts, int32_t id);
/* Copies `from`, which was made with at most as much room. */
void cs_token_counts_copy(cs_token_counts *to, const cs_token_counts *from);

/* Whether params need a cs_token_counts. */
bool cs_sampling_params_count_tokens(const cs_sampling_params *params);

typedef struct {
    const cs_sampling_params *params;
    const cs_token_counts *counts; /* NULL unless cs_sampling_params_count_tokens */
    uint32_t n_banned;             /* ids that cannot be drawn now (stop tokens, too early) */
    const int32_t *banned;
    uint32_t choice; /* stream of randomness within the seed */
    uint32_t index;  /* of the token among the generated ones */
} cs_sampling_request;

typedef struct {
    int32_t id;
    float logprob;  /* with n_logprobs >= 0 */
    uint32_t n_top; /* the likeliest tokens, best first */
    cs_token_logprob top[CS_MAX_LOGPROBS];
} cs_sampled_token;

typedef struct cs_sampler cs_sampler;

/* NULL when there is no memory (16 bytes a token of the vocabulary). */
cs_sampler *cs_sampler_new(uint32_t vocab_size);
void cs_sampler_free(cs_sampler *sampler); /* accepts NULL */

/* Draws a token from logits [vocab_size]. CS_ERROR_FAILED when they hold a NaN, an infinity or
 * nothing finite; CS_ERROR_INVALID when bias and bans leave no token. */
bool cs_sampler_draw(cs_sampler *sampler, const float *logits, const cs_sampling_request *request,
                     cs_sampled_token *token, GError **error);

/* The uniform number in [0, 1) of a draw; 53 bits. */
double cs_sampling_uniform(uint64_t seed, uint32_t choice, uint32_t index);

#endif
