#include "engine/kv_cache.h"

#include "base/error.h"

#include <string.h>
#include <sys/random.h>

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
    uint64_t secret[2];
};

/* ---- SipHash-2-4 with 128 bits of output (Aumasson, Bernstein 2012) ---- */

static inline uint64_t rotate_left(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[1] = rotate_left(v[1], 13) ^ v[0], v[0] = rotate_left(v[0], 32);
    v[2] += v[3], v[3] = rotate_left(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = rotate_left(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = rotate_left(v[1], 17) ^ v[2], v[2] = rotate_left(v[2], 32);
}

static void sip_absorb(uint64_t v[4], const uint64_t *words, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        v[3] ^= words[i];
        sip_round(v);
        sip_round(v);
        v[0] ^= words[i];
    }
}

/* Of `head` [2] and then `words` [n]. */
static cs_kv_key sip_hash(const uint64_t secret[2], const uint64_t head[2], const uint64_t *words,
                          size_t n)
{
    uint64_t v[4] = {0x736f6d6570736575 ^ secret[0], 0x646f72616e646f6d ^ secret[1] ^ 0xee,
                     0x6c7967656e657261 ^ secret[0], 0x7465646279746573 ^ secret[1]};
    uint64_t length = (uint64_t)(n + 2) << 59; /* bytes modulo 256, in the top byte */
    sip_absorb(v, head, 2);
    sip_absorb(v, words, n);
    sip_absorb(v, &length, 1);
    cs_kv_key key;
    v[2] ^= 0xee;
    for (int i = 0; i < 4; i++)
        sip_round(v);
    key.word[0] = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    for (int i = 0; i < 4; i++)
        sip_round(v);
    key.word[1] = v[0] ^ v[1] ^ v[2] ^ v[3];
    return key;
}

static bool keys_equal(cs_kv_key a, cs_kv_key b)
{
    return a.word[0] == b.word[0] && a.word[1] == b.word[1];
}

cs_kv_key cs_kv_cache_root(const cs_kv_cache *cache, const uint64_t salt[2])
{
    return sip_hash(cache->secret, salt, NULL, 0);
}

cs_kv_key cs_kv_cache_key(const cs_kv_cache *cache, cs_kv_key previous, const cs_kv_row *rows)
{
    uint64_t words[ROWS_BYTES / sizeof(uint64_t)];
    memcpy(words, rows, ROWS_BYTES);
    return sip_hash(cache->secret, previous.word, words, G_N_ELEMENTS(words));
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
    if (getrandom(cache->secret, sizeof cache->secret, 0) != sizeof cache->secret) {
        cs_kv_cache_free(cache);
        cs_fail(error, CS_ERROR_FAILED, "KV cache: the system gives no random bytes");
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
