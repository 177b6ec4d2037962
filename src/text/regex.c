#include "text/regex.h"

#include "base/error.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

/* Backtracking steps for one match; the patterns of real tokenizers need a few per character. */
#define MATCH_LIMIT (20u * 1000 * 1000)
#define JIT_STACK_MAX_BYTES (8u << 20)

/* Unicode's White_Space; PCRE2's \s has U+180E too. */
#define SPACES                                                                                     \
    "\\x{09}-\\x{0D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"  \
    "\\x{205F}\\x{3000}"
#define NOT_SPACES                                                                                 \
    "\\x{0}-\\x{08}\\x{0E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}"                 \
    "\\x{1681}-\\x{1FFF}\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}"                 \
    "\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}"
/* Alphabetic, marks, decimal digits, connectors; PCRE2 10.42 leaves the marks out. */
#define WORDS                                                                                      \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}"                    \
    "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"

/* Characters of Unicode 15 and 16, by general category. Oniguruma 6.9.10, which the reference
 * embeds, has them; PCRE2 knows them from 10.43 on only in part, and adding them twice does no
 * harm. */
static const struct {
    const char *category, *ranges;
} late_ranges[] = {
    {"Lu", "\\x{1C89}\\x{A7CB}\\x{A7CC}\\x{A7DA}\\x{A7DC}\\x{10D50}-\\x{10D65}"},
    {"Ll", "\\x{1C8A}\\x{A7CD}\\x{A7DB}\\x{10D70}-\\x{10D85}\\x{1DF25}-\\x{1DF2A}"},
    {"Lm", "\\x{10D4E}\\x{10D6F}\\x{16D40}-\\x{16D42}\\x{16D6B}-\\x{16D6C}"
           "\\x{1E030}-\\x{1E06D}\\x{1E4EB}"},
    {"Lo", "\\x{105C0}-\\x{105F3}\\x{10D4A}-\\x{10D4D}\\x{10D4F}\\x{10EC2}-\\x{10EC4}"
           "\\x{1123F}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}"
           "\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}\\x{11BC0}-\\x{11BE0}"
           "\\x{11F02}\\x{11F04}-\\x{11F10}\\x{11F12}-\\x{11F33}\\x{1342F}"
           "\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}\\x{16100}-\\x{1611D}"
           "\\x{16D43}-\\x{16D6A}\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1E4D0}-\\x{1E4EA}"
           "\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}"
           "\\x{31350}-\\x{323AF}"},
    {"Mn", "\\x{897}\\x{ECE}\\x{10D69}-\\x{10D6D}\\x{10EFC}-\\x{10EFF}\\x{11241}"
           "\\x{113BB}-\\x{113C0}\\x{113CE}\\x{113D0}\\x{113D2}\\x{113E1}-\\x{113E2}"
           "\\x{11F00}-\\x{11F01}\\x{11F36}-\\x{11F3A}\\x{11F40}\\x{11F42}\\x{11F5A}"
           "\\x{13440}\\x{13447}-\\x{13455}\\x{1611E}-\\x{16129}\\x{1612D}-\\x{1612F}"
           "\\x{1E08F}\\x{1E4EC}-\\x{1E4EF}\\x{1E5EE}-\\x{1E5EF}"},
    {"Mc", "\\x{CF3}\\x{113B8}-\\x{113BA}\\x{113C2}\\x{113C5}\\x{113C7}-\\x{113CA}"
           "\\x{113CC}-\\x{113CD}\\x{113CF}\\x{11F03}\\x{11F34}-\\x{11F35}"
           "\\x{11F3E}-\\x{11F3F}\\x{11F41}\\x{1612A}-\\x{1612C}"},
    {"Nd", "\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}"
           "\\x{11F50}-\\x{11F59}\\x{16130}-\\x{16139}\\x{16D70}-\\x{16D79}"
           "\\x{1CCF0}-\\x{1CCF9}\\x{1E4F0}-\\x{1E4F9}\\x{1E5F1}-\\x{1E5FA}"},
    {"No", "\\x{1D2C0}-\\x{1D2D3}"},
    {"Pd", "\\x{10D6E}"},
    {"Po", "\\x{1B4E}-\\x{1B4F}\\x{1B7F}\\x{113D4}-\\x{113D5}\\x{113D7}-\\x{113D8}"
           "\\x{11B00}-\\x{11B09}\\x{11BE1}\\x{11F43}-\\x{11F4F}\\x{16D6D}-\\x{16D6F}"
           "\\x{1E5FF}"},
    {"Sm", "\\x{10D8E}-\\x{10D8F}"},
    {"So", "\\x{2427}-\\x{2429}\\x{2FFC}-\\x{2FFF}\\x{31E4}-\\x{31E5}\\x{31EF}"
           "\\x{1CC00}-\\x{1CCEF}\\x{1CD00}-\\x{1CEB3}\\x{1F6DC}\\x{1F774}-\\x{1F776}"
           "\\x{1F77B}-\\x{1F77F}\\x{1F7D9}\\x{1F8B2}-\\x{1F8BB}\\x{1F8C0}-\\x{1F8C1}"
           "\\x{1FA75}-\\x{1FA77}\\x{1FA87}-\\x{1FA89}\\x{1FA8F}\\x{1FAAD}-\\x{1FAAF}"
           "\\x{1FABB}-\\x{1FABF}\\x{1FAC6}\\x{1FACE}-\\x{1FACF}\\x{1FADA}-\\x{1FADC}"
           "\\x{1FADF}\\x{1FAE8}-\\x{1FAE9}\\x{1FAF7}-\\x{1FAF8}\\x{1FBCB}-\\x{1FBEF}"},
};

struct cs_regex {
    pcre2_code *code;
    pcre2_code *late_code; /* for text with late characters; NULL where code serves */
    bool has_jit;          /* false where a CPU or a policy forbids it: pcre2_match interprets */
};

struct cs_regex_scratch {
    pcre2_match_context *context;
    pcre2_match_data *data;
    pcre2_jit_stack *stack;
};

typedef struct {
    const char *p; /* what is left of the pattern */
    GString *out;
    bool in_class;
    bool late;      /* late_ranges are added ... */
    bool uses_late; /* ... or would be */
    GError *error;
} translator;

static void refuse(translator *t, const char *what)
{
    if (!t->error)
        cs_fail(&t->error, CS_ERROR_UNSUPPORTED, "%s is not supported in a regular expression",
                what);
}

/* The ranges of \p{name}; a single letter stands for all its categories. */
static void append_late(translator *t, const char *name, size_t name_bytes)
{
    for (size_t i = 0; i < G_N_ELEMENTS(late_ranges); i++) {
        if (name_bytes > 2 || strncmp(late_ranges[i].category, name, name_bytes) != 0)
            continue;
        t->uses_late = true;
        if (t->late)
            g_string_append(t->out, late_ranges[i].ranges);
    }
}

/* At {name}. A negated property inside a class cannot be put right, and no known file has one. */
static void translate_property(translator *t, bool negated)
{
    const char *close = strchr(t->p, '}');
    if (t->p[0] != '{' || !close) {
        refuse(t, "\\p without {name}");
        return;
    }
    if (!t->in_class)
        g_string_append(t->out, negated ? "[^" : "[");
    g_string_append_printf(t->out, negated && t->in_class ? "\\P%.*s" : "\\p%.*s",
                           (int)(close + 1 - t->p), t->p);
    if (!(negated && t->in_class))
        append_late(t, t->p + 1, (size_t)(close - t->p - 1));
    if (!t->in_class)
        g_string_append_c(t->out, ']');
    t->p = close + 1;
}

/* \uHHHH */
static void translate_unicode(translator *t)
{
    for (int i = 0; i < 4; i++) {
        if (!g_ascii_isxdigit(t->p[i])) {
            refuse(t, "\\u without four hexadecimal digits");
            return;
        }
    }
    g_string_append_printf(t->out, "\\x{%.4s}", t->p);
    t->p += 4;
}

static void translate_escape(translator *t)
{
    char c = *t->p++;
    const char *open = t->in_class ? "" : "[", *open_not = t->in_class ? "" : "[^",
               *close = t->in_class ? "" : "]";
    switch (c) {
    case 's':
        g_string_append_printf(t->out, "%s%s%s", open, SPACES, close);
        break;
    case 'S':
        g_string_append_printf(t->out, "%s%s%s", open_not, t->in_class ? NOT_SPACES : SPACES,
                               close);
        break;
    case 'w':
        g_string_append_printf(t->out, "%s%s%s", open, WORDS, close);
        break;
    case 'W':
        if (t->in_class)
            refuse(t, "\\W inside [...]");
        g_string_append_printf(t->out, "%s%s%s", open_not, WORDS, close);
        break;
    case 'v':
        g_string_append(t->out, "\\x{0B}");
        break;
    case 'u':
        translate_unicode(t);
        break;
    case 'p':
    case 'P':
        translate_property(t, c == 'P');
        break;
    case 'A':
    case 'z':
        if (t->in_class)
            refuse(t, "\\A or \\z inside [...]");
        g_string_append_printf(t->out, "\\%c", c);
        break;
    case 'd':
    case 'D':
    case 't':
    case 'n':
    case 'r':
    case 'f':
    case 'a':
    case 'e':
    case 'x':
        g_string_append_printf(t->out, "\\%c", c);
        break;
    default:
        if (c == '\0' || g_ascii_isalnum(c) || (uint8_t)c >= 0x80) {
            g_autofree char *what = g_strdup_printf("the escape \\%c", c ? c : ' ');
            refuse(t, what);
            break;
        }
        g_string_append_printf(t->out, "\\%c", c);
    }
}

/* After "(?". */
static void translate_group(translator *t)
{
    static const char *const known[] = {":", "=", "!", "<=", "<!", ">", "i:", "-i:"};
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        if (g_str_has_prefix(t->p, known[i])) {
            g_string_append(t->out, known[i]);
            t->p += strlen(known[i]);
            return;
        }
    }
    g_autofree char *what = g_strdup_printf("the group (?%.1s", t->p);
    refuse(t, what);
}

static void translate_class(translator *t)
{
    t->in_class = true;
    if (*t->p == '^')
        g_string_append_c(t->out, *t->p++);
    if (*t->p == ']') {
        g_string_append(t->out, "\\]");
        t->p++;
    }
    while (*t->p && *t->p != ']' && !t->error) {
        char c = *t->p++;
        if (c == '[')
            refuse(t, "a class inside [...]");
        else if (c == '&' && *t->p == '&')
            refuse(t, "&& inside [...]");
        else if (c == '\\')
            translate_escape(t);
        else
            g_string_append_c(t->out, c);
    }
    t->in_class = false;
}

static char *translate(const char *pattern, bool late, bool *uses_late, GError **error)
{
    translator t = {.p = pattern, .late = late, .out = g_string_new(NULL)};
    while (*t.p && !t.error) {
        char c = *t.p++;
        if (c == '\\') {
            translate_escape(&t);
            continue;
        }
        g_string_append_c(t.out, c);
        if (c == '[')
            translate_class(&t);
        else if (c == '(' && *t.p == '?') {
            g_string_append_c(t.out, *t.p++);
            translate_group(&t);
        } else if (c == '(' && *t.p == '*')
            refuse(&t, "(*");
        else if (c == '}' && *t.p == '+') /* greedy of greedy there, possessive here */
            refuse(&t, "{n,m}+");
    }
    if (t.error) {
        g_propagate_error(error, t.error);
        g_string_free(t.out, TRUE);
        return NULL;
    }
    *uses_late = t.uses_late;
    return g_string_free(t.out, FALSE);
}

static pcre2_code *compile(const char *pattern, bool late, bool *uses_late, GError **error)
{
    g_autofree char *translated = translate(pattern, late, uses_late, error);
    if (!translated)
        return NULL;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE at;
    uint32_t options =
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE;
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)translated, PCRE2_ZERO_TERMINATED, options, &code, &at, context);
    pcre2_compile_context_free(context);
    if (!compiled) {
        char message[200];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof message);
        cs_fail(error, CS_ERROR_INVALID, "regular expression %s: %s", pattern, message);
        return NULL;
    }
    return compiled;
}

cs_regex *cs_regex_new(const char *pattern, GError **error)
{
    g_autoptr(cs_regex) r = g_new0(cs_regex, 1);
    bool uses_late;
    r->code = compile(pattern, false, &uses_late, error);
    if (!r->code)
        return NULL;
    if (uses_late && !(r->late_code = compile(pattern, true, &uses_late, error)))
        return NULL;
    r->has_jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0 &&
                 (!r->late_code || pcre2_jit_compile(r->late_code, PCRE2_JIT_COMPLETE) == 0);
    return g_steal_pointer(&r);
}

void cs_regex_free(cs_regex *r)
{
    if (!r)
        return;
    pcre2_code_free(r->code);
    pcre2_code_free(r->late_code);
    g_free(r);
}

/* By the first two bytes of a character: all planes above the first, and in the first the blocks of
 * 64 characters that late_ranges touches. */
bool cs_regex_has_late(const char *text, size_t size_bytes)
{
    static const uint8_t blocks[][2] = {{0xE0, 0xA2}, {0xE0, 0xB3}, {0xE0, 0xBB},
                                        {0xE1, 0xAD}, {0xE1, 0xB2}, {0xE2, 0x90},
                                        {0xE2, 0xBF}, {0xE3, 0x87}, {0xEA, 0x9F}};
    const uint8_t *p = (const uint8_t *)text;
    for (size_t i = 0; i < size_bytes; i++) {
        if (p[i] >= 0xF0)
            return true;
        if (p[i] < 0xE0 || (p[i] > 0xE3 && p[i] != 0xEA))
            continue;
        for (size_t j = 0; j < G_N_ELEMENTS(blocks); j++) {
            if (p[i] == blocks[j][0] && p[i + 1] == blocks[j][1])
                return true;
        }
    }
    return false;
}

cs_regex_scratch *cs_regex_scratch_new(void)
{
    cs_regex_scratch *s = g_new0(cs_regex_scratch, 1);
    s->data = pcre2_match_data_create(1, NULL);
    s->stack = pcre2_jit_stack_create(32 << 10, JIT_STACK_MAX_BYTES, NULL);
    s->context = pcre2_match_context_create(NULL);
    pcre2_set_match_limit(s->context, MATCH_LIMIT);
    pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return s;
}

void cs_regex_scratch_free(cs_regex_scratch *s)
{
    if (!s)
        return;
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    g_free(s);
}

int cs_regex_find(const cs_regex *r, cs_regex_scratch *scratch, const char *text, size_t size_bytes,
                  size_t from, bool late, size_t *start, size_t *end, GError **error)
{
    const pcre2_code *code = late && r->late_code ? r->late_code : r->code;
    int rc = r->has_jit
                 ? pcre2_jit_match(code, (PCRE2_SPTR)text, size_bytes, from, 0, scratch->data,
                                   scratch->context) /* checks nothing, the text is UTF-8 */
                 : pcre2_match(code, (PCRE2_SPTR)text, size_bytes, from, PCRE2_NO_UTF_CHECK,
                               scratch->data, scratch->context);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0) {
        char message[200];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
        cs_fail(error, CS_ERROR_TOO_LARGE, "splitting %zu bytes of text: %s", size_bytes, message);
        return -1;
    }
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(scratch->data);
    *start = range[0];
    *end = range[1];
    return 1;
}
