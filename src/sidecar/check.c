/* The invariants of a segment, for tests and for the agent after a death: every record is reachable
 * exactly once, and the sums of units, bytes and records agree. */
#include "base/error.h"
#include "sidecar/segment.h"

typedef struct {
    uint64_t units, borrowed_bytes, request_bytes;
    uint32_t requests, streams, chunks;
} census;

static bool check_chunk(segment *s, uint32_t i, uint32_t stream, uint32_t prev, census *sum,
                        GError **error)
{
    const seg_chunk *c = &s->chunks[i];
    bool writing = s->streams[stream].writing == i;
    if (!c->live || c->stream != stream || c->prev != prev)
        return cs_fail(error, CS_ERROR_FAILED, "sidecar: chunk %u of stream %u: damaged record", i,
                       stream);
    if (c->wanted == 0 && c->held == 0)
        return cs_fail(error, CS_ERROR_FAILED, "sidecar: chunk %u of stream %u: kept for nobody", i,
                       stream);
    if (writing != ((c->held & SEG_WRITER) != 0))
        return cs_fail(error, CS_ERROR_FAILED, "sidecar: chunk %u of stream %u: writer's hold", i,
                       stream);
    sum->units += c->n_units;
    sum->borrowed_bytes += c->borrowed ? c->size_bytes : 0;
    sum->request_bytes += c->charged_bytes;
    sum->chunks++;
    return sum->chunks <= s->h->chunks.max;
}

static bool check_stream(segment *s, uint32_t i, uint32_t request, census *sum, GError **error)
{
    const seg_stream *st = &s->streams[i];
    if (st->state == SEG_FREE || st->request != request)
        return cs_fail(error, CS_ERROR_FAILED, "sidecar: stream record %u: damaged", i);
    if (++sum->streams > s->h->streams.max)
        return cs_fail(error, CS_ERROR_FAILED, "sidecar: list of streams has a cycle");
    uint32_t prev = SEG_NONE;
    for (uint32_t c = st->head; c != SEG_NONE; c = s->chunks[c].next) {
        if (!check_chunk(s, c, i, prev, sum, error))
            return false;
        prev = c;
    }
    if (st->tail != prev)
        return cs_fail(error, CS_ERROR_FAILED, "sidecar: stream record %u: tail is %u, expected %u",
                       i, st->tail, prev);
    return st->writing == SEG_NONE || check_chunk(s, st->writing, i, SEG_NONE, sum, error);
}

static bool check_request(segment *s, uint32_t r, census *sum, GError **error)
{
    sum->request_bytes = 0;
    sum->requests++;
    for (uint32_t i = s->requests[r].first_stream; i != SEG_NONE; i = s->streams[i].next)
        if (!check_stream(s, i, r, sum, error))
            return false;
    if (sum->request_bytes != s->requests[r].used_bytes)
        return cs_fail(error, CS_ERROR_FAILED,
                       "sidecar: request %" G_GUINT64_FORMAT " is charged %" G_GUINT64_FORMAT
                       " bytes and has %" G_GUINT64_FORMAT,
                       s->requests[r].id, s->requests[r].used_bytes, sum->request_bytes);
    return true;
}

static uint32_t count_free(const seg_table *table, uint32_t first,
                           uint32_t (*next)(segment *, uint32_t), segment *s)
{
    uint32_t n = 0;
    for (uint32_t i = first; i != SEG_NONE && n <= table->high; i = next(s, i))
        n++;
    return n;
}

static uint32_t request_link(segment *s, uint32_t i)
{
    return s->requests[i].bucket_next;
}

static uint32_t stream_link(segment *s, uint32_t i)
{
    return s->streams[i].next;
}

static uint32_t chunk_link(segment *s, uint32_t i)
{
    return s->chunks[i].next;
}

static bool check_table(segment *s, const char *what, const seg_table *table,
                        uint32_t (*next)(segment *, uint32_t), uint32_t found, GError **error)
{
    uint32_t n_free = count_free(table, table->free, next, s);
    if (table->used == found && found + n_free == table->high)
        return true;
    return cs_fail(error, CS_ERROR_FAILED,
                   "sidecar: %s: %u reachable, %u counted, %u free, %u ever used", what, found,
                   table->used, n_free, table->high);
}

bool seg_check(segment *s, GError **error)
{
    census sum = {0};
    uint64_t free_units = 0;
    if (!pool_check(s, &free_units, error))
        return false;
    for (uint32_t b = 0; b < s->h->bucket_count; b++)
        for (uint32_t r = s->buckets[b]; r != SEG_NONE; r = s->requests[r].bucket_next)
            if (sum.requests > s->h->requests.max || !check_request(s, r, &sum, error))
                return false;
    if (sum.units != s->h->used_units || sum.borrowed_bytes != s->h->borrowed_bytes)
        return cs_fail(error, CS_ERROR_FAILED,
                       "sidecar: chunks hold %" G_GUINT64_FORMAT
                       " units and borrow %" G_GUINT64_FORMAT " bytes, expected %" G_GUINT64_FORMAT
                       " and %" G_GUINT64_FORMAT,
                       sum.units, sum.borrowed_bytes, s->h->used_units, s->h->borrowed_bytes);
    return check_table(s, "requests", &s->h->requests, request_link, sum.requests, error) &&
           check_table(s, "streams", &s->h->streams, stream_link, sum.streams, error) &&
           check_table(s, "chunks", &s->h->chunks, chunk_link, sum.chunks, error);
}
