/* Decoding of untrusted media in sandboxed processes.
 *
 * A pool keeps some processes of this program warm (decoder/child.h), one request each at a time:
 * those for images, started with the pool, and those for audio and video, started at the first
 * need because they load FFmpeg. A process that crashes, hangs or answers nonsense fails only the
 * request it had and is replaced at the next one; one that is killed (SIGKILL) is replaced at once,
 * and its request asked again, once.
 *
 *     cs_media_pool *pool = cs_media_pool_new(&CS_MEDIA_POOL_OPTIONS_DEFAULT, &error);
 *     g_auto(cs_image) image = {0};
 *     if (!cs_media_decode_image(pool, bytes, n, &image, &error)) ...
 *
 * The decode functions block for at most deadline_ms (once while waiting for a free process, once
 * while decoding) and may be called from any number of threads. Errors say what is wrong with the
 * media, not which of the request's it was: callers prefix that ("image 2: truncated JPEG: ...").
 * Codes: CS_ERROR_INVALID, CS_ERROR_TOO_LARGE, CS_ERROR_UNSUPPORTED are the media's fault;
 * CS_ERROR_BUSY, CS_ERROR_TIMEOUT and CS_ERROR_FAILED (the process died) are not known to be.
 */
#ifndef CS_MEDIA_DECODER_POOL_H
#define CS_MEDIA_DECODER_POOL_H

#include "media/media.h"
#include "media/preprocess/rules.h"

typedef struct {
    /* The decoder program and its arguments, NULL-terminated; the socket's number is appended. NULL
     * means this very program: {"/proc/self/exe", "media-decoder"}. Kept, not copied. */
    const char *const *program;
    uint32_t image_processes, track_processes; /* each at least 1 */
    uint32_t deadline_ms;
    uint64_t memory_bytes; /* working memory of a process, beside its input and output */
    cs_media_limits limits;
} cs_media_pool_options;

#define CS_MEDIA_POOL_OPTIONS_DEFAULT                                                              \
    ((cs_media_pool_options){.image_processes = 2,                                                 \
                             .track_processes = 2,                                                 \
                             .deadline_ms = 60000,                                                 \
                             .memory_bytes = 1024u << 20,                                          \
                             .limits = CS_MEDIA_LIMITS_DEFAULT})

typedef struct cs_media_pool cs_media_pool;

/* CS_ERROR_FAILED when processes cannot be started at all. */
cs_media_pool *cs_media_pool_new(const cs_media_pool_options *options, GError **error);
/* No decode call may be running. Ends the processes. */
void cs_media_pool_free(cs_media_pool *pool);

/* Processes that had to be replaced so far. */
uint64_t cs_media_pool_restarts(cs_media_pool *pool);

bool cs_media_decode_image(cs_media_pool *pool, const uint8_t *data, size_t size_bytes,
                           cs_image *image, GError **error);

/* An audio file, or the audio track of a video. */
bool cs_media_decode_audio(cs_media_pool *pool, const uint8_t *data, size_t size_bytes,
                           uint32_t sample_rate, cs_audio *audio, GError **error);

/* Frames sampled and resized by the rule (cs_vision_config.video); with audio_rate not 0 also the
 * audio track, if there is one. */
bool cs_media_decode_video(cs_media_pool *pool, const uint8_t *data, size_t size_bytes,
                           const cs_video_rule *rule, uint32_t audio_rate, cs_video *video,
                           GError **error);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_media_pool, cs_media_pool_free)

#endif
