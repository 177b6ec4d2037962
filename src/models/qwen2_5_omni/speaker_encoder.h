/* ECAPA-TDNN (Desplanques et al. 2020): a recording of a voice to one vector.
 *
 * It runs once for each voice when a checkpoint is loaded, so all but its matrix products is plain
 * host code; weights are f32.
 */
#ifndef CS_MODELS_QWEN2_5_OMNI_SPEAKER_ENCODER_H
#define CS_MODELS_QWEN2_5_OMNI_SPEAKER_ENCODER_H

#include "models/loader.h"
#include "models/qwen2_5_omni/config.h"

typedef struct cs_speaker_encoder cs_speaker_encoder;

/* NULL on a fault, which the loader keeps. The weights are the loader's parameters. */
cs_speaker_encoder *cs_speaker_encoder_load(cs_loader *loader, cs_compute *compute,
                                            const cs_qwen2_5_omni_dit_config *config,
                                            const char *scope);
void cs_speaker_encoder_free(cs_speaker_encoder *encoder); /* accepts NULL */

/* mel [n_frames, n_mels] to out [speaker_size]. */
bool cs_speaker_encoder_run(const cs_speaker_encoder *encoder, const float *mel, int64_t n_frames,
                            float *out, GError **error);

#endif
