/* The task graph of a checkpoint. */
#ifndef CS_CLI_MODEL_GRAPH_H
#define CS_CLI_MODEL_GRAPH_H

#include "checkpoint/checkpoint.h"
#include "graph/graph.h"

/* Its family's task file, as model "model". */
cs_tasks *cs_cli_load_tasks(const cs_checkpoint *checkpoint, GError **error);

/* The component graph of all request kinds, as `cornserve plan` reads it; json_decref. */
json_t *cs_cli_plan_graph(cs_tasks *tasks, const cs_checkpoint *checkpoint, GError **error);

#endif
