/* The front of every backend: argument checks, sticky faults, the workspace, and the lifetime of
 * parameters. */
#include "tensor/compute.h"

#include "base/error.h"
#include "tensor/compute_internal.h"

#include <string.h>

enum { MIN_CHUNK_BYTES = 4 << 20 };

cs_compute *cs_compute_new(const cs_compute_options *options, GError **error)
{
    if (options->device && strcmp(options->device, "cpu") != 0) {
        cs_fail(error, CS_ERROR_UNSUPPORTED, "device %s: this build computes on \"cpu\"",
                options->device);
        return NULL;
    }
    cs_compute *compute = cs_cpu_new(options, error);
    if (compute)
        compute->chunks = g_array_new(FALSE, FALSE, sizeof(cs_workspace_chunk));
    return compute;
}

void cs_compute_free(cs_compute *compute)
{
    if (!compute)
        return;
    for (guint i = 0; i < compute->chunks->len; i++) {
        cs_workspace_chunk *chunk = &g_array_index(compute->chunks, cs_workspace_chunk, i);
        compute->backend->release(chunk->data, chunk->size_bytes);
    }
    g_array_unref(compute->chunks);
    g_clear_error(&compute->fault);
    compute->backend->free(compute);
}

const char *cs_compute_isa(const cs_compute *compute)
{
    return compute->backend->isa(compute);
}

uint32_t cs_compute_n_threads(const cs_compute *compute)
{
    return compute->backend->n_threads(compute);
}

cs_dtype cs_compute_input_dtype(const cs_compute *compute, cs_dtype weight_dtype)
{
    return compute->backend->input_dtype(compute, weight_dtype);
}

void cs_compute_fault(cs_compute *compute, const char *format, ...)
{
    if (compute->fault)
        return;
    va_list args;
    va_start(args, format);
    compute->fault = g_error_new_valist(CS_ERROR, CS_ERROR_FAILED, format, args);
    va_end(args);
}

bool cs_compute_sync(cs_compute *compute, GError **error)
{
    compute->backend->sync(compute);
    if (!compute->fault)
        return true;
    g_propagate_error(error, g_steal_pointer(&compute->fault));
    return false;
}

/* ---- Workspace ---- */

/* Room for size_bytes at the end of what is used. A request that does not fit into what is left of
 * a chunk begins the next one; the rest of the chunk then counts as used until it is released. */
static char *workspace_take(cs_compute *compute, size_t size_bytes)
{
    size_t start = 0;
    for (guint i = 0; i < compute->chunks->len; i++) {
        cs_workspace_chunk *chunk = &g_array_index(compute->chunks, cs_workspace_chunk, i);
        size_t offset = compute->used_bytes > start ? compute->used_bytes - start : 0;
        if (offset <= chunk->size_bytes && size_bytes <= chunk->size_bytes - offset) {
            compute->used_bytes = start + offset + size_bytes;
            return chunk->data + offset;
        }
        start += chunk->size_bytes;
    }
    cs_workspace_chunk chunk = {.size_bytes = MAX(size_bytes, MAX(start, (size_t)MIN_CHUNK_BYTES))};
    chunk.data = compute->backend->alloc(chunk.size_bytes);
    if (!chunk.data)
        return NULL;
    g_array_append_val(compute->chunks, chunk);
    compute->used_bytes = start + size_bytes;
    return chunk.data;
}

cs_tensor cs_compute_scratch(cs_compute *compute, cs_dtype dtype, int64_t rows, int64_t cols)
{
    g_assert(rows >= 0 && cols > 0);
    size_t element = cs_dtype_size_bytes(dtype);
    int64_t padded = (cols + 31) / 32 * 32, stride = padded;
    /* Rows a multiple of some lines apart would share the same few sets of a cache. */
    if ((size_t)stride * element % (dtype == CS_DTYPE_BF16 ? 128 : 4096) == 0)
        stride += 32;
    cs_tensor t = {
        .rows = rows, .cols = cols, .stride = stride, .pad = padded - cols, .dtype = dtype};
    if (compute->fault)
        return t;
    if (rows > INT64_MAX / 16 / stride) {
        cs_compute_fault(compute, "activations of %" G_GINT64_FORMAT " rows are too large", rows);
        return t;
    }
    size_t size_bytes = (size_t)(rows * stride) * element;
    t.data = workspace_take(compute, (size_bytes + 63) / 64 * 64 + 64);
    if (!t.data)
        cs_compute_fault(compute, "no memory for %zu bytes of activations", size_bytes);
    else if (t.pad > 0)
        compute->backend->zero(compute, (char *)t.data + (size_t)cols * element,
                               (size_t)t.pad * element, (size_t)stride * element, rows);
    return t;
}

size_t cs_compute_mark(const cs_compute *compute)
{
    return compute->used_bytes;
}

void cs_compute_release(cs_compute *compute, size_t mark)
{
    g_assert(mark <= compute->used_bytes);
    compute->used_bytes = mark;
}

/* ---- Parameters ---- */

struct cs_parameters {
    cs_compute *compute;
    GPtrArray *weights;
    GPtrArray *convolutions;
    GArray *buffers; /* cs_workspace_chunk */
    size_t bytes;
};

cs_parameters *cs_parameters_new(cs_compute *compute)
{
    cs_parameters *parameters = g_new0(cs_parameters, 1);
    parameters->compute = compute;
    parameters->weights = g_ptr_array_new();
    parameters->convolutions = g_ptr_array_new();
    parameters->buffers = g_array_new(FALSE, FALSE, sizeof(cs_workspace_chunk));
    return parameters;
}

void cs_parameters_free(cs_parameters *parameters)
{
    if (!parameters)
        return;
    const cs_backend *backend = parameters->compute->backend;
    for (guint i = 0; i < parameters->weights->len; i++)
        backend->weight_free(g_ptr_array_index(parameters->weights, i));
    for (guint i = 0; i < parameters->convolutions->len; i++)
        backend->convolution_free(g_ptr_array_index(parameters->convolutions, i));
    for (guint i = 0; i < parameters->buffers->len; i++) {
        cs_workspace_chunk *buffer = &g_array_index(parameters->buffers, cs_workspace_chunk, i);
        backend->release(buffer->data, buffer->size_bytes);
    }
    g_ptr_array_unref(parameters->weights);
    g_ptr_array_unref(parameters->convolutions);
    g_array_unref(parameters->buffers);
    g_free(parameters);
}

size_t cs_parameters_bytes(const cs_parameters *parameters)
{
    return parameters->bytes;
}

static const cs_weight *add_weight(cs_parameters *parameters, cs_weight *weight)
{
    if (weight) {
        g_ptr_array_add(parameters->weights, weight);
        parameters->bytes += parameters->compute->backend->weight_bytes(weight);
    }
    return weight;
}

const cs_weight *cs_parameters_matrix(cs_parameters *parameters, cs_dtype dtype, int64_t cols,
                                      uint32_t n_parts, const cs_weight_part *parts, GError **error)
{
    cs_compute *compute = parameters->compute;
    return add_weight(parameters, compute->backend->weight_new(compute, dtype, cols, n_parts, parts,
                                                               false, error));
}

const cs_weight *cs_parameters_gated(cs_parameters *parameters, cs_dtype dtype, int64_t cols,
                                     const cs_weight_part *gate, const cs_weight_part *up,
                                     GError **error)
{
    g_assert(gate->rows == up->rows);
    cs_compute *compute = parameters->compute;
    const cs_weight_part parts[] = {*gate, *up};
    return add_weight(parameters,
                      compute->backend->weight_new(compute, dtype, cols, 2, parts, true, error));
}

const cs_convolution *cs_parameters_convolution(cs_parameters *parameters, cs_dtype dtype,
                                                const cs_convolution_shape *shape,
                                                const float *values, const float *bias,
                                                GError **error)
{
    const cs_backend *backend = parameters->compute->backend;
    cs_convolution *convolution =
        backend->convolution_new(parameters->compute, dtype, shape, values, bias, error);
    if (convolution) {
        g_ptr_array_add(parameters->convolutions, convolution);
        parameters->bytes += backend->convolution_bytes(convolution);
    }
    return convolution;
}

cs_tensor cs_parameters_tensor(cs_parameters *parameters, const void *data, cs_dtype from,
                               int64_t rows, int64_t cols, GError **error)
{
    cs_compute *compute = parameters->compute;
    cs_workspace_chunk buffer = {.size_bytes = (size_t)(rows * cols) * sizeof(float)};
    cs_tensor t = cs_tensor_view(NULL, CS_DTYPE_F32, rows, cols);
    buffer.data = compute->backend->alloc(buffer.size_bytes);
    if (!buffer.data) {
        cs_fail(error, CS_ERROR_FAILED, "no memory for %zu bytes of parameters", buffer.size_bytes);
        return t;
    }
    g_array_append_val(parameters->buffers, buffer);
    parameters->bytes += buffer.size_bytes;
    t.data = buffer.data;

    g_autofree float *converted = NULL;
    const float *values = data;
    if (from != CS_DTYPE_F32) {
        g_assert(from == CS_DTYPE_BF16 || from == CS_DTYPE_F16);
        converted = g_try_malloc(buffer.size_bytes);
        if (!converted) {
            cs_fail(error, CS_ERROR_FAILED, "no memory for %zu bytes of parameters",
                    buffer.size_bytes);
            t.data = NULL;
            return t;
        }
        cs_convert_to_f32(rows * cols, converted, data, from);
        values = converted;
    }
    compute->backend->write(compute, &t, values);
    return t;
}

cs_tensor cs_parameters_table(cs_parameters *parameters, const void *data, cs_dtype dtype,
                              int64_t rows, int64_t cols, GError **error)
{
    if (parameters->compute->backend->host_tables)
        return cs_tensor_view((void *)data, dtype, rows, cols);
    return cs_parameters_tensor(parameters, data, dtype, rows, cols, error);
}

/* ---- Operations: each checks shapes, then hands over ---- */

static bool same_shape(const cs_tensor *a, const cs_tensor *b)
{
    return a->rows == b->rows && a->cols == b->cols;
}

static bool is_float(const cs_tensor *t)
{
    return t->dtype == CS_DTYPE_F32 || t->dtype == CS_DTYPE_BF16;
}

void cs_tensor_write(cs_compute *compute, const cs_tensor *to, const float *from)
{
    g_assert(to->dtype == CS_DTYPE_F32);
    if (!compute->fault)
        compute->backend->write(compute, to, from);
}

void cs_tensor_read(cs_compute *compute, float *to, const cs_tensor *from)
{
    g_assert(from->dtype == CS_DTYPE_F32);
    if (!compute->fault)
        compute->backend->read(compute, to, from);
}

void cs_op_linear(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                  const cs_weight *weight, const cs_linear_options *options)
{
    static const cs_linear_options plain = {0};
    options = options ? options : &plain;
    g_assert(y->rows == x->rows && x->cols == cs_weight_cols(weight) &&
             y->cols == cs_weight_rows(weight));
    g_assert(is_float(y) && is_float(x) && (!options->accumulate || y->dtype == CS_DTYPE_F32));
    g_assert(!options->bias || options->bias->cols == y->cols);
    if (!compute->fault && x->rows > 0)
        compute->backend->linear(compute, y, x, weight, options);
}

void cs_op_rms_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                    const cs_tensor *weight, float epsilon)
{
    g_assert(same_shape(y, x) && weight->cols == x->cols && x->dtype == CS_DTYPE_F32 &&
             is_float(y));
    if (!compute->fault)
        compute->backend->rms_norm(compute, y, x, weight, epsilon);
}

void cs_op_layer_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                      const cs_tensor *weight, const cs_tensor *bias, float epsilon)
{
    g_assert(same_shape(y, x) && weight->cols == x->cols && (!bias || bias->cols == x->cols));
    g_assert(x->dtype == CS_DTYPE_F32 && is_float(y));
    if (!compute->fault)
        compute->backend->layer_norm(compute, y, x, weight, bias, epsilon);
}

void cs_op_copy(cs_compute *compute, const cs_tensor *y, const cs_tensor *x)
{
    g_assert(same_shape(y, x) && is_float(y) && is_float(x));
    if (!compute->fault)
        compute->backend->copy(compute, y, x);
}

void cs_op_add(cs_compute *compute, const cs_tensor *y, const cs_tensor *x)
{
    g_assert(y->cols == x->cols && x->rows > 0 && y->dtype == CS_DTYPE_F32 &&
             x->dtype == CS_DTYPE_F32);
    if (!compute->fault)
        compute->backend->add(compute, y, x);
}

void cs_op_gather(cs_compute *compute, const cs_tensor *y, const cs_tensor *table,
                  const int32_t *ids)
{
    g_assert(y->cols == table->cols && is_float(y));
    if (!compute->fault)
        compute->backend->gather(compute, y, table, ids);
}

void cs_op_rope(cs_compute *compute, const cs_tensor *x, const cs_tensor *table, int64_t head_dim)
{
    g_assert(x->rows == table->rows && table->cols == head_dim && x->cols % head_dim == 0 &&
             head_dim % 2 == 0);
    g_assert(is_float(x) && table->dtype == CS_DTYPE_F32);
    if (!compute->fault)
        compute->backend->rope(compute, x, table, head_dim);
}

void cs_op_im2col(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t kernel,
                  int32_t stride, int32_t pad, int32_t dilation)
{
    g_assert(y->cols == kernel * x->cols && x->dtype == CS_DTYPE_F32 && is_float(y));
    g_assert(y->rows == 0 || (y->rows - 1) * stride - pad < x->rows);
    if (!compute->fault)
        compute->backend->im2col(compute, y, x, kernel, stride, pad, dilation);
}

void cs_op_convolve(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                    const cs_convolution *convolution, const cs_convolve_options *options)
{
    cs_convolution_shape shape = cs_convolution_shape_of(convolution);
    g_assert(y->cols == shape.outputs && y->dtype == CS_DTYPE_F32);
    g_assert(x->cols == shape.inputs && is_float(x));
    g_assert(x->dtype == CS_DTYPE_F32 || x->pad >= (32 - x->cols % 32) % 32);
    g_assert(options->dilation > 0 && x->rows >= y->rows + (shape.kernel - 1) * options->dilation);
    g_assert(!options->residual ||
             (same_shape(options->residual, y) && options->residual->dtype == CS_DTYPE_F32));
    if (!compute->fault && y->rows > 0)
        compute->backend->convolve(compute, y, x, convolution, options);
}

void cs_op_zero(cs_compute *compute, const cs_tensor *y)
{
    size_t element = cs_dtype_size_bytes(y->dtype);
    if (!compute->fault)
        compute->backend->zero(compute, y->data, (size_t)y->cols * element,
                               (size_t)y->stride * element, y->rows);
}

void cs_op_blend(cs_compute *compute, const cs_tensor *y, float a, const cs_tensor *x, float b)
{
    g_assert(same_shape(y, x) && y->dtype == CS_DTYPE_F32 && x->dtype == CS_DTYPE_F32);
    if (!compute->fault)
        compute->backend->blend(compute, y, a, x, b);
}

static bool covers(const cs_segments *segments, const cs_tensor *rows, const cs_tensor *values)
{
    return segments->starts[0] == 0 && segments->starts[segments->n] == rows->rows &&
           values->rows == segments->n && values->cols == rows->cols;
}

void cs_op_modulated_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                          const cs_tensor *scale, const cs_tensor *shift,
                          const cs_segments *segments, float epsilon)
{
    g_assert(same_shape(y, x) && x->dtype == CS_DTYPE_F32 && is_float(y));
    g_assert(covers(segments, x, scale) && covers(segments, x, shift));
    if (!compute->fault)
        compute->backend->modulated_norm(compute, y, x, scale, shift, segments, epsilon);
}

void cs_op_add_gated(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                     const cs_tensor *gate, const cs_segments *segments)
{
    g_assert(same_shape(y, x) && y->dtype == CS_DTYPE_F32 && is_float(x));
    g_assert(covers(segments, x, gate));
    if (!compute->fault)
        compute->backend->add_gated(compute, y, x, gate, segments);
}

void cs_op_snake(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                 const cs_tensor *alpha, const cs_tensor *inverse_beta,
                 const float filter[CS_SNAKE_TAPS])
{
    g_assert(same_shape(y, x) && is_float(y) && x->dtype == CS_DTYPE_F32);
    g_assert(alpha->cols == x->cols && inverse_beta->cols == x->cols && y->data != x->data);
    if (!compute->fault && x->rows > 0)
        compute->backend->snake(compute, y, x, alpha, inverse_beta, filter);
}

void cs_op_mean_rows(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t n)
{
    g_assert(y->cols == x->cols && y->rows * n <= x->rows && y->dtype == CS_DTYPE_F32 &&
             x->dtype == CS_DTYPE_F32);
    if (!compute->fault)
        compute->backend->mean_rows(compute, y, x, n);
}

void cs_op_attention_segments(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                              const cs_tensor *k, const cs_tensor *v,
                              const cs_segment_attention *options)
{
    g_assert(same_shape(out, q) && same_shape(q, k) && same_shape(k, v));
    g_assert(q->cols == options->n_heads * options->head_dim && is_float(out));
    g_assert(k->dtype == q->dtype && v->dtype == q->dtype);
    g_assert(q->dtype == CS_DTYPE_F32 ||
             q->dtype == compute->backend->input_dtype(compute, options->dtype));
    g_assert(options->starts[0] == 0 && options->starts[options->n_segments] == q->rows);
    if (!compute->fault && q->rows > 0)
        compute->backend->attention_segments(compute, out, q, k, v, options);
}

static int64_t sequence_rows(uint32_t n_sequences, const cs_kv_sequence *sequences)
{
    int64_t rows = 0;
    for (uint32_t i = 0; i < n_sequences; i++)
        rows += sequences[i].n_new;
    return rows;
}

void cs_op_kv_write(cs_compute *compute, cs_kv_store *store, uint32_t layer, const cs_tensor *k,
                    const cs_tensor *v, uint32_t n_sequences, const cs_kv_sequence *sequences)
{
    g_assert(same_shape(k, v) && k->cols == store->shape.n_kv_heads * store->shape.head_dim);
    g_assert(sequence_rows(n_sequences, sequences) <= k->rows && layer < store->shape.n_layers);
    if (!compute->fault)
        compute->backend->kv_write(compute, store, layer, k, v, n_sequences, sequences);
}

void cs_op_attention_paged(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                           const cs_kv_store *store, uint32_t layer, float scale,
                           uint32_t n_sequences, const cs_kv_sequence *sequences)
{
    g_assert(same_shape(out, q) &&
             q->cols % (store->shape.n_kv_heads * store->shape.head_dim) == 0);
    g_assert(sequence_rows(n_sequences, sequences) <= q->rows && layer < store->shape.n_layers);
    if (!compute->fault)
        compute->backend->attention_paged(compute, out, q, store, layer, scale, n_sequences,
                                          sequences);
}

/* ---- KV store ---- */

/* Sizes of one head's packed keys and values of a block; see cpu/kernels.h for the panels. */
static void kv_sizes(const cs_kv_shape *shape, size_t *key_bytes, size_t *value_bytes)
{
    size_t element = cs_dtype_size_bytes(shape->dtype);
    int64_t key_dim =
        shape->dtype == CS_DTYPE_BF16 ? (shape->head_dim + 31) / 32 * 32 : shape->head_dim;
    int64_t value_dim = (shape->head_dim + 15) / 16 * 16;
    *key_bytes = (size_t)key_dim * CS_KV_BLOCK_TOKENS * element;
    *value_bytes = (size_t)value_dim * CS_KV_BLOCK_TOKENS * element;
}

size_t cs_kv_block_bytes(const cs_kv_shape *shape)
{
    size_t key_bytes, value_bytes;
    kv_sizes(shape, &key_bytes, &value_bytes);
    return (key_bytes + value_bytes) * (size_t)shape->n_kv_heads * shape->n_layers;
}

cs_kv_store *cs_kv_store_new(cs_compute *compute, const cs_kv_shape *shape, GError **error)
{
    cs_kv_store *store = g_new0(cs_kv_store, 1);
    store->compute = compute;
    store->shape = *shape;
    kv_sizes(shape, &store->key_bytes, &store->value_bytes);
    store->layer_bytes = (store->key_bytes + store->value_bytes) * (size_t)shape->n_kv_heads;
    store->block_bytes = store->layer_bytes * shape->n_layers;
    store->size_bytes = store->block_bytes * shape->n_blocks;
    store->data = compute->backend->alloc(store->size_bytes);
    if (!store->data) {
        cs_fail(error, CS_ERROR_FAILED, "no memory for a KV cache of %zu bytes (%u blocks of %zu)",
                store->size_bytes, shape->n_blocks, store->block_bytes);
        g_clear_pointer(&store, g_free);
    }
    return store;
}

void cs_kv_store_free(cs_kv_store *store)
{
    if (!store)
        return;
    store->compute->backend->release(store->data, store->size_bytes);
    g_free(store);
}
