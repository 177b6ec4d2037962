#include "media/preprocess/config.h"

/* qwen_omni_utils' limits, in squares of 28 x 28 pixels, and its fps; the total is of a model of
 * 128,000 positions, nine tenths of them for video. The processor has the same limits for video;
 * no file of a checkpoint holds them. */
enum {
    FETCH_SQUARE = 28 * 28,
    FETCH_IMAGE_MIN = 4 * FETCH_SQUARE,
    FETCH_IMAGE_MAX = 16384 * FETCH_SQUARE,
    FETCH_VIDEO_MIN = 128 * FETCH_SQUARE,
    FETCH_VIDEO_MAX = 768 * FETCH_SQUARE,
    FETCH_VIDEO_POSITIONS = 128000,
    FETCH_MIN_FRAMES = 4,
    FETCH_MAX_FRAMES = 768,
};
#define FETCH_FPS 2.0

static json_t *member(const cs_json_reader *r, const char *key)
{
    return json_object_get(g_ptr_array_index(r->nodes, r->nodes->len - 1), key);
}

static void read_triplet(cs_json_reader *r, const char *key, double min, double max,
                         const double fallback[3], double out[3])
{
    json_t *array = cs_json_has(r, key) ? member(r, key) : NULL;
    bool good = !array || json_array_size(array) == 3;
    for (size_t i = 0; i < 3 && good; i++) {
        json_t *item = json_array_get(array, i);
        out[i] = array ? json_number_value(item) : fallback[i];
        good = (!array || json_is_number(item)) && out[i] >= min && out[i] <= max;
    }
    if (!good)
        cs_json_fault(r, key, "expected three numbers in [%g, %g]", min, max);
}

static void require(cs_json_reader *r, const char *key, bool holds, const char *expected)
{
    if (!holds)
        cs_json_fault(r, key, "%s", expected);
}

static void read_pixel_limits(cs_vision_config *c, cs_json_reader *r)
{
    const int64_t most = (int64_t)1 << 32;
    c->min_pixels = 56 * 56;
    c->max_pixels = 28 * 28 * 1280;
    if (cs_json_has(r, "size")) {
        cs_json_enter(r, "size");
        c->min_pixels = (double)cs_json_int_or(r, "shortest_edge", 1, most, 56 * 56);
        c->max_pixels = (double)cs_json_int_or(r, "longest_edge", 1, most, 28 * 28 * 1280);
        cs_json_leave(r);
    }
    c->min_pixels = (double)cs_json_int_or(r, "min_pixels", 1, most, (int64_t)c->min_pixels);
    c->max_pixels = (double)cs_json_int_or(r, "max_pixels", 1, most, (int64_t)c->max_pixels);
    require(r, "max_pixels", c->min_pixels <= c->max_pixels, "expected at least min_pixels");
}

void cs_vision_config_read(cs_vision_config *c, cs_json_reader *r)
{
    static const double clip_mean[3] = {0.48145466, 0.4578275, 0.40821073};
    static const double clip_std[3] = {0.26862954, 0.26130258, 0.27577711};
    *c = (cs_vision_config){.processor_fps = FETCH_FPS};
    c->patch_size = (uint32_t)cs_json_int_or(r, "patch_size", 1, 64, 14);
    c->temporal_patch_size = (uint32_t)cs_json_int_or(r, "temporal_patch_size", 1, 16, 2);
    c->merge_size = (uint32_t)cs_json_int_or(r, "merge_size", 1, 8, 2);
    c->rescale_factor = cs_json_number_or(r, "rescale_factor", 1e-9, 1, 1.0 / 255);
    read_triplet(r, "image_mean", -1000, 1000, clip_mean, c->mean);
    read_triplet(r, "image_std", 1e-9, 1000, clip_std, c->std);
    read_pixel_limits(c, r);
    require(r, "do_resize", cs_json_bool_or(r, "do_resize", true), "expected true");
    require(r, "do_rescale", cs_json_bool_or(r, "do_rescale", true), "expected true");
    require(r, "do_normalize", cs_json_bool_or(r, "do_normalize", true), "expected true");
    require(r, "resample", cs_json_int_or(r, "resample", 0, 5, 3) == 3, "expected 3 (bicubic)");

    uint32_t factor = c->patch_size * c->merge_size;
    bool published = c->min_pixels == FETCH_IMAGE_MIN && c->max_pixels == FETCH_IMAGE_MAX;
    if (published)
        c->image_fetch =
            (cs_resize_rule){CS_RESIZE_FETCH, factor, FETCH_IMAGE_MIN, FETCH_IMAGE_MAX};
    c->video = (cs_video_rule){
        .fps = FETCH_FPS,
        .min_frames = FETCH_MIN_FRAMES,
        .max_frames = FETCH_MAX_FRAMES,
        .frame_factor = c->temporal_patch_size,
        .size_factor = factor,
        .min_pixels = FETCH_VIDEO_MIN,
        .max_pixels = FETCH_VIDEO_MAX,
        .total_pixels = FETCH_VIDEO_POSITIONS * (double)FETCH_SQUARE * 0.9,
        .processor = {CS_RESIZE_PROCESSOR, factor, FETCH_VIDEO_MIN, FETCH_VIDEO_MAX},
        .float_resize = published,
    };
}

void cs_vision_config_limit(cs_vision_config *c, double max_pixels)
{
    c->max_pixels = CLAMP(max_pixels, c->min_pixels, c->max_pixels);
    c->image_fetch.max_pixels =
        CLAMP(max_pixels, c->image_fetch.min_pixels, c->image_fetch.max_pixels);
}

void cs_mel_config_read(cs_mel_config *c, cs_json_reader *r)
{
    c->sampling_rate = (uint32_t)cs_json_int_or(r, "sampling_rate", 16000, 16000, 16000);
    c->n_fft = (uint32_t)cs_json_int_or(r, "n_fft", 400, 400, 400);
    c->hop_length = (uint32_t)cs_json_int_or(r, "hop_length", 1, 400, 160);
    c->n_mels = (uint32_t)cs_json_int_or(r, "feature_size", 1, 1024, 80);
    c->max_samples = (uint64_t)cs_json_int_or(r, "chunk_length", 1, 86400, 30) * c->sampling_rate;
    require(r, "dither", cs_json_number_or(r, "dither", 0, 1, 0) == 0, "expected 0");
    require(r, "padding_value", cs_json_number_or(r, "padding_value", -1, 1, 0) == 0, "expected 0");
    require(r, "do_normalize",
            !cs_json_bool_or(r, "do_normalize", false) || cs_json_has(r, "image_mean"),
            "expected false");
}
