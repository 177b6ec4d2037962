/* Registered apps, kept in SQLite across restarts: name, Lua source, and the models
 * it calls.
 *
 * Threads: a registry has one owner thread at a time. Several processes may use one file. */
#ifndef CS_RUNTIME_REGISTRY_H
#define CS_RUNTIME_REGISTRY_H

#include "graph/app.h"

typedef struct cs_registry cs_registry;

/* Makes the file if it is not there; ":memory:" keeps nothing. */
cs_registry *cs_registry_open(const char *path, GError **error);
void cs_registry_close(cs_registry *registry); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_registry, cs_registry_close)

/* models: {"left": "A", ...}: what the app calls models.left is the model that the server knows as
 * A. The name is 1 to 64 of [a-z0-9_-]. CS_ERROR_CONFLICT if it is taken. Loads the app first: one
 * that does not load is refused with its error. */
bool cs_registry_add(cs_registry *registry, const char *name, const char *source,
                     const json_t *models, GError **error);
/* CS_ERROR_NOT_FOUND */
bool cs_registry_remove(cs_registry *registry, const char *name, GError **error);

/* [{"name": ..., "models": {...}, "created_s": ..., "source": ...}], by name. json_decref. */
json_t *cs_registry_list(cs_registry *registry, GError **error);

/* The app, whose models take bodies of chat completions (tasks/chat_completion.lua). */
cs_tasks *cs_registry_load(cs_registry *registry, const char *name, GError **error);

/* The same of an app that is not registered. Every fault of the app's own is the caller's: none has
 * a code of the server's. */
cs_tasks *cs_registry_load_source(const char *name, const char *source, const json_t *models,
                                  GError **error);

/* A limit of time that a script has reached is a fault of the script, not of the server. */
void cs_registry_blame_app(GError *error);

#endif
