/* What a script of the sandbox sees: Lua's own libraries cut down to a list, and replacements for
 * the functions that would escape a limit:
 *
 * - pcall, xpcall, coroutine.resume and wrap would catch the error of a reached limit. xpcall's
 *   handler runs after the stack is unwound, since inside the hook no hook would stop it.
 * - setmetatable would take a __gc, which Lua runs without hooks.
 * - string.rep and table.* loop in C over counts that a script names; they are charged first, and
 *   table.* refuses tables whose length or elements are answered by metamethods.
 */
#include "base/sandbox_internal.h"

#include <lauxlib.h>
#include <lualib.h>
#include <math.h>
#include <string.h>

/* What coroutine.create costs: the state it allocates, and steps it may take unseen. */
#define COROUTINE_STEPS 300

#define CALLS_AROUND_PCALL 500

static int finish_pcall(lua_State *L, int status, lua_KContext context)
{
    sandbox_check(L);
    if (status != LUA_OK && status != LUA_YIELD) {
        lua_pushboolean(L, 0);
        lua_insert(L, -2);
        return 2;
    }
    return lua_gettop(L);
}

/* In a coroutine a caught error frees the C stack and keeps the Lua stack, so a row of pcalls can
 * nest 100,000 deep; unwinding it takes time in the square of that, and no step. */
static void check_depth(lua_State *L)
{
    lua_Debug frame;
    if (lua_getstack(L, CALLS_AROUND_PCALL, &frame))
        luaL_error(L, "pcall inside more than %d calls", CALLS_AROUND_PCALL);
}

static int base_pcall(lua_State *L)
{
    luaL_checkany(L, 1);
    check_depth(L);
    lua_pushboolean(L, 1);
    lua_insert(L, 1);
    return finish_pcall(L, lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 0, 0, finish_pcall), 0);
}

/* Stack: handler, true, results...; or handler, true, error. */
static int finish_xpcall(lua_State *L, int status, lua_KContext context)
{
    sandbox_check(L);
    if (status == LUA_OK || status == LUA_YIELD)
        return lua_gettop(L) - 1;
    lua_pushboolean(L, 0);
    lua_pushvalue(L, 1);
    lua_pushvalue(L, -3);
    lua_call(L, 1, 1);
    return 2;
}

static int base_xpcall(lua_State *L)
{
    luaL_checktype(L, 2, LUA_TFUNCTION);
    check_depth(L);
    lua_pushvalue(L, 1);
    lua_remove(L, 1); /* handler, arguments..., function */
    lua_insert(L, 2);
    lua_pushboolean(L, 1);
    lua_insert(L, 2);
    return finish_xpcall(L, lua_pcallk(L, lua_gettop(L) - 3, LUA_MULTRET, 0, 0, finish_xpcall), 0);
}

static int base_setmetatable(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_argexpected(L, lua_isnil(L, 2) || lua_istable(L, 2), 2, "nil or table");
    if (luaL_getmetafield(L, 1, "__metatable") != LUA_TNIL)
        return luaL_error(L, "cannot change a protected metatable");
    if (lua_istable(L, 2)) {
        lua_pushliteral(L, "__gc");
        if (lua_rawget(L, 2) != LUA_TNIL)
            return luaL_error(L, "__gc is not allowed in the sandbox");
        lua_pop(L, 1);
    }
    lua_settop(L, 2);
    lua_setmetatable(L, 1);
    return 1;
}

static int string_rep(lua_State *L)
{
    size_t size_bytes, separator_bytes;
    luaL_checklstring(L, 1, &size_bytes);
    lua_Integer n = luaL_checkinteger(L, 2);
    luaL_optlstring(L, 3, "", &separator_bytes);
    lua_settop(L, 3);
    if (n > 0 && size_bytes + separator_bytes == 0) {
        lua_pushliteral(L, "");
        return 1;
    }
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, 3, 1);
    return 1;
}

/* Charges for the string in argument 1, then calls the function it replaces. */
static int by_string_size(lua_State *L)
{
    size_t size_bytes;
    luaL_checklstring(L, 1, &size_bytes);
    cs_sandbox_charge(L, size_bytes / 8);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
}

static void refuse_metamethods(lua_State *L, int arg)
{
    static const char *const refused[] = {"__len", "__index", "__newindex"};
    luaL_checktype(L, arg, LUA_TTABLE);
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
        if (luaL_getmetafield(L, arg, refused[i]) != LUA_TNIL)
            luaL_argerror(L, arg, "table without __len, __index and __newindex expected");
    }
}

static int call_original(lua_State *L, double steps)
{
    cs_sandbox_charge(L, steps < 0 ? 0 : steps > 1e18 ? (uint64_t)1e18 : (uint64_t)steps);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
}

static int table_insert_or_remove(lua_State *L)
{
    refuse_metamethods(L, 1);
    double n = (double)lua_rawlen(L, 1);
    int is_integer = 0;
    lua_Integer at = lua_tointegerx(L, 2, &is_integer);
    bool appends = lua_toboolean(L, lua_upvalueindex(2)) && lua_gettop(L) <= 2;
    return call_original(L, appends || !is_integer ? 0 : (n - (double)at) / 2);
}

static int table_sort(lua_State *L)
{
    refuse_metamethods(L, 1);
    double n = (double)lua_rawlen(L, 1);
    return call_original(L, n * log2(n + 2));
}

/* concat(t, separator, i, j) and unpack(t, i, j); upvalue 2 is the argument that is i. */
static int table_by_range(lua_State *L)
{
    int first = (int)lua_tointeger(L, lua_upvalueindex(2));
    refuse_metamethods(L, 1);
    double i = (double)luaL_optinteger(L, first, 1);
    double j = (double)luaL_optinteger(L, first + 1, (lua_Integer)lua_rawlen(L, 1));
    return call_original(L, (j - i) / 2);
}

static int table_move(lua_State *L)
{
    refuse_metamethods(L, 1);
    if (!lua_isnoneornil(L, 5))
        refuse_metamethods(L, 5);
    double from = (double)luaL_checkinteger(L, 2);
    double to = (double)luaL_checkinteger(L, 3);
    return call_original(L, (to - from) / 2);
}

static int coroutine_create(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    cs_sandbox_charge(L, COROUTINE_STEPS);
    lua_State *co = lua_newthread(L);
    lua_pushvalue(L, 1);
    lua_xmove(L, co, 1);
    return 1;
}

/* Arguments stand on the top of L; true and the results, or false and the error, replace them. */
static bool resume(lua_State *L, lua_State *co, int n_args, int *n_results)
{
    cs_sandbox_charge(L, 1);
    if (!lua_checkstack(co, n_args)) {
        lua_pushliteral(L, "too many arguments to resume");
        return false;
    }
    lua_xmove(L, co, n_args);
    int status = lua_resume(co, L, n_args, n_results);
    sandbox_check(L);
    if (status != LUA_OK && status != LUA_YIELD) {
        lua_xmove(co, L, 1);
        return false;
    }
    if (!lua_checkstack(L, *n_results + 1)) {
        lua_pop(co, *n_results);
        lua_pushliteral(L, "too many results to resume");
        return false;
    }
    lua_xmove(co, L, *n_results);
    return true;
}

static int coroutine_resume(lua_State *L)
{
    lua_State *co = lua_tothread(L, 1);
    luaL_argexpected(L, co, 1, "coroutine");
    int n_results = 0;
    bool ok = resume(L, co, lua_gettop(L) - 1, &n_results);
    if (!ok)
        n_results = 1;
    lua_pushboolean(L, ok);
    lua_insert(L, -(n_results + 1));
    return n_results + 1;
}

static int wrapped(lua_State *L)
{
    lua_State *co = lua_tothread(L, lua_upvalueindex(1));
    int n_results = 0;
    if (!resume(L, co, lua_gettop(L), &n_results))
        return lua_error(L);
    return n_results;
}

static int coroutine_wrap(lua_State *L)
{
    coroutine_create(L);
    lua_pushcclosure(L, wrapped, 1);
    return 1;
}

static const char *const base_names[] = {
    "_VERSION", "assert", "error",  "getmetatable", "ipairs",   "next",     "pairs", "rawequal",
    "rawget",   "rawlen", "rawset", "select",       "tonumber", "tostring", "type",  NULL};
static const char *const string_names[] = {"byte",    "char", "format", "len", "lower",
                                           "reverse", "sub",  "upper",  NULL};
static const char *const table_names[] = {"pack", NULL};
static const char *const utf8_names[] = {"char", "charpattern", "codepoint", "codes", NULL};
static const char *const coroutine_names[] = {"isyieldable", "running", "status", "yield", NULL};

/* Pushes a new table with the listed members of the table on the top of the stack, under which it
 * goes; the original stays on the top for the replacements to refer to. */
static void select_members(lua_State *L, const char *const *names)
{
    lua_newtable(L);
    for (size_t i = 0; names[i]; i++) {
        lua_getfield(L, -2, names[i]);
        lua_setfield(L, -2, names[i]);
    }
    lua_insert(L, -2);
}

/* Stack: new table, original. Sets new[name] = fn with upvalues original[name] and argument. */
static void replace(lua_State *L, const char *name, lua_CFunction fn, lua_Integer argument)
{
    lua_getfield(L, -1, name);
    if (argument)
        lua_pushinteger(L, argument);
    else
        lua_pushnil(L);
    lua_pushcclosure(L, fn, 2);
    lua_setfield(L, -3, name);
}

static void open_base(lua_State *L)
{
    luaL_requiref(L, LUA_GNAME, luaopen_base, 0);
    select_members(L, base_names);
    replace(L, "pcall", base_pcall, 0);
    replace(L, "xpcall", base_xpcall, 0);
    replace(L, "setmetatable", base_setmetatable, 0);
    lua_pop(L, 1);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "_G");
    lua_rawseti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
}

/* Strings share one metatable; a script may not reach it. */
static void open_string(lua_State *L)
{
    luaL_requiref(L, LUA_STRLIBNAME, luaopen_string, 0);
    select_members(L, string_names);
    replace(L, "rep", string_rep, 0);
    lua_pop(L, 1);
    sandbox_open_match(L);
    lua_pushliteral(L, "");
    lua_getmetatable(L, -1);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_pop(L, 2);
    lua_setglobal(L, LUA_STRLIBNAME);
}

static void open_table(lua_State *L)
{
    luaL_requiref(L, LUA_TABLIBNAME, luaopen_table, 0);
    select_members(L, table_names);
    replace(L, "insert", table_insert_or_remove, 1);
    replace(L, "remove", table_insert_or_remove, 0);
    replace(L, "sort", table_sort, 0);
    replace(L, "concat", table_by_range, 3);
    replace(L, "unpack", table_by_range, 2);
    replace(L, "move", table_move, 0);
    lua_pop(L, 1);
    lua_setglobal(L, LUA_TABLIBNAME);
}

static void open_utf8(lua_State *L)
{
    luaL_requiref(L, LUA_UTF8LIBNAME, luaopen_utf8, 0);
    select_members(L, utf8_names);
    replace(L, "len", by_string_size, 0);
    replace(L, "offset", by_string_size, 0);
    lua_pop(L, 1);
    lua_setglobal(L, LUA_UTF8LIBNAME);
}

static void open_coroutine(lua_State *L)
{
    luaL_requiref(L, LUA_COLIBNAME, luaopen_coroutine, 0);
    select_members(L, coroutine_names);
    replace(L, "create", coroutine_create, 0);
    replace(L, "resume", coroutine_resume, 0);
    replace(L, "wrap", coroutine_wrap, 0);
    lua_pop(L, 1);
    lua_setglobal(L, LUA_COLIBNAME);
}

void sandbox_open_libraries(lua_State *L)
{
    open_base(L);
    open_string(L);
    open_table(L);
    open_utf8(L);
    open_coroutine(L);
    luaL_requiref(L, LUA_MATHLIBNAME, luaopen_math, 0);
    lua_setglobal(L, LUA_MATHLIBNAME);
}
