#include "text/tokenizer_internal.h"

#include "base/error.h"
#include "text/utf8.h"

#include <string.h>

#define GUARD '\xFF'

/* Words of at most this many bytes that become at most so many tokens are remembered. Together with
 * its lengths an entry fills a cache line; all of them fill the second-level cache of a large core.
 */
#define CACHE_WORD_BYTES 24
#define CACHE_IDS 9
#define CACHE_BITS 15

typedef struct {
    uint64_t word[CACHE_WORD_BYTES / 8]; /* padded with zeros */
    uint8_t size_bytes;                  /* 0: a free place */
    uint8_t n_ids;
    int32_t ids[CACHE_IDS];
} cache_entry;

typedef struct {
    size_t start, end;
    bool is_match;
} text_range;

/* What one encoding call needs; kept with the tokenizer from call to call. */
struct text_scratch {
    text_scratch *next;
    cs_regex_scratch *regex;
    bpe_scratch bpe;
    GString *clean;
    GString *normal[2];
    GString *steps[MAX_STEPS + 1]; /* text rewritten by pre-tokenizer step i */
    GArray *ranges[MAX_STEPS + 1]; /* text_range */
    GArray *guards;                /* size_t: offsets in clean */
    cache_entry cache[1 << CACHE_BITS];
};

typedef struct {
    const cs_tokenizer *t;
    text_scratch *s;
    cs_encode_flags flags;
    bool late; /* cs_regex_has_late of the whole text */
    GArray *ids;
    GError **error;
} encoder;

static text_scratch *scratch_new(void)
{
    text_scratch *s = g_new0(text_scratch, 1);
    s->regex = cs_regex_scratch_new();
    bpe_scratch_init(&s->bpe);
    s->clean = g_string_new(NULL);
    s->normal[0] = g_string_new(NULL);
    s->normal[1] = g_string_new(NULL);
    s->guards = g_array_new(FALSE, FALSE, sizeof(size_t));
    for (int i = 0; i <= MAX_STEPS; i++) {
        s->steps[i] = g_string_new(NULL);
        s->ranges[i] = g_array_new(FALSE, FALSE, sizeof(text_range));
    }
    return s;
}

static void scratch_free(text_scratch *s)
{
    cs_regex_scratch_free(s->regex);
    bpe_scratch_clear(&s->bpe);
    g_string_free(s->clean, TRUE);
    g_string_free(s->normal[0], TRUE);
    g_string_free(s->normal[1], TRUE);
    g_array_unref(s->guards);
    for (int i = 0; i <= MAX_STEPS; i++) {
        g_string_free(s->steps[i], TRUE);
        g_array_unref(s->ranges[i]);
    }
    g_free(s);
}

void text_scratch_free_all(text_scratch *s)
{
    while (s) {
        text_scratch *next = s->next;
        scratch_free(s);
        s = next;
    }
}

static text_scratch *scratch_borrow(const cs_tokenizer *tokenizer)
{
    cs_tokenizer *t = (cs_tokenizer *)tokenizer; /* only the pool changes, under its lock */
    g_mutex_lock(&t->lock);
    text_scratch *s = t->scratches;
    if (s)
        t->scratches = s->next;
    g_mutex_unlock(&t->lock);
    return s ? s : scratch_new();
}

/* A scratch whose buffers a long text has grown is not kept. */
static void scratch_return(const cs_tokenizer *tokenizer, text_scratch *s, size_t size_bytes)
{
    cs_tokenizer *t = (cs_tokenizer *)tokenizer;
    if (size_bytes > 1u << 20) {
        scratch_free(s);
        return;
    }
    g_mutex_lock(&t->lock);
    s->next = t->scratches;
    t->scratches = s;
    g_mutex_unlock(&t->lock);
}

static bool no_memory(encoder *e)
{
    return cs_fail(e->error, CS_ERROR_BUSY, "tokenizer: not enough memory for a text this long");
}

static bool add_byte_word(encoder *e, const char *word, size_t size_bytes)
{
    const cs_tokenizer *t = e->t;
    bpe_scratch *bpe = &e->s->bpe;
    if (t->ignore_merges) {
        int32_t id = token_index_find(&t->by_bytes, word, size_bytes);
        if (id >= 0) {
            g_array_set_size(bpe->symbols, 0);
            g_array_append_val(bpe->symbols, id);
            return true;
        }
    }
    g_array_set_size(bpe->symbols, (guint)size_bytes);
    int32_t *symbols = (int32_t *)(void *)bpe->symbols->data;
    guint n = 0;
    bool unknown = false; /* the last byte was one, and is not written yet */
    for (size_t i = 0; i < size_bytes; i++) {
        int32_t id = t->byte_ids[(uint8_t)word[i]];
        if (id < 0 && t->unk_id < 0)
            continue;
        if (id < 0 && !(unknown && t->fuse_unk))
            symbols[n++] = t->unk_id;
        else if (id >= 0)
            symbols[n++] = id;
        unknown = id < 0;
    }
    g_array_set_size(bpe->symbols, n);
    return bpe_merge(&t->pairs, bpe) || no_memory(e);
}

static int32_t character_id(const cs_tokenizer *t, const char *p, size_t size_bytes, gunichar c)
{
    if (c < 0x10000)
        return t->bmp_ids[c];
    char text[5];
    memcpy(text, p, size_bytes);
    text[size_bytes] = '\0';
    return token_index_find(&t->by_content, text, size_bytes + 1);
}

/* As the reference does it, an unknown token is held back until a known character or the end, so
 * bytes of byte fallback can overtake it. */
static bool add_character_word(encoder *e, const char *word, size_t size_bytes)
{
    const cs_tokenizer *t = e->t;
    GArray *symbols = e->s->bpe.symbols;
    bool unknown = false;
    g_array_set_size(symbols, 0);
    for (size_t i = 0, n; i < size_bytes; i += n) {
        gunichar c = utf8_decode(word + i, &n);
        int32_t id = character_id(t, word + i, n, c);
        bool by_bytes = id < 0 && t->byte_fallback;
        for (size_t j = 0; by_bytes && !t->all_bytes && j < n; j++)
            by_bytes = t->byte_ids[(uint8_t)word[i + j]] >= 0;
        if (by_bytes) {
            for (size_t j = 0; j < n; j++)
                g_array_append_val(symbols, t->byte_ids[(uint8_t)word[i + j]]);
            continue;
        }
        if (unknown && (id >= 0 || !t->fuse_unk))
            g_array_append_val(symbols, t->unk_id);
        unknown = id < 0 && t->unk_id >= 0;
        if (id >= 0)
            g_array_append_val(symbols, id);
    }
    if (unknown)
        g_array_append_val(symbols, t->unk_id);
    return bpe_merge(&t->pairs, &e->s->bpe) || no_memory(e);
}

static bool add_new_word(encoder *e, const char *word, size_t size_bytes)
{
    GArray *symbols = e->s->bpe.symbols;
    bool ok = e->t->byte_level ? add_byte_word(e, word, size_bytes)
                               : add_character_word(e, word, size_bytes);
    if (ok)
        g_array_append_vals(e->ids, symbols->data, symbols->len);
    return ok;
}

static bool add_word(encoder *e, const char *word, size_t size_bytes)
{
    if (size_bytes > CACHE_WORD_BYTES)
        return add_new_word(e, word, size_bytes);
    uint64_t padded[CACHE_WORD_BYTES / 8] = {0};
    memcpy(padded, word, size_bytes);
    uint64_t hash = (padded[0] * 0x9E3779B97F4A7C15u) ^ (padded[1] * 0xC2B2AE3D27D4EB4Fu) ^
                    (padded[2] * 0x165667B19E3779F9u) ^ size_bytes;
    hash *= 0x9E3779B97F4A7C15u;
    cache_entry *entry = &e->s->cache[hash >> (64 - CACHE_BITS)];
    if (entry->size_bytes == size_bytes && memcmp(entry->word, padded, sizeof padded) == 0) {
        g_array_append_vals(e->ids, entry->ids, entry->n_ids);
        return true;
    }
    if (!add_new_word(e, word, size_bytes))
        return false;
    GArray *symbols = e->s->bpe.symbols;
    if (symbols->len <= CACHE_IDS) {
        memcpy(entry->word, padded, sizeof padded);
        entry->size_bytes = (uint8_t)size_bytes;
        entry->n_ids = (uint8_t)symbols->len;
        memcpy(entry->ids, symbols->data, symbols->len * sizeof(int32_t));
    }
    return true;
}

static bool pretokenize(encoder *e, guint at, const char *text, size_t size_bytes, bool is_first);

/* `is_first`: the piece begins where the whole text begins. */
static bool next_step(encoder *e, guint at, const char *text, size_t start, size_t end,
                      bool is_first)
{
    return start == end ||
           pretokenize(e, at + 1, text + start, end - start, is_first && start == 0);
}

/* The common case, without a list of ranges: matches and what is between them are the pieces. */
static bool split_isolated(encoder *e, guint at, const cs_regex *regex, const char *text,
                           size_t size_bytes, bool is_first)
{
    size_t from = 0, search = 0, start, end;
    while (search <= size_bytes) {
        int found = cs_regex_find(regex, e->s->regex, text, size_bytes, search, e->late, &start,
                                  &end, e->error);
        if (found < 0)
            return false;
        if (found == 0)
            break;
        if (!next_step(e, at, text, from, start, is_first) ||
            !next_step(e, at, text, start, end, is_first))
            return false;
        from = end;
        search = end > start ? end : end + 1;
        while (search < size_bytes && ((uint8_t)text[search] & 0xC0) == 0x80)
            search++;
    }
    return next_step(e, at, text, from, size_bytes, is_first);
}

static void add_range(GArray *ranges, size_t start, size_t end, bool is_match)
{
    text_range range = {.start = start, .end = end, .is_match = is_match};
    g_array_append_val(ranges, range);
}

static bool find_ranges(encoder *e, const pretokenize_step *step, GArray *ranges, const char *text,
                        size_t size_bytes)
{
    size_t from = 0, search = 0, start, end;
    g_array_set_size(ranges, 0);
    while (search <= size_bytes) {
        int found = cs_regex_find(step->regex, e->s->regex, text, size_bytes, search, e->late,
                                  &start, &end, e->error);
        if (found < 0)
            return false;
        if (found == 0)
            break;
        if (from < start)
            add_range(ranges, from, start, step->invert);
        add_range(ranges, start, end, !step->invert);
        from = end;
        search = end > start ? end : end + 1;
        while (search < size_bytes && ((uint8_t)text[search] & 0xC0) == 0x80)
            search++;
    }
    if (from < size_bytes)
        add_range(ranges, from, size_bytes, step->invert);
    return true;
}

/* Joins ranges as the behavior says, in place; what is_match still marks is dropped. */
static void join_ranges(GArray *ranges, split_behavior behavior)
{
    text_range *r = (text_range *)(void *)ranges->data;
    guint kept = 0;
    bool previous = false;
    if (behavior == SPLIT_MERGED_WITH_NEXT) {
        for (guint i = ranges->len; i-- > 0;) {
            bool merges = r[i].is_match && !previous && kept > 0;
            previous = r[i].is_match;
            if (merges)
                r[ranges->len - kept].start = r[i].start;
            else
                r[ranges->len - ++kept] = r[i];
        }
        g_array_remove_range(ranges, 0, ranges->len - kept);
    } else {
        for (guint i = 0; i < ranges->len; i++) {
            bool merges = kept > 0 && (behavior == SPLIT_CONTIGUOUS ? r[i].is_match == previous
                                                                    : r[i].is_match && !previous);
            previous = r[i].is_match;
            if (merges)
                r[kept - 1].end = r[i].end;
            else
                r[kept++] = r[i];
        }
        g_array_set_size(ranges, kept);
    }
    r = (text_range *)(void *)ranges->data;
    for (guint i = 0; i < ranges->len; i++)
        r[i].is_match = false;
}

static bool split(encoder *e, guint at, const pretokenize_step *step, const char *text,
                  size_t size_bytes, bool is_first)
{
    if (step->behavior == SPLIT_ISOLATED)
        return split_isolated(e, at, step->regex, text, size_bytes, is_first);
    GArray *ranges = e->s->ranges[at];
    if (!find_ranges(e, step, ranges, text, size_bytes))
        return false;
    if (step->behavior != SPLIT_REMOVED)
        join_ranges(ranges, step->behavior);
    for (guint i = 0; i < ranges->len; i++) {
        text_range range = g_array_index(ranges, text_range, i);
        if (!range.is_match && !next_step(e, at, text, range.start, range.end, is_first))
            return false;
    }
    return true;
}

/* Steps that change the text before they split it. */
static const char *rewrite(const pretokenize_step *step, GString *out, const char *text,
                           size_t *size_bytes, bool is_first)
{
    g_string_truncate(out, 0);
    if (step->kind == PRETOKENIZE_BYTE_LEVEL) {
        if (step->prepend == PREPEND_NEVER || text[0] == ' ')
            return text;
        g_string_append_c(out, ' ');
        g_string_append_len(out, text, (gssize)*size_bytes);
    } else {
        for (size_t i = 0; i < *size_bytes; i++) {
            if (text[i] == ' ')
                g_string_append(out, step->replacement);
            else
                g_string_append_c(out, text[i]);
        }
        bool wanted =
            step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && is_first);
        if (wanted && !g_str_has_prefix(out->str, step->replacement))
            g_string_prepend(out, step->replacement);
    }
    *size_bytes = out->len;
    return out->str;
}

static bool pretokenize(encoder *e, guint at, const char *text, size_t size_bytes, bool is_first)
{
    if (at == e->t->pretokenize->len)
        return add_word(e, text, size_bytes);
    const pretokenize_step *step = &g_array_index(e->t->pretokenize, pretokenize_step, at);
    if (step->kind != PRETOKENIZE_SPLIT)
        text = rewrite(step, e->s->steps[at], text, &size_bytes, is_first);
    if (!step->regex)
        return next_step(e, at, text, 0, size_bytes, is_first);
    return split(e, at, step, text, size_bytes, is_first);
}

static void apply_normalize_step(const normalize_step *step, GString *out, const char *text,
                                 size_t size_bytes)
{
    if (step->kind == NORMALIZE_STEP_PREPEND) {
        g_string_append(out, step->content);
        g_string_append_len(out, text, (gssize)size_bytes);
        return;
    }
    size_t pattern_bytes = strlen(step->pattern);
    const char *end = text + size_bytes, *found;
    while ((found = memmem(text, (size_t)(end - text), step->pattern, pattern_bytes))) {
        g_string_append_len(out, text, found - text);
        g_string_append(out, step->content);
        text = found + pattern_bytes;
    }
    g_string_append_len(out, text, end - text);
}

const char *tokenizer_normalize(const cs_tokenizer *t, GString *buffers[2], const char *text,
                                size_t size_bytes, size_t *normal_bytes)
{
    for (guint i = 0; i < t->normalize->len && size_bytes > 0; i++) {
        const normalize_step *step = &g_array_index(t->normalize, normalize_step, i);
        GString *out = buffers[text == buffers[0]->str];
        g_string_truncate(out, 0);
        if (step->kind == NORMALIZE_STEP_FORM) {
            if (!normalize_append(out, step->form, text, size_bytes))
                continue;
        } else {
            apply_normalize_step(step, out, text, size_bytes);
        }
        text = out->str;
        size_bytes = out->len;
    }
    *normal_bytes = size_bytes;
    return text;
}

static bool trie_is_empty(const token_trie *trie)
{
    return trie->nodes->len == 1;
}

/* The longest token at p, or -1. */
static int32_t trie_match(const token_trie *trie, const char *p, const char *end,
                          size_t *size_bytes)
{
    const trie_node *nodes = (const trie_node *)(const void *)trie->nodes->data;
    int32_t node = trie->root[(uint8_t)*p], longest = -1;
    const char *start = p;
    while (node != 0) {
        if (nodes[node].token >= 0) {
            longest = nodes[node].token;
            *size_bytes = (size_t)(p + 1 - start);
        }
        if (++p == end)
            break;
        node = nodes[node].child;
        while (node != 0 && nodes[node].byte != (uint8_t)*p)
            node = nodes[node].sibling;
    }
    return longest;
}

static bool is_guarded(const GArray *guards, size_t start, size_t end)
{
    guint low = 0, high = guards->len; /* the first guard behind start */
    while (low < high) {
        guint middle = (low + high) / 2;
        if (g_array_index(guards, size_t, middle) > start)
            high = middle;
        else
            low = middle + 1;
    }
    return low < guards->len && g_array_index(guards, size_t, low) < end;
}

static bool touches_word(const char *text, size_t size_bytes, size_t start, size_t end)
{
    size_t n;
    return (start > 0 && utf8_is_word(utf8_decode(utf8_previous(text, text + start), &n))) ||
           (end < size_bytes && utf8_is_word(utf8_decode(text + end, &n)));
}

typedef struct {
    int32_t token; /* index into added */
    size_t start, end;
} token_place;

/* The next added token of the trie at or after *search that counts as one; *search moves behind it.
 * `covered` is how far the text is used up already. */
static bool find_token(encoder *e, const token_trie *trie, const char *text, size_t size_bytes,
                       const GArray *guards, size_t *search, size_t covered, token_place *place)
{
    for (size_t at = *search; at < size_bytes; at++) {
        size_t match_bytes = 0;
        if (trie->root[(uint8_t)text[at]] == 0)
            continue;
        int32_t token = trie_match(trie, text + at, text + size_bytes, &match_bytes);
        if (token < 0)
            continue;
        size_t start = at, end = at + match_bytes;
        if (guards && is_guarded(guards, start, end))
            continue;
        at = end - 1;
        const added_token *added = &g_array_index(e->t->added, added_token, token);
        if (((e->flags & CS_ENCODE_LITERAL) && added->special) ||
            (added->single_word && touches_word(text, size_bytes, start, end)))
            continue;
        *search = end;
        size_t n;
        while (added->lstrip && start > covered) {
            const char *previous = utf8_previous(text, text + start);
            if (!utf8_is_space(utf8_decode(previous, &n)))
                break;
            start = (size_t)(previous - text);
        }
        while (added->rstrip && end < size_bytes && utf8_is_space(utf8_decode(text + end, &n)))
            end += n;
        *place = (token_place){.token = token, .start = start, .end = end};
        return true;
    }
    return false;
}

typedef bool (*section_fn)(encoder *e, const char *text, size_t size_bytes, bool is_first,
                           bool literal);

/* Writes the ids of added tokens and hands the text between them on. */
static bool extract(encoder *e, const token_trie *trie, const char *text, size_t size_bytes,
                    const GArray *guards, bool is_first, section_fn section)
{
    size_t covered = 0, search = 0;
    token_place place;
    while (!trie_is_empty(trie) &&
           find_token(e, trie, text, size_bytes, guards, &search, covered, &place)) {
        if (covered < place.start &&
            !section(e, text + covered, place.start - covered, is_first && covered == 0,
                     guards && is_guarded(guards, covered, place.start)))
            return false;
        g_array_append_val(e->ids, g_array_index(e->t->added, added_token, place.token).id);
        covered = place.end;
    }
    return covered >= size_bytes ||
           section(e, text + covered, size_bytes - covered, is_first && covered == 0,
                   guards && is_guarded(guards, covered, size_bytes));
}

static bool encode_normalized(encoder *e, const char *text, size_t size_bytes, bool is_first,
                              bool literal)
{
    return size_bytes == 0 || pretokenize(e, 0, text, size_bytes, is_first);
}

static bool encode_section(encoder *e, const char *text, size_t size_bytes, bool is_first,
                           bool literal)
{
    size_t normal_bytes;
    const char *normal = tokenizer_normalize(e->t, e->s->normal, text, size_bytes, &normal_bytes);
    /* Guards have no place in the normalised text: a section with one is all literal. */
    cs_encode_flags flags = e->flags;
    if (literal)
        e->flags |= CS_ENCODE_LITERAL;
    bool ok =
        extract(e, &e->t->normalized_trie, normal, normal_bytes, NULL, is_first, encode_normalized);
    e->flags = flags;
    return ok;
}

/* Takes guards out and notes where they stood; the rest becomes valid UTF-8. */
static void strip_guards(GString *clean, GArray *guards, const char *text, size_t size_bytes)
{
    const char *end = text + size_bytes, *guard;
    while ((guard = memchr(text, GUARD, (size_t)(end - text)))) {
        utf8_append_lossy(clean, text, (size_t)(guard - text));
        g_array_append_val(guards, clean->len);
        text = guard + 1;
    }
    utf8_append_lossy(clean, text, (size_t)(end - text));
}

bool cs_tokenizer_encode(const cs_tokenizer *t, const char *text, size_t size_bytes,
                         cs_encode_flags flags, GArray *ids, GError **error)
{
    if (size_bytes > CS_TOKENIZER_MAX_TEXT_BYTES)
        return cs_fail(error, CS_ERROR_TOO_LARGE,
                       "text of %zu bytes: at most %u are tokenized in one piece", size_bytes,
                       CS_TOKENIZER_MAX_TEXT_BYTES);
    guint before = ids->len;
    text_scratch *s = scratch_borrow(t);
    encoder e = {.t = t, .s = s, .flags = flags, .ids = ids, .error = error};
    g_string_truncate(s->clean, 0);
    g_array_set_size(s->guards, 0);
    if (flags & CS_ENCODE_GUARDED)
        strip_guards(s->clean, s->guards, text, size_bytes);
    else if (utf8_valid_prefix(text, size_bytes) < size_bytes)
        utf8_append_lossy(s->clean, text, size_bytes);
    bool copied = s->clean->len > 0 || (flags & CS_ENCODE_GUARDED);
    const char *clean = copied ? s->clean->str : text;
    size_t clean_bytes = copied ? s->clean->len : size_bytes;
    e.late = cs_regex_has_late(clean, clean_bytes);
    if (flags & CS_ENCODE_ADD_SPECIAL)
        g_array_append_vals(ids, t->prefix_ids, (guint)t->n_prefix);
    bool ok = extract(&e, &t->raw_trie, clean, clean_bytes, s->guards->len > 0 ? s->guards : NULL,
                      true, encode_section);
    if (flags & CS_ENCODE_ADD_SPECIAL)
        g_array_append_vals(ids, t->suffix_ids, (guint)t->n_suffix);
    if (!ok)
        g_array_set_size(ids, before);
    scratch_return(t, s, size_bytes);
    return ok;
}

/* True if a special token starts at p, or the text ends in the beginning of one. */
static bool may_be_special(const cs_tokenizer *t, const token_trie *trie, const char *p,
                           const char *end)
{
    const trie_node *nodes = (const trie_node *)(const void *)trie->nodes->data;
    int32_t node = trie->root[(uint8_t)*p];
    while (node != 0) {
        int32_t token = nodes[node].token;
        if ((token >= 0 && g_array_index(t->added, added_token, token).special) || p + 1 == end)
            return true;
        p++;
        node = nodes[node].child;
        while (node != 0 && nodes[node].byte != (uint8_t)*p)
            node = nodes[node].sibling;
    }
    return false;
}

void cs_tokenizer_guard(const cs_tokenizer *t, const char *text, size_t size_bytes, GString *out)
{
    g_autoptr(GString) clean = g_string_sized_new(size_bytes + 1);
    utf8_append_lossy(clean, text, size_bytes);
    const char *end = clean->str + clean->len;
    const char *copied = clean->str;
    for (const char *p = clean->str; p < end; p++) {
        if (!may_be_special(t, &t->raw_trie, p, end) &&
            !may_be_special(t, &t->normalized_trie, p, end))
            continue;
        g_string_append_len(out, copied, p + 1 - copied);
        g_string_append_c(out, GUARD);
        copied = p + 1;
    }
    g_string_append_len(out, copied, end - copied);
}

int32_t cs_tokenizer_size(const cs_tokenizer *t)
{
    return t->n_ids;
}

int32_t cs_tokenizer_id(const cs_tokenizer *t, const char *content)
{
    int32_t id = GPOINTER_TO_INT(g_hash_table_lookup(t->added_ids, content)) - 1;
    return id >= 0 ? id : token_index_find(&t->by_content, content, strlen(content) + 1);
}
