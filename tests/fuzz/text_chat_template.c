/* Chat templates: translated and run, whatever they are. */
#include "text/chat_template.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static cs_chat_request request;
    if (!request.messages) {
        request.messages = json_loads(
            "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"h\\u00e9\"},{\"type\":"
            "\"image\"}]},{\"role\":\"assistant\",\"content\":\"x y\",\"n\":[1,2.5,true,null]}]",
            0, NULL);
        request.tools =
            json_loads("[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]", 0, NULL);
        request.now_s = 1;
    }
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_chat_template) t =
        cs_chat_template_parse((const char *)data, size, "fuzz", &error);
    if (!t != !!error)
        __builtin_trap();
    if (!t)
        return 0;
    size_t size_bytes;
    g_autofree char *text = cs_chat_template_render(t, &request, &size_bytes, &error);
    if (!text != !!error)
        __builtin_trap();
    return 0;
}
