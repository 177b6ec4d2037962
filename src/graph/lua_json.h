/* Values between Lua and JSON. Internal to src/graph.
 *
 * JSON null is the global `null`; a JSON array keeps its kind when empty (a metatable marks it);
 * a plain empty Lua table is an object. */
#ifndef CS_GRAPH_LUA_JSON_H
#define CS_GRAPH_LUA_JSON_H

#include <jansson.h>
#include <lua.h>

#define LUA_JSON_DEPTH_MAX 32
#define LUA_JSON_NODES_MAX 100000 /* values in one conversion */

/* Defines the global `null` and array(t), which marks t. May raise. */
void lua_json_open(lua_State *L);

/* Pushes the value. May raise (memory). */
void lua_json_push(lua_State *L, const json_t *value);

/* Looks at values that are not JSON: returns a new json_t, or NULL to refuse. */
typedef json_t *(*lua_json_handler)(lua_State *L, int index, void *user);

/* Converts without raising: NULL, and *fault says what was not convertible (a static sentence). */
json_t *lua_json_read(lua_State *L, int index, lua_json_handler handler, void *user,
                      const char **fault);

#endif
