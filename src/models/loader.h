/* Loading a component's weights: names to packed matrices, with the first fault kept.
 *
 * Like cs_json_reader: a component's weights are read in plain lines and checked once with
 * cs_loader_finish. After a fault the functions return NULL or empty tensors that must not be used.
 */
#ifndef CS_MODELS_LOADER_H
#define CS_MODELS_LOADER_H

#include "checkpoint/checkpoint.h"
#include "tensor/compute.h"

typedef struct {
    const cs_checkpoint *checkpoint;
    cs_parameters *parameters;
    cs_dtype dtype; /* of matrices */
    GError *error;
    /* Called after each tensor with its bytes; may be NULL. */
    void (*loaded)(void *user, size_t bytes);
    void *user;
} cs_loader;

/* Rows of a fused matrix, or entries of a fused bias, that come from tensor "<scope>.<name>". */
typedef struct {
    const char *name; /* NULL in a bias: zeros */
    int64_t rows;
} cs_loader_part;

/* False and *error filled if there was a fault. */
bool cs_loader_finish(cs_loader *loader, GError **error);

/* "<scope>.<name>" [rows, cols] of each part, one below the other. */
const cs_weight *cs_load_matrix(cs_loader *loader, const char *scope, int64_t cols,
                                uint32_t n_parts, const cs_loader_part *parts);
/* One tensor [rows, cols]. */
const cs_weight *cs_load_linear(cs_loader *loader, const char *scope, const char *name,
                                int64_t rows, int64_t cols);
/* Tensors gate and up [rows, cols] for the gated linear operation. */
const cs_weight *cs_load_gated(cs_loader *loader, const char *scope, const char *gate,
                               const char *up, int64_t rows, int64_t cols);
/* A convolution [outputs, inputs, kernel] (or with any kernel dimensions, n_dims - 2 of them) as
 * the matrix [outputs, kernel * inputs] that follows cs_op_im2col. */
const cs_weight *cs_load_convolution(cs_loader *loader, const char *scope, const char *name,
                                     int64_t outputs, int64_t inputs, int64_t kernel);
/* A tensor of any shape with `rows` first and cols elements behind each, as a matrix. */
const cs_weight *cs_load_flat(cs_loader *loader, const char *scope, const char *name,
                              uint32_t n_dims, const int64_t *shape);

/* The f32 values of a tensor on the host, for weights that are rearranged or computed with before
 * they are packed; g_free. NULL after a fault. */
float *cs_load_values(cs_loader *loader, const char *scope, const char *name, uint32_t n_dims,
                      const int64_t *shape);
/* Packs host values [rows, cols]. */
const cs_weight *cs_load_packed(cs_loader *loader, const float *values, int64_t rows, int64_t cols);

/* f32 [1, n]. */
cs_tensor cs_load_vector(cs_loader *loader, const char *scope, const char *name, int64_t n);
/* f32 [1, sum of rows], or with stacked = true [n_parts, rows]. */
cs_tensor cs_load_bias(cs_loader *loader, const char *scope, uint32_t n_parts,
                       const cs_loader_part *parts, bool stacked);
/* A lookup table [rows, cols], in the checkpoint's own dtype. */
cs_tensor cs_load_table(cs_loader *loader, const char *scope, const char *name, int64_t rows,
                        int64_t cols);

#endif
