#include "media/decoder/speech.h"

#include "base/error.h"
#include "media/decoder/av.h"
#include "media/encode.h"

#include <math.h>
#include <string.h>

enum { MAX_SESSIONS = 1024, IO_BUFFER_BYTES = 4096 };

/* Bit rates are for speech of one channel. Pages of 100 ms keep Ogg, and small
 * blocks FLAC, from holding sound back. */
static const struct {
    const char *encoder, *muxer;
    enum AVSampleFormat sample_format;
    int64_t bit_rate;
    int frame_size; /* 0: the encoder's own */
} recipes[] = {
    [CS_AUDIO_MP3] = {"libmp3lame", "mp3", AV_SAMPLE_FMT_FLTP, 64000, 0},
    [CS_AUDIO_FLAC] = {"flac", "flac", AV_SAMPLE_FMT_S16, 0, 1152},
    [CS_AUDIO_OPUS] = {"libopus", "ogg", AV_SAMPLE_FMT_FLT, 32000, 0},
};
#define OGG_PAGE_US "100000"

typedef struct {
    AVCodecContext *codec;
    AVFormatContext *mux;
    AVIOContext *io;
    AVFrame *frame; /* being filled: codec->frame_size samples */
    AVPacket *packet;
    int filled;
    int64_t n_samples;
    /* Where the muxer's bytes go during a step. */
    uint8_t *out;
    size_t room, used;
} session;

static GHashTable *sessions; /* uint64_t * -> session *; the process has one thread */

static void session_free(gpointer data)
{
    session *s = data;
    cs_av.av_frame_free(&s->frame);
    cs_av.av_packet_free(&s->packet);
    cs_av.avcodec_free_context(&s->codec);
    cs_av.avformat_free_context(s->mux);
    if (s->io)
        cs_av.av_freep(&s->io->buffer);
    cs_av.avio_context_free(&s->io);
    g_free(s);
}

static int on_write(void *opaque, uint8_t *data, int n)
{
    session *s = opaque;
    if ((size_t)n > s->room - s->used)
        return AVERROR(ENOSPC);
    memcpy(s->out + s->used, data, (size_t)n);
    s->used += (size_t)n;
    return n;
}

static bool failed(GError **error, int result, const char *what)
{
    char words[AV_ERROR_MAX_STRING_SIZE] = "";
    cs_av.av_strerror(result, words, sizeof words);
    return cs_fail(error, CS_ERROR_FAILED, "encoding speech: %s: %s", what, words);
}

static bool open_codec(session *s, const cs_encode_request *r, GError **error)
{
    const AVCodec *codec = cs_av.avcodec_find_encoder_by_name(recipes[r->format].encoder);
    s->codec = codec ? cs_av.avcodec_alloc_context3(codec) : NULL;
    if (!s->codec)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "this FFmpeg has no encoder %s",
                       recipes[r->format].encoder);
    s->codec->sample_rate = (int)r->sample_rate;
    s->codec->time_base = (AVRational){1, (int)r->sample_rate};
    s->codec->sample_fmt = recipes[r->format].sample_format;
    s->codec->bit_rate = recipes[r->format].bit_rate;
    s->codec->frame_size = recipes[r->format].frame_size;
    s->codec->thread_count = 1;
    s->codec->flags |= AV_CODEC_FLAG_BITEXACT | AV_CODEC_FLAG_GLOBAL_HEADER;
    cs_av.av_channel_layout_default(&s->codec->ch_layout, 1);
    int result = cs_av.avcodec_open2(s->codec, codec, NULL);
    return result >= 0 || failed(error, result, recipes[r->format].encoder);
}

static bool open_muxer(session *s, const cs_encode_request *r, GError **error)
{
    uint8_t *buffer = cs_av.av_malloc(IO_BUFFER_BYTES);
    s->io = buffer ? cs_av.avio_alloc_context(buffer, IO_BUFFER_BYTES, 1, s, NULL, on_write, NULL)
                   : NULL;
    s->mux = cs_av.avformat_alloc_context();
    if (!s->io || !s->mux)
        return failed(error, AVERROR(ENOMEM), "memory");
    s->mux->pb = s->io;
    s->mux->oformat = cs_av.av_guess_format(recipes[r->format].muxer, NULL, NULL);
    s->mux->flags |= AVFMT_FLAG_BITEXACT | AVFMT_FLAG_FLUSH_PACKETS;
    AVStream *stream = s->mux->oformat ? cs_av.avformat_new_stream(s->mux, NULL) : NULL;
    if (!stream)
        return failed(error, AVERROR_MUXER_NOT_FOUND, recipes[r->format].muxer);
    cs_av.avcodec_parameters_from_context(stream->codecpar, s->codec);
    stream->time_base = s->codec->time_base;
    /* What would be filled in at the end, by seeking back, is left out. */
    AVDictionary *options = NULL;
    cs_av.av_dict_set(&options, "write_xing", "0", 0);
    cs_av.av_dict_set(&options, "id3v2_version", "0", 0);
    cs_av.av_dict_set(&options, "page_duration", OGG_PAGE_US, 0);
    int result = cs_av.avformat_write_header(s->mux, &options);
    cs_av.av_dict_free(&options);
    return result >= 0 || failed(error, result, "header");
}

static bool open_frame(session *s, GError **error)
{
    enum { FRAME_OF_ANY_SIZE = 1024 };
    s->frame = cs_av.av_frame_alloc();
    s->packet = cs_av.av_packet_alloc();
    if (!s->frame || !s->packet)
        return failed(error, AVERROR(ENOMEM), "memory");
    s->frame->nb_samples = s->codec->frame_size ? s->codec->frame_size : FRAME_OF_ANY_SIZE;
    s->frame->format = s->codec->sample_fmt;
    s->frame->sample_rate = s->codec->sample_rate;
    cs_av.av_channel_layout_default(&s->frame->ch_layout, 1);
    int result = cs_av.av_frame_get_buffer(s->frame, 0);
    return result >= 0 || failed(error, result, "memory");
}

static bool write_packets(session *s, GError **error)
{
    int result;
    while ((result = cs_av.avcodec_receive_packet(s->codec, s->packet)) >= 0) {
        cs_av.av_packet_rescale_ts(s->packet, s->codec->time_base, s->mux->streams[0]->time_base);
        s->packet->stream_index = 0;
        result = cs_av.av_write_frame(s->mux, s->packet);
        cs_av.av_packet_unref(s->packet);
        if (result < 0)
            return failed(error, result, "packet");
    }
    return result == AVERROR(EAGAIN) || result == AVERROR_EOF || failed(error, result, "codec");
}

/* Encodes the samples gathered; with 0 of them nothing happens. */
static bool send_gathered(session *s, GError **error)
{
    if (s->filled == 0)
        return true;
    int whole = s->frame->nb_samples;
    s->frame->nb_samples = s->filled; /* only the last frame is shorter */
    s->frame->pts = s->n_samples;
    s->n_samples += s->filled;
    s->filled = 0;
    int result = cs_av.avcodec_send_frame(s->codec, s->frame);
    s->frame->nb_samples = whole;
    if (result >= 0)
        result = cs_av.av_frame_make_writable(s->frame);
    return result >= 0 ? write_packets(s, error) : failed(error, result, "codec");
}

static bool write_samples(session *s, const float *samples, size_t n, GError **error)
{
    for (size_t i = 0; i < n; i++) {
        float x = isnan(samples[i]) ? 0 : fminf(fmaxf(samples[i], -1), 1);
        if (s->codec->sample_fmt == AV_SAMPLE_FMT_S16)
            ((int16_t *)(void *)s->frame->data[0])[s->filled] = (int16_t)lrintf(x * 32767);
        else
            ((float *)(void *)s->frame->data[0])[s->filled] = x;
        if (++s->filled == s->frame->nb_samples && !send_gathered(s, error))
            return false;
    }
    return true;
}

static bool finish(session *s, GError **error)
{
    if (!send_gathered(s, error))
        return false;
    cs_av.avcodec_send_frame(s->codec, NULL);
    if (!write_packets(s, error))
        return false;
    int result = cs_av.av_write_trailer(s->mux);
    return result >= 0 || failed(error, result, "trailer");
}

static session *begin(const cs_encode_request *r, GError **error)
{
    if (!sessions)
        sessions = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, session_free);
    if (g_hash_table_size(sessions) >= MAX_SESSIONS) {
        cs_fail(error, CS_ERROR_BUSY, "%d sounds are being encoded already", MAX_SESSIONS);
        return NULL;
    }
    if (r->format >= G_N_ELEMENTS(recipes) || !recipes[r->format].encoder) {
        cs_fail(error, CS_ERROR_UNSUPPORTED, "no encoder for audio format %u", r->format);
        return NULL;
    }
    session *s = g_new0(session, 1);
    int64_t *key = g_new(int64_t, 1);
    *key = (int64_t)r->session;
    g_hash_table_insert(sessions, key, s);
    return s;
}

static bool step(session *s, const cs_encode_request *r, const float *samples, GError **error)
{
    if (r->step == CS_ENCODE_BEGIN)
        return open_codec(s, r, error) && open_muxer(s, r, error) && open_frame(s, error);
    if (!write_samples(s, samples, r->n_samples, error))
        return false;
    return r->step == CS_ENCODE_WRITE || finish(s, error);
}

bool cs_speech_step(const cs_encode_request *r, const float *samples, uint8_t *out,
                    size_t out_bytes, size_t *n_bytes, GError **error)
{
    int64_t key = (int64_t)r->session;
    *n_bytes = 0;
    session *s = r->step == CS_ENCODE_BEGIN ? begin(r, error)
                 : sessions                 ? g_hash_table_lookup(sessions, &key)
                                            : NULL;
    if (!s) {
        if (r->step == CS_ENCODE_DROP)
            return true;
        return r->step != CS_ENCODE_BEGIN &&
               cs_fail(error, CS_ERROR_FAILED, "the speech encoder was lost with its process");
    }
    if (r->step == CS_ENCODE_DROP)
        return g_hash_table_remove(sessions, &key);
    s->out = out;
    s->room = out_bytes;
    s->used = 0;
    bool good = step(s, r, samples, error);
    if (good) {
        cs_av.avio_flush(s->io);
        good = s->io->error >= 0 || failed(error, s->io->error, "output");
        *n_bytes = s->used;
    }
    if (!good || r->step == CS_ENCODE_END)
        g_hash_table_remove(sessions, &key);
    return good;
}
