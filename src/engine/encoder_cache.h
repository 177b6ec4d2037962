/* Outputs of encoders by the content they were made from, least recently used out first.
 *
 * The caller serialises all calls. Keys are 128-bit content hashes and are trusted.
 */
#ifndef CS_ENGINE_ENCODER_CACHE_H
#define CS_ENGINE_ENCODER_CACHE_H

#include "tensor/tensor.h"

typedef struct cs_encoder_cache cs_encoder_cache;

cs_encoder_cache *cs_encoder_cache_new(size_t max_bytes);
void cs_encoder_cache_free(cs_encoder_cache *cache); /* accepts NULL */

/* A new reference, or NULL. */
cs_shared_tensor *cs_encoder_cache_find(cs_encoder_cache *cache, const uint64_t key[2]);
/* Takes a reference. An output larger than the whole cache is not kept. */
void cs_encoder_cache_add(cs_encoder_cache *cache, const uint64_t key[2], cs_shared_tensor *output);
size_t cs_encoder_cache_bytes(const cs_encoder_cache *cache);

#endif
