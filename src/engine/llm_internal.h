/* What the files of the LLM engine share.
 *
 *   llm_request.c   a request from its options to its end: checks, items, sequences
 *   llm_inbox.c     messages from any thread to the engine's
 *   llm_schedule.c  which rows run in the next step: admission, blocks, preemption
 *   llm_kv.c        KV blocks from and to other engines
 *   llm_step.c      running a step and handing out what came of it
 *   llm_engine.c    the engine's life, its loop, statistics
 *
 * All but the inbox, the constant parts of a request and the engine's `options` belong to the
 * engine's thread.
 */
#ifndef CS_ENGINE_LLM_INTERNAL_H
#define CS_ENGINE_LLM_INTERNAL_H

#include "engine/kv_cache.h"
#include "engine/llm_engine.h"

#include <pthread.h>

/* ---- Requests ---- */

typedef enum {
    SEQUENCE_UNBORN,  /* a choice that waits for the first one's prefill */
    SEQUENCE_WAITING, /* for memory, a place, or its first embedding */
    SEQUENCE_RUNNING, /* holds its blocks */
    SEQUENCE_ENDED
} sequence_state;

typedef struct llm_sequence llm_sequence;

/* One choice. Row r is prompt token r or generated token r - n_prompt; rows [0, n_past) are in the
 * KV cache, and the last known row's logits give the next token. */
struct llm_sequence {
    cs_llm_request *request;
    uint32_t choice; /* with first_choice */
    sequence_state state;
    llm_sequence *waiting_previous, *waiting_next; /* in order of arrival */

    int32_t *generated; /* [max_tokens] */
    uint32_t n_generated;
    uint32_t n_past;

    int32_t *blocks; /* [capacity_blocks] those of rows [0, n_blocks * CS_LLM_BLOCK_TOKENS) */
    uint32_t n_blocks;
    cs_kv_key *keys; /* [capacity_blocks] of the first n_keys blocks, each full */
    uint32_t n_keys;
    uint32_t n_published; /* blocks offered to the prefix cache */

    cs_token_counts *counts; /* NULL: no penalties */
    uint32_t needed_row;     /* what it stood still for when it was preempted; else 0 */
    uint32_t n_hidden_done;  /* rows before this one need no hidden states any more */

    /* Of the step being made. */
    uint32_t n_new;
    uint32_t first_batch_row;
    int32_t logit_row; /* into the step's logits; -1: the prompt goes on */
};

typedef struct {
    cs_shared_tensor *rows;
    uint32_t first_row; /* of the item */
} llm_item_chunk;

typedef struct {
    uint64_t content_hash[2];
    uint32_t n_rows;    /* 0: not known */
    uint32_t n_arrived; /* rows of chunks */
    bool closed;
    GArray *chunks; /* llm_item_chunk */
} llm_item;

typedef struct llm_inbox llm_inbox;

struct cs_llm_request {
    gint refs;
    llm_inbox *inbox; /* outlives the engine while handles do */

    /* Constant from submission on. */
    cs_llm_sink sink;
    void *user;
    uint32_t n_prompt;
    int32_t *prompt;         /* [n_prompt] */
    int32_t (*positions)[3]; /* [n_prompt] */
    int32_t next_position;   /* of generated token 0 */
    uint32_t n_spans;
    cs_llm_input_span *spans;
    uint32_t n_items;
    bool has_reply_item;
    uint32_t reply_item;
    uint32_t n_choices;
    cs_sampling_params sampling; /* biases are the request's own */
    uint32_t max_tokens, min_tokens;
    uint32_t n_stop_ids;
    int32_t *stop_ids;
    uint64_t cache_salt[2];
    bool hidden_states, export_kv;
    cs_llm_pace pace;
    int64_t asked_us;
    uint32_t capacity_blocks;  /* of one sequence */
    uint32_t n_cacheable_rows; /* rows from here on are never in the prefix cache */

    /* The engine thread's. */
    llm_item *items;         /* [n_items] */
    llm_sequence *sequences; /* [n_choices] */
    uint64_t arrival;        /* serial number */
    uint32_t n_live;         /* sequences not ended */
    bool admitted;           /* has been running: cached_tokens is known */
    bool forked;
    bool done;
    bool held;
    uint32_t n_exported;   /* blocks of the prompt handed out */
    bool import_kv;        /* false again when the prompt can be computed instead */
    uint32_t n_kv_arrived; /* blocks in kv */
    GPtrArray *kv;         /* cs_shared_tensor, u8 [blocks, kv_block_bytes]; or NULL */
    cs_llm_usage usage;
    cs_llm_request *next; /* in the engine's list of requests, or of those ended in this step */
    cs_llm_request *previous;
};

/* Checks and copies; a request of one reference with its first sequence to be put among the
 * waiting. */
cs_llm_request *llm_request_new(const cs_llm_engine *engine, const cs_llm_request_options *options,
                                const cs_llm_sink *sink, void *user, GError **error);
cs_llm_request *llm_request_ref(cs_llm_request *request);
void llm_request_unref(cs_llm_request *request);

/* Takes rows over into an item. CS_ERROR_INVALID when they do not fit it. */
bool llm_request_add_rows(cs_llm_request *request, uint32_t item, cs_shared_tensor *rows, bool last,
                          uint32_t width, GError **error);

/* The item row that row `row` of a sequence takes its embedding from; false for plain tokens.
 * *n_run rows from there on, at most `limit`, come from one item in order (or from none). */
bool llm_request_source(const cs_llm_request *request, uint32_t row, uint32_t limit, uint32_t *item,
                        uint32_t *source_row, uint32_t *n_run);

static inline uint32_t llm_sequence_rows(const llm_sequence *sequence)
{
    return sequence->request->n_prompt + sequence->n_generated;
}

int32_t llm_sequence_token(const llm_sequence *sequence, uint32_t row);
void llm_sequence_position(const llm_sequence *sequence, uint32_t row, int32_t position[3]);
/* What the prefix cache compares of block `block`. */
void llm_sequence_kv_rows(const llm_sequence *sequence, uint32_t block,
                          cs_kv_row rows[CS_LLM_BLOCK_TOKENS]);
/* Whether the embedding of a row is there. */
bool llm_sequence_row_is_ready(const llm_sequence *sequence, uint32_t row);
/* How many of rows [n_past, known rows) have their embeddings, at most `limit`. */
uint32_t llm_sequence_ready_rows(const llm_sequence *sequence, uint32_t limit);

static inline uint32_t llm_blocks_of(uint64_t rows)
{
    return (uint32_t)((rows + CS_LLM_BLOCK_TOKENS - 1) / CS_LLM_BLOCK_TOKENS);
}

/* ---- Inbox ---- */

typedef enum {
    MESSAGE_SUBMIT,
    MESSAGE_ROWS,
    MESSAGE_KV,
    MESSAGE_HOLD,
    MESSAGE_FAIL,
    MESSAGE_CANCEL
} message_kind;

typedef struct llm_message llm_message;
struct llm_message {
    llm_message *next;
    message_kind kind;
    cs_llm_request *request; /* a reference */
    uint32_t item;
    cs_shared_tensor *rows;
    bool last, hold;
    GError *error;
};

llm_inbox *llm_inbox_new(uint32_t max_requests);
llm_inbox *llm_inbox_ref(llm_inbox *inbox);
void llm_inbox_unref(llm_inbox *inbox);
/* Takes the message's contents over; drops them when the engine is gone. MESSAGE_SUBMIT counts
 * against max_requests: false when there is no place. */
bool llm_inbox_post(llm_inbox *inbox, llm_message message);
/* All messages, oldest first; waits for one if `wait`. *closed: the engine is to end. */
llm_message *llm_inbox_take(llm_inbox *inbox, bool wait, bool *closed);
/* A request has ended and leaves its place. */
void llm_inbox_leave(llm_inbox *inbox);
void llm_inbox_close(llm_inbox *inbox);
uint32_t llm_inbox_requests(llm_inbox *inbox);
void llm_message_free(llm_message *message);

/* ---- The engine ---- */

typedef struct {
    int32_t to, from;
} block_copy;

struct cs_llm_engine {
    cs_llm *llm;
    char *name;
    cs_llm_engine_options options; /* zeros replaced by what they stand for */
    uint32_t capacity_tokens;      /* of one sequence, by context and KV memory */
    cs_kv_cache *kv;
    cs_sampler *sampler;
    llm_inbox *inbox;
    GThread *thread;

    uint64_t n_arrivals;
    cs_llm_request *requests; /* accepted and not done */
    cs_llm_request *ended;    /* done, freed at the end of the step */
    llm_sequence *waiting_first, *waiting_last;
    uint32_t n_waiting;
    llm_sequence **running; /* [max_sequences] in order of arrival */
    uint32_t n_running;
    uint32_t n_unborn;         /* choices that running sequences will fork into */
    uint32_t mixed_chunk_rows; /* prompt rows of a step beside generating sequences */
    bool called_sinks;         /* since the last on_step */

    /* The step being made; buffers of the largest step. */
    cs_llm_batch batch;
    int32_t *token_ids;         /* [max_step_tokens] */
    int32_t (*positions)[3];    /* [max_step_tokens] */
    cs_llm_span *spans;         /* [max_step_tokens] */
    cs_llm_sequence *sequences; /* [max_sequences] */
    uint32_t *logit_rows;       /* [max_sequences] */
    llm_sequence **in_step;     /* [max_sequences] whose rows they are */
    block_copy *copies;         /* [max_sequences] to be made before the step */
    uint32_t n_copies;
    llm_sequence **imports; /* [max_sequences] whose KV is to be written after that */
    uint32_t n_imports;
    void *kv_block; /* [kv_block_bytes] on its way out; NULL: the component has no read_block */
    uint32_t n_decode_rows; /* rows of generating sequences */
    bool step_wants_hidden;
    float *logits; /* [max_sequences, vocab_size] */
    float *hidden; /* [max_step_tokens, hidden_size]; NULL without option hidden_states */

    cs_llm_engine_stats stats;
    pthread_mutex_t published_lock;
    cs_llm_engine_stats published; /* under published_lock */
};

static inline uint32_t llm_input_size(const cs_llm_engine *engine)
{
    return engine->llm->input_size > 0 ? engine->llm->input_size : engine->llm->hidden_size;
}

/* Fills the batch; with n_rows and n_imports 0 nothing can be done now. */
void llm_schedule(cs_llm_engine *engine);
/* Puts a sequence among the waiting, in order of arrival. */
void llm_schedule_wait(cs_llm_engine *engine, llm_sequence *sequence);
/* Adds a forked sequence to the running. */
void llm_schedule_run(cs_llm_engine *engine, llm_sequence *sequence);
/* Takes a sequence out of waiting or running, gives its blocks back and marks it ended. */
void llm_schedule_remove(cs_llm_engine *engine, llm_sequence *sequence);

/* Takes KV blocks over. CS_ERROR_INVALID when they do not fit the request. */
bool llm_kv_add(cs_llm_engine *engine, cs_llm_request *request, cs_shared_tensor *blocks,
                GError **error);
/* Whether blocks are still to come. */
bool llm_kv_is_awaited(const cs_llm_request *request);
/* Plans to write the prompt's blocks, all held, that the prefix cache did not have. */
void llm_kv_import(cs_llm_engine *engine, llm_sequence *sequence);
/* With the device in hand: writes what was planned; hands out what has become full. */
void llm_kv_write_imports(cs_llm_engine *engine);
void llm_kv_export(cs_llm_engine *engine, const llm_sequence *sequence);

/* Runs the scheduled batch. */
void llm_step(cs_llm_engine *engine);
/* Ends a sequence in the regular way, and its request with the last one. */
void llm_finish_sequence(cs_llm_engine *engine, llm_sequence *sequence, cs_llm_finish reason);
/* Ends a request; error NULL: it is complete. Without effect when it is done. */
void llm_end_request(cs_llm_engine *engine, cs_llm_request *request, const GError *error);
/* Lets other threads see the statistics: after a step, and before a request's on_done. */
void llm_publish_stats(cs_llm_engine *engine);

#endif
