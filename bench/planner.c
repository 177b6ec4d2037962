/* Figures of the planner: bench/planner DIR [all | pairs], with the four input files of
 * bench/planner/inputs.py in DIR.
 *
 * Prints the simulator's events per second on one core; the time of planning for throughput and for
 * goodput with the memory it took. With "all", also what every candidate of one subplan whose flow
 * exceeds the planner's goodput reaches in the same simulation (the others cannot reach it); with
 * "pairs", every candidate of up to two overlaid subplans (many minutes).
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

/* ---- every candidate ---- */

typedef struct {
    const inputs *in;
    size_t exec[2 * CS_PLAN_MAX_STAGES], n; /* the executor types of a set */
    int *counts;
    double floor_rps, best;
    size_t sets, seen, simulated;
    GHashTable *known; /* sets that were tried */
} exhaustive;

static void judge(exhaustive *x)
{
    x->seen++;
    double rate = cs_flow_rate(x->in->flow, x->counts);
    if (rate <= x->floor_rps)
        return;
    cs_candidate c = {.rate = rate};
    if (!cs_candidate_from_counts(&c, x->in->problem, x->counts))
        return;
    g_autoptr(cs_layout) layout = cs_place_balanced(x->in->flow, &c);
    if (!layout)
        return;
    x->simulated++;
    x->best = MAX(x->best, cs_fast_goodput(layout, 4000, 6, NULL));
}

/* Every division of the devices among the types of the set. */
static void all_counts(exhaustive *x, size_t i, int left)
{
    if (i + 1 == x->n) {
        x->counts[x->exec[i]] = left;
        judge(x);
        x->counts[x->exec[i]] = 0;
        return;
    }
    for (int n = 1; n <= left - (int)(x->n - i - 1); n++) {
        x->counts[x->exec[i]] = n;
        all_counts(x, i + 1, left - n);
    }
    x->counts[x->exec[i]] = 0;
}

/* Adds the subplan's executor types to the set; false where one does not exist on one device. */
static bool add_subplan(exhaustive *x, const cs_subplan *subplan)
{
    const cs_problem *p = x->in->problem;
    for (guint k = 0; k < subplan->n; k++) {
        size_t e = 0, i = 0;
        while (e < p->n_execs && (p->execs[e].mask != subplan->masks[k] || p->execs[e].count != 1))
            e++;
        if (e == p->n_execs)
            return false;
        while (i < x->n && x->exec[i] < e)
            i++;
        if (i < x->n && x->exec[i] == e)
            continue;
        memmove(&x->exec[i + 1], &x->exec[i], (x->n - i) * sizeof x->exec[0]);
        x->exec[i] = e;
        x->n++;
    }
    return true;
}

static void try_set(exhaustive *x, const cs_subplan *a, const cs_subplan *b)
{
    int devices = x->in->problem->capacity[0];
    x->n = 0;
    if (!add_subplan(x, a) || (b && !add_subplan(x, b)) || (int)x->n > devices)
        return;
    g_autoptr(GString) key = g_string_new(NULL);
    for (size_t i = 0; i < x->n; i++)
        g_string_append_printf(key, "%zu ", x->exec[i]);
    if (!g_hash_table_add(x->known, g_strdup(key->str)))
        return;
    x->sets++;
    all_counts(x, 0, devices);
}

static void try_everything(const inputs *in, double goodput, bool pairs)
{
    const cs_problem *p = in->problem;
    if (p->cluster->n_kinds > 1 || p->capacity[0] > 16)
        return;
    bool cut;
    double start = now_s();
    g_autoptr(GArray) subplans = cs_subplans_list(p, 100000, &cut);
    exhaustive x = {.in = in, .floor_rps = goodput, .counts = g_new0(int, p->n_execs)};
    x.known = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (guint i = 0; i < subplans->len; i++)
        for (guint j = 0; j <= (pairs ? i : 0); j++)
            try_set(&x, &g_array_index(subplans, cs_subplan, i),
                    pairs && j < i ? &g_array_index(subplans, cs_subplan, j) : NULL);
    printf("every candidate of %s: %zu sets of executor types, %zu candidates, of which %zu have a "
           "flow above the planner's goodput; simulated, the best reaches %.4g requests/s, the "
           "planner's %.4g (%.0f s)\n",
           pairs ? "two subplans" : "one subplan", x.sets, x.seen, x.simulated, x.best, goodput,
           now_s() - start);
    g_hash_table_unref(x.known);
    g_free(x.counts);
}

int main(int argc, char **argv)
{
    inputs in = {0};
    g_autoptr(GError) error = NULL;
    if (argc < 2 || !load(&in, argv[1], &error)) {
        fprintf(stderr, "planner DIR [all | pairs]: %s\n",
                error ? error->message : "DIR is needed");
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
            try_everything(&in, goodput, strcmp(argv[2], "pairs") == 0);
    }
    getrusage(RUSAGE_SELF, &usage);
    printf("peak memory: %.0f MB\n", (double)usage.ru_maxrss / 1024);
    return 0;
}
