/* Stop strings in streams: cut off clean wherever token borders lie, and nothing held back for
 * nothing. */
#include "runtime/text_stream.h"

#include <string.h>

typedef struct {
    const char *stops[4];
    const char *text;
    size_t show;
    bool stopped;
} scan_case;

static void test_scan(void)
{
    static const scan_case cases[] = {
        {{NULL}, "abc", 3, false},    {{"x"}, "abc", 3, false},         {{"b"}, "abc", 1, true},
        {{"c", "b"}, "abc", 1, true}, /* the first in the text, not in the list */
        {{"cd"}, "abc", 2, false},    /* could begin here */
        {{"bcd"}, "abc", 1, false},   {{"cx", "bcx"}, "abc", 1, false}, {{"abc"}, "abc", 0, true},
        {{"aab"}, "aaa", 1, false},   {{"\n\n"}, "a\n", 1, false},      {{"x"}, "", 0, false},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        bool stopped;
        size_t show = cs_stop_scan(cases[i].stops, cases[i].text, strlen(cases[i].text), &stopped);
        g_assert_cmpuint(show, ==, cases[i].show);
        g_assert_cmpint(stopped, ==, cases[i].stopped);
    }
}

/* A byte-level tokenizer whose tokens are single bytes. */
static cs_tokenizer *byte_tokenizer(void)
{
    GString *json = g_string_new(
        "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"
        "false},"
        "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,"
        "\"trim_offsets\":true,\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"merges\":[],"
        "\"vocab\":{");
    int extra = 0;
    for (int byte = 0; byte < 256; byte++) {
        bool shown = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        char character[8] = "";
        g_unichar_to_utf8((gunichar)(shown ? byte : 256 + extra++), character);
        g_string_append_printf(json, "%s\"%s%s\":%d", byte ? "," : "",
                               strchr("\"\\", character[0]) ? "\\" : "", character, byte);
    }
    g_string_append(json, "}}}");
    g_autoptr(GError) error = NULL;
    cs_tokenizer *tokenizer = cs_tokenizer_parse(json->str, json->len, "bytes", &error);
    g_assert_no_error(error);
    g_string_free(json, TRUE);
    return tokenizer;
}

/* Pushes text byte by byte; every piece shown must be whole UTF-8. */
static char *stream_text(const cs_tokenizer *tokenizer, const char *text, const char *const *stops,
                         bool *stopped)
{
    GString *shown = g_string_new(NULL);
    cs_text_stream stream;
    cs_text_stream_init(&stream, tokenizer, stops);
    size_t n;
    bool goes_on = true;
    for (const char *c = text; *c && goes_on; c++) {
        goes_on = cs_text_stream_push(&stream, (guint8)*c, &n);
        g_assert_true(g_utf8_validate_len(stream.text->str, n, NULL));
        g_string_append_len(shown, stream.text->str, (gssize)n);
        cs_text_stream_shown(&stream, n);
    }
    cs_text_stream_end(&stream, &n);
    g_string_append_len(shown, stream.text->str, (gssize)n);
    *stopped = stream.stopped;
    cs_text_stream_clear(&stream);
    return g_string_free(shown, FALSE);
}

static void test_stream(void)
{
    static const struct {
        const char *text;
        const char *stops[3];
        const char *shown;
        bool stopped;
    } cases[] = {
        {"h\xc3\xa9llo w\xe2\x82\xacrld", {NULL}, "h\xc3\xa9llo w\xe2\x82\xacrld", false},
        {"one END two", {"END"}, "one ", true},
        {"one EN two", {"END"}, "one EN two", false},
        {"one EN", {"END"}, "one EN", false},
        {"w\xe2\x82\xac!", {"\xe2\x82\xac"}, "w", true},
        {"cut \xe2\x82", {"x"}, "cut \xef\xbf\xbd", false},
        {"aaab", {"aab"}, "a", true},
    };
    cs_tokenizer *tokenizer = byte_tokenizer();
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        bool stopped;
        g_autofree char *shown = stream_text(tokenizer, cases[i].text, cases[i].stops, &stopped);
        g_assert_cmpstr(shown, ==, cases[i].shown);
        g_assert_cmpint(stopped, ==, cases[i].stopped);
    }
    cs_tokenizer_free(tokenizer);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/runtime/text_stream/scan", test_scan);
    g_test_add_func("/runtime/text_stream/stream", test_stream);
    return g_test_run();
}
