/* HTTP routes of apps. */
#include "api/apps_internal.h"
#include "base/error.h"
#include "graph/builtin.h"

#include <stdlib.h>
#include <string.h>

#define SOURCE_MAX_BYTES (256u << 10)

static void respond_json(cs_exchange *x, int status, json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT);
    cs_exchange_respond(x, status, "application/json", g_bytes_new(text, strlen(text)));
    free(text);
    json_decref(object);
}

static void fail(cs_exchange *x, const GError *error, const char *param)
{
    bool unknown = g_error_matches(error, CS_ERROR, CS_ERROR_NOT_FOUND);
    cs_exchange_fail(x, error, param, unknown ? "app_not_found" : NULL);
}

void cs_apps_handle_list(void *user, cs_exchange *x)
{
    cs_api *api = user;
    respond_json(x, 200,
                 json_pack("{s:s, s:o}", "object", "list", "data", cs_apps_list(api->apps)));
}

/* A reference, or NULL after it has responded. */
static app *find_app(cs_api *api, cs_exchange *x)
{
    g_autoptr(GError) error = NULL;
    app *a = apps_find(api->apps, cs_exchange_tail(x));
    if (!a) {
        cs_fail(&error, CS_ERROR_NOT_FOUND, "there is no app %.64s", cs_exchange_tail(x));
        fail(x, error, NULL);
    }
    return a;
}

void cs_apps_handle_get(void *user, cs_exchange *x)
{
    app *a = find_app(user, x);
    if (!a)
        return;
    json_t *object = app_to_json(a);
    json_object_set_new(object, "source", json_string(a->source));
    respond_json(x, 200, object);
    app_unref(a);
}

void cs_apps_handle_remove(void *user, cs_exchange *x)
{
    cs_api *api = user;
    g_autoptr(GError) error = NULL;
    if (apps_remove(api->apps, cs_exchange_tail(x), &error))
        respond_json(x, 200,
                     json_pack("{s:s, s:s, s:b}", "name", cs_exchange_tail(x), "object", "app",
                               "deleted", 1));
    else
        fail(x, error, NULL);
}

void cs_apps_handle_invoke(void *user, cs_exchange *x)
{
    g_autoptr(GError) error = NULL;
    cs_body body = {0};
    app *a = find_app(user, x);
    if (!a)
        return;
    if (cs_body_parse(&body, cs_exchange_body(x), &error) && apps_have_room(a->apps, &error))
        app_request_start(a, &body, false, x);
    else
        cs_exchange_fail(x, error, NULL, NULL);
    cs_body_clear(&body);
    app_unref(a);
}

/* --- registration --- */

static bool only_members(const json_t *root, GError **error)
{
    static const char *const names[] = {"name", "source", "builtin", "models", NULL};
    const char *key;
    json_t *value;
    json_object_foreach ((json_t *)root, key, value)
        if (!g_strv_contains(names, key))
            return cs_fail(error, CS_ERROR_UNSUPPORTED, "%.60s: there is no such parameter here",
                           key);
    return true;
}

static bool read_source(const json_t *root, char **source, GError **error)
{
    const json_t *text = json_object_get(root, "source"), *name = json_object_get(root, "builtin");
    size_t size_bytes = 0;
    if (!text == !name)
        return cs_fail(
            error, CS_ERROR_INVALID,
            "expected either \"source\", the app's Lua text, or \"builtin\", the name of "
            "an app that comes with the program: chat, arena");
    if (text && !json_is_string(text))
        return cs_fail(error, CS_ERROR_INVALID, "source: expected a string of Lua");
    if (text && json_string_length(text) > SOURCE_MAX_BYTES)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "source: expected at most %u bytes, found %zu",
                       SOURCE_MAX_BYTES, json_string_length(text));
    const char *builtin =
        json_is_string(name) ? cs_builtin_app(json_string_value(name), &size_bytes) : NULL;
    if (name && !builtin)
        return cs_fail(error, CS_ERROR_INVALID, "builtin: expected chat or arena");
    *source = text ? g_strdup(json_string_value(text)) : g_strndup(builtin, size_bytes);
    return true;
}

/* One that names no models calls the server's first as `models.model`. */
static json_t *read_models(const cs_api *api, const json_t *root)
{
    json_t *models = json_object_get(root, "models");
    return models ? json_incref(models)
                  : json_pack("{s:s}", "model", cs_pipeline_model_id(api->models->pdata[0]));
}

static bool add(cs_api *api, const json_t *root, GError **error)
{
    const json_t *name = json_object_get(root, "name");
    g_autofree char *source = NULL;
    if (!only_members(root, error))
        return false;
    if (!json_is_string(name))
        return cs_fail(error, CS_ERROR_INVALID, "name: expected a string");
    if (!read_source(root, &source, error))
        return false;
    json_t *models = read_models(api, root);
    bool ok = apps_add(api->apps, json_string_value(name), source, models, error);
    json_decref(models);
    return ok;
}

void cs_apps_handle_add(void *user, cs_exchange *x)
{
    cs_api *api = user;
    g_autoptr(GError) error = NULL;
    cs_body body = {0};
    bool parsed = cs_body_parse(&body, cs_exchange_body(x), &error);
    json_t *root = parsed ? cs_body_restore(&body, body.root) : NULL;
    if (parsed && add(api, root, &error)) {
        app *a = apps_find(api->apps, json_string_value(json_object_get(root, "name")));
        respond_json(x, 201, a ? app_to_json(a) : json_object());
        g_clear_pointer(&a, app_unref);
    } else {
        fail(x, error, NULL);
    }
    json_decref(root);
    cs_body_clear(&body);
}
