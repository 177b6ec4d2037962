/* One-dimensional convolutions as products of shifted rows: no columns are ever copied together.
 *
 * Weights stand in panels of 16 outputs, as those of the linear operation, over taps and inputs.
 * With AMX tiles the inputs are cut into 32s and all taps of 32 inputs stand together; else all
 * inputs of a tap do, and each tap is a product of its own that adds to the sums.
 */
#include "tensor/cpu/cpu.h"

#include "base/error.h"

#include <string.h>

enum {
    X_BYTES = 1 << 20,       /* of x that are walked for each pair of panels */
    SMALL_WEIGHTS = 1 << 19, /* bytes that stay in the second-level cache beside some rows */
    SMALL_ROWS = 512,
    GENERIC_ROWS = 256,
    SUM_BYTES = 1 << 19, /* of a generic piece: they stay in the second-level cache between taps */
    PIECES_PER_THREAD = 4, /* so that threads finish together */
};

struct cs_convolution {
    int64_t outputs, inputs, kernel;
    int64_t depth; /* inputs as stored: in bf16, zeros up to a multiple of 32 */
    int64_t n_panels;
    size_t panel_bytes;
    bool in_tiles; /* for kernels->convolve_bf16 */
    cs_dtype dtype;
    const float *bias; /* [n_panels * 16], behind the weights */
    void *data;
    size_t size_bytes;
};

/* ---- Packing ---- */

typedef struct {
    const cs_cpu *cpu;
    cs_convolution *c;
    const float *values; /* [outputs, kernel, inputs] */
} pack_job;

/* Where input i of tap k stands among the inner elements of a panel. */
static int64_t inner_index(const cs_convolution *c, int64_t k, int64_t i)
{
    if (c->in_tiles)
        return (i / CS_K_ALIGN * c->kernel + k) * CS_K_ALIGN + i % CS_K_ALIGN;
    return k * c->depth + i;
}

static void pack_panel(void *data, int64_t panel, uint32_t thread)
{
    const pack_job *job = data;
    const cs_convolution *c = job->c;
    char *out = (char *)c->data + (size_t)panel * c->panel_bytes;
    int64_t first = panel * CS_PANEL, n = cs_min(CS_PANEL, c->outputs - first);
    memset(out, 0, c->panel_bytes);
    for (int64_t k = 0; k < c->kernel; k++) {
        for (int64_t i = 0; i < c->inputs; i++) {
            float column[CS_PANEL] = {0};
            uint16_t halves[CS_PANEL];
            for (int64_t o = 0; o < n; o++)
                column[o] = job->values[((first + o) * c->kernel + k) * c->inputs + i];
            int64_t at = inner_index(c, k, i);
            if (c->dtype == CS_DTYPE_F32) {
                memcpy((float *)out + at * CS_PANEL, column, sizeof column);
                continue;
            }
            job->cpu->kernels->to_bf16(CS_PANEL, halves, column);
            uint16_t *pairs = (uint16_t *)out + at / 2 * 2 * CS_PANEL + at % 2;
            for (int o = 0; o < CS_PANEL; o++)
                pairs[2 * o] = halves[o];
        }
    }
}

cs_convolution *cs_cpu_convolution_new(cs_compute *compute, cs_dtype dtype,
                                       const cs_convolution_shape *shape, const float *values,
                                       const float *bias, GError **error)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    bool half = dtype == CS_DTYPE_BF16;
    cs_convolution *c = g_new0(cs_convolution, 1);
    *c = (cs_convolution){
        .outputs = shape->outputs,
        .inputs = shape->inputs,
        .kernel = shape->kernel,
        .depth = half ? cs_round_up(shape->inputs, CS_K_ALIGN) : shape->inputs,
        .in_tiles = half && cpu->kernels->convolve_bf16,
        .dtype = dtype,
    };
    c->n_panels = (c->outputs + CS_PANEL - 1) / CS_PANEL;
    if (c->in_tiles)
        c->n_panels = cs_round_up(c->n_panels, 2);
    c->panel_bytes = (size_t)(c->kernel * c->depth * CS_PANEL) * cs_dtype_size_bytes(dtype);
    size_t weights = (size_t)c->n_panels * c->panel_bytes;
    size_t biases = (size_t)(c->n_panels * CS_PANEL) * sizeof(float);
    c->size_bytes = weights + biases;
    c->data = compute->backend->alloc(c->size_bytes);
    if (!c->data) {
        cs_fail(error, CS_ERROR_FAILED, "no memory for %zu bytes of weights", c->size_bytes);
        g_free(c);
        return NULL;
    }
    float *stored = (float *)((char *)c->data + weights);
    memset(stored, 0, biases);
    if (bias)
        memcpy(stored, bias, (size_t)c->outputs * sizeof *bias);
    c->bias = stored;
    pack_job job = {.cpu = cpu, .c = c, .values = values};
    cs_pool_run(cpu->pool, c->n_panels, pack_panel, &job);
    return c;
}

void cs_cpu_convolution_free(cs_convolution *convolution)
{
    cs_backend_cpu.release(convolution->data, convolution->size_bytes);
    g_free(convolution);
}

size_t cs_cpu_convolution_bytes(const cs_convolution *convolution)
{
    return convolution->size_bytes;
}

cs_convolution_shape cs_convolution_shape_of(const cs_convolution *c)
{
    return (cs_convolution_shape){c->outputs, c->inputs, c->kernel};
}

/* ---- The operation ---- */

typedef struct {
    const cs_cpu *cpu;
    const cs_convolution *c;
    const cs_tensor *y, *x;
    const cs_convolve_options *options;
    cs_product *product;
    int64_t row_block, panels_per_piece, n_panel_pieces;
} convolve_job;

/* The generic way: sums of the piece in scratch, a product for each tap. */
static void add_taps(const convolve_job *job, const cs_convolution_block *b, float *sums)
{
    const cs_convolution *c = job->c;
    const cs_kernels *kernels = job->cpu->kernels;
    int64_t width = b->n_panels * CS_PANEL;
    size_t element = cs_dtype_size_bytes(job->x->dtype), stored = cs_dtype_size_bytes(c->dtype);
    int64_t inner = job->x->dtype == CS_DTYPE_F32 ? c->inputs : c->depth;
    for (int64_t k = 0; k < c->kernel; k++)
        job->product(b->rows, b->n_panels, inner,
                     (const char *)b->x + (size_t)(k * b->tap_stride) * element, b->x_stride,
                     (const char *)b->weights + (size_t)(k * c->depth * CS_PANEL) * stored,
                     b->panel_bytes, sums, width, k > 0);
    if (kernels->leave)
        kernels->leave();
    for (int64_t r = 0; r < b->rows; r++) {
        float *sum = sums + r * width, *y = b->y + r * b->y_stride;
        kernels->add(b->n_outputs, sum, b->bias);
        if (b->residual)
            kernels->add(b->n_outputs, sum, b->residual + r * b->residual_stride);
        kernels->blend(b->n_outputs, y, b->accumulate ? 1.0f : 0.0f, sum, b->scale);
    }
}

static void convolve_piece(void *data, int64_t index, uint32_t thread)
{
    const convolve_job *job = data;
    const cs_convolution *c = job->c;
    const cs_tensor *x = job->x, *y = job->y, *residual = job->options->residual;
    int64_t row = index / job->n_panel_pieces * job->row_block;
    int64_t panel = index % job->n_panel_pieces * job->panels_per_piece, first = panel * CS_PANEL;
    size_t element = cs_dtype_size_bytes(x->dtype);
    int64_t room = y->pad >= cs_round_up(c->outputs, CS_PANEL) - c->outputs &&
                           (!residual || residual->pad >= y->pad)
                       ? cs_round_up(c->outputs, CS_PANEL)
                       : c->outputs;
    cs_convolution_block block = {
        .rows = cs_min(job->row_block, y->rows - row),
        .kernel = c->kernel,
        .depth = c->depth,
        .x = (const char *)x->data + (size_t)(row * x->stride) * element,
        .x_stride = x->stride,
        .tap_stride = job->options->dilation * x->stride,
        .weights = (const char *)c->data + (size_t)panel * c->panel_bytes,
        .panel_bytes = c->panel_bytes,
        .n_panels = cs_min(job->panels_per_piece, c->n_panels - panel),
        .bias = c->bias + first,
        .residual =
            residual ? (const float *)residual->data + row * residual->stride + first : NULL,
        .residual_stride = residual ? residual->stride : 0,
        .scale = job->options->scale != 0 ? job->options->scale : 1.0f,
        .accumulate = job->options->accumulate,
        .y = (float *)y->data + row * y->stride + first,
        .y_stride = y->stride,
    };
    block.n_outputs = cs_min(block.n_panels * CS_PANEL, room - first);
    if (c->in_tiles)
        job->cpu->kernels->convolve_bf16(&block);
    else
        add_taps(job, &block, cs_cpu_thread_scratch(job->cpu, thread));
}

/* Large weights pass once over as many rows as the second-level cache holds; small ones stay there
 * themselves, over rows that stay in the first. */
static int64_t choose_row_block(const cs_convolution *c, int64_t rows)
{
    if (!c->in_tiles)
        return GENERIC_ROWS;
    int64_t most = (size_t)c->n_panels * c->panel_bytes <= SMALL_WEIGHTS
                       ? SMALL_ROWS
                       : X_BYTES / (int64_t)sizeof(uint16_t) / c->depth;
    int64_t n = (rows + most - 1) / most;
    return cs_round_up((rows + n - 1) / n, 32);
}

void cs_cpu_convolve(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                     const cs_convolution *convolution, const cs_convolve_options *options)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    const cs_convolution *c = convolution;
    const cs_kernels *kernels = cpu->kernels;
    convolve_job job = {.cpu = cpu, .c = c, .y = y, .x = x, .options = options};
    job.product = c->dtype == CS_DTYPE_F32    ? kernels->product_f32
                  : x->dtype == CS_DTYPE_BF16 ? kernels->product_bf16
                                              : kernels->product_f32_bf16;
    job.row_block = choose_row_block(c, y->rows);
    int64_t row_blocks = (y->rows + job.row_block - 1) / job.row_block;
    int64_t n_threads = cs_pool_n_threads(cpu->pool);
    int64_t wanted = n_threads == 1 ? 1 : n_threads * PIECES_PER_THREAD;
    int64_t splits = (wanted + row_blocks - 1) / row_blocks;
    job.panels_per_piece = cs_round_up((c->n_panels + splits - 1) / splits, 2);
    int64_t most = SUM_BYTES / (job.row_block * CS_PANEL * (int64_t)sizeof(float));
    if (!c->in_tiles)
        job.panels_per_piece = cs_min(job.panels_per_piece, most);
    job.n_panel_pieces = (c->n_panels + job.panels_per_piece - 1) / job.panels_per_piece;
    size_t sum_bytes = (size_t)(job.row_block * job.panels_per_piece * CS_PANEL) * sizeof(float);
    if (c->in_tiles || cs_cpu_reserve_thread_scratch(cpu, sum_bytes))
        cs_pool_run(cpu->pool, row_blocks * job.n_panel_pieces, convolve_piece, &job);
}
