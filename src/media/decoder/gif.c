/* GIF (87a, 89a): the first frame, as Pillow shows it.
 *
 *     header | screen: width height flags | [global palette] | blocks ... | 0x3b
 *     block: '!' label sub-blocks | ',' x y width height flags [local palette] code-size sub-blocks
 *
 * Pixels outside the first frame have the transparent colour's palette entry, or entry 0; that
 * entry's colour is shown, since the recipe drops a palette's transparency. Without any palette the
 * index is the grey level.
 */
#include "media/decoder/codecs.h"

#include "base/error.h"

#include <string.h>

enum { MAX_CODE_BITS = 12, MAX_CODES = 1 << MAX_CODE_BITS };

typedef struct {
    const cs_decode_job *job;
    size_t at;
    uint32_t width, height;
    int transparent; /* index, or -1 */
    uint8_t palette[256][3];
} gif;

static bool truncated(const gif *g, GError **error)
{
    return cs_fail(error, CS_ERROR_INVALID, "truncated GIF: %zu bytes", g->job->in_bytes);
}

/* The next n bytes, or NULL. */
static const uint8_t *take(gif *g, size_t n)
{
    if (n > g->job->in_bytes - g->at)
        return NULL;
    const uint8_t *p = g->job->in + g->at;
    g->at += n;
    return p;
}

static uint32_t le16(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8;
}

static bool read_palette(gif *g, uint8_t flags, GError **error)
{
    if (!(flags & 0x80))
        return true;
    size_t n = (size_t)2 << (flags & 7);
    const uint8_t *p = take(g, n * 3);
    if (!p)
        return truncated(g, error);
    memcpy(g->palette, p, n * 3);
    return true;
}

static bool skip_blocks(gif *g, GError **error)
{
    for (;;) {
        const uint8_t *size = take(g, 1);
        if (!size || !take(g, *size))
            return truncated(g, error);
        if (*size == 0)
            return true;
    }
}

/* A graphic control extension tells the transparent index; others are passed over. */
static bool read_extension(gif *g, GError **error)
{
    const uint8_t *label = take(g, 1);
    if (!label)
        return truncated(g, error);
    const uint8_t *block = g->job->in + g->at;
    if (*label == 0xf9 && g->job->in_bytes - g->at >= 5 && block[0] == 4)
        g->transparent = block[1] & 1 ? block[4] : -1;
    return skip_blocks(g, error);
}

/* ---- LZW: codes of growing width in sub-blocks, least significant bit first ---- */

typedef struct {
    gif *g;
    const uint8_t *block;
    uint32_t block_left;
    uint32_t bits, n_bits;
    uint16_t prefix[MAX_CODES];
    uint8_t suffix[MAX_CODES];
    uint8_t stack[MAX_CODES];
} lzw;

static int next_code(lzw *z, uint32_t width)
{
    while (z->n_bits < width) {
        if (z->block_left == 0) {
            const uint8_t *size = take(z->g, 1);
            if (!size || *size == 0 || !(z->block = take(z->g, *size)))
                return -1;
            z->block_left = *size;
        }
        z->bits |= (uint32_t)*z->block++ << z->n_bits;
        z->n_bits += 8;
        z->block_left--;
    }
    int code = (int)(z->bits & ((1u << width) - 1));
    z->bits >>= width;
    z->n_bits -= width;
    return code;
}

/* Fills n indices. A stream that ends early or names a code that is not there is an error. */
static bool unpack(lzw *z, uint32_t code_size, uint8_t *out, size_t n, GError **error)
{
    uint32_t clear = 1u << code_size, next = clear + 2, width = code_size + 1;
    int previous = -1;
    uint8_t first = 0;
    for (size_t done = 0; done < n;) {
        int code = next_code(z, width);
        if (code < 0)
            return truncated(z->g, error);
        if ((uint32_t)code == clear) {
            next = clear + 2;
            width = code_size + 1;
            previous = -1;
            continue;
        }
        if ((uint32_t)code == clear + 1 || (uint32_t)code > next ||
            ((uint32_t)code == next && previous < 0))
            return cs_fail(error, CS_ERROR_INVALID,
                           "malformed GIF: code %d after %zu of %zu pixels", code, done, n);
        uint32_t depth = 0, c = (uint32_t)code;
        if (c == next) {
            z->stack[depth++] = first;
            c = (uint32_t)previous;
        }
        for (; c >= clear; c = z->prefix[c])
            z->stack[depth++] = z->suffix[c];
        z->stack[depth++] = first = (uint8_t)c;
        while (depth && done < n)
            out[done++] = z->stack[--depth];
        if (previous >= 0 && next < MAX_CODES) {
            z->prefix[next] = (uint16_t)previous;
            z->suffix[next++] = first;
            if (next == 1u << width && width < MAX_CODE_BITS)
                width++;
        }
        previous = code;
    }
    return true;
}

/* The row of the frame that is stored at position i of an interlaced image. */
static uint32_t interlaced_row(uint32_t i, uint32_t height)
{
    static const uint32_t first[] = {0, 4, 2, 1}, step[] = {8, 8, 4, 2};
    for (int pass = 0; pass < 4; pass++) {
        uint32_t rows = first[pass] < height ? (height - first[pass] - 1) / step[pass] + 1 : 0;
        if (i < rows)
            return first[pass] + i * step[pass];
        i -= rows;
    }
    return height - 1;
}

static bool read_frame(gif *g, GError **error)
{
    const uint8_t *d = take(g, 9);
    if (!d)
        return truncated(g, error);
    uint32_t x = le16(d), y = le16(d + 2), w = le16(d + 4), h = le16(d + 6);
    uint8_t flags = d[8];
    const uint8_t *code_size = NULL;
    if (!read_palette(g, flags, error))
        return false;
    if (!(code_size = take(g, 1)))
        return truncated(g, error);
    if (*code_size < 1 || *code_size > 8)
        return cs_fail(error, CS_ERROR_INVALID, "malformed GIF: codes of %u bits", *code_size);
    g->width = MAX(g->width, x + w);
    g->height = MAX(g->height, y + h);
    if (w == 0 || h == 0)
        return cs_fail(error, CS_ERROR_INVALID, "malformed GIF: a frame of %u x %u pixels", w, h);
    if (!cs_decode_check_size(g->job, "GIF", g->width, g->height, error))
        return false;

    g_autofree lzw *z = g_new0(lzw, 1);
    g_autofree uint8_t *indices = g_try_malloc_n(w, h);
    if (!indices)
        return cs_fail(error, CS_ERROR_BUSY, "no memory for %u x %u pixels", w, h);
    z->g = g;
    if (!unpack(z, *code_size, indices, (size_t)w * h, error))
        return false;
    const uint8_t *around = g->palette[g->transparent >= 0 ? g->transparent : 0];
    for (size_t i = 0; i < (size_t)g->width * g->height; i++)
        memcpy(g->job->out + 3 * i, around, 3);
    for (uint32_t i = 0; i < h; i++) {
        uint32_t row = y + (flags & 0x40 ? interlaced_row(i, h) : i);
        uint8_t *out = g->job->out + ((size_t)row * g->width + x) * 3;
        for (uint32_t j = 0; j < w; j++)
            memcpy(out + 3 * j, g->palette[indices[(size_t)i * w + j]], 3);
    }
    return true;
}

bool cs_decode_gif(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error)
{
    gif g = {.job = job, .at = 6, .transparent = -1};
    for (int i = 0; i < 256; i++)
        memset(g.palette[i], i, 3);
    const uint8_t *screen = take(&g, 7);
    if (!screen)
        return truncated(&g, error);
    g.width = le16(screen);
    g.height = le16(screen + 2);
    if (!read_palette(&g, screen[4], error))
        return false;
    for (;;) {
        const uint8_t *kind = take(&g, 1);
        if (!kind)
            return truncated(&g, error);
        if (*kind == ',')
            break;
        if (*kind == ';')
            return cs_fail(error, CS_ERROR_INVALID, "malformed GIF: no image");
        if (*kind == '!' && !read_extension(&g, error))
            return false;
    }
    if (!read_frame(&g, error))
        return false;
    *width = g.width;
    *height = g.height;
    return true;
}
