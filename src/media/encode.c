#include "media/encode.h"

#include <math.h>
#include <string.h>

static const struct {
    const char *word, *type;
} formats[] = {
    [CS_AUDIO_PCM16] = {"pcm16", "audio/pcm"},
    [CS_AUDIO_WAV] = {"wav", "audio/wav"},
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

void cs_audio_encoder_begin(cs_audio_encoder *encoder, cs_audio_format format, uint32_t sample_rate,
                            size_t n_samples, GByteArray *out)
{
    *encoder = (cs_audio_encoder){format, sample_rate};
    if (format == CS_AUDIO_WAV)
        put_wav_header(out, sample_rate, n_samples);
}

void cs_audio_encoder_write(cs_audio_encoder *encoder, const float *samples, size_t n_samples,
                            GByteArray *out)
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
