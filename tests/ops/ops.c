/* Ops conformance: every operation on every instruction set this CPU has, f32 and bf16, over
 * awkward shapes, against plain loops in double precision; and that results do not depend on how
 * many rows are computed.
 *
 * Limits are relative to the largest magnitude of the expected output. f32: rounding of sums of at
 * most a few thousand terms. bf16: inputs are rounded to bf16 before both sides compute, so that
 * what remains is the rounding of sums, and of probabilities in attention. A planted fault
 * (test_limits_bite) exceeds them.
 */
#include "tensor/compute.h"

#include <math.h>
#include <string.h>

static const double LIMIT_F32 = 3e-6;
static const double LIMIT_BF16_SUM = 3e-6;      /* exact inputs, f32 sums */
static const double LIMIT_BF16_OUTPUT = 4.5e-3; /* outputs rounded to bf16 */
static const double LIMIT_ATTENTION_BF16 =
    1.2e-2; /* scaled queries and probabilities rounded to bf16 */

static const char *const isas[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};

static uint64_t random_state = 88172645463325252u;

static float uniform(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (float)(int32_t)(random_state >> 32) / 2147483648.0f;
}

static float *random_floats(int64_t n)
{
    float *x = g_new(float, n);
    for (int64_t i = 0; i < n; i++)
        x[i] = uniform();
    return x;
}

static float round_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void round_all(int64_t n, float *x)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = round_bf16(x[i]);
}

/* Largest difference over the largest expected magnitude. */
static double error_of(int64_t n, const float *got, const double *expected)
{
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs(got[i] - expected[i]);
        worst = isnan(got[i]) ? INFINITY : fmax(worst, d);
        scale = fmax(scale, fabs(expected[i]));
    }
    return worst / scale;
}

static cs_compute *open_isa(const char *isa, uint32_t n_threads)
{
    cs_compute_options options = {.n_threads = n_threads, .isa = isa};
    return cs_compute_new(&options, NULL);
}

static cs_tensor upload(cs_compute *c, const float *x, int64_t rows, int64_t cols)
{
    cs_tensor t = cs_compute_scratch(c, CS_DTYPE_F32, rows, cols);
    cs_tensor_write(c, &t, x);
    return t;
}

static float *download(cs_compute *c, const cs_tensor *t)
{
    float *x = g_new(float, t->rows * t->cols);
    cs_tensor f32 = *t;
    if (t->dtype != CS_DTYPE_F32) {
        f32 = cs_compute_scratch(c, CS_DTYPE_F32, t->rows, t->cols);
        cs_op_copy(c, &f32, t);
    }
    cs_tensor_read(c, x, &f32);
    g_autoptr(GError) error = NULL;
    g_assert_true(cs_compute_sync(c, &error));
    return x;
}

typedef struct {
    const char *isa;
    cs_compute *c;
    cs_dtype dtype; /* of weights */
} fixture;

/* ---- linear ---- */

static double gelu(double x)
{
    return 0.5 * x * (1 + erf(x / sqrt(2)));
}

static double gelu_tanh(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / G_PI) * (x + 0.044715 * x * x * x)));
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double activate(cs_activation a, double x)
{
    return a == CS_ACTIVATION_GELU        ? gelu(x)
           : a == CS_ACTIVATION_GELU_TANH ? gelu_tanh(x)
           : a == CS_ACTIVATION_SILU      ? silu(x)
                                          : x;
}

static double dot(int64_t k, const float *a, const float *b)
{
    double s = 0;
    for (int64_t i = 0; i < k; i++)
        s += (double)a[i] * b[i];
    return s;
}

static void check_linear(const fixture *f, int64_t m, int64_t k, int64_t n,
                         const cs_linear_options *options, bool with_bias)
{
    g_autofree float *x = random_floats(m * k), *w = random_floats(n * k), *b = random_floats(n);
    g_autofree float *y0 = random_floats(m * n);
    if (f->dtype == CS_DTYPE_BF16) {
        round_all(m * k, x);
        round_all(n * k, w);
    }
    cs_parameters *p = cs_parameters_new(f->c);
    /* Two parts, to see that they are joined. */
    int64_t first = n / 3;
    cs_weight_part parts[] = {{w, CS_DTYPE_F32, first}, {w + first * k, CS_DTYPE_F32, n - first}};
    const cs_weight *weight = cs_parameters_matrix(p, f->dtype, k, 2, parts, NULL);
    cs_tensor bias = cs_parameters_tensor(p, b, CS_DTYPE_F32, 1, n, NULL);
    cs_linear_options with = *options;
    with.bias = with_bias ? &bias : NULL;
    cs_tensor tx = upload(f->c, x, m, k), ty = upload(f->c, y0, m, n);
    cs_op_linear(f->c, &ty, &tx, weight, &with);
    g_autofree float *y = download(f->c, &ty);

    g_autofree double *expected = g_new(double, m *n);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double v = dot(k, x + i * k, w + j * k) + (with_bias ? b[j] : 0) +
                       (with.accumulate ? y0[i * n + j] : 0);
            expected[i * n + j] = activate(with.activation, v);
        }
    g_assert_cmpfloat(error_of(m * n, y, expected), <,
                      f->dtype == CS_DTYPE_BF16 ? LIMIT_BF16_SUM : LIMIT_F32);

    if (!with.accumulate) {
        cs_tensor th = cs_compute_scratch(f->c, CS_DTYPE_BF16, m, n);
        cs_op_linear(f->c, &th, &tx, weight, &with);
        g_autofree float *h = download(f->c, &th);
        g_assert_cmpfloat(error_of(m * n, h, expected), <, LIMIT_BF16_OUTPUT);
    }

    /* Row by row gives the same bits. */
    for (int64_t i = 0; i < m; i += 1 + m / 5) {
        cs_tensor one_y = upload(f->c, y0 + i * n, 1, n), one_x = cs_tensor_rows(&tx, i, 1);
        cs_op_linear(f->c, &one_y, &one_x, weight, &with);
        g_autofree float *one = download(f->c, &one_y);
        g_assert_cmpmem(one, (size_t)n * sizeof *one, y + i * n, (size_t)n * sizeof *y);
    }
    cs_parameters_free(p);
    cs_compute_release(f->c, 0);
}

static void test_linear(const void *data)
{
    const fixture *f = data;
    static const int64_t shapes[][3] = {
        {1, 1, 1},     {1, 64, 64},     {2, 33, 17},    {7, 100, 50},  {16, 96, 129}, {31, 31, 31},
        {33, 256, 80}, {64, 1176, 160}, {65, 2500, 48}, {530, 70, 36}, {5, 1500, 96}};
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        const int64_t *s = shapes[i];
        check_linear(f, s[0], s[1], s[2], &(cs_linear_options){0}, false);
        check_linear(f, s[0], s[1], s[2], &(cs_linear_options){.accumulate = true}, true);
        check_linear(f, s[0], s[1], s[2], &(cs_linear_options){.activation = CS_ACTIVATION_GELU},
                     true);
    }
    check_linear(f, 9, 40, 48, &(cs_linear_options){.activation = CS_ACTIVATION_GELU_TANH}, true);
    check_linear(f, 9, 40, 48, &(cs_linear_options){.activation = CS_ACTIVATION_SILU}, true);
}

static void test_gated(const void *data)
{
    const fixture *f = data;
    static const int64_t shapes[][3] = {{1, 64, 64}, {3, 33, 17}, {40, 100, 50}, {17, 1100, 342}};
    for (size_t s = 0; s < G_N_ELEMENTS(shapes); s++) {
        int64_t m = shapes[s][0], k = shapes[s][1], n = shapes[s][2];
        g_autofree float *x = random_floats(m * k), *g = random_floats(n * k),
                         *u = random_floats(n * k);
        g_autofree float *b = random_floats(2 * n);
        if (f->dtype == CS_DTYPE_BF16) {
            round_all(m * k, x);
            round_all(n * k, g);
            round_all(n * k, u);
        }
        cs_parameters *p = cs_parameters_new(f->c);
        const cs_weight *weight =
            cs_parameters_gated(p, f->dtype, k, &(cs_weight_part){g, CS_DTYPE_F32, n},
                                &(cs_weight_part){u, CS_DTYPE_F32, n}, NULL);
        cs_tensor bias = cs_parameters_tensor(p, b, CS_DTYPE_F32, 2, n, NULL);
        cs_tensor tx = upload(f->c, x, m, k), ty = cs_compute_scratch(f->c, CS_DTYPE_F32, m, n);
        cs_op_linear(f->c, &ty, &tx, weight, &(cs_linear_options){.bias = &bias});
        g_autofree float *y = download(f->c, &ty);
        g_autofree double *expected = g_new(double, m *n);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++)
                expected[i * n + j] = silu(dot(k, x + i * k, g + j * k) + b[j]) *
                                      (dot(k, x + i * k, u + j * k) + b[n + j]);
        g_assert_cmpfloat(error_of(m * n, y, expected), <, LIMIT_F32);
        cs_parameters_free(p);
        cs_compute_release(f->c, 0);
    }
}

/* bf16 and f16 checkpoints are packed without a detour that changes values. */
static void test_source_dtypes(const void *data)
{
    const fixture *f = data;
    enum { N = 35, K = 46 };
    static const uint16_t halves[] = {0x0000, 0x8000, 0x3c00, 0xbc00, 0x0001,
                                      0x03ff, 0x0400, 0x7bff, 0x3555};
    static const float values[] = {0.0f,       -0.0f,    1.0f,     -1.0f,      0x1p-24f,
                                   0x3ffp-24f, 0x1p-14f, 65504.0f, 0.33325195f};
    uint16_t f16[N * K], bf16[N * K];
    float expect_f16[N * K], expect_bf16[N * K];
    for (int i = 0; i < N * K; i++) {
        f16[i] = halves[i % 9];
        expect_f16[i] = values[i % 9];
        expect_bf16[i] = round_bf16(uniform());
        uint32_t bits;
        memcpy(&bits, expect_bf16 + i, sizeof bits);
        bf16[i] = (uint16_t)(bits >> 16);
    }
    /* Multiplying by unit vectors shows every weight. */
    float eye[K * K] = {0};
    for (int i = 0; i < K; i++)
        eye[i * K + i] = 1.0f;
    cs_parameters *p = cs_parameters_new(f->c);
    cs_tensor x = upload(f->c, eye, K, K), y = cs_compute_scratch(f->c, CS_DTYPE_F32, K, N);
    const cs_weight *w =
        cs_parameters_matrix(p, f->dtype, K, 1, &(cs_weight_part){bf16, CS_DTYPE_BF16, N}, NULL);
    cs_op_linear(f->c, &y, &x, w, NULL);
    g_autofree float *got = download(f->c, &y);
    for (int i = 0; i < N * K; i++)
        g_assert_cmpfloat(got[i % K * N + i / K], ==, expect_bf16[i]);
    if (f->dtype == CS_DTYPE_F32) {
        w = cs_parameters_matrix(p, f->dtype, K, 1, &(cs_weight_part){f16, CS_DTYPE_F16, N}, NULL);
        cs_op_linear(f->c, &y, &x, w, NULL);
        g_autofree float *got16 = download(f->c, &y);
        for (int i = 0; i < N * K; i++)
            g_assert_cmpfloat(got16[i % K * N + i / K], ==, expect_f16[i]);
    }
    cs_parameters_free(p);
    cs_compute_release(f->c, 0);
}

/* ---- rows ---- */

static void test_norms(const void *data)
{
    const fixture *f = data;
    static const int64_t shapes[][2] = {{1, 1}, {3, 15}, {5, 16}, {70, 130}, {2, 5000}};
    for (size_t s = 0; s < G_N_ELEMENTS(shapes); s++) {
        int64_t m = shapes[s][0], n = shapes[s][1];
        g_autofree float *x = random_floats(m * n), *w = random_floats(n), *b = random_floats(n);
        g_autofree double *rms = g_new(double, m *n), *layer = g_new(double, m *n);
        for (int64_t i = 0; i < m; i++) {
            double square = 0, mean = 0, variance = 0;
            for (int64_t j = 0; j < n; j++) {
                square += (double)x[i * n + j] * x[i * n + j] / (double)n;
                mean += x[i * n + j] / (double)n;
            }
            for (int64_t j = 0; j < n; j++)
                variance += (x[i * n + j] - mean) * (x[i * n + j] - mean) / (double)n;
            for (int64_t j = 0; j < n; j++) {
                rms[i * n + j] = x[i * n + j] / sqrt(square + 1e-6) * w[j];
                layer[i * n + j] = (x[i * n + j] - mean) / sqrt(variance + 1e-5) * w[j] + b[j];
            }
        }
        cs_parameters *p = cs_parameters_new(f->c);
        cs_tensor tw = cs_parameters_tensor(p, w, CS_DTYPE_F32, 1, n, NULL);
        cs_tensor tb = cs_parameters_tensor(p, b, CS_DTYPE_F32, 1, n, NULL);
        cs_tensor tx = upload(f->c, x, m, n);
        for (int half = 0; half < 2; half++) {
            cs_tensor ty = cs_compute_scratch(f->c, half ? CS_DTYPE_BF16 : CS_DTYPE_F32, m, n);
            double limit = half ? LIMIT_BF16_OUTPUT : LIMIT_F32;
            cs_op_rms_norm(f->c, &ty, &tx, &tw, 1e-6f);
            g_autofree float *y = download(f->c, &ty);
            g_assert_cmpfloat(error_of(m * n, y, rms), <, limit);
            if (n == 1)
                continue; /* a single value has no variance: its norm is the bias and rounding noise
                           */
            cs_op_layer_norm(f->c, &ty, &tx, &tw, &tb, 1e-5f);
            g_autofree float *z = download(f->c, &ty);
            g_assert_cmpfloat(error_of(m * n, z, layer), <, limit);
        }
        cs_parameters_free(p);
        cs_compute_release(f->c, 0);
    }
}

static void test_rope(const void *data)
{
    const fixture *f = data;
    enum { M = 37, HEADS = 3, DIM = 20 };
    g_autofree float *x = random_floats(M * HEADS * DIM), *table = random_floats(M * DIM);
    g_autofree double *expected = g_new(double, M *HEADS *DIM);
    round_all(M * HEADS * DIM, x);
    for (int i = 0; i < M * HEADS; i++)
        for (int j = 0; j < DIM / 2; j++) {
            const float *t = table + i / HEADS * DIM;
            double a = x[i * DIM + j], b = x[i * DIM + j + DIM / 2], c = t[j], s = t[j + DIM / 2];
            expected[i * DIM + j] = a * c - b * s;
            expected[i * DIM + j + DIM / 2] = b * c + a * s;
        }
    cs_tensor tx = upload(f->c, x, M, HEADS * DIM), tt = upload(f->c, table, M, DIM);
    cs_tensor half = cs_compute_scratch(f->c, CS_DTYPE_BF16, M, HEADS * DIM);
    cs_op_copy(f->c, &half, &tx);
    cs_op_rope(f->c, &tx, &tt, DIM);
    g_autofree float *y = download(f->c, &tx);
    g_assert_cmpfloat(error_of(M * HEADS * DIM, y, expected), <, LIMIT_F32);
    cs_op_rope(f->c, &half, &tt, DIM);
    g_autofree float *h = download(f->c, &half);
    g_assert_cmpfloat(error_of(M * HEADS * DIM, h, expected), <, LIMIT_BF16_OUTPUT);
    cs_compute_release(f->c, 0);
}

static void test_moves(const void *data)
{
    const fixture *f = data;
    enum { ROWS = 23, C = 19, KERNEL = 3 };
    g_autofree float *x = random_floats(ROWS * C);
    cs_tensor tx = upload(f->c, x, ROWS, C);

    for (int stride = 1; stride <= 2; stride++) {
        int64_t out = (ROWS + 2 - KERNEL) / stride + 1;
        cs_tensor columns = cs_compute_scratch(f->c, CS_DTYPE_F32, out, KERNEL * C);
        cs_op_im2col(f->c, &columns, &tx, KERNEL, stride, 1, 1);
        g_autofree float *y = download(f->c, &columns);
        for (int64_t i = 0; i < out * KERNEL * C; i++) {
            int64_t source = i / (KERNEL * C) * stride - 1 + i % (KERNEL * C) / C;
            g_assert_cmpfloat(y[i], ==,
                              source < 0 || source >= ROWS ? 0.0f : x[source * C + i % C]);
        }
    }

    cs_tensor means = cs_compute_scratch(f->c, CS_DTYPE_F32, ROWS / 2, C);
    cs_op_mean_rows(f->c, &means, &tx, 2);
    g_autofree float *m = download(f->c, &means);
    for (int i = 0; i < ROWS / 2 * C; i++)
        g_assert_cmpfloat_with_epsilon(
            m[i], (x[i / C * 2 * C + i % C] + x[(i / C * 2 + 1) * C + i % C]) / 2, 1e-7);

    static const int32_t ids[] = {22, 0, 7, 7};
    cs_tensor picked = cs_compute_scratch(f->c, CS_DTYPE_F32, 4, C);
    cs_op_gather(f->c, &picked, &tx, ids);
    g_autofree float *g = download(f->c, &picked);
    for (int i = 0; i < 4; i++)
        g_assert_cmpmem(g + i * C, C * sizeof *g, x + ids[i] * C, C * sizeof *x);

    cs_tensor table = cs_tensor_rows(&tx, 0, 5), sum = upload(f->c, x, ROWS, C);
    cs_op_add(f->c, &sum, &table);
    g_autofree float *a = download(f->c, &sum);
    for (int i = 0; i < ROWS * C; i++)
        g_assert_cmpfloat(a[i], ==, x[i] + x[i % (5 * C)]);
    cs_compute_release(f->c, 0);
}

/* ---- attention ---- */

/* One head's row: q against keys 0 ... n - 1, rows `stride` apart. */
static void attend(int64_t dim, int64_t n, const float *q, const float *k, const float *v,
                   int64_t stride, double scale, double *out)
{
    g_autofree double *p = g_new(double, n);
    double highest = -INFINITY, total = 0;
    for (int64_t i = 0; i < n; i++)
        highest = fmax(highest, p[i] = dot(dim, q, k + i * stride) * scale);
    for (int64_t i = 0; i < n; i++)
        total += p[i] = exp(p[i] - highest);
    for (int64_t j = 0; j < dim; j++) {
        out[j] = 0;
        for (int64_t i = 0; i < n; i++)
            out[j] += p[i] / total * v[i * stride + j];
    }
}

static void test_attention_segments(const void *data)
{
    const fixture *f = data;
    static const int32_t starts[] = {0, 1, 33, 97, 97, 400};
    enum { SEGMENTS = 5, N = 400, HEADS = 3 };
    static const int64_t dims[] = {16, 80, 20};
    for (size_t d = 0; d < G_N_ELEMENTS(dims); d++) {
        int64_t dim = dims[d], cols = HEADS * dim;
        g_autofree float *q = random_floats(N * cols), *k = random_floats(N * cols),
                         *v = random_floats(N * cols);
        for (int64_t i = 0; i < N * cols; i++)
            q[i] *= 8; /* peaked distributions */
        double scale = 1 / sqrt((double)dim);
        g_autofree double *expected = g_new(double, N *cols);
        for (int s = 0; s < SEGMENTS; s++)
            for (int64_t i = starts[s]; i < starts[s + 1]; i++)
                for (int64_t h = 0; h < HEADS; h++)
                    attend(dim, starts[s + 1] - starts[s], q + i * cols + h * dim,
                           k + starts[s] * cols + h * dim, v + starts[s] * cols + h * dim, cols,
                           scale, expected + i * cols + h * dim);
        cs_tensor tq = upload(f->c, q, N, cols), tk = upload(f->c, k, N, cols),
                  tv = upload(f->c, v, N, cols);
        cs_tensor out = cs_compute_scratch(f->c, CS_DTYPE_F32, N, cols);
        cs_op_attention_segments(f->c, &out, &tq, &tk, &tv,
                                 &(cs_segment_attention){.n_heads = HEADS,
                                                         .head_dim = dim,
                                                         .scale = (float)scale,
                                                         .dtype = f->dtype,
                                                         .n_segments = SEGMENTS,
                                                         .starts = starts});
        g_autofree float *y = download(f->c, &out);
        g_assert_cmpfloat(error_of(N * cols, y, expected), <,
                          f->dtype == CS_DTYPE_F32 ? LIMIT_F32 : LIMIT_ATTENTION_BF16);
        cs_compute_release(f->c, 0);
    }
}

enum { PAGED_TOKENS = 300, KV_HEADS = 2, GROUP = 3, PAGED_DIM = 24, BLOCKS = 32 };

typedef struct {
    float *q, *k, *v;
    cs_kv_store *store;
    int32_t blocks[2][BLOCKS / 2];
} paged;

/* Runs tokens [from, to) of sequence 0, and with `neighbour` as many of sequence 1 in the same
 * batch. */
static float *paged_step(const fixture *f, paged *p, int from, int to, bool neighbour)
{
    int n = to - from, n_sequences = neighbour ? 2 : 1;
    enum { Q = KV_HEADS * GROUP * PAGED_DIM, K = KV_HEADS * PAGED_DIM };
    cs_tensor q = cs_compute_scratch(f->c, CS_DTYPE_F32, n * n_sequences, Q);
    cs_tensor k = cs_compute_scratch(f->c, CS_DTYPE_F32, n * n_sequences, K);
    cs_tensor v = cs_compute_scratch(f->c, CS_DTYPE_F32, n * n_sequences, K);
    cs_tensor out = cs_compute_scratch(f->c, CS_DTYPE_F32, n * n_sequences, Q);
    cs_kv_sequence sequences[2];
    for (int s = 0; s < n_sequences; s++) {
        cs_tensor rows = cs_tensor_rows(&q, s * n, n);
        cs_tensor_write(f->c, &rows, p->q + from * Q);
        rows = cs_tensor_rows(&k, s * n, n);
        cs_tensor_write(f->c, &rows, p->k + from * K);
        rows = cs_tensor_rows(&v, s * n, n);
        cs_tensor_write(f->c, &rows, p->v + from * K);
        sequences[s] =
            (cs_kv_sequence){.row = s * n, .n_new = n, .n_past = from, .blocks = p->blocks[s]};
    }
    cs_op_kv_write(f->c, p->store, 1, &k, &v, (uint32_t)n_sequences, sequences);
    cs_op_attention_paged(f->c, &out, &q, p->store, 1, 0.2f, (uint32_t)n_sequences, sequences);
    return download(f->c, &out);
}

static void test_attention_paged(const void *data)
{
    const fixture *f = data;
    enum { Q = KV_HEADS * GROUP * PAGED_DIM, K = KV_HEADS * PAGED_DIM };
    paged p = {.q = random_floats(PAGED_TOKENS * Q),
               .k = random_floats(PAGED_TOKENS * K),
               .v = random_floats(PAGED_TOKENS * K)};
    for (int i = 0; i < PAGED_TOKENS * Q; i++)
        p.q[i] *= 4;
    cs_kv_shape shape = {.n_blocks = BLOCKS,
                         .n_layers = 2,
                         .n_kv_heads = KV_HEADS,
                         .head_dim = PAGED_DIM,
                         .dtype = f->dtype};
    p.store = cs_kv_store_new(f->c, &shape, NULL);
    for (int i = 0; i < BLOCKS; i++)
        p.blocks[i % 2][i / 2] = (i * 7 + 3) % BLOCKS; /* scattered */

    g_autofree float *whole = paged_step(f, &p, 0, PAGED_TOKENS, false);
    g_autofree double *expected = g_new(double, PAGED_TOKENS *Q);
    for (int i = 0; i < PAGED_TOKENS; i++)
        for (int h = 0; h < KV_HEADS * GROUP; h++)
            attend(PAGED_DIM, i + 1, p.q + i * Q + h * PAGED_DIM, p.k + h / GROUP * PAGED_DIM,
                   p.v + h / GROUP * PAGED_DIM, K, 0.2f, expected + i * Q + h * PAGED_DIM);
    g_assert_cmpfloat(error_of(PAGED_TOKENS * Q, whole, expected), <,
                      f->dtype == CS_DTYPE_F32 ? LIMIT_F32 : LIMIT_ATTENTION_BF16);

    /* In chunks, with a neighbour, over blocks that held NaN: the same bits. */
    cs_kv_store *clean = p.store;
    p.store = cs_kv_store_new(f->c, &shape, NULL);
    g_autofree float *nan_rows = g_new(float, PAGED_TOKENS *Q);
    for (int i = 0; i < PAGED_TOKENS * Q; i++)
        nan_rows[i] = NAN;
    paged poison = p;
    poison.k = poison.v = nan_rows;
    g_free(paged_step(f, &poison, 0, PAGED_TOKENS, true));
    static const int cuts[] = {0, 1, 2, 34, 63, 64, 96, 250, 299, PAGED_TOKENS};
    for (size_t c = 0; c + 1 < G_N_ELEMENTS(cuts); c++) {
        g_autofree float *part = paged_step(f, &p, cuts[c], cuts[c + 1], true);
        size_t size = (size_t)(cuts[c + 1] - cuts[c]) * Q;
        g_assert_cmpmem(part, size * sizeof *part, whole + cuts[c] * Q, size * sizeof *whole);
        g_assert_cmpmem(part + size, size * sizeof *part, whole + cuts[c] * Q,
                        size * sizeof *whole);
    }
    cs_kv_store_free(p.store);
    cs_kv_store_free(clean);
    g_free(p.q);
    g_free(p.k);
    g_free(p.v);
    cs_compute_release(f->c, 0);
}

/* Attention to nearby blocks of a segment: each row by itself over the keys it may see. */
static void test_attention_blocks(const void *data)
{
    const fixture *f = data;
    static const int32_t starts[] = {0, 5, 5, 150, 400};
    enum { SEGMENTS = 4, N = 400, HEADS = 2, DIM = 20, COLS = HEADS * DIM };
    static const int64_t shapes[][3] = {
        {14, 0, 0}, {14, 1, 0}, {24, 0, 1}, {24, 2, 1}, {300, 1, 0}};
    g_autofree float *q = random_floats(N * COLS), *k = random_floats(N * COLS),
                     *v = random_floats(N * COLS);
    g_autofree double *expected = g_new(double, N *COLS);
    for (size_t s = 0; s < G_N_ELEMENTS(shapes); s++) {
        int64_t block = shapes[s][0], before = shapes[s][1], after = shapes[s][2];
        for (int i = 0; i < SEGMENTS; i++)
            for (int64_t row = starts[i]; row < starts[i + 1]; row++) {
                int64_t own = (row - starts[i]) / block;
                int64_t first = starts[i] + MAX(0, own - before) * block;
                int64_t end = MIN((int64_t)starts[i + 1], starts[i] + (own + after + 1) * block);
                for (int64_t h = 0; h < HEADS; h++)
                    attend(DIM, end - first, q + row * COLS + h * DIM, k + first * COLS + h * DIM,
                           v + first * COLS + h * DIM, COLS, 0.5, expected + row * COLS + h * DIM);
            }
        cs_tensor tq = upload(f->c, q, N, COLS), tk = upload(f->c, k, N, COLS),
                  tv = upload(f->c, v, N, COLS);
        cs_tensor out = cs_compute_scratch(f->c, CS_DTYPE_F32, N, COLS);
        cs_segment_attention options = {.n_heads = HEADS,
                                        .head_dim = DIM,
                                        .scale = 0.5f,
                                        .dtype = f->dtype,
                                        .n_segments = SEGMENTS,
                                        .starts = starts,
                                        .block_rows = block,
                                        .blocks_before = before,
                                        .blocks_after = after};
        cs_op_attention_segments(f->c, &out, &tq, &tk, &tv, &options);
        g_autofree float *y = download(f->c, &out);
        g_assert_cmpfloat(error_of(N * COLS, y, expected), <,
                          f->dtype == CS_DTYPE_F32 ? LIMIT_F32 : LIMIT_ATTENTION_BF16);

        /* What is rounded to bf16 before gives the same bits. */
        if (cs_compute_input_dtype(f->c, f->dtype) == CS_DTYPE_BF16) {
            cs_tensor halves[3];
            const cs_tensor *whole[] = {&tq, &tk, &tv};
            for (int i = 0; i < 3; i++) {
                halves[i] = cs_compute_scratch(f->c, CS_DTYPE_BF16, N, COLS);
                cs_op_copy(f->c, &halves[i], whole[i]);
            }
            cs_tensor same = cs_compute_scratch(f->c, CS_DTYPE_F32, N, COLS);
            cs_op_attention_segments(f->c, &same, &halves[0], &halves[1], &halves[2], &options);
            g_autofree float *z = download(f->c, &same);
            g_assert_cmpmem(z, N * COLS * sizeof *z, y, N * COLS * sizeof *y);
        }

        /* The last segment alone gives the same bits. */
        static const int32_t alone[] = {0, 250};
        options.n_segments = 1;
        options.starts = alone;
        tq = cs_tensor_rows(&tq, 150, 250);
        tk = cs_tensor_rows(&tk, 150, 250);
        tv = cs_tensor_rows(&tv, 150, 250);
        cs_tensor one = cs_compute_scratch(f->c, CS_DTYPE_F32, 250, COLS);
        cs_op_attention_segments(f->c, &one, &tq, &tk, &tv, &options);
        g_autofree float *z = download(f->c, &one);
        g_assert_cmpmem(z, 250 * COLS * sizeof *z, y + 150 * COLS, 250 * COLS * sizeof *y);
        cs_compute_release(f->c, 0);
    }
}

/* ---- convolutions, modulations, the vocoder's activation ---- */

static void test_columns(const void *data)
{
    const fixture *f = data;
    enum { ROWS = 29, C = 5 };
    g_autofree float *x = random_floats(ROWS * C);
    cs_tensor tx = upload(f->c, x, ROWS, C),
              columns = cs_compute_scratch(f->c, CS_DTYPE_F32, ROWS, 3 * C);
    cs_op_im2col(f->c, &columns, &tx, 3, 1, 5, 5);
    g_autofree float *y = download(f->c, &columns);
    for (int64_t i = 0; i < ROWS * 3 * C; i++) {
        int64_t source = i / (3 * C) - 5 + i % (3 * C) / C * 5;
        g_assert_cmpfloat(y[i], ==, source < 0 || source >= ROWS ? 0.0f : x[source * C + i % C]);
    }
    cs_compute_release(f->c, 0);
}

typedef struct {
    int64_t rows, inputs, outputs;
    int32_t kernel, dilation;
} convolution_case;

/* scale (sum + bias + residual), and on top of it what stood there with accumulate. */
static double *convolve_slowly(const convolution_case *c, const float *x, const float *w,
                               const float *bias, const float *old, const float *residual,
                               const cs_convolve_options *options)
{
    double *y = g_new(double, c->rows * c->outputs);
    for (int64_t i = 0; i < c->rows * c->outputs; i++) {
        int64_t row = i / c->outputs, o = i % c->outputs;
        double sum = bias[o] + (options->residual ? residual[i] : 0);
        for (int64_t k = 0; k < c->kernel; k++)
            sum += dot(c->inputs, x + (row + k * c->dilation) * c->inputs,
                       w + (o * c->kernel + k) * c->inputs);
        y[i] =
            (options->scale != 0 ? options->scale : 1) * sum + (options->accumulate ? old[i] : 0);
    }
    return y;
}

/* In place over its residual and onto every second row, of all rows and of the first few. */
static void check_convolve(const fixture *f, const convolution_case *c, bool residual,
                           cs_convolve_options options)
{
    int64_t span = c->rows + (c->kernel - 1) * c->dilation,
            n_w = c->outputs * c->kernel * c->inputs;
    int64_t n_y = c->rows * c->outputs;
    g_autofree float *x = random_floats(span * c->inputs), *w = random_floats(n_w);
    g_autofree float *bias = random_floats(c->outputs), *old = random_floats(n_y);
    if (f->dtype == CS_DTYPE_BF16) {
        round_all(span * c->inputs, x);
        round_all(n_w, w);
    }
    cs_parameters *p = cs_parameters_new(f->c);
    const cs_convolution *weights = cs_parameters_convolution(
        p, f->dtype, &(cs_convolution_shape){c->outputs, c->inputs, c->kernel}, w, bias, NULL);
    cs_dtype dtype = cs_compute_input_dtype(f->c, f->dtype);
    cs_tensor raw = upload(f->c, x, span, c->inputs),
              tx = cs_compute_scratch(f->c, dtype, span, c->inputs);
    cs_op_copy(f->c, &tx, &raw);
    cs_tensor ty = upload(f->c, old, c->rows, c->outputs);
    cs_tensor sparse = cs_compute_scratch(f->c, CS_DTYPE_F32, 2 * c->rows, c->outputs);
    sparse.rows = c->rows;
    sparse.stride *= 2;
    cs_op_copy(f->c, &sparse, &ty);
    options.dilation = c->dilation;
    options.residual = residual ? &sparse : NULL;
    g_autofree double *expected = convolve_slowly(c, x, w, bias, old, old, &options);
    cs_op_convolve(f->c, &sparse, &tx, weights, &options);
    g_autofree float *all = download(f->c, &sparse);
    g_assert_cmpfloat(error_of(n_y, all, expected), <,
                      f->dtype == CS_DTYPE_BF16 ? LIMIT_BF16_SUM : LIMIT_F32);

    int64_t few = (c->rows + 2) / 3;
    cs_tensor part = cs_tensor_rows(&ty, 0, few);
    options.residual = residual ? &part : NULL;
    cs_op_convolve(f->c, &part, &tx, weights, &options);
    g_autofree float *first = download(f->c, &part);
    g_assert_cmpmem(first, (size_t)(few * c->outputs) * sizeof *first, all,
                    (size_t)(few * c->outputs) * sizeof *first);
    cs_parameters_free(p);
    cs_compute_release(f->c, 0);
}

static void test_convolutions(const void *data)
{
    static const convolution_case cases[] = {
        {1, 1, 1, 1, 1},    {5, 3, 16, 3, 1},    {16, 24, 24, 7, 3},   {20, 33, 17, 11, 5},
        {33, 64, 48, 3, 5}, {47, 80, 40, 7, 1},  {100, 96, 96, 11, 5}, {1100, 24, 24, 3, 1},
        {700, 7, 1, 7, 1},  {64, 32, 130, 2, 1},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        check_convolve(data, &cases[i], false, (cs_convolve_options){0});
        check_convolve(data, &cases[i], true, (cs_convolve_options){0});
        check_convolve(data, &cases[i], true,
                       (cs_convolve_options){.scale = 0.25f, .accumulate = true});
    }
}

/* Zeros where told, and nowhere else. */
static void test_zero(const void *data)
{
    const fixture *f = data;
    enum { ROWS = 6, C = 5 };
    g_autofree float *x = random_floats(ROWS * C);
    cs_tensor t = upload(f->c, x, ROWS, C), middle = cs_tensor_rows(&t, 2, 3);
    cs_op_zero(f->c, &middle);
    g_autofree float *y = download(f->c, &t);
    for (int i = 0; i < ROWS * C; i++)
        g_assert_cmpfloat(y[i], ==, i / C >= 2 && i / C < 5 ? 0.0f : x[i]);
    cs_compute_release(f->c, 0);
}

static void test_modulations(const void *data)
{
    const fixture *f = data;
    static const int32_t starts[] = {0, 3, 3, 17, 40};
    enum { SEGMENTS = 4, M = 40 };
    static const int64_t widths[] = {5, 16, 130};
    const cs_segments segments = {SEGMENTS, starts};
    for (size_t w = 0; w < G_N_ELEMENTS(widths); w++) {
        int64_t n = widths[w];
        g_autofree float *x = random_floats(M * n), *y0 = random_floats(M * n);
        g_autofree float *scale = random_floats(SEGMENTS * n), *shift = random_floats(SEGMENTS * n);
        g_autofree double *norm = g_new(double, M *n), *sum = g_new(double, M *n),
                          *blend = g_new(double, M *n);
        for (int64_t i = 0, s = 0; i < M; i++) {
            while (starts[s + 1] <= i)
                s++;
            double mean = 0, variance = 0;
            for (int64_t j = 0; j < n; j++)
                mean += x[i * n + j] / (double)n;
            for (int64_t j = 0; j < n; j++)
                variance += (x[i * n + j] - mean) * (x[i * n + j] - mean) / (double)n;
            for (int64_t j = 0; j < n; j++) {
                int64_t at = i * n + j, m = s * n + j;
                norm[at] = (x[at] - mean) / sqrt(variance + 1e-6) * (1 + scale[m]) + shift[m];
                sum[at] = y0[at] + (double)scale[m] * x[at];
                blend[at] = -0.5 * y0[at] + 1.25 * x[at];
            }
        }
        cs_tensor tx = upload(f->c, x, M, n), ty = upload(f->c, y0, M, n);
        cs_tensor tscale = upload(f->c, scale, SEGMENTS, n),
                  tshift = upload(f->c, shift, SEGMENTS, n);
        for (int half = 0; half < 2; half++) {
            cs_tensor tn = cs_compute_scratch(f->c, half ? CS_DTYPE_BF16 : CS_DTYPE_F32, M, n);
            cs_op_modulated_norm(f->c, &tn, &tx, &tscale, &tshift, &segments, 1e-6f);
            g_autofree float *y = download(f->c, &tn);
            g_assert_cmpfloat(error_of(M * n, y, norm), <, half ? LIMIT_BF16_OUTPUT : LIMIT_F32);
        }
        cs_op_add_gated(f->c, &ty, &tx, &tscale, &segments);
        g_autofree float *gated = download(f->c, &ty);
        g_assert_cmpfloat(error_of(M * n, gated, sum), <, LIMIT_F32);
        cs_tensor half_x = cs_compute_scratch(f->c, CS_DTYPE_BF16, M, n);
        cs_op_copy(f->c, &half_x, &tx);
        ty = upload(f->c, y0, M, n);
        cs_op_add_gated(f->c, &ty, &half_x, &tscale, &segments);
        g_autofree float *rounded = download(f->c, &ty);
        g_assert_cmpfloat(error_of(M * n, rounded, sum), <, LIMIT_BF16_OUTPUT);
        ty = upload(f->c, y0, M, n);
        cs_op_blend(f->c, &ty, -0.5f, &tx, 1.25f);
        g_autofree float *blended = download(f->c, &ty);
        g_assert_cmpfloat(error_of(M * n, blended, blend), <, LIMIT_F32);

        /* What stood there before does not matter under a factor of 0. */
        g_autofree float *nans = g_new(float, M *n);
        for (int64_t i = 0; i < M * n; i++)
            nans[i] = NAN;
        ty = upload(f->c, nans, M, n);
        cs_op_blend(f->c, &ty, 0, &tx, 1);
        g_autofree float *copied = download(f->c, &ty);
        g_assert_cmpmem(copied, (size_t)(M * n) * sizeof *copied, x, (size_t)(M * n) * sizeof *x);
        cs_compute_release(f->c, 0);
    }
}

static int64_t clamp_index(int64_t i, int64_t n)
{
    return CLAMP(i, 0, n - 1);
}

/* One channel by the definition: doubled rate, activation, halved rate. */
static void snake_channel(int64_t n, int64_t stride, const float *x, double alpha, double inverse,
                          const float *filter, double *y)
{
    g_autofree double *fine = g_new0(double, 2 * n);
    for (int64_t i = 0; i < 2 * n; i++) {
        for (int64_t q = -8; q < n + 8; q++)
            if (i + 5 - 2 * q >= 0 && i + 5 - 2 * q < CS_SNAKE_TAPS)
                fine[i] += 2 * x[clamp_index(q, n) * stride] * filter[i + 5 - 2 * q];
        fine[i] += inverse * pow(sin(alpha * fine[i]), 2);
    }
    for (int64_t t = 0; t < n; t++) {
        y[t * stride] = 0;
        for (int64_t j = 0; j < CS_SNAKE_TAPS; j++)
            y[t * stride] += filter[j] * fine[clamp_index(2 * t - 5 + j, 2 * n)];
    }
}

static void test_snake(const void *data)
{
    const fixture *f = data;
    static const int64_t shapes[][2] = {{1, 1}, {2, 24}, {7, 16}, {100, 4}, {2000, 20}, {40, 768}};
    for (size_t s = 0; s < G_N_ELEMENTS(shapes); s++) {
        int64_t n = shapes[s][0], c = shapes[s][1];
        g_autofree float *x = random_floats(n * c), *filter = random_floats(CS_SNAKE_TAPS);
        g_autofree float *alpha = random_floats(c), *inverse = random_floats(c);
        g_autofree double *expected = g_new(double, n *c);
        for (int64_t i = 0; i < c; i++) {
            alpha[i] = 20 * alpha[i]; /* some arguments far from the first turn */
            snake_channel(n, c, x + i, alpha[i], inverse[i], filter, expected + i);
        }
        cs_tensor tx = upload(f->c, x, n, c), ty = cs_compute_scratch(f->c, CS_DTYPE_F32, n, c);
        cs_tensor ta = upload(f->c, alpha, 1, c), ti = upload(f->c, inverse, 1, c);
        cs_op_snake(f->c, &ty, &tx, &ta, &ti, filter);
        g_autofree float *y = download(f->c, &ty);
        /* Arguments up to 100 carry rounding of their own into the sine. */
        g_assert_cmpfloat(error_of(n * c, y, expected), <, 10 * LIMIT_F32);

        cs_tensor half = cs_compute_scratch(f->c, CS_DTYPE_BF16, n, c);
        cs_op_snake(f->c, &half, &tx, &ta, &ti, filter);
        g_autofree float *rounded = download(f->c, &half);
        for (int64_t i = 0; i < n * c; i++)
            g_assert_cmpfloat(rounded[i], ==, round_bf16(y[i]));

        /* Without room behind the rows. */
        g_autofree float *dense = g_new(float, n *c);
        cs_tensor plain = cs_tensor_view(dense, CS_DTYPE_F32, n, c);
        cs_op_snake(f->c, &plain, &tx, &ta, &ti, filter);
        g_assert_cmpmem(dense, (size_t)(n * c) * sizeof *dense, y, (size_t)(n * c) * sizeof *y);
        cs_compute_release(f->c, 0);
    }
}

/* A dropped product and a shifted column must exceed the limits by far, or the tests above prove
 * nothing. */
static void test_limits_bite(void)
{
    enum { N = 1000 };
    g_autofree float *x = random_floats(N), *y = random_floats(N);
    double all = dot(N, x, y), without_one = dot(N - 1, x, y);
    float got = (float)without_one;
    g_assert_cmpfloat(error_of(1, &got, &all), >, 100 * LIMIT_F32);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    static const struct {
        const char *name;
        void (*run)(const void *);
    } tests[] = {{"linear", test_linear},
                 {"gated", test_gated},
                 {"source_dtypes", test_source_dtypes},
                 {"norms", test_norms},
                 {"rope", test_rope},
                 {"moves", test_moves},
                 {"attention_segments", test_attention_segments},
                 {"attention_blocks", test_attention_blocks},
                 {"attention_paged", test_attention_paged},
                 {"columns", test_columns},
                 {"convolutions", test_convolutions},
                 {"zero", test_zero},
                 {"modulations", test_modulations},
                 {"snake", test_snake}};
    static fixture fixtures[G_N_ELEMENTS(isas) * 2];
    for (size_t i = 0; i < G_N_ELEMENTS(isas); i++) {
        cs_compute *c = open_isa(isas[i], 3);
        for (int d = 0; d < 2 && c; d++) {
            fixture *f = &fixtures[i * 2 + (size_t)d];
            *f = (fixture){.isa = isas[i], .c = c, .dtype = d ? CS_DTYPE_BF16 : CS_DTYPE_F32};
            for (size_t t = 0; t < G_N_ELEMENTS(tests); t++) {
                g_autofree char *path = g_strdup_printf("/ops/%s/%s/%s", isas[i],
                                                        cs_dtype_name(f->dtype), tests[t].name);
                g_test_add_data_func(path, f, tests[t].run);
            }
        }
        if (!c)
            g_test_message("instruction set %s: not on this CPU, its tests are left out", isas[i]);
    }
    g_test_add_func("/ops/limits_bite", test_limits_bite);
    int result = g_test_run();
    for (size_t i = 0; i < G_N_ELEMENTS(isas); i++)
        cs_compute_free(fixtures[i * 2].c);
    return result;
}
