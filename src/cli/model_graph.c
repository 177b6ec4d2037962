#include "cli/model_graph.h"

#include "base/error.h"
#include "graph/builtin.h"

cs_tasks *cs_cli_load_tasks(const cs_checkpoint *checkpoint, GError **error)
{
    json_t *config = cs_checkpoint_config(checkpoint);
    const char *family = json_string_value(json_object_get(config, "model_type"));
    size_t size_bytes = 0;
    const char *source = family ? cs_builtin_task(family, &size_bytes) : NULL;
    if (!source) {
        cs_fail(error, CS_ERROR_UNSUPPORTED, "%s/config.json: no task file for model_type %s",
                cs_checkpoint_dir(checkpoint), family ? family : "(missing)");
        return NULL;
    }
    g_autoptr(cs_tasks) tasks = cs_tasks_new(family, NULL, error);
    g_autofree char *file = g_strdup_printf("%s.lua", family);
    if (!tasks || !cs_tasks_add_model(tasks, "model", cs_checkpoint_dir(checkpoint), source,
                                      size_bytes, file, config, error))
        return NULL;
    return g_steal_pointer(&tasks);
}

/* Bytes of the checkpoint's tensors whose names start with one of the unit's prefixes. */
static double weights_bytes(void *user, const cs_unit *unit)
{
    const cs_checkpoint *checkpoint = user;
    double bytes = 0;
    for (uint32_t i = 0; i < cs_checkpoint_n_tensors(checkpoint); i++) {
        const cs_checkpoint_tensor *t = cs_checkpoint_tensor_at(checkpoint, i);
        bool ours = false;
        for (char **prefix = unit->weights; *prefix && !ours; prefix++)
            ours = g_str_has_prefix(t->name, *prefix);
        bytes += ours ? (double)t->size_bytes : 0;
    }
    return bytes;
}

json_t *cs_cli_plan_graph(cs_tasks *tasks, const cs_checkpoint *checkpoint, GError **error)
{
    return cs_tasks_to_plan_graph(tasks, "model", weights_bytes, (void *)checkpoint, error);
}
