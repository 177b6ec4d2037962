/* The metadata segment behind the in-process and shared-memory transports. Internal to src/sidecar.
 *
 *     | header: lock, journal, counters | participants | requests | streams | chunks |
 *     | request buckets | unit links | unit tags | pool: unit_count x 4096 bytes |
 *
 * Everything before the pool is metadata, guarded by one robust process-shared mutex; records refer
 * to each other by index, since each process maps the segment somewhere else.
 *
 * Crash safety. A store to guarded metadata is made with SEG_SET, which first notes the old value
 * in the journal inside the segment; unlocking empties the journal. When a process is killed while
 * it holds the lock, the next locker is told (EOWNERDEAD) and puts the noted values back, newest
 * first: each locked section therefore happens wholly or not at all. Longer work (ending a request,
 * reaping a process) is a row of such sections that anybody can continue, since each leaves a state
 * that says what remains. Event words and counters of waiters are atomics outside the journal: a
 * superfluous ring is harmless, and waiters look again at least every SEG_WAIT_SLICE_US in case the
 * one who should have woken them was killed after unlocking. */
#ifndef CS_SIDECAR_SEGMENT_H
#define CS_SIDECAR_SEGMENT_H

#include "sidecar/transport.h"

#include <pthread.h>
#include <stdatomic.h>

#define SEG_MAGIC 0x3130616373726f63u /* "corsca01" */
#define SEG_VERSION 1u
#define SEG_UNIT 4096u
#define SEG_ORDERS 32
#define SEG_NONE UINT32_MAX
#define SEG_WAIT_SLICE_US 100000
#define SEG_LOCK_HELD_MAX_US 5000000
/* The longest section frees one chunk: at most 2 x 32 pieces, each merging over at most 32 orders
 * with 4 stores a merge and 5 at its end. */
#define SEG_JOURNAL_MAX 10240
#define SEG_ERROR_BYTES 192
#define SEG_WRITER (1u << 31) /* the producer's bit in chunk.held */

typedef atomic_uint_least32_t seg_word;

typedef struct {
    uint64_t offset; /* from the segment's start */
    uint64_t width;  /* 1, 4 or 8 bytes */
    uint64_t old;
} seg_journal_entry;

typedef struct {
    uint32_t live;
    uint32_t pid;
    uint64_t start_time; /* of the process, clock ticks since boot: pids come again */
    uint32_t wants_space;
    seg_word doorbell, waiters;
    char name[36];
} seg_participant;

enum { SEG_FREE, SEG_OPEN, SEG_ENDING, SEG_ENDED, SEG_FAILED };

typedef struct {
    uint64_t id;
    uint64_t quota_bytes, used_bytes;
    uint32_t state;       /* SEG_OPEN or SEG_ENDING */
    uint32_t owner;       /* participant that began it */
    uint32_t bucket_next; /* also links free records */
    uint32_t first_stream;
} seg_request;

typedef struct {
    uint32_t state;      /* SEG_OPEN, SEG_ENDED or SEG_FAILED */
    uint32_t generation; /* counts reuses of this record: stale handles notice */
    uint32_t id;
    uint32_t request;
    uint32_t next;         /* stream of the request; also links free records */
    uint32_t producer;     /* participant, or SEG_NONE */
    uint32_t has_producer; /* a producer has opened it once */
    uint32_t n_consumers;
    uint32_t done;       /* bit i: consumer i closed */
    uint32_t head, tail; /* published chunks that live */
    uint32_t writing;    /* the chunk being filled, or SEG_NONE */
    uint64_t expected, published;
    uint32_t error_code;
    seg_word event, waiters;
    uint32_t consumer[CS_SIDECAR_CONSUMERS_MAX]; /* participant at this place, or SEG_NONE */
    char error_message[SEG_ERROR_BYTES];
} seg_stream;

typedef struct {
    uint32_t live;
    uint32_t stream;
    uint32_t prev, next; /* in the stream; next also links free records */
    uint32_t wanted;     /* bit i: consumer i has not released it */
    uint32_t held;       /* bit i: consumer i got it and has not released it; SEG_WRITER */
    uint32_t unit, n_units;
    uint64_t sequence;
    uint64_t size_bytes;
    uint64_t charged_bytes; /* against the request's quota */
    uint64_t borrowed;      /* a GBytes * of this process, in-process transport only; else 0 */
    cs_chunk_desc desc;     /* written before the chunk is published, not journaled */
} seg_chunk;

/* Records of a kind: those below `high` have been used; the free ones among them are linked. */
typedef struct {
    uint32_t max, high, free, used;
} seg_table;

typedef struct {
    uint64_t magic;
    uint32_t version, header_bytes;
    uint64_t segment_bytes;
    uint64_t participants_at, requests_at, streams_at, chunks_at, buckets_at, links_at, tags_at,
        pool_at;
    uint32_t unit_count, bucket_count;
    uint64_t default_quota_bytes;

    pthread_mutex_t lock;
    seg_word lock_holder; /* participant, or SEG_NONE */
    seg_table participants, requests, streams, chunks;
    uint64_t used_units, borrowed_bytes;
    uint64_t chunks_total, bytes_total;
    uint32_t space_wanted; /* some participant.wants_space is set */
    seg_word space_event, space_waiters;
    uint32_t order_head[SEG_ORDERS]; /* free blocks of 2^order units */

    seg_word journal_count;
    seg_journal_entry journal[SEG_JOURNAL_MAX];
} seg_header;

typedef struct {
    uint32_t prev, next; /* of the free block that starts at this unit */
} seg_unit_link;

#define SEG_WAKES_MAX 64

/* One process's view. */
typedef struct {
    cs_sidecar base;
    uint8_t *map;
    size_t map_bytes;
    seg_header *h;
    seg_participant *participants;
    seg_request *requests;
    seg_stream *streams;
    seg_chunk *chunks;
    uint32_t *buckets;
    seg_unit_link *links;
    uint8_t *tags; /* order + 1 at the first unit of a free block, else 0 */
    uint8_t *pool;
    uint32_t me; /* participant, or SEG_NONE before it has joined */
    /* collected under the lock, acted on after it */
    seg_word *wakes[SEG_WAKES_MAX];
    unsigned n_wakes;
    GPtrArray *dropped; /* GBytes * */
} segment;

/* --- segment.c: mapping, lock, journal, waiting --- */

segment *seg_create(const cs_sidecar_options *options, bool shared, GError **error);
segment *seg_map(int fd, GError **error);
void seg_unmap(segment *s);

void seg_lock(segment *s);
void seg_unlock(segment *s);
/* Makes what was stored so far permanent, keeping the lock: an end of section inside long work. */
void seg_commit(segment *s);
void seg_store(segment *s, void *field, size_t width, uint64_t value);
#define SEG_SET(s, field, value) seg_store((s), &(field), sizeof(field), (uint64_t)(value))

/* Counts the event, and wakes its sleepers after unlock. Under the lock. */
void seg_wake(segment *s, seg_word *event, seg_word *waiters);
/* Sleeps until the event's count is no longer `seen`, or the deadline (monotonic; negative: none),
 * or a slice is over. */
void seg_sleep(seg_word *event, seg_word *waiters, uint32_t seen, int64_t deadline_us);

/* A record from a table, or SEG_NONE when full. `next_of` links free records. */
uint32_t seg_table_take(segment *s, seg_table *table, uint32_t (*next_of)(segment *, uint32_t));

bool seg_participant_join(segment *s, const char *name, GError **error);
bool seg_participant_alive(segment *s, uint32_t participant);

/* --- pool.c: a buddy allocator over units, under the lock --- */

void pool_init(segment *s);
/* First unit of n_units (> 0) in a row, or SEG_NONE. */
uint32_t pool_alloc(segment *s, uint32_t n_units);
void pool_free(segment *s, uint32_t unit, uint32_t n_units);
bool pool_check(segment *s, uint64_t *free_units, GError **error);

/* --- streams.c: requests, streams and chunks, under the lock --- */

uint32_t seg_request_find(segment *s, uint64_t id);
bool seg_request_begin(segment *s, uint64_t id, uint64_t quota_bytes, GError **error);
/* Takes and releases the lock itself. */
void seg_request_end(segment *s, uint64_t id);

/* The stream, made if it is not there. SEG_NONE with an error if the request is not open. */
uint32_t seg_stream_open(segment *s, uint64_t request, uint32_t id, GError **error);
void seg_stream_finish(segment *s, uint32_t stream, uint32_t state, uint32_t code,
                       const char *message);
/* Rings everybody who reads the stream. */
void seg_stream_notify(segment *s, uint32_t stream);

uint32_t seg_chunk_take(segment *s, uint32_t stream, uint64_t size_bytes, bool borrowed);
void seg_chunk_publish(segment *s, uint32_t chunk);
/* Clears bits of wanted and held; frees the chunk when nobody wants or holds it, and with it the
 * stream and the request if they are ending and this was their last. */
void seg_chunk_drop(segment *s, uint32_t chunk, uint32_t bits);

/* Gives up everything participant `p` has. Takes and releases the lock itself. */
void seg_participant_reap(segment *s, uint32_t p);

/* --- check.c --- */

/* Walks all records under the lock, which the caller holds. */
bool seg_check(segment *s, GError **error);

#endif
