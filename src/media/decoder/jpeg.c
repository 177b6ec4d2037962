/* JPEG by libjpeg-turbo with its defaults (accurate integer DCT, smooth chroma upsampling), which
 * are Pillow's too. CMYK goes to RGB by Pillow's arithmetic. */
#include "media/decoder/codecs.h"

#include "base/error.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf out;
    char message[JMSG_LENGTH_MAX];
    bool truncated;
} jpeg_errors;

static void on_error(j_common_ptr cinfo)
{
    jpeg_errors *e = (jpeg_errors *)cinfo->err;
    e->base.format_message(cinfo, e->message);
    longjmp(e->out, 1);
}

/* Running out of data is a warning to the library, which would go on with grey. */
static void on_message(j_common_ptr cinfo, int level)
{
    jpeg_errors *e = (jpeg_errors *)cinfo->err;
    if (level < 0 && e->base.msg_code == JWRN_JPEG_EOF) {
        e->truncated = true;
        longjmp(e->out, 1);
    }
}

static uint8_t multiply_255(uint32_t a, uint32_t b)
{
    uint32_t v = a * b + 128;
    return (uint8_t)(((v >> 8) + v) >> 8);
}

/* Files by Adobe programs hold the complements. */
static void cmyk_row(uint8_t *row, size_t n, bool inverted, uint8_t *rgb)
{
    for (size_t i = 0; i < n; i++, row += 4, rgb += 3) {
        uint32_t white = inverted ? row[3] : 255u - row[3];
        for (int c = 0; c < 3; c++) {
            uint32_t ink = inverted ? 255u - row[c] : row[c];
            rgb[c] = (uint8_t)(white - multiply_255(ink, white));
        }
    }
}

static bool read_header(const cs_decode_job *job, j_decompress_ptr cinfo, GError **error)
{
    jpeg_mem_src(cinfo, job->in, job->in_bytes);
    jpeg_read_header(cinfo, TRUE);
    int n = cinfo->num_components;
    if (n != 1 && n != 3 && n != 4)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "JPEG of %d components", n);
    cinfo->out_color_space = n == 4 ? JCS_CMYK : JCS_RGB;
    return cs_decode_check_size(job, "JPEG", cinfo->image_width, cinfo->image_height, error);
}

static void read_rows(const cs_decode_job *job, j_decompress_ptr cinfo)
{
    size_t width = cinfo->image_width;
    JSAMPARRAY inks = NULL;
    if (cinfo->out_color_space == JCS_CMYK)
        inks = cinfo->mem->alloc_sarray((j_common_ptr)cinfo, JPOOL_IMAGE, (JDIMENSION)width * 4, 1);
    jpeg_start_decompress(cinfo);
    while (cinfo->output_scanline < cinfo->output_height) {
        uint8_t *row = job->out + cinfo->output_scanline * width * 3;
        jpeg_read_scanlines(cinfo, inks ? inks : &row, 1);
        if (inks)
            cmyk_row(inks[0], width, cinfo->saw_Adobe_marker, row);
    }
}

bool cs_decode_jpeg(const cs_decode_job *job, uint32_t *width, uint32_t *height, GError **error)
{
    struct jpeg_decompress_struct cinfo;
    jpeg_errors errors = {.truncated = false};
    cinfo.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = on_error;
    errors.base.emit_message = on_message;
    if (setjmp(errors.out)) {
        jpeg_destroy_decompress(&cinfo);
        if (errors.truncated)
            return cs_fail(error, CS_ERROR_INVALID, "truncated JPEG: %zu bytes", job->in_bytes);
        return cs_fail(error, CS_ERROR_INVALID, "malformed JPEG: %s", errors.message);
    }
    jpeg_create_decompress(&cinfo);
    if (!read_header(job, &cinfo, error)) {
        jpeg_destroy_decompress(&cinfo);
        return false;
    }
    read_rows(job, &cinfo);
    *width = cinfo.image_width;
    *height = cinfo.image_height;
    jpeg_destroy_decompress(&cinfo);
    return true;
}
