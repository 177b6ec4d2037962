#include "runtime/registry.h"

#include "base/error.h"
#include "graph/builtin.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#define SCHEMA_VERSION 1
#define BUSY_TIMEOUT_MS 5000
#define NAME_MAX_BYTES 64
#define MODELS_MAX 16

struct cs_registry {
    sqlite3 *db;
    char *path;
};

static bool fail_db(const cs_registry *r, GError **error)
{
    return cs_fail(error, CS_ERROR_FAILED, "%s: %s", r->path, sqlite3_errmsg(r->db));
}

static sqlite3_stmt *prepare(cs_registry *r, const char *sql, GError **error)
{
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(r->db, sql, -1, &statement, NULL) == SQLITE_OK)
        return statement;
    fail_db(r, error);
    return NULL;
}

static bool read_version(cs_registry *r, int *version, GError **error)
{
    sqlite3_stmt *s = prepare(r, "PRAGMA user_version", error);
    bool ok = s && sqlite3_step(s) == SQLITE_ROW;
    if (ok)
        *version = sqlite3_column_int(s, 0);
    else if (s)
        fail_db(r, error);
    sqlite3_finalize(s);
    return ok;
}

static bool set_up(cs_registry *r, GError **error)
{
    int version = 0;
    sqlite3_busy_timeout(r->db, BUSY_TIMEOUT_MS);
    if (!read_version(r, &version, error))
        return false;
    if (version == SCHEMA_VERSION)
        return true;
    if (version != 0)
        return cs_fail(error, CS_ERROR_INVALID, "%s: version %d, expected %d", r->path, version,
                       SCHEMA_VERSION);
    if (sqlite3_exec(r->db,
                     "BEGIN IMMEDIATE;"
                     "CREATE TABLE IF NOT EXISTS apps (name TEXT PRIMARY KEY, source TEXT NOT NULL,"
                     " models TEXT NOT NULL, created_s INTEGER NOT NULL);"
                     "PRAGMA user_version = 1; COMMIT",
                     NULL, NULL, NULL) == SQLITE_OK)
        return true;
    return fail_db(r, error);
}

cs_registry *cs_registry_open(const char *path, GError **error)
{
    cs_registry *r = g_new0(cs_registry, 1);
    r->path = g_strdup(path);
    bool opened = sqlite3_open_v2(path, &r->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) ==
                  SQLITE_OK;
    if (!opened)
        fail_db(r, error);
    if (opened && set_up(r, error))
        return r;
    cs_registry_close(r);
    return NULL;
}

void cs_registry_close(cs_registry *r)
{
    if (!r)
        return;
    sqlite3_close(r->db);
    g_free(r->path);
    g_free(r);
}

/* --- loading --- */

void cs_registry_blame_app(GError *error)
{
    if (g_error_matches(error, CS_ERROR, CS_ERROR_TIMEOUT))
        error->code = CS_ERROR_TOO_LARGE;
}

static bool add_models(cs_tasks *tasks, const json_t *models, GError **error)
{
    size_t size_bytes = 0;
    const char *source = cs_builtin_task("chat_completion", &size_bytes), *alias;
    json_t *model;
    json_object_foreach ((json_t *)models, alias, model)
        if (!cs_tasks_add_model(tasks, alias, json_string_value(model), source, size_bytes,
                                "chat_completion.lua", NULL, error))
            return false;
    return true;
}

static bool check_models(const char *name, const json_t *models, GError **error)
{
    const char *alias;
    json_t *model;
    if (!json_is_object(models) || json_object_size(models) > MODELS_MAX)
        return cs_fail(error, CS_ERROR_INVALID, "app %s: models: expected an object of at most %d",
                       name, MODELS_MAX);
    json_object_foreach ((json_t *)models, alias, model)
        if (!json_is_string(model))
            return cs_fail(error, CS_ERROR_INVALID, "app %s: models.%.64s: expected a model's id",
                           name, alias);
    return true;
}

cs_tasks *cs_registry_load_source(const char *name, const char *source, const json_t *models,
                                  GError **error)
{
    if (!check_models(name, models, error))
        return NULL;
    GError *fault = NULL;
    g_autoptr(cs_tasks) tasks = cs_tasks_new(name, NULL, &fault);
    g_autofree char *file = g_strdup_printf("%s.lua", name);
    if (tasks && add_models(tasks, models, &fault) &&
        cs_tasks_set_app(tasks, source, strlen(source), file, &fault))
        return g_steal_pointer(&tasks);
    cs_registry_blame_app(fault);
    g_propagate_error(error, fault);
    return NULL;
}

/* --- the table --- */

static bool check_name(const char *name, GError **error)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-");
    if (n >= 1 && n <= NAME_MAX_BYTES && name[n] == '\0')
        return true;
    return cs_fail(error, CS_ERROR_INVALID,
                   "app name \"%.80s\": expected 1 to %d of a-z, 0-9, - and _", name,
                   NAME_MAX_BYTES);
}

static bool insert(cs_registry *r, const char *name, const char *source, const char *models,
                   GError **error)
{
    sqlite3_stmt *s = prepare(r, "INSERT INTO apps VALUES (?, ?, ?, ?)", error);
    if (!s)
        return false;
    sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 2, source, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 3, models, -1, SQLITE_STATIC);
    sqlite3_bind_int64(s, 4, g_get_real_time() / G_USEC_PER_SEC);
    int result = sqlite3_step(s);
    bool ok = result == SQLITE_DONE;
    if (result == SQLITE_CONSTRAINT)
        cs_fail(error, CS_ERROR_CONFLICT, "there is an app %s", name);
    else if (!ok)
        fail_db(r, error);
    sqlite3_finalize(s);
    return ok;
}

bool cs_registry_add(cs_registry *r, const char *name, const char *source, const json_t *models,
                     GError **error)
{
    if (!check_name(name, error))
        return false;
    g_autoptr(cs_tasks) loads = cs_registry_load_source(name, source, models, error);
    if (!loads)
        return false;
    char *text = json_dumps(models, JSON_COMPACT | JSON_SORT_KEYS);
    bool ok = insert(r, name, source, text, error);
    free(text);
    return ok;
}

bool cs_registry_remove(cs_registry *r, const char *name, GError **error)
{
    sqlite3_stmt *s = prepare(r, "DELETE FROM apps WHERE name = ?", error);
    if (!s)
        return false;
    sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC);
    bool ok = sqlite3_step(s) == SQLITE_DONE;
    if (!ok)
        fail_db(r, error);
    sqlite3_finalize(s);
    if (ok && sqlite3_changes(r->db) == 0)
        ok = cs_fail(error, CS_ERROR_NOT_FOUND, "there is no app %s", name);
    return ok;
}

json_t *cs_registry_list(cs_registry *r, GError **error)
{
    sqlite3_stmt *s =
        prepare(r, "SELECT name, models, created_s, source FROM apps ORDER BY name", error);
    if (!s)
        return NULL;
    json_t *list = json_array();
    int result;
    while ((result = sqlite3_step(s)) == SQLITE_ROW) {
        json_t *models = json_loads((const char *)sqlite3_column_text(s, 1), 0, NULL);
        json_array_append_new(list,
                              json_pack("{s:s, s:o, s:I, s:s}", "name", sqlite3_column_text(s, 0),
                                        "models", models ? models : json_object(), "created_s",
                                        (json_int_t)sqlite3_column_int64(s, 2), "source",
                                        sqlite3_column_text(s, 3)));
    }
    if (result != SQLITE_DONE) {
        fail_db(r, error);
        g_clear_pointer(&list, json_decref);
    }
    sqlite3_finalize(s);
    return list;
}

cs_tasks *cs_registry_load(cs_registry *r, const char *name, GError **error)
{
    sqlite3_stmt *s = prepare(r, "SELECT source, models FROM apps WHERE name = ?", error);
    if (!s)
        return NULL;
    sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC);
    cs_tasks *tasks = NULL;
    int result = sqlite3_step(s);
    if (result == SQLITE_ROW) {
        json_t *models = json_loads((const char *)sqlite3_column_text(s, 1), 0, NULL);
        tasks =
            cs_registry_load_source(name, (const char *)sqlite3_column_text(s, 0), models, error);
        json_decref(models);
    } else if (result == SQLITE_DONE) {
        cs_fail(error, CS_ERROR_NOT_FOUND, "there is no app %s", name);
    } else {
        fail_db(r, error);
    }
    sqlite3_finalize(s);
    return tasks;
}
