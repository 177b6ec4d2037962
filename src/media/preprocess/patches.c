#include "media/preprocess/patches.h"

#include "base/error.h"
#include "media/preprocess/resample.h"

#include <string.h>

typedef struct {
    const cs_vision_config *config;
    float levels[3][256]; /* the normalised value of each grey level */
    uint32_t width;
} cutter;

static void cutter_init(cutter *c, const cs_vision_config *config, uint32_t width)
{
    c->config = config;
    c->width = width;
    for (int channel = 0; channel < 3; channel++)
        for (int v = 0; v < 256; v++)
            c->levels[channel][v] = (float)((v * config->rescale_factor - config->mean[channel]) /
                                            config->std[channel]);
}

/* Writes the patch with corner (x, y) of a frame into temporal position t of a row. */
static void cut_patch(const cutter *c, const uint8_t *frame, uint32_t y, uint32_t x, uint32_t t,
                      float *row)
{
    uint32_t p = c->config->patch_size;
    size_t plane = (size_t)p * p, channel = plane * c->config->temporal_patch_size;
    float *out = row + t * plane;
    for (uint32_t i = 0; i < p; i++) {
        const uint8_t *in = frame + ((size_t)(y + i) * c->width + x) * 3;
        for (uint32_t j = 0; j < p; j++, in += 3, out++) {
            out[0] = c->levels[0][in[0]];
            out[channel] = c->levels[1][in[1]];
            out[2 * channel] = c->levels[2][in[2]];
        }
    }
}

/* A second temporal position that shows the same frame is a copy of the first. */
static void repeat_patch(const cutter *c, uint32_t t, float *row)
{
    size_t plane = (size_t)c->config->patch_size * c->config->patch_size;
    for (int channel = 0; channel < 3; channel++, row += plane * c->config->temporal_patch_size)
        memcpy(row + t * plane, row, plane * sizeof(float));
}

/* One group of temporal_patch_size frames; frames[t] may repeat. */
static float *cut_group(const cutter *c, const uint8_t *const *frames, const cs_patches *patches,
                        float *row)
{
    uint32_t p = c->config->patch_size, merge = c->config->merge_size;
    for (uint32_t by = 0; by < patches->grid_h; by += merge)
        for (uint32_t bx = 0; bx < patches->grid_w; bx += merge)
            for (uint32_t i = 0; i < merge * merge; i++, row += patches->patch_dim) {
                uint32_t y = (by + i / merge) * p, x = (bx + i % merge) * p;
                cut_patch(c, frames[0], y, x, 0, row);
                for (uint32_t t = 1; t < c->config->temporal_patch_size; t++)
                    if (frames[t] == frames[0])
                        repeat_patch(c, t, row);
                    else
                        cut_patch(c, frames[t], y, x, t, row);
            }
    return row;
}

static bool cut_frames(const cs_vision_config *config, const uint8_t *rgb, uint32_t n_frames,
                       uint32_t height, uint32_t width, cs_patches *patches, GError **error)
{
    uint32_t p = config->patch_size, group = config->temporal_patch_size;
    cs_patches made = {
        .patch_dim = (size_t)3 * group * p * p,
        .grid_t = (n_frames + group - 1) / group,
        .grid_h = height / p,
        .grid_w = width / p,
        .seconds_per_grid = group / config->processor_fps,
    };
    made.n_patches = (size_t)made.grid_t * made.grid_h * made.grid_w;
    made.data = g_try_malloc_n(made.n_patches, made.patch_dim * sizeof(float));
    if (!made.data)
        return cs_fail(error, CS_ERROR_BUSY, "no memory for %zu patches of %zu values",
                       made.n_patches, made.patch_dim);
    g_autofree cutter *c = g_new(cutter, 1);
    g_autofree const uint8_t **frames = g_new(const uint8_t *, group);
    cutter_init(c, config, width);
    float *row = made.data;
    for (uint32_t t = 0; t < made.grid_t; t++) {
        for (uint32_t i = 0; i < group; i++)
            frames[i] = rgb + (size_t)MIN(t * group + i, n_frames - 1) * height * width * 3;
        row = cut_group(c, frames, &made, row);
    }
    *patches = made;
    return true;
}

/* Resizes *rgb (height x width) when a rule asks for another size; the new picture is kept alive
 * in *owner. */
static bool resize_to(const cs_resize_rule *rule, const uint8_t **rgb, uint32_t *height,
                      uint32_t *width, uint8_t **owner, GError **error)
{
    cs_resample_source source = {*rgb, *width, *height, (size_t)*width * 3};
    if (!cs_resize_rule_apply(rule, height, width, error))
        return false;
    if (*height == source.height && *width == source.width)
        return true;
    uint8_t *resized = g_try_malloc_n((size_t)*width * 3, *height);
    if (!resized)
        return cs_fail(error, CS_ERROR_BUSY, "no memory for %u x %u pixels", *width, *height);
    bool good = cs_resample_bicubic(&source, resized, *width, *height, error);
    g_free(*owner);
    *rgb = *owner = resized;
    return good;
}

bool cs_patches_from_image(const cs_vision_config *config, const cs_image *image,
                           cs_patches *patches, GError **error)
{
    cs_resize_rule processor = {CS_RESIZE_PROCESSOR, config->patch_size * config->merge_size,
                                config->min_pixels, config->max_pixels};
    const uint8_t *rgb = image->rgb;
    uint32_t height = image->height, width = image->width;
    g_autofree uint8_t *owner = NULL;
    return (!config->image_fetch.factor ||
            resize_to(&config->image_fetch, &rgb, &height, &width, &owner, error)) &&
           resize_to(&processor, &rgb, &height, &width, &owner, error) &&
           cut_frames(config, rgb, 1, height, width, patches, error);
}

bool cs_patches_from_video(const cs_vision_config *config, const cs_video *video,
                           cs_patches *patches, GError **error)
{
    uint32_t factor = config->patch_size * config->merge_size;
    if (!video->n_frames || !video->width || !video->height || video->width % factor ||
        video->height % factor)
        return cs_fail(
            error, CS_ERROR_INVALID,
            "video: %u frames of %u x %u pixels; expected sides that are multiples of %u",
            video->n_frames, video->width, video->height, factor);
    return cut_frames(config, video->rgb, video->n_frames, video->height, video->width, patches,
                      error);
}

void cs_patches_clear(cs_patches *patches)
{
    g_free(patches->data);
    *patches = (cs_patches){0};
}
