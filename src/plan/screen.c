#include "plan/screen.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    guint type;
    double units[CS_PLAN_MAX_STAGES], weight[CS_PLAN_MAX_STAGES];
    double bytes[CS_PLAN_MAX_EDGES];
    double luck[CS_PLAN_MAX_STAGES];   /* uniform, for waiting */
    double choice[CS_PLAN_MAX_STAGES]; /* uniform, for the executor type */
} sample;

struct cs_screen {
    const cs_problem *p;
    sample *samples;
    size_t n;
    int order[CS_PLAN_MAX_STAGES]; /* topological */
};

static void sort_stages(cs_screen *s)
{
    guint32 done = 0;
    size_t n = 0;
    while (n < s->p->n_stages)
        for (size_t k = 0; k < s->p->n_stages; k++) {
            bool ready = !(done >> k & 1);
            for (size_t a = 0; a < s->p->n_edges; a++)
                ready &= s->p->edges[a].to != (int)k || (done >> s->p->edges[a].from & 1);
            if (!ready)
                continue;
            done |= 1u << k;
            s->order[n++] = (int)k;
        }
}

static guint draw_type(const cs_problem *p, cs_rng *rng)
{
    double u = cs_rng_uniform(rng);
    guint t = 0;
    while (t + 1 < p->n_types && u >= p->types[t].share)
        u -= p->types[t++].share;
    return t;
}

cs_screen *cs_screen_new(const cs_problem *p, size_t samples, guint64 seed)
{
    cs_screen *s = g_new0(cs_screen, 1);
    cs_rng rng;
    cs_rng_seed(&rng, seed);
    s->p = p;
    s->n = samples;
    s->samples = g_new0(sample, samples + 1);
    sort_stages(s);
    for (size_t i = 0; i < samples; i++) {
        sample *x = &s->samples[i];
        double sizes[CS_SIZE_COUNT];
        x->type = draw_type(p, &rng);
        const cs_workload_type *type = &p->workload->types[p->types[x->type].workload_type];
        for (int k = 0; k < CS_SIZE_COUNT; k++)
            sizes[k] = type->sizes[k].n_parts ? cs_dist_sample(&type->sizes[k], &rng)
                                              : type->mean_sizes[k];
        for (size_t k = 0; k < p->n_stages; k++) {
            x->units[k] = cs_size_formula_value(&p->stages[k].units, sizes);
            x->weight[k] = cs_size_formula_value(&p->stages[k].weight, sizes);
            x->luck[k] = cs_rng_uniform(&rng);
            x->choice[k] = cs_rng_uniform(&rng);
        }
        for (size_t a = 0; a < p->n_edges; a++)
            x->bytes[a] = cs_size_formula_value(&p->edges[a].bytes, sizes);
    }
    return s;
}

void cs_screen_free(cs_screen *screen)
{
    if (!screen)
        return;
    g_free(screen->samples);
    g_free(screen);
}

/* ---- the steady state of one executor type ---- */

typedef struct {
    double step_s[CS_PLAN_MAX_STAGES]; /* of one iteration at the mean batch */
    double stretch;                    /* by the one-shot work that shares the device */
    double wait_s[CS_PLAN_MAX_STAGES]; /* mean wait of those that wait */
    double waits[CS_PLAN_MAX_STAGES];  /* probability of waiting */
} steady;

/* Units per second that each replica of e gets of stage s, and their mean weight. */
static double unit_rate(const cs_flow *flow, const cs_flow_result *f, size_t e, size_t s,
                        double rate, int replicas, double *weight)
{
    const cs_problem *p = flow->problem;
    double units = 0, weighted = 0;
    for (size_t t = 0; t < p->n_types; t++) {
        int k = flow->of[s * p->n_types + t];
        if (k < 0)
            continue;
        double u =
            rate * p->types[t].share * f->share[(size_t)k * p->n_execs + e] * p->types[t].units[s];
        units += u;
        weighted += u * p->types[t].weight[s];
    }
    *weight = units > 0 ? weighted / units : 1;
    return units / replicas;
}

static double request_rate(const cs_flow *flow, const cs_flow_result *f, size_t e, size_t s,
                           double rate)
{
    const cs_problem *p = flow->problem;
    double sum = 0;
    for (size_t t = 0; t < p->n_types; t++) {
        int k = flow->of[s * p->n_types + t];
        if (k >= 0)
            sum += rate * p->types[t].share * f->share[(size_t)k * p->n_execs + e];
    }
    return sum;
}

/* Sakasegawa: a queue of k servers at utilisation u keeps a request waiting a mean service time
 * times u^(sqrt(2(k+1))-1) / (k (1-u)). */
static void set_wait(steady *x, size_t s, double utilisation, double k, double service_s)
{
    double u = MIN(utilisation, 0.999);
    x->waits[s] = pow(u, sqrt(2 * (k + 1)) - 1);
    x->wait_s[s] = service_s / (k * (1 - u));
}

static void solve_steady(const cs_flow *flow, const cs_flow_result *f, size_t e, int replicas,
                         double rate, steady *x)
{
    const cs_problem *p = flow->problem;
    const cs_exec_type *type = &p->execs[e];
    double oneshot = 0, iterate_s = 0, weight;
    for (size_t s = 0; s < p->n_stages; s++)
        if ((type->mask >> s & 1) && p->stages[s].kind != CS_STAGE_ITERATE)
            for (size_t t = 0; t < p->n_types; t++) {
                int k = flow->of[s * p->n_types + t];
                if (k >= 0)
                    oneshot += rate * p->types[t].share * f->share[(size_t)k * p->n_execs + e] *
                               cs_problem_work(p, e, s, t) / replicas;
            }
    x->stretch = 1 / (1 - MIN(oneshot, 0.98));
    for (size_t s = 0; s < p->n_stages; s++) {
        if (!(type->mask >> s & 1) || p->stages[s].kind != CS_STAGE_ITERATE)
            continue;
        const cs_exec_stage *stage = &type->stages[s];
        double a = unit_rate(flow, f, e, s, rate, replicas, &weight) * x->stretch;
        double per = stage->per_unit_s * weight, slack = 1 - a * per;
        double active = slack > 1e-6 ? a * stage->fixed_s / slack : stage->batch;
        active = CLAMP(active, a > 0 ? 1 : 0, stage->batch);
        x->step_s[s] = stage->fixed_s + per * MAX(active, 1);
        iterate_s += a > 0 ? x->step_s[s] * MIN(active, 1) : 0;
    }
    for (size_t s = 0; s < p->n_stages; s++) {
        if (!(type->mask >> s & 1))
            continue;
        const cs_exec_stage *stage = &type->stages[s];
        double requests = request_rate(flow, f, e, s, rate);
        if (requests <= 0)
            continue;
        double units = unit_rate(flow, f, e, s, rate, replicas, &weight) * replicas / requests;
        if (p->stages[s].kind == CS_STAGE_ITERATE) {
            double full = stage->fixed_s + stage->per_unit_s * weight * stage->batch;
            double busy = requests * units * full * x->stretch / (stage->batch * replicas);
            set_wait(x, s, busy, (double)stage->batch * replicas, units * full * x->stretch);
        } else {
            double service = stage->fixed_s + stage->per_unit_s * units;
            set_wait(x, s, MAX(oneshot, requests * service / replicas / stage->batch), replicas,
                     service + iterate_s / 2);
        }
    }
}

/* ---- one request ---- */

static size_t choose_exec(const cs_flow *flow, const cs_flow_result *f, size_t s, const sample *x)
{
    const cs_problem *p = flow->problem;
    size_t k = (size_t)flow->of[s * p->n_types + x->type], last = 0;
    double u = x->choice[s];
    for (size_t e = 0; e < p->n_execs; e++) {
        double share = f->share[k * p->n_execs + e];
        if (share <= 0)
            continue;
        last = e;
        u -= share;
        if (u < 0)
            break;
    }
    return last;
}

static double stage_seconds(const cs_problem *p, size_t e, size_t s, const sample *x,
                            const steady *st)
{
    const cs_exec_stage *stage = &p->execs[e].stages[s];
    if (p->stages[s].kind == CS_STAGE_ITERATE)
        return ceil(cs_stage_steps(&p->stages[s], ceil(x->units[s]))) * st->step_s[s] * st->stretch;
    double steps = stage->profile->chunk_units > 0
                       ? MAX(1, ceil(x->units[s] / stage->profile->chunk_units))
                       : 1;
    return stage->fixed_s * steps + stage->per_unit_s * x->units[s];
}

/* Of all its units, those that come first together. */
static double first_part(const cs_stage *stage, double units)
{
    return MIN(1, (stage->first_piece + stage->piece_extra) / cs_stage_steps(stage, units));
}

/* Of the units of a producer that streams, those that the consumer begins with. */
static double needed_part(const cs_stage *to, const cs_stage_edge *edge, double units)
{
    double part = edge->ahead < 0 ? 0 : (to->first_piece + edge->ahead) / MAX(1, units);
    return CLAMP(part, 1.0 / edge->chunks, 1);
}

/* End-to-end latency and time to the first unit of the last output. */
static double latency_of(const cs_screen *screen, const cs_flow *flow, const cs_flow_result *f,
                         const steady *states, const sample *x, double *first)
{
    const cs_problem *p = screen->p;
    double start[CS_PLAN_MAX_STAGES] = {0}, end[CS_PLAN_MAX_STAGES] = {0}, last = 0;
    size_t exec[CS_PLAN_MAX_STAGES] = {0};
    guint32 stages = p->types[x->type].stages;
    *first = 0;
    for (size_t i = 0; i < p->n_stages; i++) {
        size_t s = (size_t)screen->order[i];
        if (!(stages >> s & 1))
            continue;
        bool follows = p->stages[s].inseparable && p->stages[s].role == CS_ROLE_DECODE;
        exec[s] = follows ? exec[p->stages[s].twin] : choose_exec(flow, f, s, x);
        double ready = 0, floor_s = 0;
        for (size_t a = 0; a < p->n_edges; a++) {
            const cs_stage_edge *edge = &p->edges[a];
            if (edge->to != (int)s || !cs_problem_type_uses(&p->types[x->type], edge))
                continue;
            bool moves = exec[edge->from] != exec[s];
            double move = moves ? p->cluster->hop_overhead_s +
                                      x->bytes[a] / edge->chunks / p->cluster->bandwidth[0]
                                : 0;
            double chunk = (end[edge->from] - start[edge->from]) *
                           needed_part(&p->stages[s], edge, x->units[edge->from]);
            ready =
                MAX(ready, (edge->chunks > 1 ? start[edge->from] + chunk : end[edge->from]) + move);
            floor_s = MAX(floor_s, end[edge->from] + move);
        }
        const steady *st = &states[exec[s]];
        double seconds = stage_seconds(p, exec[s], s, x, st);
        bool waits = x->luck[s] < st->waits[s] && !follows;
        double wait = waits ? -st->wait_s[s] * log(x->luck[s] / st->waits[s]) : 0;
        start[s] = ready + wait;
        end[s] = MAX(start[s] + seconds, floor_s);
        last = MAX(last, end[s]);
        const char *output = p->graph->components[p->stages[s].component].output;
        if (output && p->stages[s].role != CS_ROLE_PREFILL)
            *first = MAX(*first, p->stages[s].role == CS_ROLE_DECODE ? ready
                                 : p->stages[s].kind == CS_STAGE_ITERATE
                                     ? start[s] + seconds * first_part(&p->stages[s], x->units[s])
                                     : end[s]);
    }
    *first = *first > 0 ? *first : last;
    return last;
}

/* ratios[n_types][n]: the worst type's quantile at the workload's attainment. */
static double worst_quantile(const cs_problem *p, double *ratios, const size_t *seen, size_t n)
{
    double worst = 0;
    for (size_t t = 0; t < p->n_types; t++) {
        if (seen[t] == 0)
            continue;
        qsort(ratios + t * n, seen[t], sizeof ratios[0], cs_compare_doubles);
        size_t rank = (size_t)ceil(p->workload->attainment * (double)seen[t]);
        worst = MAX(worst, ratios[t * n + CLAMP(rank, 1, seen[t]) - 1]);
    }
    return worst;
}

cs_screen_result cs_screen_latency(const cs_screen *screen, const cs_flow *flow, const int *counts,
                                   const cs_flow_result *shares, double rate, size_t n)
{
    const cs_problem *p = screen->p;
    g_autofree steady *states = g_new0(steady, p->n_execs + 1);
    g_autofree size_t *seen = g_new0(size_t, p->n_types + 1), *met = g_new0(size_t, p->n_types + 1);
    double sum = 0, square = 0;
    n = MIN(n, screen->n);
    g_autofree double *ratios = g_new0(double, p->n_types *n + 1);
    for (size_t e = 0; e < p->n_execs; e++)
        if (counts[e] > 0)
            solve_steady(flow, shares, e, counts[e], rate, &states[e]);
    for (size_t i = 0; i < n; i++) {
        const sample *x = &screen->samples[i];
        const cs_workload_type *type = &p->workload->types[p->types[x->type].workload_type];
        double first, latency = latency_of(screen, flow, shares, states, x, &first);
        sum += latency;
        square += latency * latency;
        ratios[x->type * n + seen[x->type]++] =
            MAX(latency / type->latency_s, first / type->first_s);
        met[x->type] += latency <= type->latency_s && first <= type->first_s;
    }
    double mean = sum / (double)n, variance = MAX(0, square / (double)n - mean * mean);
    cs_screen_result r = {mean, sqrt(variance / (double)n), 1, worst_quantile(p, ratios, seen, n)};
    for (size_t t = 0; t < p->n_types; t++)
        if (seen[t] > 0)
            r.attainment = MIN(r.attainment, (double)met[t] / (double)seen[t]);
    return r;
}
