/* Pictures to the vision encoder's input rows, as Qwen2VLImageProcessor and the official recipe
 * (qwen_omni_utils.process_mm_info, then the processor) make them.
 *
 * A row is one patch: [3 channels][temporal_patch_size][patch_size][patch_size], each value
 * (pixel * rescale_factor - mean) / std. Rows stand in the order
 *
 *     [grid_t][grid_h / merge][grid_w / merge][merge][merge]
 *
 * so that the merge x merge patches that become one token are neighbours. A still image fills its
 * temporal positions with copies of itself.
 *
 * Transparent images (RGBA) are laid on white and EXIF orientation is not applied: the recipe's
 * rules, kept by the decoder.
 */
#ifndef CS_MEDIA_PREPROCESS_PATCHES_H
#define CS_MEDIA_PREPROCESS_PATCHES_H

#include "media/media.h"
#include "media/preprocess/config.h"

typedef struct {
    float *data; /* [n_patches][patch_dim] */
    size_t n_patches, patch_dim;
    uint32_t grid_t, grid_h, grid_w; /* in patches; n_patches is their product */
    /* Of a video: temporal_patch_size / 2 fps. The recipe does not hand the processor the rate at
     * which short videos are really sampled; time positions are reckoned from this one. */
    double seconds_per_grid;
} cs_patches;

/* Resizes by both rules of the recipe and cuts. CS_ERROR_INVALID, CS_ERROR_BUSY. */
bool cs_patches_from_image(const cs_vision_config *config, const cs_image *image,
                           cs_patches *patches, GError **error);

/* Cuts frames that the decoder sampled and resized by config->video; an incomplete last group is
 * filled up with its last frame. */
bool cs_patches_from_video(const cs_vision_config *config, const cs_video *video,
                           cs_patches *patches, GError **error);

void cs_patches_clear(cs_patches *patches);

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(cs_patches, cs_patches_clear)

#endif
