/* The sidecar: how tensors go from the component that makes them to those that use them.
 *
 *     gateway     request_begin(7, quota) ........................ request_end(7)
 *     producer    sender_open(7, stream 3, 2 consumers)  alloc put alloc put ... end
 *     consumer 0  receiver_open(7, stream 3, 0)          get 0, get 1, release 0, get 2 ... close
 *     consumer 1  receiver_open(7, stream 3, 1)          ...
 *
 * A stream belongs to a request and carries chunks numbered from 0, of known or unknown number, to
 * a number of consumers told by the producer. Producer and consumers may open it in any order. A
 * chunk lives until every consumer has released it; until then `get` of the same number gives the
 * same bytes again. The bytes are read where the producer wrote them: no transport copies on the
 * way to the consumer.
 *
 * Limits: each request has a quota of bytes in flight. An allocation over it, or in a full pool,
 * waits for consumers to release (back-pressure), up to the caller's timeout.
 *
 * Ends: request_end frees everything the request holds, except chunks that a consumer holds at that
 * moment (between get and release); those go when it releases or dies. A process that dies gives up
 * its references: half-written chunks vanish, streams it was producing fail with
 * CS_ERROR_EXECUTOR_LOST after the chunks it had put, its consumer places become free for a
 * replacement, requests it began end.
 *
 * Transports (transport.h) are tables of functions behind this one interface:
 *   in-process     for components of one executor; cs_sender_put_bytes hands over without a copy
 *   shared memory  for the processes of a node; a memfd segment that survives kill -9 of any of
 * them
 *
 * Threads: a cs_sidecar may be used from any thread; a sender or receiver by one thread at a time.
 * Times are in microseconds; a timeout of 0 only tries, below 0 waits for ever.
 */
#ifndef CS_SIDECAR_SIDECAR_H
#define CS_SIDECAR_SIDECAR_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CS_SIDECAR_CONSUMERS_MAX 31
#define CS_CHUNK_RANK_MAX 6

typedef struct cs_sidecar cs_sidecar;
typedef struct cs_sender cs_sender;
typedef struct cs_receiver cs_receiver;

/* What the bytes are; the sidecar carries it and does not read it. */
typedef struct {
    uint32_t type; /* a cs_dtype, or the two components' own code */
    uint32_t rank;
    uint64_t shape[CS_CHUNK_RANK_MAX];
    uint64_t tag; /* the two components' own: a first token position, a step number */
} cs_chunk_desc;

typedef struct {
    uint64_t sequence;
    cs_chunk_desc desc;
    uint8_t *data; /* [size_bytes]; consumers must not write */
    size_t size_bytes;
} cs_chunk;

typedef struct {
    uint64_t pool_bytes;          /* memory for chunks; default 1 GiB, committed as it is used */
    uint64_t request_quota_bytes; /* for requests begun with quota 0; default 256 MiB */
    uint32_t requests_max;        /* default 8192 */
    uint32_t streams_max;         /* default 65536 */
    uint32_t chunks_max;          /* default 262144 */
    uint32_t participants_max;    /* processes; default 512 */
} cs_sidecar_options;

typedef struct {
    uint64_t pool_bytes, used_bytes,
        borrowed_bytes; /* borrowed: handed over in-process, not pool */
    uint32_t participants, requests, streams, chunks;
    uint64_t chunks_total, bytes_total; /* published since the start */
} cs_sidecar_stats;

typedef enum {
    CS_RECEIVE_CHUNK,
    CS_RECEIVE_END,   /* the producer ended the stream before this number */
    CS_RECEIVE_AGAIN, /* not there within the timeout */
    CS_RECEIVE_ERROR,
} cs_receive;

/* --- Opening. NULL options, or zeros in them, mean the defaults. Close with cs_sidecar_close. ---
 */

cs_sidecar *cs_sidecar_open_local(const cs_sidecar_options *options, GError **error);

/* Makes a node's segment and joins it. */
cs_sidecar *cs_sidecar_create_shared(const cs_sidecar_options *options, const char *name,
                                     GError **error);
/* Joins the segment behind fd, which stays the caller's. `name` is told in stats and errors. */
cs_sidecar *cs_sidecar_join_shared(int fd, const char *name, GError **error);

/* The segment's file descriptor (borrowed, close-on-exec), to be given to child processes; -1 for
 * in-process. */
int cs_sidecar_fd(const cs_sidecar *sidecar);

/* Leaves, giving up all references as a death would. NULL is fine. */
void cs_sidecar_close(cs_sidecar *sidecar);

/* --- Requests --- */

/* CS_ERROR_CONFLICT if it exists, CS_ERROR_BUSY if the table is full. quota 0: the default. */
bool cs_sidecar_request_begin(cs_sidecar *sidecar, uint64_t request, uint64_t quota_bytes,
                              GError **error);
void cs_sidecar_request_end(cs_sidecar *sidecar, uint64_t request);
/* Whether a stream's producer ended or failed it, or its request has ended: whoever reads it is
 * told so and waits no more. False for a stream that nobody has opened yet. */
bool cs_sidecar_is_over(cs_sidecar *sidecar, uint64_t request, uint32_t stream);

/* --- Producing --- */

typedef struct {
    uint32_t n_consumers; /* at most CS_SIDECAR_CONSUMERS_MAX */
    uint64_t n_chunks;    /* 0: not known */
} cs_sender_options;

cs_sender *cs_sender_open(cs_sidecar *sidecar, uint64_t request, uint32_t stream,
                          cs_sender_options options, GError **error);

/* From now on at most n_chunks of the stream lie unreleased: an allocation beyond that waits as for
 * memory. For streams of small chunks, whose consumer is to slow the producer down. 0: any. */
void cs_sender_limit(cs_sender *sender, uint32_t n_chunks);
/* Memory for the next chunk, 64-byte aligned, to be filled and put. One at a time. CS_ERROR_BUSY
 * when quota or pool did not give it within the timeout, CS_ERROR_TOO_LARGE if they never can,
 * CS_ERROR_CANCELLED when the request has ended. */
bool cs_sender_alloc(cs_sender *sender, size_t size_bytes, int64_t timeout_us, cs_chunk *chunk,
                     GError **error);
/* Publishes the chunk of the last alloc with this description. */
bool cs_sender_put(cs_sender *sender, const cs_chunk_desc *desc, GError **error);
/* Publishes bytes that lie elsewhere: in-process the reference is handed over and nothing is
 * copied; otherwise alloc, copy and put. */
bool cs_sender_put_bytes(cs_sender *sender, GBytes *bytes, const cs_chunk_desc *desc,
                         int64_t timeout_us, GError **error);
/* No more chunks. CS_ERROR_FAILED if another number than promised was put; the consumers then get
 * that error too. */
bool cs_sender_end(cs_sender *sender, GError **error);
/* The stream ends in this error for consumers, after the chunks that were put. */
void cs_sender_fail(cs_sender *sender, const GError *why);
/* Frees the handle; a stream neither ended nor failed fails with CS_ERROR_CANCELLED. */
void cs_sender_close(cs_sender *sender);

/* --- Consuming --- */

/* Takes place `consumer` (from 0) of the stream; CS_ERROR_CONFLICT while a live process has it. */
cs_receiver *cs_receiver_open(cs_sidecar *sidecar, uint64_t request, uint32_t stream,
                              uint32_t consumer, GError **error);

/* Waits for chunk `sequence`. The view is good until release, close, or death; the error is the
 * producer's, or CS_ERROR_CANCELLED once the request has ended, or CS_ERROR_INVALID for a chunk
 * already released. */
cs_receive cs_receiver_get(cs_receiver *receiver, uint64_t sequence, int64_t timeout_us,
                           cs_chunk *chunk, GError **error);
/* Done with this chunk for good. Releasing twice, or one never got, is harmless. */
void cs_receiver_release(cs_receiver *receiver, uint64_t sequence);
/* Chunks published so far, released ones included. */
uint64_t cs_receiver_published(cs_receiver *receiver);
/* Done with the stream: releases all chunks, those to come included. */
void cs_receiver_close(cs_receiver *receiver);

/* --- Waiting for anything: for a loop that serves many streams ---
 *
 *     seen = cs_sidecar_doorbell(s); ... try everything ...; cs_sidecar_wait(s, seen, timeout);
 *
 * The doorbell rings when a stream that this process reads gets a chunk or ends, when memory
 * becomes free while this process waits for some, and by cs_sidecar_ring from this process. */
uint32_t cs_sidecar_doorbell(cs_sidecar *sidecar);
void cs_sidecar_wait(cs_sidecar *sidecar, uint32_t seen, int64_t timeout_us);
void cs_sidecar_ring(cs_sidecar *sidecar);

/* --- Upkeep, by the node agent --- */

/* Gives up the references of process `pid`, which must be dead, or (pid 0) of every participant
 * whose process is gone. Returns how many were reaped. */
unsigned cs_sidecar_reap(cs_sidecar *sidecar, int pid);

void cs_sidecar_get_stats(cs_sidecar *sidecar, cs_sidecar_stats *stats);

/* Walks all metadata; false with the first inconsistency. Takes the lock for the whole walk. */
bool cs_sidecar_check(cs_sidecar *sidecar, GError **error);

#endif
