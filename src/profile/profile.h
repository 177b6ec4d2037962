/* Measuring the components of a checkpoint on this machine: the first link of profile -> plan ->
 * serve.
 *
 * Each component is loaded alone, with each count of threads, as an executor of the kind "model"
 * loads it, and its steps are timed over batches and sizes: encoders over media, the halves of an
 * LLM over prompts and over sequences in a step (the talker too, which hears a row with each
 * token), a generator over streams at once and lengths of speech. After a warm-up a point is
 * repeated until the mean is known to 1 % (standard error) or its share of the time is used up;
 * every step that was timed is kept as a sample. Weights, KV bytes of a token and the memory that
 * steps need beside them are measured with it.
 *
 * A device of kind "cpu" is a thread: an executor of n devices computes with n threads.
 *
 * One call at a time, from any thread; it loads, measures and frees.
 */
#ifndef CS_PROFILE_PROFILE_H
#define CS_PROFILE_PROFILE_H

#include "plan/plan_file.h"

#include <stdint.h>

#define CS_PROFILER_LIST_MAX 16

/* Of how many threads, tokens, seconds ... */
typedef struct {
    uint32_t n;
    uint32_t values[CS_PROFILER_LIST_MAX]; /* ascending, each at least 1 */
} cs_profiler_list;

typedef struct {
    const char *dir;
    const char *dtype, *isa;       /* as in cs_model_options and cs_compute_options */
    const char *const *components; /* units of the family's task file, NULL-terminated */
    /* Of each component, what the others read in its absence: that much of the CPU's cache is
     * theirs when its step begins. NULL: nothing. */
    const double *others_bytes;
    cs_profiler_list threads;
    cs_profiler_list image_tokens;  /* of one image; sizes near these are made */
    cs_profiler_list audio_seconds; /* of one sound */
    cs_profiler_list prompt_tokens; /* of one prompt */
    cs_profiler_list context;       /* tokens before those that are decoded */
    cs_profiler_list batches;       /* sequences or streams in a step */
    cs_profiler_list speech_codes;  /* of one speech */
    uint32_t max_step_tokens;       /* of the LLM engine; 0: its own */
    double seconds;                 /* to measure a component with one count of threads */
    const volatile int *cancel;     /* not 0: end with what there is; may be NULL */
    /* A line of news, without its end; may be NULL. */
    void (*say)(void *user, const char *line);
    void *user;
} cs_profiler_options;

typedef struct {
    double work, seconds; /* as in plan/profiles.h */
} cs_profiler_sample;

/* What becomes an entry of profiles.json. */
typedef struct {
    char *component;
    cs_plan_role role; /* CS_ROLE_BOTH but for halves of an LLM */
    uint32_t threads;
    uint32_t max_batch;
    uint32_t chunk_units; /* of prefill; 0 else */
    uint32_t turns;       /* of an encoder's batch, between which others may compute; 0 else */
    GArray *samples;      /* cs_profiler_sample */
} cs_profiler_entry;

/* The largest found with any count of threads. */
typedef struct {
    char *component;
    double weights_bytes, activation_bytes, kv_bytes_per_token;
} cs_profiler_memory;

/* How a component follows what it is fed while that is still being made. */
typedef struct {
    char *component;
    double ahead;              /* units that must have come beyond those it makes next */
    double first_piece, piece; /* units it makes, and gives away, together: at first, and in the end
                                  (each piece is up to twice the one before) */
    double piece_extra;        /* units of work in each piece beyond its own */
} cs_profiler_stream;

typedef struct {
    char *isa;          /* that was used */
    GPtrArray *entries; /* cs_profiler_entry */
    GPtrArray *memory;  /* cs_profiler_memory */
    GPtrArray *streams; /* cs_profiler_stream */
    bool cancelled;
} cs_profiler_result;

/* Components that can be measured: those that an executor on a CPU runs. */
bool cs_profiler_knows(const char *component);

/* CS_ERROR_UNSUPPORTED for a component that cannot be measured; faults of loading as they are. */
cs_profiler_result *cs_profiler_run(const cs_profiler_options *options, GError **error);
void cs_profiler_result_free(cs_profiler_result *result); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_profiler_result, cs_profiler_result_free)

/* profiles.json; json_decref. Entries with fewer than two samples are left out. */
json_t *cs_profiler_to_json(const cs_profiler_result *result, const char *name);
/* Puts measured memory and streams into the component graph of `cornserve graph --json`. */
void cs_profiler_set_graph(const cs_profiler_result *result, json_t *graph);

/* How fast chunks go from one process to another through the sidecar on this machine: bytes a
 * second, written once and read once, and seconds for one small chunk. */
bool cs_profiler_transfer(double *bytes_per_s, double *latency_s, GError **error);

#endif
