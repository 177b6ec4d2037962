/* Golden files: tensors of the reference implementation, and how far ours are from them. */
#ifndef CS_TESTS_GOLDEN_H
#define CS_TESTS_GOLDEN_H

#include "base/os.h"
#include "checkpoint/checkpoint.h"

#include <math.h>
#include <string.h>

typedef struct {
    cs_file_map map;
    GHashTable *tensors;
} golden_file;

static inline golden_file golden_open(const char *dir, const char *name)
{
    golden_file file = {.tensors = cs_safetensors_table_new()};
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_autoptr(GError) error = NULL;
    if (!cs_file_map_open(&file.map, path, &error) ||
        !cs_safetensors_read(file.map.data, file.map.size_bytes, path, file.tensors, &error))
        g_error("%s", error->message);
    return file;
}

static inline void golden_close(golden_file *file)
{
    g_hash_table_unref(file->tensors);
    cs_file_map_close(&file->map);
}

static inline const cs_checkpoint_tensor *golden_find(const golden_file *file, const char *name)
{
    return g_hash_table_lookup(file->tensors, name);
}

static inline const cs_checkpoint_tensor *golden_get(const golden_file *file, const char *name)
{
    const cs_checkpoint_tensor *t = golden_find(file, name);
    if (!t)
        g_error("no golden tensor %s", name);
    return t;
}

/* Normalised max error of `got` [rows, cols] against a golden tensor, of which only the rows in
 * NAME.rows may be kept. -1 when there is no golden tensor of that name. */
static inline double golden_error(const golden_file *file, const char *name, const float *got,
                                  int64_t cols)
{
    const cs_checkpoint_tensor *expected = golden_find(file, name);
    if (!expected)
        return -1;
    g_autofree char *rows_name = g_strconcat(name, ".rows", NULL);
    const cs_checkpoint_tensor *rows = golden_find(file, rows_name);
    g_assert_cmpint(expected->shape[expected->n_dims - 1], ==, cols);
    int64_t n = (int64_t)(expected->size_bytes / sizeof(float)) / cols;
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = rows ? ((const int32_t *)rows->data)[i] : i;
        for (int64_t j = 0; j < cols; j++) {
            double e = ((const float *)expected->data)[i * cols + j],
                   d = fabs(got[row * cols + j] - e);
            worst = isnan(d) ? INFINITY : fmax(worst, d);
            scale = fmax(scale, fabs(e));
        }
    }
    return worst / scale;
}

#endif
