#include "tasks.h"

#include "base/json.h"
#include "graph/app.h"
#include "graph/builtin.h"

cs_tasks *cs_bench_tasks(const char *config_json, GError **error)
{
    size_t size_bytes = 0;
    const char *source = cs_builtin_task("qwen2_5_omni", &size_bytes);
    json_t *config = cs_json_load_file(config_json, 1 << 20, error);
    cs_tasks *tasks = config ? cs_tasks_new("bench", NULL, error) : NULL;
    if (tasks &&
        !(cs_tasks_add_model(tasks, "model", "m", source, size_bytes, "task", config, error) &&
          cs_tasks_set_plain_app(tasks, "model", error)))
        g_clear_pointer(&tasks, cs_tasks_free);
    json_decref(config);
    return tasks;
}
