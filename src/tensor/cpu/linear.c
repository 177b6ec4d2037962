/* Weight packing and the linear operation: blocking and threads around the kernels' product.
 *
 * Work is cut into pieces of up to ROW_BLOCK rows by a run of panels. Within a piece the inner
 * dimension is walked in blocks, so that the left operand's block stays in the second-level cache
 * while all panels of the piece pass over it, GROUP at a time. Sums of a group lie in a small
 * buffer of their own, from which bias and activation take them into y: rows of y itself are far
 * apart, and storing tiles there would wait for memory. Where there are several inner blocks each
 * group keeps its sums until the last. (Goto and van de Geijn 2008, with the roles set by packed
 * weights.)
 */
#include "tensor/cpu/cpu.h"

#include "base/error.h"

#include <string.h>

enum {
    ROW_BLOCK = 512,
    LEFT_BYTES = 1 << 20, /* of the left operand's block: half of a second-level cache */
    GROUP = 4,            /* panels between two passes over sums; a multiple of what kernels hold */
    TILE_ROWS = 32,       /* of kernels->linear_bf16 at least */
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
    int64_t row_block, n_row_blocks;
    int64_t panels_per_piece;
    int64_t inner_block;
    bool in_tiles;      /* by kernels->linear_bf16 */
    int64_t kept_pairs; /* of panels whose sums a piece keeps */
} linear_job;

static cs_form form_of(const linear_job *job)
{
    if (job->w->gated)
        return CS_FORM_GATED;
    switch (job->options->activation) {
    case CS_ACTIVATION_NONE:
        break;
    case CS_ACTIVATION_GELU:
        return CS_FORM_GELU;
    case CS_ACTIVATION_GELU_TANH:
        return CS_FORM_GELU_TANH;
    case CS_ACTIVATION_SILU:
        return CS_FORM_SILU;
    }
    return CS_FORM_PLAIN;
}

/* Bias, activation and the way into y of `rows` rows and of panels [panel, + n). */
static cs_finish finish_of(const linear_job *job, int64_t row, int64_t rows, int64_t panel,
                           int64_t n)
{
    const cs_weight *w = job->w;
    const cs_tensor *bias = job->options->bias, *y = job->y;
    int64_t outputs_per_panel = w->gated ? CS_PANEL / 2 : CS_PANEL;
    int64_t first = panel * outputs_per_panel;
    const float *biases = bias ? (const float *)bias->data + first : NULL;
    return (cs_finish){
        .sums_stride = GROUP * CS_PANEL,
        .rows = rows,
        .n = cs_min(n * outputs_per_panel, w->rows - first),
        .bias = biases,
        .up_bias = bias && w->gated ? biases + bias->stride : NULL,
        .form = form_of(job),
        .accumulate = job->options->accumulate,
        .to_bf16 = y->dtype == CS_DTYPE_BF16,
        .y = (char *)y->data + (size_t)(row * y->stride + first) * cs_dtype_size_bytes(y->dtype),
        .y_stride = y->stride,
    };
}

/* Rows and panels of a piece, and a block of their inner elements. */
typedef struct {
    int64_t row, rows, panel, end_panel;
    const char *x, *weights; /* of the block's first inner element */
    int64_t inner;
    bool first, last; /* block of the piece */
    float *sums;
} piece_block;

/* All panels by the kernel that does the whole of it. */
static void multiply_tiles(const linear_job *job, const piece_block *b)
{
    int64_t n = b->end_panel - b->panel;
    cs_finish finish = finish_of(job, b->row, b->rows, b->panel, n);
    job->cpu->kernels->linear_bf16(&(cs_linear_block){
        .rows = b->rows,
        .k = b->inner,
        .n_panels = n,
        .x = b->x,
        .x_stride = job->x->stride,
        .weights = b->weights,
        .panel_bytes = job->w->panel_bytes,
        .sums = b->sums,
        .n_sums = job->kept_pairs,
        .onto = !b->first,
        .finish = b->last ? &finish : NULL,
    });
}

/* A group of panels at a time by the kernels' product. */
static void multiply_groups(const linear_job *job, const piece_block *b)
{
    const cs_weight *w = job->w;
    float *sums = b->sums;
    for (int64_t panel = b->panel; panel < b->end_panel; panel += GROUP) {
        int64_t n = cs_min(GROUP, b->end_panel - panel);
        job->product(b->rows, n, b->inner, b->x, job->x->stride,
                     b->weights + (size_t)(panel - b->panel) * w->panel_bytes, w->panel_bytes, sums,
                     GROUP * CS_PANEL, !b->first);
        if (b->last) {
            cs_finish finish = finish_of(job, b->row, b->rows, panel, n);
            finish.sums = sums;
            job->cpu->kernels->finish(&finish);
        }
        if (!b->first || !b->last)
            sums += b->rows * GROUP * CS_PANEL;
    }
}

static void linear_piece(void *data, int64_t index, uint32_t thread)
{
    const linear_job *job = data;
    const cs_weight *w = job->w;
    size_t element = cs_dtype_size_bytes(job->x->dtype), stored = cs_dtype_size_bytes(w->dtype);
    piece_block b = {.row = index % job->n_row_blocks * job->row_block,
                     .panel = index / job->n_row_blocks * job->panels_per_piece,
                     .sums = cs_cpu_thread_scratch(job->cpu, thread)};
    b.rows = cs_min(job->row_block, job->x->rows - b.row);
    b.end_panel = cs_min(b.panel + job->panels_per_piece, w->n_panels);
    const char *x = (const char *)job->x->data + (size_t)(b.row * job->x->stride) * element;
    const char *weights = (const char *)w->data + (size_t)b.panel * w->panel_bytes;
    for (int64_t k = 0; k < w->k; k += job->inner_block) {
        b.inner = cs_min(job->inner_block, w->k - k);
        b.first = k == 0;
        b.last = k + b.inner == w->k;
        if (job->x->dtype == CS_DTYPE_F32)
            b.inner = cs_min(b.inner, w->cols - k); /* f32 operands have no zeros behind them */
        b.x = x + (size_t)k * element;
        b.weights = weights + (size_t)k * CS_PANEL * stored;
        if (job->in_tiles && b.rows >= TILE_ROWS)
            multiply_tiles(job, &b);
        else
            multiply_groups(job, &b);
    }
    if (job->cpu->kernels->leave)
        job->cpu->kernels->leave();
}

/* Equal parts of n that are multiples of `multiple` and near `most` at most. */
static int64_t equal_parts(int64_t n, int64_t most, int64_t multiple)
{
    int64_t parts = (n + most - 1) / most;
    return cs_round_up((n + parts - 1) / parts, multiple);
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
    int64_t element = (int64_t)cs_dtype_size_bytes(input_dtype);
    job.inner_block = equal_parts(weight->k, cpu->kernels->inner_bytes / element, CS_K_ALIGN);
    int64_t most_rows = cs_min(ROW_BLOCK, LEFT_BYTES / (job.inner_block * element));
    job.row_block = cs_min(x->rows, equal_parts(x->rows, most_rows, 32));
    job.n_row_blocks = (x->rows + job.row_block - 1) / job.row_block;
    int64_t n_threads = cs_pool_n_threads(cpu->pool);
    int64_t pieces = n_threads == 1 ? 1 : n_threads * PIECES_PER_THREAD;
    job.panels_per_piece = cs_round_up((weight->n_panels + pieces - 1) / pieces, GROUP);
    int64_t groups = job.inner_block < weight->k ? job.panels_per_piece / GROUP : 1;
    int64_t n_pieces = (weight->n_panels + job.panels_per_piece - 1) / job.panels_per_piece;

    job.in_tiles = input_dtype == CS_DTYPE_BF16 && cpu->kernels->linear_bf16;
    job.kept_pairs = groups * GROUP / 2;
    size_t sum_bytes =
        (size_t)(cs_round_up(job.row_block, TILE_ROWS) * groups * GROUP * CS_PANEL) * sizeof(float);
    if (left.data && cs_cpu_reserve_thread_scratch(cpu, sum_bytes))
        cs_pool_run(cpu->pool, n_pieces * job.n_row_blocks, linear_piece, &job);
    cs_compute_release(compute, mark);
}
