#include "media/preprocess/rules.h"

#include "base/error.h"

#include <math.h>

enum { MAX_RATIO = 200 };

static double floor_to(double value, double factor)
{
    return floor(value / factor) * factor;
}

static double ceil_to(double value, double factor)
{
    return ceil(value / factor) * factor;
}

bool cs_resize_rule_apply(const cs_resize_rule *rule, uint32_t *height, uint32_t *width,
                          GError **error)
{
    double h = *height, w = *width, factor = rule->factor;
    bool fetch = rule->flavour == CS_RESIZE_FETCH;
    if (fmax(h, w) / fmin(h, w) > MAX_RATIO)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%u x %u pixels: one side may be at most %d times the other", *width,
                       *height, MAX_RATIO);
    double new_h = rint(h / factor) * factor, new_w = rint(w / factor) * factor;
    if (fetch) {
        new_h = fmax(factor, new_h);
        new_w = fmax(factor, new_w);
    }
    if (new_h * new_w > rule->max_pixels) {
        double beta = sqrt(h * w / rule->max_pixels);
        new_h = floor_to(h / beta, factor);
        new_w = floor_to(w / beta, factor);
        if (!fetch) {
            new_h = fmax(factor, new_h);
            new_w = fmax(factor, new_w);
        }
    } else if (new_h * new_w < rule->min_pixels) {
        double beta = sqrt(rule->min_pixels / (h * w));
        new_h = ceil_to(h * beta, factor);
        new_w = ceil_to(w * beta, factor);
    }
    if (new_h < factor || new_w < factor)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%u x %u pixels: too narrow for a limit of %.0f pixels", *width, *height,
                       rule->max_pixels);
    *height = (uint32_t)new_h;
    *width = (uint32_t)new_w;
    return true;
}

bool cs_video_rule_count(const cs_video_rule *rule, uint64_t total_frames, double source_fps,
                         uint32_t *n_frames, GError **error)
{
    double total = (double)total_frames, factor = rule->frame_factor;
    double min = ceil_to(rule->min_frames, factor);
    double max = floor_to(fmin(rule->max_frames, total), factor);
    double n = total / source_fps * rule->fps;
    n = floor_to(fmin(fmin(fmax(n, min), max), total), factor);
    if (!(n >= factor))
        return cs_fail(error, CS_ERROR_INVALID, "%llu frames; at least %u are needed",
                       (unsigned long long)total_frames, rule->frame_factor);
    *n_frames = (uint32_t)n;
    return true;
}

uint64_t cs_video_rule_index(uint64_t total_frames, uint32_t n_frames, uint32_t i)
{
    if (n_frames < 2)
        return 0;
    float end = (float)(total_frames - 1);
    float step = end / (float)(n_frames - 1);
    float at = i < n_frames / 2 ? step * (float)i : end - step * (float)(n_frames - 1 - i);
    uint64_t index = (uint64_t)rintf(at);
    return MIN(index, total_frames - 1);
}

bool cs_video_rule_size(const cs_video_rule *rule, uint32_t n_frames, uint32_t *height,
                        uint32_t *width, GError **error)
{
    double each = rule->total_pixels / n_frames * rule->frame_factor;
    cs_resize_rule fetch = {
        .flavour = CS_RESIZE_FETCH,
        .factor = rule->size_factor,
        .min_pixels = rule->min_pixels,
        .max_pixels = fmax(fmin(rule->max_pixels, each), floor(rule->min_pixels * 1.05)),
    };
    return cs_resize_rule_apply(&fetch, height, width, error) &&
           cs_resize_rule_apply(&rule->processor, height, width, error);
}
