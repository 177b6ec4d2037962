/* What model_executor.c (the kind: engines, messages from their threads), model_encoder.c and
 * model_llm.c (jobs of either) share.
 *
 *   loop thread:     submit, poll inputs, send outputs, end          owns every job
 *   engine threads:  sink calls -> news of a job -> model_post       lock: what is marked below
 *
 * A job lives until its engine has let go of it, so engines may hold plain pointers. */
#ifndef CS_RUNTIME_MODEL_INTERNAL_H
#define CS_RUNTIME_MODEL_INTERNAL_H

#include "engine/encoder_engine.h"
#include "engine/llm_engine.h"
#include "models/model.h"
#include "runtime/executor.h"
#include "runtime/text_stream.h"

#include <pthread.h>

typedef struct model model;
typedef struct model_job model_job;

typedef struct {
    /* The inputs may have something new. */
    void (*poll)(model_job *job);
    /* There is news from the engine's threads. */
    void (*news)(model_job *job);
    void (*cancel)(model_job *job);
    void (*free)(model_job *job);
} model_job_ops;

/* The first member of either kind of job. */
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
    GHashTable *jobs;                             /* set of model_job * */
    GHashTable *handovers;                        /* handover_key -> model_handover * */

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

/* --- hand-over between jobs of this executor ---
 *
 * A stream has an entry from the first of its jobs to the last: the producer's and n_local
 * consumers', in any order. */

void model_handover_put(model_job *producer, uint32_t output, cs_shared_tensor *tensor);
/* Borrowed; NULL: not there yet. */
cs_shared_tensor *model_handover_look(model_job *consumer, uint32_t input);

/* The job's input of this name, from index `from` on; n_inputs if there is none. */
uint32_t model_find_input(const cs_job *job, const char *name, uint32_t from);
/* Takes the one chunk of an input. CS_RECEIVE_AGAIN, _ERROR and _END (a stream of nothing) as
 * cs_receiver_get. */
cs_receive model_take_chunk(cs_job *job, uint32_t input, cs_chunk *chunk, GError **error);

/* --- jobs --- */

model_job *model_encoder_job_new(model *m, cs_job *job, GError **error);
model_job *model_llm_job_new(model *m, cs_job *job, GError **error);
/* After the LLM engine's step; user is the model. */
void model_llm_on_step(void *user);

#endif
