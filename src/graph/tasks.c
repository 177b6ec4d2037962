#include "graph/graph_internal.h"

#include "base/error.h"

#include <lauxlib.h>
#include <string.h>

#define HANDLE_TYPE "stream"
#define UNIT_TYPE "unit"

static const char *const kind_names[CS_UNIT_KINDS] = {
    [CS_UNIT_ENCODER] = "encoder", [CS_UNIT_LLM] = "llm", [CS_UNIT_GENERATOR] = "generator"};

/* --- handles --- */

task_handle *task_to_handle(lua_State *L, int index)
{
    return luaL_testudata(L, index, HANDLE_TYPE);
}

void task_push_handle(lua_State *L, task_handle handle)
{
    *(task_handle *)lua_newuserdatauv(L, sizeof(handle), 0) = handle;
    luaL_setmetatable(L, HANDLE_TYPE);
}

/* --- calls of unit tasks --- */

static void add_input(lua_State *L, cs_recording *r, cs_invocation *invocation, const char *name,
                      const task_handle *handle)
{
    if (handle->forward >= r->forwards->len)
        luaL_error(L, "%s: an output of another request", name);
    cs_forward *f = &g_array_index(r->forwards, cs_forward, handle->forward);
    cs_invocation_input input = {g_strdup(name), handle->forward, f->n_consumers++};
    g_array_append_val(invocation->inputs, input);
}

/* True when the argument at the top of the stack was one output, or a list of outputs. */
static bool take_inputs(lua_State *L, cs_recording *r, cs_invocation *invocation, const char *name)
{
    const task_handle *handle = task_to_handle(L, -1);
    if (handle) {
        add_input(L, r, invocation, name, handle);
        return true;
    }
    lua_Unsigned n = lua_istable(L, -1) ? lua_rawlen(L, -1) : 0;
    for (lua_Unsigned i = 1; i <= n; i++) {
        lua_rawgeti(L, -1, (lua_Integer)i);
        handle = task_to_handle(L, -1);
        if (handle)
            add_input(L, r, invocation, name, handle);
        lua_pop(L, 1);
        if (!handle && i == 1)
            return false;
        if (!handle)
            luaL_error(L, "%s: a list of outputs and other values", name);
    }
    return n > 0;
}

static double take_number(lua_State *L, const char *name)
{
    if (!lua_isnumber(L, -1) || !(lua_tonumber(L, -1) >= 0) || lua_tonumber(L, -1) > 1e18)
        luaL_error(L, "%s: expected a number from 0 to 1e18", name);
    return lua_tonumber(L, -1);
}

static void take_argument(lua_State *L, cs_recording *r, cs_invocation *invocation)
{
    if (lua_type(L, -2) != LUA_TSTRING)
        luaL_error(L, "%s: arguments are named", invocation->unit->name);
    const char *name = lua_tostring(L, -2), *fault = NULL;
    if (strcmp(name, "units") == 0) {
        invocation->units = take_number(L, name);
    } else if (strcmp(name, "output_units") == 0) {
        invocation->output_units = take_number(L, name);
    } else if (!take_inputs(L, r, invocation, name)) {
        json_t *value = lua_json_read(L, -1, NULL, NULL, &fault);
        if (!value || json_object_set_new(invocation->params, name, value) != 0)
            luaL_error(L, "%s: argument %s: %s", invocation->unit->name, name,
                       fault ? fault : "no UTF-8");
    }
}

static double output_bytes(lua_State *L, const task_unit *u, uint32_t output, int arguments)
{
    if (u->bytes[output] == LUA_NOREF)
        return 0;
    lua_rawgeti(L, LUA_REGISTRYINDEX, u->bytes[output]);
    lua_pushvalue(L, arguments);
    lua_call(L, 1, 1);
    double bytes = take_number(L, "bytes");
    lua_pop(L, 1);
    return bytes;
}

/* Appends the call to `r` and returns its index. Arguments are at 2. May raise. */
static uint32_t record_call(lua_State *L, cs_recording *r, const task_unit *u, bool with_bytes)
{
    if (r->invocations->len >= CS_GRAPH_INVOCATIONS_MAX)
        luaL_error(L, "more than %d invocations in one call", CS_GRAPH_INVOCATIONS_MAX);
    cs_invocation fresh = {.unit = &u->unit,
                           .params = json_object(),
                           .inputs = g_array_new(FALSE, TRUE, sizeof(cs_invocation_input)),
                           .first_forward = r->forwards->len};
    g_array_append_val(r->invocations, fresh);
    uint32_t index = r->invocations->len - 1;
    cs_invocation *invocation = &g_array_index(r->invocations, cs_invocation, index);
    lua_pushnil(L);
    while (lua_next(L, 2)) {
        take_argument(L, r, invocation);
        lua_pop(L, 1);
    }
    for (uint32_t i = 0; i < u->unit.n_outputs; i++) {
        cs_forward f = {.producer = index, .output = i};
        if (with_bytes)
            f.bytes = output_bytes(L, u, i, 2);
        g_array_append_val(r->forwards, f);
    }
    return index;
}

/* The order in which lua_next gives inputs is not the same in two runs; names order them. */
static int compare_inputs(const void *a, const void *b)
{
    const cs_invocation_input *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->forward > y->forward) - (x->forward < y->forward);
}

static void push_outputs(lua_State *L, cs_tasks *tasks, const task_unit *u, uint32_t first_forward)
{
    cs_app_run *run = tasks->run;
    lua_createtable(L, 0, (int)u->unit.n_outputs);
    for (uint32_t i = 0; i < u->unit.n_outputs; i++) {
        task_push_handle(L, (task_handle){.run = run ? run->serial : 0,
                                          .call = run ? run->calls->len - 1 : 0,
                                          .forward = first_forward + i});
        lua_setfield(L, -2, u->unit.outputs[i].name);
    }
}

static void replay_call(lua_State *L, run_call *call, const task_unit *u)
{
    uint32_t i = record_call(L, call->replay, u, false);
    cs_invocation *now = &g_array_index(call->replay->invocations, cs_invocation, i);
    g_array_sort(now->inputs, compare_inputs);
    if (i >= call->recording->invocations->len ||
        !recording_same_invocation(now, cs_recording_invocation(call->recording, i)))
        luaL_error(L,
                   "%s: invoke made another call than when it was recorded (call %d): it may "
                   "depend on the request only",
                   u->unit.name, (int)i + 1);
}

static int unit_call(lua_State *L)
{
    cs_tasks *tasks = cs_sandbox_context(L);
    const task_unit *u =
        g_ptr_array_index(tasks->units, *(uint32_t *)luaL_checkudata(L, 1, UNIT_TYPE));
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    cs_sandbox_charge(L, 200);
    uint32_t first_forward;
    if (tasks->recording) {
        first_forward = tasks->recording->forwards->len;
        uint32_t i = record_call(L, tasks->recording, u, true);
        g_array_sort(g_array_index(tasks->recording->invocations, cs_invocation, i).inputs,
                     compare_inputs);
    } else if (tasks->run && tasks->run->replaying) {
        first_forward = tasks->run->replaying->replay->forwards->len;
        replay_call(L, tasks->run->replaying, u);
    } else {
        return luaL_error(L, "%s: unit tasks are called in a task's invoke", u->unit.name);
    }
    push_outputs(L, tasks, u, first_forward);
    return 1;
}

static json_t *mark_returned(lua_State *L, int index, void *user)
{
    const task_handle *handle = task_to_handle(L, index);
    cs_recording *r = user;
    if (!handle || handle->forward >= r->forwards->len)
        return NULL;
    recording_mark_client(r, handle->forward);
    return json_null();
}

void task_record(lua_State *L, task_model *model, cs_recording *recording)
{
    cs_tasks *tasks = model->tasks;
    const char *fault = NULL;
    int n_results = 0;
    lua_State *co = lua_newthread(L);
    lua_rawgeti(co, LUA_REGISTRYINDEX, model->invoke);
    lua_pushvalue(L, -2);
    lua_xmove(L, co, 1);
    tasks->recording = recording;
    int status = cs_sandbox_resume(L, co, 1, &n_results);
    tasks->recording = NULL;
    if (status == LUA_OK && n_results > 0 && lua_type(co, -n_results) != LUA_TNIL) {
        json_t *result = lua_json_read(co, -n_results, mark_returned, recording, &fault);
        json_decref(result);
        if (!result)
            luaL_error(L, "%s: invoke returned %s", model->name, fault);
    }
    lua_pop(L, 2);
}

/* --- unit{} --- */

static const char *string_field(lua_State *L, int table, const char *key, const char *fallback)
{
    lua_getfield(L, table, key);
    const char *text = lua_isnil(L, -1) ? fallback : lua_tostring(L, -1);
    if (!text || (!lua_isnil(L, -1) && lua_type(L, -1) != LUA_TSTRING) || strlen(text) > 64)
        luaL_error(L, "%s: expected a string of at most 64 bytes", key);
    return text; /* left on the stack: alive while the table is */
}

static double number_field(lua_State *L, int table, const char *key)
{
    lua_getfield(L, table, key);
    return lua_isnil(L, -1) ? 0 : take_number(L, key);
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names of the string keys of the table at the top, sorted; NULL-terminated, owned. */
static GPtrArray *sorted_keys(lua_State *L)
{
    GPtrArray *keys = g_ptr_array_new_with_free_func(g_free);
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        if (lua_type(L, -2) == LUA_TSTRING)
            g_ptr_array_add(keys, g_strdup(lua_tostring(L, -2)));
        lua_pop(L, 1);
    }
    g_ptr_array_sort(keys, compare_strings);
    g_ptr_array_add(keys, NULL);
    return keys;
}

/* outputs = { embeddings = { bytes = function(arguments) ... end, streamed = true } } */
static void read_outputs(lua_State *L, int table, task_unit *u)
{
    lua_getfield(L, table, "outputs");
    luaL_argcheck(L, lua_istable(L, -1), table, "outputs: expected a table");
    g_autoptr(GPtrArray) names = sorted_keys(L);
    uint32_t n = names->len - 1;
    for (uint32_t i = 0; i < MIN(n, CS_GRAPH_OUTPUTS_MAX); i++) {
        const char *name = names->pdata[i];
        cs_unit_output *output = &u->unit.outputs[u->unit.n_outputs];
        lua_getfield(L, -1, name);
        if (lua_istable(L, -1)) {
            output->name = g_strdup(name);
            lua_getfield(L, -1, "streamed");
            output->streamed = lua_toboolean(L, -1);
            lua_pop(L, 1);
            lua_getfield(L, -1, "bytes");
            u->bytes[i] =
                lua_isfunction(L, -1) ? luaL_ref(L, LUA_REGISTRYINDEX) : (lua_pop(L, 1), LUA_NOREF);
            u->unit.n_outputs++;
        }
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    if (n == 0 || n > CS_GRAPH_OUTPUTS_MAX || u->unit.n_outputs != n) {
        g_clear_pointer(&names, g_ptr_array_unref); /* the error jumps over the cleanup */
        luaL_error(L, "outputs: expected 1 to %d tables by name", CS_GRAPH_OUTPUTS_MAX);
    }
}

static void read_weights(lua_State *L, int table, task_unit *u)
{
    lua_getfield(L, table, "weights");
    lua_Unsigned n = lua_istable(L, -1) ? lua_rawlen(L, -1) : 0;
    luaL_argcheck(L, n <= 64, table, "weights: expected at most 64 prefixes");
    u->unit.weights = g_new0(char *, n + 1);
    for (lua_Unsigned i = 0; i < n; i++) {
        lua_rawgeti(L, -1, (lua_Integer)i + 1);
        luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, table, "weights: expected strings");
        u->unit.weights[i] = g_strdup(lua_tostring(L, -1));
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static char *unit_key(lua_State *L, int table, const cs_unit *unit)
{
    const char *fault = NULL;
    lua_getfield(L, table, "config");
    json_t *config = lua_isnil(L, -1) ? json_null() : lua_json_read(L, -1, NULL, NULL, &fault);
    if (!config)
        luaL_error(L, "%s: config: %s", unit->name, fault);
    lua_pop(L, 1);
    json_t *key = json_pack("{s:s, s:s, s:s, s:o}", "model", unit->model, "name", unit->name,
                            "kind", kind_names[unit->kind], "config", config);
    char *text = json_dumps(key, JSON_COMPACT | JSON_SORT_KEYS);
    char *copy = g_strdup(text);
    free(text);
    json_decref(key);
    return copy;
}

static void free_unit(void *data)
{
    task_unit *u = data;
    for (uint32_t i = 0; i < u->unit.n_outputs; i++)
        g_free(u->unit.outputs[i].name);
    g_strfreev(u->unit.weights);
    g_free(u->unit.name);
    g_free(u->unit.model);
    g_free(u->unit.key);
    g_free(u->unit.to_user);
    g_free(u);
}

/* unit { name, kind, config, outputs, weights, split, kv_bytes_per_token, activation_bytes, to_user
 * }
 */
static int define_unit(lua_State *L)
{
    cs_tasks *tasks = cs_sandbox_context(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    if (!tasks->adding)
        return luaL_error(L, "unit: only while a task file is loaded");
    if (tasks->units->len >= 256)
        return luaL_error(L, "unit: more than 256");
    task_unit *u = g_new0(task_unit, 1);
    g_ptr_array_add(tasks->units, u); /* owned from here on: errors jump */
    for (int i = 0; i < CS_GRAPH_OUTPUTS_MAX; i++)
        u->bytes[i] = LUA_NOREF;
    const char *name = string_field(L, 1, "name", NULL), *kind = string_field(L, 1, "kind", NULL);
    while (u->unit.kind < CS_UNIT_KINDS && strcmp(kind_names[u->unit.kind], kind) != 0)
        u->unit.kind++;
    if (u->unit.kind == CS_UNIT_KINDS) {
        u->unit.kind = CS_UNIT_ENCODER;
        return luaL_error(L, "%s: kind: expected encoder, llm or generator, found %s", name, kind);
    }
    u->unit.name = g_strdup(name);
    u->unit.model = g_strdup(tasks->adding);
    lua_getfield(L, 1, "split");
    u->unit.split = lua_toboolean(L, -1);
    u->unit.kv_bytes_per_token = number_field(L, 1, "kv_bytes_per_token");
    u->unit.activation_bytes = number_field(L, 1, "activation_bytes");
    const char *to_user = string_field(L, 1, "to_user", "");
    u->unit.to_user = to_user[0] ? g_strdup(to_user) : NULL;
    read_weights(L, 1, u);
    read_outputs(L, 1, u);
    u->unit.key = unit_key(L, 1, &u->unit);
    uint32_t index = tasks->units->len - 1;
    for (uint32_t i = 0; i < index; i++) /* an equal one is shared */
        if (strcmp(cs_tasks_unit(tasks, i)->key, u->unit.key) == 0)
            index = i;
    if (index != tasks->units->len - 1)
        g_ptr_array_set_size(tasks->units, (int)tasks->units->len - 1);
    *(uint32_t *)lua_newuserdatauv(L, sizeof(index), 0) = index;
    luaL_setmetatable(L, UNIT_TYPE);
    return 1;
}

/* --- task files --- */

static void free_model(void *data)
{
    task_model *m = data;
    if (m->kinds)
        g_ptr_array_unref(m->kinds);
    json_decref(m->colocate);
    g_free(m->alias);
    g_free(m->name);
    g_free(m->model);
    g_free(m);
}

typedef struct {
    task_model *model;
    const char *source, *source_name;
    size_t source_bytes;
    const json_t *config;
} add_arguments;

static int add_model_body(lua_State *L)
{
    const add_arguments *a = lua_touserdata(L, 1);
    task_model *m = a->model;
    const char *fault = NULL;
    if (a->config)
        lua_json_push(L, a->config);
    else
        lua_pushnil(L);
    lua_setglobal(L, "config");
    cs_sandbox_load(L, a->source, a->source_bytes, a->source_name);
    lua_call(L, 0, 1);
    if (!lua_istable(L, -1))
        return luaL_error(L, "%s: expected to return a task", a->source_name);
    int task = lua_gettop(L);
    m->name = g_strdup(string_field(L, task, "name", NULL));
    lua_getfield(L, task, "invoke");
    if (!lua_isfunction(L, -1))
        return luaL_error(L, "%s: invoke: expected a function", a->source_name);
    m->invoke = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_getfield(L, task, "colocate");
    if (!lua_isnil(L, -1) && !(m->colocate = lua_json_read(L, -1, NULL, NULL, &fault)))
        return luaL_error(L, "%s: colocate: %s", a->source_name, fault);
    lua_getfield(L, task, "requests");
    if (!lua_istable(L, -1))
        return luaL_error(L, "%s: requests: expected a table of functions", a->source_name);
    m->kinds = sorted_keys(L);
    m->requests = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_pushnil(L);
    lua_setglobal(L, "config");
    lua_getglobal(L, "models");
    lua_pushlightuserdata(L, m->tasks);
    lua_pushlightuserdata(L, m);
    lua_pushcclosure(L, run_model_call, 2);
    lua_setfield(L, -2, m->alias);
    return 0;
}

static task_model *find_model(const cs_tasks *tasks, const char *alias)
{
    for (guint i = 0; i < tasks->models->len; i++) {
        task_model *m = tasks->models->pdata[i];
        if (strcmp(m->alias, alias) == 0)
            return m;
    }
    return NULL;
}

bool cs_tasks_add_model(cs_tasks *tasks, const char *alias, const char *model, const char *source,
                        size_t source_bytes, const char *source_name, const json_t *config,
                        GError **error)
{
    if (find_model(tasks, alias))
        return cs_fail(error, CS_ERROR_CONFLICT, "%s: there are two models %s", tasks->name, alias);
    task_model *m = g_new0(task_model, 1);
    *m = (task_model){.alias = g_strdup(alias), .model = g_strdup(model), .tasks = tasks};
    add_arguments a = {m, source, source_name, source_bytes, config};
    guint n_units = tasks->units->len;
    tasks->adding = model;
    bool ok = cs_sandbox_run(tasks->sandbox, add_model_body, &a, error);
    tasks->adding = NULL;
    if (ok) {
        g_ptr_array_add(tasks->models, m);
    } else {
        free_model(m);
        g_ptr_array_set_size(tasks->units, (int)n_units);
    }
    return ok;
}

static int return_task(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    return 1;
}

static void register_function(lua_State *L, cs_tasks *tasks, const char *name, lua_CFunction fn)
{
    lua_pushlightuserdata(L, tasks);
    lua_pushcclosure(L, fn, 1);
    lua_setglobal(L, name);
}

static int open_body(lua_State *L)
{
    cs_tasks *tasks = lua_touserdata(L, 1);
    lua_json_open(L);
    luaL_newmetatable(L, UNIT_TYPE);
    lua_pushlightuserdata(L, tasks);
    lua_pushcclosure(L, unit_call, 1);
    lua_setfield(L, -2, "__call");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    luaL_newmetatable(L, HANDLE_TYPE);
    run_open_handle(L, tasks);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    register_function(L, tasks, "unit", define_unit);
    register_function(L, tasks, "task", return_task);
    lua_newtable(L);
    lua_setglobal(L, "models");
    return 0;
}

cs_tasks *cs_tasks_new(const char *name, const cs_sandbox_limits *limits, GError **error)
{
    cs_sandbox_limits by_default = CS_SANDBOX_LIMITS_DEFAULT;
    cs_sandbox *sandbox = cs_sandbox_new(name, limits ? limits : &by_default, error);
    if (!sandbox)
        return NULL;
    cs_tasks *tasks = g_new0(cs_tasks, 1);
    tasks->name = g_strdup(name);
    tasks->sandbox = sandbox;
    tasks->serve = LUA_NOREF;
    tasks->units = g_ptr_array_new_with_free_func(free_unit);
    tasks->models = g_ptr_array_new_with_free_func(free_model);
    if (cs_sandbox_run(sandbox, open_body, tasks, error) && run_open(tasks, error))
        return tasks;
    cs_tasks_free(tasks);
    return NULL;
}

void cs_tasks_free(cs_tasks *tasks)
{
    if (!tasks)
        return;
    cs_sandbox_free(tasks->sandbox);
    g_ptr_array_unref(tasks->models);
    g_ptr_array_unref(tasks->units);
    g_free(tasks->name);
    g_free(tasks);
}

uint32_t cs_tasks_n_units(const cs_tasks *tasks)
{
    return tasks->units->len;
}

const cs_unit *cs_tasks_unit(const cs_tasks *tasks, uint32_t index)
{
    return &((task_unit *)tasks->units->pdata[index])->unit;
}

const char *const *cs_tasks_request_kinds(const cs_tasks *tasks, const char *alias)
{
    const task_model *m = find_model(tasks, alias);
    return m ? (const char *const *)m->kinds->pdata : NULL;
}

/* --- recording from outside --- */

typedef struct {
    task_model *model;
    const char *kind;
    const json_t *in;
    json_t *out;
    cs_recording *recording;
} call_arguments;

static int example_body(lua_State *L)
{
    call_arguments *a = lua_touserdata(L, 1);
    const char *fault = NULL;
    lua_rawgeti(L, LUA_REGISTRYINDEX, a->model->requests);
    lua_getfield(L, -1, a->kind);
    lua_json_push(L, a->in);
    lua_call(L, 1, 1);
    a->out = lua_json_read(L, -1, NULL, NULL, &fault);
    return a->out ? 0 : luaL_error(L, "request kind %s: %s", a->kind, fault);
}

static int record_body(lua_State *L)
{
    call_arguments *a = lua_touserdata(L, 1);
    lua_json_push(L, a->in);
    task_record(L, a->model, a->recording);
    return 0;
}

static task_model *require_model(cs_tasks *tasks, const char *alias, GError **error)
{
    task_model *m = find_model(tasks, alias);
    if (!m)
        cs_fail(error, CS_ERROR_NOT_FOUND, "%s: there is no model %s", tasks->name, alias);
    return m;
}

json_t *cs_tasks_example(cs_tasks *tasks, const char *alias, const char *kind, const json_t *sizes,
                         GError **error)
{
    task_model *m = require_model(tasks, alias, error);
    if (!m)
        return NULL;
    if (!g_strv_contains((const char *const *)m->kinds->pdata, kind)) {
        g_autofree char *known = g_strjoinv(", ", (char **)m->kinds->pdata);
        cs_fail(error, CS_ERROR_NOT_FOUND, "%s: there is no request kind %s, only %s", m->name,
                kind, known);
        return NULL;
    }
    call_arguments a = {.model = m, .kind = kind, .in = sizes};
    if (cs_sandbox_run(tasks->sandbox, example_body, &a, error))
        return a.out;
    json_decref(a.out);
    return NULL;
}

cs_recording *cs_tasks_record(cs_tasks *tasks, const char *alias, const json_t *request,
                              GError **error)
{
    task_model *m = require_model(tasks, alias, error);
    if (!m)
        return NULL;
    call_arguments a = {.model = m, .in = request, .recording = cs_recording_new()};
    bool ok = cs_sandbox_run(tasks->sandbox, record_body, &a, error);
    tasks->recording = NULL;
    if (ok)
        return a.recording;
    cs_recording_free(a.recording);
    return NULL;
}
