/* WebP by libwebp; of an animation its first frame. */
#include "media/decoder/codecs.h"

#include "base/error.h"

#include <string.h>

#include <webp/decode.h>
#include <webp/demux.h>

static bool truncated(const cs_decode_job *job, GError **error)
{
    return cs_fail(error, CS_ERROR_INVALID, "truncated or malformed WebP: %zu bytes",
                   job->in_bytes);
}

static void to_rgb(const uint8_t *rgba, size_t n_pixels, bool alpha, uint8_t *rgb)
{
    if (alpha) {
        cs_decode_over_white(rgba, n_pixels, rgb);
        return;
    }
    for (size_t i = 0; i < n_pixels; i++)
        memcpy(rgb + 3 * i, rgba + 4 * i, 3);
}

static bool decode_alpha(const cs_decode_job *job, uint32_t width, uint32_t height, GError **error)
{
    size_t n_pixels = (size_t)width * height;
    g_autofree uint8_t *rgba = g_try_malloc_n(n_pixels, 4);
    if (!rgba)
        return cs_fail(error, CS_ERROR_BUSY, "no memory for %u x %u pixels", width, height);
    if (!WebPDecodeRGBAInto(job->in, job->in_bytes, rgba, n_pixels * 4, (int)width * 4))
        return truncated(job, error);
    to_rgb(rgba, n_pixels, true, job->out);
    return true;
}

static bool decode_animation(const cs_decode_job *job, uint32_t width, uint32_t height, bool alpha,
                             GError **error)
{
    WebPData data = {job->in, job->in_bytes};
    WebPAnimDecoder *decoder = WebPAnimDecoderNew(&data, NULL);
    WebPAnimInfo info;
    uint8_t *rgba = NULL;
    int timestamp;
    bool good = decoder && WebPAnimDecoderGetInfo(decoder, &info) && info.canvas_width == width &&
                info.canvas_height == height && WebPAnimDecoderGetNext(decoder, &rgba, &timestamp);
    if (good)
        to_rgb(rgba, (size_t)width * height, alpha, job->out);
    WebPAnimDecoderDelete(decoder);
    return good || truncated(job, error);
}

bool cs_decode_webp(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error)
{
    WebPBitstreamFeatures f;
    if (WebPGetFeatures(job->in, job->in_bytes, &f) != VP8_STATUS_OK)
        return truncated(job, error);
    uint32_t w = (uint32_t)f.width, h = (uint32_t)f.height;
    if (!cs_decode_check_size(job, "WebP", w, h, error))
        return false;
    bool good;
    if (f.has_animation)
        good = decode_animation(job, w, h, f.has_alpha, error);
    else if (f.has_alpha)
        good = decode_alpha(job, w, h, error);
    else
        good = WebPDecodeRGBInto(job->in, job->in_bytes, job->out, job->out_bytes, (int)w * 3) ||
               truncated(job, error);
    if (good) {
        *width = w;
        *height = h;
    }
    return good;
}
