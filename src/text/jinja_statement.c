/* Statements, and the chunk around them. */
#include "text/jinja_internal.h"

#include "base/error.h"

#include <string.h>

/* What generated code calls; the names are those of the table that jinja_runtime.lua returns. */
static const char *const runtime_names[] = {
    "str",  "truth", "get",           "item",        "slice", "add",   "sub", "mul",  "div",
    "fdiv", "mod",   "pow",           "neg",         "pos",   "eq",    "lt",  "le",   "gt",
    "ge",   "has",   "call",          "call_method", "iter",  "scope", "def", "bind", "parts",
    "dict", "join",  "set_attribute", "loop_object", "F",     "X",     "U",   "N"};

static void statements(translator *t, const char *const *ends);

static void start_statement(translator *t)
{
    for (int line = jinja_peek(t)->line; t->out_line < line; t->out_line++)
        g_string_append_c(t->out, '\n');
}

static void end_tag(translator *t)
{
    jinja_expect(t, JINJA_BLOCK_END, NULL);
}

static void write_out(translator *t, const char *code)
{
    jinja_emit(t, "n%d=n%d+1 o%d[n%d]=%s", t->buffer, t->buffer, t->buffer, t->buffer, code);
}

/* Opens a new output; its text is join(o, n). Ids of buffers and loops differ, so o7, n7 are only
 * ever one of them. */
static int open_buffer(translator *t)
{
    int outer = t->buffer;
    t->buffer = ++t->next_id;
    jinja_emit(t, "local o%d,n%d={},0", t->buffer, t->buffer);
    return outer;
}

static const char *close_buffer(translator *t, int outer)
{
    const char *code = jinja_code(t, "join(o%d,n%d)", t->buffer, t->buffer);
    t->buffer = outer;
    return code;
}

/* The scope's id; the metatable that leads to the present scope stands in m<id>. */
static int open_scope(translator *t)
{
    int outer = t->scope, id = ++t->next_id;
    jinja_emit(t, "local s%d=scope({__index=s%d})", id, outer);
    t->scope = id;
    return outer;
}

static void print_statement(translator *t)
{
    jinja_next(t);
    const jinja_value *v = jinja_tuple(t, true);
    const char *code = jinja_use(t, v);
    write_out(t, v->kind == VALUE_STRING ? code : jinja_code(t, "str(%s)", code));
    jinja_expect(t, JINJA_PRINT_END, NULL);
}

static void text_statement(translator *t)
{
    const jinja_token *token = jinja_next(t);
    write_out(t, jinja_quote(t, token->text, token->size_bytes));
}

/* if, elif, else: each branch leaves by a goto, so that long chains do not nest. */
static void if_statement(translator *t)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    int label = ++t->next_id;
    jinja_emit(t, "do");
    for (bool again = true; again && !t->error;) {
        const jinja_value *condition = jinja_tuple(t, true);
        end_tag(t);
        jinja_emit(t, "if %s then", jinja_condition(t, condition));
        statements(t, ends);
        jinja_emit(t, "goto e%d end", label);
        start_statement(t);
        again = jinja_skip(t, JINJA_NAME, "elif");
    }
    if (jinja_skip(t, JINJA_NAME, "else")) {
        end_tag(t);
        jinja_emit(t, "do");
        statements(t, (const char *const[]){"endif", NULL});
        jinja_emit(t, "end");
    }
    jinja_expect(t, JINJA_NAME, "endif");
    end_tag(t);
    jinja_emit(t, "::e%d:: end", label);
}

/* Names that a tag assigns to: a, or a, b, or ns.a, with parentheses or without. */
typedef struct {
    GPtrArray *names;      /* const jinja_token * */
    const char *attribute; /* NULL, or of the one name */
} assignee;

static void assignee_clear(assignee *target)
{
    g_ptr_array_unref(target->names);
}

static assignee parse_target(translator *t, bool with_attribute)
{
    assignee target = {.names = g_ptr_array_new()};
    bool parentheses = jinja_skip(t, JINJA_OPERATOR, "(");
    do {
        if (target.names->len > 0 && !jinja_is(t, JINJA_NAME, NULL))
            break;
        g_ptr_array_add(target.names, (gpointer)jinja_peek(t));
        jinja_expect(t, JINJA_NAME, NULL);
        if (with_attribute && target.names->len == 1 && jinja_skip(t, JINJA_OPERATOR, ".")) {
            target.attribute = jinja_peek(t)->text;
            jinja_expect(t, JINJA_NAME, NULL);
            break;
        }
    } while (!t->error && jinja_skip(t, JINJA_OPERATOR, ","));
    if (parentheses)
        jinja_expect(t, JINJA_OPERATOR, ")");
    return target;
}

static const char *variable(translator *t, int scope, const jinja_token *name)
{
    return jinja_code(t, "s%d[%s]", scope, jinja_quote(t, name->text, name->size_bytes));
}

static void assign(translator *t, const assignee *target, int scope, const char *code)
{
    const jinja_token *first = g_ptr_array_index(target->names, 0);
    if (target->attribute) {
        jinja_emit(t, "set_attribute(%s,%s,%s)", variable(t, scope, first),
                   jinja_quote(t, target->attribute, strlen(target->attribute)), code);
    } else if (target->names->len == 1) {
        jinja_emit(t, "%s=%s", variable(t, scope, first), code);
    } else {
        g_autoptr(GString) list = g_string_new(NULL);
        for (guint i = 0; i < target->names->len; i++)
            g_string_append_printf(list, "%s%s", i ? "," : "",
                                   variable(t, scope, g_ptr_array_index(target->names, i)));
        jinja_emit(t, "%s=parts(%s,%u)", list->str, code, target->names->len);
    }
}

/* A list L<id> of n<id> items, scopes made by m<id>, i<id> counting. */
static void for_statement(translator *t)
{
    int id = ++t->next_id, outer_scope = t->scope, outer_loop = t->loop;
    assignee target = parse_target(t, false);
    jinja_expect(t, JINJA_NAME, "in");
    const jinja_value *items = jinja_tuple(t, false);
    jinja_emit(t, "do local L%d,n%d=iter(%s) local m%d={__index=s%d}", id, id, jinja_use(t, items),
               id, outer_scope);
    t->scope = id;
    if (!t->error && jinja_skip(t, JINJA_NAME, "if")) {
        jinja_emit(t, "local f%d,c%d={},0 for i%d=1,n%d do local s%d=scope(m%d)", id, id, id, id,
                   id, id);
        g_autofree char *item = g_strdup_printf("L%d[i%d]", id, id);
        if (!t->error)
            assign(t, &target, id, item);
        const jinja_value *condition = jinja_expression(t);
        jinja_emit(t, "if %s then c%d=c%d+1 f%d[c%d]=L%d[i%d] end end L%d,n%d=f%d,c%d",
                   jinja_condition(t, condition), id, id, id, id, id, id, id, id, id, id);
    }
    if (jinja_is(t, JINJA_NAME, "recursive"))
        jinja_fail(t, "recursive loops are not supported");
    end_tag(t);
    t->loop = id;
    jinja_emit(t, "for i%d=1,n%d do local s%d=scope(m%d)", id, id, id, id);
    g_autofree char *item = g_strdup_printf("L%d[i%d]", id, id);
    if (!t->error)
        assign(t, &target, id, item);
    jinja_emit(t, "do");
    statements(t, (const char *const[]){"else", "endfor", NULL});
    jinja_emit(t, "end ::c%d:: end", id);
    t->loop = outer_loop;
    t->scope = outer_scope;
    if (jinja_skip(t, JINJA_NAME, "else")) {
        end_tag(t);
        jinja_emit(t, "if n%d==0 then", id);
        open_scope(t);
        statements(t, (const char *const[]){"endfor", NULL});
        jinja_emit(t, "end");
        t->scope = outer_scope;
    }
    jinja_expect(t, JINJA_NAME, "endfor");
    end_tag(t);
    jinja_emit(t, "end");
    assignee_clear(&target);
}

/* The filters of a tag, which are applied to what the tag's body gives: they run after it. */
static const jinja_value *late_filters(translator *t, const jinja_value *input, bool first_is_bare)
{
    gsize before = t->out->len;
    const jinja_value *v = jinja_filters(t, input, first_is_bare);
    if (t->out->len != before)
        jinja_fail(t, "the filters of this tag are too complex");
    return v;
}

/* The body up to `end` as a string; filters, read before it, are applied to `input`. */
static void capture(translator *t, const char *end, const char *input)
{
    int outer_scope = open_scope(t), outer_buffer = open_buffer(t);
    statements(t, (const char *const[]){end, NULL});
    t->scope = outer_scope;
    jinja_emit(t, "%s=%s", input, close_buffer(t, outer_buffer));
    jinja_expect(t, JINJA_NAME, end);
    end_tag(t);
}

static const jinja_value *new_place(translator *t)
{
    return jinja_value_new(t, jinja_code(t, "T[%d]", ++t->next_t), VALUE_STRING);
}

static void set_statement(translator *t)
{
    assignee target = parse_target(t, true);
    if (jinja_skip(t, JINJA_OPERATOR, "=")) {
        const jinja_value *v = jinja_tuple(t, true);
        end_tag(t);
        if (!t->error)
            assign(t, &target, t->scope, jinja_use_sure(t, v));
    } else {
        const jinja_value *input = new_place(t);
        const jinja_value *v = late_filters(t, input, false);
        end_tag(t);
        jinja_emit(t, "do");
        capture(t, "endset", input->code);
        jinja_emit(t, "end");
        if (!t->error)
            assign(t, &target, t->scope, jinja_use_sure(t, v));
    }
    assignee_clear(&target);
}

static void filter_statement(translator *t)
{
    const jinja_value *input = new_place(t);
    const jinja_value *v = late_filters(t, input, true);
    end_tag(t);
    jinja_emit(t, "do");
    capture(t, "endfilter", input->code);
    jinja_emit(t, "end");
    write_out(t, jinja_code(t, "str(%s)", jinja_use(t, v)));
}

static void generation_statement(translator *t)
{
    end_tag(t);
    jinja_emit(t, "do");
    int outer = open_scope(t);
    statements(t, (const char *const[]){"endgeneration", NULL});
    t->scope = outer;
    jinja_expect(t, JINJA_NAME, "endgeneration");
    end_tag(t);
    jinja_emit(t, "end");
}

/* The values are of the scope around. */
static void with_statement(translator *t)
{
    jinja_emit(t, "do");
    int outer = open_scope(t), inner = t->scope;
    t->scope = outer;
    for (bool first = true; !t->error && !jinja_is(t, JINJA_BLOCK_END, NULL); first = false) {
        if (!first)
            jinja_expect(t, JINJA_OPERATOR, ",");
        assignee target = parse_target(t, false);
        jinja_expect(t, JINJA_OPERATOR, "=");
        const jinja_value *v = jinja_expression(t);
        if (!t->error)
            assign(t, &target, inner, jinja_use_sure(t, v));
        assignee_clear(&target);
    }
    end_tag(t);
    t->scope = inner;
    statements(t, (const char *const[]){"endwith", NULL});
    t->scope = outer;
    jinja_expect(t, JINJA_NAME, "endwith");
    end_tag(t);
    jinja_emit(t, "end");
}

/* Parameters (a, b=default) after the name, and the body up to `end`; the code of a function stands
 * open before it and is closed behind it. */
static void function_body(translator *t, const char *end)
{
    int outer_scope = t->scope, outer_loop = t->loop, outer_t = t->next_t;
    t->next_t = 0;
    jinja_emit(t, "function(kw,...) local T={}");
    int outer_buffer = open_buffer(t);
    open_scope(t);
    t->loop = 0;
    g_autoptr(GString) names = g_string_new(NULL);
    gsize bind_at = t->out->len;
    if (jinja_skip(t, JINJA_OPERATOR, "(")) {
        for (bool first = true; !t->error && !jinja_is(t, JINJA_OPERATOR, ")"); first = false) {
            if (!first)
                jinja_expect(t, JINJA_OPERATOR, ",");
            const jinja_token *name = jinja_peek(t);
            jinja_expect(t, JINJA_NAME, NULL);
            g_string_append_printf(names, "%s,", jinja_quote(t, name->text, name->size_bytes));
            const char *place = variable(t, t->scope, name);
            if (jinja_skip(t, JINJA_OPERATOR, "=")) {
                jinja_emit(t, "if %s==U then", place);
                jinja_emit(t, "%s=%s end", place, jinja_use_sure(t, jinja_expression(t)));
            }
        }
        jinja_expect(t, JINJA_OPERATOR, ")");
    }
    g_autofree char *bind = g_strdup_printf("bind(s%d,{%s},kw,...) ", t->scope, names->str);
    g_string_insert(t->out, (gssize)bind_at, bind);
    end_tag(t);
    statements(t, (const char *const[]){end, NULL});
    jinja_emit(t, "return %s end", close_buffer(t, outer_buffer));
    t->scope = outer_scope;
    t->loop = outer_loop;
    t->next_t = outer_t;
    jinja_expect(t, JINJA_NAME, end);
    end_tag(t);
}

static void macro_statement(translator *t)
{
    const jinja_token *name = jinja_peek(t);
    jinja_expect(t, JINJA_NAME, NULL);
    jinja_emit(t, "%s=", variable(t, t->scope, name));
    function_body(t, "endmacro");
}

/* {% call f(...) %}body{% endcall %}: the body is a function that f finds as `caller`. */
static void call_statement(translator *t)
{
    if (jinja_is(t, JINJA_OPERATOR, "("))
        jinja_fail(t, "parameters of a call block are not supported");
    const jinja_value *caller = new_place(t);
    const jinja_value *v = jinja_call_with(t, caller->code);
    jinja_emit(t, "%s=", caller->code);
    function_body(t, "endcall");
    write_out(t, jinja_code(t, "str(%s)", jinja_use(t, v)));
}

static void jump_statement(translator *t, const char *what)
{
    if (t->loop == 0)
        jinja_fail(t, "%s outside of a loop", what);
    jinja_emit(t, what[0] == 'b' ? "do break end" : "goto c%d", t->loop);
    end_tag(t);
}

static void statement(translator *t)
{
    static const struct {
        const char *name;
        void (*translate)(translator *t);
    } known[] = {{"if", if_statement},     {"for", for_statement},
                 {"set", set_statement},   {"macro", macro_statement},
                 {"call", call_statement}, {"filter", filter_statement},
                 {"with", with_statement}, {"generation", generation_statement}};
    const jinja_token *name = jinja_next(t);
    if (strcmp(name->text, "break") == 0 || strcmp(name->text, "continue") == 0) {
        jump_statement(t, name->text);
        return;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        if (strcmp(name->text, known[i].name) == 0) {
            known[i].translate(t);
            return;
        }
    }
    t->at--;
    jinja_fail(t, "the tag {%% %s %%} is not known or not expected here", name->text);
}

/* Up to a tag {% end %}, whose name is the next token then; `ends` NULL: up to the template's end.
 */
static void statements(translator *t, const char *const *ends)
{
    if (!jinja_enter(t))
        return;
    while (!t->error) {
        start_statement(t);
        jinja_kind kind = jinja_peek(t)->kind;
        if (kind == JINJA_TEXT) {
            text_statement(t);
        } else if (kind == JINJA_PRINT_BEGIN) {
            print_statement(t);
        } else if (kind == JINJA_END) {
            if (ends)
                jinja_fail(t, "{%% %s %%} is missing", ends[g_strv_length((char **)ends) - 1]);
            break;
        } else {
            jinja_next(t);
            if (ends && jinja_is(t, JINJA_NAME, NULL) && g_strv_contains(ends, jinja_peek(t)->text))
                break;
            statement(t);
        }
    }
    jinja_leave(t);
}

static void chunk(translator *t)
{
    jinja_emit(t, "local R=...");
    for (size_t i = 0; i < G_N_ELEMENTS(runtime_names); i++)
        jinja_emit(t, "local %s=R.%s", runtime_names[i], runtime_names[i]);
    t->scope = ++t->next_id;
    t->buffer = ++t->next_id;
    jinja_emit(t, "return function(s%d) R.begin() local T={} local o%d,n%d={},0", t->scope,
               t->buffer, t->buffer);
    statements(t, NULL);
    jinja_emit(t, "return join(o%d,n%d) end", t->buffer, t->buffer);
}

char *jinja_translate(const char *source, size_t size_bytes, const char *name, GError **error)
{
    GArray *tokens = jinja_lex(source, size_bytes, name, error);
    if (!tokens)
        return NULL;
    translator t = {.name = name,
                    .tokens = tokens,
                    .out = g_string_new(NULL),
                    .out_line = 1,
                    .strings = g_string_chunk_new(4096),
                    .values = g_ptr_array_new_with_free_func(g_free)};
    chunk(&t);
    g_string_chunk_free(t.strings);
    g_ptr_array_unref(t.values);
    g_array_unref(tokens);
    if (t.error)
        g_propagate_error(error, t.error);
    return g_string_free(t.out, t.error != NULL);
}
