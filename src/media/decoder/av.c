#include "media/decoder/av.h"

#include "base/error.h"

#include <dlfcn.h>
#include <string.h>

/* The list of what is decoded: formats that people send, each by a decoder with a record of
 * fuzzing; everything else in FFmpeg stays out of reach. */
#define ALLOWED_CODECS                                                                             \
    "pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le,pcm_s16be,pcm_s24be,pcm_alaw,"       \
    "pcm_mulaw,mp3float,mp3,flac,opus,libopus,vorbis,aac,alac,h264,hevc,vp8,vp9,libdav1d,mpeg4,"   \
    "mjpeg,png"

enum { IO_BUFFER_BYTES = 64 << 10, PROBE_BYTES = 8 << 20, MAX_STREAMS = 64 };

cs_av_table cs_av;

enum library { AVUTIL, AVCODEC, AVFORMAT, SWSCALE, SOXR, N_LIBRARIES };

bool cs_av_load(GError **error)
{
    static const char *const names[N_LIBRARIES] = {
        "libavutil.so." G_STRINGIFY(LIBAVUTIL_VERSION_MAJOR),
        "libavcodec.so." G_STRINGIFY(LIBAVCODEC_VERSION_MAJOR),
        "libavformat.so." G_STRINGIFY(LIBAVFORMAT_VERSION_MAJOR),
        "libswscale.so." G_STRINGIFY(LIBSWSCALE_VERSION_MAJOR),
        "libsoxr.so.0",
    };
    void *handles[N_LIBRARIES];
    for (int i = 0; i < N_LIBRARIES; i++)
        if (!(handles[i] = dlopen(names[i], RTLD_NOW | RTLD_LOCAL)))
            return cs_fail(error, CS_ERROR_UNSUPPORTED,
                           "audio and video need %s, which is not installed", names[i]);
#define LOAD(library, function)                                                                    \
    *(void **)&cs_av.function = dlsym(handles[library], #function);                                \
    if (!cs_av.function)                                                                           \
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s has no function %s", names[library],       \
                       #function);
    CS_AV_FUNCTIONS(LOAD)
#undef LOAD
    cs_av.av_log_set_level(AV_LOG_QUIET);
    return true;
}

bool cs_av_fail(GError **error, int result, const char *name, const char *what)
{
    char words[AV_ERROR_MAX_STRING_SIZE] = "";
    if (result == AVERROR(ENOMEM))
        return cs_fail(error, CS_ERROR_TOO_LARGE, "%s: %s needs more memory than is allowed", name,
                       what);
    cs_av.av_strerror(result, words, sizeof words);
    return cs_fail(error, CS_ERROR_INVALID, "malformed or truncated %s: %s: %s", name, what, words);
}

/* ---- the container ---- */

static int on_read(void *opaque, uint8_t *out, int n)
{
    cs_av_input *input = opaque;
    int64_t left = input->size - input->at;
    if (left <= 0)
        return AVERROR_EOF;
    int64_t take = MIN(left, n);
    memcpy(out, input->data + input->at, (size_t)take);
    input->at += take;
    return (int)take;
}

static int64_t on_seek(void *opaque, int64_t offset, int whence)
{
    cs_av_input *input = opaque;
    if (whence & AVSEEK_SIZE)
        return input->size;
    whence &= ~AVSEEK_FORCE;
    int64_t base = whence == SEEK_CUR ? input->at : whence == SEEK_END ? input->size : 0;
    int64_t to;
    if (__builtin_add_overflow(base, offset, &to) || to < 0)
        return AVERROR(EINVAL);
    return input->at = to;
}

/* A container may name other files; it gets none. */
static int on_open(AVFormatContext *format, AVIOContext **io, const char *url, int flags,
                   AVDictionary **options)
{
    return AVERROR(EPERM);
}

static const char *demuxer_name(cs_media_format format)
{
    switch (format) {
    case CS_MEDIA_WAV:
        return "wav";
    case CS_MEDIA_MP3:
        return "mp3";
    case CS_MEDIA_FLAC:
        return "flac";
    case CS_MEDIA_OGG:
        return "ogg";
    case CS_MEDIA_AAC:
        return "aac";
    case CS_MEDIA_MP4:
        return "mp4";
    case CS_MEDIA_WEBM:
        return "webm";
    default:
        return NULL;
    }
}

static int open_format(cs_av_input *input, const AVInputFormat *demuxer)
{
    AVDictionary *options = NULL;
    cs_av.av_dict_set(&options, "codec_whitelist", ALLOWED_CODECS, 0);
    int result = cs_av.avformat_open_input(&input->format, "", demuxer, &options);
    cs_av.av_dict_free(&options);
    if (result >= 0)
        result = cs_av.avformat_find_stream_info(input->format, NULL);
    return result;
}

/* A Matroska segment that claims more than is there; the demuxer would end early without a word.
 * The first element is the EBML header, the second the segment; a size of all ones is unknown. */
static bool matroska_is_whole(const uint8_t *data, size_t size)
{
    size_t at = 0;
    for (int element = 0; element < 2; element++) {
        if (at + 12 > size)
            return false;
        at += 4;
        int length = __builtin_clz(data[at] | 1u) - 24 + 1;
        uint64_t value = data[at] & ((0x100u >> length) - 1), unknown = (1ull << (7 * length)) - 1;
        if (length > 8 || at + (size_t)length > size)
            return false;
        for (int i = 1; i < length; i++)
            value = value << 8 | data[at + (size_t)i];
        at += (size_t)length;
        if (value == unknown)
            return true;
        if (value > size - at)
            return false;
        if (element == 0)
            at += value;
    }
    return true;
}

/* The last page that begins must end, too. */
static bool ogg_is_whole(const uint8_t *data, size_t size)
{
    enum { HEADER = 27 };
    size_t page_at = size < 4 ? 0 : size - 4;
    while (page_at > 0 && memcmp(data + page_at, "OggS", 4) != 0)
        page_at--;
    const uint8_t *page = data + page_at;
    size_t left = size - page_at, bytes;
    if (left < HEADER || left < (bytes = HEADER + (size_t)page[26]))
        return false;
    for (int i = 0; i < page[26]; i++)
        bytes += page[HEADER + i];
    return left >= bytes;
}

bool cs_av_input_open(cs_av_input *input, const cs_decode_job *job, cs_media_format format,
                      GError **error)
{
    const char *name = demuxer_name(format);
    *input = (cs_av_input){.name = cs_media_format_name(format),
                           .data = job->in,
                           .size = (int64_t)job->in_bytes,
                           .max_pixels = job->limits->max_pixels};
    const AVInputFormat *demuxer = name ? cs_av.av_find_input_format(name) : NULL;
    if (!demuxer)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "expected audio or video, found %s",
                       input->name);
    if ((format == CS_MEDIA_WEBM && !matroska_is_whole(job->in, job->in_bytes)) ||
        (format == CS_MEDIA_OGG && !ogg_is_whole(job->in, job->in_bytes)))
        return cs_fail(error, CS_ERROR_INVALID, "truncated %s: %zu bytes", input->name,
                       job->in_bytes);
    uint8_t *buffer = cs_av.av_malloc(IO_BUFFER_BYTES);
    input->io =
        buffer ? cs_av.avio_alloc_context(buffer, IO_BUFFER_BYTES, 0, input, on_read, NULL, on_seek)
               : NULL;
    input->format = input->io ? cs_av.avformat_alloc_context() : NULL;
    if (!input->format) {
        cs_av_input_close(input);
        return cs_fail(error, CS_ERROR_BUSY, "no memory to open %s", name);
    }
    input->format->pb = input->io;
    input->format->io_open = on_open;
    input->format->probesize = PROBE_BYTES;
    input->format->max_streams = MAX_STREAMS;
    int result = open_format(input, demuxer);
    if (result >= 0)
        return true;
    cs_av_input_close(input);
    return cs_av_fail(error, result, cs_media_format_name(format), "header");
}

void cs_av_input_close(cs_av_input *input)
{
    cs_av.avformat_close_input(&input->format);
    if (input->io)
        cs_av.av_freep(&input->io->buffer);
    cs_av.avio_context_free(&input->io);
}

int cs_av_input_select(cs_av_input *input, enum AVMediaType type)
{
    int track = cs_av.av_find_best_stream(input->format, type, -1, -1, NULL, 0);
    for (unsigned i = 0; i < input->format->nb_streams; i++)
        input->format->streams[i]->discard = (int)i == track ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    /* A picture of the album's cover is no video. */
    if (track >= 0 && input->format->streams[track]->disposition & AV_DISPOSITION_ATTACHED_PIC)
        return -1;
    return track >= 0 ? track : -1;
}

/* ---- a track ---- */

/* AV1 in software, and Opus by its own library: FFmpeg's decoder of it resamples speech differently
 * and is off by up to a third of full scale from what others give. */
static const AVCodec *find_decoder(enum AVCodecID id)
{
    const char *better = id == AV_CODEC_ID_AV1    ? "libdav1d"
                         : id == AV_CODEC_ID_OPUS ? "libopus"
                                                  : NULL;
    return better ? cs_av.avcodec_find_decoder_by_name(better) : cs_av.avcodec_find_decoder(id);
}

AVCodecContext *cs_av_decoder_open(const cs_av_input *input, int track, GError **error)
{
    const AVCodecParameters *parameters = input->format->streams[track]->codecpar;
    const AVCodec *codec = find_decoder(parameters->codec_id);
    AVCodecContext *context = codec ? cs_av.avcodec_alloc_context3(codec) : NULL;
    int result = AVERROR_DECODER_NOT_FOUND;
    if (context) {
        AVDictionary *options = NULL;
        cs_av.av_dict_set(&options, "codec_whitelist", ALLOWED_CODECS, 0);
        cs_av.avcodec_parameters_to_context(context, parameters);
        context->pkt_timebase = input->format->streams[track]->time_base;
        context->thread_count = 1;
        context->max_pixels = (int64_t)MIN(input->max_pixels, (uint64_t)INT64_MAX);
        context->request_sample_fmt = AV_SAMPLE_FMT_FLT;
        result = cs_av.avcodec_open2(context, codec, &options);
        cs_av.av_dict_free(&options);
    }
    if (result >= 0)
        return context;
    cs_av.avcodec_free_context(&context);
    cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: codec %s is not supported", input->name,
            cs_av.avcodec_get_name(parameters->codec_id));
    return NULL;
}

bool cs_av_reader_init(cs_av_reader *reader, cs_av_input *input, int track, GError **error)
{
    *reader = (cs_av_reader){.input = input, .track = track};
    if (!(reader->codec = cs_av_decoder_open(input, track, error)))
        return false;
    reader->packet = cs_av.av_packet_alloc();
    reader->frame = cs_av.av_frame_alloc();
    if (reader->packet && reader->frame)
        return true;
    cs_av_reader_clear(reader);
    return cs_fail(error, CS_ERROR_BUSY, "no memory to decode %s", input->name);
}

/* Sends the next packet of the track, or the end. */
static bool feed(cs_av_reader *r, GError **error)
{
    int result;
    do {
        cs_av.av_packet_unref(r->packet);
        result = cs_av.av_read_frame(r->input->format, r->packet);
    } while (result >= 0 && r->packet->stream_index != r->track);
    r->codec->skip_frame = AVDISCARD_DEFAULT;
    if (result >= 0 && r->wanted && !g_hash_table_contains(r->wanted, &r->packet->pts))
        r->codec->skip_frame = AVDISCARD_NONREF;
    if (result == AVERROR_EOF) {
        r->draining = true;
        cs_av.avcodec_send_packet(r->codec, NULL);
        return true;
    }
    if (result >= 0 && r->packet->flags & AV_PKT_FLAG_CORRUPT && !r->input->open_ended)
        result = AVERROR_INVALIDDATA;
    if (result < 0)
        return cs_av_fail(error, result, r->input->name, "packet");
    result = cs_av.avcodec_send_packet(r->codec, r->packet);
    if (result < 0 && (r->begun || result == AVERROR(ENOMEM)))
        return cs_av_fail(error, result, r->input->name, "data");
    return true;
}

int cs_av_reader_next(cs_av_reader *r, GError **error)
{
    for (;;) {
        int result = cs_av.avcodec_receive_frame(r->codec, r->frame);
        if (result >= 0) {
            r->begun = true;
            return 1;
        }
        if (result == AVERROR_EOF)
            return 0;
        if (result != AVERROR(EAGAIN) && (r->begun || r->draining)) {
            cs_av_fail(error, result, r->input->name, "data");
            return -1;
        }
        if (r->draining)
            return 0;
        if (!feed(r, error))
            return -1;
    }
}

void cs_av_reader_clear(cs_av_reader *reader)
{
    cs_av.av_frame_free(&reader->frame);
    cs_av.av_packet_free(&reader->packet);
    cs_av.avcodec_free_context(&reader->codec);
}
