#include "graph/lua_json.h"

#include <lauxlib.h>
#include <math.h>
#include <stdbool.h>

static const char array_mark; /* its address is the registry key of the arrays' metatable */

static int mark_array(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &array_mark);
    lua_setmetatable(L, 1);
    return 1;
}

void lua_json_open(lua_State *L)
{
    lua_newtable(L);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &array_mark);
    lua_pushlightuserdata(L, NULL);
    lua_setglobal(L, "null");
    lua_pushcfunction(L, mark_array);
    lua_setglobal(L, "array");
}

void lua_json_push(lua_State *L, const json_t *value)
{
    luaL_checkstack(L, 8, "JSON value too deep");
    switch (json_typeof(value)) {
    case JSON_OBJECT: {
        const char *key;
        json_t *item;
        lua_createtable(L, 0, (int)json_object_size(value));
        json_object_foreach ((json_t *)value, key, item) {
            lua_json_push(L, item);
            lua_setfield(L, -2, key);
        }
        break;
    }
    case JSON_ARRAY:
        lua_createtable(L, (int)json_array_size(value), 0);
        for (size_t i = 0; i < json_array_size(value); i++) {
            lua_json_push(L, json_array_get(value, i));
            lua_rawseti(L, -2, (lua_Integer)i + 1);
        }
        lua_rawgetp(L, LUA_REGISTRYINDEX, &array_mark);
        lua_setmetatable(L, -2);
        break;
    case JSON_STRING:
        lua_pushlstring(L, json_string_value(value), json_string_length(value));
        break;
    case JSON_INTEGER:
        lua_pushinteger(L, json_integer_value(value));
        break;
    case JSON_REAL:
        lua_pushnumber(L, json_real_value(value));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        lua_pushboolean(L, json_is_true(value));
        break;
    case JSON_NULL:
        lua_pushlightuserdata(L, NULL);
        break;
    }
}

typedef struct {
    lua_State *L;
    lua_json_handler handler;
    void *user;
    const char *fault;
    unsigned nodes;
} reader;

static json_t *refuse(reader *r, const char *fault)
{
    if (!r->fault)
        r->fault = fault;
    return NULL;
}

static json_t *read_value(reader *r, int index, unsigned depth);

static bool is_array(lua_State *L, int index)
{
    if (lua_rawlen(L, index) > 0)
        return true;
    if (!lua_getmetatable(L, index))
        return false;
    lua_rawgetp(L, LUA_REGISTRYINDEX, &array_mark);
    bool marked = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return marked;
}

static json_t *read_array(reader *r, int index, unsigned depth)
{
    json_t *array = json_array();
    lua_Unsigned n = lua_rawlen(r->L, index);
    for (lua_Unsigned i = 1; i <= n; i++) {
        lua_rawgeti(r->L, index, (lua_Integer)i);
        json_t *item = read_value(r, lua_gettop(r->L), depth + 1);
        lua_pop(r->L, 1);
        if (json_array_append_new(array, item) != 0) {
            json_decref(array);
            return refuse(r, "a value that is no JSON in a list");
        }
    }
    return array;
}

static json_t *read_object(reader *r, int index, unsigned depth)
{
    json_t *object = json_object();
    lua_pushnil(r->L);
    while (lua_next(r->L, index)) {
        json_t *item = NULL;
        if (lua_type(r->L, -2) != LUA_TSTRING)
            refuse(r, "a table with keys that are no strings and no list");
        else
            item = read_value(r, lua_gettop(r->L), depth + 1);
        if (!item || json_object_set_new(object, lua_tostring(r->L, -2), item) != 0) {
            lua_pop(r->L, 2);
            json_decref(object);
            return refuse(r, "a key or value that is not UTF-8");
        }
        lua_pop(r->L, 1);
    }
    return object;
}

static json_t *read_number(reader *r, int index)
{
    if (lua_isinteger(r->L, index))
        return json_integer(lua_tointeger(r->L, index));
    double number = lua_tonumber(r->L, index);
    return isfinite(number) ? json_real(number) : refuse(r, "a number that is not finite");
}

static json_t *read_string(reader *r, int index)
{
    size_t n = 0;
    const char *text = lua_tolstring(r->L, index, &n);
    json_t *value = json_stringn(text, n);
    return value ? value : refuse(r, "a string that is not UTF-8");
}

static json_t *read_value(reader *r, int index, unsigned depth)
{
    if (depth > LUA_JSON_DEPTH_MAX || !lua_checkstack(r->L, 6))
        return refuse(r, "a value nested too deep");
    if (++r->nodes > LUA_JSON_NODES_MAX)
        return refuse(r, "too many values");
    switch (lua_type(r->L, index)) {
    case LUA_TBOOLEAN:
        return json_boolean(lua_toboolean(r->L, index));
    case LUA_TNUMBER:
        return read_number(r, index);
    case LUA_TSTRING:
        return read_string(r, index);
    case LUA_TTABLE:
        return is_array(r->L, index) ? read_array(r, index, depth) : read_object(r, index, depth);
    case LUA_TLIGHTUSERDATA:
        return lua_touserdata(r->L, index) ? refuse(r, "a pointer") : json_null();
    default:
        break;
    }
    json_t *value = r->handler ? r->handler(r->L, index, r->user) : NULL;
    return value ? value : refuse(r, "a function, coroutine or object");
}

json_t *lua_json_read(lua_State *L, int index, lua_json_handler handler, void *user,
                      const char **fault)
{
    reader r = {.L = L, .handler = handler, .user = user};
    json_t *value = read_value(&r, lua_absindex(L, index), 0);
    if (!value)
        *fault = r.fault ? r.fault : "a value that is no JSON";
    return value;
}
