#include "text/utf8.h"

#include <string.h>

size_t utf8_measure(const uint8_t *p, size_t size_bytes, utf8_verdict *verdict)
{
    size_t length;
    uint8_t low = 0x80, high = 0xBF; /* of the second byte */
    *verdict = UTF8_VALID;
    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xC2 && p[0] <= 0xDF) {
        length = 2;
    } else if ((p[0] & 0xF0) == 0xE0) {
        length = 3;
        low = p[0] == 0xE0 ? 0xA0 : 0x80;  /* else overlong */
        high = p[0] == 0xED ? 0x9F : 0xBF; /* else a surrogate */
    } else if (p[0] >= 0xF0 && p[0] <= 0xF4) {
        length = 4;
        low = p[0] == 0xF0 ? 0x90 : 0x80;
        high = p[0] == 0xF4 ? 0x8F : 0xBF;
    } else {
        *verdict = UTF8_INVALID;
        return 1;
    }
    for (size_t i = 1; i < length; i++) {
        if (i == size_bytes) {
            *verdict = UTF8_CUT;
            return i;
        }
        if (p[i] < low || p[i] > high) {
            *verdict = UTF8_INVALID;
            return i;
        }
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

size_t utf8_valid_prefix(const char *text, size_t size_bytes)
{
    const uint8_t *p = (const uint8_t *)text;
    size_t at = 0;
    while (at < size_bytes) {
        uint64_t eight;
        if (size_bytes - at >= 8 &&
            (memcpy(&eight, p + at, 8), (eight & 0x8080808080808080u) == 0)) {
            at += 8;
            continue;
        }
        utf8_verdict verdict;
        size_t length = utf8_measure(p + at, size_bytes - at, &verdict);
        if (verdict != UTF8_VALID)
            break;
        at += length;
    }
    return at;
}

void utf8_append_lossy(GString *out, const char *text, size_t size_bytes)
{
    for (;;) {
        size_t valid = utf8_valid_prefix(text, size_bytes);
        g_string_append_len(out, text, (gssize)valid);
        text += valid;
        size_bytes -= valid;
        if (size_bytes == 0)
            return;
        utf8_verdict verdict;
        size_t skipped = utf8_measure((const uint8_t *)text, size_bytes, &verdict);
        g_string_append(out, "\xEF\xBF\xBD");
        text += skipped;
        size_bytes -= skipped;
    }
}

gunichar utf8_decode(const char *text, size_t *size_bytes)
{
    const uint8_t *p = (const uint8_t *)text;
    if (p[0] < 0x80) {
        *size_bytes = 1;
        return p[0];
    }
    if (p[0] < 0xE0) {
        *size_bytes = 2;
        return (gunichar)(p[0] & 0x1F) << 6 | (p[1] & 0x3F);
    }
    if (p[0] < 0xF0) {
        *size_bytes = 3;
        return (gunichar)(p[0] & 0x0F) << 12 | (gunichar)(p[1] & 0x3F) << 6 | (p[2] & 0x3F);
    }
    *size_bytes = 4;
    return (gunichar)(p[0] & 0x07) << 18 | (gunichar)(p[1] & 0x3F) << 12 |
           (gunichar)(p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}

const char *utf8_previous(const char *begin, const char *p)
{
    do
        p--;
    while (p > begin && ((uint8_t)*p & 0xC0) == 0x80);
    return p;
}

bool utf8_is_space(gunichar c)
{
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

bool utf8_is_word(gunichar c)
{
    if (c < 0x80)
        return g_ascii_isalnum((char)c) || c == '_';
    switch (g_unichar_type(c)) {
    case G_UNICODE_UPPERCASE_LETTER:
    case G_UNICODE_LOWERCASE_LETTER:
    case G_UNICODE_TITLECASE_LETTER:
    case G_UNICODE_MODIFIER_LETTER:
    case G_UNICODE_OTHER_LETTER:
    case G_UNICODE_LETTER_NUMBER:
    case G_UNICODE_SPACING_MARK:
    case G_UNICODE_ENCLOSING_MARK:
    case G_UNICODE_NON_SPACING_MARK:
    case G_UNICODE_DECIMAL_NUMBER:
    case G_UNICODE_CONNECT_PUNCTUATION:
        return true;
    default: /* joiners, and the enclosed letters that are alphabetic by decree */
        return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
               (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
               (c >= 0x1F170 && c <= 0x1F189);
    }
}
