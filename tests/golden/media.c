/* Every accepted format decoded by the real sandboxed process, against what Pillow, librosa and
 * FFmpeg give (tools/reference/media_formats), and preprocessing against the family's processors
 * (tools/reference/qwen2_5_omni). CS_GOLDEN is the folder of golden files, CS_PROGRAM the
 * program. */
#include "base/json.h"
#include "base/os.h"
#include "media/decoder/pool.h"
#include "media/preprocess/mel.h"
#include "media/preprocess/patches.h"
#include "media/preprocess/resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static cs_media_pool *pool;

static char *golden_path(const char *folder, const char *name)
{
    return g_build_filename(g_getenv("CS_GOLDEN"), folder, name, NULL);
}

static uint8_t *load(const char *folder, const char *name, size_t *size)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = golden_path(folder, name);
    uint8_t *data = (uint8_t *)cs_file_read(path, 64 << 20, size, &error);
    g_assert_no_error(error);
    return data;
}

static json_t *load_json(const char *folder, const char *name)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = golden_path(folder, name);
    json_t *root = cs_json_load_file(path, 64 << 20, &error);
    g_assert_no_error(error);
    return root;
}

static const char *text(json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static int64_t number(json_t *object, const char *key)
{
    g_assert_true(json_is_integer(json_object_get(object, key)));
    return json_integer_value(json_object_get(object, key));
}

static void assert_hash(json_t *expected, const void *data, size_t size)
{
    g_autofree char *hash =
        g_strdup_printf("%016" G_GINT64_MODIFIER "x", cs_hash(CS_HASH_SEED, data, size));
    g_assert_cmpstr(hash, ==, text(expected, "fnv1a64"));
}

static void decode_picture(const char *folder, const char *name, cs_image *image)
{
    g_autoptr(GError) error = NULL;
    size_t size;
    g_autofree uint8_t *data = load(folder, name, &size);
    cs_media_decode_image(pool, data, size, image, &error);
    g_assert_no_error(error);
}

static void test_images(void)
{
    json_t *root = load_json("media_formats", "expected.json"), *item;
    size_t i;
    json_array_foreach (json_object_get(root, "images"), i, item) {
        g_auto(cs_image) image = {0};
        g_test_message("%s", text(item, "file"));
        decode_picture("media_formats", text(item, "file"), &image);
        g_assert_cmpuint(image.width, ==, number(item, "width"));
        g_assert_cmpuint(image.height, ==, number(item, "height"));
        assert_hash(item, image.rgb, (size_t)image.width * image.height * 3);
    }
    g_assert_cmpuint(i, >, 20);
    json_decref(root);
}

/* Bars: lossless formats at 16 kHz are equal; resampling is the same library with another schedule
 * of blocks; lossy codecs are other implementations of a standard that allows differences of about
 * one 16-bit step. */
static double sound_bar(const char *name)
{
    if (g_str_has_suffix(name, ".mp3") || g_str_has_suffix(name, ".ogg") ||
        g_str_has_suffix(name, ".m4a"))
        return 1e-4;
    return 1e-6;
}

static void test_sounds(void)
{
    json_t *root = load_json("media_formats", "expected.json"), *item;
    size_t i;
    json_array_foreach (json_object_get(root, "sounds"), i, item) {
        const char *name = text(item, "file");
        g_autoptr(GError) error = NULL;
        g_autofree char *reference_name = g_strconcat(name, ".f32", NULL);
        size_t size, reference_size;
        g_autofree uint8_t *data = load("media_formats", name, &size);
        g_autofree uint8_t *bytes = load("media_formats", reference_name, &reference_size);
        g_auto(cs_audio) audio = {0};
        cs_media_decode_audio(pool, data, size, 16000, &audio, &error);
        g_assert_no_error(error);
        const float *reference = (const float *)(const void *)bytes;
        double worst = 0;
        for (size_t s = 0; s < audio.n_samples && s < reference_size / 4; s++)
            worst = fmax(worst, fabs((double)audio.samples[s] - (double)reference[s]));
        g_test_message("%s: %zu samples, off by %.2g", name, audio.n_samples, worst);
        g_assert_cmpuint(audio.n_samples, ==, reference_size / 4);
        g_assert_cmpfloat(worst, <=, sound_bar(name));
    }
    g_assert_cmpuint(i, >=, 10);
    json_decref(root);
}

static cs_vision_config vision_config(json_t *root)
{
    g_autoptr(GError) error = NULL;
    cs_vision_config config;
    cs_json_reader reader;
    cs_json_reader_init(&reader, root, "preprocessor_config.json");
    cs_vision_config_read(&config, &reader);
    cs_json_reader_finish(&reader, &error);
    g_assert_no_error(error);
    return config;
}

static void test_videos(void)
{
    json_t *root = load_json("media_formats", "expected.json"), *item, *empty = json_object();
    cs_vision_config config = vision_config(empty);
    size_t i;
    json_array_foreach (json_object_get(root, "videos"), i, item) {
        g_autoptr(GError) error = NULL;
        size_t size;
        g_autofree uint8_t *data = load("media_formats", text(item, "file"), &size);
        g_auto(cs_video) v = {0};
        cs_media_decode_video(pool, data, size, &config.video, 16000, &v, &error);
        g_assert_no_error(error);
        g_test_message("%s: %u of %u frames, %u x %u, sound %zu samples", text(item, "file"),
                       v.n_frames, v.source_frames, v.width, v.height, v.audio.n_samples);
        g_assert_cmpuint(v.source_frames, ==, number(item, "source_frames"));
        g_assert_cmpuint(v.n_frames, ==, number(item, "frames"));
        g_assert_cmpuint(v.width, ==, number(item, "width"));
        g_assert_cmpuint(v.height, ==, number(item, "height"));
        assert_hash(item, v.rgb, (size_t)v.width * v.height * v.n_frames * 3);
        double seconds = v.source_frames / v.source_fps;
        bool silent = g_str_equal(text(item, "file"), "turned.mp4");
        g_assert_cmpint(v.has_audio, ==, !silent);
        if (silent)
            g_assert_null(v.audio.samples);
        else
            g_assert_cmpfloat(fabs((double)v.audio.n_samples / 16000 - seconds), <, 0.1);
    }
    g_assert_cmpuint(i, ==, 4);
    json_decref(empty);
    json_decref(root);
}

/* Frames as the official recipe resizes them, for checkpoints with the published limits. Two
 * samples in a million may fall on the other side of a tie. */
static void test_recipe_frames(void)
{
    static const char *const files[] = {"h264.mp4", "vp9.webm"};
    json_t *limits = json_pack("{s:i, s:i}", "min_pixels", 3136, "max_pixels", 12845056);
    cs_vision_config config = vision_config(limits);
    json_decref(limits);
    g_assert_true(config.video.float_resize);
    config.video.min_pixels = config.video.processor.min_pixels = 4 * 784;
    config.video.max_pixels = config.video.processor.max_pixels = 4 * 784;
    for (size_t f = 0; f < G_N_ELEMENTS(files); f++) {
        g_autoptr(GError) error = NULL;
        size_t size, want_size, differing = 0;
        g_autofree char *want_name = g_strconcat(files[f], ".56x56.rgb", NULL);
        g_autofree uint8_t *data = load("media_formats", files[f], &size);
        g_autofree uint8_t *want = load("media_formats", want_name, &want_size);
        g_auto(cs_video) v = {0};
        cs_media_decode_video(pool, data, size, &config.video, 0, &v, &error);
        g_assert_no_error(error);
        g_assert_cmpuint((size_t)v.n_frames * v.width * v.height * 3, ==, want_size);
        for (size_t i = 0; i < want_size; i++) {
            g_assert_cmpint(abs(v.rgb[i] - want[i]), <=, 1);
            differing += v.rgb[i] != want[i];
        }
        g_test_message("%s: %zu of %zu samples differ", files[f], differing, want_size);
        g_assert_cmpuint(differing, <=, 3);
    }
}

static void test_smart_resize(void)
{
    json_t *root = load_json("qwen2_5_omni", "preprocess.json"), *item;
    size_t i;
    json_array_foreach (json_object_get(root, "smart_resize"), i, item) {
        g_autoptr(GError) error = NULL;
        uint32_t height = (uint32_t)number(item, "height"), width = (uint32_t)number(item, "width");
        cs_resize_rule rule = {CS_RESIZE_PROCESSOR, (uint32_t)number(item, "factor"),
                               (double)number(item, "min_pixels"),
                               (double)number(item, "max_pixels")};
        bool good = cs_resize_rule_apply(&rule, &height, &width, &error);
        json_t *resized = json_object_get(item, "resized");
        g_assert_cmpint(good, ==, resized != NULL);
        if (!good)
            continue;
        g_assert_cmpint(height, ==, json_integer_value(json_array_get(resized, 0)));
        g_assert_cmpint(width, ==, json_integer_value(json_array_get(resized, 1)));
    }
    g_assert_cmpuint(i, >, 100);
    json_decref(root);
}

static void test_sampled_frames(void)
{
    json_t *root = load_json("qwen2_5_omni", "preprocess.json"), *item, *empty = json_object();
    cs_vision_config config = vision_config(empty);
    size_t i;
    json_array_foreach (json_object_get(root, "sampled_frames"), i, item) {
        g_autoptr(GError) error = NULL;
        uint32_t n = 0;
        uint64_t total = (uint64_t)number(item, "frames");
        json_t *indices = json_object_get(item, "indices");
        cs_video_rule_count(&config.video, total, json_number_value(json_object_get(item, "fps")),
                            &n, &error);
        g_assert_no_error(error);
        g_assert_cmpuint(n, ==, number(item, "count"));
        for (uint32_t k = 0; k < json_array_size(indices); k++)
            g_assert_cmpuint(cs_video_rule_index(total, n, k), ==,
                             json_integer_value(json_array_get(indices, k)));
    }
    g_assert_cmpuint(i, >, 5);
    json_decref(empty);
    json_decref(root);
}

/* The reference's noise: the top byte of each state of a linear congruential generator. */
static uint8_t *noise(uint32_t width, uint32_t height, uint32_t state)
{
    uint8_t *out = g_malloc((size_t)width * height * 3);
    for (size_t i = 0; i < (size_t)width * height * 3; i++) {
        state = state * 1664525 + 1013904223;
        out[i] = (uint8_t)(state >> 24);
    }
    return out;
}

static void resize_case(json_t *item)
{
    g_autoptr(GError) error = NULL;
    json_t *source = json_object_get(item, "source");
    uint32_t width = (uint32_t)number(item, "width"), height = (uint32_t)number(item, "height");
    g_auto(cs_image) image = {0};
    g_autofree uint8_t *made = NULL;
    if (json_is_string(source)) {
        decode_picture("qwen2_5_omni/media", json_string_value(source), &image);
    } else {
        image.width = (uint32_t)json_integer_value(json_array_get(source, 0));
        image.height = (uint32_t)json_integer_value(json_array_get(source, 1));
        image.rgb = made = noise(image.width, image.height,
                                 (uint32_t)json_integer_value(json_array_get(source, 2)));
    }
    cs_resample_source from = {image.rgb, image.width, image.height, (size_t)image.width * 3};
    g_autofree uint8_t *out = g_malloc((size_t)width * height * 3);
    for (int simd = 0; simd < 2; simd++) {
        cs_resample_allow_simd(simd);
        cs_resample_bicubic(&from, out, width, height, &error);
        g_assert_no_error(error);
        assert_hash(item, out, (size_t)width * height * 3);
    }
}

static void test_resize(void)
{
    json_t *root = load_json("qwen2_5_omni", "preprocess.json"), *item;
    size_t i;
    json_array_foreach (json_object_get(root, "decoded"), i, item) {
        g_auto(cs_image) image = {0};
        decode_picture("qwen2_5_omni/media", text(item, "file"), &image);
        assert_hash(item, image.rgb, (size_t)image.width * image.height * 3);
    }
    json_array_foreach (json_object_get(root, "resize"), i, item)
        resize_case(item);
    g_assert_cmpuint(i, >, 10);
    json_decref(root);
}

/* A tensor of a safetensors file that is known to be good: 8 bytes of header length, JSON, data. */
typedef struct {
    const void *data;
    size_t shape[2];
} tensor;

static tensor find_tensor(const uint8_t *file, const char *name)
{
    uint64_t head;
    memcpy(&head, file, 8);
    json_t *root = json_loadb((const char *)file + 8, head, 0, NULL);
    json_t *entry = json_object_get(root, name);
    tensor t = {0};
    if (entry) {
        json_t *shape = json_object_get(entry, "shape");
        t.data = file + 8 + head +
                 json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
        for (size_t i = 0; i < 2 && i < json_array_size(shape); i++)
            t.shape[i] = (size_t)json_integer_value(json_array_get(shape, i));
    }
    json_decref(root);
    return t;
}

static double compare_mel(const cs_mel *mel, const float *reference, const int32_t *rows, size_t n)
{
    double worst = 0, largest = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t m = 0; m < mel->n_mels; m++) {
            double want = (double)reference[i * mel->n_mels + m];
            double got = (double)mel->data[(size_t)rows[i] * mel->n_mels + m];
            worst = fmax(worst, fabs(got - want));
            largest = fmax(largest, fabs(want));
        }
    return worst / largest;
}

static void test_mel(void)
{
    const char *const names[] = {"bell", "clipped", "short", "silent"};
    size_t size;
    g_autofree uint8_t *file = load("qwen2_5_omni", "preprocess.safetensors", &size);
    cs_mel_config config = {16000, 400, 160, 128, 300 * 16000};
    g_autoptr(cs_mel_extractor) extractor = cs_mel_extractor_new(&config);
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *base = g_strconcat("mel128.", names[i], NULL);
        g_autofree char *rows = g_strconcat(base, ".rows", NULL);
        g_autofree char *samples_name = g_strconcat(base, ".samples", NULL);
        g_autofree char *frames = g_strconcat(base, ".frames", NULL);
        tensor samples = find_tensor(file, samples_name), want = find_tensor(file, base);
        g_auto(cs_audio) audio = {.samples = samples.data, .n_samples = samples.shape[0]};
        if (!samples.data) {
            g_autofree uint8_t *data = load("qwen2_5_omni/media", "bell.flac", &size);
            cs_media_decode_audio(pool, data, size, 16000, &audio, &error);
            g_assert_no_error(error);
        }
        g_auto(cs_mel) mel = {0};
        cs_mel_extract(extractor, audio.samples, audio.n_samples, &mel, &error);
        g_assert_no_error(error);
        g_assert_cmpint(mel.n_frames, ==, *(const int32_t *)find_tensor(file, frames).data);
        double worst = compare_mel(&mel, want.data, find_tensor(file, rows).data, want.shape[0]);
        g_test_message("%s: %zu frames, off by %.2g", names[i], mel.n_frames, worst);
        /* Two float transforms differ by this much in the quietest bins; the project's bar is
         * 1e-3. */
        g_assert_cmpfloat(worst, <=, 5e-5);
    }
}

/* What a request's media become, against the tensors kept of it: rows of the concatenation over
 * its media. pixel_u8 holds grey levels, before normalisation. */
typedef struct {
    const char *file, *media[3], *kind;
} request_case;

static const request_case request_cases[] = {
    {"req02.safetensors", {"harbour.jpg"}, "vision"},
    {"req03.safetensors", {"tower.png", "banner.jpg"}, "vision"},
    {"req07.safetensors", {"walk.mp4"}, "video"},
};

static void make_patches(const cs_vision_config *config, const char *kind, const char *name,
                         cs_patches *patches)
{
    g_autoptr(GError) error = NULL;
    size_t size;
    g_autofree uint8_t *data = load("qwen2_5_omni/media", name, &size);
    g_auto(cs_image) image = {0};
    g_auto(cs_video) video = {0};
    if (g_str_equal(kind, "vision")) {
        cs_media_decode_image(pool, data, size, &image, &error);
        g_assert_no_error(error);
        cs_patches_from_image(config, &image, patches, &error);
    } else {
        cs_media_decode_video(pool, data, size, &config->video, 0, &video, &error);
        g_assert_no_error(error);
        cs_patches_from_video(config, &video, patches, &error);
    }
    g_assert_no_error(error);
}

static void assert_row(const cs_vision_config *config, const cs_patches *patches, size_t row,
                       const uint8_t *want)
{
    for (size_t i = 0; i < patches->patch_dim; i++) {
        size_t c = i / (patches->patch_dim / 3);
        double value = (double)patches->data[row * patches->patch_dim + i];
        double level = (value * config->std[c] + config->mean[c]) * 255;
        g_assert_cmpfloat(fabs(level - want[i]), <, 1e-3);
    }
}

static void check_request(const cs_vision_config *config, const request_case *c)
{
    size_t size, first = 0, seen = 0;
    g_autofree uint8_t *file = load("qwen2_5_omni", c->file, &size);
    g_autofree char *name = g_strconcat(c->kind, ".pixel_u8", NULL);
    g_autofree char *rows_name = g_strconcat(c->kind, ".pixel_u8.rows", NULL);
    g_autofree char *grid_name = g_strconcat(c->kind, ".grid_thw", NULL);
    tensor want = find_tensor(file, name);
    const int32_t *rows = find_tensor(file, rows_name).data;
    const int32_t *grid = find_tensor(file, grid_name).data;
    for (size_t i = 0; c->media[i]; i++, grid += 3) {
        g_auto(cs_patches) p = {0};
        make_patches(config, c->kind, c->media[i], &p);
        g_assert_cmpint(p.grid_t, ==, grid[0]);
        g_assert_cmpint(p.grid_h, ==, grid[1]);
        g_assert_cmpint(p.grid_w, ==, grid[2]);
        g_assert_cmpfloat(p.seconds_per_grid, ==, 1);
        for (size_t r = 0; r < want.shape[0]; r++)
            if ((size_t)rows[r] >= first && (size_t)rows[r] < first + p.n_patches) {
                assert_row(config, &p, (size_t)rows[r] - first,
                           (const uint8_t *)want.data + r * p.patch_dim);
                seen++;
            }
        first += p.n_patches;
    }
    g_assert_cmpuint(seen, ==, want.shape[0]);
}

static void test_patches(void)
{
    json_t *fields = load_json("qwen2_5_omni/qwen2.5-omni-tiny", "preprocessor_config.json");
    cs_vision_config config = vision_config(fields);
    for (size_t i = 0; i < G_N_ELEMENTS(request_cases); i++)
        check_request(&config, &request_cases[i]);
    json_decref(fields);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_autoptr(GError) error = NULL;
    const char *program[] = {g_getenv("CS_PROGRAM"), "media-decoder", NULL};
    cs_media_pool_options options = CS_MEDIA_POOL_OPTIONS_DEFAULT;
    options.program = program;
    pool = cs_media_pool_new(&options, &error);
    g_assert_no_error(error);
    g_test_add_func("/golden/media/images", test_images);
    g_test_add_func("/golden/media/sounds", test_sounds);
    g_test_add_func("/golden/media/videos", test_videos);
    g_test_add_func("/golden/media/recipe-frames", test_recipe_frames);
    g_test_add_func("/golden/media/smart-resize", test_smart_resize);
    g_test_add_func("/golden/media/sampled-frames", test_sampled_frames);
    g_test_add_func("/golden/media/resize", test_resize);
    g_test_add_func("/golden/media/mel", test_mel);
    g_test_add_func("/golden/media/patches", test_patches);
    int result = g_test_run();
    cs_media_pool_free(pool);
    return result;
}
