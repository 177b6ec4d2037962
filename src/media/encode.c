#include "media/encode.h"

#include "media/decoder/pool_internal.h"

#include <math.h>
#include <string.h>

static const struct {
    const char *word, *type;
} formats[] = {
    [CS_AUDIO_PCM16] = {"pcm16", "audio/pcm"}, [CS_AUDIO_WAV] = {"wav", "audio/wav"},
    [CS_AUDIO_MP3] = {"mp3", "audio/mpeg"},    [CS_AUDIO_FLAC] = {"flac", "audio/flac"},
    [CS_AUDIO_OPUS] = {"opus", "audio/ogg"},
};

struct cs_audio_encoder {
    cs_media_pool *pool;       /* NULL: PCM16 or WAV */
    cs_encode_request request; /* of the session, changed for each step */
    bool open;                 /* the speech process has the session */
};

bool cs_audio_format_parse(const char *word, cs_audio_format *format)
{
    for (size_t i = 0; i < G_N_ELEMENTS(formats); i++)
        if (strcmp(word, formats[i].word) == 0) {
            *format = (cs_audio_format)i;
            return true;
        }
    return false;
}

const char *cs_audio_format_type(cs_audio_format format)
{
    return formats[format].type;
}

static void put(GByteArray *out, uint32_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i));
        g_byte_array_append(out, &byte, 1);
    }
}

static void put_tag(GByteArray *out, const char *tag)
{
    g_byte_array_append(out, (const guint8 *)tag, 4);
}

/* RIFF size "WAVE" | "fmt " 16: PCM, 1 channel, rate, bytes/s, bytes a frame, bits | "data" size */
static void put_wav_header(GByteArray *out, uint32_t rate, size_t n_samples)
{
    enum { AFTER_RIFF_SIZE = 36, PCM = 1, SAMPLE_BYTES = 2 };
    bool known = n_samples && n_samples < (UINT32_MAX - AFTER_RIFF_SIZE) / SAMPLE_BYTES;
    uint32_t data_bytes = known ? (uint32_t)(n_samples * SAMPLE_BYTES) : UINT32_MAX;
    put_tag(out, "RIFF");
    put(out, known ? data_bytes + AFTER_RIFF_SIZE : UINT32_MAX, 4);
    put_tag(out, "WAVE");
    put_tag(out, "fmt ");
    put(out, 16, 4);
    put(out, PCM, 2);
    put(out, 1, 2);
    put(out, rate, 4);
    put(out, rate * SAMPLE_BYTES, 4);
    put(out, SAMPLE_BYTES, 2);
    put(out, SAMPLE_BYTES * 8, 2);
    put_tag(out, "data");
    put(out, data_bytes, 4);
}

cs_audio_encoder *cs_audio_encoder_new(cs_audio_format format, uint32_t sample_rate,
                                       size_t n_samples, cs_media_pool *pool, GByteArray *out,
                                       GError **error)
{
    cs_audio_encoder *e = g_new0(cs_audio_encoder, 1);
    if (format == CS_AUDIO_WAV)
        put_wav_header(out, sample_rate, n_samples);
    if (format == CS_AUDIO_WAV || format == CS_AUDIO_PCM16)
        return e;
    e->pool = pool;
    e->request = (cs_encode_request){.session = cs_media_pool_next_session(pool),
                                     .step = CS_ENCODE_BEGIN,
                                     .format = format,
                                     .sample_rate = sample_rate};
    e->open = cs_media_pool_encode(pool, &e->request, NULL, out, error);
    if (e->open)
        return e;
    g_free(e);
    return NULL;
}

static void put_samples(const float *samples, size_t n_samples, GByteArray *out)
{
    guint at = out->len;
    g_byte_array_set_size(out, at + (guint)n_samples * 2);
    for (size_t i = 0; i < n_samples; i++) {
        float x = isnan(samples[i]) ? 0 : fminf(fmaxf(samples[i], -1), 1);
        uint16_t v = (uint16_t)(int16_t)lrintf(x * 32767);
        out->data[at + 2 * i] = (uint8_t)v;
        out->data[at + 2 * i + 1] = (uint8_t)(v >> 8);
    }
}

static bool run_step(cs_audio_encoder *e, cs_encode_step step, const float *samples, size_t n,
                     GByteArray *out, GError **error)
{
    e->request.step = step;
    e->request.n_samples = (uint32_t)n;
    bool good = cs_media_pool_encode(e->pool, &e->request, samples, out, error);
    e->open = good && step == CS_ENCODE_WRITE;
    return good;
}

bool cs_audio_encoder_write(cs_audio_encoder *e, const float *samples, size_t n_samples,
                            GByteArray *out, GError **error)
{
    const size_t most = 1 << 20; /* samples a step: bounds the memory that goes to and fro */
    if (!e->pool) {
        put_samples(samples, n_samples, out);
        return true;
    }
    for (size_t at = 0; at < n_samples; at += most)
        if (!run_step(e, CS_ENCODE_WRITE, samples + at, MIN(most, n_samples - at), out, error))
            return false;
    return true;
}

bool cs_audio_encoder_finish(cs_audio_encoder *e, GByteArray *out, GError **error)
{
    return !e->pool || run_step(e, CS_ENCODE_END, NULL, 0, out, error);
}

void cs_audio_encoder_free(cs_audio_encoder *e)
{
    if (!e)
        return;
    if (e->open)
        run_step(e, CS_ENCODE_DROP, NULL, 0, NULL, NULL);
    g_free(e);
}
