/* The part of the Jinja run time that is written in C: the table P of jinja_runtime.lua. Internal
 * to src/text. Text is UTF-8, but a guard of cs_tokenizer_guard (byte 0xFF) may stand in it and
 * counts as a character. */
#ifndef CS_TEXT_JINJA_HOST_H
#define CS_TEXT_JINJA_HOST_H

#include "base/sandbox.h"

typedef struct {
    const char *template_name; /* borrowed: errors name the innermost line of this chunk */
    GString *scratch;          /* where results are put together; survives a raised error */
    int64_t now_s;             /* for strftime_now; 0: the clock */
} jinja_host;

/* Pushes P. The host outlives the state. May raise. */
void jinja_host_push(lua_State *L, jinja_host *host);

/* For both files of the host. */

jinja_host *jinja_host_of(lua_State *L);
/* An empty scratch. */
GString *jinja_host_scratch(lua_State *L);
/* Charges what was put together since the scratch was taken, and refuses too much of it. */
void jinja_host_check(lua_State *L, const GString *scratch);
/* Pushes the scratch as the result. */
int jinja_host_result(lua_State *L, const GString *scratch);
/* Raises "template:line: sentence". */
int jinja_host_fail(lua_State *L, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Appends Python's repr of a float: the shortest text that reads back as the same number. */
void jinja_append_float(GString *out, double x);

int jinja_json(lua_State *L);

#endif
