#include "media/preprocess/resample.h"

#include "base/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Pillow keeps 8 bits for the result and 2 for overshoot of a 32-bit accumulator; see the notes on
 * its resampling in the Pillow documentation and the 8-bit path of its resize. */
enum { PRECISION_BITS = 32 - 8 - 2, TAPS_AT_ONE = 4, LANES = 8 };

#define INLINE inline __attribute__((always_inline))

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint8_t u8x8 __attribute__((vector_size(8)));

/* Which source samples make each output sample along one axis: taps [start, start + count), their
 * weights at weights[i * stride]. */
typedef struct {
    uint32_t size, stride;
    uint32_t *start, *count; /* [size] */
    int32_t *weights;        /* [size][stride], fixed point: Pillow's, or NULL */
    float *real;             /* [size][stride]: torch's, or NULL */
} axis;

static void axis_clear(axis *a)
{
    g_free(a->start);
    g_free(a->count);
    g_free(a->weights);
    g_free(a->real);
}

static bool axis_alloc(axis *a, uint32_t size, double support, bool fixed)
{
    a->size = size;
    a->stride = (uint32_t)ceil(support) * 2 + 1;
    size_t n = (size_t)size * a->stride;
    a->start = g_try_new(uint32_t, size);
    a->count = g_try_new(uint32_t, size);
    a->weights = fixed ? g_try_new(int32_t, n) : NULL;
    a->real = fixed ? NULL : g_try_new(float, n);
    return a->start && a->count && (a->weights || a->real);
}

static double cubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static bool axis_init_pillow(axis *a, uint32_t from, uint32_t to)
{
    double scale = (double)from / to, stretch = fmax(scale, 1.0);
    double support = TAPS_AT_ONE / 2.0 * stretch, inverse = 1.0 / stretch;
    *a = (axis){0};
    if (!axis_alloc(a, to, support, true))
        return false;
    g_autofree double *w = g_try_new(double, a->stride);
    if (!w)
        return false;
    for (uint32_t i = 0; i < to; i++) {
        double center = (i + 0.5) * scale, sum = 0;
        int first = MAX((int)(center - support + 0.5), 0);
        int n = MIN((int)(center + support + 0.5), (int)from) - first;
        for (int j = 0; j < n; j++)
            sum += w[j] = cubic((j + first - center + 0.5) * inverse);
        for (int j = 0; j < n; j++) {
            double k = (sum != 0 ? w[j] / sum : w[j]) * (1 << PRECISION_BITS);
            a->weights[(size_t)i * a->stride + (size_t)j] = (int32_t)(k < 0 ? k - 0.5 : k + 0.5);
        }
        a->start[i] = (uint32_t)first;
        a->count[i] = (uint32_t)n;
    }
    return true;
}

/* Fused where the reference's build fuses: a weight that is off by its last bit moves a pixel in
 * some ten thousand by a level. */
static float cubic_float(float x)
{
    const float a = -0.5f;
    x = fabsf(x);
    if (x < 1.0f)
        return fmaf(fmaf(a + 2, x, -(a + 3)) * x, x, 1);
    if (x < 2.0f)
        return fmaf(fmaf(fmaf(a, x, -5 * a), x, 8 * a), x, -4 * a);
    return 0;
}

/* The mixture of single and double precision is the reference's. */
static bool axis_init_torch(axis *a, uint32_t from, uint32_t to)
{
    float scale = (float)from / (float)to;
    float support = scale >= 1 ? TAPS_AT_ONE / 2.0f * scale : TAPS_AT_ONE / 2.0f;
    float inverse = scale >= 1 ? (float)(1.0 / (double)scale) : 1;
    *a = (axis){0};
    if (!axis_alloc(a, to, (double)support, false))
        return false;
    for (uint32_t i = 0; i < to; i++) {
        float center = (float)((double)scale * (i + 0.5)), sum = 0;
        float *w = a->real + (size_t)i * a->stride;
        int first = MAX((int)((double)(center - support) + 0.5), 0);
        int n = MIN((int)((double)(center + support) + 0.5), (int)from) - first;
        n = CLAMP(n, 0, (int)a->stride);
        for (int j = 0; j < n; j++)
            sum += w[j] = cubic_float(
                (float)(((double)((float)(j + first) - center) + 0.5) * (double)inverse));
        for (int j = 0; j < n && sum != 0; j++)
            w[j] /= sum;
        a->start[i] = (uint32_t)first;
        a->count[i] = (uint32_t)n;
    }
    return true;
}

static INLINE void clamp_to_byte(i32x8 *v)
{
    i32x8 over = *v > 255;
    *v = (*v & (*v >= 0) & ~over) | (over & 255);
}

static INLINE void store_two(const i32x8 *sum, uint8_t *out, size_t next)
{
    i32x8 acc = *sum >> PRECISION_BITS;
    clamp_to_byte(&acc);
    for (int c = 0; c < 3; c++) {
        out[c] = (uint8_t)acc[c];
        out[next + (size_t)c] = (uint8_t)acc[4 + c];
    }
}

/* Two rows at a time: lanes 0-2 hold a pixel of the first, lanes 4-6 of the second. `pair` is
 * [source width] of scratch. */
static INLINE void horizontal_body(const axis *a, const uint8_t *row0, const uint8_t *row1,
                                   uint32_t width, i32x8 *pair, uint8_t *out, size_t next)
{
    for (uint32_t x = 0; x < width; x++)
        pair[x] = (i32x8){row0[3 * x], row0[3 * x + 1], row0[3 * x + 2], 0,
                          row1[3 * x], row1[3 * x + 1], row1[3 * x + 2], 0};
    for (uint32_t i = 0; i < a->size; i++) {
        const int32_t *w = a->weights + (size_t)i * a->stride;
        const i32x8 *in = pair + a->start[i];
        i32x8 acc = (i32x8){0} + (1 << (PRECISION_BITS - 1));
        for (uint32_t j = 0; j < a->count[i]; j++)
            acc += in[j] * w[j];
        store_two(&acc, out + (size_t)i * 3, next);
    }
}

/* One output row of `bytes` from `count` rows that are `stride` apart. */
static INLINE void vertical_body(const int32_t *w, uint32_t count, const uint8_t *in, size_t stride,
                                 uint8_t *out, size_t bytes)
{
    const int32_t half = 1 << (PRECISION_BITS - 1);
    size_t x = 0;
    for (; x + LANES <= bytes; x += LANES) {
        i32x8 acc = (i32x8){0} + half;
        const uint8_t *p = in + x;
        for (uint32_t j = 0; j < count; j++, p += stride) {
            u8x8 v;
            memcpy(&v, p, sizeof v);
            acc += __builtin_convertvector(v, i32x8) * w[j];
        }
        acc >>= PRECISION_BITS;
        clamp_to_byte(&acc);
        u8x8 v = __builtin_convertvector(acc, u8x8);
        memcpy(out + x, &v, sizeof v);
    }
    for (; x < bytes; x++) {
        int32_t acc = half;
        for (uint32_t j = 0; j < count; j++)
            acc += in[x + j * stride] * w[j];
        acc >>= PRECISION_BITS;
        out[x] = (uint8_t)CLAMP(acc, 0, 255);
    }
}

/* ---- torch's arithmetic: products and sums are fused where the reference's build fuses them ----
 */

static INLINE void horizontal_real_body(const axis *a, const uint8_t *row0, const uint8_t *row1,
                                        uint32_t width, f32x8 *pair, float *out, size_t next)
{
    for (uint32_t x = 0; x < width; x++)
        pair[x] = (f32x8){row0[3 * x], row0[3 * x + 1], row0[3 * x + 2], 0,
                          row1[3 * x], row1[3 * x + 1], row1[3 * x + 2], 0};
    for (uint32_t i = 0; i < a->size; i++) {
        const float *w = a->real + (size_t)i * a->stride;
        const f32x8 *in = pair + a->start[i];
        f32x8 acc = in[0] * w[0];
        for (uint32_t j = 1; j < a->count[i]; j++)
            acc += in[j] * w[j];
        for (size_t c = 0; c < 3; c++) {
            out[(size_t)i * 3 + c] = acc[c];
            out[next + (size_t)i * 3 + c] = acc[4 + c];
        }
    }
}

static INLINE void vertical_real_body(const float *w, uint32_t count, const float *in,
                                      size_t stride, uint8_t *out, size_t samples)
{
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: adding it rounds half to even */
    size_t x = 0;
    for (; x + LANES <= samples; x += LANES) {
        const float *p = in + x;
        f32x8 acc;
        memcpy(&acc, p, sizeof acc);
        acc *= w[0];
        for (uint32_t j = 1; j < count; j++) {
            f32x8 v;
            memcpy(&v, p += stride, sizeof v);
            acc += v * w[j];
        }
        i32x8 rounded = __builtin_convertvector((acc + to_integer) - to_integer, i32x8);
        clamp_to_byte(&rounded);
        u8x8 v = __builtin_convertvector(rounded, u8x8);
        memcpy(out + x, &v, sizeof v);
    }
    for (; x < samples; x++) {
        float acc = in[x] * w[0];
        for (uint32_t j = 1; j < count; j++)
            acc += in[x + j * stride] * w[j];
        out[x] = (uint8_t)CLAMP(rintf(acc), 0, 255);
    }
}

typedef struct {
    void (*horizontal)(const axis *a, const uint8_t *row0, const uint8_t *row1, uint32_t width,
                       i32x8 *pair, uint8_t *out, size_t next);
    void (*vertical)(const int32_t *w, uint32_t count, const uint8_t *in, size_t stride,
                     uint8_t *out, size_t bytes);
    void (*horizontal_real)(const axis *a, const uint8_t *row0, const uint8_t *row1, uint32_t width,
                            f32x8 *pair, float *out, size_t next);
    void (*vertical_real)(const float *w, uint32_t count, const float *in, size_t stride,
                          uint8_t *out, size_t samples);
} kernels;

static void horizontal(const axis *a, const uint8_t *row0, const uint8_t *row1, uint32_t width,
                       i32x8 *pair, uint8_t *out, size_t next)
{
    horizontal_body(a, row0, row1, width, pair, out, next);
}

static void horizontal_real(const axis *a, const uint8_t *row0, const uint8_t *row1, uint32_t width,
                            f32x8 *pair, float *out, size_t next)
{
    horizontal_real_body(a, row0, row1, width, pair, out, next);
}

static void vertical_real(const float *w, uint32_t count, const float *in, size_t stride,
                          uint8_t *out, size_t samples)
{
    vertical_real_body(w, count, in, stride, out, samples);
}

static void vertical(const int32_t *w, uint32_t count, const uint8_t *in, size_t stride,
                     uint8_t *out, size_t bytes)
{
    vertical_body(w, count, in, stride, out, bytes);
}

static const kernels portable_kernels = {horizontal, vertical, horizontal_real, vertical_real};

#ifdef __x86_64__
#define AVX2 __attribute__((target("avx2,fma")))

AVX2 static void horizontal_avx2(const axis *a, const uint8_t *row0, const uint8_t *row1,
                                 uint32_t width, i32x8 *pair, uint8_t *out, size_t next)
{
    horizontal_body(a, row0, row1, width, pair, out, next);
}

AVX2 static void vertical_avx2(const int32_t *w, uint32_t count, const uint8_t *in, size_t stride,
                               uint8_t *out, size_t bytes)
{
    vertical_body(w, count, in, stride, out, bytes);
}

AVX2 static void horizontal_real_avx2(const axis *a, const uint8_t *row0, const uint8_t *row1,
                                      uint32_t width, f32x8 *pair, float *out, size_t next)
{
    horizontal_real_body(a, row0, row1, width, pair, out, next);
}

AVX2 static void vertical_real_avx2(const float *w, uint32_t count, const float *in, size_t stride,
                                    uint8_t *out, size_t samples)
{
    vertical_real_body(w, count, in, stride, out, samples);
}

static const kernels avx2_kernels = {horizontal_avx2, vertical_avx2, horizontal_real_avx2,
                                     vertical_real_avx2};
#endif

static bool simd_allowed = true;

void cs_resample_allow_simd(bool allow)
{
    simd_allowed = allow;
}

static const kernels *choose_kernels(void)
{
#ifdef __x86_64__
    if (simd_allowed && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &avx2_kernels;
#endif
    return &portable_kernels;
}

typedef struct {
    axis x, y;
    void *pair; /* [source width] of 8 lanes, 32-byte aligned */
    void *rows; /* the picture between the passes */
} workspace;

static void workspace_clear(workspace *s)
{
    axis_clear(&s->x);
    axis_clear(&s->y);
    free(s->pair);
    g_free(s->rows);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(workspace, workspace_clear)

static bool workspace_init(workspace *s, const cs_resample_source *source, uint32_t width,
                           uint32_t height, bool fixed, size_t rows_bytes, GError **error)
{
    bool (*axis_init)(axis *, uint32_t, uint32_t) = fixed ? axis_init_pillow : axis_init_torch;
    s->pair = aligned_alloc(32, (size_t)source->width * 32);
    s->rows = g_try_malloc(rows_bytes);
    if (!s->pair || !s->rows || !axis_init(&s->x, source->width, width) ||
        !axis_init(&s->y, source->height, height))
        return cs_fail(error, CS_ERROR_BUSY, "no memory to resize %u x %u to %u x %u pixels",
                       source->width, source->height, width, height);
    return true;
}

static void pass_horizontal(const workspace *s, const uint8_t *in, uint32_t width, size_t row_bytes,
                            uint32_t rows, uint8_t *out)
{
    const kernels *k = choose_kernels();
    size_t out_bytes = (size_t)s->x.size * 3;
    for (uint32_t y = 0; y < rows; y += 2) {
        bool two = y + 1 < rows;
        const uint8_t *row = in + y * row_bytes;
        k->horizontal(&s->x, row, two ? row + row_bytes : row, width, s->pair, out + y * out_bytes,
                      two ? out_bytes : 0);
    }
}

static void pass_vertical(const workspace *s, const uint8_t *in, size_t row_bytes, uint32_t width,
                          uint8_t *out)
{
    const kernels *k = choose_kernels();
    size_t out_bytes = (size_t)width * 3;
    for (uint32_t y = 0; y < s->y.size; y++)
        k->vertical(s->y.weights + (size_t)y * s->y.stride, s->y.count[y],
                    in + s->y.start[y] * row_bytes, row_bytes, out + y * out_bytes, out_bytes);
}

bool cs_resample_bicubic(const cs_resample_source *source, uint8_t *out, uint32_t width,
                         uint32_t height, GError **error)
{
    int64_t height_lost = (int64_t)source->height - height;
    int64_t width_lost = (int64_t)source->width - width;
    bool vertical_first = height_lost > 0 && height_lost > 2 * width_lost;
    size_t between =
        vertical_first ? (size_t)source->width * 3 * height : (size_t)width * 3 * source->height;
    g_auto(workspace) s = {0};
    if (!workspace_init(&s, source, width, height, true, between, error))
        return false;
    if (vertical_first) {
        pass_vertical(&s, source->rgb, source->row_bytes, source->width, s.rows);
        pass_horizontal(&s, s.rows, source->width, (size_t)source->width * 3, height, out);
    } else {
        pass_horizontal(&s, source->rgb, source->width, source->row_bytes, source->height, s.rows);
        pass_vertical(&s, s.rows, (size_t)width * 3, width, out);
    }
    return true;
}

bool cs_resample_bicubic_float(const cs_resample_source *source, uint8_t *out, uint32_t width,
                               uint32_t height, GError **error)
{
    const kernels *k = choose_kernels();
    size_t samples = (size_t)width * 3;
    g_auto(workspace) s = {0};
    if (!workspace_init(&s, source, width, height, false, samples * sizeof(float) * source->height,
                        error))
        return false;
    float *rows = s.rows;
    for (uint32_t y = 0; y < source->height; y += 2) {
        bool two = y + 1 < source->height;
        const uint8_t *row = source->rgb + y * source->row_bytes;
        k->horizontal_real(&s.x, row, two ? row + source->row_bytes : row, source->width, s.pair,
                           rows + y * samples, two ? samples : 0);
    }
    for (uint32_t y = 0; y < height; y++)
        k->vertical_real(s.y.real + (size_t)y * s.y.stride, s.y.count[y],
                         rows + s.y.start[y] * samples, samples, out + y * samples, samples);
    return true;
}
