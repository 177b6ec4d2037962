#include "text/normalize.h"

#include "text/utf8.h"

#include <stdlib.h>
#include <utf8proc.h>

#define HANGUL_FIRST 0xAC00
#define HANGUL_LAST 0xD7A3

/* Starters that compose with what stands before them (Unicode's NFC_Quick_Check=Maybe with
 * combining class 0). */
static bool composes_backwards(gunichar c)
{
    static const struct {
        gunichar first, last;
    } ranges[] = {{0x09BE, 0x09BE},   {0x09D7, 0x09D7},   {0x0B3E, 0x0B3E},   {0x0B56, 0x0B57},
                  {0x0BBE, 0x0BBE},   {0x0BD7, 0x0BD7},   {0x0CC2, 0x0CC2},   {0x0CD5, 0x0CD6},
                  {0x0D3E, 0x0D3E},   {0x0D57, 0x0D57},   {0x0DCF, 0x0DCF},   {0x0DDF, 0x0DDF},
                  {0x102E, 0x102E},   {0x1161, 0x1175},   {0x11A8, 0x11C2},   {0x1B35, 0x1B35},
                  {0x11127, 0x11127}, {0x1133E, 0x1133E}, {0x11357, 0x11357}, {0x114B0, 0x114B0},
                  {0x114BA, 0x114BA}, {0x114BD, 0x114BD}, {0x115AF, 0x115AF}};
    for (size_t i = 0; i < G_N_ELEMENTS(ranges); i++) {
        if (c <= ranges[i].last)
            return c >= ranges[i].first;
    }
    return false;
}

/* The reference's tables are of Unicode 10: characters that came later have combining class 0 there
 * and compose with nothing. Those of them that have one now, and blocks of scripts that came later.
 */
static bool is_late(gunichar c)
{
    static const struct {
        gunichar first, last;
    } ranges[] = {{0x07FD, 0x07FD},   {0x0897, 0x089F},   {0x08CA, 0x08D3},   {0x09FE, 0x09FE},
                  {0x0C3C, 0x0C3C},   {0x0CF3, 0x0CF3},   {0x0D3B, 0x0D3C},   {0x0EBA, 0x0EBA},
                  {0x0ECE, 0x0ECE},   {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
                  {0xA82C, 0xA82C},   {0x105C0, 0x105FF}, {0x10D24, 0x10D27}, {0x10D40, 0x10D8F},
                  {0x10EAB, 0x10EAC}, {0x10EC0, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
                  {0x11070, 0x11070}, {0x11240, 0x11241}, {0x1133B, 0x1133B}, {0x11380, 0x113FF},
                  {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11900, 0x1195F}, {0x119E0, 0x119E0},
                  {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
                  {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F00, 0x11F5F}, {0x13430, 0x13455},
                  {0x16100, 0x1613F}, {0x16D40, 0x16D7F}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
                  {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4D0, 0x1E4FF},
                  {0x1E5D0, 0x1E5FF}};
    for (size_t i = 0; i < G_N_ELEMENTS(ranges); i++) {
        if (c <= ranges[i].last)
            return c >= ranges[i].first;
    }
    return false;
}

/* utf8proc sorts combining marks by swapping neighbours, which is quadratic in the marks of one
 * character; longer runs than this are sorted before. */
#define SHORT_RUN 32

typedef struct {
    utf8proc_int32_t c;
    uint8_t combining_class;
} decomposed;

/* Stable: marks of one class keep their order. */
static void sort_marks(decomposed *marks, size_t n)
{
    size_t at[256] = {0};
    g_autofree decomposed *sorted = g_new(decomposed, n);
    for (size_t i = 0; i < n; i++)
        at[marks[i].combining_class]++;
    for (size_t class = 0, before = 0; class < G_N_ELEMENTS(at); class ++) {
        size_t of_class = at[class];
        at[class] = before;
        before += of_class;
    }
    for (size_t i = 0; i < n; i++)
        sorted[at[marks[i].combining_class]++] = marks[i];
    memcpy(marks, sorted, n * sizeof *marks);
}

static GArray *decompose(const char *text, size_t size_bytes, int options)
{
    const char *end = text + size_bytes;
    GArray *all = g_array_new(FALSE, FALSE, sizeof(decomposed));
    size_t n_bytes;
    for (; text < end; text += n_bytes) {
        utf8proc_int32_t parts[32]; /* the longest there is has 18 */
        int last_bound = 0;
        utf8proc_ssize_t n =
            utf8proc_decompose_char((utf8proc_int32_t)utf8_decode(text, &n_bytes), parts,
                                    G_N_ELEMENTS(parts), (utf8proc_option_t)options, &last_bound);
        for (utf8proc_ssize_t i = 0; i < n; i++) {
            decomposed d = {parts[i], (uint8_t)utf8proc_get_property(parts[i])->combining_class};
            g_array_append_val(all, d);
        }
    }
    return all;
}

/* A text of equal normal form whose marks are in order. */
static GString *in_order(const char *text, size_t size_bytes, int options)
{
    g_autoptr(GArray) all =
        decompose(text, size_bytes, (options & ~UTF8PROC_COMPOSE) | UTF8PROC_DECOMPOSE);
    GString *out = g_string_sized_new(size_bytes);
    decomposed *d = (decomposed *)(void *)all->data;
    for (guint i = 0, run; i < all->len; i += run) {
        for (run = 0; i + run < all->len && d[i + run].combining_class != 0; run++)
            ;
        if (run > 1)
            sort_marks(d + i, run);
        run = MAX(run, 1);
        for (guint j = i; j < i + run; j++)
            g_string_append_unichar(out, (gunichar)d[j].c);
    }
    return out;
}

static bool has_long_run(const char *text, size_t size_bytes)
{
    const char *end = text + size_bytes;
    size_t n_bytes, run = 0;
    for (; text < end && run <= SHORT_RUN; text += n_bytes) {
        gunichar c = utf8_decode(text, &n_bytes);
        /* Halves of kana sound marks become marks only by compatibility. */
        bool mark = c >= 0x300 && (utf8proc_get_property((utf8proc_int32_t)c)->combining_class ||
                                   c == 0xFF9E || c == 0xFF9F);
        run = mark ? run + 1 : 0;
    }
    return run > SHORT_RUN;
}

static char *map_ordered(const char *text, size_t size_bytes, int options, size_t *mapped_bytes)
{
    utf8proc_uint8_t *mapped = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)size_bytes,
                                      &mapped, (utf8proc_option_t)options);
    /* Valid UTF-8 can only fail for want of memory. */
    if (n < 0)
        g_error("normalisation of %zu bytes: %s", size_bytes, utf8proc_errmsg(n));
    *mapped_bytes = (size_t)n;
    return (char *)mapped;
}

static char *map(const char *text, size_t size_bytes, int options, size_t *mapped_bytes)
{
    if (!has_long_run(text, size_bytes))
        return map_ordered(text, size_bytes, options, mapped_bytes);
    GString *ordered = in_order(text, size_bytes, options);
    char *mapped = map_ordered(ordered->str, ordered->len, options, mapped_bytes);
    g_string_free(ordered, TRUE);
    return mapped;
}

/* True when c stands for itself in NFC whatever surrounds it, and parts what is before from what is
 * after. */
static bool compute_inert(gunichar c)
{
    if ((c >= HANGUL_FIRST && c <= HANGUL_LAST) || is_late(c))
        return true;
    const utf8proc_property_t *property = utf8proc_get_property((utf8proc_int32_t)c);
    if (property->combining_class != 0 || composes_backwards(c))
        return false;
    bool decomposes = property->decomp_seqindex != UINT16_MAX && property->decomp_type == 0;
    if (!decomposes)
        return true;
    char text[6];
    size_t size_bytes = (size_t)g_unichar_to_utf8(c, text), mapped_bytes;
    char *mapped = map(text, size_bytes, UTF8PROC_STABLE | UTF8PROC_COMPOSE, &mapped_bytes);
    bool same = mapped_bytes == size_bytes && memcmp(mapped, text, size_bytes) == 0;
    free(mapped);
    return same;
}

/* One bit a character of the Basic Multilingual Plane, set where it is inert. */
static const uint8_t *inert_table(void)
{
    static gsize ready;
    static uint8_t table[0x10000 / 8];
    if (g_once_init_enter(&ready)) {
        for (gunichar c = 0; c < 0x10000; c++) {
            bool surrogate = c >= 0xD800 && c <= 0xDFFF;
            if (!surrogate && compute_inert(c))
                table[c / 8] |= (uint8_t)(1u << (c % 8));
        }
        g_once_init_leave(&ready, 1);
    }
    return table;
}

static bool is_inert(const uint8_t *table, gunichar c)
{
    return c < 0x10000 ? table[c / 8] >> (c % 8) & 1 : compute_inert(c);
}

/* The end of the run of inert characters at p. */
static const char *skip_inert(const uint8_t *table, const char *p, const char *end)
{
    while (p < end) {
        size_t n;
        gunichar c = utf8_decode(p, &n);
        if (c >= 0x300 && !is_inert(table, c))
            break;
        p += n;
    }
    return p;
}

static const char *skip_active(const uint8_t *table, const char *p, const char *end)
{
    while (p < end) {
        size_t n;
        gunichar c = utf8_decode(p, &n);
        if (c < 0x300 || is_inert(table, c))
            break;
        p += n;
    }
    return p;
}

/* Only the windows around active characters, each with the inert one before it, are mapped. */
static bool append_nfc(GString *out, const char *text, size_t size_bytes)
{
    const uint8_t *table = inert_table();
    const char *end = text + size_bytes, *copied = text, *p = text;
    bool changed = false;
    gsize start = out->len;
    while ((p = skip_inert(table, p, end)) < end) {
        const char *window = p > text ? utf8_previous(text, p) : p;
        size_t n;
        if (window < p && is_late(utf8_decode(window, &n)))
            window = p; /* utf8proc would compose and reorder it */
        p = skip_active(table, p, end);
        size_t mapped_bytes;
        char *mapped =
            map(window, (size_t)(p - window), UTF8PROC_STABLE | UTF8PROC_COMPOSE, &mapped_bytes);
        bool same =
            mapped_bytes == (size_t)(p - window) && memcmp(mapped, window, mapped_bytes) == 0;
        if (!same) {
            g_string_append_len(out, copied, window - copied);
            g_string_append_len(out, mapped, (gssize)mapped_bytes);
            copied = p;
            changed = true;
        }
        free(mapped);
    }
    if (changed)
        g_string_append_len(out, copied, end - copied);
    else
        g_string_truncate(out, start);
    return changed;
}

static bool is_ascii(const char *text, size_t size_bytes)
{
    for (size_t i = 0; i < size_bytes; i++) {
        if ((uint8_t)text[i] >= 0x80)
            return false;
    }
    return true;
}

/* The next character that has a decomposition now and had none in Unicode 10. */
static const char *find_late(const char *p, const char *end)
{
    size_t n;
    for (; p < end; p += n) {
        gunichar c = utf8_decode(p, &n);
        if (c == 0x32FF || (c >= 0xA7F2 && c <= 0xA7F4) || c == 0xAB69 ||
            (c >= 0x10781 && c <= 0x107BA) || c == 0x1F16C || (c >= 0x1FBF0 && c <= 0x1FBF9) ||
            is_late(c))
            break;
    }
    return p;
}

bool normalize_append(GString *out, normalize_form form, const char *text, size_t size_bytes)
{
    static const int options[] = {
        [NORMALIZE_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [NORMALIZE_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [NORMALIZE_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    if (form == NORMALIZE_NFC)
        return append_nfc(out, text, size_bytes);
    if (is_ascii(text, size_bytes))
        return false;
    const char *end = text + size_bytes;
    while (text < end) {
        const char *late = find_late(text, end);
        size_t mapped_bytes, n = 0;
        char *mapped = map(text, (size_t)(late - text), options[form], &mapped_bytes);
        g_string_append_len(out, mapped, (gssize)mapped_bytes);
        free(mapped);
        if (late < end)
            utf8_decode(late, &n);
        g_string_append_len(out, late, (gssize)n);
        text = late + n;
    }
    return true;
}
