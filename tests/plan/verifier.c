#include "plan/verifier.h"

#include <math.h>
#include <string.h>

#define SLACK 1e-5

static size_t node_of(const cs_problem *p, const cs_plan_executor *x)
{
    return cs_cluster_find_node(p->cluster, x->node);
}

/* Whether a hop serves the stage. */
static bool serves(const cs_problem *p, const cs_plan_hop *hop, size_t s)
{
    const cs_stage *stage = &p->stages[s];
    return g_str_equal(p->graph->components[stage->component].name, hop->component) &&
           (hop->role == CS_ROLE_BOTH || hop->role == stage->role);
}

static const cs_plan_executor *executor_of(const cs_problem *p, const cs_plan *plan,
                                           const cs_plan_path *path, size_t s)
{
    for (size_t h = 0; h < path->n_hops; h++)
        if (serves(p, &path->hops[h], s))
            return &plan->executors[path->hops[h].executor];
    return NULL;
}

static bool hosts_stage(const cs_problem *p, const cs_plan_executor *x, size_t s)
{
    for (size_t i = 0; i < x->n_hosted; i++)
        if (g_str_equal(x->hosted[i].name, p->graph->components[p->stages[s].component].name) &&
            (x->hosted[i].role == CS_ROLE_BOTH || x->hosted[i].role == p->stages[s].role))
            return true;
    return false;
}

/* The problem's executor type with exactly these stages, kind and devices. */
static size_t type_of(const cs_problem *p, const cs_plan_executor *x)
{
    for (size_t e = 0; e < p->n_execs; e++) {
        bool same = p->execs[e].count == x->devices_per_replica &&
                    g_str_equal(p->cluster->kinds[p->execs[e].kind].name, x->device);
        for (size_t s = 0; same && s < p->n_stages; s++)
            same = hosts_stage(p, x, s) == (p->execs[e].mask >> s & 1);
        if (same)
            return e;
    }
    return p->n_execs;
}

/* Constraint 4, and memory. */
static char *check_devices(const cs_problem *p, const cs_plan *plan)
{
    for (size_t n = 0; n < p->cluster->n_nodes; n++)
        for (size_t k = 0; k < p->cluster->n_kinds; k++) {
            int used = 0;
            for (size_t i = 0; i < plan->n_executors; i++)
                if (node_of(p, &plan->executors[i]) == n &&
                    g_str_equal(plan->executors[i].device, p->cluster->kinds[k].name))
                    used += plan->executors[i].replicas * plan->executors[i].devices_per_replica;
            if (used > p->cluster->nodes[n].devices[k])
                return g_strdup_printf("node %zu has %d devices of kind %zu, %d are used", n,
                                       p->cluster->nodes[n].devices[k], k, used);
        }
    for (size_t i = 0; i < plan->n_executors; i++) {
        const cs_plan_executor *x = &plan->executors[i];
        size_t kind = cs_cluster_kind(p->cluster, x->device);
        double bytes = x->kv_budget_bytes;
        if (node_of(p, x) == p->cluster->n_nodes || kind == p->cluster->n_kinds)
            return g_strdup_printf("executor %s stands nowhere", x->name);
        for (size_t h = 0; h < x->n_hosted; h++) {
            size_t c = cs_plan_graph_component(p->graph, x->hosted[h].name);
            bytes +=
                p->graph->components[c].weights_bytes + p->graph->components[c].activation_bytes;
        }
        const cs_device_kind *k = &p->cluster->kinds[kind];
        if (bytes > k->memory_bytes * k->usable * x->devices_per_replica * (1 + 1e-9))
            return g_strdup_printf("executor %s needs %.3g bytes", x->name, bytes);
    }
    return NULL;
}

/* Constraints 1 and 2: all requests are routed, every stage of a path runs somewhere. */
static char *check_routes(const cs_problem *p, const cs_plan *plan)
{
    for (size_t t = 0; t < p->n_types; t++) {
        const cs_plan_route *route =
            cs_plan_find_route(plan, p->workload->types[p->types[t].workload_type].name);
        double sum = 0;
        if (!route)
            return g_strdup_printf("type %zu has no route", t);
        for (size_t i = 0; i < route->n_paths; i++) {
            sum += route->paths[i].weight;
            for (size_t s = 0; s < p->n_stages; s++) {
                const cs_plan_executor *x = executor_of(p, plan, &route->paths[i], s);
                if ((p->types[t].stages >> s & 1) && (!x || !hosts_stage(p, x, s)))
                    return g_strdup_printf("type %zu path %zu lacks stage %zu", t, i, s);
            }
        }
        if (fabs(sum - 1) > SLACK)
            return g_strdup_printf("weights of type %zu sum to %g", t, sum);
    }
    return NULL;
}

/* Constraint 3. */
static char *check_capacity(const cs_problem *p, const cs_plan *plan, double rate)
{
    for (size_t i = 0; i < plan->n_executors; i++) {
        const cs_plan_executor *x = &plan->executors[i];
        size_t e = type_of(p, x);
        double busy = 0;
        if (e == p->n_execs)
            return g_strdup_printf("executor %s is of no type of the problem", x->name);
        for (size_t t = 0; t < p->n_types; t++) {
            const cs_plan_route *route =
                cs_plan_find_route(plan, p->workload->types[p->types[t].workload_type].name);
            for (size_t k = 0; k < route->n_paths; k++)
                for (size_t s = 0; s < p->n_stages; s++)
                    if ((p->types[t].stages >> s & 1) &&
                        executor_of(p, plan, &route->paths[k], s) == x)
                        busy += rate * p->types[t].share * route->paths[k].weight *
                                cs_problem_work(p, e, s, t);
        }
        if (busy > p->utilisation_cap * x->replicas * (1 + SLACK))
            return g_strdup_printf("executor %s is busy %.6f of %.6f", x->name, busy,
                                   p->utilisation_cap * x->replicas);
    }
    return NULL;
}

void measure_traffic(const cs_problem *p, const cs_plan *plan, double rate, double *link_use,
                     double *bytes)
{
    size_t n = p->cluster->n_nodes;
    g_autofree double *traffic = g_new0(double, n *n);
    for (size_t t = 0; t < p->n_types; t++) {
        const cs_plan_route *route =
            cs_plan_find_route(plan, p->workload->types[p->types[t].workload_type].name);
        for (size_t k = 0; k < route->n_paths; k++)
            for (size_t a = 0; a < p->n_edges; a++) {
                if (!cs_problem_type_uses(&p->types[t], &p->edges[a]))
                    continue;
                size_t from =
                    node_of(p, executor_of(p, plan, &route->paths[k], (size_t)p->edges[a].from));
                size_t to =
                    node_of(p, executor_of(p, plan, &route->paths[k], (size_t)p->edges[a].to));
                traffic[from * n + to] +=
                    rate * p->types[t].share * route->paths[k].weight * p->types[t].edge_bytes[a];
            }
    }
    *link_use = *bytes = 0;
    for (size_t i = 0; i < n * n; i++) {
        if (i / n == i % n || traffic[i] <= 0)
            continue;
        *bytes += traffic[i];
        *link_use = MAX(*link_use, traffic[i] / p->cluster->bandwidth[i]);
    }
}

char *verify_plan(const cs_problem *p, const cs_plan *plan, double rate)
{
    char *fault = check_devices(p, plan);
    fault = fault ? fault : check_routes(p, plan);
    fault = fault ? fault : check_capacity(p, plan, rate);
    if (fault)
        return fault;
    double link_use, bytes;
    measure_traffic(p, plan, rate, &link_use, &bytes);
    return link_use > 1 + SLACK ? g_strdup_printf("a link is used %.6f", link_use) : NULL;
}
