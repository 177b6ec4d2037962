/* What the pool and a decoder process say to each other: fixed structs over a SOCK_SEQPACKET pair,
 * both ends being the same program. The process trusts the pool; the pool trusts nothing in a
 * reply and checks every number against what it asked for.
 *
 *     pool -> process   setup                        once, before the sandbox closes
 *     process -> pool   reply (ready or why not)
 *     pool -> process   request + 2 descriptors: input and output memory
 *     process -> pool   reply
 *
 * The input is a memfd sealed against any change; the output one is sealed in size, so that
 * neither side can pull memory from under the other.
 */
#ifndef CS_MEDIA_DECODER_PROTOCOL_H
#define CS_MEDIA_DECODER_PROTOCOL_H

#include "media/media.h"
#include "media/preprocess/rules.h"

typedef enum {
    CS_DECODER_IMAGES, /* JPEG, PNG, WebP, GIF */
    CS_DECODER_TRACKS, /* audio and video: loads FFmpeg */
    CS_DECODER_SPEECH, /* encodes all sounds that go out: one process, loads FFmpeg */
    CS_DECODER_KINDS,
} cs_decoder_kind;

typedef struct {
    uint32_t kind;
    uint32_t reserved;
    uint64_t memory_bytes; /* address space beyond what the program itself has mapped */
} cs_decoder_setup;

typedef enum {
    CS_DECODER_IMAGE,
    CS_DECODER_AUDIO,
    CS_DECODER_VIDEO,
    CS_DECODER_ENCODE,
    CS_DECODER_PROBE, /* tests: attempt something forbidden, cs_decoder_probe in `probe` */
} cs_decoder_task;

/* What a probe attempts; the reply says how it was refused, or there is no reply. */
typedef enum {
    CS_DECODER_PROBE_OPEN,
    CS_DECODER_PROBE_SOCKET,
    CS_DECODER_PROBE_EXEC,
    CS_DECODER_PROBE_FORK,
    CS_DECODER_PROBE_KILL_PARENT,
    CS_DECODER_PROBE_EXECUTABLE_MEMORY,
    CS_DECODER_PROBE_MEMORY, /* more than the cap: an error reply, not a death */
    CS_DECODER_PROBE_HANG,
} cs_decoder_probe;

/* A sound being encoded is a session of the speech process, named by the pool. */
typedef enum {
    CS_ENCODE_BEGIN, /* answers with the header's bytes, like the others with what has become ready
                      */
    CS_ENCODE_WRITE,
    CS_ENCODE_END,  /* and forget the session */
    CS_ENCODE_DROP, /* forget it */
} cs_encode_step;

typedef struct {
    uint64_t session;
    uint32_t step;
    uint32_t format; /* cs_audio_format */
    uint32_t sample_rate;
    uint32_t n_samples; /* f32 in the input memory */
} cs_encode_request;

typedef struct {
    uint32_t task;
    uint32_t probe;
    uint64_t input_bytes, output_bytes;
    cs_media_limits limits;
    cs_video_rule video;
    uint32_t sample_rate;
    uint32_t want_audio; /* of a video */
    cs_encode_request encode;
} cs_decoder_request;

typedef struct {
    int32_t failed;
    int32_t code; /* cs_error_code when failed */
    char message[480];
    uint32_t width, height, n_frames;
    uint32_t source_width, source_height, source_frames;
    double source_fps;
    uint32_t has_audio;
    uint32_t source_rate;
    uint64_t audio_at; /* bytes into the output, a multiple of 64 */
    uint64_t n_samples;
    uint64_t n_bytes; /* encoded */
} cs_decoder_reply;

#endif
