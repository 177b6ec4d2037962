/* A plan in the planner's own terms: replicas of executor types on nodes, and weighted routes.
 *
 * Made by the exact and the fast planner, judged by the simulator, written as a cs_plan.
 */
#ifndef CS_PLAN_LAYOUT_H
#define CS_PLAN_LAYOUT_H

#include "plan/problem.h"

typedef struct {
    guint type;                      /* of the problem */
    double weight;                   /* of the type's requests; sums to 1 */
    gint16 exec[CS_PLAN_MAX_STAGES]; /* executor type of each stage, -1 where not used */
    gint16 node[CS_PLAN_MAX_STAGES];
} cs_layout_route;

/* Less than memory and profiles would allow an executor: what a plan file says. 0: as they allow.
 */
typedef struct {
    int batch[CS_PLAN_MAX_STAGES];
    double kv_budget_bytes;
} cs_layout_limit;

typedef struct {
    const cs_problem *problem;
    int *replicas;           /* [n_execs][n_nodes] */
    GArray *routes;          /* cs_layout_route, by type */
    cs_layout_limit *limits; /* [n_execs][n_nodes], heeded by the simulator; NULL: none */
} cs_layout;

cs_layout *cs_layout_new(const cs_problem *problem);
cs_layout *cs_layout_copy(const cs_layout *layout);
void cs_layout_free(cs_layout *layout);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_layout, cs_layout_free)

static inline int *cs_layout_at(const cs_layout *l, size_t exec, size_t node)
{
    return &l->replicas[exec * l->problem->cluster->n_nodes + node];
}

int cs_layout_devices(const cs_layout *layout);
double cs_layout_cost(const cs_layout *layout);
void cs_layout_counts(const cs_layout *layout, int *counts); /* [n_execs] over all nodes */

/* Bytes per second between nodes, [n_nodes * n_nodes], when the total rate is rate_rps; the
 * diagonal stays 0. g_free. */
double *cs_layout_traffic(const cs_layout *layout, double rate_rps);
/* The largest share of any pair's bandwidth that traffic takes; INFINITY on a pair without any. */
double cs_layout_link_use(const cs_layout *layout, const double *traffic);

/* The highest total rate of the mix that executors and links carry with these routes; *bottleneck
 * (may be NULL) receives a sentence that names what binds. g_free. */
double cs_layout_rate(const cs_layout *layout, char **bottleneck);

/* Devices within nodes, weights that sum to 1, routes on executors that exist. */
bool cs_layout_check(const cs_layout *layout, GError **error);

/* The plan file's form with throughput, devices, cost, links and bottleneck filled in; traffic is
 * predicted at load_rps. cs_plan_free. */
cs_plan *cs_layout_to_plan(const cs_layout *layout, const char *policy, double load_rps);

/* The other way, with the plan's limits: fails when the plan names what the problem does not have.
 * Types of the workload without a route are an error; routes of other types are left out. */
cs_layout *cs_layout_from_plan(const cs_problem *problem, const cs_plan *plan, GError **error);

#endif
