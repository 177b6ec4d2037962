#include "models/qwen2_5_omni/speaker_encoder.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

enum { MAX_SCALE = 64 };

typedef struct {
    const cs_weight *weight; /* [outputs, kernel * inputs] */
    cs_tensor bias;
    int64_t kernel, dilation;
} layer;

typedef struct {
    layer tdnn1, tdnn2, se1, se2;
    layer parts[MAX_SCALE]; /* [scale - 1] */
} block;

struct cs_speaker_encoder {
    cs_compute *compute;
    cs_qwen2_5_omni_dit_config config;
    layer first, joined, attention1, attention2, last;
    block blocks[CS_DIT_MAX_SPEAKER_BLOCKS];
};

/* ---- Loading ---- */

static layer load(cs_loader *loader, const char *scope, const char *name, int64_t outputs,
                  int64_t inputs, int64_t kernel, int64_t dilation)
{
    g_autofree char *full = g_strconcat(scope, ".", name, NULL);
    return (layer){.weight = cs_load_convolution(loader, full, "weight", outputs, inputs, kernel),
                   .bias = cs_load_vector(loader, full, "bias", outputs),
                   .kernel = kernel,
                   .dilation = dilation};
}

static void load_block(cs_loader *loader, const cs_qwen2_5_omni_dit_config *c, const char *scope,
                       int64_t i, block *b)
{
    int64_t n = c->channels[i], part = n / c->res2net_scale;
    b->tdnn1 = load(loader, scope, "tdnn1.conv", n, n, 1, 1);
    b->tdnn2 = load(loader, scope, "tdnn2.conv", n, n, 1, 1);
    b->se1 = load(loader, scope, "se_block.conv1", c->se_channels, n, 1, 1);
    b->se2 = load(loader, scope, "se_block.conv2", n, c->se_channels, 1, 1);
    for (int64_t j = 0; j + 1 < c->res2net_scale; j++) {
        g_autofree char *name =
            g_strdup_printf("res2net_block.blocks.%" G_GINT64_FORMAT ".conv", j);
        b->parts[j] = load(loader, scope, name, part, part, c->kernels[i], c->dilations[i]);
    }
}

cs_speaker_encoder *cs_speaker_encoder_load(cs_loader *loader, cs_compute *compute,
                                            const cs_qwen2_5_omni_dit_config *config,
                                            const char *scope)
{
    cs_speaker_encoder *e = g_new0(cs_speaker_encoder, 1);
    const cs_qwen2_5_omni_dit_config *c = &e->config;
    int64_t last = config->n_speaker_blocks - 1, n = config->channels[last];
    cs_dtype dtype = loader->dtype;
    e->compute = compute;
    e->config = *config;
    loader->dtype = CS_DTYPE_F32;
    e->first = load(loader, scope, "blocks.0.conv", c->channels[0], c->n_mels, c->kernels[0],
                    c->dilations[0]);
    for (int64_t i = 1; i < last; i++) {
        g_autofree char *name = g_strdup_printf("%s.blocks.%" G_GINT64_FORMAT, scope, i);
        load_block(loader, c, name, i, &e->blocks[i]);
    }
    e->joined = load(loader, scope, "mfa.conv", n, n, c->kernels[last], c->dilations[last]);
    e->attention1 = load(loader, scope, "asp.tdnn.conv", c->attention_channels, 3 * n, 1, 1);
    e->attention2 = load(loader, scope, "asp.conv", n, c->attention_channels, 1, 1);
    e->last = load(loader, scope, "fc", c->speaker_size, 2 * n, 1, 1);
    loader->dtype = dtype;
    if (loader->error)
        g_clear_pointer(&e, cs_speaker_encoder_free);
    return e;
}

void cs_speaker_encoder_free(cs_speaker_encoder *encoder)
{
    g_free(encoder);
}

/* ---- Running ---- */

typedef enum { PLAIN, RELU, SIGMOID } shape_function;

static float apply(shape_function f, float x)
{
    return f == RELU ? fmaxf(x, 0) : f == SIGMOID ? 1 / (1 + expf(-x)) : x;
}

/* Index i of n when the signal is mirrored at its first and last element. */
static int64_t mirror(int64_t i, int64_t n)
{
    if (n == 1)
        return 0;
    int64_t period = 2 * (n - 1), at = ((i % period) + period) % period;
    return at < n ? at : period - at;
}

/* A convolution of x [n, inputs], rows x_stride apart, that keeps the length; y [n, outputs]. */
static void convolve(const cs_speaker_encoder *e, const layer *l, int64_t n, const float *x,
                     int64_t x_stride, float *y, shape_function f)
{
    cs_compute *compute = e->compute;
    int64_t cols = cs_weight_cols(l->weight), inputs = cols / l->kernel;
    int64_t outputs = cs_weight_rows(l->weight), left = l->dilation * (l->kernel - 1) / 2;
    size_t mark = cs_compute_mark(compute);
    cs_tensor from = cs_compute_scratch(compute, CS_DTYPE_F32, n, cols);
    cs_tensor to = cs_compute_scratch(compute, CS_DTYPE_F32, n, outputs);
    g_autofree float *columns = g_new(float, n *cols);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < l->kernel; k++)
            memcpy(columns + i * cols + k * inputs,
                   x + mirror(i - left + k * l->dilation, n) * x_stride,
                   (size_t)inputs * sizeof *x);
    cs_tensor_write(compute, &from, columns);
    cs_op_linear(compute, &to, &from, l->weight, &(cs_linear_options){.bias = &l->bias});
    cs_tensor_read(compute, y, &to);
    cs_compute_release(compute, mark);
    for (int64_t i = 0; i < n * outputs; i++)
        y[i] = apply(f, y[i]);
}

/* Channels in parts: each part's input is joined by the output of the part before it. */
static void res2net(const cs_speaker_encoder *e, const block *b, int64_t n, int64_t channels,
                    float *x)
{
    int64_t part = channels / e->config.res2net_scale;
    g_autofree float *in = g_new(float, n *part), *out = g_new(float, n *part);
    for (int64_t j = 1; j < e->config.res2net_scale; j++) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < part; c++)
                in[i * part + c] = x[i * channels + j * part + c] + (j > 1 ? out[i * part + c] : 0);
        convolve(e, &b->parts[j - 1], n, in, part, out, RELU);
        for (int64_t i = 0; i < n; i++)
            memcpy(x + i * channels + j * part, out + i * part, (size_t)part * sizeof *x);
    }
}

/* Scales each channel by what its mean says (squeeze and excitation). */
static void excite(const cs_speaker_encoder *e, const block *b, int64_t n, int64_t channels,
                   float *x)
{
    g_autofree float *mean = g_new0(float, channels);
    g_autofree float *squeezed = g_new(float, e->config.se_channels);
    for (int64_t i = 0; i < n * channels; i++)
        mean[i % channels] += x[i] / (float)n;
    convolve(e, &b->se1, 1, mean, channels, squeezed, RELU);
    convolve(e, &b->se2, 1, squeezed, e->config.se_channels, mean, SIGMOID);
    for (int64_t i = 0; i < n * channels; i++)
        x[i] *= mean[i % channels];
}

static void run_block(const cs_speaker_encoder *e, const block *b, int64_t n, int64_t channels,
                      const float *x, float *y)
{
    g_autofree float *inner = g_new(float, n *channels);
    convolve(e, &b->tdnn1, n, x, channels, inner, RELU);
    res2net(e, b, n, channels, inner);
    convolve(e, &b->tdnn2, n, inner, channels, y, RELU);
    excite(e, b, n, channels, y);
    for (int64_t i = 0; i < n * channels; i++)
        y[i] += x[i];
}

/* Mean and standard deviation of each channel over time; weight [n, channels] sums to 1 over time,
 * NULL: all alike. out [2 * channels]. */
static void statistics(int64_t n, int64_t channels, const float *x, const float *weight, float *out)
{
    for (int64_t c = 0; c < channels; c++) {
        double mean = 0, variance = 0;
        for (int64_t i = 0; i < n; i++)
            mean += (weight ? weight[i * channels + c] : 1.0 / (double)n) * x[i * channels + c];
        for (int64_t i = 0; i < n; i++) {
            double d = x[i * channels + c] - mean;
            variance += (weight ? weight[i * channels + c] : 1.0 / (double)n) * d * d;
        }
        out[c] = (float)mean;
        out[channels + c] = (float)sqrt(fmax(variance, 1e-12));
    }
}

static void softmax_over_time(int64_t n, int64_t channels, float *x)
{
    for (int64_t c = 0; c < channels; c++) {
        float highest = -INFINITY;
        double total = 0;
        for (int64_t i = 0; i < n; i++)
            highest = fmaxf(highest, x[i * channels + c]);
        for (int64_t i = 0; i < n; i++)
            total += x[i * channels + c] = expf(x[i * channels + c] - highest);
        for (int64_t i = 0; i < n; i++)
            x[i * channels + c] = (float)(x[i * channels + c] / total);
    }
}

/* Attentive statistics pooling: x [n, channels] to out [2 * channels]. */
static void pool(const cs_speaker_encoder *e, int64_t n, int64_t channels, const float *x,
                 float *out)
{
    g_autofree float *wide = g_new(float, n * 3 * channels), *weight = g_new(float, n *channels);
    g_autofree float *inner = g_new(float, n * e->config.attention_channels);
    statistics(n, channels, x, NULL, out);
    for (int64_t i = 0; i < n; i++) {
        memcpy(wide + i * 3 * channels, x + i * channels, (size_t)channels * sizeof *x);
        memcpy(wide + i * 3 * channels + channels, out, (size_t)(2 * channels) * sizeof *x);
    }
    convolve(e, &e->attention1, n, wide, 3 * channels, inner, RELU);
    for (int64_t i = 0; i < n * e->config.attention_channels; i++)
        inner[i] = tanhf(inner[i]);
    convolve(e, &e->attention2, n, inner, e->config.attention_channels, weight, PLAIN);
    softmax_over_time(n, channels, weight);
    statistics(n, channels, x, weight, out);
}

bool cs_speaker_encoder_run(const cs_speaker_encoder *e, const float *mel, int64_t n, float *out,
                            GError **error)
{
    const cs_qwen2_5_omni_dit_config *c = &e->config;
    int64_t channels = c->channels[0], last = c->n_speaker_blocks - 1, width = c->channels[last];
    g_autofree float *x = g_new(float, n *channels), *y = g_new(float, n *channels);
    g_autofree float *all = g_new(float, n *width), *joined = g_new(float, n *width);
    g_autofree float *pooled = g_new(float, 2 * width);
    convolve(e, &e->first, n, mel, c->n_mels, x, RELU);
    for (int64_t b = 1; b < last; b++) {
        run_block(e, &e->blocks[b], n, channels, x, y);
        for (int64_t i = 0; i < n; i++)
            memcpy(all + i * width + (b - 1) * channels, y + i * channels,
                   (size_t)channels * sizeof *y);
        float *swap = x;
        x = y;
        y = swap;
    }
    convolve(e, &e->joined, n, all, width, joined, RELU);
    pool(e, n, width, joined, pooled);
    convolve(e, &e->last, 1, pooled, 2 * width, out, PLAIN);
    return cs_compute_sync(e->compute, error);
}
