/* bf16 products by the AVX-512 dot-product instruction: each 32-bit lane adds a pair of products.
 */
#include "tensor/cpu/kernels.h"

#include <immintrin.h>
#include <string.h>

cs_product cs_product_bf16_avx512bf16;

#define ROWS 6
#define PANELS 4

static inline __attribute__((always_inline)) void tile(int rows, int panels, int64_t k,
                                                       const uint16_t *a, int64_t lda,
                                                       const char *b, size_t panel_bytes, float *c,
                                                       int64_t ldc, bool accumulate)
{
    __m512 acc[ROWS][PANELS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++)
            acc[r][p] =
                accumulate ? _mm512_loadu_ps(c + r * ldc + p * CS_PANEL) : _mm512_setzero_ps();
    for (int64_t i = 0; i < k; i += 2) {
        __m512bh pairs[PANELS];
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++)
            pairs[p] = (__m512bh)_mm512_loadu_si512(b + p * panel_bytes + i * CS_PANEL * 2);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            int32_t x;
            memcpy(&x, a + r * lda + i, sizeof x);
            __m512bh both = (__m512bh)_mm512_set1_epi32(x);
#pragma GCC unroll 16
            for (int p = 0; p < panels; p++)
                acc[r][p] = _mm512_dpbf16_ps(acc[r][p], both, pairs[p]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++)
            _mm512_storeu_ps(c + r * ldc + p * CS_PANEL, acc[r][p]);
}

#define CASE(rows, panels)                                                                         \
    case (rows)*8 + (panels):                                                                      \
        tile(rows, panels, k, a, lda, b, panel_bytes, c, ldc, accumulate);                         \
        break

static void one_tile(int rows, int panels, int64_t k, const uint16_t *a, int64_t lda, const char *b,
                     size_t panel_bytes, float *c, int64_t ldc, bool accumulate)
{
    switch (rows * 8 + panels) {
        CASE(6, 4);
        CASE(5, 4);
        CASE(4, 4);
        CASE(3, 4);
        CASE(2, 4);
        CASE(1, 4);
        CASE(6, 1);
        CASE(5, 1);
        CASE(4, 1);
        CASE(3, 1);
        CASE(2, 1);
        CASE(1, 1);
    }
}

void cs_product_bf16_avx512bf16(int64_t rows, int64_t n_panels, int64_t k, const void *a,
                                int64_t lda, const void *b, size_t panel_bytes, float *c,
                                int64_t ldc, bool accumulate)
{
    for (int64_t p = 0; p < n_panels;) {
        int panels = n_panels - p >= PANELS ? PANELS : 1;
        for (int64_t r = 0; r < rows; r += ROWS) {
            int height = rows - r >= ROWS ? ROWS : (int)(rows - r);
            one_tile(height, panels, k, (const uint16_t *)a + r * lda, lda,
                     (const char *)b + (size_t)p * panel_bytes, panel_bytes,
                     c + r * ldc + p * CS_PANEL, ldc, accumulate);
        }
        p += panels;
    }
}
