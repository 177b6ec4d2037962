/* A binary buddy allocator over the pool's units, its state in the segment.
 *
 * A request for n units takes the smallest block of 2^k >= n and gives the tail back at once, so
 * that less than one unit is lost per chunk, whatever its size. A run is freed as the aligned
 * blocks that make it up, each merged with its buddy as far as that is free. Free lists are last
 * in, first out: the next chunk lands in memory that is mapped and warm. */
#include "base/error.h"
#include "sidecar/segment.h"

static void list_push(segment *s, unsigned order, uint32_t unit)
{
    uint32_t head = s->h->order_head[order];
    SEG_SET(s, s->links[unit].prev, SEG_NONE);
    SEG_SET(s, s->links[unit].next, head);
    if (head != SEG_NONE)
        SEG_SET(s, s->links[head].prev, unit);
    SEG_SET(s, s->h->order_head[order], unit);
    SEG_SET(s, s->tags[unit], order + 1);
}

static void list_remove(segment *s, unsigned order, uint32_t unit)
{
    seg_unit_link link = s->links[unit];
    if (link.prev != SEG_NONE)
        SEG_SET(s, s->links[link.prev].next, link.next);
    else
        SEG_SET(s, s->h->order_head[order], link.next);
    if (link.next != SEG_NONE)
        SEG_SET(s, s->links[link.next].prev, link.prev);
    SEG_SET(s, s->tags[unit], 0);
}

static void free_block(segment *s, uint32_t unit, unsigned order)
{
    for (; order + 1 < SEG_ORDERS; order++) {
        uint32_t buddy = unit ^ (1u << order);
        if ((uint64_t)buddy + (1u << order) > s->h->unit_count || s->tags[buddy] != order + 1)
            break;
        list_remove(s, order, buddy);
        unit = MIN(unit, buddy);
    }
    list_push(s, order, unit);
}

/* The largest aligned block that starts at `unit` and does not pass `end`. */
static unsigned block_order(uint32_t unit, uint32_t end)
{
    unsigned by_size = 31u - (unsigned)__builtin_clz(end - unit);
    unsigned by_alignment = unit == 0 ? SEG_ORDERS - 1 : (unsigned)__builtin_ctz(unit);
    return MIN(by_size, by_alignment);
}

static void free_run(segment *s, uint32_t unit, uint32_t end)
{
    while (unit < end) {
        unsigned order = block_order(unit, end);
        free_block(s, unit, order);
        unit += 1u << order;
    }
}

void pool_init(segment *s)
{
    for (unsigned i = 0; i < SEG_ORDERS; i++)
        s->h->order_head[i] = SEG_NONE;
    free_run(s, 0, s->h->unit_count);
    seg_commit(s);
}

uint32_t pool_alloc(segment *s, uint32_t n_units)
{
    unsigned order = n_units <= 1 ? 0 : 32u - (unsigned)__builtin_clz(n_units - 1);
    unsigned from = order;
    while (from < SEG_ORDERS && s->h->order_head[from] == SEG_NONE)
        from++;
    if (from >= SEG_ORDERS)
        return SEG_NONE;
    uint32_t unit = s->h->order_head[from];
    list_remove(s, from, unit);
    free_run(s, unit + n_units, unit + (1u << from));
    SEG_SET(s, s->h->used_units, s->h->used_units + n_units);
    return unit;
}

void pool_free(segment *s, uint32_t unit, uint32_t n_units)
{
    free_run(s, unit, unit + n_units);
    SEG_SET(s, s->h->used_units, s->h->used_units - n_units);
}

bool pool_check(segment *s, uint64_t *free_units, GError **error)
{
    *free_units = 0;
    for (unsigned order = 0; order < SEG_ORDERS; order++) {
        uint32_t prev = SEG_NONE;
        for (uint32_t u = s->h->order_head[order]; u != SEG_NONE; u = s->links[u].next) {
            uint64_t end = (uint64_t)u + (1ull << order);
            if (end > s->h->unit_count || s->tags[u] != order + 1 || s->links[u].prev != prev)
                return cs_fail(error, CS_ERROR_FAILED,
                               "sidecar: free block of order %u at unit %u is damaged", order, u);
            *free_units += 1ull << order;
            if (*free_units > s->h->unit_count)
                return cs_fail(error, CS_ERROR_FAILED, "sidecar: free list %u has a cycle", order);
            prev = u;
        }
    }
    if (*free_units + s->h->used_units != s->h->unit_count)
        return cs_fail(error, CS_ERROR_FAILED,
                       "sidecar: %" G_GUINT64_FORMAT " units free and %" G_GUINT64_FORMAT
                       " used, expected %u together",
                       *free_units, s->h->used_units, s->h->unit_count);
    return true;
}
