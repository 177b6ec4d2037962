/* Whole problems: one JSON object with the four inputs. Planned without the race, checked, and run
 * in the simulator for some requests, of which none may be lost. */
#include "plan/fast.h"
#include "plan_inputs.h"

enum { MAX_EXECS = 200, MAX_NODES = 6, MAX_DEVICES = 64 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void simulate(const cs_layout *layout, double rate)
{
    cs_sim_options o = {.rate_rps = rate / 2, .seed = 1, .requests = 60, .bins = 4};
    cs_sim_result r;
    g_autoptr(GError) error = NULL;
    bool ran = cs_sim_run(layout, &o, &r, &error);
    g_assert_no_error(error);
    g_assert_true(ran && (r.gave_up || r.completed == r.arrived));
    json_decref(cs_sim_to_json(&r, layout));
    cs_sim_result_clear(&r);
}

static void plan(const cs_problem *problem, cs_policy policy)
{
    g_autoptr(cs_flow) flow = cs_flow_new(problem);
    cs_fast_options o = {.policy = policy, .seconds = 0.5, .seed = 1, .no_simulation = true};
    cs_fast_result r;
    g_autoptr(GError) error = NULL;
    if (!cs_fast_plan(flow, &o, &r, &error)) {
        g_assert_nonnull(error);
        return;
    }
    cs_layout_check(r.layout, &error);
    g_assert_no_error(error);
    double rate = cs_layout_rate(r.layout, NULL);
    g_assert_true(rate > 0);
    simulate(r.layout, rate);
    g_autoptr(cs_plan) made = cs_layout_to_plan(r.layout, "throughput", rate);
    g_autoptr(cs_layout) read = cs_layout_from_plan(problem, made, &error);
    g_assert_no_error(error);
    g_assert_cmpint(cs_layout_devices(read), ==, cs_layout_devices(r.layout));
    cs_fast_result_clear(&r);
}

static void run(json_t *root)
{
    g_autoptr(cs_plan_graph) graph =
        cs_plan_graph_from_json(json_object_get(root, "graph"), "graph", NULL);
    g_autoptr(cs_cluster) cluster =
        cs_cluster_from_json(json_object_get(root, "cluster"), "cluster", NULL);
    if (!graph || !cluster || cluster->n_nodes > MAX_NODES)
        return;
    g_autoptr(cs_profiles) profiles =
        cs_profiles_from_json(json_object_get(root, "profiles"), "profiles", graph, cluster, NULL);
    g_autoptr(cs_workload) workload =
        cs_workload_from_json(json_object_get(root, "workload"), "workload", graph, NULL);
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_problem) problem =
        profiles && workload ? cs_problem_new(graph, cluster, profiles, workload, NULL, &error)
                             : NULL;
    g_assert_true(problem || error || !profiles || !workload);
    bool small = problem && problem->n_execs <= MAX_EXECS;
    for (size_t k = 0; small && k < cluster->n_kinds; k++)
        small = problem->capacity[k] <= MAX_DEVICES;
    for (int policy = CS_POLICY_COST; small && policy <= CS_POLICY_THROUGHPUT; policy++)
        plan(problem, (cs_policy)policy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *root = cs_json_load((const char *)data, size, "problem", NULL);
    const char *const parts[] = {"graph", "cluster", "profiles", "workload"};
    bool whole = json_is_object(root);
    for (int i = 0; i < 4; i++)
        whole = whole && json_object_get(root, parts[i]);
    if (whole)
        run(root);
    json_decref(root);
    return 0;
}
