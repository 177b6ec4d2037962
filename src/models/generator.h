/* What a streaming generator component (codes to sound) offers the generator engine.
 *
 * A generation is one stream: codes go in while others come out of it as samples. Steps of many
 * generations, unequal in length and progress, are computed together and do not influence one
 * another. One thread (the engine's) calls all of it.
 */
#ifndef CS_MODELS_GENERATOR_H
#define CS_MODELS_GENERATOR_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct cs_generator cs_generator;
typedef struct cs_generation cs_generation;

typedef struct {
    /* A stream in this voice, of which the samples from first_sample on are wanted; equal seeds
     * give equal samples. CS_ERROR_NOT_FOUND with the voices that there are. Only this may be
     * called from any thread. */
    cs_generation *(*open)(cs_generator *generator, const char *voice, uint64_t seed,
                           uint64_t first_sample, GError **error);
    void (*close)(cs_generation *generation); /* accepts NULL */

    /* More codes, in order; `last`: none will follow. Nothing is taken on failure. */
    bool (*push)(cs_generation *generation, uint32_t n, const int32_t *codes, bool last,
                 GError **error);
    /* Whether a step can be made: enough codes, and room for its samples. */
    bool (*ready)(const cs_generation *generation);
    /* All samples of all codes are made. */
    bool (*finished)(const cs_generation *generation);
    /* One step of each of n <= max_batch ready generations. */
    bool (*step)(cs_generator *generator, uint32_t n, cs_generation *const *generations,
                 GError **error);
    uint32_t (*unread)(const cs_generation *generation); /* samples made and not read */
    /* Moves up to n unread samples to out; returns how many. */
    uint32_t (*read)(cs_generation *generation, uint32_t n, float *out);

    void (*free)(cs_generator *generator); /* accepts NULL */
} cs_generator_ops;

/* Components embed this as their first member. */
struct cs_generator {
    const cs_generator_ops *ops;
    uint32_t sample_rate; /* in Hz */
    uint32_t samples_per_code;
    uint32_t max_batch;
    /* Generations from which on a step takes as much longer as it has more of them; 0: max_batch.
     */
    uint32_t full_batch;
};

#endif
