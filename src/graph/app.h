/* Runs of an app: serve(request) as a coroutine, driven by the data that arrives.
 *
 *     serve:  local a, b = models.left(request), models.right(request)      both start at once
 *             for name, piece in merge { left = a.text, right = b.text } do
 *                 emit { model = name, text = piece }
 *             end
 *
 * Seen by Lua, beside the sandbox's libraries: models.ALIAS(request), emit(value), merge(table of
 * streams), stream:next() (nil at the end), stream:all() and await(x) (all chunks: strings are
 * concatenated, a single chunk is itself, else a list). A stream that fails raises its error where
 * it is read. serve may return streams inside its result: the host then pipes them to the client
 * itself.
 *
 * The host is told by callbacks, from within cs_app_run_step and on the same thread. */
#ifndef CS_GRAPH_APP_H
#define CS_GRAPH_APP_H

#include "graph/graph.h"

typedef struct {
    /* Starts all invocations; data of forwards with to_client comes back by cs_app_run_put. The
     * recording lives as long as the run. */
    bool (*start)(void *user, uint32_t call, const cs_recording *recording, GError **error);
    /* An event for the client. Borrowed. */
    bool (*emit)(void *user, const json_t *event, GError **error);
} cs_app_host;

typedef struct cs_app_run cs_app_run;

typedef enum { CS_APP_WAITING, CS_APP_DONE, CS_APP_FAILED } cs_app_state;

/* Loads an app's file, which must define serve. Once for a cs_tasks. */
bool cs_tasks_set_app(cs_tasks *tasks, const char *source, size_t source_bytes,
                      const char *source_name, GError **error);
/* An app that calls the model and returns what it returns. */
bool cs_tasks_set_plain_app(cs_tasks *tasks, const char *alias, GError **error);

/* The request is copied. Nothing runs before the first step. */
cs_app_run *cs_app_run_new(cs_tasks *tasks, const json_t *request, const cs_app_host *host,
                           void *user, GError **error);
void cs_app_run_free(cs_app_run *run); /* at any time; accepts NULL */

/* Runs serve until it waits for data, returns or fails (then with *error). */
cs_app_state cs_app_run_step(cs_app_run *run, GError **error);

/* Data of a forward that the client's side consumes. put takes the value. Step afterwards. */
void cs_app_run_put(cs_app_run *run, uint32_t call, uint32_t forward, json_t *value);
void cs_app_run_end(cs_app_run *run, uint32_t call, uint32_t forward);
void cs_app_run_fail(cs_app_run *run, uint32_t call, uint32_t forward, const GError *error);

/* After CS_APP_DONE: the next value of a stream that was put and not read, or NULL. json_decref. */
json_t *cs_app_run_take(cs_app_run *run, uint32_t call, uint32_t forward);

/* After CS_APP_DONE: what serve returned; a stream in it is {"$stream": [call, forward]}. Borrowed.
 */
const json_t *cs_app_run_result(const cs_app_run *run);

#endif
