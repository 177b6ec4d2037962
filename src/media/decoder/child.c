#include "media/decoder/child.h"

#include "base/error.h"
#include "media/decoder/av.h"
#include "media/decoder/protocol.h"
#include "media/decoder/sandbox.h"
#include "media/decoder/speech.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct {
    void *in, *out;
    size_t in_bytes, out_bytes;
} memory;

/* Receives one message and its descriptors (-1 where there are none). False at the end. */
static bool receive(int fd, void *message, size_t size, int descriptors[2])
{
    union {
        char bytes[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {message, size};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof control.bytes};
    descriptors[0] = descriptors[1] = -1;
    if (recvmsg(fd, &header, MSG_CMSG_CLOEXEC) != (ssize_t)size)
        return false;
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    if (c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(2 * sizeof(int)))
        memcpy(descriptors, CMSG_DATA(c), 2 * sizeof(int));
    return true;
}

static void memory_unmap(memory *m)
{
    if (m->in)
        munmap(m->in, m->in_bytes);
    if (m->out)
        munmap(m->out, m->out_bytes);
    *m = (memory){0};
}

static bool memory_map(memory *m, const cs_decoder_request *r, const int descriptors[2],
                       GError **error)
{
    *m = (memory){.in_bytes = r->input_bytes, .out_bytes = r->output_bytes};
    void *in = mmap(NULL, m->in_bytes, PROT_READ, MAP_SHARED, descriptors[0], 0);
    void *out = mmap(NULL, m->out_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptors[1], 0);
    m->in = in == MAP_FAILED ? NULL : in;
    m->out = out == MAP_FAILED ? NULL : out;
    if (m->in && m->out)
        return true;
    memory_unmap(m);
    return cs_fail(error, CS_ERROR_BUSY, "no memory to decode %zu bytes into at most %zu",
                   (size_t)r->input_bytes, (size_t)r->output_bytes);
}

static bool decode_audio(const cs_decode_job *job, const cs_decoder_request *request,
                         cs_decoder_reply *reply, GError **error)
{
    cs_decoded_audio audio;
    cs_media_format format = cs_media_sniff(job->in, job->in_bytes);
    if (!cs_decode_audio(job, format, request->sample_rate, &audio, error))
        return false;
    reply->n_samples = audio.n_samples;
    reply->source_rate = audio.source_rate;
    return true;
}

static bool decode_video(const cs_decode_job *job, const cs_decoder_request *request,
                         cs_decoder_reply *reply, GError **error)
{
    cs_decoded_video v;
    cs_media_format format = cs_media_sniff(job->in, job->in_bytes);
    if (format != CS_MEDIA_MP4 && format != CS_MEDIA_WEBM)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "expected an MP4 or WebM video, found %s",
                       cs_media_format_name(format));
    if (!cs_decode_video(job, format, &request->video, &v, error))
        return false;
    reply->width = v.width;
    reply->height = v.height;
    reply->n_frames = v.n_frames;
    reply->source_width = v.source_width;
    reply->source_height = v.source_height;
    reply->source_frames = v.source_frames;
    reply->source_fps = v.source_fps;
    reply->has_audio = v.has_audio;
    if (!request->want_audio || !v.has_audio)
        return true;
    reply->audio_at = ((uint64_t)v.width * v.height * v.n_frames * 3 + 63) & ~63ull;
    if (reply->audio_at >= job->out_bytes)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "no room for the audio track in %zu bytes",
                       job->out_bytes);
    cs_decode_job rest = *job;
    rest.out += reply->audio_at;
    rest.out_bytes -= reply->audio_at;
    return decode_audio(&rest, request, reply, error);
}

static bool encode(const cs_decode_job *job, const cs_encode_request *request,
                   cs_decoder_reply *reply, GError **error)
{
    size_t n_bytes;
    if (request->n_samples * sizeof(float) > job->in_bytes)
        return cs_fail(error, CS_ERROR_FAILED, "speech: %u samples in %zu bytes",
                       request->n_samples, job->in_bytes);
    bool good = cs_speech_step(request, (const float *)(const void *)job->in, job->out,
                               job->out_bytes, &n_bytes, error);
    reply->n_bytes = n_bytes;
    return good;
}

static bool decode(const cs_decoder_request *request, const memory *m, cs_decoder_reply *reply,
                   GError **error)
{
    cs_decode_job job = {m->in, m->in_bytes, m->out, m->out_bytes, &request->limits};
    switch (request->task) {
    case CS_DECODER_IMAGE:
        return cs_decode_image(&job, &reply->width, &reply->height, error);
    case CS_DECODER_AUDIO:
        return decode_audio(&job, request, reply, error);
    case CS_DECODER_VIDEO:
        return decode_video(&job, request, reply, error);
    case CS_DECODER_ENCODE:
        return encode(&job, &request->encode, reply, error);
    case CS_DECODER_PROBE:
        return cs_decoder_sandbox_probe(request->probe, error);
    default:
        return cs_fail(error, CS_ERROR_FAILED, "decoder process: no task %u", request->task);
    }
}

static void put_error(cs_decoder_reply *reply, GError *error)
{
    if (!error)
        return;
    *reply = (cs_decoder_reply){.failed = 1, .code = CS_ERROR_FAILED};
    if (error->domain == CS_ERROR)
        reply->code = error->code;
    g_strlcpy(reply->message, error->message, sizeof reply->message);
    g_error_free(error);
}

static bool answer(int fd, const cs_decoder_reply *reply)
{
    return send(fd, reply, sizeof *reply, MSG_NOSIGNAL) == sizeof *reply;
}

static bool serve(int fd)
{
    cs_decoder_request request;
    int descriptors[2];
    if (!receive(fd, &request, sizeof request, descriptors))
        return false;
    cs_decoder_reply reply = {0};
    GError *error = NULL;
    memory m;
    bool mapped = memory_map(&m, &request, descriptors, &error);
    for (int i = 0; i < 2; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
    if (mapped) {
        decode(&request, &m, &reply, &error);
        memory_unmap(&m);
    }
    put_error(&reply, error);
    return answer(fd, &reply);
}

int cs_media_decoder_main(int fd)
{
    cs_decoder_setup setup;
    int none[2];
    if (fd < 3 || !receive(fd, &setup, sizeof setup, none))
        return 1;
    cs_decoder_reply ready = {0};
    GError *error = NULL;
    if (setup.kind != CS_DECODER_IMAGES && cs_av_load(&error))
        cs_av.av_max_alloc(setup.memory_bytes);
    if (!error)
        cs_decoder_sandbox_enter(fd, setup.memory_bytes, &error);
    put_error(&ready, error);
    if (!answer(fd, &ready) || ready.failed)
        return 1;
    while (serve(fd))
        ;
    return 0;
}
