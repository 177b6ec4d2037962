/* src/text/tokenizer against the reference's ids and texts: many scripts, spaces, emoji, code,
 * unnormalised text, broken UTF-8, ids that cut characters. argv[1] is the golden directory. */
#include "base/json.h"
#include "base/os.h"
#include "text/tokenizer.h"

#include <string.h>

static const char *golden_dir;
static cs_tokenizer *tokenizer;
static json_t *golden;

static void assert_ids(const char *text, size_t size_bytes, json_t *expected)
{
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g_autoptr(GError) error = NULL;
    cs_tokenizer_encode(tokenizer, text, size_bytes, CS_ENCODE_DEFAULT, ids, &error);
    g_assert_no_error(error);
    json_t *found = json_array();
    for (guint i = 0; i < ids->len; i++)
        json_array_append_new(found, json_integer(g_array_index(ids, int32_t, i)));
    if (!json_equal(found, expected)) {
        g_autofree char *ours = json_dumps(found, JSON_COMPACT);
        g_autofree char *theirs = json_dumps(expected, JSON_COMPACT);
        g_error("%.*s: %s, expected %s", (int)size_bytes, text, ours, theirs);
    }
    json_decref(found);
}

static void assert_text(json_t *ids, json_t *expected, bool keep_special)
{
    g_autoptr(GString) out = g_string_new(NULL);
    cs_detokenizer d;
    cs_detokenizer_init(&d, tokenizer);
    d.keep_special = keep_special;
    json_t *id;
    size_t i;
    json_array_foreach (ids, i, id) {
        cs_detokenizer_push(&d, (int32_t)json_integer_value(id), out);
        g_assert_true(g_utf8_validate_len(out->str, out->len, NULL));
    }
    cs_detokenizer_flush(&d, out);
    g_assert_cmpmem(out->str, out->len, json_string_value(expected), json_string_length(expected));
}

static void test_encode(void)
{
    json_t *cases = json_object_get(golden, "encode"), *one;
    size_t i;
    g_assert_cmpuint(json_array_size(cases), >, 50);
    json_array_foreach (cases, i, one) {
        json_t *text = json_object_get(one, "text");
        assert_ids(json_string_value(text), json_string_length(text), json_object_get(one, "ids"));
        assert_text(json_object_get(one, "ids"), json_object_get(one, "decoded"), true);
        assert_text(json_object_get(one, "ids"), json_object_get(one, "decoded_skip_special"),
                    false);
    }
}

static void test_broken(void)
{
    json_t *cases = json_object_get(golden, "broken"), *one;
    size_t i;
    g_assert_cmpuint(json_array_size(cases), >, 20);
    json_array_foreach (cases, i, one) {
        const char *hex = json_string_value(json_object_get(one, "bytes_hex"));
        char bytes[512];
        size_t n = strlen(hex) / 2;
        g_assert_cmpuint(n, <, sizeof bytes);
        for (size_t j = 0; j < n; j++)
            bytes[j] = (char)(g_ascii_xdigit_value(hex[2 * j]) * 16 +
                              g_ascii_xdigit_value(hex[2 * j + 1]));
        assert_ids(bytes, n, json_object_get(one, "ids"));
    }
}

static void test_decode(void)
{
    json_t *cases = json_object_get(golden, "decode"), *one;
    size_t i;
    g_assert_cmpuint(json_array_size(cases), >, 40);
    json_array_foreach (cases, i, one) {
        assert_text(json_object_get(one, "ids"), json_object_get(one, "decoded"), true);
        assert_text(json_object_get(one, "ids"), json_object_get(one, "decoded_skip_special"),
                    false);
    }
}

/* A line of text over the whole of Unicode at a time; the golden file keeps a hash of its ids. */
static void test_unicode(void)
{
    g_autofree char *path = g_build_filename(
        golden_dir, json_string_value(json_object_get(golden, "unicode_file")), NULL);
    g_autoptr(GError) error = NULL;
    size_t size_bytes;
    g_autofree char *text = cs_file_read(path, 64u << 20, &size_bytes, &error);
    g_assert_no_error(error);
    json_t *hashes = json_object_get(golden, "unicode_ids_fnv1a64");
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    const char *line = text;
    for (size_t i = 0; i < json_array_size(hashes); i++) {
        const char *end = memchr(line, '\n', (size_t)(text + size_bytes - line));
        g_assert_nonnull(end);
        g_array_set_size(ids, 0);
        cs_tokenizer_encode(tokenizer, line, (size_t)(end - line), CS_ENCODE_DEFAULT, ids, &error);
        g_assert_no_error(error);
        g_autofree char *hash = g_strdup_printf("%016" G_GINT64_MODIFIER "x",
                                                cs_hash(CS_HASH_SEED, ids->data, ids->len * 4));
        g_assert_cmpstr(hash, ==, json_string_value(json_array_get(hashes, i)));
        line = end + 1;
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_assert_cmpint(argc, ==, 2);
    golden_dir = argv[1];
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(golden_dir, "tokenizer.json", NULL);
    g_autofree char *model = g_build_filename(golden_dir, "qwen2.5-omni-tiny", NULL);
    golden = cs_json_load_file(path, 16u << 20, &error);
    g_assert_no_error(error);
    tokenizer = cs_tokenizer_load(model, &error);
    g_assert_no_error(error);
    g_test_add_func("/text/tokenizer/golden/encode", test_encode);
    g_test_add_func("/text/tokenizer/golden/broken", test_broken);
    g_test_add_func("/text/tokenizer/golden/decode", test_decode);
    g_test_add_func("/text/tokenizer/golden/unicode", test_unicode);
    int rc = g_test_run();
    cs_tokenizer_free(tokenizer);
    json_decref(golden);
    return rc;
}
