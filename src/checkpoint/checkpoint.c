#include "checkpoint/checkpoint.h"

#include "base/error.h"
#include "base/json.h"
#include "base/os.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_CONFIG_BYTES ((size_t)16 << 20)
#define MAX_INDEX_BYTES ((size_t)64 << 20)

struct cs_checkpoint {
    char *dir;
    json_t *config;
    GPtrArray *file_names; /* owned char *; tensors borrow them */
    GArray *maps;          /* cs_file_map, one a file */
    GHashTable *tensors;   /* name -> cs_checkpoint_tensor */
    GPtrArray *ordered;    /* cs_checkpoint_tensor *, by name */
};

void cs_checkpoint_close(cs_checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    for (guint i = 0; i < checkpoint->maps->len; i++)
        cs_file_map_close(&g_array_index(checkpoint->maps, cs_file_map, i));
    g_array_unref(checkpoint->maps);
    g_ptr_array_unref(checkpoint->ordered);
    g_hash_table_unref(checkpoint->tensors);
    g_ptr_array_unref(checkpoint->file_names);
    json_decref(checkpoint->config);
    g_free(checkpoint->dir);
    g_free(checkpoint);
}

static bool add_file(cs_checkpoint *checkpoint, const char *name, GError **error)
{
    g_autofree char *path = g_build_filename(checkpoint->dir, name, NULL);
    cs_file_map map;
    if (!cs_file_map_open(&map, path, error))
        return false;
    g_array_append_val(checkpoint->maps, map);
    char *kept = g_strdup(name);
    g_ptr_array_add(checkpoint->file_names, kept);
    return cs_safetensors_read(map.data, map.size_bytes, kept, checkpoint->tensors, error);
}

/* Adds the files of an index once each, and checks that every tensor is where the index says. */
static bool add_indexed_files(cs_checkpoint *checkpoint, json_t *index, const char *index_path,
                              GError **error)
{
    json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        return cs_fail(error, CS_ERROR_INVALID, "%s: weight_map: expected an object with tensors",
                       index_path);
    const char *name;
    json_t *value;
    json_object_foreach (map, name, value) {
        const char *file = json_string_value(value);
        if (!file || !g_str_has_suffix(file, ".safetensors") || strchr(file, '/'))
            return cs_fail(error, CS_ERROR_INVALID,
                           "%s: weight_map: tensor %s: expected the name of a .safetensors file",
                           index_path, name);
        if (!g_ptr_array_find_with_equal_func(checkpoint->file_names, file, g_str_equal, NULL) &&
            !add_file(checkpoint, file, error))
            return false;
    }
    json_object_foreach (map, name, value) {
        const cs_checkpoint_tensor *t = cs_checkpoint_find(checkpoint, name);
        if (!t || strcmp(t->file, json_string_value(value)) != 0)
            return cs_fail(error, CS_ERROR_INVALID,
                           "%s: tensor %s is not in %s, where %s says it is", checkpoint->dir, name,
                           json_string_value(value), "model.safetensors.index.json");
    }
    return true;
}

static bool add_files(cs_checkpoint *checkpoint, GError **error)
{
    g_autofree char *index_path =
        g_build_filename(checkpoint->dir, "model.safetensors.index.json", NULL);
    g_autofree char *single_path = g_build_filename(checkpoint->dir, "model.safetensors", NULL);
    if (access(index_path, F_OK) == 0) {
        json_t *index = cs_json_load_file(index_path, MAX_INDEX_BYTES, error);
        bool ok = index && add_indexed_files(checkpoint, index, index_path, error);
        json_decref(index);
        return ok;
    }
    if (access(single_path, F_OK) != 0)
        return cs_fail(error, CS_ERROR_NOT_FOUND,
                       "%s: neither model.safetensors nor model.safetensors.index.json is there",
                       checkpoint->dir);
    return add_file(checkpoint, "model.safetensors", error);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const cs_checkpoint_tensor *const *)a)->name,
                  (*(const cs_checkpoint_tensor *const *)b)->name);
}

cs_checkpoint *cs_checkpoint_open(const char *dir, GError **error)
{
    g_autoptr(cs_checkpoint) checkpoint = g_new0(cs_checkpoint, 1);
    checkpoint->dir = g_strdup(dir);
    checkpoint->file_names = g_ptr_array_new_with_free_func(g_free);
    checkpoint->maps = g_array_new(FALSE, FALSE, sizeof(cs_file_map));
    checkpoint->tensors = cs_safetensors_table_new();
    checkpoint->ordered = g_ptr_array_new();
    if (!g_file_test(dir, G_FILE_TEST_IS_DIR)) {
        cs_fail(error, CS_ERROR_NOT_FOUND,
                "%s: no such directory; give the directory of a Hugging Face checkpoint", dir);
        return NULL;
    }
    g_autofree char *config_path = g_build_filename(dir, "config.json", NULL);
    checkpoint->config = cs_json_load_file(config_path, MAX_CONFIG_BYTES, error);
    if (!checkpoint->config || !add_files(checkpoint, error))
        return NULL;

    GHashTableIter iter;
    gpointer tensor;
    g_hash_table_iter_init(&iter, checkpoint->tensors);
    while (g_hash_table_iter_next(&iter, NULL, &tensor))
        g_ptr_array_add(checkpoint->ordered, tensor);
    g_ptr_array_sort(checkpoint->ordered, by_name);
    return g_steal_pointer(&checkpoint);
}

const char *cs_checkpoint_dir(const cs_checkpoint *checkpoint)
{
    return checkpoint->dir;
}

json_t *cs_checkpoint_config(const cs_checkpoint *checkpoint)
{
    return checkpoint->config;
}

uint32_t cs_checkpoint_n_tensors(const cs_checkpoint *checkpoint)
{
    return checkpoint->ordered->len;
}

const cs_checkpoint_tensor *cs_checkpoint_tensor_at(const cs_checkpoint *checkpoint, uint32_t index)
{
    return g_ptr_array_index(checkpoint->ordered, index);
}

const cs_checkpoint_tensor *cs_checkpoint_find(const cs_checkpoint *checkpoint, const char *name)
{
    return g_hash_table_lookup(checkpoint->tensors, name);
}

/* "[3, 4]"; caller frees. */
static char *shape_text(uint32_t n_dims, const int64_t *shape)
{
    GString *text = g_string_new("[");
    for (uint32_t i = 0; i < n_dims; i++)
        g_string_append_printf(text, "%s%" G_GINT64_FORMAT, i ? ", " : "", shape[i]);
    g_string_append_c(text, ']');
    return g_string_free(text, FALSE);
}

const cs_checkpoint_tensor *cs_checkpoint_weight(const cs_checkpoint *checkpoint, const char *name,
                                                 uint32_t n_dims, const int64_t *shape,
                                                 GError **error)
{
    const cs_checkpoint_tensor *t = cs_checkpoint_find(checkpoint, name);
    g_autofree char *expected = shape_text(n_dims, shape);
    if (!t) {
        cs_fail(error, CS_ERROR_INVALID,
                "%s: tensor %s, expected with shape %s, is in none of its files", checkpoint->dir,
                name, expected);
        return NULL;
    }
    if (t->n_dims != n_dims || memcmp(t->shape, shape, n_dims * sizeof *shape) != 0) {
        g_autofree char *found = shape_text(t->n_dims, t->shape);
        cs_fail(error, CS_ERROR_INVALID, "%s: tensor %s: shape %s, expected %s", t->file, name,
                found, expected);
        return NULL;
    }
    if (!t->computable) {
        cs_fail(error, CS_ERROR_UNSUPPORTED,
                "%s: tensor %s: weights are computed from F32, BF16 or F16 only", t->file, name);
        return NULL;
    }
    return t;
}

void cs_checkpoint_drop_pages(const cs_checkpoint_tensor *tensor)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)tensor->data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)tensor->data + tensor->size_bytes) / page * page;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}
