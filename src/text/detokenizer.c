#include "text/tokenizer_internal.h"
#include "text/utf8.h"

#include <string.h>

static bool is_known(const cs_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_ids && (t->flags[id] & TOKEN_KNOWN);
}

const char *cs_tokenizer_content(const cs_tokenizer *t, int32_t id)
{
    const uint8_t *data;
    if (!is_known(t, id))
        return NULL;
    token_strings_get(&t->contents, id, &data);
    return (const char *)data;
}

const uint8_t *cs_tokenizer_bytes(const cs_tokenizer *t, int32_t id, size_t *size_bytes)
{
    const uint8_t *data;
    *size_bytes = 0;
    if (!is_known(t, id))
        return NULL;
    *size_bytes = token_strings_get(&t->bytes, id, &data);
    return data;
}

bool cs_tokenizer_is_special(const cs_tokenizer *t, int32_t id)
{
    return is_known(t, id) && (t->flags[id] & TOKEN_SPECIAL);
}

void cs_detokenizer_init(cs_detokenizer *d, const cs_tokenizer *t)
{
    *d = (cs_detokenizer){.tokenizer = t, .strip_left = t->strip_left};
}

static void append_text(cs_detokenizer *d, GString *out, const char *text, size_t size_bytes)
{
    while (d->strip_left > 0 && size_bytes > 0) {
        if (*text != d->tokenizer->strip_content) {
            d->strip_left = 0;
            break;
        }
        d->strip_left--;
        text++;
        size_bytes--;
    }
    g_string_append_len(out, text, (gssize)size_bytes);
}

/* `n` bytes that are no UTF-8: one maximal part, or bytes of byte fallback, which count one each.
 */
static void append_replacement(cs_detokenizer *d, GString *out, size_t n)
{
    for (size_t i = 0; i < (d->tokenizer->byte_level ? 1 : n); i++)
        append_text(d, out, "\xEF\xBF\xBD", 3);
}

static void append_byte(cs_detokenizer *d, GString *out, uint8_t byte)
{
    d->pending[d->n_pending++] = byte;
    while (d->n_pending > 0) {
        utf8_verdict verdict;
        size_t n = utf8_measure(d->pending, (size_t)d->n_pending, &verdict);
        if (verdict == UTF8_CUT)
            return;
        if (verdict == UTF8_VALID)
            append_text(d, out, (const char *)d->pending, n);
        else
            append_replacement(d, out, n);
        d->n_pending -= (int)n;
        memmove(d->pending, d->pending + n, (size_t)d->n_pending);
    }
}

static bool adds_nothing(const cs_detokenizer *d, int32_t id)
{
    const cs_tokenizer *t = d->tokenizer;
    return !is_known(t, id) || (!d->keep_special && (t->flags[id] & TOKEN_SPECIAL));
}

void cs_detokenizer_push(cs_detokenizer *d, int32_t id, GString *out)
{
    const cs_tokenizer *t = d->tokenizer;
    if (adds_nothing(d, id))
        return;
    const uint8_t *bytes;
    size_t size_bytes = token_strings_get(&t->bytes, id, &bytes);
    /* Bytes of byte fallback only join with one another. */
    bool is_byte = t->flags[id] & TOKEN_BYTE;
    if (!t->byte_level && d->byte_run && !is_byte)
        cs_detokenizer_flush(d, out);
    d->byte_run = is_byte;
    for (size_t i = 0; i < size_bytes; i++) {
        if (t->drop_first_space && !d->started && bytes[i] == ' ')
            continue;
        append_byte(d, out, bytes[i]);
    }
    d->started = true;
}

void cs_detokenizer_flush(cs_detokenizer *d, GString *out)
{
    if (d->n_pending > 0)
        append_replacement(d, out, (size_t)d->n_pending);
    d->n_pending = 0;
}

/* The bytes of byte fallback from ids[at] on, tokens that add nothing left out; returns the id
 * behind them. */
static size_t byte_run(const cs_detokenizer *d, const int32_t *ids, size_t n_ids, size_t at,
                       GString *bytes)
{
    const cs_tokenizer *t = d->tokenizer;
    g_string_truncate(bytes, 0);
    for (; at < n_ids; at++) {
        if (adds_nothing(d, ids[at]))
            continue;
        if (!(t->flags[ids[at]] & TOKEN_BYTE))
            break;
        const uint8_t *byte;
        size_t n = token_strings_get(&t->bytes, ids[at], &byte);
        g_string_append_len(bytes, (const char *)byte, (gssize)n);
    }
    return at;
}

void cs_tokenizer_decode(const cs_tokenizer *t, const int32_t *ids, size_t n_ids, GString *out)
{
    cs_detokenizer d;
    cs_detokenizer_init(&d, t);
    g_autoptr(GString) bytes = g_string_new(NULL);
    for (size_t i = 0; i < n_ids;) {
        size_t end = t->byte_level ? i : byte_run(&d, ids, n_ids, i, bytes);
        if (end == i) {
            cs_detokenizer_push(&d, ids[end++], out);
        } else if (bytes->len > 0) {
            if (utf8_valid_prefix(bytes->str, bytes->len) < bytes->len)
                append_replacement(&d, out, bytes->len);
            else
                append_text(&d, out, bytes->str, bytes->len);
            d.started = true;
        }
        i = end;
    }
    cs_detokenizer_flush(&d, out);
}
