#include "plan/layout.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

cs_layout *cs_layout_new(const cs_problem *problem)
{
    cs_layout *l = g_new0(cs_layout, 1);
    l->problem = problem;
    l->replicas = g_new0(int, problem->n_execs * problem->cluster->n_nodes + 1);
    l->routes = g_array_new(FALSE, TRUE, sizeof(cs_layout_route));
    return l;
}

cs_layout *cs_layout_copy(const cs_layout *layout)
{
    cs_layout *l = cs_layout_new(layout->problem);
    memcpy(l->replicas, layout->replicas,
           sizeof(int) * layout->problem->n_execs * layout->problem->cluster->n_nodes);
    g_array_append_vals(l->routes, layout->routes->data, layout->routes->len);
    if (layout->limits)
        l->limits = g_memdup2(layout->limits, sizeof l->limits[0] * layout->problem->n_execs *
                                                  layout->problem->cluster->n_nodes);
    return l;
}

void cs_layout_free(cs_layout *layout)
{
    if (!layout)
        return;
    g_free(layout->replicas);
    g_free(layout->limits);
    g_array_unref(layout->routes);
    g_free(layout);
}

void cs_layout_counts(const cs_layout *layout, int *counts)
{
    const cs_problem *p = layout->problem;
    for (size_t e = 0; e < p->n_execs; e++) {
        counts[e] = 0;
        for (size_t n = 0; n < p->cluster->n_nodes; n++)
            counts[e] += *cs_layout_at(layout, e, n);
    }
}

int cs_layout_devices(const cs_layout *layout)
{
    int sum = 0;
    for (size_t e = 0; e < layout->problem->n_execs; e++)
        for (size_t n = 0; n < layout->problem->cluster->n_nodes; n++)
            sum += *cs_layout_at(layout, e, n) * layout->problem->execs[e].count;
    return sum;
}

double cs_layout_cost(const cs_layout *layout)
{
    double sum = 0;
    for (size_t e = 0; e < layout->problem->n_execs; e++)
        for (size_t n = 0; n < layout->problem->cluster->n_nodes; n++)
            sum += *cs_layout_at(layout, e, n) * layout->problem->execs[e].cost;
    return sum;
}

double *cs_layout_traffic(const cs_layout *layout, double rate_rps)
{
    const cs_problem *p = layout->problem;
    size_t n = p->cluster->n_nodes;
    double *traffic = g_new0(double, n *n + 1);
    for (guint i = 0; i < layout->routes->len; i++) {
        const cs_layout_route *r = &g_array_index(layout->routes, cs_layout_route, i);
        const cs_problem_type *type = &p->types[r->type];
        for (size_t a = 0; a < p->n_edges; a++) {
            const cs_stage_edge *edge = &p->edges[a];
            if (!cs_problem_type_uses(type, edge) || r->node[edge->from] == r->node[edge->to])
                continue;
            traffic[(size_t)r->node[edge->from] * n + (size_t)r->node[edge->to]] +=
                rate_rps * type->share * r->weight * type->edge_bytes[a];
        }
    }
    return traffic;
}

double cs_layout_link_use(const cs_layout *layout, const double *traffic)
{
    const cs_cluster *c = layout->problem->cluster;
    double most = 0;
    for (size_t i = 0; i < c->n_nodes * c->n_nodes; i++)
        if (traffic[i] > 0)
            most = MAX(most, c->bandwidth[i] > 0 ? traffic[i] / c->bandwidth[i] : INFINITY);
    return most;
}

/* Replica-seconds per second that each site carries at a total rate of 1/s. */
static double *site_work(const cs_layout *layout)
{
    const cs_problem *p = layout->problem;
    size_t n = p->cluster->n_nodes;
    double *work = g_new0(double, p->n_execs *n + 1);
    for (guint i = 0; i < layout->routes->len; i++) {
        const cs_layout_route *r = &g_array_index(layout->routes, cs_layout_route, i);
        for (size_t s = 0; s < p->n_stages; s++)
            if (p->types[r->type].stages >> s & 1)
                work[(size_t)r->exec[s] * n + (size_t)r->node[s]] +=
                    p->types[r->type].share * r->weight *
                    cs_problem_work(p, (size_t)r->exec[s], s, r->type);
    }
    return work;
}

double cs_layout_rate(const cs_layout *layout, char **bottleneck)
{
    const cs_problem *p = layout->problem;
    const cs_cluster *c = p->cluster;
    g_autofree double *work = site_work(layout), *traffic = cs_layout_traffic(layout, 1);
    double rate = INFINITY;
    g_autofree char *what = NULL;
    for (size_t e = 0; e < p->n_execs; e++)
        for (size_t n = 0; n < c->n_nodes; n++) {
            size_t i = e * c->n_nodes + n;
            double limit =
                work[i] > 0 ? p->utilisation_cap * layout->replicas[i] / work[i] : INFINITY;
            if (limit < rate * (1 - 1e-9)) {
                rate = limit;
                g_free(what);
                what = g_strdup_printf("%s on node %s (%d replica%s) is full at %.4g requests/s",
                                       p->execs[e].name, c->nodes[n].name, layout->replicas[i],
                                       layout->replicas[i] == 1 ? "" : "s", rate);
            }
        }
    for (size_t i = 0; i < c->n_nodes * c->n_nodes; i++) {
        double limit = traffic[i] > 0 ? c->bandwidth[i] / traffic[i] : INFINITY;
        if (limit < rate * (1 - 1e-9)) {
            rate = limit;
            g_free(what);
            what =
                g_strdup_printf("the link from node %s to node %s is full at %.4g requests/s",
                                c->nodes[i / c->n_nodes].name, c->nodes[i % c->n_nodes].name, rate);
        }
    }
    if (bottleneck)
        *bottleneck = what ? g_steal_pointer(&what) : g_strdup("");
    return isinf(rate) ? 0 : rate;
}

static bool check_routes(const cs_layout *layout, GError **error)
{
    const cs_problem *p = layout->problem;
    g_autofree double *sum = g_new0(double, p->n_types + 1);
    for (guint i = 0; i < layout->routes->len; i++) {
        const cs_layout_route *r = &g_array_index(layout->routes, cs_layout_route, i);
        sum[r->type] += r->weight;
        for (size_t s = 0; s < p->n_stages; s++) {
            if (!(p->types[r->type].stages >> s & 1))
                continue;
            if (r->exec[s] < 0 || !(p->execs[r->exec[s]].mask >> s & 1) ||
                *cs_layout_at(layout, (size_t)r->exec[s], (size_t)r->node[s]) < 1)
                return cs_fail(
                    error, CS_ERROR_FAILED, "a route of type %s has no executor for stage %s",
                    p->workload->types[p->types[r->type].workload_type].name, p->stages[s].name);
        }
    }
    for (size_t t = 0; t < p->n_types; t++)
        if (fabs(sum[t] - 1) > 1e-6)
            return cs_fail(error, CS_ERROR_FAILED, "weights of type %s sum to %g, expected 1",
                           p->workload->types[p->types[t].workload_type].name, sum[t]);
    return true;
}

bool cs_layout_check(const cs_layout *layout, GError **error)
{
    const cs_problem *p = layout->problem;
    for (size_t n = 0; n < p->cluster->n_nodes; n++) {
        int used[CS_PLAN_MAX_KINDS] = {0};
        for (size_t e = 0; e < p->n_execs; e++)
            used[p->execs[e].kind] += *cs_layout_at(layout, e, n) * p->execs[e].count;
        for (size_t k = 0; k < p->cluster->n_kinds; k++)
            if (used[k] > p->cluster->nodes[n].devices[k])
                return cs_fail(error, CS_ERROR_FAILED,
                               "node %s: %d devices of kind %s are used, it has %d",
                               p->cluster->nodes[n].name, used[k], p->cluster->kinds[k].name,
                               p->cluster->nodes[n].devices[k]);
    }
    return check_routes(layout, error);
}

/* ---- to the plan file's form ---- */

static void fill_hosted(const cs_problem *p, const cs_exec_type *e, cs_plan_executor *out)
{
    out->hosted = g_new0(cs_plan_hosted, p->n_stages);
    for (size_t s = 0; s < p->n_stages; s++) {
        const cs_stage *stage = &p->stages[s];
        bool whole = stage->twin >= 0 && (e->mask >> stage->twin & 1);
        if (!(e->mask >> s & 1) || (whole && stage->role == CS_ROLE_PREFILL))
            continue;
        out->hosted[out->n_hosted++] = (cs_plan_hosted){
            .name = g_strdup(p->graph->components[stage->component].name),
            .role = whole ? CS_ROLE_BOTH : stage->role,
            .max_batch = e->stages[s].batch,
        };
    }
}

/* A device of kind "cpu" is a thread. Other kinds leave the number to the runtime. */
static int threads_of(const cs_problem *p, const cs_exec_type *e)
{
    const char *kind = p->cluster->kinds[e->kind].name;
    return g_str_equal(kind, "cpu") || g_str_has_prefix(kind, "cpu:") ? e->count : 0;
}

/* Executors in order of node, then type; index[e * n_nodes + n] is their place. */
static void fill_executors(const cs_layout *l, cs_plan *plan, size_t *index)
{
    const cs_problem *p = l->problem;
    GArray *out = g_array_new(FALSE, TRUE, sizeof(cs_plan_executor));
    for (size_t n = 0; n < p->cluster->n_nodes; n++) {
        int next[CS_PLAN_MAX_KINDS] = {0};
        for (size_t e = 0; e < p->n_execs; e++) {
            int replicas = *cs_layout_at(l, e, n), devices = replicas * p->execs[e].count;
            if (replicas == 0)
                continue;
            cs_plan_executor x = {
                .name = g_strdup_printf("%s@%s", p->execs[e].name, p->cluster->nodes[n].name),
                .node = g_strdup(p->cluster->nodes[n].name),
                .device = g_strdup(p->cluster->kinds[p->execs[e].kind].name),
                .devices_per_replica = p->execs[e].count,
                .replicas = replicas,
                .device_ids = g_new0(int, devices + 1),
                .threads = threads_of(p, &p->execs[e]),
                .kv_budget_bytes = floor(p->execs[e].kv_budget_bytes),
            };
            fill_hosted(p, &p->execs[e], &x);
            for (int d = 0; d < devices; d++)
                x.device_ids[d] = next[p->execs[e].kind]++;
            index[e * p->cluster->n_nodes + n] = out->len;
            g_array_append_val(out, x);
        }
    }
    plan->n_executors = out->len;
    plan->executors = (cs_plan_executor *)(void *)g_array_free(out, FALSE);
}

/* A path's hops; halves of an LLM on one executor are one hop. */
static cs_plan_path make_path(const cs_layout *l, const cs_layout_route *r, const size_t *index)
{
    const cs_problem *p = l->problem;
    cs_plan_path path = {.weight = r->weight, .hops = g_new0(cs_plan_hop, p->n_stages)};
    for (size_t s = 0; s < p->n_stages; s++) {
        const cs_stage *stage = &p->stages[s];
        if (!(p->types[r->type].stages >> s & 1))
            continue;
        bool whole = stage->twin >= 0 && r->exec[s] == r->exec[stage->twin] &&
                     r->node[s] == r->node[stage->twin];
        if (whole && stage->role == CS_ROLE_DECODE)
            continue;
        size_t site = (size_t)r->exec[s] * p->cluster->n_nodes + (size_t)r->node[s];
        path.hops[path.n_hops++] = (cs_plan_hop){
            .component = g_strdup(p->graph->components[stage->component].name),
            .role = whole ? CS_ROLE_BOTH : stage->role,
            .executor = index[site],
        };
    }
    return path;
}

static void fill_routes(const cs_layout *l, cs_plan *plan, const size_t *index)
{
    const cs_problem *p = l->problem;
    plan->routes = g_new0(cs_plan_route, p->n_types + 1);
    plan->n_routes = p->n_types;
    for (size_t t = 0; t < p->n_types; t++) {
        cs_plan_route *route = &plan->routes[t];
        route->request_type = g_strdup(p->workload->types[p->types[t].workload_type].name);
        route->rate_rps = p->types[t].rate_rps;
        route->paths = g_new0(cs_plan_path, l->routes->len + 1);
        for (guint i = 0; i < l->routes->len; i++) {
            const cs_layout_route *r = &g_array_index(l->routes, cs_layout_route, i);
            if (r->type == t)
                route->paths[route->n_paths++] = make_path(l, r, index);
        }
    }
}

static void fill_links(const cs_layout *l, cs_plan *plan, double load_rps)
{
    const cs_cluster *c = l->problem->cluster;
    g_autofree double *traffic = cs_layout_traffic(l, load_rps);
    plan->predictions.links = g_new0(cs_plan_link, c->n_nodes * c->n_nodes + 1);
    for (size_t i = 0; i < c->n_nodes * c->n_nodes; i++)
        if (traffic[i] > 0)
            plan->predictions.links[plan->predictions.n_links++] = (cs_plan_link){
                .from = g_strdup(c->nodes[i / c->n_nodes].name),
                .to = g_strdup(c->nodes[i % c->n_nodes].name),
                .bytes_per_s = traffic[i],
                .utilisation = traffic[i] / c->bandwidth[i],
            };
}

cs_plan *cs_layout_to_plan(const cs_layout *layout, const char *policy, double load_rps)
{
    const cs_problem *p = layout->problem;
    cs_plan *plan = g_new0(cs_plan, 1);
    g_autofree size_t *index = g_new0(size_t, p->n_execs * p->cluster->n_nodes + 1);
    plan->model = g_strdup(p->graph->name);
    plan->policy = g_strdup(policy);
    fill_executors(layout, plan, index);
    fill_routes(layout, plan, index);
    plan->predictions.throughput_rps = cs_layout_rate(layout, &plan->bottleneck);
    plan->predictions.devices = cs_layout_devices(layout);
    plan->predictions.cost = cs_layout_cost(layout);
    fill_links(layout, plan, load_rps);
    return plan;
}

/* ---- from the plan file's form ---- */

static int stage_index(const cs_problem *p, const char *component, cs_plan_role role)
{
    for (size_t s = 0; s < p->n_stages; s++)
        if (g_str_equal(p->graph->components[p->stages[s].component].name, component) &&
            (role == CS_ROLE_BOTH || p->stages[s].role == role))
            return (int)s;
    return -1;
}

static guint32 hosted_mask(const cs_problem *p, const cs_plan_executor *x)
{
    guint32 mask = 0;
    for (size_t i = 0; i < x->n_hosted; i++) {
        int s = stage_index(p, x->hosted[i].name, x->hosted[i].role);
        if (s < 0)
            continue;
        mask |= 1u << s;
        if (x->hosted[i].role == CS_ROLE_BOTH && p->stages[s].twin >= 0)
            mask |= 1u << p->stages[s].twin;
    }
    return mask;
}

static bool match_executor(const cs_problem *p, const cs_plan_executor *x, size_t *exec,
                           size_t *node, GError **error)
{
    *node = cs_cluster_find_node(p->cluster, x->node);
    size_t kind = cs_cluster_kind(p->cluster, x->device);
    if (*node == p->cluster->n_nodes)
        return cs_fail(error, CS_ERROR_NOT_FOUND, "executor %s: the cluster has no node %s",
                       x->name, x->node);
    guint32 mask = hosted_mask(p, x);
    for (*exec = 0; *exec < p->n_execs; ++*exec)
        if (p->execs[*exec].mask == mask && p->execs[*exec].kind == kind &&
            p->execs[*exec].count == x->devices_per_replica)
            return true;
    return cs_fail(error, CS_ERROR_NOT_FOUND,
                   "executor %s: no profile covers its components on %d x %s, or they may not "
                   "share an executor or do not fit its memory",
                   x->name, x->devices_per_replica, x->device);
}

static void lower(int *limit, int value)
{
    if (value > 0 && (*limit == 0 || value < *limit))
        *limit = value;
}

/* A whole language model's batch is that of its decoding, as fill_hosted writes it. */
static void add_limits(cs_layout *l, const cs_plan_executor *x, size_t exec, size_t node)
{
    const cs_problem *p = l->problem;
    if (!l->limits)
        l->limits = g_new0(cs_layout_limit, p->n_execs * p->cluster->n_nodes + 1);
    cs_layout_limit *limit = &l->limits[exec * p->cluster->n_nodes + node];
    for (size_t i = 0; i < x->n_hosted; i++) {
        int s = stage_index(p, x->hosted[i].name, x->hosted[i].role);
        if (s >= 0 && x->hosted[i].role == CS_ROLE_BOTH && p->stages[s].twin >= 0)
            s = p->stages[s].role == CS_ROLE_DECODE ? s : p->stages[s].twin;
        if (s >= 0)
            lower(&limit->batch[s], x->hosted[i].max_batch);
    }
    if (x->kv_budget_bytes > 0)
        limit->kv_budget_bytes = x->kv_budget_bytes;
}

static bool add_path(cs_layout *l, guint type, const cs_plan_path *path, const size_t *exec_of,
                     const size_t *node_of, GError **error)
{
    const cs_problem *p = l->problem;
    cs_layout_route r = {.type = type, .weight = path->weight};
    memset(r.exec, 0xff, sizeof r.exec);
    memset(r.node, 0xff, sizeof r.node);
    for (size_t h = 0; h < path->n_hops; h++) {
        const cs_plan_hop *hop = &path->hops[h];
        int s = stage_index(p, hop->component, hop->role);
        if (s < 0)
            continue;
        int twin = hop->role == CS_ROLE_BOTH ? p->stages[s].twin : -1;
        r.exec[s] = (gint16)exec_of[hop->executor];
        r.node[s] = (gint16)node_of[hop->executor];
        if (twin >= 0) {
            r.exec[twin] = r.exec[s];
            r.node[twin] = r.node[s];
        }
    }
    for (size_t s = 0; s < p->n_stages; s++)
        if ((p->types[type].stages >> s & 1) && r.exec[s] < 0)
            return cs_fail(error, CS_ERROR_INVALID, "a path of type %s does not serve %s",
                           p->workload->types[p->types[type].workload_type].name,
                           p->stages[s].name);
    if (r.weight > 0)
        g_array_append_val(l->routes, r);
    return true;
}

cs_layout *cs_layout_from_plan(const cs_problem *p, const cs_plan *plan, GError **error)
{
    g_autoptr(cs_layout) l = cs_layout_new(p);
    g_autofree size_t *exec_of = g_new0(size_t, plan->n_executors + 1);
    g_autofree size_t *node_of = g_new0(size_t, plan->n_executors + 1);
    for (size_t i = 0; i < plan->n_executors; i++) {
        if (!match_executor(p, &plan->executors[i], &exec_of[i], &node_of[i], error))
            return NULL;
        *cs_layout_at(l, exec_of[i], node_of[i]) += plan->executors[i].replicas;
        add_limits(l, &plan->executors[i], exec_of[i], node_of[i]);
    }
    for (size_t t = 0; t < p->n_types; t++) {
        const char *name = p->workload->types[p->types[t].workload_type].name;
        const cs_plan_route *route = cs_plan_find_route(plan, name);
        if (!route) {
            cs_fail(error, CS_ERROR_NOT_FOUND, "the plan has no route for request type %s", name);
            return NULL;
        }
        for (size_t i = 0; i < route->n_paths; i++)
            if (!add_path(l, (guint)t, &route->paths[i], exec_of, node_of, error))
                return NULL;
    }
    return cs_layout_check(l, error) ? g_steal_pointer(&l) : NULL;
}
