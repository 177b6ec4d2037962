/* Attention over packed blocks of 32 keys and values, for the paged cache and for encoder segments
 * alike.
 *
 * A strip of query rows that read the same keys walks the blocks in steps of STEP_BLOCKS: scores by
 * the kernels' product against packed keys, an online softmax (Milakov and Gimelshein 2018), then
 * the product with packed values (Dao et al. 2022). Steps begin at multiples of STEP_BLOCKS blocks
 * of the sequence, whatever the strip, so a row's result does not depend on which rows share its
 * strip or its batch.
 */
#include "tensor/cpu/cpu.h"

#include <math.h>
#include <string.h>

enum {
    BLOCK = CS_KV_BLOCK_TOKENS,
    STEP_BLOCKS = 8,
    STEP = STEP_BLOCKS * BLOCK,
    STRIP = 32,         /* query rows computed together */
    MAX_HEAD_DIM = 256, /* of every published family; bounds what lies on the stack */
};

/* The precision of the products and the sizes that follow from it. */
typedef struct {
    const cs_kernels *kernels;
    cs_product *product;
    cs_dtype left;  /* of queries and probabilities */
    cs_dtype right; /* of packed keys and values */
    int64_t head_dim;
    int64_t key_dim;   /* head_dim as keys are padded */
    int64_t value_dim; /* head_dim as values are padded */
    size_t key_panel_bytes;
    size_t value_panel_bytes;
    float scale; /* of scores, on their way into the exponential */
} shape;

static shape make_shape(const cs_cpu *cpu, cs_dtype right, int64_t head_dim, float scale)
{
    g_assert(head_dim <= MAX_HEAD_DIM);
    shape s = {.kernels = cpu->kernels, .right = right, .head_dim = head_dim, .scale = scale};
    s.left = cpu->base.backend->input_dtype(&cpu->base, right);
    s.product = right == CS_DTYPE_F32     ? cpu->kernels->product_f32
                : s.left == CS_DTYPE_BF16 ? cpu->kernels->product_bf16
                                          : cpu->kernels->product_f32_bf16;
    size_t element = cs_dtype_size_bytes(right);
    s.key_dim = right == CS_DTYPE_BF16 ? cs_round_up(head_dim, CS_K_ALIGN) : head_dim;
    s.value_dim = cs_round_up(head_dim, CS_PANEL);
    s.key_panel_bytes = (size_t)s.key_dim * CS_PANEL * element;
    s.value_panel_bytes = (size_t)BLOCK * CS_PANEL * element;
    return s;
}

static size_t key_block_bytes(const shape *s)
{
    return s->key_panel_bytes * (BLOCK / CS_PANEL);
}

static size_t value_block_bytes(const shape *s)
{
    return s->value_panel_bytes * (size_t)(s->value_dim / CS_PANEL);
}

/* ---- One strip ---- */

/* One thread's room, carved from its scratch. */
typedef struct {
    void *queries;        /* [STRIP, key_dim] left dtype */
    float *scores;        /* [STRIP, STEP] */
    uint16_t *half;       /* [STRIP, STEP] probabilities in bf16 */
    float *sums;          /* [STRIP, value_dim] */
    float highest[STRIP]; /* running maximum and sum of the softmax */
    float total[STRIP];
} strip;

static size_t strip_bytes(const shape *s)
{
    return sizeof(strip) + 64 * 4 +
           (size_t)STRIP * (size_t)(s->key_dim * 4 + STEP * 6 + s->value_dim * 4);
}

static void *carve(char **at, size_t size_bytes)
{
    char *aligned = (char *)(((uintptr_t)*at + 63) & ~(uintptr_t)63);
    *at = aligned + size_bytes;
    return aligned;
}

static strip *strip_begin(const shape *s, void *scratch, int n_rows)
{
    char *at = scratch;
    strip *t = carve(&at, sizeof *t);
    t->queries = carve(&at, STRIP * (size_t)s->key_dim * sizeof(float));
    t->scores = carve(&at, STRIP * STEP * sizeof(float));
    t->half = carve(&at, STRIP * STEP * sizeof(uint16_t));
    t->sums = carve(&at, STRIP * (size_t)s->value_dim * sizeof(float));
    memset(t->sums, 0, (size_t)n_rows * (size_t)s->value_dim * sizeof(float));
    for (int r = 0; r < n_rows; r++) {
        t->highest[r] = -INFINITY;
        t->total[r] = 0.0f;
    }
    return t;
}

/* n elements of a tensor of f32 or bf16 from element `at` on, in bf16. */
static void get_half(const shape *s, int64_t n, uint16_t *to, const cs_tensor *t, int64_t at)
{
    if (t->dtype == CS_DTYPE_BF16)
        memcpy(to, (const uint16_t *)t->data + at, (size_t)n * sizeof *to);
    else
        s->kernels->to_bf16(n, to, (const float *)t->data + at);
}

static void strip_set_query(const shape *s, strip *t, int r, const cs_tensor *q, int64_t row,
                            int64_t col)
{
    int64_t at = row * q->stride + col, n = s->head_dim, zeros = s->key_dim - n;
    if (s->left == CS_DTYPE_BF16) {
        uint16_t *to = (uint16_t *)t->queries + r * s->key_dim;
        get_half(s, n, to, q, at);
        memset(to + n, 0, (size_t)zeros * sizeof *to);
    } else {
        float *to = (float *)t->queries + r * s->key_dim;
        memcpy(to, (const float *)q->data + at, (size_t)n * sizeof *to);
        memset(to + n, 0, (size_t)zeros * sizeof *to);
    }
}

/* Scores [first, end) of a step that a row may see; none when end <= first. */
typedef struct {
    int64_t first, end;
} range;

/* Turns a row of `n` scores, of which those in `visible` count, into probabilities relative to the
 * running maximum, and scales what was summed before. */
static void strip_softmax_row(const shape *s, strip *t, int r, int64_t n, range visible)
{
    float *scores = t->scores + r * STEP;
    uint16_t *half = s->left == CS_DTYPE_BF16 ? t->half + r * STEP : NULL;
    if (visible.end <= visible.first) {
        if (half)
            memset(half, 0, (size_t)n * sizeof *half);
        else
            memset(scores, 0, (size_t)n * sizeof *scores);
        return;
    }
    for (int64_t i = 0; i < visible.first; i++)
        scores[i] = -INFINITY;
    for (int64_t i = visible.end; i < n; i++)
        scores[i] = -INFINITY;
    float highest = MAX(t->highest[r], s->kernels->max(n, scores));
    float factor = t->total[r] > 0 ? expf((t->highest[r] - highest) * s->scale) : 1.0f;
    float sum = s->kernels->exp_sum(n, scores, highest, s->scale, half);
    t->total[r] = t->total[r] * factor + sum;
    t->highest[r] = highest;
    if (factor != 1.0f)
        s->kernels->scale(s->value_dim, t->sums + r * s->value_dim, factor);
}

/* Adds n_blocks <= STEP_BLOCKS blocks. visible[r]: keys of them that row r may see. */
static void strip_add_blocks(const shape *s, strip *t, int n_rows, int n_blocks,
                             const void *const *keys, const void *const *values,
                             const range *visible)
{
    int64_t n = (int64_t)n_blocks * BLOCK;
    /* Tiles take as long for all rows, and need no other configuration then. */
    int n_multiplied = s->kernels->linear_bf16 && n_rows > STRIP / 2 ? STRIP : n_rows;
    for (int b = 0; b < n_blocks; b++)
        s->product(n_multiplied, BLOCK / CS_PANEL, s->key_dim, t->queries, s->key_dim, keys[b],
                   s->key_panel_bytes, t->scores + b * BLOCK, STEP, false);
    for (int r = 0; r < n_rows; r++)
        strip_softmax_row(s, t, r, n, visible[r]);
    if (s->left == CS_DTYPE_BF16 && s->kernels->blocks_bf16) {
        s->kernels->blocks_bf16(n_multiplied, s->value_dim / CS_PANEL, BLOCK, t->half, STEP,
                                n_blocks, values, s->value_panel_bytes, t->sums, s->value_dim);
        return;
    }
    for (int b = 0; b < n_blocks; b++) {
        const void *left =
            s->left == CS_DTYPE_BF16 ? (const void *)(t->half + b * BLOCK) : t->scores + b * BLOCK;
        s->product(n_multiplied, s->value_dim / CS_PANEL, BLOCK, left, STEP, values[b],
                   s->value_panel_bytes, t->sums, s->value_dim, true);
    }
}

static void strip_write_row(const shape *s, strip *t, int r, const cs_tensor *out, int64_t row,
                            int64_t col)
{
    float *sums = t->sums + r * s->value_dim;
    s->kernels->scale(s->head_dim, sums, 1.0f / t->total[r]);
    int64_t at = row * out->stride + col;
    if (out->dtype == CS_DTYPE_BF16)
        s->kernels->to_bf16(s->head_dim, (uint16_t *)out->data + at, sums);
    else
        memcpy((float *)out->data + at, sums, (size_t)s->head_dim * sizeof *sums);
}

/* ---- Packing keys and values ---- */

/* Puts one token into its block. */
static void put_token(const shape *s, char *keys, char *values, int slot, const float *k,
                      const float *v)
{
    char *key_panel = keys + (size_t)(slot / CS_PANEL) * s->key_panel_bytes;
    int column = slot % CS_PANEL;
    if (s->right == CS_DTYPE_F32) {
        for (int64_t i = 0; i < s->head_dim; i++) {
            ((float *)key_panel)[i * CS_PANEL + column] = k[i];
            ((float *)(values + (size_t)(i / CS_PANEL) *
                                    s->value_panel_bytes))[slot * CS_PANEL + i % CS_PANEL] = v[i];
        }
        return;
    }
    uint16_t half[2][MAX_HEAD_DIM];
    s->kernels->to_bf16(s->head_dim, half[0], k);
    s->kernels->to_bf16(s->head_dim, half[1], v);
    for (int64_t i = 0; i < s->head_dim; i++) {
        ((uint16_t *)key_panel)[i / 2 * 2 * CS_PANEL + column * 2 + i % 2] = half[0][i];
        uint16_t *value_panel =
            (uint16_t *)(values + (size_t)(i / CS_PANEL) * s->value_panel_bytes);
        value_panel[slot / 2 * 2 * CS_PANEL + i % CS_PANEL * 2 + slot % 2] = half[1][i];
    }
}

/* Packs a whole block of n <= BLOCK tokens in bf16, from row `row` and column `col` on. */
static void pack_block_bf16(const shape *s, char *keys, char *values, int n, const cs_tensor *k,
                            const cs_tensor *v, int64_t row, int64_t col)
{
    uint16_t half[BLOCK][MAX_HEAD_DIM];
    for (int t = 0; t < n; t++) {
        get_half(s, s->head_dim, half[t], k, (row + t) * k->stride + col);
        memset(half[t] + s->head_dim, 0, (size_t)(s->key_dim - s->head_dim) * sizeof half[t][0]);
    }
    for (int t = n; t < BLOCK; t++)
        memset(half[t], 0, (size_t)s->key_dim * sizeof half[t][0]);
    for (int panel = 0; panel < BLOCK / CS_PANEL; panel++) {
        const uint32_t *rows[CS_PANEL];
        for (int t = 0; t < CS_PANEL; t++)
            rows[t] = (const uint32_t *)half[panel * CS_PANEL + t];
        cs_cpu_pack_pairs((uint32_t *)(keys + (size_t)panel * s->key_panel_bytes), rows, CS_PANEL,
                          s->key_dim / 2);
    }
    for (int t = n; t < BLOCK; t++)
        memset(half[t], 0, (size_t)s->value_dim * sizeof half[t][0]);
    for (int t = 0; t < n; t++) {
        memset(half[t] + s->head_dim, 0, (size_t)(s->value_dim - s->head_dim) * sizeof half[t][0]);
        get_half(s, s->head_dim, half[t], v, (row + t) * v->stride + col);
    }
    for (int64_t i = 0; i < s->value_dim; i += CS_PANEL) {
        uint16_t *out = (uint16_t *)(values + (size_t)(i / CS_PANEL) * s->value_panel_bytes);
        for (int pair = 0; pair < BLOCK / 2; pair++)
            for (int c = 0; c < CS_PANEL; c++) {
                out[(pair * CS_PANEL + c) * 2] = half[2 * pair][i + c];
                out[(pair * CS_PANEL + c) * 2 + 1] = half[2 * pair + 1][i + c];
            }
    }
}

static void pack_block(const shape *s, char *keys, char *values, int n, const cs_tensor *k,
                       const cs_tensor *v, int64_t row, int64_t col)
{
    if (s->right == CS_DTYPE_BF16) {
        pack_block_bf16(s, keys, values, n, k, v, row, col);
        return;
    }
    memset(keys, 0, key_block_bytes(s));
    memset(values, 0, value_block_bytes(s));
    for (int t = 0; t < n; t++)
        put_token(s, keys, values, t, (const float *)k->data + (row + t) * k->stride + col,
                  (const float *)v->data + (row + t) * v->stride + col);
}

/* ---- Segments ---- */

/* Segments are cut into blocks of keys and into strips of queries; both are numbered through all
 * segments. Where rows see blocks of nearly a strip, strips and blocks are those: what nobody sees
 * is then not computed. */
typedef struct {
    shape shape;
    const cs_cpu *cpu;
    const cs_segment_attention *options;
    const cs_tensor *out, *q, *k, *v;
    int64_t block_keys, strip_rows, step_blocks;
    int64_t n_blocks; /* of all segments */
    int64_t n_strips;
    const int32_t *block_segment; /* [n_blocks] */
    const int32_t *strip_segment; /* [n_strips] */
    const int32_t *first_block;   /* [n_segments] */
    const int32_t *first_strip;   /* [n_segments] */
    char *packed;                 /* [n_heads][n_blocks] key block, value block */
} segments_job;

static char *packed_block(const segments_job *job, int64_t head, int64_t block)
{
    size_t size = key_block_bytes(&job->shape) + value_block_bytes(&job->shape);
    return job->packed + (size_t)(head * job->n_blocks + block) * size;
}

static void pack_segment_piece(void *data, int64_t index, uint32_t thread)
{
    const segments_job *job = data;
    const shape *s = &job->shape;
    int64_t head = index / job->n_blocks, block = index % job->n_blocks;
    int32_t segment = job->block_segment[block];
    int64_t row =
        job->options->starts[segment] + (block - job->first_block[segment]) * job->block_keys;
    int n = (int)cs_min(job->block_keys, job->options->starts[segment + 1] - row);
    char *keys = packed_block(job, head, block);
    pack_block(s, keys, keys + key_block_bytes(s), n, job->k, job->v, row, head * s->head_dim);
}

/* The keys of its segment that row `row` of the segment sees, out of n. */
static range segment_window(const cs_segment_attention *options, int64_t row, int64_t n)
{
    if (options->block_rows == 0)
        return (range){0, n};
    int64_t block = row / options->block_rows;
    return (range){MAX(0, (block - options->blocks_before) * options->block_rows),
                   cs_min(n, (block + options->blocks_after + 1) * options->block_rows)};
}

static void segment_strip_piece(void *data, int64_t index, uint32_t thread)
{
    const segments_job *job = data;
    const shape *s = &job->shape;
    int64_t head = index / job->n_strips, number = index % job->n_strips;
    int32_t segment = job->strip_segment[number];
    int64_t start = job->options->starts[segment], end = job->options->starts[segment + 1];
    int64_t row = start + (number - job->first_strip[segment]) * job->strip_rows;
    int n_rows = (int)cs_min(job->strip_rows, end - row);
    int64_t col = head * s->head_dim;

    strip *t = strip_begin(s, cs_cpu_thread_scratch(job->cpu, thread), n_rows);
    for (int r = 0; r < n_rows; r++)
        strip_set_query(s, t, r, job->q, row + r, col);
    /* Strips lie in their segment alike in every batch, and so do the blocks they begin with. */
    int64_t first_key = segment_window(job->options, row - start, end - start).first;
    int64_t end_key = segment_window(job->options, row - start + n_rows - 1, end - start).end;
    int64_t n_blocks = (end_key + job->block_keys - 1) / job->block_keys;
    for (int64_t first = first_key / job->block_keys; first < n_blocks; first += job->step_blocks) {
        int n = (int)cs_min(job->step_blocks, n_blocks - first);
        const void *keys[STEP_BLOCKS], *values[STEP_BLOCKS];
        range visible[STRIP];
        for (int b = 0; b < n; b++) {
            keys[b] = packed_block(job, head, job->first_block[segment] + first + b);
            values[b] = (const char *)keys[b] + key_block_bytes(s);
        }
        for (int r = 0; r < n_rows; r++) {
            range keys_seen = segment_window(job->options, row - start + r, end - start);
            int64_t from = first * job->block_keys;
            visible[r].first = MAX(0, keys_seen.first - from);
            visible[r].end = cs_min(n * job->block_keys, keys_seen.end - from);
        }
        strip_add_blocks(s, t, n_rows, n, keys, values, visible);
    }
    for (int r = 0; r < n_rows; r++)
        strip_write_row(s, t, r, job->out, row + r, col);
    if (s->kernels->leave)
        s->kernels->leave();
}

/* Numbers pieces of `size` rows through all segments: first[i] is segment i's first; returns the
 * count, and the segment of each in a new array. */
static int64_t number_pieces(const cs_segment_attention *options, int64_t size, int32_t *first,
                             int32_t **segment_of)
{
    int64_t n = 0;
    for (uint32_t i = 0; i < options->n_segments; i++) {
        first[i] = (int32_t)n;
        n += (options->starts[i + 1] - options->starts[i] + size - 1) / size;
    }
    *segment_of = g_new(int32_t, n);
    for (uint32_t i = 0; i < options->n_segments; i++) {
        int64_t end = i + 1 < options->n_segments ? first[i + 1] : n;
        for (int64_t piece = first[i]; piece < end; piece++)
            (*segment_of)[piece] = (int32_t)i;
    }
    return n;
}

void cs_cpu_attention_segments(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                               const cs_tensor *k, const cs_tensor *v,
                               const cs_segment_attention *options)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    segments_job job = {.shape = make_shape(cpu, options->dtype, options->head_dim, options->scale),
                        .cpu = cpu,
                        .options = options,
                        .out = out,
                        .q = q,
                        .k = k,
                        .v = v,
                        .block_keys = BLOCK,
                        .strip_rows = STRIP,
                        .step_blocks = STEP_BLOCKS};
    if (options->block_rows > STRIP / 2 && options->block_rows <= STRIP) {
        job.block_keys = job.strip_rows = options->block_rows;
        job.step_blocks = 1; /* zeros follow the keys of a block */
    }
    g_autofree int32_t *first_block = g_new(int32_t, options->n_segments);
    g_autofree int32_t *first_strip = g_new(int32_t, options->n_segments);
    g_autofree int32_t *block_segment = NULL;
    g_autofree int32_t *strip_segment = NULL;
    job.n_blocks = number_pieces(options, job.block_keys, first_block, &block_segment);
    job.n_strips = number_pieces(options, job.strip_rows, first_strip, &strip_segment);
    job.first_block = first_block;
    job.first_strip = first_strip;
    job.block_segment = block_segment;
    job.strip_segment = strip_segment;

    size_t mark = cs_compute_mark(compute);
    size_t block_bytes = key_block_bytes(&job.shape) + value_block_bytes(&job.shape);
    cs_tensor packed = cs_compute_scratch(compute, CS_DTYPE_U8, job.n_blocks * options->n_heads,
                                          (int64_t)block_bytes + 64);
    job.packed = packed.data;
    if (packed.data && cs_cpu_reserve_thread_scratch(cpu, strip_bytes(&job.shape))) {
        cs_pool_run(cpu->pool, job.n_blocks * options->n_heads, pack_segment_piece, &job);
        cs_pool_run(cpu->pool, job.n_strips * options->n_heads, segment_strip_piece, &job);
    }
    cs_compute_release(compute, mark);
}

/* ---- Paged ---- */

typedef struct {
    shape shape;
    const cs_cpu *cpu;
    const cs_kv_store *store;
    uint32_t layer;
    const cs_tensor *k, *v;
    const cs_tensor *q, *out;
    int64_t n_kv_heads;
    int64_t group;        /* query heads that read one kv head */
    int64_t strip_tokens; /* tokens of a strip: STRIP / group */
    uint32_t n_sequences;
    const cs_kv_sequence *sequences;
} paged_job;

static char *paged_keys(const paged_job *job, const cs_kv_sequence *sequence, int64_t block,
                        int64_t head)
{
    char *layer = cs_kv_layer(job->store, sequence->blocks[block], job->layer);
    return layer + (size_t)head * job->store->key_bytes;
}

static char *paged_values(const paged_job *job, const cs_kv_sequence *sequence, int64_t block,
                          int64_t head)
{
    char *layer = cs_kv_layer(job->store, sequence->blocks[block], job->layer);
    return layer + (size_t)job->n_kv_heads * job->store->key_bytes +
           (size_t)head * job->store->value_bytes;
}

/* One kv head of one sequence. A block is cleared when its first token comes, so that what an
 * earlier owner left, which may be NaN, never meets a probability of zero. */
static void kv_write_piece(void *data, int64_t index, uint32_t thread)
{
    const paged_job *job = data;
    const shape *s = &job->shape;
    const cs_kv_sequence *sequence = &job->sequences[index / job->n_kv_heads];
    int64_t head = index % job->n_kv_heads;
    for (int64_t i = 0; i < sequence->n_new; i++) {
        int64_t position = sequence->n_past + i, block = position / BLOCK;
        char *keys = paged_keys(job, sequence, block, head);
        char *values = paged_values(job, sequence, block, head);
        if (position % BLOCK == 0) {
            memset(keys, 0, job->store->key_bytes);
            memset(values, 0, job->store->value_bytes);
        }
        int64_t row = sequence->row + i, col = head * s->head_dim;
        put_token(s, keys, values, (int)(position % BLOCK),
                  (const float *)job->k->data + row * job->k->stride + col,
                  (const float *)job->v->data + row * job->v->stride + col);
    }
}

void cs_cpu_kv_write(cs_compute *compute, cs_kv_store *store, uint32_t layer, const cs_tensor *k,
                     const cs_tensor *v, uint32_t n_sequences, const cs_kv_sequence *sequences)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    paged_job job = {.shape = make_shape(cpu, store->shape.dtype, store->shape.head_dim, 1),
                     .cpu = cpu,
                     .store = store,
                     .layer = layer,
                     .k = k,
                     .v = v,
                     .n_kv_heads = store->shape.n_kv_heads,
                     .n_sequences = n_sequences,
                     .sequences = sequences};
    cs_pool_run(cpu->pool, (int64_t)n_sequences * job.n_kv_heads, kv_write_piece, &job);
}

static void paged_strip(const paged_job *job, const cs_kv_sequence *sequence, int64_t head,
                        int64_t first_token, void *scratch)
{
    const shape *s = &job->shape;
    int n_tokens = (int)cs_min(job->strip_tokens, sequence->n_new - first_token);
    int group = (int)job->group, n_rows = n_tokens * group;
    strip *t = strip_begin(s, scratch, n_rows);
    for (int r = 0; r < n_rows; r++) {
        int64_t row = sequence->row + first_token + r / group;
        int64_t col = (head * group + r % group) * s->head_dim;
        strip_set_query(s, t, r, job->q, row, col);
    }
    int64_t length = sequence->n_past + first_token + n_tokens; /* keys that the last row sees */
    int64_t n_blocks = (length + BLOCK - 1) / BLOCK;
    for (int64_t first = 0; first < n_blocks; first += STEP_BLOCKS) {
        int n = (int)cs_min(STEP_BLOCKS, n_blocks - first);
        const void *keys[STEP_BLOCKS], *values[STEP_BLOCKS];
        range visible[STRIP];
        for (int b = 0; b < n; b++) {
            keys[b] = paged_keys(job, sequence, first + b, head);
            values[b] = paged_values(job, sequence, first + b, head);
        }
        for (int r = 0; r < n_rows; r++) {
            int64_t position = sequence->n_past + first_token + r / group;
            visible[r] = (range){0, cs_min((int64_t)n * BLOCK, position + 1 - first * BLOCK)};
        }
        strip_add_blocks(s, t, n_rows, n, keys, values, visible);
    }
    for (int r = 0; r < n_rows; r++) {
        int64_t row = sequence->row + first_token + r / group;
        strip_write_row(s, t, r, job->out, row, (head * group + r % group) * s->head_dim);
    }
    if (s->kernels->leave)
        s->kernels->leave();
}

static int64_t strips_of(const paged_job *job, const cs_kv_sequence *sequence)
{
    return (sequence->n_new + job->strip_tokens - 1) / job->strip_tokens;
}

/* Pieces number the strips of all sequences, kv head by kv head. Sequences are few, so the search
 * is linear. */
static void paged_piece(void *data, int64_t index, uint32_t thread)
{
    const paged_job *job = data;
    const cs_kv_sequence *sequence = job->sequences;
    while (index >= strips_of(job, sequence) * job->n_kv_heads)
        index -= strips_of(job, sequence++) * job->n_kv_heads;
    paged_strip(job, sequence, index % job->n_kv_heads, index / job->n_kv_heads * job->strip_tokens,
                cs_cpu_thread_scratch(job->cpu, thread));
}

void cs_cpu_attention_paged(cs_compute *compute, const cs_tensor *out, const cs_tensor *q,
                            const cs_kv_store *store, uint32_t layer, float scale,
                            uint32_t n_sequences, const cs_kv_sequence *sequences)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    paged_job job = {.shape = make_shape(cpu, store->shape.dtype, store->shape.head_dim, scale),
                     .cpu = cpu,
                     .store = store,
                     .layer = layer,
                     .q = q,
                     .out = out,
                     .n_kv_heads = store->shape.n_kv_heads,
                     .n_sequences = n_sequences,
                     .sequences = sequences};
    job.group = q->cols / store->shape.head_dim / job.n_kv_heads;
    g_assert(job.group <= STRIP);
    job.strip_tokens = STRIP / job.group;
    int64_t pieces = 0;
    for (uint32_t i = 0; i < n_sequences; i++)
        pieces += strips_of(&job, &sequences[i]) * job.n_kv_heads;
    if (cs_cpu_reserve_thread_scratch(cpu, strip_bytes(&job.shape)))
        cs_pool_run(cpu->pool, pieces, paged_piece, &job);
}
