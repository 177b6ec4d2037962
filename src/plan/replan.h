/* Re-planning from a running plan: what a change is worth against what moving costs.
 *
 * Three plans compete: the running one with its requests routed anew over what is left of it; one
 * improved from it by exchanging few replicas; and one planned afresh, placed so that it keeps as
 * many running replicas as it can. A replica that starts costs its devices for the time its weights
 * take to load, one that stops for the time its requests take to drain. The winner has the most
 * requests served within the horizon (or the least cost over it, for the cost policies).
 */
#ifndef CS_PLAN_REPLAN_H
#define CS_PLAN_REPLAN_H

#include "plan/fast.h"

typedef struct {
    cs_fast_options fast;    /* of the fresh plan; the policy too */
    double horizon_s;        /* over which a move must pay off; 0: 600 */
    double load_bytes_per_s; /* weights from disk or network into a device; 0: 2e9 */
    double drain_s;          /* 0: 10 */
} cs_replan_options;

typedef struct {
    char *node, *executor; /* names */
    int replicas;          /* > 0 start, < 0 stop */
    double bytes;          /* of weights to load */
} cs_replan_move;

typedef struct {
    cs_layout *layout;
    GArray *moves; /* cs_replan_move */
    int kept;      /* replicas that go on running */
    double moved_bytes, loss_device_s;
    double served; /* requests within the horizon */
    char *explanation;
    cs_fast_result fresh;
} cs_replan_result;

/* The replicas of a plan that still exist in the problem's cluster and fit it; executors on lost
 * nodes, or of types the problem no longer has, are gone. Routes are left empty. */
cs_layout *cs_replan_survivors(const cs_problem *problem, const cs_plan *old);

bool cs_replan(const cs_flow *flow, const cs_plan *old, const cs_replan_options *options,
               cs_replan_result *result, GError **error);
void cs_replan_result_clear(cs_replan_result *result);

#endif
