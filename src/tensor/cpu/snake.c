/* BigVGAN's anti-aliased activation, cut into blocks of rows for the threads; in each the kernel
 * goes over 16 columns at a time. */
#include "tensor/cpu/cpu.h"

#include <math.h>
#include <string.h>

enum { HALF = CS_SNAKE_TAPS / 2 };

typedef struct {
    const cs_cpu *cpu;
    const cs_tensor *y, *x;
    bool padded;        /* x and y have room for whole panels */
    const float *turns; /* [cols], zeros up to whole panels */
    const float *inverse_beta;
    float even[HALF], odd[HALF]; /* factors of u[2t], u[2t + 1] */
    float down[CS_SNAKE_TAPS];
} snake_job;

static void snake_piece(void *data, int64_t index, uint32_t thread)
{
    const snake_job *job = data;
    int64_t first = index * CS_SNAKE_ROWS, end = cs_min(first + CS_SNAKE_ROWS, job->x->rows);
    size_t element = cs_dtype_size_bytes(job->y->dtype);
    for (int64_t i = 0; i < job->x->cols; i += CS_PANEL) {
        const cs_snake_columns columns = {
            .x = (const float *)job->x->data + i,
            .n_rows = job->x->rows,
            .x_stride = job->x->stride,
            .y = (char *)job->y->data + (size_t)i * element,
            .y_stride = job->y->stride,
            .to_bf16 = job->y->dtype == CS_DTYPE_BF16,
            .n_columns = job->padded ? CS_PANEL : (int)cs_min(CS_PANEL, job->x->cols - i),
            .turns = job->turns + i,
            .inverse_beta = job->inverse_beta + i,
            .even = job->even,
            .odd = job->odd,
            .down = job->down,
        };
        job->cpu->kernels->snake(&columns, first, end);
    }
}

/* [1, n] times a factor, padded with zeros in the workspace; NULL when there is no memory. */
static const float *pad_vector(cs_compute *compute, const cs_tensor *v, double factor)
{
    int64_t width = cs_round_up(v->cols, CS_PANEL);
    cs_tensor padded = cs_compute_scratch(compute, CS_DTYPE_F32, 1, width);
    if (!padded.data)
        return NULL;
    float *to = memset(padded.data, 0, (size_t)width * sizeof(float));
    for (int64_t i = 0; i < v->cols; i++)
        to[i] = (float)(((const float *)v->data)[i] * factor);
    return to;
}

void cs_cpu_snake(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                  const cs_tensor *alpha, const cs_tensor *inverse_beta, const float *filter)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    size_t mark = cs_compute_mark(compute);
    int64_t extra = cs_round_up(x->cols, CS_PANEL) - x->cols;
    snake_job job = {.cpu = cpu, .y = y, .x = x};
    /* The columns of the padding are zeros, and the activation makes zeros of them. */
    job.padded = x->pad >= extra && y->pad >= extra;
    job.turns = pad_vector(compute, alpha, 1 / M_PI);
    job.inverse_beta = pad_vector(compute, inverse_beta, 1);
    for (int i = 0; i < HALF; i++) {
        job.even[i] = 2.0f * filter[CS_SNAKE_TAPS - 1 - 2 * i];
        job.odd[i] = 2.0f * filter[CS_SNAKE_TAPS - 2 - 2 * i];
    }
    memcpy(job.down, filter, sizeof job.down);
    if (job.turns && job.inverse_beta)
        cs_pool_run(cpu->pool, (x->rows + CS_SNAKE_ROWS - 1) / CS_SNAKE_ROWS, snake_piece, &job);
    cs_compute_release(compute, mark);
}
