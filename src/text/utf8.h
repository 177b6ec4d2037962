/* UTF-8 of text that comes from outside: checking, lossy repair, character classes. Internal to
 * src/text. */
#ifndef CS_TEXT_UTF8_H
#define CS_TEXT_UTF8_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    UTF8_VALID,
    UTF8_INVALID,
    UTF8_CUT /* the text ends inside a character that could still become valid */
} utf8_verdict;

/* The length of the character at p, or of the maximal invalid part there (Unicode 15, section 3.9,
 * "substitution of maximal subparts"; Rust's from_utf8_lossy does the same). size_bytes > 0. */
size_t utf8_measure(const uint8_t *p, size_t size_bytes, utf8_verdict *verdict);

/* How many leading bytes are valid UTF-8. */
size_t utf8_valid_prefix(const char *text, size_t size_bytes);

/* Appends text with every maximal invalid part replaced by U+FFFD. */
void utf8_append_lossy(GString *out, const char *text, size_t size_bytes);

/* The character at p, which is valid; *size_bytes is its length. */
gunichar utf8_decode(const char *p, size_t *size_bytes);

/* The start of the character that ends at p; begin < p. */
const char *utf8_previous(const char *begin, const char *p);

/* Unicode's White_Space. */
bool utf8_is_space(gunichar c);

/* \w of Unicode's regular expressions (UTS 18): alphabetic, marks, decimal digits, connectors. */
bool utf8_is_word(gunichar c);

#endif
