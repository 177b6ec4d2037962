/* The cluster: device kinds, nodes, and the network between every ordered pair of nodes.
 *
 * A topology is a matrix of bandwidth and latency per ordered pair: what a transfer from one node
 * to another may use, with any oversubscription already in the numbers.
 */
#ifndef CS_PLAN_CLUSTER_H
#define CS_PLAN_CLUSTER_H

#include "base/json.h"

#define CS_PLAN_MAX_KINDS 8

typedef struct {
    char *name;
    double memory_bytes;
    double usable; /* share of the memory a plan may use, 0.9 */
    double cost;   /* per device, in any unit */
} cs_device_kind;

typedef struct {
    char *name;
    int devices[CS_PLAN_MAX_KINDS];
} cs_cluster_node;

typedef struct {
    cs_device_kind *kinds;
    size_t n_kinds;
    cs_cluster_node *nodes;
    size_t n_nodes;
    double *bandwidth;     /* [n_nodes * n_nodes] bytes/s from i to j; the diagonal is intra-node */
    double *latency;       /* [n_nodes * n_nodes] seconds */
    double hop_overhead_s; /* fixed cost of handing a request from one executor to another */
    char *topology;        /* its name, for reports */
} cs_cluster;

cs_cluster *cs_cluster_from_json(json_t *root, const char *source, GError **error);
cs_cluster *cs_cluster_load(const char *path, GError **error);
void cs_cluster_free(cs_cluster *cluster);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_cluster, cs_cluster_free)

size_t cs_cluster_kind(const cs_cluster *cluster, const char *name);      /* n_kinds if none */
size_t cs_cluster_find_node(const cs_cluster *cluster, const char *name); /* n_nodes if none */
int cs_cluster_devices(const cs_cluster *cluster, size_t kind);           /* over all nodes */

/* A copy without one node, for planning after a loss. */
cs_cluster *cs_cluster_without(const cs_cluster *cluster, size_t node);

/* Class of each node: like nodes have equal devices, and exchanging them changes nothing in the
 * network. classes[n_nodes]; returns their number. */
size_t cs_cluster_classes(const cs_cluster *cluster, int *classes);

#endif
