#include "plan/cluster.h"

#include "base/error.h"
#include "base/yaml.h"

#include <string.h>

#define MAX_FILE_BYTES (64u << 20)
#define MAX_NODES 2048
#define MAX_BYTES 1e18

void cs_cluster_free(cs_cluster *cluster)
{
    if (!cluster)
        return;
    for (size_t i = 0; i < cluster->n_kinds; i++)
        g_free(cluster->kinds[i].name);
    for (size_t i = 0; i < cluster->n_nodes; i++)
        g_free(cluster->nodes[i].name);
    g_free(cluster->kinds);
    g_free(cluster->nodes);
    g_free(cluster->bandwidth);
    g_free(cluster->latency);
    g_free(cluster->topology);
    g_free(cluster);
}

size_t cs_cluster_kind(const cs_cluster *cluster, const char *name)
{
    size_t i = 0;
    while (i < cluster->n_kinds && !g_str_equal(cluster->kinds[i].name, name))
        i++;
    return i;
}

size_t cs_cluster_find_node(const cs_cluster *cluster, const char *name)
{
    size_t i = 0;
    while (i < cluster->n_nodes && !g_str_equal(cluster->nodes[i].name, name))
        i++;
    return i;
}

int cs_cluster_devices(const cs_cluster *cluster, size_t kind)
{
    int sum = 0;
    for (size_t i = 0; i < cluster->n_nodes; i++)
        sum += cluster->nodes[i].devices[kind];
    return sum;
}

static void read_kinds(cs_json_reader *r, cs_cluster *c)
{
    cs_json_enter(r, "devices");
    json_t *object = cs_json_current(r), *value;
    const char *name;
    if (json_object_size(object) == 0 || json_object_size(object) > CS_PLAN_MAX_KINDS)
        cs_json_fault(r, NULL, "expected 1 to %d kinds of device", CS_PLAN_MAX_KINDS);
    c->kinds = g_new0(cs_device_kind, CS_PLAN_MAX_KINDS);
    json_object_foreach (object, name, value) {
        if (c->n_kinds == CS_PLAN_MAX_KINDS)
            break;
        cs_device_kind *k = &c->kinds[c->n_kinds++];
        cs_json_enter(r, name);
        cs_json_only(r, (const char *const[]){"memory_bytes", "usable", "cost", NULL});
        k->name = g_strdup(name);
        k->memory_bytes = cs_json_number(r, "memory_bytes", 1, MAX_BYTES);
        k->usable = cs_json_number_or(r, "usable", 0.01, 1, 0.9);
        k->cost = cs_json_number_or(r, "cost", 0, 1e12, 1);
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

static void read_node_devices(cs_json_reader *r, const cs_cluster *c, cs_cluster_node *node)
{
    cs_json_enter(r, "devices");
    json_t *object = cs_json_current(r), *value;
    const char *name;
    json_object_foreach (object, name, value) {
        size_t k = cs_cluster_kind(c, name);
        if (k == c->n_kinds)
            cs_json_fault(r, name, "there is no device kind %s", name);
        else
            node->devices[k] = (int)cs_json_int(r, name, 0, 4096);
    }
    cs_json_leave(r);
}

static void add_node(cs_cluster *c, const cs_cluster_node *like, char *name)
{
    c->nodes = g_renew(cs_cluster_node, c->nodes, c->n_nodes + 1);
    c->nodes[c->n_nodes] = *like;
    c->nodes[c->n_nodes++].name = name;
}

static void read_nodes(cs_json_reader *r, cs_cluster *c)
{
    size_t n = cs_json_enter_array(r, "nodes");
    if (n == 0)
        cs_json_fault(r, NULL, "expected at least one node");
    for (size_t i = 0; i < n && !r->error; i++) {
        cs_cluster_node node = {0};
        cs_json_enter_item(r, i);
        cs_json_only(r, (const char *const[]){"name", "count", "devices", NULL});
        const char *name = cs_json_string(r, "name");
        int count = (int)cs_json_int_or(r, "count", 1, MAX_NODES, 1);
        read_node_devices(r, c, &node);
        if (c->n_nodes + (size_t)count > MAX_NODES)
            cs_json_fault(r, "count", "expected at most %d nodes in all", MAX_NODES);
        for (int k = 0; k < count && !r->error; k++) {
            char *full =
                cs_json_has(r, "count") ? g_strdup_printf("%s%d", name, k) : g_strdup(name);
            if (full[0] == '\0' || cs_cluster_find_node(c, full) < c->n_nodes)
                cs_json_fault(r, "name", "expected a name of its own, found \"%s\"", full);
            add_node(c, &node, full);
        }
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

typedef struct {
    double bandwidth, latency, oversubscription;
    int pod;
} topology_options;

static void set_pair(cs_cluster *c, size_t i, size_t j, double bandwidth, double latency)
{
    c->bandwidth[i * c->n_nodes + j] = bandwidth;
    c->latency[i * c->n_nodes + j] = latency;
}

/* fat-tree and rail: full speed within a pod of `pod` nodes, divided by the oversubscription and
 * with three times the switch hops between pods. Rail: pairs outside a pod cross the host as well,
 * so their latency is doubled again. */
static void fill_tree(cs_cluster *c, const topology_options *t, bool rail)
{
    for (size_t i = 0; i < c->n_nodes; i++)
        for (size_t j = 0; j < c->n_nodes; j++) {
            if (i == j)
                continue;
            bool near = i / (size_t)t->pod == j / (size_t)t->pod;
            set_pair(c, i, j, near ? t->bandwidth : t->bandwidth / t->oversubscription,
                     near ? t->latency : t->latency * (rail ? 6 : 3));
        }
}

/* A pair d steps apart shares each link with the other pairs that cross it: bandwidth / d. */
static void fill_ring(cs_cluster *c, const topology_options *t)
{
    for (size_t i = 0; i < c->n_nodes; i++)
        for (size_t j = 0; j < c->n_nodes; j++) {
            size_t gap = i > j ? i - j : j - i, steps = MIN(gap, c->n_nodes - gap);
            if (steps > 0)
                set_pair(c, i, j, t->bandwidth / (double)steps, t->latency * (double)steps);
        }
}

static void read_links(cs_json_reader *r, cs_cluster *c)
{
    size_t n = cs_json_enter_array(r, "links");
    for (size_t i = 0; i < n; i++) {
        cs_json_enter_item(r, i);
        cs_json_only(
            r, (const char *const[]){"from", "to", "bandwidth_bytes_per_s", "latency_s", NULL});
        size_t from = cs_cluster_find_node(c, cs_json_string(r, "from"));
        size_t to = cs_cluster_find_node(c, cs_json_string(r, "to"));
        double bandwidth = cs_json_number(r, "bandwidth_bytes_per_s", 0, MAX_BYTES);
        bool pair = from < c->n_nodes && to < c->n_nodes && from != to;
        double usual = pair ? c->latency[from * c->n_nodes + to] : 0;
        double latency = cs_json_number_or(r, "latency_s", 0, 1e3, usual);
        if (pair)
            set_pair(c, from, to, bandwidth, latency);
        else
            cs_json_fault(r, NULL, "expected two nodes of the cluster");
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

static void read_topology(cs_json_reader *r, cs_cluster *c)
{
    cs_json_enter(r, "topology");
    cs_json_only(r, (const char *const[]){"kind", "bandwidth_bytes_per_s", "latency_s",
                                          "intra_bandwidth_bytes_per_s", "intra_latency_s",
                                          "hop_overhead_s", "oversubscription", "pod_nodes",
                                          "links", NULL});
    const char *kind = cs_json_string(r, "kind");
    topology_options t = {
        .bandwidth = cs_json_number(r, "bandwidth_bytes_per_s", 0, MAX_BYTES),
        .latency = cs_json_number_or(r, "latency_s", 0, 1e3, 0),
        .oversubscription = cs_json_number_or(r, "oversubscription", 1, 1e6, 1),
        .pod = (int)cs_json_int_or(r, "pod_nodes", 1, MAX_NODES, 4),
    };
    bool pods = g_str_equal(kind, "fat-tree") || g_str_equal(kind, "rail");
    if (!pods && (cs_json_has(r, "pod_nodes") || cs_json_has(r, "oversubscription")))
        cs_json_fault(r, NULL, "pod_nodes and oversubscription belong to fat-tree and rail");
    double intra = cs_json_number_or(r, "intra_bandwidth_bytes_per_s", 1, MAX_BYTES, 100e9);
    double intra_latency = cs_json_number_or(r, "intra_latency_s", 0, 1e3, 0);
    c->hop_overhead_s = cs_json_number_or(r, "hop_overhead_s", 0, 1e3, 0);
    c->topology = g_strdup(kind);
    c->bandwidth = g_new0(double, c->n_nodes * c->n_nodes + 1);
    c->latency = g_new0(double, c->n_nodes * c->n_nodes + 1);
    if (g_str_equal(kind, "ring"))
        fill_ring(c, &t);
    else if (pods)
        fill_tree(c, &t, g_str_equal(kind, "rail"));
    else if (g_str_equal(kind, "full")) {
        t.pod = MAX_NODES;
        fill_tree(c, &t, false);
    } else {
        cs_json_fault(r, "kind", "expected full, fat-tree, rail or ring, found \"%s\"", kind);
    }
    for (size_t i = 0; i < c->n_nodes; i++)
        set_pair(c, i, i, intra, intra_latency);
    if (cs_json_has(r, "links"))
        read_links(r, c);
    cs_json_leave(r);
}

cs_cluster *cs_cluster_from_json(json_t *root, const char *source, GError **error)
{
    g_autoptr(cs_cluster) c = g_new0(cs_cluster, 1);
    cs_json_reader r;
    cs_json_reader_init(&r, root, source);
    cs_json_only(&r, (const char *const[]){"version", "devices", "nodes", "topology", NULL});
    cs_json_int(&r, "version", 1, 1);
    read_kinds(&r, c);
    read_nodes(&r, c);
    read_topology(&r, c);
    return cs_json_reader_finish(&r, error) ? g_steal_pointer(&c) : NULL;
}

cs_cluster *cs_cluster_load(const char *path, GError **error)
{
    json_t *root = cs_config_load_file(path, MAX_FILE_BYTES, error);
    if (!root)
        return NULL;
    cs_cluster *cluster = cs_cluster_from_json(root, path, error);
    json_decref(root);
    return cluster;
}

cs_cluster *cs_cluster_without(const cs_cluster *cluster, size_t node)
{
    cs_cluster *c = g_new0(cs_cluster, 1);
    size_t n = cluster->n_nodes - 1;
    c->kinds = g_memdup2(cluster->kinds, cluster->n_kinds * sizeof cluster->kinds[0]);
    c->n_kinds = cluster->n_kinds;
    for (size_t k = 0; k < c->n_kinds; k++)
        c->kinds[k].name = g_strdup(cluster->kinds[k].name);
    c->bandwidth = g_new0(double, n *n + 1);
    c->latency = g_new0(double, n *n + 1);
    c->hop_overhead_s = cluster->hop_overhead_s;
    c->topology = g_strdup(cluster->topology);
    for (size_t i = 0; i < cluster->n_nodes; i++)
        if (i != node)
            add_node(c, &cluster->nodes[i], g_strdup(cluster->nodes[i].name));
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            size_t from = (i + (i >= node)) * cluster->n_nodes + j + (j >= node);
            set_pair(c, i, j, cluster->bandwidth[from], cluster->latency[from]);
        }
    return c;
}

/* Whether exchanging nodes a and b leaves devices and network unchanged. */
static bool nodes_alike(const cs_cluster *c, size_t a, size_t b)
{
    size_t n = c->n_nodes;
    const double *tables[] = {c->bandwidth, c->latency};
    if (memcmp(c->nodes[a].devices, c->nodes[b].devices, sizeof c->nodes[a].devices) != 0)
        return false;
    for (int t = 0; t < 2; t++) {
        const double *m = tables[t];
        if (m[a * n + b] != m[b * n + a] || m[a * n + a] != m[b * n + b])
            return false;
        for (size_t k = 0; k < n; k++)
            if (k != a && k != b && (m[a * n + k] != m[b * n + k] || m[k * n + a] != m[k * n + b]))
                return false;
    }
    return true;
}

size_t cs_cluster_classes(const cs_cluster *cluster, int *classes)
{
    g_autofree size_t *first = g_new0(size_t, cluster->n_nodes + 1);
    size_t n = 0;
    for (size_t i = 0; i < cluster->n_nodes; i++) {
        size_t k = 0;
        while (k < n && !nodes_alike(cluster, first[k], i))
            k++;
        if (k == n)
            first[n++] = i;
        classes[i] = (int)k;
    }
    return n;
}
