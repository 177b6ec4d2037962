#include "media/preprocess/mel.h"

#include "base/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Eight frames are computed together, one in each lane. A real transform of 400 is a complex one
 * of 200 = 5 * 5 * 4 * 2 over even and odd samples, and a last step that takes the two apart. */
enum { LANES = 8, N_FFT = 400, HALF = N_FFT / 2, BINS = HALF + 1 };

#define INLINE inline __attribute__((always_inline))

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));

typedef struct {
    f32x8 re, im;
} complex8;

typedef struct {
    float re, im;
} complex1;

typedef struct {
    uint32_t first, count; /* bins */
    uint32_t offset;       /* into weights */
} mel_filter;

struct cs_mel_extractor {
    cs_mel_config config;
    float window[N_FFT];
    complex1 turn[HALF];      /* exp(-2 pi i k / 200) */
    complex1 half_turn[HALF]; /* exp(-2 pi i k / 400) */
    mel_filter *filters;      /* [n_mels] */
    float *weights;
};

/* ---- tables ---- */

static double mel_to_hertz(double mel)
{
    return mel < 15 ? mel * 200 / 3 : 1000 * exp((mel - 15) * (log(6.4) / 27));
}

static double hertz_to_mel(double hertz)
{
    return hertz < 1000 ? 3 * hertz / 200 : 15 + log(hertz / 1000) * (27 / log(6.4));
}

/* Triangles between neighbouring points of the Slaney scale, each of equal area. */
static void build_filters(cs_mel_extractor *e)
{
    uint32_t n = e->config.n_mels;
    double top = hertz_to_mel(8000), bin_hertz = e->config.sampling_rate / 2.0 / HALF;
    g_autoptr(GArray) weights = g_array_new(FALSE, FALSE, sizeof(float));
    e->filters = g_new0(mel_filter, n);
    for (uint32_t m = 0; m < n; m++) {
        double left = mel_to_hertz(top * m / (n + 1)), mid = mel_to_hertz(top * (m + 1) / (n + 1));
        double right = mel_to_hertz(top * (m + 2) / (n + 1));
        mel_filter *f = &e->filters[m];
        f->offset = weights->len;
        for (uint32_t bin = 0; bin < BINS; bin++) {
            double hertz = bin * bin_hertz;
            double w = fmin((hertz - left) / (mid - left), (right - hertz) / (right - mid));
            float weight = (float)(w * 2 / (right - left));
            if (w <= 0)
                continue;
            if (f->count++ == 0)
                f->first = bin;
            g_array_append_val(weights, weight);
        }
    }
    e->weights = (float *)(void *)g_array_free(g_steal_pointer(&weights), FALSE);
}

cs_mel_extractor *cs_mel_extractor_new(const cs_mel_config *config)
{
    cs_mel_extractor *e = g_new0(cs_mel_extractor, 1);
    e->config = *config;
    for (int i = 0; i < N_FFT; i++)
        e->window[i] = (float)(0.5 - 0.5 * cos(2 * G_PI * i / N_FFT));
    for (int i = 0; i < HALF; i++) {
        e->turn[i] = (complex1){(float)cos(2 * G_PI * i / HALF), (float)-sin(2 * G_PI * i / HALF)};
        e->half_turn[i] =
            (complex1){(float)cos(2 * G_PI * i / N_FFT), (float)-sin(2 * G_PI * i / N_FFT)};
    }
    build_filters(e);
    return e;
}

void cs_mel_extractor_free(cs_mel_extractor *e)
{
    if (!e)
        return;
    g_free(e->filters);
    g_free(e->weights);
    g_free(e);
}

/* ---- the transform (Stockham: every stage writes the other buffer, in order) ---- */

static INLINE void store_turned(complex8 *out, const complex8 *v, complex1 w)
{
    out->re = v->re * w.re - v->im * w.im;
    out->im = v->re * w.im + v->im * w.re;
}

/* A stage of radix 5: in[q + s (p + n/5 t)], t = 0..4, to out[q + s (5 p + u)], u = 0..4, turned by
 * exp(-2 pi i p u / n). */
static INLINE void stage5(const complex1 *turn, uint32_t n, uint32_t s, const complex8 *in,
                          complex8 *out)
{
    const float c1 = 0.30901699437494742f, c2 = -0.80901699437494742f; /* cos 2pi/5, 4pi/5 */
    const float s1 = 0.95105651629515357f, s2 = 0.58778525229247313f;  /* sin 2pi/5, 4pi/5 */
    uint32_t m = n / 5, step = HALF / n;
    for (uint32_t p = 0; p < m; p++)
        for (uint32_t q = 0; q < s; q++) {
            const complex8 *a = in + q + s * p;
            complex8 *o = out + q + s * 5 * p;
            complex8 a0 = a[0], a1 = a[s * m], a2 = a[2 * s * m], a3 = a[3 * s * m],
                     a4 = a[4 * s * m];
            f32x8 r14 = a1.re + a4.re, r23 = a2.re + a3.re, i14 = a1.im + a4.im,
                  i23 = a2.im + a3.im;
            f32x8 dr14 = a1.re - a4.re, dr23 = a2.re - a3.re, di14 = a1.im - a4.im,
                  di23 = a2.im - a3.im;
            f32x8 br1 = a0.re + c1 * r14 + c2 * r23, bi1 = a0.im + c1 * i14 + c2 * i23;
            f32x8 br2 = a0.re + c2 * r14 + c1 * r23, bi2 = a0.im + c2 * i14 + c1 * i23;
            f32x8 er1 = s1 * di14 + s2 * di23, ei1 = s1 * dr14 + s2 * dr23;
            f32x8 er2 = s2 * di14 - s1 * di23, ei2 = s2 * dr14 - s1 * dr23;
            o[0] = (complex8){a0.re + r14 + r23, a0.im + i14 + i23};
            store_turned(o + s, &(complex8){br1 + er1, bi1 - ei1}, turn[p * step]);
            store_turned(o + 2 * s, &(complex8){br2 + er2, bi2 - ei2}, turn[2 * p * step]);
            store_turned(o + 3 * s, &(complex8){br2 - er2, bi2 + ei2}, turn[3 * p * step]);
            store_turned(o + 4 * s, &(complex8){br1 - er1, bi1 + ei1}, turn[4 * p * step]);
        }
}

/* The stage of radix 4 for n = 8 (p = 0, 1), s = 25. */
static INLINE void stage4(const complex1 *turn, const complex8 *in, complex8 *out)
{
    enum { S = 25, STEP = HALF / 8 };
    for (uint32_t p = 0; p < 2; p++)
        for (uint32_t q = 0; q < S; q++) {
            const complex8 *a = in + q + S * p;
            complex8 *o = out + q + S * 4 * p;
            complex8 a0 = a[0], a1 = a[S * 2], a2 = a[S * 4], a3 = a[S * 6];
            f32x8 r02 = a0.re + a2.re, i02 = a0.im + a2.im, r13 = a1.re + a3.re,
                  i13 = a1.im + a3.im;
            f32x8 dr02 = a0.re - a2.re, di02 = a0.im - a2.im, dr13 = a1.re - a3.re,
                  di13 = a1.im - a3.im;
            o[0] = (complex8){r02 + r13, i02 + i13};
            store_turned(o + S, &(complex8){dr02 + di13, di02 - dr13}, turn[p * STEP]);
            store_turned(o + 2 * S, &(complex8){r02 - r13, i02 - i13}, turn[2 * p * STEP]);
            store_turned(o + 3 * S, &(complex8){dr02 - di13, di02 + dr13}, turn[3 * p * STEP]);
        }
}

/* The last stage: n = 2, s = 100. */
static INLINE void stage2(const complex8 *in, complex8 *out)
{
    for (uint32_t q = 0; q < HALF / 2; q++) {
        complex8 a = in[q], b = in[q + HALF / 2];
        out[q] = (complex8){a.re + b.re, a.im + b.im};
        out[q + HALF / 2] = (complex8){a.re - b.re, a.im - b.im};
    }
}

/* Power of bins 0..200 from the transform z of even + i odd samples. */
static INLINE void split_power(const complex1 *half_turn, const complex8 *z, f32x8 *power)
{
    f32x8 first = z[0].re + z[0].im, last = z[0].re - z[0].im;
    power[0] = first * first;
    power[HALF] = last * last;
    for (uint32_t k = 1; k <= HALF / 2; k++) {
        complex8 a = z[k], b = z[HALF - k];
        complex1 w = half_turn[k];
        f32x8 er = 0.5f * (a.re + b.re), ei = 0.5f * (a.im - b.im);
        f32x8 dr = 0.5f * (a.im + b.im), di = 0.5f * (b.re - a.re);
        f32x8 tr = dr * w.re - di * w.im, ti = dr * w.im + di * w.re;
        f32x8 xr = er + tr, xi = ei + ti, yr = er - tr, yi = ei - ti;
        power[k] = xr * xr + xi * xi;
        power[HALF - k] = yr * yr + yi * yi;
    }
}

/* log10 of eight positive normal numbers, to about one unit in the last place: the exponent, and a
 * polynomial for the logarithm of 1 + z, z in [sqrt(1/2) - 1, sqrt(2) - 1] (S. Moshier, Cephes
 * logf). */
static INLINE void log10_lanes(f32x8 *x)
{
    i32x8 bits = (i32x8)*x - 0x3f3504f3;
    i32x8 exponent = bits >> 23;
    f32x8 z = (f32x8)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    f32x8 e = __builtin_convertvector(exponent, f32x8), zz = z * z;
    f32x8 y = z * 7.0376836292e-2f - 1.1514610310e-1f;
    y = y * z + 1.1676998740e-1f;
    y = y * z - 1.2420140846e-1f;
    y = y * z + 1.4249322787e-1f;
    y = y * z - 1.6668057665e-1f;
    y = y * z + 2.0000714765e-1f;
    y = y * z - 2.4999993993e-1f;
    y = y * z + 3.3333331174e-1f;
    y = y * z * zz - 0.5f * zz + z;
    *x = y * 0.43429448190325182f + e * 0.30102999566398120f;
}

typedef struct {
    complex8 a[HALF], b[HALF];
    f32x8 power[BINS];
} scratch;

/* Eight frames beginning at samples[0], [hop], ...: log10 of the mel powers to out [n_mels][LANES].
 */
static INLINE void frames_body(const cs_mel_extractor *e, const float *samples, scratch *s,
                               float *out)
{
    uint32_t hop = e->config.hop_length;
    for (uint32_t i = 0; i < HALF; i++)
        for (uint32_t lane = 0; lane < LANES; lane++) {
            s->a[i].re[lane] = samples[lane * hop + 2 * i] * e->window[2 * i];
            s->a[i].im[lane] = samples[lane * hop + 2 * i + 1] * e->window[2 * i + 1];
        }
    stage5(e->turn, 200, 1, s->a, s->b);
    stage5(e->turn, 40, 5, s->b, s->a);
    stage4(e->turn, s->a, s->b);
    stage2(s->b, s->a);
    split_power(e->half_turn, s->a, s->power);
    for (uint32_t m = 0; m < e->config.n_mels; m++) {
        const mel_filter *f = &e->filters[m];
        f32x8 sum = {0};
        for (uint32_t i = 0; i < f->count; i++)
            sum += s->power[f->first + i] * e->weights[f->offset + i];
        i32x8 low = sum < 1e-10f;
        sum = (f32x8)(((i32x8)sum & ~low) | ((i32x8)((f32x8){0} + 1e-10f) & low));
        log10_lanes(&sum);
        memcpy(out + m * LANES, &sum, sizeof sum);
    }
}

typedef void frames_function(const cs_mel_extractor *e, const float *samples, scratch *s,
                             float *out);

static void frames_portable(const cs_mel_extractor *e, const float *samples, scratch *s, float *out)
{
    frames_body(e, samples, s, out);
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static void
frames_avx2(const cs_mel_extractor *e, const float *samples, scratch *s, float *out)
{
    frames_body(e, samples, s, out);
}
#endif

static frames_function *choose_frames(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return frames_avx2;
#endif
    return frames_portable;
}

/* ---- the whole sound ---- */

/* Samples [at, at + n) of the sound as the reference pads it: zeros up to max_samples, reflected
 * beyond both ends. */
static void copy_padded(const cs_mel_extractor *e, const float *samples, size_t n_samples,
                        int64_t at, size_t n, float *out)
{
    int64_t end = (int64_t)e->config.max_samples;
    for (size_t i = 0; i < n; i++) {
        int64_t k = at + (int64_t)i;
        k = k < 0 ? -k : k;
        k = k >= end ? 2 * (end - 1) - k : k;
        out[i] = k >= 0 && k < (int64_t)n_samples ? samples[k] : 0;
    }
}

static bool check_samples(const cs_mel_extractor *e, const float *samples, size_t n, GError **error)
{
    if (n == 0)
        return cs_fail(error, CS_ERROR_INVALID, "audio: no samples");
    if (n > e->config.max_samples)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "audio: %.1f s; the model takes at most %.1f s",
                       (double)n / e->config.sampling_rate,
                       (double)e->config.max_samples / e->config.sampling_rate);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(samples[i]))
            return cs_fail(error, CS_ERROR_INVALID, "audio: sample %zu is not a finite number", i);
    return true;
}

/* Fills logs [n_groups][n_mels][LANES] with log10 mel powers of the first n_groups * LANES frames.
 */
static void all_frames(const cs_mel_extractor *e, const float *samples, size_t n_samples,
                       float *logs, size_t n_groups, scratch *s)
{
    frames_function *frames = choose_frames();
    size_t hop = e->config.hop_length, span = (LANES - 1) * hop + N_FFT;
    g_autofree float *edge = g_new(float, span);
    for (size_t g = 0; g < n_groups; g++) {
        int64_t at = (int64_t)(g * LANES * hop) - N_FFT / 2;
        const float *in = edge;
        if (at >= 0 && (size_t)at + span <= n_samples)
            in = samples + at;
        else
            copy_padded(e, samples, n_samples, at, span, edge);
        frames(e, in, s, logs + g * LANES * e->config.n_mels);
    }
}

/* Of the first n_frames. */
static float maximum(const float *logs, size_t n_mels, size_t n_frames)
{
    float most = logs[0];
    for (size_t frame = 0; frame < n_frames; frame += LANES) {
        size_t lanes = MIN(n_frames - frame, LANES);
        const float *group = logs + frame * n_mels;
        for (size_t m = 0; m < n_mels; m++)
            for (size_t lane = 0; lane < lanes; lane++)
                most = group[m * LANES + lane] > most ? group[m * LANES + lane] : most;
    }
    return most;
}

bool cs_mel_extract(const cs_mel_extractor *e, const float *samples, size_t n_samples, cs_mel *mel,
                    GError **error)
{
    if (!check_samples(e, samples, n_samples, error))
        return false;
    size_t hop = e->config.hop_length, n_mels = e->config.n_mels;
    size_t n_frames = (n_samples + hop - 1) / hop;
    /* Frames that samples reach, though the model does not see the last of them: all count for the
     * maximum. */
    size_t reached = MIN((n_samples + N_FFT / 2 - 1) / hop + 1, e->config.max_samples / hop);
    reached = MAX(reached, n_frames);
    size_t n_groups = (reached + LANES - 1) / LANES;
    g_autofree float *logs = g_try_malloc_n(n_groups * LANES, n_mels * sizeof(float));
    cs_mel made = {g_try_malloc_n(n_frames, n_mels * sizeof(float)), (uint32_t)n_mels, n_frames};
    scratch *s = aligned_alloc(32, (sizeof *s + 31) / 32 * 32);
    if (!logs || !made.data || !s) {
        free(s);
        g_free(made.data);
        return cs_fail(error, CS_ERROR_BUSY, "audio: no memory for %zu frames", n_frames);
    }
    all_frames(e, samples, n_samples, logs, n_groups, s);
    free(s);
    float floor = maximum(logs, n_mels, reached) - 8.0f;
    for (size_t i = 0; i < n_frames; i++) {
        const float *column = logs + i / LANES * LANES * n_mels + i % LANES;
        for (size_t m = 0; m < n_mels; m++)
            made.data[i * n_mels + m] = (fmaxf(column[m * LANES], floor) + 4.0f) / 4.0f;
    }
    *mel = made;
    return true;
}

void cs_mel_clear(cs_mel *mel)
{
    g_free(mel->data);
    *mel = (cs_mel){0};
}
