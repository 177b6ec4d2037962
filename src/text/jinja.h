/* Jinja templates translated into Lua, to be run in a sandbox. Internal to src/text.
 *
 * The chunk, called with the table of jinja_runtime.lua, returns a function that takes the table of
 * variables and returns the rendered text. Line n of the chunk holds what line n of the template
 * does, so that errors name the template's line. The environment is that of the reference:
 * trim_blocks, lstrip_blocks, loop controls, {% generation %}, no autoescape.
 *
 * How it is translated:
 * - A scope of Jinja is a table s1, s2... whose metatable leads to the scope around it; nil is
 *   "undefined". A template's names are only keys of these tables and never names of Lua.
 * - Text goes piece by piece into a table o1, o2... that is joined at the end.
 * - Every operation is a call of the run time (add, get, truth ...), which knows Python's rules.
 * - `and`, `or`, `x if y else z` must not evaluate what is not taken: they become if statements
 * that stand before the statement they belong to, and leave their value in the table T.
 */
#ifndef CS_TEXT_JINJA_H
#define CS_TEXT_JINJA_H

#include <glib.h>
#include <stddef.h>

/* `name` is for errors: "chat_template.jinja:12: ...". g_free. */
char *jinja_translate(const char *source, size_t size_bytes, const char *name, GError **error);

#endif
