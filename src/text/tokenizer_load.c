/* Reading tokenizer.json. */
#include "text/tokenizer_internal.h"

#include "base/error.h"
#include "base/json.h"
#include "base/os.h"
#include "text/utf8.h"

#include <string.h>

/* The largest published files are 33 MB. */
#define MAX_FILE_BYTES (256u << 20)
#define MAX_ADDED_TOKEN_BYTES 1024

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

typedef struct {
    cs_json_reader r;
    cs_tokenizer *t;
    uint8_t alphabet[0x200]; /* character of the byte-level alphabet -> byte; see in_alphabet */
    bool in_alphabet[0x200];
    json_t *vocab;      /* borrowed */
    GPtrArray *pending; /* borrowed const char * by id, NULL where there is none */
    bool decoder_bytes, decoder_fallback;
    GArray *decoder_replaces; /* normalize_step */
} loader;

static json_t *current(const loader *l)
{
    return g_ptr_array_index(l->r.nodes, l->r.nodes->len - 1);
}

/* GPT-2's bytes_to_unicode: printable bytes stand for themselves, the others for U+0100 on. */
static void fill_alphabet(loader *l)
{
    int next = 0x100;
    for (int byte = 0; byte < 256; byte++) {
        bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        int c = itself ? byte : next++;
        l->alphabet[c] = (uint8_t)byte;
        l->in_alphabet[c] = true;
    }
}

/* The bytes that content spells in the byte-level alphabet; false if a character is outside it. */
static bool spell_bytes(const loader *l, const char *content, GString *bytes)
{
    g_string_truncate(bytes, 0);
    for (const char *p = content; *p;) {
        size_t n;
        gunichar c = utf8_decode(p, &n);
        if (c >= 0x200 || !l->in_alphabet[c])
            return false;
        g_string_append_c(bytes, (char)l->alphabet[c]);
        p += n;
    }
    return true;
}

static bool token_strings_init(token_strings *s, size_t n)
{
    s->data = g_byte_array_new();
    s->at = g_try_new0(uint32_t, n + 1);
    return s->at != NULL;
}

/* In the order of ids. */
static void token_strings_put(token_strings *s, int32_t id, const void *data, size_t size_bytes)
{
    g_byte_array_append(s->data, data, (guint)size_bytes);
    s->at[id + 1] = s->data->len;
}

size_t token_strings_get(const token_strings *s, int32_t id, const uint8_t **data)
{
    *data = s->data->data + s->at[id];
    return s->at[id + 1] - s->at[id];
}

static bool token_index_init(token_index *index, const token_strings *strings, size_t n)
{
    size_t capacity = 16;
    while (capacity / 2 < n)
        capacity *= 2;
    *index = (token_index){.strings = strings, .mask = capacity - 1};
    index->ids = g_try_new(int32_t, capacity);
    if (index->ids)
        memset(index->ids, 0xFF, capacity * sizeof *index->ids);
    return index->ids != NULL;
}

static size_t token_index_place(const token_index *index, const void *data, size_t size_bytes)
{
    size_t i = (size_t)cs_hash(CS_HASH_SEED, data, size_bytes);
    for (;; i++) {
        int32_t id = index->ids[i & index->mask];
        if (id < 0)
            return i & index->mask;
        const uint8_t *other;
        if (token_strings_get(index->strings, id, &other) == size_bytes &&
            memcmp(other, data, size_bytes) == 0)
            return i & index->mask;
    }
}

int32_t token_index_find(const token_index *index, const void *data, size_t size_bytes)
{
    return index->ids[token_index_place(index, data, size_bytes)];
}

static void token_index_add(token_index *index, int32_t id)
{
    const uint8_t *data;
    size_t size_bytes = token_strings_get(index->strings, id, &data);
    index->ids[token_index_place(index, data, size_bytes)] = id;
}

/* A member that must be absent, null or empty. */
static void refuse_set(loader *l, const char *key)
{
    json_t *value = json_object_get(current(l), key);
    if (value && !json_is_null(value) && !json_is_false(value) &&
        !(json_is_string(value) && json_string_length(value) == 0) &&
        !(json_is_number(value) && json_number_value(value) == 0))
        cs_json_fault(&l->r, key, "is not supported");
}

/* Places every token's content at its id. Added tokens come over those of the vocabulary. */
static void collect_contents(loader *l, json_t *vocab, json_t *added)
{
    const char *content;
    json_t *value;
    size_t i;
    int64_t max_id = -1, limit = (int64_t)(json_object_size(vocab) + json_array_size(added)) * 4 +
                                 65536; /* ids may have holes, but not only holes */
    json_object_foreach (vocab, content, value) {
        int64_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > limit) {
            cs_json_fault(&l->r, "model.vocab", "%s: expected an id in [0, %" G_GINT64_FORMAT "]",
                          content, limit);
            return;
        }
        max_id = MAX(max_id, id);
    }
    json_array_foreach (added, i, value) {
        json_t *id = json_object_get(value, "id");
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > limit ||
            !json_is_string(json_object_get(value, "content"))) {
            cs_json_fault(&l->r, "added_tokens",
                          "[%zu]: expected content, a string, and id in [0, %" G_GINT64_FORMAT "]",
                          i, limit);
            return;
        }
        max_id = MAX(max_id, json_integer_value(id));
    }
    l->t->n_ids = (int32_t)(max_id + 1);
    g_ptr_array_set_size(l->pending, l->t->n_ids);
    json_object_foreach (vocab, content, value) {
        gpointer *place = &g_ptr_array_index(l->pending, json_integer_value(value));
        if (*place)
            cs_json_fault(&l->r, "model.vocab", "%s and %s have the same id", content,
                          (char *)*place);
        *place = (gpointer)content;
    }
    json_array_foreach (added, i, value) {
        int64_t id = json_integer_value(json_object_get(value, "id"));
        content = json_string_value(json_object_get(value, "content"));
        const char *other = g_ptr_array_index(l->pending, id);
        json_t *vocab_id = json_object_get(vocab, content);
        if (vocab_id && json_integer_value(vocab_id) != id)
            cs_json_fault(&l->r, "added_tokens",
                          "[%zu]: %s has id %" G_GINT64_FORMAT ", but %" G_GINT64_FORMAT
                          " in model.vocab",
                          i, content, id, (int64_t)json_integer_value(vocab_id));
        if (other && strcmp(other, content) != 0)
            cs_json_fault(&l->r, "added_tokens", "[%zu]: %s and %s have the same id", i, content,
                          other);
        g_ptr_array_index(l->pending, id) = (gpointer)content;
    }
}

static bool no_memory(loader *l)
{
    cs_json_fault(&l->r, NULL, "not enough memory for its tables");
    return false;
}

static bool build_contents(loader *l)
{
    cs_tokenizer *t = l->t;
    t->flags = g_try_new0(uint8_t, (size_t)t->n_ids + 1);
    if (!t->flags || !token_strings_init(&t->contents, (size_t)t->n_ids) ||
        !token_strings_init(&t->bytes, (size_t)t->n_ids) ||
        !token_index_init(&t->by_content, &t->contents, json_object_size(l->vocab)))
        return no_memory(l);
    for (int32_t id = 0; id < t->n_ids; id++) {
        const char *content = g_ptr_array_index(l->pending, id);
        /* With the NUL, for cs_tokenizer_content; strings of JSON have none inside. */
        token_strings_put(&t->contents, id, content ? content : "",
                          content ? strlen(content) + 1 : 0);
        if (content)
            t->flags[id] |= TOKEN_KNOWN;
    }
    const char *content;
    json_t *value;
    json_object_foreach (l->vocab, content, value)
        token_index_add(&t->by_content, (int32_t)json_integer_value(value));
    return true;
}

static int32_t vocab_id(const loader *l, const char *content, size_t size_bytes)
{
    char buffer[256];
    g_autofree char *long_buffer = NULL;
    char *text = size_bytes < sizeof buffer ? buffer : (long_buffer = g_malloc(size_bytes + 1));
    memcpy(text, content, size_bytes);
    text[size_bytes] = '\0';
    return token_index_find(&l->t->by_content, text, size_bytes + 1);
}

static void read_merge(loader *l, size_t i, uint32_t rank, const char *left, size_t left_bytes,
                       const char *right, size_t right_bytes)
{
    int32_t a = vocab_id(l, left, left_bytes), b = vocab_id(l, right, right_bytes);
    g_autofree char *joined = g_malloc(left_bytes + right_bytes + 1);
    memcpy(joined, left, left_bytes);
    memcpy(joined + left_bytes, right, right_bytes);
    int32_t merged = vocab_id(l, joined, left_bytes + right_bytes);
    if (a < 0 || b < 0 || merged < 0)
        cs_json_fault(&l->r, "merges",
                      "[%zu]: %.*s and %.*s: not in model.vocab together with "
                      "what they merge to",
                      i, (int)MIN(left_bytes, 100), left, (int)MIN(right_bytes, 100), right);
    else
        bpe_table_add(&l->t->pairs, a, b, rank, merged);
}

/* Entries are "left right" or ["left", "right"]. */
static void read_merges(loader *l)
{
    json_t *merges = json_object_get(current(l), "merges"), *entry;
    if (!json_is_array(merges) || json_array_size(merges) > G_MAXINT32) {
        cs_json_fault(&l->r, "merges", "expected an array");
        return;
    }
    if (!bpe_table_init(&l->t->pairs, json_array_size(merges))) {
        no_memory(l);
        return;
    }
    size_t i;
    uint32_t rank = 0;
    json_array_foreach (merges, i, entry) {
        if (json_is_string(entry)) {
            const char *text = json_string_value(entry), *space = strchr(text, ' ');
            if (g_str_has_prefix(text, "#version"))
                continue;
            if (!space || strchr(space + 1, ' '))
                cs_json_fault(&l->r, "merges", "[%zu]: expected two tokens parted by a space", i);
            else
                read_merge(l, i, rank, text, (size_t)(space - text), space + 1, strlen(space + 1));
        } else {
            json_t *a = json_array_get(entry, 0), *b = json_array_get(entry, 1);
            if (json_array_size(entry) != 2 || !json_is_string(a) || !json_is_string(b))
                cs_json_fault(&l->r, "merges", "[%zu]: expected two tokens", i);
            else
                read_merge(l, i, rank, json_string_value(a), json_string_length(a),
                           json_string_value(b), json_string_length(b));
        }
        if (l->r.error)
            return;
        rank++;
    }
}

static void read_model(loader *l)
{
    cs_tokenizer *t = l->t;
    cs_json_enter(&l->r, "model");
    refuse_set(l, "dropout");
    refuse_set(l, "continuing_subword_prefix");
    refuse_set(l, "end_of_word_suffix");
    t->byte_fallback = cs_json_bool_or(&l->r, "byte_fallback", false);
    t->fuse_unk = cs_json_bool_or(&l->r, "fuse_unk", false);
    t->ignore_merges = cs_json_bool_or(&l->r, "ignore_merges", false);
    t->unk_id = -1;
    if (!l->r.error && build_contents(l)) {
        const char *unk = cs_json_string_or(&l->r, "unk_token", "");
        if (unk[0]) {
            t->unk_id = vocab_id(l, unk, strlen(unk));
            if (t->unk_id < 0)
                cs_json_fault(&l->r, "unk_token", "%s is not in model.vocab", unk);
        }
        read_merges(l);
    }
    cs_json_leave(&l->r);
}

static void trie_add(token_trie *trie, const char *content, size_t size_bytes, int32_t token)
{
    int32_t *link = &trie->root[(uint8_t)content[0]];
    for (size_t i = 0; i < size_bytes; i++) {
        uint8_t byte = (uint8_t)content[i];
        while (*link != 0 && g_array_index(trie->nodes, trie_node, *link).byte != byte)
            link = &g_array_index(trie->nodes, trie_node, *link).sibling;
        if (*link == 0) {
            trie_node node = {.byte = byte, .token = -1};
            *link = (int32_t)trie->nodes->len;
            int32_t at = *link;
            g_array_append_val(trie->nodes, node); /* may move what link points into */
            link = &g_array_index(trie->nodes, trie_node, at).child;
            if (i + 1 == size_bytes)
                g_array_index(trie->nodes, trie_node, at).token = token;
            continue;
        }
        trie_node *node = &g_array_index(trie->nodes, trie_node, *link);
        if (i + 1 == size_bytes && node->token < 0)
            node->token = token;
        link = &node->child;
    }
}

static void trie_init(token_trie *trie)
{
    trie_node unused = {.token = -1};
    trie->nodes = g_array_new(FALSE, FALSE, sizeof(trie_node));
    g_array_append_val(trie->nodes, unused);
}

/* Tokens whose text is normalised first are matched in their normal form, as the reference does. */
static void add_to_trie(loader *l, const char *content, bool normalized, int32_t token)
{
    cs_tokenizer *t = l->t;
    if (!normalized) {
        trie_add(&t->raw_trie, content, strlen(content), token);
        return;
    }
    GString *buffers[2] = {g_string_new(NULL), g_string_new(NULL)};
    size_t size_bytes;
    const char *normal = tokenizer_normalize(t, buffers, content, strlen(content), &size_bytes);
    if (size_bytes > 0)
        trie_add(&t->normalized_trie, normal, size_bytes, token);
    g_string_free(buffers[0], TRUE);
    g_string_free(buffers[1], TRUE);
}

static void read_added_tokens(loader *l)
{
    cs_tokenizer *t = l->t;
    if (!cs_json_has(&l->r, "added_tokens"))
        return;
    size_t n = cs_json_enter_array(&l->r, "added_tokens");
    for (size_t i = 0; i < n && !l->r.error; i++) {
        cs_json_enter_item(&l->r, i);
        const char *content = cs_json_string(&l->r, "content");
        added_token token = {.id = (int32_t)cs_json_int(&l->r, "id", 0, G_MAXINT32),
                             .single_word = cs_json_bool_or(&l->r, "single_word", false),
                             .lstrip = cs_json_bool_or(&l->r, "lstrip", false),
                             .rstrip = cs_json_bool_or(&l->r, "rstrip", false),
                             .special = cs_json_bool_or(&l->r, "special", false)};
        bool normalized = cs_json_bool_or(&l->r, "normalized", !token.special);
        if (strlen(content) > MAX_ADDED_TOKEN_BYTES)
            cs_json_fault(&l->r, "content", "%zu bytes, at most %d are taken", strlen(content),
                          MAX_ADDED_TOKEN_BYTES);
        cs_json_leave(&l->r);
        if (content[0] == '\0' || l->r.error)
            continue;
        if (token.special)
            t->flags[token.id] |= TOKEN_SPECIAL;
        g_array_append_val(t->added, token);
        g_hash_table_insert(t->added_ids, g_strdup(content), GINT_TO_POINTER(token.id + 1));
        add_to_trie(l, content, normalized, (int32_t)t->added->len - 1);
    }
    cs_json_leave(&l->r);
}

/* Calls read for the object in `key`, or for each object of its array `list_key` when its type is
 * "Sequence"; nothing for null. */
static void read_sequence(loader *l, const char *key, const char *list_key,
                          void (*read)(loader *l, const char *type))
{
    if (!cs_json_has(&l->r, key))
        return;
    cs_json_enter(&l->r, key);
    const char *type = cs_json_string(&l->r, "type");
    if (strcmp(type, "Sequence") != 0) {
        read(l, type);
    } else {
        size_t n = cs_json_enter_array(&l->r, list_key);
        if (n > MAX_STEPS)
            cs_json_fault(&l->r, NULL, "%zu steps, at most %d are taken", n, MAX_STEPS);
        for (size_t i = 0; i < n && !l->r.error; i++) {
            cs_json_enter_item(&l->r, i);
            read(l, cs_json_string(&l->r, "type"));
            cs_json_leave(&l->r);
        }
        cs_json_leave(&l->r);
    }
    cs_json_leave(&l->r);
}

static void refuse_type(loader *l, const char *type, const char *known)
{
    cs_json_fault(&l->r, "type", "%s is not supported; known are %s", type, known);
}

/* {"pattern": {"String": " "}, "content": "▁"} */
static normalize_step read_replace(loader *l)
{
    normalize_step step = {.kind = NORMALIZE_STEP_REPLACE};
    cs_json_enter(&l->r, "pattern");
    step.pattern = g_strdup(cs_json_string(&l->r, "String"));
    if (step.pattern[0] == '\0')
        cs_json_fault(&l->r, "String", "expected a text that is not empty");
    cs_json_leave(&l->r);
    step.content = g_strdup(cs_json_string(&l->r, "content"));
    return step;
}

static void read_normalizer(loader *l, const char *type)
{
    static const char *const forms[] = {[NORMALIZE_NFC] = "NFC",
                                        [NORMALIZE_NFD] = "NFD",
                                        [NORMALIZE_NFKC] = "NFKC",
                                        [NORMALIZE_NFKD] = "NFKD"};
    normalize_step step = {.kind = NORMALIZE_STEP_FORM};
    for (size_t i = 0; i < G_N_ELEMENTS(forms); i++) {
        if (strcmp(type, forms[i]) == 0) {
            step.form = (normalize_form)i;
            g_array_append_val(l->t->normalize, step);
            return;
        }
    }
    if (strcmp(type, "Prepend") == 0) {
        step.kind = NORMALIZE_STEP_PREPEND;
        step.content = g_strdup(cs_json_string(&l->r, "prepend"));
        g_array_append_val(l->t->normalize, step);
    } else if (strcmp(type, "Replace") == 0) {
        step = read_replace(l);
        g_array_append_val(l->t->normalize, step);
    } else {
        refuse_type(l, type, "Sequence, NFC, NFD, NFKC, NFKD, Prepend, Replace");
    }
}

/* An expression that matches text as it stands. */
static char *quote(const char *text)
{
    GString *quoted = g_string_new(NULL);
    for (const char *p = text; *p; p++) {
        if (g_ascii_ispunct(*p))
            g_string_append_c(quoted, '\\');
        g_string_append_c(quoted, *p);
    }
    return g_string_free(quoted, FALSE);
}

static cs_regex *compile(loader *l, const char *key, const char *pattern)
{
    g_autoptr(GError) error = NULL;
    cs_regex *regex = cs_regex_new(pattern, &error);
    if (!regex)
        cs_json_fault(&l->r, key, "%s", error->message);
    return regex;
}

static void read_split(loader *l, pretokenize_step *step)
{
    static const char *const behaviors[] = {"Isolated", "Removed", "MergedWithPrevious",
                                            "MergedWithNext", "Contiguous"};
    cs_json_enter(&l->r, "pattern");
    if (cs_json_has(&l->r, "String")) {
        g_autofree char *quoted = quote(cs_json_string(&l->r, "String"));
        step->regex = compile(l, "String", quoted);
    } else {
        step->regex = compile(l, "Regex", cs_json_string(&l->r, "Regex"));
    }
    cs_json_leave(&l->r);
    step->invert = cs_json_bool_or(&l->r, "invert", false);
    const char *behavior = cs_json_string(&l->r, "behavior");
    for (size_t i = 0; i < G_N_ELEMENTS(behaviors); i++) {
        if (strcmp(behavior, behaviors[i]) == 0) {
            step->behavior = (split_behavior)i;
            return;
        }
    }
    cs_json_fault(&l->r, "behavior", "%s is not supported", behavior);
}

static void read_metaspace(loader *l, pretokenize_step *step)
{
    step->kind = PRETOKENIZE_METASPACE;
    step->replacement = g_strdup(cs_json_string(&l->r, "replacement"));
    if (g_utf8_strlen(step->replacement, -1) != 1)
        cs_json_fault(&l->r, "replacement", "expected one character");
    const char *scheme =
        cs_json_string_or(&l->r, "prepend_scheme",
                          cs_json_bool_or(&l->r, "add_prefix_space", true) ? "always" : "never");
    if (strcmp(scheme, "always") == 0)
        step->prepend = PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        step->prepend = PREPEND_FIRST;
    else if (strcmp(scheme, "never") != 0)
        cs_json_fault(&l->r, "prepend_scheme", "%s is not supported", scheme);
    if (cs_json_bool_or(&l->r, "split", true) && !l->r.error) {
        g_autofree char *quoted = quote(step->replacement);
        step->regex = compile(l, "replacement", quoted);
        step->behavior = SPLIT_MERGED_WITH_NEXT;
    }
}

static void read_pretokenizer(loader *l, const char *type)
{
    pretokenize_step step = {.kind = PRETOKENIZE_SPLIT};
    if (l->t->byte_level)
        cs_json_fault(&l->r, "type", "%s after ByteLevel is not supported", type);
    if (strcmp(type, "Split") == 0) {
        read_split(l, &step);
    } else if (strcmp(type, "Digits") == 0) {
        step.regex = compile(l, "type", "\\p{N}");
        step.behavior =
            cs_json_bool_or(&l->r, "individual_digits", false) ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    } else if (strcmp(type, "ByteLevel") == 0) {
        step.kind = PRETOKENIZE_BYTE_LEVEL;
        l->t->byte_level = true;
        if (cs_json_bool_or(&l->r, "add_prefix_space", true))
            step.prepend = PREPEND_ALWAYS;
        if (cs_json_bool_or(&l->r, "use_regex", true))
            step.regex = compile(l, "type", GPT2_PATTERN);
    } else if (strcmp(type, "Metaspace") == 0) {
        read_metaspace(l, &step);
    } else {
        refuse_type(l, type, "Sequence, Split, Digits, ByteLevel, Metaspace");
        return;
    }
    g_array_append_val(l->t->pretokenize, step);
}

static void read_decoder(loader *l, const char *type)
{
    cs_tokenizer *t = l->t;
    if (strcmp(type, "ByteLevel") == 0) {
        l->decoder_bytes = true;
    } else if (strcmp(type, "ByteFallback") == 0) {
        l->decoder_fallback = true;
    } else if (strcmp(type, "Replace") == 0) {
        normalize_step step = read_replace(l);
        g_array_append_val(l->decoder_replaces, step);
    } else if (strcmp(type, "Strip") == 0) {
        const char *content = cs_json_string(&l->r, "content");
        t->strip_left = (int)cs_json_int(&l->r, "start", 0, 1000);
        cs_json_int(&l->r, "stop", 0, 0); /* what comes last is not known while streaming */
        if (strlen(content) != 1)
            cs_json_fault(&l->r, "content", "expected one ASCII character");
        t->strip_content = content[0];
    } else if (strcmp(type, "Metaspace") == 0) {
        normalize_step step = {.kind = NORMALIZE_STEP_REPLACE,
                               .pattern = g_strdup(cs_json_string(&l->r, "replacement")),
                               .content = g_strdup(" ")};
        g_array_append_val(l->decoder_replaces, step);
        if (step.pattern[0] == '\0')
            cs_json_fault(&l->r, "replacement", "expected one character");
        t->drop_first_space = strcmp(cs_json_string_or(&l->r, "prepend_scheme", "always"), "never");
    } else if (strcmp(type, "Fuse") != 0) {
        refuse_type(l, type, "Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace");
    }
}

static void replace_all(GString *text, const normalize_step *step)
{
    if (!strstr(text->str, step->pattern))
        return;
    g_auto(GStrv) parts = g_strsplit(text->str, step->pattern, -1);
    g_autofree char *joined = g_strjoinv(step->content, parts);
    g_string_assign(text, joined);
}

/* <0xXX>, as byte fallback writes it. */
static bool is_byte_token(const char *content, uint8_t *byte)
{
    if (strlen(content) != 6 || !g_str_has_prefix(content, "<0x") || content[5] != '>' ||
        !g_ascii_isxdigit(content[3]) || !g_ascii_isxdigit(content[4]))
        return false;
    *byte = (uint8_t)(g_ascii_xdigit_value(content[3]) * 16 + g_ascii_xdigit_value(content[4]));
    return true;
}

static void build_bytes(loader *l)
{
    cs_tokenizer *t = l->t;
    g_autoptr(GString) text = g_string_new(NULL);
    for (int32_t id = 0; id < t->n_ids; id++) {
        const char *content = g_ptr_array_index(l->pending, id);
        uint8_t byte;
        g_string_truncate(text, 0);
        if (content && l->decoder_fallback && is_byte_token(content, &byte)) {
            g_string_append_c(text, (char)byte);
            t->flags[id] |= TOKEN_BYTE;
        } else if (content && !(l->decoder_bytes && spell_bytes(l, content, text))) {
            g_string_assign(text, content);
            for (guint i = 0; i < l->decoder_replaces->len; i++)
                replace_all(text, &g_array_index(l->decoder_replaces, normalize_step, i));
        }
        token_strings_put(&t->bytes, id, text->str, text->len);
    }
}

/* Whole words are looked up by the bytes they stand for. */
static void build_word_index(loader *l)
{
    cs_tokenizer *t = l->t;
    const char *content;
    json_t *value;
    g_autoptr(GString) bytes = g_string_new(NULL);
    if (!token_index_init(&t->by_bytes, &t->bytes, json_object_size(l->vocab))) {
        no_memory(l);
        return;
    }
    json_object_foreach (l->vocab, content, value) {
        if (spell_bytes(l, content, bytes))
            token_index_add(&t->by_bytes, (int32_t)json_integer_value(value));
    }
}

/* The ids of single bytes or characters, with which merging starts. */
static void build_units(loader *l)
{
    cs_tokenizer *t = l->t;
    for (int c = 0; t->byte_level && c < 0x200; c++) {
        char text[6];
        if (l->in_alphabet[c])
            t->byte_ids[l->alphabet[c]] =
                vocab_id(l, text, (size_t)g_unichar_to_utf8((gunichar)c, text));
    }
    t->all_bytes = true;
    for (int byte = 0; byte < 256; byte++) {
        if (!t->byte_level) {
            char text[8];
            g_snprintf(text, sizeof text, "<0x%02X>", (unsigned)byte);
            t->byte_ids[byte] = vocab_id(l, text, 6);
        }
        t->all_bytes = t->all_bytes && t->byte_ids[byte] >= 0;
    }
    if (t->byte_level)
        return;
    t->bmp_ids = g_try_new(int32_t, 0x10000);
    if (!t->bmp_ids) {
        no_memory(l);
        return;
    }
    for (gunichar c = 0; c < 0x10000; c++) {
        char text[6];
        bool surrogate = c >= 0xD800 && c <= 0xDFFF;
        t->bmp_ids[c] =
            c == 0 || surrogate ? -1 : vocab_id(l, text, (size_t)g_unichar_to_utf8(c, text));
    }
}

static void add_template_ids(loader *l, const char *name, json_t *tokens, bool after)
{
    cs_tokenizer *t = l->t;
    json_t *ids = json_object_get(json_object_get(tokens, name), "ids"), *id;
    size_t i;
    if (!json_is_array(ids))
        cs_json_fault(&l->r, "special_tokens", "%s has no ids", name);
    json_array_foreach (ids, i, id) {
        int64_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        int *n = after ? &t->n_suffix : &t->n_prefix;
        if (value < 0 || value >= t->n_ids || *n == (int)G_N_ELEMENTS(t->prefix_ids)) {
            cs_json_fault(&l->r, "special_tokens", "%s: expected at most %zu ids of known tokens",
                          name, G_N_ELEMENTS(t->prefix_ids));
            return;
        }
        (after ? t->suffix_ids : t->prefix_ids)[(*n)++] = (int32_t)value;
    }
}

/* [{"SpecialToken": {"id": "<s>", ...}}, {"Sequence": {"id": "A", ...}}] */
static void read_template(loader *l)
{
    json_t *single = json_object_get(current(l), "single"), *piece;
    json_t *tokens = json_object_get(current(l), "special_tokens");
    bool after = false;
    size_t i;
    if (!json_is_array(single))
        cs_json_fault(&l->r, "single", "expected an array");
    json_array_foreach (single, i, piece) {
        json_t *name = json_object_get(json_object_get(piece, "SpecialToken"), "id");
        if (json_is_string(name))
            add_template_ids(l, json_string_value(name), tokens, after);
        else if (json_object_get(piece, "Sequence") && !after)
            after = true;
        else
            cs_json_fault(&l->r, "single", "[%zu]: expected a SpecialToken or one Sequence", i);
    }
}

static void read_postprocessor(loader *l, const char *type)
{
    if (strcmp(type, "TemplateProcessing") == 0)
        read_template(l);
    else if (strcmp(type, "ByteLevel") != 0)
        refuse_type(l, type, "Sequence, TemplateProcessing, ByteLevel");
}

/* Before all else: other types have other members. */
static bool check_type(loader *l)
{
    cs_json_enter(&l->r, "model");
    const char *type = cs_json_string_or(&l->r, "type", "BPE");
    if (strcmp(type, "BPE") != 0)
        cs_json_fault(&l->r, "type", "expected \"BPE\", found \"%s\"", type);
    cs_json_leave(&l->r);
    return !l->r.error;
}

static void read_all(loader *l, json_t *root)
{
    cs_tokenizer *t = l->t;
    if (!check_type(l))
        return;
    l->vocab = json_object_get(json_object_get(root, "model"), "vocab");
    json_t *added = json_object_get(root, "added_tokens");
    if (!json_is_object(l->vocab) || json_object_size(l->vocab) == 0) {
        cs_json_fault(&l->r, "model.vocab", "expected an object that is not empty");
        return;
    }
    collect_contents(l, l->vocab, added);
    if (!l->r.error)
        read_model(l);
    read_sequence(l, "normalizer", "normalizers", read_normalizer);
    if (!l->r.error)
        read_sequence(l, "pre_tokenizer", "pretokenizers", read_pretokenizer);
    if (!l->r.error)
        read_added_tokens(l);
    if (!l->r.error && !cs_json_has(&l->r, "decoder"))
        cs_json_fault(&l->r, "decoder", "expected an object, found nothing");
    if (!l->r.error)
        read_sequence(l, "decoder", "decoders", read_decoder);
    if (t->byte_level != l->decoder_bytes)
        cs_json_fault(&l->r, "decoder", "ByteLevel goes with a pre_tokenizer ByteLevel");
    if (t->ignore_merges && !t->byte_level)
        cs_json_fault(&l->r, "model.ignore_merges", "is not supported without ByteLevel");
    if (!l->r.error)
        read_sequence(l, "post_processor", "processors", read_postprocessor);
    if (l->r.error)
        return;
    build_bytes(l);
    build_units(l);
    if (t->ignore_merges)
        build_word_index(l);
}

static void normalize_step_clear(gpointer data)
{
    normalize_step *step = data;
    g_free(step->pattern);
    g_free(step->content);
}

static void pretokenize_step_clear(gpointer data)
{
    pretokenize_step *step = data;
    cs_regex_free(step->regex);
    g_free(step->replacement);
}

static cs_tokenizer *tokenizer_new(void)
{
    cs_tokenizer *t = g_new0(cs_tokenizer, 1);
    g_mutex_init(&t->lock);
    t->added = g_array_new(FALSE, FALSE, sizeof(added_token));
    t->added_ids = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    t->normalize = g_array_new(FALSE, FALSE, sizeof(normalize_step));
    t->pretokenize = g_array_new(FALSE, FALSE, sizeof(pretokenize_step));
    g_array_set_clear_func(t->normalize, normalize_step_clear);
    g_array_set_clear_func(t->pretokenize, pretokenize_step_clear);
    trie_init(&t->raw_trie);
    trie_init(&t->normalized_trie);
    memset(t->byte_ids, 0xFF, sizeof t->byte_ids);
    return t;
}

static cs_tokenizer *from_json(json_t *root, const char *source, GError **error)
{
    g_autoptr(cs_tokenizer) t = tokenizer_new();
    loader l = {.t = t,
                .pending = g_ptr_array_new(),
                .decoder_replaces = g_array_new(FALSE, FALSE, sizeof(normalize_step))};
    g_array_set_clear_func(l.decoder_replaces, normalize_step_clear);
    fill_alphabet(&l);
    cs_json_reader_init(&l.r, root, source);
    if (!l.r.error)
        read_all(&l, root);
    g_ptr_array_unref(l.pending);
    g_array_unref(l.decoder_replaces);
    return cs_json_reader_finish(&l.r, error) ? g_steal_pointer(&t) : NULL;
}

cs_tokenizer *cs_tokenizer_parse(const char *json, size_t size_bytes, const char *source,
                                 GError **error)
{
    json_t *root = cs_json_load(json, size_bytes, source, error);
    cs_tokenizer *t = root ? from_json(root, source, error) : NULL;
    json_decref(root);
    return t;
}

cs_tokenizer *cs_tokenizer_load(const char *dir, GError **error)
{
    g_autofree char *path = g_build_filename(dir, "tokenizer.json", NULL);
    size_t size_bytes;
    g_autofree char *text = cs_file_read(path, MAX_FILE_BYTES, &size_bytes, error);
    return text ? cs_tokenizer_parse(text, size_bytes, "tokenizer.json", error) : NULL;
}

void cs_tokenizer_free(cs_tokenizer *t)
{
    if (!t)
        return;
    text_scratch_free_all(t->scratches);
    g_clear_pointer(&t->contents.data, g_byte_array_unref);
    g_clear_pointer(&t->bytes.data, g_byte_array_unref);
    g_free(t->contents.at);
    g_free(t->bytes.at);
    g_free(t->by_content.ids);
    g_free(t->by_bytes.ids);
    g_free(t->flags);
    g_free(t->bmp_ids);
    bpe_table_clear(&t->pairs);
    g_array_unref(t->added);
    g_hash_table_unref(t->added_ids);
    g_array_unref(t->normalize);
    g_array_unref(t->pretokenize);
    g_array_unref(t->raw_trie.nodes);
    g_array_unref(t->normalized_trie.nodes);
    g_mutex_clear(&t->lock);
    g_free(t);
}
