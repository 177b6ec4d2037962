/* Passages of texts that are read aloud: where they end, and that nothing of the text is lost. */
#include "text/passages.h"

#include <math.h>
#include <string.h>

/* Passages as "text|end|text|end". */
static char *show(const char *text, double max_seconds)
{
    static const char ends[] = "cw,.P";
    g_autoptr(GArray) passages = cs_passages_of(text, max_seconds);
    GString *shown = g_string_new(NULL);
    for (guint i = 0; i < passages->len; i++) {
        const cs_passage *p = &g_array_index(passages, cs_passage, i);
        g_string_append_printf(shown, "%s%s|%c", i ? "|" : "", p->text, ends[p->end]);
    }
    return g_string_free(shown, FALSE);
}

static void check(const char *text, double max_seconds, const char *expected)
{
    g_autofree char *found = show(text, max_seconds);
    g_assert_cmpstr(found, ==, expected);
}

/* Each sentence alone: a limit under which two of them do not fit. */
static void test_sentences(void)
{
    const double s = 1.5; /* about 22 letters */
    check("Hello there. How are you?  I am fine!", s, "Hello there.|.|How are you?|.|I am fine!|.");
    check("It is 3.14 or 1,000. That is it.", 3.5, "It is 3.14 or 1,000.|.|That is it.|.");
    check("Mr. and Mrs. Smith came. They ate.", 1.9, "Mr. and Mrs. Smith came.|.|They ate.|.");
    check("See e.g. the list. Then go.", s, "See e.g. the list.|.|Then go.|.");
    check("J. R. Smith of the U.S. army. Yes.", 2.4, "J. R. Smith of the U.S. army.|.|Yes.|.");
    check("Look at example.com now. Done.", s + 0.3, "Look at example.com now.|.|Done.|.");
    check("He said \"Go away.\" She went.", s, "He said \"Go away.\"|.|She went.|.");
    check("Wait... what? No! He?! Yes.", 0.95, "Wait... what?|.|No! He?!|.|Yes.|.");
    check("1. First of all. 2. Second.", 1.6, "1. First of all.|.|2. Second.|.");
    check("\"Why?\" he asked. Because.", s, "\"Why?\" he asked.|.|Because.|.");
}

static void test_other_scripts(void)
{
    check("今天天气很好。我们去公园吧！好吗？", 1.6, "今天天气很好。|.|我们去公园吧！|.|好吗？|.");
    check("「元気です。」と言った。はい。", 1.45, "「元気です。」|.|と言った。はい。|.");
    check("圆周率是3.14。对吗？", 2.2, "圆周率是3.14。|.|对吗？|.");
    check("你好，世界，我们来了", 0.9, "你好，|,|世界，|,|我们来了|c");
    check("यह एक है। यह दो है।", 0.9, "यह एक है।|.|यह दो है।|.");
    check("Привет всем. Как дела?", 1, "Привет всем.|.|Как дела?|.");
    check("¿Qué tal? ¡Muy bien!", 0.8, "¿Qué tal?|.|¡Muy bien!|.");
}

static void test_clauses_and_words(void)
{
    check("One two, three four; five six", 0.8, "One two,|,|three four;|,|five six|c");
    check("one two three four", 0.55, "one two|w|three|w|four|c");
    check("abcdefghij", 0.21, "abc|c|def|c|ghi|c|j|c");
    check("一二三四五", 0.5, "一二|w|三四|w|五|c");
    /* signs of several characters stay whole: e + accent, family, coloured hand */
    check("e\xcc\x81"
          "e\xcc\x81",
          0.1, "e\xcc\x81|c|e\xcc\x81|c");
    check("👩‍👩‍👧👋🏽", 0.6, "👩‍👩‍👧|c|👋🏽|c");
}

static void test_lines(void)
{
    check("A long title here\n\nThe text. More.", 1.3, "A long title here|P|The text. More.|.");
    check("a line that is\nwrapped here", 1.5, "a line that is|,|wrapped here|c");
    check("eggs\nmilk\r\n\r\nbread", 0.4, "eggs|,|milk|P|bread|c");
    check("  \n\t  Hi.  \n\n ", 30, "Hi.|P");
}

static void test_nothing(void)
{
    check("", 30, "");
    check(" \n\t\xc2\xa0 ", 30, "");
    check("... ?! — \"\"", 30, "");
    check("Yes. ... !!! ...", 0.35, "Yes.|.");
    check("+", 30, "+|c");
    check("a", 0.001, "a|c");
}

/* As few as possible: what fits together stays together. */
static void test_packing(void)
{
    check("One. Two. Three. Four.", 30, "One. Two. Three. Four.|.");
    check("One. Two. Three. Four.", 0.95, "One. Two.|.|Three. Four.|.");
}

static void test_speed(void)
{
    static const char english[] =
        "The quick brown fox jumps over the lazy dog and runs back into the dark wood again.";
    double seconds = cs_text_spoken_seconds(english, strlen(english));
    g_assert_cmpfloat(seconds, >, 4);
    g_assert_cmpfloat(seconds, <, 8);
    static const char chinese[] = "今天天气很好我们去公园吧";
    seconds = cs_text_spoken_seconds(chinese, strlen(chinese));
    g_assert_cmpfloat(seconds, >, 2);
    g_assert_cmpfloat(seconds, <, 4);
}

static char *random_text(GRand *random, guint n)
{
    static const char *const pieces[] = {
        "a",    "B",     "é",    "红", "。", ".",   ". ",       "!",    "?\"",
        ", ",   "\n",    "\n\n", " ",  "7",  "3.1", "👋",        "🏽", "\xe2\x80\x8d",
        "Mr. ", "word ", "、",   "」", "(",  ")",   "\xcc\x81", "—"};
    GString *text = g_string_new(NULL);
    for (guint i = 0; i < n; i++)
        g_string_append(text, pieces[g_rand_int_range(random, 0, G_N_ELEMENTS(pieces))]);
    return g_string_free(text, FALSE);
}

static char *without_spaces_and_silence(const char *text)
{
    GString *out = g_string_new(NULL);
    for (const char *p = text; *p; p = g_utf8_next_char(p))
        if (g_unichar_isalnum(g_utf8_get_char(p)))
            g_string_append_unichar(out, g_utf8_get_char(p));
    return g_string_free(out, FALSE);
}

/* Whatever comes in: every letter comes out once and in order, and no passage is too long. */
static void test_random(void)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(4);
    for (int i = 0; i < 3000; i++) {
        g_autofree char *text = random_text(random, (guint)g_rand_int_range(random, 0, 200));
        double limit = g_rand_double_range(random, 1, 6);
        g_autoptr(GArray) passages = cs_passages_of(text, limit);
        g_autoptr(GString) joined = g_string_new(NULL);
        for (guint k = 0; k < passages->len; k++) {
            const cs_passage *p = &g_array_index(passages, cs_passage, k);
            g_assert_true(g_utf8_validate(p->text, -1, NULL));
            g_assert_cmpuint(strlen(p->text), >, 0);
            /* a sign of several characters is not divided */
            g_assert_true(cs_text_spoken_seconds(p->text, strlen(p->text)) <= limit + 1e-9 ||
                          strstr(p->text, "\xe2\x80\x8d") || strstr(p->text, "🏽"));
            g_string_append(joined, p->text);
        }
        g_autofree char *expected = without_spaces_and_silence(text);
        g_autofree char *found = without_spaces_and_silence(joined->str);
        g_assert_cmpstr(found, ==, expected);
    }
}

/* Time grows with the length of the text. */
static void test_long(void)
{
    g_autoptr(GString) text = g_string_new(NULL);
    while (text->len < 1 << 20)
        g_string_append(text, "Mr. X. said: 3.14 is (about) pi, and no more...  ");
    g_autoptr(GTimer) timer = g_timer_new();
    g_autoptr(GArray) passages = cs_passages_of(text->str, 30);
    g_assert_cmpuint(passages->len, >, 1000);
    g_string_assign(text, "");
    while (text->len < 1 << 20)
        g_string_append_c(text, '.');
    g_autoptr(GArray) none = cs_passages_of(text->str, 30);
    g_assert_cmpuint(none->len, ==, 0);
    g_assert_cmpfloat(g_timer_elapsed(timer, NULL), <, 20);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/passages/sentences", test_sentences);
    g_test_add_func("/passages/other scripts", test_other_scripts);
    g_test_add_func("/passages/clauses and words", test_clauses_and_words);
    g_test_add_func("/passages/lines", test_lines);
    g_test_add_func("/passages/nothing", test_nothing);
    g_test_add_func("/passages/packing", test_packing);
    g_test_add_func("/passages/speed", test_speed);
    g_test_add_func("/passages/random", test_random);
    g_test_add_func("/passages/long", test_long);
    return g_test_run();
}
