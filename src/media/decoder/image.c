#include "media/decoder/codecs.h"

#include "base/error.h"

bool cs_decode_check_size(const cs_decode_job *job, const char *format, uint64_t width,
                          uint64_t height, GError **error)
{
    if (width == 0 || height == 0)
        return cs_fail(error, CS_ERROR_INVALID, "%s of %llu x %llu pixels", format,
                       (unsigned long long)width, (unsigned long long)height);
    if (width > UINT32_MAX || height > UINT32_MAX || width * height > job->limits->max_pixels)
        return cs_fail(error, CS_ERROR_TOO_LARGE,
                       "%s of %llu x %llu pixels; at most %llu pixels are taken", format,
                       (unsigned long long)width, (unsigned long long)height,
                       (unsigned long long)job->limits->max_pixels);
    if (width * height > job->out_bytes / 3)
        return cs_fail(error, CS_ERROR_TOO_LARGE,
                       "%s of %llu x %llu pixels; at most %zu bytes of decoded data are taken",
                       format, (unsigned long long)width, (unsigned long long)height,
                       job->out_bytes);
    return true;
}

void cs_decode_over_white(const uint8_t *rgba, size_t n_pixels, uint8_t *rgb)
{
    for (size_t i = 0; i < n_pixels; i++, rgba += 4, rgb += 3)
        for (int c = 0; c < 3; c++) {
            uint32_t v = 255u * (255u - rgba[3]) + (uint32_t)rgba[c] * rgba[3] + 128;
            rgb[c] = (uint8_t)(((v >> 8) + v) >> 8);
        }
}

bool cs_decode_image(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error)
{
    cs_media_format format = cs_media_sniff(job->in, job->in_bytes);
    switch (format) {
    case CS_MEDIA_JPEG:
        return cs_decode_jpeg(job, width, height, error);
    case CS_MEDIA_PNG:
        return cs_decode_png(job, width, height, error);
    case CS_MEDIA_WEBP:
        return cs_decode_webp(job, width, height, error);
    case CS_MEDIA_GIF:
        return cs_decode_gif(job, width, height, error);
    default:
        return cs_fail(error, CS_ERROR_UNSUPPORTED,
                       "expected a JPEG, PNG, WebP or GIF image, found %s",
                       cs_media_format_name(format));
    }
}
