#include "plan_inputs.h"

static const char graph_text[] =
    "{\"version\": 1, \"name\": \"g\", \"components\": ["
    "{\"name\": \"enc\", \"kind\": \"encoder\", \"weights_bytes\": 1, \"units\": {\"images\": 1}},"
    "{\"name\": \"llm\", \"kind\": \"llm\", \"weights_bytes\": 10, \"kv_bytes_per_token\": 1,"
    " \"split\": true, \"units\": {\"text_in_tokens\": 1, \"image_tokens\": 1},"
    " \"output_units\": {\"text_out_tokens\": 1}, \"output\": \"text\"},"
    "{\"name\": \"voc\", \"kind\": \"generator\", \"weights_bytes\": 2,"
    " \"units\": {\"audio_out_tokens\": 1}, \"output\": \"audio\"}],"
    "\"edges\": [{\"from\": \"enc\", \"to\": \"llm\", \"bytes\": {\"image_tokens\": 2}},"
    "{\"from\": \"llm\", \"to\": \"voc\", \"bytes\": 7, \"chunks\": 4}],"
    "\"request_types\": [{\"name\": \"t\", \"components\": [\"enc\", \"llm\"]},"
    "{\"name\": \"u\", \"components\": [\"llm\", \"voc\"]}]}";

static const char cluster_text[] =
    "version: 1\n"
    "devices: {a: {memory_bytes: 1000}, b: {memory_bytes: 500, cost: 2}}\n"
    "nodes: [{name: n, count: 2, devices: {a: 2, b: 1}}]\n"
    "topology: {kind: full, bandwidth_bytes_per_s: 1000, latency_s: 0.001}\n";

const cs_plan_graph *fuzz_plan_graph(void)
{
    static cs_plan_graph *graph;
    if (!graph) {
        json_t *root = cs_json_load(graph_text, sizeof graph_text - 1, "graph", NULL);
        graph = cs_plan_graph_from_json(root, "graph", NULL);
        g_assert_nonnull(graph);
        json_decref(root);
    }
    return graph;
}

const cs_cluster *fuzz_plan_cluster(void)
{
    static cs_cluster *cluster;
    if (!cluster) {
        json_t *root = cs_yaml_load(cluster_text, sizeof cluster_text - 1, "cluster", NULL);
        cluster = cs_cluster_from_json(root, "cluster", NULL);
        g_assert_nonnull(cluster);
        json_decref(root);
    }
    return cluster;
}
