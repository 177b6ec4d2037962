/* cornserve simulate: a plan under a workload. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/plan_inputs.h"
#include "plan/report.h"
#include "plan/sim.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    cs_cli_plan_paths paths;
    char *json, *html;
    double rate;
    int requests, seed;
} options;

static void draw_progress(double share, void *data)
{
    int filled = (int)(share * 40);
    fprintf(stderr, "\r[%.*s%*s] %3.0f %%", filled, "########################################",
            40 - filled, "", 100 * share);
}

static bool write_outputs(const options *o, const cs_plan *plan, const cs_layout *layout,
                          const cs_sim_result *sim, GError **error)
{
    if (o->html) {
        g_autofree char *html = cs_report_html(plan, layout, sim);
        if (!cs_cli_write_text(o->html, html, error))
            return false;
    }
    if (o->json) {
        json_t *root = cs_sim_to_json(sim, layout);
        char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        g_autofree char *line = g_strconcat(text, "\n", NULL);
        free(text);
        json_decref(root);
        if (!cs_cli_write_text(o->json, line, error))
            return false;
    }
    if (!o->json || strcmp(o->json, "-") != 0) {
        g_autofree char *text = cs_report_sim(sim, layout);
        fputs(text, stdout);
    }
    return true;
}

static bool run(const options *o, const char *plan_path, GError **error)
{
    g_autoptr(cs_plan) plan = cs_plan_load(plan_path, error);
    cs_cli_plan_inputs in = {0};
    cs_sim_result sim = {0};
    bool ok = plan && cs_cli_plan_inputs_load(&in, &o->paths, NULL, 1, error);
    g_autoptr(cs_layout) layout = ok ? cs_layout_from_plan(in.problem, plan, error) : NULL;
    cs_sim_options so = {.rate_rps = o->rate,
                         .seed = (guint64)o->seed,
                         .requests = (size_t)o->requests,
                         .bins = 60,
                         .progress = isatty(STDERR_FILENO) ? draw_progress : NULL,
                         .cancel = &cs_cli_interrupted};
    ok = layout && cs_sim_run(layout, &so, &sim, error);
    if (so.progress)
        fputs("\r\033[K", stderr);
    ok = ok && write_outputs(o, plan, layout, &sim, error);
    cs_sim_result_clear(&sim);
    g_clear_pointer(&layout, cs_layout_free);
    cs_cli_plan_inputs_clear(&in);
    return ok;
}

int cs_cli_simulate(int argc, char **argv)
{
    options o = {.requests = 20000, .seed = 1};
    const GOptionEntry entries[] = {
        CS_CLI_PLAN_ENTRIES(o.paths),
        {"rate", 0, 0, G_OPTION_ARG_DOUBLE, &o.rate, "Requests/s in all (the workload's)", "X"},
        {"requests", 0, 0, G_OPTION_ARG_INT, &o.requests, "How many arrive (20000)", "N"},
        {"seed", 0, 0, G_OPTION_ARG_INT, &o.seed, "Of everything random (1)", "N"},
        {"json", 0, 0, G_OPTION_ARG_FILENAME, &o.json, "Write all figures; - for stdout", "FILE"},
        {"html", 0, 0, G_OPTION_ARG_FILENAME, &o.html, "Write a report", "FILE"},
        {NULL},
    };
    const cs_cli_spec spec = {
        .name = "simulate",
        .arguments = "PLAN WORKLOAD",
        .description =
            "Runs a plan under a workload in a discrete-event simulation and prints latency, "
            "goodput and use.",
        .example = "  cornserve simulate plan.json workload.yaml -g graph.json -p profiles.json -c "
                   "cluster.yaml --html report.html",
        .entries = entries,
        .min_arguments = 2,
        .max_arguments = 2,
    };
    int code;
    if (!cs_cli_parse(&spec, &argc, argv, &code))
        return code;
    GError *error = NULL;
    cs_cli_catch_interrupt();
    o.paths.workload = g_strdup(argv[2]);
    bool ok = o.requests >= 1 && o.rate >= 0 && isfinite(o.rate)
                  ? run(&o, argv[1], &error)
                  : cs_fail(&error, CS_ERROR_INVALID, "--requests and --rate must be positive");
    char *all[] = {o.paths.graph,   o.paths.profiles, o.paths.workload,
                   o.paths.cluster, o.json,           o.html};
    for (size_t i = 0; i < G_N_ELEMENTS(all); i++)
        g_free(all[i]);
    return ok ? CS_EXIT_OK : cs_cli_fail("simulate", error);
}
