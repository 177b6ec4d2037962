/* src/base/sandbox: hostile scripts end with an error within their limits, and the sandbox lives
 * on; the replaced library functions answer as Lua's own. */
#include "base/error.h"
#include "base/os.h"
#include "base/sandbox.h"

#include <lauxlib.h>
#include <lualib.h>
#include <string.h>

#define STEPS (2u * 1000 * 1000)
#define MEMORY_BYTES (8u << 20)

static cs_sandbox *new_sandbox(void)
{
    cs_sandbox_limits limits = {.memory_bytes = MEMORY_BYTES,
                                .source_bytes = 64 << 10,
                                .steps = STEPS,
                                .time_us = 300 * G_USEC_PER_SEC};
    g_autoptr(GError) error = NULL;
    cs_sandbox *s = cs_sandbox_new("test", &limits, &error);
    g_assert_no_error(error);
    return s;
}

static void assert_runs(cs_sandbox *s, const char *text)
{
    g_autoptr(GError) error = NULL;
    cs_sandbox_exec(s, text, strlen(text), "ok.lua", &error);
    g_assert_no_error(error);
}

static void assert_fails(cs_sandbox *s, const char *text, cs_error_code code, const char *part)
{
    g_autoptr(GError) error = NULL;
    int64_t start_us = cs_now_us();
    if (cs_sandbox_exec(s, text, strlen(text), "bad.lua", &error))
        g_error("%s: succeeded", text);
    if (!g_error_matches(error, CS_ERROR, (int)code) || !strstr(error->message, part))
        g_error("%s: gave %d %s, expected %d with %s", text, error->code, error->message, code,
                part);
    g_assert_cmpint(cs_now_us() - start_us, <, 10 * G_USEC_PER_SEC);
    g_assert_cmpuint(cs_sandbox_memory_bytes(s), <=, MEMORY_BYTES);
    assert_runs(s, "assert(1 + 1 == 2)");
}

static void test_libraries(void)
{
    g_autoptr(cs_sandbox) s = new_sandbox();
    assert_runs(s, "for _, name in ipairs{'io', 'os', 'debug', 'package', 'load', 'loadfile',"
                   "  'dofile', 'require', 'print', 'collectgarbage', 'warn', 'loadstring'} do"
                   "  assert(_G[name] == nil, name) end "
                   "assert(not string.dump and not string.pack and not coroutine.close)"
                   "assert(getmetatable('') == false)"
                   "assert(('x'):rep(3, '-') == 'x-x-x' and ('a,b'):find(',', 1, true) == 2)"
                   "assert(table.concat({1, 2, 3}, ' ', 2) == '2 3')"
                   "assert(select('#', table.unpack({1, nil, 3}, 1, 3)) == 3)"
                   "local t = {3, 1, 2}; table.sort(t, function(a, b) return a > b end)"
                   "table.insert(t, 9); table.insert(t, 1, 8); assert(table.remove(t, 2) == 3)"
                   "assert(table.concat(t, ',') == '8,2,1,9' and table.remove(t) == 9)"
                   "assert(#table.move({1, 2, 3}, 1, 3, 3, {7, 7}) == 5)"
                   "assert(utf8.len('äö') == 2 and utf8.offset('äö', 2) == 3)"
                   "assert(math.floor(2.5) == 2 and tostring(1e15) == '1e+15')");
}

static void test_protected_calls(void)
{
    g_autoptr(cs_sandbox) s = new_sandbox();
    assert_runs(s, "local ok, e = pcall(error, 'x', 0); assert(ok == false and e == 'x')"
                   "assert(select('#', pcall(function(...) return ... end, 1, nil)) == 3)"
                   "local ok, e = xpcall(function(a) error(a, 0) end,"
                   "  function(e) return e .. '!' end, 'y'); assert(not ok and e == 'y!')"
                   "local ok, a, b = xpcall(function(...) return ... end, error, 4, 5)"
                   "assert(ok and a == 4 and b == 5)"
                   "local co = coroutine.create(function(a) local b = coroutine.yield(a + 1)"
                   "  error({b}) end)"
                   "local ok, v = coroutine.resume(co, 1); assert(ok and v == 2)"
                   "local ok, v = coroutine.resume(co, 7); assert(not ok and v[1] == 7)"
                   "assert(coroutine.status(co) == 'dead')"
                   "local function numbers() for i = 1, 3 do coroutine.yield(i) end end "
                   "local sum = 0; for i in coroutine.wrap(numbers) do sum = sum + i end "
                   "assert(sum == 6)"
                   "local inner = coroutine.wrap(function() return pcall(function()"
                   "  coroutine.yield('mid'); error('late', 0) end) end)"
                   "assert(inner() == 'mid'); local ok, e = inner(); assert(not ok and e == 'late')"
                   "local w = coroutine.wrap(function() error('w') end)"
                   "local ok, e = pcall(w); assert(not ok and e:find('w'))");
}

static void test_script_errors(void)
{
    g_autoptr(cs_sandbox) s = new_sandbox();
    assert_fails(s, "\nlocal x = nil\nx.y = 1", CS_ERROR_INVALID,
                 "bad.lua:3: attempt to index a nil value (local 'x')");
    assert_fails(s, "x = = 1", CS_ERROR_INVALID, "bad.lua:1: unexpected symbol near '='");
    assert_fails(s, "error({})", CS_ERROR_INVALID, "test: raised an error that is a table");
    assert_fails(s, "error('\\xff!')", CS_ERROR_INVALID, "\xef\xbf\xbd!");
    assert_fails(s, "\x1bLua", CS_ERROR_INVALID, "attempt to load a binary chunk");
    assert_fails(s, "setmetatable({}, {__gc = function() end})", CS_ERROR_INVALID, "__gc");
    assert_fails(s,
                 "local t = {} t.t = t local m = {} m.__index = function(t, k) return t[k] end"
                 " return setmetatable({}, m).x",
                 CS_ERROR_INVALID, "stack overflow");
    assert_fails(s, "local s = ('x'):rep(30) s:find(('('):rep(300))", CS_ERROR_INVALID, "captures");
    g_autofree char *deep = g_strnfill(60000, '(');
    assert_fails(s, deep, CS_ERROR_INVALID, "overflow");
    g_autofree char *large = g_strnfill(70000, ' ');
    assert_fails(s, large, CS_ERROR_INVALID, "at most 65536 are taken");
}

/* Each would run for hours, or take all memory, outside the sandbox. */
static void test_limits(void)
{
    static const char *const endless[] = {
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "while true do xpcall(function() while true do end end, function() while true do end end)"
        " end",
        "local function h() while true do end end "
        "local m = {__close = function() local a <close> = setmetatable({}, {__close = h}) h() end}"
        " while true do pcall(function() local a <close> = setmetatable({}, m); h() end) end",
        "local m; local function h() local a <close>, b = setmetatable({}, m), 1;"
        " local c <close> = setmetatable({}, m); while true do end end m = {__close = h} h()",
        "while true do coroutine.wrap(function() while true do end end)() end",
        "while true do coroutine.resume(coroutine.create(function() end)) end",
        "local function f(n) if n == 0 then return end"
        " while true do coroutine.resume(coroutine.create(f), n - 1) end end f(100)",
        "local co = coroutine.wrap(function() while true do coroutine.yield() end end)"
        " while true do co() end",
        "table.move({}, 1, 1 << 60, 1, {})",
        "table.move({}, 1, math.maxinteger - 1, 1)",
        "table.concat({}, '', 1, 1 << 60)",
        "local t = {} for i = 1, 50000 do t[i] = i end while true do table.sort(t) end",
        "local t = {} for i = 1, 50000 do t[i] = i end"
        " while true do table.insert(t, 1, 1) table.remove(t, 1) end",
        "local s = ('a'):rep(100000) s:find('.-.-.-.-.-b')",
        "local s = ('a'):rep(100000) s:match('a*a*a*a*a*b')",
        "local s = ('a'):rep(1 << 20) .. 'b' while true do s:find('a[^b]-c') end",
        "local s = ('a'):rep(1 << 20) while true do s:find(s .. 'b', 1, true) end",
        "local s = ('('):rep(1 << 20) while true do s:find('%b()') end",
        "local s = ('a'):rep(1 << 20) while true do s:gsub('a', '') end",
        "local s = ('a'):rep(1 << 20) while true do local t = s .. 'x' end",
        "local s = ('a'):rep(1 << 20) while true do s:upper() end",
        "local s = ('a'):rep(1 << 20) while true do utf8.len(s) end",
        "local s = ('[' .. ('a'):rep(10000) .. ']') local t = ('b'):rep(100000)"
        " while true do t:find(s) end",
        "local t = setmetatable({}, {__index = function(t, k) return t[k + 1] end})"
        " while true do pcall(function() return t[1] end) end",
        "while true do pcall(string.rep, 'x', 1 << 40) end",
        "local t = {} while true do pcall(function() while true do t[#t + 1] = {} end end) end",
        "goto a ::b:: goto a ::a:: goto b",
    };
#ifdef __SANITIZE_THREAD__
    g_test_skip("ThreadSanitizer does not survive a million errors that longjmp past it");
    return;
#endif
    g_autoptr(cs_sandbox) s = new_sandbox();
    for (size_t i = 0; i < G_N_ELEMENTS(endless); i++)
        assert_fails(s, endless[i], CS_ERROR_TOO_LARGE, "after its limit of 2000000 steps");
    assert_fails(s, "\nwhile true do end", CS_ERROR_TOO_LARGE, "bad.lua:2: test: stopped");
}

static void test_memory(void)
{
    static const char *const bombs[] = {
        "local s = 'x' while true do s = s .. s end",
        "local function f() return 1 + f() end f()",
        "local s = ('x'):rep(1 << 30)",
        "local s = ('x'):rep(1 << 10, ('y'):rep(1 << 20))",
        "local t = {} for i = 1, 1 << 24 do t[i] = i end",
        "return ('x'):rep(1 << 22):gsub('x', '%0%0%0%0')",
        "local t = {} for i = 1, 1000 do t[i] = ('x'):rep(1 << 20) .. i end",
        "local s = ('x'):rep(1 << 20) local t = {} for i = 1, 99 do t[i] = s end"
        " return table.concat(t)",
    };
    g_autoptr(cs_sandbox) s = new_sandbox();
    for (size_t i = 0; i < G_N_ELEMENTS(bombs); i++)
        assert_fails(s, bombs[i], CS_ERROR_TOO_LARGE, "test: over its memory limit of 8388608");
    assert_runs(s, "assert(not pcall(string.rep, 'x', 1 << 30))");
    cs_sandbox_limits tiny = {.memory_bytes = 1000, .steps = 1000, .time_us = 1000};
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_sandbox_new("tiny", &tiny, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
}

static void test_every_allocation_fails(void)
{
    for (size_t bytes = 1000; bytes < 40000; bytes += 97) {
        cs_sandbox_limits limits = {.memory_bytes = bytes,
                                    .source_bytes = 1000,
                                    .steps = 100000,
                                    .time_us = G_USEC_PER_SEC};
        g_autoptr(GError) error = NULL;
        g_autoptr(cs_sandbox) s = cs_sandbox_new("small", &limits, &error);
        if (s) {
            const char *text = "local t = {} for i = 1, 100 do t[i] = ('x'):rep(i):gsub('x', 'yy')"
                               " pcall(coroutine.wrap(function() t[i + 1] = {} end)) end";
            cs_sandbox_exec(s, text, strlen(text), "t.lua", &error);
        }
        if (error)
            g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
    }
}

static void test_time(void)
{
    g_autoptr(cs_sandbox) s = new_sandbox();
    cs_sandbox_limits limits = {.memory_bytes = MEMORY_BYTES,
                                .source_bytes = 1000,
                                .steps = UINT64_MAX / 4,
                                .time_us = 20 * 1000};
    cs_sandbox_set_limits(s, &limits);
    assert_fails(s, "while true do pcall(function() while true do end end) end", CS_ERROR_TIMEOUT,
                 "bad.lua:1: test: stopped after its time limit of 20 ms");
}

typedef struct {
    int64_t sum;
    int calls;
} host_state;

static int host_add(lua_State *L)
{
    host_state *state = cs_sandbox_context(L);
    state->sum += luaL_checkinteger(L, 1);
    state->calls++;
    lua_pushinteger(L, state->sum);
    return 1;
}

static int host_refuse(lua_State *L)
{
    GError *error = NULL;
    cs_fail(&error, CS_ERROR_NOT_FOUND, "no such task");
    return cs_sandbox_raise(L, error);
}

static int host_await(lua_State *L)
{
    return lua_yield(L, lua_gettop(L));
}

static int call_serve(lua_State *L)
{
    int64_t *result = lua_touserdata(L, 1);
    lua_getglobal(L, "serve");
    lua_pushinteger(L, *result);
    lua_call(L, 1, 1);
    *result = luaL_checkinteger(L, -1);
    return 0;
}

/* A coroutine kept across two runs. */
static int start_coroutine(lua_State *L)
{
    lua_State *co = lua_newthread(L);
    lua_setfield(L, LUA_REGISTRYINDEX, "test.co");
    lua_getglobal(co, "serve");
    lua_pushinteger(co, 5);
    int n_results = 0;
    g_assert_cmpint(cs_sandbox_resume(L, co, 1, &n_results), ==, LUA_YIELD);
    g_assert_cmpint(n_results, ==, 1);
    g_assert_cmpint(lua_tointeger(co, -1), ==, 6);
    lua_pop(co, 1);
    return 0;
}

static int finish_coroutine(lua_State *L)
{
    int64_t *result = lua_touserdata(L, 1);
    lua_getfield(L, LUA_REGISTRYINDEX, "test.co");
    lua_State *co = lua_tothread(L, -1);
    lua_pushinteger(co, *result);
    int n_results = 0;
    g_assert_cmpint(cs_sandbox_resume(L, co, 1, &n_results), ==, LUA_OK);
    *result = lua_tointeger(co, -1);
    return 0;
}

static void test_host(void)
{
    g_autoptr(cs_sandbox) s = new_sandbox();
    g_autoptr(GError) error = NULL;
    host_state state = {0};
    cs_sandbox_register(s, "add", host_add, &state, &error);
    cs_sandbox_register(s, "refuse", host_refuse, NULL, &error);
    cs_sandbox_register(s, "await", host_await, NULL, &error);
    g_assert_no_error(error);
    assert_runs(s, "function serve(n) return add(n) * 2 end");
    int64_t result = 21;
    g_assert_true(cs_sandbox_run(s, call_serve, &result, &error));
    g_assert_cmpint(result, ==, 42);
    g_assert_cmpint(state.calls, ==, 1);
    assert_runs(s, "local ok, e = pcall(refuse); assert(not ok and e:find('no such task'))");
    assert_fails(s, "\n refuse()", CS_ERROR_NOT_FOUND, "bad.lua:2: no such task");
    assert_fails(s, "add('x')", CS_ERROR_INVALID, "number expected, got string");

    assert_runs(s, "function serve(n) local x = await(n + 1) return x * 3 end");
    g_assert_true(cs_sandbox_run(s, start_coroutine, NULL, &error));
    result = 4;
    g_assert_true(cs_sandbox_run(s, finish_coroutine, &result, &error));
    g_assert_cmpint(result, ==, 12);
    assert_runs(s, "function serve(n) while true do end end");
    g_assert_false(cs_sandbox_run(s, start_coroutine, NULL, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
}

/* Runs `chunk(subject, pattern)` in plain Lua and returns its one string. */
static char *plain_lua(lua_State *L, const char *chunk, const char *subject, const char *pattern)
{
    g_assert_cmpint(luaL_loadstring(L, chunk), ==, LUA_OK);
    lua_pushstring(L, subject);
    lua_pushstring(L, pattern);
    g_assert_cmpint(lua_pcall(L, 2, 1, 0), ==, LUA_OK);
    char *text = g_strdup(lua_tostring(L, -1));
    lua_settop(L, 0);
    return text;
}

typedef struct {
    const char *chunk, *subject, *pattern;
    char *result;
} match_args;

static int call_chunk(lua_State *L)
{
    match_args *args = lua_touserdata(L, 1);
    cs_sandbox_load(L, args->chunk, strlen(args->chunk), "m");
    lua_pushstring(L, args->subject);
    lua_pushstring(L, args->pattern);
    lua_call(L, 2, 1);
    args->result = g_strdup(lua_tostring(L, -1));
    return 0;
}

/* Every pattern function against Lua's own, on random patterns and subjects. */
static void test_patterns(void)
{
    static const char chunk[] =
        "local s, p = ...; local out = {}"
        "local function add(...) for i = 1, select('#', ...) do"
        "  out[#out + 1] = tostring((select(i, ...))) end out[#out + 1] = '/' end "
        "local function try(f, ...) local r = table.pack(pcall(f, ...))"
        "  if r[1] then add(table.unpack(r, 1, r.n)) else add('error') end end "
        "try(string.find, s, p) try(string.find, s, p, -2) try(string.find, s, p, 2, true)"
        "try(string.match, s, p) try(string.match, s, p, 3)"
        "try(string.gsub, s, p, '<%0%1>') try(string.gsub, s, p, '%%', 2)"
        "try(string.gsub, s, p, {a = 'A', b = false, ab = 7})"
        "try(string.gsub, s, p, function(...) add(...) if ... == 'b' then return 'B' end end)"
        "try(function() for a, b in string.gmatch(s, p) do add(a, b) end end)"
        "return table.concat(out, ' ')";
    static const char *const pieces[] = {
        "a",  "b",      ".",   "%a",    "%d", "[ab]", "[^a]", "[a-c]", "*",      "+",      "-",
        "?",  "(",      ")",   "()",    "^",  "$",    "%1",   "%b()",  "%f[%w]", "%f[^b]", "%s",
        "%S", "[%a%-]", "[]]", "[^]a]", "%.", "x",    "%",    "[",     "%2",     "1"};
    static const char *const letters[] = {"a", "b", "ab", "c", "1", " ", "(", ")", "x", "."};
    lua_State *L = luaL_newstate();
    luaL_openlibs(L);
    g_autoptr(cs_sandbox) s = new_sandbox();
    g_autoptr(GRand) random = g_rand_new_with_seed(11);
    for (int i = 0; i < 4000; i++) {
        g_autoptr(GString) pattern = g_string_new(NULL);
        g_autoptr(GString) subject = g_string_new(NULL);
        for (int n = g_rand_int_range(random, 0, 8); n > 0; n--)
            g_string_append(pattern, pieces[g_rand_int_range(random, 0, G_N_ELEMENTS(pieces))]);
        for (int n = g_rand_int_range(random, 0, 10); n > 0; n--)
            g_string_append(subject, letters[g_rand_int_range(random, 0, G_N_ELEMENTS(letters))]);
        match_args args = {chunk, subject->str, pattern->str, NULL};
        g_autoptr(GError) error = NULL;
        cs_sandbox_run(s, call_chunk, &args, &error);
        g_assert_no_error(error);
        g_autofree char *ours = args.result;
        g_autofree char *expected = plain_lua(L, chunk, subject->str, pattern->str);
        if (strcmp(ours, expected) != 0)
            g_error("pattern %s on %s: %s, expected %s", pattern->str, subject->str, ours,
                    expected);
    }
    lua_close(L);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/base/sandbox/libraries", test_libraries);
    g_test_add_func("/base/sandbox/protected-calls", test_protected_calls);
    g_test_add_func("/base/sandbox/script-errors", test_script_errors);
    g_test_add_func("/base/sandbox/limits", test_limits);
    g_test_add_func("/base/sandbox/memory", test_memory);
    g_test_add_func("/base/sandbox/every-allocation-fails", test_every_allocation_fails);
    g_test_add_func("/base/sandbox/time", test_time);
    g_test_add_func("/base/sandbox/host", test_host);
    g_test_add_func("/base/sandbox/patterns", test_patterns);
    return g_test_run();
}
