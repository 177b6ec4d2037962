#include "plan/fast_internal.h"

#include "base/error.h"
#include "base/os.h"
#include "plan/place.h"

#include <math.h>
#include <string.h>

#define MAX_SUBPLANS 20000
#define MAX_PAIRED 3000 /* subplans whose pairs are counted one by one */
#define KEEP_SINGLE 24  /* best subplans that are combined with one another */
#define KEEP_IMPROVE 12 /* candidates that exchange replicas */
#define KEEP_FLOW 256   /* survivors of the flow bound */
#define EXACT_PLACEMENTS 4
#define LAST_REQUESTS 4000 /* of the prediction after an interruption */
#define TIE 1e-6 /* relative: plans this close in the policy's objective are judged by latency */

/* Ranking by flow: goodput starts from throughput. */
static cs_policy flow_policy(const planner *f)
{
    return f->o.policy == CS_POLICY_GOODPUT ? CS_POLICY_THROUGHPUT : f->o.policy;
}

bool fast_interrupted(const planner *f)
{
    return f->o.cancel && *f->o.cancel;
}

bool fast_out_of_time(const planner *f)
{
    return (double)(cs_now_us() - f->start_us) / 1e6 > f->o.seconds || fast_interrupted(f);
}

void fast_say(planner *f, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_string_append_vprintf(f->text, format, args);
    va_end(args);
}

double fast_slack(double value)
{
    return TIE * MAX(fabs(value), 1e-9);
}

static void contender_clear(contender *x)
{
    g_clear_pointer(&x->layout, cs_layout_free);
    g_clear_pointer(&x->rounds, g_free);
}

void fast_keep_first(planner *f, guint n)
{
    for (guint i = n; i < f->all->len; i++)
        contender_clear(&g_array_index(f->all, contender, i));
    g_array_set_size(f->all, MIN(n, f->all->len));
}

/* ---- phase 1: enumeration ---- */

typedef struct {
    const planner *f;
    cs_policy policy;
} ranking;

static gint by_flow(gconstpointer a, gconstpointer b, gpointer data)
{
    const ranking *r = data;
    const contender *x = a, *y = b;
    int order = cs_candidate_compare(r->f->flow, r->policy, &x->c, &y->c);
    if (order)
        return -order;
    if (x->c.n != y->c.n) /* fewer kinds of executor first, then by name */
        return (int)x->c.n - (int)y->c.n;
    int kinds = memcmp(x->c.exec, y->c.exec, sizeof x->c.exec[0] * x->c.n);
    return kinds ? kinds : memcmp(x->c.count, y->c.count, sizeof x->c.count[0] * x->c.n);
}

static void sort_by_flow(planner *f)
{
    ranking r = {f, flow_policy(f)};
    g_array_sort_with_data(f->all, by_flow, &r);
}

static void add_candidate(planner *f, const cs_candidate *c)
{
    contender x = {.c = *c};
    g_array_append_val(f->all, x);
}

static double choose(double n, guint k)
{
    double value = 1;
    for (guint i = 0; i < k; i++)
        value *= (n - i) / (i + 1);
    return n >= k ? value : 0;
}

/* How many candidates there are: every set of subplans up to the overlay, times the ways to give
 * each of its executor types at least one of the devices. */
static double space_size(const planner *f, const GArray *subplans)
{
    double devices = 0, sum = 0;
    for (size_t k = 0; k < f->p->cluster->n_kinds; k++)
        devices += f->p->capacity[k];
    for (guint i = 0; i < subplans->len; i++) {
        const cs_subplan *a = &g_array_index(subplans, cs_subplan, i);
        sum += choose(devices, a->n);
        for (guint j = 0; f->o.overlay > 1 && subplans->len <= MAX_PAIRED && j < i; j++) {
            const cs_subplan *b = &g_array_index(subplans, cs_subplan, j);
            guint kinds = a->n;
            for (guint k = 0; k < b->n; k++) {
                guint m = 0;
                while (m < a->n && a->masks[m] != b->masks[k])
                    m++;
                kinds += m == a->n;
            }
            sum += choose(devices, kinds);
        }
    }
    return sum;
}

static void enumerate(planner *f, cs_fast_result *result)
{
    bool cut = false;
    g_autoptr(GArray) subplans = cs_subplans_list(f->p, MAX_SUBPLANS, &cut);
    guint misfit = 0;
    result->space = space_size(f, subplans);
    for (guint i = 0; i < subplans->len && (f->all->len == 0 || !fast_out_of_time(f)); i++) {
        cs_candidate c;
        if (cs_subplan_fill(f->flow, &g_array_index(subplans, cs_subplan, i), flow_policy(f), &c))
            add_candidate(f, &c);
        else
            misfit++;
    }
    sort_by_flow(f);
    fast_say(
        f,
        "1 enumerate: %zu executor types, %u subplans%s, %.6g candidates with up to %d overlaid\n"
        "  left %u: best counts of each subplan; dropped %u that the devices do not carry\n",
        f->p->n_execs, subplans->len, cut ? " (cut)" : "", result->space, f->o.overlay, f->all->len,
        misfit);
}

/* ---- phase 2: flow ---- */

static bool same_candidate(const cs_candidate *a, const cs_candidate *b)
{
    return a->n == b->n && memcmp(a->exec, b->exec, a->n * sizeof a->exec[0]) == 0 &&
           memcmp(a->count, b->count, a->n * sizeof a->count[0]) == 0;
}

/* The best counts over the executor types of two candidates: the relaxed optimum, rounded. */
static bool overlay(const planner *f, const cs_candidate *a, const cs_candidate *b,
                    cs_candidate *out)
{
    const cs_problem *p = f->p;
    g_autofree int *upper = g_new0(int, p->n_execs + 1), *counts = g_new0(int, p->n_execs + 1);
    g_autofree double *x = g_new0(double, p->n_execs + 1);
    int left[CS_PLAN_MAX_KINDS];
    memcpy(left, p->capacity, sizeof left);
    for (guint i = 0; i < a->n; i++)
        upper[a->exec[i]] = G_MAXINT;
    for (guint i = 0; i < b->n; i++)
        upper[b->exec[i]] = G_MAXINT;
    cs_policy policy = flow_policy(f);
    double value = cs_policy_minimises(policy)
                       ? cs_flow_relaxed_cost(f->flow, NULL, upper, policy == CS_POLICY_DEVICES, x)
                       : cs_flow_relaxed_rate(f->flow, NULL, upper, x);
    if (isinf(value))
        return false;
    for (size_t e = 0; e < p->n_execs; e++) {
        counts[e] = (int)floor(x[e] + 1e-6);
        left[p->execs[e].kind] -= counts[e] * p->execs[e].count;
    }
    for (;;) { /* the largest fraction first */
        int best = -1;
        for (size_t e = 0; e < p->n_execs; e++)
            if (x[e] - counts[e] > 1e-6 && left[p->execs[e].kind] >= p->execs[e].count &&
                (best < 0 || x[e] - counts[e] > x[best] - counts[best]))
                best = (int)e;
        if (best < 0)
            break;
        counts[best]++;
        left[p->execs[best].kind] -= p->execs[best].count;
    }
    *out = (cs_candidate){.origin = "two subplans"};
    if (!cs_candidate_from_counts(out, p, counts))
        return false;
    out->rate = cs_flow_rate(f->flow, counts);
    return out->rate > 0;
}

static guint overlay_all(planner *f)
{
    guint n = MIN(f->all->len, KEEP_SINGLE), made = 0;
    for (guint i = 0; f->o.overlay > 1 && i < n; i++)
        for (guint j = 0; j < i && !fast_out_of_time(f); j++) {
            cs_candidate c;
            if (overlay(f, &g_array_index(f->all, contender, i).c,
                        &g_array_index(f->all, contender, j).c, &c)) {
                add_candidate(f, &c);
                made++;
            }
        }
    return made;
}

/* Replicas that add nothing to the rate are given back. */
static guint strip_redundant(planner *f, cs_candidate *c)
{
    g_autofree int *counts = g_new0(int, f->p->n_execs + 1);
    guint stripped = 0;
    cs_candidate_counts(c, f->p, counts);
    for (guint i = 0; i < c->n; i++) {
        size_t e = c->exec[i];
        while (counts[e] > 0) {
            counts[e]--;
            double goal = cs_policy_minimises(f->o.policy) ? f->p->workload->rate_rps : c->rate;
            if (cs_flow_rate(f->flow, counts) < goal * (1 - 1e-9)) {
                counts[e]++;
                break;
            }
            stripped++;
        }
    }
    if (stripped > 0) {
        cs_candidate_from_counts(c, f->p, counts);
        c->rate = cs_flow_rate(f->flow, counts);
    }
    return stripped;
}

static guint drop_duplicates(planner *f)
{
    guint kept = 0, dropped = 0;
    for (guint i = 0; i < f->all->len; i++) {
        contender x = g_array_index(f->all, contender, i);
        bool seen = false;
        for (guint k = kept > 40 ? kept - 40 : 0; !seen && k < kept; k++)
            seen = same_candidate(&g_array_index(f->all, contender, k).c, &x.c);
        if (seen)
            dropped++;
        else
            g_array_index(f->all, contender, kept++) = x;
    }
    g_array_set_size(f->all, kept);
    return dropped;
}

static void bound_by_flow(planner *f)
{
    guint entered = f->all->len, overlaid = overlay_all(f), stripped = 0;
    sort_by_flow(f);
    for (guint i = 0; i < MIN(f->all->len, KEEP_IMPROVE) && !fast_out_of_time(f); i++)
        cs_candidate_improve(f->flow, flow_policy(f), 400, &g_array_index(f->all, contender, i).c);
    sort_by_flow(f);
    cs_candidate best = {0};
    if (f->all->len)
        best = g_array_index(f->all, contender, 0).c;
    bool proven = cs_candidate_branch(f->flow, flow_policy(f), MIN(1.0, f->o.seconds / 10), 4000,
                                      &best, &f->bound);
    if (best.n > 0 && best.rate > 0) {
        cs_candidate_improve(f->flow, flow_policy(f), 1500, &best);
        add_candidate(f, &best);
    }
    for (guint i = 0; i < MIN(f->all->len, KEEP_FLOW); i++)
        stripped += strip_redundant(f, &g_array_index(f->all, contender, i).c) > 0;
    sort_by_flow(f);
    guint same = drop_duplicates(f), beaten = f->all->len > KEEP_FLOW ? f->all->len - KEEP_FLOW : 0;
    g_array_set_size(f->all, f->all->len - beaten);
    fast_say(f,
             "2 flow: %u entered, %u overlaid pairs of the best %d; routing weights by linear "
             "programming\n  the best %s by branch and bound; %u gave back replicas that carry "
             "nothing\n  left %u: dropped %u equal to another, %u of lower flow\n",
             entered, overlaid, KEEP_SINGLE, proven ? "is proven" : "is not proven", stripped,
             f->all->len, same, beaten);
}

/* ---- placement of candidates ---- */

static double placed_objective(const planner *f, const cs_layout *l)
{
    double rate = cs_layout_rate(l, NULL);
    if (!cs_policy_minimises(f->o.policy))
        return rate;
    if (rate < f->p->workload->rate_rps * (1 - 1e-7))
        return -INFINITY;
    return f->o.policy == CS_POLICY_COST ? -cs_layout_cost(l) : -cs_layout_devices(l);
}

static void place(planner *f, contender *x)
{
    x->layout = cs_place_balanced(f->flow, &x->c);
    x->objective = x->layout ? placed_objective(f, x->layout) : -INFINITY;
}

/* What flow alone promises; nothing placed can be better. */
static double promised(const planner *f, const cs_candidate *c)
{
    if (!cs_policy_minimises(f->o.policy))
        return c->rate;
    if (c->rate < f->p->workload->rate_rps * (1 - 1e-7))
        return -INFINITY;
    double sum = 0;
    for (guint i = 0; i < c->n; i++)
        sum += c->count[i] * (f->o.policy == CS_POLICY_DEVICES ? f->p->execs[c->exec[i]].count
                                                               : f->p->execs[c->exec[i]].cost);
    return -sum;
}

/* Where links or nodes cost the greedy placement something, the exact one is tried, best promise
 * first, for as long as a promise beats what is placed. */
static guint place_exactly(planner *f)
{
    double best = -INFINITY;
    guint tried = 0;
    for (guint i = 0; i < f->all->len; i++)
        best = MAX(best, g_array_index(f->all, contender, i).objective);
    for (guint i = 0; f->p->cluster->n_nodes > 1 && i < f->all->len && !fast_out_of_time(f); i++) {
        contender *x = &g_array_index(f->all, contender, i);
        double promise = promised(f, &x->c);
        if (isinf(promise) || promise <= best + fast_slack(promise) || tried >= EXACT_PLACEMENTS)
            continue;
        tried++;
        cs_layout *l = cs_place_exact(f->flow, &x->c, cs_policy_minimises(f->o.policy), 4000, 2);
        double objective = l ? placed_objective(f, l) : -INFINITY;
        if (objective > x->objective) {
            cs_layout_free(x->layout);
            x->layout = g_steal_pointer(&l);
            x->objective = objective;
        }
        best = MAX(best, x->objective);
        cs_layout_free(l);
    }
    return tried;
}

static gint by_objective(gconstpointer a, gconstpointer b, gpointer data)
{
    const contender *x = a, *y = b;
    double slack = fast_slack(x->objective);
    if (isinf(x->objective) || isinf(y->objective))
        return (x->objective < y->objective) - (x->objective > y->objective);
    if (fabs(x->objective - y->objective) > slack)
        return x->objective < y->objective ? 1 : -1;
    return (x->score > y->score) - (x->score < y->score);
}

static void place_all(planner *f)
{
    guint failed = 0, most = f->p->cluster->n_nodes > 32 ? 12 : KEEP_FLOW;
    guint cut = f->all->len > most ? f->all->len - most : 0, entered = f->all->len;
    fast_keep_first(f, most);
    for (guint i = 0; i < f->all->len; i++) {
        place(f, &g_array_index(f->all, contender, i));
        if (fast_out_of_time(f) && !isinf(g_array_index(f->all, contender, i).objective)) {
            cut += f->all->len - i - 1;
            fast_keep_first(f, i + 1);
        }
    }
    guint exact = place_exactly(f);
    g_array_sort_with_data(f->all, by_objective, NULL);
    while (f->all->len && isinf(g_array_index(f->all, contender, f->all->len - 1).objective)) {
        fast_keep_first(f, f->all->len - 1);
        failed++;
    }
    fast_say(f,
             "  placed on nodes: %u entered, %u placed exactly; left %u: dropped %u that nodes or "
             "links do not carry, %u not tried\n",
             entered, exact, f->all->len, failed, cut);
}

/* ---- the whole ---- */

static void add_baselines(planner *f)
{
    for (int b = 0; b < CS_BASELINES && !fast_out_of_time(f); b++) {
        g_autofree char *why = NULL;
        cs_candidate c;
        if (!cs_baseline_make(f->flow, (cs_baseline)b, flow_policy(f), &c, &why)) {
            fast_say(f, "  baseline %s: %s\n", cs_baseline_name((cs_baseline)b), why);
            continue;
        }
        fast_say(f, "  baseline %s: %.4g requests/s by flow\n", cs_baseline_name((cs_baseline)b),
                 c.rate);
        contender x = {.c = c, .baseline = f->o.policy == CS_POLICY_GOODPUT};
        guint i = 0;
        while (i < f->all->len && !same_candidate(&g_array_index(f->all, contender, i).c, &c))
            i++;
        if (i < f->all->len) {
            g_array_index(f->all, contender, i).baseline = x.baseline;
            continue;
        }
        place(f, &x);
        if (x.layout && !isinf(x.objective))
            g_array_append_val(f->all, x);
        else
            contender_clear(&x);
    }
}

static void add_kept(planner *f)
{
    if (!f->o.keep)
        return;
    contender x = {.layout = cs_layout_copy(f->o.keep), .baseline = true};
    g_autofree int *counts = g_new0(int, f->p->n_execs + 1);
    cs_layout_counts(x.layout, counts);
    cs_candidate_from_counts(&x.c, f->p, counts);
    x.c.rate = cs_flow_rate(f->flow, counts);
    x.c.origin = "the running plan";
    x.objective = placed_objective(f, x.layout);
    if (isinf(x.objective))
        contender_clear(&x);
    else
        g_array_append_val(f->all, x);
}

static bool fail_infeasible(const planner *f, bool by_flow_alone, GError **error)
{
    if (fast_interrupted(f))
        return cs_fail(error, CS_ERROR_CANCELLED, "interrupted before a first plan");
    if (cs_policy_minimises(f->o.policy) && by_flow_alone) {
        g_autofree char *why = cs_exact_shortage(f->flow);
        return cs_fail(error, CS_ERROR_INVALID, "the cluster cannot carry the workload: %s", why);
    }
    if (by_flow_alone)
        return cs_fail(error, CS_ERROR_INVALID,
                       "the cluster cannot host one executor for every "
                       "component that the workload needs");
    return cs_fail(error, CS_ERROR_INVALID,
                   "the traffic between nodes does not fit the links, or replicas of several "
                   "devices do not fit the nodes");
}

static void predict(planner *f, const contender *winner, cs_fast_result *result)
{
    double rate = cs_layout_rate(winner->layout, NULL);
    result->load_rps = cs_policy_minimises(f->o.policy)   ? MIN(f->p->workload->rate_rps, rate)
                       : f->o.policy == CS_POLICY_GOODPUT ? MAX(result->objective, 1e-9)
                                                          : f->o.load_factor * rate;
    cs_sim_options o = {.rate_rps = result->load_rps,
                        .seed = f->o.seed + 99,
                        .requests = f->o.sim_requests * 2,
                        .cancel = f->o.cancel};
    if (fast_interrupted(f)) { /* short, so that the plan does not come without a prediction */
        o.requests = MIN(o.requests, LAST_REQUESTS);
        o.cancel = NULL;
    }
    o.max_in_flight = o.requests;
    cs_sim_run(winner->layout, &o, &result->sim, NULL);
}

static void mark(planner *f, cs_fast_result *result, int phase, int64_t *since)
{
    int64_t now = cs_now_us();
    result->phase_s[phase] += (double)(now - *since) / 1e6;
    *since = now;
}

static bool plan(planner *f, cs_fast_result *result, GError **error)
{
    int64_t since = cs_now_us();
    enumerate(f, result);
    mark(f, result, 0, &since);
    bound_by_flow(f);
    if (f->all->len == 0)
        return fail_infeasible(f, true, error);
    bool carried = !isinf(promised(f, &g_array_index(f->all, contender, 0).c));
    mark(f, result, 1, &since);
    place_all(f);
    add_baselines(f);
    add_kept(f);
    g_array_sort_with_data(f->all, by_objective, NULL);
    mark(f, result, 4, &since);
    if (f->all->len == 0)
        return fail_infeasible(f, !carried, error);
    fast_screen(f);
    mark(f, result, 2, &since);
    contender *winner = f->o.no_simulation ? &g_array_index(f->all, contender, 0) : fast_race(f);
    result->objective = f->o.policy == CS_POLICY_GOODPUT   ? fast_judge_goodput(f, &winner)
                        : cs_policy_minimises(f->o.policy) ? -winner->objective
                                                           : winner->objective;
    mark(f, result, 3, &since);
    g_autofree char *text = cs_candidate_describe(&winner->c, f->p);
    fast_say(f, "5 place: %s\n  from %s; %.6g requests/s as placed\n", text, winner->c.origin,
             cs_layout_rate(winner->layout, NULL));
    if (!f->o.no_simulation)
        predict(f, winner, result);
    result->layout = g_steal_pointer(&winner->layout);
    mark(f, result, 4, &since);
    return true;
}

static bool has_targets(const cs_problem *p)
{
    for (size_t t = 0; t < p->n_types; t++) {
        const cs_workload_type *type = &p->workload->types[p->types[t].workload_type];
        if (!isinf(type->latency_s) || !isinf(type->first_s))
            return true;
    }
    return false;
}

bool cs_fast_plan(const cs_flow *flow, const cs_fast_options *options, cs_fast_result *result,
                  GError **error)
{
    planner f = {.flow = flow, .p = flow->problem, .o = *options, .start_us = cs_now_us()};
    *result = (cs_fast_result){0};
    f.o.overlay = options->overlay > 0 ? options->overlay : 2;
    f.o.load_factor = options->load_factor > 0 ? options->load_factor : 0.7;
    f.o.seconds = options->seconds > 0 ? options->seconds : 60;
    f.o.threads = options->threads > 0 ? options->threads : 2;
    f.o.sim_requests = options->sim_requests > 0 ? options->sim_requests : 4000;
    f.all = g_array_new(FALSE, TRUE, sizeof(contender));
    f.text = g_string_new(NULL);
    bool ok = (f.o.policy != CS_POLICY_GOODPUT || has_targets(f.p) ||
               cs_fail(error, CS_ERROR_INVALID,
                       "goodput needs a latency target: give a type latency_s or first_s")) &&
              plan(&f, result, error);
    result->bound = f.bound;
    fast_keep_first(&f, 0);
    g_array_unref(f.all);
    result->explanation = g_string_free(f.text, FALSE);
    if (!ok)
        cs_fast_result_clear(result);
    return ok;
}

void cs_fast_result_clear(cs_fast_result *result)
{
    cs_layout_free(result->layout);
    cs_sim_result_clear(&result->sim);
    g_free(result->explanation);
    *result = (cs_fast_result){0};
}

cs_layout *cs_fast_baseline(const cs_flow *flow, cs_baseline baseline, cs_policy policy, char **why)
{
    cs_candidate c;
    policy = policy == CS_POLICY_GOODPUT ? CS_POLICY_THROUGHPUT : policy;
    if (!cs_baseline_make(flow, baseline, policy, &c, why))
        return NULL;
    cs_layout *layout = cs_place_balanced(flow, &c);
    if (!layout)
        *why = g_strdup("its executors do not fit the nodes");
    return layout;
}
