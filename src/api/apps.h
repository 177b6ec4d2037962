/* Apps: Lua programs with a function serve(request) that call the models of this server and say
 * something of their own about the answers.
 *
 *     request --> serve(request), in a sandbox ---models.ALIAS(chat body)--> pipeline
 *                    ^ pieces of text                                          |
 *                    +----------------------------------------------------------+
 *     what it emits, and the streams it returns --> client, as events or as a chat completion
 *
 * A model call is a chat completion: it passes the same table of parameters and the same readers of
 * media as the API's own route. Long base64 strings do not enter Lua: it hands a placeholder
 * through.
 *
 * Threads: Lua runs on a pool of the apps' own, so that an app that burns its whole allowance keeps
 * nothing but other apps waiting; one thread at a time for an app. Pieces come on the pipeline's
 * threads and wait in the call until its app is stepped.
 *
 * Apps are kept in a state file (runtime/registry.h). One that no longer loads, or whose model is
 * not served, is listed with its fault and answers with it.
 */
#ifndef CS_API_APPS_H
#define CS_API_APPS_H

#include "api/api.h"
#include "api/body.h"
#include "api/http.h"

typedef struct cs_apps cs_apps;

/* state_path: NULL keeps nothing; a file that is not there is made by the first registration. */
cs_apps *cs_apps_new(cs_api *api, const char *state_path, GError **error);
/* Waits for requests that still run; end them before. Accepts NULL. */
void cs_apps_free(cs_apps *apps);

/* Runs a chat completion whose model is an app. False, with nothing done, when there is no app of
 * this name. The body is taken over (and cleared in place) if there is. */
bool cs_apps_chat(cs_apps *apps, const char *name, cs_body *body, cs_exchange *x);
/* Ends all requests with an error; their clients are told. */
void cs_apps_end_all(cs_apps *apps);

/* [{"name", "models", "created_s", "requests": {"running", "started", "finished", "failed",
 * "cancelled"}, "error"}], by name; json_decref. */
json_t *cs_apps_list(cs_apps *apps);

/* Routes below /v1/apps; user is the cs_api. */
void cs_apps_handle_list(void *user, cs_exchange *x);
void cs_apps_handle_add(void *user, cs_exchange *x);
void cs_apps_handle_get(void *user, cs_exchange *x);
void cs_apps_handle_invoke(void *user, cs_exchange *x);
void cs_apps_handle_remove(void *user, cs_exchange *x);

#endif
