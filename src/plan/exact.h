/* The exact planner: multicommodity network design by mixed integer programming (docs/PLAN.md has
 * the model).
 *
 * First the problem without nodes (counts only), whose optimum bounds every plan; then the problem
 * with nodes, where like nodes are ordered so that their permutations are not searched, and covers
 * sum_n x[e,n] >= ceil(work / capacity) cut off fractions. Objectives are lexicographic: the
 * policy's, then the largest link utilisation, then the bytes between nodes.
 */
#ifndef CS_PLAN_EXACT_H
#define CS_PLAN_EXACT_H

#include "plan/flow.h"
#include "plan/layout.h"

typedef enum {
    CS_POLICY_COST,       /* least cost that carries the workload's rates */
    CS_POLICY_DEVICES,    /* fewest devices that carry them */
    CS_POLICY_THROUGHPUT, /* most of the mix on the devices there are */
    CS_POLICY_GOODPUT,    /* most of it within the latency targets (by the simulator) */
} cs_policy;

/* "cost", "devices", "throughput", "goodput" */
const char *cs_policy_name(cs_policy policy);
bool cs_policy_parse(const char *word, cs_policy *policy);

/* The policies that carry the workload's rates for the least, not the most of the mix. */
static inline bool cs_policy_minimises(cs_policy policy)
{
    return policy == CS_POLICY_COST || policy == CS_POLICY_DEVICES;
}

typedef struct {
    cs_policy policy;       /* goodput is not for the exact planner */
    double seconds;         /* over all steps; 0: 60 */
    double gap;             /* relative, on the policy's objective */
    size_t max_columns;     /* of the problem with nodes; above it executor types are restricted to
                               those of the counts' optimum; 0: 60000 */
    bool only_first;        /* leave out the second and third objective */
    double balance_s;       /* limit of each of these two; 0: 5 */
    const cs_layout *start; /* a plan to begin from (the fast planner's): where it reaches the
                               counts' bound the first objective is done, and it is the plan when
                               the limit or a cancellation comes first; NULL: none */
    const volatile int *cancel;
} cs_exact_options;

typedef struct {
    cs_layout *layout; /* NULL: nothing found before the limit */
    double objective;  /* cost, devices, or requests/s */
    double bound;      /* proven: no plan is better than this */
    bool proven;       /* the first objective, within the gap */
    bool balanced;     /* second and third objective solved to optimality as well */
    double seconds;
} cs_exact_result;

void cs_exact_result_clear(cs_exact_result *result);

/* Fails with CS_ERROR_INVALID when the workload cannot be carried, with a sentence that names what
 * binds. */
bool cs_exact_solve(const cs_flow *flow, const cs_exact_options *options, cs_exact_result *result,
                    GError **error);

/* The counts' optimum alone: x[n_execs] replicas over the whole cluster, and its bound. */
bool cs_exact_counts(const cs_flow *flow, const cs_exact_options *options, int *counts,
                     double *objective, double *bound, GError **error);

/* "t2s needs 3.1 devices of talker; 2.0 are left": why the rates cannot be carried. g_free. */
char *cs_exact_shortage(const cs_flow *flow);

#endif
