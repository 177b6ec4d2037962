/* The speech of one answer on its way to the client: samples become bytes of an audio format.
 *
 *   pipeline's thread: add ... end --> a maker's thread: encodes --> connection's thread: take
 *
 * Encoders of compressed formats wait for another process, so neither the pipeline's nor the
 * connection's thread runs them. The exchange is woken when there is something to take. Functions
 * may be called from any thread.
 */
#ifndef CS_API_SOUND_H
#define CS_API_SOUND_H

#include "api/http.h"
#include "media/encode.h"

typedef struct cs_sound cs_sound;

/* Threads that encode, for all sounds; g_thread_pool_free when no sound is left. */
GThreadPool *cs_sound_makers_new(void);

typedef struct {
    cs_audio_format format;
    uint32_t sample_rate;
    cs_media_pool *pool; /* borrowed */
    GThreadPool *makers; /* borrowed */
    cs_exchange *x;      /* a reference is taken */
    bool whole; /* sizes in its header are to be known: of WAV nothing is taken before the end */
} cs_sound_options;

cs_sound *cs_sound_new(const cs_sound_options *options);
void cs_sound_unref(cs_sound *sound); /* accepts NULL */

void cs_sound_add(cs_sound *sound, uint32_t n_samples, const float *samples);
/* All samples are there. */
void cs_sound_end(cs_sound *sound);

/* Appends the bytes made since the last call, and adds the samples that went into them. False when
 * a format could not be made. */
bool cs_sound_take(cs_sound *sound, GByteArray *out, uint64_t *n_samples, bool *complete,
                   GError **error);

#endif
