/* What the files of the apps share: apps.c (the table, threads), app_routes.c (HTTP),
 * app_request.c (a run), app_call.c (a call of a model), app_output.c (what the client reads).
 *
 * Locks: apps->lock, app->lock and request->lock are leaves: none is held while another is taken,
 * nor across a call into the pipeline, the exchange or Lua. */
#ifndef CS_API_APPS_INTERNAL_H
#define CS_API_APPS_INTERNAL_H

#include "api/api_internal.h"
#include "api/apps.h"
#include "graph/app.h"
#include "runtime/registry.h"

typedef struct app app;
typedef struct app_request app_request;
typedef struct app_call app_call;

typedef enum {
    APP_STARTED,
    APP_FINISHED,
    APP_FAILED,
    APP_CANCELLED,
    APP_COUNTERS,
} app_counter;

struct app {
    gint refs;
    cs_apps *apps;
    char *name, *source;
    json_t *models; /* alias -> id */
    int64_t created_s;
    cs_tasks *tasks; /* of the thread that steps; NULL: `fault` */
    GError *fault;

    GMutex lock;  /* what follows */
    GQueue ready; /* app_request *, a reference each: to be stepped */
    bool stepping;
    uint64_t counters[APP_COUNTERS];
};

struct cs_apps {
    cs_api *api;
    char *state_path;
    GThreadPool *steppers; /* of app * */
    GThreadPool *fetchers; /* of app_call *; NULL when remote media are not allowed */

    GMutex registry_lock;  /* the registry, and what must not come in between */
    cs_registry *registry; /* NULL: not opened yet */

    GMutex lock; /* what follows */
    GCond no_requests;
    GHashTable *table; /* name -> app *, a reference each */
    GHashTable *live;  /* set of app_request * */
    guint n_requests;
};

/* --- apps.c --- */

app *app_ref(app *a);
void app_unref(app *a);
/* A reference, or NULL. */
app *apps_find(cs_apps *apps, const char *name);
/* Its step will run, on one of the steppers' threads. Takes a reference to the request. */
void app_schedule(app_request *r);
void app_count(app *a, app_counter counter);
json_t *app_to_json(app *a);
bool apps_add(cs_apps *apps, const char *name, const char *source, const json_t *models,
              GError **error);
/* CS_ERROR_BUSY when too many requests run. */
bool apps_have_room(cs_apps *apps, GError **error);
bool apps_remove(cs_apps *apps, const char *name, GError **error);

/* --- app_output.c --- */

/* Answers of a chat completion, by what the app calls them. */
typedef struct {
    char *name;
    GString *text; /* whole answers */
    bool told;     /* streams: its first chunk */
    bool length;   /* cut at max_tokens */
} app_choice;

typedef struct {
    bool chat, stream;
    const char *id, *app; /* borrowed */
    int64_t created_s;
    bool include_usage;
    cs_usage usage;
    GString *out;   /* streams: events that wait to be sent; else the whole answer at the end */
    json_t *events; /* whole answers that are not chat */
    GHashTable *streams; /* the same: path -> GString */
    GPtrArray *choices;  /* app_choice * */
    size_t size_bytes;   /* that wait */
} app_output;

void app_output_init(app_output *o);
void app_output_clear(app_output *o);
void app_output_event(app_output *o, const json_t *event);
/* A piece of the stream that stands at `path` of what serve returned. */
void app_output_piece(app_output *o, const char *path, const char *text, size_t size_bytes);
void app_output_length(app_output *o, const char *path);
/* The end of a stream, or the whole answer. result: what serve returned. */
void app_output_end(app_output *o, const json_t *result);

/* --- app_call.c --- */

struct app_call {
    app_request *request;
    cs_pipeline *pipeline;
    uint32_t forward; /* of its recording */
    char *path;       /* in serve's result, once it has returned; NULL: not there */
    cs_params params;
    cs_content content;

    cs_pipeline_request *handle; /* this and the rest under request->lock */
    GString *news;
    bool over, over_told, length, cancelled;
    GError *error;
    cs_usage usage;
};

/* Submits the chat completion in `body` to the model, or fails on what can be seen at once. */
app_call *app_call_new(app_request *r, const char *model, uint32_t forward, json_t *body,
                       GError **error);
void app_call_cancel(app_call *c);
void app_call_free(app_call *c); /* when it is over; accepts NULL */
/* The body of a call for the fetchers' pool. */
void app_call_fetch(gpointer call, gpointer unused);

/* --- app_request.c --- */

struct app_request {
    gint refs;
    app *app;
    cs_exchange *x;
    cs_body body;  /* what strings in Lua's tables refer to */
    json_t *input; /* what serve gets */
    /* Of the thread that steps. */
    cs_app_run *run;
    cs_app_state state;

    GMutex lock;      /* what follows */
    bool queued;      /* in app->ready */
    GPtrArray *calls; /* app_call * by number; NULL for one that failed at once */
    app_output output;
    GError *ending; /* the client left, or the server ends */
    GError *error;
    bool done;
};

/* Takes the body over. Responds by itself. */
void app_request_start(app *a, cs_body *body, bool chat, cs_exchange *x);
app_request *app_request_ref(app_request *r);
void app_request_unref(app_request *r);
void app_request_step(app_request *r);
/* Ends it with this error; takes it. */
void app_request_end(app_request *r, GError *error);

#endif
