/* What tokenizer.json says, ready to run: tokenizer_load.c fills it, tokenizer.c encodes with it,
 * detokenizer.c decodes.
 *
 *   text --added tokens--> sections --normalizer--> text --normalised added tokens--> sections
 *        --pre-tokenizer--> words --model (BPE)--> ids
 */
#ifndef CS_TEXT_TOKENIZER_INTERNAL_H
#define CS_TEXT_TOKENIZER_INTERNAL_H

#include "text/bpe.h"
#include "text/normalize.h"
#include "text/regex.h"
#include "text/tokenizer.h"

/* Byte strings by token id, in one block: string i is data[at[i]..at[i + 1]). */
typedef struct {
    GByteArray *data;
    uint32_t *at; /* [n + 1] */
} token_strings;

/* Token ids by byte string: open addressing over ids of one token_strings. */
typedef struct {
    const token_strings *strings; /* borrowed */
    int32_t *ids;                 /* -1: a free place */
    size_t mask;
} token_index;

enum { TOKEN_KNOWN = 1, TOKEN_SPECIAL = 2, TOKEN_BYTE = 4 };

typedef struct {
    int32_t id;
    bool single_word, lstrip, rstrip, special;
} added_token;

typedef struct {
    uint8_t byte;
    int32_t child, sibling; /* node indices; 0: none */
    int32_t token;          /* index into added, or -1 */
} trie_node;

/* Added tokens by content; the longest of those that start leftmost wins. */
typedef struct {
    GArray *nodes; /* trie_node; node 0 is unused */
    int32_t root[256];
} token_trie;

typedef enum { NORMALIZE_STEP_FORM, NORMALIZE_STEP_PREPEND, NORMALIZE_STEP_REPLACE } normalize_kind;

typedef struct {
    normalize_kind kind;
    normalize_form form;
    char *pattern, *content; /* owned; PREPEND has content only */
} normalize_step;

typedef enum {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS
} split_behavior;

typedef enum { PRETOKENIZE_SPLIT, PRETOKENIZE_BYTE_LEVEL, PRETOKENIZE_METASPACE } pretokenize_kind;

typedef enum { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } prepend_scheme;

typedef struct {
    pretokenize_kind kind;
    cs_regex *regex; /* owned; NULL where the step does not split */
    split_behavior behavior;
    bool invert;
    prepend_scheme prepend; /* BYTE_LEVEL: a space; METASPACE: the replacement */
    char *replacement;      /* owned; METASPACE */
} pretokenize_step;

#define MAX_STEPS 16 /* of one pipeline; real files have up to five */

typedef struct text_scratch text_scratch;

struct cs_tokenizer {
    int32_t n_ids;
    token_strings contents; /* as the file spells them */
    token_strings bytes;    /* what they decode to */
    uint8_t *flags;         /* TOKEN_* */
    token_index by_content; /* of the model's vocabulary, not of added tokens */
    token_index by_bytes;   /* only with ignore_merges and byte level */

    GArray *added;         /* added_token */
    GHashTable *added_ids; /* content -> id + 1 */
    token_trie raw_trie, normalized_trie;

    GArray *normalize;   /* normalize_step */
    GArray *pretokenize; /* pretokenize_step */

    bpe_table pairs;
    bool byte_level;
    bool byte_fallback, fuse_unk, ignore_merges;
    int32_t unk_id; /* -1: characters that are not in the vocabulary vanish */
    int32_t
        byte_ids[256]; /* byte level: of each byte; byte fallback: of <0xXX>; -1 where missing */
    bool all_bytes;    /* no byte_ids is -1 */
    int32_t *bmp_ids;  /* [65536] of single characters, -1 where missing; not at byte level */

    /* Decoding beyond `bytes`. */
    char strip_content;    /* this character is stripped from the left ... */
    int strip_left;        /* ... at most so often */
    bool drop_first_space; /* the first token loses all its spaces (Metaspace) */

    int32_t prefix_ids[8], suffix_ids[8];
    int n_prefix, n_suffix;

    GMutex lock;
    text_scratch *scratches; /* free ones; under lock */
};

void text_scratch_free_all(text_scratch *s);

size_t token_strings_get(const token_strings *s, int32_t id, const uint8_t **data);
/* -1 if it is not there. */
int32_t token_index_find(const token_index *index, const void *data, size_t size_bytes);

/* Runs the normalizer on text; the result is in one of the two buffers, or is text itself. */
const char *tokenizer_normalize(const cs_tokenizer *t, GString *buffers[2], const char *text,
                                size_t size_bytes, size_t *normal_bytes);

#endif
