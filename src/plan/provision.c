#include "plan/provision.h"

#include "base/error.h"
#include "plan/place.h"

#include <math.h>

#define STEP 0.1        /* by which the share of time is lowered */
#define LEAST 0.05      /* share below which nobody would run executors */
#define HALVINGS 3      /* between the last share that is late and the first in time */
#define SPARING_RUNS 60 /* simulations of plans with one replica less */
#define DEFAULT_REQUESTS 8000

typedef struct {
    const cs_flow *flow;
    const cs_problem *p;
    const cs_fast_options *o;
    cs_provision_result best, late; /* the cheapest in time; the last that is carried but late */
    double price;                   /* of the best */
    GString *text;
} search;

typedef enum { IN_TIME, LATE, NOT_CARRIED } outcome;

static double price_of(const search *s, const cs_layout *l)
{
    return s->o->policy == CS_POLICY_COST ? cs_layout_cost(l) : cs_layout_devices(l);
}

static bool interrupted(const search *s)
{
    return s->o->cancel && *s->o->cancel;
}

/* The type that fewest requests of are in time, and their share. */
static const char *worst_type(const search *s, const cs_sim_result *sim, double *share)
{
    const char *name = "";
    *share = INFINITY;
    for (size_t t = 0; t < sim->n_types; t++) {
        const cs_sim_type *type = &sim->types[t];
        double met = type->requests ? (double)type->met / (double)type->requests : 0;
        if (met < *share) {
            *share = met;
            name = s->p->workload->types[s->p->types[t].workload_type].name;
        }
    }
    return name;
}

/* Runs the layout at the workload's rates, says how it went, and keeps it (it becomes the search's)
 * if it is the best so far, or late. */
static outcome judge(search *s, const char *what, cs_layout *layout)
{
    cs_provision_result r = {.layout = layout};
    cs_sim_options o = {.rate_rps = s->p->workload->rate_rps,
                        .seed = s->o->seed + 99,
                        .requests = s->o->sim_requests ? 2 * s->o->sim_requests : DEFAULT_REQUESTS,
                        .cancel = s->o->cancel};
    o.max_in_flight = o.requests;
    if (!cs_sim_run(layout, &o, &r.sim, NULL) || r.sim.cancelled) {
        cs_provision_result_clear(&r);
        return NOT_CARRIED;
    }
    double share;
    const char *name = worst_type(s, &r.sim, &share);
    g_string_append_printf(s->text, "  %s: %d devices, cost %.6g, %.1f %% of %s in time\n", what,
                           cs_layout_devices(layout), cs_layout_cost(layout), 100 * share, name);
    bool good = !r.sim.gave_up && r.sim.attainment >= s->p->workload->attainment - 1e-9;
    if (good && s->best.layout && price_of(s, layout) >= s->price) {
        cs_provision_result_clear(&r);
        return IN_TIME;
    }
    cs_provision_result *keep = good ? &s->best : &s->late;
    cs_provision_result_clear(keep);
    *keep = r;
    if (good)
        s->price = price_of(s, layout);
    return good ? IN_TIME : LATE;
}

/* The cheapest plan whose executors work at most this share of their time. */
static outcome try_share(search *s, double share, GError **error)
{
    g_autofree char *what =
        g_strdup_printf("executors planned to %.0f %% of their time", 100 * share);
    cs_problem_options o = {.utilisation_cap = share};
    g_autoptr(cs_problem) p =
        cs_problem_new(s->p->graph, s->p->cluster, s->p->profiles, s->p->workload, &o, error);
    if (!p)
        return NOT_CARRIED;
    g_autoptr(cs_flow) flow = cs_flow_new(p);
    cs_fast_result r;
    if (!cs_fast_plan(flow, s->o, &r, error)) {
        g_string_append_printf(s->text, "  %s: not enough devices\n", what);
        return NOT_CARRIED;
    }
    cs_layout *layout = g_steal_pointer(&r.layout);
    layout->problem = s->p; /* executor types do not depend on the share */
    cs_fast_result_clear(&r);
    return judge(s, what, layout);
}

/* Down until in time or no longer carried, then halving between the two sides. */
static void lower_share(search *s, GError **error)
{
    double late = s->p->utilisation_cap, other = 0;
    outcome found = try_share(s, late, error);
    if (found != LATE)
        return;
    for (double share = late - STEP; found == LATE && share > LEAST && !interrupted(s);
         share -= STEP) {
        found = try_share(s, share, NULL);
        *(found == LATE ? &late : &other) = share;
    }
    for (int i = 0; found != LATE && i < HALVINGS && !interrupted(s); i++) {
        double middle = (late + other) / 2;
        *(try_share(s, middle, NULL) == LATE ? &late : &other) = middle;
    }
}

/* The best plan without one replica of a type, if it still carries the rates; NULL else. */
static cs_layout *without(const search *s, size_t exec)
{
    g_autofree int *counts = g_new0(int, s->p->n_execs + 1);
    cs_candidate c = {0};
    cs_layout_counts(s->best.layout, counts);
    if (counts[exec]-- == 0 || !cs_candidate_from_counts(&c, s->p, counts))
        return NULL;
    double need = s->p->workload->rate_rps * (1 - 1e-7);
    if (cs_flow_rate(s->flow, counts) < need)
        return NULL;
    g_autoptr(cs_layout) layout = cs_place_balanced(s->flow, &c);
    return layout && cs_layout_rate(layout, NULL) >= need ? g_steal_pointer(&layout) : NULL;
}

/* Takes replicas away for as long as the rest is in time. */
static void spare(search *s)
{
    int runs = SPARING_RUNS;
    for (size_t e = 0; e < s->p->n_execs; e++) {
        g_autofree char *what = g_strdup_printf("without one %s", s->p->execs[e].name);
        cs_layout *less;
        double before;
        do {
            before = s->price;
            less = runs-- > 0 && !interrupted(s) ? without(s, e) : NULL;
        } while (less && judge(s, what, less) == IN_TIME && s->price < before);
    }
}

static bool has_targets(const cs_workload *w)
{
    for (size_t t = 0; t < w->n_types; t++)
        if (w->types[t].rate_rps > 0 &&
            (!isinf(w->types[t].latency_s) || !isinf(w->types[t].first_s)))
            return true;
    return false;
}

static bool fail_late(const search *s, GError **error)
{
    if (interrupted(s) || !s->late.layout)
        return cs_fail(error, CS_ERROR_CANCELLED, "interrupted before a plan that is in time");
    double share;
    const char *name = worst_type(s, &s->late.sim, &share);
    return cs_fail(error, CS_ERROR_INVALID,
                   "no plan meets the latency targets at %.4g requests/s: with %d devices %.1f %% "
                   "of %s are in time, expected %.1f %%",
                   s->p->workload->rate_rps, cs_layout_devices(s->late.layout), 100 * share, name,
                   100 * s->p->workload->attainment);
}

bool cs_provision(const cs_flow *flow, const cs_fast_options *options, cs_provision_result *result,
                  GError **error)
{
    search s = {.flow = flow, .p = flow->problem, .o = options};
    g_autoptr(GError) fault = NULL;
    *result = (cs_provision_result){0};
    if (!has_targets(s.p->workload))
        return cs_fail(error, CS_ERROR_INVALID,
                       "to be in time needs a latency target: give a type latency_s or first_s");
    s.text = g_string_new("sizing: the least that is in time\n");
    lower_share(&s, &fault);
    if (s.best.layout) {
        spare(&s);
        *result = s.best;
        result->explanation = g_string_free(s.text, FALSE);
    } else {
        g_string_free(s.text, TRUE);
        if (fault)
            g_propagate_error(error, g_steal_pointer(&fault));
        else
            fail_late(&s, error);
    }
    cs_provision_result_clear(&s.late);
    return result->layout != NULL;
}

void cs_provision_result_clear(cs_provision_result *result)
{
    cs_layout_free(result->layout);
    cs_sim_result_clear(&result->sim);
    g_free(result->explanation);
    *result = (cs_provision_result){0};
}
