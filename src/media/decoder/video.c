#include "media/decoder/av.h"

#include "base/error.h"
#include "media/preprocess/resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One decoding of the track, frame by frame in order of showing; only the sampled ones are
 * converted and kept. */
typedef struct {
    const cs_decode_job *job;
    const cs_video_rule *rule;
    cs_av_input *input;
    int track;
    int quarter_turns; /* clockwise, as the display matrix asks */
    struct SwsContext *scaler;
    uint8_t *rgb; /* [source height][source width][3], rows row_bytes apart */
    size_t row_bytes, rgb_bytes;
    GArray *times;   /* int64_t: presentation times of all packets, sorted */
    uint8_t *turned; /* the same after turning, contiguous */
    cs_decoded_video *video;
} frame_taker;

static void frame_taker_clear(frame_taker *t)
{
    cs_av.sws_freeContext(t->scaler);
    free(t->rgb);
    g_free(t->turned);
    if (t->times)
        g_array_unref(t->times);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(frame_taker, frame_taker_clear)

static int compare_times(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static bool check_header(const cs_decode_job *job, const cs_av_input *input, int track,
                         GError **error)
{
    const AVStream *stream = input->format->streams[track];
    double seconds = (double)input->format->duration / AV_TIME_BASE;
    if (stream->nb_frames > job->limits->max_frames)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "%s of %lld frames; at most %u are taken",
                       input->name, (long long)stream->nb_frames, job->limits->max_frames);
    if (seconds > job->limits->max_seconds)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "%s of %.1f s; at most %.1f s are taken",
                       input->name, seconds, job->limits->max_seconds);
    /* The room is checked when the size after resizing is known. */
    cs_decode_job pixels = *job;
    pixels.out_bytes = SIZE_MAX;
    return cs_decode_check_size(&pixels, input->name, (uint64_t)MAX(stream->codecpar->width, 0),
                                (uint64_t)MAX(stream->codecpar->height, 0), error);
}

/* Presentation times of shown frames, by the packets really there, whatever the header claims. */
static bool read_times(frame_taker *t, GError **error)
{
    uint32_t most = t->job->limits->max_frames;
    AVPacket *packet = cs_av.av_packet_alloc();
    if (!packet)
        return cs_fail(error, CS_ERROR_BUSY, "no memory to decode %s", t->input->name);
    int result = 0;
    t->times = g_array_new(FALSE, FALSE, sizeof(int64_t));
    while (t->times->len <= most && (result = cs_av.av_read_frame(t->input->format, packet)) >= 0) {
        if (packet->stream_index == t->track && !(packet->flags & AV_PKT_FLAG_DISCARD))
            g_array_append_val(t->times, packet->pts);
        cs_av.av_packet_unref(packet);
    }
    cs_av.av_packet_free(&packet);
    if (t->times->len > most)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "%s of over %u frames", t->input->name, most);
    if (result < 0 && result != AVERROR_EOF)
        return cs_av_fail(error, result, t->input->name, "packet");
    if (t->times->len == 0)
        return cs_fail(error, CS_ERROR_INVALID, "%s without video frames", t->input->name);
    g_array_sort(t->times, compare_times);
    return true;
}

static bool stream_rate(const cs_decode_job *job, const cs_av_input *input, int track,
                        uint64_t n_frames, double *fps, GError **error)
{
    const AVStream *stream = input->format->streams[track];
    double seconds = (double)input->format->duration / AV_TIME_BASE;
    if (stream->avg_frame_rate.num > 0 && stream->avg_frame_rate.den > 0)
        *fps = av_q2d(stream->avg_frame_rate);
    else
        *fps = seconds > 0 ? (double)n_frames / seconds : 0;
    if (!(*fps > 0 && *fps <= 1e6))
        return cs_fail(error, CS_ERROR_INVALID, "%s: no frame rate", input->name);
    seconds = (double)n_frames / *fps;
    if (seconds > job->limits->max_seconds)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "%s of %.1f s; at most %.1f s are taken",
                       input->name, seconds, job->limits->max_seconds);
    return true;
}

static bool has_audio(const cs_av_input *input)
{
    for (unsigned i = 0; i < input->format->nb_streams; i++)
        if (input->format->streams[i]->codecpar->codec_type == AVMEDIA_TYPE_AUDIO)
            return true;
    return false;
}

static int read_quarter_turns(const AVStream *stream)
{
    size_t size = 0;
    const uint8_t *data = cs_av.av_stream_get_side_data(stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
    if (!data || size < 9 * sizeof(int32_t))
        return 0;
    double degrees = cs_av.av_display_rotation_get((const int32_t *)(const void *)data);
    return isnan(degrees) ? 0 : (int)((lrint(-degrees / 90) % 4 + 4) % 4);
}

/* Turns a picture clockwise; out is contiguous. */
static void turn(const cs_resample_source *in, int quarters, uint8_t *out)
{
    uint32_t w = in->width, h = in->height, out_width = quarters & 1 ? h : w;
    for (uint32_t y = 0; y < h; y++)
        for (uint32_t x = 0; x < w; x++) {
            uint32_t ox = quarters == 1 ? h - 1 - y : quarters == 2 ? w - 1 - x : y;
            uint32_t oy = quarters == 1 ? x : quarters == 2 ? h - 1 - y : w - 1 - x;
            memcpy(out + ((size_t)oy * out_width + ox) * 3, in->rgb + y * in->row_bytes + 3 * x, 3);
        }
}

/* Rows are aligned and padded: swscale converts the last pixels of a row by another, coarser way
 * when its vectors would reach beyond the row. */
static bool to_rgb(frame_taker *t, const AVFrame *frame, GError **error)
{
    enum { ALIGN = 64 };
    t->row_bytes = ((size_t)frame->width * 3 + 2 * ALIGN - 1) / ALIGN * ALIGN;
    size_t bytes = t->row_bytes * (size_t)frame->height;
    if (bytes > t->rgb_bytes) {
        free(t->rgb);
        g_free(t->turned);
        t->rgb = aligned_alloc(ALIGN, bytes);
        t->turned = t->quarter_turns ? g_try_malloc(bytes) : NULL;
        t->rgb_bytes = t->rgb && (t->turned || !t->quarter_turns) ? bytes : 0;
        if (!t->rgb_bytes)
            return cs_fail(error, CS_ERROR_BUSY, "no memory for %d x %d pixels", frame->width,
                           frame->height);
    }
    t->scaler = cs_av.sws_getCachedContext(t->scaler, frame->width, frame->height, frame->format,
                                           frame->width, frame->height, AV_PIX_FMT_RGB24,
                                           SWS_BILINEAR, NULL, NULL, NULL);
    if (!t->scaler)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: pixel format %d", t->input->name,
                       frame->format);
    const int *matrix = cs_av.sws_getCoefficients((int)frame->colorspace);
    cs_av.sws_setColorspaceDetails(t->scaler, matrix, frame->color_range == AVCOL_RANGE_JPEG,
                                   cs_av.sws_getCoefficients(SWS_CS_DEFAULT), 1, 0, 1 << 16,
                                   1 << 16);
    uint8_t *rows[4] = {t->rgb};
    int strides[4] = {(int)t->row_bytes};
    if (cs_av.sws_scale(t->scaler, (const uint8_t *const *)frame->data, frame->linesize, 0,
                        frame->height, rows, strides) != frame->height)
        return cs_fail(error, CS_ERROR_INVALID, "malformed %s: a frame cannot be converted",
                       t->input->name);
    return true;
}

/* Converts, turns and resizes a frame into place i of the output. */
static bool keep_frame(frame_taker *t, const AVFrame *frame, uint32_t i, GError **error)
{
    cs_decode_job pixels = *t->job;
    pixels.out_bytes = SIZE_MAX;
    if (!cs_decode_check_size(&pixels, t->input->name, (uint64_t)MAX(frame->width, 0),
                              (uint64_t)MAX(frame->height, 0), error) ||
        !to_rgb(t, frame, error))
        return false;
    const cs_decoded_video *v = t->video;
    cs_resample_source source = {t->rgb, (uint32_t)frame->width, (uint32_t)frame->height,
                                 t->row_bytes};
    if (t->quarter_turns) {
        turn(&source, t->quarter_turns, t->turned);
        bool swap = t->quarter_turns & 1;
        source = (cs_resample_source){t->turned, swap ? source.height : source.width,
                                      swap ? source.width : source.height, 0};
        source.row_bytes = (size_t)source.width * 3;
    }
    uint8_t *out = t->job->out + (size_t)i * v->height * v->width * 3;
    return t->rule->float_resize
               ? cs_resample_bicubic_float(&source, out, v->width, v->height, error)
               : cs_resample_bicubic(&source, out, v->width, v->height, error);
}

/* Plans for `total` frames. */
static bool plan(frame_taker *t, uint64_t total, GError **error)
{
    const AVCodecParameters *p = t->input->format->streams[t->track]->codecpar;
    cs_decoded_video *v = t->video;
    bool swap = t->quarter_turns & 1;
    v->source_frames = (uint32_t)total;
    v->source_width = (uint32_t)(swap ? p->height : p->width);
    v->source_height = (uint32_t)(swap ? p->width : p->height);
    v->width = v->source_width;
    v->height = v->source_height;
    if (!cs_video_rule_count(t->rule, total, v->source_fps, &v->n_frames, error) ||
        !cs_video_rule_size(t->rule, v->n_frames, &v->height, &v->width, error)) {
        g_prefix_error(error, "%s: ", t->input->name);
        return false;
    }
    if ((uint64_t)v->width * v->height * v->n_frames > t->job->out_bytes / 3)
        return cs_fail(error, CS_ERROR_TOO_LARGE,
                       "%s: %u frames of %u x %u pixels; at most %zu bytes of decoded data are "
                       "taken",
                       t->input->name, v->n_frames, v->width, v->height, t->job->out_bytes);
    return true;
}

/* Decodes up to the last sampled frame; *decoded is how many frames there were until then. */
static bool take_by_count(frame_taker *t, uint64_t *decoded, GError **error)
{
    g_auto(cs_av_reader) reader = {0};
    if (!cs_av_reader_init(&reader, t->input, t->track, error))
        return false;
    const cs_decoded_video *v = t->video;
    uint32_t taken = 0;
    uint64_t next = cs_video_rule_index(v->source_frames, v->n_frames, 0);
    int more = 1;
    *decoded = 0;
    while (taken < v->n_frames && (more = cs_av_reader_next(&reader, error)) > 0) {
        if (*decoded == next) {
            if (!keep_frame(t, reader.frame, taken, error))
                return false;
            if (++taken < v->n_frames)
                next = cs_video_rule_index(v->source_frames, v->n_frames, taken);
        }
        ++*decoded;
    }
    return more >= 0;
}

/* Whether frames can be told by their times alone: of codecs with one shown frame a packet, and
 * when no time is missing or double. Then what others do not refer to need not be decoded, which
 * is about half of a usual film. */
static bool times_tell(const frame_taker *t)
{
    enum AVCodecID codec = t->input->format->streams[t->track]->codecpar->codec_id;
    const int64_t *times = (const int64_t *)(const void *)t->times->data;
    if ((codec != AV_CODEC_ID_H264 && codec != AV_CODEC_ID_HEVC) || times[0] == AV_NOPTS_VALUE)
        return false;
    for (guint i = 1; i < t->times->len; i++)
        if (times[i] == times[i - 1])
            return false;
    return true;
}

/* *all: every sampled frame came. */
static bool take_by_time(frame_taker *t, bool *all, GError **error)
{
    const cs_decoded_video *v = t->video;
    const int64_t *times = (const int64_t *)(const void *)t->times->data;
    g_autoptr(GHashTable) wanted = g_hash_table_new(g_int64_hash, g_int64_equal);
    for (uint32_t i = 0; i < v->n_frames; i++)
        g_hash_table_insert(wanted,
                            (gpointer)&times[cs_video_rule_index(v->source_frames, v->n_frames, i)],
                            GUINT_TO_POINTER(i + 1));
    g_auto(cs_av_reader) reader = {0};
    if (!cs_av_reader_init(&reader, t->input, t->track, error))
        return false;
    reader.wanted = wanted;
    uint32_t taken = 0;
    int more = 1;
    while (taken < v->n_frames && (more = cs_av_reader_next(&reader, error)) > 0) {
        guint slot = GPOINTER_TO_UINT(g_hash_table_lookup(wanted, &reader.frame->pts));
        if (slot == 0)
            continue;
        if (!keep_frame(t, reader.frame, slot - 1, error))
            return false;
        taken++;
    }
    *all = taken == v->n_frames;
    return more >= 0;
}

static bool open_track(frame_taker *t, cs_media_format format, GError **error)
{
    cs_av_input_close(t->input);
    if (!cs_av_input_open(t->input, t->job, format, error))
        return false;
    t->track = cs_av_input_select(t->input, AVMEDIA_TYPE_VIDEO);
    if (t->track < 0)
        return cs_fail(error, CS_ERROR_INVALID, "%s without a video track", t->input->name);
    return true;
}

bool cs_decode_video(const cs_decode_job *job, cs_media_format format, const cs_video_rule *rule,
                     cs_decoded_video *video, GError **error)
{
    g_auto(cs_av_input) input = {0};
    cs_decoded_video made = {0};
    g_auto(frame_taker) t = {.job = job, .rule = rule, .input = &input, .video = &made};
    bool all = false;
    if (!open_track(&t, format, error) || !check_header(job, &input, t.track, error))
        return false;
    made.has_audio = has_audio(&input);
    t.quarter_turns = read_quarter_turns(input.format->streams[t.track]);
    if (!read_times(&t, error) ||
        !stream_rate(job, &input, t.track, t.times->len, &made.source_fps, error))
        return false;
    uint64_t total = t.times->len, decoded = 0;
    if (times_tell(&t) && (!open_track(&t, format, error) || !plan(&t, total, error) ||
                           !take_by_time(&t, &all, error)))
        return false;
    /* Packets need not be frames one to one (hidden frames, edit lists, a broken tail); the second
     * round has the number that the decoder really gave. */
    for (int round = 0; round < 2 && !all; round++) {
        if (!open_track(&t, format, error) || !plan(&t, total, error) ||
            !take_by_count(&t, &decoded, error))
            return false;
        all = decoded == total;
        total = decoded;
    }
    if (!all)
        return cs_fail(error, CS_ERROR_INVALID, "malformed %s: frames cannot be counted",
                       input.name);
    *video = made;
    return true;
}
