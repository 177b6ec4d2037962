#include "plan/exact.h"

#include "base/error.h"
#include "base/os.h"
#include "plan/milp.h"
#include "plan/node_model.h"

#include <math.h>
#include <string.h>

#define DEFAULT_SECONDS 60.0
#define DEFAULT_BALANCE_S 5.0
#define DEFAULT_COLUMNS 60000
#define MIN_RATE 1e-9 /* requests/s below which nothing is served */

static const char *const policy_names[] = {"cost", "devices", "throughput", "goodput"};

const char *cs_policy_name(cs_policy policy)
{
    return policy_names[policy];
}

bool cs_policy_parse(const char *word, cs_policy *policy)
{
    for (size_t i = 0; i < G_N_ELEMENTS(policy_names); i++)
        if (g_str_equal(policy_names[i], word)) {
            *policy = (cs_policy)i;
            return true;
        }
    return false;
}

void cs_exact_result_clear(cs_exact_result *result)
{
    cs_layout_free(result->layout);
    *result = (cs_exact_result){0};
}

/* ---- why the rates cannot be carried ---- */

/* Least devices that stage s of all types (or of one type) can need, and the executor type with
 * that least. */
static double stage_devices(const cs_problem *p, size_t s, size_t *exec)
{
    double best = INFINITY;
    for (size_t e = 0; e < p->n_execs; e++) {
        double sum = 0;
        for (size_t t = 0; t < p->n_types; t++)
            if (p->types[t].stages >> s & 1)
                sum += p->types[t].rate_rps * cs_problem_work(p, e, s, t) * p->execs[e].count;
        if ((p->execs[e].mask >> s & 1) && sum / p->utilisation_cap < best * (1 - 1e-9)) {
            best = sum / p->utilisation_cap;
            *exec = e;
        }
    }
    return best;
}

char *cs_exact_shortage(const cs_flow *flow)
{
    const cs_problem *p = flow->problem;
    double total = 0, worst = -1;
    size_t stage = 0, exec = 0, type = 0;
    int devices = 0;
    for (size_t k = 0; k < p->cluster->n_kinds; k++)
        devices += p->capacity[k];
    for (size_t s = 0; s < p->n_stages; s++) {
        size_t e = 0;
        double need = stage_devices(p, s, &e);
        if (isinf(need))
            continue;
        total += need;
        if (need > worst) {
            worst = need;
            stage = s;
            exec = e;
        }
    }
    double most = -1;
    for (size_t t = 0; t < p->n_types; t++) {
        double work = (p->types[t].stages >> stage & 1)
                          ? p->types[t].rate_rps * cs_problem_work(p, exec, stage, t)
                          : -1;
        if (work > most) {
            most = work;
            type = t;
        }
    }
    return g_strdup_printf("%s needs %.1f devices of %s; %.1f are left",
                           p->workload->types[p->types[type].workload_type].name, worst,
                           p->execs[exec].name, MAX(0, devices - (total - worst)));
}

/* ---- counts ---- */

static double exec_price(const cs_exec_type *e, cs_policy policy)
{
    return policy == CS_POLICY_DEVICES ? e->count : e->cost;
}

/* Rows that hold in every integer solution: a set of stages needs so many whole replicas of the
 * executor types that host any of it. `column` gives the columns of a type (its counts, or its
 * counts on every node). */
typedef void (*add_type_entries)(cs_milp *m, int row, size_t exec, void *data);

static void add_covers(cs_milp *m, const cs_problem *p, add_type_entries add, void *data)
{
    size_t sets = p->n_stages <= 8 ? (size_t)1 << p->n_stages : 0;
    for (size_t i = 1; i < MAX(sets, p->n_stages + 1); i++) {
        guint32 set = sets ? (guint32)i : 1u << (i - 1);
        double need = 0;
        for (size_t s = 0; s < p->n_stages; s++) {
            for (size_t t = 0; (set >> s & 1) && t < p->n_types; t++) {
                double least = INFINITY;
                for (size_t e = 0; e < p->n_execs; e++)
                    least = MIN(least, cs_problem_work(p, e, s, t));
                if (p->types[t].stages >> s & 1)
                    need += p->types[t].rate_rps * least;
            }
        }
        if (!(need > 0) || isinf(need))
            continue;
        int row = cs_milp_row(m, ceil(need / p->utilisation_cap - 1e-6), INFINITY);
        for (size_t e = 0; e < p->n_execs; e++)
            if (p->execs[e].mask & set)
                add(m, row, e, data);
    }
}

static void add_count_entry(cs_milp *m, int row, size_t exec, void *data)
{
    cs_milp_entry(m, row, (int)exec, 1);
}

static int most_replicas(const cs_problem *p, const cs_exec_type *e)
{
    int most = 0;
    for (size_t n = 0; n < p->cluster->n_nodes; n++)
        most += p->cluster->nodes[n].devices[e->kind] / e->count;
    return most;
}

/* Columns: counts of every type, then the rate (a constant for cost), then flows. */
static void build_counts(cs_milp *m, const cs_flow *flow, cs_policy policy)
{
    const cs_problem *p = flow->problem;
    bool rate = policy == CS_POLICY_THROUGHPUT;
    for (size_t e = 0; e < p->n_execs; e++)
        cs_milp_column(m, 0, most_replicas(p, &p->execs[e]),
                       rate ? 0 : exec_price(&p->execs[e], policy), true);
    double total = p->workload->rate_rps;
    int alpha = cs_milp_column(m, rate ? 0 : total, rate ? INFINITY : total, rate ? -1 : 0, false);
    int first_k = (int)m->row_lower->len;
    for (size_t k = 0; k < flow->n_commodities; k++) {
        int row = cs_milp_row(m, 0, 0);
        cs_milp_entry(m, row, alpha, -flow->demand[k]);
    }
    int first_e = (int)m->row_lower->len;
    for (size_t e = 0; e < p->n_execs; e++)
        cs_milp_entry(m, cs_milp_row(m, -INFINITY, 0), (int)e, -p->utilisation_cap);
    for (size_t k = 0; k < flow->n_commodities; k++)
        for (size_t e = 0; e < p->n_execs; e++) {
            if (isinf(cs_flow_cost(flow, k, e)))
                continue;
            int column = cs_milp_column(m, 0, INFINITY, 0, false);
            cs_milp_entry(m, first_k + (int)k, column, 1);
            cs_milp_entry(m, first_e + (int)e, column, cs_flow_cost(flow, k, e));
        }
    for (size_t kind = 0; kind < p->cluster->n_kinds; kind++) {
        int row = cs_milp_row(m, -INFINITY, p->capacity[kind]);
        for (size_t e = 0; e < p->n_execs; e++)
            if (p->execs[e].kind == kind)
                cs_milp_entry(m, row, (int)e, p->execs[e].count);
    }
    if (!rate)
        add_covers(m, p, add_count_entry, NULL);
}

static bool fail_no_room(GError **error)
{
    return cs_fail(error, CS_ERROR_INVALID,
                   "the cluster cannot host one executor for every "
                   "component that the workload needs, linked to one another");
}

bool cs_exact_counts(const cs_flow *flow, const cs_exact_options *o, int *counts, double *objective,
                     double *bound, GError **error)
{
    cs_milp m;
    cs_milp_init(&m);
    build_counts(&m, flow, o->policy);
    cs_milp_options mo = {.seconds = o->seconds, .gap = o->gap, .cancel = o->cancel};
    cs_milp_result r;
    bool ok = cs_milp_solve(&m, &mo, &r, error), rate = o->policy == CS_POLICY_THROUGHPUT;
    if (ok && r.status == CS_MILP_INFEASIBLE) {
        g_autofree char *why = cs_exact_shortage(flow);
        ok = cs_fail(error, CS_ERROR_INVALID, "the cluster cannot carry the workload: %s", why);
    } else if (ok && !r.x && o->cancel && *o->cancel) {
        ok = cs_fail(error, CS_ERROR_CANCELLED, "interrupted before a first solution");
    } else if (ok && !r.x) {
        ok = cs_fail(error, CS_ERROR_TIMEOUT, "the solver found no solution in %g s", o->seconds);
    }
    if (ok) {
        for (size_t e = 0; e < flow->n_execs; e++)
            counts[e] = (int)round(r.x[e]);
        *objective = rate ? -r.objective : r.objective;
        *bound = rate ? -r.bound : r.bound;
        if (rate && *bound <= MIN_RATE)
            ok = fail_no_room(error);
    }
    g_free(r.x);
    cs_milp_clear(&m);
    return ok;
}

/* ---- with nodes ---- */

static void add_node_entries(cs_milp *m, int row, size_t exec, void *data)
{
    const cs_node_model *model = data;
    size_t n_nodes = model->problem->cluster->n_nodes;
    for (size_t n = 0; n < n_nodes; n++)
        if (model->x[exec * n_nodes + n] >= 0)
            cs_milp_entry(m, row, model->x[exec * n_nodes + n], 1);
}

static void set_objective(cs_node_model *model, cs_policy policy, int step)
{
    const cs_problem *p = model->problem;
    GArray *objective = model->m.objective;
    memset(objective->data, 0, objective->len * sizeof(double));
    if (step == 0 && policy == CS_POLICY_THROUGHPUT)
        g_array_index(objective, double, model->alpha) = -1;
    for (size_t i = 0;
         step == 0 && policy != CS_POLICY_THROUGHPUT && i < p->n_execs * p->cluster->n_nodes; i++)
        if (model->x[i] >= 0)
            g_array_index(objective, double, model->x[i]) =
                exec_price(&p->execs[i / p->cluster->n_nodes], policy);
    if (step == 1)
        g_array_index(objective, double, model->link_use) = 1;
    if (step == 2)
        cs_node_model_weigh_bytes(model);
}

/* Keeps what an earlier objective reached. */
static void hold_objective(cs_node_model *model, cs_policy policy, int step, double value)
{
    cs_milp *m = &model->m;
    if (step == 0 && policy == CS_POLICY_THROUGHPUT) {
        /* A hair below the optimum: the second objective must not die of the solver's rounding. */
        g_array_index(m->lower, double, model->alpha) = -value * (1 - 1e-7);
        g_array_index(m->upper, double, model->alpha) = -value * (1 - 1e-7);
        return;
    }
    if (step == 1) {
        g_array_index(m->upper, double, model->link_use) = value * (1 + 1e-7) + 1e-12;
        return;
    }
    int row = cs_milp_row(m, -INFINITY, value + 1e-6);
    for (guint j = 0; j < m->objective->len; j++)
        if (g_array_index(m->objective, double, j) != 0)
            cs_milp_entry(m, row, (int)j, g_array_index(m->objective, double, j));
}

/* The counts' bound as a row, so that the search with nodes stops as soon as it is met. */
static void add_bound(cs_node_model *model, cs_policy policy, double bound)
{
    cs_milp *m = &model->m;
    if (policy == CS_POLICY_THROUGHPUT) {
        g_array_index(m->upper, double, model->alpha) = bound * (1 + 1e-9);
        return;
    }
    int row = cs_milp_row(m, bound - 1e-6 * MAX(1, fabs(bound)), INFINITY);
    for (guint j = 0; j < m->objective->len; j++)
        if (g_array_index(m->objective, double, j) != 0)
            cs_milp_entry(m, row, (int)j, g_array_index(m->objective, double, j));
}

typedef struct {
    const cs_exact_options *o;
    int64_t start_us;
    double seconds;
} budget;

static double seconds_left(const budget *b)
{
    return MAX(0.05, b->seconds - (double)(cs_now_us() - b->start_us) / 1e6);
}

/* The three objectives in turn, each keeping the ones before; *x receives the last solution. */
static bool solve_steps(cs_node_model *model, const budget *b, bool whole, cs_exact_result *result,
                        double **x, GError **error)
{
    const cs_exact_options *o = b->o;
    bool rate = o->policy == CS_POLICY_THROUGHPUT;
    int steps = o->only_first || model->problem->cluster->n_nodes == 1 ? 1 : 3;
    result->balanced = steps == 1 && !o->only_first;
    for (int step = 0; step < steps && !(o->cancel && *o->cancel && (*x || result->layout));
         step++) {
        set_objective(model, o->policy, step);
        if (step == 0 && result->proven) { /* the start is as good as any plan can be */
            hold_objective(model, o->policy, step, rate ? -result->objective : result->objective);
            continue;
        }
        if (step == 0) {
            if (!rate)
                add_covers(&model->m, model->problem, add_node_entries, model);
            add_bound(model, o->policy, result->bound);
        }
        double balance_s = o->balance_s > 0 ? o->balance_s : DEFAULT_BALANCE_S;
        cs_milp_options mo = {.seconds = step ? MIN(balance_s, seconds_left(b)) : seconds_left(b),
                              .gap = step == 0 ? o->gap : 1e-6,
                              .start = *x,
                              .cancel = o->cancel};
        cs_milp_result r;
        if (!cs_milp_solve(&model->m, &mo, &r, error))
            return false;
        if (step == 0 && r.status == CS_MILP_INFEASIBLE && whole)
            return cs_fail(error, CS_ERROR_INVALID,
                           "the traffic between nodes does not fit the links, or replicas of "
                           "several devices do not fit the nodes");
        if (!r.x)
            return true;
        if (step == 0 && rate && -r.objective <= MIN_RATE && r.status == CS_MILP_OPTIMAL && whole) {
            g_free(r.x);
            return fail_no_room(error);
        }
        g_free(*x);
        *x = r.x;
        if (step == 0) {
            result->objective = rate ? -r.objective : r.objective;
            double bound = rate ? -r.bound : r.bound;
            if (whole && r.status == CS_MILP_OPTIMAL)
                result->bound = rate ? MIN(result->bound, bound) : MAX(result->bound, bound);
            double slack = o->gap * fabs(result->objective) + 1e-6 * MAX(1, fabs(result->bound));
            result->proven = fabs(result->objective - result->bound) <= slack ||
                             (whole && r.status == CS_MILP_OPTIMAL);
        }
        result->balanced = step == 2 && r.status == CS_MILP_OPTIMAL && whole;
        hold_objective(model, o->policy, step, r.objective);
        if (r.status != CS_MILP_OPTIMAL)
            break;
    }
    return true;
}

/* Takes the start as the plan so far if it is feasible; proven if it reaches the bound. */
static void use_start(const cs_problem *p, const cs_exact_options *o, cs_exact_result *result)
{
    double objective = cs_layout_rate(o->start, NULL);
    if (o->policy != CS_POLICY_THROUGHPUT) {
        if (objective < p->workload->rate_rps * (1 - 1e-7))
            return;
        objective =
            o->policy == CS_POLICY_COST ? cs_layout_cost(o->start) : cs_layout_devices(o->start);
    }
    result->layout = cs_layout_copy(o->start);
    result->objective = objective;
    result->proven = fabs(objective - result->bound) <=
                     o->gap * fabs(objective) + 1e-6 * MAX(1e-3, fabs(result->bound));
}

/* Interrupted or out of time before the counts were solved: the start is the plan so far, and the
 * bound that of the counts without their integrality. */
static void keep_start(const cs_flow *flow, const cs_exact_options *o, cs_exact_result *result)
{
    result->bound =
        o->policy == CS_POLICY_THROUGHPUT
            ? cs_flow_relaxed_rate(flow, NULL, NULL, NULL)
            : cs_flow_relaxed_cost(flow, NULL, NULL, o->policy == CS_POLICY_DEVICES, NULL);
    use_start(flow->problem, o, result);
}

bool cs_exact_solve(const cs_flow *flow, const cs_exact_options *options, cs_exact_result *result,
                    GError **error)
{
    const cs_problem *p = flow->problem;
    budget b = {options, cs_now_us(), options->seconds > 0 ? options->seconds : DEFAULT_SECONDS};
    cs_exact_options o = *options;
    *result = (cs_exact_result){0};
    g_autofree int *counts = g_new0(int, p->n_execs + 1);
    o.seconds = b.seconds / 3;
    g_autoptr(GError) fault = NULL;
    if (!cs_exact_counts(flow, &o, counts, &result->objective, &result->bound, &fault)) {
        if (o.start && !g_error_matches(fault, CS_ERROR, CS_ERROR_INVALID))
            keep_start(flow, &o, result);
        if (result->layout)
            return true;
        g_propagate_error(error, g_steal_pointer(&fault));
        return false;
    }
    if (o.start)
        use_start(p, &o, result);
    if (result->proven && (o.only_first || p->cluster->n_nodes == 1)) {
        result->balanced = !o.only_first;
        result->seconds = (double)(cs_now_us() - b.start_us) / 1e6;
        return true;
    }

    size_t most = options->max_columns ? options->max_columns : DEFAULT_COLUMNS;
    g_autofree bool *allowed = g_new(bool, p->n_execs + 1);
    memset(allowed, true, p->n_execs * sizeof allowed[0]);
    cs_node_model model;
    bool rate = o.policy == CS_POLICY_THROUGHPUT;
    bool whole = cs_node_model_init(&model, p, allowed, rate, most);
    if (!whole) {
        for (size_t e = 0; e < p->n_execs; e++)
            allowed[e] = counts[e] > 0;
        if (!cs_node_model_init(&model, p, allowed, rate, 8 * most))
            return result->layout ||
                   cs_fail(error, CS_ERROR_TOO_LARGE,
                           "%zu nodes with these executor types are more than the exact planner "
                           "takes; use the fast one",
                           p->cluster->n_nodes);
    }
    double *x = NULL;
    bool ok = solve_steps(&model, &b, whole, result, &x, error);
    if (ok && x) {
        cs_layout *balanced = cs_node_model_layout(&model, x);
        double need = rate ? result->objective : p->workload->rate_rps;
        if (result->layout && cs_layout_rate(balanced, NULL) < need * (1 - 1e-6)) {
            cs_layout_free(balanced); /* routes lost to rounding what the start has */
        } else {
            cs_layout_free(result->layout);
            result->layout = balanced;
        }
    }
    if (!ok)
        g_clear_pointer(&result->layout, cs_layout_free);
    g_free(x);
    cs_node_model_clear(&model);
    result->seconds = (double)(cs_now_us() - b.start_us) / 1e6;
    return ok;
}
