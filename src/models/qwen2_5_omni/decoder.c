#include "models/qwen2_5_omni/decoder.h"

#include "base/error.h"

#include <math.h>

typedef struct {
    cs_tensor input_norm; /* [1, hidden] */
    const cs_weight *qkv; /* [(n_heads + 2 n_kv_heads) * head_dim, hidden] */
    cs_tensor qkv_bias;
    const cs_weight *out;     /* [hidden, n_heads * head_dim] */
    cs_tensor post_norm;      /* [1, hidden] */
    const cs_weight *gate_up; /* gated, [intermediate, hidden] each */
    const cs_weight *down;    /* [hidden, intermediate] */
} decoder_layer;

typedef struct {
    cs_llm llm;
    cs_compute *compute;
    cs_qwen2_decoder_config config;
    cs_dtype weight_dtype;
    cs_dtype input_dtype;        /* of activations that feed products */
    cs_tensor embeddings;        /* table [vocab, input_size] */
    const cs_weight *projection; /* [hidden, embedding_size]; NULL unless a talker */
    cs_tensor projection_bias;
    decoder_layer *layers;
    cs_tensor norm;
    const cs_weight *head;      /* [vocab, hidden] */
    float *inverse_frequencies; /* [head_dim / 2] */
    cs_kv_store *kv;
    cs_kv_sequence *sequences; /* [max_sequences] */
    float *rope;               /* [max_rows, head_dim] host table of one step */
    int32_t *row_ids;          /* [max_logit_rows] */
    uint32_t max_rows, max_sequences, max_logit_rows;
    cs_qwen2_decoder_tap *tap;
    void *tap_user;
} decoder;

/* ---- Loading ---- */

static void load_layer(cs_loader *loader, const cs_qwen2_decoder_config *c, const char *scope,
                       decoder_layer *layer)
{
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    layer->input_norm = cs_load_vector(loader, scope, "input_layernorm.weight", c->hidden_size);
    layer->qkv = cs_load_matrix(loader, scope, c->hidden_size, 3,
                                (const cs_loader_part[]){{"self_attn.q_proj.weight", q},
                                                         {"self_attn.k_proj.weight", kv},
                                                         {"self_attn.v_proj.weight", kv}});
    layer->qkv_bias = cs_load_bias(loader, scope, 3,
                                   (const cs_loader_part[]){{"self_attn.q_proj.bias", q},
                                                            {"self_attn.k_proj.bias", kv},
                                                            {"self_attn.v_proj.bias", kv}},
                                   false);
    layer->out = cs_load_linear(loader, scope, "self_attn.o_proj.weight", c->hidden_size, q);
    layer->post_norm =
        cs_load_vector(loader, scope, "post_attention_layernorm.weight", c->hidden_size);
    layer->gate_up = cs_load_gated(loader, scope, "mlp.gate_proj.weight", "mlp.up_proj.weight",
                                   c->intermediate_size, c->hidden_size);
    layer->down =
        cs_load_linear(loader, scope, "mlp.down_proj.weight", c->hidden_size, c->intermediate_size);
}

static const cs_llm_ops decoder_ops;

static void decoder_free(cs_llm *llm)
{
    decoder *d = (decoder *)llm;
    if (!d)
        return;
    cs_kv_store_free(d->kv);
    g_free(d->layers);
    g_free(d->inverse_frequencies);
    g_free(d->sequences);
    g_free(d->rope);
    g_free(d->row_ids);
    g_free(d);
}

cs_llm *cs_qwen2_decoder_load(cs_loader *loader, cs_compute *compute,
                              const cs_qwen2_decoder_config *config, const char *scope,
                              const char *head_scope, const char *head_name)
{
    decoder *d = g_new0(decoder, 1);
    const cs_qwen2_decoder_config *c = &d->config;
    d->config = *config;
    d->compute = compute;
    d->weight_dtype = loader->dtype;
    d->input_dtype = cs_compute_input_dtype(compute, loader->dtype);
    int64_t input_size = c->embedding_size ? c->embedding_size : c->hidden_size;
    d->embeddings = cs_load_table(loader, scope, "embed_tokens.weight", c->vocab_size, input_size);
    if (c->embedding_size) {
        d->projection = cs_load_linear(loader, head_scope, "thinker_to_talker_proj.weight",
                                       c->hidden_size, c->embedding_size);
        d->projection_bias =
            cs_load_vector(loader, head_scope, "thinker_to_talker_proj.bias", c->hidden_size);
    }
    d->layers = g_new0(decoder_layer, c->n_layers);
    for (int64_t i = 0; i < c->n_layers; i++) {
        g_autofree char *layer_scope = g_strdup_printf("%s.layers.%" G_GINT64_FORMAT, scope, i);
        load_layer(loader, c, layer_scope, &d->layers[i]);
    }
    d->norm = cs_load_vector(loader, scope, "norm.weight", c->hidden_size);
    d->head =
        c->tied_embeddings
            ? cs_load_linear(loader, scope, "embed_tokens.weight", c->vocab_size, c->hidden_size)
            : cs_load_linear(loader, head_scope, head_name, c->vocab_size, c->hidden_size);
    /* In float, as the reference computes them. */
    d->inverse_frequencies = g_new(float, c->head_dim / 2);
    for (int64_t i = 0; i < c->head_dim / 2; i++)
        d->inverse_frequencies[i] =
            1.0f / powf((float)c->rope_theta, (float)(2 * i) / (float)c->head_dim);
    const cs_kv_shape shape = {.n_layers = (uint32_t)c->n_layers,
                               .n_kv_heads = c->n_kv_heads,
                               .head_dim = c->head_dim,
                               .dtype = d->weight_dtype};
    d->llm = (cs_llm){.ops = &decoder_ops,
                      .vocab_size = (uint32_t)c->vocab_size,
                      .hidden_size = (uint32_t)c->hidden_size,
                      .input_size = (uint32_t)input_size,
                      .max_context_tokens = (uint32_t)c->max_positions,
                      .kv_block_bytes = cs_kv_block_bytes(&shape)};
    if (loader->error) {
        decoder_free(&d->llm);
        return NULL;
    }
    return &d->llm;
}

void cs_qwen2_decoder_set_tap(cs_llm *llm, cs_qwen2_decoder_tap *tap, void *user)
{
    decoder *d = (decoder *)llm;
    d->tap = tap;
    d->tap_user = user;
}

static bool decoder_reserve(cs_llm *llm, uint32_t n_kv_blocks, uint32_t max_rows,
                            uint32_t max_sequences, uint32_t max_logit_rows, GError **error)
{
    decoder *d = (decoder *)llm;
    const cs_kv_shape shape = {.n_blocks = n_kv_blocks,
                               .n_layers = (uint32_t)d->config.n_layers,
                               .n_kv_heads = d->config.n_kv_heads,
                               .head_dim = d->config.head_dim,
                               .dtype = d->weight_dtype};
    g_assert(!d->kv);
    d->kv = cs_kv_store_new(d->compute, &shape, error);
    if (!d->kv)
        return false;
    d->max_rows = max_rows;
    d->max_sequences = max_sequences;
    d->max_logit_rows = max_logit_rows;
    d->sequences = g_new0(cs_kv_sequence, max_sequences);
    d->rope = g_new(float, (size_t)max_rows *(size_t)d->config.head_dim);
    d->row_ids = g_new(int32_t, max_logit_rows);
    return true;
}

static void decoder_copy_block(cs_llm *llm, int32_t to, int32_t from)
{
    cs_kv_store_copy_block(((decoder *)llm)->kv, to, from);
}

static void decoder_read_block(cs_llm *llm, void *to, int32_t block)
{
    cs_kv_store_read_block(((decoder *)llm)->kv, to, block);
}

static void decoder_write_block(cs_llm *llm, int32_t block, const void *from)
{
    cs_kv_store_write_block(((decoder *)llm)->kv, block, from);
}

/* ---- Forward ---- */

/* M-RoPE (Wang et al. 2024, Qwen2-VL): frequency i turns with the position of the axis whose
 * section it is in. */
static void fill_rope_table(const decoder *d, uint32_t n, const int32_t (*positions)[3])
{
    int64_t half = d->config.head_dim / 2;
    int64_t height_from = d->config.rope_sections[0],
            width_from = height_from + d->config.rope_sections[1];
    for (uint32_t row = 0; row < n; row++) {
        float *cosines = d->rope + row * d->config.head_dim, *sines = cosines + half;
        for (int64_t i = 0; i < half; i++) {
            int axis = i < height_from ? 0 : i < width_from ? 1 : 2;
            float angle = (float)positions[row][axis] * d->inverse_frequencies[i];
            cosines[i] = cosf(angle);
            sines[i] = sinf(angle);
        }
    }
}

/* What a talker hears and has said: spans are added to the codec embeddings and stand alone at
 * silent tokens. */
static void embed_heard(const decoder *d, const cs_llm_batch *batch, const cs_tensor *x)
{
    cs_compute *compute = d->compute;
    cs_tensor sum =
        cs_compute_scratch(compute, CS_DTYPE_F32, batch->n_rows, d->config.embedding_size);
    cs_op_gather(compute, &sum, &d->embeddings, batch->token_ids);
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const cs_llm_span *span = &batch->spans[i];
        const int32_t *ids = batch->token_ids + span->row;
        for (uint32_t first = 0, end; first < span->n; first = end) {
            bool silent = ids[first] == d->config.silent_token;
            for (end = first + 1; end < span->n && (ids[end] == d->config.silent_token) == silent;)
                end++;
            cs_tensor to = cs_tensor_rows(&sum, span->row + first, end - first);
            cs_tensor from = cs_tensor_rows(span->source, span->source_row + first, end - first);
            (silent ? cs_op_copy : cs_op_add)(compute, &to, &from);
        }
    }
    if (d->tap)
        d->tap(d->tap_user, CS_QWEN2_TAP_INPUT, &sum);
    cs_op_linear(compute, x, &sum, d->projection,
                 &(cs_linear_options){.bias = &d->projection_bias});
}

static void embed(const decoder *d, const cs_llm_batch *batch, const cs_tensor *x)
{
    if (d->projection) {
        embed_heard(d, batch, x);
        return;
    }
    cs_op_gather(d->compute, x, &d->embeddings, batch->token_ids);
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const cs_llm_span *span = &batch->spans[i];
        cs_tensor to = cs_tensor_rows(x, span->row, span->n);
        cs_tensor from = cs_tensor_rows(span->source, span->source_row, span->n);
        cs_op_copy(d->compute, &to, &from);
    }
}

static void run_layer(const decoder *d, uint32_t index, const cs_llm_batch *batch,
                      const cs_tensor *x, const cs_tensor *rope)
{
    const cs_qwen2_decoder_config *c = &d->config;
    const decoder_layer *layer = &d->layers[index];
    cs_compute *compute = d->compute;
    size_t mark = cs_compute_mark(compute);
    int64_t q_cols = c->n_heads * c->head_dim, kv_cols = c->n_kv_heads * c->head_dim;

    cs_tensor normed = cs_compute_scratch(compute, d->input_dtype, x->rows, c->hidden_size);
    cs_tensor qkv = cs_compute_scratch(compute, CS_DTYPE_F32, x->rows, q_cols + 2 * kv_cols);
    cs_tensor q = cs_tensor_cols(&qkv, 0, q_cols), k = cs_tensor_cols(&qkv, q_cols, kv_cols);
    cs_tensor v = cs_tensor_cols(&qkv, q_cols + kv_cols, kv_cols),
              qk = cs_tensor_cols(&qkv, 0, q_cols + kv_cols);
    cs_tensor attended = cs_compute_scratch(compute, d->input_dtype, x->rows, q_cols);
    cs_op_rms_norm(compute, &normed, x, &layer->input_norm, c->rms_epsilon);
    cs_op_linear(compute, &qkv, &normed, layer->qkv,
                 &(cs_linear_options){.bias = &layer->qkv_bias});
    cs_op_rope(compute, &qk, rope, c->head_dim);
    cs_op_kv_write(compute, d->kv, index, &k, &v, batch->n_sequences, d->sequences);
    cs_op_attention_paged(compute, &attended, &q, d->kv, index, 1.0f / sqrtf((float)c->head_dim),
                          batch->n_sequences, d->sequences);
    cs_op_linear(compute, x, &attended, layer->out, &(cs_linear_options){.accumulate = true});

    cs_tensor inner = cs_compute_scratch(compute, d->input_dtype, x->rows, c->intermediate_size);
    cs_op_rms_norm(compute, &normed, x, &layer->post_norm, c->rms_epsilon);
    cs_op_linear(compute, &inner, &normed, layer->gate_up, NULL);
    cs_op_linear(compute, x, &inner, layer->down, &(cs_linear_options){.accumulate = true});
    cs_compute_release(compute, mark);
}

/* Logits of the wanted rows. */
static void head(const decoder *d, const cs_llm_batch *batch, const cs_tensor *x, float *logits)
{
    cs_compute *compute = d->compute;
    const cs_qwen2_decoder_config *c = &d->config;
    for (uint32_t i = 0; i < batch->n_logit_rows; i++)
        d->row_ids[i] = (int32_t)batch->logit_rows[i];
    cs_tensor wanted =
        cs_compute_scratch(compute, CS_DTYPE_F32, batch->n_logit_rows, c->hidden_size);
    cs_tensor normed =
        cs_compute_scratch(compute, d->input_dtype, batch->n_logit_rows, c->hidden_size);
    cs_tensor out = cs_compute_scratch(compute, CS_DTYPE_F32, batch->n_logit_rows, c->vocab_size);
    cs_op_gather(compute, &wanted, x, d->row_ids);
    cs_op_rms_norm(compute, &normed, &wanted, &d->norm, c->rms_epsilon);
    cs_op_linear(compute, &out, &normed, d->head, NULL);
    cs_tensor_read(compute, logits, &out);
}

static bool decoder_forward(cs_llm *llm, const cs_llm_batch *batch, float *logits, float *hidden,
                            GError **error)
{
    decoder *d = (decoder *)llm;
    cs_compute *compute = d->compute;
    g_assert(batch->n_rows <= d->max_rows && batch->n_sequences <= d->max_sequences &&
             batch->n_logit_rows <= d->max_logit_rows);
    size_t mark = cs_compute_mark(compute);
    int64_t row = 0;
    for (uint32_t i = 0; i < batch->n_sequences; i++) {
        const cs_llm_sequence *s = &batch->sequences[i];
        d->sequences[i] = (cs_kv_sequence){
            .row = row, .n_new = s->n_new, .n_past = s->n_past, .blocks = s->kv_blocks};
        row += s->n_new;
    }
    cs_tensor x = cs_compute_scratch(compute, CS_DTYPE_F32, batch->n_rows, d->config.hidden_size);
    cs_tensor rope = cs_compute_scratch(compute, CS_DTYPE_F32, batch->n_rows, d->config.head_dim);
    fill_rope_table(d, batch->n_rows, batch->positions);
    cs_tensor_write(compute, &rope, d->rope);
    embed(d, batch, &x);
    if (d->tap)
        d->tap(d->tap_user, -1, &x);
    for (uint32_t i = 0; i < (uint32_t)d->config.n_layers; i++) {
        run_layer(d, i, batch, &x, &rope);
        if (d->tap)
            d->tap(d->tap_user, i, &x);
    }
    if (batch->n_logit_rows > 0)
        head(d, batch, &x, logits);
    if (hidden) {
        cs_tensor normed =
            cs_compute_scratch(compute, CS_DTYPE_F32, batch->n_rows, d->config.hidden_size);
        cs_op_rms_norm(compute, &normed, &x, &d->norm, d->config.rms_epsilon);
        cs_tensor_read(compute, hidden, &normed);
    }
    bool ok = cs_compute_sync(compute, error);
    cs_compute_release(compute, mark);
    return ok;
}

static const cs_llm_ops decoder_ops = {.reserve = decoder_reserve,
                                       .forward = decoder_forward,
                                       .copy_block = decoder_copy_block,
                                       .read_block = decoder_read_block,
                                       .write_block = decoder_write_block,
                                       .free = decoder_free};
