/* Media on the way to the model, one thread: base64, decoding in the sandboxed process, resizing,
 * patches, mel spectrogram.
 *
 *     build/bench/media [FILE...]     a table; files are decoded too, as what they are
 *
 * Figures are medians. Base64 stands against GLib's, decoding of a small image in the process
 * against nothing at all being decoded (the way there and back). The program under test is
 * build/cornserve, found beside the benchmark's folder. */
#include "base/os.h"
#include "media/data_url.h"
#include "media/decoder/pool.h"
#include "media/preprocess/mel.h"
#include "media/preprocess/patches.h"
#include "media/preprocess/resample.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

enum { ROUNDS = 9 };

typedef void body(void *user);

static int compare_int64(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Median time of one call. */
static double measure_ms(body *run, void *user)
{
    int64_t times[ROUNDS];
    run(user);
    for (int i = 0; i < ROUNDS; i++) {
        int64_t begin = cs_now_us();
        run(user);
        times[i] = cs_now_us() - begin;
    }
    qsort(times, ROUNDS, sizeof times[0], compare_int64);
    return (double)times[ROUNDS / 2] / 1000;
}

static void check(bool good, GError *error)
{
    if (good)
        return;
    fprintf(stderr, "bench: %s\n", error ? error->message : "failed");
    exit(1);
}

typedef struct {
    cs_media_pool *pool;
    cs_vision_config vision;
    uint8_t *data;
    size_t size;
    char *text;
    size_t length;
    cs_image image;
    uint8_t *resized;
    cs_mel_extractor *extractor;
    float *samples;
    size_t n_samples;
} bench;

static void run_base64(void *user)
{
    bench *b = user;
    size_t size;
    g_autofree uint8_t *out = cs_base64_decode(b->text, b->length, SIZE_MAX, &size, NULL);
    check(out != NULL, NULL);
}

static void run_base64_glib(void *user)
{
    bench *b = user;
    gsize size;
    g_free(g_base64_decode(b->text, &size));
}

static void run_decode(void *user)
{
    bench *b = user;
    GError *error = NULL;
    g_auto(cs_image) image = {0};
    check(cs_media_decode_image(b->pool, b->data, b->size, &image, &error), error);
}

static void run_resample(void *user)
{
    bench *b = user;
    cs_resample_source source = {b->image.rgb, b->image.width, b->image.height,
                                 (size_t)b->image.width * 3};
    check(cs_resample_bicubic(&source, b->resized, 1148, 868, NULL), NULL);
}

static void run_patches(void *user)
{
    bench *b = user;
    g_auto(cs_patches) patches = {0};
    cs_image image = {.rgb = b->resized, .width = 1148, .height = 868};
    check(cs_patches_from_image(&b->vision, &image, &patches, NULL), NULL);
}

static void run_mel(void *user)
{
    bench *b = user;
    g_auto(cs_mel) mel = {0};
    check(cs_mel_extract(b->extractor, b->samples, b->n_samples, &mel, NULL), NULL);
}

/* A photograph's worth of detail: smooth shapes and grain. */
static void make_jpeg(uint32_t width, uint32_t height, uint8_t **data, size_t *size)
{
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr errors;
    unsigned long bytes = 0;
    g_autofree uint8_t *row = g_malloc((size_t)width * 3);
    uint32_t state = 1;
    *data = NULL;
    c.err = jpeg_std_error(&errors);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, data, &bytes);
    c.image_width = width;
    c.image_height = height;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, 85, TRUE);
    jpeg_start_compress(&c, TRUE);
    for (uint32_t y = 0; y < height; y++) {
        for (uint32_t i = 0; i < width * 3; i++) {
            state = state * 1664525 + 1013904223;
            row[i] = (uint8_t)(((i / 97 + y / 61) * 37 % 200) + (state >> 28));
        }
        jpeg_write_scanlines(&c, &row, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    *size = bytes;
}

static void bench_images(bench *b)
{
    static const uint32_t sizes[][2] = {{32, 32}, {1148, 868}, {4000, 3000}};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        make_jpeg(sizes[i][0], sizes[i][1], &b->data, &b->size);
        printf("JPEG of %4u x %4u decoded in the process  %8.2f ms\n", sizes[i][0], sizes[i][1],
               measure_ms(run_decode, b));
        if (i + 1 < G_N_ELEMENTS(sizes))
            free(b->data);
    }
    GError *error = NULL;
    check(cs_media_decode_image(b->pool, b->data, b->size, &b->image, &error), error);
    b->length = cs_base64_encoded_length(b->size);
    b->text = g_malloc0(b->length + 1);
    cs_base64_encode(b->data, b->size, b->text);
    double ours = measure_ms(run_base64, b), theirs = measure_ms(run_base64_glib, b);
    printf("base64                                    %8.0f MB/s, GLib's %.0f MB/s\n",
           (double)b->length / 1000 / ours, (double)b->length / 1000 / theirs);
    b->resized = g_malloc(1148 * 868 * 3);
    printf("4000 x 3000 resized to 1148 x 868         %8.2f ms\n", measure_ms(run_resample, b));
    printf("1148 x 868 to patches                     %8.2f ms\n", measure_ms(run_patches, b));
    cs_image_clear(&b->image);
    free(b->data);
}

static void bench_mel(bench *b)
{
    cs_mel_config config = {16000, 400, 160, 128, 300 * 16000};
    b->extractor = cs_mel_extractor_new(&config);
    b->n_samples = 30 * 16000;
    b->samples = g_new(float, b->n_samples);
    for (size_t i = 0; i < b->n_samples; i++)
        b->samples[i] = (float)((i * 7919 % 1000) / 1000.0 - 0.5);
    printf("30 s of sound to log-mel                  %8.2f ms\n", measure_ms(run_mel, b));
}

static bool decode_any(bench *b, GString *what, GError **error)
{
    g_auto(cs_image) image = {0};
    g_auto(cs_audio) audio = {0};
    g_auto(cs_video) v = {0};
    cs_media_format format = cs_media_sniff(b->data, b->size);
    g_string_assign(what, cs_media_format_name(format));
    if (cs_media_format_is_image(format)) {
        if (!cs_media_decode_image(b->pool, b->data, b->size, &image, error))
            return false;
        g_string_append_printf(what, ", %u x %u", image.width, image.height);
    } else if (cs_media_decode_video(b->pool, b->data, b->size, &b->vision.video, 16000, &v,
                                     NULL)) {
        g_string_append_printf(what, ", %u of %u frames at %u x %u, %.1f s of sound", v.n_frames,
                               v.source_frames, v.width, v.height,
                               (double)v.audio.n_samples / 16000);
    } else {
        if (!cs_media_decode_audio(b->pool, b->data, b->size, 16000, &audio, error))
            return false;
        g_string_append_printf(what, ", %.1f s", (double)audio.n_samples / 16000);
    }
    return true;
}

static void bench_file(bench *b, const char *path)
{
    GError *error = NULL;
    g_autoptr(GString) what = g_string_new(NULL);
    b->data = (uint8_t *)cs_file_read(path, 1u << 30, &b->size, &error);
    check(b->data != NULL, error);
    check(decode_any(b, what, &error), error);
    int64_t begin = cs_now_us();
    check(decode_any(b, what, &error), error);
    printf("%s: %s: %.1f ms\n", path, what->str, (double)(cs_now_us() - begin) / 1000);
    g_free(b->data);
}

int main(int argc, char **argv)
{
    GError *error = NULL;
    bench b = {0};
    g_autofree char *here = g_path_get_dirname(argv[0]);
    g_autofree char *path = g_build_filename(here, "..", "cornserve", NULL);
    const char *program[] = {path, "media-decoder", NULL};
    cs_media_pool_options options = CS_MEDIA_POOL_OPTIONS_DEFAULT;
    options.program = program;
    b.pool = cs_media_pool_new(&options, &error);
    check(b.pool != NULL, error);
    json_t *defaults = json_object();
    cs_json_reader reader;
    cs_json_reader_init(&reader, defaults, "defaults");
    cs_vision_config_read(&b.vision, &reader);
    check(cs_json_reader_finish(&reader, &error), error);
    json_decref(defaults);
    bench_images(&b);
    bench_mel(&b);
    for (int i = 1; i < argc; i++)
        bench_file(&b, argv[i]);
    cs_media_pool_free(b.pool);
    cs_mel_extractor_free(b.extractor);
    g_free(b.samples);
    g_free(b.resized);
    g_free(b.text);
    return 0;
}
