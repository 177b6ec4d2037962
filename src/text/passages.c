#include "text/passages.h"

#include "text/utf8.h"

#include <stdbool.h>
#include <string.h>

/* ---- how long it takes ---- */

/* Seconds a character, from usual speeds of speech: 15 letters, 4.5 ideographs, 6 syllables of
 * Korean and 7.5 kana a second; digits and symbols are whole words. */
static double spoken_seconds(gunichar c)
{
    switch (g_unichar_type(c)) {
    case G_UNICODE_UPPERCASE_LETTER:
        return 0.12; /* some are spelled out */
    case G_UNICODE_DECIMAL_NUMBER:
    case G_UNICODE_LETTER_NUMBER:
    case G_UNICODE_OTHER_NUMBER:
        return 0.35;
    case G_UNICODE_CURRENCY_SYMBOL:
    case G_UNICODE_MATH_SYMBOL:
    case G_UNICODE_MODIFIER_SYMBOL:
    case G_UNICODE_OTHER_SYMBOL:
        return 0.5;
    case G_UNICODE_CONTROL:
    case G_UNICODE_FORMAT:
    case G_UNICODE_NON_SPACING_MARK:
        return 0;
    default:
        break;
    }
    if (c >= 0x3040 && c <= 0x30ff)
        return 0.13;
    if (c >= 0xac00 && c <= 0xd7a3)
        return 0.17;
    return g_unichar_iswide(c) && g_unichar_isalpha(c) ? 0.22 : 0.067;
}

double cs_text_spoken_seconds(const char *text, size_t size_bytes)
{
    double seconds = 0;
    for (const char *p = text; p < text + size_bytes; p = g_utf8_next_char(p))
        seconds += spoken_seconds(g_utf8_get_char(p));
    return seconds;
}

/* ---- classes of characters ---- */

static bool is_one_of(gunichar c, const char *set)
{
    return c != 0 && g_utf8_strchr(set, -1, c) != NULL;
}

/* They end a sentence when a space follows... */
static bool is_stop(gunichar c)
{
    return is_one_of(c, ".!?…‼⁇⁈⁉؟۔।॥．");
}

/* ...and these also when none does. */
static bool is_wide_stop(gunichar c)
{
    return is_one_of(c, "。！？｡");
}

static bool is_pause(gunichar c)
{
    return is_one_of(c, ",;:—–،؛");
}

static bool is_wide_pause(gunichar c)
{
    return is_one_of(c, "、，；：");
}

/* What may stand between a stop and the space behind it. */
static bool is_closer(gunichar c)
{
    return is_one_of(c, "\"')]}»”’」』）】》〉");
}

static bool can_be_said(gunichar c)
{
    return utf8_is_word(c) || spoken_seconds(c) >= 0.3;
}

static const char *skip_spaces(const char *p, guint *n_lines)
{
    for (*n_lines = 0; *p && utf8_is_space(g_utf8_get_char(p)); p = g_utf8_next_char(p))
        *n_lines += *p == '\n' || g_utf8_get_char(p) == 0x2029;
    return p;
}

/* ---- full stops that end nothing ---- */

/* Lower case, without the last full stop. */
static bool is_abbreviation(const char *word, size_t n)
{
    static const char *const known[] = {
        /* English */
        "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "no", "nos", "fig", "figs", "vol",
        "pp", "ed", "eds", "approx", "inc", "ltd", "corp", "dept", "est", "gen", "col", "sgt",
        "capt", "lt", "cmdr", "rev", "hon", "gov", "sen", "rep", "pres", "mt", "ft", "cf", "al",
        "ca", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec",
        "mon", "tue", "tues", "wed", "thu", "thur", "thurs", "fri", "ave", "blvd", "eq", "sec",
        "ch", "e.g", "i.e", "a.m", "p.m", "ph.d",
        /* German, French, Spanish */
        "bzw", "usw", "nr", "str", "ggf", "evtl", "vgl", "bspw", "inkl", "zzgl", "hr", "fr", "mme",
        "mlle", "mgr", "sra", "dra", "srta", "ud", "uds", "av", "núm", "pág"};
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++)
        if (strlen(known[i]) == n && memcmp(known[i], word, n) == 0)
            return true;
    return false;
}

/* One letter, alone or behind others with stops: J. Smith, U.S. */
static bool is_initial(const char *word, const char *end)
{
    const char *last = utf8_previous(word, end);
    return g_unichar_isalpha(g_utf8_get_char(last)) && (last == word || last[-1] == '.');
}

static bool is_number(const char *word, const char *end)
{
    for (const char *p = word; p < end; p = g_utf8_next_char(p))
        if (!g_unichar_isdigit(g_utf8_get_char(p)))
            return false;
    return word < end;
}

/* A full stop at `stop` belongs to the word before it. `sentence`: where the sentence began. */
static bool belongs_to_word(const char *sentence, const char *stop)
{
    const char *word = stop;
    while (word > sentence) {
        const char *p = utf8_previous(sentence, word);
        gunichar c = g_utf8_get_char(p);
        if (!utf8_is_word(c) && c != '.')
            break;
        word = p;
    }
    if (word == stop)
        return false;
    g_autofree char *lower = g_utf8_strdown(word, stop - word);
    return is_initial(word, stop) || is_abbreviation(lower, strlen(lower)) ||
           (word == sentence && is_number(word, stop)); /* an item's number */
}

/* ---- where it may end ---- */

typedef struct {
    const char *at;   /* the first byte behind it */
    const char *next; /* behind the spaces that follow */
    cs_passage_end end;
} cut;

/* Rank of a cut behind a run of stops, of which the last is at `stop` and a full stop if `full`. */
static cs_passage_end end_of_stop(const char *sentence, const char *stop, const char *next,
                                  bool full)
{
    gunichar following = g_utf8_get_char(next);
    bool single = full && (stop == sentence || stop[-1] != '.');
    if (single && belongs_to_word(sentence, stop))
        return CS_PASSAGE_WORD;
    return g_unichar_islower(following) ? CS_PASSAGE_CLAUSE : CS_PASSAGE_SENTENCE;
}

/* Behind the character at p, with the closers that follow it. */
static cut cut_behind(const char *sentence, const char *p)
{
    gunichar c = g_utf8_get_char(p);
    const char *at = g_utf8_next_char(p);
    bool stop = is_stop(c), wide_stop = is_wide_stop(c), marks = stop || wide_stop;
    bool pause = is_pause(c), wide_pause = is_wide_pause(c);
    while ((marks || pause || wide_pause) && is_closer(g_utf8_get_char(at)))
        at = g_utf8_next_char(at);
    guint n_lines;
    const char *next = skip_spaces(at, &n_lines);
    gunichar following = g_utf8_get_char(at);
    cs_passage_end end = CS_PASSAGE_CHARACTER;
    if (n_lines > 1)
        end = CS_PASSAGE_PARAGRAPH;
    else if (wide_stop && !is_stop(following) && !is_wide_stop(following))
        end = CS_PASSAGE_SENTENCE;
    else if (stop && (next > at || !*next))
        end = end_of_stop(sentence, p, next, c == '.');
    else if (wide_pause || (pause && next > at))
        end = CS_PASSAGE_CLAUSE;
    else if (next > at ||
             (g_unichar_iswide(c) && g_unichar_iswide(following) && !g_unichar_ispunct(following)))
        end = CS_PASSAGE_WORD;
    if (n_lines == 1)
        end = MAX(end, CS_PASSAGE_CLAUSE);
    return (cut){at, next, end};
}

/* Between characters that make one sign together there is none. */
static bool is_inside_sign(const char *at)
{
    const gunichar joiner = 0x200d;
    gunichar following = g_utf8_get_char(at);
    return g_unichar_ismark(following) || following == joiner ||
           (following >= 0x1f3fb && following <= 0x1f3ff) || /* colours of skin */
           g_utf8_get_char(g_utf8_prev_char(at)) == joiner;
}

/* A paragraph is no better a place than a sentence. */
static bool is_as_good(const cut *a, const cut *b)
{
    return MIN(a->end, CS_PASSAGE_SENTENCE) >= MIN(b->end, CS_PASSAGE_SENTENCE);
}

/* The best place to end a passage that begins at `begin`: the furthest of the best kind within the
 * limit. */
static cut choose(const char *begin, double max_seconds)
{
    cut best = {0}, last = {0};
    const char *sentence = begin, *p = begin;
    double seconds = 0;
    while (*p) {
        last = cut_behind(sentence, p);
        seconds += cs_text_spoken_seconds(p, (size_t)(last.at - p));
        if (seconds > max_seconds && best.at)
            return best;
        if (!is_inside_sign(last.at) && (!best.at || is_as_good(&last, &best)))
            best = last;
        seconds += cs_text_spoken_seconds(last.at, (size_t)(last.next - last.at));
        p = last.next;
        sentence = last.end >= CS_PASSAGE_SENTENCE ? p : sentence;
    }
    return last;
}

/* ---- passages ---- */

static void clear_passage(gpointer passage)
{
    g_free(((cs_passage *)passage)->text);
}

static void add_passage(GArray *passages, const char *begin, const cut *c)
{
    bool said = false;
    for (const char *p = begin; p < c->at && !said; p = g_utf8_next_char(p))
        said = can_be_said(g_utf8_get_char(p));
    if (!said)
        return;
    cs_passage passage = {g_strndup(begin, (gsize)(c->at - begin)), c->end};
    g_array_append_val(passages, passage);
}

GArray *cs_passages_of(const char *text, double max_seconds)
{
    GArray *passages = g_array_new(FALSE, FALSE, sizeof(cs_passage));
    guint n_lines;
    g_array_set_clear_func(passages, clear_passage);
    for (const char *p = skip_spaces(text, &n_lines); *p;) {
        cut c = choose(p, max_seconds);
        add_passage(passages, p, &c);
        p = c.next;
    }
    return passages;
}
