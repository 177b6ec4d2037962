/* A cs_llm that computes hashes instead of attention.
 *
 * A row's entry in the KV cache is a hash of its token, position and embedding; logits and hidden
 * states of a row are hashes of all entries before it and its own, in order, read through the block
 * table. So any error of scheduling, of a block table, of copying, sharing or recomputing changes
 * the tokens. What a batch must obey is asserted.
 */
#ifndef CS_TESTS_FAKE_LLM_H
#define CS_TESTS_FAKE_LLM_H

#include "models/llm.h"

enum { FAKE_VOCAB = 97, FAKE_HIDDEN = 8, FAKE_BLOCK_BYTES = 4096 };

typedef struct {
    gint fail_at_step;  /* the step of this number (from 1) fails; 0: none */
    gint nan_at_step;   /* the step of this number gives a NaN to its first logit row */
    gint n_steps;       /* run so far */
    gint n_rows;        /* run so far */
    gint max_step_rows; /* seen */
    guint step_us;      /* a step takes at least this long */
    guint row_us;       /* and this for each row */
    bool fail_reserve;
    bool freed;
    void (*before_step)(void *user,
                        const cs_llm_batch *batch); /* on the engine's thread, or NULL */
    void *user;
} fake_llm_control;

/* `control` outlives the component. */
cs_llm *fake_llm_new(fake_llm_control *control, uint32_t max_context_tokens);

/* The same functions for an oracle that keeps its own history. */
uint64_t fake_kv_entry(int32_t token_id, const int32_t position[3], const float *embedding);
uint64_t fake_fold(uint64_t state, uint64_t kv_entry);
void fake_logits(uint64_t state, float *logits);
void fake_hidden(uint64_t state, float *hidden);

/* Embeddings of a medium: [rows, FAKE_HIDDEN], by its content. */
cs_shared_tensor *fake_embeddings(uint64_t content, uint32_t rows);

#endif
