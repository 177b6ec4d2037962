/* Python's string functions by characters, for jinja_runtime.lua. */
#include "text/jinja_host.h"

#include "text/utf8.h"

#include <lauxlib.h>
#include <math.h>
#include <string.h>
#include <time.h>

/* One result; what a template puts together of them is bounded by the sandbox. */
#define MAX_RESULT_BYTES (64u << 20)

jinja_host *jinja_host_of(lua_State *L)
{
    return cs_sandbox_context(L);
}

GString *jinja_host_scratch(lua_State *L)
{
    GString *scratch = jinja_host_of(L)->scratch;
    if (scratch->allocated_len > 1u << 20) {
        g_string_free(scratch, TRUE);
        scratch = jinja_host_of(L)->scratch = g_string_new(NULL);
    }
    g_string_truncate(scratch, 0);
    return scratch;
}

void jinja_host_check(lua_State *L, const GString *scratch)
{
    if (scratch->len > MAX_RESULT_BYTES)
        jinja_host_fail(L, "a text of more than %u bytes", MAX_RESULT_BYTES);
}

int jinja_host_result(lua_State *L, const GString *scratch)
{
    jinja_host_check(L, scratch);
    lua_pushlstring(L, scratch->str, scratch->len);
    return 1;
}

int jinja_host_fail(lua_State *L, const char *format, ...)
{
    const char *name = jinja_host_of(L)->template_name;
    lua_Debug frame;
    int line = 0;
    for (int level = 1; line == 0 && lua_getstack(L, level, &frame); level++) {
        lua_getinfo(L, "Sl", &frame);
        if (frame.currentline > 0 && strcmp(frame.source + 1, name) == 0)
            line = frame.currentline;
    }
    GString *scratch = jinja_host_of(L)->scratch;
    va_list args;
    va_start(args, format);
    g_string_printf(scratch, "%s:%d: ", name, line);
    g_string_append_vprintf(scratch, format, args);
    va_end(args);
    lua_pushlstring(L, scratch->str, scratch->len);
    return lua_error(L);
}

static const char *text_argument(lua_State *L, int arg, size_t *size_bytes)
{
    const char *text = luaL_checklstring(L, arg, size_bytes);
    cs_sandbox_charge(L, *size_bytes / 16);
    return text;
}

static const char *next_character(const char *p, const char *end)
{
    do
        p++;
    while (p < end && ((uint8_t)*p & 0xC0) == 0x80);
    return p;
}

/* The character at p; a byte that is none stands for itself beyond Unicode. */
static gunichar character_at(const char *p, const char *end, size_t *n)
{
    utf8_verdict verdict;
    *n = utf8_measure((const uint8_t *)p, (size_t)(end - p), &verdict);
    return verdict == UTF8_VALID ? utf8_decode(p, n) : 0x110000u + (uint8_t)*p;
}

static lua_Integer count_characters(const char *p, const char *end)
{
    lua_Integer n = 0;
    for (; p < end; p++)
        n += ((uint8_t)*p & 0xC0) != 0x80;
    return n;
}

/* The byte position of character i, which is at most their number. */
static const char *seek(const char *p, const char *end, lua_Integer i)
{
    for (; i > 0 && p < end; i--)
        p = next_character(p, end);
    return p;
}

static bool is_python_space(gunichar c)
{
    return utf8_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

static int host_fail(lua_State *L)
{
    return jinja_host_fail(L, "%s", luaL_checkstring(L, 1));
}

static int host_scope(lua_State *L)
{
    lua_settop(L, 1);
    lua_createtable(L, 0, 4);
    lua_insert(L, 1);
    lua_setmetatable(L, 1);
    return 1;
}

/* join(items, n, separator): items are strings */
static int host_join(lua_State *L)
{
    size_t separator_bytes;
    lua_Integer n = luaL_checkinteger(L, 2);
    const char *separator = luaL_optlstring(L, 3, "", &separator_bytes);
    GString *out = jinja_host_scratch(L);
    for (lua_Integer i = 1; i <= n; i++) {
        if (i > 1)
            g_string_append_len(out, separator, (gssize)separator_bytes);
        lua_rawgeti(L, 1, i);
        size_t size_bytes;
        const char *text = luaL_checklstring(L, -1, &size_bytes);
        g_string_append_len(out, text, (gssize)size_bytes);
        lua_pop(L, 1);
        jinja_host_check(L, out);
    }
    cs_sandbox_charge(L, (uint64_t)MAX(n, 0) / 4);
    return jinja_host_result(L, out);
}

static int host_float(lua_State *L)
{
    GString *out = jinja_host_scratch(L);
    jinja_append_float(out, luaL_checknumber(L, 1));
    return jinja_host_result(L, out);
}

static int host_compare(lua_State *L)
{
    size_t a_bytes, b_bytes;
    const char *a = text_argument(L, 1, &a_bytes), *b = text_argument(L, 2, &b_bytes);
    int c = memcmp(a, b, MIN(a_bytes, b_bytes));
    if (c == 0)
        c = a_bytes < b_bytes ? -1 : a_bytes > b_bytes;
    lua_pushinteger(L, c < 0 ? -1 : c > 0);
    return 1;
}

/* One conversion of printf: spec is "%", flags and the letter. */
static void append_conversion(lua_State *L, GString *out, const char *spec, char letter, int arg)
{
    g_autofree char *flags = g_strndup(spec, strlen(spec) - 1);
    double width = 0;
    for (const char *p = flags; *p; p++)
        width = MAX(width, g_ascii_isdigit(*p) ? g_ascii_strtod(p, NULL) : 0);
    bool number = lua_isnumber(L, arg) && lua_type(L, arg) == LUA_TNUMBER;
    bool text = letter == 's' && lua_type(L, arg) == LUA_TSTRING;
    if (width > 1000 || (!number && !text)) {
        g_clear_pointer(&flags, g_free);
        jinja_host_fail(L, "the format %%%c does not fit its argument", letter);
    }
    if (text) {
        g_autofree char *format = g_strdup_printf("%ss", flags);
        g_string_append_printf(out, format, lua_tostring(L, arg));
    } else if (strchr("dixXo", letter)) {
        g_autofree char *format = g_strdup_printf("%sll%c", flags, letter);
        g_string_append_printf(out, format, (long long)floor(lua_tonumber(L, arg)));
    } else {
        g_autofree char *format = g_strdup_printf("%s%c", flags, letter);
        g_string_append_printf(out, format, lua_tonumber(L, arg));
    }
}

/* printf(format, ...): %s %r %d %i %x %X %o %f %e %g %c %% */
static int host_printf(lua_State *L)
{
    size_t size_bytes;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    int arg = 2, n = lua_gettop(L);
    GString *out = jinja_host_scratch(L);
    while (p < end) {
        if (*p != '%') {
            g_string_append_c(out, *p++);
            continue;
        }
        char spec[24] = "%";
        size_t length = 1;
        for (p++; p < end && strchr("-+ #0123456789.", *p) && *p && length < sizeof spec - 2; p++)
            spec[length++] = *p;
        char letter = p < end ? *p++ : '\0';
        spec[length] = letter;
        if (letter == '%') {
            g_string_append_c(out, '%');
            continue;
        }
        if (letter == '\0' || !strchr("sdixXofFeEgG", letter))
            jinja_host_fail(L, "the format %%%c is not supported", letter ? letter : '?');
        if (arg > n)
            jinja_host_fail(L, "a format has fewer arguments than it names");
        append_conversion(L, out, spec, letter, arg++);
        jinja_host_check(L, out);
    }
    return jinja_host_result(L, out);
}

static bool is_printable(gunichar c)
{
    if (c < 0x7F)
        return c >= 0x20;
    switch (g_unichar_type(c)) {
    case G_UNICODE_CONTROL:
    case G_UNICODE_FORMAT:
    case G_UNICODE_UNASSIGNED:
    case G_UNICODE_PRIVATE_USE:
    case G_UNICODE_SURROGATE:
    case G_UNICODE_LINE_SEPARATOR:
    case G_UNICODE_PARAGRAPH_SEPARATOR:
    case G_UNICODE_SPACE_SEPARATOR:
        return false;
    default:
        return true;
    }
}

static void append_escape(GString *out, gunichar c)
{
    static const char escaped[] = "\n\r\t", names[] = "nrt";
    const char *name = c < 0x80 && c ? strchr(escaped, (int)c) : NULL;
    if (name)
        g_string_append_printf(out, "\\%c", names[name - escaped]);
    else if (c < 0x100)
        g_string_append_printf(out, "\\x%02x", c);
    else
        g_string_append_printf(out, c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
}

static int host_repr(lua_State *L)
{
    size_t size_bytes, n;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    char quote = memchr(p, '\'', size_bytes) && !memchr(p, '"', size_bytes) ? '"' : '\'';
    GString *out = jinja_host_scratch(L);
    g_string_append_c(out, quote);
    for (; p < end; p += n) {
        gunichar c = character_at(p, end, &n);
        if (c == (gunichar)quote || c == '\\')
            g_string_append_c(out, '\\');
        if (c >= 0x110000 || is_printable(c))
            g_string_append_len(out, p, (gssize)n);
        else
            append_escape(out, c);
    }
    g_string_append_c(out, quote);
    return jinja_host_result(L, out);
}

static int host_length(lua_State *L)
{
    size_t size_bytes;
    const char *p = text_argument(L, 1, &size_bytes);
    lua_pushinteger(L, count_characters(p, p + size_bytes));
    return 1;
}

/* character(text, i): nil when i, which may count from the end, is outside */
static int host_character(lua_State *L)
{
    size_t size_bytes;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    lua_Integer i = luaL_checkinteger(L, 2), n = count_characters(p, end);
    if (i < 0)
        i += n;
    if (i < 0 || i >= n)
        return 0;
    p = seek(p, end, i);
    lua_pushlstring(L, p, (size_t)(next_character(p, end) - p));
    return 1;
}

/* substring(text, first, count, step) of character positions that are inside */
static int host_substring(lua_State *L)
{
    size_t size_bytes;
    const char *begin = text_argument(L, 1, &size_bytes), *end = begin + size_bytes;
    lua_Integer first = luaL_checkinteger(L, 2), count = luaL_checkinteger(L, 3),
                by = luaL_checkinteger(L, 4);
    if (count <= 0) {
        lua_pushliteral(L, "");
        return 1;
    }
    const char *p = seek(begin, end, first);
    if (by == 1) {
        lua_pushlstring(L, p, (size_t)(seek(p, end, count) - p));
        return 1;
    }
    cs_sandbox_charge(L, (uint64_t)count / 4);
    GString *out = jinja_host_scratch(L);
    for (;;) {
        g_string_append_len(out, p, next_character(p, end) - p);
        if (--count == 0)
            return jinja_host_result(L, out);
        for (lua_Integer i = 0; i < by && p < end; i++)
            p = next_character(p, end);
        for (lua_Integer i = 0; i > by && p > begin; i--)
            p = utf8_previous(begin, p);
    }
}

/* Sets t[i] of the list on the top of the stack. */
static void set_item(lua_State *L, lua_Integer i, const char *text, size_t size_bytes)
{
    lua_pushlstring(L, text, size_bytes);
    lua_rawseti(L, -2, i);
}

static void new_list(lua_State *L)
{
    lua_createtable(L, 4, 2);
    lua_pushliteral(L, "list");
    lua_setfield(L, -2, "t");
}

static int finish_list(lua_State *L, lua_Integer n)
{
    cs_sandbox_charge(L, (uint64_t)n);
    lua_pushinteger(L, n);
    lua_setfield(L, -2, "n");
    return 1;
}

static int host_characters(lua_State *L)
{
    size_t size_bytes;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    lua_Integer n = 0;
    new_list(L);
    while (p < end) {
        const char *next = next_character(p, end);
        set_item(L, ++n, p, (size_t)(next - p));
        p = next;
    }
    return finish_list(L, n);
}

static bool is_stripped(const char *p, const char *end, const char *set, const char *set_end)
{
    size_t n;
    if (!set)
        return is_python_space(character_at(p, end, &n));
    size_t size_bytes = (size_t)(next_character(p, end) - p);
    for (const char *q = set; q < set_end; q = next_character(q, set_end)) {
        if ((size_t)(next_character(q, set_end) - q) == size_bytes && memcmp(p, q, size_bytes) == 0)
            return true;
    }
    return false;
}

/* strip(text, "both" | "left" | "right", characters or nil) */
static int host_strip(lua_State *L)
{
    size_t size_bytes, set_bytes = 0;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    char mode = luaL_checkstring(L, 2)[0];
    const char *set = lua_isnoneornil(L, 3) ? NULL : text_argument(L, 3, &set_bytes);
    const char *set_end = set ? set + set_bytes : NULL;
    cs_sandbox_charge(L, MIN(size_bytes, 1u << 20) * MIN(set_bytes, 1u << 20) / 64);
    while (mode != 'r' && p < end && is_stripped(p, end, set, set_end))
        p = next_character(p, end);
    while (mode != 'l' && p < end) {
        const char *last = utf8_previous(p, end);
        if (!is_stripped(last, end, set, set_end))
            break;
        end = last;
    }
    lua_pushlstring(L, p, (size_t)(end - p));
    return 1;
}

/* The next run of white space in [p, end), or end; *after is behind it. */
static const char *find_space(const char *p, const char *end, const char **after)
{
    size_t n;
    while (p < end && !is_python_space(character_at(p, end, &n)))
        p += n;
    *after = p;
    while (*after < end && is_python_space(character_at(*after, end, &n)))
        *after += n;
    return p;
}

static const char *skip_spaces(const char *p, const char *end)
{
    size_t n;
    while (p < end && is_python_space(character_at(p, end, &n)))
        p += n;
    return p;
}

static lua_Integer split_spaces(lua_State *L, const char *p, const char *end, lua_Integer max)
{
    lua_Integer n = 0;
    for (p = skip_spaces(p, end); p < end && (max < 0 || n < max);) {
        const char *after, *space = find_space(p, end, &after);
        set_item(L, ++n, p, (size_t)(space - p));
        p = after;
    }
    if (p < end) { /* the rest, without white space at its end */
        size_t width;
        while (end > p && is_python_space(character_at(utf8_previous(p, end), end, &width)))
            end = utf8_previous(p, end);
        set_item(L, ++n, p, (size_t)(end - p));
    }
    return n;
}

static lua_Integer split_by(lua_State *L, const char *p, const char *end, const char *separator,
                            size_t separator_bytes, lua_Integer max)
{
    lua_Integer n = 0;
    const char *found;
    while ((max < 0 || n < max) &&
           (found = memmem(p, (size_t)(end - p), separator, separator_bytes))) {
        set_item(L, ++n, p, (size_t)(found - p));
        p = found + separator_bytes;
    }
    set_item(L, ++n, p, (size_t)(end - p));
    return n;
}

static const char *find_last(const char *p, const char *end, const char *what, size_t what_bytes)
{
    for (const char *at = end - what_bytes; (size_t)(end - p) >= what_bytes && at >= p; at--) {
        if (memcmp(at, what, what_bytes) == 0)
            return at;
    }
    return NULL;
}

/* The last `max` separators split; pieces are written from the right, then turned round. */
static lua_Integer split_right(lua_State *L, const char *p, const char *end, const char *separator,
                               size_t separator_bytes, lua_Integer max)
{
    lua_Integer n = 0;
    const char *found;
    cs_sandbox_charge(L, (uint64_t)(end - p) * MIN(separator_bytes, 64) / 16);
    while ((max < 0 || n < max) && (found = find_last(p, end, separator, separator_bytes))) {
        set_item(L, ++n, found + separator_bytes, (size_t)(end - found) - separator_bytes);
        end = found;
    }
    set_item(L, ++n, p, (size_t)(end - p));
    for (lua_Integer i = 1; i <= n / 2; i++) {
        lua_rawgeti(L, -1, i);
        lua_rawgeti(L, -2, n + 1 - i);
        lua_rawseti(L, -3, i);
        lua_rawseti(L, -2, n + 1 - i);
    }
    return n;
}

/* split(text, separator or nil, max or -1, from_right) */
static int host_split(lua_State *L)
{
    size_t size_bytes, separator_bytes = 0;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    const char *separator = lua_isnoneornil(L, 2) ? NULL : text_argument(L, 2, &separator_bytes);
    lua_Integer max = luaL_checkinteger(L, 3);
    bool right = lua_toboolean(L, 4) && max >= 0;
    new_list(L);
    if (!separator && right)
        jinja_host_fail(L, "rsplit of white space with a count is not supported");
    lua_Integer n = !separator ? split_spaces(L, p, end, max)
                    : right    ? split_right(L, p, end, separator, separator_bytes, max)
                               : split_by(L, p, end, separator, separator_bytes, max);
    return finish_list(L, n);
}

static bool is_line_break(gunichar c)
{
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

static int host_splitlines(lua_State *L)
{
    size_t size_bytes, n;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    bool keep = lua_toboolean(L, 2);
    lua_Integer count = 0;
    new_list(L);
    for (const char *line = p; p < end; line = p) {
        while (p < end && !is_line_break(character_at(p, end, &n)))
            p += n;
        const char *text_end = p;
        if (p < end) {
            bool two = *p == '\r' && p + 1 < end && p[1] == '\n';
            p += two ? 2 : n;
        }
        set_item(L, ++count, line, (size_t)((keep ? p : text_end) - line));
    }
    return finish_list(L, count);
}

/* An empty `old` stands before every character and at the end. */
static void replace_empty(lua_State *L, GString *out, const char *p, const char *end,
                          const char *new, size_t new_bytes, lua_Integer max)
{
    for (; max != 0; max--) {
        g_string_append_len(out, new, (gssize)new_bytes);
        jinja_host_check(L, out);
        if (p == end)
            return;
        const char *next = next_character(p, end);
        g_string_append_len(out, p, next - p);
        p = next;
    }
    g_string_append_len(out, p, end - p);
}

/* replace(text, old, new, max or -1) */
static int host_replace(lua_State *L)
{
    size_t size_bytes, old_bytes, new_bytes;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes, *found;
    const char *old = text_argument(L, 2, &old_bytes), *new = text_argument(L, 3, &new_bytes);
    lua_Integer max = luaL_checkinteger(L, 4);
    GString *out = jinja_host_scratch(L);
    if (old_bytes == 0) {
        replace_empty(L, out, p, end, new, new_bytes, max);
        return jinja_host_result(L, out);
    }
    while (max != 0 && (found = memmem(p, (size_t)(end - p), old, old_bytes))) {
        g_string_append_len(out, p, found - p);
        g_string_append_len(out, new, (gssize)new_bytes);
        jinja_host_check(L, out);
        p = found + old_bytes;
        max--;
    }
    g_string_append_len(out, p, end - p);
    return jinja_host_result(L, out);
}

static void append_upper(GString *out, gunichar c, bool title)
{
    if (c == 0xDF)
        g_string_append(out, title ? "Ss" : "SS");
    else
        g_string_append_unichar(out, title ? g_unichar_totitle(c) : g_unichar_toupper(c));
}

/* case(text, mode): "title" as str.title, "words" as Jinja's filter title */
static int host_case(lua_State *L)
{
    size_t size_bytes, n;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    const char *mode = luaL_checkstring(L, 2);
    bool upper = strcmp(mode, "upper") == 0, swap = strcmp(mode, "swapcase") == 0;
    bool title = strcmp(mode, "title") == 0, words = strcmp(mode, "words") == 0;
    bool starts = title || words || strcmp(mode, "capitalize") == 0;
    GString *out = jinja_host_scratch(L);
    for (; p < end; p += n) {
        gunichar c = character_at(p, end, &n);
        if (c >= 0x110000)
            g_string_append_len(out, p, (gssize)n);
        else if (upper || starts || (swap && g_unichar_islower(c)))
            append_upper(out, c, starts);
        else if (strcmp(mode, "casefold") == 0 && c == 0xDF)
            g_string_append(out, "ss");
        else
            g_string_append_unichar(out, g_unichar_tolower(c));
        starts = (title && !g_unichar_isalpha(c)) ||
                 (words && (is_python_space(c) || (c < 0x80 && strchr("-({[<", (int)c) && c)));
    }
    return jinja_host_result(L, out);
}

static bool is_class(gunichar c, const char *name)
{
    if (strcmp(name, "isspace") == 0)
        return is_python_space(c);
    if (c >= 0x110000)
        return false;
    GUnicodeType type = g_unichar_type(c);
    bool decimal = type == G_UNICODE_DECIMAL_NUMBER;
    bool numeric = decimal || type == G_UNICODE_LETTER_NUMBER || type == G_UNICODE_OTHER_NUMBER;
    if (strcmp(name, "isalpha") == 0)
        return g_unichar_isalpha(c);
    if (strcmp(name, "isalnum") == 0)
        return g_unichar_isalpha(c) || numeric;
    return strcmp(name, "isnumeric") == 0 ? numeric : decimal;
}

/* isupper and islower: at least one cased character, and none of the other case. */
static bool has_one_case(const char *p, const char *end, bool upper)
{
    size_t n;
    bool found = false;
    for (; p < end; p += n) {
        gunichar c = character_at(p, end, &n);
        if (c < 0x110000 && (upper ? g_unichar_islower(c) : g_unichar_isupper(c)))
            return false;
        found = found || (c < 0x110000 && (upper ? g_unichar_isupper(c) : g_unichar_islower(c)));
    }
    return found;
}

static int host_is(lua_State *L)
{
    size_t size_bytes, n;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    const char *name = luaL_checkstring(L, 2);
    bool is = size_bytes > 0;
    if (strcmp(name, "isupper") == 0 || strcmp(name, "islower") == 0)
        is = has_one_case(p, end, name[2] == 'u');
    else
        for (; is && p < end; p += n)
            is = is_class(character_at(p, end, &n), name);
    lua_pushboolean(L, is);
    return 1;
}

/* find(text, what, from_right): a character position, or -1 */
static int host_find(lua_State *L)
{
    size_t size_bytes, what_bytes;
    const char *p = text_argument(L, 1, &size_bytes), *what = text_argument(L, 2, &what_bytes);
    bool right = lua_toboolean(L, 3);
    if (right)
        cs_sandbox_charge(L, size_bytes * MIN(what_bytes, 64) / 16);
    const char *found = right             ? find_last(p, p + size_bytes, what, what_bytes)
                        : what_bytes == 0 ? p
                                          : memmem(p, size_bytes, what, what_bytes);
    lua_pushinteger(L, found ? count_characters(p, found) : -1);
    return 1;
}

static int host_count(lua_State *L)
{
    size_t size_bytes, what_bytes;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    const char *what = text_argument(L, 2, &what_bytes);
    lua_Integer n = what_bytes == 0 ? count_characters(p, end) + 1 : 0;
    while (what_bytes > 0 && (p = memmem(p, (size_t)(end - p), what, what_bytes))) {
        p += what_bytes;
        n++;
    }
    lua_pushinteger(L, n);
    return 1;
}

static int host_escape(lua_State *L)
{
    static const char special[] = "&<>'\"";
    static const char *const names[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    size_t size_bytes;
    const char *p = text_argument(L, 1, &size_bytes);
    GString *out = jinja_host_scratch(L);
    for (size_t i = 0; i < size_bytes; i++) {
        const char *at = p[i] ? strchr(special, p[i]) : NULL;
        if (at)
            g_string_append(out, names[at - special]);
        else
            g_string_append_c(out, p[i]);
    }
    return jinja_host_result(L, out);
}

/* indent(text, prefix, first, blank): a line of Jinja's filter ends at "\n" only */
static int host_indent(lua_State *L)
{
    size_t size_bytes, prefix_bytes;
    const char *p = text_argument(L, 1, &size_bytes), *end = p + size_bytes;
    const char *prefix = text_argument(L, 2, &prefix_bytes);
    bool first = lua_toboolean(L, 3), blank = lua_toboolean(L, 4);
    GString *out = jinja_host_scratch(L);
    for (bool is_first = true;; is_first = false) {
        const char *line_end = memchr(p, '\n', (size_t)(end - p));
        const char *stop = line_end ? line_end : end;
        if (is_first ? first : blank || stop > p)
            g_string_append_len(out, prefix, (gssize)prefix_bytes);
        g_string_append_len(out, p, stop - p);
        jinja_host_check(L, out);
        if (!line_end)
            return jinja_host_result(L, out);
        g_string_append_c(out, '\n');
        p = line_end + 1;
    }
}

/* number(text): what Python's float() reads, or nil */
static int host_number(lua_State *L)
{
    size_t size_bytes;
    const char *p = text_argument(L, 1, &size_bytes);
    g_autofree char *copy = NULL;
    const char *end = p + size_bytes;
    p = skip_spaces(p, end);
    if (p == end || size_bytes > 400 || *p == '\0')
        return 0;
    bool hexadecimal = strpbrk(p, "xX") != NULL;
    char *stop;
    double x = g_ascii_strtod(p, &stop);
    if (hexadecimal || stop == p || skip_spaces(stop, end) != end)
        return 0;
    lua_pushnumber(L, x);
    return 1;
}

/* round(x, digits): to even in the last digit's exact decimal value, as Python */
static int host_round(lua_State *L)
{
    double x = luaL_checknumber(L, 1);
    lua_Integer digits = luaL_checkinteger(L, 2);
    char text[400];
    if (digits > 17 || !isfinite(x) || fabs(x) > 1e300) {
        lua_pushnumber(L, x);
    } else if (digits >= 0) {
        g_snprintf(text, sizeof text, "%.*f", (int)digits, x);
        lua_pushnumber(L, g_ascii_strtod(text, NULL));
    } else {
        double scale = pow(10, (double)-digits);
        lua_pushnumber(L, rint(x / scale) * scale);
    }
    return 1;
}

static int host_strftime(lua_State *L)
{
    size_t size_bytes;
    const char *format = text_argument(L, 1, &size_bytes);
    time_t now = jinja_host_of(L)->now_s ? (time_t)jinja_host_of(L)->now_s : time(NULL);
    struct tm local;
    char text[512] = "";
    if (size_bytes > 100 || !localtime_r(&now, &local) ||
        (strftime(text, sizeof text, format, &local) == 0 && size_bytes > 0))
        jinja_host_fail(L, "strftime_now: the format is too long or empty");
    lua_pushstring(L, text);
    return 1;
}

void jinja_host_push(lua_State *L, jinja_host *host)
{
    static const luaL_Reg functions[] = {{"fail", host_fail},
                                         {"scope", host_scope},
                                         {"join", host_join},
                                         {"float", host_float},
                                         {"compare", host_compare},
                                         {"printf", host_printf},
                                         {"repr", host_repr},
                                         {"length", host_length},
                                         {"character", host_character},
                                         {"substring", host_substring},
                                         {"characters", host_characters},
                                         {"strip", host_strip},
                                         {"split", host_split},
                                         {"splitlines", host_splitlines},
                                         {"replace", host_replace},
                                         {"case", host_case},
                                         {"is", host_is},
                                         {"find", host_find},
                                         {"count", host_count},
                                         {"escape", host_escape},
                                         {"indent", host_indent},
                                         {"number", host_number},
                                         {"round", host_round},
                                         {"strftime", host_strftime},
                                         {"json", jinja_json},
                                         {NULL, NULL}};
    luaL_newlibtable(L, functions);
    lua_pushlightuserdata(L, host);
    luaL_setfuncs(L, functions, 1);
}
