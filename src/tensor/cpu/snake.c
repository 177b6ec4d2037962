/* BigVGAN's anti-aliased activation, in pieces of rows with the doubled rate in thread scratch.
 *
 * With taps f[0..11] and q over rows, u[n] = 2 sum_q x[q] f[n + 5 - 2 q] is x at twice the rate,
 * a = snake(u), and y[t] = sum_j f[j] a[2 t - 5 + j]. Indices beyond an end stand for the end.
 */
#include "tensor/cpu/cpu.h"

#include <string.h>

enum {
    TAPS = CS_SNAKE_TAPS,
    SIDE = TAPS / 2 - 1,   /* of a, before row 2 t */
    PIECE_BYTES = 96 << 10 /* of a: stays in the second-level cache */
};

typedef struct {
    const cs_cpu *cpu;
    const cs_tensor *y, *x;
    int64_t width;      /* columns, padded to the kernels' 16 */
    bool padded;        /* x and y have room for the width */
    const float *alpha; /* [width], padded with zeros */
    const float *inverse_beta;
    float even[TAPS / 2], odd[TAPS / 2]; /* factors of u[2t], u[2t + 1] */
    float down[TAPS];
    int64_t piece_rows;
} snake_job;

static int64_t clamp(int64_t i, int64_t n)
{
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

static const float *x_row(const snake_job *job, int64_t row, float *copies)
{
    const float *x = (const float *)job->x->data + clamp(row, job->x->rows) * job->x->stride;
    if (job->padded)
        return x;
    memcpy(copies, x, (size_t)job->x->cols * sizeof *x);
    memset(copies + job->x->cols, 0, (size_t)(job->width - job->x->cols) * sizeof *x);
    return copies;
}

/* Row n of a. u[2t] reads rows t-3..t+2 through f[11], f[9], ...; u[2t+1] rows t-2..t+3 through
 * f[10], f[8], ... */
static void activate_row(const snake_job *job, int64_t n, float *out, float *copies)
{
    const cs_kernels *kernels = job->cpu->kernels;
    bool odd = n % 2 != 0;
    const float *rows[TAPS / 2];
    for (int i = 0; i < TAPS / 2; i++)
        rows[i] = x_row(job, n / 2 - (odd ? 2 : 3) + i, copies + i * job->width);
    kernels->weigh_rows(job->width, out, TAPS / 2, odd ? job->odd : job->even, rows);
    kernels->snake(job->width, out, job->alpha, job->inverse_beta);
}

static void snake_piece(void *data, int64_t index, uint32_t thread)
{
    const snake_job *job = data;
    int64_t first = index * job->piece_rows, width = job->width;
    int64_t end = cs_min(first + job->piece_rows, job->x->rows), n_fine = 2 * job->x->rows;
    float *copies = cs_cpu_thread_scratch(job->cpu, thread);
    float *out = copies + TAPS / 2 * width, *fine = out + width;
    int64_t from = clamp(2 * first - SIDE, n_fine),
            to = clamp(2 * end - 2 - SIDE + TAPS - 1, n_fine);
    for (int64_t n = from; n <= to; n++)
        activate_row(job, n, fine + (n - from) * width, copies);
    for (int64_t t = first; t < end; t++) {
        const float *rows[TAPS];
        for (int j = 0; j < TAPS; j++)
            rows[j] = fine + (clamp(2 * t - SIDE + j, n_fine) - from) * width;
        float *y = (float *)job->y->data + t * job->y->stride;
        job->cpu->kernels->weigh_rows(width, job->padded ? y : out, TAPS, job->down, rows);
        if (!job->padded)
            memcpy(y, out, (size_t)job->y->cols * sizeof *y);
    }
}

/* [1, n] padded with zeros in the workspace; NULL when there is no memory. */
static const float *pad_vector(cs_compute *compute, const cs_tensor *v, int64_t width)
{
    cs_tensor padded = cs_compute_scratch(compute, CS_DTYPE_F32, 1, width);
    if (!padded.data)
        return NULL;
    memset(padded.data, 0, (size_t)width * sizeof(float));
    return memcpy(padded.data, v->data, (size_t)v->cols * sizeof(float));
}

void cs_cpu_snake(cs_compute *compute, const cs_tensor *y, const cs_tensor *x,
                  const cs_tensor *alpha, const cs_tensor *inverse_beta, const float *filter)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    size_t mark = cs_compute_mark(compute);
    int64_t width = cs_round_up(x->cols, CS_PANEL), extra = width - x->cols;
    snake_job job = {.cpu = cpu, .y = y, .x = x, .width = width};
    /* The columns of the padding are zeros, and the activation makes zeros of them. */
    job.padded = x->pad >= extra && y->pad >= extra;
    job.alpha = pad_vector(compute, alpha, width);
    job.inverse_beta = pad_vector(compute, inverse_beta, width);
    for (int i = 0; i < TAPS / 2; i++) {
        job.even[i] = 2.0f * filter[TAPS - 1 - 2 * i];
        job.odd[i] = 2.0f * filter[TAPS - 2 - 2 * i];
    }
    memcpy(job.down, filter, sizeof job.down);
    job.piece_rows = MAX(8, PIECE_BYTES / 2 / width / (int64_t)sizeof(float));
    int64_t rows = 2 * job.piece_rows + TAPS + TAPS / 2 + 1;
    if (job.alpha && job.inverse_beta &&
        cs_cpu_reserve_thread_scratch(cpu, (size_t)(rows * width) * sizeof(float)))
        cs_pool_run(cpu->pool, (x->rows + job.piece_rows - 1) / job.piece_rows, snake_piece, &job);
    cs_compute_release(compute, mark);
}
