/* The two transports over a segment: in-process (private memory, GBytes handed over by reference)
 * and shared memory (a memfd that the processes of a node map). */
#include "base/error.h"
#include "base/os.h"
#include "sidecar/segment.h"

#include <string.h>
#include <unistd.h>

typedef struct {
    cs_sender base;
    segment *s;
    uint32_t stream, generation;
    uint32_t writing; /* chunk of the last alloc, or SEG_NONE */
    uint32_t limit;   /* unreleased chunks; 0: any */
} seg_sender;

typedef struct {
    cs_receiver base;
    segment *s;
    uint32_t stream, generation, consumer;
    uint32_t cursor; /* a chunk near the next one to be asked for: a hint, checked at each use */
} seg_receiver;

extern const cs_transport seg_transport_local, seg_transport_shared;

/* --- opening --- */

static cs_sidecar *join(segment *s, const cs_transport *transport, const char *name, GError **error)
{
    s->base.transport = transport;
    if (seg_participant_join(s, name, error))
        return &s->base;
    seg_unmap(s);
    return NULL;
}

cs_sidecar *cs_sidecar_open_local(const cs_sidecar_options *options, GError **error)
{
    segment *s = seg_create(options, false, error);
    return s ? join(s, &seg_transport_local, "in-process", error) : NULL;
}

cs_sidecar *cs_sidecar_create_shared(const cs_sidecar_options *options, const char *name,
                                     GError **error)
{
    segment *s = seg_create(options, true, error);
    return s ? join(s, &seg_transport_shared, name, error) : NULL;
}

cs_sidecar *cs_sidecar_join_shared(int fd, const char *name, GError **error)
{
    segment *s = seg_map(fd, error);
    return s ? join(s, &seg_transport_shared, name, error) : NULL;
}

static void seg_close(cs_sidecar *sidecar)
{
    segment *s = (segment *)sidecar;
    seg_participant_reap(s, s->me);
    seg_unmap(s);
}

/* --- requests --- */

static bool request_begin(cs_sidecar *sidecar, uint64_t id, uint64_t quota_bytes, GError **error)
{
    segment *s = (segment *)sidecar;
    seg_lock(s);
    bool ok = seg_request_begin(s, id, quota_bytes, error);
    seg_unlock(s);
    return ok;
}

static void request_end(cs_sidecar *sidecar, uint64_t id)
{
    seg_request_end((segment *)sidecar, id);
}

static bool is_over(cs_sidecar *sidecar, uint64_t id, uint32_t stream)
{
    segment *s = (segment *)sidecar;
    seg_lock(s);
    uint32_t r = seg_request_find(s, id), i = SEG_NONE;
    bool over = r == SEG_NONE || s->requests[r].state != SEG_OPEN;
    if (!over)
        i = s->requests[r].first_stream;
    while (i != SEG_NONE && s->streams[i].id != stream)
        i = s->streams[i].next;
    over = over || (i != SEG_NONE && s->streams[i].state != SEG_OPEN);
    seg_unlock(s);
    return over;
}

/* --- producing --- */

static bool claim_producer(segment *s, uint32_t i, cs_sender_options options, GError **error)
{
    seg_stream *st = &s->streams[i];
    if (st->has_producer)
        return cs_fail(error, CS_ERROR_CONFLICT, "stream %u: it has been opened to send before",
                       st->id);
    for (uint32_t c = options.n_consumers; c < CS_SIDECAR_CONSUMERS_MAX; c++)
        if (st->consumer[c] != SEG_NONE || st->done >> c & 1)
            return cs_fail(error, CS_ERROR_INVALID,
                           "stream %u: consumer %u has opened it, the producer expects %u", st->id,
                           c, options.n_consumers);
    SEG_SET(s, st->has_producer, 1);
    SEG_SET(s, st->producer, s->me);
    SEG_SET(s, st->n_consumers, options.n_consumers);
    SEG_SET(s, st->expected, options.n_chunks);
    return true;
}

static cs_sender *sender_open(cs_sidecar *sidecar, uint64_t request, uint32_t id,
                              cs_sender_options options, GError **error)
{
    segment *s = (segment *)sidecar;
    seg_sender *sender = NULL;
    seg_lock(s);
    uint32_t i = seg_stream_open(s, request, id, error);
    if (i != SEG_NONE && claim_producer(s, i, options, error)) {
        sender = g_new0(seg_sender, 1);
        *sender = (seg_sender){.base.transport = sidecar->transport,
                               .s = s,
                               .stream = i,
                               .generation = s->streams[i].generation,
                               .writing = SEG_NONE};
    }
    seg_unlock(s);
    return (cs_sender *)sender;
}

static void limit(cs_sender *sender, uint32_t n_chunks)
{
    ((seg_sender *)sender)->limit = n_chunks;
}

/* Under the lock: the sender's stream, if it and its request still live and it is not finished. */
static seg_stream *sending(seg_sender *sender, GError **error)
{
    segment *s = sender->s;
    seg_stream *st = &s->streams[sender->stream];
    if (st->generation != sender->generation || s->requests[st->request].state != SEG_OPEN) {
        cs_fail(error, CS_ERROR_CANCELLED, "stream: its request has ended");
        return NULL;
    }
    if (st->state != SEG_OPEN) {
        cs_fail(error, CS_ERROR_CONFLICT, "stream %u: it has been finished", st->id);
        return NULL;
    }
    return st;
}

typedef enum { ALLOC_DONE, ALLOC_WAIT, ALLOC_ERROR } alloc_result;

/* One attempt to get a chunk, under the lock. On ALLOC_WAIT *why says what is short. */
static alloc_result try_alloc(seg_sender *sender, uint64_t size_bytes, bool borrowed,
                              uint32_t *chunk, GError **why)
{
    segment *s = sender->s;
    seg_stream *st = sending(sender, why);
    if (!st)
        return ALLOC_ERROR;
    const seg_request *r = &s->requests[st->request];
    uint64_t largest = 1ull << (31 - __builtin_clz(s->h->unit_count));
    uint64_t units = size_bytes / SEG_UNIT + (size_bytes % SEG_UNIT != 0);
    uint64_t charge = borrowed ? size_bytes : units * SEG_UNIT;
    if (st->writing != SEG_NONE) {
        cs_fail(why, CS_ERROR_CONFLICT, "stream %u: the last chunk has not been put", st->id);
        return ALLOC_ERROR;
    }
    if (charge > r->quota_bytes || (!borrowed && units > largest)) {
        cs_fail(why, CS_ERROR_TOO_LARGE,
                "stream %u: a chunk of %" G_GUINT64_FORMAT
                " bytes, expected at most %" G_GUINT64_FORMAT
                " (the request's quota) and %" G_GUINT64_FORMAT " (the pool)",
                st->id, size_bytes, r->quota_bytes, largest * SEG_UNIT);
        return ALLOC_ERROR;
    }
    if (r->used_bytes + charge > r->quota_bytes) {
        cs_fail(why, CS_ERROR_BUSY,
                "stream %u: the request holds %" G_GUINT64_FORMAT
                " bytes of its quota of %" G_GUINT64_FORMAT ", no room for %" G_GUINT64_FORMAT
                " more",
                st->id, r->used_bytes, r->quota_bytes, charge);
        return ALLOC_WAIT;
    }
    if (sender->limit > 0 && st->head != SEG_NONE &&
        st->published - s->chunks[st->head].sequence >= sender->limit) {
        cs_fail(why, CS_ERROR_BUSY, "stream %u: %u chunks have not been read", st->id,
                sender->limit);
        return ALLOC_WAIT;
    }
    *chunk = seg_chunk_take(s, sender->stream, size_bytes, borrowed);
    if (*chunk != SEG_NONE)
        return ALLOC_DONE;
    cs_fail(why, CS_ERROR_BUSY,
            "stream %u: the tensor pool has no room for %" G_GUINT64_FORMAT " bytes", st->id,
            size_bytes);
    return ALLOC_WAIT;
}

static int64_t deadline_of(int64_t timeout_us)
{
    return timeout_us < 0 ? -1 : timeout_us == 0 ? 0 : cs_now_us() + timeout_us;
}

static bool out_of_time(int64_t deadline_us)
{
    return deadline_us == 0 || (deadline_us > 0 && cs_now_us() >= deadline_us);
}

/* Takes a chunk, waiting for room; on success the lock is held. */
static bool take_chunk(seg_sender *sender, uint64_t size_bytes, bool borrowed, int64_t timeout_us,
                       uint32_t *chunk, GError **error)
{
    segment *s = sender->s;
    int64_t deadline_us = deadline_of(timeout_us);
    for (;;) {
        g_autoptr(GError) why = NULL;
        uint32_t seen = atomic_load(&s->h->space_event);
        seg_lock(s);
        alloc_result result = try_alloc(sender, size_bytes, borrowed, chunk, &why);
        if (result == ALLOC_DONE)
            return true;
        if (result == ALLOC_WAIT && deadline_us == 0) {
            SEG_SET(s, s->participants[s->me].wants_space, 1);
            SEG_SET(s, s->h->space_wanted, 1);
        }
        seg_unlock(s);
        if (result == ALLOC_ERROR || out_of_time(deadline_us)) {
            g_propagate_error(error, g_steal_pointer(&why));
            return false;
        }
        seg_sleep(&s->h->space_event, &s->h->space_waiters, seen, deadline_us);
    }
}

static bool alloc(cs_sender *handle, size_t size_bytes, int64_t timeout_us, cs_chunk *chunk,
                  GError **error)
{
    seg_sender *sender = (seg_sender *)handle;
    segment *s = sender->s;
    uint32_t i = SEG_NONE;
    if (!take_chunk(sender, size_bytes, false, timeout_us, &i, error))
        return false;
    sender->writing = i;
    *chunk = (cs_chunk){.sequence = s->chunks[i].sequence,
                        .data = s->pool + (uint64_t)s->chunks[i].unit * SEG_UNIT,
                        .size_bytes = size_bytes};
    seg_unlock(s);
    return true;
}

/* Publishes chunk i, or frees it when the request ended meanwhile. Under the lock. */
static bool publish(seg_sender *sender, uint32_t i, const cs_chunk_desc *desc, GError **error)
{
    segment *s = sender->s;
    sender->writing = SEG_NONE;
    if (!sending(sender, error)) {
        seg_chunk_drop(s, i, SEG_WRITER);
        return false;
    }
    s->chunks[i].desc = desc ? *desc : (cs_chunk_desc){0};
    seg_chunk_publish(s, i);
    return true;
}

static bool put(cs_sender *handle, const cs_chunk_desc *desc, GError **error)
{
    seg_sender *sender = (seg_sender *)handle;
    segment *s = sender->s;
    if (sender->writing == SEG_NONE)
        return cs_fail(error, CS_ERROR_CONFLICT, "stream: put without a chunk allocated");
    seg_lock(s);
    bool ok = publish(sender, sender->writing, desc, error);
    seg_unlock(s);
    return ok;
}

static bool put_bytes_local(cs_sender *handle, GBytes *bytes, const cs_chunk_desc *desc,
                            int64_t timeout_us, GError **error)
{
    seg_sender *sender = (seg_sender *)handle;
    segment *s = sender->s;
    uint32_t i = SEG_NONE;
    uint64_t size_bytes = g_bytes_get_size(bytes);
    if (!take_chunk(sender, size_bytes, true, timeout_us, &i, error))
        return false;
    SEG_SET(s, s->chunks[i].borrowed, (uintptr_t)g_bytes_ref(bytes));
    SEG_SET(s, s->h->borrowed_bytes, s->h->borrowed_bytes + size_bytes);
    bool ok = publish(sender, i, desc, error);
    seg_unlock(s);
    return ok;
}

static bool end(cs_sender *handle, GError **error)
{
    seg_sender *sender = (seg_sender *)handle;
    segment *s = sender->s;
    seg_lock(s);
    seg_stream *st = sending(sender, error);
    bool ok = st != NULL;
    if (ok && st->expected != 0 && st->expected != st->published) {
        char message[SEG_ERROR_BYTES];
        g_snprintf(message, sizeof(message),
                   "stream %u: %" G_GUINT64_FORMAT " chunks, expected %" G_GUINT64_FORMAT, st->id,
                   st->published, st->expected);
        seg_stream_finish(s, sender->stream, SEG_FAILED, CS_ERROR_FAILED, message);
        ok = cs_fail(error, CS_ERROR_FAILED, "%s", message);
    } else if (ok) {
        seg_stream_finish(s, sender->stream, SEG_ENDED, 0, NULL);
    }
    sender->writing = SEG_NONE;
    seg_unlock(s);
    return ok;
}

/* Under the lock. A chunk being written goes even when the request has ended. */
static void finish_failed(seg_sender *sender, uint32_t code, const char *message)
{
    segment *s = sender->s;
    if (s->streams[sender->stream].generation == sender->generation)
        seg_stream_finish(s, sender->stream, SEG_FAILED, code, message);
    sender->writing = SEG_NONE;
}

static void fail(cs_sender *handle, const GError *why)
{
    seg_sender *sender = (seg_sender *)handle;
    bool ours = why->domain == CS_ERROR;
    seg_lock(sender->s);
    finish_failed(sender, ours ? (uint32_t)why->code : CS_ERROR_FAILED, why->message);
    seg_unlock(sender->s);
}

static void sender_close(cs_sender *handle)
{
    seg_sender *sender = (seg_sender *)handle;
    segment *s = sender->s;
    seg_lock(s);
    finish_failed(sender, CS_ERROR_CANCELLED, "stream: its producer closed it before the end");
    seg_commit(s);
    seg_stream *st = &s->streams[sender->stream];
    if (st->generation == sender->generation)
        SEG_SET(s, st->producer, SEG_NONE);
    seg_unlock(s);
    g_free(sender);
}

/* --- consuming --- */

static bool claim_consumer(segment *s, uint32_t i, uint32_t consumer, GError **error)
{
    seg_stream *st = &s->streams[i];
    if (st->has_producer && consumer >= st->n_consumers)
        return cs_fail(error, CS_ERROR_INVALID, "stream %u: consumer %u, the producer expects %u",
                       st->id, consumer, st->n_consumers);
    uint32_t p = st->consumer[consumer];
    if (st->done >> consumer & 1 || (p != SEG_NONE && seg_participant_alive(s, p)))
        return cs_fail(error, CS_ERROR_CONFLICT, "stream %u: consumer %u is taken", st->id,
                       consumer);
    SEG_SET(s, st->consumer[consumer], s->me);
    return true;
}

static cs_receiver *receiver_open(cs_sidecar *sidecar, uint64_t request, uint32_t id,
                                  uint32_t consumer, GError **error)
{
    segment *s = (segment *)sidecar;
    seg_receiver *receiver = NULL;
    seg_lock(s);
    uint32_t i = seg_stream_open(s, request, id, error);
    if (i != SEG_NONE && claim_consumer(s, i, consumer, error)) {
        receiver = g_new0(seg_receiver, 1);
        *receiver = (seg_receiver){.base.transport = sidecar->transport,
                                   .s = s,
                                   .stream = i,
                                   .generation = s->streams[i].generation,
                                   .consumer = consumer,
                                   .cursor = SEG_NONE};
    }
    seg_unlock(s);
    return (cs_receiver *)receiver;
}

/* Under the lock: the published chunk of this number, or SEG_NONE. The cursor spares the walk from
 * the head when chunks are read in order. */
static uint32_t find_chunk(seg_receiver *receiver, uint64_t sequence)
{
    segment *s = receiver->s;
    const seg_stream *st = &s->streams[receiver->stream];
    uint32_t i = st->head;
    if (receiver->cursor != SEG_NONE) {
        const seg_chunk *c = &s->chunks[receiver->cursor];
        if (c->live && c->stream == receiver->stream && !(c->held & SEG_WRITER) &&
            c->sequence <= sequence)
            i = receiver->cursor;
    }
    while (i != SEG_NONE && s->chunks[i].sequence < sequence)
        i = s->chunks[i].next;
    if (i == SEG_NONE || s->chunks[i].sequence != sequence)
        return SEG_NONE;
    receiver->cursor = i;
    return i;
}

static cs_receive view_chunk(seg_receiver *receiver, uint64_t sequence, cs_chunk *chunk,
                             GError **error)
{
    segment *s = receiver->s;
    uint32_t bit = 1u << receiver->consumer;
    uint32_t i = find_chunk(receiver, sequence);
    if (i == SEG_NONE || !(s->chunks[i].wanted & bit)) {
        cs_fail(error, CS_ERROR_INVALID,
                "stream %u: chunk %" G_GUINT64_FORMAT " has been released by consumer %u",
                s->streams[receiver->stream].id, sequence, receiver->consumer);
        return CS_RECEIVE_ERROR;
    }
    seg_chunk *c = &s->chunks[i];
    if (!(c->held & bit))
        SEG_SET(s, c->held, c->held | bit);
    *chunk = (cs_chunk){.sequence = sequence, .desc = c->desc, .size_bytes = c->size_bytes};
    /* the transport hands out writable memory to producers only; consumers must not write */
    chunk->data = c->borrowed ? (uint8_t *)g_bytes_get_data((GBytes *)(uintptr_t)c->borrowed, NULL)
                              : s->pool + (uint64_t)c->unit * SEG_UNIT;
    return CS_RECEIVE_CHUNK;
}

/* One attempt, under the lock. */
static cs_receive try_get(seg_receiver *receiver, uint64_t sequence, cs_chunk *chunk,
                          GError **error)
{
    segment *s = receiver->s;
    const seg_stream *st = &s->streams[receiver->stream];
    if (st->generation != receiver->generation || s->requests[st->request].state != SEG_OPEN) {
        cs_fail(error, CS_ERROR_CANCELLED, "stream: its request has ended");
        return CS_RECEIVE_ERROR;
    }
    if (sequence < st->published)
        return view_chunk(receiver, sequence, chunk, error);
    if (st->state == SEG_ENDED)
        return CS_RECEIVE_END;
    if (st->state == SEG_OPEN)
        return CS_RECEIVE_AGAIN;
    cs_fail(error, (cs_error_code)st->error_code, "%.*s", SEG_ERROR_BYTES - 1, st->error_message);
    return CS_RECEIVE_ERROR;
}

static cs_receive get(cs_receiver *handle, uint64_t sequence, int64_t timeout_us, cs_chunk *chunk,
                      GError **error)
{
    seg_receiver *receiver = (seg_receiver *)handle;
    segment *s = receiver->s;
    seg_stream *st = &s->streams[receiver->stream];
    int64_t deadline_us = deadline_of(timeout_us);
    for (;;) {
        uint32_t seen = atomic_load(&st->event);
        seg_lock(s);
        cs_receive result = try_get(receiver, sequence, chunk, error);
        seg_unlock(s);
        if (result != CS_RECEIVE_AGAIN || out_of_time(deadline_us))
            return result;
        seg_sleep(&st->event, &st->waiters, seen, deadline_us);
    }
}

static void release(cs_receiver *handle, uint64_t sequence)
{
    seg_receiver *receiver = (seg_receiver *)handle;
    segment *s = receiver->s;
    seg_lock(s);
    if (s->streams[receiver->stream].generation == receiver->generation) {
        uint32_t i = find_chunk(receiver, sequence);
        if (i != SEG_NONE)
            seg_chunk_drop(s, i, 1u << receiver->consumer);
    }
    seg_unlock(s);
}

static uint64_t published(cs_receiver *handle)
{
    seg_receiver *receiver = (seg_receiver *)handle;
    segment *s = receiver->s;
    seg_lock(s);
    const seg_stream *st = &s->streams[receiver->stream];
    uint64_t n = st->generation == receiver->generation ? st->published : 0;
    seg_unlock(s);
    return n;
}

/* A chunk of the stream with this consumer's bit, or SEG_NONE. */
static uint32_t chunk_with_bit(segment *s, uint32_t stream, uint32_t bit)
{
    for (uint32_t i = s->streams[stream].head; i != SEG_NONE; i = s->chunks[i].next)
        if ((s->chunks[i].wanted | s->chunks[i].held) & bit)
            return i;
    return SEG_NONE;
}

static void receiver_close(cs_receiver *handle)
{
    seg_receiver *receiver = (seg_receiver *)handle;
    segment *s = receiver->s;
    seg_stream *st = &s->streams[receiver->stream];
    uint32_t bit = 1u << receiver->consumer, i;
    seg_lock(s);
    if (st->generation == receiver->generation) {
        SEG_SET(s, st->done, st->done | bit);
        seg_commit(s);
        /* the last drop may free the stream of an ending request */
        while (st->generation == receiver->generation &&
               (i = chunk_with_bit(s, receiver->stream, bit)) != SEG_NONE) {
            seg_chunk_drop(s, i, bit);
            seg_commit(s);
        }
        if (st->generation == receiver->generation)
            SEG_SET(s, st->consumer[receiver->consumer], SEG_NONE);
    }
    seg_unlock(s);
    g_free(receiver);
}

/* --- waiting and upkeep --- */

static uint32_t doorbell(cs_sidecar *sidecar)
{
    segment *s = (segment *)sidecar;
    return atomic_load(&s->participants[s->me].doorbell);
}

static void wait_doorbell(cs_sidecar *sidecar, uint32_t seen, int64_t timeout_us)
{
    segment *s = (segment *)sidecar;
    seg_participant *p = &s->participants[s->me];
    int64_t deadline_us = deadline_of(timeout_us);
    while (atomic_load(&p->doorbell) == seen && !out_of_time(deadline_us))
        seg_sleep(&p->doorbell, &p->waiters, seen, deadline_us);
}

static void ring(cs_sidecar *sidecar)
{
    segment *s = (segment *)sidecar;
    seg_lock(s);
    seg_wake(s, &s->participants[s->me].doorbell, &s->participants[s->me].waiters);
    seg_unlock(s);
}

static unsigned reap(cs_sidecar *sidecar, int pid)
{
    segment *s = (segment *)sidecar;
    unsigned n = 0;
    for (uint32_t p = 0; p < s->h->participants.max; p++) {
        seg_lock(s);
        bool gone = s->participants[p].live && p != s->me &&
                    (pid ? s->participants[p].pid == (uint32_t)pid : !seg_participant_alive(s, p));
        bool last = p >= s->h->participants.high;
        seg_unlock(s);
        if (last)
            break;
        if (!gone)
            continue;
        seg_participant_reap(s, p);
        n++;
    }
    return n;
}

static void get_stats(cs_sidecar *sidecar, cs_sidecar_stats *stats)
{
    segment *s = (segment *)sidecar;
    seg_lock(s);
    *stats = (cs_sidecar_stats){.pool_bytes = (uint64_t)s->h->unit_count * SEG_UNIT,
                                .used_bytes = s->h->used_units * SEG_UNIT,
                                .borrowed_bytes = s->h->borrowed_bytes,
                                .participants = s->h->participants.used,
                                .requests = s->h->requests.used,
                                .streams = s->h->streams.used,
                                .chunks = s->h->chunks.used,
                                .chunks_total = s->h->chunks_total,
                                .bytes_total = s->h->bytes_total};
    seg_unlock(s);
}

static bool check(cs_sidecar *sidecar, GError **error)
{
    segment *s = (segment *)sidecar;
    seg_lock(s);
    bool ok = seg_check(s, error);
    seg_unlock(s);
    return ok;
}

#define SEG_TRANSPORT_COMMON                                                                       \
    .close = seg_close, .request_begin = request_begin, .request_end = request_end,                \
    .is_over = is_over, .sender_open = sender_open, .limit = limit, .alloc = alloc, .put = put,    \
    .end = end, .fail = fail, .sender_close = sender_close, .receiver_open = receiver_open,        \
    .get = get, .release = release, .published = published, .receiver_close = receiver_close,      \
    .doorbell = doorbell, .wait = wait_doorbell, .ring = ring, .reap = reap,                       \
    .get_stats = get_stats, .check = check

const cs_transport seg_transport_local = {
    .name = "in-process", .put_bytes = put_bytes_local, SEG_TRANSPORT_COMMON};
const cs_transport seg_transport_shared = {.name = "shared memory", SEG_TRANSPORT_COMMON};
