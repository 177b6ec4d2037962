/* The CPU backend's inside: what its files share. */
#ifndef CS_TENSOR_CPU_CPU_H
#define CS_TENSOR_CPU_CPU_H

#include "tensor/compute_internal.h"
#include "tensor/cpu/kernels.h"
#include "tensor/cpu/pool.h"

typedef struct {
    cs_compute base;
    const cs_kernels *kernels;
    cs_pool *pool;
    struct cs_cpu_thread_memory {
        void *data;
        size_t size_bytes;
    } * thread_memory; /* [n_threads], see cs_cpu_thread_scratch */
} cs_cpu;

/* Room that thread `thread` may use during one piece; grown by the submitting thread before a job.
 */
bool cs_cpu_reserve_thread_scratch(cs_cpu *cpu, size_t size_bytes);
static inline void *cs_cpu_thread_scratch(const cs_cpu *cpu, uint32_t thread)
{
    return cpu->thread_memory[thread].data;
}

struct cs_weight {
    int64_t rows; /* outputs; of one of the two when gated */
    int64_t cols;
    int64_t k;        /* cols as stored: padded for bf16 */
    int64_t n_panels; /* stored panels; of a gated pair, gate and up alternate */
    size_t panel_bytes;
    bool gated;
    cs_dtype dtype;
    void *data;
};

static inline int64_t cs_round_up(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

static inline int64_t cs_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* x as the left operand of a product with `k` inner elements of dtype `to`: x itself where it can
 * be read as it is, else a copy in the workspace. data is NULL when there is no memory. */
cs_tensor cs_cpu_left_operand(cs_cpu *cpu, const cs_tensor *x, cs_dtype to, int64_t k);

/* Interleaves up to 16 rows of bf16 pairs into a panel: out[k / 2][16][2]. n_pairs pairs are read
 * from each row; rows beyond n_rows become zeros. */
void cs_cpu_pack_pairs(uint32_t *out, const uint32_t *const rows[CS_PANEL], int n_rows,
                       int64_t n_pairs);

/* The operations, one file a group: linear.c, convolve.c, rows.c, snake.c, attention.c. */
cs_weight *cs_cpu_weight_new(cs_compute *compute, cs_dtype dtype, int64_t cols, uint32_t n_parts,
                             const cs_weight_part *parts, bool gated, GError **error);
void cs_cpu_weight_free(cs_weight *weight);
size_t cs_cpu_weight_bytes(const cs_weight *weight);
void cs_cpu_linear(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                   const cs_weight *weight, const cs_linear_options *options);
void cs_cpu_rms_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                     const cs_tensor *weight, float epsilon);
void cs_cpu_layer_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                       const cs_tensor *weight, const cs_tensor *bias, float epsilon);
void cs_cpu_copy(cs_compute *compute, const cs_tensor *y, const cs_tensor *x);
void cs_cpu_add(cs_compute *compute, const cs_tensor *y, const cs_tensor *x);
void cs_cpu_gather(cs_compute *compute, const cs_tensor *y, const cs_tensor *table,
                   const int32_t *ids);
void cs_cpu_rope(cs_compute *compute, const cs_tensor *x, const cs_tensor *table, int64_t head_dim);
void cs_cpu_im2col(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t kernel,
                   int32_t stride, int32_t pad, int32_t dilation);
void cs_cpu_blend(cs_compute *compute, const cs_tensor *y, float a, const cs_tensor *x, float b);
void cs_cpu_modulated_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                           const cs_tensor *scale, const cs_tensor *shift,
                           const cs_segments *segments, float epsilon);
void cs_cpu_add_gated(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                      const cs_tensor *gate, const cs_segments *segments);
void cs_cpu_snake(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                  const cs_tensor *alpha, const cs_tensor *inverse_beta, const float *filter);
cs_convolution *cs_cpu_convolution_new(cs_compute *compute, cs_dtype dtype,
                                       const cs_convolution_shape *shape, const float *values,
                                       const float *bias, GError **error);
void cs_cpu_convolution_free(cs_convolution *convolution);
size_t cs_cpu_convolution_bytes(const cs_convolution *convolution);
void cs_cpu_convolve(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                     const cs_convolution *convolution, const cs_convolve_options *options);
void cs_cpu_mean_rows(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t n);
void cs_cpu_attention_segments(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                               const cs_tensor *k, const cs_tensor *v,
                               const cs_segment_attention *options);
void cs_cpu_kv_write(cs_compute *compute, cs_kv_store *store, uint32_t layer, const cs_tensor *k,
                     const cs_tensor *v, uint32_t n_sequences, const cs_kv_sequence *sequences);
void cs_cpu_attention_paged(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                            const cs_kv_store *store, uint32_t layer, float scale,
                            uint32_t n_sequences, const cs_kv_sequence *sequences);

#endif
