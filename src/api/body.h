/* A JSON request body, parsed without paying for the base64 in it.
 *
 * A JSON parser looks at every character of a string, decodes it and copies it, which costs
 * milliseconds for each megabyte of an image. So long strings that hold nothing but base64 (perhaps
 * after "data:...,") are cut out before parsing and a short placeholder is left; cs_body_string
 * gives the original back without copying it.
 */
#ifndef CS_API_BODY_H
#define CS_API_BODY_H

#include "base/error.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    json_t *root;  /* an object; strings in it may be placeholders: read them with cs_body_string */
    GBytes *bytes; /* the body as it came */
    GArray *lifted;  /* of lifted_string */
    char marker[24]; /* what placeholders begin with: drawn for each body, so that none can be
                        forged */
} cs_body;

/* Takes a reference to the bytes. On failure there is nothing to clear. */
bool cs_body_parse(cs_body *body, GBytes *bytes, GError **error);
void cs_body_clear(cs_body *body);

/* The characters of a JSON string of this body (UTF-8, not NUL-terminated), borrowed. */
const char *cs_body_string(const cs_body *body, const json_t *string, size_t *size_bytes);

/* A deep copy of a value with every placeholder replaced by its string; json_decref. */
json_t *cs_body_restore(const cs_body *body, json_t *value);

#endif
