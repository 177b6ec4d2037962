/* Requests, streams and chunks: the records of the segment and how they come and go. All functions
 * run under the lock except where segment.h says otherwise. */
#include "base/error.h"
#include "sidecar/segment.h"

#include <string.h>

#define COMMITS_A_LOCK 256 /* chunks freed before others get a turn at the lock */

static uint32_t next_request(segment *s, uint32_t i)
{
    return s->requests[i].bucket_next;
}

static uint32_t next_stream(segment *s, uint32_t i)
{
    return s->streams[i].next;
}

static uint32_t next_chunk(segment *s, uint32_t i)
{
    return s->chunks[i].next;
}

/* --- requests --- */

static uint32_t *bucket_of(segment *s, uint64_t id)
{
    return &s->buckets[(id * 0x9e3779b97f4a7c15u >> 32) % s->h->bucket_count];
}

uint32_t seg_request_find(segment *s, uint64_t id)
{
    uint32_t i = *bucket_of(s, id);
    while (i != SEG_NONE && s->requests[i].id != id)
        i = s->requests[i].bucket_next;
    return i;
}

bool seg_request_begin(segment *s, uint64_t id, uint64_t quota_bytes, GError **error)
{
    if (seg_request_find(s, id) != SEG_NONE)
        return cs_fail(error, CS_ERROR_CONFLICT, "sidecar: request %" G_GUINT64_FORMAT " exists",
                       id);
    uint32_t i = seg_table_take(s, &s->h->requests, next_request);
    if (i == SEG_NONE)
        return cs_fail(error, CS_ERROR_BUSY, "sidecar: %u requests are open, none can more",
                       s->h->requests.max);
    seg_request *r = &s->requests[i];
    uint32_t *bucket = bucket_of(s, id);
    SEG_SET(s, r->id, id);
    SEG_SET(s, r->quota_bytes, quota_bytes ? quota_bytes : s->h->default_quota_bytes);
    SEG_SET(s, r->used_bytes, 0);
    SEG_SET(s, r->owner, s->me);
    SEG_SET(s, r->first_stream, SEG_NONE);
    SEG_SET(s, r->bucket_next, *bucket);
    SEG_SET(s, *bucket, i);
    SEG_SET(s, r->state, SEG_OPEN);
    return true;
}

static void request_free(segment *s, uint32_t i)
{
    seg_request *r = &s->requests[i];
    uint32_t *link = bucket_of(s, r->id);
    while (*link != i)
        link = &s->requests[*link].bucket_next;
    SEG_SET(s, *link, r->bucket_next);
    SEG_SET(s, r->state, SEG_FREE);
    SEG_SET(s, r->bucket_next, s->h->requests.free);
    SEG_SET(s, s->h->requests.free, i);
    SEG_SET(s, s->h->requests.used, s->h->requests.used - 1);
}

/* --- streams --- */

uint32_t seg_stream_open(segment *s, uint64_t request, uint32_t id, GError **error)
{
    uint32_t r = seg_request_find(s, request);
    if (r == SEG_NONE || s->requests[r].state != SEG_OPEN) {
        cs_fail(error, CS_ERROR_CANCELLED, "request %" G_GUINT64_FORMAT " has ended", request);
        return SEG_NONE;
    }
    for (uint32_t i = s->requests[r].first_stream; i != SEG_NONE; i = s->streams[i].next)
        if (s->streams[i].id == id)
            return i;
    uint32_t i = seg_table_take(s, &s->h->streams, next_stream);
    if (i == SEG_NONE) {
        cs_fail(error, CS_ERROR_BUSY, "sidecar: %u streams are open, none can more",
                s->h->streams.max);
        return SEG_NONE;
    }
    seg_stream *st = &s->streams[i];
    SEG_SET(s, st->id, id);
    SEG_SET(s, st->request, r);
    SEG_SET(s, st->producer, SEG_NONE);
    SEG_SET(s, st->has_producer, 0);
    SEG_SET(s, st->n_consumers, 0);
    SEG_SET(s, st->done, 0);
    SEG_SET(s, st->head, SEG_NONE);
    SEG_SET(s, st->tail, SEG_NONE);
    SEG_SET(s, st->writing, SEG_NONE);
    SEG_SET(s, st->expected, 0);
    SEG_SET(s, st->published, 0);
    SEG_SET(s, st->error_code, 0);
    for (unsigned c = 0; c < CS_SIDECAR_CONSUMERS_MAX; c++)
        SEG_SET(s, st->consumer[c], SEG_NONE);
    SEG_SET(s, st->next, s->requests[r].first_stream);
    SEG_SET(s, s->requests[r].first_stream, i);
    SEG_SET(s, st->state, SEG_OPEN);
    return i;
}

void seg_stream_notify(segment *s, uint32_t stream)
{
    seg_stream *st = &s->streams[stream];
    seg_wake(s, &st->event, &st->waiters);
    uint32_t rung = SEG_NONE;
    for (unsigned c = 0; c < CS_SIDECAR_CONSUMERS_MAX; c++) {
        uint32_t p = st->consumer[c];
        if (p == SEG_NONE || p == rung)
            continue;
        seg_wake(s, &s->participants[p].doorbell, &s->participants[p].waiters);
        rung = p;
    }
}

void seg_stream_finish(segment *s, uint32_t stream, uint32_t state, uint32_t code,
                       const char *message)
{
    seg_stream *st = &s->streams[stream];
    if (st->writing != SEG_NONE)
        seg_chunk_drop(s, st->writing, SEG_WRITER);
    if (st->state != SEG_OPEN)
        return;
    g_strlcpy(st->error_message, message ? message : "", sizeof(st->error_message));
    SEG_SET(s, st->error_code, code);
    SEG_SET(s, st->state, state);
    seg_stream_notify(s, stream);
}

static void stream_free(segment *s, uint32_t i)
{
    seg_stream *st = &s->streams[i];
    uint32_t *link = &s->requests[st->request].first_stream;
    while (*link != i)
        link = &s->streams[*link].next;
    SEG_SET(s, *link, st->next);
    SEG_SET(s, st->state, SEG_FREE);
    SEG_SET(s, st->generation, st->generation + 1);
    SEG_SET(s, st->next, s->h->streams.free);
    SEG_SET(s, s->h->streams.free, i);
    SEG_SET(s, s->h->streams.used, s->h->streams.used - 1);
}

/* Frees the records of an ending request as far as nothing in them is held any more. */
static void sweep_stream(segment *s, uint32_t i)
{
    seg_stream *st = &s->streams[i];
    uint32_t r = st->request;
    if (s->requests[r].state != SEG_ENDING || st->head != SEG_NONE || st->writing != SEG_NONE)
        return;
    stream_free(s, i);
    if (s->requests[r].first_stream == SEG_NONE)
        request_free(s, r);
}

/* --- chunks --- */

static void notify_space(segment *s)
{
    seg_wake(s, &s->h->space_event, &s->h->space_waiters);
    if (!s->h->space_wanted)
        return;
    SEG_SET(s, s->h->space_wanted, 0);
    for (uint32_t p = 0; p < s->h->participants.high; p++) {
        if (!s->participants[p].live || !s->participants[p].wants_space)
            continue;
        SEG_SET(s, s->participants[p].wants_space, 0);
        seg_wake(s, &s->participants[p].doorbell, &s->participants[p].waiters);
    }
}

uint32_t seg_chunk_take(segment *s, uint32_t stream, uint64_t size_bytes, bool borrowed)
{
    uint32_t n_units = borrowed ? 0 : (uint32_t)((size_bytes + SEG_UNIT - 1) / SEG_UNIT);
    if (s->h->chunks.free == SEG_NONE && s->h->chunks.high == s->h->chunks.max)
        return SEG_NONE;
    uint32_t unit = n_units > 0 ? pool_alloc(s, n_units) : 0;
    if (unit == SEG_NONE)
        return SEG_NONE;
    uint32_t i = seg_table_take(s, &s->h->chunks, next_chunk);
    seg_chunk *c = &s->chunks[i];
    seg_stream *st = &s->streams[stream];
    seg_request *r = &s->requests[st->request];
    uint64_t charged = borrowed ? size_bytes : (uint64_t)n_units * SEG_UNIT;
    SEG_SET(s, c->stream, stream);
    SEG_SET(s, c->prev, SEG_NONE);
    SEG_SET(s, c->next, SEG_NONE);
    SEG_SET(s, c->wanted, 0);
    SEG_SET(s, c->held, SEG_WRITER);
    SEG_SET(s, c->unit, unit);
    SEG_SET(s, c->n_units, n_units);
    SEG_SET(s, c->sequence, st->published);
    SEG_SET(s, c->size_bytes, size_bytes);
    SEG_SET(s, c->charged_bytes, charged);
    SEG_SET(s, c->borrowed, 0);
    SEG_SET(s, c->live, 1);
    SEG_SET(s, r->used_bytes, r->used_bytes + charged);
    SEG_SET(s, st->writing, i);
    return i;
}

void seg_chunk_publish(segment *s, uint32_t chunk)
{
    seg_chunk *c = &s->chunks[chunk];
    seg_stream *st = &s->streams[c->stream];
    uint32_t everyone = (uint32_t)((1ull << st->n_consumers) - 1);
    SEG_SET(s, st->writing, SEG_NONE);
    SEG_SET(s, c->prev, st->tail);
    if (st->tail != SEG_NONE)
        SEG_SET(s, s->chunks[st->tail].next, chunk);
    else
        SEG_SET(s, st->head, chunk);
    SEG_SET(s, st->tail, chunk);
    SEG_SET(s, c->wanted, everyone & ~st->done);
    SEG_SET(s, st->published, st->published + 1);
    SEG_SET(s, s->h->chunks_total, s->h->chunks_total + 1);
    SEG_SET(s, s->h->bytes_total, s->h->bytes_total + c->size_bytes);
    seg_stream_notify(s, c->stream);
    seg_chunk_drop(s, chunk, SEG_WRITER);
}

static void chunk_free(segment *s, uint32_t chunk)
{
    seg_chunk *c = &s->chunks[chunk];
    seg_stream *st = &s->streams[c->stream];
    if (st->writing == chunk) {
        SEG_SET(s, st->writing, SEG_NONE);
    } else {
        if (c->prev != SEG_NONE)
            SEG_SET(s, s->chunks[c->prev].next, c->next);
        else
            SEG_SET(s, st->head, c->next);
        if (c->next != SEG_NONE)
            SEG_SET(s, s->chunks[c->next].prev, c->prev);
        else
            SEG_SET(s, st->tail, c->prev);
    }
    if (c->n_units > 0)
        pool_free(s, c->unit, c->n_units);
    if (c->borrowed) {
        g_ptr_array_add(s->dropped, (gpointer)(uintptr_t)c->borrowed);
        SEG_SET(s, s->h->borrowed_bytes, s->h->borrowed_bytes - c->size_bytes);
        SEG_SET(s, c->borrowed, 0);
    }
    seg_request *r = &s->requests[st->request];
    SEG_SET(s, r->used_bytes, r->used_bytes - c->charged_bytes);
    SEG_SET(s, c->live, 0);
    SEG_SET(s, c->next, s->h->chunks.free);
    SEG_SET(s, s->h->chunks.free, chunk);
    SEG_SET(s, s->h->chunks.used, s->h->chunks.used - 1);
    notify_space(s);
    sweep_stream(s, c->stream);
}

void seg_chunk_drop(segment *s, uint32_t chunk, uint32_t bits)
{
    seg_chunk *c = &s->chunks[chunk];
    if (c->wanted & bits)
        SEG_SET(s, c->wanted, c->wanted & ~bits);
    if (c->held & bits)
        SEG_SET(s, c->held, c->held & ~bits);
    if (c->wanted == 0 && c->held == 0)
        chunk_free(s, chunk);
}

/* --- long work: a row of sections, each leaving a state from which anybody can go on --- */

/* Ends a section; now and then lets others have the lock. */
static void breathe(segment *s, unsigned *turns)
{
    seg_commit(s);
    if (++*turns % COMMITS_A_LOCK)
        return;
    seg_unlock(s);
    seg_lock(s);
}

/* Frees one thing of ending request r; false when nothing is left but what consumers hold. */
static bool end_step(segment *s, uint32_t r)
{
    if (s->requests[r].first_stream == SEG_NONE) {
        request_free(s, r);
        return false;
    }
    for (uint32_t i = s->requests[r].first_stream; i != SEG_NONE; i = s->streams[i].next) {
        if (s->streams[i].head == SEG_NONE && s->streams[i].writing == SEG_NONE) {
            stream_free(s, i);
            return true;
        }
        for (uint32_t c = s->streams[i].head; c != SEG_NONE; c = s->chunks[c].next) {
            if (s->chunks[c].wanted == 0)
                continue;
            if (s->chunks[c].held)
                SEG_SET(s, s->chunks[c].wanted, 0);
            else
                seg_chunk_drop(s, c, s->chunks[c].wanted);
            return true;
        }
    }
    return false;
}

/* Under the lock, and lets go of it in between: the record may then stand for another request. */
static void end_steps(segment *s, uint32_t r, uint64_t id, unsigned *turns)
{
    while (s->requests[r].state == SEG_ENDING && s->requests[r].id == id && end_step(s, r))
        breathe(s, turns);
    seg_commit(s);
}

static void end_request(segment *s, uint32_t r, unsigned *turns)
{
    SEG_SET(s, s->requests[r].state, SEG_ENDING);
    for (uint32_t i = s->requests[r].first_stream; i != SEG_NONE; i = s->streams[i].next)
        seg_stream_notify(s, i);
    notify_space(s);
    seg_commit(s);
    end_steps(s, r, s->requests[r].id, turns);
}

void seg_request_end(segment *s, uint64_t id)
{
    unsigned turns = 0;
    seg_lock(s);
    uint32_t r = seg_request_find(s, id);
    if (r != SEG_NONE)
        end_request(s, r, &turns);
    seg_unlock(s);
}

static void reap_producer(segment *s, uint32_t i, uint32_t p)
{
    char message[SEG_ERROR_BYTES];
    g_snprintf(message, sizeof(message), "stream %u: the process producing it (%s, pid %u) is gone",
               s->streams[i].id, s->participants[p].name, s->participants[p].pid);
    SEG_SET(s, s->streams[i].producer, SEG_NONE);
    seg_stream_finish(s, i, SEG_FAILED, CS_ERROR_EXECUTOR_LOST, message);
    seg_commit(s);
}

/* Lets go of one chunk that consumer place `c` holds; false when it holds none. */
static bool unhold_one(segment *s, uint32_t i, unsigned c)
{
    for (uint32_t k = s->streams[i].head; k != SEG_NONE; k = s->chunks[k].next) {
        if (!(s->chunks[k].held & 1u << c))
            continue;
        SEG_SET(s, s->chunks[k].held, s->chunks[k].held & ~(1u << c));
        seg_chunk_drop(s, k, 0);
        return true;
    }
    return false;
}

static void reap_stream(segment *s, uint32_t i, uint32_t p, unsigned *turns)
{
    if (s->streams[i].state != SEG_FREE && s->streams[i].producer == p)
        reap_producer(s, i, p);
    for (unsigned c = 0; c < CS_SIDECAR_CONSUMERS_MAX; c++) {
        while (s->streams[i].state != SEG_FREE && s->streams[i].consumer[c] == p) {
            if (!unhold_one(s, i, c))
                SEG_SET(s, s->streams[i].consumer[c], SEG_NONE);
            breathe(s, turns);
        }
    }
}

void seg_participant_reap(segment *s, uint32_t p)
{
    unsigned turns = 0;
    seg_lock(s);
    for (uint32_t i = 0; i < s->h->streams.high; i++)
        reap_stream(s, i, p, &turns);
    for (uint32_t r = 0; r < s->h->requests.high; r++) {
        if (s->requests[r].state == SEG_OPEN && s->requests[r].owner == p)
            end_request(s, r, &turns);
        else if (s->requests[r].state == SEG_ENDING) /* its ender may have been p */
            end_steps(s, r, s->requests[r].id, &turns);
    }
    if (s->participants[p].live) {
        SEG_SET(s, s->participants[p].live, 0);
        SEG_SET(s, s->h->participants.used, s->h->participants.used - 1);
    }
    seg_unlock(s);
}
