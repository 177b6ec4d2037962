/* cornserve plan: from a graph, profiles, a workload and a cluster to plan.json. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/plan_inputs.h"
#include "plan/fast.h"
#include "plan/place.h"
#include "plan/provision.h"
#include "plan/replan.h"
#include "plan/report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LAST_REQUESTS 4000 /* of simulations after an interruption */

typedef struct {
    cs_cli_plan_paths paths;
    char *policy, *output, *svg, *html, *from, *lost, *shape;
    gboolean exact, explain, compare, quiet, in_time;
    double seconds, gap, load_factor, cap, horizon;
    int overlay, seed, requests;
    cs_policy policy_value;
} options;

static bool check_options(options *o, GError **error)
{
    if (!cs_policy_parse(o->policy ? o->policy : "throughput", &o->policy_value))
        return cs_fail(error, CS_ERROR_INVALID,
                       "--policy %s: expected cost, devices, throughput or goodput", o->policy);
    if (o->exact && o->policy_value == CS_POLICY_GOODPUT)
        return cs_fail(error, CS_ERROR_INVALID,
                       "--exact knows no latency: use --policy throughput, "
                       "cost or devices with it");
    if (o->exact && o->from)
        return cs_fail(error, CS_ERROR_INVALID, "--exact and --from exclude each other");
    if (o->in_time && (!cs_policy_minimises(o->policy_value) || o->exact || o->from || o->shape))
        return cs_fail(error, CS_ERROR_INVALID,
                       "--in-time is for --policy cost and devices, without --exact, --from and "
                       "--shape");
    const struct {
        const char *name;
        double value, low, high;
    } ranges[] = {
        {"--seconds", o->seconds, 0.01, 86400},     {"--gap", o->gap, 0, 1},
        {"--load-factor", o->load_factor, 0.01, 1}, {"--utilisation-cap", o->cap, 0.01, 1},
        {"--horizon", o->horizon, 1, 1e9},          {"--overlay", o->overlay, 1, 2},
        {"--requests", o->requests, 100, 1e8}};
    for (size_t i = 0; i < G_N_ELEMENTS(ranges); i++)
        if (!(ranges[i].value >= ranges[i].low && ranges[i].value <= ranges[i].high))
            return cs_fail(error, CS_ERROR_INVALID, "%s: expected %g to %g, found %g",
                           ranges[i].name, ranges[i].low, ranges[i].high, ranges[i].value);
    return true;
}

static cs_fast_options fast_options(const options *o)
{
    return (cs_fast_options){
        .policy = o->policy_value,
        .overlay = o->overlay,
        .load_factor = o->load_factor,
        .seconds = o->seconds,
        .seed = (guint64)o->seed,
        .sim_requests = (size_t)o->requests,
        .cancel = &cs_cli_interrupted,
    };
}

/* A run of the plan. After Ctrl-C it is short and to the end, so that the best plan so far does not
 * come without its predictions. */
static cs_sim_options sim_options(const options *o, double rate_rps, size_t requests)
{
    cs_sim_options so = {.rate_rps = rate_rps,
                         .seed = (guint64)o->seed,
                         .requests = requests,
                         .cancel = &cs_cli_interrupted};
    if (cs_cli_interrupted) {
        so.requests = MIN(requests, LAST_REQUESTS);
        so.cancel = NULL;
    }
    return so;
}

/* ---- comparing with the strategies of others ---- */

static void compare_row(const options *o, const char *name, const cs_layout *l)
{
    double rate = cs_layout_rate(l, NULL);
    bool carries = rate >= l->problem->workload->rate_rps * (1 - 1e-7);
    double goodput =
        cs_fast_goodput(l, (size_t)o->requests, (guint64)o->seed + 5, &cs_cli_interrupted);
    g_autofree int *counts = g_new0(int, l->problem->n_execs + 1);
    cs_candidate c;
    cs_layout_counts(l, counts);
    g_autofree char *text = cs_candidate_from_counts(&c, l->problem, counts)
                                ? cs_candidate_describe(&c, l->problem)
                                : g_strdup("many kinds of executor");
    printf("%-16s %7d %9.4g %12.4g %9.4g  %s%s\n", name, cs_layout_devices(l), cs_layout_cost(l),
           rate, goodput, text, carries ? "" : " (does not carry the rates)");
}

static void compare(const options *o, const cs_cli_plan_inputs *in, const cs_layout *plan)
{
    printf("\n%-16s %7s %9s %12s %9s\n", "strategy", "devices", "cost", "throughput", "goodput");
    compare_row(o, "this plan", plan);
    for (int b = 0; b < CS_BASELINES; b++) {
        g_autofree char *why = NULL;
        g_autoptr(cs_layout) l = cs_fast_baseline(in->flow, (cs_baseline)b, o->policy_value, &why);
        if (l)
            compare_row(o, cs_baseline_name((cs_baseline)b), l);
        else
            printf("%-16s %s\n", cs_baseline_name((cs_baseline)b), why);
    }
}

/* ---- results ---- */

static bool write_results(const options *o, const cs_cli_plan_inputs *in, const cs_layout *layout,
                          cs_plan *plan, GError **error)
{
    if (o->svg) {
        g_autofree char *svg = cs_report_svg(plan, in->cluster);
        if (!cs_cli_write_text(o->svg, svg, error))
            return false;
    }
    if (o->html) {
        cs_sim_options so = sim_options(o, plan->predictions.load_rps, (size_t)o->requests);
        so.bins = 60;
        cs_sim_result sim;
        if (!cs_sim_run(layout, &so, &sim, error))
            return false;
        g_autofree char *html = cs_report_html(plan, layout, &sim);
        cs_sim_result_clear(&sim);
        if (!cs_cli_write_text(o->html, html, error))
            return false;
    }
    if (o->output && !cs_plan_save(plan, o->output, error))
        return false;
    if (!o->quiet) {
        g_autofree char *table = cs_report_table(plan);
        fputs(table, stdout);
    }
    if (o->compare && !cs_cli_interrupted)
        compare(o, in, layout);
    return true;
}

static void predict(const options *o, const cs_layout *layout, cs_plan *plan)
{
    double rate = cs_layout_rate(layout, NULL);
    bool fixed = o->policy_value == CS_POLICY_COST || o->policy_value == CS_POLICY_DEVICES;
    cs_sim_options so = sim_options(
        o, fixed ? MIN(rate, layout->problem->workload->rate_rps) : o->load_factor * rate,
        (size_t)o->requests * 2);
    so.seed += 99;
    so.max_in_flight = so.requests;
    cs_sim_result sim;
    if (!cs_sim_run(layout, &so, &sim, NULL))
        return;
    cs_sim_predict(&sim, layout->problem, plan);
    cs_sim_result_clear(&sim);
}

/* The fast planner's plan is where the exact one begins, and what is left if it finds none. */
static bool run_exact(const options *o, const cs_cli_plan_inputs *in, GError **error)
{
    cs_fast_options fo = fast_options(o);
    fo.no_simulation = true;
    fo.seconds = o->seconds / 4;
    cs_fast_result start;
    bool started = cs_fast_plan(in->flow, &fo, &start, NULL);
    cs_exact_options eo = {.policy = o->policy_value,
                           .seconds = o->seconds,
                           .gap = o->gap,
                           .start = started ? start.layout : NULL,
                           .cancel = &cs_cli_interrupted};
    cs_exact_result r;
    bool ok = cs_exact_solve(in->flow, &eo, &r, error);
    if (started)
        cs_fast_result_clear(&start);
    if (ok && !r.layout)
        ok = cs_fail(error, CS_ERROR_TIMEOUT, "no plan was found in %g s", o->seconds);
    if (!ok)
        return false;
    bool rate = o->policy_value == CS_POLICY_THROUGHPUT;
    double load = rate ? o->load_factor * r.objective : in->workload->rate_rps;
    g_autoptr(cs_plan) plan = cs_layout_to_plan(r.layout, cs_policy_name(o->policy_value), load);
    plan->predictions.bound_rps = rate && isfinite(r.bound) ? r.bound : 0;
    predict(o, r.layout, plan);
    if (o->explain)
        printf("exact: objective %.6g, bound %.6g, gap %.2g %%, %s%s\n\n", r.objective, r.bound,
               100 * fabs(r.bound - r.objective) / MAX(fabs(r.objective), 1e-9),
               r.proven ? "proven" : "not proven",
               r.balanced ? ", links balanced to optimality" : "");
    ok = write_results(o, in, r.layout, plan, error);
    cs_exact_result_clear(&r);
    return ok;
}

static cs_plan *plan_of_fast(const options *o, const cs_fast_result *r)
{
    cs_plan *plan = cs_layout_to_plan(r->layout, cs_policy_name(o->policy_value), r->load_rps);
    bool rate = o->policy_value == CS_POLICY_THROUGHPUT || o->policy_value == CS_POLICY_GOODPUT;
    plan->predictions.bound_rps = rate && isfinite(r->bound) ? r->bound : 0;
    if (r->sim.n_types > 0)
        cs_sim_predict(&r->sim, r->layout->problem, plan);
    return plan;
}

static bool run_fast(const options *o, const cs_cli_plan_inputs *in, GError **error)
{
    cs_fast_options fo = fast_options(o);
    cs_fast_result r;
    if (!cs_fast_plan(in->flow, &fo, &r, error))
        return false;
    if (o->explain) {
        printf("%s\n", r.explanation);
        fprintf(stderr,
                "seconds: enumerate %.2f, flow %.2f, screen %.2f, simulate %.2f, place %.2f\n",
                r.phase_s[0], r.phase_s[1], r.phase_s[2], r.phase_s[3], r.phase_s[4]);
    }
    g_autoptr(cs_plan) plan = plan_of_fast(o, &r);
    bool ok = write_results(o, in, r.layout, plan, error);
    cs_fast_result_clear(&r);
    return ok;
}

/* The least that is also in time. */
static bool run_sized(const options *o, const cs_cli_plan_inputs *in, GError **error)
{
    cs_fast_options fo = fast_options(o);
    cs_provision_result r;
    if (!cs_provision(in->flow, &fo, &r, error))
        return false;
    if (o->explain)
        printf("%s\n", r.explanation);
    g_autoptr(cs_plan) plan =
        cs_layout_to_plan(r.layout, cs_policy_name(o->policy_value), in->workload->rate_rps);
    cs_sim_predict(&r.sim, in->problem, plan);
    bool ok = write_results(o, in, r.layout, plan, error);
    cs_provision_result_clear(&r);
    return ok;
}

/* A given set of executors, placed and judged. */
static bool run_shape(const options *o, const cs_cli_plan_inputs *in, GError **error)
{
    cs_candidate c;
    if (!cs_candidate_parse(in->flow, o->shape, &c, error))
        return false;
    g_autoptr(cs_layout) layout = cs_place_balanced(in->flow, &c);
    if (!layout)
        return cs_fail(error, CS_ERROR_INVALID, "--shape %s: does not fit the nodes", o->shape);
    double rate = cs_layout_rate(layout, NULL);
    g_autoptr(cs_plan) plan =
        cs_layout_to_plan(layout, cs_policy_name(o->policy_value), o->load_factor * rate);
    predict(o, layout, plan);
    return write_results(o, in, layout, plan, error);
}

static bool run_replan(const options *o, const cs_cli_plan_inputs *in, GError **error)
{
    g_autoptr(cs_plan) old = cs_plan_load(o->from, error);
    if (!old)
        return false;
    cs_replan_options ro = {.fast = fast_options(o), .horizon_s = o->horizon};
    cs_replan_result r;
    if (!cs_replan(in->flow, old, &ro, &r, error))
        return false;
    if (o->explain)
        printf("%s\n", r.explanation);
    for (guint i = 0; i < r.moves->len; i++) {
        const cs_replan_move *m = &g_array_index(r.moves, cs_replan_move, i);
        printf("%s %d x %s on %s\n", m->replicas > 0 ? "start" : "stop ", ABS(m->replicas),
               m->executor, m->node);
    }
    printf("%d replicas keep running; %.1f GB of weights load\n\n", r.kept, r.moved_bytes / 1e9);
    double rate = cs_layout_rate(r.layout, NULL);
    g_autoptr(cs_plan) plan =
        cs_layout_to_plan(r.layout, cs_policy_name(o->policy_value), o->load_factor * rate);
    predict(o, r.layout, plan);
    bool ok = write_results(o, in, r.layout, plan, error);
    cs_replan_result_clear(&r);
    return ok;
}

static int finish(options *o, bool ok, GError *error)
{
    char *all[] = {o->paths.graph,   o->paths.profiles, o->paths.workload,
                   o->paths.cluster, o->policy,         o->output,
                   o->svg,           o->html,           o->from,
                   o->lost,          o->shape};
    for (size_t i = 0; i < G_N_ELEMENTS(all); i++)
        g_free(all[i]);
    if (ok && cs_cli_interrupted)
        fprintf(stderr, "cornserve plan: interrupted; this is the best plan so far\n");
    return ok ? CS_EXIT_OK : cs_cli_fail("plan", error);
}

int cs_cli_plan(int argc, char **argv)
{
    options o = {.seconds = 60,
                 .load_factor = 0.7,
                 .cap = 1,
                 .horizon = 600,
                 .overlay = 2,
                 .seed = 1,
                 .requests = 4000};
    const GOptionEntry entries[] = {
        CS_CLI_PLAN_ENTRIES(o.paths),
        {"workload", 'w', 0, G_OPTION_ARG_FILENAME, &o.paths.workload, "Request mix or trace",
         "FILE"},
        {"policy", 0, 0, G_OPTION_ARG_STRING, &o.policy,
         "throughput (default), goodput, cost or devices", "WORD"},
        {"output", 'o', 0, G_OPTION_ARG_FILENAME, &o.output, "Write the plan", "FILE"},
        {"explain", 0, 0, G_OPTION_ARG_NONE, &o.explain, "Say what each phase kept and why", NULL},
        {"compare", 0, 0, G_OPTION_ARG_NONE, &o.compare, "Beside the strategies of others", NULL},
        {"in-time", 0, 0, G_OPTION_ARG_NONE, &o.in_time,
         "With cost and devices: the least that also meets the latency targets", NULL},
        {"exact", 0, 0, G_OPTION_ARG_NONE, &o.exact, "Integer programming instead of search", NULL},
        {"from", 0, 0, G_OPTION_ARG_FILENAME, &o.from, "Re-plan from a running plan", "FILE"},
        {"lost", 0, 0, G_OPTION_ARG_STRING, &o.lost, "Plan without this node", "NODE"},
        {"shape", 0, 0, G_OPTION_ARG_STRING, &o.shape,
         "Judge these executors instead: \"4 x encoder+llm, 2 x vocoder\"", "TEXT"},
        {"svg", 0, 0, G_OPTION_ARG_FILENAME, &o.svg, "Draw the plan on the topology", "FILE"},
        {"html", 0, 0, G_OPTION_ARG_FILENAME, &o.html, "Write a report", "FILE"},
        {"seconds", 0, 0, G_OPTION_ARG_DOUBLE, &o.seconds, "Time limit (60)", "S"},
        {"gap", 0, 0, G_OPTION_ARG_DOUBLE, &o.gap, "Relative gap at which --exact stops (0)", "X"},
        {"overlay", 0, 0, G_OPTION_ARG_INT, &o.overlay, "Subplans in one plan, 1 or 2 (2)", "N"},
        {"load-factor", 0, 0, G_OPTION_ARG_DOUBLE, &o.load_factor,
         "Share of the throughput at which latency is judged (0.7)", "X"},
        {"utilisation-cap", 0, 0, G_OPTION_ARG_DOUBLE, &o.cap,
         "Share of an executor's time that may be planned (1)", "X"},
        {"horizon", 0, 0, G_OPTION_ARG_DOUBLE, &o.horizon, "Seconds in which a move pays off (600)",
         "S"},
        {"requests", 0, 0, G_OPTION_ARG_INT, &o.requests, "Of the longest simulation (4000)", "N"},
        {"seed", 0, 0, G_OPTION_ARG_INT, &o.seed, "Of everything random (1)", "N"},
        {"quiet", 'q', 0, G_OPTION_ARG_NONE, &o.quiet, "No table", NULL},
        {NULL},
    };
    const cs_cli_spec spec = {
        .name = "plan",
        .arguments = "",
        .description =
            "Decides which components share an executor, how many executors stand where, and "
            "how requests are routed over them.",
        .example =
            "  cornserve plan -g graph.json -p profiles.json -w workload.yaml -c cluster.yaml "
            "--explain -o plan.json\n"
            "  cornserve plan ... --from plan.json --lost n1 -o next.json",
        .entries = entries,
    };
    int code;
    if (!cs_cli_parse(&spec, &argc, argv, &code))
        return code;
    GError *error = NULL;
    cs_cli_plan_inputs in = {0};
    cs_cli_catch_interrupt();
    bool ok = check_options(&o, &error) &&
              cs_cli_plan_inputs_load(&in, &o.paths, o.lost, o.cap, &error) &&
              (o.shape     ? run_shape(&o, &in, &error)
               : o.from    ? run_replan(&o, &in, &error)
               : o.exact   ? run_exact(&o, &in, &error)
               : o.in_time ? run_sized(&o, &in, &error)
                           : run_fast(&o, &in, &error));
    cs_cli_plan_inputs_clear(&in);
    return finish(&o, ok, error);
}
