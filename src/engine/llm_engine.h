/* The LLM engine: continuous batching of generation requests over one cs_llm.
 *
 * One thread, the engine's, owns the component, the KV blocks and every sequence. Each step it
 * runs one token of each generating sequence and fills the rest of the step's token budget with
 * chunks of prompts, oldest first. KV memory is paged; blocks are shared between sequences with
 * equal beginnings (prefix cache) and between the choices of a request (copied when written). When
 * blocks run out, the sequence that arrived last gives its blocks back and is computed again
 * later; its tokens, random numbers and answers stay what they were.
 *
 *   submit -> waiting -> prefill (up to the first embedding that has not arrived) -> decode -> done
 *                ^------------------ preempted ------------------|
 *
 * Threads: every function may be called from any thread. Sink calls come from the engine's thread,
 * must not block, and end with exactly one on_done for each accepted request. They may call
 * cs_llm_request_* and cs_llm_engine_submit, but not cs_llm_engine_free.
 *
 * Prefill and decode may run in two engines: the first runs a request with export_kv and max_tokens
 * 1 and hands out the prompt's KV blocks as they become full; the second runs it with import_kv,
 * that token as already generated, and the blocks.
 *
 * Prompt and generated tokens form one row of tokens: row r of a sequence is prompt token r, or
 * generated token r - n_tokens.
 */
#ifndef CS_ENGINE_LLM_ENGINE_H
#define CS_ENGINE_LLM_ENGINE_H

#include "engine/sampling.h"
#include "engine/turn.h"
#include "models/llm.h"

typedef struct cs_llm_engine cs_llm_engine;
typedef struct cs_llm_request cs_llm_request;

typedef struct {
    const char *name;              /* stands in errors and names the thread; NULL: "llm" */
    size_t kv_budget_bytes;        /* at least one block */
    uint32_t max_step_tokens;      /* rows of a step; 0: 512 */
    uint32_t max_sequences;        /* generating at once; 0: 64 */
    uint32_t max_context_tokens;   /* prompt and output of a sequence; 0: the model's */
    uint32_t max_queued_requests;  /* accepted and not yet done; 0: 1024 */
    uint32_t mixed_step_target_us; /* while sequences generate, prompt chunks are kept so short that
                                      a step takes about this long, but at least one KV block;
                                      0: 150,000; UINT32_MAX: max_step_tokens alone bounds them */
    bool no_prefix_cache;
    bool hidden_states;          /* requests may ask for hidden states */
    cs_turn *turn;               /* borrowed; NULL: the device is not shared */
    void (*on_step)(void *user); /* after the sink calls of a step, or NULL: flush messages */
    void *on_step_user;
} cs_llm_engine_options;

/* Takes the component over (freed with the engine, also on failure) and reserves its memory. */
cs_llm_engine *cs_llm_engine_new(cs_llm *llm, const cs_llm_engine_options *options, GError **error);
/* Ends all requests with CS_ERROR_CANCELLED and waits for the thread. Handles of requests stay
 * valid until released. Accepts NULL. */
void cs_llm_engine_free(cs_llm_engine *engine);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_llm_engine, cs_llm_engine_free)

/* Rows [row, row + n) of the prompt take their embeddings from rows [source_row, source_row + n)
 * of item `item`. What a span does to the token's own embedding is the component's: encoders'
 * outputs replace it, a talker adds to it. */
typedef struct {
    uint32_t row;
    uint32_t n;
    uint32_t item;
    uint32_t source_row;
} cs_llm_input_span;

/* Embeddings [n_rows, input_size] f32 that may come later and in pieces.
 */
typedef struct {
    uint64_t content_hash[2]; /* of what it was made from; both 0: never in the prefix cache */
    uint32_t n_rows;          /* 0: not known yet (only for the reply item) */
    cs_shared_tensor *tensor; /* whole, if it is there already; a reference is taken. Or NULL */
} cs_llm_input_item;

typedef struct {
    uint32_t choice; /* first_choice .. first_choice + n_choices - 1 */
    uint32_t index;  /* among the generated tokens of the choice, resumed ones counted */
    const cs_sampled_token *token;
} cs_llm_token;

typedef enum {
    CS_LLM_FINISH_STOP_ID, /* a stop id was drawn; it is counted but not handed out */
    CS_LLM_FINISH_SINK,    /* on_token returned false */
    CS_LLM_FINISH_LENGTH   /* max_tokens, or the context is full */
} cs_llm_finish;

typedef struct {
    uint32_t prompt_tokens;
    uint32_t cached_tokens;     /* of the prompt, found in the prefix cache */
    uint32_t completion_tokens; /* over all choices, stop ids counted, resumed ones not */
} cs_llm_usage;

typedef struct {
    /* Returns whether the choice goes on. */
    bool (*on_token)(void *user, const cs_llm_token *token);
    /* Final normed hidden states [n, hidden_size] of rows [row, row + n) of a choice, each row once
     * and in order, before the on_token of the token drawn from it. Rows of the prompt come for
     * first_choice only. NULL unless asked for. */
    void (*on_hidden)(void *user, uint32_t choice, uint32_t row, uint32_t n, const float *hidden);
    /* KV block `block` of the prompt [kv_block_bytes], which is borrowed; blocks in order, each
     * once and before the first on_token. NULL unless asked for. */
    void (*on_kv)(void *user, uint32_t block, const void *bytes);
    void (*on_finish)(void *user, uint32_t choice, cs_llm_finish reason);
    /* error NULL: every choice has finished. Otherwise nothing more comes; borrowed. */
    void (*on_done)(void *user, const cs_llm_usage *usage, const GError *error);
} cs_llm_sink;

/* By when rows of generated tokens are wanted that are heard as speech (turn.h): the first
 * n_at_once were when the request came, for nothing is heard without them; each of the others
 * token_us after the one before it. token_us 0: nobody hears them. */
typedef struct {
    uint32_t n_at_once, token_us;
} cs_llm_pace;

typedef struct {
    uint32_t n_tokens; /* >= 1 */
    const int32_t *token_ids;
    const int32_t (*positions)[3]; /* [n_tokens]; NULL: 0, 1, 2, ... */
    int32_t next_position;         /* of the first generated token; with positions only */

    uint32_t n_spans;
    const cs_llm_input_span *spans; /* ordered by row, not overlapping */
    uint32_t n_items;
    const cs_llm_input_item *items;
    /* The rows of this item go with the generated tokens: row i with generated token i when it is
     * the input of a step; its last row goes on for ever once the item is closed. */
    bool has_reply_item;
    uint32_t reply_item;

    /* A generation that goes on where another stopped (an executor died): the tokens already
     * handed out. The result is that of an uninterrupted one. One choice only. */
    uint32_t n_generated;
    const int32_t *generated;

    uint32_t n_choices;    /* 0: 1; at most max_sequences */
    uint32_t first_choice; /* numbering, and with it randomness: 0 unless one choice is resumed */
    cs_sampling_params sampling;
    uint32_t
        max_tokens; /* of a choice, resumed ones counted; 0: what context and KV memory allow */
    uint32_t min_tokens; /* no stop id before */
    uint32_t n_stop_ids;
    const int32_t *stop_ids; /* none: goes on to max_tokens ("ignore_eos") */

    uint64_t cache_salt[2]; /* requests share prefixes only under an equal salt */
    bool export_kv;         /* of the prompt, to on_kv */
    /* The prompt's KV blocks come by cs_llm_request_provide_kv and are not computed. Needs at least
     * one generated token. Should memory run out the prompt is computed after all, or, when its
     * embeddings are not there, written again from the blocks, which are kept for that. */
    bool import_kv;
    bool hidden_states; /* of rows >= hidden_from_row; those are never taken from the cache */
    uint32_t hidden_from_row;
    cs_llm_pace pace;
} cs_llm_request_options;

/* Copies what it needs. Fails at once, with no sink call: CS_ERROR_INVALID (ids, positions, spans,
 * parameters), CS_ERROR_OVER_CONTEXT, CS_ERROR_TOO_LARGE (over the whole KV memory), CS_ERROR_BUSY
 * (queue full), CS_ERROR_UNSUPPORTED (hidden states of an engine without, KV blocks of a component
 * that cannot hand them out), CS_ERROR_FAILED (no memory). The handle is valid until
 * cs_llm_request_release. */
cs_llm_request *cs_llm_engine_submit(cs_llm_engine *engine, const cs_llm_request_options *options,
                                     const cs_llm_sink *sink, void *user, GError **error);

/* The next rows of an item, in order; takes a reference. `last`: the item is complete (a tensor of
 * NULL just closes it). What does not fit the item fails the request. Without effect after
 * on_done. */
void cs_llm_request_provide(cs_llm_request *request, uint32_t item, cs_shared_tensor *rows,
                            bool last);
/* The next KV blocks of the prompt, u8 [n, kv_block_bytes] in order, from an engine over the same
 * checkpoint, dtype and kind of device; takes a reference. What does not fit fails the request. */
void cs_llm_request_provide_kv(cs_llm_request *request, cs_shared_tensor *blocks);
/* While it is held a request keeps what it has and gets no further: who reads its tokens is slow.
 */
void cs_llm_request_hold(cs_llm_request *request, bool hold);
/* An item will not come: the request ends with this error. */
void cs_llm_request_fail(cs_llm_request *request, const GError *error);
/* The request ends within one step; on_done comes with CS_ERROR_CANCELLED unless it was done. */
void cs_llm_request_cancel(cs_llm_request *request);
/* Gives the handle back, before or after on_done; it does not cancel. */
void cs_llm_request_release(cs_llm_request *request);

typedef struct {
    uint32_t requests;         /* accepted and not done */
    uint32_t running, waiting; /* sequences */
    uint32_t kv_blocks_used;   /* held by sequences */
    uint32_t kv_blocks_cached; /* held by the prefix cache alone: free when wanted */
    uint32_t kv_blocks_total;
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
    uint64_t requests_finished, requests_failed, requests_cancelled;
    uint64_t preemptions;
    uint64_t steps, step_rows;
    uint64_t step_time_us;    /* sum over steps, all of the engine's work */
    uint64_t forward_time_us; /* sum over steps, in the component */
    uint64_t max_step_time_us;
} cs_llm_engine_stats;

void cs_llm_engine_stats_get(cs_llm_engine *engine, cs_llm_engine_stats *stats);

/* The longest prompt and output together that a sequence may have: by the context and by the KV
 * memory. */
uint32_t cs_llm_engine_max_tokens(const cs_llm_engine *engine);

#endif
