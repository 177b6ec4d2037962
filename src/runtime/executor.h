/* The executor: a child process that does the work of one or several components.
 *
 *     gateway <--- frames (wire.h) ---> executor: loop thread: jobs, kind
 *     sidecar <--- chunks ------------>     doorbell thread: wakes the loop
 *
 * What does the work is a kind, a table of functions; the host keeps jobs, opens their streams, and
 * sends what they make: everything of one round of the loop leaves in one Step. All functions run
 * on the loop's thread; a kind with threads of its own comes back by cs_loop_post.
 *
 * A job ends by cs_executor_done, once, also after cancel. */
#ifndef CS_RUNTIME_EXECUTOR_H
#define CS_RUNTIME_EXECUTOR_H

#include "runtime/wire.h"
#include "sidecar/sidecar.h"

#include <jansson.h>

typedef struct cs_executor cs_executor;

typedef struct {
    char *name;
    uint32_t stream;
    bool streamed;
    bool local;            /* the producer is here, and hands over without the sidecar */
    cs_receiver *receiver; /* NULL: local */
} cs_job_input;

typedef struct {
    char *name;
    uint32_t stream;
    bool to_client;
    double bytes;
    uint32_t n_local;  /* readers here, to whom it is handed over without the sidecar */
    cs_sender *sender; /* NULL: nobody reads it in the sidecar */
    bool ended;
    GBytes *seen; /* resumption: what the client has of it; NULL: nothing */
} cs_job_output;

typedef struct {
    cs_executor *host;
    uint64_t request;
    uint32_t invocation;
    Cornserve__Wire__Role role;
    char *component;
    json_t *params;
    double units, output_units;
    cs_job_input *inputs;
    uint32_t n_inputs;
    cs_job_output *outputs;
    uint32_t n_outputs;
    uint32_t seen_units;    /* resumption: of the client's output */
    uint64_t allowed_units; /* of a generator's, seen ones counted; 0: all */
    bool cancelled;
    void *data; /* the kind's */
} cs_job;

typedef struct {
    const char *name;
    bool hands_over; /* it takes local inputs and outputs */
    /* NULL and *error: the executor fails to start. */
    void *(*open)(cs_executor *host, const json_t *config, char **components, GError **error);
    /* False and *error: the job is done with it. */
    bool (*submit)(void *kind, cs_job *job, GError **error);
    /* The job is to end within one step; cs_executor_done still comes, now or later. */
    void (*cancel)(void *kind, cs_job *job);
    /* The client takes so many units more; may be NULL. */
    void (*allow)(void *kind, cs_job *job, uint64_t units);
    void (*doorbell)(void *kind); /* something may have arrived in the sidecar; may be NULL */
    void (*load)(void *kind, Cornserve__Wire__Load *load);
    void (*close)(void *kind);
} cs_executor_kind;

/* Where the agent leaves the two descriptors of a new process. */
#define CS_EXECUTOR_CONTROL_FD 3
#define CS_EXECUTOR_SIDECAR_FD 4

/* The body of the process. Takes the connection to the gateway and the sidecar's segment over, and
 * returns its exit status when the gateway is gone or has drained it. */
int cs_executor_main(int control_fd, int sidecar_fd);

cs_loop *cs_executor_loop(cs_executor *host);

/* What the plan gives the executor of its machine; zeros: its own choice. */
typedef struct {
    uint32_t threads;
    uint32_t n_max_batch;
    uint32_t *max_batch;    /* of each component: requests in one step */
    size_t kv_budget_bytes; /* for all LLM components together */
    bool shares_cpus;       /* executors of this machine have more threads than it has CPUs */
    double memory_share;    /* of what is free, for a budget of its own choice; at most 1 */
} cs_executor_share;
/* A file that all executors of this machine have, to lock bytes of. */
int cs_executor_common_file(const cs_executor *host);
const cs_executor_share *cs_executor_get_share(const cs_executor *host);

/* A piece of a client output, put into this round's Step. units: tokens or samples. */
void cs_executor_piece(cs_job *job, uint32_t output, const void *data, size_t size_bytes,
                       uint32_t units);
/* Ends the job and its streams (with the error, if any), and frees it. Takes the error. */
void cs_executor_done(cs_job *job, GError *error);

/* Kinds, one file each. */
extern const cs_executor_kind cs_executor_emu, cs_executor_model, cs_executor_openai;

#endif
