/* The 16-wide vectors that kernels are written in: GNU vectors, which the compiler maps to what the
 * instruction set has. */
#ifndef CS_TENSOR_CPU_KERNELS_VECTOR_H
#define CS_TENSOR_CPU_KERNELS_VECTOR_H

#include <stdint.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define CS_JOIN_(a, b) a##b
#define CS_JOIN(a, b) CS_JOIN_(a, b)

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint16_t v16h __attribute__((vector_size(32)));
/* The same without a promise of alignment. */
typedef float v16u __attribute__((vector_size(64), aligned(4)));
typedef int32_t v16iu __attribute__((vector_size(64), aligned(4)));
typedef uint16_t v16hu __attribute__((vector_size(32), aligned(2)));

#define INLINE static inline __attribute__((always_inline))

INLINE v16 load(const float *p)
{
    return *(const v16u *)p;
}

INLINE void store(float *p, v16 v)
{
    *(v16u *)p = v;
}

INLINE v16 splat(float x)
{
    return (v16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

INLINE v16 choose(v16i mask, v16 a, v16 b)
{
    return (v16)((mask & (v16i)a) | (~mask & (v16i)b));
}

/* To bf16, rounded to nearest even; a NaN keeps its upper half and stays quiet. The instruction
 * takes subnormals for zero, as the products do. */
INLINE v16h narrow(v16 x)
{
#ifdef __AVX512BF16__
    return (v16h)_mm512_cvtneps_pbh((__m512)x);
#else
    v16i bits = (v16i)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
    v16i nan = (bits & 0x7fffffff) > 0x7f800000;
    v16i upper = (v16i)choose(nan, (v16)(bits | 0x400000), (v16)rounded) >> 16;
    return __builtin_convertvector(upper, v16h);
#endif
}

#endif
