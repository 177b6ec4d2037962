/* preprocessor_config.json of the Qwen2-VL and Qwen2.5-Omni families: the image processor's fields
 * and, for models that hear, the Whisper feature extractor's.
 *
 * Fields that are absent take transformers' defaults. A field that asks for arithmetic that is not
 * here (no resizing, another filter, another FFT size) is CS_ERROR_UNSUPPORTED, never ignored.
 */
#ifndef CS_MEDIA_PREPROCESS_CONFIG_H
#define CS_MEDIA_PREPROCESS_CONFIG_H

#include "base/json.h"
#include "media/preprocess/rules.h"

typedef struct {
    uint32_t patch_size;          /* 14 */
    uint32_t temporal_patch_size; /* 2: an image is repeated, frames go in pairs */
    uint32_t merge_size;          /* 2: patches of merge_size x merge_size stand together */
    double rescale_factor;        /* 1/255 */
    double mean[3], std[3];
    double min_pixels, max_pixels; /* of an image, in the processor's step */
    /* The step of qwen_omni_utils before the processor's. It is there (factor not 0) when the
     * processor's limits are the published ones, which are qwen_omni_utils' own: then the
     * processor finds nothing more to do. A checkpoint with other limits gets the processor's step
     * alone, so that a picture is never resized twice; its video frames are resized as images are
     * (video.float_resize), like the project's golden files have them. */
    cs_resize_rule image_fetch;
    cs_video_rule video;
    double processor_fps; /* what the processor takes the sampled rate for: 2, see patches.h */
} cs_vision_config;

typedef struct {
    uint32_t sampling_rate; /* 16000 */
    uint32_t n_fft;         /* 400, the only size supported */
    uint32_t hop_length;    /* 160 */
    uint32_t n_mels;        /* 128 */
    uint64_t max_samples;   /* chunk_length * sampling_rate; what the reference pads to */
} cs_mel_config;

/* Fills from the current object of the reader; faults are left in the reader. */
void cs_vision_config_read(cs_vision_config *config, cs_json_reader *reader);
void cs_mel_config_read(cs_mel_config *config, cs_json_reader *reader);

/* Images become at most max_pixels large, where the model's own limits allow that. */
void cs_vision_config_limit(cs_vision_config *config, double max_pixels);

#endif
