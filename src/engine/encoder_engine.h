/* The encoder engine: batches of media over one cs_encoder.
 *
 * A job is one medium. Its preparation (decoding, resizing, spectrograms) runs on worker threads
 * ahead of the device; prepared items are batched, oldest first, up to a budget of work and run on
 * the engine's own thread. Outputs are kept in a cache keyed by content, and equal items in flight
 * are computed once. When a batch fails its items are tried one by one, so that a bad one ends only
 * itself.
 *
 * Engines that share a device take turns between the encoder's layers, not only between its
 * batches; a batch that nobody wants any more is given up there.
 *
 *   submit -> prepare (workers) -> ready -> forward (engine's thread, in batches) -> on_done
 *
 * Threads: every function may be called from any thread. on_done comes from the engine's thread or
 * a worker (or, of jobs left, from cs_encoder_engine_free), exactly once for each accepted job, and
 * must not block.
 */
#ifndef CS_ENGINE_ENCODER_ENGINE_H
#define CS_ENGINE_ENCODER_ENGINE_H

#include "engine/turn.h"
#include "models/encoder.h"

typedef struct cs_encoder_engine cs_encoder_engine;
typedef struct cs_encoder_job cs_encoder_job;

typedef struct {
    const char *name;          /* stands in errors and names the threads; NULL: "encoder" */
    uint32_t max_batch_cost;   /* cost tokens of a batch; a larger item runs alone; 0: 8192 */
    uint32_t max_queued_items; /* accepted and not yet done; 0: 256 */
    uint32_t n_workers;        /* threads that prepare; 0: 2 */
    size_t cache_bytes;        /* of outputs; 0: no cache */
    cs_turn *turn;             /* borrowed; NULL: the device is not shared */
    cs_turn *batches; /* borrowed; held for a whole batch. Encoders that share a device share
                         it: their scratch memory is one stack, on which what comes in
                         between layers must end before the next layer. NULL: no other */
} cs_encoder_engine_options;

/* Takes the component over: freed with the engine, also on failure. */
cs_encoder_engine *cs_encoder_engine_new(cs_encoder *encoder,
                                         const cs_encoder_engine_options *options, GError **error);
/* Ends all jobs with CS_ERROR_CANCELLED and waits for the threads. Accepts NULL. */
void cs_encoder_engine_free(cs_encoder_engine *engine);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_encoder_engine, cs_encoder_engine_free)

/* A prepared medium. The item's memory stays valid until the job's `free_user` or, without one,
 * until on_done. */
typedef struct {
    cs_encoder_item item;
    uint64_t content_hash[2]; /* of the item; both 0: not cached */
} cs_encoder_input;

typedef struct {
    /* Makes the input, on a worker thread. NULL: `input` below is ready. */
    bool (*prepare)(void *user, cs_encoder_input *input, GError **error);
    cs_encoder_input input;
    /* output [output_tokens, output_size], or NULL with an error; both borrowed (take a reference
     * to keep it). */
    void (*on_done)(void *user, cs_shared_tensor *output, const GError *error);
    void (*free_user)(void *user); /* after on_done, when nothing uses the input; or NULL */
    void *user;
} cs_encoder_job_options;

/* Fails at once, with no call of the job's functions: CS_ERROR_BUSY (queue full), CS_ERROR_INVALID
 * (a ready input that is malformed). The handle is valid until cs_encoder_job_release. */
cs_encoder_job *cs_encoder_engine_submit(cs_encoder_engine *engine,
                                         const cs_encoder_job_options *options, GError **error);

/* on_done comes with CS_ERROR_CANCELLED unless the job was done: before the next batch, with the
 * batch that computes it now, or after a layer when it is alone. */
void cs_encoder_job_cancel(cs_encoder_job *job);
/* Gives the handle back, before or after on_done; it does not cancel. */
void cs_encoder_job_release(cs_encoder_job *job);

typedef struct {
    uint32_t preparing; /* queued for the workers, or with one */
    uint32_t ready, running;
    uint64_t items_done, items_failed, items_cancelled;
    uint64_t cache_hits; /* outputs found in the cache, or computed once for equal items */
    size_t cache_bytes;
    uint64_t batches, batch_cost;
    uint64_t forward_time_us;
} cs_encoder_engine_stats;

void cs_encoder_engine_stats_get(cs_encoder_engine *engine, cs_encoder_engine_stats *stats);

#endif
