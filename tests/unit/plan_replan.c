/* src/plan/replan: after a loss, a slow link or a changed mix as much keeps running as pays off. */
#include "plan/instances.h"
#include "plan/replan.h"
#include "plan/verifier.h"

#include <math.h>

static void verify(const cs_problem *p, const cs_layout *l)
{
    double rate = cs_layout_rate(l, NULL);
    g_autoptr(cs_plan) plan = cs_layout_to_plan(l, "throughput", rate);
    g_autofree char *fault = verify_plan(p, plan, rate * (1 - 1e-6));
    g_assert_cmpstr(fault, ==, NULL);
}

static cs_plan *plan_first(const instance *in)
{
    g_autoptr(cs_flow) flow = cs_flow_new(in->problem);
    cs_fast_options o = {.policy = CS_POLICY_THROUGHPUT, .seed = 1, .no_simulation = true};
    cs_fast_result r;
    g_autoptr(GError) error = NULL;
    cs_fast_plan(flow, &o, &r, &error);
    g_assert_no_error(error);
    cs_plan *plan = cs_layout_to_plan(r.layout, "throughput", r.objective);
    cs_fast_result_clear(&r);
    return plan;
}

static void replan(const instance *in, const cs_plan *old, double horizon, cs_replan_result *r)
{
    g_autoptr(cs_flow) flow = cs_flow_new(in->problem);
    cs_replan_options o = {
        .fast = {.policy = CS_POLICY_THROUGHPUT, .seed = 1, .no_simulation = true},
        .horizon_s = horizon};
    g_autoptr(GError) error = NULL;
    cs_replan(flow, old, &o, r, &error);
    g_assert_no_error(error);
    verify(in->problem, r->layout);
}

static int replicas(const cs_layout *l)
{
    int sum = 0;
    for (size_t i = 0; i < l->problem->n_execs * l->problem->cluster->n_nodes; i++)
        sum += l->replicas[i];
    return sum;
}

static const instance_options shape = {.components = 3,
                                       .max_nodes = 4,
                                       .max_devices = 6,
                                       .max_kinds = 1,
                                       .max_types = 2,
                                       .max_count = 1,
                                       .tight_memory = true};

/* Nothing changed: nothing moves. */
static void test_unchanged(void)
{
    instance in;
    g_assert_true(instance_make(&in, &shape, 3));
    g_autoptr(cs_plan) old = plan_first(&in);
    cs_replan_result r;
    replan(&in, old, 600, &r);
    g_assert_cmpuint(r.moves->len, ==, 0);
    g_assert_cmpint(r.kept, ==, replicas(r.layout));
    cs_replan_result_clear(&r);
    instance_clear(&in);
}

/* A node is lost: the others go on. With no time to win anything back, only what must moves. */
static void test_lost_node(void)
{
    int done = 0;
    for (guint64 seed = 1; done < 20; seed++) {
        instance in;
        if (!instance_make(&in, &shape, seed) || in.cluster->n_nodes < 3) {
            instance_clear(&in);
            continue;
        }
        g_autoptr(cs_plan) old = plan_first(&in);
        cs_cluster *left = cs_cluster_without(in.cluster, 0);
        cs_problem_free(in.problem);
        cs_cluster_free(in.cluster);
        in.cluster = left;
        cs_problem_options o = {.utilisation_cap = 0.9};
        in.problem = cs_problem_new(in.graph, left, in.profiles, in.workload, &o, NULL);
        g_autoptr(cs_layout) survivors = cs_replan_survivors(in.problem, old);
        cs_replan_result brief, patient;
        replan(&in, old, 30, &brief);
        replan(&in, old, 1e6, &patient);
        g_assert_cmpint(brief.kept, <=, replicas(survivors));
        g_assert_cmpfloat(cs_layout_rate(patient.layout, NULL), >=,
                          cs_layout_rate(brief.layout, NULL) * (1 - 1e-6));
        g_assert_cmpint(brief.kept, >=, patient.kept);
        /* With all the time in the world the new plan is as good as one made afresh. */
        g_assert_cmpfloat(cs_layout_rate(patient.layout, NULL), >=,
                          cs_layout_rate(patient.fresh.layout, NULL) * 0.998);
        cs_replan_result_clear(&brief);
        cs_replan_result_clear(&patient);
        instance_clear(&in);
        done++;
    }
}

/* The mix drifts: what the new mix needs is started when it pays off. */
static void test_drifted_mix(void)
{
    instance in;
    instance_options o = shape;
    o.max_types = 3;
    guint64 seed = 1;
    while (!instance_make(&in, &o, seed) || in.problem->n_types < 2) {
        instance_clear(&in);
        seed++;
    }
    g_autoptr(cs_plan) old = plan_first(&in);
    double total = in.workload->rate_rps;
    for (size_t t = 0; t < in.workload->n_types; t++)
        in.workload->types[t].rate_rps =
            total * (t == 0 ? 0.98 : 0.02 / (double)(in.workload->n_types - 1));
    cs_problem_free(in.problem);
    cs_problem_options po = {.utilisation_cap = 0.9};
    in.problem = cs_problem_new(in.graph, in.cluster, in.profiles, in.workload, &po, NULL);
    g_autoptr(cs_flow) flow = cs_flow_new(in.problem);
    g_autoptr(cs_layout) kept = cs_replan_survivors(in.problem, old);
    g_autofree int *counts = g_new0(int, in.problem->n_execs);
    cs_layout_counts(kept, counts);
    cs_replan_result r;
    replan(&in, old, 1e6, &r);
    g_assert_cmpfloat(cs_layout_rate(r.layout, NULL), >=, cs_flow_rate(flow, counts) * (1 - 1e-6));
    cs_replan_result_clear(&r);
    instance_clear(&in);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/plan/replan/unchanged", test_unchanged);
    g_test_add_func("/plan/replan/lost-node", test_lost_node);
    g_test_add_func("/plan/replan/drifted-mix", test_drifted_mix);
    return g_test_run();
}
