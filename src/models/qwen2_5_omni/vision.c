#include "models/qwen2_5_omni/vision.h"

#include "base/error.h"

#include <math.h>

static const float NORM_EPSILON = 1e-6f; /* fixed in the published network, not in its config */

typedef struct {
    cs_tensor norm1;      /* [1, hidden] */
    const cs_weight *qkv; /* [3 * hidden, hidden] */
    cs_tensor qkv_bias;
    const cs_weight *out; /* [hidden, hidden] */
    cs_tensor out_bias;
    cs_tensor norm2;
    const cs_weight *gate_up; /* gated, [intermediate, hidden] each */
    cs_tensor gate_up_bias;   /* [2, intermediate] */
    const cs_weight *down;    /* [hidden, intermediate] */
    cs_tensor down_bias;
} vision_block;

typedef struct {
    cs_encoder encoder;
    cs_compute *compute;
    cs_qwen2_5_omni_vision_config config;
    cs_dtype weight_dtype, input_dtype;
    const cs_weight *patch_embed; /* [hidden, channels * temporal_patch * patch * patch] */
    vision_block *blocks;
    cs_tensor merger_norm;
    const cs_weight *merger_in; /* [merge^2 * hidden, merge^2 * hidden] */
    cs_tensor merger_in_bias;
    const cs_weight *merger_out; /* [out, merge^2 * hidden] */
    cs_tensor merger_out_bias;
} vision;

/* ---- Loading ---- */

static void load_block(cs_loader *loader, const cs_qwen2_5_omni_vision_config *c, const char *scope,
                       vision_block *b)
{
    int64_t n = c->hidden_size, inner = c->intermediate_size;
    b->norm1 = cs_load_vector(loader, scope, "norm1.weight", n);
    b->qkv = cs_load_matrix(
        loader, scope, n, 3,
        (const cs_loader_part[]){{"attn.q.weight", n}, {"attn.k.weight", n}, {"attn.v.weight", n}});
    b->qkv_bias = cs_load_bias(
        loader, scope, 3,
        (const cs_loader_part[]){{"attn.q.bias", n}, {"attn.k.bias", n}, {"attn.v.bias", n}},
        false);
    b->out = cs_load_linear(loader, scope, "attn.proj.weight", n, n);
    b->out_bias = cs_load_vector(loader, scope, "attn.proj.bias", n);
    b->norm2 = cs_load_vector(loader, scope, "norm2.weight", n);
    b->gate_up =
        cs_load_gated(loader, scope, "mlp.gate_proj.weight", "mlp.up_proj.weight", inner, n);
    b->gate_up_bias = cs_load_bias(
        loader, scope, 2,
        (const cs_loader_part[]){{"mlp.gate_proj.bias", inner}, {"mlp.up_proj.bias", inner}}, true);
    b->down = cs_load_linear(loader, scope, "mlp.down_proj.weight", n, inner);
    b->down_bias = cs_load_vector(loader, scope, "mlp.down_proj.bias", n);
}

static const cs_encoder_ops vision_ops;

static void vision_free(cs_encoder *encoder)
{
    vision *v = (vision *)encoder;
    if (!v)
        return;
    g_free(v->blocks);
    g_free(v);
}

cs_encoder *cs_qwen2_5_omni_vision_load(cs_loader *loader, cs_compute *compute,
                                        const cs_qwen2_5_omni_vision_config *config,
                                        const char *scope)
{
    vision *v = g_new0(vision, 1);
    const cs_qwen2_5_omni_vision_config *c = &v->config;
    v->config = *config;
    v->compute = compute;
    v->weight_dtype = loader->dtype;
    v->input_dtype = cs_compute_input_dtype(compute, loader->dtype);
    const int64_t kernel[] = {c->hidden_size, c->in_channels, c->temporal_patch_size, c->patch_size,
                              c->patch_size};
    v->patch_embed =
        cs_load_flat(loader, scope, "patch_embed.proj.weight", G_N_ELEMENTS(kernel), kernel);
    v->blocks = g_new0(vision_block, c->depth);
    for (int64_t i = 0; i < c->depth; i++) {
        g_autofree char *block_scope = g_strdup_printf("%s.blocks.%" G_GINT64_FORMAT, scope, i);
        load_block(loader, c, block_scope, &v->blocks[i]);
    }
    int64_t merged = c->merge_size * c->merge_size * c->hidden_size;
    v->merger_norm = cs_load_vector(loader, scope, "merger.ln_q.weight", c->hidden_size);
    v->merger_in = cs_load_linear(loader, scope, "merger.mlp.0.weight", merged, merged);
    v->merger_in_bias = cs_load_vector(loader, scope, "merger.mlp.0.bias", merged);
    v->merger_out = cs_load_linear(loader, scope, "merger.mlp.2.weight", c->out_size, merged);
    v->merger_out_bias = cs_load_vector(loader, scope, "merger.mlp.2.bias", c->out_size);
    v->encoder = (cs_encoder){.ops = &vision_ops, .output_size = (uint32_t)c->out_size};
    if (loader->error) {
        vision_free(&v->encoder);
        return NULL;
    }
    return &v->encoder;
}

/* ---- Geometry ---- */

static uint32_t vision_cost_tokens(const cs_encoder *encoder, const cs_encoder_item *item)
{
    const cs_qwen2_5_omni_vision_config *c = &((const vision *)encoder)->config;
    int64_t patch_dim = c->in_channels * c->temporal_patch_size * c->patch_size * c->patch_size,
            t = item->grid[0], h = item->grid[1], w = item->grid[2];
    bool sound = t > 0 && h > 0 && w > 0 && h % c->merge_size == 0 && w % c->merge_size == 0 &&
                 item->input.cols == patch_dim && item->input.rows == t * h * w &&
                 item->input.rows <= INT32_MAX;
    return sound ? (uint32_t)item->input.rows : 0;
}

static uint32_t vision_output_tokens(const cs_encoder *encoder, const cs_encoder_item *item)
{
    int64_t merge = ((const vision *)encoder)->config.merge_size;
    return vision_cost_tokens(encoder, item) / (uint32_t)(merge * merge);
}

void cs_qwen2_5_omni_window_order(const cs_qwen2_5_omni_vision_config *c, const int32_t grid[3],
                                  int32_t first_group, int32_t *order, GArray *starts)
{
    int32_t merge = (int32_t)c->merge_size,
            side = (int32_t)(c->window_size / c->merge_size / c->patch_size);
    int32_t rows = grid[1] / merge, cols = grid[2] / merge, n = 0;
    int32_t end = g_array_index(starts, int32_t, starts->len - 1);
    for (int32_t t = 0; t < grid[0]; t++)
        for (int32_t top = 0; top < rows; top += side)
            for (int32_t left = 0; left < cols; left += side) {
                for (int32_t y = top; y < MIN(top + side, rows); y++)
                    for (int32_t x = left; x < MIN(left + side, cols); x++) {
                        order[n++] = first_group + (t * rows + y) * cols + x;
                        end += merge * merge;
                    }
                g_array_append_val(starts, end);
            }
}

/* All items of a batch laid out as blocks see them. */
typedef struct {
    int64_t n_patches;
    int32_t *patch_order; /* [n_patches] row of the concatenated inputs at each place */
    int32_t
        *group_place; /* [n_groups] place, in blocks' order, of each merge group in input order */
    float *rope;      /* [n_patches, head_dim] */
    GArray *windows;  /* int32_t starts of windows, then the end */
    GArray *frames;   /* int32_t starts of frames, then the end */
} layout;

static void layout_clear(layout *l)
{
    g_free(l->patch_order);
    g_free(l->group_place);
    g_free(l->rope);
    g_array_unref(l->windows);
    g_array_unref(l->frames);
}

/* Height and width of a patch whose number inside its frame counts merge group by merge group. */
static void patch_position(const cs_qwen2_5_omni_vision_config *c, const int32_t grid[3],
                           int32_t number, int32_t *y, int32_t *x)
{
    int32_t merge = (int32_t)c->merge_size, group = number / (merge * merge),
            inside = number % (merge * merge);
    int32_t groups_in_row = grid[2] / merge;
    *y = group / groups_in_row * merge + inside / merge;
    *x = group % groups_in_row * merge + inside % merge;
}

/* Half of the frequencies turn with the height, half with the width. */
static void fill_rope(const cs_qwen2_5_omni_vision_config *c, int32_t y, int32_t x, float *row)
{
    int64_t half = c->hidden_size / c->n_heads / 2, quarter = half / 2;
    for (int64_t i = 0; i < half; i++) {
        float inverse = 1.0f / powf(10000.0f, (float)(2 * (i % quarter)) / (float)half);
        float angle = (float)(i < quarter ? y : x) * inverse;
        row[i] = cosf(angle);
        row[half + i] = sinf(angle);
    }
}

/* Rope rows repeat from frame to frame and cost sines, so each grid position is computed once. */
static void add_item(const vision *v, layout *l, const int32_t grid[3], int32_t first_patch)
{
    const cs_qwen2_5_omni_vision_config *c = &v->config;
    int32_t unit = (int32_t)(c->merge_size * c->merge_size), frame = grid[1] * grid[2],
            n = grid[0] * frame;
    int32_t n_groups = n / unit, first_group = first_patch / unit;
    int64_t head_dim = c->hidden_size / c->n_heads;
    g_autofree int32_t *order = g_new(int32_t, n_groups);
    cs_qwen2_5_omni_window_order(c, grid, first_group, order, l->windows);
    for (int32_t t = 0; t < grid[0]; t++) {
        int32_t end = first_patch + (t + 1) * frame;
        g_array_append_val(l->frames, end);
    }
    g_autofree float *positions = g_new(float, frame *head_dim);
    for (int32_t i = 0; i < frame; i++) {
        int32_t y, x;
        patch_position(c, grid, i, &y, &x);
        fill_rope(c, y, x, positions + i * head_dim);
    }
    for (int32_t place = 0; place < n_groups; place++) {
        l->group_place[order[place]] = first_group + place;
        for (int32_t i = 0; i < unit; i++) {
            int32_t to = first_patch + place * unit + i, from = order[place] * unit + i;
            l->patch_order[to] = from;
            memcpy(l->rope + to * head_dim, positions + (from - first_patch) % frame * head_dim,
                   (size_t)head_dim * sizeof(float));
        }
    }
}

static bool layout_init(const vision *v, layout *l, uint32_t n, const cs_encoder_item *items,
                        GError **error)
{
    const cs_qwen2_5_omni_vision_config *c = &v->config;
    int64_t head_dim = c->hidden_size / c->n_heads, unit = c->merge_size * c->merge_size;
    *l = (layout){.windows = g_array_new(FALSE, TRUE, sizeof(int32_t)),
                  .frames = g_array_new(FALSE, TRUE, sizeof(int32_t))};
    g_array_set_size(l->windows, 1);
    g_array_set_size(l->frames, 1);
    for (uint32_t i = 0; i < n; i++)
        l->n_patches += items[i].input.rows;
    l->patch_order = g_try_new(int32_t, l->n_patches);
    l->group_place = g_try_new(int32_t, l->n_patches / unit);
    l->rope = g_try_new(float, l->n_patches *head_dim);
    if (l->n_patches > INT32_MAX || !l->patch_order || !l->group_place || !l->rope) {
        int64_t n_patches = l->n_patches;
        layout_clear(l);
        return cs_fail(error, CS_ERROR_FAILED,
                       "no memory to lay out %" G_GINT64_FORMAT " image patches", n_patches);
    }
    int32_t first = 0;
    for (uint32_t i = 0; i < n; first += (int32_t)items[i++].input.rows)
        add_item(v, l, items[i].grid, first);
    return true;
}

/* ---- Forward ---- */

/* The inputs of all items, rows in the blocks' order, in the dtype of the product. */
static cs_tensor arrange_patches(const vision *v, const layout *l, uint32_t n,
                                 const cs_encoder_item *items)
{
    int64_t patch_dim = cs_weight_cols(v->patch_embed);
    cs_tensor arranged = cs_compute_scratch(v->compute, v->input_dtype, l->n_patches, patch_dim);
    size_t mark = cs_compute_mark(v->compute);
    cs_tensor all = items[0].input;
    if (n > 1) {
        all = cs_compute_scratch(v->compute, CS_DTYPE_F32, l->n_patches, patch_dim);
        int64_t first = 0;
        for (uint32_t i = 0; i < n; first += items[i++].input.rows) {
            cs_tensor rows = cs_tensor_rows(&all, first, items[i].input.rows);
            cs_op_copy(v->compute, &rows, &items[i].input);
        }
    }
    cs_op_gather(v->compute, &arranged, &all, l->patch_order);
    cs_compute_release(v->compute, mark);
    return arranged;
}

static void run_block(const vision *v, int64_t index, const layout *l, const cs_tensor *x,
                      const cs_tensor *rope)
{
    const cs_qwen2_5_omni_vision_config *c = &v->config;
    const vision_block *b = &v->blocks[index];
    cs_compute *compute = v->compute;
    size_t mark = cs_compute_mark(compute);
    int64_t hidden = c->hidden_size, head_dim = hidden / c->n_heads;
    const GArray *starts = cs_vision_full_attention(c, index) ? l->frames : l->windows;
    const cs_segment_attention attention = {.n_heads = c->n_heads,
                                            .head_dim = head_dim,
                                            .scale = 1.0f / sqrtf((float)head_dim),
                                            .dtype = v->weight_dtype,
                                            .n_segments = starts->len - 1,
                                            .starts = (const int32_t *)(void *)starts->data};

    cs_tensor normed = cs_compute_scratch(compute, v->input_dtype, x->rows, hidden);
    cs_tensor attended = cs_compute_scratch(compute, v->input_dtype, x->rows, hidden);
    size_t inner_mark = cs_compute_mark(compute);
    cs_tensor qkv = cs_compute_scratch(compute, CS_DTYPE_F32, x->rows, 3 * hidden);
    cs_tensor q = cs_tensor_cols(&qkv, 0, hidden), k = cs_tensor_cols(&qkv, hidden, hidden);
    cs_tensor val = cs_tensor_cols(&qkv, 2 * hidden, hidden),
              qk = cs_tensor_cols(&qkv, 0, 2 * hidden);
    cs_op_rms_norm(compute, &normed, x, &b->norm1, NORM_EPSILON);
    cs_op_linear(compute, &qkv, &normed, b->qkv, &(cs_linear_options){.bias = &b->qkv_bias});
    cs_op_rope(compute, &qk, rope, head_dim);
    cs_op_attention_segments(compute, &attended, &q, &k, &val, &attention);
    cs_op_linear(compute, x, &attended, b->out,
                 &(cs_linear_options){.bias = &b->out_bias, .accumulate = true});
    cs_compute_release(compute, inner_mark);

    cs_tensor inner = cs_compute_scratch(compute, v->input_dtype, x->rows, c->intermediate_size);
    cs_op_rms_norm(compute, &normed, x, &b->norm2, NORM_EPSILON);
    cs_op_linear(compute, &inner, &normed, b->gate_up,
                 &(cs_linear_options){.bias = &b->gate_up_bias});
    cs_op_linear(compute, x, &inner, b->down,
                 &(cs_linear_options){.bias = &b->down_bias, .accumulate = true});
    cs_compute_release(compute, mark);
}

/* Normalises patches, joins each merge group into one row, and maps it to the LLM's width. */
static cs_tensor merge(const vision *v, const cs_tensor *x)
{
    const cs_qwen2_5_omni_vision_config *c = &v->config;
    cs_compute *compute = v->compute;
    int64_t unit = c->merge_size * c->merge_size, n_groups = x->rows / unit;
    cs_tensor out = cs_compute_scratch(compute, CS_DTYPE_F32, n_groups, c->out_size);
    size_t mark = cs_compute_mark(compute);
    cs_tensor joined = cs_compute_scratch(compute, v->input_dtype, n_groups, unit * c->hidden_size);
    cs_tensor inner = cs_compute_scratch(compute, v->input_dtype, n_groups, unit * c->hidden_size);
    for (int64_t i = 0; i < unit && n_groups > 0; i++) {
        cs_tensor every = cs_tensor_rows(x, i, x->rows - i);
        every.stride *= unit;
        every.rows = n_groups;
        every.pad = 0;
        cs_tensor place = cs_tensor_cols(&joined, i * c->hidden_size, c->hidden_size);
        cs_op_rms_norm(compute, &place, &every, &v->merger_norm, NORM_EPSILON);
    }
    cs_op_linear(
        compute, &inner, &joined, v->merger_in,
        &(cs_linear_options){.bias = &v->merger_in_bias, .activation = CS_ACTIVATION_GELU});
    cs_op_linear(compute, &out, &inner, v->merger_out,
                 &(cs_linear_options){.bias = &v->merger_out_bias});
    cs_compute_release(compute, mark);
    return out;
}

/* Puts merged rows back into input order, item by item. */
static bool collect(const vision *v, const layout *l, const cs_tensor *merged, uint32_t n,
                    const cs_encoder_item *items, cs_shared_tensor **outputs, GError **error)
{
    int64_t first = 0;
    for (uint32_t i = 0; i < n; i++) {
        int64_t tokens = vision_output_tokens(&v->encoder, &items[i]);
        outputs[i] = cs_shared_tensor_new(CS_DTYPE_F32, tokens, v->config.out_size);
        if (!outputs[i])
            return cs_fail(error, CS_ERROR_FAILED,
                           "no memory for %" G_GINT64_FORMAT " image tokens", tokens);
        cs_op_gather(v->compute, &outputs[i]->t, merged, l->group_place + first);
        first += tokens;
    }
    return cs_compute_sync(v->compute, error);
}

static bool vision_forward(cs_encoder *encoder, uint32_t n, const cs_encoder_item *items,
                           cs_shared_tensor **outputs, GError **error)
{
    vision *v = (vision *)encoder;
    cs_compute *compute = v->compute;
    for (uint32_t i = 0; i < n; i++)
        if (vision_cost_tokens(encoder, &items[i]) == 0)
            return cs_fail(error, CS_ERROR_INVALID, "image %u: the patches do not fit their grid",
                           i);
    layout l;
    if (!layout_init(v, &l, n, items, error))
        return false;
    size_t mark = cs_compute_mark(compute);
    cs_tensor x = cs_compute_scratch(compute, CS_DTYPE_F32, l.n_patches, v->config.hidden_size);
    cs_tensor rope = cs_compute_scratch(compute, CS_DTYPE_F32, l.n_patches,
                                        v->config.hidden_size / v->config.n_heads);
    cs_tensor_write(compute, &rope, l.rope);
    size_t input_mark = cs_compute_mark(compute);
    cs_tensor patches = arrange_patches(v, &l, n, items);
    cs_op_linear(compute, &x, &patches, v->patch_embed, NULL);
    cs_compute_release(compute, input_mark);
    bool ok = true;
    for (int64_t i = 0; i < v->config.depth && ok; i++) {
        run_block(v, i, &l, &x, &rope);
        ok = cs_encoder_yield(encoder, compute, error);
    }
    cs_tensor merged = ok ? merge(v, &x) : (cs_tensor){0};

    cs_shared_tensor **made = g_new0(cs_shared_tensor *, n);
    ok = ok && cs_compute_sync(compute, error) && collect(v, &l, &merged, n, items, made, error);
    for (uint32_t i = 0; i < n; i++) {
        if (ok)
            outputs[i] = made[i];
        else
            cs_shared_tensor_unref(made[i]);
    }
    g_free(made);
    cs_compute_release(compute, mark);
    layout_clear(&l);
    return ok;
}

static const cs_encoder_ops vision_ops = {.output_tokens = vision_output_tokens,
                                          .cost_tokens = vision_cost_tokens,
                                          .forward = vision_forward,
                                          .free = vision_free};
