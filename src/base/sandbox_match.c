/* Lua patterns (reference manual 5.4, section 6.4.1) with a step count.
 *
 * Lua's own matcher backtracks inside C, where no hook stops it: ".-.-.-.-x" over a long string
 * takes time by a high power of its length. This one charges the sandbox for every step.
 */
#include "base/sandbox_internal.h"

#include <ctype.h>
#include <lauxlib.h>
#include <string.h>

#define MAX_CAPTURES 32
#define MAX_DEPTH 180    /* nested matches, each a C frame */
#define CHARGE_EVERY 512 /* matcher steps; about a nanosecond or two each */
#define STEPS_A_CHARGE 128

#define OPEN_CAPTURE (-1)
#define POSITION_CAPTURE (-2)

typedef struct {
    lua_State *L;
    const char *subject, *subject_end;
    const char *pattern_end;
    int depth;
    unsigned steps;
    int n_captures;
    struct {
        const char *start;
        ptrdiff_t size; /* or OPEN_CAPTURE, POSITION_CAPTURE */
    } captures[MAX_CAPTURES];
} matcher;

static const char *match(matcher *m, const char *s, const char *p);

static void step(matcher *m)
{
    if (++m->steps >= CHARGE_EVERY) {
        m->steps = 0;
        cs_sandbox_charge(m->L, STEPS_A_CHARGE);
    }
}

static bool class_has(int c, int class)
{
    bool has;
    switch (tolower(class)) {
    case 'a':
        has = isalpha(c);
        break;
    case 'c':
        has = iscntrl(c);
        break;
    case 'd':
        has = isdigit(c);
        break;
    case 'g':
        has = isgraph(c);
        break;
    case 'l':
        has = islower(c);
        break;
    case 'p':
        has = ispunct(c);
        break;
    case 's':
        has = isspace(c);
        break;
    case 'u':
        has = isupper(c);
        break;
    case 'w':
        has = isalnum(c);
        break;
    case 'x':
        has = isxdigit(c);
        break;
    default:
        return c == class; /* %. and other escaped punctuation */
    }
    return has != (isupper(class) != 0);
}

/* The end of the single-character item at p: c, ., %c or [set]. */
static const char *item_end(matcher *m, const char *p)
{
    if (*p == '%') {
        if (p + 1 >= m->pattern_end)
            luaL_error(m->L, "malformed pattern (ends with '%%')");
        return p + 2;
    }
    if (*p != '[')
        return p + 1;
    p++;
    if (p < m->pattern_end && *p == '^')
        p++;
    bool first = true; /* a ']' that comes first is a member */
    for (; p < m->pattern_end; p++, first = false) {
        if (*p == ']' && !first)
            return p + 1;
        if (*p == '%')
            p++;
    }
    luaL_error(m->L, "malformed pattern (missing ']')");
    return NULL;
}

/* p stands on '[', last on the closing ']'. */
static bool set_has(int c, const char *p, const char *last)
{
    bool inverted = p[1] == '^';
    p += inverted ? 2 : 1;
    for (; p < last; p++) {
        if (*p == '%') {
            p++;
            if (class_has(c, (unsigned char)*p))
                return !inverted;
        } else if (p + 2 < last && p[1] == '-') {
            if ((unsigned char)p[0] <= c && c <= (unsigned char)p[2])
                return !inverted;
            p += 2;
        } else if ((unsigned char)*p == c) {
            return !inverted;
        }
    }
    return inverted;
}

static bool item_has(matcher *m, const char *s, const char *p, const char *end)
{
    step(m);
    if (s >= m->subject_end)
        return false;
    int c = (unsigned char)*s;
    switch (*p) {
    case '.':
        return true;
    case '%':
        return class_has(c, (unsigned char)p[1]);
    case '[':
        m->steps += (unsigned)(end - p) / 4;
        return set_has(c, p, end - 1);
    default:
        return (unsigned char)*p == c;
    }
}

static const char *match_longest(matcher *m, const char *s, const char *p, const char *end)
{
    ptrdiff_t n = 0;
    while (item_has(m, s + n, p, end))
        n++;
    for (; n >= 0; n--) {
        const char *rest = match(m, s + n, end + 1);
        if (rest)
            return rest;
    }
    return NULL;
}

static const char *match_shortest(matcher *m, const char *s, const char *p, const char *end)
{
    for (;; s++) {
        const char *rest = match(m, s, end + 1);
        if (rest)
            return rest;
        if (!item_has(m, s, p, end))
            return NULL;
    }
}

static const char *open_capture(matcher *m, const char *s, const char *p, ptrdiff_t kind)
{
    if (m->n_captures >= MAX_CAPTURES)
        luaL_error(m->L, "too many captures");
    m->captures[m->n_captures].start = s;
    m->captures[m->n_captures].size = kind;
    m->n_captures++;
    const char *rest = match(m, s, p);
    if (!rest)
        m->n_captures--;
    return rest;
}

static const char *close_capture(matcher *m, const char *s, const char *p)
{
    int i = m->n_captures - 1;
    while (i >= 0 && m->captures[i].size != OPEN_CAPTURE)
        i--;
    if (i < 0)
        luaL_error(m->L, "invalid pattern capture");
    m->captures[i].size = s - m->captures[i].start;
    const char *rest = match(m, s, p);
    if (!rest)
        m->captures[i].size = OPEN_CAPTURE;
    return rest;
}

/* %bxy at p: the end of the balanced text at s, or NULL. */
static const char *balanced_end(matcher *m, const char *s, const char *p)
{
    if (p + 3 >= m->pattern_end)
        luaL_error(m->L, "malformed pattern (missing arguments to '%%b')");
    if (s >= m->subject_end || *s != p[2])
        return NULL;
    int open = 1;
    for (s++; s < m->subject_end; s++) {
        step(m);
        if (*s == p[3]) {
            if (--open == 0)
                return s + 1;
        } else if (*s == p[2]) {
            open++;
        }
    }
    return NULL;
}

/* %f[set] at p: whether the border stands at s; *p moves behind the set. */
static bool is_frontier(matcher *m, const char *s, const char **p)
{
    const char *set = *p + 2;
    if (set >= m->pattern_end || *set != '[')
        luaL_error(m->L, "missing '[' after '%%f' in pattern");
    const char *end = item_end(m, set);
    *p = end;
    int before = s == m->subject ? 0 : (unsigned char)s[-1];
    int after = s == m->subject_end ? 0 : (unsigned char)*s;
    return !set_has(before, set, end - 1) && set_has(after, set, end - 1);
}

/* The end of a repetition of capture `digit` at s, or NULL. */
static const char *repeated_end(matcher *m, const char *s, int digit)
{
    int i = digit - '1';
    if (i < 0 || i >= m->n_captures || m->captures[i].size == OPEN_CAPTURE)
        luaL_error(m->L, "invalid capture index %%%d", i + 1);
    ptrdiff_t size = m->captures[i].size;
    if (size == POSITION_CAPTURE)
        return NULL;
    m->steps += (unsigned)MIN(size / 16, CHARGE_EVERY);
    if (size > m->subject_end - s || memcmp(m->captures[i].start, s, (size_t)size) != 0)
        return NULL;
    return s + size;
}

static const char *match_item(matcher *m, const char *s, const char *p)
{
    for (;;) { /* tail calls of match() */
        step(m);
        if (p >= m->pattern_end)
            return s;
        if (*p == '(') {
            bool position = p + 1 < m->pattern_end && p[1] == ')';
            return position ? open_capture(m, s, p + 2, POSITION_CAPTURE)
                            : open_capture(m, s, p + 1, OPEN_CAPTURE);
        }
        if (*p == ')')
            return close_capture(m, s, p + 1);
        if (*p == '$' && p + 1 == m->pattern_end)
            return s == m->subject_end ? s : NULL;
        if (*p == '%' && p + 1 < m->pattern_end) {
            if (p[1] == 'b') {
                s = balanced_end(m, s, p);
                p += 4;
                if (!s)
                    return NULL;
                continue;
            }
            if (p[1] == 'f') {
                if (!is_frontier(m, s, &p))
                    return NULL;
                continue;
            }
            if (isdigit((unsigned char)p[1])) {
                s = repeated_end(m, s, p[1]);
                p += 2;
                if (!s)
                    return NULL;
                continue;
            }
        }
        const char *end = item_end(m, p);
        char quantifier = end < m->pattern_end ? *end : '\0';
        if (quantifier == '*')
            return match_longest(m, s, p, end);
        if (quantifier == '-')
            return match_shortest(m, s, p, end);
        bool has = item_has(m, s, p, end);
        if (quantifier == '+')
            return has ? match_longest(m, s + 1, p, end) : NULL;
        if (quantifier == '?') {
            const char *rest = has ? match(m, s + 1, end + 1) : NULL;
            if (rest)
                return rest;
            p = end + 1;
            continue;
        }
        if (!has)
            return NULL;
        s++;
        p = end;
    }
}

/* The end of the match of pattern p at s, or NULL. */
static const char *match(matcher *m, const char *s, const char *p)
{
    if (++m->depth > MAX_DEPTH)
        luaL_error(m->L, "pattern too complex");
    const char *end = match_item(m, s, p);
    m->depth--;
    return end;
}

static void start(matcher *m, lua_State *L, const char *subject, size_t size_bytes,
                  const char *pattern_end)
{
    m->L = L;
    m->subject = subject;
    m->subject_end = subject + size_bytes;
    m->pattern_end = pattern_end;
    m->steps = 0;
}

static const char *match_at(matcher *m, const char *s, const char *p)
{
    m->depth = 0;
    m->n_captures = 0;
    return match(m, s, p);
}

/* Capture i of the match [s, end); the whole match stands for capture 0 where there is none. */
static void push_capture(matcher *m, int i, const char *s, const char *end)
{
    if (i >= m->n_captures) {
        if (i > 0)
            luaL_error(m->L, "invalid capture index %%%d", i + 1);
        lua_pushlstring(m->L, s, (size_t)(end - s));
        return;
    }
    ptrdiff_t size = m->captures[i].size;
    if (size == OPEN_CAPTURE)
        luaL_error(m->L, "unfinished capture");
    if (size == POSITION_CAPTURE)
        lua_pushinteger(m->L, m->captures[i].start - m->subject + 1);
    else
        lua_pushlstring(m->L, m->captures[i].start, (size_t)size);
}

static int push_captures(matcher *m, const char *s, const char *end, bool whole_if_none)
{
    int n = m->n_captures == 0 && whole_if_none ? 1 : m->n_captures;
    luaL_checkstack(m->L, n, "too many captures");
    for (int i = 0; i < n; i++)
        push_capture(m, i, s, end);
    return n;
}

/* A position argument of the string library as an offset; more than size_bytes if it is behind the
 * end. */
static size_t offset_argument(lua_State *L, int arg, size_t size_bytes)
{
    lua_Integer at = luaL_optinteger(L, arg, 1);
    if (at > 0)
        return (size_t)at - 1;
    if (at == 0 || at < -(lua_Integer)size_bytes)
        return 0;
    return size_bytes - (size_t)-at;
}

static int find_plain(lua_State *L, const char *s, size_t size_bytes, size_t from, const char *p,
                      size_t p_bytes)
{
    cs_sandbox_charge(L, (size_bytes - from + p_bytes) / 16);
    const char *at = p_bytes == 0 ? s + from : memmem(s + from, size_bytes - from, p, p_bytes);
    if (!at) {
        luaL_pushfail(L);
        return 1;
    }
    lua_pushinteger(L, at - s + 1);
    lua_pushinteger(L, at - s + (lua_Integer)p_bytes);
    return 2;
}

static bool has_specials(const char *p, size_t p_bytes)
{
    for (size_t i = 0; i < p_bytes; i++) {
        if (p[i] != '\0' && strchr("^$*+?.([%-", p[i]))
            return true;
    }
    return false;
}

static int find_or_match(lua_State *L, bool find)
{
    size_t size_bytes, p_bytes;
    const char *s = luaL_checklstring(L, 1, &size_bytes);
    const char *p = luaL_checklstring(L, 2, &p_bytes);
    size_t from = offset_argument(L, 3, size_bytes);
    if (from > size_bytes) {
        luaL_pushfail(L);
        return 1;
    }
    if (find && (lua_toboolean(L, 4) || !has_specials(p, p_bytes)))
        return find_plain(L, s, size_bytes, from, p, p_bytes);
    matcher m;
    start(&m, L, s, size_bytes, p + p_bytes);
    bool anchored = p_bytes > 0 && *p == '^';
    for (const char *at = s + from; at <= m.subject_end; at++) {
        const char *end = match_at(&m, at, p + anchored);
        if (end && find) {
            lua_pushinteger(L, at - s + 1);
            lua_pushinteger(L, end - s);
            return 2 + push_captures(&m, NULL, NULL, false);
        }
        if (end)
            return push_captures(&m, at, end, true);
        if (anchored)
            break;
    }
    luaL_pushfail(L);
    return 1;
}

static int string_find(lua_State *L)
{
    return find_or_match(L, true);
}

static int string_match(lua_State *L)
{
    return find_or_match(L, false);
}

/* Upvalues: subject, pattern, offset to go on from, end offset of the last match or -1. */
static int next_match(lua_State *L)
{
    size_t size_bytes, p_bytes;
    const char *s = lua_tolstring(L, lua_upvalueindex(1), &size_bytes);
    const char *p = lua_tolstring(L, lua_upvalueindex(2), &p_bytes);
    lua_Integer last_end = lua_tointeger(L, lua_upvalueindex(4));
    matcher m;
    start(&m, L, s, size_bytes, p + p_bytes);
    for (size_t from = (size_t)lua_tointeger(L, lua_upvalueindex(3)); from <= size_bytes; from++) {
        const char *end = match_at(&m, s + from, p);
        if (end && end - s != last_end) {
            lua_pushinteger(L, end - s);
            lua_copy(L, -1, lua_upvalueindex(3));
            lua_replace(L, lua_upvalueindex(4));
            return push_captures(&m, s + from, end, true);
        }
    }
    return 0;
}

static int string_gmatch(lua_State *L)
{
    size_t size_bytes;
    luaL_checklstring(L, 1, &size_bytes);
    luaL_checkstring(L, 2);
    size_t from = MIN(offset_argument(L, 3, size_bytes), size_bytes + 1);
    lua_settop(L, 2);
    lua_pushinteger(L, (lua_Integer)from);
    lua_pushinteger(L, -1);
    lua_pushcclosure(L, next_match, 4);
    return 1;
}

static void add_template(matcher *m, luaL_Buffer *out, const char *s, const char *end)
{
    size_t size_bytes;
    const char *text = lua_tolstring(m->L, 3, &size_bytes);
    const char *text_end = text + size_bytes;
    cs_sandbox_charge(m->L, size_bytes / 16);
    for (; text < text_end; text++) {
        if (*text != '%') {
            luaL_addchar(out, *text);
            continue;
        }
        text++;
        if (text < text_end && *text == '%') {
            luaL_addchar(out, '%');
        } else if (text < text_end && *text == '0') {
            luaL_addlstring(out, s, (size_t)(end - s));
        } else if (text < text_end && isdigit((unsigned char)*text)) {
            push_capture(m, *text - '1', s, end);
            luaL_tolstring(m->L, -1, NULL);
            lua_remove(m->L, -2);
            luaL_addvalue(out);
        } else {
            luaL_error(m->L, "invalid use of '%%' in replacement string");
        }
    }
}

static void add_replacement(matcher *m, luaL_Buffer *out, const char *s, const char *end)
{
    lua_State *L = m->L;
    switch (lua_type(L, 3)) {
    case LUA_TFUNCTION:
        lua_pushvalue(L, 3);
        lua_call(L, push_captures(m, s, end, true), 1);
        break;
    case LUA_TTABLE:
        push_capture(m, 0, s, end);
        lua_gettable(L, 3);
        break;
    default:
        add_template(m, out, s, end);
        return;
    }
    if (!lua_toboolean(L, -1)) {
        lua_pop(L, 1);
        luaL_addlstring(out, s, (size_t)(end - s));
    } else if (!lua_isstring(L, -1)) {
        luaL_error(L, "invalid replacement value (a %s)", luaL_typename(L, -1));
    } else {
        luaL_addvalue(out);
    }
}

static int string_gsub(lua_State *L)
{
    size_t size_bytes, p_bytes;
    const char *s = luaL_checklstring(L, 1, &size_bytes);
    const char *p = luaL_checklstring(L, 2, &p_bytes);
    int type = lua_type(L, 3);
    luaL_argexpected(L,
                     type == LUA_TNUMBER || type == LUA_TSTRING || type == LUA_TFUNCTION ||
                         type == LUA_TTABLE,
                     3, "string/function/table");
    lua_Integer max_n = luaL_optinteger(L, 4, (lua_Integer)size_bytes + 1);
    lua_settop(L, 3);
    matcher m;
    start(&m, L, s, size_bytes, p + p_bytes);
    bool anchored = p_bytes > 0 && *p == '^';
    luaL_Buffer out;
    luaL_buffinit(L, &out);
    const char *last_end = NULL;
    lua_Integer n = 0;
    while (n < max_n) {
        const char *end = match_at(&m, s, p + anchored);
        if (end && end != last_end) {
            n++;
            add_replacement(&m, &out, s, end);
            s = last_end = end;
        } else if (s < m.subject_end) {
            luaL_addchar(&out, *s++);
        } else {
            break;
        }
        if (anchored)
            break;
    }
    luaL_addlstring(&out, s, (size_t)(m.subject_end - s));
    luaL_pushresult(&out);
    lua_pushinteger(L, n);
    return 2;
}

void sandbox_open_match(lua_State *L)
{
    static const luaL_Reg functions[] = {{"find", string_find},
                                         {"match", string_match},
                                         {"gmatch", string_gmatch},
                                         {"gsub", string_gsub},
                                         {NULL, NULL}};
    luaL_setfuncs(L, functions, 0);
}
