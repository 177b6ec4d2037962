/* Files of torch.save: what a checkpoint's voices hold, and pickles that mean harm. */
#include "base/error.h"
#include "base/os.h"
#include "checkpoint/torch_file.h"

#include <string.h>

typedef struct {
    GByteArray *archive, *directory;
    uint32_t n;
} builder;

static void put(GByteArray *to, uint64_t x, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++) {
        uint8_t byte = i < 8 ? (uint8_t)(x >> (8 * i)) : 0;
        g_byte_array_append(to, &byte, 1);
    }
}

static void put_text(GByteArray *to, const char *text)
{
    g_byte_array_append(to, (const uint8_t *)text, (guint)strlen(text));
}

static void add(builder *b, const char *name, const void *data, size_t size, uint32_t method)
{
    uint32_t at = b->archive->len;
    for (int both = 0; both < 2; both++) {
        GByteArray *to = both ? b->directory : b->archive;
        put_text(to, both ? "PK\1\2" : "PK\3\4");
        put(to, 0, both ? 4 : 2); /* versions */
        put(to, 0, 2);            /* flags */
        put(to, method, 2);
        put(to, 0, 8); /* time, checksum */
        put(to, size, 4);
        put(to, size, 4);
        put(to, strlen(name), 2);
        put(to, 0, 2);
        if (both) {
            put(to, 0, 10);
            put(to, at, 4);
        }
        put_text(to, name);
    }
    g_byte_array_append(b->archive, data, (guint)size);
    b->n++;
}

static GByteArray *finish(builder *b)
{
    uint32_t at = b->archive->len;
    g_byte_array_append(b->archive, b->directory->data, b->directory->len);
    put_text(b->archive, "PK\5\6");
    put(b->archive, 0, 4);
    put(b->archive, b->n, 2);
    put(b->archive, b->n, 2);
    put(b->archive, b->directory->len, 4);
    put(b->archive, at, 4);
    put(b->archive, 0, 2);
    g_byte_array_unref(b->directory);
    return b->archive;
}

/* The pickle in an archive with storage 0 of four floats and storage 1 of eight bf16. */
static cs_torch_file *load(const void *pickle, size_t size, GError **error)
{
    static const float floats[] = {1, 2, 3, 4};
    static const uint16_t halves[] = {0x3f80, 0x4000, 0x4040, 0x4080, 0xbf80, 0, 0, 0};
    builder b = {g_byte_array_new(), g_byte_array_new(), 0};
    add(&b, "v/data.pkl", pickle, size, 0);
    add(&b, "v/byteorder", "little", 6, 0);
    add(&b, "v/data/0", floats, sizeof floats, 0);
    add(&b, "v/data/1", halves, sizeof halves, 0);
    g_autoptr(GByteArray) archive = finish(&b);
    return cs_torch_file_read(archive->data, archive->len, "voices.pt", error);
}

#define LOAD(pickle, error) load(pickle, sizeof(pickle) - 1, error)

#define TENSOR(type, key, count, offset, size, stride)                                             \
    "ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\n" type "\nX\1\0\0\0" key         \
    "X\3\0\0\0cpuK" count "tQK" offset size stride "\x89"                                          \
    "ccollections\nOrderedDict\n)RtR"

static void test_values(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_torch_file) file =
        LOAD("\x80\2}(X\1\0\0\0aK\7X\1\0\0\0bJ\xfe\xff\xff\xffX\1\0\0\0c\x8a\5\0\0\0\0\1X\1\0\0\0d"
             "G?\xf8\0\0\0\0\0\0X\1\0\0\0eX\2\0\0\0hiX\1\0\0\0f]q\1(K\1K\2h\1eu.",
             &error);
    /* f appends itself to itself: read as it is, followed by nobody. */
    g_assert_no_error(error);
    const cs_torch_value *root = cs_torch_file_root(file);
    g_assert_cmpuint(cs_torch_value_length(root), ==, 6);
    g_assert_cmpint(cs_torch_value_int(cs_torch_value_get(root, "a")), ==, 7);
    g_assert_cmpint(cs_torch_value_int(cs_torch_value_get(root, "b")), ==, -2);
    g_assert_cmpint(cs_torch_value_int(cs_torch_value_get(root, "c")), ==, (int64_t)1 << 32);
    g_assert_cmpfloat(cs_torch_value_float(cs_torch_value_get(root, "d")), ==, 1.5);
    g_assert_cmpstr(cs_torch_value_string(cs_torch_value_get(root, "e")), ==, "hi");
    const cs_torch_value *list = cs_torch_value_get(root, "f");
    g_assert_cmpuint(cs_torch_value_length(list), ==, 3);
    g_assert_true(cs_torch_value_at(list, 2) == list);
    g_assert_null(cs_torch_value_get(root, "g"));
}

static void test_tensors(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_torch_file) plain = LOAD(
        "\x80\2" TENSOR("FloatStorage", "0", "\4", "\0", "K\2K\2\x86", "K\1K\2\x86") ".", &error);
    g_assert_no_error(error);
    const cs_torch_tensor *t = cs_torch_value_tensor(cs_torch_file_root(plain));
    g_assert_cmpuint(t->n_dims, ==, 2);
    static const float transposed[] = {1, 3, 2, 4};
    g_assert_cmpmem(t->data, sizeof transposed, transposed, sizeof transposed);

    g_autoptr(cs_torch_file) half = LOAD(
        "\x80\2" TENSOR("BFloat16Storage", "1", "\10", "\3", "K\2\x85", "K\1\x85") ".", &error);
    g_assert_no_error(error);
    static const float tail[] = {4, -1};
    g_assert_cmpmem(cs_torch_value_tensor(cs_torch_file_root(half))->data, sizeof tail, tail,
                    sizeof tail);
}

static const struct {
    const char *name;
    const char *pickle;
    size_t size;
    cs_error_code code;
    const char *says;
} hostile[] = {
#define CASE(name, pickle, code, says)                                                             \
    {                                                                                              \
        name, pickle, sizeof(pickle) - 1, code, says                                               \
    }
    CASE("system",
         "\x80\2"
         "cos\nsystem\nX\2\0\0\0ls\x85R.",
         CS_ERROR_UNSUPPORTED, "os.system"),
    CASE("stack_global",
         "\x80\4\x8c\10builtins\x8c\4"
         "eval\x93.",
         CS_ERROR_UNSUPPORTED, "builtins.eval"),
    CASE("torch_other",
         "\x80\2"
         "ctorch\nload\n.",
         CS_ERROR_UNSUPPORTED, "torch.load"),
    CASE("build", "\x80\2}}b.", CS_ERROR_UNSUPPORTED, "opcode 0x62"),
    CASE("instance", "\x80\2(ios\nsystem\n.", CS_ERROR_UNSUPPORTED, "opcode 0x69"),
    CASE("object", "\x80\2(cos\nsystem\no.", CS_ERROR_UNSUPPORTED, "os.system"),
    CASE("extension", "\x80\2\x82\1.", CS_ERROR_UNSUPPORTED, "opcode 0x82"),
    CASE("persistent_text", "\x80\2Pa\n.", CS_ERROR_UNSUPPORTED, "opcode 0x50"),
    CASE("protocol_0", "I1\n.", CS_ERROR_UNSUPPORTED, "opcode 0x49"),
    CASE("storage_called",
         "\x80\2"
         "ctorch\nFloatStorage\n)R.",
         CS_ERROR_UNSUPPORTED, "function"),
    CASE("dict_of_items",
         "\x80\2"
         "ccollections\nOrderedDict\n]\x85R.",
         CS_ERROR_UNSUPPORTED, "arguments"),
    CASE("beyond_storage",
         "\x80\2" TENSOR("FloatStorage", "0", "\4", "\2", "K\2K\2\x86", "K\2K\1\x86") ".",
         CS_ERROR_INVALID, "storage"),
    CASE("overlapping",
         "\x80\2" TENSOR("FloatStorage", "0", "\4", "\0", "K\4K\4\x86", "K\0K\0\x86") ".",
         CS_ERROR_INVALID, "storage"),
    CASE("negative_stride",
         "\x80\2" TENSOR("FloatStorage", "0", "\4", "\3", "K\4\x85", "J\xff\xff\xff\xff\x85") ".",
         CS_ERROR_INVALID, "storage"),
    CASE("huge_size",
         "\x80\2" TENSOR("FloatStorage", "0", "\4", "\0", "\x8a\10\0\0\0\0\0\0\0\x7fK\2\x86",
                         "K\1K\1\x86") ".",
         CS_ERROR_INVALID, "storage"),
    CASE("wrong_count", "\x80\2" TENSOR("FloatStorage", "0", "\5", "\0", "K\4\x85", "K\1\x85") ".",
         CS_ERROR_INVALID, "storage 0 of 5"),
    CASE("no_storage", "\x80\2" TENSOR("FloatStorage", "7", "\4", "\0", "K\4\x85", "K\1\x85") ".",
         CS_ERROR_INVALID, "has none"),
    CASE("long_integer", "\x80\2\x8a\xff.", CS_ERROR_UNSUPPORTED, "255 bytes"),
    CASE("cut_text",
         "\x80\2X\xff\xff\xff\xff"
         "a.",
         CS_ERROR_INVALID, "middle"),
    CASE("no_stop", "\x80\2}", CS_ERROR_INVALID, "middle"),
    CASE("empty", "", CS_ERROR_INVALID, "middle"),
    CASE("nothing", "\x80\2.", CS_ERROR_INVALID, "empty stack"),
    CASE("two_values", "\x80\2}}.", CS_ERROR_INVALID, "one value"),
    CASE("mark_left", "\x80\2(.", CS_ERROR_INVALID, "one value"),
    CASE("no_mark", "\x80\2}u.", CS_ERROR_INVALID, "no mark"),
    CASE("odd_items", "\x80\2}(X\1\0\0\0au.", CS_ERROR_INVALID, "without a value"),
    CASE("int_key", "\x80\2}K\1K\2s.", CS_ERROR_UNSUPPORTED, "no string"),
    CASE("fill_int", "\x80\2K\1K\2a.", CS_ERROR_INVALID, "a list"),
    CASE("unwritten_memo", "\x80\2h\5.", CS_ERROR_INVALID, "never written"),
    CASE("memo_far", "\x80\2}r\xff\xff\xff\x7f.", CS_ERROR_INVALID, "memo"),
    CASE("broken_utf8", "\x80\2X\1\0\0\0\xff.", CS_ERROR_INVALID, "UTF-8"),
};

static void test_hostile(const void *data)
{
    size_t i = GPOINTER_TO_SIZE(data);
    g_autoptr(GError) error = NULL;
    g_assert_null(load(hostile[i].pickle, hostile[i].size, &error));
    g_assert_error(error, CS_ERROR, (int)hostile[i].code);
    if (!strstr(error->message, hostile[i].says))
        g_error("expected \"%s\" in: %s", hostile[i].says, error->message);
}

static void test_deep(void)
{
    g_autoptr(GByteArray) pickle = g_byte_array_new();
    put(pickle, 0x0280, 2);
    for (int i = 0; i < 100000; i++)
        put(pickle, i < 1000 ? '(' : ']', 1);
    g_autoptr(GError) error = NULL;
    g_assert_null(load(pickle->data, pickle->len, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
}

static void test_archives(void)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_torch_file_read((const uint8_t *)"no zip", 6, "x.pt", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_clear_error(&error);

    builder b = {g_byte_array_new(), g_byte_array_new(), 0};
    add(&b, "v/data.pkl", "\x80\2}.", 4, 8);
    g_autoptr(GByteArray) deflated = finish(&b);
    g_assert_null(cs_torch_file_read(deflated->data, deflated->len, "x.pt", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_UNSUPPORTED);
    g_clear_error(&error);

    b = (builder){g_byte_array_new(), g_byte_array_new(), 0};
    add(&b, "v/data.pkl", "\x80\2}.", 4, 0);
    add(&b, "v/data.pkl", "\x80\2}.", 4, 0);
    g_autoptr(GByteArray) twice = finish(&b);
    g_assert_null(cs_torch_file_read(twice->data, twice->len, "x.pt", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_clear_error(&error);

    b = (builder){g_byte_array_new(), g_byte_array_new(), 0};
    add(&b, "v/data.pkl", "\x80\2}.", 4, 0);
    add(&b, "v/byteorder", "big", 3, 0);
    g_autoptr(GByteArray) big = finish(&b);
    g_assert_null(cs_torch_file_read(big->data, big->len, "x.pt", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_UNSUPPORTED);
    g_clear_error(&error);

    /* Cut anywhere, a file is an error and no crash. */
    b = (builder){g_byte_array_new(), g_byte_array_new(), 0};
    add(&b, "v/data.pkl", "\x80\2}.", 4, 0);
    g_autoptr(GByteArray) whole = finish(&b);
    g_autoptr(cs_torch_file) good = cs_torch_file_read(whole->data, whole->len, "x.pt", &error);
    g_assert_no_error(error);
    for (guint n = 0; n < whole->len; n++) {
        g_autofree uint8_t *cut = g_memdup2(whole->data, n);
        g_assert_null(cs_torch_file_read(cut, n, "x.pt", &error));
        g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
        g_clear_error(&error);
    }
}

/* The voices of the golden checkpoint, as torch wrote them. */
static void test_voices(void)
{
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "golden", "qwen2_5_omni",
                                                  "qwen2.5-omni-tiny", "spk_dict.pt", NULL);
    g_autoptr(GError) error = NULL;
    cs_file_map map;
    cs_file_map_open(&map, path, &error);
    g_assert_no_error(error);
    g_autoptr(cs_torch_file) file =
        cs_torch_file_read(map.data, map.size_bytes, "spk_dict.pt", &error);
    g_assert_no_error(error);
    cs_file_map_close(&map);
    const cs_torch_value *ethan = cs_torch_value_get(cs_torch_file_root(file), "Ethan");
    g_assert_cmpint(cs_torch_value_int(cs_torch_value_get(ethan, "bos_token")), ==, 953);
    const cs_torch_tensor *mel = cs_torch_value_tensor(cs_torch_value_get(ethan, "ref_mel"));
    g_assert_cmpuint(mel->n_dims, ==, 3);
    g_assert_cmpint(mel->shape[1], ==, 41);
    g_assert_cmpint(mel->shape[2], ==, 40);
    g_assert_cmpstr(cs_torch_value_key(cs_torch_file_root(file), 1), ==, "Chelsie");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/checkpoint/torch_file/values", test_values);
    g_test_add_func("/checkpoint/torch_file/tensors", test_tensors);
    g_test_add_func("/checkpoint/torch_file/voices", test_voices);
    g_test_add_func("/checkpoint/torch_file/deep", test_deep);
    g_test_add_func("/checkpoint/torch_file/archives", test_archives);
    for (size_t i = 0; i < G_N_ELEMENTS(hostile); i++) {
        g_autofree char *path =
            g_strconcat("/checkpoint/torch_file/hostile/", hostile[i].name, NULL);
        g_test_add_data_func(path, GSIZE_TO_POINTER(i), test_hostile);
    }
    return g_test_run();
}
