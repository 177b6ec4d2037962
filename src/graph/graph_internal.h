/* Shared by the files of src/graph: recording.c (plain data), tasks.c (task files, unit calls),
 * run.c (apps and streams), dag.c and draw.c (views). */
#ifndef CS_GRAPH_GRAPH_INTERNAL_H
#define CS_GRAPH_GRAPH_INTERNAL_H

#include "graph/app.h"
#include "graph/lua_json.h"

typedef struct {
    char *alias, *name;
    char *model;
    int invoke;       /* registry references */
    int requests;     /* table of functions */
    GPtrArray *kinds; /* char *, sorted, NULL-terminated */
    json_t *colocate; /* array of arrays of unit names, or NULL */
    cs_tasks *tasks;
} task_model;

typedef struct {
    cs_unit unit;
    int bytes[CS_GRAPH_OUTPUTS_MAX]; /* registry references of functions, or LUA_NOREF */
} task_unit;

struct cs_tasks {
    char *name;
    cs_sandbox *sandbox;
    GPtrArray *units;  /* task_unit * */
    GPtrArray *models; /* task_model * */
    uint64_t last_serial;
    int serve;               /* registry reference, or LUA_NOREF */
    const char *adding;      /* the model whose file runs, for unit keys */
    cs_recording *recording; /* where unit calls go, while invoke is recorded */
    cs_app_run *run;         /* the run being stepped */
};

/* What Lua holds of an output. */
typedef struct {
    uint64_t run; /* serial: Lua may keep a handle longer than its run; 0: cs_tasks_record */
    uint32_t call, forward;
} task_handle;

typedef struct {
    GQueue values; /* json_t * */
    bool ended;
    GError *error;
} run_queue;

typedef struct {
    cs_recording *recording;
    run_queue *queues;    /* [n_forwards] */
    cs_recording *replay; /* the second run's calls, compared as they come */
} run_call;

struct cs_app_run {
    cs_tasks *tasks;
    cs_app_host host;
    void *user;
    uint64_t serial;
    json_t *request;
    json_t *result;
    json_t *value; /* being pushed to Lua; kept here so that an error of Lua does not lose it */
    int thread;    /* registry reference of the coroutine, or LUA_NOREF before the first step */
    lua_State *co;
    GPtrArray *calls;    /* run_call * */
    run_call *replaying; /* the call whose invoke runs again, or NULL */
};

/* The handle at index, or NULL if it is another kind of value. */
task_handle *task_to_handle(lua_State *L, int index);
void task_push_handle(lua_State *L, task_handle handle);

/* Runs invoke of `model` on the request at the top of L's stack (popped) until its return or first
 * await, into *recording, which must be empty and anchored by the caller. May raise. */
void task_record(lua_State *L, task_model *model, cs_recording *recording);

/* Opens the functions of run.c into the sandbox. */
bool run_open(cs_tasks *tasks, GError **error);
/* The metatable fields of handles: pushed functions are set into the table at the top. */
void run_open_handle(lua_State *L, cs_tasks *tasks);
/* models.ALIAS(request), with upvalues tasks and model. */
int run_model_call(lua_State *L);

/* The forward that a handle stands for becomes the client's too. */
void recording_mark_client(cs_recording *recording, uint32_t forward);
/* Same unit, parameters and inputs. */
bool recording_same_invocation(const cs_invocation *a, const cs_invocation *b);

#endif
