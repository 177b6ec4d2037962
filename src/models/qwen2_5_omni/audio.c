#include "models/qwen2_5_omni/audio.h"

#include "base/error.h"

#include <math.h>

static const float NORM_EPSILON = 1e-5f; /* fixed in the published network, not in its config */

enum { KERNEL = 3, PAD = 1, POOL = 2 };

typedef struct {
    cs_tensor norm1, norm1_bias; /* [1, hidden] */
    const cs_weight *qkv;        /* [3 * hidden, hidden]; keys have no bias */
    cs_tensor qkv_bias;
    const cs_weight *out; /* [hidden, hidden] */
    cs_tensor out_bias;
    cs_tensor norm2, norm2_bias;
    const cs_weight *fc1; /* [ffn, hidden] */
    cs_tensor fc1_bias;
    const cs_weight *fc2; /* [hidden, ffn] */
    cs_tensor fc2_bias;
} audio_layer;

typedef struct {
    cs_encoder encoder;
    cs_compute *compute;
    cs_qwen2_5_omni_audio_config config;
    cs_dtype weight_dtype, input_dtype;
    const cs_weight *conv1; /* [hidden, 3 * n_mels] */
    cs_tensor conv1_bias;
    const cs_weight *conv2; /* [hidden, 3 * hidden], stride 2 */
    cs_tensor conv2_bias;
    cs_tensor positions; /* [n_window, hidden] sines, cosines */
    audio_layer *layers;
    cs_tensor norm, norm_bias;
    const cs_weight *out; /* [out, hidden] */
    cs_tensor out_bias;
} audio;

/* ---- Loading ---- */

static void load_layer(cs_loader *loader, const cs_qwen2_5_omni_audio_config *c, const char *scope,
                       audio_layer *l)
{
    int64_t n = c->hidden_size;
    l->norm1 = cs_load_vector(loader, scope, "self_attn_layer_norm.weight", n);
    l->norm1_bias = cs_load_vector(loader, scope, "self_attn_layer_norm.bias", n);
    l->qkv = cs_load_matrix(loader, scope, n, 3,
                            (const cs_loader_part[]){{"self_attn.q_proj.weight", n},
                                                     {"self_attn.k_proj.weight", n},
                                                     {"self_attn.v_proj.weight", n}});
    l->qkv_bias =
        cs_load_bias(loader, scope, 3,
                     (const cs_loader_part[]){
                         {"self_attn.q_proj.bias", n}, {NULL, n}, {"self_attn.v_proj.bias", n}},
                     false);
    l->out = cs_load_linear(loader, scope, "self_attn.out_proj.weight", n, n);
    l->out_bias = cs_load_vector(loader, scope, "self_attn.out_proj.bias", n);
    l->norm2 = cs_load_vector(loader, scope, "final_layer_norm.weight", n);
    l->norm2_bias = cs_load_vector(loader, scope, "final_layer_norm.bias", n);
    l->fc1 = cs_load_linear(loader, scope, "fc1.weight", c->ffn_size, n);
    l->fc1_bias = cs_load_vector(loader, scope, "fc1.bias", c->ffn_size);
    l->fc2 = cs_load_linear(loader, scope, "fc2.weight", n, c->ffn_size);
    l->fc2_bias = cs_load_vector(loader, scope, "fc2.bias", n);
}

/* Sinusoids of Vaswani et al. 2017 as Whisper lays them out: sines in the first half, cosines in
 * the second. */
static cs_tensor make_positions(cs_loader *loader, int64_t n, int64_t hidden)
{
    int64_t half = hidden / 2;
    g_autofree float *table = g_new(float, n *hidden);
    for (int64_t i = 0; i < half; i++) {
        float inverse = expf((float)(-log(10000.0) / (double)(half - 1)) * (float)i);
        for (int64_t t = 0; t < n; t++) {
            table[t * hidden + i] = sinf((float)t * inverse);
            table[t * hidden + half + i] = cosf((float)t * inverse);
        }
    }
    return cs_parameters_tensor(loader->parameters, table, CS_DTYPE_F32, n, hidden, &loader->error);
}

static const cs_encoder_ops audio_ops;

static void audio_free(cs_encoder *encoder)
{
    audio *a = (audio *)encoder;
    if (!a)
        return;
    g_free(a->layers);
    g_free(a);
}

cs_encoder *cs_qwen2_5_omni_audio_load(cs_loader *loader, cs_compute *compute,
                                       const cs_qwen2_5_omni_audio_config *config,
                                       const char *scope)
{
    audio *a = g_new0(audio, 1);
    const cs_qwen2_5_omni_audio_config *c = &a->config;
    int64_t hidden = config->hidden_size;
    a->config = *config;
    a->compute = compute;
    a->weight_dtype = loader->dtype;
    a->input_dtype = cs_compute_input_dtype(compute, loader->dtype);
    a->conv1 = cs_load_convolution(loader, scope, "conv1.weight", hidden, c->n_mels, KERNEL);
    a->conv1_bias = cs_load_vector(loader, scope, "conv1.bias", hidden);
    a->conv2 = cs_load_convolution(loader, scope, "conv2.weight", hidden, hidden, KERNEL);
    a->conv2_bias = cs_load_vector(loader, scope, "conv2.bias", hidden);
    a->positions = make_positions(loader, c->n_window, hidden);
    a->layers = g_new0(audio_layer, c->n_layers);
    for (int64_t i = 0; i < c->n_layers; i++) {
        g_autofree char *layer_scope = g_strdup_printf("%s.layers.%" G_GINT64_FORMAT, scope, i);
        load_layer(loader, c, layer_scope, &a->layers[i]);
    }
    a->norm = cs_load_vector(loader, scope, "ln_post.weight", hidden);
    a->norm_bias = cs_load_vector(loader, scope, "ln_post.bias", hidden);
    a->out = cs_load_linear(loader, scope, "proj.weight", c->out_size, hidden);
    a->out_bias = cs_load_vector(loader, scope, "proj.bias", c->out_size);
    a->encoder = (cs_encoder){.ops = &audio_ops, .output_size = (uint32_t)c->out_size};
    if (loader->error) {
        audio_free(&a->encoder);
        return NULL;
    }
    return &a->encoder;
}

/* ---- Geometry ---- */

/* Rows behind the second convolution, whose stride is 2. */
static int64_t rows_after_convolution(int64_t frames)
{
    return (frames - 1) / 2 + 1;
}

static uint32_t audio_cost_tokens(const cs_encoder *encoder, const cs_encoder_item *item)
{
    const audio *a = (const audio *)encoder;
    bool sound = item->input.cols == a->config.n_mels && item->input.rows > 0 &&
                 item->input.rows <= INT32_MAX / 2;
    return sound ? (uint32_t)rows_after_convolution(item->input.rows) : 0;
}

static uint32_t audio_output_tokens(const cs_encoder *encoder, const cs_encoder_item *item)
{
    return audio_cost_tokens(encoder, item) / POOL;
}

/* A chunk of 2 n_window frames (fewer at the end of a sound), which sees no other. */
typedef struct {
    cs_tensor frames;  /* [n, n_mels] */
    int64_t first;     /* its first row among all frames of the batch */
    int64_t first_out; /* the same behind the second convolution */
} chunk;

/* The chunks of all items, and their borders as segments for attention. */
static GArray *cut_chunks(const audio *a, uint32_t n, const cs_encoder_item *items, GArray *starts)
{
    GArray *chunks = g_array_new(FALSE, FALSE, sizeof(chunk));
    int64_t first = 0, size = 2 * a->config.n_window;
    int32_t out = 0;
    g_array_append_val(starts, out);
    for (uint32_t i = 0; i < n; i++)
        for (int64_t row = 0; row < items[i].input.rows; row += size) {
            int64_t frames = MIN(size, items[i].input.rows - row);
            chunk c = {.frames = cs_tensor_rows(&items[i].input, row, frames),
                       .first = first,
                       .first_out = out};
            g_array_append_val(chunks, c);
            first += frames;
            out += (int32_t)rows_after_convolution(frames);
            g_array_append_val(starts, out);
        }
    return chunks;
}

/* ---- Forward ---- */

/* One convolution of all chunks: their columns into one matrix, then one product. `from` is a
 * chunk's input. */
static cs_tensor convolve(const audio *a, const GArray *chunks, const cs_tensor *x,
                          int64_t rows_out, int32_t stride, const cs_weight *weight,
                          const cs_tensor *bias)
{
    cs_compute *compute = a->compute;
    cs_tensor y = cs_compute_scratch(compute, CS_DTYPE_F32, rows_out, a->config.hidden_size);
    size_t mark = cs_compute_mark(compute);
    cs_tensor columns =
        cs_compute_scratch(compute, a->input_dtype, rows_out, cs_weight_cols(weight));
    for (guint i = 0; i < chunks->len; i++) {
        const chunk *c = &g_array_index(chunks, chunk, i);
        cs_tensor from = x ? cs_tensor_rows(x, c->first, c->frames.rows) : c->frames;
        int64_t n = stride == 1 ? from.rows : rows_after_convolution(from.rows);
        cs_tensor to = cs_tensor_rows(&columns, stride == 1 ? c->first : c->first_out, n);
        cs_op_im2col(compute, &to, &from, KERNEL, stride, PAD, 1);
    }
    cs_op_linear(compute, &y, &columns, weight,
                 &(cs_linear_options){.bias = bias, .activation = CS_ACTIVATION_GELU});
    cs_compute_release(compute, mark);
    return y;
}

static void add_positions(const audio *a, const GArray *starts, const cs_tensor *x)
{
    for (guint i = 0; i + 1 < starts->len; i++) {
        int32_t first = g_array_index(starts, int32_t, i),
                end = g_array_index(starts, int32_t, i + 1);
        cs_tensor rows = cs_tensor_rows(x, first, end - first);
        cs_tensor positions = cs_tensor_rows(&a->positions, 0, end - first);
        cs_op_add(a->compute, &rows, &positions);
    }
}

static void run_layer(const audio *a, const audio_layer *l, const GArray *starts,
                      const cs_tensor *x)
{
    cs_compute *compute = a->compute;
    const cs_qwen2_5_omni_audio_config *c = &a->config;
    size_t mark = cs_compute_mark(compute);
    int64_t hidden = c->hidden_size, head_dim = hidden / c->n_heads;
    const cs_segment_attention attention = {.n_heads = c->n_heads,
                                            .head_dim = head_dim,
                                            .scale = 1.0f / sqrtf((float)head_dim),
                                            .dtype = a->weight_dtype,
                                            .n_segments = starts->len - 1,
                                            .starts = (const int32_t *)(void *)starts->data};
    cs_tensor normed = cs_compute_scratch(compute, a->input_dtype, x->rows, hidden);
    cs_tensor attended = cs_compute_scratch(compute, a->input_dtype, x->rows, hidden);
    cs_tensor qkv = cs_compute_scratch(compute, CS_DTYPE_F32, x->rows, 3 * hidden);
    cs_tensor q = cs_tensor_cols(&qkv, 0, hidden), k = cs_tensor_cols(&qkv, hidden, hidden);
    cs_tensor v = cs_tensor_cols(&qkv, 2 * hidden, hidden);
    cs_op_layer_norm(compute, &normed, x, &l->norm1, &l->norm1_bias, NORM_EPSILON);
    cs_op_linear(compute, &qkv, &normed, l->qkv, &(cs_linear_options){.bias = &l->qkv_bias});
    cs_op_attention_segments(compute, &attended, &q, &k, &v, &attention);
    cs_op_linear(compute, x, &attended, l->out,
                 &(cs_linear_options){.bias = &l->out_bias, .accumulate = true});

    cs_tensor inner = cs_compute_scratch(compute, a->input_dtype, x->rows, c->ffn_size);
    cs_op_layer_norm(compute, &normed, x, &l->norm2, &l->norm2_bias, NORM_EPSILON);
    cs_op_linear(compute, &inner, &normed, l->fc1,
                 &(cs_linear_options){.bias = &l->fc1_bias, .activation = CS_ACTIVATION_GELU});
    cs_op_linear(compute, x, &inner, l->fc2,
                 &(cs_linear_options){.bias = &l->fc2_bias, .accumulate = true});
    cs_compute_release(compute, mark);
}

/* Means of pairs of rows, normalised and mapped to the LLM's width: one item, rows [first, first +
 * rows) of x. */
static cs_shared_tensor *finish_item(const audio *a, const cs_tensor *x, int64_t first,
                                     int64_t rows)
{
    cs_compute *compute = a->compute;
    int64_t tokens = rows / POOL;
    cs_shared_tensor *out = cs_shared_tensor_new(CS_DTYPE_F32, tokens, a->config.out_size);
    if (!out || tokens == 0)
        return out;
    size_t mark = cs_compute_mark(compute);
    cs_tensor pooled = cs_compute_scratch(compute, CS_DTYPE_F32, tokens, a->config.hidden_size);
    cs_tensor normed = cs_compute_scratch(compute, a->input_dtype, tokens, a->config.hidden_size);
    cs_tensor projected = cs_compute_scratch(compute, CS_DTYPE_F32, tokens, a->config.out_size);
    cs_tensor from = cs_tensor_rows(x, first, rows);
    cs_op_mean_rows(compute, &pooled, &from, POOL);
    cs_op_layer_norm(compute, &normed, &pooled, &a->norm, &a->norm_bias, NORM_EPSILON);
    cs_op_linear(compute, &projected, &normed, a->out, &(cs_linear_options){.bias = &a->out_bias});
    cs_tensor_read(compute, out->t.data, &projected);
    cs_compute_release(compute, mark);
    return out;
}

static bool collect(const audio *a, const cs_tensor *x, uint32_t n, const cs_encoder_item *items,
                    cs_shared_tensor **outputs, GError **error)
{
    int64_t first = 0;
    for (uint32_t i = 0; i < n; i++) {
        int64_t rows = audio_cost_tokens(&a->encoder, &items[i]);
        outputs[i] = finish_item(a, x, first, rows);
        if (!outputs[i])
            return cs_fail(error, CS_ERROR_FAILED,
                           "no memory for %" G_GINT64_FORMAT " audio tokens", rows / POOL);
        first += rows;
    }
    return cs_compute_sync(a->compute, error);
}

static bool audio_forward(cs_encoder *encoder, uint32_t n, const cs_encoder_item *items,
                          cs_shared_tensor **outputs, GError **error)
{
    audio *a = (audio *)encoder;
    cs_compute *compute = a->compute;
    int64_t frames = 0, rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        int64_t cost = audio_cost_tokens(encoder, &items[i]);
        if (cost == 0)
            return cs_fail(error, CS_ERROR_INVALID,
                           "sound %u: no frames, or not of %" G_GINT64_FORMAT " mel bins", i,
                           a->config.n_mels);
        frames += items[i].input.rows;
        rows += cost;
    }
    size_t mark = cs_compute_mark(compute);
    g_autoptr(GArray) starts = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g_autoptr(GArray) chunks = cut_chunks(a, n, items, starts);
    cs_tensor x1 = convolve(a, chunks, NULL, frames, 1, a->conv1, &a->conv1_bias);
    cs_tensor x = convolve(a, chunks, &x1, rows, 2, a->conv2, &a->conv2_bias);
    add_positions(a, starts, &x);
    bool ok = true;
    for (int64_t i = 0; i < a->config.n_layers && ok; i++) {
        run_layer(a, &a->layers[i], starts, &x);
        ok = cs_encoder_yield(encoder, compute, error);
    }

    cs_shared_tensor **made = g_new0(cs_shared_tensor *, n);
    ok = ok && cs_compute_sync(compute, error) && collect(a, &x, n, items, made, error);
    for (uint32_t i = 0; i < n; i++) {
        if (ok)
            outputs[i] = made[i];
        else
            cs_shared_tensor_unref(made[i]);
    }
    g_free(made);
    cs_compute_release(compute, mark);
    return ok;
}

static const cs_encoder_ops audio_ops = {.output_tokens = audio_output_tokens,
                                         .cost_tokens = audio_cost_tokens,
                                         .forward = audio_forward,
                                         .free = audio_free};
