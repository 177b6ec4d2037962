#include "models/qwen2_5_omni/dit.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

enum {
    STAGES = 4,
    N_TIMES = 3 * CS_DIT_STEPS + 1, /* the last stage of a step is the first of the next */
    TIME_SIZE = 256,                /* of the sinusoidal embedding of a time */
    MODULATIONS = 6,                /* shift, scale, gate of attention; shift, scale, gate of MLP */
    MAX_WINDOWS = 256
};
static const float NORM_EPSILON = 1e-6f;

typedef struct {
    cs_tensor modulation; /* [N_TIMES, 6 * hidden] */
    const cs_weight *qkv; /* [3 * heads * head_dim, hidden], rows of head 0 half-split in q and k */
    cs_tensor qkv_bias;
    const cs_weight *out; /* [hidden, heads * head_dim] */
    cs_tensor out_bias;
    const cs_weight *ff1; /* [ff_size, hidden] */
    cs_tensor ff1_bias;
    const cs_weight *ff2; /* [hidden, ff_size] */
    cs_tensor ff2_bias;
} dit_layer;

struct cs_dit {
    cs_compute *compute;
    cs_qwen2_5_omni_dit_config config;
    cs_dtype weight_dtype, input_dtype;
    cs_speaker_encoder *speaker_encoder;
    float *codes;                /* [n_codes + 1, code_size] */
    const cs_weight *input;      /* [hidden, n_mels]: the part of the input matrix over the state */
    const cs_weight *conditions; /* [hidden, speaker + code + voice]: the rest of it */
    cs_tensor input_bias;
    dit_layer *layers;
    cs_tensor out_modulation; /* [N_TIMES, 2 * hidden]: scale, shift */
    const cs_weight *out;     /* [n_mels, hidden] */
    cs_tensor out_bias;
    float *frequencies; /* [head_dim / 2] */
    cs_dit_tap *tap;
    void *tap_user;
};

struct cs_dit_window {
    const cs_dit *dit;
    int64_t n_frames;
    uint32_t n_steps; /* done */
    float
        *conditions; /* [2 * n_frames, hidden] what of the input does not change, guided and null */
    float *state;    /* [n_frames, n_mels] */
};

/* ---- Times ---- */

/* Of CS_DIT_STEPS + 1 even times, swayed towards 0 (Chen et al. 2024, F5-TTS, coefficient -1). */
static float swayed(uint32_t i)
{
    float t = (float)i / (float)CS_DIT_STEPS;
    return t - (cosf((float)(G_PI / 2) * t) - 1.0f + t);
}

static float step_size(uint32_t step)
{
    return swayed(step + 1) - swayed(step);
}

float cs_dit_time(uint32_t step, uint32_t stage)
{
    static const float thirds[] = {0, 1.0f / 3, 2.0f / 3};
    return stage == 3 ? swayed(step + 1) : swayed(step) + step_size(step) * thirds[stage];
}

static void embed_time(float t, float *out)
{
    enum { HALF = TIME_SIZE / 2 };
    float rate = (float)(log(10000.0) / (HALF - 1));
    for (int i = 0; i < HALF; i++) {
        float angle = 1000.0f * t * expf((float)i * -rate);
        out[i] = sinf(angle);
        out[HALF + i] = cosf(angle);
    }
}

/* ---- Loading ---- */

/* SiLU of the time embedding of all times, [N_TIMES, hidden]. */
static cs_tensor embed_times(cs_dit *d, cs_loader *loader, const char *scope)
{
    int64_t hidden = d->config.hidden_size;
    cs_compute *compute = d->compute;
    cs_tensor out = cs_compute_scratch(compute, CS_DTYPE_F32, N_TIMES, hidden);
    cs_tensor inner = cs_compute_scratch(compute, CS_DTYPE_F32, N_TIMES, hidden);
    cs_tensor waves = cs_compute_scratch(compute, CS_DTYPE_F32, N_TIMES, TIME_SIZE);
    const cs_weight *w1 =
        cs_load_linear(loader, scope, "time_embed.time_mlp.0.weight", hidden, TIME_SIZE);
    const cs_weight *w2 =
        cs_load_linear(loader, scope, "time_embed.time_mlp.2.weight", hidden, hidden);
    cs_tensor b1 = cs_load_vector(loader, scope, "time_embed.time_mlp.0.bias", hidden);
    cs_tensor b2 = cs_load_vector(loader, scope, "time_embed.time_mlp.2.bias", hidden);
    if (loader->error)
        return out;
    g_autofree float *values = g_new(float, N_TIMES *TIME_SIZE);
    for (uint32_t i = 0; i < N_TIMES; i++)
        embed_time(i + 1 < N_TIMES ? cs_dit_time(i / 3, i % 3) : cs_dit_time(CS_DIT_STEPS - 1, 3),
                   values + i * TIME_SIZE);
    cs_tensor_write(compute, &waves, values);
    const cs_linear_options first = {.bias = &b1, .activation = CS_ACTIVATION_SILU};
    const cs_linear_options second = {.bias = &b2, .activation = CS_ACTIVATION_SILU};
    cs_op_linear(compute, &inner, &waves, w1, &first);
    cs_op_linear(compute, &out, &inner, w2, &second);
    return out;
}

/* A matrix over the time embedding, for all times: [N_TIMES, n * hidden]. Its weights go again. */
static cs_tensor modulate(cs_dit *d, cs_loader *loader, const cs_tensor *times, const char *scope,
                          int64_t n)
{
    static const cs_tensor none = {0};
    cs_compute *compute = d->compute;
    int64_t hidden = d->config.hidden_size;
    size_t mark = cs_compute_mark(compute);
    cs_parameters *kept = loader->parameters;
    loader->parameters = cs_parameters_new(compute);
    const cs_weight *weight = cs_load_linear(loader, scope, "linear.weight", n * hidden, hidden);
    cs_tensor bias = cs_load_vector(loader, scope, "linear.bias", n * hidden);
    cs_tensor made = cs_compute_scratch(compute, CS_DTYPE_F32, N_TIMES, n * hidden);
    g_autofree float *values = g_new(float, N_TIMES *n *hidden);
    if (!loader->error) {
        cs_op_linear(compute, &made, times, weight, &(cs_linear_options){.bias = &bias});
        cs_tensor_read(compute, values, &made);
        cs_compute_sync(compute, &loader->error);
    }
    cs_parameters_free(loader->parameters);
    loader->parameters = kept;
    cs_compute_release(compute, mark);
    return loader->error ? none
                         : cs_parameters_tensor(kept, values, CS_DTYPE_F32, N_TIMES, n * hidden,
                                                &loader->error);
}

/* The reference turns pairs (2i, 2i + 1) of head 0; rows in the order even, odd make them the pairs
 * (i, i + head_dim / 2) of cs_op_rope. Scores do not change, as q and k are ordered alike. */
static void split_halves(float *rows, int64_t head_dim, int64_t cols)
{
    size_t row_bytes = (size_t)cols * sizeof *rows;
    g_autofree float *copy = g_memdup2(rows, (size_t)head_dim * row_bytes);
    for (int64_t i = 0; i < head_dim; i++)
        memcpy(rows + i * cols, copy + (i % (head_dim / 2) * 2 + i / (head_dim / 2)) * cols,
               row_bytes);
}

/* q, k and v one below the other, with `cols` columns (of the bias: 1). */
static float *load_qkv(cs_loader *loader, const cs_qwen2_5_omni_dit_config *c, const char *scope,
                       const char *suffix, int64_t cols)
{
    static const char *const names[] = {"to_q", "to_k", "to_v"};
    int64_t inner = c->n_heads * c->head_dim;
    float *all = g_new(float, 3 * inner * cols);
    for (int i = 0; i < 3; i++) {
        g_autofree char *name = g_strconcat("attn.", names[i], suffix, NULL);
        g_autofree float *one =
            cs_load_values(loader, scope, name, cols > 1 ? 2 : 1, (const int64_t[]){inner, cols});
        if (!one)
            break;
        if (i < 2)
            split_halves(one, c->head_dim, cols);
        memcpy(all + i * inner * cols, one, (size_t)(inner * cols) * sizeof *one);
    }
    return all;
}

static void load_layer(cs_dit *d, cs_loader *loader, const cs_tensor *times, const char *scope,
                       dit_layer *l)
{
    const cs_qwen2_5_omni_dit_config *c = &d->config;
    int64_t hidden = c->hidden_size, inner = c->n_heads * c->head_dim;
    g_autofree char *norm_scope = g_strconcat(scope, ".attn_norm", NULL);
    l->modulation = modulate(d, loader, times, norm_scope, MODULATIONS);
    g_autofree float *qkv = load_qkv(loader, c, scope, ".weight", hidden);
    g_autofree float *bias = load_qkv(loader, c, scope, ".bias", 1);
    l->qkv = cs_load_packed(loader, qkv, 3 * inner, hidden);
    if (!loader->error)
        l->qkv_bias = cs_parameters_tensor(loader->parameters, bias, CS_DTYPE_F32, 1, 3 * inner,
                                           &loader->error);
    l->out = cs_load_linear(loader, scope, "attn.to_out.0.weight", hidden, inner);
    l->out_bias = cs_load_vector(loader, scope, "attn.to_out.0.bias", hidden);
    l->ff1 = cs_load_linear(loader, scope, "ff.ff.0.weight", c->ff_size, hidden);
    l->ff1_bias = cs_load_vector(loader, scope, "ff.ff.0.bias", c->ff_size);
    l->ff2 = cs_load_linear(loader, scope, "ff.ff.3.weight", hidden, c->ff_size);
    l->ff2_bias = cs_load_vector(loader, scope, "ff.ff.3.bias", hidden);
}

/* The input matrix's columns: state, speaker, code, voice; cut behind the first. */
static void load_input(cs_dit *d, cs_loader *loader, const char *scope)
{
    const cs_qwen2_5_omni_dit_config *c = &d->config;
    int64_t rest = c->speaker_size + c->code_size + c->voice_size, all = c->n_mels + rest;
    g_autofree float *whole = cs_load_values(loader, scope, "input_embed.proj.weight", 2,
                                             (const int64_t[]){c->hidden_size, all});
    d->input_bias = cs_load_vector(loader, scope, "input_embed.proj.bias", c->hidden_size);
    if (!whole)
        return;
    g_autofree float *left = g_new(float, c->hidden_size * c->n_mels);
    g_autofree float *right = g_new(float, c->hidden_size *rest);
    for (int64_t i = 0; i < c->hidden_size; i++) {
        memcpy(left + i * c->n_mels, whole + i * all, (size_t)c->n_mels * sizeof *whole);
        memcpy(right + i * rest, whole + i * all + c->n_mels, (size_t)rest * sizeof *whole);
    }
    d->input = cs_load_packed(loader, left, c->hidden_size, c->n_mels);
    d->conditions = cs_load_packed(loader, right, c->hidden_size, rest);
}

/* The checkpoint may hold them; else as the reference computes them. */
static void load_frequencies(cs_dit *d, cs_loader *loader, const char *scope)
{
    int64_t half = d->config.head_dim / 2;
    g_autofree char *name = g_strconcat(scope, ".rotary_embed.inv_freq", NULL);
    if (cs_checkpoint_find(loader->checkpoint, name)) {
        d->frequencies = cs_load_values(loader, scope, "rotary_embed.inv_freq", 1, &half);
        return;
    }
    d->frequencies = g_new(float, half);
    for (int64_t i = 0; i < half; i++)
        d->frequencies[i] =
            1.0f / powf((float)d->config.rope_theta, (float)(2 * i) / (float)d->config.head_dim);
}

cs_dit *cs_dit_load(cs_loader *loader, cs_compute *compute,
                    const cs_qwen2_5_omni_dit_config *config, const char *scope)
{
    g_autoptr(cs_dit) d = g_new0(cs_dit, 1);
    const cs_qwen2_5_omni_dit_config *c = &d->config;
    d->compute = compute;
    d->config = *config;
    d->weight_dtype = loader->dtype;
    d->input_dtype = cs_compute_input_dtype(compute, loader->dtype);
    g_autofree char *encoder_scope = g_strconcat(scope, ".input_embed.spk_encoder", NULL);
    d->speaker_encoder = cs_speaker_encoder_load(loader, compute, config, encoder_scope);
    d->codes = cs_load_values(loader, scope, "text_embed.codec_embed.weight", 2,
                              (const int64_t[]){c->n_codes + 1, c->code_size});
    load_input(d, loader, scope);
    load_frequencies(d, loader, scope);
    size_t mark = cs_compute_mark(compute);
    cs_tensor times = embed_times(d, loader, scope);
    d->layers = g_new0(dit_layer, c->n_layers);
    for (int64_t i = 0; i < c->n_layers; i++) {
        g_autofree char *layer_scope =
            g_strdup_printf("%s.transformer_blocks.%" G_GINT64_FORMAT, scope, i);
        load_layer(d, loader, &times, layer_scope, &d->layers[i]);
    }
    g_autofree char *out_scope = g_strconcat(scope, ".norm_out", NULL);
    d->out_modulation = modulate(d, loader, &times, out_scope, 2);
    cs_compute_release(compute, mark);
    d->out = cs_load_linear(loader, scope, "proj_out.weight", c->n_mels, c->hidden_size);
    d->out_bias = cs_load_vector(loader, scope, "proj_out.bias", c->n_mels);
    return loader->error ? NULL : g_steal_pointer(&d);
}

void cs_dit_free(cs_dit *d)
{
    if (!d)
        return;
    cs_speaker_encoder_free(d->speaker_encoder);
    g_free(d->codes);
    g_free(d->frequencies);
    g_free(d->layers);
    g_free(d);
}

void cs_dit_set_tap(cs_dit *dit, cs_dit_tap *tap, void *user)
{
    dit->tap = tap;
    dit->tap_user = user;
}

/* ---- Voices and windows ---- */

bool cs_dit_voice_init(cs_dit_voice *voice, const cs_dit *dit, const cs_speaker *speaker,
                       GError **error)
{
    const cs_qwen2_5_omni_dit_config *c = &dit->config;
    g_assert(speaker->n_cond == c->voice_size && speaker->n_mels == c->n_mels);
    g_autofree float *both = g_new(float, 2 * c->speaker_size);
    g_autofree float *silence = g_new0(float, speaker->n_frames * c->n_mels);
    if (!cs_speaker_encoder_run(dit->speaker_encoder, speaker->mel, speaker->n_frames, both,
                                error) ||
        !cs_speaker_encoder_run(dit->speaker_encoder, silence, speaker->n_frames,
                                both + c->speaker_size, error))
        return false;
    voice->speaker = g_steal_pointer(&both);
    voice->cond = g_memdup2(speaker->cond, (size_t)c->voice_size * sizeof(float));
    return true;
}

void cs_dit_voice_clear(cs_dit_voice *voice)
{
    g_free(voice->cond);
    g_free(voice->speaker);
    *voice = (cs_dit_voice){0};
}

/* Speaker, code and voice of each frame, guided then null, through their part of the input matrix.
 */
static bool compute_conditions(cs_dit_window *w, cs_dit *d, const cs_dit_voice *voice,
                               const int32_t *codes, GError **error)
{
    const cs_qwen2_5_omni_dit_config *c = &d->config;
    cs_compute *compute = d->compute;
    int64_t width = c->speaker_size + c->code_size + c->voice_size;
    g_autofree float *rows = g_try_new0(float, 2 * w->n_frames * width);
    if (!rows)
        return cs_fail(error, CS_ERROR_FAILED, "no memory for %" G_GINT64_FORMAT " mel frames",
                       w->n_frames);
    for (int64_t i = 0; i < 2 * w->n_frames; i++) {
        bool null = i >= w->n_frames;
        float *row = rows + i * width;
        int64_t code = null ? 0 : codes[i / c->repeats];
        memcpy(row, voice->speaker + (null ? c->speaker_size : 0),
               (size_t)c->speaker_size * sizeof *row);
        memcpy(row + c->speaker_size, d->codes + code * c->code_size,
               (size_t)c->code_size * sizeof *row);
        if (!null)
            memcpy(row + c->speaker_size + c->code_size, voice->cond,
                   (size_t)c->voice_size * sizeof *row);
    }
    size_t mark = cs_compute_mark(compute);
    cs_tensor in = cs_compute_scratch(compute, CS_DTYPE_F32, 2 * w->n_frames, width);
    cs_tensor out = cs_compute_scratch(compute, CS_DTYPE_F32, 2 * w->n_frames, c->hidden_size);
    cs_tensor_write(compute, &in, rows);
    cs_op_linear(compute, &out, &in, d->conditions, &(cs_linear_options){.bias = &d->input_bias});
    cs_tensor_read(compute, w->conditions, &out);
    cs_compute_release(compute, mark);
    return cs_compute_sync(compute, error);
}

cs_dit_window *cs_dit_window_new(cs_dit *d, const cs_dit_voice *voice, int64_t n_codes,
                                 const int32_t *codes, const float *noise, GError **error)
{
    const cs_qwen2_5_omni_dit_config *c = &d->config;
    for (int64_t i = 0; i < n_codes; i++)
        if (codes[i] < 0 || codes[i] > c->n_codes) {
            cs_fail(error, CS_ERROR_INVALID,
                    "code %" G_GINT64_FORMAT " is %d, expected 0 to %" G_GINT64_FORMAT, i, codes[i],
                    c->n_codes);
            return NULL;
        }
    g_autoptr(cs_dit_window) w = g_new0(cs_dit_window, 1);
    w->dit = d;
    w->n_frames = n_codes * c->repeats;
    w->state = g_try_new(float, w->n_frames * c->n_mels);
    w->conditions = g_try_new(float, 2 * w->n_frames * c->hidden_size);
    if (n_codes < 1 || n_codes > INT32_MAX / 4 / c->repeats || !w->state || !w->conditions) {
        cs_fail(error, CS_ERROR_FAILED, "no memory for a window of %" G_GINT64_FORMAT " codes",
                n_codes);
        return NULL;
    }
    memcpy(w->state, noise, (size_t)(w->n_frames * c->n_mels) * sizeof *noise);
    return compute_conditions(w, d, voice, codes, error) ? g_steal_pointer(&w) : NULL;
}

void cs_dit_window_free(cs_dit_window *window)
{
    if (!window)
        return;
    g_free(window->state);
    g_free(window->conditions);
    g_free(window);
}

uint32_t cs_dit_window_steps(const cs_dit_window *window)
{
    return window->n_steps;
}

int64_t cs_dit_window_frames(const cs_dit_window *window)
{
    return window->n_frames;
}

const float *cs_dit_window_state(const cs_dit_window *window)
{
    return window->state;
}

/* ---- One evaluation ---- */

/* A batch of windows. Each has its frames once in states and predictions [frames, n_mels], and
 * twice, guided and null, in everything between. */
typedef struct {
    cs_dit *dit;
    uint32_t n;
    cs_dit_window *const *windows;
    int32_t *frames; /* [n + 1] first frame of each */
    int32_t *pairs;  /* [n + 1] first row of each in the doubled rows */
    int32_t *halves; /* [2 n + 1] first row of each half */
    int32_t *times;  /* [n] row of the modulation tables */
    cs_tensor conditions, rope;
} batch;

static cs_tensor window_rows(const batch *b, const cs_tensor *t, uint32_t i)
{
    return cs_tensor_rows(t, b->frames[i], b->frames[i + 1] - b->frames[i]);
}

static void attend(const batch *b, const dit_layer *l, int64_t index, const cs_tensor *normed,
                   const cs_tensor *out)
{
    const cs_dit *d = b->dit;
    const cs_qwen2_5_omni_dit_config *c = &d->config;
    int64_t inner = c->n_heads * c->head_dim;
    size_t mark = cs_compute_mark(d->compute);
    cs_tensor qkv = cs_compute_scratch(d->compute, d->input_dtype, normed->rows, 3 * inner);
    cs_tensor attended = cs_compute_scratch(d->compute, d->input_dtype, normed->rows, inner);
    cs_tensor q = cs_tensor_cols(&qkv, 0, inner), k = cs_tensor_cols(&qkv, inner, inner);
    cs_tensor v = cs_tensor_cols(&qkv, 2 * inner, inner);
    /* Only head 0 knows positions. */
    cs_tensor q0 = cs_tensor_cols(&q, 0, c->head_dim), k0 = cs_tensor_cols(&k, 0, c->head_dim);
    cs_op_linear(d->compute, &qkv, normed, l->qkv, &(cs_linear_options){.bias = &l->qkv_bias});
    cs_op_rope(d->compute, &q0, &b->rope, c->head_dim);
    cs_op_rope(d->compute, &k0, &b->rope, c->head_dim);
    const cs_segment_attention attention = {.n_heads = c->n_heads,
                                            .head_dim = c->head_dim,
                                            .scale = 1.0f / sqrtf((float)c->head_dim),
                                            .dtype = d->weight_dtype,
                                            .n_segments = 2 * b->n,
                                            .starts = b->halves,
                                            .block_rows = c->block_size,
                                            .blocks_before = c->look_backward >> index & 1,
                                            .blocks_after = c->look_ahead >> index & 1};
    cs_op_attention_segments(d->compute, &attended, &q, &k, &v, &attention);
    cs_op_linear(d->compute, out, &attended, l->out, &(cs_linear_options){.bias = &l->out_bias});
    cs_compute_release(d->compute, mark);
}

static void run_layer(const batch *b, int64_t index, const cs_tensor *x)
{
    const cs_dit *d = b->dit;
    const dit_layer *l = &d->layers[index];
    cs_compute *compute = d->compute;
    int64_t hidden = d->config.hidden_size;
    const cs_segments segments = {b->n, b->pairs};
    size_t mark = cs_compute_mark(compute);
    cs_tensor modulation = cs_compute_scratch(compute, CS_DTYPE_F32, b->n, MODULATIONS * hidden);
    cs_tensor part[MODULATIONS];
    for (int i = 0; i < MODULATIONS; i++)
        part[i] = cs_tensor_cols(&modulation, i * hidden, hidden);
    cs_tensor normed = cs_compute_scratch(compute, d->input_dtype, x->rows, hidden);
    cs_tensor change = cs_compute_scratch(compute, d->input_dtype, x->rows, hidden);
    cs_tensor inner = cs_compute_scratch(compute, d->input_dtype, x->rows, d->config.ff_size);
    const cs_linear_options ff1 = {.bias = &l->ff1_bias, .activation = CS_ACTIVATION_GELU_TANH};
    const cs_linear_options ff2 = {.bias = &l->ff2_bias};
    cs_op_gather(compute, &modulation, &l->modulation, b->times);
    cs_op_modulated_norm(compute, &normed, x, &part[1], &part[0], &segments, NORM_EPSILON);
    attend(b, l, index, &normed, &change);
    cs_op_add_gated(compute, x, &change, &part[2], &segments);
    cs_op_modulated_norm(compute, &normed, x, &part[4], &part[3], &segments, NORM_EPSILON);
    cs_op_linear(compute, &inner, &normed, l->ff1, &ff1);
    cs_op_linear(compute, &change, &inner, l->ff2, &ff2);
    cs_op_add_gated(compute, x, &change, &part[5], &segments);
    cs_compute_release(compute, mark);
}

static void tap(const cs_dit *d, int64_t layer, const cs_tensor *rows)
{
    if (d->tap)
        d->tap(d->tap_user, layer, rows);
}

/* x = the input matrix over the states of both halves and their conditions. */
static void embed(const batch *b, const cs_tensor *state, const cs_tensor *x)
{
    const cs_dit *d = b->dit;
    size_t mark = cs_compute_mark(d->compute);
    cs_tensor doubled = cs_compute_scratch(d->compute, CS_DTYPE_F32, x->rows, d->config.n_mels);
    for (uint32_t i = 0; i < b->n; i++) {
        cs_tensor from = window_rows(b, state, i);
        for (int half = 0; half < 2; half++) {
            cs_tensor to = cs_tensor_rows(&doubled, b->halves[2 * i + half], from.rows);
            cs_op_copy(d->compute, &to, &from);
        }
    }
    cs_op_copy(d->compute, x, &b->conditions);
    cs_op_linear(d->compute, x, &doubled, d->input, &(cs_linear_options){.accumulate = true});
    cs_compute_release(d->compute, mark);
}

/* velocity = guided + (guided - null) * guidance */
static void guide(const batch *b, const cs_tensor *predicted, const cs_tensor *velocity)
{
    cs_compute *compute = b->dit->compute;
    for (uint32_t i = 0; i < b->n; i++) {
        cs_tensor to = window_rows(b, velocity, i);
        cs_tensor guided = cs_tensor_rows(predicted, b->halves[2 * i], to.rows);
        cs_tensor null = cs_tensor_rows(predicted, b->halves[2 * i + 1], to.rows);
        cs_op_blend(compute, &to, 0, &guided, 1 + CS_DIT_GUIDANCE);
        cs_op_blend(compute, &to, 1, &null, -CS_DIT_GUIDANCE);
    }
}

static void evaluate(const batch *b, uint32_t stage, const cs_tensor *state,
                     const cs_tensor *velocity)
{
    cs_dit *d = b->dit;
    cs_compute *compute = d->compute;
    const cs_qwen2_5_omni_dit_config *c = &d->config;
    size_t mark = cs_compute_mark(compute);
    cs_tensor x = cs_compute_scratch(compute, CS_DTYPE_F32, b->pairs[b->n], c->hidden_size);
    for (uint32_t i = 0; i < b->n; i++)
        b->times[i] = (int32_t)(3 * b->windows[i]->n_steps + stage);
    embed(b, state, &x);
    tap(d, -1, &x);
    for (int64_t i = 0; i < c->n_layers; i++) {
        run_layer(b, i, &x);
        tap(d, i, &x);
    }
    cs_tensor modulation = cs_compute_scratch(compute, CS_DTYPE_F32, b->n, 2 * c->hidden_size);
    cs_tensor scale = cs_tensor_cols(&modulation, 0, c->hidden_size),
              shift = cs_tensor_cols(&modulation, c->hidden_size, c->hidden_size);
    cs_tensor normed = cs_compute_scratch(compute, d->input_dtype, x.rows, c->hidden_size);
    cs_tensor predicted = cs_compute_scratch(compute, CS_DTYPE_F32, x.rows, c->n_mels);
    const cs_segments segments = {b->n, b->pairs};
    cs_op_gather(compute, &modulation, &d->out_modulation, b->times);
    cs_op_modulated_norm(compute, &normed, &x, &scale, &shift, &segments, NORM_EPSILON);
    cs_op_linear(compute, &predicted, &normed, d->out, &(cs_linear_options){.bias = &d->out_bias});
    tap(d, c->n_layers, &predicted);
    guide(b, &predicted, velocity);
    cs_compute_release(compute, mark);
}

/* ---- One step ---- */

static void number_rows(const batch *b)
{
    int32_t frame = 0, row = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        int32_t n = (int32_t)b->windows[i]->n_frames;
        b->frames[i] = frame;
        b->pairs[i] = b->halves[2 * i] = row;
        b->halves[2 * i + 1] = row + n;
        frame += n;
        row += 2 * n;
    }
    b->frames[b->n] = frame;
    b->pairs[b->n] = b->halves[2 * b->n] = row;
}

/* Conditions, and cosines and sines of the positions in each half. */
static void write_inputs(batch *b, const cs_tensor *state)
{
    const cs_dit *d = b->dit;
    cs_compute *compute = d->compute;
    int64_t half = d->config.head_dim / 2, longest = 0;
    for (uint32_t i = 0; i < b->n; i++)
        longest = MAX(longest, b->windows[i]->n_frames);
    g_autofree float *table = g_new(float, longest * 2 * half);
    for (int64_t t = 0; t < longest; t++)
        for (int64_t j = 0; j < half; j++) {
            table[t * 2 * half + j] = cosf((float)t * d->frequencies[j]);
            table[t * 2 * half + half + j] = sinf((float)t * d->frequencies[j]);
        }
    for (uint32_t i = 0; i < b->n; i++) {
        const cs_dit_window *w = b->windows[i];
        cs_tensor conditions = cs_tensor_rows(&b->conditions, b->pairs[i], 2 * w->n_frames);
        cs_tensor from = window_rows(b, state, i);
        cs_tensor_write(compute, &conditions, w->conditions);
        cs_tensor_write(compute, &from, w->state);
        for (int h = 0; h < 2; h++) {
            cs_tensor rope = cs_tensor_rows(&b->rope, b->halves[2 * i + h], w->n_frames);
            cs_tensor_write(compute, &rope, table);
        }
    }
}

/* to = state + h * sum of factors[j] k[j], window by window, as h differs. */
static void advance(const batch *b, const cs_tensor *to, const cs_tensor *state,
                    const cs_tensor k[STAGES], const float factors[STAGES])
{
    cs_compute *compute = b->dit->compute;
    for (uint32_t i = 0; i < b->n; i++) {
        cs_tensor out = window_rows(b, to, i), from = window_rows(b, state, i);
        float h = step_size(b->windows[i]->n_steps);
        if (out.data != from.data)
            cs_op_copy(compute, &out, &from);
        for (int j = 0; j < STAGES; j++) {
            if (factors[j] == 0.0f)
                continue;
            cs_tensor change = window_rows(b, &k[j], i);
            cs_op_blend(compute, &out, 1, &change, h * factors[j]);
        }
    }
}

static void integrate(const batch *b, const cs_tensor *state)
{
    static const float before[STAGES][STAGES] = {{0}, {1.0f / 3}, {-1.0f / 3, 1}, {1, -1, 1}};
    static const float result[STAGES] = {1.0f / 8, 3.0f / 8, 3.0f / 8, 1.0f / 8};
    cs_compute *compute = b->dit->compute;
    cs_tensor k[STAGES], at = cs_compute_scratch(compute, CS_DTYPE_F32, state->rows, state->cols);
    for (uint32_t stage = 0; stage < STAGES; stage++)
        k[stage] = cs_compute_scratch(compute, CS_DTYPE_F32, state->rows, state->cols);
    for (uint32_t stage = 0; stage < STAGES; stage++) {
        advance(b, &at, state, k, before[stage]);
        evaluate(b, stage, &at, &k[stage]);
    }
    advance(b, state, state, k, result);
}

bool cs_dit_step(cs_dit *d, uint32_t n, cs_dit_window *const *windows, GError **error)
{
    int32_t frames[MAX_WINDOWS + 1], pairs[MAX_WINDOWS + 1], halves[2 * MAX_WINDOWS + 1],
        times[MAX_WINDOWS];
    g_assert(n > 0 && n <= MAX_WINDOWS);
    for (uint32_t i = 0; i < n; i++)
        g_assert(windows[i]->dit == d && windows[i]->n_steps < CS_DIT_STEPS);
    batch b = {.dit = d,
               .n = n,
               .windows = windows,
               .frames = frames,
               .pairs = pairs,
               .halves = halves,
               .times = times};
    number_rows(&b);
    cs_compute *compute = d->compute;
    size_t mark = cs_compute_mark(compute);
    cs_tensor state = cs_compute_scratch(compute, CS_DTYPE_F32, frames[n], d->config.n_mels);
    b.conditions = cs_compute_scratch(compute, CS_DTYPE_F32, pairs[n], d->config.hidden_size);
    b.rope = cs_compute_scratch(compute, CS_DTYPE_F32, pairs[n], d->config.head_dim);
    write_inputs(&b, &state);
    integrate(&b, &state);
    bool ok = cs_compute_sync(compute, error);
    for (uint32_t i = 0; i < n && ok; i++) {
        cs_tensor from = window_rows(&b, &state, i);
        cs_tensor_read(compute, windows[i]->state, &from);
        windows[i]->n_steps++;
    }
    cs_compute_release(compute, mark);
    return ok;
}
