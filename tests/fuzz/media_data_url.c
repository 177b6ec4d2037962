/* Data URLs and base64: what is taken decodes to what encodes to it again. */
#include "media/data_url.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    cs_data_url url;
    const char *text = (const char *)data;
    size_t n;
    if (cs_data_url_parse(text, size, &url, &error))
        text = url.payload, size = url.payload_length;
    g_clear_error(&error);
    g_autofree uint8_t *bytes = cs_base64_decode(text, size, 1 << 20, &n, &error);
    if (!bytes != !!error)
        __builtin_trap();
    if (!bytes)
        return 0;
    g_autofree char *again = g_malloc(cs_base64_encoded_length(n));
    cs_base64_encode(bytes, n, again);
    if (cs_base64_encoded_length(n) != size || memcmp(again, text, size) != 0)
        __builtin_trap();
    return 0;
}
