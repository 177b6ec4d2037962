/* Jinja's lexer: text, and inside tags names, strings, numbers and operators; with the rules for
 * white space around tags (trim_blocks: the newline after a block tag goes; lstrip_blocks: the
 * indentation before one goes; "-" strips all, "+" keeps). */
#include "text/jinja_internal.h"

#include "base/error.h"
#include "text/utf8.h"

#include <string.h>

typedef struct {
    const char *name;
    const char *p, *end;
    int line;
    bool line_starting; /* what was read last ended in a newline */
    GArray *tokens;
    GError *error;
} lexer;

static void fail(lexer *l, int line, const char *what)
{
    if (!l->error)
        cs_fail(&l->error, CS_ERROR_INVALID, "%s:%d: %s", l->name, line, what);
}

static void add_token(lexer *l, jinja_kind kind, const char *text, size_t size_bytes)
{
    jinja_token token = {.kind = kind,
                         .line = l->line,
                         .text = g_strndup(text, size_bytes),
                         .size_bytes = size_bytes};
    g_array_append_val(l->tokens, token);
}

static void clear_token(gpointer data)
{
    g_free(((jinja_token *)data)->text);
}

static bool starts(const lexer *l, const char *p, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(l->end - p) >= n && memcmp(p, text, n) == 0;
}

static void advance(lexer *l, const char *to)
{
    if (to > l->p)
        l->line_starting = to[-1] == '\n';
    for (; l->p < to; l->p++)
        l->line += *l->p == '\n';
}

/* Python's \s. */
static bool is_space_at(const char *p, size_t *n)
{
    gunichar c = utf8_decode(p, n);
    return utf8_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

static const char *skip_space(const char *p, const char *end)
{
    size_t n;
    while (p < end && is_space_at(p, &n))
        p += n;
    return p;
}

static const char *strip_right(const char *begin, const char *end)
{
    size_t n;
    while (end > begin) {
        const char *previous = utf8_previous(begin, end);
        if (!is_space_at(previous, &n))
            break;
        end = previous;
    }
    return end;
}

/* Text before a tag that opens with `sign`; `block`: a block tag or a comment. */
static void add_text(lexer *l, const char *end, char sign, bool block)
{
    const char *text_end = end;
    if (sign == '-') {
        text_end = strip_right(l->p, end);
    } else if (sign != '+' && block) {
        const char *line = end;
        while (line > l->p && line[-1] != '\n')
            line--;
        if ((line > l->p || l->line_starting) && skip_space(line, end) == end)
            text_end = line;
    }
    if (text_end > l->p)
        add_token(l, JINJA_TEXT, l->p, (size_t)(text_end - l->p));
    advance(l, end);
}

/* The end of a tag whose closing mark stands at p, with what goes with it. */
static const char *close_end(const lexer *l, const char *p, bool trims)
{
    bool strips = *p == '-';
    p += *p == '-' || *p == '+' ? 3 : 2;
    bool keeps = p[-3] == '+' && !strips;
    if (strips)
        return skip_space(p, l->end);
    return trims && !keeps && p < l->end && *p == '\n' ? p + 1 : p;
}

/* Whether the mark (e.g. "%}"), perhaps with a sign, stands at p. */
static bool closes(const lexer *l, const char *p, const char *mark, bool plus)
{
    return starts(l, p, mark) ||
           (p < l->end && (*p == '-' || (plus && *p == '+')) && starts(l, p + 1, mark));
}

static void lex_comment(lexer *l)
{
    int line = l->line;
    const char *p = l->p + 2;
    while (p < l->end && !closes(l, p, "#}", true))
        p++;
    if (p >= l->end) {
        fail(l, line, "a comment is not closed");
        return;
    }
    advance(l, close_end(l, p, true));
}

/* The position behind `word` if the tag at p is {% word %} alone. */
static const char *single_word_tag(const lexer *l, const char *p, const char *word)
{
    if (!starts(l, p, "{%"))
        return NULL;
    p += 2;
    if (p < l->end && (*p == '-' || *p == '+'))
        p++;
    p = skip_space(p, l->end);
    if (!starts(l, p, word))
        return NULL;
    p = skip_space(p + strlen(word), l->end);
    return closes(l, p, "%}", true) ? p : NULL;
}

static char sign_at(const lexer *l, const char *p)
{
    return p < l->end && (*p == '-' || *p == '+') ? *p : '\0';
}

static void lex_raw(lexer *l, const char *close)
{
    int line = l->line;
    advance(l, close_end(l, close, false));
    for (const char *p = l->p; p < l->end; p++) {
        const char *end_close = single_word_tag(l, p, "endraw");
        if (end_close) {
            add_text(l, p, sign_at(l, p + 2), true);
            advance(l, close_end(l, end_close, true));
            return;
        }
    }
    fail(l, line, "{% raw %} is not closed");
}

static void append_code_point(lexer *l, GString *out, const char *digits, int n)
{
    gunichar c = 0;
    for (int i = 0; i < n; i++) {
        if (!g_ascii_isxdigit(digits[i])) {
            fail(l, l->line, "an escape in a string lacks hexadecimal digits");
            return;
        }
        c = c * 16 + (gunichar)g_ascii_xdigit_value(digits[i]);
    }
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
        fail(l, l->line, "an escape in a string is no character");
    else
        g_string_append_unichar(out, c);
}

/* Python's escapes. p stands behind the backslash; the text is NUL-terminated. */
static const char *unescape(lexer *l, GString *out, const char *p)
{
    static const char names[] = "abfnrtv\\'\"", meanings[] = "\a\b\f\n\r\t\v\\'\"";
    const char *name = *p ? strchr(names, *p) : NULL;
    if (name) {
        g_string_append_c(out, meanings[name - names]);
        return p + 1;
    }
    int digits = *p == 'x' ? 2 : *p == 'u' ? 4 : *p == 'U' ? 8 : 0;
    if (digits > 0) {
        if (strnlen(p + 1, (size_t)digits) < (size_t)digits)
            fail(l, l->line, "an escape in a string lacks hexadecimal digits");
        else
            append_code_point(l, out, p + 1, digits);
        return l->error ? p : p + 1 + digits;
    }
    if (*p >= '0' && *p <= '7') {
        gunichar c = 0;
        for (int i = 0; i < 3 && *p >= '0' && *p <= '7'; i++)
            c = c * 8 + (gunichar)(*p++ - '0');
        g_string_append_unichar(out, c);
        return p;
    }
    if (*p != '\n') /* a newline continues the line */
        g_string_append_printf(out, "\\%c", *p);
    return p + 1;
}

static void lex_string(lexer *l)
{
    char quote = *l->p;
    const char *p = l->p + 1;
    g_autoptr(GString) out = g_string_new(NULL);
    while (p < l->end && *p != quote && !l->error) {
        if (*p == '\\' && p + 1 < l->end)
            p = unescape(l, out, p + 1);
        else
            g_string_append_c(out, *p++);
    }
    if (p >= l->end)
        fail(l, l->line, "a string is not closed");
    if (l->error)
        return;
    add_token(l, JINJA_STRING, out->str, out->len);
    advance(l, p + 1);
}

static const char *skip_digits(const char *p, const char *end)
{
    while (p < end && (g_ascii_isdigit(*p) || (*p == '_' && p + 1 < end && g_ascii_isdigit(p[1]))))
        p++;
    return p;
}

static void lex_number(lexer *l)
{
    const char *p = l->p;
    jinja_kind kind = JINJA_INTEGER;
    bool prefixed = *p == '0' && p + 1 < l->end && strchr("xXoObB", p[1]);
    if (prefixed) {
        fail(l, l->line, "numbers are decimal here");
        return;
    }
    p = skip_digits(p, l->end);
    if (p + 1 < l->end && *p == '.' && g_ascii_isdigit(p[1])) {
        p = skip_digits(p + 1, l->end);
        kind = JINJA_FLOAT;
    }
    if (p + 1 < l->end && (*p == 'e' || *p == 'E')) {
        const char *digits = p + 1 + (p[1] == '+' || p[1] == '-');
        if (digits < l->end && g_ascii_isdigit(*digits)) {
            p = skip_digits(digits, l->end);
            kind = JINJA_FLOAT;
        }
    }
    g_autoptr(GString) digits = g_string_new(NULL);
    for (const char *q = l->p; q < p; q++) {
        if (*q != '_')
            g_string_append_c(digits, *q);
    }
    add_token(l, kind, digits->str, digits->len);
    advance(l, p);
}

static bool is_name_char(char c)
{
    return g_ascii_isalnum(c) || c == '_' || (uint8_t)c >= 0x80;
}

static void lex_operator(lexer *l)
{
    static const char *const operators[] = {"**", "//", "==", "!=", ">=", "<=", "+", "-", "/",
                                            "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                            ">",  "<",  "=",  ".",  ":",  "|",  ","};
    for (size_t i = 0; i < G_N_ELEMENTS(operators); i++) {
        if (starts(l, l->p, operators[i])) {
            add_token(l, JINJA_OPERATOR, operators[i], strlen(operators[i]));
            advance(l, l->p + strlen(operators[i]));
            return;
        }
    }
    fail(l, l->line, "an unexpected character in a tag");
}

/* Brackets that are open hide the end of the tag: {{ {'a': {}} }}. */
static int bracket_change(const lexer *l)
{
    const jinja_token *last = &g_array_index(l->tokens, jinja_token, l->tokens->len - 1);
    if (last->kind != JINJA_OPERATOR || last->size_bytes != 1)
        return 0;
    return strchr("([{", last->text[0]) ? 1 : strchr(")]}", last->text[0]) ? -1 : 0;
}

static void lex_tag(lexer *l, const char *mark, jinja_kind end_kind, bool trims)
{
    int line = l->line, open = 0;
    while (!l->error) {
        advance(l, skip_space(l->p, l->end));
        if (l->p >= l->end) {
            fail(l, line, "a tag is not closed");
        } else if (open <= 0 && closes(l, l->p, mark, trims)) {
            add_token(l, end_kind, "", 0);
            advance(l, close_end(l, l->p, trims));
            return;
        } else if (g_ascii_isdigit(*l->p)) {
            lex_number(l);
        } else if (is_name_char(*l->p)) {
            const char *p = l->p;
            while (p < l->end && is_name_char(*p))
                p++;
            add_token(l, JINJA_NAME, l->p, (size_t)(p - l->p));
            advance(l, p);
        } else if (*l->p == '"' || *l->p == '\'') {
            lex_string(l);
        } else {
            lex_operator(l);
            if (!l->error)
                open += bracket_change(l);
        }
    }
}

static void lex_all(lexer *l)
{
    while (l->p < l->end && !l->error) {
        const char *p = l->p;
        while (p < l->end && !(*p == '{' && p + 1 < l->end && strchr("{%#", p[1]) && p[1]))
            p++;
        if (p >= l->end) {
            add_text(l, p, '\0', false);
            break;
        }
        char sign = sign_at(l, p + 2);
        add_text(l, p, sign, p[1] != '{');
        const char *raw = single_word_tag(l, p, "raw");
        if (raw) {
            lex_raw(l, raw);
        } else if (p[1] == '#') {
            lex_comment(l);
        } else {
            bool print = p[1] == '{';
            add_token(l, print ? JINJA_PRINT_BEGIN : JINJA_BLOCK_BEGIN, "", 0);
            advance(l, p + 2 + (sign != '\0'));
            lex_tag(l, print ? "}}" : "%}", print ? JINJA_PRINT_END : JINJA_BLOCK_END, !print);
        }
    }
}

/* \r\n and \r are newlines, and one at the end of the template does not count. */
static char *normalize_newlines(const char *source, size_t *size_bytes)
{
    char *text = g_malloc(*size_bytes + 1);
    size_t n = 0;
    for (size_t i = 0; i < *size_bytes; i++) {
        if (source[i] == '\r' && i + 1 < *size_bytes && source[i + 1] == '\n')
            continue;
        text[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (n > 0 && text[n - 1] == '\n')
        n--;
    text[n] = '\0';
    *size_bytes = n;
    return text;
}

GArray *jinja_lex(const char *source, size_t size_bytes, const char *name, GError **error)
{
    if (utf8_valid_prefix(source, size_bytes) < size_bytes ||
        memchr(source, '\0', size_bytes) != NULL) {
        cs_fail(error, CS_ERROR_INVALID, "%s: not UTF-8 text", name);
        return NULL;
    }
    g_autofree char *text = normalize_newlines(source, &size_bytes);
    lexer l = {.name = name,
               .p = text,
               .end = text + size_bytes,
               .line = 1,
               .line_starting = true,
               .tokens = g_array_new(FALSE, FALSE, sizeof(jinja_token))};
    g_array_set_clear_func(l.tokens, clear_token);
    lex_all(&l);
    add_token(&l, JINJA_END, "", 0);
    if (l.error) {
        g_propagate_error(error, l.error);
        g_array_unref(l.tokens);
        return NULL;
    }
    return l.tokens;
}
