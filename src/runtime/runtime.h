/* The runtime of one node: executors as child processes, the dispatcher that spreads the
 * invocations of requests over them, and recovery.
 *
 *     caller threads --submit--> runtime thread: app runs (Lua), dispatcher, agent --> executors
 *                    <--sink---                  sidecar's owner
 *
 * A deployment is a model with a plan: which executors host which components, and by which weights
 * requests of each type are routed. An app is a cs_tasks whose units belong to deployed models. A
 * request names an app.
 *
 * Recovery: when an executor dies, hangs (no answer to a ping for watchdog_us) or its connection
 * breaks, each call with unfinished work on it runs again, on other executors or after the restart;
 * what the client has seen of a stream is not made again. The client sees a pause. After
 * attempts_max the call fails with CS_ERROR_EXECUTOR_LOST. Executors that end are restarted with
 * back-off.
 *
 * Threads: all functions may be called from any thread, from a sink's only those on requests. Sink
 * calls come from the runtime's thread, must not block, and end with exactly one on_done.
 */
#ifndef CS_RUNTIME_RUNTIME_H
#define CS_RUNTIME_RUNTIME_H

#include "graph/app.h"
#include "plan/plan_file.h"
#include "sidecar/sidecar.h"

typedef struct {
    const char *program;        /* started as `PROGRAM executor`; NULL: this program */
    cs_sidecar_options sidecar; /* zeros: defaults */
    int64_t ping_us;            /* between pings of an executor; 0: 500 ms */
    int64_t watchdog_us;        /* without an answer: killed; 0: 5 s */
    int64_t start_us;           /* to become ready; 0: 10 min */
    int64_t restart_us;         /* first back-off, doubling up to 100 times; 0: 100 ms */
    int64_t park_us;            /* a call waits for an executor to be ready; 0: 30 s */
    uint32_t attempts_max;      /* of a call in a row with nothing new for the client; 0: 4 */
    uint32_t max_requests;      /* at a time; 0: 4096 */
} cs_runtime_options;

typedef struct cs_runtime cs_runtime;
typedef struct cs_runtime_request cs_runtime_request;

cs_runtime *cs_runtime_new(const cs_runtime_options *options, GError **error);
/* Refuses new requests, lets running ones go on for up to drain_us, cancels the rest, and ends all
 * executors. Accepts NULL. */
void cs_runtime_free(cs_runtime *runtime, int64_t drain_us);

/* Starts the executors of a plan, up to 512 on this node, for `model` (cs_unit.model of the tasks
 * that use it). `tasks` are its task graph, against which the plan is checked and used only during
 * the call. `devices` maps device names of the plan ("emu:a100") to the configuration of the
 * executor kind before the colon. Waits until every executor is ready, or for start_us. */
bool cs_runtime_deploy(cs_runtime *runtime, const char *model, const cs_plan *plan, cs_tasks *tasks,
                       const char *alias, const json_t *devices, GError **error);

/* All components in one executor entry on `device`, one path per request kind. */
cs_plan *cs_plan_colocated(cs_tasks *tasks, const char *alias, const char *device, int replicas,
                           GError **error);
/* Components that there are, on devices that there are; every route of a request kind that there
 * is, with an executor for all that it uses; without routes, all components of some request kind.
 * Errors name the plan's part. */
bool cs_plan_check_graph(const cs_plan *plan, cs_tasks *tasks, const char *alias, GError **error);
/* Whether all components of that kind of request are hosted; false for a kind that is not there. */
bool cs_plan_hosts_kind(const cs_plan *plan, cs_tasks *tasks, const char *alias, const char *kind);

/* Takes the tasks over, also on failure. CS_ERROR_CONFLICT if the name is taken. */
bool cs_runtime_add_app(cs_runtime *runtime, const char *name, cs_tasks *tasks, GError **error);
/* Running requests go on; the app goes with the last. CS_ERROR_NOT_FOUND. */
bool cs_runtime_remove_app(cs_runtime *runtime, const char *name, GError **error);

typedef struct {
    /* A piece of a stream that serve returned: `output` of `unit` in call `call`. */
    void (*on_piece)(void *user, uint32_t call, const char *unit, const char *output,
                     const void *data, size_t size_bytes, uint32_t units);
    void (*on_event)(void *user, const json_t *event); /* emit() in serve */
    /* result: what serve returned; NULL with an error. Borrowed. */
    void (*on_done)(void *user, const json_t *result, const GError *error);
} cs_runtime_sink;

/* The request is copied. The handle is valid until cs_runtime_request_release. Fails at once when
 * there is no such app or too many requests; everything else comes by on_done. */
cs_runtime_request *cs_runtime_submit(cs_runtime *runtime, const char *app, const json_t *request,
                                      const cs_runtime_sink *sink, void *user, GError **error);
/* Bytes that go with a request to an executor, through the sidecar and not through Lua: an
 * invocation with the parameter `attachment = k` reads attachments[k], head and body end to end, at
 * its input "attachment". */
typedef struct {
    GBytes *head, *body; /* body may be NULL */
} cs_attachment;
typedef struct {
    uint32_t n_attachments;
    const cs_attachment *attachments; /* references to the bytes are taken */
    /* Units of a generator's output that come before cs_runtime_request_allow says that more may;
     * 0: all. */
    uint64_t credit_units;
} cs_submit_options;

cs_runtime_request *cs_runtime_submit_with(cs_runtime *runtime, const char *app,
                                           const json_t *request, const cs_submit_options *options,
                                           const cs_runtime_sink *sink, void *user, GError **error);
void cs_runtime_request_allow(cs_runtime_request *request, uint64_t n_units);
/* on_done still comes, with CS_ERROR_CANCELLED unless it was done. */
void cs_runtime_request_cancel(cs_runtime_request *request);
void cs_runtime_request_release(cs_runtime_request *request);

/* {"executors": [...], "sidecar": {...}, "requests": {...}}. json_decref. */
json_t *cs_runtime_status(cs_runtime *runtime);

#endif
