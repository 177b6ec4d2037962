/* Sounds and videos: our side of FFmpeg (FFmpeg itself is not instrumented). */
#include "media/decoder/av.h"
#include "media/preprocess/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static cs_vision_config vision;

static void prepare(void)
{
    json_t *empty = json_object();
    cs_json_reader reader;
    if (!cs_av_load(NULL))
        __builtin_trap();
    cs_json_reader_init(&reader, empty, "defaults");
    cs_vision_config_read(&vision, &reader);
    cs_json_reader_finish(&reader, NULL);
    json_decref(empty);
    vision.video.min_pixels = 28 * 28; /* small frames, and few of them */
    vision.video.max_pixels = 56 * 56;
    vision.video.max_frames = 4;
    vision.video.processor.min_pixels = 28 * 28;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t out[4 << 20];
    if (!vision.patch_size)
        prepare();
    cs_media_limits limits = CS_MEDIA_LIMITS_DEFAULT;
    limits.max_pixels = 1 << 18;
    limits.max_seconds = 10;
    limits.max_frames = 100;
    cs_decode_job job = {data, size, out, sizeof out, &limits};
    cs_media_format format = cs_media_sniff(data, size);
    g_autoptr(GError) audio_error = NULL;
    g_autoptr(GError) video_error = NULL;
    cs_decoded_audio audio;
    cs_decoded_video video;
    if (!cs_decode_audio(&job, format, 16000, &audio, &audio_error) != !!audio_error)
        __builtin_trap();
    if (!audio_error && (audio.n_samples == 0 || audio.n_samples * sizeof(float) > sizeof out))
        __builtin_trap();
    if (format != CS_MEDIA_MP4 && format != CS_MEDIA_WEBM)
        return 0;
    if (!cs_decode_video(&job, format, &vision.video, &video, &video_error) != !!video_error)
        __builtin_trap();
    return 0;
}
