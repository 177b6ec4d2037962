/* Compute: the operations that components are made of, on one device.
 *
 * A cs_compute is a device with its threads, its queue of operations and a workspace for
 * activations. Model files call the cs_op_* functions below and nothing else; behind them stands a
 * const table per device (cpu/, later cuda/). Operations are queued in order and may still be
 * running when the function returns; cs_compute_sync waits and reports. On the CPU they have
 * finished on return.
 *
 * Faults (no memory for activations, a lost device) stick: later operations do nothing, and
 * cs_compute_sync returns the first. So a forward pass is a plain list of operations.
 *
 * One thread at a time uses a cs_compute. Shapes are the caller's duty: a mismatch is a bug and
 * asserts.
 *
 * Results do not depend on how many rows are computed together: every element of an output is
 * accumulated in an order fixed by the weights' shape alone, for one row as for a thousand, by one
 * thread or many.
 */
#ifndef CS_TENSOR_COMPUTE_H
#define CS_TENSOR_COMPUTE_H

#include "tensor/tensor.h"

typedef struct cs_compute cs_compute;

typedef struct {
    const char *device; /* NULL: "cpu" */
    uint32_t n_threads; /* 0: the CPUs of this process */
    const char *isa; /* NULL: best of this CPU; "portable", "avx2", "avx512", "avx512bf16", "amx" */
} cs_compute_options;

cs_compute *cs_compute_new(const cs_compute_options *options, GError **error);
void cs_compute_free(cs_compute *compute); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_compute, cs_compute_free)

const char *cs_compute_isa(const cs_compute *compute); /* the name of the instruction set in use */
uint32_t cs_compute_n_threads(const cs_compute *compute);

/* The dtype in which matrix products with weights of this dtype want their input: bf16 where the
 * device multiplies bf16, else f32. Activations that only feed products are best made in it. */
cs_dtype cs_compute_input_dtype(const cs_compute *compute, cs_dtype weight_dtype);

/* Waits for all queued operations. False: the first fault since the last sync, which is cleared. */
bool cs_compute_sync(cs_compute *compute, GError **error);

/* ---- Workspace: activations of one step, released together ---- */

/* A tensor of undefined contents whose rows are 64-byte aligned and followed by zeros up to a
 * multiple of 32 columns. Valid until the workspace is released below its mark. */
cs_tensor cs_compute_scratch(cs_compute *compute, cs_dtype dtype, int64_t rows, int64_t cols);
size_t cs_compute_mark(const cs_compute *compute);
void cs_compute_release(cs_compute *compute, size_t mark);

/* Converts on the host: f32 (a copy), bf16 or f16 to f32. */
void cs_convert_to_f32(int64_t n, float *to, const void *from, cs_dtype dtype);

/* Copies between host memory (dense f32 rows) and a tensor of the device. */
void cs_tensor_write(cs_compute *compute, const cs_tensor *to, const float *from);
void cs_tensor_read(cs_compute *compute, float *to, const cs_tensor *from);

/* ---- Parameters: weights of one model, freed together ---- */

typedef struct cs_parameters cs_parameters;

/* A weight matrix [rows = outputs, cols = inputs], packed for the device's matrix product. */
typedef struct cs_weight cs_weight;

/* Rows of a matrix as the checkpoint stores them. */
typedef struct {
    const void *data; /* [rows, cols] dense, host memory */
    cs_dtype dtype;   /* f32, bf16 or f16 */
    int64_t rows;
} cs_weight_part;

cs_parameters *cs_parameters_new(cs_compute *compute);
void cs_parameters_free(cs_parameters *parameters); /* accepts NULL */
size_t cs_parameters_bytes(const cs_parameters *parameters);

/* Packs the parts, one below the other, as `dtype` (f32 or bf16). NULL when there is no memory. */
const cs_weight *cs_parameters_matrix(cs_parameters *parameters, cs_dtype dtype, int64_t cols,
                                      uint32_t n_parts, const cs_weight_part *parts,
                                      GError **error);

/* Packs two matrices of equal shape for cs_op_linear's gated form: y = silu(x gate^T) * (x up^T).
 */
const cs_weight *cs_parameters_gated(cs_parameters *parameters, cs_dtype dtype, int64_t cols,
                                     const cs_weight_part *gate, const cs_weight_part *up,
                                     GError **error);

/* Weights and bias of a one-dimensional convolution, packed for the device. */
typedef struct cs_convolution cs_convolution;

typedef struct {
    int64_t outputs, inputs, kernel;
} cs_convolution_shape;

/* values [outputs, kernel, inputs] and bias [outputs] (NULL: none) in host memory, to be stored as
 * `dtype` (f32 or bf16). NULL when there is no memory. */
const cs_convolution *cs_parameters_convolution(cs_parameters *parameters, cs_dtype dtype,
                                                const cs_convolution_shape *shape,
                                                const float *values, const float *bias,
                                                GError **error);
cs_convolution_shape cs_convolution_shape_of(const cs_convolution *convolution);

/* A small f32 tensor (bias, norm weight, table) on the device. data NULL when there is no memory.
 */
cs_tensor cs_parameters_tensor(cs_parameters *parameters, const void *data, cs_dtype from,
                               int64_t rows, int64_t cols, GError **error);

/* A lookup table of whole rows. The host memory is borrowed on a CPU and must outlive the
 * parameters. */
cs_tensor cs_parameters_table(cs_parameters *parameters, const void *data, cs_dtype dtype,
                              int64_t rows, int64_t cols, GError **error);

int64_t cs_weight_rows(const cs_weight *weight); /* outputs; of a gated pair, of one of the two */
int64_t cs_weight_cols(const cs_weight *weight);
cs_dtype cs_weight_dtype(const cs_weight *weight);

/* ---- Operations. Tensors are f32 unless said otherwise; "input dtype" is cs_compute_input_dtype.
 * ---- */

typedef enum {
    CS_ACTIVATION_NONE,
    CS_ACTIVATION_GELU,
    CS_ACTIVATION_GELU_TANH,
    CS_ACTIVATION_SILU
} cs_activation;

typedef struct {
    const cs_tensor *bias; /* [1, outputs], or [2, outputs] for a gated pair; NULL: none */
    cs_activation activation;
    bool accumulate; /* y += instead of y = (residual); y is f32 then */
} cs_linear_options;

/* y [n, outputs] = activation(x [n, inputs] W^T + bias). x in the weight's input dtype (f32 also
 * works); y f32 or bf16. Gated weights give silu(gate) * up and take no activation. options NULL:
 * none of it. */
void cs_op_linear(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                  const cs_weight *weight, const cs_linear_options *options);

/* y = x / sqrt(mean(x^2) + epsilon) * weight, row by row (Zhang and Sennrich 2019). y f32 or bf16.
 */
void cs_op_rms_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                    const cs_tensor *weight, float epsilon);

/* y = (x - mean) / sqrt(variance + epsilon) * weight + bias, row by row. bias may be NULL. y f32 or
 * bf16. */
void cs_op_layer_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                      const cs_tensor *weight, const cs_tensor *bias, float epsilon);

/* y = x, converting between f32 and bf16. */
void cs_op_copy(cs_compute *compute, const cs_tensor *y, const cs_tensor *x);

/* y[i] += x[i mod x.rows]. */
void cs_op_add(cs_compute *compute, const cs_tensor *y, const cs_tensor *x);

/* y[i] = table[ids[i]]; the table f32, bf16 or f16, y f32 or bf16. ids in host memory. */
void cs_op_gather(cs_compute *compute, const cs_tensor *y, const cs_tensor *table,
                  const int32_t *ids);

/* Rotates head by head in place: for i < head_dim / 2, with c, s = table[row][i],
 * table[row][head_dim / 2 + i]: (x[i], x[i + head_dim/2]) = (x[i] c - x[i + head_dim/2] s,  x[i +
 * head_dim/2] c + x[i] s). x [n, heads * head_dim]; table [n, head_dim] of cosines, then sines (Su
 * et al. 2021, half-split form). x f32 or bf16. */
void cs_op_rope(cs_compute *compute, const cs_tensor *x, const cs_tensor *table, int64_t head_dim);

/* y [n_out, kernel * channels]: row i holds x rows i * stride - pad + j * dilation for j < kernel,
 * zeros outside. With a weight laid out [outputs, kernel, channels], cs_op_linear of it is a
 * one-dimensional convolution. */
void cs_op_im2col(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t kernel,
                  int32_t stride, int32_t pad, int32_t dilation);

typedef struct {
    int32_t dilation;
    const cs_tensor *residual; /* [n, outputs], may be y; NULL: none */
    float scale;               /* 0: 1 */
    bool accumulate;           /* y += instead of y = */
} cs_convolve_options;

/* y[i] = scale * (residual[i] + bias + sum over j < kernel of W_j x[i + j * dilation]). x, in the
 * weights' input dtype, has at least (kernel - 1) * dilation rows more than y, so that zeros around
 * a signal are its owner's to put there. bf16 rows need zeros up to a multiple of 32 columns behind
 * them, as cs_compute_scratch has them. */
void cs_op_convolve(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                    const cs_convolution *convolution, const cs_convolve_options *options);

/* y = 0. */
void cs_op_zero(cs_compute *compute, const cs_tensor *y);

/* y = a y + b x. Where a is 0, y's contents do not matter. */
void cs_op_blend(cs_compute *compute, const cs_tensor *y, float a, const cs_tensor *x, float b);

/* Rows in segments, each with its own modulation: segment i is rows [starts[i], starts[i + 1]). */
typedef struct {
    uint32_t n;
    const int32_t *starts; /* [n + 1], host memory */
} cs_segments;

/* y = (x - mean) / sqrt(variance + epsilon) * (1 + scale[segment]) + shift[segment], row by row
 * (adaptive layer norm, Peebles and Xie 2022). scale, shift [segments, cols]; y f32 or bf16. */
void cs_op_modulated_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                          const cs_tensor *scale, const cs_tensor *shift,
                          const cs_segments *segments, float epsilon);

/* y += gate[segment] * x; x f32 or bf16. */
void cs_op_add_gated(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                     const cs_tensor *gate, const cs_segments *segments);

/* Taps of the filter around cs_op_snake. */
#define CS_SNAKE_TAPS 12

/* BigVGAN's anti-aliased activation (Lee et al. 2022) along rows: x at twice the rate through
 * `filter`, then x + inverse_beta * sin(alpha x)^2 in each column, then back to x's rate through
 * the filter. Beyond its ends x, and what is made of it, goes on with its first and last row.
 * alpha, inverse_beta [1, cols]; filter in host memory; y f32 or bf16. */
void cs_op_snake(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                 const cs_tensor *alpha, const cs_tensor *inverse_beta,
                 const float filter[CS_SNAKE_TAPS]);

/* y[i] = mean of x[i * n ... i * n + n - 1]. */
void cs_op_mean_rows(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t n);

/* Attention inside segments of rows, of the whole segment or of nearby blocks: out = softmax(q k^T
 * * scale) v per head, where segment i is rows [starts[i], starts[i + 1]). q, k, v, out [n, heads *
 * head_dim]; out f32 or bf16; `dtype` (f32 or bf16) is the precision of the products; q, k and v
 * f32 or its input dtype. */
typedef struct {
    int64_t n_heads;
    int64_t head_dim;
    float scale;
    cs_dtype dtype;
    uint32_t n_segments;
    const int32_t *starts; /* [n_segments + 1], host memory */
    /* Rows of a segment in blocks of this size: a row sees its own block, `blocks_before` before it
     * and `blocks_after` after it. 0: all of the segment. */
    int64_t block_rows;
    int64_t blocks_before;
    int64_t blocks_after;
} cs_segment_attention;

void cs_op_attention_segments(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                              const cs_tensor *k, const cs_tensor *v,
                              const cs_segment_attention *options);

/* ---- Paged KV cache ---- */

/* Storage for blocks of 32 tokens of all layers; blocks are numbered by their user. */
typedef struct cs_kv_store cs_kv_store;

typedef struct {
    uint32_t n_blocks;
    uint32_t n_layers;
    int64_t n_kv_heads;
    int64_t head_dim;
    cs_dtype dtype; /* f32 or bf16 */
} cs_kv_shape;

#define CS_KV_BLOCK_TOKENS 32

size_t cs_kv_block_bytes(const cs_kv_shape *shape);
/* Memory is taken from the system as blocks are first written. NULL when the address space is
 * refused. */
cs_kv_store *cs_kv_store_new(cs_compute *compute, const cs_kv_shape *shape, GError **error);
void cs_kv_store_free(cs_kv_store *store); /* accepts NULL */
void cs_kv_store_copy_block(cs_kv_store *store, int32_t to, int32_t from);
/* One block of all layers to or from host memory [cs_kv_block_bytes]. The layout is the device's:
 * only a store of equal shape on an equal device can take it. */
void cs_kv_store_read_block(cs_kv_store *store, void *to, int32_t block);
void cs_kv_store_write_block(cs_kv_store *store, int32_t block, const void *from);

typedef struct {
    int64_t row;           /* its first row in the batch */
    int64_t n_new;         /* rows of this step */
    int64_t n_past;        /* tokens before them */
    const int32_t *blocks; /* [ceil((n_past + n_new) / 32)] */
} cs_kv_sequence;

/* Writes keys and values [n, n_kv_heads * head_dim] of each sequence's new rows into a layer of the
 * cache. */
void cs_op_kv_write(cs_compute *compute, cs_kv_store *store, uint32_t layer, const cs_tensor *k,
                    const cs_tensor *v, uint32_t n_sequences, const cs_kv_sequence *sequences);

/* Causal attention of each sequence's new rows over its past and themselves. q, out [n, n_heads *
 * head_dim]; n_heads is a multiple of n_kv_heads, query head h reading kv head h / (n_heads /
 * n_kv_heads). out f32 or bf16. */
void cs_op_attention_paged(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                           const cs_kv_store *store, uint32_t layer, float scale,
                           uint32_t n_sequences, const cs_kv_sequence *sequences);

#endif
