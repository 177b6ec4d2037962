/* The numbering of KV blocks: who holds which block, and which blocks hold what prefix.
 *
 * A block is free, held (by one sequence or, shared, by several), or cached: held by nobody, but
 * its contents are known and found again by the prefix cache until the block is wanted for
 * something else. The least recently held goes first, and of one sequence its last block first, so
 * that a prefix outlives what follows it.
 *
 * A full block is published under a key: a 128-bit SipHash with a key of this process over the
 * block's rows and the key of the block before it, so that a key stands for the whole prefix. On a
 * hit the rows and the previous key are compared, not only the hash.
 *
 * The keys and values themselves live in the component; blocks are numbers here. One thread.
 */
#ifndef CS_ENGINE_KV_CACHE_H
#define CS_ENGINE_KV_CACHE_H

#include "models/llm.h"

typedef struct cs_kv_cache cs_kv_cache;

/* What makes the keys and values of a row, besides the rows before it. Hashed and compared as
 * bytes. */
typedef struct {
    int32_t token_id;
    int32_t position[3];
    uint64_t content_hash[2]; /* of the medium whose embedding the row takes; 0 for text */
    uint32_t source_row;
    uint32_t zero;
} cs_kv_row;

G_STATIC_ASSERT(sizeof(cs_kv_row) == 40);

typedef struct {
    uint64_t word[2];
} cs_kv_key;

/* CS_ERROR_FAILED when there is no memory. About 1.4 KB a block with the prefix cache. */
cs_kv_cache *cs_kv_cache_new(uint32_t n_blocks, bool prefix_cache, GError **error);
void cs_kv_cache_free(cs_kv_cache *cache); /* accepts NULL */

/* The key before the first block of sequences that may share under `salt`. */
cs_kv_key cs_kv_cache_root(const uint64_t salt[2]);
/* The key of a full block [CS_LLM_BLOCK_TOKENS rows] after `previous`. */
cs_kv_key cs_kv_cache_key(cs_kv_key previous, const cs_kv_row *rows);

/* A block that nobody holds, held once by the caller; -1 when all are held. */
int32_t cs_kv_cache_take(cs_kv_cache *cache);
/* The published block of a key, held once more; -1 when there is none. */
int32_t cs_kv_cache_find(cs_kv_cache *cache, cs_kv_key key, cs_kv_key previous,
                         const cs_kv_row *rows);
/* Makes a held block findable. Without effect when the key has a block already. */
void cs_kv_cache_publish(cs_kv_cache *cache, int32_t block, cs_kv_key key, cs_kv_key previous,
                         const cs_kv_row *rows);
void cs_kv_cache_hold(cs_kv_cache *cache, int32_t block);
void cs_kv_cache_release(cs_kv_cache *cache, int32_t block);
/* How many hold a block. */
uint32_t cs_kv_cache_holders(const cs_kv_cache *cache, int32_t block);

uint32_t cs_kv_cache_available(const cs_kv_cache *cache); /* free and cached */
uint32_t cs_kv_cache_cached(const cs_kv_cache *cache);    /* cached, held by nobody */
uint32_t cs_kv_cache_total(const cs_kv_cache *cache);

#endif
