#include "plan/flow.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#define PIVOT_SLACK 1e-9
#define PROPORTIONAL_SLACK 1e-9

/* ---- the simplex method on a dense dictionary ---- */

void cs_simplex_init(cs_simplex *lp, int m, int n)
{
    size_t cells = (size_t)(m + 1) * (size_t)(n + 1);
    *lp = (cs_simplex){.m = m, .n = n};
    lp->a = g_new0(double, cells);
    lp->x = g_new0(double, n + 1);
    lp->dual = g_new0(double, m + 1);
    lp->reduced = g_new0(double, n + 1);
    lp->basis = g_new(int, m + 1);
    lp->outside = g_new(int, n + 1);
    for (int i = 0; i < m; i++)
        lp->basis[i] = n + i;
    for (int j = 0; j < n; j++)
        lp->outside[j] = j;
}

void cs_simplex_clear(cs_simplex *lp)
{
    g_free(lp->a);
    g_free(lp->x);
    g_free(lp->dual);
    g_free(lp->reduced);
    g_free(lp->basis);
    g_free(lp->outside);
    *lp = (cs_simplex){0};
}

/* Exchanges the basic variable of row r with the outside variable of column c. */
static void pivot(cs_simplex *lp, int r, int c)
{
    int width = lp->n + 1;
    double *pr = lp->a + (size_t)r * (size_t)width, inverse = 1 / pr[c];
    for (int j = 0; j < width; j++)
        pr[j] *= inverse;
    pr[c] = inverse;
    for (int i = 0; i <= lp->m; i++) {
        double *row = lp->a + (size_t)i * (size_t)width, factor = row[c];
        if (i == r || factor == 0)
            continue;
        for (int j = 0; j < width; j++)
            row[j] -= factor * pr[j];
        row[c] = -factor * inverse;
    }
    int swap = lp->basis[r];
    lp->basis[r] = lp->outside[c];
    lp->outside[c] = swap;
}

/* The most improving column, or by Bland's rule the one of least index; -1 at the optimum. */
static int entering(const cs_simplex *lp, double slack, bool bland)
{
    const double *row = lp->a + (size_t)lp->m * (size_t)(lp->n + 1);
    int best = -1;
    for (int j = 0; j < lp->n; j++) {
        if (row[j] <= slack)
            continue;
        if (best < 0 || (bland ? lp->outside[j] < lp->outside[best] : row[j] > row[best]))
            best = j;
    }
    return best;
}

/* Ratio test; ties go to the larger pivot, or to the least index under Bland's rule. */
static int leaving(const cs_simplex *lp, int c, bool bland)
{
    int best = -1;
    double best_ratio = 0;
    for (int i = 0; i < lp->m; i++) {
        const double *row = lp->a + (size_t)i * (size_t)(lp->n + 1);
        if (row[c] <= PIVOT_SLACK)
            continue;
        double ratio = MAX(row[lp->n], 0) / row[c];
        bool tie = best >= 0 && fabs(ratio - best_ratio) <= 1e-12 * (1 + best_ratio);
        bool better =
            bland ? lp->basis[i] < (best >= 0 ? lp->basis[best] : INT_MAX)
                  : best >= 0 && row[c] > lp->a[(size_t)best * (size_t)(lp->n + 1) + (size_t)c];
        if (best < 0 || (tie ? better : ratio < best_ratio)) {
            best = i;
            best_ratio = ratio;
        }
    }
    return best;
}

static void read_solution(cs_simplex *lp)
{
    int width = lp->n + 1;
    const double *last = lp->a + (size_t)lp->m * (size_t)width;
    lp->value = -last[lp->n];
    memset(lp->x, 0, sizeof(double) * (size_t)lp->n);
    memset(lp->dual, 0, sizeof(double) * (size_t)lp->m);
    memset(lp->reduced, 0, sizeof(double) * (size_t)lp->n);
    for (int i = 0; i < lp->m; i++)
        if (lp->basis[i] < lp->n)
            lp->x[lp->basis[i]] = lp->a[(size_t)i * (size_t)width + (size_t)lp->n];
    for (int j = 0; j < lp->n; j++) {
        if (lp->outside[j] < lp->n)
            lp->reduced[lp->outside[j]] = -last[j];
        else
            lp->dual[lp->outside[j] - lp->n] = -last[j];
    }
}

bool cs_simplex_solve(cs_simplex *lp)
{
    double *last = lp->a + (size_t)lp->m * (size_t)(lp->n + 1), scale = 0;
    for (int j = 0; j < lp->n; j++)
        scale = MAX(scale, fabs(last[j]));
    int limit = 200 + 20 * (lp->m + lp->n), bland_after = limit / 2;
    bool optimal = false;
    for (int step = 0; step < limit && !optimal; step++) {
        bool bland = step > bland_after;
        int c = entering(lp, 1e-11 * MAX(scale, 1e-30), bland);
        int r = c < 0 ? -1 : leaving(lp, c, bland);
        optimal = c < 0;
        if (c >= 0 && r < 0)
            break;
        if (!optimal)
            pivot(lp, r, c);
    }
    read_solution(lp);
    return optimal;
}

/* ---- commodities ---- */

void cs_flow_free(cs_flow *flow)
{
    if (!flow)
        return;
    g_free(flow->demand);
    g_free(flow->cost);
    g_free(flow->of);
    g_free(flow->scale);
    g_free(flow);
}

/* Work of a stage, with its other half where the two may not be split. */
static double unit_work(const cs_problem *p, size_t e, size_t s, size_t t)
{
    double work = cs_problem_work(p, e, s, t);
    return p->stages[s].inseparable ? work + cs_problem_work(p, e, (size_t)p->stages[s].twin, t)
                                    : work;
}

/* Work of (stage, type) on every executor type relative to the first that hosts it, into out.
 * Returns the work there, 0 if the stage costs the type nothing. */
static double relative_cost(const cs_problem *p, size_t s, size_t t, double *out)
{
    double first = 0;
    for (size_t e = 0; e < p->n_execs; e++)
        if (first <= 0 && (p->execs[e].mask >> s & 1))
            first = unit_work(p, e, s, t);
    for (size_t e = 0; e < p->n_execs; e++)
        out[e] = (p->execs[e].mask >> s & 1) ? unit_work(p, e, s, t) / MAX(first, 1e-30) : INFINITY;
    return first;
}

static bool same_cost(const double *a, const double *b, size_t n)
{
    for (size_t e = 0; e < n; e++) {
        if (isinf(a[e]) != isinf(b[e]))
            return false;
        if (!isinf(a[e]) && fabs(a[e] - b[e]) > PROPORTIONAL_SLACK * (fabs(a[e]) + fabs(b[e])))
            return false;
    }
    return true;
}

cs_flow *cs_flow_new(const cs_problem *p)
{
    cs_flow *flow = g_new0(cs_flow, 1);
    size_t n = p->n_stages * p->n_types;
    flow->problem = p;
    flow->n_execs = p->n_execs;
    flow->demand = g_new0(double, n + 1);
    flow->cost = g_new0(double, (n + 1) * (p->n_execs + 1));
    flow->of = g_new(int, n + 1);
    flow->scale = g_new0(double, n + 1);
    g_autofree double *cost = g_new0(double, p->n_execs + 1);
    for (size_t s = 0; s < p->n_stages; s++)
        for (size_t t = 0; t < p->n_types; t++) {
            size_t i = s * p->n_types + t;
            flow->of[i] = -1;
            if (!(p->types[t].stages >> s & 1))
                continue;
            if (p->stages[s].inseparable && p->stages[s].role == CS_ROLE_DECODE) {
                flow->of[i] = flow->of[(size_t)p->stages[s].twin * p->n_types + t];
                continue;
            }
            flow->scale[i] = relative_cost(p, s, t, cost);
            size_t k = 0;
            while (k < flow->n_commodities &&
                   !same_cost(flow->cost + k * p->n_execs, cost, p->n_execs))
                k++;
            if (k == flow->n_commodities) {
                memcpy(flow->cost + k * p->n_execs, cost, p->n_execs * sizeof cost[0]);
                flow->n_commodities++;
            }
            flow->of[i] = (int)k;
            flow->demand[k] += flow->scale[i] * p->types[t].share;
        }
    return flow;
}

void cs_flow_result_clear(cs_flow_result *result)
{
    g_free(result->share);
    g_free(result->price);
    g_free(result->load);
    *result = (cs_flow_result){0};
}

/* ---- rate of given counts ---- */

/* Columns of the program: 0 is the rate, then one for each (commodity, present type) pair. */
typedef struct {
    int *present, n_present; /* types with replicas */
    int *pair_k, *pair_e, n_pairs;
} columns;

static void columns_make(columns *c, const cs_flow *flow, const int *counts)
{
    c->present = g_new(int, flow->n_execs + 1);
    c->n_present = 0;
    for (size_t e = 0; e < flow->n_execs; e++)
        if (counts[e] > 0)
            c->present[c->n_present++] = (int)e;
    size_t most = flow->n_commodities * (size_t)c->n_present + 1;
    c->pair_k = g_new(int, most);
    c->pair_e = g_new(int, most);
    c->n_pairs = 0;
    for (size_t k = 0; k < flow->n_commodities; k++)
        for (int i = 0; i < c->n_present; i++)
            if (!isinf(cs_flow_cost(flow, k, (size_t)c->present[i]))) {
                c->pair_k[c->n_pairs] = (int)k;
                c->pair_e[c->n_pairs++] = i;
            }
}

static void columns_clear(columns *c)
{
    g_free(c->present);
    g_free(c->pair_k);
    g_free(c->pair_e);
}

static void read_flow(const cs_flow *flow, const cs_simplex *lp, const columns *c,
                      cs_flow_result *result)
{
    size_t n_k = flow->n_commodities, n_e = flow->n_execs;
    double rho = flow->problem->utilisation_cap;
    result->share = g_new0(double, n_k *n_e + 1);
    result->price = g_new0(double, n_e + 1);
    result->load = g_new0(double, n_e + 1);
    g_autofree double *sum = g_new0(double, n_k + 1);
    for (int j = 0; j < c->n_pairs; j++)
        sum[c->pair_k[j]] += lp->x[1 + j];
    for (int j = 0; j < c->n_pairs; j++) {
        size_t k = (size_t)c->pair_k[j], e = (size_t)c->present[c->pair_e[j]];
        double total = sum[k] > 0 ? sum[k] : 1;
        result->share[k * n_e + e] = sum[k] > 0 ? lp->x[1 + j] / total : 0;
        result->load[e] += cs_flow_cost(flow, k, e) * result->share[k * n_e + e] *
                           result->rate_rps * flow->demand[k];
    }
    for (size_t k = 0; k < n_k; k++) /* costs nothing: to the first that hosts it */
        for (int i = 0; sum[k] <= 0 && i < c->n_present; i++)
            if (!isinf(cs_flow_cost(flow, k, (size_t)c->present[i]))) {
                result->share[k * n_e + (size_t)c->present[i]] = 1;
                break;
            }
    /* One more replica gives rho seconds a second, each worth the best commodity's price. */
    for (size_t e = 0; e < n_e; e++)
        for (size_t k = 0; k < n_k; k++) {
            double cost = cs_flow_cost(flow, k, e);
            if (!isinf(cost) && cost > 0)
                result->price[e] = MAX(result->price[e], rho * lp->dual[k] / cost);
        }
}

void cs_flow_solve(const cs_flow *flow, const int *counts, bool only_rate, cs_flow_result *result)
{
    columns c;
    cs_simplex lp;
    int n_k = (int)flow->n_commodities;
    double rho = flow->problem->utilisation_cap;
    columns_make(&c, flow, counts);
    cs_simplex_init(&lp, n_k + c.n_present, 1 + c.n_pairs);
    *cs_simplex_at(&lp, lp.m, 0) = 1;
    for (int k = 0; k < n_k; k++)
        *cs_simplex_at(&lp, k, 0) = flow->demand[k];
    for (int j = 0; j < c.n_pairs; j++) {
        *cs_simplex_at(&lp, c.pair_k[j], 1 + j) = -1;
        *cs_simplex_at(&lp, n_k + c.pair_e[j], 1 + j) =
            cs_flow_cost(flow, (size_t)c.pair_k[j], (size_t)c.present[c.pair_e[j]]);
    }
    for (int i = 0; i < c.n_present; i++)
        *cs_simplex_at(&lp, n_k + i, lp.n) = rho * counts[c.present[i]];
    cs_simplex_solve(&lp);
    *result = (cs_flow_result){.rate_rps = lp.value};
    if (!only_rate)
        read_flow(flow, &lp, &c, result);
    cs_simplex_clear(&lp);
    columns_clear(&c);
}

double cs_flow_rate(const cs_flow *flow, const int *counts)
{
    cs_flow_result result;
    cs_flow_solve(flow, counts, true, &result);
    return result.rate_rps;
}

/* ---- relaxations ---- */

/* Types without bounds need no variable of their own: their devices are those their work needs.
 * Types with bounds get a variable (above the lower bound), a capacity row and a bound row. */
typedef struct {
    const cs_flow *flow;
    const int *lower, *upper;
    columns c;
    int *bounded, n_bounded; /* indexes into c.present */
    int *variable;           /* [n_present] column, -1 if unbounded */
    cs_simplex lp;
    int first_kind_row;
} relaxation;

static void relaxation_init(relaxation *x, const cs_flow *flow, const int *lower, const int *upper)
{
    g_autofree int *counts = g_new(int, flow->n_execs + 1);
    for (size_t e = 0; e < flow->n_execs; e++)
        counts[e] = upper ? upper[e] : 1;
    *x = (relaxation){.flow = flow, .lower = lower, .upper = upper};
    columns_make(&x->c, flow, counts);
    x->bounded = g_new(int, x->c.n_present + 1);
    x->variable = g_new(int, x->c.n_present + 1);
    for (int i = 0; i < x->c.n_present; i++) {
        int e = x->c.present[i];
        bool bound = (lower && lower[e] > 0) || (upper && upper[e] < INT_MAX);
        x->variable[i] = bound ? 1 + x->c.n_pairs + x->n_bounded : -1;
        if (bound)
            x->bounded[x->n_bounded++] = i;
    }
    int n_k = (int)flow->n_commodities, n_kinds = (int)flow->problem->cluster->n_kinds;
    x->first_kind_row = n_k + 2 * x->n_bounded;
    cs_simplex_init(&x->lp, x->first_kind_row + n_kinds + 1, 1 + x->c.n_pairs + x->n_bounded);
}

static void relaxation_clear(relaxation *x)
{
    cs_simplex_clear(&x->lp);
    columns_clear(&x->c);
    g_free(x->bounded);
    g_free(x->variable);
}

/* Demand and capacity rows; weight[e] is what one unit of capacity of an unbounded type adds to the
 * objective (cost, negative), and is added to the variable of a bounded one. */
static void relaxation_fill(relaxation *x, const double *weight)
{
    const cs_flow *flow = x->flow;
    const cs_problem *p = flow->problem;
    cs_simplex *lp = &x->lp;
    int n_k = (int)flow->n_commodities;
    for (int k = 0; k < n_k; k++)
        *cs_simplex_at(lp, k, 0) = flow->demand[k];
    for (size_t kind = 0; kind < p->cluster->n_kinds; kind++)
        *cs_simplex_at(lp, x->first_kind_row + (int)kind, lp->n) = p->capacity[kind];
    for (int b = 0; b < x->n_bounded; b++) {
        size_t e = (size_t)x->c.present[x->bounded[b]];
        int column = x->variable[x->bounded[b]], low = x->lower ? x->lower[e] : 0;
        int high = x->upper ? x->upper[e] : INT_MAX;
        *cs_simplex_at(lp, n_k + b, column) = -p->utilisation_cap;
        *cs_simplex_at(lp, n_k + b, lp->n) = p->utilisation_cap * low;
        *cs_simplex_at(lp, n_k + x->n_bounded + b, column) = 1;
        *cs_simplex_at(lp, n_k + x->n_bounded + b, lp->n) = high < INT_MAX ? high - low : 1e9;
        int kind_row = x->first_kind_row + (int)p->execs[e].kind;
        *cs_simplex_at(lp, kind_row, column) = p->execs[e].count;
        *cs_simplex_at(lp, kind_row, lp->n) -= p->execs[e].count * low;
        *cs_simplex_at(lp, lp->m, column) = weight ? weight[e] : 0;
    }
    for (int j = 0; j < x->c.n_pairs; j++) {
        int i = x->c.pair_e[j], k = x->c.pair_k[j];
        size_t e = (size_t)x->c.present[i];
        double need = cs_flow_cost(flow, (size_t)k, e);
        *cs_simplex_at(lp, k, 1 + j) = -1;
        if (x->variable[i] >= 0) {
            *cs_simplex_at(lp, n_k + x->variable[i] - 1 - x->c.n_pairs, 1 + j) = need;
            continue;
        }
        need /= p->utilisation_cap;
        *cs_simplex_at(lp, x->first_kind_row + (int)p->execs[e].kind, 1 + j) =
            need * p->execs[e].count;
        *cs_simplex_at(lp, lp->m, 1 + j) = weight ? weight[e] * need : 0;
    }
}

static void relaxation_counts(const relaxation *x, double *out)
{
    const cs_flow *flow = x->flow;
    memset(out, 0, flow->n_execs * sizeof out[0]);
    for (int j = 0; j < x->c.n_pairs; j++) {
        size_t e = (size_t)x->c.present[x->c.pair_e[j]];
        if (x->variable[x->c.pair_e[j]] < 0)
            out[e] += x->lp.x[1 + j] * cs_flow_cost(flow, (size_t)x->c.pair_k[j], e) /
                      flow->problem->utilisation_cap;
    }
    for (int b = 0; b < x->n_bounded; b++) {
        size_t e = (size_t)x->c.present[x->bounded[b]];
        out[e] = x->lp.x[x->variable[x->bounded[b]]] + (x->lower ? x->lower[e] : 0);
    }
}

double cs_flow_relaxed_rate(const cs_flow *flow, const int *lower, const int *upper, double *x)
{
    relaxation r;
    relaxation_init(&r, flow, lower, upper);
    relaxation_fill(&r, NULL);
    *cs_simplex_at(&r.lp, r.lp.m, 0) = 1;
    double value = cs_simplex_solve(&r.lp) ? r.lp.value : INFINITY;
    if (x)
        relaxation_counts(&r, x);
    relaxation_clear(&r);
    return value;
}

double cs_flow_relaxed_cost(const cs_flow *flow, const int *lower, const int *upper,
                            bool per_device, double *x)
{
    const cs_problem *p = flow->problem;
    g_autofree double *weight = g_new(double, flow->n_execs + 1);
    double rate = p->workload->rate_rps, big = 0, fixed = 0;
    for (size_t e = 0; e < flow->n_execs; e++) {
        double cost = per_device ? p->execs[e].count : p->execs[e].cost;
        weight[e] = -cost;
        fixed += lower ? cost * lower[e] : 0;
    }
    for (size_t k = 0; k < flow->n_commodities; k++) {
        double worst = 0;
        for (size_t e = 0; e < flow->n_execs; e++)
            if (!isinf(cs_flow_cost(flow, k, e)))
                worst = MAX(worst, -weight[e] * cs_flow_cost(flow, k, e) / p->utilisation_cap);
        big += worst * flow->demand[k];
    }
    relaxation r;
    relaxation_init(&r, flow, lower, upper);
    relaxation_fill(&r, weight);
    /* Serving a request is worth far more than it can cost; the last row stops at the rate. */
    *cs_simplex_at(&r.lp, r.lp.m, 0) = 1e3 * big + 1e-6;
    *cs_simplex_at(&r.lp, r.lp.m - 1, 0) = 1;
    *cs_simplex_at(&r.lp, r.lp.m - 1, r.lp.n) = rate;
    bool optimal = cs_simplex_solve(&r.lp), served = r.lp.x[0] >= rate * (1 - 1e-7) || !optimal;
    double cost = optimal ? (1e3 * big + 1e-6) * r.lp.x[0] - r.lp.value + fixed : fixed;
    if (x)
        relaxation_counts(&r, x);
    relaxation_clear(&r);
    return served ? cost : INFINITY;
}
