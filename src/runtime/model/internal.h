/* What executor.c (the kind: engines, messages from their threads), stream.c (what jobs
 * hand to each other), and encoder.c, llm.c, talker.c and vocoder.c (jobs)
 * share.
 *
 *   loop thread:     submit, poll inputs, send outputs, end          owns every job
 *   engine threads:  sink calls -> news of a job -> model_post       lock: what is marked below
 *
 * A job lives until its engine has let go of it, so engines may hold plain pointers. */
#ifndef CS_RUNTIME_MODEL_INTERNAL_H
#define CS_RUNTIME_MODEL_INTERNAL_H

#include "engine/encoder_engine.h"
#include "engine/generator_engine.h"
#include "engine/llm_engine.h"
#include "models/model.h"
#include "runtime/executor.h"
#include "runtime/talk.h"
#include "runtime/text_stream.h"

#include <pthread.h>

typedef struct model model;
typedef struct model_job model_job;

typedef struct {
    /* The inputs may have something new. */
    void (*poll)(model_job *job);
    /* There is news from the engine's threads. */
    void (*news)(model_job *job);
    void (*later)(model_job *job);                   /* after model_later; may be NULL */
    void (*allow)(model_job *job, uint64_t n_units); /* may be NULL */
    void (*cancel)(model_job *job);
    void (*free)(model_job *job);
} model_job_ops;

/* The first member of every kind of job. */
struct model_job {
    model *owner;
    cs_job *job;
    const model_job_ops *ops;
    bool listed; /* lock: in owner->news */
};

struct model {
    cs_executor *host;
    cs_compute *compute;
    cs_model *checkpoint;
    cs_turn *turn, *batches;
    cs_llm_engine *llm; /* NULL: not hosted */
    size_t kv_block_bytes;
    uint32_t vocab_size;
    cs_encoder_engine *encoders[CS_N_MODALITIES]; /* image and video may be one */
    cs_llm_engine *talker;                        /* NULL: not hosted */
    GArray *bans;                                 /* the talker's, cs_token_bias */
    cs_generator_engine *vocoder;                 /* NULL: not hosted */
    uint32_t samples_per_code;
    GHashTable *jobs;      /* set of model_job * */
    GHashTable *handovers; /* stream.c */
    GHashTable *later;     /* set of model_job *; posted if not empty */

    pthread_mutex_t lock;
    GPtrArray *news; /* lock: model_job * */
    bool posted;     /* lock */
};

/* Puts the job on the list of those with news; under the lock. Engines' threads. */
void model_list(model_job *job);
/* Wakes the loop. */
void model_post(model *m);
/* Takes the job out of the executor and frees it. Takes the error. */
void model_finish(model_job *job, GError *error);

/* In the loop's next round the job's `later` is called. */
void model_later(model_job *job);
/* Every job looks at its inputs; user is the model. */
void model_poll_all(void *user);

/* --- stream.c: hand-over between jobs of this executor ---
 *
 * A stream has an entry from the first of its jobs to the last: the producer's and n_local
 * consumers', in any order. */

GHashTable *model_handovers_new(void);
void model_handovers_enter(model *m, const cs_job *job);
void model_handovers_leave(model *m, const cs_job *job, bool failed);
/* The one tensor of an input that is no stream. Borrowed; NULL: not there yet. */
cs_shared_tensor *model_handover_look(model_job *consumer, uint32_t input);

/* --- streamed outputs ---
 *
 * What is put into an outbox leaves in the loop's next round (the job's `later` ripens and flushes
 * it), when the gateway has been told what it was made from: whoever reads it is never ahead of
 * what a resumption would know. */

typedef struct {
    uint32_t output;
    GQueue fresh, ripe; /* cs_shared_tensor * */
} model_outbox;

void model_outbox_init(model_outbox *box, uint32_t output);
/* At most n_chunks that were sent lie unread: then flush has no room. */
void model_outbox_limit(model_job *producer, const model_outbox *box, uint32_t n_chunks);
void model_outbox_clear(model_outbox *box);
bool model_outbox_is_empty(const model_outbox *box);
void model_stream_put(model_job *producer, model_outbox *box, cs_shared_tensor *chunk);
void model_outbox_ripen(model_outbox *box);
/* True when all is out. False without an error: the doorbell rings when there is room. */
bool model_outbox_flush(model_job *producer, model_outbox *box, GError **error);
/* Sends at once, to the sidecar or here. False without an error: there is no room now. */
bool model_output_send(model_job *producer, uint32_t output, cs_shared_tensor *tensor,
                       GError **error);

/* --- inputs --- */

/* The job's input of this name, from index `from` on; n_inputs if there is none. */
uint32_t model_find_input(const cs_job *job, const char *name, uint32_t from);
/* Takes the one chunk of an input. CS_RECEIVE_AGAIN, _ERROR and _END (a stream of nothing) as
 * cs_receiver_get. */
cs_receive model_take_chunk(cs_job *job, uint32_t input, cs_chunk *chunk, GError **error);
/* Of rank two and this dtype. */
bool model_check_chunk(const cs_job *job, const cs_chunk *chunk, cs_dtype dtype, GError **error);
/* The next chunk of a streamed input as a reference. */
cs_receive model_stream_next(model_job *consumer, uint32_t input, uint64_t *n_taken, cs_dtype dtype,
                             cs_shared_tensor **tensor, GError **error);

/* --- jobs --- */

model_job *model_encoder_job_new(model *m, cs_job *job, GError **error);
model_job *model_llm_job_new(model *m, cs_job *job, GError **error);
model_job *model_talker_job_new(model *m, cs_job *job, GError **error);
model_job *model_vocoder_job_new(model *m, cs_job *job, GError **error);
/* The Speech of a talker's or vocoder's job, or NULL: it has not come, or *error. */
Cornserve__Wire__Speech *model_take_speech(model_job *job, GError **error);
/* After the LLM engine's step; user is the model. */
void model_llm_on_step(void *user);

#endif
