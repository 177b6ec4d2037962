#include "engine/encoder_cache.h"

#include <string.h>

typedef struct {
    uint64_t key[2]; /* first: entries are their own keys in the table */
    cs_shared_tensor *output;
    size_t size_bytes;
    GList link; /* in order of use, the latest at the head */
} cache_entry;

struct cs_encoder_cache {
    GHashTable *entries;
    GQueue order;
    size_t size_bytes, max_bytes;
};

static guint hash_key(gconstpointer key)
{
    const uint64_t *words = key;
    return (guint)(words[0] ^ words[1] >> 32);
}

static gboolean equal_keys(gconstpointer a, gconstpointer b)
{
    return memcmp(a, b, 2 * sizeof(uint64_t)) == 0;
}

static void free_entry(gpointer data)
{
    cache_entry *entry = data;
    cs_shared_tensor_unref(entry->output);
    g_free(entry);
}

cs_encoder_cache *cs_encoder_cache_new(size_t max_bytes)
{
    cs_encoder_cache *cache = g_new0(cs_encoder_cache, 1);
    cache->max_bytes = max_bytes;
    cache->entries = g_hash_table_new_full(hash_key, equal_keys, NULL, free_entry);
    g_queue_init(&cache->order);
    return cache;
}

void cs_encoder_cache_free(cs_encoder_cache *cache)
{
    if (!cache)
        return;
    g_hash_table_unref(cache->entries);
    g_free(cache);
}

cs_shared_tensor *cs_encoder_cache_find(cs_encoder_cache *cache, const uint64_t key[2])
{
    cache_entry *entry = g_hash_table_lookup(cache->entries, key);
    if (!entry)
        return NULL;
    g_queue_unlink(&cache->order, &entry->link);
    g_queue_push_head_link(&cache->order, &entry->link);
    return cs_shared_tensor_ref(entry->output);
}

static void drop_oldest(cs_encoder_cache *cache)
{
    cache_entry *entry = g_queue_pop_tail_link(&cache->order)->data;
    cache->size_bytes -= entry->size_bytes;
    g_hash_table_remove(cache->entries, entry);
}

void cs_encoder_cache_add(cs_encoder_cache *cache, const uint64_t key[2], cs_shared_tensor *output)
{
    const cs_tensor *t = &output->t;
    size_t size_bytes = (size_t)(t->rows * t->stride) * cs_dtype_size_bytes(t->dtype);
    if (size_bytes > cache->max_bytes || g_hash_table_contains(cache->entries, key))
        return;
    while (cache->size_bytes + size_bytes > cache->max_bytes)
        drop_oldest(cache);
    cache_entry *entry = g_new0(cache_entry, 1);
    entry->key[0] = key[0];
    entry->key[1] = key[1];
    entry->output = cs_shared_tensor_ref(output);
    entry->size_bytes = size_bytes;
    entry->link.data = entry;
    g_queue_push_head_link(&cache->order, &entry->link);
    g_hash_table_insert(cache->entries, entry, entry);
    cache->size_bytes += size_bytes;
}

size_t cs_encoder_cache_bytes(const cs_encoder_cache *cache)
{
    return cache->size_bytes;
}
