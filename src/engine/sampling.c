#include "engine/sampling.h"

#include "base/error.h"
#include "engine/row_scan.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* vLLM's bound: a temperature below it is greedy. */
#define GREEDY_BELOW 1e-5f

/* ---- Parameters ---- */

static bool check_range(const char *name, float value, float low, float high, GError **error)
{
    if (value >= low && value <= high)
        return true;
    return cs_fail(error, CS_ERROR_INVALID, "%s: %g, expected %g to %g", name, (double)value,
                   (double)low, (double)high);
}

static bool check_biases(const cs_sampling_params *params, uint32_t vocab_size, GError **error)
{
    for (uint32_t i = 0; i < params->n_biases; i++) {
        const cs_token_bias *bias = &params->biases[i];
        if (bias->id < 0 || (uint32_t)bias->id >= vocab_size)
            return cs_fail(error, CS_ERROR_INVALID,
                           "logit_bias: token %d, expected 0 to %u (the vocabulary)", bias->id,
                           vocab_size - 1);
        if (!(bias->bias < INFINITY))
            return cs_fail(error, CS_ERROR_INVALID,
                           "logit_bias: %g for token %d, expected a finite number",
                           (double)bias->bias, bias->id);
    }
    return true;
}

bool cs_sampling_params_check(const cs_sampling_params *params, uint32_t vocab_size, GError **error)
{
    if (params->top_k < 0)
        return cs_fail(error, CS_ERROR_INVALID, "top_k: %d, expected 0 (off) or more",
                       params->top_k);
    if (!(params->top_p > 0))
        return cs_fail(error, CS_ERROR_INVALID, "top_p: %g, expected above 0 and up to 1",
                       (double)params->top_p);
    if (!(params->repetition_penalty > 0))
        return cs_fail(error, CS_ERROR_INVALID, "repetition_penalty: %g, expected above 0 to 100",
                       (double)params->repetition_penalty);
    if (params->n_logprobs < -1 || params->n_logprobs > CS_MAX_LOGPROBS)
        return cs_fail(error, CS_ERROR_INVALID, "logprobs: %d, expected 0 to %d",
                       params->n_logprobs, CS_MAX_LOGPROBS);
    return check_range("temperature", params->temperature, 0, 100, error) &&
           check_range("top_p", params->top_p, 0, 1, error) &&
           check_range("min_p", params->min_p, 0, 1, error) &&
           check_range("repetition_penalty", params->repetition_penalty, 0, 100, error) &&
           check_range("presence_penalty", params->presence_penalty, -100, 100, error) &&
           check_range("frequency_penalty", params->frequency_penalty, -100, 100, error) &&
           check_biases(params, vocab_size, error);
}

bool cs_sampling_params_count_tokens(const cs_sampling_params *params)
{
    return params->repetition_penalty != 1.0f || params->presence_penalty != 0 ||
           params->frequency_penalty != 0;
}

/* ---- Token counts: an open-addressing table that is also a list ---- */

typedef struct {
    int32_t id;
    uint32_t in_output; /* times; the prompt counts only by the entry's existence */
} counted_token;

struct cs_token_counts {
    uint32_t n, capacity;
    uint32_t mask;   /* size of the table - 1, at least twice the capacity */
    uint32_t *slots; /* index into entries + 1, 0: empty */
    counted_token *entries;
};

cs_token_counts *cs_token_counts_new(uint32_t max_tokens)
{
    uint64_t size = 16;
    while (size < 2 * (uint64_t)max_tokens)
        size *= 2;
    cs_token_counts *counts = g_try_new0(cs_token_counts, 1);
    if (!counts)
        return NULL;
    counts->capacity = max_tokens;
    counts->mask = (uint32_t)(size - 1);
    counts->slots = g_try_new0(uint32_t, size);
    counts->entries = g_try_new(counted_token, MAX(max_tokens, 1));
    if (!counts->slots || !counts->entries) {
        cs_token_counts_free(counts);
        return NULL;
    }
    return counts;
}

void cs_token_counts_free(cs_token_counts *counts)
{
    if (!counts)
        return;
    g_free(counts->slots);
    g_free(counts->entries);
    g_free(counts);
}

static counted_token *find_or_add(cs_token_counts *counts, int32_t id)
{
    uint32_t at = ((uint32_t)id * 2654435769u) & counts->mask;
    while (counts->slots[at]) {
        counted_token *entry = &counts->entries[counts->slots[at] - 1];
        if (entry->id == id)
            return entry;
        at = (at + 1) & counts->mask;
    }
    g_assert(counts->n < counts->capacity);
    counted_token *entry = &counts->entries[counts->n++];
    *entry = (counted_token){.id = id};
    counts->slots[at] = counts->n;
    return entry;
}

void cs_token_counts_add_prompt(cs_token_counts *counts, int32_t id)
{
    find_or_add(counts, id);
}

void cs_token_counts_add_output(cs_token_counts *counts, int32_t id)
{
    find_or_add(counts, id)->in_output++;
}

void cs_token_counts_copy(cs_token_counts *to, const cs_token_counts *from)
{
    g_assert(to->n == 0);
    for (uint32_t i = 0; i < from->n; i++)
        find_or_add(to, from->entries[i].id)->in_output = from->entries[i].in_output;
}

/* ---- Randomness ---- */

static inline void philox_round(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    uint64_t a = (uint64_t)0xD2511F53u * c[0];
    uint64_t b = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t c1 = c[1], c3 = c[3];
    c[0] = (uint32_t)(b >> 32) ^ c1 ^ k0;
    c[1] = (uint32_t)b;
    c[2] = (uint32_t)(a >> 32) ^ c3 ^ k1;
    c[3] = (uint32_t)a;
}

double cs_sampling_uniform(uint64_t seed, uint32_t choice, uint32_t index)
{
    uint32_t c[4] = {index, choice, 0, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++) {
        philox_round(c, k0, k1);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    uint64_t bits = ((uint64_t)c[0] << 32 | c[1]) >> 11;
    return (double)bits * 0x1p-53;
}

/* ---- The sampler ---- */

/* Of weights up to 1. */
#define N_BUCKETS ((0x3F800000u >> 17) + 1)

struct cs_sampler {
    const cs_row_scan *scan;
    uint32_t vocab_size;
    double *bucket_mass; /* [N_BUCKETS] */
    double *chunk_sums;  /* [ceil(vocab_size / CS_ROW_CHUNK)] */
    float *weights;      /* [vocab_size] of all tokens, or of the candidates */
    float *scratch;      /* [vocab_size] permuted by selection */
    float *adjusted;     /* [vocab_size] logits after bias and penalties */
    int32_t *ids;        /* [vocab_size] candidates, ascending */
    uint32_t n_candidates;
};

cs_sampler *cs_sampler_new(uint32_t vocab_size)
{
    cs_sampler *sampler = g_try_new0(cs_sampler, 1);
    if (!sampler)
        return NULL;
    sampler->scan = cs_row_scan_best();
    sampler->vocab_size = vocab_size;
    sampler->bucket_mass = g_try_new(double, N_BUCKETS);
    sampler->chunk_sums = g_try_new(double, vocab_size / CS_ROW_CHUNK + 1);
    sampler->weights = g_try_new(float, vocab_size);
    sampler->scratch = g_try_new(float, vocab_size);
    sampler->adjusted = g_try_new(float, vocab_size);
    sampler->ids = g_try_new(int32_t, vocab_size);
    if (!sampler->bucket_mass || !sampler->chunk_sums || !sampler->weights || !sampler->scratch ||
        !sampler->adjusted || !sampler->ids) {
        cs_sampler_free(sampler);
        return NULL;
    }
    return sampler;
}

void cs_sampler_free(cs_sampler *sampler)
{
    if (!sampler)
        return;
    g_free(sampler->bucket_mass);
    g_free(sampler->chunk_sums);
    g_free(sampler->weights);
    g_free(sampler->scratch);
    g_free(sampler->adjusted);
    g_free(sampler->ids);
    g_free(sampler);
}

/* ---- Bias and penalties ---- */

static bool changes_logits(const cs_sampling_request *request)
{
    return request->params->n_biases > 0 || request->n_banned > 0 ||
           (request->counts && request->counts->n > 0);
}

static void apply_changes(float *logits, const cs_sampling_request *request)
{
    const cs_sampling_params *params = request->params;
    for (uint32_t i = 0; i < params->n_biases; i++)
        logits[params->biases[i].id] += params->biases[i].bias;
    for (uint32_t i = 0; i < request->n_banned; i++)
        logits[request->banned[i]] = -INFINITY;
    for (uint32_t i = 0; request->counts && i < request->counts->n; i++) {
        const counted_token *token = &request->counts->entries[i];
        float logit = logits[token->id];
        logit = logit > 0 ? logit / params->repetition_penalty : logit * params->repetition_penalty;
        if (token->in_output > 0)
            logit -= params->frequency_penalty * (float)token->in_output + params->presence_penalty;
        logits[token->id] = logit;
    }
}

/* ---- Selection ---- */

typedef struct {
    float cut;       /* the smallest value that stays */
    uint32_t at_cut; /* how many of those equal to it stay, in order of id */
} selection;

static inline void swap_floats(float *a, float *b)
{
    float t = *a;
    *a = *b;
    *b = t;
}

static inline float median(float a, float b, float c)
{
    if (a > b)
        swap_floats(&a, &b);
    return c < a ? a : c > b ? b : c;
}

/* The largest value v such that the values >= v, counted (or, weighted, summed), reach `target`:
 * quickselect in expected linear time. Permutes values [n], n >= 1. */
static selection select_largest(float *values, uint32_t n, double target, bool weighted)
{
    double above = 0;
    uint32_t low = 0, high = n;
    for (;;) {
        float pivot = median(values[low], values[low + (high - low) / 2], values[high - 1]);
        uint32_t greater = low, less = high;
        double mass_greater = 0;
        for (uint32_t i = low; i < less;) {
            float value = values[i];
            if (value > pivot) {
                mass_greater += weighted ? value : 1.0;
                swap_floats(&values[greater++], &values[i++]);
            } else if (value < pivot) {
                swap_floats(&values[--less], &values[i]);
            } else {
                i++;
            }
        }
        double unit = weighted ? pivot : 1.0;
        double mass_equal = unit * (less - greater);
        if (above + mass_greater >= target) {
            high = greater;
        } else if (above + mass_greater + mass_equal >= target || less == high) {
            double wanted = unit > 0 ? ceil((target - above - mass_greater) / unit) : 0;
            return (selection){pivot, (uint32_t)CLAMP(wanted, 1, less - greater)};
        } else {
            above += mass_greater + mass_equal;
            low = less;
        }
    }
}

/* Keeps candidates whose weight is over the cut, and at_cut of those equal to it. */
static void keep_selected(cs_sampler *sampler, selection s)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < sampler->n_candidates; i++) {
        float weight = sampler->weights[i];
        if (weight < s.cut || (weight == s.cut && s.at_cut == 0))
            continue;
        s.at_cut -= weight == s.cut;
        sampler->weights[kept] = weight;
        sampler->ids[kept++] = sampler->ids[i];
    }
    sampler->n_candidates = kept;
}

/* Drops collected ids whose value is below the k-th largest of them; returns that value. */
static float shrink_collected(cs_sampler *sampler, const float *x, uint32_t k)
{
    uint32_t n = sampler->n_candidates, kept = 0;
    if (n <= k)
        return -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        sampler->scratch[i] = x[sampler->ids[i]];
    float cut = select_largest(sampler->scratch, n, k, false).cut;
    for (uint32_t i = 0; i < n; i++)
        if (x[sampler->ids[i]] >= cut)
            sampler->ids[kept++] = sampler->ids[i];
    sampler->n_candidates = kept;
    return cut;
}

/* Candidates become the ids of all values at least as large as the k-th largest. The threshold
 * rises as larger values are met, so that nearly all of the row is only compared. */
static void collect_top(cs_sampler *sampler, const float *x, uint32_t k)
{
    const size_t n = sampler->vocab_size;
    float threshold = -INFINITY;
    size_t limit = 2 * (size_t)k + CS_ROW_RUN;
    sampler->n_candidates = 0;
    for (size_t run = sampler->scan->next_run(x, n, 0, threshold); run < n;
         run = sampler->scan->next_run(x, n, run, threshold)) {
        size_t end = MIN(run + CS_ROW_RUN, n);
        for (; run < end; run++)
            if (x[run] >= threshold)
                sampler->ids[sampler->n_candidates++] = (int32_t)run;
        if (sampler->n_candidates >= limit) {
            threshold = shrink_collected(sampler, x, k);
            limit = 2 * (size_t)MAX(k, sampler->n_candidates) + CS_ROW_RUN;
        }
    }
    shrink_collected(sampler, x, k);
}

static void collect_weights_over(cs_sampler *sampler, float threshold)
{
    const size_t n = sampler->vocab_size;
    const float *weights = sampler->weights;
    uint32_t count = 0;
    for (size_t run = sampler->scan->next_run(weights, n, 0, threshold); run < n;
         run = sampler->scan->next_run(weights, n, run, threshold)) {
        for (size_t end = MIN(run + CS_ROW_RUN, n); run < end; run++)
            if (weights[run] >= threshold) {
                sampler->ids[count] = (int32_t)run;
                /* count <= run: what is overwritten has been read */
                sampler->weights[count++] = weights[run];
            }
    }
    sampler->n_candidates = count;
}

/* ---- Log-probabilities ---- */

static int compare_logprobs(const void *a, const void *b)
{
    const cs_token_logprob *x = a, *y = b;
    if (x->logprob != y->logprob)
        return x->logprob > y->logprob ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static void top_logprobs(cs_sampler *sampler, const float *logits, uint32_t n, float log_sum,
                         cs_sampled_token *token)
{
    n = MIN(n, sampler->vocab_size);
    token->n_top = 0;
    if (n == 0)
        return;
    collect_top(sampler, logits, n);
    /* More than n only by ties with the n-th: of those the lowest ids stay. */
    uint32_t ties_dropped = sampler->n_candidates - n;
    float cut = INFINITY;
    for (uint32_t i = 0; i < sampler->n_candidates; i++)
        cut = MIN(cut, logits[sampler->ids[i]]);
    for (uint32_t i = sampler->n_candidates; i-- > 0;) {
        int32_t id = sampler->ids[i];
        if (ties_dropped > 0 && logits[id] == cut) {
            ties_dropped--;
            continue;
        }
        token->top[token->n_top++] = (cs_token_logprob){id, logits[id] - log_sum};
    }
    qsort(token->top, token->n_top, sizeof *token->top, compare_logprobs);
}

/* ---- Drawing ---- */

static int32_t draw_candidate(const cs_sampler *sampler, double uniform)
{
    double total = 0, sum = 0;
    for (uint32_t i = 0; i < sampler->n_candidates; i++)
        total += sampler->weights[i];
    uint32_t last = 0;
    for (uint32_t i = 0; i < sampler->n_candidates; i++) {
        if (sampler->weights[i] == 0)
            continue;
        last = i;
        sum += sampler->weights[i];
        if (sum > uniform * total)
            break;
    }
    return sampler->ids[last];
}

/* By the sums of chunks to the right chunk, then through it. Rounding may leave the target at the
 * end: the last token that has any weight takes it. */
static int32_t draw_from_all(const cs_sampler *sampler, double total, double uniform)
{
    const size_t n = sampler->vocab_size;
    double target = uniform * total, sum = 0, before = 0;
    size_t chosen = 0;
    for (size_t start = 0; start < n && sum <= target; start += CS_ROW_CHUNK) {
        double chunk = sampler->chunk_sums[start / CS_ROW_CHUNK];
        if (chunk == 0)
            continue;
        chosen = start;
        before = sum;
        sum += chunk;
    }
    size_t last = chosen;
    for (size_t i = chosen; i < MIN(chosen + CS_ROW_CHUNK, n) && before <= target; i++) {
        if (sampler->weights[i] == 0)
            continue;
        last = i;
        before += sampler->weights[i];
    }
    return (int32_t)last;
}

static void apply_min_p(cs_sampler *sampler, float min_p)
{
    /* The likeliest token has weight 1 and is always a candidate. */
    if (min_p > 0)
        keep_selected(sampler, (selection){min_p, sampler->n_candidates});
}

/* The bucket of a weight in (0, 1]: its exponent and six bits of its mantissa, so that a higher
 * bucket holds greater weights. */
static inline uint32_t bucket_of(float weight)
{
    uint32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    return bits >> 17;
}

/* The candidates of largest weight that together reach `mass`: by the mass of buckets to the one
 * where it is reached, and only through that by selection. */
static selection select_nucleus(cs_sampler *sampler, double mass)
{
    const float *weights = sampler->weights;
    double *buckets = sampler->bucket_mass;
    memset(buckets, 0, N_BUCKETS * sizeof *buckets);
    for (uint32_t i = 0; i < sampler->n_candidates; i++)
        buckets[bucket_of(weights[i])] += weights[i];
    uint32_t bucket = N_BUCKETS, lowest = 0;
    double above = 0;
    while (bucket-- > 0 && above < mass) {
        if (buckets[bucket] == 0)
            continue;
        lowest = bucket;
        above += buckets[bucket];
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < sampler->n_candidates; i++)
        if (bucket_of(weights[i]) == lowest)
            sampler->scratch[n++] = weights[i];
    return select_largest(sampler->scratch, n, mass - (above - buckets[lowest]), true);
}

static int32_t draw_truncated(cs_sampler *sampler, const cs_sampling_params *params, double total,
                              double uniform)
{
    if (params->top_p < 1)
        keep_selected(sampler, select_nucleus(sampler, (double)params->top_p * total));
    apply_min_p(sampler, params->min_p);
    return draw_candidate(sampler, uniform);
}

static int32_t draw_top_k(cs_sampler *sampler, const float *logits, float max,
                          const cs_sampling_params *params, double uniform)
{
    collect_top(sampler, logits, (uint32_t)params->top_k);
    const float scale = 1.0f / params->temperature;
    for (uint32_t i = 0; i < sampler->n_candidates; i++)
        sampler->scratch[i] = logits[sampler->ids[i]];
    double total = sampler->scan->weights(sampler->scratch, sampler->n_candidates, max, scale,
                                          sampler->weights, sampler->chunk_sums);
    return draw_truncated(sampler, params, total, uniform);
}

static int32_t draw_unbounded(cs_sampler *sampler, const float *logits, float max,
                              const cs_sampling_params *params, double uniform)
{
    const float scale = 1.0f / params->temperature;
    double total = sampler->scan->weights(logits, sampler->vocab_size, max, scale, sampler->weights,
                                          sampler->chunk_sums);
    if (params->top_p >= 1 && params->min_p <= 0)
        return draw_from_all(sampler, total, uniform);
    /* Tokens below this weight are fewer than vocab_size, so together lighter than the mass that
     * top-p leaves out: none of them is in the nucleus. */
    double outside = params->top_p < 1 ? (1 - (double)params->top_p) * total : 0;
    double light = 0.999 * outside / sampler->vocab_size;
    if (params->top_p >= 1)
        light = params->min_p;
    collect_weights_over(sampler, MAX((float)light, FLT_MIN));
    return draw_truncated(sampler, params, total, uniform);
}

/* What the model's own distribution says; the drawn token's follows when it is known. */
static float model_logprobs(cs_sampler *sampler, const float *logits, float max, uint32_t n_top,
                            cs_sampled_token *token)
{
    double sum = sampler->scan->sum_exp(logits, sampler->vocab_size, max);
    float log_sum = (float)(max + log(sum));
    top_logprobs(sampler, logits, n_top, log_sum, token);
    return log_sum;
}

static int32_t draw_token(cs_sampler *sampler, const float *logits, float max,
                          const cs_sampling_request *request)
{
    const cs_sampling_params *params = request->params;
    if (params->temperature < GREEDY_BELOW || params->top_k == 1)
        return (int32_t)sampler->scan->find(logits, sampler->vocab_size, max);
    double uniform = cs_sampling_uniform(params->seed, request->choice, request->index);
    if (params->top_k > 0 && (uint32_t)params->top_k < sampler->vocab_size)
        return draw_top_k(sampler, logits, max, params, uniform);
    return draw_unbounded(sampler, logits, max, params, uniform);
}

bool cs_sampler_draw(cs_sampler *sampler, const float *logits, const cs_sampling_request *request,
                     cs_sampled_token *token, GError **error)
{
    const cs_sampling_params *params = request->params;
    bool has_nan;
    float max = sampler->scan->max(logits, sampler->vocab_size, &has_nan);
    if (has_nan || !isfinite(max))
        return cs_fail(error, CS_ERROR_FAILED, "logits: %s, expected finite numbers",
                       has_nan   ? "NaN"
                       : max > 0 ? "infinity"
                                 : "all are minus infinity");
    const float *adjusted = logits;
    float adjusted_max = max;
    if (changes_logits(request)) {
        memcpy(sampler->adjusted, logits, sampler->vocab_size * sizeof(float));
        apply_changes(sampler->adjusted, request);
        adjusted = sampler->adjusted;
        adjusted_max = sampler->scan->max(adjusted, sampler->vocab_size, &has_nan);
        if (has_nan || !isfinite(adjusted_max))
            return cs_fail(error, CS_ERROR_INVALID,
                           "logit_bias: no token is left that may be drawn");
    }
    token->n_top = 0;
    float log_sum = 0;
    if (params->n_logprobs >= 0)
        log_sum = model_logprobs(sampler, logits, max, (uint32_t)params->n_logprobs, token);
    token->id = draw_token(sampler, adjusted, adjusted_max, request);
    token->logprob = params->n_logprobs >= 0 ? logits[token->id] - log_sum : 0;
    return true;
}
