#include "runtime/runtime.h"

#include "base/error.h"
#include "base/os.h"
#include "runtime/runtime_internal.h"

#include <pthread.h>
#include <string.h>

#define STOP_GRACE_US (2 * G_USEC_PER_SEC) /* for executors to leave by themselves */

/* --- calls from other threads that wait for their answer --- */

typedef struct {
    void (*fn)(cs_runtime *rt, void *arguments);
    cs_runtime *runtime;
    void *arguments;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
} sync_call;

static void run_sync(void *user)
{
    sync_call *s = user;
    s->fn(s->runtime, s->arguments);
    pthread_mutex_lock(&s->lock);
    s->done = true;
    pthread_cond_signal(&s->cond);
    pthread_mutex_unlock(&s->lock);
}

static void sync_on_loop(cs_runtime *rt, void (*fn)(cs_runtime *, void *), void *arguments)
{
    sync_call s = {.fn = fn, .runtime = rt, .arguments = arguments};
    pthread_mutex_init(&s.lock, NULL);
    pthread_cond_init(&s.cond, NULL);
    cs_loop_post(rt->loop, run_sync, &s);
    pthread_mutex_lock(&s.lock);
    while (!s.done)
        pthread_cond_wait(&s.cond, &s.lock);
    pthread_mutex_unlock(&s.lock);
    pthread_cond_destroy(&s.cond);
    pthread_mutex_destroy(&s.lock);
}

/* --- requests --- */

static void free_app(app *a)
{
    cs_tasks_free(a->tasks);
    g_free(a->name);
    g_free(a);
}

/* With the lock of the apps held. */
static void leave_app(app *a)
{
    if (--a->requests == 0 && a->removed)
        free_app(a);
}

static void free_call(void *data)
{
    call *c = data;
    for (guint i = 0; i < c->recording->forwards->len; i++)
        g_clear_pointer(&c->streams[i].data, g_byte_array_unref);
    g_free(c->streams);
    g_free(c->invocations);
    g_free(c);
}

static void unref_request(cs_runtime_request *r)
{
    if (atomic_fetch_sub(&r->references, 1) != 1)
        return;
    json_decref(r->input);
    g_array_unref(r->attachments);
    g_ptr_array_unref(r->calls);
    g_free(r);
}

/* The last thing that happens to a request. Takes the error. Not from inside a step of its run. */
static void finish(cs_runtime_request *r, GError *error)
{
    cs_runtime *rt = r->runtime;
    if (r->done) {
        g_clear_error(&error);
        return;
    }
    r->done = true;
    for (guint i = 0; i < r->calls->len; i++)
        dispatch_stop(r->calls->pdata[i]);
    if (!error)
        rt->counters.finished++;
    else if (g_error_matches(error, CS_ERROR, CS_ERROR_CANCELLED))
        rt->counters.cancelled++;
    else
        rt->counters.failed++;
    r->sink.on_done(r->user, error ? NULL : cs_app_run_result(r->run), error);
    g_clear_error(&error);
    g_ptr_array_set_size(r->calls, 0); /* they borrow the run's recordings */
    cs_app_run_free(g_steal_pointer(&r->run));
    g_mutex_lock(&rt->apps_lock);
    leave_app(r->app);
    g_mutex_unlock(&rt->apps_lock);
    g_ptr_array_remove(rt->dirty, r);
    g_ptr_array_remove_fast(rt->active, r);
    atomic_fetch_sub(&rt->n_requests, 1);
    unref_request(r);
}

static bool host_start(void *user, uint32_t number, const cs_recording *recording, GError **error)
{
    cs_runtime_request *r = user;
    call *c = g_new0(call, 1);
    *c = (call){.request = r,
                .number = number,
                .recording = recording,
                .invocations = g_new0(invocation_state, 2 * recording->invocations->len + 1),
                .streams = g_new0(client_stream, recording->forwards->len + 1)};
    g_ptr_array_add(r->calls, c);
    return dispatch_call(c, error);
}

static bool host_emit(void *user, const json_t *event, GError **error)
{
    cs_runtime_request *r = user;
    r->sink.on_event(r->user, event);
    return true;
}

static void pipe_value(call *c, uint32_t forward, const void *data, size_t size_bytes,
                       uint32_t units)
{
    cs_runtime_request *r = c->request;
    const cs_forward *f = cs_recording_forward(c->recording, forward);
    const cs_unit *unit = cs_recording_invocation(c->recording, f->producer)->unit;
    r->sink.on_piece(r->user, c->number, unit->name, unit->outputs[f->output].name, data,
                     size_bytes, units);
}

/* A stream that serve returned: what came before is handed on, the rest follows directly. */
static void start_pipe(cs_runtime_request *r, uint32_t number, uint32_t forward)
{
    call *c = number < r->calls->len ? r->calls->pdata[number] : NULL;
    if (!c || forward >= c->recording->forwards->len || c->streams[forward].piped)
        return;
    c->streams[forward].piped = true;
    for (json_t *v; (v = cs_app_run_take(r->run, number, forward)); json_decref(v))
        pipe_value(c, forward, json_string_value(v), json_string_length(v), 0);
}

static void start_pipes(cs_runtime_request *r, const json_t *value)
{
    const json_t *place = json_object_get(value, "$stream");
    const char *key;
    json_t *item;
    size_t i;
    if (place) {
        start_pipe(r, (uint32_t)json_integer_value(json_array_get(place, 0)),
                   (uint32_t)json_integer_value(json_array_get(place, 1)));
        return;
    }
    json_object_foreach ((json_t *)value, key, item)
        start_pipes(r, item);
    json_array_foreach (value, i, item)
        start_pipes(r, item);
}

static void step_run(cs_runtime_request *r)
{
    GError *error = NULL;
    r->dirty = false;
    if (r->done || r->state != CS_APP_WAITING)
        return;
    r->state = cs_app_run_step(r->run, &error);
    if (r->state == CS_APP_FAILED) {
        finish(r, error);
    } else if (r->state == CS_APP_DONE) {
        start_pipes(r, cs_app_run_result(r->run));
        request_progress(r);
    }
}

static void mark_dirty(cs_runtime_request *r)
{
    if (r->dirty)
        return;
    r->dirty = true;
    g_ptr_array_add(r->runtime->dirty, r);
}

void request_step_dirty(cs_runtime *rt)
{
    while (rt->dirty->len > 0) {
        cs_runtime_request *r = rt->dirty->pdata[0];
        g_ptr_array_remove_index_fast(rt->dirty, 0);
        step_run(r);
    }
}

/* Pieces are text, but for models' sound and images: Lua gets those as base64. */
static json_t *piece_value(const void *data, size_t size_bytes)
{
    json_t *value = json_stringn(data, size_bytes);
    if (value)
        return value;
    g_autofree char *base64 = g_base64_encode(data, size_bytes);
    return json_string(base64);
}

void request_piece(call *c, uint32_t forward, const void *data, size_t size_bytes, uint32_t units)
{
    cs_runtime_request *r = c->request;
    if (r->state == CS_APP_WAITING) {
        cs_app_run_put(r->run, c->number, forward, piece_value(data, size_bytes));
        mark_dirty(r);
    } else if (c->streams[forward].piped) {
        pipe_value(c, forward, data, size_bytes, units);
    }
}

void request_stream_end(call *c, uint32_t forward)
{
    c->streams[forward].ended = true;
    if (c->request->state != CS_APP_WAITING)
        return;
    cs_app_run_end(c->request->run, c->number, forward);
    mark_dirty(c->request);
}

void request_call_failed(call *c, GError *error)
{
    cs_runtime_request *r = c->request;
    dispatch_stop(c);
    c->failed = true;
    if (r->state != CS_APP_WAITING) {
        finish(r, error);
        return;
    }
    for (guint i = 0; i < c->recording->forwards->len; i++)
        cs_app_run_fail(r->run, c->number, i, error);
    g_error_free(error);
    mark_dirty(r);
}

void request_progress(cs_runtime_request *r)
{
    if (r->done || r->state != CS_APP_DONE)
        return;
    for (guint i = 0; i < r->calls->len; i++) {
        const call *c = r->calls->pdata[i];
        if (c->n_open > 0 || c->parked)
            return;
    }
    finish(r, NULL);
}

static void start_request(void *user)
{
    static const cs_app_host host = {host_start, host_emit};
    cs_runtime_request *r = user;
    GError *error = NULL;
    r->runtime->counters.started++;
    g_ptr_array_add(r->runtime->active, r);
    r->run = cs_app_run_new(r->app->tasks, r->input, &host, r, &error);
    if (r->run)
        step_run(r);
    else
        finish(r, error);
}

typedef struct {
    const char *name;
    cs_tasks *tasks;
    bool ok;
    GError **error;
} app_arguments;

/* NULL: there is none of that name. Does not wait for the runtime's thread, which may be waiting in
 * a sink for somebody who submits. */
static app *enter_app(cs_runtime *rt, const char *name)
{
    g_mutex_lock(&rt->apps_lock);
    app *found = g_hash_table_lookup(rt->apps, name);
    if (found)
        found->requests++;
    g_mutex_unlock(&rt->apps_lock);
    return found;
}

static void clear_attachment(void *item)
{
    cs_attachment *a = item;
    g_bytes_unref(a->head);
    g_clear_pointer(&a->body, g_bytes_unref);
}

static GArray *copy_attachments(uint32_t n, const cs_attachment *attachments)
{
    GArray *copies = g_array_new(FALSE, FALSE, sizeof(cs_attachment));
    g_array_set_clear_func(copies, clear_attachment);
    for (uint32_t i = 0; i < n; i++) {
        cs_attachment copy = {g_bytes_ref(attachments[i].head),
                              attachments[i].body ? g_bytes_ref(attachments[i].body) : NULL};
        g_array_append_val(copies, copy);
    }
    return copies;
}

cs_runtime_request *cs_runtime_submit(cs_runtime *rt, const char *name, const json_t *request,
                                      const cs_runtime_sink *sink, void *user, GError **error)
{
    return cs_runtime_submit_with(rt, name, request, &(cs_submit_options){0}, sink, user, error);
}

cs_runtime_request *cs_runtime_submit_with(cs_runtime *rt, const char *name, const json_t *request,
                                           const cs_submit_options *options,
                                           const cs_runtime_sink *sink, void *user, GError **error)
{
    if (atomic_load(&rt->closing)) {
        cs_fail(error, CS_ERROR_BUSY, "the server is shutting down");
        return NULL;
    }
    if (atomic_fetch_add(&rt->n_requests, 1) >= rt->options.max_requests) {
        atomic_fetch_sub(&rt->n_requests, 1);
        cs_fail(error, CS_ERROR_BUSY, "%u requests are running, none can more",
                rt->options.max_requests);
        return NULL;
    }
    app *found = enter_app(rt, name);
    if (!found) {
        atomic_fetch_sub(&rt->n_requests, 1);
        cs_fail(error, CS_ERROR_NOT_FOUND, "there is no app %s", name);
        return NULL;
    }
    cs_runtime_request *r = g_new0(cs_runtime_request, 1);
    *r = (cs_runtime_request){.runtime = rt,
                              .app = found,
                              .input = json_deep_copy(request),
                              .attachments =
                                  copy_attachments(options->n_attachments, options->attachments),
                              .allowed_units = options->credit_units,
                              .sink = *sink,
                              .user = user,
                              .state = CS_APP_WAITING,
                              .calls = g_ptr_array_new_with_free_func(free_call)};
    atomic_init(&r->references, 2);
    cs_loop_post(rt->loop, start_request, r);
    return r;
}

static void cancel_posted(void *user)
{
    cs_runtime_request *r = user;
    finish(r, g_error_new_literal(CS_ERROR, CS_ERROR_CANCELLED, "the request was cancelled"));
    unref_request(r);
}

void cs_runtime_request_cancel(cs_runtime_request *r)
{
    atomic_fetch_add(&r->references, 1);
    cs_loop_post(r->runtime->loop, cancel_posted, r);
}

typedef struct {
    cs_runtime_request *request;
    uint64_t n_units;
} allowance;

static void allow_posted(void *user)
{
    g_autofree allowance *a = user;
    cs_runtime_request *r = a->request;
    if (r->allowed_units > 0 && !r->done) {
        for (guint i = 0; i < r->calls->len; i++)
            dispatch_allow(r->calls->pdata[i], a->n_units);
        r->allowed_units += a->n_units;
    }
    unref_request(r);
}

void cs_runtime_request_allow(cs_runtime_request *r, uint64_t n_units)
{
    allowance *a = g_new(allowance, 1);
    *a = (allowance){r, n_units};
    atomic_fetch_add(&r->references, 1);
    cs_loop_post(r->runtime->loop, allow_posted, a);
}

void cs_runtime_request_release(cs_runtime_request *r)
{
    unref_request(r);
}

/* --- apps --- */

bool cs_runtime_add_app(cs_runtime *rt, const char *name, cs_tasks *tasks, GError **error)
{
    g_mutex_lock(&rt->apps_lock);
    bool is_new = !g_hash_table_contains(rt->apps, name);
    if (is_new) {
        app *fresh = g_new0(app, 1);
        fresh->name = g_strdup(name);
        fresh->tasks = tasks;
        g_hash_table_insert(rt->apps, fresh->name, fresh);
    }
    g_mutex_unlock(&rt->apps_lock);
    if (is_new)
        return true;
    cs_tasks_free(tasks);
    return cs_fail(error, CS_ERROR_CONFLICT, "there is an app %s", name);
}

/* On the runtime's thread, which uses the tasks of apps. */
static void remove_app(cs_runtime *rt, void *user)
{
    app_arguments *a = user;
    g_mutex_lock(&rt->apps_lock);
    app *found = g_hash_table_lookup(rt->apps, a->name);
    if (found) {
        g_hash_table_remove(rt->apps, found->name);
        found->removed = true;
        found->requests++;
        leave_app(found);
    }
    g_mutex_unlock(&rt->apps_lock);
    a->ok = found || cs_fail(a->error, CS_ERROR_NOT_FOUND, "there is no app %s", a->name);
}

bool cs_runtime_remove_app(cs_runtime *rt, const char *name, GError **error)
{
    app_arguments a = {.name = name, .error = error};
    sync_on_loop(rt, remove_app, &a);
    return a.ok;
}

/* --- deployments --- */

static void free_deployment(void *data)
{
    deployment *d = data;
    for (guint i = 0; i < d->executors->len; i++)
        agent_executor_free(d->executors->pdata[i]);
    g_ptr_array_unref(d->executors);
    for (size_t i = 0; i < d->plan->n_routes; i++)
        g_free(d->path_credit[i]);
    g_free(d->path_credit);
    cs_plan_free(d->plan);
    json_decref(d->devices);
    g_free(d->model);
    g_free(d);
}

typedef struct {
    deployment *d;
    bool ok, ready;
    GError **error;
} deploy_arguments;

static guint count_executors(const cs_runtime *rt)
{
    guint n = 0;
    for (guint i = 0; i < rt->deployments->len; i++)
        n += ((const deployment *)rt->deployments->pdata[i])->executors->len;
    return n;
}

/* The sidecar has a place for each executor, and for what of the killed has not been cleared yet.
 */
static bool check_room(const cs_runtime *rt, const deployment *d, GError **error)
{
    uint64_t wanted = 0;
    guint max = rt->options.sidecar.participants_max / 2, present = count_executors(rt);
    for (size_t e = 0; e < d->plan->n_executors; e++)
        wanted += (uint64_t)d->plan->executors[e].replicas;
    if (wanted + present <= max)
        return true;
    return cs_fail(error, CS_ERROR_TOO_LARGE,
                   "plan: %" G_GUINT64_FORMAT " executors, and %u run already; this node takes %u",
                   wanted, present, max);
}

static void start_deployment(cs_runtime *rt, void *user)
{
    deploy_arguments *a = user;
    deployment *d = a->d;
    if (dispatch_find(rt, d->model)) {
        a->ok = cs_fail(a->error, CS_ERROR_CONFLICT, "model %s is deployed", d->model);
        return;
    }
    if (!check_room(rt, d, a->error)) {
        a->ok = false;
        return;
    }
    g_ptr_array_add(rt->deployments, d);
    for (size_t e = 0; e < d->plan->n_executors; e++)
        for (int k = 0; k < d->plan->executors[e].replicas; k++)
            g_ptr_array_add(d->executors, agent_executor_new(rt, d, e, (unsigned)k));
    for (guint i = 0; i < d->executors->len; i++)
        agent_start(d->executors->pdata[i]);
    a->ok = true;
}

/* Fails when an executor has ended twice before it was ever ready. */
static void look_at_deployment(cs_runtime *rt, void *user)
{
    deploy_arguments *a = user;
    a->ready = true;
    for (guint i = 0; i < a->d->executors->len; i++) {
        const executor *x = a->d->executors->pdata[i];
        a->ready = a->ready && x->state == EXECUTOR_READY;
        if (a->ok && x->failures > 1 && x->state != EXECUTOR_READY)
            a->ok = cs_fail(a->error, CS_ERROR_FAILED, "executor %s does not start: %s", x->name,
                            x->failure ? x->failure : "it ends at once");
    }
}

static void drop_deployment(cs_runtime *rt, void *user)
{
    g_ptr_array_remove(rt->deployments, user); /* frees it, and kills its executors */
}

static bool hosts_llm(const cs_plan_executor *e, const cs_tasks *tasks)
{
    for (size_t i = 0; i < e->n_hosted; i++)
        for (uint32_t k = 0; k < cs_tasks_n_units(tasks); k++)
            if (cs_tasks_unit(tasks, k)->kind == CS_UNIT_LLM &&
                strcmp(cs_tasks_unit(tasks, k)->name, e->hosted[i].name) == 0)
                return true;
    return false;
}

static deployment *new_deployment(cs_runtime *rt, const char *model, const cs_plan *plan,
                                  const cs_tasks *tasks, const json_t *devices, GError **error)
{
    json_t *copy = cs_plan_to_json(plan);
    cs_plan *own = cs_plan_from_json(copy, "plan", error);
    json_decref(copy);
    if (!own)
        return NULL;
    deployment *d = g_new0(deployment, 1);
    *d = (deployment){.runtime = rt,
                      .model = g_strdup(model),
                      .plan = own,
                      .devices = devices ? json_deep_copy(devices) : json_object(),
                      .executors = g_ptr_array_new(),
                      .path_credit = g_new0(double *, own->n_routes + 1)};
    for (size_t i = 0; i < own->n_executors; i++)
        d->n_llm_executors += hosts_llm(&own->executors[i], tasks) ? own->executors[i].replicas : 0;
    for (size_t i = 0; i < own->n_routes; i++)
        d->path_credit[i] = g_new0(double, own->routes[i].n_paths + 1);
    return d;
}

bool cs_runtime_deploy(cs_runtime *rt, const char *model, const cs_plan *plan, cs_tasks *tasks,
                       const char *alias, const json_t *devices, GError **error)
{
    if (!cs_plan_check_graph(plan, tasks, alias, error))
        return false;
    deploy_arguments a = {.d = new_deployment(rt, model, plan, tasks, devices, error),
                          .error = error};
    if (!a.d)
        return false;
    sync_on_loop(rt, start_deployment, &a);
    if (!a.ok) {
        free_deployment(a.d);
        return false;
    }
    int64_t deadline_us = cs_now_us() + rt->options.start_us;
    for (;;) {
        sync_on_loop(rt, look_at_deployment, &a);
        if (a.ready)
            return true;
        if (a.ok && cs_now_us() > deadline_us)
            a.ok = cs_fail(error, CS_ERROR_TIMEOUT, "model %s: executors are not ready in time",
                           model);
        if (!a.ok)
            break;
        g_usleep(2000);
    }
    sync_on_loop(rt, drop_deployment, a.d);
    return false;
}

/* --- status --- */

typedef struct {
    json_t *status;
} status_arguments;

static json_t *sidecar_status(cs_runtime *rt)
{
    cs_sidecar_stats s;
    cs_sidecar_get_stats(rt->sidecar, &s);
    return json_pack("{s:I, s:I, s:i, s:i, s:i, s:i, s:I, s:I}", "pool_bytes",
                     (json_int_t)s.pool_bytes, "used_bytes", (json_int_t)s.used_bytes,
                     "participants", (int)s.participants, "requests", (int)s.requests, "streams",
                     (int)s.streams, "chunks", (int)s.chunks, "chunks_total",
                     (json_int_t)s.chunks_total, "bytes_total", (json_int_t)s.bytes_total);
}

static void make_status(cs_runtime *rt, void *user)
{
    status_arguments *a = user;
    json_t *executors = json_array(), *apps = json_array();
    GHashTableIter iter;
    void *name;
    for (guint i = 0; i < rt->deployments->len; i++) {
        const deployment *d = rt->deployments->pdata[i];
        for (guint k = 0; k < d->executors->len; k++)
            json_array_append_new(executors, agent_status(d->executors->pdata[k]));
    }
    g_mutex_lock(&rt->apps_lock);
    g_hash_table_iter_init(&iter, rt->apps);
    while (g_hash_table_iter_next(&iter, &name, NULL))
        json_array_append_new(apps, json_string(name));
    g_mutex_unlock(&rt->apps_lock);
    const runtime_counters *c = &rt->counters;
    json_t *requests =
        json_pack("{s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I}", "active", (int)rt->active->len,
                  "parked", (int)rt->parked->len, "started", (json_int_t)c->started, "finished",
                  (json_int_t)c->finished, "failed", (json_int_t)c->failed, "cancelled",
                  (json_int_t)c->cancelled, "retries", (json_int_t)c->retries, "executor_deaths",
                  (json_int_t)c->executor_deaths);
    a->status = json_pack("{s:o, s:o, s:o, s:o}", "executors", executors, "apps", apps, "sidecar",
                          sidecar_status(rt), "requests", requests);
}

json_t *cs_runtime_status(cs_runtime *rt)
{
    status_arguments a = {0};
    sync_on_loop(rt, make_status, &a);
    return a.status;
}

/* --- the thread --- */

static void after_round(void *user)
{
    cs_runtime *rt = user;
    request_step_dirty(rt);
    for (guint i = 0; i < rt->deployments->len; i++) {
        const deployment *d = rt->deployments->pdata[i];
        for (guint k = 0; k < d->executors->len; k++) {
            executor *x = d->executors->pdata[k];
            if (x->wire)
                cs_wire_flush(x->wire);
        }
    }
}

static void tick(void *user)
{
    cs_runtime *rt = user;
    agent_tick(rt);
    dispatch_parked(rt);
    rt->tick = cs_loop_at(rt->loop, cs_now_us() + rt->options.ping_us, tick, rt);
}

static gpointer run_thread(gpointer user)
{
    cs_runtime *rt = user;
    tick(rt);
    cs_loop_run(rt->loop);
    return NULL;
}

static cs_runtime_options with_defaults(cs_runtime_options o)
{
#define OR_DEFAULT(member, value) o.member = o.member ? o.member : (value)
    OR_DEFAULT(ping_us, 500000);
    OR_DEFAULT(watchdog_us, 5000000);
    OR_DEFAULT(start_us, 600000000);
    OR_DEFAULT(restart_us, 100000);
    OR_DEFAULT(park_us, 30000000);
    OR_DEFAULT(attempts_max, 4);
    OR_DEFAULT(max_requests, 4096);
    OR_DEFAULT(sidecar.participants_max, 1024);
#undef OR_DEFAULT
    return o;
}

cs_runtime *cs_runtime_new(const cs_runtime_options *options, GError **error)
{
    g_autofree char *program = options ? g_strdup(options->program) : NULL;
    cs_runtime *rt = g_new0(cs_runtime, 1);
    rt->options = with_defaults(options ? *options : (cs_runtime_options){0});
    rt->options.program = g_steal_pointer(&program);
    rt->deployments = g_ptr_array_new_with_free_func(free_deployment);
    g_mutex_init(&rt->apps_lock);
    rt->apps = g_hash_table_new(g_str_hash, g_str_equal);
    rt->active = g_ptr_array_new();
    rt->parked = g_ptr_array_new();
    rt->dirty = g_ptr_array_new();
    rt->attempts = g_hash_table_new(g_int64_hash, g_int64_equal);
    rt->sidecar = cs_sidecar_create_shared(&rt->options.sidecar, "gateway", error);
    rt->loop = rt->sidecar ? cs_loop_new(error) : NULL;
    if (!rt->loop) {
        cs_runtime_free(rt, 0);
        return NULL;
    }
    cs_loop_set_after_round(rt->loop, after_round, rt);
    rt->thread = g_thread_new("runtime", run_thread, rt);
    return rt;
}

static void cancel_all(cs_runtime *rt, void *user)
{
    while (rt->active->len > 0)
        finish(rt->active->pdata[0],
               g_error_new_literal(CS_ERROR, CS_ERROR_CANCELLED, "the server is shutting down"));
}

static void drain_all(cs_runtime *rt, void *user)
{
    for (guint i = 0; i < rt->deployments->len; i++) {
        const deployment *d = rt->deployments->pdata[i];
        for (guint k = 0; k < d->executors->len; k++)
            agent_drain(d->executors->pdata[k]);
    }
}

static void count_processes(cs_runtime *rt, void *user)
{
    unsigned *n = user;
    *n = 0;
    for (guint i = 0; i < rt->deployments->len; i++) {
        const deployment *d = rt->deployments->pdata[i];
        for (guint k = 0; k < d->executors->len; k++)
            *n += ((executor *)d->executors->pdata[k])->pid > 0;
    }
}

static void stop_thread(cs_runtime *rt, int64_t drain_us)
{
    int64_t deadline_us = cs_now_us() + drain_us;
    while (atomic_load(&rt->n_requests) > 0 && cs_now_us() < deadline_us)
        g_usleep(2000);
    sync_on_loop(rt, cancel_all, NULL);
    sync_on_loop(rt, drain_all, NULL);
    unsigned n = 1;
    for (deadline_us = cs_now_us() + STOP_GRACE_US; n > 0 && cs_now_us() < deadline_us;) {
        sync_on_loop(rt, count_processes, &n);
        if (n > 0)
            g_usleep(2000);
    }
    cs_loop_quit(rt->loop);
    g_thread_join(rt->thread);
}

static void free_app_value(gpointer key, gpointer value, gpointer user)
{
    free_app(value);
}

void cs_runtime_free(cs_runtime *rt, int64_t drain_us)
{
    if (!rt)
        return;
    atomic_store(&rt->closing, true);
    if (rt->thread)
        stop_thread(rt, drain_us);
    g_ptr_array_unref(rt->deployments); /* kills what is left */
    g_hash_table_foreach(rt->apps, free_app_value, NULL);
    g_hash_table_unref(rt->apps);
    g_mutex_clear(&rt->apps_lock);
    g_ptr_array_unref(rt->active);
    g_ptr_array_unref(rt->parked);
    g_ptr_array_unref(rt->dirty);
    g_hash_table_unref(rt->attempts);
    cs_loop_free(rt->loop);
    cs_sidecar_close(rt->sidecar);
    g_free((char *)rt->options.program);
    g_free(rt);
}
