/* Tensors: a dtype, a shape and an address.
 *
 * Everything a model computes on is a matrix of rows (tokens, patches, frames) by columns
 * (features); rows may be further apart than their length, so a column range of a wider matrix is a
 * tensor too. Data lives in the memory of one device. Host code reads and writes it only through
 * cs_tensor_read and cs_tensor_write (compute.h), so that the same model file runs on a device with
 * memory of its own.
 */
#ifndef CS_TENSOR_TENSOR_H
#define CS_TENSOR_TENSOR_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    CS_DTYPE_F32,
    CS_DTYPE_BF16,
    CS_DTYPE_F16,
    CS_DTYPE_I32,
    CS_DTYPE_I64,
    CS_DTYPE_U8
} cs_dtype;

size_t cs_dtype_size_bytes(cs_dtype dtype);
const char *cs_dtype_name(cs_dtype dtype); /* "f32", "bf16", ... */

typedef struct {
    void *data; /* device address of element [0, 0] */
    int64_t rows;
    int64_t cols;
    int64_t stride; /* elements from one row to the next, >= cols + pad */
    int64_t pad;    /* elements after each row that are known to be zero */
    cs_dtype dtype;
} cs_tensor;

/* A dense view of memory that the caller keeps alive. */
static inline cs_tensor cs_tensor_view(void *data, cs_dtype dtype, int64_t rows, int64_t cols)
{
    return (cs_tensor){.data = data, .rows = rows, .cols = cols, .stride = cols, .dtype = dtype};
}

/* Rows [first, first + n) of t. */
cs_tensor cs_tensor_rows(const cs_tensor *t, int64_t first, int64_t n);
/* Columns [first, first + n) of t. */
cs_tensor cs_tensor_cols(const cs_tensor *t, int64_t first, int64_t n);

/* A reference-counted dense tensor that outlives the step that made it: an encoder's output on its
 * way to the LLM. Thread-safe counts; contents are written before the first share and never after.
 */
typedef struct {
    cs_tensor t;
    gint refs;
    void (*release)(void *user); /* the memory is another's */
    void *release_user;
} cs_shared_tensor;

/* NULL when there is no memory. Host memory, zero-filled, 64-byte aligned. */
cs_shared_tensor *cs_shared_tensor_new(cs_dtype dtype, int64_t rows, int64_t cols);
/* Over memory of another's, dense and read only; the last reference calls release, on any thread.
 */
cs_shared_tensor *cs_shared_tensor_wrap(const void *data, cs_dtype dtype, int64_t rows,
                                        int64_t cols, void (*release)(void *user), void *user);
cs_shared_tensor *cs_shared_tensor_ref(cs_shared_tensor *shared);
void cs_shared_tensor_unref(cs_shared_tensor *shared);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_shared_tensor, cs_shared_tensor_unref)

#endif
