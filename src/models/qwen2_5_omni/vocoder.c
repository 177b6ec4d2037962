#include "models/qwen2_5_omni/vocoder.h"

#include "base/error.h"

#include <math.h>

enum {
    OUTER_KERNEL = 7, /* of the first and the last convolution */
};

typedef struct {
    const cs_convolution *weights;
    int32_t pad; /* rows of x before the first row of y that it reads */
    int32_t dilation;
} convolution;

typedef struct {
    cs_tensor alpha, inverse_beta; /* [1, channels] */
} activation;

typedef struct {
    convolution first[CS_VOCODER_DILATIONS], second[CS_VOCODER_DILATIONS];
    activation before_first[CS_VOCODER_DILATIONS], before_second[CS_VOCODER_DILATIONS];
} residual_block;

typedef struct {
    convolution up[CS_VOCODER_MAX_RATE]; /* for each of the rows that one row becomes */
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

/* Packs values [outputs, kernel, inputs]. */
static convolution pack(cs_loader *loader, const cs_convolution_shape *shape, const float *values,
                        const float *bias)
{
    convolution c = {.dilation = 1};
    if (!loader->error)
        c.weights = cs_parameters_convolution(loader->parameters, loader->dtype, shape, values,
                                              bias, &loader->error);
    return c;
}

/* Weights of a checkpoint [outer, inner, kernel] as [outer, kernel, inner]. */
static float *load_moved(cs_loader *loader, const char *scope, int64_t outer, int64_t inner,
                         int64_t kernel)
{
    g_autofree float *values =
        cs_load_values(loader, scope, "weight", 3, (const int64_t[]){outer, inner, kernel});
    g_autofree float *moved = values ? g_try_new(float, outer *inner *kernel) : NULL;
    if (!values)
        return NULL;
    if (!moved) {
        cs_fail(&loader->error, CS_ERROR_FAILED, "no memory for %" G_GINT64_FORMAT " weights",
                outer * inner * kernel);
        return NULL;
    }
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++)
            for (int64_t k = 0; k < kernel; k++)
                moved[(o * kernel + k) * inner + i] = values[(o * inner + i) * kernel + k];
    return g_steal_pointer(&moved);
}

static convolution load_convolution(cs_loader *loader, const char *scope, const char *name,
                                    const cs_convolution_shape *shape, int32_t dilation, bool bias)
{
    g_autofree char *full = g_strconcat(scope, ".", name, NULL);
    g_autofree float *values =
        load_moved(loader, full, shape->outputs, shape->inputs, shape->kernel);
    g_autofree float *biases =
        bias ? cs_load_values(loader, full, "bias", 1, &shape->outputs) : NULL;
    convolution c = pack(loader, shape, values, biases);
    c.pad = (int32_t)(shape->kernel - 1) * dilation / 2;
    c.dilation = dilation;
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

/* The transposed convolution as one convolution for each of the rows that a row becomes: tap k of
 * row i adds to row i * rate - pad + k, so that row j * rate + p hears those taps k that differ
 * from p + pad by multiples of the rate, of the rows j + (p + pad - k) / rate. */
static void load_transposed(cs_loader *loader, const char *scope, int64_t rate,
                            const cs_convolution_shape *shape, stage *s)
{
    int64_t inputs = shape->inputs, outputs = shape->outputs, kernel = shape->kernel;
    /* The checkpoint has them [inputs, outputs, kernel]. */
    g_autofree float *values =
        cs_load_values(loader, scope, "weight", 3, (const int64_t[]){inputs, outputs, kernel});
    g_autofree float *bias = cs_load_values(loader, scope, "bias", 1, &outputs);
    g_autofree float *own = values ? g_try_new(float, outputs *kernel *inputs) : NULL;
    if (!values || !bias)
        return;
    if (!own) {
        cs_fail(&loader->error, CS_ERROR_FAILED, "no memory for %" G_GINT64_FORMAT " weights",
                outputs * kernel * inputs);
        return;
    }
    for (int64_t p = 0; p < rate; p++) {
        int64_t at = p + (kernel - rate) / 2, least = at % rate;
        int64_t taps = (kernel - least + rate - 1) / rate;
        for (int64_t o = 0; o < outputs; o++)
            for (int64_t t = 0; t < taps; t++) /* from the row that comes first */
                for (int64_t i = 0; i < inputs; i++)
                    own[(o * taps + t) * inputs + i] =
                        values[(i * outputs + o) * kernel + least + (taps - 1 - t) * rate];
        s->up[p] = pack(loader, &(cs_convolution_shape){outputs, inputs, taps}, own, bias);
        s->up[p].pad = (int32_t)(least + (taps - 1) * rate - at) / (int32_t)rate;
    }
}

static void load_block(cs_loader *loader, const char *scope, int64_t channels, int64_t kernel,
                       const int64_t dilations[CS_VOCODER_DILATIONS], residual_block *b)
{
    for (int i = 0; i < CS_VOCODER_DILATIONS; i++) {
        g_autofree char *first = g_strdup_printf("convs1.%d", i);
        g_autofree char *second = g_strdup_printf("convs2.%d", i);
        g_autofree char *before_first = g_strdup_printf("%s.activations.%d", scope, 2 * i);
        g_autofree char *before_second = g_strdup_printf("%s.activations.%d", scope, 2 * i + 1);
        const cs_convolution_shape shape = {channels, channels, kernel};
        b->first[i] = load_convolution(loader, scope, first, &shape, (int32_t)dilations[i], true);
        b->second[i] = load_convolution(loader, scope, second, &shape, 1, true);
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
    load_transposed(loader, up, c->rates[index],
                    &(cs_convolution_shape){outputs, inputs, c->rate_kernels[index]}, s);
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
        load_convolution(loader, scope, "conv_pre",
                         &(cs_convolution_shape){c->channels, c->n_mels, OUTER_KERNEL}, 1, true);
    for (int64_t i = 0; i < c->n_stages; i++)
        load_stage(v, loader, scope, i);
    g_autofree char *last = g_strconcat(scope, ".activation_post", NULL);
    v->last = load_activation(loader, last, channels);
    v->post = load_convolution(loader, scope, "conv_post",
                               &(cs_convolution_shape){1, channels, OUTER_KERNEL}, 1, false);
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

/* Room for the input of convolutions, with zeros before and after its n rows. */
typedef struct {
    cs_tensor all; /* [margin + n + margin, cols] */
    int64_t margin;
    cs_tensor rows; /* [n, cols] of them */
} padded;

static padded make_padded(const cs_vocoder *v, int64_t n, int64_t cols, int64_t margin)
{
    padded p = {.margin = margin};
    p.all = cs_compute_scratch(v->compute, v->input_dtype, n + 2 * margin, cols);
    p.rows = cs_tensor_rows(&p.all, margin, n);
    cs_tensor before = cs_tensor_rows(&p.all, 0, margin),
              after = cs_tensor_rows(&p.all, margin + n, margin);
    cs_op_zero(v->compute, &before);
    cs_op_zero(v->compute, &after);
    return p;
}

/* y = the convolution of x, with what options add but its dilation. */
static void convolve(const cs_vocoder *v, const convolution *c, const cs_tensor *y, const padded *x,
                     cs_convolve_options options)
{
    int64_t from = x->margin - c->pad;
    cs_tensor rows = cs_tensor_rows(&x->all, from, x->all.rows - from);
    options.dilation = c->dilation;
    cs_op_convolve(v->compute, y, &rows, c->weights, &options);
}

static void activate(const cs_vocoder *v, const activation *a, const cs_tensor *y,
                     const cs_tensor *x)
{
    cs_op_snake(v->compute, y, x, &a->alpha, &a->inverse_beta, v->filter);
}

/* Adds a share of what the block makes of x to y, or with accumulate = false sets y to it. */
static void run_block(const cs_vocoder *v, const residual_block *b, const cs_tensor *y,
                      const cs_tensor *x, bool accumulate)
{
    const int last = CS_VOCODER_DILATIONS - 1;
    size_t mark = cs_compute_mark(v->compute);
    int32_t margin = 0;
    for (int i = 0; i <= last; i++)
        margin = MAX(margin, MAX(b->first[i].pad, b->second[i].pad));
    padded active = make_padded(v, x->rows, x->cols, margin);
    cs_tensor inner = cs_compute_scratch(v->compute, CS_DTYPE_F32, x->rows, x->cols);
    cs_tensor own = cs_compute_scratch(v->compute, CS_DTYPE_F32, x->rows, x->cols);
    for (int i = 0; i <= last; i++) {
        const cs_tensor *from = i == 0 ? x : &own, *to = i == last ? y : &own;
        cs_convolve_options options = {.residual = from};
        if (i == last) {
            options.scale = 1.0f / (float)v->config.n_blocks;
            options.accumulate = accumulate;
        }
        activate(v, &b->before_first[i], &active.rows, from);
        convolve(v, &b->first[i], &inner, &active, (cs_convolve_options){0});
        activate(v, &b->before_second[i], &active.rows, &inner);
        convolve(v, &b->second[i], to, &active, options);
    }
    cs_compute_release(v->compute, mark);
}

static void tap(const cs_vocoder *v, int64_t index, int part, const cs_tensor *rows)
{
    if (v->tap)
        v->tap(v->tap_user, index, part, rows);
}

/* Every rate-th row from row `first` on. */
static cs_tensor every_row(const cs_tensor *t, int64_t first, int64_t rate)
{
    cs_tensor rows = cs_tensor_rows(t, first, t->rows / rate);
    rows.stride *= rate;
    return rows;
}

/* y [x.rows * rate, outputs]: the transposed convolution, then the mean of the blocks. */
static void run_stage(const cs_vocoder *v, int64_t index, const cs_tensor *y, const cs_tensor *x)
{
    cs_compute *compute = v->compute;
    const stage *s = &v->stages[index];
    int64_t rate = v->config.rates[index];
    size_t mark = cs_compute_mark(compute);
    cs_tensor up = cs_compute_scratch(compute, CS_DTYPE_F32, y->rows, y->cols);
    size_t inner = cs_compute_mark(compute);
    padded in = make_padded(v, x->rows, x->cols, v->config.rate_kernels[index] / rate + 1);
    cs_op_copy(compute, &in.rows, x);
    for (int64_t p = 0; p < rate; p++) {
        cs_tensor rows = every_row(&up, p, rate);
        convolve(v, &s->up[p], &rows, &in, (cs_convolve_options){0});
    }
    cs_compute_release(compute, inner);
    tap(v, index, 0, &up);
    for (int64_t i = 0; i < v->config.n_blocks; i++)
        run_block(v, &s->blocks[i], y, &up, i > 0);
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
    padded first = make_padded(v, n_frames, c->n_mels, v->pre.pad);
    cs_tensor_write(compute, &in, levels);
    cs_op_copy(compute, &first.rows, &in);
    convolve(v, &v->pre, &x, &first, (cs_convolve_options){0});
    tap(v, -1, 0, &x);
    for (int64_t i = 0; i < c->n_stages; i++) {
        cs_tensor y =
            cs_compute_scratch(compute, CS_DTYPE_F32, x.rows * c->rates[i], c->channels >> (i + 1));
        run_stage(v, i, &y, &x);
        x = y;
    }
    padded active = make_padded(v, x.rows, x.cols, v->post.pad);
    cs_tensor out = cs_compute_scratch(compute, CS_DTYPE_F32, x.rows, 1);
    activate(v, &v->last, &active.rows, &x);
    convolve(v, &v->post, &out, &active, (cs_convolve_options){0});
    cs_tensor_read(compute, samples, &out);
    bool ok = cs_compute_sync(compute, error);
    cs_compute_release(compute, mark);
    for (int64_t i = 0; i < n_frames * cs_vocoder_samples_per_frame(v) && ok; i++)
        samples[i] = CLAMP(samples[i], -1.0f, 1.0f);
    return ok;
}
