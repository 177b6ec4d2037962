#include "tensor/tensor.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    size_t size_bytes;
    const char *name;
} dtypes[] = {
    [CS_DTYPE_F32] = {4, "f32"}, [CS_DTYPE_BF16] = {2, "bf16"}, [CS_DTYPE_F16] = {2, "f16"},
    [CS_DTYPE_I32] = {4, "i32"}, [CS_DTYPE_I64] = {8, "i64"},   [CS_DTYPE_U8] = {1, "u8"},
};

size_t cs_dtype_size_bytes(cs_dtype dtype)
{
    return dtypes[dtype].size_bytes;
}

const char *cs_dtype_name(cs_dtype dtype)
{
    return dtypes[dtype].name;
}

cs_tensor cs_tensor_rows(const cs_tensor *t, int64_t first, int64_t n)
{
    g_assert(first >= 0 && n >= 0 && first + n <= t->rows);
    cs_tensor part = *t;
    part.data = (char *)t->data + (size_t)(first * t->stride) * cs_dtype_size_bytes(t->dtype);
    part.rows = n;
    return part;
}

cs_tensor cs_tensor_cols(const cs_tensor *t, int64_t first, int64_t n)
{
    g_assert(first >= 0 && n >= 0 && first + n <= t->cols);
    cs_tensor part = *t;
    part.data = (char *)t->data + (size_t)first * cs_dtype_size_bytes(t->dtype);
    part.cols = n;
    if (first + n < t->cols)
        part.pad = 0;
    return part;
}

cs_shared_tensor *cs_shared_tensor_new(cs_dtype dtype, int64_t rows, int64_t cols)
{
    enum { HEADER = 128 }; /* a multiple of 64: contents are aligned to that */
    G_STATIC_ASSERT(sizeof(cs_shared_tensor) <= HEADER);
    if (rows < 0 || cols < 0 || (cols > 0 && rows > INT64_MAX / 16 / cols))
        return NULL;
    size_t size_bytes = (size_t)(rows * cols) * cs_dtype_size_bytes(dtype);
    void *memory = NULL;
    if (posix_memalign(&memory, HEADER, HEADER + size_bytes) != 0)
        return NULL;
    memset(memory, 0, HEADER + size_bytes);
    cs_shared_tensor *shared = memory;
    shared->t = cs_tensor_view((char *)memory + HEADER, dtype, rows, cols);
    shared->refs = 1;
    return shared;
}

cs_shared_tensor *cs_shared_tensor_wrap(const void *data, cs_dtype dtype, int64_t rows,
                                        int64_t cols, void (*release)(void *user), void *user)
{
    cs_shared_tensor *shared = malloc(sizeof(*shared));
    if (shared)
        *shared = (cs_shared_tensor){.t = cs_tensor_view((void *)data, dtype, rows, cols),
                                     .refs = 1,
                                     .release = release,
                                     .release_user = user};
    return shared;
}

cs_shared_tensor *cs_shared_tensor_ref(cs_shared_tensor *shared)
{
    g_atomic_int_inc(&shared->refs);
    return shared;
}

void cs_shared_tensor_unref(cs_shared_tensor *shared)
{
    if (!shared || !g_atomic_int_dec_and_test(&shared->refs))
        return;
    if (shared->release)
        shared->release(shared->release_user);
    free(shared);
}
