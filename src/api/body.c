#include "api/body.h"

#include "base/json.h"

#include <string.h>

/* Shorter strings are left to the parser: cutting them out saves nothing. */
#define LIFT_MIN_BYTES 2048
/* Of what is left for the parser, which takes a second for 50 MB. */
#define MAX_PARSED_BYTES (32u << 20)
/* "data:image/png;base64," and room for parameters. */
#define DATA_PREFIX_MAX_BYTES 256

typedef struct {
    size_t offset, size_bytes; /* in the body */
} lifted_string;

static bool is_base64(const char *text, size_t n)
{
    static const guint8 in_alphabet[256] = {
        ['A' ... 'Z'] = 1, ['a' ... 'z'] = 1, ['0' ... '9'] = 1, ['+'] = 1,
        ['/'] = 1,         ['='] = 1,         ['-'] = 1,         ['_'] = 1,
    };
    guint8 all = 1;
    for (size_t i = 0; i < n; i++)
        all &= in_alphabet[(guint8)text[i]];
    return all;
}

static bool may_lift(const char *text, size_t n)
{
    if (n < LIFT_MIN_BYTES)
        return false;
    if (g_ascii_strncasecmp(text, "data:", 5) == 0) {
        const char *comma = memchr(text, ',', DATA_PREFIX_MAX_BYTES);
        if (!comma)
            return false;
        for (const char *p = text; p < comma; p++)
            if (*p < 0x20 || *p == 0x7f)
                return false;
        n -= (size_t)(comma + 1 - text);
        text = comma + 1;
    }
    return is_base64(text, n);
}

static bool is_key(const char *after, const char *end)
{
    while (after < end && strchr(" \t\r\n", *after) && *after)
        after++;
    return after < end && *after == ':';
}

/* The closing quote of the string that begins at text; NULL if there is none. *escapes: whether it
 * has a backslash. */
static const char *string_end(const char *text, const char *end, bool *escapes)
{
    *escapes = false;
    const char *from = text, *quote;
    while ((quote = memchr(from, '"', (size_t)(end - from)))) {
        const char *slash;
        while (from <= quote && (slash = memchr(from, '\\', (size_t)(quote - from)))) {
            *escapes = true;
            from = slash + 2;
        }
        if (from <= quote)
            return quote;
        /* The quote was escaped, and from stands behind it. */
    }
    return NULL;
}

/* The body with placeholders. */
static GString *lift(cs_body *body, const char *text, size_t size_bytes)
{
    GString *out = g_string_sized_new(MIN(size_bytes, 65536) + 64);
    const char *end = text + size_bytes;
    const char *copied = text;
    const char *at = text;
    while (at < end && (at = memchr(at, '"', (size_t)(end - at)))) {
        bool escapes;
        const char *first = at + 1;
        const char *quote = string_end(first, end, &escapes);
        if (!quote)
            break;
        if (!escapes && may_lift(first, (size_t)(quote - first)) && !is_key(quote + 1, end)) {
            lifted_string found = {(size_t)(first - text), (size_t)(quote - first)};
            g_string_append_len(out, copied, first - copied);
            g_string_append_printf(out, "%s%u", body->marker, body->lifted->len);
            g_array_append_val(body->lifted, found);
            copied = quote;
        }
        at = quote + 1;
    }
    g_string_append_len(out, copied, end - copied);
    return out;
}

bool cs_body_parse(cs_body *body, GBytes *bytes, GError **error)
{
    gsize size_bytes;
    const char *text = g_bytes_get_data(bytes, &size_bytes);
    if (size_bytes == 0)
        return cs_fail(error, CS_ERROR_INVALID,
                       "the request body is empty; expected a JSON object");
    *body = (cs_body){.lifted = g_array_new(FALSE, FALSE, sizeof(lifted_string)),
                      .bytes = g_bytes_ref(bytes)};
    g_snprintf(body->marker, sizeof(body->marker), "~%08x%08x:", g_random_int(), g_random_int());
    GString *reduced = lift(body, text, size_bytes);
    if (reduced->len <= MAX_PARSED_BYTES)
        body->root = cs_json_load(reduced->str, reduced->len, "request body", error);
    else
        cs_fail(error, CS_ERROR_TOO_LARGE,
                "the request body has %zu bytes beside media; at most %u are taken", reduced->len,
                MAX_PARSED_BYTES);
    g_string_free(reduced, TRUE);
    if (body->root && !json_is_object(body->root)) {
        cs_fail(error, CS_ERROR_INVALID, "request body: expected a JSON object");
        g_clear_pointer(&body->root, json_decref);
    }
    if (!body->root)
        cs_body_clear(body);
    return body->root != NULL;
}

void cs_body_clear(cs_body *body)
{
    g_clear_pointer(&body->root, json_decref);
    g_clear_pointer(&body->lifted, g_array_unref);
    g_clear_pointer(&body->bytes, g_bytes_unref);
}

const char *cs_body_string(const cs_body *body, const json_t *string, size_t *size_bytes)
{
    const char *text = json_string_value(string);
    *size_bytes = json_string_length(string);
    size_t marker_bytes = strlen(body->marker);
    if (*size_bytes <= marker_bytes || memcmp(text, body->marker, marker_bytes) != 0)
        return text;
    guint64 index = g_ascii_strtoull(text + marker_bytes, NULL, 10);
    if (index >= body->lifted->len)
        return text;
    const lifted_string *found = &g_array_index(body->lifted, lifted_string, index);
    *size_bytes = found->size_bytes;
    return (const char *)g_bytes_get_data(body->bytes, NULL) + found->offset;
}

json_t *cs_body_restore(const cs_body *body, json_t *value)
{
    if (json_is_string(value)) {
        size_t n;
        const char *text = cs_body_string(body, value, &n);
        return json_stringn(text, n);
    }
    if (json_is_array(value)) {
        json_t *copy = json_array();
        size_t i;
        json_t *item;
        json_array_foreach (value, i, item)
            json_array_append_new(copy, cs_body_restore(body, item));
        return copy;
    }
    if (json_is_object(value)) {
        json_t *copy = json_object();
        const char *key;
        json_t *item;
        json_object_foreach (value, key, item)
            json_object_set_new(copy, key, cs_body_restore(body, item));
        return copy;
    }
    return json_incref(value);
}
