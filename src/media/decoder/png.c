/* PNG by libpng. Like Pillow: transparency of palette and keyed images is dropped, grey with alpha
 * loses its alpha, RGBA is laid on white, 16-bit colour keeps its high bytes, 16-bit grey is cut
 * off at 255. */
#include "media/decoder/codecs.h"

#include "base/error.h"

#include <setjmp.h>
#include <string.h>

#include <png.h>

enum { CHUNK_CACHE = 1000, CHUNK_BYTES = 8 << 20 };

typedef struct {
    const cs_decode_job *job;
    size_t at;
    bool truncated;
    char message[200];
    uint8_t *pixels; /* a row, or the picture when it is interlaced */
} png_state;

static void on_error(png_structp png, png_const_charp message)
{
    png_state *s = png_get_error_ptr(png);
    g_strlcpy(s->message, message, sizeof s->message);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message)
{
}

static void on_read(png_structp png, png_bytep out, size_t n)
{
    png_state *s = png_get_io_ptr(png);
    if (n > s->job->in_bytes - s->at) {
        s->truncated = true;
        png_error(png, "out of data");
    }
    memcpy(out, s->job->in + s->at, n);
    s->at += n;
}

/* One row as libpng hands it over to RGB. */
static void convert_row(const uint8_t *in, size_t width, int color_type, bool grey16, uint8_t *rgb)
{
    if (grey16) {
        for (size_t i = 0; i < width; i++)
            memset(rgb + 3 * i, in[2 * i] ? 255 : in[2 * i + 1], 3);
    } else if (color_type == PNG_COLOR_TYPE_RGB_ALPHA) {
        cs_decode_over_white(in, width, rgb);
    } else if (color_type == PNG_COLOR_TYPE_GRAY_ALPHA) {
        for (size_t i = 0; i < width; i++)
            memset(rgb + 3 * i, in[2 * i], 3);
    } else if (color_type == PNG_COLOR_TYPE_GRAY) {
        for (size_t i = 0; i < width; i++)
            memset(rgb + 3 * i, in[i], 3);
    } else {
        memcpy(rgb, in, width * 3);
    }
}

static void read_pixels(png_structp png, png_infop info, png_state *s, size_t width, size_t height)
{
    int color_type = png_get_color_type(png, info);
    bool grey16 = color_type == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, info) == 16;
    if (!grey16)
        png_set_strip_16(png);
    if (color_type == PNG_COLOR_TYPE_PALETTE) {
        png_set_palette_to_rgb(png); /* would add the alpha of a tRNS chunk, too */
        png_set_strip_alpha(png);
    }
    if (color_type == PNG_COLOR_TYPE_GRAY)
        png_set_expand_gray_1_2_4_to_8(png);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    size_t row_bytes = png_get_rowbytes(png, info);
    s->pixels = g_try_malloc_n(passes > 1 ? height : 1, row_bytes);
    if (!s->pixels)
        png_error(png, "no memory");
    for (int pass = 0; pass < passes; pass++)
        for (size_t y = 0; y < height; y++) {
            uint8_t *row = s->pixels + (passes > 1 ? y * row_bytes : 0);
            png_read_row(png, row, NULL);
            if (pass == passes - 1)
                convert_row(row, width, color_type, grey16, s->job->out + y * width * 3);
        }
}

/* Between setjmp and longjmp only *s changes. */
static bool decode(png_structp png, png_infop info, png_state *s, uint32_t *width, uint32_t *height,
                   GError **error)
{
    if (setjmp(png_jmpbuf(png)))
        return s->truncated
                   ? cs_fail(error, CS_ERROR_INVALID, "truncated PNG: %zu bytes", s->job->in_bytes)
                   : cs_fail(error, CS_ERROR_INVALID, "malformed PNG: %s", s->message);
    png_set_read_fn(png, s, on_read);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_chunk_cache_max(png, CHUNK_CACHE);
    png_set_chunk_malloc_max(png, CHUNK_BYTES);
    png_read_info(png, info);
    uint32_t w = png_get_image_width(png, info), h = png_get_image_height(png, info);
    if (!cs_decode_check_size(s->job, "PNG", w, h, error))
        return false;
    read_pixels(png, info, s, w, h);
    *width = w;
    *height = h;
    return true;
}

bool cs_decode_png(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error)
{
    png_state s = {.job = job};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    bool good = info ? decode(png, info, &s, width, height, error)
                     : cs_fail(error, CS_ERROR_BUSY, "no memory for a PNG");
    png_destroy_read_struct(&png, &info, NULL);
    g_free(s.pixels);
    return good;
}
