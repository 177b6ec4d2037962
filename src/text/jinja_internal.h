/* Shared by the files of the translator: jinja_lex.c, jinja_expression.c, jinja_statement.c. */
#ifndef CS_TEXT_JINJA_INTERNAL_H
#define CS_TEXT_JINJA_INTERNAL_H

#include "text/jinja.h"

#include <stdbool.h>

typedef enum {
    JINJA_TEXT,
    JINJA_PRINT_BEGIN,
    JINJA_PRINT_END,
    JINJA_BLOCK_BEGIN,
    JINJA_BLOCK_END,
    JINJA_NAME,
    JINJA_STRING,
    JINJA_INTEGER,
    JINJA_FLOAT,
    JINJA_OPERATOR,
    JINJA_END
} jinja_kind;

typedef struct {
    jinja_kind kind;
    int line;
    char *text; /* owned; strings are unescaped */
    size_t size_bytes;
} jinja_token;

/* The tokens, ending with JINJA_END. NULL and *error on a fault. */
GArray *jinja_lex(const char *source, size_t size_bytes, const char *name, GError **error);

/* What is known of an expression's value. */
typedef enum { VALUE_ANY, VALUE_SURE /* not nil */, VALUE_BOOL, VALUE_STRING } value_kind;

/* A translated expression: Lua code without side effects on evaluation order, or `lhs and|or rhs`
 * not yet decided whether for its value or for its truth. */
typedef struct jinja_value {
    const char *code;
    value_kind kind;
    const char *logic; /* NULL, "and", "or" */
    const struct jinja_value *lhs, *rhs;
} jinja_value;

typedef struct {
    const char *name;
    GArray *tokens;
    guint at;
    GString *out;
    int out_line;
    int depth;               /* of nested statements and expressions */
    int next_id;             /* of scopes, loops, buffers, labels */
    int next_t;              /* places of T in the present Lua function */
    int scope, buffer, loop; /* ids of the present ones; loop 0: none */
    GStringChunk *strings;   /* code of expressions, until the end */
    GPtrArray *values;       /* owned jinja_value */
    GError *error;           /* the first fault; translation stops soon after */
} translator;

const jinja_token *jinja_peek(const translator *t);
const jinja_token *jinja_next(translator *t);
bool jinja_is(const translator *t, jinja_kind kind, const char *text);
/* Skips the token if it is there. */
bool jinja_skip(translator *t, jinja_kind kind, const char *text);
void jinja_expect(translator *t, jinja_kind kind, const char *text);
void jinja_fail(translator *t, const char *format, ...) G_GNUC_PRINTF(2, 3);

void jinja_emit(translator *t, const char *format, ...) G_GNUC_PRINTF(2, 3);
const char *jinja_code(translator *t, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* A Lua string literal on one line. */
const char *jinja_quote(translator *t, const char *text, size_t size_bytes);

/* Guards against nesting too deep for Lua's own parser; leave after a true enter. */
bool jinja_enter(translator *t);
void jinja_leave(translator *t);

const jinja_value *jinja_expression(translator *t);
/* a, b, c is a tuple; `conditional`: x if y else z is allowed. */
const jinja_value *jinja_tuple(translator *t, bool conditional);
/* The filters after a tag's name, applied to the code `input`. */
const jinja_value *jinja_filters(translator *t, const jinja_value *input, bool first_is_bare);
/* A call `f(...)` with `caller` as one more keyword argument. */
const jinja_value *jinja_call_with(translator *t, const char *caller);
const jinja_value *jinja_value_new(translator *t, const char *code, value_kind kind);

/* Code for the value; may emit statements. */
const char *jinja_use(translator *t, const jinja_value *v);
/* Code for the value where nil must not be. */
const char *jinja_use_sure(translator *t, const jinja_value *v);
/* Code for its truth as a Lua condition. */
const char *jinja_condition(translator *t, const jinja_value *v);

#endif
