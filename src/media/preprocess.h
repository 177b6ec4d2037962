/* Decoded media to a model's inputs, as the family's own processors: all of src/media/preprocess.
 *
 *     cs_vision_config_read, cs_mel_config_read    preprocessor_config.json
 *     cs_patches_from_image, cs_patches_from_video rows of patches and their grid
 *     cs_mel_extract                               log-mel frames
 */
#ifndef CS_MEDIA_PREPROCESS_H
#define CS_MEDIA_PREPROCESS_H

#include "media/media.h"
#include "media/preprocess/config.h"
#include "media/preprocess/mel.h"
#include "media/preprocess/patches.h"

#endif
