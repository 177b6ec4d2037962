/* Decoded media: what the sandboxed decoder hands to preprocessing, and the caps it works under.
 *
 * Outside bytes -> cs_media_pool (decoder/pool.h) -> the structs below -> preprocess/ -> floats.
 * A decoded object lives in shared memory that the decoder process wrote and can no longer change;
 * its owner frees it with the _clear function. Objects are plain data: any thread may read them.
 */
#ifndef CS_MEDIA_MEDIA_H
#define CS_MEDIA_MEDIA_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Told from the content's first bytes; names, extensions and declared types are never believed. */
typedef enum {
    CS_MEDIA_UNKNOWN,
    CS_MEDIA_JPEG,
    CS_MEDIA_PNG,
    CS_MEDIA_WEBP,
    CS_MEDIA_GIF,
    CS_MEDIA_WAV,
    CS_MEDIA_MP3,
    CS_MEDIA_FLAC,
    CS_MEDIA_OGG,  /* Opus or Vorbis */
    CS_MEDIA_AAC,  /* ADTS */
    CS_MEDIA_MP4,  /* also M4A and QuickTime */
    CS_MEDIA_WEBM, /* also Matroska */
} cs_media_format;

cs_media_format cs_media_sniff(const uint8_t *data, size_t size_bytes);
/* "JPEG", "WAV"...; "data of an unknown format" for CS_MEDIA_UNKNOWN. */
const char *cs_media_format_name(cs_media_format format);
bool cs_media_format_is_image(cs_media_format format);

/* Caps on one image, sound or video. Over a cap: CS_ERROR_TOO_LARGE, from the header where the
 * format tells, and in any case before memory for the excess is taken. */
typedef struct {
    size_t max_input_bytes;  /* as stored */
    size_t max_output_bytes; /* decoded pixels or samples of one object */
    uint64_t max_pixels;     /* of one image, or of one stored video frame */
    uint32_t max_frames;     /* stored in a video, before sampling */
    double max_seconds;      /* of audio or video */
} cs_media_limits;

/* 300 s is the longest sound that the Qwen2.5-Omni feature extractor takes whole (it cuts off the
 * rest); 54,000 frames are 15 minutes at 60 frames/s, so that the seconds are the usual cap. */
#define CS_MEDIA_LIMITS_DEFAULT                                                                    \
    ((cs_media_limits){.max_input_bytes = 256u << 20,                                              \
                       .max_output_bytes = 1024u << 20,                                            \
                       .max_pixels = 50000000,                                                     \
                       .max_frames = 54000,                                                        \
                       .max_seconds = 300})

/* Memory of a decoded object. bytes 0: borrowed, nothing to free. */
typedef struct {
    void *address;
    size_t bytes;
} cs_media_mapping;

typedef struct {
    const uint8_t *rgb; /* [height][width][3] */
    uint32_t width, height;
    cs_media_mapping mapping;
} cs_image;

typedef struct {
    const float *samples; /* [n_samples], mono, nominally in [-1, 1] */
    size_t n_samples;
    uint32_t sample_rate; /* of samples */
    uint32_t source_rate; /* of the file */
    cs_media_mapping mapping;
} cs_audio;

typedef struct {
    const uint8_t *rgb; /* [n_frames][height][width][3], sampled and resized */
    uint32_t n_frames, width, height;
    uint32_t source_width, source_height, source_frames;
    double source_fps; /* the stream's average rate */
    double sample_fps; /* n_frames / source_frames * source_fps */
    bool has_audio;    /* the file has an audio track */
    cs_audio audio;    /* samples NULL when not asked for or absent; borrows mapping */
    cs_media_mapping mapping;
} cs_video;

void cs_image_clear(cs_image *image);
void cs_audio_clear(cs_audio *audio);
void cs_video_clear(cs_video *video);

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(cs_image, cs_image_clear)
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(cs_audio, cs_audio_clear)
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(cs_video, cs_video_clear)

#endif
