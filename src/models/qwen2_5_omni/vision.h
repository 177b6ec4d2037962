/* The image and video encoder of Qwen2.5-Omni: a vision transformer with windowed attention. See
 * MODEL.md. */
#ifndef CS_MODELS_QWEN2_5_OMNI_VISION_H
#define CS_MODELS_QWEN2_5_OMNI_VISION_H

#include "models/encoder.h"
#include "models/loader.h"
#include "models/qwen2_5_omni/config.h"

/* Loads "<scope>.patch_embed", "<scope>.blocks.N", "<scope>.merger". NULL on a fault, which the
 * loader keeps. */
cs_encoder *cs_qwen2_5_omni_vision_load(cs_loader *loader, cs_compute *compute,
                                        const cs_qwen2_5_omni_vision_config *config,
                                        const char *scope);

/* Merge groups of a grid in the order in which blocks see them (window by window), and where
 * windows end. order: [t * h * w / merge^2]; starts: int32_t patches, appended to (the caller puts
 * the first 0). */
void cs_qwen2_5_omni_window_order(const cs_qwen2_5_omni_vision_config *config,
                                  const int32_t grid[3], int32_t first_group, int32_t *order,
                                  GArray *starts);

#endif
