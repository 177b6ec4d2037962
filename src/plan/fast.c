#include "plan/fast.h"

#include "base/error.h"
#include "base/os.h"
#include "plan/place.h"
#include "plan/screen.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SUBPLANS 20000
#define MAX_PAIRED 3000 /* subplans whose pairs are counted one by one */
#define KEEP_SINGLE 24  /* best subplans that are combined with one another */
#define KEEP_IMPROVE 12 /* candidates that exchange replicas */
#define KEEP_FLOW 256   /* survivors of the flow bound */
#define KEEP_SCREEN 25  /* survivors of screening, as published */
#define KEEP_GOODPUT 64 /* the same for goodput, which sampling ranks least well */
#define KEEP_BY_FLOW 8  /* of these, so many stay for their flow alone ... */
#define KEEP_BY_MEAN 24 /* ... and so many for their mean latency */
#define KEEP_FINAL 5    /* plans that the last rounds of the race compare */
#define SCREEN_SAMPLES 512
#define EXACT_PLACEMENTS 4
#define HORIZON_TARGETS 5.0    /* a run that judges goodput lasts so many of the longest target */
#define MAX_HORIZON 20000.0    /* requests */
#define GOODPUT_TOLERANCE 0.01 /* of the bisection, relative */
#define TIE 1e-6 /* relative: plans this close in the policy's objective are judged by latency */

typedef struct {
    cs_candidate c;
    cs_layout *layout;
    double objective;    /* of the policy, as placed; larger is better */
    double score, error; /* of latency or goodput; smaller is better */
    bool baseline;       /* stays to the end */
    bool safe;           /* screening does not drop it */
    double *rounds;      /* scores of the race, by round */
} contender;

typedef struct {
    const cs_flow *flow;
    const cs_problem *p;
    cs_fast_options o;
    GArray *all; /* contender */
    GString *text;
    int64_t start_us;
    double bound;
} planner;

static bool minimises(cs_policy policy)
{
    return policy == CS_POLICY_COST || policy == CS_POLICY_DEVICES;
}

/* Ranking by flow: goodput starts from throughput. */
static cs_policy flow_policy(const planner *f)
{
    return f->o.policy == CS_POLICY_GOODPUT ? CS_POLICY_THROUGHPUT : f->o.policy;
}

static bool out_of_time(const planner *f)
{
    return (double)(cs_now_us() - f->start_us) / 1e6 > f->o.seconds ||
           (f->o.cancel && *f->o.cancel);
}

static void say(planner *f, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void say(planner *f, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_string_append_vprintf(f->text, format, args);
    va_end(args);
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
    for (guint i = 0; i < subplans->len && !out_of_time(f); i++) {
        cs_candidate c;
        if (cs_subplan_fill(f->flow, &g_array_index(subplans, cs_subplan, i), flow_policy(f), &c))
            add_candidate(f, &c);
        else
            misfit++;
    }
    sort_by_flow(f);
    say(f,
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
    double value = minimises(policy)
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
        for (guint j = 0; j < i && !out_of_time(f); j++) {
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
            double goal = minimises(f->o.policy) ? f->p->workload->rate_rps : c->rate;
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
    for (guint i = 0; i < MIN(f->all->len, KEEP_IMPROVE) && !out_of_time(f); i++)
        cs_candidate_improve(f->flow, flow_policy(f), 400, &g_array_index(f->all, contender, i).c);
    sort_by_flow(f);
    cs_candidate best = {0};
    if (f->all->len)
        best = g_array_index(f->all, contender, 0).c;
    bool proven = cs_candidate_branch(f->flow, flow_policy(f), MIN(1.0, f->o.seconds / 10), 4000,
                                      &best, &f->bound);
    if (best.n > 0) {
        cs_candidate_improve(f->flow, flow_policy(f), 1500, &best);
        add_candidate(f, &best);
    }
    for (guint i = 0; i < MIN(f->all->len, KEEP_FLOW); i++)
        stripped += strip_redundant(f, &g_array_index(f->all, contender, i).c) > 0;
    sort_by_flow(f);
    guint same = drop_duplicates(f), beaten = f->all->len > KEEP_FLOW ? f->all->len - KEEP_FLOW : 0;
    g_array_set_size(f->all, f->all->len - beaten);
    say(f,
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
    if (!minimises(f->o.policy))
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
    if (!minimises(f->o.policy))
        return c->rate;
    if (c->rate < f->p->workload->rate_rps * (1 - 1e-7))
        return -INFINITY;
    double sum = 0;
    for (guint i = 0; i < c->n; i++)
        sum += c->count[i] * (f->o.policy == CS_POLICY_DEVICES ? f->p->execs[c->exec[i]].count
                                                               : f->p->execs[c->exec[i]].cost);
    return -sum;
}

static double slack_of(double value)
{
    return TIE * MAX(fabs(value), 1e-9);
}

/* Where links or nodes cost the greedy placement something, the exact one is tried, best promise
 * first, for as long as a promise beats what is placed. */
static guint place_exactly(planner *f)
{
    double best = -INFINITY;
    guint tried = 0;
    for (guint i = 0; i < f->all->len; i++)
        best = MAX(best, g_array_index(f->all, contender, i).objective);
    for (guint i = 0; f->p->cluster->n_nodes > 1 && i < f->all->len && !out_of_time(f); i++) {
        contender *x = &g_array_index(f->all, contender, i);
        double promise = promised(f, &x->c);
        if (isinf(promise) || promise <= best + slack_of(promise) || tried >= EXACT_PLACEMENTS)
            continue;
        tried++;
        cs_layout *l = cs_place_exact(f->flow, &x->c, minimises(f->o.policy), 4000, 2);
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
    double slack = slack_of(x->objective);
    if (isinf(x->objective) || isinf(y->objective))
        return (x->objective < y->objective) - (x->objective > y->objective);
    if (fabs(x->objective - y->objective) > slack)
        return x->objective < y->objective ? 1 : -1;
    return (x->score > y->score) - (x->score < y->score);
}

static void contender_clear(contender *x)
{
    g_clear_pointer(&x->layout, cs_layout_free);
    g_clear_pointer(&x->rounds, g_free);
}

static void keep_first(planner *f, guint n)
{
    for (guint i = n; i < f->all->len; i++)
        contender_clear(&g_array_index(f->all, contender, i));
    g_array_set_size(f->all, MIN(n, f->all->len));
}

static void place_all(planner *f)
{
    guint failed = 0, most = f->p->cluster->n_nodes > 32 ? 12 : KEEP_FLOW;
    guint cut = f->all->len > most ? f->all->len - most : 0, entered = f->all->len;
    keep_first(f, most);
    for (guint i = 0; i < f->all->len; i++)
        place(f, &g_array_index(f->all, contender, i));
    guint exact = place_exactly(f);
    g_array_sort_with_data(f->all, by_objective, NULL);
    while (f->all->len && isinf(g_array_index(f->all, contender, f->all->len - 1).objective)) {
        keep_first(f, f->all->len - 1);
        failed++;
    }
    say(f,
        "  placed on nodes: %u entered, %u placed exactly; left %u: dropped %u that nodes or "
        "links do not carry, %u not tried\n",
        entered, exact, f->all->len, failed, cut);
}

/* ---- phase 3: screening ---- */

/* Plans whose objective ties with the best's; for goodput every plan counts. */
static guint tied(const planner *f)
{
    guint n = 0;
    double best = g_array_index(f->all, contender, 0).objective;
    while (n < f->all->len &&
           (f->o.policy == CS_POLICY_GOODPUT ||
            g_array_index(f->all, contender, n).objective >= best - slack_of(best)))
        n++;
    return n;
}

static double load_of(const planner *f, double best_rate)
{
    return minimises(f->o.policy) ? f->p->workload->rate_rps : f->o.load_factor * best_rate;
}

/* Mean latency at the load, or how near the targets it comes. */
static void screen_one(planner *f, const cs_screen *screen, contender *x, double load, size_t n,
                       bool pressure)
{
    g_autofree int *counts = g_new0(int, f->p->n_execs + 1);
    cs_flow_result shares;
    cs_layout_counts(x->layout, counts);
    cs_flow_solve(f->flow, counts, false, &shares);
    cs_screen_result r = cs_screen_latency(screen, f->flow, counts, &shares, load, n);
    x->score =
        pressure ? r.pressure : r.mean_s + 1e3 * MAX(0, f->p->workload->attainment - r.attainment);
    x->error = pressure ? r.pressure / sqrt((double)n) : r.error_s;
    cs_flow_result_clear(&shares);
}

static gint by_score(gconstpointer a, gconstpointer b, gpointer data)
{
    const contender *x = a, *y = b;
    bool safe = x->baseline || x->safe, other = y->baseline || y->safe;
    if (safe != other)
        return safe ? -1 : 1;
    return (x->score > y->score) - (x->score < y->score);
}

/* Sampling is poor at the tails that goodput hangs on: the plans best by flow and by mean latency
 * stay in the race whatever their sampled goodput. */
static void protect(planner *f, const cs_screen *screen, double load)
{
    for (guint i = 0; i < f->all->len; i++) {
        contender *x = &g_array_index(f->all, contender, i);
        screen_one(f, screen, x, load, SCREEN_SAMPLES / 2, false);
        x->safe = i < KEEP_BY_FLOW;
    }
    g_array_sort_with_data(f->all, by_score, NULL);
    for (guint i = 0, n = 0; i < f->all->len && n < KEEP_BY_MEAN; i++)
        if (!g_array_index(f->all, contender, i).safe) {
            g_array_index(f->all, contender, i).safe = true;
            n++;
        }
}

/* Successive halving: each round doubles the samples and drops the worse half, except plans that
 * two standard errors do not separate from the last one kept. */
static void screen_all(planner *f)
{
    guint entered = f->all->len, n = tied(f), untied = entered - n, rounds = 0, separated = 0;
    bool goodput = f->o.policy == CS_POLICY_GOODPUT;
    guint most = goodput ? KEEP_GOODPUT : KEEP_SCREEN;
    g_autoptr(cs_screen) screen = cs_screen_new(f->p, SCREEN_SAMPLES, f->o.seed + 1);
    double load = load_of(f, g_array_index(f->all, contender, 0).objective);
    keep_first(f, n);
    if (goodput)
        protect(f, screen, load);
    for (size_t samples = 64; samples <= SCREEN_SAMPLES; samples *= 2, rounds++) {
        for (guint i = 0; i < f->all->len; i++)
            screen_one(f, screen, &g_array_index(f->all, contender, i), load, samples, goodput);
        g_array_sort_with_data(f->all, by_score, NULL);
        guint half = MAX((f->all->len + 1) / 2, MIN(most, f->all->len)), keep = half;
        const contender *last = &g_array_index(f->all, contender, half - 1);
        double border = last->score + 2 * last->error;
        while (samples < SCREEN_SAMPLES && keep < f->all->len &&
               g_array_index(f->all, contender, keep).score -
                       2 * g_array_index(f->all, contender, keep).error <
                   border)
            keep++;
        separated += f->all->len - keep;
        keep_first(f, keep);
    }
    guint over = f->all->len > most ? f->all->len - most : 0;
    keep_first(f, most);
    say(f,
        "3 screen: %u entered; %s\n  left %u: dropped %u %s, %u in %u rounds of halving, %u over "
        "the limit of %u\n",
        entered,
        f->o.policy == CS_POLICY_GOODPUT
            ? "nearness to the latency targets by sampling at the load factor"
            : "mean latency by sampling at the load factor",
        f->all->len, untied, "below the best objective", separated, rounds, over, most);
}

/* ---- phase 4: the race in the simulator ---- */

/* Queues that outgrow the targets need some multiples of the targets to show. */
static size_t horizon_requests(const cs_problem *p, double rate, size_t requests)
{
    double longest = 0;
    for (size_t t = 0; t < p->n_types; t++) {
        const cs_workload_type *type = &p->workload->types[p->types[t].workload_type];
        longest = MAX(longest, isinf(type->latency_s) ? 0 : type->latency_s);
        longest = MAX(longest, isinf(type->first_s) ? 0 : type->first_s);
    }
    return (size_t)CLAMP(HORIZON_TARGETS * rate * longest, (double)requests,
                         MAX(MAX_HORIZON, (double)requests));
}

double cs_fast_goodput(const cs_layout *layout, double most, size_t requests, guint64 seed,
                       const volatile int *cancel)
{
    double throughput = cs_layout_rate(layout, NULL);
    requests = horizon_requests(layout->problem, throughput, requests);
    double low = 0, high = most > 0 ? MIN(most, throughput) : throughput;
    double rate = high * (1 - GOODPUT_TOLERANCE), step = 0.12;
    for (int i = 0; i < 20 && high - low > GOODPUT_TOLERANCE * high && !(cancel && *cancel); i++) {
        cs_sim_options o = {.rate_rps = rate,
                            .seed = seed,
                            .requests = requests,
                            .stop_when_missed = true,
                            .max_in_flight = requests / 2 + 64,
                            .cancel = cancel};
        cs_sim_result r;
        if (!cs_sim_run(layout, &o, &r, NULL))
            return 0;
        bool met = !r.gave_up; /* a type with few requests may miss one */
        cs_sim_result_clear(&r);
        *(met ? &low : &high) = rate;
        if (met && i == 0)
            break;
        /* Steps down that widen until a rate is sustained, then halving. */
        rate = low > 0 || step > 0.5 ? (low + high) / 2 : high * (1 - step);
        step *= 2;
    }
    return low;
}

typedef struct {
    planner *f;
    contender **racers;
    guint n;
    double load;
    size_t requests, round;
    gint next;
} heat;

/* The worst type's latency over its target at the attainment's quantile; below 1 all is in time. */
static double sim_pressure(const cs_problem *p, const cs_sim_result *r)
{
    double worst = 0, share = p->workload->attainment;
    for (size_t t = 0; t < r->n_types; t++) {
        const cs_workload_type *type = &p->workload->types[p->types[t].workload_type];
        const cs_sim_type *x = &r->types[t];
        worst = MAX(worst, cs_sim_percentile(x->latency_s, x->requests, share) / type->latency_s);
        worst = MAX(worst, cs_sim_percentile(x->first_s, x->requests, share) / type->first_s);
    }
    return worst;
}

static double sim_mean(const cs_problem *p, const cs_sim_result *r)
{
    double sum = 0, n = 0;
    for (size_t t = 0; t < r->n_types; t++) {
        sum += r->types[t].mean_s * (double)r->types[t].requests;
        n += (double)r->types[t].requests;
    }
    return sum / MAX(n, 1) + 1e3 * MAX(0, p->workload->attainment - r->attainment);
}

static double race_score(const heat *h, const cs_layout *layout)
{
    const planner *f = h->f;
    cs_sim_options o = {.rate_rps = h->load,
                        .seed = f->o.seed * 1000 + h->round + 17,
                        .requests = h->requests,
                        .max_in_flight = h->requests,
                        .cancel = f->o.cancel};
    cs_sim_result r;
    if (!cs_sim_run(layout, &o, &r, NULL))
        return 1e9;
    double score = r.gave_up                          ? 1e9
                   : f->o.policy == CS_POLICY_GOODPUT ? sim_pressure(f->p, &r)
                                                      : sim_mean(f->p, &r);
    cs_sim_result_clear(&r);
    return score;
}

/* For goodput the racers run at the rate that the leader just sustains: whoever comes nearer to the
 * targets there sustains more. */
static void set_pace(heat *h, size_t longest)
{
    const planner *f = h->f;
    h->requests = MAX(400, h->round < 3 ? longest / 4 : longest);
    if (f->o.policy != CS_POLICY_GOODPUT)
        return;
    for (guint i = 0; i < MIN(h->n, h->round == 0 ? 4 : 1); i++)
        h->load = MAX(i || h->round ? h->load : 0,
                      cs_fast_goodput(h->racers[i]->layout, 0, h->requests,
                                      f->o.seed * 1000 + h->round + 700, f->o.cancel));
    if (h->load <= 0)
        h->load = f->o.load_factor * h->racers[0]->objective;
    h->requests = horizon_requests(f->p, h->load, h->requests);
}

static gpointer race_thread(gpointer data)
{
    heat *h = data;
    for (;;) {
        gint i = g_atomic_int_add(&h->next, 1);
        if (i >= (gint)h->n)
            return NULL;
        h->racers[i]->rounds[h->round] = race_score(h, h->racers[i]->layout);
    }
}

static void run_heat(heat *h)
{
    GThread *threads[16];
    int n = CLAMP(h->f->o.threads, 1, 16);
    h->next = 0;
    for (int i = 1; i < n; i++)
        threads[i] = g_thread_new("simulate", race_thread, h);
    race_thread(h);
    for (int i = 1; i < n; i++)
        g_thread_join(threads[i]);
}

static double mean_of(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return sum / (double)n;
}

/* Drops racers that are worse than the leader by more than 1.96 standard errors of the paired
 * differences. */
static guint drop_separated(heat *h)
{
    size_t n = h->round + 1;
    guint leader = 0, kept = 0, dropped = 0;
    for (guint i = 0; i < h->n; i++)
        if (mean_of(h->racers[i]->rounds, n) < mean_of(h->racers[leader]->rounds, n))
            leader = i;
    const contender *best = h->racers[leader];
    h->racers[leader] = h->racers[0];
    h->racers[0] = (contender *)best;
    for (guint i = 0; i < h->n; i++) {
        double sum = 0, square = 0;
        for (size_t k = 0; k < n; k++) {
            double d = h->racers[i]->rounds[k] - best->rounds[k];
            sum += d;
            square += d * d;
        }
        double mean = sum / (double)n, variance = MAX(0, square / (double)n - mean * mean);
        double error = n > 1 ? sqrt(variance / (double)(n - 1)) : INFINITY;
        h->racers[i]->score = mean_of(h->racers[i]->rounds, n);
        if (i > 0 && n >= 3 && mean > 1.96 * error && mean > 1e-12)
            dropped++;
        else
            h->racers[kept++] = h->racers[i];
    }
    h->n = kept;
    return dropped;
}

static int by_race(const void *a, const void *b)
{
    const contender *x = *(contender *const *)a, *y = *(contender *const *)b;
    return (x->score > y->score) - (x->score < y->score);
}

/* Rounds with new seeds, longer from the fourth on, until one is left, or the last round. */
static contender *race(planner *f)
{
    enum { ROUNDS = 8 };
    guint entered = f->all->len, separated = 0, rounds = 0;
    g_autofree contender **racers = g_new0(contender *, entered + 1);
    heat h = {.f = f, .racers = racers, .n = entered};
    size_t longest = f->o.sim_requests;
    h.load = load_of(f, g_array_index(f->all, contender, 0).objective);
    if (!minimises(f->o.policy) && f->o.policy != CS_POLICY_GOODPUT)
        for (guint i = 0; i < entered; i++)
            h.load = MIN(h.load, f->o.load_factor * g_array_index(f->all, contender, i).objective);
    for (guint i = 0; i < entered; i++) {
        racers[i] = &g_array_index(f->all, contender, i);
        racers[i]->rounds = g_new0(double, ROUNDS);
    }
    for (h.round = 0; h.round < ROUNDS && h.n > 1 && !out_of_time(f); h.round++, rounds++) {
        set_pace(&h, longest);
        run_heat(&h);
        separated += drop_separated(&h);
        if (h.n > KEEP_FINAL) { /* the worse half; from the third round on all but the last few */
            qsort(h.racers, h.n, sizeof h.racers[0], by_race);
            h.n = h.round >= 2 ? KEEP_FINAL : MAX(KEEP_FINAL, (h.n + 1) / 2);
        }
    }
    if (rounds > 0)
        qsort(h.racers, h.n, sizeof h.racers[0], by_race);
    say(f,
        "4 simulate: %u entered, %u rounds with common random numbers\n"
        "  left %u: dropped %u separated at 95 %%, %u of lower rank; the winner is %s\n",
        entered, rounds, h.n, separated, entered - separated - h.n,
        h.n > 1 ? "the best of those not separated" : "alone");
    for (guint i = 0; i < h.n; i++) /* all of them run the last race for goodput */
        h.racers[i]->baseline = true;
    return h.racers[0];
}

/* ---- the whole ---- */

static void add_baselines(planner *f)
{
    for (int b = 0; b < CS_BASELINES; b++) {
        g_autofree char *why = NULL;
        cs_candidate c;
        if (!cs_baseline_make(f->flow, (cs_baseline)b, flow_policy(f), &c, &why)) {
            say(f, "  baseline %s: %s\n", cs_baseline_name((cs_baseline)b), why);
            continue;
        }
        say(f, "  baseline %s: %.4g requests/s by flow\n", cs_baseline_name((cs_baseline)b),
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
    if (f->o.cancel && *f->o.cancel)
        return cs_fail(error, CS_ERROR_CANCELLED, "interrupted before a first plan");
    if (minimises(f->o.policy) && by_flow_alone) {
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

/* The winner where the race is not wanted: the best objective, ties by screening. */
static contender *first_of_all(planner *f)
{
    return &g_array_index(f->all, contender, 0);
}

static void predict(planner *f, const contender *winner, cs_fast_result *result)
{
    double rate = cs_layout_rate(winner->layout, NULL);
    result->load_rps = minimises(f->o.policy)             ? MIN(f->p->workload->rate_rps, rate)
                       : f->o.policy == CS_POLICY_GOODPUT ? MAX(result->objective, 1e-9)
                                                          : f->o.load_factor * rate;
    cs_sim_options o = {.rate_rps = result->load_rps,
                        .seed = f->o.seed + 99,
                        .requests = f->o.sim_requests * 2,
                        .max_in_flight = f->o.sim_requests * 2,
                        .cancel = f->o.cancel};
    cs_sim_run(winner->layout, &o, &result->sim, NULL);
}

static void mark(planner *f, cs_fast_result *result, int phase, int64_t *since)
{
    int64_t now = cs_now_us();
    result->phase_s[phase] += (double)(now - *since) / 1e6;
    *since = now;
}

static double final_goodput(const planner *f, const contender *x)
{
    return cs_fast_goodput(x->layout, 0, f->o.sim_requests, f->o.seed + 5, f->o.cancel);
}

/* The plan that is reported is judged by one long run that the race did not see; baselines run it
 * too, so that chance in the race never returns less than they give. */
static double reported_objective(const planner *f, contender **winner)
{
    if (f->o.policy != CS_POLICY_GOODPUT)
        return minimises(f->o.policy) ? -(*winner)->objective : (*winner)->objective;
    double best = final_goodput(f, *winner);
    for (guint i = 0; i < f->all->len && !out_of_time(f); i++) {
        contender *x = &g_array_index(f->all, contender, i);
        double goodput = x->baseline && x != *winner ? final_goodput(f, x) : 0;
        if (goodput > best) {
            best = goodput;
            *winner = x;
        }
    }
    return best;
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
    screen_all(f);
    mark(f, result, 2, &since);
    contender *winner = f->o.no_simulation ? first_of_all(f) : race(f);
    result->objective = reported_objective(f, &winner);
    mark(f, result, 3, &since);
    g_autofree char *text = cs_candidate_describe(&winner->c, f->p);
    say(f, "5 place: %s\n  from %s; %.6g requests/s as placed\n", text, winner->c.origin,
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
    keep_first(&f, 0);
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
