#include "models/qwen2_5_omni/vocoder.h"

#include <math.h>

enum {
    OUTER_KERNEL = 7, /* of the first and the last convolution */
    TILE_ROWS = 1024, /* of a convolution's columns, so that they stay in the caches */
};

typedef struct {
    const cs_weight *weight; /* [outputs, kernel * inputs] */
    cs_tensor bias;          /* data NULL: none */
    int32_t kernel, dilation;
} convolution;

typedef struct {
    cs_tensor alpha, inverse_beta; /* [1, channels] */
} activation;

typedef struct {
    convolution first[CS_VOCODER_DILATIONS], second[CS_VOCODER_DILATIONS];
    activation before_first[CS_VOCODER_DILATIONS], before_second[CS_VOCODER_DILATIONS];
} residual_block;

typedef struct {
    const cs_weight *up; /* [kernel * outputs, inputs] */
    cs_tensor up_bias;
    residual_block blocks[CS_VOCODER_MAX_BLOCKS];
} stage;

struct cs_vocoder {
    cs_compute *compute;
    cs_qwen2_5_omni_vocoder_config config;
    cs_dtype input_dtype;
    convolution pre, post;
    stage stages[CS_VOCODER_MAX_STAGES];
    activation last;
    float filter[CS_SNAKE_TAPS];
    cs_vocoder_tap *tap;
    void *tap_user;
};

/* ---- The filter of the activations ---- */

/* Modified Bessel function of the first kind of order 0, by its series. */
static double bessel_i0(double x)
{
    double term = 1, sum = 1;
    for (int k = 1; k < 64; k++) {
        term *= (x / (2 * k)) * (x / (2 * k));
        sum += term;
    }
    return sum;
}

/* Low pass of half the rate: a sinc under a Kaiser window, cut-off 0.25, half width 0.3. */
static void make_filter(float filter[CS_SNAKE_TAPS])
{
    const double half = CS_SNAKE_TAPS / 2, cutoff = 0.25, half_width = 0.3;
    double attenuation = 2.285 * (half - 1) * G_PI * 4 * half_width + 7.95;
    /* Between 21 and 50 dB, Kaiser's formula. */
    double beta = attenuation > 50
                      ? 0.1102 * (attenuation - 8.7)
                      : 0.5842 * pow(attenuation - 21, 0.4) + 0.07886 * (attenuation - 21);
    double taps[CS_SNAKE_TAPS], sum = 0;
    for (int i = 0; i < CS_SNAKE_TAPS; i++) {
        double at = 2.0 * i / (CS_SNAKE_TAPS - 1) - 1, t = 2 * cutoff * (i - half + 0.5) * G_PI;
        taps[i] = 2 * cutoff * bessel_i0(beta * sqrt(1 - at * at)) / bessel_i0(beta) * sin(t) / t;
        sum += taps[i];
    }
    for (int i = 0; i < CS_SNAKE_TAPS; i++)
        filter[i] = (float)(taps[i] / sum);
}

/* ---- Loading ---- */

static convolution load_convolution(cs_loader *loader, const char *scope, const char *name,
                                    int64_t outputs, int64_t inputs, int64_t kernel,
                                    int64_t dilation, bool bias)
{
    g_autofree char *full = g_strconcat(scope, ".", name, NULL);
    convolution c = {.kernel = (int32_t)kernel, .dilation = (int32_t)dilation};
    c.weight = cs_load_convolution(loader, full, "weight", outputs, inputs, kernel);
    if (bias)
        c.bias = cs_load_vector(loader, full, "bias", outputs);
    return c;
}

/* Both are stored as logarithms. */
static activation load_activation(cs_loader *loader, const char *scope, int64_t channels)
{
    activation a = {0};
    g_autofree float *alpha = cs_load_values(loader, scope, "act.alpha", 1, &channels);
    g_autofree float *beta = cs_load_values(loader, scope, "act.beta", 1, &channels);
    if (!alpha || !beta)
        return a;
    for (int64_t i = 0; i < channels; i++) {
        alpha[i] = expf(alpha[i]);
        beta[i] = 1.0f / (expf(beta[i]) + 1e-9f);
    }
    a.alpha =
        cs_parameters_tensor(loader->parameters, alpha, CS_DTYPE_F32, 1, channels, &loader->error);
    if (!loader->error)
        a.inverse_beta = cs_parameters_tensor(loader->parameters, beta, CS_DTYPE_F32, 1, channels,
                                              &loader->error);
    return a;
}

/* [inputs, outputs, kernel] as the matrix whose products cs_op_col2im adds up. */
static const cs_weight *load_transposed(cs_loader *loader, const char *scope, int64_t inputs,
                                        int64_t outputs, int64_t kernel)
{
    g_autofree float *values =
        cs_load_values(loader, scope, "weight", 3, (const int64_t[]){inputs, outputs, kernel});
    g_autofree float *moved = g_try_new(float, inputs *outputs *kernel);
    if (!values || !moved)
        return NULL;
    for (int64_t i = 0; i < inputs; i++)
        for (int64_t o = 0; o < outputs; o++)
            for (int64_t k = 0; k < kernel; k++)
                moved[(k * outputs + o) * inputs + i] = values[(i * outputs + o) * kernel + k];
    return cs_load_packed(loader, moved, kernel * outputs, inputs);
}

static void load_block(cs_loader *loader, const char *scope, int64_t channels, int64_t kernel,
                       const int64_t dilations[CS_VOCODER_DILATIONS], residual_block *b)
{
    for (int i = 0; i < CS_VOCODER_DILATIONS; i++) {
        g_autofree char *first = g_strdup_printf("convs1.%d", i);
        g_autofree char *second = g_strdup_printf("convs2.%d", i);
        g_autofree char *before_first = g_strdup_printf("%s.activations.%d", scope, 2 * i);
        g_autofree char *before_second = g_strdup_printf("%s.activations.%d", scope, 2 * i + 1);
        b->first[i] =
            load_convolution(loader, scope, first, channels, channels, kernel, dilations[i], true);
        b->second[i] = load_convolution(loader, scope, second, channels, channels, kernel, 1, true);
        b->before_first[i] = load_activation(loader, before_first, channels);
        b->before_second[i] = load_activation(loader, before_second, channels);
    }
}

static void load_stage(cs_vocoder *v, cs_loader *loader, const char *scope, int64_t index)
{
    const cs_qwen2_5_omni_vocoder_config *c = &v->config;
    stage *s = &v->stages[index];
    int64_t inputs = c->channels >> index, outputs = c->channels >> (index + 1);
    g_autofree char *up = g_strdup_printf("%s.ups.%" G_GINT64_FORMAT ".0", scope, index);
    s->up = load_transposed(loader, up, inputs, outputs, c->rate_kernels[index]);
    s->up_bias = cs_load_vector(loader, up, "bias", outputs);
    for (int64_t i = 0; i < c->n_blocks; i++) {
        g_autofree char *block =
            g_strdup_printf("%s.resblocks.%" G_GINT64_FORMAT, scope, index * c->n_blocks + i);
        load_block(loader, block, outputs, c->block_kernels[i], c->block_dilations[i],
                   &s->blocks[i]);
    }
}

cs_vocoder *cs_vocoder_load(cs_loader *loader, cs_compute *compute,
                            const cs_qwen2_5_omni_vocoder_config *config, const char *scope)
{
    g_autoptr(cs_vocoder) v = g_new0(cs_vocoder, 1);
    const cs_qwen2_5_omni_vocoder_config *c = &v->config;
    int64_t channels = config->channels >> config->n_stages;
    v->compute = compute;
    v->config = *config;
    v->input_dtype = cs_compute_input_dtype(compute, loader->dtype);
    v->pre =
        load_convolution(loader, scope, "conv_pre", c->channels, c->n_mels, OUTER_KERNEL, 1, true);
    for (int64_t i = 0; i < c->n_stages; i++)
        load_stage(v, loader, scope, i);
    g_autofree char *last = g_strconcat(scope, ".activation_post", NULL);
    v->last = load_activation(loader, last, channels);
    v->post = load_convolution(loader, scope, "conv_post", 1, channels, OUTER_KERNEL, 1, false);
    make_filter(v->filter);
    return loader->error ? NULL : g_steal_pointer(&v);
}

void cs_vocoder_free(cs_vocoder *vocoder)
{
    g_free(vocoder);
}

void cs_vocoder_set_tap(cs_vocoder *vocoder, cs_vocoder_tap *tap, void *user)
{
    vocoder->tap = tap;
    vocoder->tap_user = user;
}

int64_t cs_vocoder_samples_per_frame(const cs_vocoder *vocoder)
{
    int64_t n = 1;
    for (int64_t i = 0; i < vocoder->config.n_stages; i++)
        n *= vocoder->config.rates[i];
    return n;
}

/* Reach on one side, from the last sample back: rows of each stage, then what they take of the
 * stage before. An activation reaches (5 + 5) / 2 + 1 rows at most. */
int64_t cs_vocoder_context(const cs_vocoder *vocoder)
{
    const cs_qwen2_5_omni_vocoder_config *c = &vocoder->config;
    enum { ACTIVATION = 6 };
    int64_t reach = OUTER_KERNEL / 2 + ACTIVATION;
    for (int64_t s = c->n_stages; s-- > 0;) {
        int64_t most = 0;
        for (int64_t b = 0; b < c->n_blocks; b++) {
            int64_t sum = 0, half = (c->block_kernels[b] - 1) / 2;
            for (int i = 0; i < CS_VOCODER_DILATIONS; i++)
                sum += half * c->block_dilations[b][i] + half + 2 * ACTIVATION;
            most = MAX(most, sum);
        }
        reach = (reach + most + c->rate_kernels[s]) / c->rates[s] + 1;
    }
    return reach + OUTER_KERNEL / 2;
}

/* ---- Running ---- */

/* y = (or +=) the convolution of x, zeros beyond its ends. Tiles of rows, so that columns are few.
 */
static void convolve(const cs_vocoder *v, const convolution *c, const cs_tensor *y,
                     const cs_tensor *x, bool accumulate)
{
    cs_compute *compute = v->compute;
    int32_t pad = (c->kernel - 1) * c->dilation / 2;
    size_t mark = cs_compute_mark(compute);
    const cs_linear_options options = {.bias = c->bias.data ? &c->bias : NULL,
                                       .accumulate = accumulate};
    cs_tensor columns = cs_compute_scratch(compute, v->input_dtype, MIN(TILE_ROWS, x->rows),
                                           cs_weight_cols(c->weight));
    for (int64_t row = 0; row < x->rows; row += TILE_ROWS) {
        int64_t n = MIN(TILE_ROWS, x->rows - row);
        cs_tensor tile = cs_tensor_rows(&columns, 0, n), to = cs_tensor_rows(y, row, n);
        cs_op_im2col(compute, &tile, x, c->kernel, 1, pad - (int32_t)row, c->dilation);
        cs_op_linear(compute, &to, &tile, c->weight, &options);
    }
    cs_compute_release(compute, mark);
}

static void activate(const cs_vocoder *v, const activation *a, const cs_tensor *y,
                     const cs_tensor *x)
{
    cs_op_snake(v->compute, y, x, &a->alpha, &a->inverse_beta, v->filter);
}

/* x goes through the block in place. */
static void run_block(const cs_vocoder *v, const residual_block *b, const cs_tensor *x)
{
    size_t mark = cs_compute_mark(v->compute);
    cs_tensor active = cs_compute_scratch(v->compute, CS_DTYPE_F32, x->rows, x->cols);
    cs_tensor inner = cs_compute_scratch(v->compute, CS_DTYPE_F32, x->rows, x->cols);
    for (int i = 0; i < CS_VOCODER_DILATIONS; i++) {
        activate(v, &b->before_first[i], &active, x);
        convolve(v, &b->first[i], &inner, &active, false);
        activate(v, &b->before_second[i], &active, &inner);
        convolve(v, &b->second[i], x, &active, true);
    }
    cs_compute_release(v->compute, mark);
}

static void tap(const cs_vocoder *v, int64_t index, int part, const cs_tensor *rows)
{
    if (v->tap)
        v->tap(v->tap_user, index, part, rows);
}

/* y [x.rows * rate, outputs]: the transposed convolution, then the mean of the blocks. */
static void run_stage(const cs_vocoder *v, int64_t index, const cs_tensor *y, const cs_tensor *x)
{
    cs_compute *compute = v->compute;
    const stage *s = &v->stages[index];
    int32_t rate = (int32_t)v->config.rates[index], kernel = (int32_t)v->config.rate_kernels[index];
    size_t mark = cs_compute_mark(compute);
    cs_tensor up = cs_compute_scratch(compute, CS_DTYPE_F32, y->rows, y->cols);
    cs_tensor sum = cs_compute_scratch(compute, CS_DTYPE_F32, y->rows, y->cols);
    size_t inner = cs_compute_mark(compute);
    cs_tensor columns = cs_compute_scratch(compute, CS_DTYPE_F32, x->rows, kernel * y->cols);
    cs_op_linear(compute, &columns, x, s->up, NULL);
    cs_op_col2im(compute, &up, &columns, kernel, rate, (kernel - rate) / 2);
    cs_op_add(compute, &up, &s->up_bias);
    cs_compute_release(compute, inner);
    tap(v, index, 0, &up);
    float share = 1.0f / (float)v->config.n_blocks;
    for (int64_t i = 0; i < v->config.n_blocks; i++) {
        cs_op_copy(compute, &sum, &up);
        run_block(v, &s->blocks[i], &sum);
        cs_op_blend(compute, y, i == 0 ? 0.0f : 1.0f, &sum, share);
    }
    tap(v, index, 1, y);
    cs_compute_release(compute, mark);
}

/* Logarithms of amplitudes to [-1, 1] over 115 dB. */
static float normalise(float log_amplitude)
{
    const double least_db = -115;
    double db = 20 / log(10.0) * (double)log_amplitude;
    db = MAX(db, least_db) - 20;
    return (float)CLAMP(2 * (db - least_db) / -least_db - 1, -1.0, 1.0);
}

bool cs_vocoder_run(cs_vocoder *v, int64_t n_frames, const float *mel, float *samples,
                    GError **error)
{
    cs_compute *compute = v->compute;
    const cs_qwen2_5_omni_vocoder_config *c = &v->config;
    size_t mark = cs_compute_mark(compute);
    g_autofree float *levels = g_new(float, n_frames * c->n_mels);
    for (int64_t i = 0; i < n_frames * c->n_mels; i++)
        levels[i] = normalise(mel[i]);
    cs_tensor in = cs_compute_scratch(compute, CS_DTYPE_F32, n_frames, c->n_mels);
    cs_tensor x = cs_compute_scratch(compute, CS_DTYPE_F32, n_frames, c->channels);
    cs_tensor_write(compute, &in, levels);
    convolve(v, &v->pre, &x, &in, false);
    tap(v, -1, 0, &x);
    for (int64_t i = 0; i < c->n_stages; i++) {
        cs_tensor y =
            cs_compute_scratch(compute, CS_DTYPE_F32, x.rows * c->rates[i], c->channels >> (i + 1));
        run_stage(v, i, &y, &x);
        x = y;
    }
    cs_tensor active = cs_compute_scratch(compute, CS_DTYPE_F32, x.rows, x.cols);
    cs_tensor out = cs_compute_scratch(compute, CS_DTYPE_F32, x.rows, 1);
    activate(v, &v->last, &active, &x);
    convolve(v, &v->post, &out, &active, false);
    cs_tensor_read(compute, samples, &out);
    bool ok = cs_compute_sync(compute, error);
    cs_compute_release(compute, mark);
    for (int64_t i = 0; i < n_frames * cs_vocoder_samples_per_frame(v) && ok; i++)
        samples[i] = CLAMP(samples[i], -1.0f, 1.0f);
    return ok;
}
