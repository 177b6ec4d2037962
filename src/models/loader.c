#include "models/loader.h"

#include "base/error.h"

#include <string.h>

enum { MAX_PARTS = 4 };

bool cs_loader_finish(cs_loader *loader, GError **error)
{
    if (!loader->error)
        return true;
    g_propagate_error(error, g_steal_pointer(&loader->error));
    return false;
}

static const cs_checkpoint_tensor *find(cs_loader *loader, const char *scope, const char *name,
                                        uint32_t n_dims, const int64_t *shape)
{
    if (loader->error)
        return NULL;
    g_autofree char *full = g_strconcat(scope, ".", name, NULL);
    return cs_checkpoint_weight(loader->checkpoint, full, n_dims, shape, &loader->error);
}

/* Its values are packed: the pages of the file may go. */
static void done_with(cs_loader *loader, const cs_checkpoint_tensor *t)
{
    cs_checkpoint_drop_pages(t);
    if (loader->loaded)
        loader->loaded(loader->user, t->size_bytes);
}

const cs_weight *cs_load_matrix(cs_loader *loader, const char *scope, int64_t cols,
                                uint32_t n_parts, const cs_loader_part *parts)
{
    const cs_checkpoint_tensor *tensors[MAX_PARTS];
    cs_weight_part sources[MAX_PARTS] = {0};
    g_assert(n_parts <= MAX_PARTS);
    for (uint32_t i = 0; i < n_parts; i++) {
        tensors[i] = find(loader, scope, parts[i].name, 2, (const int64_t[]){parts[i].rows, cols});
        if (!tensors[i])
            return NULL;
        sources[i] = (cs_weight_part){tensors[i]->data, tensors[i]->dtype, parts[i].rows};
    }
    const cs_weight *weight = cs_parameters_matrix(loader->parameters, loader->dtype, cols, n_parts,
                                                   sources, &loader->error);
    for (uint32_t i = 0; i < n_parts; i++)
        done_with(loader, tensors[i]);
    return weight;
}

const cs_weight *cs_load_linear(cs_loader *loader, const char *scope, const char *name,
                                int64_t rows, int64_t cols)
{
    return cs_load_matrix(loader, scope, cols, 1, &(cs_loader_part){name, rows});
}

const cs_weight *cs_load_gated(cs_loader *loader, const char *scope, const char *gate,
                               const char *up, int64_t rows, int64_t cols)
{
    const int64_t shape[] = {rows, cols};
    const cs_checkpoint_tensor *g = find(loader, scope, gate, 2, shape),
                               *u = find(loader, scope, up, 2, shape);
    if (!g || !u)
        return NULL;
    const cs_weight *weight = cs_parameters_gated(
        loader->parameters, loader->dtype, cols, &(cs_weight_part){g->data, g->dtype, rows},
        &(cs_weight_part){u->data, u->dtype, rows}, &loader->error);
    done_with(loader, g);
    done_with(loader, u);
    return weight;
}

const cs_weight *cs_load_convolution(cs_loader *loader, const char *scope, const char *name,
                                     int64_t outputs, int64_t inputs, int64_t kernel)
{
    const cs_checkpoint_tensor *t =
        find(loader, scope, name, 3, (const int64_t[]){outputs, inputs, kernel});
    if (!t)
        return NULL;
    size_t element = cs_dtype_size_bytes(t->dtype);
    g_autofree char *moved = g_try_malloc(t->size_bytes);
    if (!moved) {
        cs_fail(&loader->error, CS_ERROR_FAILED, "no memory for %zu bytes of weights",
                t->size_bytes);
        return NULL;
    }
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t k = 0; k < kernel; k++)
                memcpy(moved + (size_t)((o * kernel + k) * inputs + i) * element,
                       (const char *)t->data + (size_t)((o * inputs + i) * kernel + k) * element,
                       element);
    const cs_weight *weight =
        cs_parameters_matrix(loader->parameters, loader->dtype, kernel * inputs, 1,
                             &(cs_weight_part){moved, t->dtype, outputs}, &loader->error);
    done_with(loader, t);
    return weight;
}

const cs_weight *cs_load_flat(cs_loader *loader, const char *scope, const char *name,
                              uint32_t n_dims, const int64_t *shape)
{
    const cs_checkpoint_tensor *t = find(loader, scope, name, n_dims, shape);
    if (!t)
        return NULL;
    int64_t cols = 1;
    for (uint32_t i = 1; i < n_dims; i++)
        cols *= shape[i];
    const cs_weight *weight =
        cs_parameters_matrix(loader->parameters, loader->dtype, cols, 1,
                             &(cs_weight_part){t->data, t->dtype, shape[0]}, &loader->error);
    done_with(loader, t);
    return weight;
}

float *cs_load_values(cs_loader *loader, const char *scope, const char *name, uint32_t n_dims,
                      const int64_t *shape)
{
    const cs_checkpoint_tensor *t = find(loader, scope, name, n_dims, shape);
    if (!t)
        return NULL;
    size_t n = t->size_bytes / cs_dtype_size_bytes(t->dtype);
    float *values = g_try_new(float, n);
    if (!values) {
        cs_fail(&loader->error, CS_ERROR_FAILED, "no memory for %zu values of weights", n);
        return NULL;
    }
    cs_convert_to_f32((int64_t)n, values, t->data, t->dtype);
    done_with(loader, t);
    return values;
}

const cs_weight *cs_load_packed(cs_loader *loader, const float *values, int64_t rows, int64_t cols)
{
    if (loader->error)
        return NULL;
    return cs_parameters_matrix(loader->parameters, loader->dtype, cols, 1,
                                &(cs_weight_part){values, CS_DTYPE_F32, rows}, &loader->error);
}

cs_tensor cs_load_vector(cs_loader *loader, const char *scope, const char *name, int64_t n)
{
    return cs_load_bias(loader, scope, 1, &(cs_loader_part){name, n}, false);
}

cs_tensor cs_load_bias(cs_loader *loader, const char *scope, uint32_t n_parts,
                       const cs_loader_part *parts, bool stacked)
{
    static const cs_tensor none = {0};
    int64_t total = 0, at = 0;
    for (uint32_t i = 0; i < n_parts; i++)
        total += parts[i].rows;
    g_autofree float *values = g_new0(float, total);
    for (uint32_t i = 0; i < n_parts; at += parts[i++].rows) {
        if (!parts[i].name)
            continue;
        const cs_checkpoint_tensor *t = find(loader, scope, parts[i].name, 1, &parts[i].rows);
        if (!t)
            return none;
        cs_convert_to_f32(parts[i].rows, values + at, t->data, t->dtype);
        done_with(loader, t);
    }
    int64_t rows = stacked ? n_parts : 1;
    return cs_parameters_tensor(loader->parameters, values, CS_DTYPE_F32, rows, total / rows,
                                &loader->error);
}

cs_tensor cs_load_table(cs_loader *loader, const char *scope, const char *name, int64_t rows,
                        int64_t cols)
{
    static const cs_tensor none = {0};
    const cs_checkpoint_tensor *t = find(loader, scope, name, 2, (const int64_t[]){rows, cols});
    if (!t)
        return none;
    if (loader->loaded)
        loader->loaded(loader->user, t->size_bytes);
    return cs_parameters_table(loader->parameters, t->data, t->dtype, rows, cols, &loader->error);
}
