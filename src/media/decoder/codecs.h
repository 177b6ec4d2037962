/* The decoders proper. They run in the sandboxed process only, on hostile bytes: every function
 * checks its caps from the header before it takes memory, and answers with an error sentence.
 *
 * Conventions of all: `out` has out_bytes of room and is written from its start; results are set
 * only on success. CS_ERROR_INVALID for malformed and truncated data, CS_ERROR_TOO_LARGE over a
 * cap, CS_ERROR_UNSUPPORTED for well-formed data of a kind that is not decoded here.
 */
#ifndef CS_MEDIA_DECODER_CODECS_H
#define CS_MEDIA_DECODER_CODECS_H

#include "media/media.h"
#include "media/preprocess/rules.h"

typedef struct {
    const uint8_t *in;
    size_t in_bytes;
    uint8_t *out;
    size_t out_bytes;
    const cs_media_limits *limits;
} cs_decode_job;

/* Dimensions of a picture that is about to be decoded against the caps and the room. */
bool cs_decode_check_size(const cs_decode_job *job, const char *format, uint64_t width,
                          uint64_t height, GError **error);

/* Bytes of RGBA laid on white, rounded as Pillow's paste with a mask does. */
void cs_decode_over_white(const uint8_t *rgba, size_t n_pixels, uint8_t *rgb);

/* To RGB as Pillow opens the file and the recipe's to_rgb converts it (preprocess/patches.h). */
bool cs_decode_jpeg(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error);
bool cs_decode_png(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error);
bool cs_decode_webp(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error);
bool cs_decode_gif(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error);

/* Any image, by its content. */
bool cs_decode_image(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error);

typedef struct {
    size_t n_samples;
    uint32_t source_rate;
} cs_decoded_audio;

/* The audio track as mono f32 at sample_rate: channels averaged, then resampled by soxr's HQ
 * recipe, as librosa.load does. */
bool cs_decode_audio(const cs_decode_job *job, cs_media_format format, uint32_t sample_rate,
                     cs_decoded_audio *audio, GError **error);

typedef struct {
    uint32_t n_frames, width, height;
    uint32_t source_width, source_height, source_frames;
    double source_fps;
    bool has_audio;
} cs_decoded_video;

/* The sampled, resized frames of the first video track. */
bool cs_decode_video(const cs_decode_job *job, cs_media_format format, const cs_video_rule *rule,
                     cs_decoded_video *video, GError **error);

#endif
