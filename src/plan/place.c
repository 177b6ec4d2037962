#include "plan/place.h"

#include "plan/node_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MASS_EPSILON 1e-9

/* ---- replicas onto nodes ---- */

typedef struct {
    const cs_problem *p;
    cs_layout *layout;
    int *left; /* [n_nodes][n_kinds] devices */
} packing;

static int *left_at(const packing *k, size_t node, size_t kind)
{
    return &k->left[node * k->p->cluster->n_kinds + kind];
}

/* What node n should have of `total` replicas: its share of the devices of that kind. */
static double fair_share(const packing *k, const cs_exec_type *e, size_t n, int total)
{
    int all = k->p->capacity[e->kind];
    return all ? (double)total * k->p->cluster->nodes[n].devices[e->kind] / all : 0;
}

/* Whole shares first, then the node that is furthest below its share and has room. */
static bool pack_type(packing *k, size_t e, int total)
{
    const cs_exec_type *type = &k->p->execs[e];
    size_t n_nodes = k->p->cluster->n_nodes;
    int placed = 0;
    for (size_t n = 0; n < n_nodes; n++) {
        int want = (int)floor(fair_share(k, type, n, total) + 1e-9);
        want = MIN(want, *left_at(k, n, type->kind) / type->count);
        *cs_layout_at(k->layout, e, n) = want;
        *left_at(k, n, type->kind) -= want * type->count;
        placed += want;
    }
    for (; placed < total; placed++) {
        size_t best = n_nodes;
        double most = -INFINITY;
        for (size_t n = 0; n < n_nodes; n++) {
            /* A node with much left comes before one nearly full: room for what follows. */
            double lack = fair_share(k, type, n, total) - *cs_layout_at(k->layout, e, n) +
                          1e-3 * *left_at(k, n, type->kind);
            if (*left_at(k, n, type->kind) >= type->count && lack > most + 1e-12) {
                most = lack;
                best = n;
            }
        }
        if (best == n_nodes)
            return false;
        ++*cs_layout_at(k->layout, e, best);
        *left_at(k, best, type->kind) -= type->count;
    }
    return true;
}

/* ---- routes ---- */

typedef struct {
    const cs_flow *flow;
    cs_layout *layout;
    const double *share; /* of cs_flow_result */
    double *traffic;     /* [n_nodes * n_nodes] seconds of link per request of the mix so far */
} routing;

typedef struct {
    size_t site;
    double mass; /* of the type's requests still to be given to it */
} target;

/* How much of the stage each site takes: the executor type's share by its replicas there. */
static GArray *stage_targets(const routing *r, size_t s, size_t t)
{
    const cs_problem *p = r->layout->problem;
    size_t n_nodes = p->cluster->n_nodes;
    int k = r->flow->of[s * p->n_types + t];
    GArray *out = g_array_new(FALSE, FALSE, sizeof(target));
    for (size_t e = 0; e < p->n_execs; e++) {
        double share = r->share[(size_t)k * p->n_execs + e];
        int total = 0;
        for (size_t n = 0; share > 0 && n < n_nodes; n++)
            total += *cs_layout_at(r->layout, e, n);
        for (size_t n = 0; total > 0 && n < n_nodes; n++) {
            target x = {e * n_nodes + n, share * *cs_layout_at(r->layout, e, n) / total};
            if (x.mass > 0)
                g_array_append_val(out, x);
        }
    }
    return out;
}

/* 0: the site of a stage that feeds this one; 1: its node; 2: elsewhere. */
static int distance(const cs_problem *p, const cs_layout_route *route, size_t s, size_t site)
{
    size_t n_nodes = p->cluster->n_nodes;
    int best = 3;
    bool fed = false;
    for (size_t a = 0; a < p->n_edges; a++) {
        int from = (size_t)p->edges[a].to == s     ? p->edges[a].from
                   : (size_t)p->edges[a].from == s ? p->edges[a].to
                                                   : -1;
        if (from < 0 || route->exec[from] < 0)
            continue;
        fed = true;
        bool same_node = (size_t)route->node[from] == site % n_nodes;
        bool same_site = same_node && (size_t)route->exec[from] == site / n_nodes;
        best = MIN(best, same_site ? 0 : same_node ? 1 : 2);
    }
    return fed ? best : 0;
}

/* The stage's largest load on any link if the rest of the route is at these nodes. */
static double link_pressure(const routing *r, const cs_layout_route *route, size_t s, size_t node)
{
    const cs_problem *p = r->layout->problem;
    size_t n = p->cluster->n_nodes;
    double worst = 0;
    for (size_t a = 0; a < p->n_edges; a++) {
        const cs_stage_edge *edge = &p->edges[a];
        if (((size_t)edge->from != s && (size_t)edge->to != s) ||
            !cs_problem_type_uses(&p->types[route->type], edge))
            continue;
        int other = (size_t)edge->from == s ? edge->to : edge->from;
        if (route->exec[other] < 0 || (size_t)route->node[other] == node)
            continue;
        size_t link = (size_t)edge->from == s ? node * n + (size_t)route->node[other]
                                              : (size_t)route->node[other] * n + node;
        double b = p->cluster->bandwidth[link];
        worst =
            MAX(worst, b > 0 ? r->traffic[link] + p->types[route->type].edge_bytes[a] / b : 1e30);
    }
    return worst;
}

static void set_stage(cs_layout_route *route, const cs_problem *p, size_t s, size_t site)
{
    size_t n = p->cluster->n_nodes;
    route->exec[s] = (gint16)(site / n);
    route->node[s] = (gint16)(site % n);
    if (p->stages[s].inseparable) {
        route->exec[p->stages[s].twin] = route->exec[s];
        route->node[p->stages[s].twin] = route->node[s];
    }
}

static void add_traffic(routing *r, const cs_layout_route *route, size_t s, double mass)
{
    const cs_problem *p = r->layout->problem;
    size_t n = p->cluster->n_nodes;
    for (size_t a = 0; a < p->n_edges; a++) {
        const cs_stage_edge *edge = &p->edges[a];
        if (((size_t)edge->from != s && (size_t)edge->to != s) ||
            !cs_problem_type_uses(&p->types[route->type], edge) || route->exec[edge->from] < 0 ||
            route->exec[edge->to] < 0 || route->node[edge->from] == route->node[edge->to])
            continue;
        size_t link = (size_t)route->node[edge->from] * n + (size_t)route->node[edge->to];
        if (p->cluster->bandwidth[link] > 0)
            r->traffic[link] += mass * p->types[route->type].share *
                                p->types[route->type].edge_bytes[a] / p->cluster->bandwidth[link];
    }
}

/* Gives what it can of a partial route to targets at most `reach` away; appends the pieces. */
static void assign(routing *r, cs_layout_route *route, size_t s, GArray *targets, int reach,
                   GArray *out)
{
    const cs_problem *p = r->layout->problem;
    while (route->weight > MASS_EPSILON) {
        target *best = NULL;
        double best_pressure = INFINITY;
        int nearest = reach + 1;
        for (guint i = 0; i < targets->len; i++) {
            target *x = &g_array_index(targets, target, i);
            if (x->mass <= MASS_EPSILON)
                continue;
            int far = distance(p, route, s, x->site);
            if (far > reach || far > nearest)
                continue;
            double pressure =
                far == 2 ? link_pressure(r, route, s, x->site % p->cluster->n_nodes) : -x->mass;
            if (far < nearest || pressure < best_pressure) {
                nearest = far;
                best_pressure = pressure;
                best = x;
            }
        }
        if (!best)
            return;
        cs_layout_route piece = *route;
        piece.weight = MIN(route->weight, best->mass);
        set_stage(&piece, p, s, best->site);
        add_traffic(r, &piece, s, piece.weight);
        route->weight -= piece.weight;
        best->mass -= piece.weight;
        g_array_append_val(out, piece);
    }
}

/* Pieces that differ only in weight become one. */
static void merge(GArray *routes)
{
    guint kept = 0;
    for (guint i = 0; i < routes->len; i++) {
        cs_layout_route *x = &g_array_index(routes, cs_layout_route, i);
        guint k = kept > 64 ? kept - 64 : 0;
        while (k < kept && memcmp(g_array_index(routes, cs_layout_route, k).exec, x->exec,
                                  sizeof x->exec + sizeof x->node) != 0)
            k++;
        if (k < kept)
            g_array_index(routes, cs_layout_route, k).weight += x->weight;
        else
            g_array_index(routes, cs_layout_route, kept++) = *x;
    }
    g_array_set_size(routes, kept);
}

static GArray *route_stage(routing *r, GArray *routes, size_t s, size_t t)
{
    g_autoptr(GArray) targets = stage_targets(r, s, t);
    GArray *out = g_array_new(FALSE, FALSE, sizeof(cs_layout_route));
    for (int reach = 0; reach < 3; reach++)
        for (guint i = 0; i < routes->len; i++) {
            cs_layout_route *route = &g_array_index(routes, cs_layout_route, i);
            if (route->weight > MASS_EPSILON)
                assign(r, route, s, targets, reach, out);
        }
    merge(out);
    g_array_unref(routes);
    return out;
}

/* The stage that does most work comes first: everything else gathers around it. */
static size_t anchor_stage(const cs_problem *p, size_t t)
{
    size_t best = p->n_stages;
    double most = -1;
    for (size_t s = 0; s < p->n_stages; s++) {
        double least = INFINITY;
        for (size_t e = 0; e < p->n_execs; e++)
            least = MIN(least, cs_problem_work(p, e, s, t));
        if ((p->types[t].stages >> s & 1) && least > most) {
            most = least;
            best = s;
        }
    }
    return best;
}

/* The next stage of the type next to one already routed; any if there is none. */
static size_t next_stage(const cs_problem *p, size_t t, guint32 done)
{
    guint32 left = p->types[t].stages & ~done;
    for (size_t a = 0; a < p->n_edges; a++) {
        guint32 from = 1u << p->edges[a].from, to = 1u << p->edges[a].to;
        if ((left & to) && (done & from))
            return (size_t)p->edges[a].to;
        if ((left & from) && (done & to))
            return (size_t)p->edges[a].from;
    }
    return (size_t)__builtin_ctz(left);
}

static void route_type(routing *r, size_t t)
{
    const cs_problem *p = r->layout->problem;
    GArray *routes = g_array_new(FALSE, FALSE, sizeof(cs_layout_route));
    cs_layout_route all = {.type = (guint)t, .weight = 1};
    memset(all.exec, 0xff, sizeof all.exec);
    memset(all.node, 0xff, sizeof all.node);
    g_array_append_val(routes, all);
    guint32 done = 0;
    for (size_t s = anchor_stage(p, t); done != p->types[t].stages;) {
        routes = route_stage(r, routes, s, t);
        done |= 1u << s;
        if (p->stages[s].inseparable)
            done |= 1u << p->stages[s].twin;
        if (done != p->types[t].stages)
            s = next_stage(p, t, done);
    }
    double sum = 0;
    for (guint i = 0; i < routes->len; i++)
        sum += g_array_index(routes, cs_layout_route, i).weight;
    for (guint i = 0; i < routes->len; i++)
        g_array_index(routes, cs_layout_route, i).weight /= sum > 0 ? sum : 1;
    g_array_append_vals(r->layout->routes, routes->data, routes->len);
    g_array_unref(routes);
}

void cs_place_route(const cs_flow *flow, cs_layout *layout)
{
    const cs_problem *p = layout->problem;
    size_t n = p->cluster->n_nodes;
    g_autofree int *counts = g_new0(int, p->n_execs + 1);
    cs_layout_counts(layout, counts);
    cs_flow_result result;
    cs_flow_solve(flow, counts, false, &result);
    routing r = {.flow = flow, .layout = layout, .share = result.share};
    r.traffic = g_new0(double, n *n + 1);
    g_array_set_size(layout->routes, 0);
    for (size_t t = 0; t < p->n_types; t++)
        route_type(&r, t);
    g_free(r.traffic);
    cs_flow_result_clear(&result);
}

cs_layout *cs_place_balanced(const cs_flow *flow, const cs_candidate *candidate)
{
    const cs_problem *p = flow->problem;
    g_autoptr(cs_layout) layout = cs_layout_new(p);
    packing k = {.p = p, .layout = layout};
    guint order[CS_CANDIDATE_TYPES];
    g_autofree int *left = g_new0(int, p->cluster->n_nodes * p->cluster->n_kinds + 1);
    k.left = left;
    for (size_t n = 0; n < p->cluster->n_nodes; n++)
        for (size_t kind = 0; kind < p->cluster->n_kinds; kind++)
            *left_at(&k, n, kind) = p->cluster->nodes[n].devices[kind];
    /* Insertion by width: few types, and no state outside this function. */
    for (guint i = 0; i < candidate->n; i++) {
        guint at = i;
        const cs_exec_type *x = &p->execs[candidate->exec[i]];
        while (at > 0) {
            const cs_exec_type *y = &p->execs[candidate->exec[order[at - 1]]];
            bool before = x->count != y->count
                              ? x->count > y->count
                              : __builtin_popcount(x->mask) > __builtin_popcount(y->mask);
            if (!before)
                break;
            order[at] = order[at - 1];
            at--;
        }
        order[at] = i;
    }
    for (guint i = 0; i < candidate->n; i++)
        if (!pack_type(&k, candidate->exec[order[i]], candidate->count[order[i]]))
            return NULL;
    cs_place_route(flow, layout);
    return cs_layout_check(layout, NULL) ? g_steal_pointer(&layout) : NULL;
}

/* ---- exact placement ---- */

cs_layout *cs_place_exact(const cs_flow *flow, const cs_candidate *candidate, bool fixed_rate,
                          size_t max_columns, double seconds)
{
    const cs_problem *p = flow->problem;
    size_t n_nodes = p->cluster->n_nodes;
    g_autofree bool *allowed = g_new0(bool, p->n_execs + 1);
    for (guint i = 0; i < candidate->n; i++)
        allowed[candidate->exec[i]] = true;
    cs_node_model model;
    if (!cs_node_model_init(&model, p, allowed, !fixed_rate, max_columns))
        return NULL;
    for (guint i = 0; i < candidate->n; i++) {
        int row = cs_milp_row(&model.m, candidate->count[i], candidate->count[i]);
        for (size_t n = 0; n < n_nodes; n++)
            if (model.x[candidate->exec[i] * n_nodes + n] >= 0)
                cs_milp_entry(&model.m, row, model.x[candidate->exec[i] * n_nodes + n], 1);
    }
    cs_layout *layout = NULL;
    g_autofree double *x = NULL;
    /* The rate first (if free), then the links; the bytes follow the links closely. */
    for (int step = fixed_rate ? 1 : 0; step < 2; step++) {
        memset(model.m.objective->data, 0, model.m.objective->len * sizeof(double));
        g_array_index(model.m.objective, double, step ? model.link_use : model.alpha) =
            step ? 1 : -1;
        cs_milp_options o = {.seconds = seconds, .gap = step ? 1e-2 : 1e-7, .start = x};
        cs_milp_result r;
        if (!cs_milp_solve(&model.m, &o, &r, NULL) || !r.x)
            break;
        g_free(x);
        x = r.x;
        double rate = x[model.alpha] * (1 - 1e-7);
        if (!fixed_rate && step == 0) {
            g_array_index(model.m.lower, double, model.alpha) = rate;
            g_array_index(model.m.upper, double, model.alpha) = rate;
        }
    }
    if (x && x[model.alpha] > 0)
        layout = cs_node_model_layout(&model, x);
    cs_node_model_clear(&model);
    if (layout && !cs_layout_check(layout, NULL))
        g_clear_pointer(&layout, cs_layout_free);
    return layout;
}
