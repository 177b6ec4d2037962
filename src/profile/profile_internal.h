/* What the measurements of encoders, LLMs and generators share. */
#ifndef CS_PROFILE_PROFILE_INTERNAL_H
#define CS_PROFILE_PROFILE_INTERNAL_H

#include "models/generator.h"
#include "models/model.h"
#include "profile/profile.h"

/* One size at which a step is timed, and what was seen. */
typedef struct {
    cs_profiler_entry *entry; /* takes the samples */
    const volatile int *cancel;
    double work;
    double share_s; /* of the time */
    uint32_t warm_up;
    uint32_t n;
    double sum_s, sum_squares;
} profile_point;

/* A component with one count of threads. */
typedef struct {
    const cs_profiler_options *options;
    cs_profiler_result *result;
    const char *component;
    uint32_t threads;
    cs_model *model;
    double before_bytes; /* of memory, when nothing was loaded */
    uint64_t *others;    /* what others read, or as much of it as a cache holds; NULL: nothing */
    size_t n_others;
    cs_profiler_memory memory; /* of this run; its component is unused */
    cs_profiler_stream stream; /* likewise; all 0: it takes its input whole */
} profile_run;

bool profile_is_cancelled(const cs_profiler_options *options);

/* A new entry of the result; borrowed. */
cs_profiler_entry *profile_add_entry(profile_run *run, cs_plan_role role);

profile_point profile_point_new(const profile_run *run, cs_profiler_entry *entry, double work,
                                double share_s, uint32_t warm_up);
/* A step took so long. */
void profile_point_add(profile_point *point, double seconds);
/* Known well enough, out of time, or told to end. */
bool profile_point_is_done(const profile_point *point);
/* "thinker, 2 threads, decode: 8 sequences after 512 tokens: 12.3 ms ...". */
void profile_point_say(const profile_run *run, const profile_point *point, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/* Others compute: to be called before a step that does not follow one of its own at once. */
void profile_let_others(const profile_run *run);

/* To be called when the largest step has been made and its memory is still held: what has grown
 * beside weights and `other_bytes` (KV cache, inputs) are activations. */
void profile_note_activations(profile_run *run, double other_bytes);

/* Each measures the run's component and fills its memory. */
bool profile_encoder(profile_run *run, cs_modality modality, GError **error);
/* Takes llm over. speech: of a talker; NULL: of the main LLM. */
bool profile_llm(profile_run *run, cs_llm *llm, const cs_speech *speech, GError **error);
bool profile_generator(profile_run *run, cs_generator *generator, GError **error);

#endif
