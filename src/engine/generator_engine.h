/* The generator engine: streams of codes to streams of samples over one cs_generator.
 *
 * Requests that differ in length and progress share steps, as many as make a step worth its while
 * (the component's full_batch). Those come first whose listener is the next to run out of sound, or
 * has longest; one who has heard nothing ran out when he asked. So do steps of other engines on the
 * device (turn.h).
 * Samples are handed out as they are made, as far as a
 * request's credit goes; without credit its stream rests when its buffer is full, and the others go
 * on (back-pressure of a slow client).
 *
 *   submit -> push codes ... -> steps -> on_samples ... -> on_done
 *
 * Threads: every function may be called from any thread. Sink calls come from the engine's thread,
 * must not block, and end with exactly one on_done for each accepted request. They may call
 * cs_generator_request_*, but not cs_generator_engine_free.
 */
#ifndef CS_ENGINE_GENERATOR_ENGINE_H
#define CS_ENGINE_GENERATOR_ENGINE_H

#include "engine/turn.h"
#include "models/generator.h"

typedef struct cs_generator_engine cs_generator_engine;
typedef struct cs_generator_request cs_generator_request;

typedef struct {
    const char *name;      /* stands in errors and names the thread; NULL: "generator" */
    uint32_t max_requests; /* accepted and not yet done; 0: 256 */
    uint32_t max_batch;    /* streams of a step, at most; 0: as many as are worth it */
    cs_turn *turn;         /* borrowed; NULL: the device is not shared */
} cs_generator_engine_options;

/* Takes the component over: freed with the engine, also on failure. */
cs_generator_engine *cs_generator_engine_new(cs_generator *generator,
                                             const cs_generator_engine_options *options,
                                             GError **error);
/* Ends all requests with CS_ERROR_CANCELLED and waits for the thread. Handles of requests stay
 * valid until released. Accepts NULL. */
void cs_generator_engine_free(cs_generator_engine *engine);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_generator_engine, cs_generator_engine_free)

typedef struct {
    /* The next samples, in [-1, 1]; borrowed. */
    void (*on_samples)(void *user, uint32_t n, const float *samples);
    /* error NULL: all samples of all codes were handed out. Borrowed. */
    void (*on_done)(void *user, const GError *error);
} cs_generator_sink;

typedef struct {
    const char *voice;
    uint64_t seed;
    uint64_t credit_samples; /* that may be handed out before cs_generator_request_allow; 0: all */
    uint64_t first_sample;   /* those before it were made elsewhere, by a stream that was lost. They
                                count against the credit */
} cs_generator_request_options;

/* Fails at once, with no sink call: CS_ERROR_NOT_FOUND (voice), CS_ERROR_BUSY (too many). The
 * handle is valid until cs_generator_request_release. */
cs_generator_request *cs_generator_engine_submit(cs_generator_engine *engine,
                                                 const cs_generator_request_options *options,
                                                 const cs_generator_sink *sink, void *user,
                                                 GError **error);

/* More codes, in order; `last`: none will follow. What the component refuses ends the request.
 * Without effect after on_done. */
void cs_generator_request_push(cs_generator_request *request, uint32_t n, const int32_t *codes,
                               bool last);
/* So many samples more may be handed out. */
void cs_generator_request_allow(cs_generator_request *request, uint64_t n_samples);
/* Codes will not come: the request ends with this error. */
void cs_generator_request_fail(cs_generator_request *request, const GError *error);
/* The request ends within one step; on_done comes with CS_ERROR_CANCELLED unless it was done. */
void cs_generator_request_cancel(cs_generator_request *request);
/* Gives the handle back, before or after on_done; it does not cancel. */
void cs_generator_request_release(cs_generator_request *request);

typedef struct {
    uint32_t requests; /* accepted and not done */
    uint64_t steps, step_streams, samples;
    uint64_t step_time_us; /* sum over steps */
    uint64_t requests_finished, requests_failed, requests_cancelled;
} cs_generator_engine_stats;

void cs_generator_engine_stats_get(cs_generator_engine *engine, cs_generator_engine_stats *stats);

#endif
