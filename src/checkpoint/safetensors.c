#include "checkpoint/checkpoint.h"

#include "base/error.h"
#include "base/json.h"

#include <string.h>

/* A limit of the reference implementation too; headers of published models are below 1 MB. */
#define MAX_HEADER_BYTES ((uint64_t)100 << 20)

static const struct {
    const char *name;
    size_t size_bytes;
    bool ours; /* has a cs_dtype */
    cs_dtype dtype;
} stored_dtypes[] = {
    {"F32", 4, true, CS_DTYPE_F32}, {"BF16", 2, true, CS_DTYPE_BF16},
    {"F16", 2, true, CS_DTYPE_F16}, {"I32", 4, true, CS_DTYPE_I32},
    {"I64", 8, true, CS_DTYPE_I64}, {"U8", 1, true, CS_DTYPE_U8},
    {"F64", 8, false, 0},           {"I8", 1, false, 0},
    {"I16", 2, false, 0},           {"U16", 2, false, 0},
    {"U32", 4, false, 0},           {"U64", 8, false, 0},
    {"BOOL", 1, false, 0},          {"F8_E4M3", 1, false, 0},
    {"F8_E5M2", 1, false, 0},
};

typedef struct {
    uint64_t begin, end;
    const char *name;
} extent;

GHashTable *cs_safetensors_table_new(void)
{
    return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
}

static bool read_dtype(cs_json_reader *r, cs_checkpoint_tensor *t, size_t *element_bytes)
{
    const char *name = cs_json_string(r, "dtype");
    for (size_t i = 0; i < G_N_ELEMENTS(stored_dtypes); i++) {
        if (strcmp(name, stored_dtypes[i].name) == 0) {
            *element_bytes = stored_dtypes[i].size_bytes;
            t->dtype = stored_dtypes[i].dtype;
            t->computable =
                stored_dtypes[i].ours &&
                (t->dtype == CS_DTYPE_F32 || t->dtype == CS_DTYPE_BF16 || t->dtype == CS_DTYPE_F16);
            return true;
        }
    }
    cs_json_fault(r, "dtype", "\"%.20s\" is no dtype of the format", name);
    return false;
}

/* The shape, and the bytes it takes in 64-bit arithmetic that cannot wrap. */
static bool read_shape(cs_json_reader *r, cs_checkpoint_tensor *t, size_t element_bytes,
                       uint64_t *bytes)
{
    const json_t *shape = json_object_get(g_ptr_array_index(r->nodes, r->nodes->len - 1), "shape");
    if (!json_is_array(shape) || json_array_size(shape) > CS_CHECKPOINT_MAX_DIMS) {
        cs_json_fault(r, "shape", "expected an array of at most %d integers",
                      CS_CHECKPOINT_MAX_DIMS);
        return false;
    }
    int64_t dims[CS_CHECKPOINT_MAX_DIMS];
    t->n_dims = (uint32_t)json_array_size(shape);
    cs_json_ints(r, "shape", 0, INT64_MAX, dims, t->n_dims);
    *bytes = element_bytes;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        t->shape[i] = dims[i];
        if (__builtin_mul_overflow(*bytes, (uint64_t)dims[i], bytes)) {
            cs_json_fault(r, "shape", "its size does not fit into 64 bits");
            return false;
        }
    }
    return true;
}

/* One entry of the header; `payload` is the part of the file behind it. */
static void read_tensor(cs_json_reader *r, const uint8_t *payload, uint64_t payload_bytes,
                        cs_checkpoint_tensor *t, extent *where)
{
    static const char *const known[] = {"dtype", "shape", "data_offsets", NULL};
    size_t element_bytes = 1;
    uint64_t bytes = 0;
    int64_t offsets[2] = {0};
    cs_json_only(r, known);
    if (!read_dtype(r, t, &element_bytes) || !read_shape(r, t, element_bytes, &bytes))
        return;
    cs_json_ints(r, "data_offsets", 0, INT64_MAX, offsets, 2);
    if (r->error)
        return;
    where->begin = (uint64_t)offsets[0];
    where->end = (uint64_t)offsets[1];
    if (where->begin > where->end || where->end > payload_bytes)
        cs_json_fault(r, "data_offsets",
                      "[%" G_GUINT64_FORMAT ", %" G_GUINT64_FORMAT
                      "] lies outside the file's %" G_GUINT64_FORMAT " bytes of data",
                      where->begin, where->end, payload_bytes);
    else if (where->end - where->begin != bytes)
        cs_json_fault(r, "data_offsets",
                      "%" G_GUINT64_FORMAT " bytes, its shape takes %" G_GUINT64_FORMAT,
                      where->end - where->begin, bytes);
    else if ((uintptr_t)(payload + where->begin) % element_bytes != 0)
        cs_json_fault(r, "data_offsets", "the data is not aligned to its %zu-byte elements",
                      element_bytes);
    t->data = payload + where->begin;
    t->size_bytes = bytes;
}

static int by_begin(const void *a, const void *b)
{
    const extent *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static bool check_extents(GArray *extents, uint64_t payload_bytes, const char *file, GError **error)
{
    g_array_sort(extents, by_begin);
    uint64_t at = 0;
    const char *before = "the header";
    for (guint i = 0; i < extents->len; i++) {
        const extent *e = &g_array_index(extents, extent, i);
        if (e->begin < at)
            return cs_fail(error, CS_ERROR_INVALID, "%s: tensors %s and %s overlap", file, before,
                           e->name);
        if (e->begin > at)
            return cs_fail(error, CS_ERROR_INVALID,
                           "%s: %" G_GUINT64_FORMAT " bytes before tensor %s belong to none", file,
                           e->begin - at, e->name);
        at = e->end;
        before = e->name;
    }
    if (at != payload_bytes)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: %" G_GUINT64_FORMAT " bytes after the last tensor belong to none", file,
                       payload_bytes - at);
    return true;
}

static bool read_header(json_t *header, const uint8_t *payload, uint64_t payload_bytes,
                        const char *file, GHashTable *tensors, GError **error)
{
    g_autoptr(GArray) extents = g_array_new(FALSE, FALSE, sizeof(extent));
    cs_json_reader r;
    cs_json_reader_init(&r, header, file);
    const char *name;
    json_t *value;
    json_object_foreach (header, name, value) {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        cs_json_enter(&r, name);
        cs_checkpoint_tensor t = {.file = file};
        extent where = {0};
        read_tensor(&r, payload, payload_bytes, &t, &where);
        cs_json_leave(&r);
        if (r.error)
            break;
        char *key = g_strdup(name);
        t.name = where.name = key;
        if (g_hash_table_contains(tensors, key)) {
            cs_json_fault(&r, name, "the tensor is in another file of the checkpoint too");
            g_free(key);
            break;
        }
        g_hash_table_insert(tensors, key, g_memdup2(&t, sizeof t));
        g_array_append_val(extents, where);
    }
    return cs_json_reader_finish(&r, error) && check_extents(extents, payload_bytes, file, error);
}

bool cs_safetensors_read(const uint8_t *data, size_t size_bytes, const char *file,
                         GHashTable *tensors, GError **error)
{
    uint64_t header_bytes = 0;
    if (size_bytes < sizeof header_bytes)
        return cs_fail(error, CS_ERROR_INVALID, "%s: %zu bytes, a safetensors file has at least 8",
                       file, size_bytes);
    for (size_t i = 0; i < sizeof header_bytes; i++)
        header_bytes |= (uint64_t)data[i] << (8 * i);
    if (header_bytes > MAX_HEADER_BYTES || header_bytes > size_bytes - sizeof header_bytes)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: the header claims %" G_GUINT64_FORMAT
                       " bytes, the file has %zu: truncated, or no safetensors",
                       file, header_bytes, size_bytes);
    json_t *header =
        cs_json_load((const char *)data + sizeof header_bytes, header_bytes, file, error);
    if (!header)
        return false;
    const uint8_t *payload = data + sizeof header_bytes + header_bytes;
    bool ok = json_is_object(header)
                  ? read_header(header, payload, size_bytes - sizeof header_bytes - header_bytes,
                                file, tensors, error)
                  : cs_fail(error, CS_ERROR_INVALID, "%s: the header is no JSON object", file);
    json_decref(header);
    return ok;
}
