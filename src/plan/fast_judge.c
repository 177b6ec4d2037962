/* Phases 3 and 4 of the fast planner: who is best when queues count. */
#include "plan/fast_internal.h"
#include "plan/place.h"
#include "plan/screen.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define KEEP_SCREEN 25  /* survivors of screening, as published */
#define KEEP_GOODPUT 64 /* the same for goodput, which sampling ranks least well */
#define KEEP_BY_FLOW 8  /* of these, so many stay for their flow alone ... */
#define KEEP_BY_MEAN 24 /* ... and so many for their mean latency */
#define KEEP_FINAL 5    /* plans that the last rounds of the race compare */
#define PACE_SETTERS 4  /* plans whose goodput gives the first round's rate */
#define SCREEN_SAMPLES 512
#define HORIZON_TARGETS 5.0      /* a run that judges goodput lasts so many of the longest target */
#define MAX_HORIZON 20000.0      /* requests */
#define GOODPUT_TOLERANCE 0.01   /* of the bisection, relative */
#define EXCHANGE_REQUESTS 600000 /* to simulate in exchanges of replicas, in all */
#define EXCHANGE_BATCH 16        /* neighbours simulated before the best of them is taken */
#define LAST_REQUESTS 1000       /* of the runs that follow an interruption */
#define MAX_THREADS 16

/* ---- phase 3: screening ---- */

/* Plans whose objective ties with the best's; for goodput every plan counts. */
static guint tied(const planner *f)
{
    guint n = 0;
    double best = g_array_index(f->all, contender, 0).objective;
    while (n < f->all->len &&
           (f->o.policy == CS_POLICY_GOODPUT ||
            g_array_index(f->all, contender, n).objective >= best - fast_slack(best)))
        n++;
    return n;
}

static double load_of(const planner *f, double best_rate)
{
    return cs_policy_minimises(f->o.policy) ? f->p->workload->rate_rps
                                            : f->o.load_factor * best_rate;
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
void fast_screen(planner *f)
{
    guint entered = f->all->len, n = tied(f), untied = entered - n, rounds = 0, separated = 0;
    bool goodput = f->o.policy == CS_POLICY_GOODPUT;
    guint most = goodput ? KEEP_GOODPUT : KEEP_SCREEN;
    g_autoptr(cs_screen) screen = cs_screen_new(f->p, SCREEN_SAMPLES, f->o.seed + 1);
    double load = load_of(f, g_array_index(f->all, contender, 0).objective);
    fast_keep_first(f, n);
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
        fast_keep_first(f, keep);
    }
    guint over = f->all->len > most ? f->all->len - most : 0;
    fast_keep_first(f, most);
    fast_say(
        f,
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

/* Whether every type attains its targets at this rate. */
static bool sustains(const cs_layout *layout, double rate, size_t requests, guint64 seed,
                     const volatile int *cancel)
{
    cs_sim_options o = {.rate_rps = rate,
                        .seed = seed,
                        .requests = requests,
                        .stop_when_missed = true,
                        .max_in_flight = requests / 2 + 64,
                        .cancel = cancel};
    cs_sim_result r;
    if (!cs_sim_run(layout, &o, &r, NULL))
        return false;
    bool met = !r.gave_up; /* a type with few requests may miss one */
    cs_sim_result_clear(&r);
    return met;
}

double cs_fast_goodput(const cs_layout *layout, size_t requests, guint64 seed,
                       const volatile int *cancel)
{
    double low = 0, high = cs_layout_rate(layout, NULL);
    requests = horizon_requests(layout->problem, high, requests);
    double rate = high * (1 - GOODPUT_TOLERANCE), step = 0.12;
    for (int i = 0; i < 20 && high - low > GOODPUT_TOLERANCE * high && !(cancel && *cancel); i++) {
        bool met = sustains(layout, rate, requests, seed, cancel);
        *(met ? &low : &high) = rate;
        if (met && i == 0)
            break;
        /* Steps down that widen until a rate is sustained, then halving. */
        rate = low > 0 || step > 0.5 ? (low + high) / 2 : high * (1 - step);
        step *= 2;
    }
    return low;
}

/* ---- simulations side by side ---- */

typedef void (*fast_task)(guint i, void *data);

typedef struct {
    fast_task task;
    void *data;
    guint n;
    gint next;
} crew;

static gpointer crew_work(gpointer data)
{
    crew *c = data;
    for (;;) {
        guint i = (guint)g_atomic_int_add(&c->next, 1);
        if (i >= c->n)
            return NULL;
        c->task(i, c->data);
    }
}

/* Runs task 0 .. n-1 on the planner's threads; what each does must not depend on the others. */
static void run_all(const planner *f, guint n, fast_task task, void *data)
{
    crew c = {task, data, n, 0};
    GThread *threads[MAX_THREADS];
    guint more = MIN((guint)CLAMP(f->o.threads, 1, MAX_THREADS), n);
    for (guint i = 1; i < more; i++)
        threads[i] = g_thread_new("simulate", crew_work, &c);
    crew_work(&c);
    for (guint i = 1; i < more; i++)
        g_thread_join(threads[i]);
}

/* ---- the race ---- */

typedef struct {
    planner *f;
    contender **racers;
    guint n;
    double load, paces[PACE_SETTERS];
    size_t requests, round;
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

static void find_pace(guint i, void *data)
{
    heat *h = data;
    h->paces[i] = cs_fast_goodput(h->racers[i]->layout, h->requests,
                                  h->f->o.seed * 1000 + h->round + 700, h->f->o.cancel);
}

/* For goodput the racers run at the rate that the leader (in the first round the best of several)
 * just sustains: whoever comes nearer to the targets there sustains more. */
static void set_pace(heat *h, size_t longest)
{
    const planner *f = h->f;
    h->requests = MAX(400, h->round < 3 ? longest / 4 : longest);
    if (f->o.policy != CS_POLICY_GOODPUT)
        return;
    guint n = MIN(h->n, h->round == 0 ? PACE_SETTERS : 1);
    run_all(f, n, find_pace, h);
    for (guint i = 0; i < n; i++)
        h->load = MAX(i || h->round ? h->load : 0, h->paces[i]);
    if (h->load <= 0)
        h->load = f->o.load_factor * h->racers[0]->objective;
    /* Many racers run in the first rounds: half as long they still tell the better half. */
    static const double shares[] = {0.3, 0.5};
    size_t whole = horizon_requests(f->p, h->load, h->requests);
    h->requests = h->round < G_N_ELEMENTS(shares)
                      ? MAX(h->requests, (size_t)(shares[h->round] * (double)whole))
                      : whole;
}

static void run_racer(guint i, void *data)
{
    heat *h = data;
    h->racers[i]->rounds[h->round] = race_score(h, h->racers[i]->layout);
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
contender *fast_race(planner *f)
{
    enum { ROUNDS = 8 };
    guint entered = f->all->len, separated = 0, rounds = 0;
    g_autofree contender **racers = g_new0(contender *, entered + 1);
    heat h = {.f = f, .racers = racers, .n = entered};
    size_t longest = f->o.sim_requests;
    h.load = load_of(f, g_array_index(f->all, contender, 0).objective);
    if (!cs_policy_minimises(f->o.policy) && f->o.policy != CS_POLICY_GOODPUT)
        for (guint i = 0; i < entered; i++)
            h.load = MIN(h.load, f->o.load_factor * g_array_index(f->all, contender, i).objective);
    for (guint i = 0; i < entered; i++) {
        racers[i] = &g_array_index(f->all, contender, i);
        racers[i]->rounds = g_new0(double, ROUNDS);
    }
    for (h.round = 0; h.round < ROUNDS && h.n > 1 && !fast_out_of_time(f); h.round++, rounds++) {
        set_pace(&h, longest);
        run_all(f, h.n, run_racer, &h);
        if (fast_interrupted(f))
            break; /* a heat that was cut short says nothing */
        separated += drop_separated(&h);
        if (h.n > KEEP_FINAL) { /* the worse half; from the third round on all but the last few */
            qsort(h.racers, h.n, sizeof h.racers[0], by_race);
            h.n = h.round >= 2 ? KEEP_FINAL : MAX(KEEP_FINAL, (h.n + 1) / 2);
        }
    }
    if (rounds > 0)
        qsort(h.racers, h.n, sizeof h.racers[0], by_race);
    fast_say(f,
             "4 simulate: %u entered, %u rounds with common random numbers\n"
             "  left %u: dropped %u separated at 95 %%, %u of lower rank; the winner is %s\n",
             entered, rounds, h.n, separated, entered - separated - h.n,
             h.n > 1 ? "the best of those not separated" : "alone");
    for (guint i = 0; i < h.n; i++)
        h.racers[i]->finalist = true;
    return h.racers[0];
}

/* ---- the last run, for goodput ---- */

typedef struct {
    const planner *f;
    GPtrArray *runners; /* contender */
    double *goodput;
    double least; /* a runner that does not sustain this needs no bisection */
} final;

static void run_final(guint i, void *data)
{
    final *x = data;
    const planner *f = x->f;
    const cs_layout *layout = ((contender *)g_ptr_array_index(x->runners, i))->layout;
    guint64 seed = f->o.seed + 5;
    size_t requests = horizon_requests(f->p, cs_layout_rate(layout, NULL), f->o.sim_requests);
    if (x->least > 0 && !sustains(layout, x->least, requests, seed, f->o.cancel))
        return;
    x->goodput[i] = cs_fast_goodput(layout, f->o.sim_requests, seed, f->o.cancel);
}

/* Runs them all and moves *winner and *best to the first that is better. */
static void final_run(const planner *f, GPtrArray *runners, double least, contender **winner,
                      double *best)
{
    g_autofree double *goodput = g_new0(double, runners->len + 1);
    final x = {f, runners, goodput, least};
    run_all(f, runners->len, run_final, &x);
    for (guint i = 0; i < runners->len; i++)
        if (goodput[i] > *best) {
            *best = goodput[i];
            *winner = g_ptr_array_index(runners, i);
        }
}

/* ---- exchanging replicas of the winner ---- */

static gint by_rate(gconstpointer a, gconstpointer b)
{
    const cs_candidate *x = a, *y = b;
    return (x->rate < y->rate) - (x->rate > y->rate);
}

/* Plans one replica away (one more where devices are free, or another in place of one) whose flow
 * is above this rate, highest first. */
static GArray *neighbours(const planner *f, const cs_candidate *c, double above)
{
    const cs_problem *p = f->p;
    GArray *out = g_array_new(FALSE, FALSE, sizeof(cs_candidate));
    g_autofree int *counts = g_new0(int, p->n_execs + 1);
    int left[CS_PLAN_MAX_KINDS];
    memcpy(left, p->capacity, sizeof left);
    cs_candidate_counts(c, p, counts);
    for (size_t e = 0; e < p->n_execs; e++)
        left[p->execs[e].kind] -= counts[e] * p->execs[e].count;
    for (size_t a = 0; a <= p->n_execs; a++) { /* the last: none is taken away */
        if (a < p->n_execs && counts[a] == 0)
            continue;
        for (size_t b = 0; b < p->n_execs; b++) {
            bool same_kind = a < p->n_execs && p->execs[a].kind == p->execs[b].kind;
            int room = left[p->execs[b].kind] + (same_kind ? p->execs[a].count : 0);
            if (a == b || room < p->execs[b].count)
                continue;
            counts[a] -= a < p->n_execs;
            counts[b]++;
            cs_candidate x = {.origin = "an exchange in the simulator"};
            x.rate = cs_flow_rate(f->flow, counts);
            if (x.rate > above && cs_candidate_from_counts(&x, p, counts))
                g_array_append_val(out, x);
            counts[a] += a < p->n_execs;
            counts[b]--;
        }
    }
    g_array_sort(out, by_rate);
    return out;
}

/* Runs the next neighbours and keeps the best of those that are better than *best, if any. */
static bool take_better(planner *f, const GArray *near, guint from, guint n, contender **winner,
                        double *best)
{
    g_autofree contender *racers = g_new0(contender, n);
    g_autoptr(GPtrArray) runners = g_ptr_array_new();
    for (guint i = 0; i < n; i++) {
        racers[i].c = g_array_index(near, cs_candidate, from + i);
        racers[i].layout = cs_place_balanced(f->flow, &racers[i].c);
        if (racers[i].layout)
            g_ptr_array_add(runners, &racers[i]);
    }
    contender *better = NULL;
    final_run(f, runners, *best * (1 + GOODPUT_TOLERANCE), &better, best);
    for (guint i = 0; i < n; i++)
        if (&racers[i] != better)
            cs_layout_free(racers[i].layout);
    if (!better)
        return false;
    g_array_append_val(f->all, *better);
    *winner = &g_array_index(f->all, contender, f->all->len - 1);
    return true;
}

/* The flow's best counts are not the simulator's: where queues hurt, a replica elsewhere gives
 * more. Steps to better neighbours until there is none or the simulations are used up. */
static void polish(planner *f, contender **winner, double *best)
{
    size_t each = horizon_requests(f->p, *best, f->o.sim_requests), runs = EXCHANGE_REQUESTS / each;
    guint tried = 0, taken = 0;
    bool better = true;
    while (better && tried < runs && !fast_out_of_time(f)) {
        better = false;
        g_autoptr(GArray) near = neighbours(f, &(*winner)->c, *best * (1 + GOODPUT_TOLERANCE));
        for (guint i = 0, n; !better && i < near->len && tried < runs && !fast_out_of_time(f);
             i += n, tried += n) {
            n = MIN(MIN(near->len - i, EXCHANGE_BATCH), (guint)(runs - tried));
            better = take_better(f, near, i, n, winner, best);
        }
        taken += better;
    }
    fast_say(f, "  exchanges: %u neighbours of the winner simulated, %u taken\n", tried, taken);
}

double fast_judge_goodput(planner *f, contender **winner)
{
    g_autoptr(GPtrArray) first = g_ptr_array_new(), others = g_ptr_array_new();
    g_ptr_array_add(first, *winner);
    for (guint i = 0; i < f->all->len && !fast_out_of_time(f); i++) {
        contender *x = &g_array_index(f->all, contender, i);
        if (x != *winner && (x->baseline || x->finalist))
            g_ptr_array_add(x->baseline ? first : others, x);
    }
    contender *leader = *winner;
    double best = 0;
    final_run(f, first, 0, winner, &best);
    if (!fast_out_of_time(f))
        final_run(f, others, best * (1 + GOODPUT_TOLERANCE), winner, &best);
    if (best > 0 && !f->o.no_simulation && !fast_out_of_time(f))
        polish(f, winner, &best);
    if (fast_interrupted(f)) {
        *winner = leader;
        best = cs_fast_goodput(leader->layout, LAST_REQUESTS, f->o.seed + 5, NULL);
    }
    return best;
}
