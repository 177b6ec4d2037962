/* FFmpeg and soxr, loaded at run time into decoder processes only, and FFmpeg's demuxers reading
 * from memory.
 *
 * FFmpeg's libraries pull in 130 others. Linked to the program, they would add 20 ms to the start
 * and 25 MB (5 MB of them private) to every process, gateway and executors alike; so the decoder
 * process opens the versions it was compiled against by name. The table below has each function's
 * type from its header, which the compiler checks.
 */
#ifndef CS_MEDIA_DECODER_AV_H
#define CS_MEDIA_DECODER_AV_H

#include "media/decoder/codecs.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libswscale/swscale.h>
#include <soxr.h>

#define CS_AV_FUNCTIONS(F)                                                                         \
    F(AVUTIL, av_channel_layout_default)                                                           \
    F(AVUTIL, av_dict_free)                                                                        \
    F(AVUTIL, av_dict_set)                                                                         \
    F(AVUTIL, av_display_rotation_get)                                                             \
    F(AVUTIL, av_frame_alloc)                                                                      \
    F(AVUTIL, av_frame_free)                                                                       \
    F(AVUTIL, av_frame_get_buffer)                                                                 \
    F(AVUTIL, av_frame_make_writable)                                                              \
    F(AVUTIL, av_frame_unref)                                                                      \
    F(AVUTIL, av_freep)                                                                            \
    F(AVUTIL, av_get_sample_fmt_name)                                                              \
    F(AVUTIL, av_log_set_level)                                                                    \
    F(AVUTIL, av_malloc)                                                                           \
    F(AVUTIL, av_max_alloc)                                                                        \
    F(AVUTIL, av_strerror)                                                                         \
    F(AVCODEC, av_packet_alloc)                                                                    \
    F(AVCODEC, av_packet_free)                                                                     \
    F(AVCODEC, av_packet_rescale_ts)                                                               \
    F(AVCODEC, av_packet_unref)                                                                    \
    F(AVCODEC, avcodec_alloc_context3)                                                             \
    F(AVCODEC, avcodec_find_decoder)                                                               \
    F(AVCODEC, avcodec_find_decoder_by_name)                                                       \
    F(AVCODEC, avcodec_find_encoder_by_name)                                                       \
    F(AVCODEC, avcodec_free_context)                                                               \
    F(AVCODEC, avcodec_get_name)                                                                   \
    F(AVCODEC, avcodec_open2)                                                                      \
    F(AVCODEC, avcodec_parameters_from_context)                                                    \
    F(AVCODEC, avcodec_parameters_to_context)                                                      \
    F(AVCODEC, avcodec_receive_frame)                                                              \
    F(AVCODEC, avcodec_receive_packet)                                                             \
    F(AVCODEC, avcodec_send_frame)                                                                 \
    F(AVCODEC, avcodec_send_packet)                                                                \
    F(AVFORMAT, av_find_best_stream)                                                               \
    F(AVFORMAT, av_find_input_format)                                                              \
    F(AVFORMAT, av_guess_format)                                                                   \
    F(AVFORMAT, av_read_frame)                                                                     \
    F(AVFORMAT, av_stream_get_side_data)                                                           \
    F(AVFORMAT, av_write_frame)                                                                    \
    F(AVFORMAT, av_write_trailer)                                                                  \
    F(AVFORMAT, avformat_alloc_context)                                                            \
    F(AVFORMAT, avformat_close_input)                                                              \
    F(AVFORMAT, avformat_find_stream_info)                                                         \
    F(AVFORMAT, avformat_free_context)                                                             \
    F(AVFORMAT, avformat_new_stream)                                                               \
    F(AVFORMAT, avformat_open_input)                                                               \
    F(AVFORMAT, avformat_write_header)                                                             \
    F(AVFORMAT, avio_alloc_context)                                                                \
    F(AVFORMAT, avio_context_free)                                                                 \
    F(AVFORMAT, avio_flush)                                                                        \
    F(SWSCALE, sws_freeContext)                                                                    \
    F(SWSCALE, sws_getCachedContext)                                                               \
    F(SWSCALE, sws_getCoefficients)                                                                \
    F(SWSCALE, sws_scale)                                                                          \
    F(SWSCALE, sws_setColorspaceDetails)                                                           \
    F(SOXR, soxr_create)                                                                           \
    F(SOXR, soxr_delete)                                                                           \
    F(SOXR, soxr_io_spec)                                                                          \
    F(SOXR, soxr_process)                                                                          \
    F(SOXR, soxr_quality_spec)                                                                     \
    F(SOXR, soxr_runtime_spec)

typedef struct {
#define CS_AV_MEMBER(library, function) __typeof__(function) *function;
    CS_AV_FUNCTIONS(CS_AV_MEMBER)
#undef CS_AV_MEMBER
} cs_av_table;

/* Filled once by cs_av_load, before the sandbox closes. */
extern cs_av_table cs_av;

/* CS_ERROR_UNSUPPORTED naming the library that is missing. */
bool cs_av_load(GError **error);

/* An open container. Decoding is on one thread; nothing is read but job->in. */
typedef struct {
    AVFormatContext *format;
    AVIOContext *io;
    const char *name; /* "MP3", for messages */
    const uint8_t *data;
    int64_t size, at;
    uint64_t max_pixels; /* of a frame, for the codec */
    bool open_ended;     /* it says nothing of its length: the last packet may be short */
} cs_av_input;

bool cs_av_input_open(cs_av_input *input, const cs_decode_job *job, cs_media_format format,
                      GError **error);
void cs_av_input_close(cs_av_input *input);

/* The best track of the type, every other track being skipped from now on; -1 if there is none. */
int cs_av_input_select(cs_av_input *input, enum AVMediaType type);

/* A decoder for the track; only codecs on our list. */
AVCodecContext *cs_av_decoder_open(const cs_av_input *input, int track, GError **error);

/* Takes the next frame of the track. Returns 1 with a frame, 0 at the end, -1 with an error.
 * Packets that fail before the first frame are passed over (streams cut out of longer ones begin
 * like that); later ones are errors. */
typedef struct {
    cs_av_input *input;
    int track;
    /* If not NULL: presentation times (int64_t) of the frames that matter. Frames that neither
     * matter nor are referred to by others may be left out. */
    GHashTable *wanted;
    AVCodecContext *codec;
    AVPacket *packet;
    AVFrame *frame; /* the current frame */
    bool draining, begun;
} cs_av_reader;

bool cs_av_reader_init(cs_av_reader *reader, cs_av_input *input, int track, GError **error);
int cs_av_reader_next(cs_av_reader *reader, GError **error);
void cs_av_reader_clear(cs_av_reader *reader);

/* cs_fail with FFmpeg's own words for a negative result. */
bool cs_av_fail(GError **error, int result, const char *name, const char *what);

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(cs_av_input, cs_av_input_close)
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(cs_av_reader, cs_av_reader_clear)

#endif
