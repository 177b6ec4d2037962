/* Task graphs, as YAML or JSON. */
#include "plan_inputs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    json_t *root = cs_yaml_load((const char *)data, size, "graph", &error);
    if (!root)
        return 0;
    g_autoptr(cs_plan_graph) graph = cs_plan_graph_from_json(root, "graph", &error);
    g_assert_true((graph != NULL) == (error == NULL));
    guint64 all = graph ? ((guint64)1 << graph->n_components) - 1 : 0;
    for (size_t i = 0; graph && i < graph->n_types; i++)
        g_assert_true(graph->types[i].components && !(graph->types[i].components & ~all));
    for (size_t i = 0; graph && i < graph->n_groups; i++)
        g_assert_true(graph->groups[i] && !(graph->groups[i] & ~all));
    for (size_t i = 0; graph && i < graph->n_edges; i++)
        g_assert_cmpuint(graph->edges[i].from, !=, graph->edges[i].to);
    json_decref(root);
    return 0;
}
