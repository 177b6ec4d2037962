/* Images: the decoders that run behind the sandbox, without it. */
#include "media/decoder/codecs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t out[3 << 18];
    cs_media_limits limits = CS_MEDIA_LIMITS_DEFAULT;
    limits.max_pixels = 1 << 18;
    cs_decode_job job = {data, size, out, sizeof out, &limits};
    g_autoptr(GError) error = NULL;
    uint32_t width = 0, height = 0;
    if (!cs_decode_image(&job, &width, &height, &error) != !!error)
        __builtin_trap();
    if (!error && (uint64_t)width * height * 3 > sizeof out)
        __builtin_trap();
    return 0;
}
