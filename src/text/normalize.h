/* Unicode normalisation that costs little where there is nothing to do. Internal to src/text. */
#ifndef CS_TEXT_NORMALIZE_H
#define CS_TEXT_NORMALIZE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

typedef enum { NORMALIZE_NFC, NORMALIZE_NFD, NORMALIZE_NFKC, NORMALIZE_NFKD } normalize_form;

/* Appends the normal form of valid UTF-8 to out. False: the text is already in this form, and out
 * is as it was. Thread-safe. */
bool normalize_append(GString *out, normalize_form form, const char *text, size_t size_bytes);

#endif
