/* Sizes of a request (how many tokens, pixels ...), formulas over them, and their distributions.
 *
 * Every request carries one number per cs_size; a size a type does not mention is 0. The task graph
 * turns sizes into work with affine formulas, the workload says how sizes are distributed.
 * Everything is deterministic by seed.
 */
#ifndef CS_PLAN_SIZES_H
#define CS_PLAN_SIZES_H

#include "base/json.h"

#include <glib.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum {
    CS_SIZE_TEXT_IN_TOKENS,
    CS_SIZE_TEXT_OUT_TOKENS,
    CS_SIZE_IMAGES,
    CS_SIZE_IMAGE_TOKENS, /* over all images of the request, as the LLM sees them */
    CS_SIZE_IMAGE_PIXELS,
    CS_SIZE_VIDEO_FRAMES,
    CS_SIZE_VIDEO_TOKENS,
    CS_SIZE_AUDIO_IN_SECONDS,
    CS_SIZE_AUDIO_IN_TOKENS,
    CS_SIZE_AUDIO_OUT_SECONDS,
    CS_SIZE_AUDIO_OUT_TOKENS,
    CS_SIZE_IMAGES_OUT,
    CS_SIZE_IMAGE_OUT_PIXELS,
    CS_SIZE_STEPS, /* of diffusion */
    CS_SIZE_COUNT
} cs_size;

/* "text_in_tokens" ... */
const char *cs_size_name(cs_size size);
/* CS_SIZE_COUNT if there is no such name. */
cs_size cs_size_parse(const char *name);

/* constant + sum of per[s] * size[s] */
typedef struct {
    double constant;
    double per[CS_SIZE_COUNT];
} cs_size_formula;

double cs_size_formula_value(const cs_size_formula *formula, const double sizes[CS_SIZE_COUNT]);
/* Reads {"constant": 1, "images": 2 ...} or a plain number; coefficients in [0, 1e15]. A missing
 * member gives `fallback` as a constant, or is a fault if fallback is NaN. */
void cs_size_formula_read(cs_json_reader *r, const char *key, double fallback,
                          cs_size_formula *formula);

/* xoshiro256**, seeded by splitmix64 (Blackman and Vigna). */
typedef struct {
    uint64_t s[4];
} cs_rng;

void cs_rng_seed(cs_rng *rng, uint64_t seed);

static inline uint64_t cs_rng_next(cs_rng *rng)
{
    uint64_t *s = rng->s, x = s[1] * 5, result = ((x << 7) | (x >> 57)) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return result;
}

/* Uniform in (0, 1). */
static inline double cs_rng_uniform(cs_rng *rng)
{
    return ((double)(cs_rng_next(rng) >> 11) + 0.5) * 0x1p-53;
}

static inline double cs_rng_exponential(cs_rng *rng)
{
    return -log(cs_rng_uniform(rng));
}

typedef enum {
    CS_DIST_CONSTANT,    /* a */
    CS_DIST_UNIFORM,     /* a .. b */
    CS_DIST_NORMAL,      /* mean a, deviation b */
    CS_DIST_LOGNORMAL,   /* median a, sigma b of the logarithm */
    CS_DIST_EXPONENTIAL, /* mean a */
    CS_DIST_EMPIRICAL,   /* one of values[0..n), equally likely */
} cs_dist_kind;

typedef struct {
    double weight; /* of this part in the mixture; parts sum to 1 */
    cs_dist_kind kind;
    double a, b;
    double *values;
    size_t n_values;
} cs_dist_part;

/* A mixture of parts, clamped to [min, max]. No parts: always 0. */
typedef struct {
    cs_dist_part *parts;
    size_t n_parts;
    double min, max;
} cs_dist;

void cs_dist_clear(cs_dist *dist);
double cs_dist_sample(const cs_dist *dist, cs_rng *rng);
/* By 2,000 equally likely quantiles a part. */
double cs_dist_mean(const cs_dist *dist);
/* A plain number, or {dist: uniform, min, max} ..., or {dist: mixture, parts: [...], min, max}. */
void cs_dist_read(cs_json_reader *r, const char *key, cs_dist *dist);
/* The same form; json_decref. */
json_t *cs_dist_to_json(const cs_dist *dist);

/* Inverse of the standard normal distribution function (Acklam's rational approximation, error
 * below 1.2e-9 of the value). */
double cs_normal_quantile(double p);

/* Ascending, for qsort. */
int cs_compare_doubles(const void *a, const void *b);

#endif
