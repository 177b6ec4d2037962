#include "support/fake_llm.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

typedef struct {
    cs_llm base;
    fake_llm_control *control;
    uint32_t n_blocks, max_rows, max_sequences, max_logit_rows;
    uint64_t *kv;     /* [n_blocks][CS_LLM_BLOCK_TOKENS] */
    uint64_t *states; /* [max_rows] */
} fake_llm;

static uint64_t mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

uint64_t fake_kv_entry(int32_t token_id, const int32_t position[3], const float *embedding)
{
    uint64_t entry = mix((uint32_t)token_id);
    for (int axis = 0; axis < 3; axis++)
        entry = mix(entry ^ (uint32_t)position[axis]);
    for (int i = 0; embedding && i < FAKE_HIDDEN; i++) {
        uint32_t bits;
        memcpy(&bits, &embedding[i], sizeof bits);
        entry = mix(entry ^ bits ^ 0x100000000u);
    }
    return entry;
}

uint64_t fake_fold(uint64_t state, uint64_t kv_entry)
{
    return mix(state ^ kv_entry);
}

static float unit(uint64_t x)
{
    return (float)(mix(x) >> 40) * 0x1p-24f;
}

void fake_logits(uint64_t state, float *logits)
{
    for (uint32_t i = 0; i < FAKE_VOCAB; i++)
        logits[i] = 12 * unit(state ^ (uint64_t)i << 32) - 7;
}

void fake_hidden(uint64_t state, float *hidden)
{
    for (uint32_t i = 0; i < FAKE_HIDDEN; i++)
        hidden[i] = unit(state + i);
}

cs_shared_tensor *fake_embeddings(uint64_t content, uint32_t rows)
{
    cs_shared_tensor *shared = cs_shared_tensor_new(CS_DTYPE_F32, rows, FAKE_HIDDEN);
    float *data = shared->t.data;
    for (size_t i = 0; i < (size_t)rows * FAKE_HIDDEN; i++)
        data[i] = unit(mix(content) + i);
    return shared;
}

static bool reserve(cs_llm *llm, uint32_t n_kv_blocks, uint32_t max_rows, uint32_t max_sequences,
                    uint32_t max_logit_rows, GError **error)
{
    fake_llm *fake = (fake_llm *)llm;
    if (fake->control->fail_reserve)
        return cs_fail(error, CS_ERROR_FAILED, "fake: no memory for %u blocks", n_kv_blocks);
    fake->n_blocks = n_kv_blocks;
    fake->max_rows = max_rows;
    fake->max_sequences = max_sequences;
    fake->max_logit_rows = max_logit_rows;
    fake->kv = g_new0(uint64_t, (size_t)n_kv_blocks * CS_LLM_BLOCK_TOKENS);
    fake->states = g_new0(uint64_t, max_rows);
    return true;
}

static uint64_t *kv_slot(fake_llm *fake, const cs_llm_sequence *sequence, uint32_t row)
{
    int32_t block = sequence->kv_blocks[row / CS_LLM_BLOCK_TOKENS];
    g_assert(block >= 0 && (uint32_t)block < fake->n_blocks);
    return &fake->kv[(size_t)block * CS_LLM_BLOCK_TOKENS + row % CS_LLM_BLOCK_TOKENS];
}

static const float *embedding_of(const cs_llm_batch *batch, uint32_t row)
{
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const cs_llm_span *span = &batch->spans[i];
        if (row < span->row || row >= span->row + span->n)
            continue;
        int64_t source = (int64_t)span->source_row + (row - span->row);
        g_assert(source < span->source->rows);
        return (const float *)span->source->data + source * span->source->stride;
    }
    return NULL;
}

static void run_sequence(fake_llm *fake, const cs_llm_batch *batch, const cs_llm_sequence *sequence,
                         uint32_t first_row)
{
    uint64_t state = 0;
    g_assert(sequence->n_new > 0);
    for (uint32_t i = 0; i < sequence->n_new; i++) {
        uint32_t row = first_row + i;
        g_assert(batch->token_ids[row] >= 0 && batch->token_ids[row] < FAKE_VOCAB);
        *kv_slot(fake, sequence, sequence->n_past + i) =
            fake_kv_entry(batch->token_ids[row], batch->positions[row], embedding_of(batch, row));
    }
    for (uint32_t row = 0; row < sequence->n_past; row++)
        state = fake_fold(state, *kv_slot(fake, sequence, row));
    for (uint32_t i = 0; i < sequence->n_new; i++) {
        state = fake_fold(state, *kv_slot(fake, sequence, sequence->n_past + i));
        fake->states[first_row + i] = state;
    }
}

static void pass_time(const fake_llm_control *control, uint32_t n_rows)
{
    guint us = control->step_us + control->row_us * n_rows;
    if (us > 0)
        g_usleep(us);
}

static bool forward(cs_llm *llm, const cs_llm_batch *batch, float *logits, float *hidden,
                    GError **error)
{
    fake_llm *fake = (fake_llm *)llm;
    fake_llm_control *control = fake->control;
    g_assert(batch->n_rows > 0 && batch->n_rows <= fake->max_rows);
    g_assert(batch->n_sequences > 0 && batch->n_sequences <= fake->max_sequences);
    g_assert(batch->n_logit_rows <= fake->max_logit_rows);
    if (control->before_step)
        control->before_step(control->user, batch);
    pass_time(control, batch->n_rows);
    uint32_t row = 0;
    for (uint32_t i = 0; i < batch->n_sequences; row += batch->sequences[i++].n_new)
        run_sequence(fake, batch, &batch->sequences[i], row);
    g_assert(row == batch->n_rows);
    for (uint32_t i = 0; i < batch->n_logit_rows; i++)
        fake_logits(fake->states[batch->logit_rows[i]], logits + (size_t)i * FAKE_VOCAB);
    for (uint32_t i = 0; hidden && i < batch->n_rows; i++)
        fake_hidden(fake->states[i], hidden + (size_t)i * FAKE_HIDDEN);
    g_atomic_int_add(&control->n_rows, (gint)batch->n_rows);
    g_atomic_int_set(&control->max_step_rows,
                     MAX(g_atomic_int_get(&control->max_step_rows), (gint)batch->n_rows));
    gint step = g_atomic_int_add(&control->n_steps, 1) + 1;
    if (step == g_atomic_int_get(&control->nan_at_step) && batch->n_logit_rows > 0)
        logits[0] = NAN;
    if (step == g_atomic_int_get(&control->fail_at_step))
        return cs_fail(error, CS_ERROR_FAILED, "fake: step %d was to fail", step);
    return true;
}

static void copy_block(cs_llm *llm, int32_t to, int32_t from)
{
    fake_llm *fake = (fake_llm *)llm;
    g_assert(to != from && (uint32_t)to < fake->n_blocks && (uint32_t)from < fake->n_blocks);
    memcpy(&fake->kv[(size_t)to * CS_LLM_BLOCK_TOKENS],
           &fake->kv[(size_t)from * CS_LLM_BLOCK_TOKENS], CS_LLM_BLOCK_TOKENS * sizeof *fake->kv);
}

enum { KV_BYTES = CS_LLM_BLOCK_TOKENS * sizeof(uint64_t) };

static void read_block(cs_llm *llm, void *to, int32_t block)
{
    fake_llm *fake = (fake_llm *)llm;
    g_assert((uint32_t)block < fake->n_blocks);
    memset(to, 0xAA, FAKE_BLOCK_BYTES);
    memcpy(to, &fake->kv[(size_t)block * CS_LLM_BLOCK_TOKENS], KV_BYTES);
}

static void write_block(cs_llm *llm, int32_t block, const void *from)
{
    fake_llm *fake = (fake_llm *)llm;
    g_assert((uint32_t)block < fake->n_blocks);
    memcpy(&fake->kv[(size_t)block * CS_LLM_BLOCK_TOKENS], from, KV_BYTES);
}

static void free_fake(cs_llm *llm)
{
    fake_llm *fake = (fake_llm *)llm;
    if (!fake)
        return;
    fake->control->freed = true;
    g_free(fake->kv);
    g_free(fake->states);
    g_free(fake);
}

static const cs_llm_ops fake_ops = {.reserve = reserve,
                                    .forward = forward,
                                    .copy_block = copy_block,
                                    .read_block = read_block,
                                    .write_block = write_block,
                                    .free = free_fake};

cs_llm *fake_llm_new(fake_llm_control *control, uint32_t max_context_tokens)
{
    fake_llm *fake = g_new0(fake_llm, 1);
    fake->base = (cs_llm){.ops = &fake_ops,
                          .vocab_size = FAKE_VOCAB,
                          .hidden_size = FAKE_HIDDEN,
                          .input_size = FAKE_HIDDEN,
                          .max_context_tokens = max_context_tokens,
                          .kv_block_bytes = FAKE_BLOCK_BYTES};
    fake->control = control;
    return &fake->base;
}
