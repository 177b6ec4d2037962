/* json.dumps as transformers' chat templates have it, over the values of jinja_runtime.lua. */
#include "text/jinja_host.h"

#include "text/utf8.h"

#include <lauxlib.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Nesting; Python's own limit is about 1000. */
#define MAX_DEPTH 150

typedef struct {
    lua_State *L;
    GString *out;
    const char *indent; /* NULL: one line */
    const char *between, *after_key;
    bool ascii, sort_keys;
} dumper;

void jinja_append_float(GString *out, double x)
{
    char text[40];
    if (isnan(x) || isinf(x)) {
        g_string_append(out, isnan(x) ? "nan" : x < 0 ? "-inf" : "inf");
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        g_snprintf(text, sizeof text, "%.*e", digits - 1, x);
        if (g_ascii_strtod(text, NULL) == x)
            break;
    }
    /* d.ddde+xx: Python writes exponents below -4 and from 16 on, and plain numbers between. */
    char *e = strchr(text, 'e');
    int exponent = atoi(e + 1);
    *e = '\0';
    if (exponent < -4 || exponent >= 16) {
        g_string_append_printf(out, "%se%c%02d", text, exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    int decimals = (int)strlen(text) - (x < 0 || signbit(x) ? 1 : 0) - 2 - exponent;
    g_string_append_printf(out, "%.*f", MAX(decimals, 1), x);
}

static void dump_string(dumper *d, const char *text, size_t size_bytes)
{
    static const char escaped[] = "\"\\\n\r\t\b\f", names[] = "\"\\nrtbf";
    const char *end = text + size_bytes;
    cs_sandbox_charge(d->L, size_bytes / 16);
    g_string_append_c(d->out, '"');
    for (const char *p = text; p < end;) {
        const char *name = *p ? strchr(escaped, *p) : NULL;
        if (name) {
            g_string_append_printf(d->out, "\\%c", names[name - escaped]);
            p++;
        } else if ((uint8_t)*p < 0x20) {
            g_string_append_printf(d->out, "\\u%04x", (unsigned)(uint8_t)*p++);
        } else if (d->ascii && (uint8_t)*p >= 0x80) {
            utf8_verdict verdict;
            size_t n = utf8_measure((const uint8_t *)p, (size_t)(end - p), &verdict);
            gunichar c = verdict == UTF8_VALID ? utf8_decode(p, &n) : 0xFFFD;
            if (c >= 0x10000)
                g_string_append_printf(d->out, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
                                       0xDC00 + ((c - 0x10000) & 0x3FF));
            else
                g_string_append_printf(d->out, "\\u%04x", c);
            p += n;
        } else {
            g_string_append_c(d->out, *p++);
        }
    }
    g_string_append_c(d->out, '"');
}

static void new_line(dumper *d, int depth)
{
    if (!d->indent)
        return;
    g_string_append_c(d->out, '\n');
    for (int i = 0; i < depth; i++)
        g_string_append(d->out, d->indent);
    jinja_host_check(d->L, d->out);
}

static void dump(dumper *d, int at, int depth);

static void dump_number(dumper *d, int at)
{
    if (lua_isinteger(d->L, at)) {
        g_string_append_printf(d->out, "%lld", (long long)lua_tointeger(d->L, at));
        return;
    }
    double x = lua_tonumber(d->L, at);
    if (isnan(x) || isinf(x))
        g_string_append(d->out, isnan(x) ? "NaN" : x < 0 ? "-Infinity" : "Infinity");
    else
        jinja_append_float(d->out, x);
}

static void dump_list(dumper *d, int at, int depth)
{
    lua_getfield(d->L, at, "n");
    lua_Integer n = lua_tointeger(d->L, -1);
    lua_pop(d->L, 1);
    g_string_append_c(d->out, '[');
    for (lua_Integer i = 1; i <= n; i++) {
        if (i > 1)
            g_string_append(d->out, d->between);
        new_line(d, depth + 1);
        lua_rawgeti(d->L, at, i);
        dump(d, lua_gettop(d->L), depth + 1);
        lua_pop(d->L, 1);
    }
    if (n > 0)
        new_line(d, depth);
    g_string_append_c(d->out, ']');
}

/* Keys are strings; numbers, booleans and None become some. */
static void dump_key(dumper *d, int at)
{
    switch (lua_type(d->L, at)) {
    case LUA_TSTRING: {
        size_t size_bytes;
        const char *text = lua_tolstring(d->L, at, &size_bytes);
        dump_string(d, text, size_bytes);
        break;
    }
    case LUA_TBOOLEAN:
        g_string_append(d->out, lua_toboolean(d->L, at) ? "\"true\"" : "\"false\"");
        break;
    case LUA_TNUMBER:
        g_string_append_c(d->out, '"');
        dump_number(d, at);
        g_string_append_c(d->out, '"');
        break;
    default:
        g_string_append(d->out, "\"null\"");
    }
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Leaves the sorted keys as a list on the stack, in place of the one at the top. */
static void sort_keys(dumper *d, lua_Integer n)
{
    lua_State *L = d->L;
    int keys = lua_gettop(L);
    cs_sandbox_charge(L, (uint64_t)n * 4);
    const char **sorted = lua_newuserdatauv(L, (size_t)n * sizeof *sorted + 1, 0);
    for (lua_Integer i = 0; i < n; i++) {
        if (lua_rawgeti(L, keys, i + 1) != LUA_TSTRING)
            jinja_host_fail(L, "tojson can only sort keys that are str");
        sorted[i] = lua_tostring(L, -1); /* kept alive by the list */
        lua_pop(L, 1);
    }
    qsort(sorted, (size_t)n, sizeof *sorted, compare_keys);
    lua_createtable(L, (int)n, 0);
    for (lua_Integer i = 0; i < n; i++) {
        lua_pushstring(L, sorted[i]);
        lua_rawseti(L, -2, i + 1);
    }
    lua_replace(L, keys);
    lua_settop(L, keys);
}

static void dump_dict(dumper *d, int at, int depth)
{
    lua_State *L = d->L;
    lua_getfield(L, at, "m");
    int map = lua_gettop(L);
    lua_getfield(L, at, "k");
    int keys = lua_gettop(L);
    lua_getfield(L, keys, "n");
    lua_Integer n = lua_tointeger(L, -1);
    lua_pop(L, 1);
    if (d->sort_keys)
        sort_keys(d, n);
    g_string_append_c(d->out, '{');
    for (lua_Integer i = 1; i <= n; i++) {
        if (i > 1)
            g_string_append(d->out, d->between);
        new_line(d, depth + 1);
        lua_rawgeti(L, keys, i);
        dump_key(d, lua_gettop(L));
        g_string_append(d->out, d->after_key);
        lua_rawget(L, map);
        dump(d, lua_gettop(L), depth + 1);
        lua_pop(L, 1);
    }
    if (n > 0)
        new_line(d, depth);
    g_string_append_c(d->out, '}');
    lua_settop(L, map - 1);
}

static void dump_markup(dumper *d, int at)
{
    size_t size_bytes;
    lua_getfield(d->L, at, "s");
    const char *text = lua_tolstring(d->L, -1, &size_bytes);
    dump_string(d, text, size_bytes);
    lua_pop(d->L, 1);
}

static void dump_table(dumper *d, int at, int depth)
{
    lua_getfield(d->L, at, "t");
    const char *t = lua_tostring(d->L, -1);
    lua_pop(d->L, 1); /* t stays alive in the table */
    if (t && (strcmp(t, "list") == 0 || strcmp(t, "tuple") == 0))
        dump_list(d, at, depth);
    else if (t && strcmp(t, "dict") == 0)
        dump_dict(d, at, depth);
    else if (t && strcmp(t, "none") == 0)
        g_string_append(d->out, "null");
    else if (t && strcmp(t, "markup") == 0)
        dump_markup(d, at);
    else
        jinja_host_fail(d->L, "tojson cannot write a %s", t ? t : "table");
}

static void dump(dumper *d, int at, int depth)
{
    if (depth > MAX_DEPTH)
        jinja_host_fail(d->L, "tojson: nested more than %d deep", MAX_DEPTH);
    luaL_checkstack(d->L, 10, "tojson");
    cs_sandbox_charge(d->L, 1);
    switch (lua_type(d->L, at)) {
    case LUA_TSTRING: {
        size_t size_bytes;
        const char *text = lua_tolstring(d->L, at, &size_bytes);
        dump_string(d, text, size_bytes);
        break;
    }
    case LUA_TNUMBER:
        dump_number(d, at);
        break;
    case LUA_TBOOLEAN:
        g_string_append(d->out, lua_toboolean(d->L, at) ? "true" : "false");
        break;
    case LUA_TTABLE:
        dump_table(d, at, depth);
        break;
    default:
        jinja_host_fail(d->L, "tojson cannot write a %s", luaL_typename(d->L, at));
    }
    jinja_host_check(d->L, d->out);
}

/* json(value, ascii, indent, between, after_key, sort_keys) */
int jinja_json(lua_State *L)
{
    dumper d = {.L = L,
                .out = jinja_host_scratch(L),
                .ascii = lua_toboolean(L, 2),
                .indent = luaL_optstring(L, 3, NULL),
                .between = luaL_checkstring(L, 4),
                .after_key = luaL_checkstring(L, 5),
                .sort_keys = lua_toboolean(L, 6)};
    dump(&d, 1, 0);
    return jinja_host_result(L, d.out);
}
