/* src/engine/sampling against a plain double-precision oracle: sort everything, keep prefixes. */
#include "base/error.h"
#include "engine/row_scan.h"
#include "engine/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- The oracle ---- */

typedef struct {
    int32_t id;
    double weight;
} oracle_token;

static int heavier_first(const void *a, const void *b)
{
    const oracle_token *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->id - y->id;
}

static uint32_t keep_top_k(const oracle_token *t, uint32_t n, int32_t k)
{
    if (k <= 0 || (uint32_t)k >= n)
        return n;
    uint32_t kept = (uint32_t)k;
    while (kept < n && t[kept].weight == t[k - 1].weight)
        kept++;
    return kept;
}

static uint32_t keep_top_p(const oracle_token *t, uint32_t n, double p)
{
    double total = 0, before = 0;
    for (uint32_t i = 0; i < n; i++)
        total += t[i].weight;
    uint32_t kept = 0;
    while (kept < n && (kept == 0 || before < p * total))
        before += t[kept++].weight;
    return p < 1 ? kept : n;
}

/* Probabilities [n] by id. `logits` have bias and penalties in them. */
static void oracle(const double *logits, uint32_t n, const cs_sampling_params *params,
                   double *probs)
{
    g_autofree oracle_token *t = g_new(oracle_token, n);
    double max = -INFINITY, total = 0;
    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, logits[i]);
    for (uint32_t i = 0; i < n; i++)
        t[i] = (oracle_token){(int32_t)i, exp((logits[i] - max) / (double)params->temperature)};
    qsort(t, n, sizeof *t, heavier_first);
    uint32_t kept = keep_top_k(t, n, params->top_k);
    kept = keep_top_p(t, kept, (double)params->top_p);
    while (kept > 1 && t[kept - 1].weight < (double)params->min_p)
        kept--;
    for (uint32_t i = 0; i < kept; i++)
        total += t[i].weight;
    memset(probs, 0, n * sizeof *probs);
    for (uint32_t i = 0; i < kept; i++)
        probs[t[i].id] = t[i].weight / total;
}

static float normal(GRand *rand)
{
    return (float)(sqrt(-2 * log(1 - g_rand_double(rand))) * cos(2 * G_PI * g_rand_double(rand)));
}

static cs_sampling_params random_params(GRand *rand)
{
    cs_sampling_params params = CS_SAMPLING_GREEDY;
    params.temperature = (float)g_rand_double_range(rand, 0.3, 2);
    if (g_rand_boolean(rand))
        params.top_k = g_rand_int_range(rand, 2, 200);
    if (g_rand_boolean(rand))
        params.top_p = (float)g_rand_double_range(rand, 0.05, 0.999);
    if (g_rand_boolean(rand))
        params.min_p = (float)g_rand_double_range(rand, 0.001, 0.5);
    params.seed = g_rand_int(rand);
    return params;
}

/* ---- Drawing ---- */

/* The drawn token is the one whose interval of the cumulated oracle holds the uniform number, up to
 * the rounding of f32 weights. A wrong support, a wrong order or a wrong weight misses it. */
static void test_draws_invert_the_distribution(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);
    for (int round = 0; round < 1500; round++) {
        uint32_t n = (uint32_t)g_rand_int_range(rand, 1, round % 10 == 0 ? 9000 : 700);
        float spread = (float)g_rand_double_range(rand, 0, 6);
        g_autofree float *logits = g_new(float, n);
        g_autofree double *exact = g_new(double, n), *probs = g_new(double, n);
        for (uint32_t i = 0; i < n; i++)
            exact[i] = logits[i] = normal(rand) * spread - 20;
        cs_sampling_params params = random_params(rand);
        cs_sampler *sampler = cs_sampler_new(n);
        oracle(exact, n, &params, probs);
        for (uint32_t index = 0; index < 8; index++) {
            cs_sampling_request request = {.params = &params, .choice = 3, .index = index};
            cs_sampled_token token;
            g_assert_true(cs_sampler_draw(sampler, logits, &request, &token, NULL));
            double before = 0, uniform = cs_sampling_uniform(params.seed, 3, index);
            for (int32_t i = 0; i < token.id; i++)
                before += probs[i];
            g_assert_cmpfloat(probs[token.id], >, 0);
            g_assert_cmpfloat(before, <=, uniform + 2e-6);
            g_assert_cmpfloat(before + probs[token.id], >=, uniform - 2e-6);
        }
        cs_sampler_free(sampler);
    }
}

static void test_chi_square(void)
{
    enum { N = 40, DRAWS = 40000 };
    g_autoptr(GRand) rand = g_rand_new_with_seed(11);
    float logits[N];
    double exact[N], probs[N], chi_square = 0;
    uint32_t counts[N] = {0}, freedom = 0;
    for (int i = 0; i < N; i++)
        exact[i] = logits[i] = normal(rand);
    cs_sampling_params params = CS_SAMPLING_GREEDY;
    params.temperature = 0.8f, params.top_p = 0.95f, params.seed = 5;
    cs_sampler *sampler = cs_sampler_new(N);
    for (uint32_t i = 0; i < DRAWS; i++) {
        cs_sampled_token token;
        cs_sampling_request request = {.params = &params, .choice = i % 2, .index = i / 2};
        g_assert_true(cs_sampler_draw(sampler, logits, &request, &token, NULL));
        counts[token.id]++;
    }
    oracle(exact, N, &params, probs);
    for (int i = 0; i < N; i++) {
        if (probs[i] == 0) {
            g_assert_cmpuint(counts[i], ==, 0);
            continue;
        }
        double expected = probs[i] * DRAWS, off = counts[i] - expected;
        chi_square += off * off / expected;
        freedom++;
    }
    freedom--;
    /* Mean freedom, deviation sqrt(2 freedom): 4 deviations are passed once in ten thousand. */
    g_assert_cmpfloat(chi_square, <, freedom + 4 * sqrt(2.0 * freedom));
    cs_sampler_free(sampler);
}

static int32_t draw(const float *logits, uint32_t n, const cs_sampling_request *request)
{
    cs_sampler *sampler = cs_sampler_new(n);
    cs_sampled_token token;
    g_autoptr(GError) error = NULL;
    bool ok = cs_sampler_draw(sampler, logits, request, &token, &error);
    g_assert_no_error(error);
    g_assert_true(ok);
    cs_sampler_free(sampler);
    return token.id;
}

static void test_greedy(void)
{
    g_autofree float *logits = g_new(float, 1000);
    cs_sampling_params params = CS_SAMPLING_GREEDY;
    cs_sampling_request request = {.params = &params};
    for (uint32_t n = 1; n <= 1000; n += n < 80 ? 1 : 37) {
        for (uint32_t i = 0; i < n; i++)
            logits[i] = -INFINITY;
        uint32_t best = n / 2, twin = n - 1;
        logits[twin] = logits[best] = -3.5f;
        g_assert_cmpint(draw(logits, n, &request), ==, (int32_t)MIN(best, twin));
    }
}

static void test_ties_at_top_k_stay(void)
{
    float logits[100];
    for (int i = 0; i < 100; i++)
        logits[i] = i == 60 ? 2.0f : i % 10 == 3 ? 1.0f : 0.0f;
    cs_sampling_params params = CS_SAMPLING_GREEDY;
    params.temperature = 1, params.top_k = 2;
    bool seen[100] = {false};
    for (uint32_t index = 0; index < 2000; index++) {
        cs_sampling_request request = {.params = &params, .index = index};
        seen[draw(logits, 100, &request)] = true;
    }
    for (int i = 0; i < 100; i++)
        g_assert_cmpint(seen[i], ==, i == 60 || i % 10 == 3);
}

/* Equal weights everywhere: the nucleus is the lowest ids. */
static void test_flat_row(void)
{
    enum { N = 5000 };
    g_autofree float *logits = g_new0(float, N);
    cs_sampling_params params = CS_SAMPLING_GREEDY;
    params.temperature = 1, params.top_p = 0.1f;
    int32_t max = 0;
    for (uint32_t index = 0; index < 300; index++) {
        cs_sampling_request request = {.params = &params, .index = index};
        max = MAX(max, draw(logits, N, &request));
    }
    g_assert_cmpint(max, <=, N / 10);
    g_assert_cmpint(max, >, N / 10 - 40);
}

/* ---- Bias, penalties, bans ---- */

static void test_penalties(void)
{
    enum { N = 300 };
    g_autoptr(GRand) rand = g_rand_new_with_seed(3);
    for (int round = 0; round < 200; round++) {
        float logits[N];
        double exact[N];
        uint32_t out[N] = {0};
        bool seen[N] = {false};
        cs_sampling_params params = CS_SAMPLING_GREEDY;
        params.repetition_penalty = (float)g_rand_double_range(rand, 0.7, 1.8);
        params.presence_penalty = (float)g_rand_double_range(rand, -2, 2);
        params.frequency_penalty = (float)g_rand_double_range(rand, -2, 2);
        cs_token_bias biases[] = {{5, 1.5f}, {17, -INFINITY}};
        params.biases = biases, params.n_biases = 2;
        cs_token_counts *counts = cs_token_counts_new(100);
        for (int i = 0; i < 100; i++) {
            int32_t id = g_rand_int_range(rand, 0, 40);
            seen[id] = true;
            if (i < 60) {
                cs_token_counts_add_prompt(counts, id);
            } else {
                cs_token_counts_add_output(counts, id);
                out[id]++;
            }
        }
        int32_t banned[] = {44}, best = -1;
        for (int32_t i = 0; i < N; i++) {
            exact[i] = logits[i] = normal(rand) * 3;
            if (i == 5)
                exact[i] += 1.5;
            if (i == 17 || i == 44)
                exact[i] = -INFINITY;
            double rep = params.repetition_penalty;
            if (seen[i])
                exact[i] = exact[i] > 0 ? exact[i] / rep : exact[i] * rep;
            if (out[i])
                exact[i] -= (double)params.frequency_penalty * out[i] + params.presence_penalty;
            best = best < 0 || exact[i] > exact[best] ? i : best;
        }
        cs_sampling_request request = {
            .params = &params, .counts = counts, .n_banned = 1, .banned = banned};
        int32_t id = draw(logits, N, &request);
        g_assert_cmpfloat(exact[id], >=, exact[best] - 1e-5);
        cs_token_counts_free(counts);
    }
}

static void test_nothing_left(void)
{
    float logits[2] = {1, 2};
    cs_sampling_params params = CS_SAMPLING_GREEDY;
    int32_t banned[] = {0, 1};
    cs_sampling_request request = {.params = &params, .n_banned = 2, .banned = banned};
    cs_sampler *sampler = cs_sampler_new(2);
    cs_sampled_token token;
    g_autoptr(GError) error = NULL;
    g_assert_false(cs_sampler_draw(sampler, logits, &request, &token, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    cs_sampler_free(sampler);
}

static void test_broken_logits(void)
{
    enum { N = 77 };
    cs_sampling_params params = CS_SAMPLING_GREEDY;
    cs_sampling_request request = {.params = &params};
    cs_sampler *sampler = cs_sampler_new(N);
    float bad[] = {NAN, INFINITY};
    for (uint32_t i = 0; i < 2 * N; i++) {
        float logits[N] = {0};
        logits[i / 2] = bad[i % 2];
        cs_sampled_token token;
        g_autoptr(GError) error = NULL;
        g_assert_false(cs_sampler_draw(sampler, logits, &request, &token, &error));
        g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
    }
    cs_sampler_free(sampler);
}

/* ---- Log-probabilities ---- */

static void check_logprobs(const float *logits, uint32_t n, uint32_t n_top,
                           const cs_sampled_token *token)
{
    double max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, (double)logits[i]);
    for (uint32_t i = 0; i < n; i++)
        sum += exp(logits[i] - max);
    double log_sum = max + log(sum);
    g_assert_cmpfloat_with_epsilon(token->logprob, logits[token->id] - log_sum, 1e-5);
    g_assert_cmpuint(token->n_top, ==, MIN(n_top, n));
    g_autofree oracle_token *t = g_new(oracle_token, n);
    for (uint32_t i = 0; i < n; i++)
        t[i] = (oracle_token){(int32_t)i, (double)logits[i]};
    qsort(t, n, sizeof *t, heavier_first);
    for (uint32_t i = 0; i < token->n_top; i++) {
        g_assert_cmpint(token->top[i].id, ==, t[i].id);
        g_assert_cmpfloat_with_epsilon(token->top[i].logprob, t[i].weight - log_sum, 1e-5);
    }
}

static void test_logprobs(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(9);
    for (int round = 0; round < 300; round++) {
        uint32_t n = (uint32_t)g_rand_int_range(rand, 1, 4000);
        g_autofree float *logits = g_new(float, n);
        for (uint32_t i = 0; i < n; i++) /* coarse in some rounds: many ties */
            logits[i] = round % 3 ? normal(rand) * 4 : (float)g_rand_int_range(rand, -3, 3);
        /* Bias, penalties and temperature do not show in log-probabilities. */
        cs_token_bias bias = {0, 9};
        cs_sampling_params params = random_params(rand);
        params.n_biases = 1, params.biases = &bias;
        params.n_logprobs = g_rand_int_range(rand, 0, CS_MAX_LOGPROBS + 1);
        cs_sampling_request request = {.params = &params};
        cs_sampler *sampler = cs_sampler_new(n);
        cs_sampled_token token;
        g_assert_true(cs_sampler_draw(sampler, logits, &request, &token, NULL));
        check_logprobs(logits, n, (uint32_t)params.n_logprobs, &token);
        cs_sampler_free(sampler);
    }
}

/* ---- Parts ---- */

/* Philox 4x32-10 of counter 0 and key 0, from the Random123 distribution's known answers. */
static void test_philox(void)
{
    double expected = (double)((0x6627e8d5e169c58dull) >> 11) * 0x1p-53;
    g_assert_cmpfloat(cs_sampling_uniform(0, 0, 0), ==, expected);
    g_assert_cmpfloat(cs_sampling_uniform(0, 0, 1), !=, cs_sampling_uniform(0, 1, 0));
    g_assert_cmpfloat(cs_sampling_uniform(1, 0, 0), !=, cs_sampling_uniform(1ull << 32, 0, 0));
}

static void test_scans_agree(void)
{
    enum { N = 5000 };
    const cs_row_scan *fast = cs_row_scan_best(), *plain = cs_row_scan_portable();
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);
    g_autofree float *x = g_new(float, N), *a = g_new(float, N), *b = g_new(float, N);
    double sums_a[8], sums_b[8];
    for (uint32_t n = 1; n < N; n += n < 200 ? 1 : 191) {
        for (uint32_t i = 0; i < n; i++)
            x[i] = normal(rand) * 30;
        bool nan_a, nan_b;
        float max = plain->max(x, n, &nan_a);
        g_assert_cmpfloat(max, ==, fast->max(x, n, &nan_b));
        g_assert_false(nan_a || nan_b);
        g_assert_cmpuint(plain->find(x, n, max), ==, fast->find(x, n, max));
        g_assert_cmpfloat(plain->weights(x, n, max, 0.7f, a, sums_a), ==,
                          fast->weights(x, n, max, 0.7f, b, sums_b));
        g_assert_cmpmem(a, n * sizeof *a, b, n * sizeof *b);
        g_assert_cmpmem(sums_a, (n + 1023) / 1024 * 8, sums_b, (n + 1023) / 1024 * 8);
        g_assert_cmpfloat(plain->sum_exp(x, n, max), ==, fast->sum_exp(x, n, max));
        for (uint32_t i = 0; i < n; i++) {
            double exact = exp((double)((x[i] - max) * 0.7f));
            g_assert_cmpfloat(fabs(a[i] - exact), <=, 3e-7 * exact + 2e-38);
        }
    }
}

static void assert_refused(cs_sampling_params params, const char *name)
{
    g_autoptr(GError) error = NULL;
    g_assert_false(cs_sampling_params_check(&params, 100, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_assert_true(g_str_has_prefix(error->message, name));
}

static void test_params(void)
{
    cs_sampling_params good = CS_SAMPLING_GREEDY, bad;
    g_assert_true(cs_sampling_params_check(&good, 100, NULL));
    bad = good, bad.temperature = NAN, assert_refused(bad, "temperature");
    bad = good, bad.temperature = -1, assert_refused(bad, "temperature");
    bad = good, bad.top_k = -1, assert_refused(bad, "top_k");
    bad = good, bad.top_p = 0, assert_refused(bad, "top_p");
    bad = good, bad.top_p = 1.1f, assert_refused(bad, "top_p");
    bad = good, bad.min_p = NAN, assert_refused(bad, "min_p");
    bad = good, bad.repetition_penalty = 0, assert_refused(bad, "repetition_penalty");
    bad = good, bad.presence_penalty = INFINITY, assert_refused(bad, "presence_penalty");
    bad = good, bad.frequency_penalty = NAN, assert_refused(bad, "frequency_penalty");
    bad = good, bad.n_logprobs = 21, assert_refused(bad, "logprobs");
    cs_token_bias outside = {100, 0}, nan = {0, NAN};
    bad = good, bad.n_biases = 1, bad.biases = &outside, assert_refused(bad, "logit_bias");
    bad = good, bad.n_biases = 1, bad.biases = &nan, assert_refused(bad, "logit_bias");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/sampling/draws-invert-the-distribution", test_draws_invert_the_distribution);
    g_test_add_func("/sampling/chi-square", test_chi_square);
    g_test_add_func("/sampling/greedy", test_greedy);
    g_test_add_func("/sampling/ties-at-top-k-stay", test_ties_at_top_k_stay);
    g_test_add_func("/sampling/flat-row", test_flat_row);
    g_test_add_func("/sampling/penalties", test_penalties);
    g_test_add_func("/sampling/nothing-left", test_nothing_left);
    g_test_add_func("/sampling/broken-logits", test_broken_logits);
    g_test_add_func("/sampling/logprobs", test_logprobs);
    g_test_add_func("/sampling/philox", test_philox);
    g_test_add_func("/sampling/scans-agree", test_scans_agree);
    g_test_add_func("/sampling/params", test_params);
    return g_test_run();
}
