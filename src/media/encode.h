/* Speech out: mono float samples to the bytes of an audio format, piece by piece.
 *
 *     g_autoptr(cs_audio_encoder) e = cs_audio_encoder_new(CS_AUDIO_MP3, 24000, 0, pool, out,
 * &error); cs_audio_encoder_write(e, samples, n, out, &error);      any number of times
 *     cs_audio_encoder_finish(e, out, &error);
 *
 * Bytes are appended to `out`; written after one another they are the file, or the stream. Samples
 * are limited to [-1, 1]; what is not a number becomes silence. PCM16, WAV and FLAC round to 16
 * bits. WAV and PCM16 are made here; the others in the pool's speech process, which serves all
 * encoders of the program; if it dies, they fail with CS_ERROR_FAILED. An encoder has one owner.
 */
#ifndef CS_MEDIA_ENCODE_H
#define CS_MEDIA_ENCODE_H

#include "media/decoder/pool.h"

typedef enum {
    CS_AUDIO_PCM16, /* 16-bit little-endian samples alone */
    CS_AUDIO_WAV,
    CS_AUDIO_MP3, /* 64 kbit/s */
    CS_AUDIO_FLAC,
    CS_AUDIO_OPUS, /* in Ogg, 32 kbit/s; rates of 8, 12, 16, 24 and 48 kHz */
} cs_audio_format;

/* "pcm16", "wav", "mp3", "flac", "opus"; false for any other word. */
bool cs_audio_format_parse(const char *word, cs_audio_format *format);
/* "audio/wav", "audio/mpeg"... */
const char *cs_audio_format_type(cs_audio_format format);

typedef struct cs_audio_encoder cs_audio_encoder;

/* Appends the header. n_samples of the whole sound, 0 when it is not known yet: then the sizes in a
 * WAV header say "up to the end of the data", the largest number, as recorders to a pipe do. pool
 * may be NULL for PCM16 and WAV, and outlives the encoder. */
cs_audio_encoder *cs_audio_encoder_new(cs_audio_format format, uint32_t sample_rate,
                                       size_t n_samples, cs_media_pool *pool, GByteArray *out,
                                       GError **error);
bool cs_audio_encoder_write(cs_audio_encoder *encoder, const float *samples, size_t n_samples,
                            GByteArray *out, GError **error);
/* The last bytes; only freeing may follow. */
bool cs_audio_encoder_finish(cs_audio_encoder *encoder, GByteArray *out, GError **error);
void cs_audio_encoder_free(cs_audio_encoder *encoder); /* accepts NULL */

G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_audio_encoder, cs_audio_encoder_free)

#endif
