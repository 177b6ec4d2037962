#include "runtime/text_stream.h"

#include <string.h>

/* The longest end of text that is a proper beginning of stop. */
static size_t overlap(const char *stop, const char *text, size_t size_bytes)
{
    size_t n = MIN(strlen(stop) - 1, size_bytes);
    while (n > 0 && memcmp(text + size_bytes - n, stop, n) != 0)
        n--;
    return n;
}

size_t cs_stop_scan(const char *const *stops, const char *text, size_t size_bytes, bool *stopped)
{
    size_t found = SIZE_MAX, held = 0;
    for (const char *const *stop = stops; stop && *stop; stop++) {
        const char *at = memmem(text, size_bytes, *stop, strlen(*stop));
        if (at)
            found = MIN(found, (size_t)(at - text));
        else
            held = MAX(held, overlap(*stop, text, size_bytes));
    }
    *stopped = found != SIZE_MAX;
    return *stopped ? found : size_bytes - held;
}

void cs_text_stream_init(cs_text_stream *stream, const cs_tokenizer *tokenizer,
                         const char *const *stops)
{
    *stream = (cs_text_stream){.stops = stops, .text = g_string_new(NULL)};
    cs_detokenizer_init(&stream->detokenizer, tokenizer);
}

void cs_text_stream_clear(cs_text_stream *stream)
{
    g_string_free(stream->text, TRUE);
}

bool cs_text_stream_push(cs_text_stream *stream, int32_t id, size_t *show_bytes)
{
    cs_detokenizer_push(&stream->detokenizer, id, stream->text);
    *show_bytes =
        cs_stop_scan(stream->stops, stream->text->str, stream->text->len, &stream->stopped);
    return !stream->stopped;
}

void cs_text_stream_end(cs_text_stream *stream, size_t *show_bytes)
{
    *show_bytes = 0;
    if (stream->stopped)
        return;
    cs_detokenizer_flush(&stream->detokenizer, stream->text);
    size_t safe =
        cs_stop_scan(stream->stops, stream->text->str, stream->text->len, &stream->stopped);
    *show_bytes = stream->stopped ? safe : stream->text->len;
}

void cs_text_stream_shown(cs_text_stream *stream, size_t show_bytes)
{
    g_string_erase(stream->text, 0, (gssize)show_bytes);
}
