/* The reference's arithmetic of sizes and frame counts, exactly: Python's division, round() (half
 * to even) and floor(), in double precision.
 *
 * Two layers act on a picture in the official recipe. qwen_omni_utils' fetch_image/fetch_video
 * brings it to multiples of 28 within its own limits; then the Hugging Face processor applies its
 * preprocessor_config.json the same way. For the published checkpoints both have the same limits,
 * and the second step changes nothing (cs_vision_config.image_fetch).
 */
#ifndef CS_MEDIA_PREPROCESS_RULES_H
#define CS_MEDIA_PREPROCESS_RULES_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum {
    CS_RESIZE_FETCH,     /* qwen_omni_utils.smart_resize: no side below the factor */
    CS_RESIZE_PROCESSOR, /* transformers' smart_resize: floors, then raises to the factor */
} cs_resize_flavour;

typedef struct {
    cs_resize_flavour flavour;
    uint32_t factor; /* sides become multiples of it: patch_size * merge_size */
    double min_pixels, max_pixels;
} cs_resize_rule;

/* The size for a picture of height x width. CS_ERROR_INVALID when one side is over 200 times the
 * other, or nothing would be left of a side. */
bool cs_resize_rule_apply(const cs_resize_rule *rule, uint32_t *height, uint32_t *width,
                          GError **error);

/* How a video is sampled and resized; filled from cs_vision_config. */
typedef struct {
    double fps;            /* frames to take of each second; 2 in the recipe */
    uint32_t min_frames;   /* 4 */
    uint32_t max_frames;   /* 768 */
    uint32_t frame_factor; /* the count is a multiple of it: temporal_patch_size */
    uint32_t size_factor;
    double min_pixels, max_pixels; /* of one frame */
    double total_pixels;           /* of all frames together, after resizing */
    cs_resize_rule processor;      /* the processor's own rule, applied to the result */
    bool float_resize; /* by cs_resample_bicubic_float, as the recipe's; else as images */
} cs_video_rule;

/* smart_nframes: how many of total_frames to take. CS_ERROR_INVALID for a video of fewer frames
 * than frame_factor. */
bool cs_video_rule_count(const cs_video_rule *rule, uint64_t total_frames, double source_fps,
                         uint32_t *n_frames, GError **error);

/* The i-th of torch.linspace(0, total - 1, n).round(): single precision, from both ends. */
uint64_t cs_video_rule_index(uint64_t total_frames, uint32_t n_frames, uint32_t i);

/* The size of the resized frames. */
bool cs_video_rule_size(const cs_video_rule *rule, uint32_t n_frames, uint32_t *height,
                        uint32_t *width, GError **error);

#endif
