/* bf16 convolutions by AMX tiles, from the rows where they lie.
 *
 * A block is 32 rows of y by two panels of outputs: tiles 0-3 hold its sums over all taps and
 * inputs, 4-5 rows of x, 6-7 weights. A tap is only another address in x. Within 32 inputs the taps
 * pass one after the other, so that rows of x come from the second-level cache once and from the
 * first for every other tap.
 *
 * What follows the sums (bias, residual) is done a few rows at a time between the products of the
 * next block: tiles and vectors compute at once, and it is nearly free.
 */
#include "tensor/cpu/kernels.h"
#include "tensor/cpu/kernels_amx.h"

cs_convolve cs_convolve_bf16_amx;

enum { TILE = CS_AMX_ROWS, BLOCK = CS_AMX_BLOCK, STEP_BYTES = 2 * CS_K_ALIGN * CS_PANEL };

/* Sums of a block on their way into y. */
typedef struct {
    const float *sums; /* [32][32] */
    const float *residual;
    float *y;
    int64_t rows; /* left */
    __m512 bias[2];
    __mmask16 columns[2];
} block_end;

static inline __attribute__((always_inline)) void finish_rows(const cs_convolution_block *c,
                                                              block_end *end, int64_t n)
{
    const __m512 scale = _mm512_set1_ps(c->scale);
    for (; n > 0 && end->rows > 0; n--, end->rows--) {
        for (int h = 0; h < 2; h++) {
            __m512 v = _mm512_add_ps(_mm512_load_ps(end->sums + h * TILE), end->bias[h]);
            if (c->residual)
                v = _mm512_add_ps(v,
                                  _mm512_maskz_loadu_ps(end->columns[h], end->residual + h * TILE));
            v = _mm512_mul_ps(v, scale);
            if (c->accumulate)
                v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(end->columns[h], end->y + h * TILE));
            _mm512_mask_storeu_ps(end->y + h * TILE, end->columns[h], v);
        }
        end->sums += BLOCK;
        end->y += c->y_stride;
        end->residual += c->residual ? c->residual_stride : 0;
    }
}

static block_end begin_end(const cs_convolution_block *c, const float *sums, int64_t row,
                           int64_t skip, int64_t panel)
{
    int64_t first = panel * CS_PANEL, at = row + skip;
    block_end end = {
        .sums = sums + skip * BLOCK,
        .residual = c->residual ? c->residual + at * c->residual_stride + first : NULL,
        .y = c->y + at * c->y_stride + first,
        .rows = (c->rows - row < BLOCK ? c->rows - row : BLOCK) - skip,
    };
    for (int h = 0; h < 2; h++, first += CS_PANEL) {
        int64_t n = c->n_outputs - first;
        end.columns[h] = n >= TILE ? 0xffff : n > 0 ? (__mmask16)((1 << n) - 1) : 0;
        end.bias[h] = _mm512_loadu_ps(c->bias + first);
    }
    return end;
}

/* Fetches what n rows will be added to and written to. */
static inline void ask_for_rows(const cs_convolution_block *c, block_end *soon, int64_t n)
{
    for (; n > 0 && soon->rows > 0; n--, soon->rows--) {
        for (int h = 0; h < 2; h++) {
            if (c->residual)
                _mm_prefetch(soon->residual + h * TILE, _MM_HINT_T0);
            _m_prefetchw(soon->y + h * TILE);
        }
        soon->residual += c->residual ? c->residual_stride : 0;
        soon->y += c->y_stride;
    }
}

/* Sums of one block over all taps and inputs. Meanwhile `end` of the block before, and `ahead`
 * bytes of the weights at `next`, which nothing has asked for yet, are fetched. */
static void sum_block(const cs_convolution_block *c, int64_t row, const char *b, float *sums,
                      block_end *end, block_end soon, const char **next, size_t ahead)
{
    const char *left = b, *right = b + c->panel_bytes;
    const size_t stride = (size_t)c->x_stride * sizeof(uint16_t);
    const int64_t steps = c->depth / CS_K_ALIGN * c->kernel;
    const int64_t rows_per_step = (BLOCK + steps - 1) / steps;
    const size_t fetch_per_step = (ahead + (size_t)steps - 1) / (size_t)steps;
    const int64_t down = c->rows > TILE ? TILE * c->x_stride : 0; /* else the same rows once more */
    const char *fetch_to = *next + ahead, *fetched = *next, *fetch = *next;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < c->depth; i += CS_K_ALIGN) {
        const uint16_t *x = (const uint16_t *)c->x + row * c->x_stride + i;
        for (int64_t k = 0; k < c->kernel; k++, x += c->tap_stride) {
            _tile_loadd(6, left, 64);
            _tile_loadd(4, x, stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, x + down, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_loadd(7, right, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
            left += STEP_BYTES;
            right += STEP_BYTES;
            finish_rows(c, end, rows_per_step);
            ask_for_rows(c, &soon, rows_per_step);
            fetch += fetch_per_step;
            for (; fetched < fetch && fetched < fetch_to; fetched += 128) {
                _mm_prefetch(fetched, _MM_HINT_T1);
                _mm_prefetch(fetched + 64, _MM_HINT_T1);
            }
        }
    }
    *next = fetched;
    finish_rows(c, end, BLOCK);
    _tile_stored(0, sums, BLOCK * sizeof *sums);
    _tile_stored(1, sums + TILE, BLOCK * sizeof *sums);
    _tile_stored(2, sums + TILE * BLOCK, BLOCK * sizeof *sums);
    _tile_stored(3, sums + TILE * BLOCK + TILE, BLOCK * sizeof *sums);
}

/* Panels outside, so that the weights of a pair stay in the second-level cache while the rows pass.
 * The last block goes back to hold 32 rows too; its first rows are then known. */
void cs_convolve_bf16_amx(const cs_convolution_block *c)
{
    _Alignas(64) float sums[2][BLOCK * BLOCK];
    int64_t blocks = (c->rows + BLOCK - 1) / BLOCK, turn = 0;
    block_end end = {0};
    cs_amx_configure(c->rows < TILE ? (int)c->rows : TILE,
                     c->rows < TILE    ? (int)c->rows
                     : c->rows < BLOCK ? (int)(c->rows > TILE ? c->rows - TILE : TILE)
                                       : TILE);
    for (int64_t p = 0; p < c->n_panels; p += 2) {
        const char *b = (const char *)c->weights + (size_t)p * c->panel_bytes;
        const char *next = b + 2 * c->panel_bytes;
        size_t ahead = p + 2 < c->n_panels ? 2 * c->panel_bytes / (size_t)blocks : 0;
        for (int64_t row = 0; row < c->rows; row += BLOCK, turn = !turn) {
            int64_t from = c->rows >= BLOCK && row + BLOCK > c->rows ? c->rows - BLOCK : row;
            block_end own = begin_end(c, sums[turn], from, row - from, p);
            sum_block(c, from, b, sums[turn], &end, own, &next, ahead);
            end = own;
        }
    }
    finish_rows(c, &end, BLOCK);
    _tile_release();
}
