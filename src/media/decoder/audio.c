#include "media/decoder/av.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

/* Far over full scale, and its square is still a number. */
#define MAX_SAMPLE 1e9f

/* Samples as they come: averaged over channels, resampled, appended to the job's output. */
typedef struct {
    const cs_decode_job *job;
    const char *name;
    uint32_t rate;        /* wanted */
    uint32_t source_rate; /* 0 before the first frame */
    int channels;
    float *mono; /* [mono_room] */
    size_t mono_room;
    soxr_t resampler; /* NULL when the rates are equal */
    uint64_t n_source;
    size_t n_samples, room; /* of the output */
} mixer;

static void mixer_clear(mixer *m)
{
    if (m->resampler)
        cs_av.soxr_delete(m->resampler);
    g_free(m->mono);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(mixer, mixer_clear)

static bool too_long(const mixer *m, double seconds, GError **error)
{
    return cs_fail(error, CS_ERROR_TOO_LARGE, "%s of %s%.1f s; at most %.1f s are taken", m->name,
                   m->n_source ? "at least " : "", seconds, m->job->limits->max_seconds);
}

static bool mixer_begin(mixer *m, const AVFrame *frame, GError **error)
{
    enum { LEAST_RATE = 1000, MOST_RATE = 768000, MOST_CHANNELS = 64 };
    int rate = frame->sample_rate, channels = frame->ch_layout.nb_channels;
    if (rate < LEAST_RATE || rate > MOST_RATE || channels < 1 || channels > MOST_CHANNELS)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s of %d channels at %d Hz", m->name, channels,
                       rate);
    m->source_rate = (uint32_t)rate;
    m->channels = channels;
    if (m->source_rate == m->rate)
        return true;
    soxr_error_t problem = NULL;
    soxr_io_spec_t io = cs_av.soxr_io_spec(SOXR_FLOAT32_I, SOXR_FLOAT32_I);
    soxr_quality_spec_t quality = cs_av.soxr_quality_spec(SOXR_HQ, 0);
    soxr_runtime_spec_t runtime = cs_av.soxr_runtime_spec(1);
    m->resampler = cs_av.soxr_create(rate, m->rate, 1, &problem, &io, &quality, &runtime);
    return m->resampler || cs_fail(error, CS_ERROR_UNSUPPORTED, "%s at %d Hz: %s", m->name, rate,
                                   problem ? problem : "cannot be resampled");
}

/* Sample i of a channel; integers become fractions of full scale. */
static float sample_at(const uint8_t *data, enum AVSampleFormat format, size_t i)
{
    switch (format) {
    case AV_SAMPLE_FMT_U8:
    case AV_SAMPLE_FMT_U8P:
        return ((float)data[i] - 128) / 128;
    case AV_SAMPLE_FMT_S16:
    case AV_SAMPLE_FMT_S16P:
        return (float)((const int16_t *)(const void *)data)[i] / 32768;
    case AV_SAMPLE_FMT_S32:
    case AV_SAMPLE_FMT_S32P:
        return (float)((const int32_t *)(const void *)data)[i] / 2147483648.0f;
    case AV_SAMPLE_FMT_DBL:
    case AV_SAMPLE_FMT_DBLP:
        return (float)((const double *)(const void *)data)[i];
    default:
        return ((const float *)(const void *)data)[i];
    }
}

static bool mix(mixer *m, const AVFrame *frame, GError **error)
{
    enum AVSampleFormat format = frame->format;
    if (format < AV_SAMPLE_FMT_U8 || format > AV_SAMPLE_FMT_DBLP)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: samples of format %s", m->name,
                       cs_av.av_get_sample_fmt_name(format));
    bool planar = format >= AV_SAMPLE_FMT_U8P;
    size_t n = (size_t)frame->nb_samples, channels = (size_t)m->channels;
    if (n > m->mono_room) {
        g_free(m->mono);
        m->mono = g_try_new(float, n);
        m->mono_room = m->mono ? n : 0;
        if (!m->mono)
            return cs_fail(error, CS_ERROR_BUSY, "no memory for %zu samples", n);
    }
    memset(m->mono, 0, n * sizeof(float));
    for (size_t c = 0; c < channels; c++) {
        const uint8_t *data = frame->extended_data[planar ? c : 0];
        for (size_t i = 0; i < n; i++)
            m->mono[i] += sample_at(data, format, planar ? i : i * channels + c);
    }
    for (size_t i = 0; i < n && channels > 1; i++)
        m->mono[i] /= (float)channels;
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(m->mono[i]) <= MAX_SAMPLE))
            return cs_fail(error, CS_ERROR_INVALID,
                           "%s: a sample is %g; expected a number near [-1, 1]", m->name,
                           (double)m->mono[i]);
    return true;
}

/* Appends n samples; n 0 with in NULL flushes the resampler. */
static bool append(mixer *m, const float *in, size_t n, GError **error)
{
    float *out = (float *)(void *)m->job->out + m->n_samples;
    size_t left = m->room - m->n_samples;
    if (!m->resampler) {
        if (n > left)
            return too_long(m, (double)m->n_source / m->source_rate, error);
        if (n)
            memcpy(out, in, n * sizeof(float));
        m->n_samples += n;
        return true;
    }
    for (;;) {
        size_t used = 0, made = 0;
        if (cs_av.soxr_process(m->resampler, in, n, &used, out, left, &made))
            return cs_fail(error, CS_ERROR_FAILED, "%s: resampling failed", m->name);
        m->n_samples += made;
        out += made;
        left -= made;
        in = in ? in + used : NULL;
        n -= used;
        if (n == 0 && (in || made == 0))
            return true;
        if (left == 0)
            return too_long(m, (double)m->n_source / m->source_rate, error);
    }
}

static bool take_frame(mixer *m, const AVFrame *frame, GError **error)
{
    if (m->source_rate == 0 && !mixer_begin(m, frame, error))
        return false;
    if ((uint32_t)frame->sample_rate != m->source_rate ||
        frame->ch_layout.nb_channels != m->channels)
        return cs_fail(error, CS_ERROR_UNSUPPORTED,
                       "%s changes from %d channels at %u Hz to %d at %d Hz", m->name, m->channels,
                       m->source_rate, frame->ch_layout.nb_channels, frame->sample_rate);
    m->n_source += (uint64_t)frame->nb_samples;
    double seconds = (double)m->n_source / m->source_rate;
    if (seconds > m->job->limits->max_seconds)
        return too_long(m, seconds, error);
    return mix(m, frame, error) && append(m, m->mono, (size_t)frame->nb_samples, error);
}

/* The reference's length: the source's times the ratio, rounded up; shorter results are filled up
 * with zeros. */
static bool finish(mixer *m, GError **error)
{
    if (m->n_source == 0)
        return cs_fail(error, CS_ERROR_INVALID, "%s without samples", m->name);
    if (m->resampler && !append(m, NULL, 0, error))
        return false;
    double ratio = (double)m->rate / m->source_rate;
    size_t n = (size_t)ceil((double)m->n_source * ratio);
    n = MIN(n, m->room);
    if (n > m->n_samples)
        memset((float *)(void *)m->job->out + m->n_samples, 0, (n - m->n_samples) * sizeof(float));
    m->n_samples = n;
    return true;
}

/* A RIFF data chunk that claims more than is there. Recorders that write to a pipe leave zero or
 * sizes near the maximum: those mean "up to the end" (*open_ended). */
static bool check_wav(const cs_decode_job *job, bool *open_ended, GError **error)
{
    const uint32_t unknown = 0x7f000000;
    size_t at = 12;
    while (job->in_bytes >= at + 8) {
        const uint8_t *c = job->in + at;
        uint32_t size = c[4] | (uint32_t)c[5] << 8 | (uint32_t)c[6] << 16 | (uint32_t)c[7] << 24;
        size_t left = job->in_bytes - at - 8;
        if (memcmp(c, "data", 4) == 0) {
            *open_ended = (size == 0 && left > 0) || (size > left && size >= unknown);
            if (size > left && !*open_ended)
                return cs_fail(error, CS_ERROR_INVALID,
                               "truncated WAV: %u bytes of samples announced, %zu there", size,
                               left);
            return true;
        }
        at += 8 + (size_t)size + (size & 1);
    }
    return cs_fail(error, CS_ERROR_INVALID, "WAV without samples");
}

/* What the header says about the length: refused at once when over the cap. Returns seconds, or 0
 * when it says nothing that can be believed. */
static double declared_seconds(const cs_av_input *input)
{
    const AVFormatContext *f = input->format;
    if (f->duration <= 0 || f->duration_estimation_method == AVFMT_DURATION_FROM_BITRATE)
        return 0;
    return (double)f->duration / AV_TIME_BASE;
}

static bool decode_track(mixer *m, cs_av_input *input, int track, GError **error)
{
    g_auto(cs_av_reader) reader = {0};
    if (!cs_av_reader_init(&reader, input, track, error))
        return false;
    int more;
    while ((more = cs_av_reader_next(&reader, error)) > 0)
        if (!take_frame(m, reader.frame, error))
            return false;
    return more == 0 && finish(m, error);
}

bool cs_decode_audio(const cs_decode_job *job, cs_media_format format, uint32_t sample_rate,
                     cs_decoded_audio *audio, GError **error)
{
    bool open_ended = false;
    if (format == CS_MEDIA_WAV && !check_wav(job, &open_ended, error))
        return false;
    g_auto(cs_av_input) input = {0};
    if (!cs_av_input_open(&input, job, format, error))
        return false;
    input.open_ended = open_ended;
    int track = cs_av_input_select(&input, AVMEDIA_TYPE_AUDIO);
    if (track < 0)
        return cs_fail(error, CS_ERROR_INVALID, "%s without an audio track", input.name);
    g_auto(mixer) m = {
        .job = job,
        .name = input.name,
        .rate = sample_rate,
        .room = job->out_bytes / sizeof(float),
    };
    double declared = open_ended ? 0 : declared_seconds(&input);
    if (declared > job->limits->max_seconds)
        return too_long(&m, declared, error);
    if (!decode_track(&m, &input, track, error))
        return false;
    /* A container's duration is that of its longest track; a lone track that ends well before it
     * was cut off. */
    double got = (double)m.n_source / m.source_rate;
    if (input.format->nb_streams == 1 && got < declared * 0.98 - 0.5)
        return cs_fail(error, CS_ERROR_INVALID, "truncated %s: %.1f of %.1f s", input.name, got,
                       declared);
    *audio = (cs_decoded_audio){m.n_samples, m.source_rate};
    return true;
}
