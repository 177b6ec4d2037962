/* The fast planner: coarse to fine (docs/PLAN.md). Enumerates logical plans, bounds them by flow,
 * screens them by sampling, races the survivors in the simulator and places the winner.
 *
 * Deterministic by seed as long as its time limit is not met. With a limit, or when cancelled, it
 * returns the best plan so far.
 */
#ifndef CS_PLAN_FAST_H
#define CS_PLAN_FAST_H

#include "plan/candidates.h"
#include "plan/sim.h"

typedef struct {
    cs_policy policy;
    int overlay;        /* subplans that may be overlaid in one candidate, 1 to 3; 0: 2 */
    double load_factor; /* share of a plan's throughput at which latency is judged; 0: 0.7 */
    double seconds;     /* 0: 60 */
    guint64 seed;
    int threads;           /* of simulations at once; 0: 2 */
    size_t sim_requests;   /* of the longest simulation; 0: 4000 */
    bool no_simulation;    /* stop after the flow and placement: throughput and cost only */
    const cs_layout *keep; /* also consider this layout as it stands (re-planning) */
    const volatile int *cancel;
} cs_fast_options;

typedef struct {
    cs_layout *layout;
    double objective;  /* cost, devices, requests/s, or requests/s within targets */
    double bound;      /* proven by flow; not for goodput */
    cs_sim_result sim; /* of the winner at load_rps, if it was simulated */
    double load_rps;
    char *explanation; /* phases, what entered, what left and why; no times in it */
    double phase_s[5];
    double space; /* candidates that the enumeration stands for */
} cs_fast_result;

bool cs_fast_plan(const cs_flow *flow, const cs_fast_options *options, cs_fast_result *result,
                  GError **error);
void cs_fast_result_clear(cs_fast_result *result);

/* The highest rate at which every type attains its targets in simulation, by bisection to 1 %. When
 * cancelled, the highest found so far, which may be 0. */
double cs_fast_goodput(const cs_layout *layout, size_t requests, guint64 seed,
                       const volatile int *cancel);

/* A baseline's best layout under the policy, NULL with why (g_free) where it does not fit. */
cs_layout *cs_fast_baseline(const cs_flow *flow, cs_baseline baseline, cs_policy policy,
                            char **why);

#endif
