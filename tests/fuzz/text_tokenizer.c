/* tokenizer.json: what is taken encodes any text to ids that are there, and decodes any ids to
 * UTF-8. */
#include "text/tokenizer.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_decode(const cs_tokenizer *t, const int32_t *ids, guint n)
{
    g_autoptr(GString) out = g_string_new(NULL);
    cs_tokenizer_decode(t, ids, n, out);
    if (!g_utf8_validate_len(out->str, out->len, NULL))
        __builtin_trap();
}

static void check_encode(const cs_tokenizer *t, const char *text)
{
    static const cs_encode_flags flags[] = {CS_ENCODE_DEFAULT, CS_ENCODE_ADD_SPECIAL,
                                            CS_ENCODE_LITERAL, CS_ENCODE_GUARDED};
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    for (size_t i = 0; i < G_N_ELEMENTS(flags); i++) {
        g_autoptr(GError) error = NULL;
        if (!cs_tokenizer_encode(t, text, strlen(text), flags[i], ids, &error) != !!error)
            __builtin_trap();
    }
    for (guint i = 0; i < ids->len; i++) {
        if (!cs_tokenizer_content(t, g_array_index(ids, int32_t, i)))
            __builtin_trap();
    }
    check_decode(t, (const int32_t *)(void *)ids->data, ids->len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const texts[] = {
        "", "ab <end>ab  \n 12", "h\xC3\xA9llo \xF0\x9F\x98\x80\xFF<|im_start|>user\n\xE4\xBD",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_tokenizer) t = cs_tokenizer_parse((const char *)data, size, "fuzz", &error);
    if (!t != !!error)
        __builtin_trap();
    if (!t)
        return 0;
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
        check_encode(t, texts[i]);
    int32_t ids[16];
    for (int i = 0; i < 16; i++)
        ids[i] = i * 3 - 2;
    check_decode(t, ids, 16);
    return 0;
}
