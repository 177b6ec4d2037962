/* What stands behind cs_compute: the table of one device's operations. Included by compute.c and
 * backends. */
#ifndef CS_TENSOR_COMPUTE_INTERNAL_H
#define CS_TENSOR_COMPUTE_INTERNAL_H

#include "tensor/compute.h"

/* Operations take arguments that compute.c has checked. Fallible ones that run in the queue report
 * through cs_compute_fault. */
typedef struct {
    const char *name;
    void (*free)(cs_compute *compute);
    const char *(*isa)(const cs_compute *compute);
    uint32_t (*n_threads)(const cs_compute *compute);
    cs_dtype (*input_dtype)(const cs_compute *compute, cs_dtype weight_dtype);
    void (*sync)(cs_compute *compute);

    void *(*alloc)(size_t size_bytes); /* device memory, 64-byte aligned; NULL when there is none */
    void (*release)(void *data, size_t size_bytes);
    void (*zero)(cs_compute *compute, void *data, size_t size_bytes, size_t stride_bytes,
                 int64_t n);
    void (*write)(cs_compute *compute, const cs_tensor *to, const float *from);
    void (*read)(cs_compute *compute, float *to, const cs_tensor *from);

    cs_weight *(*weight_new)(cs_compute *compute, cs_dtype dtype, int64_t cols, uint32_t n_parts,
                             const cs_weight_part *parts, bool gated, GError **error);
    void (*weight_free)(cs_weight *weight);
    size_t (*weight_bytes)(const cs_weight *weight);
    cs_convolution *(*convolution_new)(cs_compute *compute, cs_dtype dtype,
                                       const cs_convolution_shape *shape, const float *values,
                                       const float *bias, GError **error);
    void (*convolution_free)(cs_convolution *convolution);
    size_t (*convolution_bytes)(const cs_convolution *convolution);
    bool host_tables; /* gather reads host memory */

    void (*linear)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                   const cs_weight *weight, const cs_linear_options *options);
    void (*rms_norm)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                     const cs_tensor *weight, float epsilon);
    void (*layer_norm)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                       const cs_tensor *weight, const cs_tensor *bias, float epsilon);
    void (*copy)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x);
    void (*add)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x);
    void (*gather)(cs_compute *compute, const cs_tensor *y, const cs_tensor *table,
                   const int32_t *ids);
    void (*rope)(cs_compute *compute, const cs_tensor *x, const cs_tensor *table, int64_t head_dim);
    void (*im2col)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t kernel,
                   int32_t stride, int32_t pad, int32_t dilation);
    void (*blend)(cs_compute *compute, const cs_tensor *y, float a, const cs_tensor *x, float b);
    void (*modulated_norm)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                           const cs_tensor *scale, const cs_tensor *shift,
                           const cs_segments *segments, float epsilon);
    void (*add_gated)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                      const cs_tensor *gate, const cs_segments *segments);
    void (*convolve)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                     const cs_convolution *convolution, const cs_convolve_options *options);
    void (*snake)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                  const cs_tensor *alpha, const cs_tensor *inverse_beta, const float *filter);
    void (*mean_rows)(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t n);
    void (*attention_segments)(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                               const cs_tensor *k, const cs_tensor *v,
                               const cs_segment_attention *options);
    void (*kv_write)(cs_compute *compute, cs_kv_store *store, uint32_t layer, const cs_tensor *k,
                     const cs_tensor *v, uint32_t n_sequences, const cs_kv_sequence *sequences);
    void (*attention_paged)(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                            const cs_kv_store *store, uint32_t layer, float scale,
                            uint32_t n_sequences, const cs_kv_sequence *sequences);
} cs_backend;

typedef struct {
    char *data;
    size_t size_bytes;
} cs_workspace_chunk;

struct cs_compute {
    const cs_backend *backend;
    GError *fault;     /* the first since the last sync */
    GArray *chunks;    /* cs_workspace_chunk; activations are handed out from one after the other */
    size_t used_bytes; /* counted over the chunks as if they were one */
};

/* Records a fault; operations are skipped from here to the next sync. */
void cs_compute_fault(cs_compute *compute, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* K and V of one block of one layer, all heads: [n_kv_heads] packed keys, then [n_kv_heads] packed
 * values. */
struct cs_kv_store {
    cs_compute *compute;
    cs_kv_shape shape;
    size_t key_bytes; /* of one head of one block */
    size_t value_bytes;
    size_t layer_bytes; /* of one block in one layer */
    size_t block_bytes; /* of one block in all layers */
    char *data;
    size_t size_bytes;
};

static inline char *cs_kv_layer(const cs_kv_store *store, int32_t block, uint32_t layer)
{
    return store->data + (size_t)block * store->block_bytes + layer * store->layer_bytes;
}

extern const cs_backend cs_backend_cpu;
cs_compute *cs_cpu_new(const cs_compute_options *options, GError **error);

#endif
