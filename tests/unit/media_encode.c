/* src/media/encode: every format written piece by piece, read back by the decoder.
 * CS_MEDIA_DECODER is the decoder program. */
#include "base/error.h"
#include "media/decoder/pool_internal.h"
#include "media/encode.h"

#include <math.h>
#include <signal.h>
#include <string.h>

enum { RATE = 24000, N = 31234 };

static cs_media_pool *pool;
static float voice[N];

static void test_wav(void)
{
    static const uint8_t want[] = "RIFF\x2e\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\xc0\x5d\0\0\x80\xbb\0\0"
                                  "\2\0\x10\0data\x0a\0\0\0\0\0\xff\x7f\1\x80\0\x40\0\0";
    const float samples[] = {0, 2, -1, 0.5f, NAN};
    g_autoptr(GByteArray) out = g_byte_array_new();
    g_autoptr(cs_audio_encoder) known =
        cs_audio_encoder_new(CS_AUDIO_WAV, RATE, 5, NULL, out, NULL);
    g_assert_true(cs_audio_encoder_write(known, samples, 2, out, NULL));
    g_assert_true(cs_audio_encoder_write(known, samples + 2, 3, out, NULL));
    g_assert_true(cs_audio_encoder_finish(known, out, NULL));
    g_assert_cmpmem(out->data, out->len, want, sizeof want - 1);

    g_byte_array_set_size(out, 0);
    g_autoptr(cs_audio_encoder) open = cs_audio_encoder_new(CS_AUDIO_WAV, RATE, 0, NULL, out, NULL);
    g_assert_cmpuint(out->len, ==, 44);
    g_assert_cmpmem(out->data + 4, 4, "\xff\xff\xff\xff", 4);
    g_assert_cmpmem(out->data + 40, 4, "\xff\xff\xff\xff", 4);
    g_byte_array_set_size(out, 0);
    g_autoptr(cs_audio_encoder) pcm =
        cs_audio_encoder_new(CS_AUDIO_PCM16, RATE, 0, NULL, out, NULL);
    g_assert_cmpuint(out->len, ==, 0);
}

static void test_words(void)
{
    cs_audio_format format;
    g_assert_true(cs_audio_format_parse("opus", &format));
    g_assert_cmpint(format, ==, CS_AUDIO_OPUS);
    g_assert_cmpstr(cs_audio_format_type(format), ==, "audio/ogg");
    g_assert_false(cs_audio_format_parse("ogg", &format));
    g_assert_false(cs_audio_format_parse("", &format));
}

/* The whole voice in uneven pieces; *first is how many bytes there were after a second of it. */
static GByteArray *encode(cs_audio_format format, guint *first)
{
    g_autoptr(GError) error = NULL;
    GByteArray *out = g_byte_array_new();
    g_autoptr(cs_audio_encoder) e = cs_audio_encoder_new(format, RATE, 0, pool, out, &error);
    g_assert_no_error(error);
    guint header = out->len;
    size_t at = 0, piece = 1;
    for (; at < N; at += piece, piece = piece * 7 % 2399 + 1) {
        piece = MIN(piece, N - at);
        if (at <= RATE)
            *first = out->len - header;
        cs_audio_encoder_write(e, voice + at, piece, out, &error);
        g_assert_no_error(error);
    }
    cs_audio_encoder_finish(e, out, &error);
    g_assert_no_error(error);
    return out;
}

static double noise_db(const cs_audio *audio)
{
    double signal = 0, noise = 0;
    for (size_t i = 0; i < audio->n_samples && i < N; i++) {
        double d = (double)audio->samples[i] - (double)voice[i];
        signal += (double)voice[i] * (double)voice[i];
        noise += d * d;
    }
    return 10 * log10(signal / fmax(noise, 1e-30));
}

static void assert_round_trip(cs_audio_format format, size_t length_slack, double least_db)
{
    g_autoptr(GError) error = NULL;
    guint first = 0;
    g_autoptr(GByteArray) bytes = encode(format, &first);
    g_auto(cs_audio) audio = {0};
    cs_media_decode_audio(pool, bytes->data, bytes->len, RATE, &audio, &error);
    g_assert_no_error(error);
    g_test_message("format %d: %u bytes, %zu samples, %.1f dB above its noise", format, bytes->len,
                   audio.n_samples, noise_db(&audio));
    g_assert_cmpuint(audio.n_samples, >=, N);
    g_assert_cmpuint(audio.n_samples, <=, N + length_slack);
    g_assert_cmpfloat(noise_db(&audio), >=, least_db);
    /* It is a stream: most of the first second was out when its last samples were not yet in. */
    g_assert_cmpuint(first, >, bytes->len * 2 / 5);
}

static void test_flac(void)
{
    assert_round_trip(CS_AUDIO_FLAC, 0, 80);
}

static void test_opus(void)
{
    assert_round_trip(CS_AUDIO_OPUS, 0, 8);
}

/* Without the header that is written last, MP3 cannot say how much of its start and end is padding:
 * decoders give some milliseconds more. */
static void test_mp3(void)
{
    guint first = 0;
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = encode(CS_AUDIO_MP3, &first);
    g_auto(cs_audio) audio = {0};
    cs_media_decode_audio(pool, bytes->data, bytes->len, RATE, &audio, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(audio.n_samples, >=, N);
    g_assert_cmpuint(audio.n_samples, <=, N + 4 * 576);
    g_assert_cmpuint(first, >, bytes->len * 2 / 5);
    /* The voice is found where the encoder's delay puts it. */
    double best = -99;
    for (size_t shift = 0; shift < audio.n_samples - N; shift++) {
        cs_audio shifted = {.samples = audio.samples + shift, .n_samples = N};
        best = fmax(best, noise_db(&shifted));
    }
    g_test_message("mp3: %u bytes, %zu samples, %.1f dB above its noise", bytes->len,
                   audio.n_samples, best);
    g_assert_cmpfloat(best, >=, 8);
}

static void test_side_by_side(void)
{
    g_autoptr(GError) error = NULL;
    guint first;
    g_autoptr(GByteArray) alone = encode(CS_AUDIO_MP3, &first);
    cs_audio_encoder *encoders[5];
    GByteArray *outs[5];
    for (int i = 0; i < 5; i++) {
        outs[i] = g_byte_array_new();
        encoders[i] = cs_audio_encoder_new(CS_AUDIO_MP3, RATE, 0, pool, outs[i], &error);
        g_assert_no_error(error);
    }
    for (size_t at = 0; at < N; at += 1000)
        for (int i = 0; i < 5; i++)
            g_assert_true(
                cs_audio_encoder_write(encoders[i], voice + at, MIN(1000, N - at), outs[i], NULL));
    for (int i = 0; i < 5; i++) {
        g_assert_true(cs_audio_encoder_finish(encoders[i], outs[i], NULL));
        g_assert_cmpmem(outs[i]->data, outs[i]->len, alone->data, alone->len);
        cs_audio_encoder_free(encoders[i]);
        g_byte_array_unref(outs[i]);
    }
}

static void test_refused(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) out = g_byte_array_new();
    g_assert_null(cs_audio_encoder_new(CS_AUDIO_OPUS, 22050, 0, pool, out, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
    g_assert_cmpuint(out->len, ==, 0);
}

/* Encoders that are given up leave no session behind; there is room for 1024. */
static void test_given_up(void)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    for (int i = 0; i < 1100; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(cs_audio_encoder) e =
            cs_audio_encoder_new(CS_AUDIO_FLAC, RATE, 0, pool, out, &error);
        g_assert_no_error(error);
    }
}

static void test_killed(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) out = g_byte_array_new();
    g_autoptr(cs_audio_encoder) e = cs_audio_encoder_new(CS_AUDIO_FLAC, RATE, 0, pool, out, &error);
    g_assert_no_error(error);
    kill(cs_media_pool_process(pool, CS_DECODER_SPEECH, 0), SIGKILL);
    g_usleep(50000);
    guint before = out->len;
    g_assert_false(cs_audio_encoder_write(e, voice, 5000, out, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
    g_assert_cmpuint(out->len, ==, before);
    assert_round_trip(CS_AUDIO_FLAC, 0, 80);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_autoptr(GError) error = NULL;
    const char *program[] = {g_getenv("CS_MEDIA_DECODER"), NULL};
    cs_media_pool_options options = CS_MEDIA_POOL_OPTIONS_DEFAULT;
    options.program = program;
    pool = cs_media_pool_new(&options, &error);
    g_assert_no_error(error);
    for (size_t i = 0; i < N; i++)
        voice[i] = (float)(0.4 * sin((double)i * 0.05 * (1 + 1e-5 * (double)i)) +
                           0.2 * sin((double)i * 0.13));
    g_test_add_func("/media/encode/wav", test_wav);
    g_test_add_func("/media/encode/words", test_words);
    g_test_add_func("/media/encode/flac", test_flac);
    g_test_add_func("/media/encode/opus", test_opus);
    g_test_add_func("/media/encode/mp3", test_mp3);
    g_test_add_func("/media/encode/side-by-side", test_side_by_side);
    g_test_add_func("/media/encode/refused", test_refused);
    g_test_add_func("/media/encode/given-up", test_given_up);
    g_test_add_func("/media/encode/killed", test_killed);
    int result = g_test_run();
    cs_media_pool_free(pool);
    return result;
}
