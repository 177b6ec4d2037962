/* The built-in task of Qwen2.5-Omni as a plain app, for measurements that need no checkpoint. */
#ifndef CS_BENCH_TASKS_H
#define CS_BENCH_TASKS_H

#include "graph/graph.h"

/* CONFIG_JSON is the path of a Qwen2.5-Omni checkpoint's config.json. NULL and `error` otherwise.
 */
cs_tasks *cs_bench_tasks(const char *config_json, GError **error);

#endif
