/* Log-mel spectrograms, as transformers' WhisperFeatureExtractor makes them for Qwen2.5-Omni.
 *
 * The reference pads the sound with zeros to max_samples, takes the short-time power spectrum
 * (periodic Hann window of 400, centred, reflected at both ends), applies Slaney mel filters,
 * log10 (floor 1e-10), raises everything to 8 below the maximum of the whole padded sound, maps by
 * (x + 4) / 4, and lets the model see ceil(n_samples / hop_length) frames. So does this, without
 * computing the frames of silence: the same numbers up to single-precision rounding.
 *
 * A cs_mel_extractor holds the tables; it is immutable and may be used by any number of threads.
 */
#ifndef CS_MEDIA_PREPROCESS_MEL_H
#define CS_MEDIA_PREPROCESS_MEL_H

#include "media/preprocess/config.h"

typedef struct cs_mel_extractor cs_mel_extractor;

typedef struct {
    float *data; /* [n_frames][n_mels]: the encoder's order, the reference's transposed */
    uint32_t n_mels;
    size_t n_frames;
} cs_mel;

cs_mel_extractor *cs_mel_extractor_new(const cs_mel_config *config);
void cs_mel_extractor_free(cs_mel_extractor *extractor);

/* samples: mono, at config.sampling_rate. CS_ERROR_INVALID for none or values that are not finite,
 * CS_ERROR_TOO_LARGE over max_samples (the reference would silently cut), CS_ERROR_BUSY. */
bool cs_mel_extract(const cs_mel_extractor *extractor, const float *samples, size_t n_samples,
                    cs_mel *mel, GError **error);
void cs_mel_clear(cs_mel *mel);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_mel_extractor, cs_mel_extractor_free)
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(cs_mel, cs_mel_clear)

#endif
