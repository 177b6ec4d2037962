#include "text/bpe.h"

#include <string.h>

/* Up to here scanning for the minimum beats a heap. */
#define SCAN_MAX_SYMBOLS 40
#define NO_RANK UINT32_MAX

static size_t place_of(const bpe_table *t, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return (size_t)((key * 0x9E3779B97F4A7C15u) >> t->shift);
}

static size_t capacity_of(const bpe_table *t)
{
    return (size_t)1 << (64 - t->shift);
}

bool bpe_table_init(bpe_table *t, size_t n)
{
    *t = (bpe_table){.shift = 60};
    while (capacity_of(t) / 2 < n)
        t->shift--;
    t->pairs = g_try_new(bpe_pair, capacity_of(t));
    if (!t->pairs)
        return false;
    for (size_t i = 0; i < capacity_of(t); i++)
        t->pairs[i].left = -1;
    return true;
}

void bpe_table_clear(bpe_table *t)
{
    g_clear_pointer(&t->pairs, g_free);
}

static bpe_pair *find(const bpe_table *t, int32_t left, int32_t right)
{
    size_t mask = capacity_of(t) - 1;
    for (size_t i = place_of(t, left, right);; i = (i + 1) & mask) {
        bpe_pair *pair = &t->pairs[i];
        if (pair->left < 0 || (pair->left == left && pair->right == right))
            return pair;
    }
}

void bpe_table_add(bpe_table *t, int32_t left, int32_t right, uint32_t rank, int32_t merged)
{
    bpe_pair *pair = find(t, left, right);
    if (pair->left < 0)
        t->n_pairs++;
    *pair = (bpe_pair){.left = left, .right = right, .rank = rank, .merged = merged};
}

static uint32_t look_up(const bpe_table *t, int32_t left, int32_t right, int32_t *merged)
{
    const bpe_pair *pair = find(t, left, right);
    *merged = pair->merged;
    return pair->left < 0 ? NO_RANK : pair->rank;
}

void bpe_scratch_init(bpe_scratch *s)
{
    *s = (bpe_scratch){.symbols = g_array_new(FALSE, FALSE, sizeof(int32_t))};
}

void bpe_scratch_clear(bpe_scratch *s)
{
    g_array_unref(s->symbols);
    g_free(s->block);
}

static void merge_by_scan(const bpe_table *t, int32_t *symbols, guint *length)
{
    uint32_t ranks[SCAN_MAX_SYMBOLS];
    int32_t merged[SCAN_MAX_SYMBOLS];
    guint n = *length;
    for (guint i = 0; i + 1 < n; i++)
        ranks[i] = look_up(t, symbols[i], symbols[i + 1], &merged[i]);
    while (n > 1) {
        guint best = 0;
        for (guint i = 1; i + 1 < n; i++) {
            if (ranks[i] < ranks[best])
                best = i;
        }
        if (ranks[best] == NO_RANK)
            break;
        symbols[best] = merged[best];
        n--;
        for (guint i = best + 1; i < n; i++) {
            symbols[i] = symbols[i + 1];
            ranks[i - 1] = ranks[i];
            merged[i - 1] = merged[i];
        }
        if (best > 0)
            ranks[best - 1] = look_up(t, symbols[best - 1], symbols[best], &merged[best - 1]);
        if (best + 1 < n)
            ranks[best] = look_up(t, symbols[best], symbols[best + 1], &merged[best]);
    }
    *length = n;
}

/* A word as a list, the rank of each symbol's pair with its right neighbour, and a heap of
 * rank << 32 | position. An entry of the heap is stale when the rank at its position has changed.
 */
typedef struct {
    const bpe_table *table;
    int32_t *symbols; /* -1: merged away */
    uint32_t *previous, *next, *ranks;
    int32_t *merged;
    uint64_t *heap;
    size_t n_heap;
    uint32_t n;
} long_word;

static void heap_push(long_word *w, uint64_t key)
{
    size_t at = w->n_heap++;
    while (at > 0 && w->heap[(at - 1) / 2] > key) {
        w->heap[at] = w->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    w->heap[at] = key;
}

static uint64_t heap_pop(long_word *w)
{
    uint64_t least = w->heap[0], key = w->heap[--w->n_heap];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= w->n_heap)
            break;
        if (child + 1 < w->n_heap && w->heap[child + 1] < w->heap[child])
            child++;
        if (w->heap[child] >= key)
            break;
        w->heap[at] = w->heap[child];
        at = child;
    }
    w->heap[at] = key;
    return least;
}

static void rank_pair(long_word *w, uint32_t at)
{
    uint32_t right = w->next[at];
    w->ranks[at] = right == w->n
                       ? NO_RANK
                       : look_up(w->table, w->symbols[at], w->symbols[right], &w->merged[at]);
    if (w->ranks[at] != NO_RANK)
        heap_push(w, (uint64_t)w->ranks[at] << 32 | at);
}

static void merge_pair(long_word *w, uint32_t at)
{
    uint32_t right = w->next[at];
    w->symbols[at] = w->merged[at];
    w->symbols[right] = -1;
    w->ranks[right] = NO_RANK;
    w->next[at] = w->next[right];
    if (w->next[at] < w->n)
        w->previous[w->next[at]] = at;
    rank_pair(w, at);
    if (at > 0)
        rank_pair(w, w->previous[at]);
}

static bool merge_by_heap(const bpe_table *t, bpe_scratch *s)
{
    size_t n = s->symbols->len;
    /* The heap takes n - 1 pairs first, and a merge takes one out and puts at most two in. */
    size_t needed_bytes = n * (2 * sizeof(uint64_t) + 3 * sizeof(uint32_t) + sizeof(int32_t));
    if (needed_bytes > s->block_bytes) {
        g_free(s->block);
        s->block = g_try_malloc(needed_bytes);
        s->block_bytes = s->block ? needed_bytes : 0;
        if (!s->block)
            return false;
    }
    long_word w = {.table = t, .symbols = (int32_t *)(void *)s->symbols->data, .n = (uint32_t)n};
    w.heap = s->block;
    w.previous = (uint32_t *)(w.heap + 2 * n);
    w.next = w.previous + n;
    w.ranks = w.next + n;
    w.merged = (int32_t *)(w.ranks + n);
    for (uint32_t i = 0; i < w.n; i++) {
        w.previous[i] = i - 1;
        w.next[i] = i + 1;
    }
    for (uint32_t i = 0; i < w.n; i++)
        rank_pair(&w, i);
    while (w.n_heap > 0) {
        uint64_t key = heap_pop(&w);
        uint32_t at = (uint32_t)key;
        if (w.ranks[at] == (uint32_t)(key >> 32))
            merge_pair(&w, at);
    }
    guint kept = 0;
    for (uint32_t i = 0; i < w.n; i++) {
        if (w.symbols[i] >= 0)
            w.symbols[kept++] = w.symbols[i];
    }
    g_array_set_size(s->symbols, kept);
    return true;
}

/* A block kept for the next word is at most this large. */
#define KEEP_BLOCK_BYTES (1u << 20)

bool bpe_merge(const bpe_table *t, bpe_scratch *s)
{
    if (s->symbols->len <= SCAN_MAX_SYMBOLS) {
        merge_by_scan(t, (int32_t *)(void *)s->symbols->data, &s->symbols->len);
        return true;
    }
    bool ok = merge_by_heap(t, s);
    if (s->block_bytes > KEEP_BLOCK_BYTES) {
        g_clear_pointer(&s->block, g_free);
        s->block_bytes = 0;
    }
    return ok;
}
