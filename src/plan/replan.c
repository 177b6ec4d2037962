#include "plan/replan.h"

#include "base/error.h"
#include "plan/place.h"

#include <math.h>
#include <string.h>

#define DEFAULT_HORIZON_S 600.0
#define DEFAULT_LOAD 2e9
#define DEFAULT_DRAIN_S 10.0

typedef struct {
    const cs_flow *flow;
    const cs_problem *p;
    cs_replan_options o;
    const cs_layout *running;
} replanner;

static bool same_stages(const cs_problem *p, const cs_exec_type *e, const cs_plan_executor *x)
{
    guint32 mask = 0;
    for (size_t i = 0; i < x->n_hosted; i++)
        for (size_t s = 0; s < p->n_stages; s++)
            if (g_str_equal(p->graph->components[p->stages[s].component].name, x->hosted[i].name) &&
                (x->hosted[i].role == CS_ROLE_BOTH || x->hosted[i].role == p->stages[s].role))
                mask |= 1u << s;
    return mask == e->mask && e->count == x->devices_per_replica &&
           g_str_equal(p->cluster->kinds[e->kind].name, x->device);
}

cs_layout *cs_replan_survivors(const cs_problem *p, const cs_plan *old)
{
    cs_layout *l = cs_layout_new(p);
    for (size_t i = 0; i < old->n_executors; i++) {
        const cs_plan_executor *x = &old->executors[i];
        size_t node = cs_cluster_find_node(p->cluster, x->node), e = 0;
        while (e < p->n_execs && !same_stages(p, &p->execs[e], x))
            e++;
        if (node == p->cluster->n_nodes || e == p->n_execs)
            continue;
        int used = 0;
        for (size_t k = 0; k < p->n_execs; k++)
            if (p->execs[k].kind == p->execs[e].kind)
                used += *cs_layout_at(l, k, node) * p->execs[k].count;
        int room = (p->cluster->nodes[node].devices[p->execs[e].kind] - used) / p->execs[e].count;
        *cs_layout_at(l, e, node) += CLAMP(room, 0, x->replicas);
    }
    return l;
}

/* ---- placing near what runs ---- */

static int free_devices(const cs_layout *l, size_t node, size_t kind)
{
    int left = l->problem->cluster->nodes[node].devices[kind];
    for (size_t e = 0; e < l->problem->n_execs; e++)
        if (l->problem->execs[e].kind == kind)
            left -= *cs_layout_at(l, e, node) * l->problem->execs[e].count;
    return left;
}

/* Counts of the candidate where replicas of it run already, the rest on free devices; NULL when
 * they do not fit that way. */
static cs_layout *place_near(const replanner *r, const cs_candidate *c)
{
    const cs_problem *p = r->p;
    size_t n_nodes = p->cluster->n_nodes;
    g_autoptr(cs_layout) l = cs_layout_new(p);
    int missing[CS_CANDIDATE_TYPES];
    for (guint i = 0; i < c->n; i++) {
        missing[i] = c->count[i];
        for (size_t n = 0; n < n_nodes; n++) {
            int keep = MIN(missing[i], *cs_layout_at(r->running, c->exec[i], n));
            *cs_layout_at(l, c->exec[i], n) = keep;
            missing[i] -= keep;
        }
    }
    for (int width = 1024; width >= 1; width /= 2) /* wide ones first, while there is room */
        for (guint i = 0; i < c->n; i++) {
            const cs_exec_type *e = &p->execs[c->exec[i]];
            if (e->count < width || e->count >= 2 * width)
                continue;
            for (; missing[i] > 0; missing[i]--) {
                size_t best = n_nodes;
                int most = e->count - 1;
                for (size_t n = 0; n < n_nodes; n++)
                    if (free_devices(l, n, e->kind) > most) {
                        most = free_devices(l, n, e->kind);
                        best = n;
                    }
                if (best == n_nodes)
                    return NULL;
                ++*cs_layout_at(l, c->exec[i], best);
            }
        }
    cs_place_route(r->flow, l);
    return cs_layout_check(l, NULL) ? g_steal_pointer(&l) : NULL;
}

/* ---- what a plan costs and gives ---- */

static double exec_weights(const cs_problem *p, const cs_exec_type *e)
{
    guint64 counted = 0;
    double bytes = 0;
    for (size_t s = 0; s < p->n_stages; s++)
        if ((e->mask >> s & 1) && !(counted >> p->stages[s].component & 1)) {
            bytes += p->graph->components[p->stages[s].component].weights_bytes;
            counted |= (guint64)1 << p->stages[s].component;
        }
    return bytes;
}

typedef struct {
    double served, loss_device_s, bytes;
    int kept, started, stopped;
} verdict;

/* Requests served within the horizon: capacity times it, less what moving devices cannot do. Under
 * a cost policy capacity beyond the rates is worth nothing and cost counts against it. */
static verdict judge(const replanner *r, const cs_layout *l)
{
    const cs_problem *p = r->p;
    verdict v = {0};
    for (size_t e = 0; e < p->n_execs; e++)
        for (size_t n = 0; n < p->cluster->n_nodes; n++) {
            int now = *cs_layout_at(r->running, e, n), then = *cs_layout_at(l, e, n);
            v.kept += MIN(now, then);
            int start = MAX(0, then - now), stop = MAX(0, now - then);
            double bytes = exec_weights(p, &p->execs[e]);
            v.started += start;
            v.stopped += stop;
            v.bytes += start * bytes;
            v.loss_device_s +=
                p->execs[e].count *
                (start * bytes / r->o.load_bytes_per_s / p->execs[e].count + stop * r->o.drain_s);
        }
    double rate = cs_layout_rate(l, NULL), devices = MAX(1, cs_layout_devices(l));
    if (cs_policy_minimises(r->o.fast.policy))
        rate = MIN(rate, p->workload->rate_rps);
    v.served = rate * MAX(0, r->o.horizon_s - v.loss_device_s / devices);
    return v;
}

/* Whether a beats b over the horizon. */
static bool better(const replanner *r, const cs_layout *a, verdict va, const cs_layout *b,
                   verdict vb)
{
    if (!cs_policy_minimises(r->o.fast.policy))
        return va.served > vb.served * (1 + 1e-9);
    double need = r->p->workload->rate_rps * (1 - 1e-7);
    bool carries = cs_layout_rate(a, NULL) >= need, other = cs_layout_rate(b, NULL) >= need;
    if (carries != other)
        return carries;
    /* Idle devices of a move are paid for as well. */
    double x = cs_layout_cost(a) * r->o.horizon_s + va.loss_device_s;
    double y = cs_layout_cost(b) * r->o.horizon_s + vb.loss_device_s;
    return carries ? x < y * (1 - 1e-9) : va.served > vb.served * (1 + 1e-9);
}

static void list_moves(const replanner *r, cs_replan_result *result)
{
    const cs_problem *p = r->p;
    result->moves = g_array_new(FALSE, TRUE, sizeof(cs_replan_move));
    for (size_t n = 0; n < p->cluster->n_nodes; n++)
        for (size_t e = 0; e < p->n_execs; e++) {
            int change = *cs_layout_at(result->layout, e, n) - *cs_layout_at(r->running, e, n);
            cs_replan_move move = {
                .node = g_strdup(p->cluster->nodes[n].name),
                .executor = g_strdup(p->execs[e].name),
                .replicas = change,
                .bytes = MAX(change, 0) * exec_weights(p, &p->execs[e]),
            };
            if (change != 0) {
                g_array_append_val(result->moves, move);
            } else {
                g_free(move.node);
                g_free(move.executor);
            }
        }
}

static bool covers(const cs_problem *p, const cs_layout *l)
{
    guint32 mask = 0;
    for (size_t e = 0; e < p->n_execs; e++)
        for (size_t n = 0; n < p->cluster->n_nodes; n++)
            if (*cs_layout_at(l, e, n) > 0)
                mask |= p->execs[e].mask;
    return (cs_problem_stages_in_use(p) & ~mask) == 0;
}

static void consider(const replanner *r, const char *name, cs_layout *l, GString *text,
                     cs_layout **best, verdict *best_verdict, const char **best_name)
{
    if (!l) {
        g_string_append_printf(text, "  %s: not possible\n", name);
        return;
    }
    verdict v = judge(r, l);
    g_string_append_printf(text,
                           "  %s: %.4g requests/s, keeps %d replicas, starts %d, stops %d, loads "
                           "%.1f GB, serves %.6g requests in %.0f s\n",
                           name, cs_layout_rate(l, NULL), v.kept, v.started, v.stopped,
                           v.bytes / 1e9, v.served, r->o.horizon_s);
    if (!*best || better(r, l, v, *best, *best_verdict)) {
        cs_layout_free(*best);
        *best = l;
        *best_verdict = v;
        *best_name = name;
    } else {
        cs_layout_free(l);
    }
}

static cs_layout *rerouted(const replanner *r)
{
    if (!covers(r->p, r->running))
        return NULL;
    g_autoptr(cs_layout) l = cs_layout_copy(r->running);
    cs_place_route(r->flow, l);
    return cs_layout_check(l, NULL) ? g_steal_pointer(&l) : NULL;
}

/* The running counts with few exchanges. Missing components are first added where devices are
 * free, which the exchange does by itself since their price is then the highest. */
static cs_layout *repaired(const replanner *r)
{
    g_autofree int *counts = g_new0(int, r->p->n_execs + 1);
    cs_candidate c = {.origin = "the running plan"};
    cs_layout_counts(r->running, counts);
    if (!cs_candidate_from_counts(&c, r->p, counts) || c.n == 0)
        return NULL;
    c.rate = cs_flow_rate(r->flow, counts);
    cs_policy policy =
        r->o.fast.policy == CS_POLICY_GOODPUT ? CS_POLICY_THROUGHPUT : r->o.fast.policy;
    cs_candidate_improve(r->flow, policy, 600, &c);
    return place_near(r, &c);
}

static cs_layout *fresh(const replanner *r, cs_replan_result *result, GError **error)
{
    if (!cs_fast_plan(r->flow, &r->o.fast, &result->fresh, error))
        return NULL;
    g_autofree int *counts = g_new0(int, r->p->n_execs + 1);
    cs_candidate c = {.origin = "a fresh plan"};
    cs_layout_counts(result->fresh.layout, counts);
    cs_layout *near = cs_candidate_from_counts(&c, r->p, counts) ? place_near(r, &c) : NULL;
    double rate = cs_layout_rate(result->fresh.layout, NULL);
    if (near && cs_layout_rate(near, NULL) >= rate * (1 - 1e-3))
        return near;
    cs_layout_free(near);
    return cs_layout_copy(result->fresh.layout);
}

bool cs_replan(const cs_flow *flow, const cs_plan *old, const cs_replan_options *options,
               cs_replan_result *result, GError **error)
{
    g_autoptr(cs_layout) running = cs_replan_survivors(flow->problem, old);
    replanner r = {.flow = flow, .p = flow->problem, .o = *options, .running = running};
    r.o.horizon_s = options->horizon_s > 0 ? options->horizon_s : DEFAULT_HORIZON_S;
    r.o.load_bytes_per_s = options->load_bytes_per_s > 0 ? options->load_bytes_per_s : DEFAULT_LOAD;
    r.o.drain_s = options->drain_s > 0 ? options->drain_s : DEFAULT_DRAIN_S;
    *result = (cs_replan_result){0};
    g_autoptr(GError) fault = NULL;
    g_autoptr(GString) text = g_string_new("re-plan: what each choice serves within the horizon\n");
    cs_layout *best = NULL;
    verdict v = {0};
    const char *name = NULL;
    consider(&r, "keep, routed anew", rerouted(&r), text, &best, &v, &name);
    consider(&r, "exchange few replicas", repaired(&r), text, &best, &v, &name);
    consider(&r, "plan afresh, keep what fits", fresh(&r, result, &fault), text, &best, &v, &name);
    if (!best) {
        g_propagate_error(error, g_steal_pointer(&fault));
        cs_replan_result_clear(result);
        return false;
    }
    g_string_append_printf(text, "  chosen: %s\n", name);
    result->layout = best;
    result->kept = v.kept;
    result->moved_bytes = v.bytes;
    result->loss_device_s = v.loss_device_s;
    result->served = v.served;
    result->explanation = g_string_free(g_steal_pointer(&text), FALSE);
    list_moves(&r, result);
    return true;
}

void cs_replan_result_clear(cs_replan_result *result)
{
    cs_layout_free(result->layout);
    for (guint i = 0; result->moves && i < result->moves->len; i++) {
        g_free(g_array_index(result->moves, cs_replan_move, i).node);
        g_free(g_array_index(result->moves, cs_replan_move, i).executor);
    }
    g_clear_pointer(&result->moves, g_array_unref);
    g_free(result->explanation);
    cs_fast_result_clear(&result->fresh);
    *result = (cs_replan_result){0};
}
