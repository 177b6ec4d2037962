/* Sounds that go out, encoded in the speech process: MP3, FLAC and Ogg Opus by FFmpeg's encoders
 * and muxers, many sessions side by side, each a stream that is written as its samples come. */
#ifndef CS_MEDIA_DECODER_SPEECH_H
#define CS_MEDIA_DECODER_SPEECH_H

#include "media/decoder/protocol.h"

/* One step of a session. samples: [request->n_samples]. *n_bytes of the output are filled. A step
 * that fails ends the session. */
bool cs_speech_step(const cs_encode_request *request, const float *samples, uint8_t *out,
                    size_t out_bytes, size_t *n_bytes, GError **error);

#endif
