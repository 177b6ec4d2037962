#include "base/sandbox_internal.h"

#include "base/error.h"
#include "base/os.h"

#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

/* Steps between two looks at the limits. One step may touch a string as large as the heap, so
 * this also bounds how far a run goes beyond its time. */
#define HOOK_STEPS 200

/* Copying this many bytes costs about one step. */
#define BYTES_A_STEP 64

typedef enum { REACHED_NONE, REACHED_STEPS, REACHED_TIME } reached_limit;

struct cs_sandbox {
    char *name;
    lua_State *lua;
    cs_sandbox_limits limits;
    size_t used_bytes;
    uint64_t steps;
    int64_t deadline_us;
    reached_limit reached; /* sticky until the next run */
    bool running;
    bool unbounded;              /* while the libraries are opened */
    char where[LUA_IDSIZE + 24]; /* "file:line: " of the reached limit */
    GError *raised;              /* the last of cs_sandbox_raise */
};

cs_sandbox *cs_sandbox_of(lua_State *L)
{
    cs_sandbox *s;
    memcpy(&s, lua_getextraspace(L), sizeof s);
    return s;
}

static void spend(cs_sandbox *s, uint64_t steps)
{
    s->steps += MIN(steps, UINT64_MAX / 2 - MIN(s->steps, UINT64_MAX / 2));
    if (s->reached != REACHED_NONE || s->unbounded)
        return;
    if (s->steps > s->limits.steps)
        s->reached = REACHED_STEPS;
    else if (cs_now_us() > s->deadline_us)
        s->reached = REACHED_TIME;
}

/* Growth is charged, so that string building in C is counted by what it copies. A refusal makes Lua
 * collect the whole heap and ask again, which is charged too. Shrinking never fails, as Lua asks.
 */
static void *allocate(void *data, void *block, size_t old_bytes, size_t new_bytes)
{
    cs_sandbox *s = data;
    if (!block)
        old_bytes = 0;
    if (new_bytes == 0) {
        free(block);
        s->used_bytes -= old_bytes;
        return NULL;
    }
    if (new_bytes > old_bytes) {
        size_t growth = new_bytes - old_bytes;
        bool full =
            growth > s->limits.memory_bytes || s->used_bytes > s->limits.memory_bytes - growth;
        if (full || growth >= BYTES_A_STEP)
            spend(s, (full ? s->used_bytes : new_bytes) / BYTES_A_STEP);
        if (full || s->reached != REACHED_NONE)
            return NULL;
    }
    void *moved = realloc(block, new_bytes);
    if (!moved && new_bytes > old_bytes)
        return NULL;
    s->used_bytes += new_bytes - old_bytes;
    return moved ? moved : block;
}

/* The innermost Lua function's place, without allocating. */
static void note_where(cs_sandbox *s, lua_State *L)
{
    lua_Debug frame;
    for (int level = 0; s->where[0] == '\0' && lua_getstack(L, level, &frame); level++) {
        lua_getinfo(L, "Sl", &frame);
        if (frame.currentline > 0)
            g_snprintf(s->where, sizeof s->where, "%s:%d: ", frame.short_src, frame.currentline);
    }
}

static void hook(lua_State *L, lua_Debug *frame);

/* From here on every call and instruction of L raises again: code that runs while the stack unwinds
 * (__close) gets no step. No allocation is needed to raise. */
static int raise_limit(lua_State *L)
{
    cs_sandbox *s = cs_sandbox_of(L);
    note_where(s, L);
    lua_sethook(L, hook, LUA_MASKCALL | LUA_MASKCOUNT, 1);
    lua_pushlightuserdata(L, s);
    return lua_error(L);
}

static void hook(lua_State *L, lua_Debug *frame)
{
    cs_sandbox *s = cs_sandbox_of(L);
    spend(s, HOOK_STEPS);
    if (s->reached != REACHED_NONE)
        raise_limit(L);
}

void cs_sandbox_charge(lua_State *L, uint64_t steps)
{
    spend(cs_sandbox_of(L), steps);
    sandbox_check(L);
}

void sandbox_check(lua_State *L)
{
    if (cs_sandbox_of(L)->reached != REACHED_NONE)
        raise_limit(L);
}

int cs_sandbox_raise(lua_State *L, GError *error)
{
    cs_sandbox *s = cs_sandbox_of(L);
    g_clear_error(&s->raised);
    s->raised = error;
    luaL_where(L, 1);
    lua_pushstring(L, error->message);
    lua_concat(L, 2);
    const char *text = lua_tostring(L, -1);
    if (strcmp(text, error->message) != 0) {
        g_free(error->message);
        error->message = g_strdup(text);
    }
    return lua_error(L);
}

int cs_sandbox_resume(lua_State *L, lua_State *co, int n_args, int *n_results)
{
    /* A coroutine counts its instructions by itself: up to HOOK_STEPS of each are never seen. */
    cs_sandbox_charge(L, HOOK_STEPS);
    int status = lua_resume(co, L, n_args, n_results);
    sandbox_check(L);
    if (status != LUA_OK && status != LUA_YIELD) {
        lua_xmove(co, L, 1);
        lua_error(L);
    }
    return status;
}

void cs_sandbox_load(lua_State *L, const char *text, size_t size_bytes, const char *chunk_name)
{
    size_t max_bytes = cs_sandbox_of(L)->limits.source_bytes;
    if (size_bytes > max_bytes)
        luaL_error(L, "%s: source of %I bytes, at most %I are taken", chunk_name,
                   (LUAI_UACINT)size_bytes, (LUAI_UACINT)max_bytes);
    lua_pushfstring(L, "=%s", chunk_name);
    if (luaL_loadbufferx(L, text, size_bytes, lua_tostring(L, -1), "t") != LUA_OK)
        lua_error(L);
    lua_remove(L, -2);
    sandbox_check(L);
}

void *cs_sandbox_context(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(1));
}

static bool fail_limit(const cs_sandbox *s, GError **error)
{
    if (s->reached == REACHED_TIME)
        return cs_fail(error, CS_ERROR_TIMEOUT,
                       "%s%s: stopped after its time limit of %" G_GINT64_FORMAT " ms", s->where,
                       s->name, s->limits.time_us / 1000);
    return cs_fail(error, CS_ERROR_TOO_LARGE,
                   "%s%s: stopped after its limit of %" G_GUINT64_FORMAT " steps", s->where,
                   s->name, s->limits.steps);
}

/* The error value stands on the top of the stack. */
static bool fail_status(cs_sandbox *s, int status, GError **error)
{
    if (s->reached != REACHED_NONE)
        return fail_limit(s, error);
    if (status == LUA_ERRMEM)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "%s: over its memory limit of %zu bytes", s->name,
                       s->limits.memory_bytes);
    if (lua_type(s->lua, -1) != LUA_TSTRING)
        return cs_fail(error, CS_ERROR_INVALID, "%s: raised an error that is a %s, not a string",
                       s->name, luaL_typename(s->lua, -1));
    const char *text = lua_tostring(s->lua, -1);
    if (s->raised && strcmp(s->raised->message, text) == 0) {
        g_propagate_error(error, g_steal_pointer(&s->raised));
        return false;
    }
    g_autofree char *utf8 = g_utf8_make_valid(text, -1);
    return cs_fail(error, CS_ERROR_INVALID, "%s", utf8);
}

bool cs_sandbox_run(cs_sandbox *s, lua_CFunction body, void *data, GError **error)
{
    if (s->running)
        return cs_fail(error, CS_ERROR_FAILED, "%s: run from inside a run", s->name);
    lua_State *L = s->lua;
    s->steps = 0;
    s->deadline_us = cs_now_us() + s->limits.time_us;
    s->reached = REACHED_NONE;
    s->where[0] = '\0';
    lua_sethook(L, hook, LUA_MASKCOUNT, HOOK_STEPS);
    lua_pushcfunction(L, body);
    lua_pushlightuserdata(L, data);
    s->running = true;
    int status = lua_pcall(L, 1, 0, 0);
    s->running = false;
    bool ok = status == LUA_OK || fail_status(s, status, error);
    lua_settop(L, 0);
    g_clear_error(&s->raised);
    return ok;
}

typedef struct {
    const char *text;
    size_t size_bytes;
    const char *name;
    lua_CFunction fn;
    void *context;
} run_args;

static int exec_body(lua_State *L)
{
    const run_args *args = lua_touserdata(L, 1);
    cs_sandbox_load(L, args->text, args->size_bytes, args->name);
    lua_call(L, 0, 0);
    return 0;
}

bool cs_sandbox_exec(cs_sandbox *s, const char *text, size_t size_bytes, const char *chunk_name,
                     GError **error)
{
    run_args args = {.text = text, .size_bytes = size_bytes, .name = chunk_name};
    return cs_sandbox_run(s, exec_body, &args, error);
}

static int register_body(lua_State *L)
{
    const run_args *args = lua_touserdata(L, 1);
    lua_pushlightuserdata(L, args->context);
    lua_pushcclosure(L, args->fn, 1);
    lua_setglobal(L, args->name);
    return 0;
}

bool cs_sandbox_register(cs_sandbox *s, const char *name, lua_CFunction fn, void *context,
                         GError **error)
{
    run_args args = {.name = name, .fn = fn, .context = context};
    return cs_sandbox_run(s, register_body, &args, error);
}

static int open_body(lua_State *L)
{
    sandbox_open_libraries(L);
    return 0;
}

cs_sandbox *cs_sandbox_new(const char *name, const cs_sandbox_limits *limits, GError **error)
{
    g_autoptr(cs_sandbox) s = g_new0(cs_sandbox, 1);
    s->name = g_strdup(name);
    s->limits = *limits;
    s->unbounded = true;
    s->lua = lua_newstate(allocate, s);
    if (!s->lua) {
        cs_fail(error, CS_ERROR_TOO_LARGE, "%s: a Lua state needs more than %zu bytes", name,
                limits->memory_bytes);
        return NULL;
    }
    memcpy(lua_getextraspace(s->lua), &s, sizeof s);
    if (!cs_sandbox_run(s, open_body, NULL, error))
        return NULL;
    s->unbounded = false;
    return g_steal_pointer(&s);
}

void cs_sandbox_free(cs_sandbox *s)
{
    if (!s)
        return;
    if (s->lua)
        lua_close(s->lua);
    g_clear_error(&s->raised);
    g_free(s->name);
    g_free(s);
}

void cs_sandbox_set_limits(cs_sandbox *s, const cs_sandbox_limits *limits)
{
    s->limits = *limits;
}

uint64_t cs_sandbox_steps(const cs_sandbox *s)
{
    return s->steps;
}

size_t cs_sandbox_memory_bytes(const cs_sandbox *s)
{
    return s->used_bytes;
}
