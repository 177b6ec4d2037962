/* Base64 (RFC 4648, section 4) and data URLs (RFC 2397), read strictly: the standard alphabet,
 * padding required, no white space, no bits left over. Every rejection names the position. */
#ifndef CS_MEDIA_DATA_URL_H
#define CS_MEDIA_DATA_URL_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes into new memory (g_free), NULL with CS_ERROR_INVALID, or CS_ERROR_TOO_LARGE before
 * anything is allocated when the result would be larger than max_bytes. An empty text is invalid:
 * nothing that is sent in base64 here may be empty. */
uint8_t *cs_base64_decode(const char *text, size_t length, size_t max_bytes, size_t *size_bytes,
                          GError **error);

/* Bytes of the encoded form, without a NUL. */
size_t cs_base64_encoded_length(size_t size_bytes);
/* Writes exactly cs_base64_encoded_length(size_bytes) characters. */
void cs_base64_encode(const uint8_t *data, size_t size_bytes, char *text);

/* The parts of "data:TYPE;base64,PAYLOAD", borrowed from the text. */
typedef struct {
    const char *type; /* "image/png"; may be empty; parameters other than base64 are not kept */
    size_t type_length;
    const char *payload;
    size_t payload_length;
} cs_data_url;

/* True for any text that begins with "data:" in either case. */
bool cs_data_url_is(const char *text, size_t length);

/* CS_ERROR_INVALID when malformed, CS_ERROR_UNSUPPORTED when not in base64. The payload is not
 * looked at yet. */
bool cs_data_url_parse(const char *text, size_t length, cs_data_url *url, GError **error);

#endif
