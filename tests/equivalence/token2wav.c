/* Speech in pieces is the speech of the whole: however codes arrive and chunks are cut, alone or
 * with company. */
#include "base/error.h"
#include "models/qwen2_5_omni/token2wav.h"

#include <math.h>
#include <string.h>

static const double GOLDEN_BAR = 1e-4;

enum { N = 103 };
static int32_t codes[N];
static cs_token2wav *token2wav;
static cs_parameters *parameters;
static cs_compute *compute;
static cs_checkpoint *checkpoint;
static cs_qwen2_5_omni_config config;

static cs_token2wav_stream *open_stream(const char *voice, const cs_token2wav_options *options)
{
    g_autoptr(GError) error = NULL;
    cs_token2wav_stream *s = cs_token2wav_stream_new(token2wav, voice, options, &error);
    g_assert_no_error(error);
    return s;
}

static void push(cs_token2wav_stream *s, uint32_t n, const int32_t *from, bool last)
{
    g_autoptr(GError) error = NULL;
    cs_token2wav_stream_push(s, n, from, last, &error);
    g_assert_no_error(error);
}

static void step(uint32_t n, cs_token2wav_stream *const *streams)
{
    g_autoptr(GError) error = NULL;
    cs_token2wav_step(token2wav, n, streams, &error);
    g_assert_no_error(error);
}

static void drain(cs_token2wav_stream *s, GArray *out)
{
    float part[100];
    for (uint32_t n; (n = cs_token2wav_stream_read(s, G_N_ELEMENTS(part), part)) > 0;)
        g_array_append_vals(out, part, n);
}

/* Codes come `burst` at a time, and work is done whenever there is any. */
static GArray *speak(const cs_token2wav_options *options, uint32_t n, uint32_t burst)
{
    g_autoptr(cs_token2wav_stream) s = open_stream("Ethan", options);
    GArray *out = g_array_new(FALSE, FALSE, sizeof(float));
    for (uint32_t at = 0; at < n; at += burst) {
        push(s, MIN(burst, n - at), codes + at, at + burst >= n);
        while (cs_token2wav_stream_ready(s)) {
            step(1, &s);
            drain(s, out);
        }
    }
    g_assert_true(cs_token2wav_stream_finished(s));
    g_assert_cmpuint(out->len, ==, n * cs_token2wav_samples_per_code(token2wav));
    return out;
}

static double difference(const GArray *a, const GArray *b)
{
    const float *x = (const float *)(void *)a->data, *y = (const float *)(void *)b->data;
    double worst = 0, scale = 0;
    g_assert_cmpuint(a->len, ==, b->len);
    for (guint i = 0; i < a->len; i++) {
        worst = fmax(worst, fabs(x[i] - y[i]));
        scale = fmax(scale, fabs(y[i]));
    }
    return worst / scale;
}

static void test_chunks(void)
{
    static const cs_token2wav_options cuts[] = {
        {.seed = 5},
        {.seed = 5, .first_chunk_blocks = 3, .chunk_blocks = 1},
        {.seed = 5, .chunk_blocks = 7, .blocks_before = 4, .blocks_after = 3}};
    for (uint32_t n = 1; n <= N; n += 34) {
        g_autoptr(GArray) whole = speak(&(cs_token2wav_options){.seed = 5, .whole = true}, n, N);
        for (size_t i = 0; i < G_N_ELEMENTS(cuts); i++) {
            g_autoptr(GArray) part = speak(&cuts[i], n, 9);
            double error = difference(part, whole);
            g_test_message("%u codes, cut %zu: %.1e", n, i, error);
            g_assert_cmpfloat(error, <=, GOLDEN_BAR);
        }
    }
}

/* Too narrow a window is seen, or the test above proves nothing. */
static void test_bar_bites(void)
{
    g_autoptr(GArray) whole = speak(&(cs_token2wav_options){.seed = 5, .whole = true}, N, N);
    g_autoptr(GArray) narrow =
        speak(&(cs_token2wav_options){.seed = 5, .blocks_before = 1, .blocks_after = 1}, N, N);
    g_assert_cmpfloat(difference(narrow, whole), >, GOLDEN_BAR);
    g_autoptr(GArray) other = speak(&(cs_token2wav_options){.seed = 6, .whole = true}, N, N);
    g_assert_cmpfloat(difference(other, whole), >, 100 * GOLDEN_BAR);
}

/* So many codes make a first window, and one fewer none. */
static void test_first_codes(void)
{
    g_autoptr(cs_token2wav_stream) s = open_stream("Ethan", &(cs_token2wav_options){.seed = 5});
    uint32_t n = cs_token2wav_first_codes(&config);
    push(s, n - 1, codes, false);
    g_assert_false(cs_token2wav_stream_ready(s));
    push(s, 1, codes, false);
    g_assert_true(cs_token2wav_stream_ready(s));
}

/* The arrival of codes and the company of others change no bit. */
static void test_company(void)
{
    g_autoptr(GArray) alone = speak(&(cs_token2wav_options){.seed = 5}, N, N);
    g_autoptr(GArray) slowly = speak(&(cs_token2wav_options){.seed = 5}, N, 1);
    g_assert_cmpmem(alone->data, alone->len * sizeof(float), slowly->data,
                    slowly->len * sizeof(float));

    g_autoptr(cs_token2wav_stream) s = open_stream("ethan", &(cs_token2wav_options){.seed = 5});
    g_autoptr(cs_token2wav_stream) second =
        open_stream("Chelsie", &(cs_token2wav_options){.seed = 8, .first_chunk_blocks = 2});
    g_autoptr(GArray) out = g_array_new(FALSE, FALSE, sizeof(float));
    push(s, N, codes, true);
    push(second, 60, codes + 20, true);
    for (int i = 0; !cs_token2wav_stream_finished(s); i++) {
        cs_token2wav_stream *both[] = {s, second};
        step(i >= 4 && cs_token2wav_stream_ready(second) ? 2 : 1, both);
        drain(s, out);
    }
    g_assert_cmpmem(alone->data, alone->len * sizeof(float), out->data, out->len * sizeof(float));
}

/* A stream begun in the middle has every bit of what is behind, and computes little of what is
 * before. */
static void test_begun_again(void)
{
    enum { N_LONG = 4 * N };
    static const uint64_t firsts[] = {1, 500, 4800, 20000, 33333, 49439, 49440};
    int64_t per_code = cs_token2wav_samples_per_code(token2wav);
    g_autoptr(GArray) whole = g_array_new(FALSE, FALSE, sizeof(float));
    uint32_t n_steps[G_N_ELEMENTS(firsts) + 1] = {0};
    for (size_t i = 0; i <= G_N_ELEMENTS(firsts); i++) {
        uint64_t first = i > 0 ? firsts[i - 1] : 0;
        g_autoptr(cs_token2wav_stream) s =
            open_stream("Ethan", &(cs_token2wav_options){.seed = 5, .first_sample = first});
        g_autoptr(GArray) out = g_array_new(FALSE, FALSE, sizeof(float));
        for (int k = 0; k < 4; k++) {
            push(s, N, codes, k == 3);
            for (; cs_token2wav_stream_ready(s); n_steps[i]++) {
                step(1, &s);
                drain(s, out);
            }
        }
        g_assert_true(cs_token2wav_stream_finished(s));
        if (i == 0)
            g_array_append_vals(whole, out->data, out->len);
        g_assert_cmpmem(&g_array_index(whole, float, first), (N_LONG * per_code - first) * 4,
                        out->data, out->len * sizeof(float));
    }
    g_assert_cmpuint(n_steps[1], ==, n_steps[0]);
    g_assert_cmpuint(2 * n_steps[6], <, n_steps[0]);
}

static void test_rest(void)
{
    g_autoptr(cs_token2wav_stream) s =
        open_stream("Ethan", &(cs_token2wav_options){.seed = 5, .max_unread_samples = 500});
    g_autoptr(GArray) out = g_array_new(FALSE, FALSE, sizeof(float));
    push(s, N, codes, true);
    while (cs_token2wav_stream_ready(s))
        step(1, &s);
    g_assert_false(cs_token2wav_stream_finished(s)); /* nobody reads: it rests */
    g_assert_cmpuint(cs_token2wav_stream_unread(s), >=, 500);
    while (!cs_token2wav_stream_finished(s)) {
        drain(s, out);
        step(1, &s);
    }
    drain(s, out);
    g_autoptr(GArray) alone = speak(&(cs_token2wav_options){.seed = 5}, N, N);
    g_assert_cmpmem(alone->data, alone->len * sizeof(float), out->data, out->len * sizeof(float));
}

static void test_refused(void)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_token2wav_stream_new(token2wav, "Nobody", &(cs_token2wav_options){0}, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_NOT_FOUND);
    g_clear_error(&error);
    g_autoptr(cs_token2wav_stream) s =
        open_stream("Ethan", &(cs_token2wav_options){.max_codes = 4});
    static const int32_t wrong[] = {1, -1}, high[] = {128};
    g_assert_false(cs_token2wav_stream_push(s, 2, wrong, false, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_false(cs_token2wav_stream_push(s, 1, high, false, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_false(cs_token2wav_stream_push(s, 5, codes, false, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
    g_clear_error(&error);
    push(s, 0, NULL, true); /* nothing to say */
    g_assert_true(cs_token2wav_stream_finished(s));
    g_assert_false(cs_token2wav_stream_ready(s));
    g_assert_false(cs_token2wav_stream_push(s, 1, codes, false, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_assert_cmpint(argc, ==, 2); /* golden directory */
    g_autofree char *dir = g_build_filename(argv[1], "qwen2.5-omni-tiny", NULL);
    g_autoptr(GError) error = NULL;
    for (int i = 0; i < N; i++)
        codes[i] = (i * 37 + i * i * 11) % 120;
    compute = cs_compute_new(&(cs_compute_options){.n_threads = 2}, &error);
    g_assert_no_error(error);
    checkpoint = cs_checkpoint_open(dir, &error);
    g_assert_no_error(error);
    cs_qwen2_5_omni_config_read(&config, cs_checkpoint_config(checkpoint), "config.json", &error);
    g_assert_no_error(error);
    parameters = cs_parameters_new(compute);
    cs_loader loader = {.checkpoint = checkpoint, .parameters = parameters, .dtype = CS_DTYPE_F32};
    token2wav = cs_token2wav_load(&loader, compute, &config);
    cs_loader_finish(&loader, &error);
    g_assert_no_error(error);
    g_test_add_func("/token2wav/chunks", test_chunks);
    g_test_add_func("/token2wav/bar_bites", test_bar_bites);
    g_test_add_func("/token2wav/first-codes", test_first_codes);
    g_test_add_func("/token2wav/company", test_company);
    g_test_add_func("/token2wav/begun_again", test_begun_again);
    g_test_add_func("/token2wav/rest", test_rest);
    g_test_add_func("/token2wav/refused", test_refused);
    int result = g_test_run();
    cs_token2wav_free(token2wav);
    cs_parameters_free(parameters);
    cs_checkpoint_close(checkpoint);
    cs_compute_free(compute);
    return result;
}
