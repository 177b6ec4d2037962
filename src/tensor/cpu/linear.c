/* Weight packing and the linear operation: blocking and threads around the kernels' product.
 *
 * Work is cut into pieces of up to ROW_BLOCK rows by a run of panels. Within a piece the inner
 * dimension is walked in blocks, so that the left operand's block stays in the second-level cache
 * while all panels of the piece pass over it; sums wait in memory between blocks. Each weight is
 * read once for up to ROW_BLOCK rows. (Goto and van de Geijn 2008, with the roles set by packed
 * weights.)
 */
#include "tensor/cpu/cpu.h"

#include "base/error.h"

#include <string.h>

enum {
    ROW_BLOCK = 512,       /* rows of a piece: 1 MiB of left operand at 2 KiB a row */
    SUM_BYTES = 1 << 20,   /* sums of a piece */
    PIECES_PER_THREAD = 4, /* so that threads finish together */
};

/* ---- Packing ---- */

void cs_cpu_pack_pairs(uint32_t *out, const uint32_t *const rows[CS_PANEL], int n_rows,
                       int64_t n_pairs)
{
    if (n_rows == CS_PANEL) {
        for (int64_t i = 0; i < n_pairs; i++)
            for (int r = 0; r < CS_PANEL; r++)
                out[i * CS_PANEL + r] = rows[r][i];
        return;
    }
    for (int64_t i = 0; i < n_pairs; i++)
        for (int r = 0; r < CS_PANEL; r++)
            out[i * CS_PANEL + r] = r < n_rows ? rows[r][i] : 0;
}

typedef struct {
    cs_cpu *cpu;
    cs_weight *weight;
    uint32_t n_parts;
    const cs_weight_part *parts;
} pack_job;

/* Row `row` of the parts as they stand one below the other. */
static const char *part_row(const pack_job *job, int64_t row, cs_dtype *dtype)
{
    const cs_weight_part *part = job->parts;
    while (row >= part->rows)
        row -= part++->rows;
    *dtype = part->dtype;
    return (const char *)part->data +
           (size_t)(row * job->weight->cols) * cs_dtype_size_bytes(part->dtype);
}

/* Converts a source row to f32, zeros up to n. */
static void load_row(float *out, int64_t n, const char *source, cs_dtype dtype, int64_t cols)
{
    cs_convert_to_f32(cols, out, source, dtype);
    memset(out + cols, 0, (size_t)(n - cols) * sizeof *out);
}

static void pack_panel_f32(const pack_job *job, float *out, int64_t first, int n_rows, float *row)
{
    const cs_weight *w = job->weight;
    if (n_rows < CS_PANEL)
        memset(out, 0, w->panel_bytes);
    for (int r = 0; r < n_rows; r++) {
        cs_dtype dtype;
        const char *source = part_row(job, first + r, &dtype);
        load_row(row, w->k, source, dtype, w->cols);
        for (int64_t i = 0; i < w->k; i++)
            out[i * CS_PANEL + r] = row[i];
    }
}

static void pack_panel_bf16(const pack_job *job, uint32_t *out, int64_t first, int n_rows,
                            float *row)
{
    const cs_weight *w = job->weight;
    const uint32_t *rows[CS_PANEL] = {0};
    uint16_t *converted = (uint16_t *)(row + w->k);
    bool direct = w->cols % 2 == 0;
    for (int r = 0; r < n_rows && direct; r++) {
        cs_dtype dtype;
        rows[r] = (const uint32_t *)part_row(job, first + r, &dtype);
        direct = dtype == CS_DTYPE_BF16 && (uintptr_t)rows[r] % sizeof *rows[r] == 0;
    }
    if (direct) {
        cs_cpu_pack_pairs(out, rows, n_rows, w->cols / 2);
        memset(out + w->cols / 2 * CS_PANEL, 0,
               (size_t)(w->k - w->cols) * CS_PANEL * sizeof(uint16_t));
        return;
    }
    for (int r = 0; r < n_rows; r++) {
        cs_dtype dtype;
        const char *source = part_row(job, first + r, &dtype);
        load_row(row, w->k, source, dtype, w->cols);
        job->cpu->kernels->to_bf16(w->k, converted + r * w->k, row);
        rows[r] = (const uint32_t *)(converted + r * w->k);
    }
    cs_cpu_pack_pairs(out, rows, n_rows, w->k / 2);
}

static void pack_piece(void *data, int64_t panel, uint32_t thread)
{
    pack_job *job = data;
    const cs_weight *w = job->weight;
    char *out = (char *)w->data + (size_t)panel * w->panel_bytes;
    int64_t index = w->gated ? panel / 2 : panel;
    int64_t first = index * CS_PANEL;
    int n_rows = (int)cs_min(CS_PANEL, w->rows - first);
    if (w->gated && panel % 2 == 1)
        first += w->rows;
    float *row = cs_cpu_thread_scratch(job->cpu, thread);
    if (w->dtype == CS_DTYPE_F32)
        pack_panel_f32(job, (float *)out, first, n_rows, row);
    else
        pack_panel_bf16(job, (uint32_t *)out, first, n_rows, row);
}

cs_weight *cs_cpu_weight_new(cs_compute *compute, cs_dtype dtype, int64_t cols, uint32_t n_parts,
                             const cs_weight_part *parts, bool gated, GError **error)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    g_assert(dtype == CS_DTYPE_F32 || dtype == CS_DTYPE_BF16);
    cs_weight *w = g_new0(cs_weight, 1);
    for (uint32_t i = 0; i < n_parts; i++)
        w->rows += parts[i].rows;
    if (gated)
        w->rows /= 2;
    w->cols = cols;
    w->k = dtype == CS_DTYPE_BF16 ? cs_round_up(cols, CS_K_ALIGN) : cols;
    w->n_panels = (w->rows + CS_PANEL - 1) / CS_PANEL * (gated ? 2 : 1);
    w->panel_bytes = (size_t)w->k * CS_PANEL * cs_dtype_size_bytes(dtype);
    w->gated = gated;
    w->dtype = dtype;
    w->data = compute->backend->alloc(cs_cpu_weight_bytes(w));
    /* One row in f32 and 16 in bf16. */
    if (!w->data || !cs_cpu_reserve_thread_scratch(
                        cpu, (size_t)w->k * (sizeof(float) + CS_PANEL * sizeof(uint16_t)))) {
        cs_fail(error, CS_ERROR_FAILED, "no memory for %zu bytes of weights",
                cs_cpu_weight_bytes(w));
        cs_cpu_weight_free(w);
        return NULL;
    }
    pack_job job = {.cpu = cpu, .weight = w, .n_parts = n_parts, .parts = parts};
    cs_pool_run(cpu->pool, w->n_panels, pack_piece, &job);
    return w;
}

void cs_cpu_weight_free(cs_weight *weight)
{
    if (!weight)
        return;
    cs_backend_cpu.release(weight->data, cs_cpu_weight_bytes(weight));
    g_free(weight);
}

size_t cs_cpu_weight_bytes(const cs_weight *weight)
{
    return (size_t)weight->n_panels * weight->panel_bytes;
}

int64_t cs_weight_rows(const cs_weight *weight)
{
    return weight->rows;
}

int64_t cs_weight_cols(const cs_weight *weight)
{
    return weight->cols;
}

cs_dtype cs_weight_dtype(const cs_weight *weight)
{
    return weight->dtype;
}

/* ---- The product ---- */

cs_tensor cs_cpu_left_operand(cs_cpu *cpu, const cs_tensor *x, cs_dtype to, int64_t k)
{
    bool readable = to == CS_DTYPE_F32 || x->cols == k || x->pad >= k - x->cols;
    if (x->dtype == to && readable)
        return *x;
    cs_tensor copy = cs_compute_scratch(&cpu->base, to, x->rows, x->cols);
    if (copy.data)
        cs_cpu_copy(&cpu->base, &copy, x);
    return copy;
}

typedef struct {
    const cs_cpu *cpu;
    const cs_tensor *y;
    const cs_tensor *x;
    const cs_weight *w;
    const cs_linear_options *options;
    cs_product *product;
    int64_t row_block;
    int64_t panels_per_piece;
    int64_t n_panel_pieces;
    int64_t inner_block;
} linear_job;

static void activate(const cs_kernels *kernels, cs_activation activation, int64_t n, float *row)
{
    switch (activation) {
    case CS_ACTIVATION_NONE:
        break;
    case CS_ACTIVATION_GELU:
        kernels->gelu(n, row);
        break;
    case CS_ACTIVATION_GELU_TANH:
        kernels->gelu_tanh(n, row);
        break;
    case CS_ACTIVATION_SILU:
        kernels->silu(n, row);
        break;
    }
}

/* Bias, activation and the way into y for the sums [rows, ...] of columns [first, first + n) of y.
 */
static void finish_rows(const linear_job *job, int64_t row, int64_t rows, int64_t first, int64_t n,
                        float *sums, int64_t stride)
{
    const cs_kernels *kernels = job->cpu->kernels;
    const cs_tensor *bias = job->options->bias;
    for (int64_t r = 0; r < rows; r++) {
        float *sum = sums + r * stride;
        if (bias)
            kernels->add(n, sum, (const float *)bias->data + first);
        activate(kernels, job->options->activation, n, sum);
        int64_t at = (row + r) * job->y->stride + first;
        if (job->y->dtype == CS_DTYPE_BF16)
            kernels->to_bf16(n, (uint16_t *)job->y->data + at, sum);
        else if ((float *)job->y->data + at != sum)
            memcpy((float *)job->y->data + at, sum, (size_t)n * sizeof *sum);
    }
}

/* The same for a gated pair: sums hold panels of gate and up in turn. The product takes gate's
 * place. */
static void finish_gated_rows(const linear_job *job, int64_t row, int64_t rows, int64_t first,
                              int64_t n, float *sums, int64_t stride)
{
    const cs_kernels *kernels = job->cpu->kernels;
    const cs_tensor *bias = job->options->bias;
    for (int64_t r = 0; r < rows; r++) {
        float *sum = sums + r * stride;
        for (int64_t i = 0; i < n; i += CS_PANEL) {
            float *gate = sum + 2 * i, *up = gate + CS_PANEL;
            int64_t width = cs_min(CS_PANEL, n - i);
            if (bias) {
                const float *b = (const float *)bias->data + first + i;
                kernels->add(width, gate, b);
                kernels->add(width, up, b + bias->stride);
            }
            kernels->silu_mul(CS_PANEL, sum + i, gate, up);
        }
        int64_t at = (row + r) * job->y->stride + first;
        if (job->y->dtype == CS_DTYPE_BF16)
            kernels->to_bf16(n, (uint16_t *)job->y->data + at, sum);
        else
            memcpy((float *)job->y->data + at, sum, (size_t)n * sizeof *sum);
    }
}

static void linear_piece(void *data, int64_t index, uint32_t thread)
{
    const linear_job *job = data;
    const cs_weight *w = job->w;
    int64_t row = index / job->n_panel_pieces * job->row_block;
    int64_t rows = cs_min(job->row_block, job->x->rows - row);
    int64_t panel = index % job->n_panel_pieces * job->panels_per_piece;
    int64_t panels = cs_min(job->panels_per_piece, w->n_panels - panel);
    int64_t outputs_per_panel = w->gated ? CS_PANEL / 2 : CS_PANEL;
    int64_t first = panel * outputs_per_panel;
    int64_t n = cs_min(panels * outputs_per_panel, w->rows - first);

    /* Sums go straight into y where its memory has their shape. */
    bool in_place = job->y->dtype == CS_DTYPE_F32 && !w->gated && n == panels * CS_PANEL;
    float *y = (float *)job->y->data + row * job->y->stride + first;
    float *sums = in_place ? y : cs_cpu_thread_scratch(job->cpu, thread);
    int64_t stride = in_place ? job->y->stride : panels * CS_PANEL;
    if (job->options->accumulate && !in_place) {
        for (int64_t r = 0; r < rows; r++)
            memcpy(sums + r * stride, y + r * job->y->stride, (size_t)n * sizeof *sums);
    }

    size_t element = cs_dtype_size_bytes(job->x->dtype);
    const char *x = (const char *)job->x->data + (size_t)(row * job->x->stride) * element;
    const char *b = (const char *)w->data + (size_t)panel * w->panel_bytes;
    for (int64_t k = 0; k < w->k; k += job->inner_block) {
        int64_t inner = cs_min(job->inner_block, w->k - k);
        bool accumulate = k > 0 || job->options->accumulate;
        if (job->x->dtype == CS_DTYPE_F32)
            inner = cs_min(inner, w->cols - k); /* f32 operands have no zeros behind them */
        job->product(rows, panels, inner, x + (size_t)k * element, job->x->stride,
                     b + (size_t)k * CS_PANEL * cs_dtype_size_bytes(w->dtype), w->panel_bytes, sums,
                     stride, accumulate);
    }
    if (job->cpu->kernels->leave)
        job->cpu->kernels->leave();
    (w->gated ? finish_gated_rows : finish_rows)(job, row, rows, first, n, sums, stride);
}

/* Panels of a piece: enough pieces for the threads, multiples of 4 that the kernels like, sums
 * within bounds. */
static int64_t choose_panels_per_piece(const cs_cpu *cpu, int64_t n_panels, int64_t row_block)
{
    int64_t most = SUM_BYTES / (int64_t)sizeof(float) / CS_PANEL / row_block / 4 * 4;
    int64_t pieces = (int64_t)cs_pool_n_threads(cpu->pool) * PIECES_PER_THREAD;
    int64_t fair = cs_round_up((n_panels + pieces - 1) / pieces, 4);
    return MAX(4, cs_min(fair, most));
}

void cs_cpu_linear(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                   const cs_weight *weight, const cs_linear_options *options)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    g_assert(
        !(weight->gated && (options->activation != CS_ACTIVATION_NONE || options->accumulate)));
    size_t mark = cs_compute_mark(compute);
    cs_dtype input_dtype = cpu->base.backend->input_dtype(compute, weight->dtype);
    cs_tensor left = cs_cpu_left_operand(cpu, x, input_dtype, weight->k);
    linear_job job = {.cpu = cpu, .y = y, .x = &left, .w = weight, .options = options};
    job.product = weight->dtype == CS_DTYPE_F32  ? cpu->kernels->product_f32
                  : input_dtype == CS_DTYPE_BF16 ? cpu->kernels->product_bf16
                                                 : cpu->kernels->product_f32_bf16;
    job.row_block = cs_min(x->rows, ROW_BLOCK);
    job.panels_per_piece = choose_panels_per_piece(cpu, weight->n_panels, job.row_block);
    job.n_panel_pieces = (weight->n_panels + job.panels_per_piece - 1) / job.panels_per_piece;
    int64_t inner_most = cpu->kernels->inner_bytes / (int64_t)cs_dtype_size_bytes(input_dtype);
    int64_t n_inner = (weight->k + inner_most - 1) / inner_most;
    job.inner_block = cs_round_up((weight->k + n_inner - 1) / n_inner, CS_K_ALIGN);
    int64_t n_row_blocks = (x->rows + job.row_block - 1) / job.row_block;

    size_t sum_bytes = (size_t)(job.row_block * job.panels_per_piece * CS_PANEL) * sizeof(float);
    if (left.data && cs_cpu_reserve_thread_scratch(cpu, sum_bytes))
        cs_pool_run(cpu->pool, n_row_blocks * job.n_panel_pieces, linear_piece, &job);
    cs_compute_release(compute, mark);
}
