/* What an autoregressive LLM component offers the LLM engine.
 *
 * The engine decides which tokens of which sequences run in a step and owns the numbering of KV
 * blocks; the component owns weights, the storage of the KV cache and the arithmetic. One thread
 * (the engine's) calls all of it. Results for a sequence do not depend on what else is in the
 * batch, nor on how its prompt is cut into steps: kernels accumulate in an order fixed by positions
 * alone.
 */
#ifndef CS_MODELS_LLM_H
#define CS_MODELS_LLM_H

#include "tensor/tensor.h"

/* Tokens of one KV block. */
#define CS_LLM_BLOCK_TOKENS 32

/* Rows [row, row + n) of a batch take their embeddings from a tensor instead of the embedding
 * table (or, in a talker, beside it). */
typedef struct {
    uint32_t row;
    uint32_t n;
    const cs_tensor *source; /* [>= source_row + n, input_size] f32 */
    uint32_t source_row;
} cs_llm_span;

typedef struct {
    uint32_t n_past;          /* tokens already in the KV cache */
    uint32_t n_new;           /* tokens of this step; rows follow those of the sequence before */
    const int32_t *kv_blocks; /* [ceil((n_past + n_new) / CS_LLM_BLOCK_TOKENS)] block numbers */
} cs_llm_sequence;

typedef struct {
    uint32_t n_rows;               /* sum of n_new */
    const int32_t *token_ids;      /* [n_rows]; any valid id in rows covered by a span */
    const int32_t (*positions)[3]; /* [n_rows] temporal, height, width; equal for text */
    uint32_t n_sequences;
    const cs_llm_sequence *sequences;
    uint32_t n_spans;
    const cs_llm_span *spans;
    uint32_t n_logit_rows;
    const uint32_t *logit_rows; /* [n_logit_rows] rows whose next-token logits are wanted */
} cs_llm_batch;

typedef struct cs_llm cs_llm;

typedef struct {
    /* Allocates KV storage and workspace for steps up to the given sizes; called once before
     * forward. CS_ERROR_FAILED when there is no memory. */
    bool (*reserve)(cs_llm *llm, uint32_t n_kv_blocks, uint32_t max_rows, uint32_t max_sequences,
                    uint32_t max_logit_rows, GError **error);

    /* Runs one step: writes keys and values of all rows into the KV cache and the f32 logits
     * [n_logit_rows, vocab_size] to host memory; `hidden`, unless NULL, receives the final normed
     * hidden states [n_rows, hidden_size] f32. Allocates nothing. */
    bool (*forward)(cs_llm *llm, const cs_llm_batch *batch, float *logits, float *hidden,
                    GError **error);

    /* Copies one KV block onto another (a forked sequence writes into a block that others share).
     */
    void (*copy_block)(cs_llm *llm, int32_t to, int32_t from);

    /* One KV block to or from host memory [kv_block_bytes], in a layout that a component of the
     * same checkpoint, dtype and kind of device understands. Both NULL: not offered. */
    void (*read_block)(cs_llm *llm, void *to, int32_t block);
    void (*write_block)(cs_llm *llm, int32_t block, const void *from);

    void (*free)(cs_llm *llm); /* accepts NULL */
} cs_llm_ops;

/* Components embed this as their first member. */
struct cs_llm {
    const cs_llm_ops *ops;
    uint32_t vocab_size;
    uint32_t hidden_size;
    uint32_t input_size;         /* columns of span sources; 0: hidden_size */
    uint32_t max_context_tokens; /* of the model's config */
    size_t kv_block_bytes;       /* of one block over all layers */
};

#endif
