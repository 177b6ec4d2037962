/* Figures of the planner: bench/planner DIR, with the four input files of bench/planner/inputs.py
 * in DIR.
 *
 * Prints the simulator's events per second on one core; the time of planning for throughput and for
 * goodput with the memory it took; and, for goodput, what every candidate of one subplan whose flow
 * exceeds the planner's goodput reaches in the same simulation (the others cannot reach it).
 */
#include "base/os.h"
#include "plan/fast.h"
#include "plan/place.h"
#include "plan/replan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

typedef struct {
    cs_plan_graph *graph;
    cs_cluster *cluster;
    cs_profiles *profiles;
    cs_workload *workload;
    cs_problem *problem;
    cs_flow *flow;
} inputs;

static double now_s(void)
{
    return (double)cs_now_us() / 1e6;
}

static double cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static bool load(inputs *in, const char *dir, GError **error)
{
    g_autofree char *graph = g_build_filename(dir, "graph.json", NULL);
    g_autofree char *profiles = g_build_filename(dir, "profiles.json", NULL);
    g_autofree char *workload = g_build_filename(dir, "workload.json", NULL);
    g_autofree char *cluster = g_build_filename(dir, "cluster.json", NULL);
    if (!(in->graph = cs_plan_graph_load(graph, error)) ||
        !(in->cluster = cs_cluster_load(cluster, error)) ||
        !(in->profiles = cs_profiles_load(profiles, in->graph, in->cluster, error)) ||
        !(in->workload = cs_workload_load(workload, in->graph, error)) ||
        !(in->problem =
              cs_problem_new(in->graph, in->cluster, in->profiles, in->workload, NULL, error)))
        return false;
    in->flow = cs_flow_new(in->problem);
    return true;
}

static void time_simulator(const cs_layout *layout)
{
    cs_sim_options o = {
        .rate_rps = 0.8 * cs_layout_rate(layout, NULL), .seed = 1, .requests = 200000};
    cs_sim_result r;
    double start = cpu_s();
    cs_sim_run(layout, &o, &r, NULL);
    double seconds = cpu_s() - start;
    printf("simulator: %.0f requests, %.3g events in %.2f s of CPU, %.3g events/s\n",
           (double)r.completed, (double)r.events, seconds, (double)r.events / seconds);
    cs_sim_result_clear(&r);
}

static cs_layout *time_plan(const inputs *in, cs_policy policy, double *objective)
{
    cs_fast_options o = {.policy = policy, .seed = 1};
    cs_fast_result r;
    g_autoptr(GError) error = NULL;
    double start = now_s(), cpu = cpu_s();
    if (!cs_fast_plan(in->flow, &o, &r, &error)) {
        printf("%s: %s\n", cs_policy_name(policy), error->message);
        return NULL;
    }
    printf("%s: %.2f s, %.2f s of CPU (enumerate %.2f, flow %.2f, screen %.2f, simulate %.2f, "
           "place %.2f), %.4g "
           "requests/s, bound %.4g (gap %.2g %%), %.3g candidates\n",
           cs_policy_name(policy), now_s() - start, cpu_s() - cpu, r.phase_s[0], r.phase_s[1],
           r.phase_s[2], r.phase_s[3], r.phase_s[4], r.objective, r.bound,
           100 * (1 - cs_layout_rate(r.layout, NULL) / r.bound), r.space);
    *objective = r.objective;
    cs_layout *layout = g_steal_pointer(&r.layout);
    cs_fast_result_clear(&r);
    return layout;
}

static void time_replan(const inputs *in, const cs_layout *layout)
{
    if (in->cluster->n_nodes < 2)
        return;
    g_autoptr(cs_plan) old = cs_layout_to_plan(layout, "throughput", 1);
    g_autoptr(cs_cluster) left = cs_cluster_without(in->cluster, 0);
    double start = now_s();
    g_autoptr(cs_problem) p =
        cs_problem_new(in->graph, left, in->profiles, in->workload, NULL, NULL);
    g_autoptr(cs_flow) flow = cs_flow_new(p);
    cs_replan_options o = {.fast = {.policy = CS_POLICY_THROUGHPUT, .seed = 1}};
    cs_replan_result r;
    if (cs_replan(flow, old, &o, &r, NULL)) {
        printf("re-plan after a lost node: %.2f s, %.4g requests/s, %d replicas keep running\n",
               now_s() - start, cs_layout_rate(r.layout, NULL), r.kept);
        cs_replan_result_clear(&r);
    }
}

/* ---- every candidate of one subplan ---- */

typedef struct {
    const inputs *in;
    const cs_subplan *subplan;
    int *counts;
    size_t exec[CS_PLAN_MAX_STAGES];
    double floor_rps, best;
    size_t seen, simulated;
} exhaustive;

static void judge(exhaustive *x)
{
    x->seen++;
    double rate = cs_flow_rate(x->in->flow, x->counts);
    if (rate <= x->floor_rps)
        return;
    cs_candidate c = {.rate = rate};
    cs_candidate_from_counts(&c, x->in->problem, x->counts);
    g_autoptr(cs_layout) layout = cs_place_balanced(x->in->flow, &c);
    if (!layout)
        return;
    x->simulated++;
    x->best = MAX(x->best, cs_fast_goodput(layout, 4000, 6, NULL));
}

static void all_counts(exhaustive *x, guint i, int left)
{
    if (i + 1 == x->subplan->n) {
        x->counts[x->exec[i]] = left;
        judge(x);
        x->counts[x->exec[i]] = 0;
        return;
    }
    for (int n = 1; n <= left - (int)(x->subplan->n - i - 1); n++) {
        x->counts[x->exec[i]] = n;
        all_counts(x, i + 1, left - n);
    }
    x->counts[x->exec[i]] = 0;
}

static void try_everything(const inputs *in, double goodput)
{
    const cs_problem *p = in->problem;
    if (p->cluster->n_kinds > 1 || p->capacity[0] > 16)
        return;
    bool cut;
    double start = now_s();
    g_autoptr(GArray) subplans = cs_subplans_list(p, 100000, &cut);
    exhaustive x = {.in = in, .floor_rps = goodput, .counts = g_new0(int, p->n_execs)};
    for (guint i = 0; i < subplans->len; i++) {
        x.subplan = &g_array_index(subplans, cs_subplan, i);
        bool single = true;
        for (guint k = 0; k < x.subplan->n; k++)
            for (size_t e = 0; e < p->n_execs; e++)
                if (p->execs[e].mask == x.subplan->masks[k]) {
                    x.exec[k] = e;
                    single &= p->execs[e].count == 1;
                }
        if (single && (int)x.subplan->n <= p->capacity[0])
            all_counts(&x, 0, p->capacity[0]);
    }
    printf("every candidate of one subplan: %zu, of which %zu have a flow above the planner's "
           "goodput; "
           "simulated, the best reaches %.4g requests/s, the planner's %.4g (%.0f s)\n",
           x.seen, x.simulated, x.best, goodput, now_s() - start);
    g_free(x.counts);
}

int main(int argc, char **argv)
{
    inputs in = {0};
    g_autoptr(GError) error = NULL;
    if (argc < 2 || !load(&in, argv[1], &error)) {
        fprintf(stderr, "planner DIR [all]: %s\n", error ? error->message : "DIR is needed");
        return 2;
    }
    double throughput = 0, goodput = 0;
    g_autoptr(cs_layout) layout = time_plan(&in, CS_POLICY_THROUGHPUT, &throughput);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("peak memory so far: %.0f MB\n", (double)usage.ru_maxrss / 1024);
    if (layout) {
        time_simulator(layout);
        time_replan(&in, layout);
    }
    if (in.cluster->n_nodes <= 16) {
        g_autoptr(cs_layout) other = time_plan(&in, CS_POLICY_GOODPUT, &goodput);
        if (other && argc > 2)
            try_everything(&in, goodput);
    }
    getrusage(RUSAGE_SELF, &usage);
    printf("peak memory: %.0f MB\n", (double)usage.ru_maxrss / 1024);
    return 0;
}
