/* src/text/tokenizer: what tokenizer.json may hold and what is refused, guards, long words,
 * streams. */
#include "base/error.h"
#include "base/os.h"
#include "text/normalize.h"
#include "text/tokenizer.h"

#include <string.h>

/* Byte level over the letters a to e, a space (as Ġ) and a few merges. Ids are in order. */
#define BYTE_VOCAB                                                                                 \
    "{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"e\":4,\"\\u0120\":5,\"ab\":6,\"abc\":7,\"de\":8,"          \
    "\"\\u00c3\":9,\"\\u00a9\":10,\"\\u0120a\":11,\"aa\":12,\"aaaa\":13,\"abcde\":14}"
#define BYTE_MERGES "[\"a b\",[\"ab\",\"c\"],\"d e\",\"\\u0120 a\",\"a a\",\"aa aa\"]"
#define BYTE_LEVEL                                                                                 \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false,"                      \
    "\"trim_offsets\":true}"

#define MODEL "{\"type\":\"BPE\",\"vocab\":" BYTE_VOCAB ",\"merges\":" BYTE_MERGES "}"
#define ADDED                                                                                      \
    "[{\"id\":20,\"content\":\"<end>\",\"special\":true,\"normalized\":false},"                    \
    "{\"id\":21,\"content\":\"<end>!\",\"special\":false,\"normalized\":false},"                   \
    "{\"id\":22,\"content\":\"<l>\",\"special\":false,\"lstrip\":true,\"rstrip\":true},"           \
    "{\"id\":23,\"content\":\"bad\",\"special\":false,\"single_word\":true}]"

static char *file(const char *added, const char *pre_tokenizer, const char *model,
                  const char *decoder)
{
    return g_strdup_printf("{\"version\":\"1.0\",\"added_tokens\":%s,\"normalizer\":null,"
                           "\"pre_tokenizer\":%s,\"model\":%s,\"decoder\":%s,"
                           "\"post_processor\":null}",
                           added, pre_tokenizer, model, decoder);
}

static cs_tokenizer *parse(const char *text)
{
    g_autoptr(GError) error = NULL;
    cs_tokenizer *t = cs_tokenizer_parse(text, strlen(text), "t.json", &error);
    g_assert_no_error(error);
    return t;
}

static cs_tokenizer *byte_tokenizer(void)
{
    g_autofree char *text = file(ADDED, BYTE_LEVEL, MODEL, "{\"type\":\"ByteLevel\"}");
    return parse(text);
}

static char *ids_of(const cs_tokenizer *t, const char *text, cs_encode_flags flags)
{
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g_autoptr(GError) error = NULL;
    cs_tokenizer_encode(t, text, strlen(text), flags, ids, &error);
    g_assert_no_error(error);
    GString *out = g_string_new(NULL);
    for (guint i = 0; i < ids->len; i++)
        g_string_append_printf(out, "%s%d", i ? " " : "", g_array_index(ids, int32_t, i));
    return g_string_free(out, FALSE);
}

static void assert_encodes(const cs_tokenizer *t, const char *text, cs_encode_flags flags,
                           const char *expected)
{
    g_autofree char *ids = ids_of(t, text, flags);
    g_assert_cmpstr(ids, ==, expected);
}

static void test_merges(void)
{
    g_autoptr(cs_tokenizer) t = byte_tokenizer();
    assert_encodes(t, "", CS_ENCODE_DEFAULT, "");
    assert_encodes(t, "abcde", CS_ENCODE_DEFAULT, "7 8");
    assert_encodes(t, "aaaaa", CS_ENCODE_DEFAULT, "13 0");
    assert_encodes(t, "aab", CS_ENCODE_DEFAULT, "0 6");
    assert_encodes(t, " a a", CS_ENCODE_DEFAULT, "11 11");
    assert_encodes(t, "é", CS_ENCODE_DEFAULT, "9 10");
    /* Bytes that are not in the vocabulary vanish, as in the reference. */
    assert_encodes(t, "axb", CS_ENCODE_DEFAULT, "6");
    g_assert_cmpint(cs_tokenizer_size(t), ==, 24);
    g_assert_cmpint(cs_tokenizer_id(t, "<end>"), ==, 20);
    g_assert_cmpint(cs_tokenizer_id(t, "abc"), ==, 7);
    g_assert_cmpint(cs_tokenizer_id(t, "nothing"), ==, -1);
    g_assert_cmpstr(cs_tokenizer_content(t, 5), ==, "Ġ");
    g_assert_null(cs_tokenizer_content(t, 16));
    size_t size_bytes;
    const uint8_t *bytes = cs_tokenizer_bytes(t, 9, &size_bytes);
    g_assert_cmpmem(bytes, size_bytes, "\xC3", 1);
    g_assert_null(cs_tokenizer_bytes(t, -1, &size_bytes));
    g_assert_null(cs_tokenizer_bytes(t, 1 << 30, &size_bytes));
    g_assert_true(cs_tokenizer_is_special(t, 20));
    g_assert_false(cs_tokenizer_is_special(t, 21));
}

static void test_ignore_merges(void)
{
    g_autofree char *text = file("[]", BYTE_LEVEL,
                                 "{\"type\":\"BPE\",\"ignore_merges\":true,\"vocab\":" BYTE_VOCAB
                                 ",\"merges\":" BYTE_MERGES "}",
                                 "{\"type\":\"ByteLevel\"}");
    g_autoptr(cs_tokenizer) t = parse(text);
    assert_encodes(t, "abcde", CS_ENCODE_DEFAULT, "14");
    assert_encodes(t, "abcdea", CS_ENCODE_DEFAULT, "7 8 0");
}

static void test_added_tokens(void)
{
    g_autoptr(cs_tokenizer) t = byte_tokenizer();
    assert_encodes(t, "ab<end>ab", CS_ENCODE_DEFAULT, "6 20 6");
    assert_encodes(t, "<end>!<end>", CS_ENCODE_DEFAULT, "21 20");
    assert_encodes(t, "a  <l> \n b", CS_ENCODE_DEFAULT, "0 22 1");
    assert_encodes(t, "bad", CS_ENCODE_DEFAULT, "23");
    assert_encodes(t, "a bad b", CS_ENCODE_DEFAULT, "0 5 23 5 1");
    assert_encodes(t, "abad", CS_ENCODE_DEFAULT, "6 0 3");
    assert_encodes(t, "a<end", CS_ENCODE_DEFAULT, "0 4 3");
    assert_encodes(t, "a<end>b", CS_ENCODE_LITERAL, "0 4 3 1");
}

/* What a user writes cannot become a special token; what the template writes around it does. */
static void test_guards(void)
{
    g_autoptr(cs_tokenizer) t = byte_tokenizer();
    static const char *const harmless[] = {"abc", "", "a<b>c", "é d"};
    for (size_t i = 0; i < G_N_ELEMENTS(harmless); i++) {
        g_autoptr(GString) guarded = g_string_new(NULL);
        cs_tokenizer_guard(t, harmless[i], strlen(harmless[i]), guarded);
        g_assert_cmpstr(guarded->str, ==, harmless[i]);
    }
    static const char *const hostile[][2] = {
        {"a<end>b", "20 0 4 3 1 20"},
        {"<end><end>", "20 4 8 3 20"},
        {"<end", "20 4 3 20"}, /* the template goes on with ">" */
        {"<\xFF"
         "end>",
         "20 4 3 20"}, /* a forged guard is U+FFFD */
        {"<<end>>", "20 4 3 20"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(hostile); i++) {
        g_autoptr(GString) guarded = g_string_new(NULL);
        cs_tokenizer_guard(t, hostile[i][0], strlen(hostile[i][0]), guarded);
        g_autofree char *rendered =
            g_strdup_printf("<end>%s%s<end>", guarded->str, i == 2 ? ">" : "");
        assert_encodes(t, rendered, CS_ENCODE_GUARDED, hostile[i][1]);
    }
    assert_encodes(t, "<end><end>", CS_ENCODE_GUARDED, "20 20");
}

/* One word of 4 MB, merged over and over: quadratic work would take hours. */
static void test_long_word(void)
{
    g_autoptr(cs_tokenizer) t = byte_tokenizer();
    size_t n = 4u << 20;
    g_autofree char *text = g_strnfill(n, 'a');
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g_autoptr(GError) error = NULL;
    int64_t start_us = cs_now_us();
    g_assert_true(cs_tokenizer_encode(t, text, n, CS_ENCODE_DEFAULT, ids, &error));
    g_assert_cmpuint(ids->len, ==, n / 4);
    g_assert_cmpint(cs_now_us() - start_us, <, 30 * G_USEC_PER_SEC);
    g_assert_false(cs_tokenizer_encode(t, text, (size_t)1 << 40, CS_ENCODE_DEFAULT, ids, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
    g_assert_cmpuint(ids->len, ==, n / 4);
}

/* Every length across the border between the two ways to merge, against the definition. */
static void test_scan_equals_heap(void)
{
    g_autoptr(cs_tokenizer) t = byte_tokenizer();
    g_autoptr(GRand) random = g_rand_new_with_seed(3);
    for (int round = 0; round < 300; round++) {
        int n = g_rand_int_range(random, 1, 90);
        g_autofree char *text = g_malloc0((gsize)n + 1);
        int32_t symbols[90];
        for (int i = 0; i < n; i++) {
            symbols[i] = g_rand_int_range(random, 0, 5) * g_rand_int_range(random, 0, 2);
            text[i] = (char)('a' + symbols[i]);
        }
        static const int32_t merges[][3] = {{0, 1, 6},  {6, 2, 7},  {3, 4, 8},
                                            {5, 0, 11}, {0, 0, 12}, {12, 12, 13}};
        for (size_t m = 0; m < G_N_ELEMENTS(merges);) {
            int at = 0;
            while (at + 1 < n && (symbols[at] != merges[m][0] || symbols[at + 1] != merges[m][1]))
                at++;
            if (at + 1 >= n) {
                m++;
                continue;
            }
            symbols[at] = merges[m][2];
            memmove(&symbols[at + 1], &symbols[at + 2], (size_t)(n - at - 2) * sizeof symbols[0]);
            n--;
            m = 0;
        }
        g_autoptr(GString) expected = g_string_new(NULL);
        for (int i = 0; i < n; i++)
            g_string_append_printf(expected, "%s%d", i ? " " : "", symbols[i]);
        assert_encodes(t, text, CS_ENCODE_DEFAULT, expected->str);
    }
}

#define SP_VOCAB                                                                                   \
    "{\"<unk>\":0,\"<s>\":1,\"<0xC3>\":2,\"<0xA9>\":3,\"a\":4,\"b\":5,\"\\u2581\":6,"              \
    "\"\\u2581a\":7,\"\\u2581ab\":8,\"<0xF0>\":9,\"<0x9F>\":10,\"<0x98>\":11,\"<0x80>\":12}"
#define SP_MERGES "[\"\\u2581 a\",\"\\u2581a b\"]"

static cs_tokenizer *sentencepiece_tokenizer(void)
{
    return parse(
        "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},"
        "{\"id\":1,\"content\":\"<s>\",\"special\":true}],\"normalizer\":{\"type\":\"Sequence\","
        "\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},{\"type\":\"Replace\","
        "\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]},\"pre_tokenizer\":null,"
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
        "\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"special_tokens\":{"
        "\"<s>\":{\"id\":\"<s>\",\"ids\":[1],\"tokens\":[\"<s>\"]}}},"
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{"
        "\"String\":\"\\u2581\"},\"content\":\" "
        "\"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
        "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,"
        "\"byte_fallback\":true,\"vocab\":" SP_VOCAB ",\"merges\":" SP_MERGES "}}");
}

static void assert_decodes(const cs_tokenizer *t, const int32_t *ids, size_t n,
                           const char *expected)
{
    g_autoptr(GString) out = g_string_new(NULL);
    cs_tokenizer_decode(t, ids, n, out);
    g_assert_cmpstr(out->str, ==, expected);
}

#define R "\xEF\xBF\xBD"

/* Token by token: characters that were told stay. */
static void assert_streams(const cs_tokenizer *t, const int32_t *ids, size_t n,
                           const char *expected)
{
    g_autoptr(GString) out = g_string_new(NULL);
    cs_detokenizer d;
    cs_detokenizer_init(&d, t);
    for (size_t i = 0; i < n; i++)
        cs_detokenizer_push(&d, ids[i], out);
    cs_detokenizer_flush(&d, out);
    g_assert_cmpstr(out->str, ==, expected);
}

static void test_sentencepiece(void)
{
    g_autoptr(cs_tokenizer) t = sentencepiece_tokenizer();
    assert_encodes(t, "ab ab", CS_ENCODE_DEFAULT, "8 8");
    assert_encodes(t, "ab", CS_ENCODE_ADD_SPECIAL, "1 8");
    assert_encodes(t, "a<s>a", CS_ENCODE_DEFAULT, "7 1 7");
    assert_encodes(t, "é", CS_ENCODE_DEFAULT, "6 2 3");
    assert_encodes(t, "xyb", CS_ENCODE_DEFAULT, "6 0 5");
    assert_encodes(t, "😀", CS_ENCODE_DEFAULT, "6 9 10 11 12");
    assert_decodes(t, (int32_t[]){1, 8, 8, 2, 3}, 5, "ab abé");
    assert_decodes(t, (int32_t[]){2, 8}, 2, "\xEF\xBF\xBD ab");
    assert_decodes(t, (int32_t[]){9, 10, 1, 11, 8, 3}, 6, R R R " ab" R);
    assert_decodes(t, (int32_t[]){2, 3, 9, 4, 2, 3}, 6, R R R "aé");
    assert_streams(t, (int32_t[]){2, 3, 9, 10, 4, 2, 3}, 7, "é" R R "aé");
    assert_decodes(t, (int32_t[]){9, 10, 11, 12, 6, 6, 6}, 7, "😀   ");
}

static void test_stream(void)
{
    g_autoptr(cs_tokenizer) t = byte_tokenizer();
    g_autoptr(GString) out = g_string_new(NULL);
    cs_detokenizer d;
    cs_detokenizer_init(&d, t);
    cs_detokenizer_push(&d, 9, out);
    g_assert_cmpstr(out->str, ==, "");
    cs_detokenizer_push(&d, 10, out);
    g_assert_cmpstr(out->str, ==, "é");
    cs_detokenizer_push(&d, 9, out);
    cs_detokenizer_push(&d, 20, out); /* special: not there */
    cs_detokenizer_push(&d, 17, out); /* no token */
    cs_detokenizer_push(&d, 21, out);
    g_assert_cmpstr(out->str, ==, "é\xEF\xBF\xBD<end>!");
    cs_detokenizer_push(&d, 9, out);
    cs_detokenizer_flush(&d, out);
    cs_detokenizer_flush(&d, out);
    g_assert_cmpstr(out->str, ==, "é\xEF\xBF\xBD<end>!\xEF\xBF\xBD");
}

static void assert_refused(const char *text, const char *part)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_tokenizer_parse(text, strlen(text), "t.json", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    if (!g_str_has_prefix(error->message, "t.json: ") || !strstr(error->message, part))
        g_error("%s, expected %s, of %s", error->message, part, text);
}

static void assert_file_refused(const char *added, const char *pre_tokenizer, const char *model,
                                const char *decoder, const char *part)
{
    g_autofree char *text = file(added, pre_tokenizer, model, decoder);
    assert_refused(text, part);
}

static void test_refused(void)
{
    const char *bytes = "{\"type\":\"ByteLevel\"}";
    assert_refused("{}", "model: expected an object, found nothing");
    assert_refused("{\"model\":{}}", "model.vocab: expected an object that is not empty");
    assert_refused("[]", "model: expected an object, found nothing");
    assert_refused("{\"model\":{\"vocab\":{}}}", "model.vocab");
    assert_refused("{\"model\":{\"vocab\":{\"a\":-1}}}", "a: expected an id in [0, 65540]");
    assert_refused("{\"model\":{\"vocab\":{\"a\":2000000000}}}", "expected an id in");
    assert_refused("{\"model\":{\"vocab\":{\"a\":1,\"b\":1}}}", "have the same id");
    assert_refused("{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",1]]}}",
                   "model.type: expected \"BPE\", found \"Unigram\"");
    assert_file_refused("[]", BYTE_LEVEL, "{\"vocab\":{\"a\":0}}", bytes, "model.merges");
    assert_file_refused("[]", BYTE_LEVEL, "{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}", bytes,
                        "model.merges: [0]: a and b: not in model.vocab");
    assert_file_refused("[]", BYTE_LEVEL, "{\"vocab\":{\"a\":0},\"merges\":[\"ab\"]}", bytes,
                        "model.merges: [0]: expected two tokens");
    assert_file_refused("[]", BYTE_LEVEL, "{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}", bytes,
                        "model.merges: [0]: expected two tokens");
    assert_file_refused("[]", BYTE_LEVEL, "{\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}",
                        bytes, "model.dropout: is not supported");
    assert_file_refused("[]", BYTE_LEVEL, "{\"unk_token\":\"u\",\"vocab\":{\"a\":0},\"merges\":[]}",
                        bytes, "model.unk_token: u is not in model.vocab");
    assert_file_refused("[{\"id\":0,\"content\":\"x\"}]", BYTE_LEVEL, MODEL, bytes,
                        "added_tokens: [0]: x and a have the same id");
    assert_file_refused("[{\"id\":9,\"content\":\"a\"}]", BYTE_LEVEL, MODEL, bytes,
                        "a has id 9, but 0 in model.vocab");
    assert_file_refused("[{\"id\":\"9\"}]", BYTE_LEVEL, MODEL, bytes, "added_tokens: [0]");
    assert_file_refused("[]", "{\"type\":\"Whitespace\"}", MODEL, bytes,
                        "pre_tokenizer.type: Whitespace is not supported");
    assert_file_refused("[]",
                        "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL ",{\"type\":"
                        "\"Digits\"}]}",
                        MODEL, bytes,
                        "pre_tokenizer.pretokenizers[1].type: Digits after ByteLevel");
    assert_file_refused("[]",
                        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a(\"},\"behavior\":"
                        "\"Isolated\"}",
                        MODEL, bytes, "pre_tokenizer.pattern.Regex: regular expression a(");
    assert_file_refused("[]",
                        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\h\"},\"behavior\":"
                        "\"Isolated\"}",
                        MODEL, bytes, "the escape \\h is not supported");
    assert_file_refused("[]",
                        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":"
                        "\"X\"}",
                        MODEL, bytes, "pre_tokenizer.behavior: X");
    assert_file_refused("[]", BYTE_LEVEL, MODEL, "null", "decoder: expected an object");
    assert_file_refused("[]", BYTE_LEVEL, MODEL, "{\"type\":\"WordPiece\"}",
                        "decoder.type: WordPiece is not supported");
    assert_file_refused("[]", "null", MODEL, bytes, "decoder: ByteLevel goes with");
}

/* Catastrophic backtracking in the file's own expression is an error of the request. */
static void test_hostile_regex(void)
{
    g_autofree char *text = file("[]",
                                 "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
                                 "\"Split\",\"pattern\":{\"Regex\":\"(a|aa|b?a)+[bc]\"},"
                                 "\"behavior\":\"Isolated\"}," BYTE_LEVEL "]}",
                                 MODEL, "{\"type\":\"ByteLevel\"}");
    g_autoptr(cs_tokenizer) t = parse(text);
    g_autofree char *as = g_strnfill(5000, 'a');
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g_autoptr(GError) error = NULL;
    g_assert_false(cs_tokenizer_encode(t, as, 5000, CS_ENCODE_DEFAULT, ids, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
    g_assert_cmpuint(ids->len, ==, 0);
}

static char *normal(normalize_form form, const char *text)
{
    GString *out = g_string_new(NULL);
    if (!normalize_append(out, form, text, strlen(text)))
        g_string_assign(out, text);
    return g_string_free(out, FALSE);
}

/* Long runs of combining marks, sorted here, against GLib's normal forms; and a run so long that a
 * sort by swapping neighbours would take hours. */
static void test_marks(void)
{
    static const GNormalizeMode modes[] = {G_NORMALIZE_NFC, G_NORMALIZE_NFD, G_NORMALIZE_NFKC,
                                           G_NORMALIZE_NFKD};
    static const char *const parts[] = {"a",  "é",      "\u0301", "\u0323", "\u0308", "\u0344",
                                        "が", "\u3099", "ｶ",      "\uFF9E", "\u0F73", "\u0F71"};
    for (guint seed = 0; seed < 400; seed++) {
        g_autoptr(GRand) random = g_rand_new_with_seed(seed);
        g_autoptr(GString) text = g_string_new("q");
        for (guint i = 0; i < 40 + seed; i++)
            /* mostly marks */
            g_string_append(text, parts[g_rand_int_range(random, i % 60 == 0 ? 0 : 2, 6)]);
        for (guint i = 0; i < 60; i++)
            g_string_append(text, parts[g_rand_int_range(random, i == 0 ? 6 : 7, 12)]);
        for (int form = NORMALIZE_NFC; form <= NORMALIZE_NFKD; form++) {
            g_autofree char *got = normal((normalize_form)form, text->str);
            g_autofree char *expected = g_utf8_normalize(text->str, -1, modes[form]);
            g_assert_cmpstr(got, ==, expected);
        }
    }
    g_autoptr(GString) long_text = g_string_new("a");
    for (guint i = 0; i < 500000; i++)
        g_string_append(long_text, "\u0301\u0323");
    g_autofree char *got = normal(NORMALIZE_NFC, long_text->str);
    g_assert_true(g_str_has_prefix(got, "ạ\u0323"));
    g_assert_true(g_str_has_suffix(got, "\u0301\u0301"));
    g_assert_cmpuint(strlen(got), ==, long_text->len); /* ạ has a + U+0323's bytes */
}

static gpointer encode_many(gpointer data)
{
    const cs_tokenizer *t = data;
    for (int i = 0; i < 2000; i++) {
        assert_encodes(t, "abcde<end>aab", CS_ENCODE_DEFAULT, "7 8 20 0 6");
        assert_encodes(t, "aaaaa é", CS_ENCODE_DEFAULT, "13 0 5 9 10");
    }
    return NULL;
}

static void test_threads(void)
{
    g_autoptr(cs_tokenizer) t = byte_tokenizer();
    GThread *threads[4];
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("encode", encode_many, t);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        g_thread_join(threads[i]);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/text/tokenizer/merges", test_merges);
    g_test_add_func("/text/tokenizer/ignore-merges", test_ignore_merges);
    g_test_add_func("/text/tokenizer/added-tokens", test_added_tokens);
    g_test_add_func("/text/tokenizer/guards", test_guards);
    g_test_add_func("/text/tokenizer/long-word", test_long_word);
    g_test_add_func("/text/tokenizer/scan-equals-heap", test_scan_equals_heap);
    g_test_add_func("/text/tokenizer/sentencepiece", test_sentencepiece);
    g_test_add_func("/text/tokenizer/stream", test_stream);
    g_test_add_func("/text/tokenizer/marks", test_marks);
    g_test_add_func("/text/tokenizer/refused", test_refused);
    g_test_add_func("/text/tokenizer/hostile-regex", test_hostile_regex);
    g_test_add_func("/text/tokenizer/threads", test_threads);
    return g_test_run();
}
