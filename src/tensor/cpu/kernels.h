/* CPU kernels: the table of functions that one instruction set implements.
 *
 * The same plain source (kernels_generic.c) is compiled for each vector width; matrix products that
 * need instructions of their own (bf16 dot product, AMX tiles) are files of their own. Kernels run
 * on one thread, allocate nothing, and know nothing of tensors.
 *
 * Packed operands. The right-hand side of every product, weights as well as keys and values, is
 * stored in panels of 16 output columns:
 *
 *   f32   panel [k][16]         element (k, n) at k * 16 + n
 *   bf16  panel [k / 2][16][2]  element (k, n) at (k / 2) * 32 + n * 2 + k % 2, k padded with zeros
 * to a multiple of 32
 *
 * The second is what both the bf16 dot product and AMX tiles read, and it expands to f32 by a
 * shift.
 */
#ifndef CS_TENSOR_CPU_KERNELS_H
#define CS_TENSOR_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CS_PANEL 16   /* output columns of a packed panel */
#define CS_K_ALIGN 32 /* inner length of bf16 operands is padded to a multiple of this */

/* C [rows, 16 * n_panels] = A [rows, k] B, or += . `a` is row-major with lda elements between rows;
 * panel p of B starts at b + p * panel_bytes. For bf16 A, k is a multiple of 32. Each element is
 * accumulated over k in ascending order, so that it is the same for any number of rows, and for k
 * cut into pieces at multiples of 32 that are accumulated one after the other. */
typedef void cs_product(int64_t rows, int64_t n_panels, int64_t k, const void *a, int64_t lda,
                        const void *b, size_t panel_bytes, float *c, int64_t ldc, bool accumulate);

/* C [rows, 16 * n_panels] += the sum over blocks of A B, where block i's A is `a` from column i * k
 * on and its first panel stands at b[i]; the same sums as by a product for each block. */
typedef void cs_product_blocks(int64_t rows, int64_t n_panels, int64_t k, const void *a,
                               int64_t lda, int n_blocks, const void *const *b, size_t panel_bytes,
                               float *c, int64_t ldc);

typedef enum {
    CS_FORM_PLAIN,
    CS_FORM_GELU,
    CS_FORM_GELU_TANH,
    CS_FORM_SILU,
    CS_FORM_GATED /* silu(gate) * up, of panels of gate and up in turn */
} cs_form;

/* Sums of a product on their way into the output of a linear operation, see cs_op_linear. */
typedef struct {
    const float *sums; /* [rows, n rounded up to 16], or of a gated pair twice as many */
    int64_t sums_stride;
    int64_t rows, n;
    const float *bias, *up_bias; /* [n]; NULL: none */
    cs_form form;
    bool accumulate, to_bf16;
    void *y; /* [rows, n] f32 or bf16 */
    int64_t y_stride;
} cs_finish;

/* Rows of a linear operation by bf16 tiles, 32 at least. */
typedef struct {
    int64_t rows, k, n_panels; /* k a multiple of 32 */
    const void *x;             /* [rows, k], bf16 */
    int64_t x_stride;
    const void *weights; /* panels as above */
    size_t panel_bytes;
    float *sums;    /* [n_sums][rows rounded up to 32][32] */
    int64_t n_sums; /* pairs of panels whose sums are kept: 2, or all, where k comes in pieces */
    bool onto;      /* sums go on from a piece of k before */
    const cs_finish *finish; /* of all rows and panels but its sums; NULL: more of k follows */
} cs_linear_block;

typedef void cs_linear(const cs_linear_block *block);

/* Up to 16 columns of the anti-aliased activation of cs_op_snake. */
typedef struct {
    const float *x; /* [n_rows, n_columns], x_stride between rows */
    int64_t n_rows, x_stride;
    void *y; /* f32 or bf16 */
    int64_t y_stride;
    bool to_bf16;
    int n_columns;
    const float *turns, *inverse_beta; /* [16]; turns is alpha / pi */
    const float *even, *odd;           /* [6]: factors of the rows that make u[2t] and u[2t + 1] */
    const float *down;                 /* [12] */
} cs_snake_columns;

#define CS_SNAKE_ROWS 128 /* of a call, at most: what is made of them stays in the first cache */

/* Rows [first, end) of y. */
typedef void cs_snake(const cs_snake_columns *columns, int64_t first, int64_t end);

/* Rows of a convolution by bf16 tiles, see cs_op_convolve: y = (y +) scale (sum + bias + residual)
 * in the first n_outputs columns of n_panels panels, an even number. Panels as above, the inner
 * elements in the order [depth / 32][kernel][32]. */
typedef struct {
    int64_t rows, kernel, depth; /* depth: inputs, a multiple of 32 */
    const void *x;               /* [rows + ..., depth], bf16 */
    int64_t x_stride, tap_stride;
    const void *weights;
    size_t panel_bytes;
    int64_t n_panels, n_outputs;
    const float *bias;     /* [n_panels * 16] */
    const float *residual; /* NULL: none */
    int64_t residual_stride;
    float scale;
    bool accumulate;
    float *y;
    int64_t y_stride;
} cs_convolution_block;

typedef void cs_convolve(const cs_convolution_block *block);

typedef struct {
    const char *name;
    bool (*available)(void);

    /* Bytes of one row of A between two passes over C: what keeps the operands of its products in
     * the caches. */
    int64_t inner_bytes;
    cs_product *product_f32;      /* A f32, B f32 */
    cs_product *product_f32_bf16; /* A f32, B bf16 */
    cs_product *product_bf16;     /* A bf16, B bf16; NULL: no such instruction, A is kept in f32 */

    cs_product_blocks *blocks_bf16; /* NULL: products do */
    cs_linear *linear_bf16;         /* NULL: products do */
    cs_convolve *convolve_bf16;     /* NULL: products do */

    /* Called by a thread when it has finished a piece of work with bf16 products; NULL: nothing to
     * do. */
    void (*leave)(void);

    void (*rms_norm)(int64_t n, float *y, const float *x, const float *weight, float epsilon);
    void (*layer_norm)(int64_t n, float *y, const float *x, const float *weight, const float *bias,
                       float epsilon);
    /* (x - mean) / sqrt(variance + epsilon) * (1 + scale) + shift */
    void (*modulated_norm)(int64_t n, float *y, const float *x, const float *scale,
                           const float *shift, float epsilon);
    void (*to_bf16)(int64_t n, uint16_t *y, const float *x);
    void (*from_bf16)(int64_t n, float *y, const uint16_t *x);
    void (*from_f16)(int64_t n, float *y, const uint16_t *x);
    void (*add)(int64_t n, float *y, const float *x);
    void (*scale)(int64_t n, float *y, float factor);
    void (*blend)(int64_t n, float *y, float a, const float *x, float b);     /* y = a y + b x */
    void (*add_product)(int64_t n, float *y, const float *a, const float *b); /* y += a b */
    cs_snake *snake;
    void (*finish)(const cs_finish *finish);
    void (*rope)(int64_t half, float *x, const float *cosines, const float *sines);
    float (*max)(int64_t n, const float *x);
    /* exp((x - shift) scale), in bf16 to `half` or, where that is NULL, in place; returns the sum.
     * n is a multiple of 16. */
    float (*exp_sum)(int64_t n, float *x, float shift, float scale, uint16_t *half);
} cs_kernels;

extern const cs_kernels cs_kernels_portable;
#ifdef __x86_64__
extern const cs_kernels cs_kernels_avx2;
extern const cs_kernels cs_kernels_avx512;
extern const cs_kernels cs_kernels_avx512bf16;
extern const cs_kernels cs_kernels_amx;
#endif

/* The best set of this CPU, or the named one; NULL when the CPU lacks it or there is no such name.
 */
const cs_kernels *cs_kernels_choose(const char *name);

#endif
