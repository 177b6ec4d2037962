#include "engine/kv_cache.h"

#include "base/error.h"
#include "base/siphash.h"

#include <string.h>

#define ROWS_BYTES (CS_LLM_BLOCK_TOKENS * sizeof(cs_kv_row))
#define NONE (-1)

/* Blocks that nobody holds form a list, next to be taken at the head; published ones a hash table
 * of chains. Both link block numbers. */
typedef struct {
    uint32_t holders;
    bool published;
    int32_t list_previous, list_next;
    int32_t chain_next;
    cs_kv_key key, previous;
} block_state;

struct cs_kv_cache {
    uint32_t n_blocks;
    uint32_t n_available, n_cached;
    int32_t list_head, list_tail;
    block_state *blocks; /* [n_blocks] */
    cs_kv_row *rows;     /* [n_blocks][CS_LLM_BLOCK_TOKENS]; NULL: no prefix cache */
    int32_t *buckets;    /* [n_buckets] */
    uint32_t n_buckets;  /* a power of two */
};

/* ---- Keys ---- */

/* Domains of base/siphash.h. */
enum { DOMAIN_ROOT = 0x6b7672, DOMAIN_BLOCK = 0x6b7662 };

static bool keys_equal(cs_kv_key a, cs_kv_key b)
{
    return a.word[0] == b.word[0] && a.word[1] == b.word[1];
}

cs_kv_key cs_kv_cache_root(const uint64_t salt[2])
{
    cs_kv_key key;
    cs_siphash128(DOMAIN_ROOT, salt, 2 * sizeof *salt, key.word);
    return key;
}

cs_kv_key cs_kv_cache_key(cs_kv_key previous, const cs_kv_row *rows)
{
    struct {
        cs_kv_key previous;
        cs_kv_row rows[CS_LLM_BLOCK_TOKENS];
    } content = {.previous = previous};
    cs_kv_key key;
    memcpy(content.rows, rows, ROWS_BYTES);
    cs_siphash128(DOMAIN_BLOCK, &content, sizeof content, key.word);
    return key;
}

/* ---- The list of blocks that nobody holds ---- */

static void list_remove(cs_kv_cache *cache, int32_t block)
{
    block_state *b = &cache->blocks[block];
    if (b->list_previous == NONE)
        cache->list_head = b->list_next;
    else
        cache->blocks[b->list_previous].list_next = b->list_next;
    if (b->list_next == NONE)
        cache->list_tail = b->list_previous;
    else
        cache->blocks[b->list_next].list_previous = b->list_previous;
    cache->n_available--;
    cache->n_cached -= b->published;
}

/* Unpublished blocks are of no use to anyone: they are taken first. */
static void list_insert(cs_kv_cache *cache, int32_t block)
{
    block_state *b = &cache->blocks[block];
    bool at_tail = b->published;
    b->list_previous = at_tail ? cache->list_tail : NONE;
    b->list_next = at_tail ? NONE : cache->list_head;
    if (b->list_previous == NONE)
        cache->list_head = block;
    else
        cache->blocks[b->list_previous].list_next = block;
    if (b->list_next == NONE)
        cache->list_tail = block;
    else
        cache->blocks[b->list_next].list_previous = block;
    cache->n_available++;
    cache->n_cached += b->published;
}

/* ---- The table of published blocks ---- */

static int32_t *bucket_of(const cs_kv_cache *cache, cs_kv_key key)
{
    return &cache->buckets[key.word[0] & (cache->n_buckets - 1)];
}

static int32_t lookup(const cs_kv_cache *cache, cs_kv_key key)
{
    int32_t block = *bucket_of(cache, key);
    while (block != NONE && !keys_equal(cache->blocks[block].key, key))
        block = cache->blocks[block].chain_next;
    return block;
}

static void unpublish(cs_kv_cache *cache, int32_t block)
{
    block_state *b = &cache->blocks[block];
    int32_t *link = bucket_of(cache, b->key);
    while (*link != block)
        link = &cache->blocks[*link].chain_next;
    *link = b->chain_next;
    b->published = false;
}

/* ---- Life ---- */

static bool allocate(cs_kv_cache *cache, bool prefix_cache)
{
    cache->blocks = g_try_new0(block_state, cache->n_blocks);
    if (!cache->blocks)
        return false;
    if (!prefix_cache)
        return true;
    cache->n_buckets = 16;
    while (cache->n_buckets < cache->n_blocks)
        cache->n_buckets *= 2;
    cache->rows = g_try_malloc_n(cache->n_blocks, ROWS_BYTES);
    cache->buckets = g_try_new(int32_t, cache->n_buckets);
    return cache->rows && cache->buckets;
}

cs_kv_cache *cs_kv_cache_new(uint32_t n_blocks, bool prefix_cache, GError **error)
{
    g_assert(n_blocks > 0 && n_blocks <= 1u << 30);
    cs_kv_cache *cache = g_new0(cs_kv_cache, 1);
    cache->n_blocks = n_blocks;
    if (!allocate(cache, prefix_cache)) {
        cs_kv_cache_free(cache);
        cs_fail(error, CS_ERROR_FAILED, "KV cache: no memory to keep account of %u blocks",
                n_blocks);
        return NULL;
    }
    cache->list_head = cache->list_tail = NONE;
    for (uint32_t i = n_blocks; i-- > 0;)
        list_insert(cache, (int32_t)i);
    for (uint32_t i = 0; i < cache->n_buckets; i++)
        cache->buckets[i] = NONE;
    return cache;
}

void cs_kv_cache_free(cs_kv_cache *cache)
{
    if (!cache)
        return;
    g_free(cache->blocks);
    g_free(cache->rows);
    g_free(cache->buckets);
    g_free(cache);
}

/* ---- Use ---- */

int32_t cs_kv_cache_take(cs_kv_cache *cache)
{
    int32_t block = cache->list_head;
    if (block == NONE)
        return -1;
    list_remove(cache, block);
    if (cache->blocks[block].published)
        unpublish(cache, block);
    cache->blocks[block].holders = 1;
    return block;
}

int32_t cs_kv_cache_find(cs_kv_cache *cache, cs_kv_key key, cs_kv_key previous,
                         const cs_kv_row *rows)
{
    if (!cache->rows)
        return -1;
    int32_t block = lookup(cache, key);
    if (block == NONE || !keys_equal(cache->blocks[block].previous, previous) ||
        memcmp(cache->rows + (size_t)block * CS_LLM_BLOCK_TOKENS, rows, ROWS_BYTES) != 0)
        return -1;
    cs_kv_cache_hold(cache, block);
    return block;
}

void cs_kv_cache_publish(cs_kv_cache *cache, int32_t block, cs_kv_key key, cs_kv_key previous,
                         const cs_kv_row *rows)
{
    block_state *b = &cache->blocks[block];
    g_assert(b->holders > 0);
    if (!cache->rows || b->published || lookup(cache, key) != NONE)
        return;
    b->published = true;
    b->key = key;
    b->previous = previous;
    memcpy(cache->rows + (size_t)block * CS_LLM_BLOCK_TOKENS, rows, ROWS_BYTES);
    int32_t *bucket = bucket_of(cache, key);
    b->chain_next = *bucket;
    *bucket = block;
}

void cs_kv_cache_hold(cs_kv_cache *cache, int32_t block)
{
    if (cache->blocks[block].holders++ == 0)
        list_remove(cache, block);
}

void cs_kv_cache_release(cs_kv_cache *cache, int32_t block)
{
    g_assert(cache->blocks[block].holders > 0);
    if (--cache->blocks[block].holders == 0)
        list_insert(cache, block);
}

uint32_t cs_kv_cache_holders(const cs_kv_cache *cache, int32_t block)
{
    return cache->blocks[block].holders;
}

uint32_t cs_kv_cache_available(const cs_kv_cache *cache)
{
    return cache->n_available;
}

uint32_t cs_kv_cache_cached(const cs_kv_cache *cache)
{
    return cache->n_cached;
}

uint32_t cs_kv_cache_total(const cs_kv_cache *cache)
{
    return cache->n_blocks;
}
