/* What follows the sums of a linear operation, a row at a time: bias, activation, the way into y.
 * Included by the kernels that do it. */
#ifndef CS_TENSOR_CPU_KERNELS_FINISH_H
#define CS_TENSOR_CPU_KERNELS_FINISH_H

#include "tensor/cpu/kernels.h"
#include "tensor/cpu/kernels_vector.h"

#include <math.h>
#include <string.h>

/* Loads the first n < 16 elements, zeros behind. */
INLINE v16 load_n(const float *p, int64_t n)
{
    float part[16] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return load(part);
}

INLINE void store_n(float *p, v16 v, int64_t n)
{
    memcpy(p, &v, (size_t)n * sizeof *p);
}

/* The smaller and the larger of a bound and x; a NaN stays. */
INLINE v16 at_most(float bound, v16 x)
{
#ifdef __AVX512F__
    return (v16)_mm512_min_ps((__m512)splat(bound), (__m512)x);
#else
    return choose(x > splat(bound), splat(bound), x);
#endif
}

INLINE v16 at_least(float bound, v16 x)
{
#ifdef __AVX512F__
    return (v16)_mm512_max_ps((__m512)splat(bound), (__m512)x);
#else
    return choose(x < splat(bound), splat(bound), x);
#endif
}

/* e^x to about 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, then a polynomial in r (Taylor to degree 7,
 * whose remainder is below 1e-8 there). Below -87 the result is 0: subnormals would take the slow
 * way through the units. Above 88.7 it is infinity. */
INLINE v16 vexp(v16 x)
{
    const v16 magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    v16 clamped = at_most(89.0f, at_least(-87.0f, x));
    v16 shifted = clamped * splat(1.44269504f) + magic;
    v16 n = shifted - magic;
    v16 r = clamped - n * splat(0.693359375f);
    r = r - n * splat(-2.12194440e-4f);
    v16 p = splat(1.0f / 5040);
    p = p * r + splat(1.0f / 720);
    p = p * r + splat(1.0f / 120);
    p = p * r + splat(1.0f / 24);
    p = p * r + splat(1.0f / 6);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
#ifdef __AVX512F__
    __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(-87.0f), _CMP_NLT_UQ);
    return (v16)_mm512_maskz_scalef_ps(kept, (__m512)p, (__m512)n);
#else
    v16i exponent = (((v16i)shifted - (v16i)magic) << 23);
    v16 result = (v16)((v16i)p + exponent);
    result = choose(x < splat(-87.0f), splat(0.0f), result);
    result = choose(x > splat(88.0f), splat(INFINITY), result);
    return choose(x == x, result, x);
#endif
}

/* x / (1 + e^v). */
INLINE v16 over_one_and_exp(v16 x, v16 v)
{
#ifdef __AVX512F__
    /* A division takes 16 cycles; this is off by 2^-27. */
    v16 d = splat(1.0f) + vexp(at_most(80.0f, v));
    v16 inverse = (v16)_mm512_rcp14_ps((__m512)d);
    return x * (inverse * (splat(2.0f) - d * inverse));
#else
    return x / (splat(1.0f) + vexp(v));
#endif
}

/* erf to 1.5e-7 absolute: Abramowitz and Stegun 7.1.26. */
INLINE v16 verf(v16 x)
{
    v16 a = (v16)((v16i)x & 0x7fffffff);
    v16 t = splat(1.0f) / (splat(1.0f) + splat(0.3275911f) * a);
    v16 p = splat(1.061405429f);
    p = p * t + splat(-1.453152027f);
    p = p * t + splat(1.421413741f);
    p = p * t + splat(-0.284496736f);
    p = p * t + splat(0.254829592f);
    v16 y = splat(1.0f) - p * t * vexp(-a * a);
    return (v16)((v16i)y | ((v16i)x & (int32_t)0x80000000));
}

INLINE v16 vsilu(v16 x)
{
    return over_one_and_exp(x, -x);
}

INLINE v16 vgelu(v16 x)
{
    return x * splat(0.5f) * (splat(1.0f) + verf(x * splat(0.70710678f)));
}

/* x/2 (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE v16 vgelu_tanh(v16 x)
{
    v16 u = splat(0.79788456f) * (x + splat(0.044715f) * x * x * x);
    return over_one_and_exp(x, splat(-2.0f) * u);
}

INLINE v16 formed(cs_form form, v16 x, v16 up)
{
    switch (form) {
    case CS_FORM_PLAIN:
        break;
    case CS_FORM_GELU:
        return vgelu(x);
    case CS_FORM_GELU_TANH:
        return vgelu_tanh(x);
    case CS_FORM_SILU:
        return vsilu(x);
    case CS_FORM_GATED:
        return vsilu(x) * up;
    }
    return x;
}

/* Columns [i, i + n) of row r, n <= 16. */
INLINE void finish_columns(const cs_finish *f, cs_form form, int64_t r, int64_t i, int64_t n)
{
    bool gated = form == CS_FORM_GATED;
    const float *sums = f->sums + r * f->sums_stride + (gated ? 2 * i : i);
    v16 x = load(sums), up = x;
    if (f->bias)
        x += n == 16 ? load(f->bias + i) : load_n(f->bias + i, n);
    if (gated)
        up = load(sums + CS_PANEL);
    if (gated && f->bias)
        up += n == 16 ? load(f->up_bias + i) : load_n(f->up_bias + i, n);
    x = formed(form, x, up);
    if (f->to_bf16) {
        v16h half = narrow(x);
        memcpy((uint16_t *)f->y + r * f->y_stride + i, &half, (size_t)n * sizeof(uint16_t));
        return;
    }
    float *y = (float *)f->y + r * f->y_stride + i;
    if (n == 16)
        store(y, f->accumulate ? load(y) + x : x);
    else
        store_n(y, f->accumulate ? load_n(y, n) + x : x, n);
}

INLINE void finish_row_as(const cs_finish *f, cs_form form, int64_t r)
{
    int64_t i = 0;
    for (; i + 16 <= f->n; i += 16)
        finish_columns(f, form, r, i, 16);
    if (i < f->n)
        finish_columns(f, form, r, i, f->n - i);
}

INLINE void finish_row(const cs_finish *f, int64_t r)
{
    switch (f->form) {
    case CS_FORM_PLAIN:
        finish_row_as(f, CS_FORM_PLAIN, r);
        break;
    case CS_FORM_GELU:
        finish_row_as(f, CS_FORM_GELU, r);
        break;
    case CS_FORM_GELU_TANH:
        finish_row_as(f, CS_FORM_GELU_TANH, r);
        break;
    case CS_FORM_SILU:
        finish_row_as(f, CS_FORM_SILU, r);
        break;
    case CS_FORM_GATED:
        finish_row_as(f, CS_FORM_GATED, r);
        break;
    }
}

#endif
