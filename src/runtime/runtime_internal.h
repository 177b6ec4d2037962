/* Shared by agent.c (executors as processes), dispatch.c (calls over executors), runtime.c
 * (requests, apps, the thread). Everything here belongs to the runtime's thread, unless it
 * says otherwise. */
#ifndef CS_RUNTIME_RUNTIME_INTERNAL_H
#define CS_RUNTIME_RUNTIME_INTERNAL_H

#include "runtime/runtime.h"
#include "runtime/wire.h"

#include <stdatomic.h>

typedef struct executor executor;
typedef struct deployment deployment;
typedef struct call call;

typedef enum {
    EXECUTOR_STARTING, /* process and connection there, Ready not yet */
    EXECUTOR_READY,
    EXECUTOR_DYING, /* killed or drained; its process has not been waited for */
    EXECUTOR_DOWN,  /* no process; restarts when its timer fires, if it has one */
} executor_state;

struct executor {
    cs_runtime *runtime;
    deployment *deployment;
    char *name;   /* the plan's, with #replica */
    size_t entry; /* in the plan */
    executor_state state;
    int pid, pidfd;
    cs_loop_source *pid_watch;
    cs_wire *wire;
    cs_timer *restart_timer;
    int64_t started_us, ready_us, answered_us;
    unsigned restarts, failures; /* failures in a row, for the back-off */
    bool has_worked;             /* since it started */
    bool stopping;               /* not to be restarted */
    GHashTable *calls;           /* call * -> number of unfinished invocations here */
    unsigned in_flight;
    Cornserve__Wire__Load load;
    char *failure; /* what it said last */
};

struct deployment {
    cs_runtime *runtime;
    char *model;
    cs_plan *plan;
    json_t *devices;
    GPtrArray *executors; /* executor *, replicas of an entry side by side */
    double **path_credit; /* [route][path] smooth weighted round robin */
    unsigned n_llm_executors;
};

typedef struct {
    executor *on; /* NULL: not dispatched */
    bool done;
} invocation_state;

typedef struct {
    uint32_t units; /* the client has seen */
    GByteArray *data;
    bool full; /* more was seen than is kept */
    bool piped, ended;
} client_stream;

/* One call of a model by an app's request. */
struct call {
    cs_runtime_request *request;
    uint32_t number;
    const cs_recording *recording; /* of the app run */
    uint64_t attempt; /* request id on the wire and in the sidecar; 0: not dispatched */
    unsigned attempts;
    unsigned fruitless;            /* attempts in a row that said nothing new to the client */
    bool progressed;               /* the present one did */
    invocation_state *invocations; /* [2 * n]: those of the recording, then the prefills of those
                                      that run in halves, on an executor of their own */
    uint32_t n_open;
    client_stream *streams; /* [n_forwards] */
    bool parked, failed;
    int64_t parked_until_us;
};

typedef struct {
    char *name;
    cs_tasks *tasks;
    unsigned requests; /* in flight */
    bool removed;
} app;

struct cs_runtime_request {
    cs_runtime *runtime;
    atomic_int references; /* the caller's, the runtime's */
    app *app;
    json_t *input;
    GArray *attachments;    /* cs_attachment */
    uint64_t allowed_units; /* of generators' outputs; 0: all */
    cs_runtime_sink sink;
    void *user;
    cs_app_run *run;
    cs_app_state state;
    GPtrArray *calls; /* call * */
    bool stepping, dirty, done;
};

typedef struct {
    uint64_t started, finished, failed, cancelled, retries, executor_deaths;
} runtime_counters;

struct cs_runtime {
    cs_runtime_options options;
    cs_loop *loop;
    GThread *thread;
    cs_sidecar *sidecar;
    GPtrArray *deployments;
    GMutex apps_lock;     /* the next, and counts in its apps */
    GHashTable *apps;     /* name -> app * */
    GPtrArray *active;    /* cs_runtime_request * */
    GHashTable *attempts; /* uint64_t * -> call * */
    GPtrArray *parked;    /* call * */
    GPtrArray *dirty;     /* cs_runtime_request * whose run has data */
    uint64_t last_attempt, pings;
    int64_t ticked_us; /* when executors were looked after last */
    cs_timer *tick;
    runtime_counters counters;
    atomic_uint n_requests;
    atomic_bool closing;
};

/* --- agent.c --- */

executor *agent_executor_new(cs_runtime *runtime, deployment *d, size_t entry, unsigned replica);
void agent_executor_free(executor *x);
/* The executor kind for a device of a plan ("cpu", "emu:a100", "openai:b"); NULL: there is none. */
const char *agent_kind_of_device(const char *device);
void agent_start(executor *x);
/* Kills the process; what happens then is as if it had died by itself. */
void agent_kill(executor *x, const char *why);
/* Asks it to end when its work is done; not to be restarted. */
void agent_drain(executor *x);
/* Pings, and kills those that do not answer. */
void agent_tick(cs_runtime *runtime);
json_t *agent_status(const executor *x);

/* --- dispatch.c --- */

deployment *dispatch_find(cs_runtime *runtime, const char *model);
/* Sends a call's invocations to executors, or parks it. False and *error if it can never run. */
bool dispatch_call(call *c, GError **error);
/* Cancels what runs of the call and frees what it holds in the sidecar. */
void dispatch_stop(call *c);
/* The client takes so many units more of what generators of the call make. */
void dispatch_allow(call *c, uint64_t n_units);
void dispatch_step(executor *x, const Cornserve__Wire__Step *step);
/* The executor is gone: its calls run again. */
void dispatch_lost(executor *x, const char *why);
/* An executor has become ready, or time has passed. */
void dispatch_parked(cs_runtime *runtime);

/* --- runtime.c --- */

void request_piece(call *c, uint32_t forward, const void *data, size_t size_bytes, uint32_t units);
void request_stream_end(call *c, uint32_t forward);
/* The call cannot go on. Takes the error. */
void request_call_failed(call *c, GError *error);
/* An invocation of a call has finished. */
void request_progress(cs_runtime_request *r);
/* Steps all runs that got data. */
void request_step_dirty(cs_runtime *runtime);

#endif
