#include "media/data_url.h"

#include "base/error.h"

#include <string.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Four tables, each with a character's six bits in their place of the 24-bit group; a character
 * outside the alphabet has BAD, which no good group reaches. */
#define BAD 0x80000000u
static uint32_t decode_table[4][256];

static void build_tables(void)
{
    for (int t = 0; t < 4; t++)
        for (int c = 0; c < 256; c++)
            decode_table[t][c] = BAD;
    for (uint32_t v = 0; v < 64; v++)
        for (int t = 0; t < 4; t++)
            decode_table[t][(uint8_t)alphabet[v]] = v << (18 - 6 * t);
}

static void ensure_tables(void)
{
    static gsize once;
    if (g_once_init_enter(&once)) {
        build_tables();
        g_once_init_leave(&once, 1);
    }
}

static uint32_t group_bits(const uint8_t *in)
{
    return decode_table[0][in[0]] | decode_table[1][in[1]] | decode_table[2][in[2]] |
           decode_table[3][in[3]];
}

static bool fail_at(const uint8_t *text, size_t at, size_t end, GError **error)
{
    while (at < end && decode_table[3][text[at]] != BAD)
        at++;
    if (text[at] == '=')
        return cs_fail(error, CS_ERROR_INVALID,
                       "base64: padding at character %zu, before the end of the text", at);
    if (g_ascii_isprint(text[at]))
        return cs_fail(error, CS_ERROR_INVALID,
                       "base64: character %zu is '%c', not of the alphabet", at, text[at]);
    return cs_fail(error, CS_ERROR_INVALID, "base64: byte 0x%02x at character %zu", text[at], at);
}

/* The last group holds 1, 2 or 3 bytes by its padding; bits beyond them must be zero. */
static bool decode_last(const uint8_t *text, size_t at, int padding, uint8_t *out, GError **error)
{
    uint8_t in[4] = {text[at], text[at + 1], padding == 2 ? 'A' : text[at + 2],
                     padding ? 'A' : text[at + 3]};
    uint32_t v = group_bits(in);
    if (v & BAD)
        return fail_at(text, at, at + 3, error);
    if ((padding == 2 && (v & 0xffff)) || (padding == 1 && (v & 0xff)))
        return cs_fail(error, CS_ERROR_INVALID, "base64: bits left over at character %zu",
                       at + 3 - (size_t)padding);
    for (int i = 0; i < 3 - padding; i++)
        out[i] = (uint8_t)(v >> (16 - 8 * i));
    return true;
}

uint8_t *cs_base64_decode(const char *text, size_t length, size_t max_bytes, size_t *size_bytes,
                          GError **error)
{
    const uint8_t *in = (const uint8_t *)text;
    if (length == 0 || length % 4) {
        cs_fail(error, CS_ERROR_INVALID,
                "base64: expected a positive multiple of 4 characters, found %zu", length);
        return NULL;
    }
    int padding = (in[length - 1] == '=') + (in[length - 1] == '=' && in[length - 2] == '=');
    size_t size = length / 4 * 3 - (size_t)padding;
    if (size > max_bytes) {
        cs_fail(error, CS_ERROR_TOO_LARGE, "base64: %zu bytes of data; the limit is %zu", size,
                max_bytes);
        return NULL;
    }
    g_autofree uint8_t *out = g_try_malloc(size);
    if (!out) {
        cs_fail(error, CS_ERROR_BUSY, "base64: no memory for %zu bytes", size);
        return NULL;
    }
    ensure_tables();
    size_t last = length - 4;
    uint8_t *o = out;
    for (size_t i = 0; i < last; i += 4, o += 3) {
        uint32_t v = group_bits(in + i);
        if (G_UNLIKELY(v & BAD)) {
            fail_at(in, i, i + 3, error);
            return NULL;
        }
        o[0] = (uint8_t)(v >> 16);
        o[1] = (uint8_t)(v >> 8);
        o[2] = (uint8_t)v;
    }
    if (!decode_last(in, last, padding, o, error))
        return NULL;
    *size_bytes = size;
    return g_steal_pointer(&out);
}

size_t cs_base64_encoded_length(size_t size_bytes)
{
    return (size_bytes + 2) / 3 * 4;
}

void cs_base64_encode(const uint8_t *data, size_t size, char *text)
{
    size_t i = 0;
    for (; i + 3 <= size; i += 3, text += 4) {
        uint32_t v = (uint32_t)data[i] << 16 | (uint32_t)data[i + 1] << 8 | data[i + 2];
        text[0] = alphabet[v >> 18];
        text[1] = alphabet[v >> 12 & 63];
        text[2] = alphabet[v >> 6 & 63];
        text[3] = alphabet[v & 63];
    }
    if (i == size)
        return;
    uint32_t v = (uint32_t)data[i] << 16 | (i + 1 < size ? (uint32_t)data[i + 1] << 8 : 0);
    text[0] = alphabet[v >> 18];
    text[1] = alphabet[v >> 12 & 63];
    text[2] = i + 1 < size ? alphabet[v >> 6 & 63] : '=';
    text[3] = '=';
}

bool cs_data_url_is(const char *text, size_t length)
{
    return length >= 5 && g_ascii_strncasecmp(text, "data:", 5) == 0;
}

bool cs_data_url_parse(const char *text, size_t length, cs_data_url *url, GError **error)
{
    if (!cs_data_url_is(text, length))
        return cs_fail(error, CS_ERROR_INVALID, "data URL: expected it to begin with \"data:\"");
    const char *start = text + 5;
    const char *comma = memchr(start, ',', length - 5);
    if (!comma)
        return cs_fail(error, CS_ERROR_INVALID, "data URL: no ',' between the type and the data");
    size_t head = (size_t)(comma - start);
    if (head < 7 || g_ascii_strncasecmp(comma - 7, ";base64", 7) != 0)
        return cs_fail(error, CS_ERROR_UNSUPPORTED,
                       "data URL: expected \";base64\" before the ','; other encodings are not "
                       "taken");
    const char *semicolon = memchr(start, ';', head);
    *url = (cs_data_url){
        .type = start,
        .type_length = (size_t)(semicolon - start),
        .payload = comma + 1,
        .payload_length = length - (size_t)(comma + 1 - text),
    };
    return true;
}
