/* The linear operation by AMX tiles, from 32 rows on.
 *
 * A block is 32 rows by two panels, whose sums tiles 0-3 hold. A pair of panels passes over all
 * rows, INNER of k at a time: 32 KiB of it then stay in the first-level cache while the rows,
 * loaded past it, come from the second.
 *
 * What follows the sums of a pair (bias, activation, conversion, the way into y) is done row by row
 * between the products of the next pair: tiles and vectors compute at once.
 */
#include "tensor/cpu/kernels.h"
#include "tensor/cpu/kernels_amx.h"
#include "tensor/cpu/kernels_finish.h"

cs_linear cs_linear_bf16_amx;

enum { BLOCK = CS_AMX_BLOCK, TILE = CS_AMX_ROWS, PAIR = 2 * CS_PANEL, INNER = 512 };

/* What comes after this pair of panels, asked for while this one is multiplied: one line of each
 * of some streams in each step along k. The hardware keeps some 20 lines ahead of a stream; a
 * single stream of software's brings half as much from memory, and one that asks for many lines at
 * once blocks the loads of tiles. */
typedef struct {
    const char *at; /* in the first stream of its first panel */
    size_t apart;   /* streams of a panel */
    size_t panel_bytes;
    int n; /* streams of a panel */
} ahead;

INLINE void ask_ahead(ahead *next)
{
    const char *at = next->at;
    for (int i = 0; i < next->n; i++, at += next->apart) {
        _mm_prefetch(at, _MM_HINT_T1);
        _mm_prefetch(at + next->panel_bytes, _MM_HINT_T1);
    }
    next->at += 64;
}

/* Sums of a pair on their way into y. */
typedef struct {
    cs_finish to;
    int64_t row;     /* the next */
    int64_t whole;   /* rows in whole blocks; those of the last block stand further back in sums, */
    int64_t behind;  /* by so many */
    const float *at; /* sums of the next row */
    char *y;
    size_t y_stride;
    v16 bias[2];
    bool wide; /* all columns of the pair are outputs */
} pair_end;

/* A row of all columns: what finish_row_as does, without its cases. */
INLINE void finish_wide(const pair_end *end, cs_form form)
{
    const bool gated = form == CS_FORM_GATED;
    v16 first = load(end->at) + end->bias[0], second = load(end->at + CS_PANEL) + end->bias[1];
    if (gated) {
        first = formed(form, first, second);
    } else {
        first = formed(form, first, first);
        second = formed(form, second, second);
    }
    if (end->to.to_bf16) {
        if (gated)
            *(v16hu *)end->y = narrow(first);
        else
            _mm512_storeu_si512(end->y,
                                (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
        return;
    }
    float *y = (float *)end->y;
    store(y, end->to.accumulate ? load(y) + first : first);
    if (!gated)
        store(y + CS_PANEL, end->to.accumulate ? load(y + CS_PANEL) + second : second);
}

INLINE void finish_rows(pair_end *end, cs_form form, int64_t n)
{
    for (; n > 0 && end->row < end->to.rows; n--, end->row++) {
        if (end->row == end->whole) {
            end->to.sums += end->behind * PAIR;
            end->at += end->behind * PAIR;
        }
        if (end->wide)
            finish_wide(end, form);
        else
            finish_row_as(&end->to, form, end->row);
        end->at += PAIR;
        end->y += end->y_stride;
    }
}

typedef struct {
    const uint16_t *x;
    size_t x_stride; /* bytes */
    const char *left, *right;
    int64_t k;
    float *sums;
    bool onto;
} block;

INLINE void multiply_2x2(const block *b, cs_form form, ahead next, pair_end *end, int64_t finishing)
{
    const uint16_t *lower = b->x + TILE * (b->x_stride / sizeof *b->x);
    float *sums = b->sums, *sums_lower = sums + TILE * PAIR;
    enum { STRIDE = PAIR * sizeof *sums };
    if (b->onto) {
        _tile_loadd(0, sums, STRIDE);
        _tile_loadd(1, sums + CS_PANEL, STRIDE);
        _tile_loadd(2, sums_lower, STRIDE);
        _tile_loadd(3, sums_lower + CS_PANEL, STRIDE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < b->k; i += CS_K_ALIGN) {
        _tile_loadd(6, b->left + i * CS_PANEL * 2, 64);
        _tile_stream_loadd(4, b->x + i, b->x_stride);
        _tile_loadd(7, b->right + i * CS_PANEL * 2, 64);
        _tile_stream_loadd(5, lower + i, b->x_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        ask_ahead(&next);
        finish_rows(end, form, finishing);
    }
    _tile_stored(0, sums, STRIDE);
    _tile_stored(1, sums + CS_PANEL, STRIDE);
    _tile_stored(2, sums_lower, STRIDE);
    _tile_stored(3, sums_lower + CS_PANEL, STRIDE);
}

INLINE void multiply_1x2(const block *b, cs_form form, pair_end *end, int64_t finishing)
{
    enum { STRIDE = PAIR * sizeof *b->sums };
    if (b->onto) {
        _tile_loadd(0, b->sums, STRIDE);
        _tile_loadd(1, b->sums + CS_PANEL, STRIDE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    for (int64_t i = 0; i < b->k; i += CS_K_ALIGN) {
        _tile_stream_loadd(4, b->x + i, b->x_stride);
        _tile_loadd(6, b->left + i * CS_PANEL * 2, 64);
        _tile_loadd(7, b->right + i * CS_PANEL * 2, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        finish_rows(end, form, finishing);
    }
    _tile_stored(0, b->sums, STRIDE);
    _tile_stored(1, b->sums + CS_PANEL, STRIDE);
}

/* Sums of the pair of panels p; meanwhile `end` of the pair before. */
INLINE void sum_pair(const cs_linear_block *l, int64_t p, float *sums, cs_form form, pair_end *end)
{
    const char *left = (const char *)l->weights + (size_t)p * l->panel_bytes;
    const char *right = p + 1 < l->n_panels ? left + l->panel_bytes : left;
    const char *next_pair = left + 2 * l->panel_bytes;
    const int64_t n_inner = (l->k + INNER - 1) / INNER, blocks = l->rows / BLOCK;
    const int64_t inner = ((l->k + n_inner - 1) / n_inner + CS_K_ALIGN - 1) & -CS_K_ALIGN;
    const int64_t streams = (16 + blocks - 1) / blocks; /* of each panel */
    const int64_t lines = l->k / 2 / streams;           /* of each stream */
    const int64_t steps = blocks * (l->k / CS_K_ALIGN);
    const int64_t finishing = (l->rows + steps - 1) / steps;
    const uint16_t *x = l->x;
    for (int64_t i = 0, asked = 0; i < l->k; i += inner) {
        block b = {.x_stride = (size_t)l->x_stride * sizeof *x,
                   .left = left + i * CS_PANEL * 2,
                   .right = right + i * CS_PANEL * 2,
                   .k = l->k - i < inner ? l->k - i : inner,
                   .onto = l->onto || i > 0};
        int64_t r = 0;
        for (; r + BLOCK <= l->rows; r += BLOCK, asked += b.k / CS_K_ALIGN) {
            ahead next = {next_pair + asked * 64, (size_t)lines * 64, l->panel_bytes,
                          asked < lines ? (int)streams : 0};
            b.x = x + r * l->x_stride + i;
            b.sums = sums + r * PAIR;
            multiply_2x2(&b, form, next, end, finishing);
        }
        /* The last block goes back to be a whole one too, with sums of its own. */
        b.sums = sums + r * PAIR;
        if (l->rows - r > TILE) {
            b.x = x + (l->rows - BLOCK) * l->x_stride + i;
            multiply_2x2(&b, form, (ahead){0}, end, finishing);
        } else if (l->rows > r) {
            b.x = x + (l->rows - TILE) * l->x_stride + i;
            multiply_1x2(&b, form, end, finishing);
        }
    }
    finish_rows(end, form, l->rows);
}

static pair_end end_of(const cs_linear_block *l, int64_t p, const float *sums)
{
    const cs_finish *f = l->finish;
    const bool gated = f->form == CS_FORM_GATED;
    const int64_t first = p * (gated ? CS_PANEL / 2 : CS_PANEL), most = gated ? CS_PANEL : PAIR;
    const int64_t whole = l->rows / BLOCK * BLOCK, rest = l->rows - whole;
    pair_end end = {.to = *f,
                    .whole = whole,
                    .behind = rest > TILE ? BLOCK - rest
                              : rest > 0  ? TILE - rest
                                          : 0};
    end.to.sums = sums;
    end.to.sums_stride = PAIR;
    end.to.n = f->n - first < most ? f->n - first : most;
    end.to.bias = f->bias ? f->bias + first : NULL;
    end.to.up_bias = f->up_bias ? f->up_bias + first : NULL;
    const size_t element = f->to_bf16 ? sizeof(uint16_t) : sizeof(float);
    end.to.y = (char *)f->y + (size_t)first * element;
    end.at = sums;
    end.y = end.to.y;
    end.y_stride = (size_t)f->y_stride * element;
    end.wide = end.to.n == most;
    if (f->bias && end.wide) {
        end.bias[0] = load(end.to.bias);
        end.bias[1] = load(gated ? end.to.up_bias : end.to.bias + CS_PANEL);
    }
    return end;
}

INLINE void linear_as(const cs_linear_block *l, cs_form form)
{
    const int64_t room = (l->rows + BLOCK - 1) / BLOCK * BLOCK * PAIR;
    pair_end end = {0};
    for (int64_t p = 0; p < l->n_panels; p += 2) {
        float *sums = l->sums + p / 2 % l->n_sums * room;
        sum_pair(l, p, sums, form, &end);
        if (l->finish)
            end = end_of(l, p, sums);
    }
    finish_rows(&end, form, l->rows);
}

void cs_linear_bf16_amx(const cs_linear_block *l)
{
    cs_amx_configure(TILE, TILE);
    switch (l->finish ? l->finish->form : CS_FORM_PLAIN) {
    case CS_FORM_PLAIN:
        linear_as(l, CS_FORM_PLAIN);
        break;
    case CS_FORM_GELU:
        linear_as(l, CS_FORM_GELU);
        break;
    case CS_FORM_GELU_TANH:
        linear_as(l, CS_FORM_GELU_TANH);
        break;
    case CS_FORM_SILU:
        linear_as(l, CS_FORM_SILU);
        break;
    case CS_FORM_GATED:
        linear_as(l, CS_FORM_GATED);
        break;
    }
    _tile_release();
}
