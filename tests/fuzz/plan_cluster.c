/* Clusters, as YAML or JSON, and what planning after a loss makes of them. */
#include "plan_inputs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    json_t *root = cs_yaml_load((const char *)data, size, "cluster", &error);
    if (!root)
        return 0;
    g_autoptr(cs_cluster) cluster = cs_cluster_from_json(root, "cluster", &error);
    g_assert_true((cluster != NULL) == (error == NULL));
    for (size_t i = 0; cluster && i < cluster->n_nodes * cluster->n_nodes; i++)
        g_assert_true(cluster->bandwidth[i] >= 0 && cluster->latency[i] >= 0);
    if (cluster && cluster->n_nodes > 1 && cluster->n_nodes <= 64) {
        g_autofree int *classes = g_new0(int, cluster->n_nodes);
        g_assert_cmpuint(cs_cluster_classes(cluster, classes), <=, cluster->n_nodes);
        g_autoptr(cs_cluster) left = cs_cluster_without(cluster, cluster->n_nodes / 2);
        g_assert_cmpuint(left->n_nodes, ==, cluster->n_nodes - 1);
    }
    json_decref(root);
    return 0;
}
