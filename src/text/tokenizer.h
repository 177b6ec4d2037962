/* Text to token ids and back, as Hugging Face's `tokenizers` does it from a tokenizer.json.
 *
 * Supported are BPE models of two styles: byte-level (GPT-2, Llama 3, Qwen, DeepSeek) and
 * SentencePiece's (Llama 2, Gemma, Mistral: characters with byte fallback). Anything in the file
 * that would change ids and is not supported is an error that names its JSON path. `truncation` and
 * `padding` are ignored, as transformers does.
 *
 * A cs_tokenizer is immutable; any number of threads may encode at once. A cs_detokenizer belongs
 * to one stream.
 *
 * Special tokens in text that a user wrote. The reference finds special tokens anywhere in the
 * rendered text, so a user who writes "<|im_end|>" ends the turn. That is CS_ENCODE_DEFAULT: ids
 * are equal to the reference's. A server passes every string of a conversation through
 * cs_tokenizer_guard (cs_chat_request.guard does) before the chat template is rendered and encodes
 * with CS_ENCODE_GUARDED; what the template itself writes still becomes special tokens.
 */
#ifndef CS_TEXT_TOKENIZER_H
#define CS_TEXT_TOKENIZER_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* More text than this in one call is refused. A single word this long needs 40 bytes of memory a
 * byte while it is merged. */
#define CS_TOKENIZER_MAX_TEXT_BYTES (16u << 20)

typedef struct cs_tokenizer cs_tokenizer;

typedef enum {
    CS_ENCODE_DEFAULT = 0,
    /* The ids that the file's post-processor puts around a text (BOS ...). Chat templates write
     * them out, so it is for plain prompts. */
    CS_ENCODE_ADD_SPECIAL = 1,
    /* Special tokens spelt in the text are ordinary text. */
    CS_ENCODE_LITERAL = 2,
    /* The text has guards of cs_tokenizer_guard; they are taken out. */
    CS_ENCODE_GUARDED = 4,
} cs_encode_flags;

/* Reads DIR/tokenizer.json. */
cs_tokenizer *cs_tokenizer_load(const char *dir, GError **error);
/* `source` names the text in errors. */
cs_tokenizer *cs_tokenizer_parse(const char *json, size_t size_bytes, const char *source,
                                 GError **error);
void cs_tokenizer_free(cs_tokenizer *t);

/* Appends int32_t ids. Invalid UTF-8 counts as U+FFFD, once per maximal invalid part. On failure
 * ids is as it was. */
bool cs_tokenizer_encode(const cs_tokenizer *t, const char *text, size_t size_bytes,
                         cs_encode_flags flags, GArray *ids, GError **error);

/* Appends the text with a guard (byte 0xFF, which no UTF-8 has) inside every spelt special token;
 * the text's own invalid bytes become U+FFFD. */
void cs_tokenizer_guard(const cs_tokenizer *t, const char *text, size_t size_bytes, GString *out);

/* One more than the largest id. The model's embedding may have more rows. */
int32_t cs_tokenizer_size(const cs_tokenizer *t);

/* The id of a token by its content as the file spells it, added tokens first; -1 if there is none.
 */
int32_t cs_tokenizer_id(const cs_tokenizer *t, const char *content);

/* The content as the file spells it, or NULL for an id that is not there. Borrowed. */
const char *cs_tokenizer_content(const cs_tokenizer *t, int32_t id);

/* What the token adds to decoded text, which may be part of a character; special tokens too. NULL
 * for an id that is not there. Borrowed. */
const uint8_t *cs_tokenizer_bytes(const cs_tokenizer *t, int32_t id, size_t *size_bytes);

bool cs_tokenizer_is_special(const cs_tokenizer *t, int32_t id);

/* Decoding of a stream. Each push appends whole characters only; bytes that can no longer become a
 * character give U+FFFD: once per maximal invalid part at byte level, once a byte with byte
 * fallback. Special tokens and unknown ids add nothing. */
typedef struct {
    const cs_tokenizer *tokenizer; /* borrowed */
    bool keep_special;             /* special tokens are spelt out; false after init */
    bool started;                  /* a token was pushed */
    bool byte_run;                 /* the last token was a byte of byte fallback */
    int strip_left;                /* leading characters still to be dropped */
    uint8_t pending[4];            /* the beginning of a character */
    int n_pending;
} cs_detokenizer;

void cs_detokenizer_init(cs_detokenizer *d, const cs_tokenizer *t);
void cs_detokenizer_push(cs_detokenizer *d, int32_t id, GString *out);
/* The stream has ended: an unfinished character gives U+FFFD. */
void cs_detokenizer_flush(cs_detokenizer *d, GString *out);

/* All at once, appended to out. As a stream, but for byte fallback as the reference has it: a run
 * of bytes that is not UTF-8 throughout gives U+FFFD for every byte, also of the characters in it,
 * which a stream has told by then. */
void cs_tokenizer_decode(const cs_tokenizer *t, const int32_t *ids, size_t n_ids, GString *out);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_tokenizer, cs_tokenizer_free)

#endif
