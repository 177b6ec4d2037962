/* Byte-pair merging: ids of characters or bytes to ids of tokens. Internal to src/text.
 *
 * The pair of neighbours with the lowest rank is merged first, the leftmost of equals, until no
 * pair is in the table. Short words scan for the minimum; long ones keep a heap, so that a word of
 * n symbols takes n log n whatever it is made of. */
#ifndef CS_TEXT_BPE_H
#define CS_TEXT_BPE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int32_t left, right; /* left < 0: a free place */
    uint32_t rank;
    int32_t merged;
} bpe_pair;

typedef struct {
    bpe_pair *pairs; /* open addressing */
    size_t n_pairs;
    int shift; /* 64 - log2(capacity) */
} bpe_table;

/* Room for n pairs; false when memory lacks. */
bool bpe_table_init(bpe_table *t, size_t n);
void bpe_table_clear(bpe_table *t);
/* A pair that is there already gets the new rank, as in the reference. */
void bpe_table_add(bpe_table *t, int32_t left, int32_t right, uint32_t rank, int32_t merged);

/* Memory for merging, reused from word to word. */
typedef struct {
    GArray *symbols; /* int32_t: the word, then its tokens */
    void *block;
    size_t block_bytes;
} bpe_scratch;

void bpe_scratch_init(bpe_scratch *s);
void bpe_scratch_clear(bpe_scratch *s);

/* Merges s->symbols in place; false when memory lacks. */
bool bpe_merge(const bpe_table *t, bpe_scratch *s);

#endif
