/* Register-only loops, compiled once for each instruction set (CS_PEAK names it). Independent
 * accumulators cover the latency of the instruction. */
#include "peak.h"

#if defined(CS_PEAK_AMX)
#include <immintrin.h>
#include <string.h>

double cs_peak_amx(int64_t rounds)
{
    _Alignas(64) uint8_t config[64] = {1};
    _Alignas(64) static const uint8_t zeros[1024];
    for (int t = 0; t < 8; t++) {
        config[16 + 2 * t] = 64;
        config[48 + t] = 16;
    }
    __asm__ volatile(""
                     :
                     : "r"(config)
                     : "memory"); /* the intrinsic does not say that it reads all 64 bytes */
    _tile_loadconfig(config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    _tile_loadd(6, zeros, 64);
    _tile_loadd(7, zeros, 64);
    for (int64_t i = 0; i < rounds; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (double)rounds * 4 * 16 * 16 * 32 * 2;
}

#elif defined(CS_PEAK_AVX512BF16)
#include <immintrin.h>

double cs_peak_avx512bf16(int64_t rounds)
{
    __m512 a0 = _mm512_setzero_ps(), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0,
           a8 = a0, a9 = a0;
    __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int64_t i = 0; i < rounds; i++) {
        a0 = _mm512_dpbf16_ps(a0, x, x);
        a1 = _mm512_dpbf16_ps(a1, x, x);
        a2 = _mm512_dpbf16_ps(a2, x, x);
        a3 = _mm512_dpbf16_ps(a3, x, x);
        a4 = _mm512_dpbf16_ps(a4, x, x);
        a5 = _mm512_dpbf16_ps(a5, x, x);
        a6 = _mm512_dpbf16_ps(a6, x, x);
        a7 = _mm512_dpbf16_ps(a7, x, x);
        a8 = _mm512_dpbf16_ps(a8, x, x);
        a9 = _mm512_dpbf16_ps(a9, x, x);
        __asm__ volatile("" : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4));
        __asm__ volatile("" : "+v"(a5), "+v"(a6), "+v"(a7), "+v"(a8), "+v"(a9));
    }
    return (double)rounds * 10 * 64;
}

#else
typedef float vector __attribute__((vector_size(CS_PEAK_BYTES)));

double CS_PEAK(int64_t rounds)
{
    vector a0 = {0}, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0, a8 = a0,
           a9 = a0;
    vector x = a0 + 1.0f;
    for (int64_t i = 0; i < rounds; i++) {
        a0 += x * x;
        a1 += x * x;
        a2 += x * x;
        a3 += x * x;
        a4 += x * x;
        a5 += x * x;
        a6 += x * x;
        a7 += x * x;
        a8 += x * x;
        a9 += x * x;
        __asm__ volatile("" : "+x"(x));
        __asm__ volatile("" : "+x"(a0), "+x"(a1), "+x"(a2), "+x"(a3), "+x"(a4));
        __asm__ volatile("" : "+x"(a5), "+x"(a6), "+x"(a7), "+x"(a8), "+x"(a9));
    }
    return (double)rounds * 10 * (CS_PEAK_BYTES / 4) * 2;
}
#endif
