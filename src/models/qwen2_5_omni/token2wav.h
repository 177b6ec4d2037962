/* Codec tokens to sound, as a stream: DiT windows and vocoder pieces over codes that keep coming.
 *
 * The transformer works in attention blocks of block_size frames. A chunk of blocks is computed in
 * a window with blocks_before blocks before it and blocks_after after it, which the chunk's own
 * frames depend on less and less the farther they are (each evaluation looks a block or two
 * further); the window's other frames are thrown away. The vocoder then makes the samples of all
 * frames whose context is there. Noise is a function of seed and frame, so that every cut gives the
 * same sound within the golden bar, and a stream begun again elsewhere goes on where it was.
 *
 *     codes   |0 .. first chunk ..|.. chunk ..|..
 *     window  |===================+after|
 *                    |before+===========+after|
 *
 * Streams of unequal length and progress step together. One thread at a time uses a cs_token2wav
 * and its streams.
 */
#ifndef CS_MODELS_QWEN2_5_OMNI_TOKEN2WAV_H
#define CS_MODELS_QWEN2_5_OMNI_TOKEN2WAV_H

#include "models/generator.h"
#include "models/qwen2_5_omni/dit.h"
#include "models/qwen2_5_omni/vocoder.h"
#include "models/speech.h"

typedef struct cs_token2wav_stream cs_token2wav_stream;

/* Loads DiT, vocoder and the voices of spk_dict.pt. NULL on a fault, which the loader keeps. */
cs_token2wav *cs_token2wav_load(cs_loader *loader, cs_compute *compute,
                                const cs_qwen2_5_omni_config *config);
void cs_token2wav_free(cs_token2wav *token2wav); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_token2wav, cs_token2wav_free)

/* As the component of a generator engine, which frees it then; streams have the default cut. */
cs_generator *cs_token2wav_generator(cs_token2wav *token2wav);

const cs_speakers *cs_token2wav_speakers(const cs_token2wav *token2wav);
int64_t cs_token2wav_samples_per_code(const cs_token2wav *token2wav); /* 480 at 24 kHz */
/* Codes before which nothing of a stream with the default cut is heard, unless it ends. */
uint32_t cs_token2wav_first_codes(const cs_qwen2_5_omni_config *config);

typedef struct {
    uint64_t seed;
    uint32_t first_chunk_blocks; /* 0: 1, for an early first sound */
    uint32_t chunk_blocks;       /* 0: 4; a chunk is as long as all before it, up to that */
    uint32_t blocks_before;      /* 0: 3 */
    uint32_t blocks_after;       /* 0: 2 */
    uint32_t early_blocks_after; /* of chunks that are shorter than chunk_blocks; 0: 1 */
    uint32_t max_codes;          /* 0: 4096 */
    bool whole;                  /* one window over all codes, as the reference does */
    /* Unread samples at which a stream rests (a slow client); 0: 10 seconds. */
    uint32_t max_unread_samples;
    /* Samples before this one were made elsewhere; the stream begins with it, and computes of what
     * is before only what it depends on. Not with `whole`. */
    uint64_t first_sample;
} cs_token2wav_options;

/* A stream in this voice. CS_ERROR_NOT_FOUND with the voices that there are. */
cs_token2wav_stream *cs_token2wav_stream_new(cs_token2wav *token2wav, const char *voice,
                                             const cs_token2wav_options *options, GError **error);
void cs_token2wav_stream_free(cs_token2wav_stream *stream); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_token2wav_stream, cs_token2wav_stream_free)

/* More codes, in order. `last`: none will follow. CS_ERROR_INVALID for a code that is none,
 * CS_ERROR_TOO_LARGE beyond max_codes; nothing is taken then. */
bool cs_token2wav_stream_push(cs_token2wav_stream *stream, uint32_t n, const int32_t *codes,
                              bool last, GError **error);

/* Whether there is work: enough codes for a window, and room for its samples. */
bool cs_token2wav_stream_ready(const cs_token2wav_stream *stream);
/* All samples of all codes are made. */
bool cs_token2wav_stream_finished(const cs_token2wav_stream *stream);

/* One ODE step of each of n streams, all of them ready and in no window twice; windows that are
 * done become samples. On failure streams stay where they were. */
bool cs_token2wav_step(cs_token2wav *token2wav, uint32_t n, cs_token2wav_stream *const *streams,
                       GError **error);

/* Moves up to n unread samples to out; returns how many. */
uint32_t cs_token2wav_stream_read(cs_token2wav_stream *stream, uint32_t n, float *out);
uint32_t cs_token2wav_stream_unread(const cs_token2wav_stream *stream);

#endif
