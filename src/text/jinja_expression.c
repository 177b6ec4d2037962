/* Expressions, in the order of Jinja's own grammar: x if c else y, or, and, not, comparisons, + -,
 * ~,
 * * / // %, **, unary, then .name [i] (args) | filter `is` test. */
#include "text/jinja_internal.h"

#include "base/error.h"

#include <string.h>

#define MAX_DEPTH 60
/* Longer code goes into T: it bounds both Lua's nesting and what copying costs. */
#define MAX_CODE_BYTES 300

const jinja_token *jinja_peek(const translator *t)
{
    return &g_array_index(t->tokens, jinja_token, t->at);
}

const jinja_token *jinja_next(translator *t)
{
    const jinja_token *token = jinja_peek(t);
    if (token->kind != JINJA_END)
        t->at++;
    return token;
}

static bool token_is(const jinja_token *token, jinja_kind kind, const char *text)
{
    return token->kind == kind && (!text || strcmp(token->text, text) == 0);
}

bool jinja_is(const translator *t, jinja_kind kind, const char *text)
{
    return token_is(jinja_peek(t), kind, text);
}

bool jinja_skip(translator *t, jinja_kind kind, const char *text)
{
    bool is = jinja_is(t, kind, text);
    if (is)
        jinja_next(t);
    return is;
}

static const char *describe(const jinja_token *token)
{
    static const char *const names[] = {[JINJA_TEXT] = "text",
                                        [JINJA_PRINT_BEGIN] = "{{",
                                        [JINJA_PRINT_END] = "}}",
                                        [JINJA_BLOCK_BEGIN] = "{%",
                                        [JINJA_BLOCK_END] = "%}",
                                        [JINJA_STRING] = "a string",
                                        [JINJA_END] = "the end of the template"};
    const char *name = token->kind < (int)G_N_ELEMENTS(names) ? names[token->kind] : NULL;
    return name ? name : token->text;
}

void jinja_fail(translator *t, const char *format, ...)
{
    if (t->error)
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *sentence = g_strdup_vprintf(format, args);
    va_end(args);
    cs_fail(&t->error, CS_ERROR_INVALID, "%s:%d: %s", t->name, jinja_peek(t)->line, sentence);
}

void jinja_expect(translator *t, jinja_kind kind, const char *text)
{
    jinja_token wanted = {.kind = kind, .text = (char *)text};
    if (!jinja_skip(t, kind, text))
        jinja_fail(t, "expected %s, found %s", text ? text : describe(&wanted),
                   describe(jinja_peek(t)));
}

void jinja_emit(translator *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_string_append_vprintf(t->out, format, args);
    va_end(args);
    g_string_append_c(t->out, ' ');
}

const char *jinja_code(translator *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    return g_string_chunk_insert(t->strings, text);
}

const char *jinja_quote(translator *t, const char *text, size_t size_bytes)
{
    g_autoptr(GString) out = g_string_new("\"");
    for (size_t i = 0; i < size_bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == '"' || c == '\\' || c == 0x7F)
            g_string_append_printf(out, "\\%03u", c);
        else
            g_string_append_c(out, (char)c);
    }
    g_string_append_c(out, '"');
    return g_string_chunk_insert_len(t->strings, out->str, (gssize)out->len);
}

bool jinja_enter(translator *t)
{
    if (t->depth >= MAX_DEPTH)
        jinja_fail(t, "nested more than %d deep", MAX_DEPTH);
    if (!t->error)
        t->depth++;
    return !t->error;
}

void jinja_leave(translator *t)
{
    t->depth--;
}

static const jinja_value *keep(translator *t, jinja_value value)
{
    jinja_value *kept = g_memdup2(&value, sizeof value);
    g_ptr_array_add(t->values, kept);
    return kept;
}

static const char *spill(translator *t, const char *code)
{
    int place = ++t->next_t;
    jinja_emit(t, "T[%d]=%s", place, code);
    return jinja_code(t, "T[%d]", place);
}

const jinja_value *jinja_value_new(translator *t, const char *code, value_kind kind)
{
    if (strlen(code) > MAX_CODE_BYTES)
        code = spill(t, code);
    return keep(t, (jinja_value){.code = code, .kind = kind});
}

static const jinja_value *nothing(translator *t)
{
    return keep(t, (jinja_value){.code = "nil", .kind = VALUE_ANY});
}

/* Code for the truth of a value that is in hand. */
static const char *truth_of(translator *t, const char *code, value_kind kind)
{
    return kind == VALUE_BOOL ? code : jinja_code(t, "truth(%s)", code);
}

const char *jinja_condition(translator *t, const jinja_value *v)
{
    if (!v->logic)
        return truth_of(t, v->code, v->kind);
    const char *lhs = jinja_condition(t, v->lhs), *rhs = jinja_condition(t, v->rhs);
    const char *code = jinja_code(t, "(%s %s %s)", lhs, v->logic, rhs);
    return strlen(code) > MAX_CODE_BYTES ? spill(t, code) : code;
}

/* T[place] = lhs; if it does not decide: T[place] = rhs. What rhs emits stands inside the if. */
static void open_logic(translator *t, int place, const jinja_value *lhs, const char *op)
{
    const char *code = jinja_use(t, lhs);
    jinja_emit(t, "T[%d]=%s if %s%s then", place, code, strcmp(op, "or") == 0 ? "not " : "",
               truth_of(t, jinja_code(t, "T[%d]", place), lhs->logic ? VALUE_ANY : lhs->kind));
}

static void close_logic(translator *t, int place, const jinja_value *rhs)
{
    const char *code = jinja_use(t, rhs);
    jinja_emit(t, "T[%d]=%s end", place, code);
}

const char *jinja_use(translator *t, const jinja_value *v)
{
    if (!v->logic)
        return v->code;
    if (v->kind == VALUE_BOOL)
        return jinja_condition(t, v);
    int place = ++t->next_t;
    open_logic(t, place, v->lhs, v->logic);
    close_logic(t, place, v->rhs);
    return jinja_code(t, "T[%d]", place);
}

const char *jinja_use_sure(translator *t, const jinja_value *v)
{
    const char *code = jinja_use(t, v);
    return v->kind == VALUE_ANY ? jinja_code(t, "def(%s)", code) : code;
}

/* Cuts off what was emitted since `from`. */
static char *cut(translator *t, gsize from)
{
    char *tail = g_strdup(t->out->str + from);
    g_string_truncate(t->out, from);
    return tail;
}

typedef const jinja_value *(*level_fn)(translator *t);

/* lhs and|or rhs: undecided as long as rhs needs no statements of its own. */
static const jinja_value *logic(translator *t, const char *op, level_fn level)
{
    const jinja_value *lhs = level(t);
    while (!t->error && jinja_skip(t, JINJA_NAME, op)) {
        gsize before = t->out->len;
        const jinja_value *rhs = level(t);
        bool both_bool = lhs->kind == VALUE_BOOL && rhs->kind == VALUE_BOOL;
        if (t->out->len == before) {
            lhs = keep(t, (jinja_value){.kind = both_bool ? VALUE_BOOL : VALUE_ANY,
                                        .logic = op,
                                        .lhs = lhs,
                                        .rhs = rhs});
            continue;
        }
        g_autofree char *tail = cut(t, before);
        int place = ++t->next_t;
        open_logic(t, place, lhs, op);
        g_string_append(t->out, tail);
        close_logic(t, place, rhs);
        lhs = keep(t, (jinja_value){.code = jinja_code(t, "T[%d]", place),
                                    .kind = both_bool ? VALUE_BOOL : VALUE_ANY});
    }
    return lhs;
}

static const jinja_value *parse_compare(translator *t);
static const jinja_value *parse_unary(translator *t, bool with_filters);

static const jinja_value *parse_not(translator *t)
{
    if (!jinja_enter(t))
        return nothing(t);
    const jinja_value *v;
    if (jinja_skip(t, JINJA_NAME, "not"))
        v = jinja_value_new(t, jinja_code(t, "(not %s)", jinja_condition(t, parse_not(t))),
                            VALUE_BOOL);
    else
        v = parse_compare(t);
    jinja_leave(t);
    return v;
}

static const jinja_value *parse_and(translator *t)
{
    return logic(t, "and", parse_not);
}

static const jinja_value *parse_or(translator *t)
{
    return logic(t, "or", parse_and);
}

/* value if condition else other */
static const jinja_value *parse_conditional(translator *t)
{
    gsize before = t->out->len;
    const jinja_value *value = parse_or(t);
    while (!t->error && jinja_skip(t, JINJA_NAME, "if")) {
        g_autofree char *tail = cut(t, before);
        int place = ++t->next_t;
        const jinja_value *condition = parse_or(t);
        jinja_emit(t, "if %s then", jinja_condition(t, condition));
        g_string_append(t->out, tail);
        const char *code = jinja_use(t, value);
        jinja_emit(t, "T[%d]=%s else", place, code);
        const jinja_value *other = NULL;
        if (jinja_skip(t, JINJA_NAME, "else"))
            other = jinja_expression(t);
        code = other ? jinja_use(t, other) : "nil";
        jinja_emit(t, "T[%d]=%s end", place, code);
        bool same = other && other->kind == value->kind;
        value = keep(t, (jinja_value){.code = jinja_code(t, "T[%d]", place),
                                      .kind = same ? value->kind : VALUE_ANY});
    }
    return value;
}

const jinja_value *jinja_expression(translator *t)
{
    if (!jinja_enter(t))
        return nothing(t);
    const jinja_value *v = parse_conditional(t);
    jinja_leave(t);
    return v;
}

static const jinja_value *binary(translator *t, const char *fn, const jinja_value *a,
                                 const jinja_value *b, value_kind kind)
{
    const char *lhs = jinja_use(t, a), *rhs = jinja_use(t, b);
    return jinja_value_new(t, jinja_code(t, "%s(%s,%s)", fn, lhs, rhs), kind);
}

static const jinja_value *parse_concat(translator *t);

/* One left-associative level: operators[i] is the function functions[i]. */
static const jinja_value *left_level(translator *t, const char *const *operators,
                                     const char *const *functions, level_fn level)
{
    const jinja_value *v = level(t);
    for (size_t i = 0; operators[i] && !t->error; i++) {
        if (jinja_skip(t, JINJA_OPERATOR, operators[i])) {
            v = binary(t, functions[i], v, level(t), VALUE_SURE);
            i = (size_t)-1;
        }
    }
    return v;
}

static const jinja_value *parse_sum(translator *t)
{
    static const char *const operators[] = {"+", "-", NULL}, *const functions[] = {"add", "sub"};
    return left_level(t, operators, functions, parse_concat);
}

static const jinja_value *parse_factor(translator *t)
{
    return parse_unary(t, true);
}

static const jinja_value *parse_power(translator *t)
{
    static const char *const operators[] = {"**", NULL}, *const functions[] = {"pow"};
    return left_level(t, operators, functions, parse_factor);
}

static const jinja_value *parse_product(translator *t)
{
    static const char *const operators[] = {"*", "//", "/", "%", NULL}, *const functions[] = {
                                                                            "mul", "fdiv", "div",
                                                                            "mod"};
    return left_level(t, operators, functions, parse_power);
}

static const char *as_string(translator *t, const jinja_value *v)
{
    const char *code = jinja_use(t, v);
    return v->kind == VALUE_STRING ? code : jinja_code(t, "str(%s)", code);
}

static const jinja_value *parse_concat(translator *t)
{
    const jinja_value *v = parse_product(t);
    while (!t->error && jinja_skip(t, JINJA_OPERATOR, "~")) {
        const jinja_value *rhs = parse_product(t);
        const char *a = as_string(t, v), *b = as_string(t, rhs);
        v = jinja_value_new(t, jinja_code(t, "(%s..%s)", a, b), VALUE_STRING);
    }
    return v;
}

static const char *comparison(translator *t)
{
    static const char *const operators[] = {"==", "!=", "<=", ">=", "<", ">"};
    for (size_t i = 0; i < G_N_ELEMENTS(operators); i++) {
        if (jinja_skip(t, JINJA_OPERATOR, operators[i]))
            return operators[i];
    }
    if (jinja_skip(t, JINJA_NAME, "in"))
        return "in";
    const jinja_token *after =
        &g_array_index(t->tokens, jinja_token, MIN(t->at + 1, t->tokens->len - 1));
    if (jinja_is(t, JINJA_NAME, "not") && token_is(after, JINJA_NAME, "in")) {
        jinja_next(t);
        jinja_next(t);
        return "not in";
    }
    return NULL;
}

static const char *compare(translator *t, const char *op, const jinja_value *a,
                           const jinja_value *b)
{
    const char *lhs = jinja_use(t, a), *rhs = jinja_use(t, b);
    bool strings = a->kind == VALUE_STRING || b->kind == VALUE_STRING;
    switch (op[0]) {
    case '=':
        return strings ? jinja_code(t, "(%s==%s)", lhs, rhs) : jinja_code(t, "eq(%s,%s)", lhs, rhs);
    case '!':
        return strings ? jinja_code(t, "(%s~=%s)", lhs, rhs)
                       : jinja_code(t, "(not eq(%s,%s))", lhs, rhs);
    case '<':
        return jinja_code(t, op[1] ? "le(%s,%s)" : "lt(%s,%s)", lhs, rhs);
    case '>':
        return jinja_code(t, op[1] ? "ge(%s,%s)" : "gt(%s,%s)", lhs, rhs);
    case 'i':
        return jinja_code(t, "has(%s,%s)", rhs, lhs);
    default:
        return jinja_code(t, "(not has(%s,%s))", rhs, lhs);
    }
}

/* a < b < c is a < b and b < c; all are evaluated here, as they have no effects. */
static const jinja_value *parse_compare(translator *t)
{
    const jinja_value *a = parse_sum(t), *result = NULL;
    const char *op;
    while (!t->error && (op = comparison(t))) {
        const jinja_value *b = parse_sum(t);
        const char *code = compare(t, op, a, b);
        if (result)
            code = jinja_code(t, "(%s and %s)", result->code, code);
        result = jinja_value_new(t, code, VALUE_BOOL);
        a = b;
    }
    return result ? result : a;
}

static const jinja_value *loop_attribute(translator *t, const char *name)
{
    static const struct {
        const char *name, *format;
        value_kind kind;
    } attributes[] = {
        {"index", "i%d", VALUE_SURE},
        {"index0", "(i%d-1)", VALUE_SURE},
        {"revindex", "(n%d-i%d+1)", VALUE_SURE},
        {"revindex0", "(n%d-i%d)", VALUE_SURE},
        {"first", "(i%d==1)", VALUE_BOOL},
        {"last", "(i%d==n%d)", VALUE_BOOL},
        {"length", "n%d", VALUE_SURE},
        {"previtem", "L%d[i%d-1]", VALUE_ANY},
        {"nextitem", "L%d[i%d+1]", VALUE_ANY},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(attributes); i++) {
        if (strcmp(name, attributes[i].name) == 0) {
            g_auto(GStrv) parts = g_strsplit(attributes[i].format, "%d", -1);
            g_autofree char *id = g_strdup_printf("%d", t->loop);
            g_autofree char *code = g_strjoinv(id, parts);
            return jinja_value_new(t, g_string_chunk_insert(t->strings, code), attributes[i].kind);
        }
    }
    return NULL;
}

/* `loop` itself, where it is not only asked for one of its numbers. */
static const jinja_value *parse_loop(translator *t)
{
    const jinja_token *name =
        &g_array_index(t->tokens, jinja_token, MIN(t->at + 1, t->tokens->len - 1));
    if (jinja_is(t, JINJA_OPERATOR, ".") && name->kind == JINJA_NAME) {
        const jinja_value *v = loop_attribute(t, name->text);
        if (v) {
            jinja_next(t);
            jinja_next(t);
            return v;
        }
    }
    return jinja_value_new(
        t, jinja_code(t, "loop_object(L%d,i%d,n%d,m%d)", t->loop, t->loop, t->loop, t->loop),
        VALUE_SURE);
}

static const jinja_value *parse_name(translator *t)
{
    static const struct {
        const char *name, *code;
        value_kind kind;
    } constants[] = {{"true", "true", VALUE_BOOL},   {"True", "true", VALUE_BOOL},
                     {"false", "false", VALUE_BOOL}, {"False", "false", VALUE_BOOL},
                     {"none", "N", VALUE_SURE},      {"None", "N", VALUE_SURE}};
    const jinja_token *token = jinja_next(t);
    for (size_t i = 0; i < G_N_ELEMENTS(constants); i++) {
        if (strcmp(token->text, constants[i].name) == 0)
            return jinja_value_new(t, constants[i].code, constants[i].kind);
    }
    if (t->loop != 0 && strcmp(token->text, "loop") == 0)
        return parse_loop(t);
    return jinja_value_new(
        t, jinja_code(t, "s%d[%s]", t->scope, jinja_quote(t, token->text, token->size_bytes)),
        VALUE_ANY);
}

/* Items up to `close`, as code for the inside of a Lua table; *n counts them. */
static const char *parse_items(translator *t, const char *close, int *n)
{
    g_autoptr(GString) items = g_string_new(NULL);
    *n = 0;
    while (!t->error && !jinja_is(t, JINJA_OPERATOR, close)) {
        if (*n > 0) {
            jinja_expect(t, JINJA_OPERATOR, ",");
            if (jinja_is(t, JINJA_OPERATOR, close))
                break;
        }
        g_string_append_printf(items, "%s,", jinja_use_sure(t, jinja_expression(t)));
        ++*n;
    }
    jinja_expect(t, JINJA_OPERATOR, close);
    return g_string_chunk_insert_len(t->strings, items->str, (gssize)items->len);
}

static const jinja_value *parse_list(translator *t)
{
    int n;
    jinja_next(t);
    const char *items = parse_items(t, "]", &n);
    return jinja_value_new(t, jinja_code(t, "{t=\"list\",n=%d,%s}", n, items), VALUE_SURE);
}

static const jinja_value *parse_dict(translator *t)
{
    g_autoptr(GString) items = g_string_new(NULL);
    int n = 0;
    jinja_next(t);
    while (!t->error && !jinja_is(t, JINJA_OPERATOR, "}")) {
        if (n > 0) {
            jinja_expect(t, JINJA_OPERATOR, ",");
            if (jinja_is(t, JINJA_OPERATOR, "}"))
                break;
        }
        const char *key = jinja_use_sure(t, jinja_expression(t));
        jinja_expect(t, JINJA_OPERATOR, ":");
        const char *value = jinja_use_sure(t, jinja_expression(t));
        g_string_append_printf(items, "%s,%s,", key, value);
        n += 2;
    }
    jinja_expect(t, JINJA_OPERATOR, "}");
    return jinja_value_new(t, jinja_code(t, "dict({%s},%d)", items->str, n), VALUE_SURE);
}

/* (x), (x, y), () */
static const jinja_value *parse_parentheses(translator *t)
{
    jinja_next(t);
    if (jinja_skip(t, JINJA_OPERATOR, ")"))
        return jinja_value_new(t, "{t=\"tuple\",n=0}", VALUE_SURE);
    const jinja_value *v = jinja_tuple(t, true);
    jinja_expect(t, JINJA_OPERATOR, ")");
    return v;
}

const jinja_value *jinja_tuple(translator *t, bool conditional)
{
    if (!jinja_enter(t))
        return nothing(t);
    const jinja_value *v = conditional ? jinja_expression(t) : parse_or(t);
    if (jinja_is(t, JINJA_OPERATOR, ",")) {
        g_autoptr(GString) items = g_string_new(jinja_use_sure(t, v));
        int n = 1;
        while (!t->error && jinja_skip(t, JINJA_OPERATOR, ",")) {
            jinja_kind kind = jinja_peek(t)->kind;
            if (kind == JINJA_BLOCK_END || kind == JINJA_PRINT_END ||
                jinja_is(t, JINJA_OPERATOR, ")"))
                break;
            v = conditional ? jinja_expression(t) : parse_or(t);
            g_string_append_printf(items, ",%s", jinja_use_sure(t, v));
            n++;
        }
        v = jinja_value_new(t, jinja_code(t, "{t=\"tuple\",n=%d,%s}", n, items->str), VALUE_SURE);
    }
    jinja_leave(t);
    return v;
}

static const jinja_value *parse_strings(translator *t)
{
    g_autoptr(GString) joined = g_string_new(NULL);
    while (jinja_is(t, JINJA_STRING, NULL)) {
        const jinja_token *token = jinja_next(t);
        g_string_append_len(joined, token->text, (gssize)token->size_bytes);
    }
    return keep(
        t, (jinja_value){.code = jinja_quote(t, joined->str, joined->len), .kind = VALUE_STRING});
}

static const jinja_value *parse_primary(translator *t)
{
    const jinja_token *token = jinja_peek(t);
    switch (token->kind) {
    case JINJA_NAME:
        return parse_name(t);
    case JINJA_STRING:
        return parse_strings(t);
    case JINJA_INTEGER:
        jinja_next(t);
        if (g_ascii_strtoull(token->text, NULL, 10) > G_MAXINT64 || token->size_bytes > 19)
            jinja_fail(t, "the number %s is too large", token->text);
        return jinja_value_new(t, token->text, VALUE_SURE);
    case JINJA_FLOAT:
        jinja_next(t);
        return jinja_value_new(t, jinja_code(t, "(%s+0.0)", token->text), VALUE_SURE);
    default:
        if (token_is(token, JINJA_OPERATOR, "("))
            return parse_parentheses(t);
        if (token_is(token, JINJA_OPERATOR, "["))
            return parse_list(t);
        if (token_is(token, JINJA_OPERATOR, "{"))
            return parse_dict(t);
        jinja_fail(t, "expected an expression, found %s", describe(token));
        return nothing(t);
    }
}

/* After "(": ", kw, args..." for a call of the run time, up to ")". */
static const char *parse_arguments(translator *t, const char *caller)
{
    g_autoptr(GString) args = g_string_new(NULL);
    g_autoptr(GString) keywords = g_string_new(NULL);
    if (caller)
        g_string_append_printf(keywords, "caller=%s,", caller);
    bool first = true;
    while (!t->error && !jinja_is(t, JINJA_OPERATOR, ")")) {
        if (!first) {
            jinja_expect(t, JINJA_OPERATOR, ",");
            if (jinja_is(t, JINJA_OPERATOR, ")"))
                break;
        }
        first = false;
        const jinja_token *name = jinja_peek(t);
        const jinja_token *after =
            &g_array_index(t->tokens, jinja_token, MIN(t->at + 1, t->tokens->len - 1));
        if (jinja_is(t, JINJA_OPERATOR, "*") || jinja_is(t, JINJA_OPERATOR, "**")) {
            jinja_fail(t, "* and ** in a call are not supported");
        } else if (name->kind == JINJA_NAME && token_is(after, JINJA_OPERATOR, "=")) {
            jinja_next(t);
            jinja_next(t);
            const char *value = jinja_use_sure(t, jinja_expression(t));
            const char *quoted = jinja_quote(t, name->text, name->size_bytes);
            g_string_append_printf(keywords, "%s,[%s]=%s,", quoted, quoted, value);
        } else {
            g_string_append_printf(args, ",%s", jinja_use(t, jinja_expression(t)));
        }
    }
    jinja_expect(t, JINJA_OPERATOR, ")");
    if (keywords->len == 0)
        return jinja_code(t, ",nil%s", args->str);
    return jinja_code(t, ",{%s}%s", keywords->str, args->str);
}

/* [i], [a:b], [a:b:c] */
static const jinja_value *parse_subscript(translator *t, const jinja_value *object)
{
    const char *parts[3] = {"nil", "nil", "nil"};
    int part = 0;
    const char *code = jinja_use(t, object);
    if (!jinja_is(t, JINJA_OPERATOR, ":"))
        parts[0] = jinja_use(t, jinja_expression(t));
    while (!t->error && part < 2 && jinja_skip(t, JINJA_OPERATOR, ":")) {
        part++;
        if (!jinja_is(t, JINJA_OPERATOR, ":") && !jinja_is(t, JINJA_OPERATOR, "]"))
            parts[part] = jinja_use(t, jinja_expression(t));
    }
    jinja_expect(t, JINJA_OPERATOR, "]");
    if (part > 0)
        code = jinja_code(t, "slice(%s,%s,%s,%s)", code, parts[0], parts[1], parts[2]);
    else
        code = jinja_code(t, "item(%s,%s)", code, parts[0]);
    return jinja_value_new(t, code, VALUE_ANY);
}

/* .name, .name(args), .0 */
static const jinja_value *parse_attribute(translator *t, const jinja_value *object)
{
    const jinja_token *name = jinja_next(t);
    const char *code = jinja_use(t, object);
    if (name->kind == JINJA_INTEGER)
        return jinja_value_new(t, jinja_code(t, "item(%s,%s)", code, name->text), VALUE_ANY);
    if (name->kind != JINJA_NAME) {
        jinja_fail(t, "expected a name after the dot, found %s", describe(name));
        return nothing(t);
    }
    const char *quoted = jinja_quote(t, name->text, name->size_bytes);
    if (jinja_skip(t, JINJA_OPERATOR, "(")) {
        const char *arguments = parse_arguments(t, NULL);
        return jinja_value_new(t, jinja_code(t, "call_method(%s,%s%s)", code, quoted, arguments),
                               VALUE_ANY);
    }
    return jinja_value_new(t, jinja_code(t, "get(%s,%s)", code, quoted), VALUE_ANY);
}

static const jinja_value *parse_call(translator *t, const jinja_value *callee, const char *caller)
{
    const char *code = jinja_use(t, callee), *arguments = parse_arguments(t, caller);
    return jinja_value_new(t,
                           jinja_code(t, "call(%s,%s%s)", code,
                                      jinja_quote(t, code, MIN(strlen(code), 60)), arguments),
                           VALUE_ANY);
}

static const jinja_value *parse_postfix(translator *t, const jinja_value *v)
{
    while (!t->error) {
        if (jinja_skip(t, JINJA_OPERATOR, "."))
            v = parse_attribute(t, v);
        else if (jinja_skip(t, JINJA_OPERATOR, "["))
            v = parse_subscript(t, v);
        else if (jinja_skip(t, JINJA_OPERATOR, "("))
            v = parse_call(t, v, NULL);
        else
            break;
    }
    return v;
}

/* After `|`: name or name(args). */
static const jinja_value *parse_filter(translator *t, const jinja_value *v)
{
    const jinja_token *name = jinja_next(t);
    if (name->kind != JINJA_NAME) {
        jinja_fail(t, "expected a filter's name, found %s", describe(name));
        return nothing(t);
    }
    const char *code = jinja_use(t, v), *arguments = ",nil";
    if (jinja_skip(t, JINJA_OPERATOR, "("))
        arguments = parse_arguments(t, NULL);
    return jinja_value_new(
        t,
        jinja_code(t, "F[%s](%s%s)", jinja_quote(t, name->text, name->size_bytes), code, arguments),
        VALUE_ANY);
}

/* The one argument of a test may stand without parentheses: x is divisibleby 3. */
static const char *parse_test_arguments(translator *t)
{
    const jinja_token *token = jinja_peek(t);
    if (jinja_skip(t, JINJA_OPERATOR, "("))
        return parse_arguments(t, NULL);
    bool word = token->kind == JINJA_NAME && strcmp(token->text, "else") != 0 &&
                strcmp(token->text, "or") != 0 && strcmp(token->text, "and") != 0;
    bool bracket = token_is(token, JINJA_OPERATOR, "[") || token_is(token, JINJA_OPERATOR, "{");
    if (!word && !bracket && token->kind != JINJA_STRING && token->kind != JINJA_INTEGER &&
        token->kind != JINJA_FLOAT)
        return ",nil";
    const jinja_value *v = parse_postfix(t, parse_primary(t));
    return jinja_code(t, ",nil,%s", jinja_use(t, v));
}

/* After `is`. */
static const jinja_value *parse_test(translator *t, const jinja_value *v)
{
    bool negated = jinja_skip(t, JINJA_NAME, "not");
    const jinja_token *name = jinja_next(t);
    if (name->kind != JINJA_NAME) {
        jinja_fail(t, "expected a test's name, found %s", describe(name));
        return nothing(t);
    }
    const char *code = jinja_use(t, v), *arguments = parse_test_arguments(t);
    if (strcmp(name->text, "none") == 0)
        code = jinja_code(t, "(%s==N)", code);
    else
        code = jinja_code(t, "X[%s](%s%s)", jinja_quote(t, name->text, name->size_bytes), code,
                          arguments);
    return jinja_value_new(t, negated ? jinja_code(t, "(not %s)", code) : code, VALUE_BOOL);
}

static const jinja_value *parse_filters_and_tests(translator *t, const jinja_value *v)
{
    while (!t->error) {
        if (jinja_skip(t, JINJA_OPERATOR, "|"))
            v = parse_filter(t, v);
        else if (jinja_skip(t, JINJA_NAME, "is"))
            v = parse_test(t, v);
        else if (jinja_skip(t, JINJA_OPERATOR, "("))
            v = parse_call(t, v, NULL);
        else
            break;
    }
    return v;
}

static const jinja_value *parse_unary(translator *t, bool with_filters)
{
    if (!jinja_enter(t))
        return nothing(t);
    const jinja_value *v;
    if (jinja_skip(t, JINJA_OPERATOR, "-"))
        v = jinja_value_new(t, jinja_code(t, "neg(%s)", jinja_use(t, parse_unary(t, false))),
                            VALUE_SURE);
    else if (jinja_skip(t, JINJA_OPERATOR, "+"))
        v = jinja_value_new(t, jinja_code(t, "pos(%s)", jinja_use(t, parse_unary(t, false))),
                            VALUE_SURE);
    else
        v = parse_primary(t);
    v = parse_postfix(t, v);
    if (with_filters)
        v = parse_filters_and_tests(t, v);
    jinja_leave(t);
    return v;
}

const jinja_value *jinja_filters(translator *t, const jinja_value *input, bool first_is_bare)
{
    if (first_is_bare)
        input = parse_filter(t, input);
    while (!t->error && jinja_skip(t, JINJA_OPERATOR, "|"))
        input = parse_filter(t, input);
    return input;
}

const jinja_value *jinja_call_with(translator *t, const char *caller)
{
    const jinja_value *v = parse_primary(t);
    while (!t->error && jinja_skip(t, JINJA_OPERATOR, "."))
        v = parse_attribute(t, v);
    jinja_expect(t, JINJA_OPERATOR, "(");
    return t->error ? v : parse_call(t, v, caller);
}
