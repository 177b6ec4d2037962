#include "plan/candidates.h"

#include "base/error.h"
#include "base/os.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BETTER 1e-9 /* relative: smaller differences are rounding */

void cs_candidate_counts(const cs_candidate *c, const cs_problem *p, int *counts)
{
    memset(counts, 0, sizeof(int) * p->n_execs);
    for (guint i = 0; i < c->n; i++)
        counts[c->exec[i]] = c->count[i];
}

bool cs_candidate_from_counts(cs_candidate *c, const cs_problem *p, const int *counts)
{
    c->n = 0;
    c->cost = 0;
    for (size_t e = 0; e < p->n_execs; e++) {
        if (counts[e] <= 0)
            continue;
        if (c->n == CS_CANDIDATE_TYPES)
            return false;
        c->exec[c->n] = (guint16)e;
        c->count[c->n++] = counts[e];
        c->cost += counts[e] * p->execs[e].cost;
    }
    return true;
}

char *cs_candidate_describe(const cs_candidate *c, const cs_problem *p)
{
    GString *text = g_string_new(NULL);
    for (guint i = 0; i < c->n; i++)
        g_string_append_printf(text, "%s%d x %s", i ? ", " : "", c->count[i],
                               p->execs[c->exec[i]].name);
    return g_string_free(text, FALSE);
}

/* Whether two names with '+' between components mean the same executor type. */
static bool same_name(const char *a, const char *b)
{
    g_auto(GStrv) x = g_strsplit(a, "+", -1), y = g_strsplit(b, "+", -1);
    bool same = g_strv_length(x) == g_strv_length(y);
    for (size_t i = 0; same && x[i]; i++)
        same = g_strv_contains((const char *const *)y, g_strstrip(x[i]));
    return same;
}

bool cs_candidate_parse(const cs_flow *flow, const char *text, cs_candidate *out, GError **error)
{
    const cs_problem *p = flow->problem;
    g_autofree int *counts = g_new0(int, p->n_execs + 1);
    g_auto(GStrv) parts = g_strsplit(text, ",", -1);
    for (size_t i = 0; parts[i]; i++) {
        char *name = NULL;
        guint64 n = g_ascii_strtoull(g_strstrip(parts[i]), &name, 10);
        if (n < 1 || n > 100000 || !g_str_has_prefix(name, " x "))
            return cs_fail(error, CS_ERROR_INVALID,
                           "expected \"COUNT x COMPONENT+COMPONENT, ...\", found \"%s\"", parts[i]);
        size_t e = 0;
        while (e < p->n_execs && !same_name(name + 3, p->execs[e].name))
            e++;
        if (e == p->n_execs)
            return cs_fail(error, CS_ERROR_NOT_FOUND,
                           "%s: no such executor type: a profile or memory is missing, or its "
                           "components may not share an executor",
                           name + 3);
        counts[e] += (int)n;
    }
    *out = (cs_candidate){.origin = "given"};
    if (!cs_candidate_from_counts(out, p, counts))
        return cs_fail(error, CS_ERROR_TOO_LARGE, "more than %d kinds of executor",
                       CS_CANDIDATE_TYPES);
    guint32 missing = cs_problem_stages_in_use(p);
    for (guint i = 0; i < out->n; i++)
        missing &= ~p->execs[out->exec[i]].mask;
    if (missing)
        return cs_fail(error, CS_ERROR_INVALID, "no executor in it hosts %s",
                       p->stages[__builtin_ctz(missing)].name);
    out->rate = cs_flow_rate(flow, counts);
    return true;
}

static double price_of(const cs_problem *p, size_t e, cs_policy policy)
{
    return policy == CS_POLICY_DEVICES ? p->execs[e].count : p->execs[e].cost;
}

static double objective_of(const cs_problem *p, cs_policy policy, const int *counts)
{
    double sum = 0;
    for (size_t e = 0; e < p->n_execs; e++)
        sum += counts[e] * price_of(p, e, policy);
    return sum;
}

static double candidate_price(const cs_problem *p, cs_policy policy, const cs_candidate *c)
{
    double sum = 0;
    for (guint i = 0; i < c->n; i++)
        sum += c->count[i] * price_of(p, c->exec[i], policy);
    return sum;
}

int cs_candidate_compare(const cs_flow *flow, cs_policy policy, const cs_candidate *a,
                         const cs_candidate *b)
{
    double need = flow->problem->workload->rate_rps * (1 - BETTER);
    if (cs_policy_minimises(policy) && (a->rate >= need || b->rate >= need)) {
        if ((a->rate >= need) != (b->rate >= need))
            return a->rate >= need ? 1 : -1;
        double x = candidate_price(flow->problem, policy, a);
        double y = candidate_price(flow->problem, policy, b);
        if (fabs(x - y) > BETTER * (x + y))
            return x < y ? 1 : -1;
    }
    if (fabs(a->rate - b->rate) > BETTER * (a->rate + b->rate))
        return a->rate > b->rate ? 1 : -1;
    return 0;
}

/* ---- subplans ---- */

typedef struct {
    guint32 *masks; /* distinct masks of executor types */
    guint n_masks;
    size_t most;
    GArray *out;
    bool cut;
} partitioning;

static void partition(partitioning *x, cs_subplan *current, guint32 left)
{
    if (x->out->len >= x->most) {
        x->cut = true;
        return;
    }
    if (!left) {
        g_array_append_vals(x->out, current, 1);
        return;
    }
    guint32 lowest = left & -left;
    for (guint i = 0; i < x->n_masks; i++) {
        if (!(x->masks[i] & lowest) || (x->masks[i] & ~left))
            continue;
        current->masks[current->n++] = x->masks[i];
        partition(x, current, left & ~x->masks[i]);
        current->n--;
    }
}

static int by_stages_descending(const void *a, const void *b)
{
    int x = __builtin_popcount(*(const guint32 *)a), y = __builtin_popcount(*(const guint32 *)b);
    return x != y ? y - x
                  : (*(const guint32 *)a > *(const guint32 *)b) -
                        (*(const guint32 *)a < *(const guint32 *)b);
}

GArray *cs_subplans_list(const cs_problem *p, size_t most, bool *cut)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(g_direct_hash, g_direct_equal);
    g_autofree guint32 *masks = g_new(guint32, p->n_execs + 1);
    partitioning x = {.masks = masks, .most = most};
    for (size_t e = 0; e < p->n_execs; e++)
        if (g_hash_table_add(seen, GUINT_TO_POINTER(p->execs[e].mask)))
            masks[x.n_masks++] = p->execs[e].mask;
    qsort(masks, x.n_masks, sizeof masks[0], by_stages_descending);
    x.out = g_array_new(FALSE, TRUE, sizeof(cs_subplan));
    cs_subplan current = {0};
    partition(&x, &current, cs_problem_stages_in_use(p));
    *cut = x.cut;
    return x.out;
}

/* Replica-seconds per request of the whole mix that an executor type spends on its stages. */
static double mix_work(const cs_problem *p, size_t e, guint32 mask)
{
    double work = 0;
    for (size_t s = 0; s < p->n_stages; s++)
        for (size_t t = 0; (mask >> s & 1) && t < p->n_types; t++)
            if (p->types[t].stages >> s & 1)
                work += p->types[t].share * cs_problem_work(p, e, s, t);
    return work;
}

/* The type with this mask that carries most per device (or per price) and has devices left. */
static int best_variant(const cs_flow *flow, guint32 mask, cs_policy policy, const int *left)
{
    const cs_problem *p = flow->problem;
    int best = -1;
    double best_value = 0;
    for (size_t e = 0; e < p->n_execs; e++) {
        if (p->execs[e].mask != mask || p->execs[e].count > left[p->execs[e].kind])
            continue;
        double price = cs_policy_minimises(policy) ? price_of(p, e, policy) : p->execs[e].count;
        double value = 1 / (MAX(mix_work(p, e, mask), 1e-12) * MAX(price, 1e-9));
        if (best < 0 || value > best_value * (1 + BETTER)) {
            best = (int)e;
            best_value = value;
        }
    }
    return best;
}

bool cs_subplan_fill(const cs_flow *flow, const cs_subplan *subplan, cs_policy policy,
                     cs_candidate *out)
{
    const cs_problem *p = flow->problem;
    double rate[CS_PLAN_MAX_STAGES] = {0},
           goal = cs_policy_minimises(policy) ? p->workload->rate_rps : INFINITY;
    int left[CS_PLAN_MAX_KINDS];
    g_autofree int *counts = g_new0(int, p->n_execs + 1);
    memcpy(left, p->capacity, sizeof left);
    for (;;) {
        guint low = 0;
        for (guint i = 1; i < subplan->n; i++)
            if (rate[i] < rate[low])
                low = i;
        if (rate[low] >= goal * (1 - BETTER))
            break;
        int e = best_variant(flow, subplan->masks[low], policy, left);
        if (e < 0)
            break;
        counts[e]++;
        left[p->execs[e].kind] -= p->execs[e].count;
        rate[low] += p->utilisation_cap / MAX(mix_work(p, (size_t)e, subplan->masks[low]), 1e-12);
    }
    for (guint i = 0; i < subplan->n; i++)
        if (rate[i] <= 0 || (cs_policy_minimises(policy) && rate[i] < goal * (1 - BETTER)))
            return false;
    *out = (cs_candidate){.origin = "one subplan"};
    if (!cs_candidate_from_counts(out, p, counts))
        return false;
    out->rate = cs_flow_rate(flow, counts);
    return true;
}

/* ---- exchanging replicas ---- */

typedef struct {
    const cs_flow *flow;
    cs_policy policy;
    int *counts;
    int left[CS_PLAN_MAX_KINDS];
    int evaluations;
    double rate;
    guint16 *tempting; /* types by the worth of one replica per price, best first */
    guint n_tempting;
} exchange;

static void take(exchange *x, size_t e, int n)
{
    x->counts[e] += n;
    x->left[x->flow->problem->execs[e].kind] -= n * x->flow->problem->execs[e].count;
}

static bool affordable(const exchange *x, size_t e)
{
    const cs_exec_type *t = &x->flow->problem->execs[e];
    return x->left[t->kind] >= t->count;
}

static double evaluate(exchange *x)
{
    x->evaluations--;
    return cs_flow_rate(x->flow, x->counts);
}

/* Whether counts with this rate beat `price` and `rate`. */
static bool improves(const exchange *x, double rate, double old_price)
{
    const cs_problem *p = x->flow->problem;
    if (!cs_policy_minimises(x->policy))
        return rate > x->rate * (1 + BETTER) + 1e-15;
    double price = objective_of(p, x->policy, x->counts);
    return rate >= p->workload->rate_rps * (1 - BETTER) && price < old_price - BETTER * old_price;
}

typedef struct {
    double value;
    guint16 exec;
} tempted;

static int by_value_descending(const void *a, const void *b)
{
    double x = ((const tempted *)a)->value, y = ((const tempted *)b)->value;
    if (x != y)
        return (x < y) - (x > y);
    return (int)((const tempted *)a)->exec - (int)((const tempted *)b)->exec;
}

static void rank_types(exchange *x)
{
    const cs_problem *p = x->flow->problem;
    cs_flow_result r;
    cs_flow_solve(x->flow, x->counts, false, &r);
    x->rate = r.rate_rps;
    g_autofree tempted *all = g_new(tempted, p->n_execs + 1);
    for (size_t e = 0; e < p->n_execs; e++) {
        double price = cs_policy_minimises(x->policy) ? MAX(price_of(p, e, x->policy), 1e-9)
                                                      : p->execs[e].count;
        /* A wide executor is worth a little more than its best commodity: ties go to it. */
        double width = 1 + 1e-3 * __builtin_popcount(p->execs[e].mask);
        all[e] = (tempted){r.price[e] / price * width, (guint16)e};
    }
    qsort(all, p->n_execs, sizeof all[0], by_value_descending);
    x->n_tempting = (guint)MIN(p->n_execs, 48);
    for (guint i = 0; i < x->n_tempting; i++)
        x->tempting[i] = all[i].exec;
    cs_flow_result_clear(&r);
}

/* Tries to give up one replica of a (or none: a < 0) and of a2 for up to two of the tempting. */
static bool try_exchange(exchange *x, int a, int a2, double old_price)
{
    if (a >= 0)
        take(x, (size_t)a, -1);
    if (a2 >= 0)
        take(x, (size_t)a2, -1);
    double rate = cs_policy_minimises(x->policy) ? evaluate(x) : 0;
    bool better = cs_policy_minimises(x->policy) && improves(x, rate, old_price);
    for (guint i = 0; !better && i < x->n_tempting && x->evaluations > 0; i++) {
        size_t b = x->tempting[i];
        if ((int)b == a || !affordable(x, b))
            continue;
        take(x, b, 1);
        better =
            (!cs_policy_minimises(x->policy) ||
             objective_of(x->flow->problem, x->policy, x->counts) < old_price * (1 - BETTER)) &&
            improves(x, evaluate(x), old_price);
        for (guint k = i; !better && a2 >= 0 && k < MIN(x->n_tempting, 12) && x->evaluations > 0;
             k++) {
            size_t c = x->tempting[k];
            if (!affordable(x, c))
                continue;
            take(x, c, 1);
            better =
                (!cs_policy_minimises(x->policy) ||
                 objective_of(x->flow->problem, x->policy, x->counts) < old_price * (1 - BETTER)) &&
                improves(x, evaluate(x), old_price);
            if (!better)
                take(x, c, -1);
        }
        if (!better)
            take(x, b, -1);
    }
    if (better)
        return true;
    if (a >= 0)
        take(x, (size_t)a, 1);
    if (a2 >= 0)
        take(x, (size_t)a2, 1);
    return false;
}

static bool one_improvement(exchange *x)
{
    const cs_problem *p = x->flow->problem;
    double price = objective_of(p, x->policy, x->counts);
    rank_types(x);
    if (!cs_policy_minimises(x->policy) && try_exchange(x, -1, -1, price))
        return true;
    for (size_t a = 0; a < p->n_execs && x->evaluations > 0; a++)
        if (x->counts[a] > 0 && try_exchange(x, (int)a, -1, price))
            return true;
    for (size_t a = 0; a < p->n_execs && x->evaluations > 0; a++)
        for (size_t b = a; x->counts[a] > 0 && b < p->n_execs && x->evaluations > 0; b++)
            if (x->counts[b] > (a == b) && try_exchange(x, (int)a, (int)b, price))
                return true;
    return false;
}

void cs_candidate_improve(const cs_flow *flow, cs_policy policy, int evaluations, cs_candidate *c)
{
    const cs_problem *p = flow->problem;
    exchange x = {.flow = flow, .policy = policy, .evaluations = evaluations};
    x.counts = g_new(int, p->n_execs + 1);
    x.tempting = g_new(guint16, p->n_execs + 1);
    cs_candidate_counts(c, p, x.counts);
    memcpy(x.left, p->capacity, sizeof x.left);
    for (guint i = 0; i < c->n; i++)
        x.left[p->execs[c->exec[i]].kind] -= c->count[i] * p->execs[c->exec[i]].count;
    while (x.evaluations > 0 && one_improvement(&x)) {
    }
    cs_candidate better = {.origin = c->origin};
    if (cs_candidate_from_counts(&better, p, x.counts)) {
        better.rate = cs_flow_rate(flow, x.counts);
        if (cs_candidate_compare(flow, policy, &better, c) > 0)
            *c = better;
    }
    g_free(x.counts);
    g_free(x.tempting);
}

/* ---- branch and bound ---- */

typedef struct {
    const cs_flow *flow;
    cs_policy policy;
    int *lower, *upper, *trial;
    double *x;
    int nodes;
    int64_t deadline_us;
    cs_candidate *best;
    double unit; /* objectives of whole plans are multiples of it; 0: unknown */
    bool cut;    /* a limit ended the search */
} branching;

static double relaxed(branching *b)
{
    return cs_policy_minimises(b->policy)
               ? cs_flow_relaxed_cost(b->flow, b->lower, b->upper, b->policy == CS_POLICY_DEVICES,
                                      b->x)
               : cs_flow_relaxed_rate(b->flow, b->lower, b->upper, b->x);
}

/* Whether no whole plan within this bound can beat the incumbent. */
static bool hopeless(const branching *b, double bound)
{
    if (!cs_policy_minimises(b->policy))
        return bound <= b->best->rate * (1 + 1e-7);
    if (isinf(bound))
        return true;
    if (b->best->n == 0 || b->best->rate < b->flow->problem->workload->rate_rps * (1 - BETTER))
        return false;
    double best = candidate_price(b->flow->problem, b->policy, b->best);
    return bound > best - MAX(b->unit, 0) + 1e-6 * best || bound >= best * (1 - 1e-9);
}

/* Rounds the relaxed counts: down, then up again where devices are left, largest fraction first. */
static void round_counts(branching *b)
{
    const cs_problem *p = b->flow->problem;
    int left[CS_PLAN_MAX_KINDS];
    memcpy(left, p->capacity, sizeof left);
    for (size_t e = 0; e < p->n_execs; e++) {
        b->trial[e] = (int)floor(b->x[e] + 1e-6);
        left[p->execs[e].kind] -= b->trial[e] * p->execs[e].count;
    }
    for (;;) {
        int best = -1;
        for (size_t e = 0; e < p->n_execs; e++) {
            double fraction = b->x[e] - b->trial[e];
            if (fraction > 1e-6 && left[p->execs[e].kind] >= p->execs[e].count &&
                (best < 0 || fraction > b->x[best] - b->trial[best]))
                best = (int)e;
        }
        if (best < 0)
            break;
        b->trial[best]++;
        left[p->execs[best].kind] -= p->execs[best].count;
    }
    cs_candidate c = {.origin = "branch and bound"};
    if (!cs_candidate_from_counts(&c, p, b->trial))
        return;
    c.rate = cs_flow_rate(b->flow, b->trial);
    if (b->best->n == 0 || cs_candidate_compare(b->flow, b->policy, &c, b->best) > 0)
        *b->best = c;
}

static int most_fractional(const branching *b)
{
    int best = -1;
    double most = 1e-6;
    for (size_t e = 0; e < b->flow->n_execs; e++) {
        double f = b->x[e] - floor(b->x[e]), distance = MIN(f, 1 - f);
        if (distance > most) {
            most = distance;
            best = (int)e;
        }
    }
    return best;
}

static bool lower_fits(const branching *b)
{
    const cs_problem *p = b->flow->problem;
    int left[CS_PLAN_MAX_KINDS];
    memcpy(left, p->capacity, sizeof left);
    for (size_t e = 0; e < p->n_execs; e++)
        left[p->execs[e].kind] -= b->lower[e] * p->execs[e].count;
    for (size_t k = 0; k < p->cluster->n_kinds; k++)
        if (left[k] < 0)
            return false;
    return true;
}

static void branch(branching *b)
{
    if (b->nodes-- <= 0 || cs_now_us() > b->deadline_us) {
        b->cut = true;
        return;
    }
    if (!lower_fits(b) || hopeless(b, relaxed(b)))
        return;
    int e = most_fractional(b);
    round_counts(b);
    if (e < 0)
        return;
    double value = b->x[e];
    int low = b->lower[e], high = b->upper[e];
    b->lower[e] = (int)ceil(value);
    branch(b);
    b->lower[e] = low;
    b->upper[e] = (int)floor(value);
    branch(b);
    b->upper[e] = high;
}

/* The largest unit of which all prices are multiples, if they are whole numbers. */
static double price_unit(const cs_problem *p, cs_policy policy)
{
    long unit = 0;
    for (size_t e = 0; e < p->n_execs; e++) {
        double price = price_of(p, e, policy);
        if (price != floor(price) || price > 1e6)
            return 0;
        long a = unit, c = (long)price;
        while (c) {
            long t = a % c;
            a = c;
            c = t;
        }
        unit = a;
    }
    return (double)unit;
}

bool cs_candidate_branch(const cs_flow *flow, cs_policy policy, double seconds, int nodes,
                         cs_candidate *incumbent, double *bound)
{
    const cs_problem *p = flow->problem;
    branching b = {.flow = flow, .policy = policy, .nodes = nodes, .best = incumbent};
    b.deadline_us = cs_now_us() + (int64_t)(seconds * 1e6);
    b.lower = g_new0(int, p->n_execs + 1);
    b.upper = g_new(int, p->n_execs + 1);
    b.trial = g_new(int, p->n_execs + 1);
    b.x = g_new(double, p->n_execs + 1);
    b.unit = cs_policy_minimises(policy) ? price_unit(p, policy) : 0;
    for (size_t e = 0; e < p->n_execs; e++)
        b.upper[e] = INT_MAX;
    *bound = relaxed(&b);
    if (b.unit > 0 && !isinf(*bound))
        *bound = ceil(*bound / b.unit - 1e-6) * b.unit;
    branch(&b);
    g_free(b.lower);
    g_free(b.upper);
    g_free(b.trial);
    g_free(b.x);
    return !b.cut;
}

/* ---- the strategies of others ---- */

static const char *const baseline_names[] = {"monolithic", "encoders apart", "EPD", "fully split"};

const char *cs_baseline_name(cs_baseline baseline)
{
    return baseline_names[baseline];
}

static void add_set(cs_subplan *s, guint32 mask)
{
    if (mask)
        s->masks[s->n++] = mask;
}

static cs_subplan baseline_subplan(const cs_problem *p, cs_baseline baseline)
{
    cs_subplan s = {0};
    guint32 used = cs_problem_stages_in_use(p), encoders = 0, prefill = 0;
    for (size_t k = 0; k < p->n_stages; k++) {
        if (p->stages[k].kind == CS_STAGE_BATCH)
            encoders |= 1u << k;
        if (p->stages[k].kind == CS_STAGE_PREFILL && !prefill && !p->stages[k].inseparable)
            prefill = 1u << k;
    }
    encoders &= used;
    prefill &= used;
    if (baseline == CS_BASELINE_MONOLITHIC) {
        add_set(&s, used);
    } else if (baseline == CS_BASELINE_ENCODERS_APART) {
        add_set(&s, encoders);
        add_set(&s, used & ~encoders);
    } else if (baseline == CS_BASELINE_EPD) {
        add_set(&s, encoders);
        add_set(&s, prefill);
        add_set(&s, used & ~encoders & ~prefill);
    } else {
        for (guint32 left = used; left;) {
            int k = __builtin_ctz(left);
            guint32 mask = 1u << k;
            if (p->stages[k].twin >= 0)
                mask |= 1u << p->stages[k].twin;
            add_set(&s, mask);
            left &= ~mask;
        }
    }
    return s;
}

bool cs_baseline_make(const cs_flow *flow, cs_baseline baseline, cs_policy policy,
                      cs_candidate *out, char **why)
{
    const cs_problem *p = flow->problem;
    cs_subplan s = baseline_subplan(p, baseline);
    *why = NULL;
    for (guint i = 0; i < s.n; i++) {
        bool exists = false;
        for (size_t e = 0; e < p->n_execs; e++)
            exists |= p->execs[e].mask == s.masks[i];
        if (!exists) {
            *why = cs_problem_why_not(p, s.masks[i]);
            return false;
        }
    }
    if (!cs_subplan_fill(flow, &s, policy, out)) {
        *why = g_strdup("the devices do not suffice");
        return false;
    }
    out->origin = baseline_names[baseline];
    return true;
}
