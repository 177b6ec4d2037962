/* A request to an app: from serve's first line to the client's last event. */
#include "api/apps_internal.h"
#include "api/output.h"
#include "base/error.h"

#include <string.h>

/* Of what waits to be read, or of a whole answer; past it the request is ended. */
#define OUTPUT_MAX_BYTES (32u << 20)

app_request *app_request_ref(app_request *r)
{
    g_atomic_int_inc(&r->refs);
    return r;
}

void app_request_unref(app_request *r)
{
    if (!g_atomic_int_dec_and_test(&r->refs))
        return;
    cs_apps *apps = r->app->apps;
    g_mutex_lock(&apps->lock);
    g_hash_table_remove(apps->live, r);
    g_mutex_unlock(&apps->lock);
    for (guint i = 0; i < r->calls->len; i++)
        app_call_free(r->calls->pdata[i]);
    g_ptr_array_unref(r->calls);
    app_output_clear(&r->output);
    cs_body_clear(&r->body);
    json_decref(r->input);
    g_clear_error(&r->ending);
    g_clear_error(&r->error);
    cs_exchange_unref(r->x);
    g_mutex_clear(&r->lock);
    app_unref(r->app);
    g_free(r);
    g_mutex_lock(&apps->lock);
    if (--apps->n_requests == 0)
        g_cond_broadcast(&apps->no_requests);
    g_mutex_unlock(&apps->lock);
}

void app_request_end(app_request *r, GError *error)
{
    g_mutex_lock(&r->lock);
    bool first = !r->ending && !r->done;
    if (first)
        r->ending = g_steal_pointer(&error);
    g_mutex_unlock(&r->lock);
    g_clear_error(&error);
    if (first)
        app_schedule(r);
}

/* --- the end, on the stepping thread --- */

static void cancel_calls(app_request *r, bool only_unread)
{
    for (guint i = 0; i < r->calls->len; i++) {
        app_call *c = r->calls->pdata[i];
        if (c && !(only_unread && c->path))
            app_call_cancel(c);
    }
}

static app_counter outcome(const GError *error)
{
    if (!error)
        return APP_FINISHED;
    return g_error_matches(error, CS_ERROR, CS_ERROR_CANCELLED) ? APP_CANCELLED : APP_FAILED;
}

/* Takes the error. */
static void finish(app_request *r, GError *error)
{
    cancel_calls(r, false);
    app_count(r->app, outcome(error));
    g_mutex_lock(&r->lock);
    r->done = true;
    r->error = error;
    if (!error)
        app_output_end(&r->output, cs_app_run_result(r->run));
    g_mutex_unlock(&r->lock);
    g_clear_pointer(&r->run, cs_app_run_free);
    cs_exchange_wake(r->x);
}

/* --- what an app does --- */

static bool start_call(app_request *r, uint32_t number, const cs_recording *recording,
                       GError **error)
{
    app_call *c = NULL;
    if (recording->invocations->len == 1) {
        const cs_invocation *invocation = cs_recording_invocation(recording, 0);
        c = app_call_new(r, invocation->unit->model, invocation->first_forward,
                         json_object_get(invocation->params, "body"), error);
    } else {
        cs_fail(error, CS_ERROR_INVALID, "%s: a call of a model makes one invocation",
                r->app->name);
    }
    g_mutex_lock(&r->lock);
    if (r->calls->len <= number)
        g_ptr_array_set_size(r->calls, (gint)number + 1);
    r->calls->pdata[number] = c;
    g_mutex_unlock(&r->lock);
    return c != NULL;
}

static bool host_start(void *user, uint32_t number, const cs_recording *recording, GError **error)
{
    return start_call(user, number, recording, error);
}

static bool host_emit(void *user, const json_t *event, GError **error)
{
    app_request *r = user;
    g_mutex_lock(&r->lock);
    app_output_event(&r->output, event);
    bool fits = r->output.size_bytes <= OUTPUT_MAX_BYTES;
    g_mutex_unlock(&r->lock);
    if (!fits)
        return cs_fail(error, CS_ERROR_TOO_LARGE,
                       "app %s: over %u bytes of events wait for the client", r->app->name,
                       OUTPUT_MAX_BYTES);
    return true;
}

/* --- pieces --- */

/* With the lock held: the answer's text, once serve has returned it. */
static bool pipe_text(app_request *r, const app_call *c, const char *text, size_t size_bytes)
{
    if (c->path && size_bytes > 0)
        app_output_piece(&r->output, c->path, text, size_bytes);
    return r->output.size_bytes <= OUTPUT_MAX_BYTES;
}

static void tell_run(app_request *r, uint32_t number, const app_call *c, const GString *news,
                     bool over)
{
    if (news->len > 0)
        cs_app_run_put(r->run, number, c->forward, json_stringn(news->str, news->len));
    if (over && c->error)
        cs_app_run_fail(r->run, number, c->forward, c->error);
    else if (over)
        cs_app_run_end(r->run, number, c->forward);
}

static void add_usage(cs_usage *sum, const cs_usage *usage)
{
    sum->prompt_tokens += usage->prompt_tokens;
    sum->cached_tokens += usage->cached_tokens;
    sum->completion_tokens += usage->completion_tokens;
}

/* Hands on what has come of one call. A fault of a stream that serve returned is the request's. */
static bool deliver(app_request *r, uint32_t number, app_call *c, GError **error)
{
    g_autoptr(GString) fresh = g_string_new(NULL);
    g_mutex_lock(&r->lock);
    GString *news = c->news;
    c->news = g_steal_pointer(&fresh);
    bool over = c->over && !c->over_told;
    c->over_told = c->over;
    bool piped = r->state == CS_APP_DONE;
    bool fits = !piped || pipe_text(r, c, news->str, news->len);
    if (over)
        add_usage(&r->output.usage, &c->usage);
    if (over && piped && c->path && c->length)
        app_output_length(&r->output, c->path);
    g_mutex_unlock(&r->lock);
    if (!piped)
        tell_run(r, number, c, news, over);
    g_string_free(news, TRUE);
    if (!fits)
        return cs_fail(error, CS_ERROR_TIMEOUT, "the answer was not read fast enough");
    if (over && piped && c->path && c->error) {
        g_propagate_error(error, g_error_copy(c->error));
        return false;
    }
    return true;
}

/* Where streams stand in what serve returned; each is piped from here on. */
static void find_streams(app_request *r, const json_t *value, const char *path)
{
    const json_t *place = json_object_get(value, "$stream");
    if (place) {
        guint number = (guint)json_integer_value(json_array_get(place, 0));
        app_call *c = number < r->calls->len ? r->calls->pdata[number] : NULL;
        if (c && !c->path)
            c->path = g_strdup(path);
        return;
    }
    const char *key;
    json_t *item;
    size_t i;
    json_object_foreach ((json_t *)value, key, item) {
        g_autofree char *below = g_strjoin(*path ? "." : "", path, key, NULL);
        find_streams(r, item, below);
    }
    json_array_foreach (value, i, item) {
        g_autofree char *below = g_strdup_printf("%s%s%zu", path, *path ? "." : "", i);
        find_streams(r, item, below);
    }
}

/* What came of the streams before serve returned them, and what they ended with. */
static bool start_pipes(app_request *r, GError **error)
{
    find_streams(r, cs_app_run_result(r->run), "");
    cancel_calls(r, true); /* nobody will read those */
    for (guint i = 0; i < r->calls->len; i++) {
        const app_call *c = r->calls->pdata[i];
        json_t *value;
        if (!c || !c->path)
            continue;
        g_mutex_lock(&r->lock);
        while ((value = cs_app_run_take(r->run, i, c->forward))) {
            pipe_text(r, c, json_string_value(value), json_string_length(value));
            json_decref(value);
        }
        bool failed = c->over_told && c->error;
        if (c->over_told && c->length)
            app_output_length(&r->output, c->path);
        g_mutex_unlock(&r->lock);
        if (failed) {
            g_propagate_error(error, g_error_copy(c->error));
            return false;
        }
    }
    return true;
}

static bool all_over(const app_request *r)
{
    for (guint i = 0; i < r->calls->len; i++) {
        const app_call *c = r->calls->pdata[i];
        if (c && !c->over_told)
            return false;
    }
    return true;
}

/* --- steps --- */

static bool begin(app_request *r, GError **error)
{
    static const cs_app_host host = {host_start, host_emit};
    if (r->run)
        return true;
    if (r->app->fault) {
        g_propagate_error(error, g_error_copy(r->app->fault));
        return false;
    }
    r->run = cs_app_run_new(r->app->tasks, r->input, &host, r, error);
    return r->run != NULL;
}

static bool call_timed_out(const app_request *r)
{
    for (guint i = 0; i < r->calls->len; i++) {
        const app_call *c = r->calls->pdata[i];
        if (c && c->over_told && g_error_matches(c->error, CS_ERROR, CS_ERROR_TIMEOUT))
            return true;
    }
    return false;
}

static bool step_run(app_request *r, GError **error)
{
    GError *fault = NULL;
    r->state = cs_app_run_step(r->run, &fault);
    if (r->state == CS_APP_FAILED) {
        if (!call_timed_out(r))
            cs_registry_blame_app(fault);
        g_propagate_error(error, fault);
        return false;
    }
    return r->state != CS_APP_DONE || start_pipes(r, error);
}

static bool go_on(app_request *r, GError **error)
{
    if (!begin(r, error))
        return false;
    for (guint i = 0; i < r->calls->len; i++)
        if (r->calls->pdata[i] && !deliver(r, i, r->calls->pdata[i], error))
            return false;
    return r->state != CS_APP_WAITING || step_run(r, error);
}

void app_request_step(app_request *r)
{
    if (r->done)
        return;
    g_mutex_lock(&r->lock);
    GError *error = r->ending ? g_error_copy(r->ending) : NULL;
    g_mutex_unlock(&r->lock);
    if (error || !go_on(r, &error) || (r->state == CS_APP_DONE && all_over(r)))
        finish(r, error);
    else
        cs_exchange_wake(r->x);
}

/* --- the connection's side --- */

static void request_ready(void *user, cs_exchange *x)
{
    app_request *r = user;
    g_mutex_lock(&r->lock);
    g_autoptr(GError) error = r->error ? g_error_copy(r->error) : NULL;
    bool begun = r->output.stream && r->output.out->len > 0;
    GString *whole = r->done && !r->output.stream && !error ? r->output.out : NULL;
    if (whole)
        r->output.out = g_string_new(NULL);
    g_mutex_unlock(&r->lock);
    if (begun)
        cs_exchange_stream(x, "text/event-stream; charset=utf-8");
    else if (error)
        cs_exchange_fail(x, error, NULL, NULL);
    else if (whole)
        cs_exchange_respond(x, 200, "application/json", g_string_free_to_bytes(whole));
}

static bool request_pull(void *user, GString *out)
{
    app_request *r = user;
    g_mutex_lock(&r->lock);
    g_string_append_len(out, r->output.out->str, (gssize)r->output.out->len);
    g_string_truncate(r->output.out, 0);
    r->output.size_bytes = 0;
    bool done = r->done;
    if (done && r->error)
        cs_output_error(r->error, out);
    g_mutex_unlock(&r->lock);
    return !done;
}

static void request_closed(void *user)
{
    app_request *r = user;
    app_request_end(r,
                    g_error_new_literal(CS_ERROR, CS_ERROR_CANCELLED, "the request was cancelled"));
    app_request_unref(r);
}

static const cs_exchange_ops request_ops = {request_ready, request_pull, request_closed};

/* --- reading the request --- */

/* Takes the members that are for the server out of what the app gets. */
static bool take_options(app_request *r, GError **error)
{
    json_t *root = r->body.root;
    const json_t *stream = json_object_get(root, "stream");
    const json_t *options = json_object_get(root, "stream_options");
    if (stream && !json_is_boolean(stream) && !json_is_null(stream))
        return cs_fail(error, CS_ERROR_INVALID, "stream: expected true or false");
    const json_t *usage = json_object_get(options, "include_usage");
    if (options && !json_is_null(options) &&
        (!json_is_object(options) || (usage && !json_is_boolean(usage))))
        return cs_fail(error, CS_ERROR_INVALID,
                       "stream_options: expected {\"include_usage\": true or false}");
    r->output.stream = json_is_true(stream);
    r->output.include_usage = json_is_true(usage);
    r->input = json_copy(root);
    json_object_del(r->input, "stream");
    json_object_del(r->input, "stream_options");
    json_object_del(r->input, "model");
    return true;
}

/* The exchange's buffer goes when the client leaves, and an app may still be looking at it. */
static bool keep_lifted(cs_body *body, GError **error)
{
    gsize size_bytes = 0;
    const void *data = g_bytes_get_data(body->bytes, &size_bytes);
    GBytes *kept = NULL;
    if (body->lifted->len > 0) {
        void *copy = g_try_malloc(size_bytes);
        if (!copy)
            return cs_fail(error, CS_ERROR_BUSY, "no memory for a request body of %zu bytes",
                           size_bytes);
        kept = g_bytes_new_take(memcpy(copy, data, size_bytes), size_bytes);
    }
    g_bytes_unref(body->bytes);
    body->bytes = kept;
    return true;
}

static app_request *request_new(app *a, cs_body *body, bool chat, cs_exchange *x)
{
    cs_apps *apps = a->apps;
    app_request *r = g_new0(app_request, 1);
    *r = (app_request){.refs = 1,
                       .app = app_ref(a),
                       .x = cs_exchange_ref(x),
                       .body = *body,
                       .state = CS_APP_WAITING,
                       .calls = g_ptr_array_new()};
    *body = (cs_body){0};
    g_mutex_init(&r->lock);
    app_output_init(&r->output);
    r->output.chat = chat;
    r->output.id = cs_exchange_id(x);
    r->output.app = a->name;
    r->output.created_s = g_get_real_time() / G_USEC_PER_SEC;
    g_mutex_lock(&apps->lock);
    g_hash_table_add(apps->live, r);
    apps->n_requests++;
    g_mutex_unlock(&apps->lock);
    return r;
}

void app_request_start(app *a, cs_body *body, bool chat, cs_exchange *x)
{
    g_autoptr(GError) error = NULL;
    app_request *r = request_new(a, body, chat, x);
    bool ok = take_options(r, &error) && keep_lifted(&r->body, &error);
    cs_exchange_release_body(x);
    if (!ok) {
        cs_exchange_fail(x, error, NULL, NULL);
        app_request_unref(r);
        return;
    }
    app_count(a, APP_STARTED);
    cs_exchange_attach(x, &request_ops, r);
    app_schedule(r);
}
