#include "api/apps_internal.h"

#include "base/error.h"
#include "base/log.h"

#include <string.h>

#define APPS_MAX 256      /* a sandbox holds up to 64 MiB */
#define REQUESTS_MAX 1024 /* of all apps */
#define N_STEPPERS 4
#define N_FETCHERS 4

/* --- one app --- */

app *app_ref(app *a)
{
    g_atomic_int_inc(&a->refs);
    return a;
}

void app_unref(app *a)
{
    if (!g_atomic_int_dec_and_test(&a->refs))
        return;
    cs_tasks_free(a->tasks);
    g_clear_error(&a->fault);
    json_decref(a->models);
    g_mutex_clear(&a->lock);
    g_free(a->name);
    g_free(a->source);
    g_free(a);
}

static app *app_new(cs_apps *apps, const char *name, const char *source, const json_t *models,
                    int64_t created_s)
{
    app *a = g_new0(app, 1);
    *a = (app){.refs = 1,
               .apps = apps,
               .name = g_strdup(name),
               .source = g_strdup(source),
               .models = json_deep_copy(models),
               .created_s = created_s};
    g_mutex_init(&a->lock);
    return a;
}

static bool app_load(app *a, GError **error)
{
    const char *alias;
    json_t *model;
    json_object_foreach (a->models, alias, model) {
        cs_fault fault = {0};
        if (!json_is_string(model))
            continue; /* for the registry to refuse */
        if (!cs_api_find_model(a->apps->api, json_string_value(model), &fault)) {
            g_propagate_prefixed_error(error, g_steal_pointer(&fault.error),
                                       "models.%.64s: ", alias);
            cs_fault_clear(&fault);
            return false;
        }
    }
    a->tasks = cs_registry_load_source(a->name, a->source, a->models, error);
    return a->tasks != NULL;
}

void app_count(app *a, app_counter counter)
{
    g_mutex_lock(&a->lock);
    a->counters[counter]++;
    g_mutex_unlock(&a->lock);
}

json_t *app_to_json(app *a)
{
    uint64_t n[APP_COUNTERS];
    g_mutex_lock(&a->lock);
    memcpy(n, a->counters, sizeof(n));
    g_mutex_unlock(&a->lock);
    uint64_t over = n[APP_FINISHED] + n[APP_FAILED] + n[APP_CANCELLED];
    json_t *object =
        json_pack("{s:s, s:s, s:O, s:I, s:{s:I, s:I, s:I, s:I, s:I}}", "name", a->name, "object",
                  "app", "models", a->models, "created_s", (json_int_t)a->created_s, "requests",
                  "running", (json_int_t)(n[APP_STARTED] - over), "started",
                  (json_int_t)n[APP_STARTED], "finished", (json_int_t)n[APP_FINISHED], "failed",
                  (json_int_t)n[APP_FAILED], "cancelled", (json_int_t)n[APP_CANCELLED]);
    if (a->fault)
        json_object_set_new(object, "error", json_string(a->fault->message));
    return object;
}

/* --- steps --- */

void app_schedule(app_request *r)
{
    app *a = r->app;
    g_mutex_lock(&r->lock);
    bool queued = r->queued;
    r->queued = true;
    g_mutex_unlock(&r->lock);
    if (queued)
        return;
    g_mutex_lock(&a->lock);
    g_queue_push_tail(&a->ready, app_request_ref(r));
    bool stepping = a->stepping;
    a->stepping = true;
    g_mutex_unlock(&a->lock);
    if (!stepping)
        g_thread_pool_push(a->apps->steppers, app_ref(a), NULL);
}

/* One request, then the app goes to the end of the line: no app holds a thread for long. */
static void step_app(gpointer user, gpointer unused)
{
    app *a = user;
    g_mutex_lock(&a->lock);
    app_request *r = g_queue_pop_head(&a->ready);
    g_mutex_unlock(&a->lock);
    g_mutex_lock(&r->lock);
    r->queued = false; /* what comes from here on is for another step */
    g_mutex_unlock(&r->lock);
    app_request_step(r);
    g_mutex_lock(&a->lock);
    bool more = a->ready.length > 0;
    a->stepping = more;
    g_mutex_unlock(&a->lock);
    if (more)
        g_thread_pool_push(a->apps->steppers, app_ref(a), NULL);
    app_request_unref(r);
    app_unref(a);
}

/* --- the table --- */

app *apps_find(cs_apps *apps, const char *name)
{
    g_mutex_lock(&apps->lock);
    app *a = g_hash_table_lookup(apps->table, name);
    if (a)
        app_ref(a);
    g_mutex_unlock(&apps->lock);
    return a;
}

static bool table_add(cs_apps *apps, app *a)
{
    g_mutex_lock(&apps->lock);
    bool fits = g_hash_table_size(apps->table) < APPS_MAX;
    if (fits)
        g_hash_table_insert(apps->table, a->name, a);
    g_mutex_unlock(&apps->lock);
    return fits;
}

/* The client is told what is its business; the file's own troubles are the operator's. */
static bool hide_storage(const GError *fault, GError **error)
{
    cs_log(CS_LOG_ERROR, "apps", "%s", fault->message);
    return cs_fail(error, CS_ERROR_FAILED, "the server could not read or write its list of apps");
}

static bool registry_add(cs_apps *apps, const app *a, GError **error)
{
    g_autoptr(GError) fault = NULL;
    if (!apps->registry)
        apps->registry = cs_registry_open(apps->state_path, &fault);
    if (apps->registry && cs_registry_add(apps->registry, a->name, a->source, a->models, &fault))
        return true;
    if (g_error_matches(fault, CS_ERROR, CS_ERROR_FAILED))
        return hide_storage(fault, error);
    g_propagate_error(error, g_steal_pointer(&fault));
    return false;
}

/* The app is loaded. */
static bool add_locked(cs_apps *apps, app *a, GError **error)
{
    cs_fault none = {0};
    if (cs_api_find_model(apps->api, a->name, &none))
        return cs_fail(error, CS_ERROR_CONFLICT, "there is a model %s", a->name);
    cs_fault_clear(&none);
    app *same = apps_find(apps, a->name);
    if (same) {
        app_unref(same);
        return cs_fail(error, CS_ERROR_CONFLICT, "there is an app %s", a->name);
    }
    g_mutex_lock(&apps->lock);
    bool full = g_hash_table_size(apps->table) >= APPS_MAX;
    g_mutex_unlock(&apps->lock);
    if (full)
        return cs_fail(error, CS_ERROR_BUSY, "there are %d apps already", APPS_MAX);
    return registry_add(apps, a, error) && table_add(apps, app_ref(a));
}

bool apps_add(cs_apps *apps, const char *name, const char *source, const json_t *models,
              GError **error)
{
    app *a = app_new(apps, name, source, models, g_get_real_time() / G_USEC_PER_SEC);
    bool ok = app_load(a, error);
    if (ok) {
        g_mutex_lock(&apps->registry_lock);
        ok = add_locked(apps, a, error);
        g_mutex_unlock(&apps->registry_lock);
    }
    app_unref(a);
    return ok;
}

static bool remove_locked(cs_apps *apps, const char *name, GError **error)
{
    g_autoptr(GError) fault = NULL;
    app *a = apps_find(apps, name);
    if (!a)
        return cs_fail(error, CS_ERROR_NOT_FOUND, "there is no app %.64s", name);
    app_unref(a);
    /* One that another process has removed from the file meanwhile is gone just the same. */
    if (!cs_registry_remove(apps->registry, name, &fault) &&
        !g_error_matches(fault, CS_ERROR, CS_ERROR_NOT_FOUND))
        return hide_storage(fault, error);
    g_mutex_lock(&apps->lock);
    g_hash_table_remove(apps->table, name);
    g_mutex_unlock(&apps->lock);
    return true;
}

bool apps_remove(cs_apps *apps, const char *name, GError **error)
{
    g_mutex_lock(&apps->registry_lock);
    bool ok = remove_locked(apps, name, error);
    g_mutex_unlock(&apps->registry_lock);
    return ok;
}

static int compare_names(const void *x, const void *y)
{
    return strcmp((*(app *const *)x)->name, (*(app *const *)y)->name);
}

json_t *cs_apps_list(cs_apps *apps)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)app_unref);
    GHashTableIter iter;
    gpointer a;
    g_mutex_lock(&apps->lock);
    g_hash_table_iter_init(&iter, apps->table);
    while (g_hash_table_iter_next(&iter, NULL, &a))
        g_ptr_array_add(all, app_ref(a));
    g_mutex_unlock(&apps->lock);
    g_ptr_array_sort(all, compare_names);
    json_t *list = json_array();
    for (guint i = 0; i < all->len; i++)
        json_array_append_new(list, app_to_json(all->pdata[i]));
    return list;
}

bool cs_apps_chat(cs_apps *apps, const char *name, cs_body *body, cs_exchange *x)
{
    g_autoptr(GError) error = NULL;
    app *a = apps_find(apps, name);
    if (!a)
        return false;
    if (apps_have_room(apps, &error))
        app_request_start(a, body, true, x);
    else
        cs_exchange_fail(x, error, NULL, NULL);
    app_unref(a);
    return true;
}

bool apps_have_room(cs_apps *apps, GError **error)
{
    g_mutex_lock(&apps->lock);
    guint n = apps->n_requests;
    g_mutex_unlock(&apps->lock);
    if (n < REQUESTS_MAX)
        return true;
    return cs_fail(error, CS_ERROR_BUSY, "%u requests to apps are running, none can more", n);
}

void cs_apps_end_all(cs_apps *apps)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)app_request_unref);
    GHashTableIter iter;
    gpointer r;
    g_mutex_lock(&apps->lock);
    g_hash_table_iter_init(&iter, apps->live);
    while (g_hash_table_iter_next(&iter, &r, NULL))
        g_ptr_array_add(all, app_request_ref(r));
    g_mutex_unlock(&apps->lock);
    for (guint i = 0; i < all->len; i++)
        app_request_end(all->pdata[i], g_error_new_literal(CS_ERROR, CS_ERROR_BUSY,
                                                           "the server is shutting down"));
}

/* --- life --- */

/* Apps of earlier runs of the server. One with a fault stays, so that it can be seen and removed.
 */
static bool load_all(cs_apps *apps, GError **error)
{
    json_t *list = cs_registry_list(apps->registry, error), *item;
    size_t i;
    if (!list)
        return false;
    json_array_foreach (list, i, item) {
        app *a = app_new(apps, json_string_value(json_object_get(item, "name")),
                         json_string_value(json_object_get(item, "source")),
                         json_object_get(item, "models"),
                         json_integer_value(json_object_get(item, "created_s")));
        if (!app_load(a, &a->fault))
            cs_log(CS_LOG_WARN, "apps", "app %s cannot be used: %s", a->name, a->fault->message);
        if (!table_add(apps, a)) {
            cs_log(CS_LOG_WARN, "apps", "app %s is left out: there are %d already", a->name,
                   APPS_MAX);
            app_unref(a);
        }
    }
    json_decref(list);
    return true;
}

cs_apps *cs_apps_new(cs_api *api, const char *state_path, GError **error)
{
    cs_apps *apps = g_new0(cs_apps, 1);
    apps->api = api;
    apps->state_path = g_strdup(state_path ? state_path : ":memory:");
    g_mutex_init(&apps->registry_lock);
    g_mutex_init(&apps->lock);
    g_cond_init(&apps->no_requests);
    apps->table = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, (GDestroyNotify)app_unref);
    apps->live = g_hash_table_new(NULL, NULL);
    apps->steppers = g_thread_pool_new(step_app, NULL, N_STEPPERS, FALSE, NULL);
    if (api->policy.allow_remote)
        apps->fetchers = g_thread_pool_new(app_call_fetch, NULL, N_FETCHERS, FALSE, NULL);
    if (state_path && g_file_test(state_path, G_FILE_TEST_EXISTS)) {
        apps->registry = cs_registry_open(state_path, error);
        if (!apps->registry || !load_all(apps, error))
            g_clear_pointer(&apps, cs_apps_free);
    }
    return apps;
}

void cs_apps_free(cs_apps *apps)
{
    if (!apps)
        return;
    g_mutex_lock(&apps->lock);
    while (apps->n_requests > 0)
        g_cond_wait(&apps->no_requests, &apps->lock);
    g_mutex_unlock(&apps->lock);
    g_thread_pool_free(apps->steppers, FALSE, TRUE);
    if (apps->fetchers)
        g_thread_pool_free(apps->fetchers, FALSE, TRUE);
    g_hash_table_unref(apps->table);
    g_hash_table_unref(apps->live);
    cs_registry_close(apps->registry);
    g_cond_clear(&apps->no_requests);
    g_mutex_clear(&apps->lock);
    g_mutex_clear(&apps->registry_lock);
    g_free(apps->state_path);
    g_free(apps);
}
