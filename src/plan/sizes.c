#include "plan/sizes.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SIZE 1e15
#define MEAN_QUANTILES 2000

static const char *const size_names[CS_SIZE_COUNT] = {
    [CS_SIZE_TEXT_IN_TOKENS] = "text_in_tokens",
    [CS_SIZE_TEXT_OUT_TOKENS] = "text_out_tokens",
    [CS_SIZE_IMAGES] = "images",
    [CS_SIZE_IMAGE_TOKENS] = "image_tokens",
    [CS_SIZE_IMAGE_PIXELS] = "image_pixels",
    [CS_SIZE_VIDEO_FRAMES] = "video_frames",
    [CS_SIZE_VIDEO_TOKENS] = "video_tokens",
    [CS_SIZE_AUDIO_IN_SECONDS] = "audio_in_seconds",
    [CS_SIZE_AUDIO_IN_TOKENS] = "audio_in_tokens",
    [CS_SIZE_AUDIO_OUT_SECONDS] = "audio_out_seconds",
    [CS_SIZE_AUDIO_OUT_TOKENS] = "audio_out_tokens",
    [CS_SIZE_IMAGES_OUT] = "images_out",
    [CS_SIZE_IMAGE_OUT_PIXELS] = "image_out_pixels",
    [CS_SIZE_STEPS] = "steps",
};

const char *cs_size_name(cs_size size)
{
    return size_names[size];
}

cs_size cs_size_parse(const char *name)
{
    cs_size size = 0;
    while (size < CS_SIZE_COUNT && !g_str_equal(size_names[size], name))
        size++;
    return size;
}

/* ---- formulas ---- */

double cs_size_formula_value(const cs_size_formula *formula, const double sizes[CS_SIZE_COUNT])
{
    double value = formula->constant;
    for (int s = 0; s < CS_SIZE_COUNT; s++)
        value += formula->per[s] * sizes[s];
    return value;
}

void cs_size_formula_read(cs_json_reader *r, const char *key, double fallback,
                          cs_size_formula *formula)
{
    *formula = (cs_size_formula){.constant = isnan(fallback) ? 0 : fallback};
    json_t *node = cs_json_current(r), *value = node ? json_object_get(node, key) : NULL;
    if (!value && !isnan(fallback))
        return;
    if (!json_is_object(value)) {
        formula->constant = cs_json_number(r, key, 0, MAX_SIZE);
        return;
    }
    formula->constant = 0;
    cs_json_enter(r, key);
    const char *name;
    json_t *coefficient;
    json_object_foreach (value, name, coefficient) {
        cs_size size = cs_size_parse(name);
        if (g_str_equal(name, "constant"))
            formula->constant = cs_json_number(r, name, 0, MAX_SIZE);
        else if (size < CS_SIZE_COUNT)
            formula->per[size] = cs_json_number(r, name, 0, MAX_SIZE);
        else
            cs_json_fault(r, name,
                          "there is no such size; sizes are text_in_tokens, "
                          "text_out_tokens, images, image_tokens ...");
    }
    cs_json_leave(r);
}

/* ---- random numbers ---- */

void cs_rng_seed(cs_rng *rng, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        rng->s[i] = z ^ (z >> 31);
    }
}

double cs_normal_quantile(double p)
{
    static const double a[] = {-3.969683028665376e+01, 2.209460984245205e+02,
                               -2.759285104469687e+02, 1.383577518672690e+02,
                               -3.066479806614716e+01, 2.506628277459239e+00};
    static const double b[] = {-5.447609879822406e+01, 1.615858368580409e+02,
                               -1.556989798598866e+02, 6.680131188771972e+01,
                               -1.328068155288572e+01};
    static const double c[] = {-7.784894002430293e-03, -3.223964580411365e-01,
                               -2.400758277161838e+00, -2.549732539343734e+00,
                               4.374664141464968e+00,  2.938163982698783e+00};
    static const double d[] = {7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00,
                               3.754408661907416e+00};
    const double low = 0.02425;
    if (p > 1 - low)
        return -cs_normal_quantile(1 - p);
    if (p < low) {
        double q = sqrt(-2 * log(p));
        return (((((c[0] * q + c[1]) * q + c[2]) * q + c[3]) * q + c[4]) * q + c[5]) /
               ((((d[0] * q + d[1]) * q + d[2]) * q + d[3]) * q + 1);
    }
    double q = p - 0.5, r = q * q;
    return (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * q /
           (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1);
}

/* ---- distributions ---- */

void cs_dist_clear(cs_dist *dist)
{
    for (size_t i = 0; i < dist->n_parts; i++)
        g_free(dist->parts[i].values);
    g_free(dist->parts);
    *dist = (cs_dist){0};
}

static double part_quantile(const cs_dist_part *part, double p)
{
    switch (part->kind) {
    case CS_DIST_CONSTANT:
        return part->a;
    case CS_DIST_UNIFORM:
        return part->a + (part->b - part->a) * p;
    case CS_DIST_NORMAL:
        return part->a + part->b * cs_normal_quantile(p);
    case CS_DIST_LOGNORMAL:
        return part->a * exp(part->b * cs_normal_quantile(p));
    case CS_DIST_EXPONENTIAL:
        return -part->a * log1p(-p);
    case CS_DIST_EMPIRICAL:
        return part->values[MIN((size_t)(p * (double)part->n_values), part->n_values - 1)];
    }
    return 0;
}

double cs_dist_sample(const cs_dist *dist, cs_rng *rng)
{
    if (dist->n_parts == 0)
        return 0;
    size_t i = 0;
    if (dist->n_parts > 1) {
        double u = cs_rng_uniform(rng);
        while (i + 1 < dist->n_parts && u >= dist->parts[i].weight)
            u -= dist->parts[i++].weight;
    }
    const cs_dist_part *part = &dist->parts[i];
    double p = part->kind == CS_DIST_CONSTANT ? 0 : cs_rng_uniform(rng);
    return CLAMP(part_quantile(part, p), dist->min, dist->max);
}

double cs_dist_mean(const cs_dist *dist)
{
    double mean = 0;
    for (size_t i = 0; i < dist->n_parts; i++) {
        double sum = 0;
        for (int q = 0; q < MEAN_QUANTILES; q++) {
            double value = part_quantile(&dist->parts[i], (q + 0.5) / MEAN_QUANTILES);
            sum += CLAMP(value, dist->min, dist->max);
        }
        mean += dist->parts[i].weight * sum / MEAN_QUANTILES;
    }
    return mean;
}

static const struct {
    const char *name, *first, *second;
} part_forms[] = {
    [CS_DIST_CONSTANT] = {"constant", "value", NULL},
    [CS_DIST_UNIFORM] = {"uniform", "from", "to"},
    [CS_DIST_NORMAL] = {"normal", "mean", "deviation"},
    [CS_DIST_LOGNORMAL] = {"lognormal", "median", "sigma"},
    [CS_DIST_EXPONENTIAL] = {"exponential", "mean", NULL},
    [CS_DIST_EMPIRICAL] = {"empirical", NULL, NULL},
};

int cs_compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void read_values(cs_json_reader *r, cs_dist_part *part)
{
    size_t n = cs_json_enter_array(r, "values");
    json_t *array = cs_json_current(r);
    if (n == 0)
        cs_json_fault(r, NULL, "expected at least one value");
    part->values = g_new0(double, n + 1);
    part->n_values = MAX(n, 1);
    for (size_t i = 0; i < n; i++) {
        double value = json_number_value(json_array_get(array, i));
        if (!json_is_number(json_array_get(array, i)) || !(value >= 0 && value <= MAX_SIZE))
            cs_json_fault(r, NULL, "[%zu]: expected a number in [0, %g]", i, MAX_SIZE);
        part->values[i] = value;
    }
    qsort(part->values, n, sizeof part->values[0], cs_compare_doubles);
    cs_json_leave(r);
}

/* Reads a part from the current object, whose form is `word`; a part of a mixture has a weight, a
 * distribution of its own has limits. */
static void read_part(cs_json_reader *r, const char *word, bool in_mixture, cs_dist_part *part)
{
    size_t kind = 0;
    while (kind < G_N_ELEMENTS(part_forms) && !g_str_equal(part_forms[kind].name, word))
        kind++;
    if (kind == G_N_ELEMENTS(part_forms)) {
        cs_json_fault(r, "dist",
                      "expected constant, uniform, normal, lognormal, exponential, empirical or "
                      "mixture, found \"%s\"",
                      word);
        return;
    }
    const char *own[7] = {"dist"};
    size_t n = 1;
    own[n++] = in_mixture ? "weight" : "min";
    if (!in_mixture)
        own[n++] = "max";
    if (part_forms[kind].first)
        own[n++] = part_forms[kind].first;
    if (part_forms[kind].second)
        own[n++] = part_forms[kind].second;
    if (kind == CS_DIST_EMPIRICAL)
        own[n++] = "values";
    cs_json_only(r, own);
    part->kind = (cs_dist_kind)kind;
    if (part_forms[kind].first)
        part->a = cs_json_number(r, part_forms[kind].first, 0, MAX_SIZE);
    if (part_forms[kind].second)
        part->b = cs_json_number(r, part_forms[kind].second, 0, MAX_SIZE);
    if (kind == CS_DIST_UNIFORM && part->b < part->a)
        cs_json_fault(r, "to", "expected at least from (%g), found %g", part->a, part->b);
    if (kind == CS_DIST_EMPIRICAL)
        read_values(r, part);
}

static void read_mixture(cs_json_reader *r, cs_dist *dist)
{
    size_t n = cs_json_enter_array(r, "parts");
    dist->parts = g_new0(cs_dist_part, n + 1);
    dist->n_parts = n;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        cs_json_enter_item(r, i);
        dist->parts[i].weight = cs_json_number(r, "weight", 0, 1e9);
        sum += dist->parts[i].weight;
        read_part(r, cs_json_string(r, "dist"), true, &dist->parts[i]);
        cs_json_leave(r);
    }
    if (!(sum > 0))
        cs_json_fault(r, NULL, "expected weights with a positive sum");
    for (size_t i = 0; i < n && sum > 0; i++)
        dist->parts[i].weight /= sum;
    cs_json_leave(r);
}

void cs_dist_read(cs_json_reader *r, const char *key, cs_dist *dist)
{
    *dist = (cs_dist){.max = MAX_SIZE};
    json_t *node = cs_json_current(r), *value = node ? json_object_get(node, key) : NULL;
    if (!json_is_object(value)) {
        dist->parts = g_new0(cs_dist_part, 1);
        dist->n_parts = 1;
        dist->parts[0] = (cs_dist_part){.weight = 1, .a = cs_json_number(r, key, 0, MAX_SIZE)};
        return;
    }
    cs_json_enter(r, key);
    const char *word = cs_json_string(r, "dist");
    if (g_str_equal(word, "mixture")) {
        cs_json_only(r, (const char *const[]){"dist", "parts", "min", "max", NULL});
        read_mixture(r, dist);
    } else {
        dist->parts = g_new0(cs_dist_part, 1);
        dist->n_parts = 1;
        dist->parts[0].weight = 1;
        read_part(r, word, false, &dist->parts[0]);
    }
    dist->min = cs_json_number_or(r, "min", 0, MAX_SIZE, 0);
    dist->max = cs_json_number_or(r, "max", dist->min, MAX_SIZE, MAX_SIZE);
    cs_json_leave(r);
}

static json_t *part_to_json(const cs_dist_part *part)
{
    json_t *object = json_pack("{ss}", "dist", part_forms[part->kind].name);
    if (part_forms[part->kind].first)
        json_object_set_new(object, part_forms[part->kind].first, json_real(part->a));
    if (part_forms[part->kind].second)
        json_object_set_new(object, part_forms[part->kind].second, json_real(part->b));
    if (part->kind == CS_DIST_EMPIRICAL) {
        json_t *values = json_array();
        for (size_t i = 0; i < part->n_values; i++)
            json_array_append_new(values, json_real(part->values[i]));
        json_object_set_new(object, "values", values);
    }
    return object;
}

json_t *cs_dist_to_json(const cs_dist *dist)
{
    json_t *object = NULL;
    if (dist->n_parts == 1) {
        object = part_to_json(&dist->parts[0]);
    } else {
        json_t *parts = json_array();
        for (size_t i = 0; i < dist->n_parts; i++) {
            json_t *part = part_to_json(&dist->parts[i]);
            json_object_set_new(part, "weight", json_real(dist->parts[i].weight));
            json_array_append_new(parts, part);
        }
        object = json_pack("{ss so}", "dist", "mixture", "parts", parts);
    }
    if (dist->min > 0)
        json_object_set_new(object, "min", json_real(dist->min));
    if (dist->max < MAX_SIZE)
        json_object_set_new(object, "max", json_real(dist->max));
    return object;
}
