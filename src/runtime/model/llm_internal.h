/* What llm.c (the life of a request in the LLM engine) and llm_halves.c (what a prefill
 * hands to its decode) share. */
#ifndef CS_RUNTIME_MODEL_LLM_INTERNAL_H
#define CS_RUNTIME_MODEL_LLM_INTERNAL_H

#include "runtime/model/internal.h"
#include "runtime/model/tokens.h"

typedef struct llm_job llm_job;

typedef struct {
    llm_job *job;
    cs_llm_request *request;
} llm_part;

/* What the client has of a choice. */
typedef struct {
    GArray *ids; /* int32_t */
    bool finished, stop_id;
} llm_seen;

struct llm_job {
    model_job base;
    uint32_t output;                 /* the text's */
    uint32_t hidden;                 /* the output that a talker hears; n_outputs: none does */
    Cornserve__Wire__Prompt *prompt; /* NULL: has not come */
    llm_part *parts;
    uint32_t n_parts;
    uint32_t n_choices;
    llm_seen *seen;          /* [n_choices] */
    bool begun;              /* the engine has it */
    bool usage_seen;         /* the client has everything */
    bool replays;            /* only states are wanted of it: its answer is known */
    cs_text_stream *streams; /* [n_choices], the engine's thread; NULL: no stop strings */
    GArray *ids;             /* int32_t, the engine's thread: of the rows that a talker hears */
    bool *provided;          /* [n_inputs] */
    model_outbox heard;
    /* Of a decode: what has come from its prefill. */
    GPtrArray *blocks;              /* cs_shared_tensor * */
    Cornserve__Wire__Tokens *first; /* NULL: not all of it */
    uint64_t n_chunks;
    /* Of a prefill. */
    GQueue to_send; /* llm_chunk *, that wait for room in the sidecar */
    bool tokens_sent;

    /* Under the model's lock. */
    GByteArray *pending; /* Tokens, packed */
    uint32_t pending_units;
    uint32_t parts_left;
    GPtrArray *rows;     /* cs_shared_tensor *, new ones that a talker hears */
    GPtrArray *exported; /* llm_chunk *, new ones of a prefill */
    uint32_t n_held;     /* tensors over the sidecar's memory */
    cs_llm_usage usage;
    GError *error;
};

static inline bool llm_is_prefill(const llm_job *j)
{
    return j->base.job->role == CORNSERVE__WIRE__ROLE__PREFILL;
}

static inline bool llm_is_decode(const llm_job *j)
{
    return j->base.job->role == CORNSERVE__WIRE__ROLE__DECODE;
}

/* --- llm_halves.c --- */

typedef struct llm_chunk llm_chunk;
void llm_chunk_free(void *chunk);
/* A chunk for the decode: a block of the prompt [kv_block_bytes], or rows that a talker hears. Any
 * thread. */
llm_chunk *llm_chunk_of_block(const llm_job *job, const void *bytes);
llm_chunk *llm_chunk_of_rows(cs_shared_tensor *rows);
/* Sends chunks, and once the engine is done its tokens. True when all is sent. */
bool llm_send_kv(llm_job *job, bool ended, GError **error);
/* Takes what has come from the prefill. True when everything is there. */
bool llm_take_kv(llm_job *job, GError **error);
/* Choices of which the client has nothing begin with the prefill's tokens. */
bool llm_use_first(llm_job *job, GError **error);

#endif
