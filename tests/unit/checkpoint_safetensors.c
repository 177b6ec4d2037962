/* src/checkpoint: headers that lie are refused with a sentence that says how, before any byte is
 * used. */
#include "base/error.h"
#include "checkpoint/checkpoint.h"

#include <glib/gstdio.h>
#include <string.h>

typedef struct {
    const char *header;
    size_t payload_bytes;
    const char *message; /* the error must contain it; NULL: the file is sound */
} example;

/* A file of this header and so many bytes behind it; lengths as they should be. Aligned as a
 * mapping is. */
static uint8_t *build(const char *header, size_t payload_bytes, size_t *size_bytes)
{
    /* White space behind the header keeps the payload aligned, as writers do. */
    uint64_t n = (strlen(header) + 7) / 8 * 8;
    *size_bytes = 8 + n + payload_bytes;
    uint8_t *file = g_aligned_alloc0(1, *size_bytes + 1, 64);
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)(n >> (8 * i));
    memset(file + 8, ' ', n);
    memcpy(file + 8, header, strlen(header));
    return file;
}

static void expect(const uint8_t *data, size_t size_bytes, const char *message)
{
    g_autoptr(GHashTable) tensors = cs_safetensors_table_new();
    g_autoptr(GError) error = NULL;
    bool ok = cs_safetensors_read(data, size_bytes, "f.safetensors", tensors, &error);
    if (!message) {
        g_assert_no_error(error);
        g_assert_true(ok);
        return;
    }
    g_assert_false(ok);
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    if (!strstr(error->message, message) || !g_str_has_prefix(error->message, "f.safetensors: "))
        g_error("\"%s\" does not say \"%s\"", error->message, message);
}

static void test_headers(void)
{
    static const example examples[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24, NULL},
        {"{\"a\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[0,2]}}", 2, NULL},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, NULL},
        {"{\"__metadata__\":{\"format\":\"pt\"}}", 0, NULL},
        {"[]", 0, "no JSON object"},
        {"{\"a\":3}", 0, "a: expected an object"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,28]}}", 28,
         "28 bytes, its shape takes 24"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 20, "lies outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[24,0]}}", 24, "lies outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[-8,16]}}", 24,
         "data_offsets[0]: expected an integer"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2,-3],\"data_offsets\":[0,24]}}", 24,
         "shape[0]: expected an integer"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0,3],\"data_offsets\":[0,24]}}", 24,
         "shape[0]: expected an integer"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,0]}}",
         0, "64 bits"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         "at most 6"},
        {"{\"a\":{\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         "\"Q4\" is no dtype"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "a.dtype: expected a string"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "a.shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4,
         "a.x: unknown member"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4,
         "an array of 2 integers"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\","
         "\"shape\":[4],\"data_offsets\":[2,6]}}",
         6, "tensors a and b overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\","
         "\"shape\":[4],\"data_offsets\":[6,10]}}",
         10, "2 bytes before tensor b belong to none"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 9,
         "5 bytes after the last tensor"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"U8\","
         "\"shape\":[4],\"data_offsets\":[0,4]}}",
         4, "duplicate"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"F32\","
         "\"shape\":[1],\"data_offsets\":[1,5]}}",
         5, "not aligned"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(examples); i++) {
        size_t size_bytes;
        uint8_t *file = build(examples[i].header, examples[i].payload_bytes, &size_bytes);
        expect(file, size_bytes, examples[i].message);
        g_aligned_free(file);
    }
}

/* Every cut of a sound file is an error, none reads past the end (AddressSanitizer watches). */
static void test_truncated(void)
{
    size_t size_bytes;
    uint8_t *file = build("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24,
                          &size_bytes);
    for (size_t n = 0; n < size_bytes; n++) {
        uint8_t *cut = g_aligned_alloc0(1, n + 1, 64);
        memcpy(cut, file, n);
        expect(cut, n, "f.safetensors");
        g_aligned_free(cut);
    }
    file[6] = 0x7f; /* a header of petabytes */
    expect(file, size_bytes, "truncated, or no safetensors");
    g_aligned_free(file);
}

/* ---- Directories ---- */

static void write_file(const char *dir, const char *name, const void *data, size_t size_bytes)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_assert_true(g_file_set_contents(path, data, (gssize)size_bytes, NULL));
}

static void expect_directory(const char *dir, const char *message)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_checkpoint) checkpoint = cs_checkpoint_open(dir, &error);
    if (!message) {
        g_assert_no_error(error);
        return;
    }
    g_assert_null(checkpoint);
    if (!strstr(error->message, message))
        g_error("\"%s\" does not say \"%s\"", error->message, message);
}

static void write_index(const char *dir, const char *text)
{
    write_file(dir, "model.safetensors.index.json", text, strlen(text));
}

static void test_directory(void)
{
    g_autofree char *dir = g_dir_make_tmp("checkpoint-XXXXXX", NULL);
    size_t n;
    uint8_t *file =
        build("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24, &n);
    expect_directory("/nonexistent", "no such directory");
    expect_directory(dir, "config.json");
    write_file(dir, "config.json", "{", 1);
    expect_directory(dir, "config.json: line 1");
    write_file(dir, "config.json", "{}", 2);
    expect_directory(dir, "neither model.safetensors nor");
    write_file(dir, "model.safetensors", file, n);
    expect_directory(dir, NULL);
    write_index(dir, "{}");
    expect_directory(dir, "weight_map: expected an object");
    write_index(dir, "{\"weight_map\": {\"a\": \"../x.safetensors\"}}");
    expect_directory(dir, "expected the name of a .safetensors file");
    write_index(dir, "{\"weight_map\": {\"a\": \"gone.safetensors\"}}");
    expect_directory(dir, "gone.safetensors");
    write_index(dir,
                "{\"weight_map\": {\"a\": \"model.safetensors\", \"b\": \"model.safetensors\"}}");
    expect_directory(dir, "tensor b is not in model.safetensors");
    write_file(dir, "two.safetensors", file, n);
    write_index(dir,
                "{\"weight_map\": {\"a\": \"model.safetensors\", \"b\": \"two.safetensors\"}}");
    expect_directory(dir, "in another file of the checkpoint too");
    write_index(dir, "{\"weight_map\": {\"a\": \"model.safetensors\"}}");
    expect_directory(dir, NULL);

    g_autoptr(GError) error = NULL;
    g_autoptr(cs_checkpoint) checkpoint = cs_checkpoint_open(dir, &error);
    g_assert_nonnull(cs_checkpoint_weight(checkpoint, "a", 2, (const int64_t[]){2, 3}, &error));
    g_assert_null(cs_checkpoint_weight(checkpoint, "a", 2, (const int64_t[]){3, 2}, &error));
    g_assert_cmpstr(error->message, ==,
                    "model.safetensors: tensor a: shape [2, 3], expected [3, 2]");
    g_clear_error(&error);
    g_assert_null(cs_checkpoint_weight(checkpoint, "z", 1, (const int64_t[]){3}, &error));
    g_assert_nonnull(
        strstr(error->message, "tensor z, expected with shape [3], is in none of its files"));
    g_aligned_free(file);
    const char *const names[] = {"config.json", "model.safetensors", "two.safetensors",
                                 "model.safetensors.index.json"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(dir, names[i], NULL);
        g_assert_cmpint(g_remove(path), ==, 0);
    }
    g_assert_cmpint(g_rmdir(dir), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/checkpoint/headers", test_headers);
    g_test_add_func("/checkpoint/truncated", test_truncated);
    g_test_add_func("/checkpoint/directory", test_directory);
    return g_test_run();
}
