/* src/models: a checkpoint directory with one thing wrong is refused, and the sentence names it.
 *
 * Each case links the golden checkpoint's files into a directory of its own and changes one of
 * them.
 */
#include "base/error.h"
#include "base/json.h"
#include "base/os.h"
#include "models/model.h"

#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

static const char *golden; /* the checkpoint */
static cs_compute *compute;

/* A directory of links to the golden files. */
static char *make_directory(void)
{
    char *dir = g_dir_make_tmp("model-XXXXXX", NULL);
    GDir *files = g_dir_open(golden, 0, NULL);
    for (const char *name; (name = g_dir_read_name(files));) {
        g_autofree char *from = g_build_filename(golden, name, NULL),
                        *to = g_build_filename(dir, name, NULL);
        g_assert_cmpint(symlink(from, to), ==, 0);
    }
    g_dir_close(files);
    return dir;
}

static void remove_directory(char *dir)
{
    GDir *files = g_dir_open(dir, 0, NULL);
    for (const char *name; (name = g_dir_read_name(files));) {
        g_autofree char *path = g_build_filename(dir, name, NULL);
        g_remove(path);
    }
    g_dir_close(files);
    g_rmdir(dir);
    g_free(dir);
}

static void replace_file(const char *dir, const char *name, const char *text, size_t size_bytes)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_remove(path);
    if (text)
        g_assert_true(g_file_set_contents(path, text, (gssize)size_bytes, NULL));
}

static void expect_error(const char *dir, const char *message)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_model) model = cs_model_load(dir, &(cs_model_options){.compute = compute}, &error);
    g_assert_null(model);
    if (!strstr(error->message, message))
        g_error("\"%s\" does not say \"%s\"", error->message, message);
}

/* Sets the member at a path of object keys, or removes it (value NULL). */
static void edit(json_t *root, const char *path, json_t *value)
{
    g_auto(GStrv) keys = g_strsplit(path, ".", -1);
    json_t *node = root;
    guint last = g_strv_length(keys) - 1;
    for (guint i = 0; i < last; i++)
        node = json_object_get(node, keys[i]);
    g_assert_true(json_is_object(node));
    if (value)
        json_object_set_new(node, keys[last], value);
    else
        json_object_del(node, keys[last]);
}

static void expect_edited(const char *file, const char *path, json_t *value, const char *message)
{
    char *dir = make_directory();
    g_autofree char *from = g_build_filename(golden, file, NULL);
    json_t *root = cs_json_load_file(from, 1 << 24, NULL);
    edit(root, path, value);
    char *text = json_dumps(root, 0);
    replace_file(dir, file, text, strlen(text));
    expect_error(dir, message);
    free(text);
    json_decref(root);
    remove_directory(dir);
}

static void test_sound(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_model) model =
        cs_model_load(golden, &(cs_model_options){.compute = compute}, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(model->id, ==, "qwen2.5-omni-tiny");
    g_assert_cmpuint(model->generation.n_eos_ids, ==, 1);
    g_autofree char *slash = g_strconcat(golden, "/", NULL);
    g_autoptr(cs_model) again =
        cs_model_load(slash, &(cs_model_options){.compute = compute, .dtype = "f32"}, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(again->id, ==, "qwen2.5-omni-tiny");
}

static void test_config(void)
{
    expect_edited("config.json", "model_type", json_string("llama"),
                  "model_type \"llama\" is not implemented");
    expect_edited("config.json", "model_type", NULL, "model_type (none)");
    expect_edited("config.json", "thinker_config", NULL,
                  "thinker_config: expected an object, found nothing");
    expect_edited("config.json", "thinker_config.text_config.hidden_size", json_integer(0),
                  "text_config.hidden_size");
    expect_edited("config.json", "thinker_config.text_config.hidden_size", json_string("big"),
                  "found \"big\"");
    expect_edited("config.json", "thinker_config.text_config.hidden_size", json_integer(INT64_MAX),
                  "hidden_size");
    expect_edited("config.json", "thinker_config.text_config.hidden_act", json_string("relu"),
                  "activation \"relu\"");
    expect_edited("config.json", "thinker_config.text_config.num_key_value_heads", json_integer(4),
                  "does not share out");
    expect_edited("config.json", "thinker_config.text_config.rope_scaling.mrope_section",
                  json_pack("[iii]", 2, 4, 4), "sections add up to 10");
    expect_edited("config.json", "thinker_config.text_config.rope_scaling.type",
                  json_string("yarn"), "\"yarn\" is not");
    expect_edited("config.json", "thinker_config.text_config.use_sliding_window", json_true(),
                  "sliding-window");
    expect_edited("config.json", "thinker_config.text_config.vocab_size", json_integer(957),
                  "shape [961, 108], expected [957, 108]");
    expect_edited("config.json", "thinker_config.vision_config.fullatt_block_indexes",
                  json_pack("[i]", 99), "fullatt_block_indexes[0]");
    expect_edited("config.json", "thinker_config.vision_config.out_hidden_size", json_integer(109),
                  "hidden_size is 108");
    expect_edited("config.json", "thinker_config.vision_config.depth", json_integer(6),
                  "blocks.5.norm1.weight");
    expect_edited("config.json", "thinker_config.vision_config.num_heads", json_integer(7),
                  "do not share out");
    expect_edited("config.json", "thinker_config.audio_config.d_model", json_integer(140),
                  "conv1.weight");
    expect_edited("config.json", "thinker_config.audio_config.n_window", json_integer(65),
                  "max_source_positions");
    expect_edited("config.json", "thinker_config.image_token_index", json_integer(-1),
                  "image_token_index");
    expect_edited("config.json", "thinker_config.video_token_index", json_integer(915),
                  "expected three tokens");
    expect_edited("preprocessor_config.json", "patch_size", json_integer(14), "patch");
    expect_edited("preprocessor_config.json", "feature_size", json_integer(80), "80 mel bins");
    expect_edited("generation_config.json", "eos_token_id", json_string("x"), "eos_token_id");
    json_t *ids = json_array();
    for (int i = 0; i < 17; i++)
        json_array_append_new(ids, json_integer(i));
    expect_edited("generation_config.json", "eos_token_id", ids, "at most 16 ids, found 17");
}

static void test_files(void)
{
    static const char *const required[] = {"config.json", "tokenizer.json",
                                           "preprocessor_config.json",
                                           "model-00002-of-00003.safetensors"};
    for (size_t i = 0; i < G_N_ELEMENTS(required); i++) {
        char *dir = make_directory();
        replace_file(dir, required[i], NULL, 0);
        expect_error(dir, required[i]);
        remove_directory(dir);
    }
    /* A shard cut short, as an interrupted download leaves it. */
    char *dir = make_directory();
    g_autofree char *path = g_build_filename(golden, "model-00001-of-00003.safetensors", NULL);
    cs_file_map map;
    g_assert_true(cs_file_map_open(&map, path, NULL));
    replace_file(dir, "model-00001-of-00003.safetensors", (const char *)map.data,
                 map.size_bytes / 2);
    expect_error(dir, "model-00001-of-00003.safetensors");
    cs_file_map_close(&map);
    remove_directory(dir);
}

static void test_dtype(void)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(
        cs_model_load(golden, &(cs_model_options){.compute = compute, .dtype = "int4"}, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_assert_nonnull(strstr(error->message, "expected auto, f32 or bf16"));
}

static void test_describe(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_checkpoint) checkpoint = cs_checkpoint_open(golden, &error);
    g_assert_no_error(error);
    g_autoptr(GArray) components = cs_model_describe(checkpoint, "f32", &error);
    g_assert_no_error(error);
    uint64_t stored = 0, tensors = 0;
    for (guint i = 0; i < components->len; i++) {
        const cs_component_summary *c = &g_array_index(components, cs_component_summary, i);
        g_assert_cmpstr(c->name, !=, "other");
        g_assert_cmpuint(c->loaded_bytes, ==, c->parameters * 4);
        stored += c->stored_bytes;
        tensors += c->n_tensors;
    }
    uint64_t expected = 0;
    for (uint32_t i = 0; i < cs_checkpoint_n_tensors(checkpoint); i++)
        expected += cs_checkpoint_tensor_at(checkpoint, i)->size_bytes;
    g_assert_cmpuint(stored, ==, expected);
    g_assert_cmpuint(tensors, ==, cs_checkpoint_n_tensors(checkpoint));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_assert_cmpint(argc, ==, 2);
    g_autofree char *dir = g_build_filename(argv[1], "qwen2.5-omni-tiny", NULL);
    golden = dir;
    const cs_compute_options options = {.n_threads = 1};
    compute = cs_compute_new(&options, NULL);
    g_test_add_func("/models/load/sound", test_sound);
    g_test_add_func("/models/load/config", test_config);
    g_test_add_func("/models/load/files", test_files);
    g_test_add_func("/models/load/dtype", test_dtype);
    g_test_add_func("/models/load/describe", test_describe);
    int result = g_test_run();
    cs_compute_free(compute);
    return result;
}
