/* From tokens to the text that may be shown: whole characters, and nothing of a stop string.
 *
 * Text that could be the beginning of a stop string is held back until it is known not to be one,
 * so a match across any number of tokens is cut off clean. One stream an answer; it belongs to one
 * thread.
 */
#ifndef CS_RUNTIME_TEXT_STREAM_H
#define CS_RUNTIME_TEXT_STREAM_H

#include "text/tokenizer.h"

typedef struct {
    cs_detokenizer detokenizer;
    const char *const *stops; /* borrowed, NULL-terminated; or NULL */
    GString *text;            /* decoded and not yet shown */
    bool stopped;             /* a stop string came */
} cs_text_stream;

void cs_text_stream_init(cs_text_stream *stream, const cs_tokenizer *tokenizer,
                         const char *const *stops);
void cs_text_stream_clear(cs_text_stream *stream);

/* Takes a token. The text that may be shown now is the first *show_bytes of stream->text; call
 * cs_text_stream_shown before the next push. False when a stop string came: the answer ends with
 * that text. */
bool cs_text_stream_push(cs_text_stream *stream, int32_t id, size_t *show_bytes);
/* The answer has ended: what was held back may be shown, unless a stop string came with the last
 * character. */
void cs_text_stream_end(cs_text_stream *stream, size_t *show_bytes);
void cs_text_stream_shown(cs_text_stream *stream, size_t show_bytes);

/* How much of text may be shown: up to the first stop string (*stopped), or up to where one could
 * begin. */
size_t cs_stop_scan(const char *const *stops, const char *text, size_t size_bytes, bool *stopped);

#endif
