/* BigVGAN (Lee et al. 2022): mel frames to samples at 24 kHz.
 *
 * Every sample depends on a bounded stretch of frames, so that frames may be given in pieces that
 * overlap by cs_vocoder_context on each side. One thread at a time uses it.
 */
#ifndef CS_MODELS_QWEN2_5_OMNI_VOCODER_H
#define CS_MODELS_QWEN2_5_OMNI_VOCODER_H

#include "models/loader.h"
#include "models/qwen2_5_omni/config.h"

#define CS_VOCODER_RATE 24000

typedef struct cs_vocoder cs_vocoder;

/* NULL on a fault, which the loader keeps. */
cs_vocoder *cs_vocoder_load(cs_loader *loader, cs_compute *compute,
                            const cs_qwen2_5_omni_vocoder_config *config, const char *scope);
void cs_vocoder_free(cs_vocoder *vocoder); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_vocoder, cs_vocoder_free)

int64_t cs_vocoder_samples_per_frame(const cs_vocoder *vocoder);
/* Frames on each side of a frame that its samples depend on. */
int64_t cs_vocoder_context(const cs_vocoder *vocoder);

/* mel [n_frames, n_mels], natural logarithms of amplitudes, to samples
 * [n_frames * samples_per_frame] in [-1, 1]. */
bool cs_vocoder_run(cs_vocoder *vocoder, int64_t n_frames, const float *mel, float *samples,
                    GError **error);

/* For tests: [time, channels] after the first convolution (stage -1), and for each stage after its
 * transposed convolution (part 0) and its residual blocks (part 1). */
typedef void cs_vocoder_tap(void *user, int64_t stage, int part, const cs_tensor *rows);
void cs_vocoder_set_tap(cs_vocoder *vocoder, cs_vocoder_tap *tap, void *user);

#endif
