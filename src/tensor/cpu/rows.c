/* Operations that work row by row, cut into pieces of rows for the threads. */
#include "tensor/cpu/cpu.h"

#include <math.h>
#include <string.h>

/* Elements below which a piece is not worth handing to another thread. */
enum { PIECE_ELEMENTS = 16384 };

typedef struct {
    const cs_cpu *cpu;
    const cs_tensor *y;
    const cs_tensor *x;
    const cs_tensor *weight;
    const cs_tensor *bias;
    float epsilon;
    const int32_t *ids;
    int32_t kernel, stride, pad, dilation;
    float a, b;
    const cs_tensor *shift;
    const cs_segments *segments;
    int64_t head_dim;
    int64_t rows_per_piece;
    void (*row)(const void *job, int64_t row, float *scratch);
} rows_job;

static void rows_piece(void *data, int64_t index, uint32_t thread)
{
    const rows_job *job = data;
    int64_t first = index * job->rows_per_piece;
    int64_t end = cs_min(first + job->rows_per_piece, job->y->rows);
    for (int64_t row = first; row < end; row++)
        job->row(job, row, cs_cpu_thread_scratch(job->cpu, thread));
}

static void run_rows(cs_compute *compute, rows_job *job,
                     void (*row)(const void *job, int64_t row, float *scratch))
{
    cs_cpu *cpu = (cs_cpu *)compute;
    if (!cs_cpu_reserve_thread_scratch(cpu, (size_t)job->y->cols * sizeof(float)))
        return;
    job->cpu = cpu;
    job->row = row;
    job->rows_per_piece = MAX(1, PIECE_ELEMENTS / job->y->cols);
    int64_t pieces = (job->y->rows + job->rows_per_piece - 1) / job->rows_per_piece;
    cs_pool_run(cpu->pool, pieces, rows_piece, job);
}

static float *f32_row(const cs_tensor *t, int64_t row)
{
    return (float *)t->data + row * t->stride;
}

static uint16_t *bf16_row(const cs_tensor *t, int64_t row)
{
    return (uint16_t *)t->data + row * t->stride;
}

/* Where a row of y is computed in f32: in place, or in scratch on its way to bf16. */
static float *row_target(const cs_tensor *y, int64_t row, float *scratch)
{
    return y->dtype == CS_DTYPE_F32 ? f32_row(y, row) : scratch;
}

static void row_finish(const rows_job *job, int64_t row, const float *computed)
{
    if (job->y->dtype == CS_DTYPE_BF16)
        job->cpu->kernels->to_bf16(job->y->cols, bf16_row(job->y, row), computed);
}

static void rms_norm_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    float *y = row_target(job->y, row, scratch);
    job->cpu->kernels->rms_norm(job->y->cols, y, f32_row(job->x, row), job->weight->data,
                                job->epsilon);
    row_finish(job, row, y);
}

void cs_cpu_rms_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                     const cs_tensor *weight, float epsilon)
{
    rows_job job = {.y = y, .x = x, .weight = weight, .epsilon = epsilon};
    run_rows(compute, &job, rms_norm_row);
}

static void layer_norm_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    float *y = row_target(job->y, row, scratch);
    job->cpu->kernels->layer_norm(job->y->cols, y, f32_row(job->x, row), job->weight->data,
                                  job->bias ? job->bias->data : NULL, job->epsilon);
    row_finish(job, row, y);
}

void cs_cpu_layer_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                       const cs_tensor *weight, const cs_tensor *bias, float epsilon)
{
    rows_job job = {.y = y, .x = x, .weight = weight, .bias = bias, .epsilon = epsilon};
    run_rows(compute, &job, layer_norm_row);
}

static void copy_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    const cs_kernels *kernels = job->cpu->kernels;
    const cs_tensor *y = job->y, *x = job->x;
    if (x->dtype == y->dtype)
        memcpy((char *)y->data + (size_t)(row * y->stride) * cs_dtype_size_bytes(y->dtype),
               (const char *)x->data + (size_t)(row * x->stride) * cs_dtype_size_bytes(x->dtype),
               (size_t)y->cols * cs_dtype_size_bytes(y->dtype));
    else if (y->dtype == CS_DTYPE_BF16)
        kernels->to_bf16(y->cols, bf16_row(y, row), f32_row(x, row));
    else
        kernels->from_bf16(y->cols, f32_row(y, row), bf16_row(x, row));
}

void cs_cpu_copy(cs_compute *compute, const cs_tensor *y, const cs_tensor *x)
{
    rows_job job = {.y = y, .x = x};
    run_rows(compute, &job, copy_row);
}

static void add_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    job->cpu->kernels->add(job->y->cols, f32_row(job->y, row), f32_row(job->x, row % job->x->rows));
}

void cs_cpu_add(cs_compute *compute, const cs_tensor *y, const cs_tensor *x)
{
    rows_job job = {.y = y, .x = x};
    run_rows(compute, &job, add_row);
}

static void gather_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    const cs_tensor *table = job->x;
    g_assert(job->ids[row] >= 0 && job->ids[row] < table->rows);
    const char *source = (const char *)table->data + (size_t)(job->ids[row] * table->stride) *
                                                         cs_dtype_size_bytes(table->dtype);
    if (table->dtype == CS_DTYPE_F32) {
        if (job->y->dtype == CS_DTYPE_F32)
            memcpy(f32_row(job->y, row), source, (size_t)job->y->cols * sizeof(float));
        else
            row_finish(job, row, (const float *)source);
        return;
    }
    float *y = row_target(job->y, row, scratch);
    cs_convert_to_f32(job->y->cols, y, source, table->dtype);
    row_finish(job, row, y);
}

void cs_cpu_gather(cs_compute *compute, const cs_tensor *y, const cs_tensor *table,
                   const int32_t *ids)
{
    rows_job job = {.y = y, .x = table, .ids = ids};
    run_rows(compute, &job, gather_row);
}

static void rope_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    const float *table = f32_row(job->x, row);
    int64_t half = job->head_dim / 2;
    float *x = row_target(job->y, row, scratch);
    if (x == scratch)
        job->cpu->kernels->from_bf16(job->y->cols, x, bf16_row(job->y, row));
    for (int64_t i = 0; i < job->y->cols; i += job->head_dim)
        job->cpu->kernels->rope(half, x + i, table, table + half);
    row_finish(job, row, x);
}

void cs_cpu_rope(cs_compute *compute, const cs_tensor *x, const cs_tensor *table, int64_t head_dim)
{
    rows_job job = {.y = x, .x = table, .head_dim = head_dim};
    run_rows(compute, &job, rope_row);
}

static void im2col_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    int64_t channels = job->x->cols;
    float *y = row_target(job->y, row, scratch);
    for (int32_t i = 0; i < job->kernel; i++) {
        int64_t source = row * job->stride - job->pad + i * job->dilation;
        if (source >= 0 && source < job->x->rows)
            memcpy(y + i * channels, f32_row(job->x, source), (size_t)channels * sizeof *y);
        else
            memset(y + i * channels, 0, (size_t)channels * sizeof *y);
    }
    row_finish(job, row, y);
}

void cs_cpu_im2col(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t kernel,
                   int32_t stride, int32_t pad, int32_t dilation)
{
    rows_job job = {
        .y = y, .x = x, .kernel = kernel, .stride = stride, .pad = pad, .dilation = dilation};
    run_rows(compute, &job, im2col_row);
}

static void blend_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    job->cpu->kernels->blend(job->y->cols, f32_row(job->y, row), job->a, f32_row(job->x, row),
                             job->b);
}

void cs_cpu_blend(cs_compute *compute, const cs_tensor *y, float a, const cs_tensor *x, float b)
{
    rows_job job = {.y = y, .x = x, .a = a, .b = b};
    run_rows(compute, &job, blend_row);
}

/* Segments are few: the search is linear. */
static const float *segment_row(const cs_segments *segments, const cs_tensor *values, int64_t row)
{
    int64_t i = 0;
    while (segments->starts[i + 1] <= row)
        i++;
    return f32_row(values, i);
}

static void modulated_norm_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    float *y = row_target(job->y, row, scratch);
    job->cpu->kernels->modulated_norm(job->y->cols, y, f32_row(job->x, row),
                                      segment_row(job->segments, job->weight, row),
                                      segment_row(job->segments, job->shift, row), job->epsilon);
    row_finish(job, row, y);
}

void cs_cpu_modulated_norm(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                           const cs_tensor *scale, const cs_tensor *shift,
                           const cs_segments *segments, float epsilon)
{
    rows_job job = {
        .y = y, .x = x, .weight = scale, .shift = shift, .segments = segments, .epsilon = epsilon};
    run_rows(compute, &job, modulated_norm_row);
}

static void add_gated_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    const float *x = scratch;
    if (job->x->dtype == CS_DTYPE_BF16)
        job->cpu->kernels->from_bf16(job->x->cols, scratch, bf16_row(job->x, row));
    else
        x = f32_row(job->x, row);
    job->cpu->kernels->add_product(job->y->cols, f32_row(job->y, row), x,
                                   segment_row(job->segments, job->weight, row));
}

void cs_cpu_add_gated(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                      const cs_tensor *gate, const cs_segments *segments)
{
    rows_job job = {.y = y, .x = x, .weight = gate, .segments = segments};
    run_rows(compute, &job, add_gated_row);
}

static void mean_row(const void *data, int64_t row, float *scratch)
{
    const rows_job *job = data;
    const cs_kernels *kernels = job->cpu->kernels;
    float *y = f32_row(job->y, row);
    memcpy(y, f32_row(job->x, row * job->stride), (size_t)job->y->cols * sizeof *y);
    for (int32_t i = 1; i < job->stride; i++)
        kernels->add(job->y->cols, y, f32_row(job->x, row * job->stride + i));
    kernels->scale(job->y->cols, y, 1.0f / (float)job->stride);
}

void cs_cpu_mean_rows(cs_compute *compute, const cs_tensor *y, const cs_tensor *x, int32_t n)
{
    rows_job job = {.y = y, .x = x, .stride = n};
    run_rows(compute, &job, mean_row);
}
