/* Logical plans: which executor types exist and how many replicas each has, without nodes.
 *
 * A subplan is a partition of the stages in use into sets that share an executor. A candidate is
 * the union of one or more subplans (requests are routed over all of them by linear programming)
 * with a number of replicas for each executor type.
 */
#ifndef CS_PLAN_CANDIDATES_H
#define CS_PLAN_CANDIDATES_H

#include "plan/exact.h"

#define CS_CANDIDATE_TYPES 32

typedef struct {
    guint n;
    guint16 exec[CS_CANDIDATE_TYPES]; /* ascending */
    gint32 count[CS_CANDIDATE_TYPES];
    double rate; /* requests/s by flow */
    double cost;
    const char *origin; /* static: how it was found, for the explanation */
} cs_candidate;

typedef struct {
    guint32 masks[CS_PLAN_MAX_STAGES];
    guint n;
} cs_subplan;

void cs_candidate_counts(const cs_candidate *c, const cs_problem *p, int *counts);
/* From counts[n_execs]; false when more than CS_CANDIDATE_TYPES types are used. */
bool cs_candidate_from_counts(cs_candidate *c, const cs_problem *p, const int *counts);
/* "4 x image_encoder+thinker, 11 x talker". g_free. */
char *cs_candidate_describe(const cs_candidate *c, const cs_problem *p);

/* The reverse: "4 x image_encoder+thinker, 11 x talker", components in any order. The rate is by
 * flow. Fails naming the part that is no executor type of the problem. */
bool cs_candidate_parse(const cs_flow *flow, const char *text, cs_candidate *out, GError **error);

/* All subplans whose executor types exist, at most `most` (the rest is cut; *cut tells). */
GArray *cs_subplans_list(const cs_problem *p, size_t most, bool *cut);

/* The best replica counts for one subplan by water-filling: raises the fullest set of stages first,
 * with the executor type of that set that gives most for its devices. For cost and devices: the
 * cheapest that carries the rates. False when the devices do not suffice. */
bool cs_subplan_fill(const cs_flow *flow, const cs_subplan *subplan, cs_policy policy,
                     cs_candidate *out);

/* Exchanges replicas, guided by the prices of capacity, until nothing improves the policy's
 * objective; evaluates at most `evaluations` candidates. */
void cs_candidate_improve(const cs_flow *flow, cs_policy policy, int evaluations, cs_candidate *c);

/* Depth-first branch and bound over all executor types from an incumbent (rate 0: none), for at
 * most `seconds` and `nodes`. True if the incumbent is now proven optimal for the counts. *bound
 * receives the bound on the objective at the root. */
bool cs_candidate_branch(const cs_flow *flow, cs_policy policy, double seconds, int nodes,
                         cs_candidate *incumbent, double *bound);

/* > 0 if a is better than b for the policy: rate, or lower cost among those that carry the rates.
 */
int cs_candidate_compare(const cs_flow *flow, cs_policy policy, const cs_candidate *a,
                         const cs_candidate *b);

typedef enum {
    CS_BASELINE_MONOLITHIC,     /* everything on every replica */
    CS_BASELINE_ENCODERS_APART, /* encoders | the rest */
    CS_BASELINE_EPD,            /* encoders | prefill of the first LLM | the rest */
    CS_BASELINE_SPLIT,          /* every component alone */
    CS_BASELINES
} cs_baseline;

const char *cs_baseline_name(cs_baseline baseline);
/* False, with why (g_free) filled: an executor of it does not exist or the devices do not do. */
bool cs_baseline_make(const cs_flow *flow, cs_baseline baseline, cs_policy policy,
                      cs_candidate *out, char **why);

#endif
