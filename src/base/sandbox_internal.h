/* Shared by the files of the sandbox: sandbox.c (limits), sandbox_lib.c (what scripts see),
 * sandbox_match.c (Lua patterns with a step count). */
#ifndef CS_BASE_SANDBOX_INTERNAL_H
#define CS_BASE_SANDBOX_INTERNAL_H

#include "base/sandbox.h"

/* Raises again if a limit was reached: every function that catches errors calls it first. */
void sandbox_check(lua_State *L);

/* Opens the libraries into L. May raise. */
void sandbox_open_libraries(lua_State *L);

/* string.find, match, gmatch and gsub, added to the table on the top of the stack. */
void sandbox_open_match(lua_State *L);

#endif
