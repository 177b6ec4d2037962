/* How much a set of replicas can carry: the problem without nodes, as one small linear program.
 *
 * Stages of request types are merged into commodities where their work is proportional on every
 * executor type: then the weights of the routing are equal for all of them and nothing is lost.
 * f[k][e] is the amount of commodity k given to executor type e.
 */
#ifndef CS_PLAN_FLOW_H
#define CS_PLAN_FLOW_H

#include "plan/problem.h"

/* Maximise c x, A x <= b, x >= 0 with b >= 0, by the simplex method on a dense dictionary. */
typedef struct {
    int m, n;        /* rows, columns */
    double *a;       /* [m + 1][n + 1]: row m is c, column n is b */
    double *x;       /* [n] solution */
    double *dual;    /* [m] shadow prices */
    double *reduced; /* [n] how far each column is from entering (>= 0) */
    double value;
    int *basis, *outside;
} cs_simplex;

void cs_simplex_init(cs_simplex *lp, int m, int n);
void cs_simplex_clear(cs_simplex *lp);
static inline double *cs_simplex_at(cs_simplex *lp, int row, int column)
{
    return &lp->a[(size_t)row * (size_t)(lp->n + 1) + (size_t)column];
}
/* Destroys a. False: unbounded, or the pivot limit was reached (the solution is feasible then). */
bool cs_simplex_solve(cs_simplex *lp);

typedef struct {
    const cs_problem *problem;
    size_t n_commodities, n_execs;
    double *demand; /* [n_commodities] work on `first` per unit of total rate */
    double *cost;  /* [n_commodities][n_execs] replica-seconds per unit of demand, INFINITY: none */
    int *of;       /* [n_stages][n_types] commodity, -1 where the type lacks the stage */
    double *scale; /* [n_stages][n_types] demand of one request in the commodity's unit */
} cs_flow;

cs_flow *cs_flow_new(const cs_problem *problem);
void cs_flow_free(cs_flow *flow);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_flow, cs_flow_free)

static inline double cs_flow_cost(const cs_flow *flow, size_t k, size_t e)
{
    return flow->cost[k * flow->n_execs + e];
}

typedef struct {
    double rate_rps; /* the most of the mix that the replicas carry */
    double *share;   /* [n_commodities][n_execs] of each commodity given to each type; sums to 1 */
    double *price;   /* [n_execs] requests/s that one more replica adds; also for absent types */
    double *load;    /* [n_execs] replica-seconds per second used at that rate */
} cs_flow_result;

void cs_flow_result_clear(cs_flow_result *result);
/* counts[n_execs] replicas. `only_rate` leaves the arrays NULL. */
void cs_flow_solve(const cs_flow *flow, const int *counts, bool only_rate, cs_flow_result *result);
double cs_flow_rate(const cs_flow *flow, const int *counts);

/* Upper bound on the rate for replica counts in [lower, upper] (may be fractional) within the
 * cluster's devices; x[n_execs] receives the counts that reach it. Lower bounds must fit. INFINITY
 * where the program was not solved to its optimum: then nothing is proven. */
double cs_flow_relaxed_rate(const cs_flow *flow, const int *lower, const int *upper, double *x);
/* Lower bound on the cost that carries the workload's rates, likewise; INFINITY if they cannot be
 * carried, the price of the lower counts where nothing more is proven. `per_device` counts devices
 * instead of their cost. */
double cs_flow_relaxed_cost(const cs_flow *flow, const int *lower, const int *upper,
                            bool per_device, double *x);

#endif
