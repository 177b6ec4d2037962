/* Errors: one convention for the whole program.
 *
 * A function that can fail returns bool (or a pointer, NULL on failure) and takes a GError ** as
 * its last argument. The message is a sentence that names the object, what was expected and what
 * was found. The code says what broke, and so who must act; it maps to an HTTP status.
 */
#ifndef CS_BASE_ERROR_H
#define CS_BASE_ERROR_H

#include <glib.h>
#include <stdbool.h>

#define CS_ERROR (cs_error_quark())

typedef enum {
    /* The caller's fault: repeating the request unchanged cannot help. */
    CS_ERROR_INVALID,      /* 400: malformed or out of range */
    CS_ERROR_UNAUTHORIZED, /* 401: no key, or a wrong one */
    CS_ERROR_FORBIDDEN,    /* 403: understood, and refused by policy */
    CS_ERROR_NOT_FOUND,    /* 404: no such model, file, route or object */
    CS_ERROR_CONFLICT,     /* 409: the object exists, or is in another state */
    CS_ERROR_TOO_LARGE,    /* 413: over a cap on bytes, pixels, frames, seconds or tokens */
    CS_ERROR_UNSUPPORTED,  /* 400: well formed, but a thing this program does not do */
    CS_ERROR_OVER_CONTEXT, /* 400: more tokens than the model's context takes */
    /* This request failed; running it again, here or elsewhere, is safe. */
    CS_ERROR_FAILED,    /* 500 */
    CS_ERROR_BUSY,      /* 503: a queue or budget is full */
    CS_ERROR_TIMEOUT,   /* 504 */
    CS_ERROR_CANCELLED, /* 499: the client left or asked to stop */
    /* Something larger than one request is gone. */
    CS_ERROR_SESSION_LOST,  /* 500: its KV cache or stream state */
    CS_ERROR_EXECUTOR_LOST, /* 503: drain it */
    CS_ERROR_NODE_LOST,     /* 503 */
} cs_error_code;

GQuark cs_error_quark(void);

/* The HTTP status for an error; 500 for errors of other domains. */
int cs_error_http_status(const GError *error);

/* The `type` member of an OpenAI error object for this error: "invalid_request_error",
 * "server_error" ... */
const char *cs_error_api_type(const GError *error);

/* g_set_error in our domain; returns false so that callers can write `return cs_fail(...)`. */
bool cs_fail(GError **error, cs_error_code code, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* The same from errno: the sentence is followed by ": strerror(err)". ENOENT gives
 * CS_ERROR_NOT_FOUND. */
bool cs_fail_errno(GError **error, int err, const char *format, ...) G_GNUC_PRINTF(3, 4);

#endif
