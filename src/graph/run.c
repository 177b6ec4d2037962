#include "base/error.h"
#include "graph/graph_internal.h"

#include <lauxlib.h>
#include <string.h>

/* --- what a run holds --- */

static void free_call(void *data)
{
    run_call *call = data;
    for (guint i = 0; call->queues && i < call->recording->forwards->len; i++) {
        g_queue_clear_full(&call->queues[i].values, (GDestroyNotify)json_decref);
        g_clear_error(&call->queues[i].error);
    }
    g_free(call->queues);
    cs_recording_free(call->recording);
    cs_recording_free(call->replay);
    g_free(call);
}

static run_queue *find_queue(cs_app_run *run, uint32_t call, uint32_t forward)
{
    if (call >= run->calls->len)
        return NULL;
    run_call *c = run->calls->pdata[call];
    if (!c->queues || forward >= c->recording->forwards->len)
        return NULL;
    return &c->queues[forward];
}

void cs_app_run_put(cs_app_run *run, uint32_t call, uint32_t forward, json_t *value)
{
    run_queue *q = find_queue(run, call, forward);
    if (q && !q->ended && !q->error)
        g_queue_push_tail(&q->values, value);
    else
        json_decref(value);
}

void cs_app_run_end(cs_app_run *run, uint32_t call, uint32_t forward)
{
    run_queue *q = find_queue(run, call, forward);
    if (q)
        q->ended = true;
}

void cs_app_run_fail(cs_app_run *run, uint32_t call, uint32_t forward, const GError *error)
{
    run_queue *q = find_queue(run, call, forward);
    if (q && !q->ended && !q->error)
        q->error = g_error_copy(error);
}

json_t *cs_app_run_take(cs_app_run *run, uint32_t call, uint32_t forward)
{
    run_queue *q = find_queue(run, call, forward);
    return q ? g_queue_pop_head(&q->values) : NULL;
}

/* --- reading streams, from Lua --- */

static int yield(lua_State *L, cs_app_run *run, lua_KContext context, lua_KFunction then)
{
    if (L != run->co)
        return luaL_error(L, "streams are read in serve's own coroutine, not in one made by it");
    return lua_yieldk(L, 0, context, then);
}

/* The queue behind a handle. While recording it yields instead: recording ends there. */
static run_queue *reading(lua_State *L, cs_tasks *tasks, const task_handle *handle)
{
    if (tasks->recording) {
        if (handle->forward < tasks->recording->forwards->len)
            recording_mark_client(tasks->recording, handle->forward);
        lua_yield(L, 0);
    }
    cs_app_run *run = tasks->run;
    if (!run || handle->run != run->serial)
        luaL_error(L, "a stream of a request that has ended");
    run_queue *q = find_queue(run, handle->call, handle->forward);
    const run_call *call = q ? run->calls->pdata[handle->call] : NULL;
    if (!q || !cs_recording_forward(call->recording, handle->forward)->to_client)
        luaL_error(L, "a stream that invoke neither returned nor awaited when it was recorded");
    return q;
}

static const task_handle *check_handle(lua_State *L, int index)
{
    const task_handle *handle = task_to_handle(L, index);
    luaL_argcheck(L, handle != NULL, index, "expected a stream");
    return handle;
}

static void push_value(lua_State *L, cs_app_run *run, json_t *value)
{
    json_decref(run->value);
    run->value = value;
    lua_json_push(L, value);
}

static void raise_stream_error(lua_State *L, const run_queue *q)
{
    cs_sandbox_raise(L, g_error_copy(q->error));
}

static int next_resumed(lua_State *L, int status, lua_KContext context)
{
    cs_tasks *tasks = cs_sandbox_context(L);
    run_queue *q = reading(L, tasks, check_handle(L, 1));
    lua_settop(L, 1);
    if (!g_queue_is_empty(&q->values)) {
        push_value(L, tasks->run, g_queue_pop_head(&q->values));
        return 1;
    }
    if (q->error)
        raise_stream_error(L, q);
    if (!q->ended)
        return yield(L, tasks->run, 0, next_resumed);
    lua_pushnil(L);
    return 1;
}

static int stream_next(lua_State *L)
{
    return next_resumed(L, LUA_OK, 0);
}

static bool all_strings(const run_queue *q)
{
    for (const GList *l = q->values.head; l; l = l->next)
        if (!json_is_string((json_t *)l->data))
            return false;
    return true;
}

static void push_text(lua_State *L, const run_queue *q)
{
    luaL_Buffer buffer;
    luaL_buffinit(L, &buffer);
    for (const GList *l = q->values.head; l; l = l->next)
        luaL_addlstring(&buffer, json_string_value(l->data), json_string_length(l->data));
    luaL_pushresult(&buffer);
}

static void push_list(lua_State *L, const run_queue *q)
{
    lua_Integer i = 1;
    lua_newtable(L);
    for (const GList *l = q->values.head; l; l = l->next) {
        lua_json_push(L, l->data);
        lua_rawseti(L, -2, i++);
    }
}

static int all_resumed(lua_State *L, int status, lua_KContext context)
{
    cs_tasks *tasks = cs_sandbox_context(L);
    run_queue *q = reading(L, tasks, check_handle(L, 1));
    lua_settop(L, 1);
    if (q->error)
        raise_stream_error(L, q);
    if (!q->ended)
        return yield(L, tasks->run, 0, all_resumed);
    if (all_strings(q))
        push_text(L, q);
    else if (q->values.length == 1)
        lua_json_push(L, q->values.head->data);
    else
        push_list(L, q);
    return 1;
}

static int stream_all(lua_State *L)
{
    return all_resumed(L, LUA_OK, 0);
}

static int await(lua_State *L)
{
    lua_settop(L, 1);
    return task_to_handle(L, 1) ? all_resumed(L, LUA_OK, 0) : 1;
}

/* merge's iterator. Upvalues: tasks, a list {key, stream, key, stream ...}, the pair to look at
 * first, so that a busy stream does not starve the others. */
static int merge_resumed(lua_State *L, int status, lua_KContext context)
{
    cs_tasks *tasks = cs_sandbox_context(L);
    lua_Integer n = (lua_Integer)lua_rawlen(L, lua_upvalueindex(2)) / 2;
    lua_Integer first = lua_tointeger(L, lua_upvalueindex(3));
    bool open = false;
    lua_settop(L, 0);
    for (lua_Integer k = 0; k < n; k++) {
        lua_Integer i = (first + k) % n;
        lua_rawgeti(L, lua_upvalueindex(2), 2 * i + 2);
        run_queue *q = reading(L, tasks, check_handle(L, -1));
        lua_pop(L, 1);
        if (!g_queue_is_empty(&q->values)) {
            lua_pushinteger(L, i + 1);
            lua_replace(L, lua_upvalueindex(3));
            lua_rawgeti(L, lua_upvalueindex(2), 2 * i + 1);
            push_value(L, tasks->run, g_queue_pop_head(&q->values));
            return 2;
        }
        if (q->error)
            raise_stream_error(L, q);
        open = open || !q->ended;
    }
    return open ? yield(L, tasks->run, 0, merge_resumed) : 0;
}

static int merge_next(lua_State *L)
{
    return merge_resumed(L, LUA_OK, 0);
}

static int merge(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    lua_pushlightuserdata(L, cs_sandbox_context(L));
    lua_newtable(L);
    lua_Integer n = 0;
    lua_pushnil(L);
    while (lua_next(L, 1)) {
        check_handle(L, -1);
        lua_rawseti(L, 3, 2 * n + 2);
        lua_pushvalue(L, -1);
        lua_rawseti(L, 3, 2 * n + 1);
        n++;
    }
    lua_pushinteger(L, 0);
    lua_pushcclosure(L, merge_next, 3);
    return 1;
}

/* --- emitting --- */

static json_t *stream_reference(lua_State *L, int index, void *user)
{
    const task_handle *handle = task_to_handle(L, index);
    const cs_app_run *run = user;
    if (!handle || handle->run != run->serial)
        return NULL;
    return json_pack("{s:[i, i]}", "$stream", (int)handle->call, (int)handle->forward);
}

static int emit(lua_State *L)
{
    cs_tasks *tasks = cs_sandbox_context(L);
    cs_app_run *run = tasks->run;
    const char *fault = NULL;
    if (!run || tasks->recording)
        return luaL_error(L, "emit: only in serve");
    json_t *event = lua_json_read(L, 1, NULL, NULL, &fault);
    if (!event)
        return luaL_error(L, "emit: %s", fault);
    GError *error = NULL;
    bool ok = run->host.emit(run->user, event, &error);
    json_decref(event);
    cs_sandbox_charge(L, 100);
    return ok ? 0 : cs_sandbox_raise(L, error);
}

/* --- calling models --- */

static int call_returned(lua_State *L, int status, lua_KContext context)
{
    cs_tasks *tasks = cs_sandbox_context(L);
    run_call *call = tasks->run->replaying;
    tasks->run->replaying = NULL;
    if (call && call->replay->invocations->len != call->recording->invocations->len)
        return luaL_error(L, "invoke made %d calls, %d when it was recorded",
                          (int)call->replay->invocations->len,
                          (int)call->recording->invocations->len);
    return 1;
}

static int nested_returned(lua_State *L, int status, lua_KContext context)
{
    return 1;
}

int run_model_call(lua_State *L)
{
    cs_tasks *tasks = cs_sandbox_context(L);
    task_model *model = lua_touserdata(L, lua_upvalueindex(2));
    cs_app_run *run = tasks->run;
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    lua_rawgeti(L, LUA_REGISTRYINDEX, model->invoke);
    lua_pushvalue(L, 1);
    if (tasks->recording || (run && run->replaying)) { /* a composite inside another's invoke */
        lua_callk(L, 1, 1, 0, nested_returned);
        return 1;
    }
    if (!run || L != run->co)
        return luaL_error(L, "models.%s: called outside serve's own coroutine", model->alias);
    if (run->calls->len >= 64)
        return luaL_error(L, "models.%s: more than 64 calls in one request", model->alias);
    run_call *call = g_new0(run_call, 1);
    call->recording = cs_recording_new();
    call->replay = cs_recording_new();
    g_ptr_array_add(run->calls, call);
    task_record(L, model, call->recording); /* takes the copy of the request */
    call->queues = g_new0(run_queue, call->recording->forwards->len + 1);
    GError *error = NULL;
    if (!run->host.start(run->user, run->calls->len - 1, call->recording, &error))
        return cs_sandbox_raise(L, error);
    run->replaying = call;
    lua_pushvalue(L, 1);
    lua_callk(L, 1, 1, 0, call_returned);
    return call_returned(L, LUA_OK, 0);
}

/* --- opening --- */

void run_open_handle(lua_State *L, cs_tasks *tasks)
{
    lua_newtable(L);
    lua_pushlightuserdata(L, tasks);
    lua_pushcclosure(L, stream_next, 1);
    lua_setfield(L, -2, "next");
    lua_pushlightuserdata(L, tasks);
    lua_pushcclosure(L, stream_all, 1);
    lua_setfield(L, -2, "all");
    lua_setfield(L, -2, "__index");
}

bool run_open(cs_tasks *tasks, GError **error)
{
    return cs_sandbox_register(tasks->sandbox, "await", await, tasks, error) &&
           cs_sandbox_register(tasks->sandbox, "merge", merge, tasks, error) &&
           cs_sandbox_register(tasks->sandbox, "emit", emit, tasks, error);
}

/* --- runs --- */

static int take_serve(lua_State *L)
{
    cs_tasks *tasks = lua_touserdata(L, 1);
    lua_getglobal(L, "serve");
    if (!lua_isfunction(L, -1))
        return luaL_error(L, "%s: expected a function serve(request)", tasks->name);
    tasks->serve = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

bool cs_tasks_set_app(cs_tasks *tasks, const char *source, size_t source_bytes,
                      const char *source_name, GError **error)
{
    return cs_sandbox_exec(tasks->sandbox, source, source_bytes, source_name, error) &&
           cs_sandbox_run(tasks->sandbox, take_serve, tasks, error);
}

bool cs_tasks_set_plain_app(cs_tasks *tasks, const char *alias, GError **error)
{
    if (!cs_tasks_request_kinds(tasks, alias))
        return cs_fail(error, CS_ERROR_NOT_FOUND, "%s: there is no model %s", tasks->name, alias);
    g_autofree char *source = g_strdup_printf("local call = models[%c%s%c]\n"
                                              "function serve(request) return call(request) end\n",
                                              '"', alias, '"');
    return cs_tasks_set_app(tasks, source, strlen(source), "plain", error);
}

cs_app_run *cs_app_run_new(cs_tasks *tasks, const json_t *request, const cs_app_host *host,
                           void *user, GError **error)
{
    if (tasks->serve == LUA_NOREF) {
        cs_fail(error, CS_ERROR_INVALID, "%s: there is no app", tasks->name);
        return NULL;
    }
    cs_app_run *run = g_new0(cs_app_run, 1);
    *run = (cs_app_run){.tasks = tasks,
                        .host = *host,
                        .user = user,
                        .serial = ++tasks->last_serial,
                        .request = json_deep_copy(request),
                        .thread = LUA_NOREF,
                        .calls = g_ptr_array_new_with_free_func(free_call)};
    return run;
}

static int forget_body(lua_State *L)
{
    const cs_app_run *run = lua_touserdata(L, 1);
    luaL_unref(L, LUA_REGISTRYINDEX, run->thread);
    return 0;
}

void cs_app_run_free(cs_app_run *run)
{
    if (!run)
        return;
    if (run->thread != LUA_NOREF)
        cs_sandbox_run(run->tasks->sandbox, forget_body, run, NULL);
    g_ptr_array_unref(run->calls);
    json_decref(run->request);
    json_decref(run->result);
    json_decref(run->value);
    g_free(run);
}

typedef struct {
    cs_app_run *run;
    bool done;
} step_arguments;

static void keep_result(lua_State *L, cs_app_run *run, int n_results)
{
    const char *fault = NULL;
    if (n_results == 0 || lua_isnil(run->co, -n_results))
        run->result = json_null();
    else
        run->result = lua_json_read(run->co, -n_results, stream_reference, run, &fault);
    if (!run->result)
        luaL_error(L, "serve returned %s", fault);
}

static int step_body(lua_State *L)
{
    step_arguments *a = lua_touserdata(L, 1);
    cs_app_run *run = a->run;
    int n_arguments = 0, n_results = 0;
    if (run->thread == LUA_NOREF) {
        run->co = lua_newthread(L);
        run->thread = luaL_ref(L, LUA_REGISTRYINDEX);
        lua_rawgeti(run->co, LUA_REGISTRYINDEX, run->tasks->serve);
        lua_json_push(L, run->request);
        lua_xmove(L, run->co, 1);
        n_arguments = 1;
    }
    if (cs_sandbox_resume(L, run->co, n_arguments, &n_results) == LUA_OK) {
        a->done = true;
        keep_result(L, run, n_results);
    }
    lua_pop(run->co, n_results);
    return 0;
}

cs_app_state cs_app_run_step(cs_app_run *run, GError **error)
{
    cs_tasks *tasks = run->tasks;
    if (run->result)
        return CS_APP_DONE;
    step_arguments a = {.run = run};
    tasks->run = run;
    bool ok = cs_sandbox_run(tasks->sandbox, step_body, &a, error);
    tasks->run = NULL;
    tasks->recording = NULL;
    if (!ok)
        return CS_APP_FAILED;
    return a.done ? CS_APP_DONE : CS_APP_WAITING;
}

const json_t *cs_app_run_result(const cs_app_run *run)
{
    return run->result;
}
