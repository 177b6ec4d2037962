/* src/media: sizes, resizing, patches and mel spectrograms where the golden files do not reach
 * (edges, faults). */
#include "base/error.h"
#include "media/preprocess/mel.h"
#include "media/preprocess/patches.h"
#include "media/preprocess/resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool read_config(const char *text, cs_vision_config *vision, cs_mel_config *mel,
                        GError **error)
{
    json_t *root = cs_json_load(text, strlen(text), "p.json", error);
    cs_json_reader reader;
    cs_json_reader_init(&reader, root, "p.json");
    cs_vision_config_read(vision, &reader);
    cs_mel_config_read(mel, &reader);
    bool good = cs_json_reader_finish(&reader, error);
    json_decref(root);
    return good;
}

static void assert_fault(const char *text, const char *sentence)
{
    g_autoptr(GError) error = NULL;
    cs_vision_config vision;
    cs_mel_config mel;
    g_assert_false(read_config(text, &vision, &mel, &error));
    g_assert_cmpstr(error->message, ==, sentence);
}

static void test_config(void)
{
    g_autoptr(GError) error = NULL;
    cs_vision_config vision;
    cs_mel_config mel;
    read_config("{\"min_pixels\": 3136, \"max_pixels\": 12845056, \"chunk_length\": 300, "
                "\"feature_size\": 128, \"image_mean\": [0.5, 0.4, 0.3]}",
                &vision, &mel, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(vision.image_fetch.factor, ==, 28); /* the published limits: the recipe */
    g_assert_cmpfloat(vision.mean[1], ==, 0.4);
    g_assert_cmpfloat(vision.std[2], ==, 0.27577711);
    g_assert_cmpuint(mel.max_samples, ==, 4800000);
    g_assert_cmpuint(mel.n_mels, ==, 128);
    read_config("{\"size\": {\"shortest_edge\": 3136, \"longest_edge\": 1003520}}", &vision, &mel,
                &error);
    g_assert_no_error(error);
    g_assert_cmpuint(vision.image_fetch.factor, ==, 0);
    g_assert_cmpfloat(vision.max_pixels, ==, 1003520);

    assert_fault("{\"image_std\": [0.2, 0, 0.2]}",
                 "p.json: image_std: expected three numbers in [1e-09, 1000]");
    assert_fault("{\"image_mean\": [0.2, 0.2]}",
                 "p.json: image_mean: expected three numbers in [-1000, 1000]");
    assert_fault("{\"image_mean\": 1}",
                 "p.json: image_mean: expected three numbers in [-1000, 1000]");
    assert_fault("{\"resample\": 2}", "p.json: resample: expected 3 (bicubic)");
    assert_fault("{\"do_resize\": false}", "p.json: do_resize: expected true");
    assert_fault("{\"min_pixels\": 900, \"max_pixels\": 800}",
                 "p.json: max_pixels: expected at least min_pixels");
    assert_fault("{\"dither\": 0.5}", "p.json: dither: expected 0");
    assert_fault("{\"n_fft\": 512}", "p.json: n_fft: expected an integer in [400, 400], found 512");
}

static void test_rules(void)
{
    g_autoptr(GError) error = NULL;
    cs_vision_config vision;
    cs_mel_config mel;
    read_config("{}", &vision, &mel, NULL);
    /* Thin pictures, where the two layers part: the recipe keeps a side at the factor, the
     * processor scales up from nothing. */
    uint32_t height = 12, width = 400;
    cs_resize_rule fetch = {CS_RESIZE_FETCH, 28, 3136, 12845056};
    cs_resize_rule processor = {CS_RESIZE_PROCESSOR, 28, 3136, 12845056};
    g_assert_true(cs_resize_rule_apply(&fetch, &height, &width, NULL));
    g_assert_cmpuint(height, ==, 28);
    g_assert_cmpuint(width, ==, 392);
    height = 12, width = 400;
    g_assert_true(cs_resize_rule_apply(&processor, &height, &width, NULL));
    g_assert_cmpuint(height, ==, 28);
    g_assert_cmpuint(width, ==, 336);
    /* Halves go to the even neighbour: 42 / 28 = 1.5, 70 / 28 = 2.5. */
    height = 42, width = 70;
    g_assert_true(cs_resize_rule_apply(&processor, &height, &width, NULL));
    g_assert_cmpuint(height, ==, 56);
    g_assert_cmpuint(width, ==, 56);

    height = 1, width = 201;
    g_assert_false(cs_resize_rule_apply(&processor, &height, &width, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_clear_error(&error);
    uint32_t n;
    g_assert_false(cs_video_rule_count(&vision.video, 1, 30, &n, &error));
    g_assert_cmpstr(error->message, ==, "1 frames; at least 2 are needed");
    g_clear_error(&error);
    g_assert_true(cs_video_rule_count(&vision.video, 100000, 1, &n, &error));
    g_assert_cmpuint(n, ==, 768);
    g_assert_cmpuint(cs_video_rule_index(100000, n, n - 1), ==, 99999);
    /* 768 frames share the total: less than the most of one frame. */
    height = 720, width = 1280;
    g_assert_true(cs_video_rule_size(&vision.video, n, &height, &width, &error));
    g_assert_cmpuint(height * width, <=, 128000 * 784 / 10 * 9 / 768 * 2);
    g_assert_cmpuint(height * width, >, 200 * 784);
}

/* Each portable result equals the vector one, over shapes with all remainders of the lanes. */
static void test_resample(void)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(5);
    size_t ties = 0;
    for (int round = 0; round < 120; round++) {
        uint32_t w = (uint32_t)g_rand_int_range(random, 1, 70);
        uint32_t h = (uint32_t)g_rand_int_range(random, 1, 70);
        uint32_t to_w = (uint32_t)g_rand_int_range(random, 1, 70);
        uint32_t to_h = (uint32_t)g_rand_int_range(random, 1, 70);
        size_t row = w * 3 + (size_t)g_rand_int_range(random, 0, 9);
        g_autofree uint8_t *in = g_malloc(row * h);
        g_autofree uint8_t *a = g_malloc((size_t)to_w * to_h * 3);
        g_autofree uint8_t *b = g_malloc((size_t)to_w * to_h * 3);
        for (size_t i = 0; i < row * h; i++)
            in[i] = (uint8_t)g_rand_int(random);
        cs_resample_source source = {in, w, h, row};
        cs_resample_allow_simd(false);
        g_assert_true(cs_resample_bicubic(&source, a, to_w, to_h, NULL));
        cs_resample_allow_simd(true);
        g_assert_true(cs_resample_bicubic(&source, b, to_w, to_h, NULL));
        g_assert_cmpmem(a, (size_t)to_w * to_h * 3, b, (size_t)to_w * to_h * 3);
        cs_resample_allow_simd(false);
        g_assert_true(cs_resample_bicubic_float(&source, a, to_w, to_h, NULL));
        cs_resample_allow_simd(true);
        g_assert_true(cs_resample_bicubic_float(&source, b, to_w, to_h, NULL));
        for (size_t i = 0; i < (size_t)to_w * to_h * 3; i++) {
            g_assert_cmpint(abs(a[i] - b[i]), <=, 1);
            ties += a[i] != b[i];
        }
    }
    g_assert_cmpuint(ties, <=,
                     8); /* of some 440,000: products are fused in one, not in the other */
}

/* Grey pictures stay grey, and an equal size is a copy. */
static void test_resample_identity(void)
{
    uint8_t in[7 * 5 * 3], out[7 * 5 * 3], large[40 * 30 * 3];
    for (size_t i = 0; i < sizeof in; i++)
        in[i] = (uint8_t)(i * 91);
    cs_resample_source source = {in, 7, 5, 21};
    g_assert_true(cs_resample_bicubic(&source, out, 7, 5, NULL));
    g_assert_cmpmem(out, sizeof out, in, sizeof in);
    g_assert_true(cs_resample_bicubic_float(&source, out, 7, 5, NULL));
    g_assert_cmpmem(out, sizeof out, in, sizeof in);
    memset(in, 201, sizeof in);
    g_assert_true(cs_resample_bicubic(&source, large, 40, 30, NULL));
    for (size_t i = 0; i < sizeof large; i++)
        g_assert_cmpuint(large[i], ==, 201);
}

/* Place of one marked pixel in the rows, and repetition of the last frame of an odd number. */
static void test_patch_order(void)
{
    enum { W = 8, H = 12, N = 3 };
    g_autoptr(GError) error = NULL;
    static uint8_t rgb[N][H][W][3];
    cs_vision_config c;
    cs_mel_config mel;
    read_config("{\"patch_size\": 2, \"merge_size\": 2, \"image_mean\": [0, 0, 0], "
                "\"image_std\": [1, 1, 1], \"rescale_factor\": 1}",
                &c, &mel, NULL);
    rgb[2][7][5][1] = 9; /* frame 2, y 7, x 5, green */
    cs_video video = {.rgb = (const uint8_t *)rgb, .n_frames = N, .width = W, .height = H};
    g_auto(cs_patches) p = {0};
    cs_patches_from_video(&c, &video, &p, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(p.grid_t, ==, 2);
    g_assert_cmpuint(p.grid_h, ==, 6);
    g_assert_cmpuint(p.grid_w, ==, 4);
    g_assert_cmpuint(p.patch_dim, ==, 24);
    /* Patch row 3, column 2: block row 1 of 3, column 1 of 2; in it row 1, column 0. */
    size_t row = 24 + (1 * 2 + 1) * 4 + 1 * 2 + 0;
    for (size_t i = 0; i < p.n_patches * p.patch_dim; i++) {
        size_t in_row = i % p.patch_dim; /* [3][2][2][2]: green, time 0 and 1, y 1, x 1 */
        bool marked = i / p.patch_dim == row && (in_row == 8 + 3 || in_row == 8 + 4 + 3);
        g_assert_cmpfloat(p.data[i], ==, marked ? 9 : 0);
    }
    video.width = 6;
    g_auto(cs_patches) none = {0};
    g_assert_false(cs_patches_from_video(&c, &video, &none, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
}

/* A limit of a request counts beside the model's own, in both steps of the recipe. */
static void test_limit(void)
{
    static const struct {
        const char *json;
        double limit, max, fetch_max;
    } cases[] = {
        {"{\"min_pixels\": 3136, \"max_pixels\": 12845056}", 262144, 262144, 262144},
        {"{\"min_pixels\": 4000, \"max_pixels\": 12845056}", 262144, 262144, 0},
        {"{\"min_pixels\": 4000, \"max_pixels\": 20000}", 262144, 20000, 0},
        {"{\"min_pixels\": 300000, \"max_pixels\": 400000}", 262144, 300000, 0},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        cs_vision_config c;
        cs_mel_config mel;
        read_config(cases[i].json, &c, &mel, NULL);
        cs_vision_config_limit(&c, cases[i].limit);
        g_assert_cmpfloat(c.max_pixels, ==, cases[i].max);
        g_assert_cmpfloat(c.image_fetch.max_pixels, ==, cases[i].fetch_max);
    }
}

/* The spectrogram against its definition in double precision, with a padded length that is no
 * multiple of the lanes. */
static double definition(const float *x, size_t n, size_t padded, size_t frame, size_t bin)
{
    double re = 0, im = 0;
    for (int i = 0; i < 400; i++) {
        int64_t k = (int64_t)frame * 160 - 200 + i;
        k = k < 0 ? -k : k;
        k = k >= (int64_t)padded ? 2 * ((int64_t)padded - 1) - k : k;
        double v = k < (int64_t)n ? (double)x[k] : 0;
        v *= 0.5 - 0.5 * cos(2 * G_PI * i / 400);
        re += v * cos(2 * G_PI * (double)bin * i / 400);
        im -= v * sin(2 * G_PI * (double)bin * i / 400);
    }
    return re * re + im * im;
}

static double slaney_hertz(double mel)
{
    return mel < 15 ? mel * 200 / 3 : 1000 * pow(6.4, (mel - 15) / 27);
}

static void assert_mel(const float *x, size_t n)
{
    enum { MELS = 5, PADDED = 16000 };
    g_autoptr(GError) error = NULL;
    cs_mel_config config = {16000, 400, 160, MELS, PADDED};
    g_autoptr(cs_mel_extractor) extractor = cs_mel_extractor_new(&config);
    g_auto(cs_mel) mel = {0};
    cs_mel_extract(extractor, x, n, &mel, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(mel.n_frames, ==, (n + 159) / 160);
    static double want[PADDED / 160][MELS];
    double top = 15 + log(8) / log(6.4) * 27, most = -100;
    for (size_t f = 0; f < PADDED / 160; f++)
        for (int m = 0; m < MELS; m++) {
            double left = slaney_hertz(top * m / (MELS + 1));
            double mid = slaney_hertz(top * (m + 1) / (MELS + 1));
            double right = slaney_hertz(top * (m + 2) / (MELS + 1)), sum = 0;
            for (size_t bin = 0; bin <= 200; bin++) {
                double hertz = (double)bin * 40;
                double w = fmin((hertz - left) / (mid - left), (right - hertz) / (right - mid));
                if (w > 0)
                    sum += w * 2 / (right - left) * definition(x, n, PADDED, f, bin);
            }
            want[f][m] = log10(fmax(sum, 1e-10));
            most = fmax(most, want[f][m]);
        }
    for (size_t f = 0; f < mel.n_frames; f++)
        for (size_t m = 0; m < MELS; m++) {
            double expected = (fmax(want[f][m], most - 8) + 4) / 4;
            g_assert_cmpfloat(fabs((double)mel.data[f * MELS + m] - expected), <, 2e-5);
        }
}

static void test_mel(void)
{
    static float x[16000];
    g_autoptr(GRand) random = g_rand_new_with_seed(9);
    for (size_t i = 0; i < G_N_ELEMENTS(x); i++)
        x[i] = (float)(0.3 * sin((double)i * 0.21) + g_rand_double_range(random, -0.05, 0.05));
    const size_t lengths[] = {1, 90, 161, 3000, 15990, 16000};
    for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++)
        assert_mel(x, lengths[i]);
    /* The loudest frame may be one that the model does not see. */
    memset(x, 0, sizeof x);
    x[319] = 1;
    assert_mel(x, 320);
}

static void test_mel_refusals(void)
{
    float x[200] = {0};
    cs_mel_config config = {16000, 400, 160, 4, 160};
    g_autoptr(cs_mel_extractor) extractor = cs_mel_extractor_new(&config);
    g_autoptr(GError) error = NULL;
    cs_mel mel;
    g_assert_false(cs_mel_extract(extractor, x, 0, &mel, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_false(cs_mel_extract(extractor, x, 161, &mel, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
    g_clear_error(&error);
    x[7] = NAN;
    g_assert_false(cs_mel_extract(extractor, x, 100, &mel, &error));
    g_assert_cmpstr(error->message, ==, "audio: sample 7 is not a finite number");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/media/preprocess/config", test_config);
    g_test_add_func("/media/preprocess/rules", test_rules);
    g_test_add_func("/media/preprocess/resample", test_resample);
    g_test_add_func("/media/preprocess/resample-identity", test_resample_identity);
    g_test_add_func("/media/preprocess/patch-order", test_patch_order);
    g_test_add_func("/media/preprocess/limit", test_limit);
    g_test_add_func("/media/preprocess/mel", test_mel);
    g_test_add_func("/media/preprocess/mel-refusals", test_mel_refusals);
    return g_test_run();
}
