/* What a checkpoint's tokenizer and chat template cost, on one core: loading, encoding and decoding
 * a text, rendering a short conversation. MB are of the text; the best of several rounds counts.
 *
 *     build/bench/text DIR TEXT_FILE     DIR has tokenizer.json and perhaps a chat template */
#include "base/os.h"
#include "text/chat_template.h"

#include <stdio.h>

enum { ROUNDS = 7, RENDERS = 2000 };

static double seconds_since(int64_t start_us)
{
    return (double)(cs_now_us() - start_us) / G_USEC_PER_SEC;
}

static bool measure_text(const cs_tokenizer *t, const char *text, size_t size_bytes, GError **error)
{
    double encode_s = G_MAXDOUBLE, decode_s = G_MAXDOUBLE, mb = (double)size_bytes / 1e6;
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g_autoptr(GString) out = g_string_new(NULL);
    for (int i = 0; i < ROUNDS; i++) {
        g_array_set_size(ids, 0);
        g_string_truncate(out, 0);
        int64_t start_us = cs_now_us();
        if (!cs_tokenizer_encode(t, text, size_bytes, CS_ENCODE_DEFAULT, ids, error))
            return false;
        encode_s = MIN(encode_s, seconds_since(start_us));
        start_us = cs_now_us();
        cs_tokenizer_decode(t, (const int32_t *)(void *)ids->data, ids->len, out);
        decode_s = MIN(decode_s, seconds_since(start_us));
    }
    printf("%.2f MB, %u tokens: encode %.1f MB/s, decode %.1f MB/s\n", mb, ids->len, mb / encode_s,
           mb / decode_s);
    return true;
}

static bool measure_render(cs_chat_template *t, GError **error)
{
    cs_chat_request request = {.add_generation_prompt = true};
    request.messages = json_pack("[{s:s,s:s},{s:s,s:s},{s:s,s:s},{s:s,s:s}]", "role", "system",
                                 "content", "You are a helpful assistant.", "role", "user",
                                 "content", "What is a dog?", "role", "assistant", "content",
                                 "An animal.", "role", "user", "content", "And a cat?");
    int64_t start_us = cs_now_us();
    bool ok = true;
    for (int i = 0; ok && i < RENDERS; i++) {
        size_t size_bytes;
        g_autofree char *text = cs_chat_template_render(t, &request, &size_bytes, error);
        ok = text != NULL;
    }
    if (ok)
        printf("render of four messages: %.1f us\n", seconds_since(start_us) * 1e6 / RENDERS);
    json_decref(request.messages);
    return ok;
}

static bool run(const char *dir, const char *path, GError **error)
{
    size_t size_bytes;
    g_autofree char *text = cs_file_read(path, CS_TOKENIZER_MAX_TEXT_BYTES, &size_bytes, error);
    int64_t start_us = cs_now_us();
    g_autoptr(cs_tokenizer) t = text ? cs_tokenizer_load(dir, error) : NULL;
    if (!t)
        return false;
    printf("tokenizer of %d ids loaded in %.0f ms\n", cs_tokenizer_size(t),
           seconds_since(start_us) * 1e3);
    if (!measure_text(t, text, size_bytes, error))
        return false;
    g_autoptr(cs_chat_template) chat = cs_chat_template_load(dir, NULL);
    return !chat || measure_render(chat, error);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    if (argc != 3) {
        fprintf(stderr, "text: expected DIR and TEXT_FILE\n");
        return 1;
    }
    if (!run(argv[1], argv[2], &error)) {
        fprintf(stderr, "text: %s\n", error->message);
        return 1;
    }
    return 0;
}
