/* Speech out: mono float samples to the bytes of an audio format, piece by piece.
 *
 *     cs_audio_encoder_begin(&e, CS_AUDIO_WAV, 24000, 0, out);
 *     cs_audio_encoder_write(&e, samples, n, out);      any number of times
 *
 * Bytes are appended to `out`; written after one another they are the file, or the stream of
 * 16-bit little-endian samples. Samples are rounded to 16 bits, limited to [-1, 1]; what is not a
 * number becomes silence. An encoder is plain data with one owner; nothing has to be freed.
 */
#ifndef CS_MEDIA_ENCODE_H
#define CS_MEDIA_ENCODE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    CS_AUDIO_PCM16, /* samples alone */
    CS_AUDIO_WAV,
} cs_audio_format;

/* "pcm16", "wav"; false for any other word. */
bool cs_audio_format_parse(const char *word, cs_audio_format *format);
/* "audio/wav", "audio/pcm". */
const char *cs_audio_format_type(cs_audio_format format);

typedef struct {
    cs_audio_format format;
    uint32_t sample_rate;
} cs_audio_encoder;

/* Appends the header. n_samples of the whole sound; 0 when it is not known yet: then the sizes in a
 * WAV header say "up to the end of the data", the largest number, as recorders to a pipe do. */
void cs_audio_encoder_begin(cs_audio_encoder *encoder, cs_audio_format format, uint32_t sample_rate,
                            size_t n_samples, GByteArray *out);
void cs_audio_encoder_write(cs_audio_encoder *encoder, const float *samples, size_t n_samples,
                            GByteArray *out);

#endif
