/* bf16 products by AMX tiles: a tile is 16 rows of 64 bytes, one instruction multiplies [16, 32] by
 * [32, 16].
 *
 * Eight tiles: 0-3 accumulate, 4-5 hold A, 6-7 hold B. Blocks of 17 to 32 rows by 2 panels use two
 * tiles each way; up to 16 rows use four panels instead, so that each B tile is loaded once. Row
 * counts are part of the tile configuration, a register file per thread that takes longer to load
 * than a small product to compute: it is kept until another is wanted, and released at the end of a
 * piece of work, because live tiles cost every context switch 8 KiB.
 */
#include "tensor/cpu/kernels.h"
#include "tensor/cpu/kernels_amx.h"

cs_product cs_product_bf16_amx;
cs_product_blocks cs_product_blocks_bf16_amx;
void cs_amx_leave(void);

/* What configure() loaded last on this thread; 0: nothing. */
static _Thread_local int configured;

/* Tiles of A and C with this many rows. */
static void configure(int rows)
{
    if (rows == configured)
        return;
    cs_amx_configure(rows, rows);
    configured = rows;
}

void cs_amx_leave(void)
{
    if (configured)
        _tile_release();
    configured = 0;
}

static void tile_2x2(int64_t k, const uint16_t *a, int64_t lda, const char *b, size_t panel_bytes,
                     float *c, int64_t ldc, bool accumulate)
{
    const uint16_t *a_lower = a + 16 * lda;
    float *c_lower = c + 16 * ldc;
    const char *b_right = b + panel_bytes;
    size_t a_stride = (size_t)lda * sizeof *a, c_stride = (size_t)ldc * sizeof *c;
    if (accumulate) {
        _tile_loadd(0, c, c_stride);
        _tile_loadd(1, c + CS_PANEL, c_stride);
        _tile_loadd(2, c_lower, c_stride);
        _tile_loadd(3, c_lower + CS_PANEL, c_stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < k; i += 32) {
        _tile_loadd(6, b + i * CS_PANEL * 2, 64);
        _tile_stream_loadd(4, a + i, a_stride);
        _tile_loadd(7, b_right + i * CS_PANEL * 2, 64);
        _tile_stream_loadd(5, a_lower + i, a_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_stride);
    _tile_stored(1, c + CS_PANEL, c_stride);
    _tile_stored(2, c_lower, c_stride);
    _tile_stored(3, c_lower + CS_PANEL, c_stride);
}

static void tile_1x2(int64_t k, const uint16_t *a, int64_t lda, const char *b, size_t panel_bytes,
                     float *c, int64_t ldc, bool accumulate)
{
    size_t a_stride = (size_t)lda * sizeof *a, c_stride = (size_t)ldc * sizeof *c;
    if (accumulate) {
        _tile_loadd(0, c, c_stride);
        _tile_loadd(1, c + CS_PANEL, c_stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    for (int64_t i = 0; i < k; i += 32) {
        _tile_stream_loadd(4, a + i, a_stride);
        _tile_loadd(6, b + i * CS_PANEL * 2, 64);
        _tile_loadd(7, b + panel_bytes + i * CS_PANEL * 2, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, c, c_stride);
    _tile_stored(1, c + CS_PANEL, c_stride);
}

static void tile_1x4(int64_t k, const uint16_t *a, int64_t lda, const char *b, size_t panel_bytes,
                     float *c, int64_t ldc, bool accumulate)
{
    size_t a_stride = (size_t)lda * sizeof *a, c_stride = (size_t)ldc * sizeof *c;
    if (accumulate) {
        _tile_loadd(0, c, c_stride);
        _tile_loadd(1, c + CS_PANEL, c_stride);
        _tile_loadd(2, c + 2 * CS_PANEL, c_stride);
        _tile_loadd(3, c + 3 * CS_PANEL, c_stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < k; i += 32) {
        const char *row = b + i * CS_PANEL * 2;
        _tile_loadd(4, a + i, a_stride);
        _tile_loadd(6, row, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, row + panel_bytes, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(6, row + 2 * panel_bytes, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(7, row + 3 * panel_bytes, 64);
        _tile_dpbf16ps(3, 4, 7);
    }
    _tile_stored(0, c, c_stride);
    _tile_stored(1, c + CS_PANEL, c_stride);
    _tile_stored(2, c + 2 * CS_PANEL, c_stride);
    _tile_stored(3, c + 3 * CS_PANEL, c_stride);
}

/* One panel; `lower` tells whether there are rows beyond the first 16. */
static void tile_2x1(int64_t k, const uint16_t *a, int64_t lda, const char *b, float *c,
                     int64_t ldc, bool accumulate, bool lower)
{
    size_t a_stride = (size_t)lda * sizeof *a, c_stride = (size_t)ldc * sizeof *c;
    _tile_zero(0);
    _tile_zero(2);
    if (accumulate) {
        _tile_loadd(0, c, c_stride);
        if (lower)
            _tile_loadd(2, c + 16 * ldc, c_stride);
    }
    for (int64_t i = 0; i < k; i += 32) {
        _tile_loadd(4, a + i, a_stride);
        _tile_loadd(6, b + i * CS_PANEL * 2, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (lower) {
            _tile_loadd(5, a + 16 * lda + i, a_stride);
            _tile_dpbf16ps(2, 5, 6);
        }
    }
    _tile_stored(0, c, c_stride);
    if (lower)
        _tile_stored(2, c + 16 * ldc, c_stride);
}

/* Up to 16 rows. */
static void short_rows(int64_t n_panels, int64_t k, const uint16_t *a, int64_t lda, const char *b,
                       size_t panel_bytes, float *c, int64_t ldc, bool accumulate)
{
    int64_t p = 0;
    for (; p + 4 <= n_panels; p += 4)
        tile_1x4(k, a, lda, b + (size_t)p * panel_bytes, panel_bytes, c + p * CS_PANEL, ldc,
                 accumulate);
    for (; p < n_panels; p++)
        tile_2x1(k, a, lda, b + (size_t)p * panel_bytes, c + p * CS_PANEL, ldc, accumulate, false);
}

/* Rows in multiples of 16. */
static void tall_rows(int64_t rows, int64_t n_panels, int64_t k, const uint16_t *a, int64_t lda,
                      const char *b, size_t panel_bytes, float *c, int64_t ldc, bool accumulate)
{
    int64_t p = 0;
    for (; p + 2 <= n_panels; p += 2, b += 2 * panel_bytes, c += 2 * CS_PANEL) {
        int64_t r = 0;
        for (; r + 32 <= rows; r += 32)
            tile_2x2(k, a + r * lda, lda, b, panel_bytes, c + r * ldc, ldc, accumulate);
        if (r < rows)
            tile_1x2(k, a + r * lda, lda, b, panel_bytes, c + r * ldc, ldc, accumulate);
    }
    for (int64_t r = 0; p < n_panels && r < rows; r += 32)
        tile_2x1(k, a + r * lda, lda, b, c + r * ldc, ldc, accumulate, r + 32 <= rows);
}

void cs_product_bf16_amx(int64_t rows, int64_t n_panels, int64_t k, const void *a, int64_t lda,
                         const void *b, size_t panel_bytes, float *c, int64_t ldc, bool accumulate)
{
    const uint16_t *x = a;
    int64_t whole = rows & ~(int64_t)15, rest = rows - whole;
    if (whole > 16) {
        configure(16);
        tall_rows(whole, n_panels, k, x, lda, b, panel_bytes, c, ldc, accumulate);
        x += whole * lda;
        c += whole * ldc;
    } else {
        rest = rows;
    }
    for (; rest > 0; rest -= 16, x += 16 * lda, c += 16 * ldc) {
        int n = rest < 16 ? (int)rest : 16;
        configure(n);
        short_rows(n_panels, k, x, lda, b, panel_bytes, c, ldc, accumulate);
    }
}

/* 32 rows by two panels of all blocks, whose sums stay in tiles. */
static void add_2x2(int64_t k, const uint16_t *a, int64_t lda, int n_blocks, const void *const *b,
                    size_t offset, size_t panel_bytes, float *c, int64_t ldc)
{
    const size_t a_stride = (size_t)lda * sizeof *a, c_stride = (size_t)ldc * sizeof *c;
    float *c_lower = c + 16 * ldc;
    _tile_loadd(0, c, c_stride);
    _tile_loadd(1, c + CS_PANEL, c_stride);
    _tile_loadd(2, c_lower, c_stride);
    _tile_loadd(3, c_lower + CS_PANEL, c_stride);
    for (int block = 0; block < n_blocks; block++) {
        const char *left = (const char *)b[block] + offset, *right = left + panel_bytes;
        for (int64_t i = 0; i < k; i += CS_K_ALIGN, a += CS_K_ALIGN) {
            _tile_loadd(6, left + i * CS_PANEL * 2, 64);
            _tile_loadd(4, a, a_stride);
            _tile_loadd(7, right + i * CS_PANEL * 2, 64);
            _tile_loadd(5, a + 16 * lda, a_stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, c_stride);
    _tile_stored(1, c + CS_PANEL, c_stride);
    _tile_stored(2, c_lower, c_stride);
    _tile_stored(3, c_lower + CS_PANEL, c_stride);
}

void cs_product_blocks_bf16_amx(int64_t rows, int64_t n_panels, int64_t k, const void *a,
                                int64_t lda, int n_blocks, const void *const *b, size_t panel_bytes,
                                float *c, int64_t ldc)
{
    int64_t p = 0;
    if (rows == CS_AMX_BLOCK) {
        configure(CS_AMX_ROWS);
        for (; p + 2 <= n_panels; p += 2)
            add_2x2(k, a, lda, n_blocks, b, (size_t)p * panel_bytes, panel_bytes, c + p * CS_PANEL,
                    ldc);
    }
    for (int block = 0; p < n_panels && block < n_blocks; block++)
        cs_product_bf16_amx(rows, n_panels - p, k, (const uint16_t *)a + block * k, lda,
                            (const char *)b[block] + (size_t)p * panel_bytes, panel_bytes,
                            c + p * CS_PANEL, ldc, true);
}
