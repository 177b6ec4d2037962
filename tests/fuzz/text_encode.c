/* Text to ids and back: nothing is lost but what is no UTF-8, whole or in guarded pieces. */
#include "text/tokenizer.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Byte level with every byte in the vocabulary, some merges and two added tokens. */
static cs_tokenizer *make(void)
{
    g_autoptr(GString) json = g_string_new("{\"model\":{\"type\":\"BPE\",\"vocab\":{");
    int other = 0x100;
    for (int byte = 0; byte < 256; byte++) {
        bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        g_string_append_printf(json, "\"\\u%04x\":%d,", itself ? byte : other++, byte);
    }
    g_string_append(
        json, "\"aa\":256,\"ab\":257,\"aaaa\":258,\"\\u0120a\":259},\"merges\":[\"a a\",\"a b\","
              "\"aa aa\",\"\\u0120 a\"]},\"added_tokens\":[{\"id\":300,\"content\":\"<end>\","
              "\"special\":true},{\"id\":301,\"content\":\"<en\",\"special\":true}],"
              "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
              "\"decoder\":{\"type\":\"ByteLevel\"}}");
    g_autoptr(GError) error = NULL;
    cs_tokenizer *t = cs_tokenizer_parse(json->str, json->len, "fuzz", &error);
    g_assert_no_error(error);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static cs_tokenizer *t;
    if (!t)
        t = make();
    g_autofree char *expected = g_utf8_make_valid((const char *)data, (gssize)size);
    g_autoptr(GString) guarded = g_string_new(NULL);
    cs_tokenizer_guard(t, (const char *)data, size, guarded);
    for (int round = 0; round < 3; round++) {
        static const cs_encode_flags flags[] = {CS_ENCODE_DEFAULT, CS_ENCODE_LITERAL,
                                                CS_ENCODE_GUARDED};
        g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
        g_autoptr(GString) out = g_string_new(NULL);
        const char *text = round == 2 ? guarded->str : (const char *)data;
        if (!cs_tokenizer_encode(t, text, round == 2 ? guarded->len : size, flags[round], ids,
                                 NULL))
            __builtin_trap();
        cs_detokenizer d;
        cs_detokenizer_init(&d, t);
        d.keep_special = true;
        for (guint i = 0; i < ids->len; i++) {
            int32_t id = g_array_index(ids, int32_t, i);
            if (round > 0 && cs_tokenizer_is_special(t, id))
                __builtin_trap(); /* a user's text became a special token */
            cs_detokenizer_push(&d, id, out);
        }
        cs_detokenizer_flush(&d, out);
        if (memchr(data, 0, size) != NULL)
            continue; /* GLib's checks stop there */
        if (!g_utf8_validate(out->str, (gssize)out->len, NULL))
            __builtin_trap();
        bool whole = g_utf8_validate((const char *)data, (gssize)size, NULL);
        if (whole && strcmp(out->str, expected) != 0)
            __builtin_trap();
    }
    return 0;
}
