/* BigVGAN's anti-aliased activation on 16 columns, compiled once for each instruction set.
 *
 * With taps f[0..11] and q over rows, u[n] = 2 sum_q x[q] f[n + 5 - 2 q] is x at twice the rate,
 * a = u + inverse_beta sin(alpha u)^2, and y[t] = sum_j f[j] a[2 t - 5 + j]. u[2t] reads rows
 * t-3..t+2 of x, u[2t+1] rows t-2..t+3. Indices beyond an end stand for the end. Columns stand in
 * the lanes of a vector, so that nothing is ever shuffled; rows of a wait in the first-level cache.
 */
#include "tensor/cpu/kernels.h"
#include "tensor/cpu/kernels_vector.h"

#include <string.h>

enum {
    TAPS = 12,
    HALF = TAPS / 2,     /* taps on one side */
    BEFORE = 3,          /* pairs of a before row t that y[t] reads, and after it but one */
    PAIRS = 2 * BEFORE,  /* of a beyond the rows of y */
    MARGIN = 2 * BEFORE, /* rows of x on each side */
    SOON = 24,           /* rows of x on the way: too far apart for the hardware to see a stream */
};

cs_snake CS_JOIN(cs_snake_, CS_ISA);

/* sin(pi v)^2. v less its nearest integer is in [-1/2, 1/2], where the sine squared is z P(z) with
 * z the square; P is the interpolation in 6 Chebyshev nodes, off by 8e-8 in f32. Beyond |v| of
 * some hundreds the spacing of floats shows. */
INLINE v16 sine_squared(v16 v)
{
#ifdef __AVX512DQ__
    v16 r = (v16)_mm512_reduce_ps((__m512)v, 0);
#else
    const v16 magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    v16 r = v - ((v + magic) - magic);
#endif
    v16 z = r * r;
    v16 p = splat(-3.3561087f) * z + splat(13.0497961f);
    p = p * z + splat(-30.1014004f);
    p = p * z + splat(42.7271919f);
    p = p * z + splat(-32.4696693f);
    p = p * z + splat(9.86960411f);
    return z * p;
}

typedef struct {
    v16 even[HALF], odd[HALF];
} up_factors;

/* n pairs of rows of a from n + 6 rows of x. */
static void activate(const cs_snake_columns *s, int64_t n, const float *x, int64_t stride,
                     float *restrict a)
{
    const v16 turns = load(s->turns), inverse_beta = load(s->inverse_beta);
    up_factors f;
    for (int i = 0; i < HALF; i++) {
        f.even[i] = splat(s->even[i]);
        f.odd[i] = splat(s->odd[i]);
    }
    for (int64_t t = 0; t < n; t++, x += stride, a += 2 * CS_PANEL) {
        __builtin_prefetch(x + SOON * stride);
        v16 row = load(x + stride), even = f.even[0] * load(x), odd = f.odd[0] * row;
        for (int i = 1; i < HALF; i++) {
            even += f.even[i] * row;
            row = load(x + (i + 1) * stride);
            odd += f.odd[i] * row;
        }
        store(a, even + inverse_beta * sine_squared(turns * even));
        store(a + CS_PANEL, odd + inverse_beta * sine_squared(turns * odd));
    }
}

INLINE void put(const cs_snake_columns *s, int64_t row, v16 v)
{
    size_t n = (size_t)s->n_columns;
    if (s->to_bf16) {
        v16h half = narrow(v);
        uint16_t *y = (uint16_t *)s->y + row * s->y_stride;
        if (n == CS_PANEL)
            *(v16hu *)y = half;
        else
            memcpy(y, &half, n * sizeof *y);
        return;
    }
    float *y = (float *)s->y + row * s->y_stride;
    if (n == CS_PANEL)
        store(y, v);
    else
        memcpy(y, &v, n * sizeof *y);
}

/* y[t] from the 12 rows of a that it reads. */
INLINE v16 decimate_row(const v16 *f, const float *a)
{
    v16 lower = f[0] * load(a), upper = f[HALF] * load(a + HALF * CS_PANEL);
    for (int j = 1; j < HALF; j++) {
        lower += f[j] * load(a + j * CS_PANEL);
        upper += f[HALF + j] * load(a + (HALF + j) * CS_PANEL);
    }
    return lower + upper;
}

/* Rows [first, end) of y from rows of a, the first of which is 2 first - 5. */
static void decimate(const cs_snake_columns *s, int64_t first, int64_t end, const float *a)
{
    v16 f[TAPS];
    for (int i = 0; i < TAPS; i++)
        f[i] = splat(s->down[i]);
    int64_t t = first;
    for (; t + 2 <= end; t += 2, a += 4 * CS_PANEL) { /* two that share most of their rows */
        v16 one = decimate_row(f, a), other = decimate_row(f, a + 2 * CS_PANEL);
        put(s, t, one);
        put(s, t + 1, other);
    }
    if (t < end)
        put(s, t, decimate_row(f, a));
}

/* Copies n rows of x from row `first` on, which may lie beyond an end. */
static void gather(const cs_snake_columns *s, int64_t first, int64_t n, float *to)
{
    for (int64_t i = 0; i < n; i++, to += CS_PANEL) {
        int64_t row = first + i < 0 ? 0 : first + i >= s->n_rows ? s->n_rows - 1 : first + i;
        store(to, splat(0));
        memcpy(to, s->x + row * s->x_stride, (size_t)s->n_columns * sizeof *to);
    }
}

void CS_JOIN(cs_snake_, CS_ISA)(const cs_snake_columns *s, int64_t first, int64_t end)
{
    _Alignas(64) float copy[(CS_SNAKE_ROWS + 2 * MARGIN) * CS_PANEL];
    _Alignas(64) float fine[2 * (CS_SNAKE_ROWS + PAIRS) * CS_PANEL];
    int64_t n = end - first, from = first - MARGIN, stride = s->x_stride;
    const float *x = s->x + from * stride;
    bool inside = from >= 0 && end + MARGIN <= s->n_rows;
    if (!inside || s->n_columns < CS_PANEL) {
        gather(s, from, n + 2 * MARGIN, copy);
        x = copy;
        stride = CS_PANEL;
    }
    activate(s, n + PAIRS, x, stride, fine);
    /* Row 0 of a stands at `zero`; what lies beyond its ends is the end. */
    int64_t zero = 2 * (BEFORE - first), last = zero + 2 * s->n_rows - 1;
    for (int64_t i = 0; i < zero; i++)
        store(fine + i * CS_PANEL, load(fine + zero * CS_PANEL));
    for (int64_t i = last + 1; i < 2 * (n + PAIRS); i++)
        store(fine + i * CS_PANEL, load(fine + last * CS_PANEL));
    decimate(s, first, end, fine + CS_PANEL);
}
