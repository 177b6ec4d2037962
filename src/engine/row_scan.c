#include "engine/row_scan.h"

#include <math.h>
#include <string.h>

#define LANES 8
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t mask __attribute__((vector_size(LANES * sizeof(int32_t))));

INLINE vec load(const float *x)
{
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE vec splat(float value)
{
    return value - (vec){0};
}

INLINE vec select_lanes(mask m, vec yes, vec no)
{
    return (vec)((m & (mask)yes) | (~m & (mask)no));
}

INLINE bool any_lane(mask m)
{
    uint64_t words[sizeof m / sizeof(uint64_t)], all = 0;
    memcpy(words, &m, sizeof m);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        all |= words[i];
    return all != 0;
}

/* Independent chains that hide the latency of an operation. */
#define CHAINS 4

INLINE float scan_max(const float *x, size_t n, bool *has_nan)
{
    vec best[CHAINS];
    mask nan = {0};
    size_t i = 0;
    for (int c = 0; c < CHAINS; c++)
        best[c] = splat(-INFINITY);
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES) {
        for (int c = 0; c < CHAINS; c++) {
            vec v = load(x + i + c * LANES);
            best[c] = select_lanes(v > best[c], v, best[c]);
            nan |= v != v;
        }
    }
    float max = -INFINITY;
    for (int c = 0; c < CHAINS; c++)
        for (int lane = 0; lane < LANES; lane++)
            max = best[c][lane] > max ? best[c][lane] : max;
    *has_nan = any_lane(nan);
    for (; i < n; i++) {
        max = x[i] > max ? x[i] : max;
        *has_nan |= isnan(x[i]);
    }
    return max;
}

INLINE size_t scan_next_run(const float *x, size_t n, size_t from, float threshold)
{
    vec limit = splat(threshold);
    size_t i = from;
    for (; i + CS_ROW_RUN <= n; i += CS_ROW_RUN) {
        mask hit = {0};
        for (int c = 0; c < CS_ROW_RUN / LANES; c++)
            hit |= load(x + i + c * LANES) >= limit;
        if (any_lane(hit))
            return i;
    }
    for (size_t j = i; j < n; j++)
        if (x[j] >= threshold)
            return i;
    return n;
}

INLINE size_t scan_find(const float *x, size_t n, float value)
{
    for (size_t i = scan_next_run(x, n, 0, value); i < n; i++)
        if (x[i] == value)
            return i;
    return n;
}

/* e^x for x <= 0 to 2 units in the last place: 2^k by the exponent bits, e^r for |r| <= ln 2 / 2 by
 * its Taylor series to r^7, whose remainder is 5e-9. Below -87 (and for NaN) 0. */
INLINE vec exp_vec(vec x)
{
    const float round_magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    mask in_range = x >= splat(-87.0f);
    x = select_lanes(in_range, x, splat(0.0f));
    vec shifted = x * 1.44269504f + round_magic;
    vec k = shifted - round_magic;
    vec r = x - k * 0.693359375f - k * -2.12194440e-4f; /* ln 2 in two parts */
    vec p = splat(1.0f / 5040.0f);
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    mask exponent = ((mask)shifted - (mask)splat(round_magic) + 127) << 23;
    return (vec)((mask)(p * (vec)exponent) & in_range);
}

INLINE double sum_lanes(vec v)
{
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += v[lane];
    return sum;
}

INLINE void weigh(const float *x, size_t n, float max, float scale, float *weights, vec *sum)
{
    vec v = splat(-INFINITY);
    memcpy(&v, x, n * sizeof(float));
    vec w = exp_vec((v - max) * scale);
    if (weights)
        memcpy(weights, &w, n * sizeof(float));
    *sum += w;
}

/* Sums in f32 lanes inside a chunk and in f64 over chunks: relative error below 1e-6 at any n. */
INLINE double chunk_weights(const float *x, size_t n, float max, float scale, float *weights)
{
    vec sum[CHAINS] = {{0}};
    size_t i = 0;
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES)
        for (int c = 0; c < CHAINS; c++)
            weigh(x + i + c * LANES, LANES, max, scale, weights ? weights + i + c * LANES : NULL,
                  &sum[c]);
    for (; i < n; i += LANES)
        weigh(x + i, n - i < LANES ? n - i : LANES, max, scale, weights ? weights + i : NULL,
              &sum[0]);
    double total = 0;
    for (int c = 0; c < CHAINS; c++)
        total += sum_lanes(sum[c]);
    return total;
}

INLINE double scan_weights(const float *x, size_t n, float max, float scale, float *weights,
                           double *chunk_sums)
{
    double total = 0;
    for (size_t i = 0; i < n; i += CS_ROW_CHUNK) {
        size_t len = n - i < CS_ROW_CHUNK ? n - i : CS_ROW_CHUNK;
        double sum = chunk_weights(x + i, len, max, scale, weights + i);
        chunk_sums[i / CS_ROW_CHUNK] = sum;
        total += sum;
    }
    return total;
}

INLINE double scan_sum_exp(const float *x, size_t n, float max)
{
    double total = 0;
    for (size_t i = 0; i < n; i += CS_ROW_CHUNK)
        total += chunk_weights(x + i, n - i < CS_ROW_CHUNK ? n - i : CS_ROW_CHUNK, max, 1.0f, NULL);
    return total;
}

#define DEFINE_SCANS(suffix, target)                                                               \
    target static float max_##suffix(const float *x, size_t n, bool *has_nan)                      \
    {                                                                                              \
        return scan_max(x, n, has_nan);                                                            \
    }                                                                                              \
    target static size_t find_##suffix(const float *x, size_t n, float value)                      \
    {                                                                                              \
        return scan_find(x, n, value);                                                             \
    }                                                                                              \
    target static double weights_##suffix(const float *x, size_t n, float max, float scale,        \
                                          float *weights, double *chunk_sums)                      \
    {                                                                                              \
        return scan_weights(x, n, max, scale, weights, chunk_sums);                                \
    }                                                                                              \
    target static double sum_exp_##suffix(const float *x, size_t n, float max)                     \
    {                                                                                              \
        return scan_sum_exp(x, n, max);                                                            \
    }                                                                                              \
    target static size_t next_run_##suffix(const float *x, size_t n, size_t from, float threshold) \
    {                                                                                              \
        return scan_next_run(x, n, from, threshold);                                               \
    }                                                                                              \
    static const cs_row_scan scans_##suffix = {                                                    \
        .max = max_##suffix,                                                                       \
        .find = find_##suffix,                                                                     \
        .weights = weights_##suffix,                                                               \
        .sum_exp = sum_exp_##suffix,                                                               \
        .next_run = next_run_##suffix,                                                             \
    };

DEFINE_SCANS(portable, )

const cs_row_scan *cs_row_scan_portable(void)
{
    return &scans_portable;
}

#if defined(__x86_64__)
DEFINE_SCANS(avx2, __attribute__((target("avx2"))))

const cs_row_scan *cs_row_scan_best(void)
{
    return __builtin_cpu_supports("avx2") ? &scans_avx2 : &scans_portable;
}
#else
const cs_row_scan *cs_row_scan_best(void)
{
    return &scans_portable;
}
#endif
