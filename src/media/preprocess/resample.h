/* Resizing of 8-bit RGB pictures as the reference does it: a horizontal and a vertical pass with
 * the cubic kernel a = -0.5, stretched when shrinking (antialiasing), in one of two arithmetics.
 *
 * - cs_resample_bicubic: weights in 22-bit fixed point, a picture of bytes between the passes; bit
 *   for bit Pillow's Image.resize. Like Pillow 13, the vertical pass comes first where the height
 *   shrinks by over twice the pixels that the width does; earlier releases never do that, and
 *   differ there by a grey level in some samples.
 * - cs_resample_bicubic_float: single precision, one rounding at the end, half to even:
 *   torchvision's resize of tensors with antialias=True, but for two samples in a million that fall
 *   on the other side of a tie.
 *
 * The two differ by a level in about one sample of six, and by some fourteen beside edges of black
 * and white, where the first pass overshoots and bytes cut it off.
 *
 * Portable code, and an AVX2 version of the same chosen at run time.
 */
#ifndef CS_MEDIA_PREPROCESS_RESAMPLE_H
#define CS_MEDIA_PREPROCESS_RESAMPLE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const uint8_t *rgb; /* [height][width][3], rows row_bytes apart */
    uint32_t width, height;
    size_t row_bytes;
} cs_resample_source;

/* out: [height][width][3], contiguous. CS_ERROR_BUSY when memory is short. Sizes are at least 1. */
bool cs_resample_bicubic(const cs_resample_source *source, uint8_t *out, uint32_t width,
                         uint32_t height, GError **error);
bool cs_resample_bicubic_float(const cs_resample_source *source, uint8_t *out, uint32_t width,
                               uint32_t height, GError **error);

/* For tests, before any other thread resizes: false confines it to the portable code. */
void cs_resample_allow_simd(bool allow);

#endif
