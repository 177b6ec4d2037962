/* The audio encoder of Qwen2.5-Omni: a Whisper-like transformer over chunks of a log-mel
 * spectrogram. See MODEL.md. */
#ifndef CS_MODELS_QWEN2_5_OMNI_AUDIO_H
#define CS_MODELS_QWEN2_5_OMNI_AUDIO_H

#include "models/encoder.h"
#include "models/loader.h"
#include "models/qwen2_5_omni/config.h"

/* Loads "<scope>.conv1" ... "<scope>.proj". NULL on a fault, which the loader keeps. */
cs_encoder *cs_qwen2_5_omni_audio_load(cs_loader *loader, cs_compute *compute,
                                       const cs_qwen2_5_omni_audio_config *config,
                                       const char *scope);

#endif
