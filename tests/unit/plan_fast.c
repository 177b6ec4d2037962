/* src/plan/fast against the exact planner and the four baselines on random problems. */
#include "plan/fast.h"
#include "plan/instances.h"
#include "plan/place.h"
#include "plan/provision.h"
#include "plan/verifier.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

typedef struct {
    int compared, optimal;
    double worst; /* relative shortfall */
} tally;

/* Shortfall of the fast plan against the exact one, 0 if none. */
static double shortfall(cs_policy policy, double fast, double exact)
{
    return MAX(0, policy == CS_POLICY_THROUGHPUT ? 1 - fast / exact : fast / exact - 1);
}

static void check_baselines(const cs_flow *flow, cs_policy policy, const cs_fast_result *r)
{
    for (int b = 0; b < CS_BASELINES; b++) {
        g_autofree char *why = NULL;
        g_autoptr(cs_layout) l = cs_fast_baseline(flow, (cs_baseline)b, policy, &why);
        if (!l)
            continue;
        double rate = cs_layout_rate(l, NULL);
        if (policy == CS_POLICY_THROUGHPUT)
            g_assert_cmpfloat(r->objective, >=, rate * (1 - 1e-6));
        else if (rate >= flow->problem->workload->rate_rps)
            g_assert_cmpfloat(r->objective, <=,
                              policy == CS_POLICY_COST ? cs_layout_cost(l) + 1e-6
                                                       : cs_layout_devices(l));
    }
}

static void check_verified(const cs_problem *p, cs_policy policy, const cs_fast_result *r)
{
    double rate = policy == CS_POLICY_THROUGHPUT ? r->objective : p->workload->rate_rps;
    g_autoptr(cs_plan) plan = cs_layout_to_plan(r->layout, cs_policy_name(policy), rate);
    g_autofree char *fault = verify_plan(p, plan, rate * (1 - 1e-6));
    g_assert_cmpstr(fault, ==, NULL);
}

/* One instance; counts it if the exact planner closed it. */
static void compare(const instance_options *o, guint64 seed, cs_policy policy, tally *sum)
{
    instance in;
    if (!instance_make(&in, o, seed)) {
        instance_clear(&in);
        return;
    }
    g_autoptr(cs_flow) flow = cs_flow_new(in.problem);
    g_autoptr(GError) exact_error = NULL, fast_error = NULL;
    cs_exact_options eo = {
        .policy = policy, .seconds = 10, .only_first = true, .max_columns = 20000};
    cs_fast_options fo = {.policy = policy, .seconds = 10, .seed = 1, .no_simulation = true};
    cs_exact_result e;
    cs_fast_result f;
    bool solved = cs_exact_solve(flow, &eo, &e, &exact_error);
    bool found = cs_fast_plan(flow, &fo, &f, &fast_error);
    if (!solved) {
        bool slow = g_error_matches(exact_error, CS_ERROR, CS_ERROR_TIMEOUT);
        g_assert_true(slow || !found);
        if (found)
            cs_fast_result_clear(&f);
        instance_clear(&in);
        return;
    }
    if (e.proven && e.layout) {
        double gap = found ? shortfall(policy, f.objective, e.objective) : 1;
        sum->compared++;
        sum->optimal += gap <= 1e-5;
        sum->worst = MAX(sum->worst, gap);
        if (gap > 1e-5)
            g_test_message("seed %" G_GUINT64_FORMAT " %s: fast %g exact %g gap %.4f%s%s", seed,
                           cs_policy_name(policy), found ? f.objective : -1, e.objective, gap,
                           found ? "" : " ", found ? "" : fast_error->message);
    }
    if (found) {
        check_verified(in.problem, policy, &f);
        check_baselines(flow, policy, &f);
        cs_fast_result_clear(&f);
    }
    cs_exact_result_clear(&e);
    instance_clear(&in);
}

static const instance_options shapes[] = {
    {.components = 3,
     .max_nodes = 1,
     .max_devices = 8,
     .max_kinds = 1,
     .max_types = 3,
     .max_count = 1,
     .tight_memory = true},
    {.components = 4,
     .max_nodes = 1,
     .max_devices = 8,
     .max_kinds = 2,
     .max_types = 3,
     .max_count = 2,
     .tight_memory = true},
    {.components = 3,
     .max_nodes = 4,
     .max_devices = 4,
     .max_kinds = 1,
     .max_types = 2,
     .max_count = 1},
    {.components = 3,
     .max_nodes = 2,
     .max_devices = 4,
     .max_kinds = 1,
     .max_types = 2,
     .max_count = 2,
     .tight_links = true},
    {.components = 5,
     .max_nodes = 2,
     .max_devices = 8,
     .max_kinds = 1,
     .max_types = 3,
     .max_count = 1,
     .tight_memory = true},
};

static void compare_many(int want)
{
    tally sum = {0};
    for (guint64 seed = 1; sum.compared < want; seed++) {
        const instance_options *o = &shapes[seed % G_N_ELEMENTS(shapes)];
        static const cs_policy policies[] = {CS_POLICY_THROUGHPUT, CS_POLICY_COST,
                                             CS_POLICY_DEVICES};
        compare(o, seed * 101, policies[seed / G_N_ELEMENTS(shapes) % 3], &sum);
    }
    g_test_message("%d of %d optimal, worst %.2f %%", sum.optimal, sum.compared, 100 * sum.worst);
    g_assert_cmpfloat(sum.optimal, >=, 0.95 * sum.compared);
    g_assert_cmpfloat(sum.worst, <=, 0.05);
}

static void test_against_exact(void)
{
    compare_many(g_test_thorough() ? 500 : 60);
}

/* The whole pipeline; the winner is simulated and never below a baseline. */
static void test_goodput(void)
{
    for (guint64 seed = 1; seed <= 6; seed++) {
        instance_options o = {.components = 4,
                              .max_nodes = 2,
                              .max_devices = 4,
                              .max_kinds = 1,
                              .max_types = 2,
                              .max_count = 1,
                              .tight_memory = true,
                              .targets = true};
        instance in;
        if (!instance_make(&in, &o, seed)) {
            instance_clear(&in);
            continue;
        }
        g_autoptr(cs_flow) flow = cs_flow_new(in.problem);
        g_autoptr(GError) error = NULL;
        cs_fast_options fo = {.policy = CS_POLICY_GOODPUT, .seed = 3, .sim_requests = 1000};
        cs_fast_result f;
        if (cs_fast_plan(flow, &fo, &f, &error)) {
            check_verified(in.problem, CS_POLICY_COST, &f);
            for (int b = 0; b < CS_BASELINES; b++) {
                g_autofree char *why = NULL;
                g_autoptr(cs_layout) l =
                    cs_fast_baseline(flow, (cs_baseline)b, CS_POLICY_GOODPUT, &why);
                double goodput = l ? cs_fast_goodput(l, 1000, 3 + 5, NULL) : 0;
                g_assert_cmpfloat(f.objective, >=, goodput);
            }
            cs_fast_result_clear(&f);
        }
        instance_clear(&in);
    }
}

/* What sizing returns carries the rates in time, for no less than carrying them alone costs; and at
 * least one problem needs more for being in time. */
static void test_provision(void)
{
    int sized = 0, dearer = 0;
    for (guint64 seed = 1; seed <= 12; seed++) {
        instance_options o = {.components = 4,
                              .max_nodes = 2,
                              .max_devices = 6,
                              .max_kinds = 1,
                              .max_types = 2,
                              .max_count = 1,
                              .targets = true};
        instance in;
        if (!instance_make(&in, &o, seed)) {
            instance_clear(&in);
            continue;
        }
        g_autoptr(cs_flow) flow = cs_flow_new(in.problem);
        g_autoptr(GError) error = NULL;
        cs_fast_options fo = {.policy = CS_POLICY_COST, .seed = 3, .sim_requests = 1000};
        cs_provision_result r;
        cs_fast_result plain;
        bool found = cs_provision(flow, &fo, &r, &error);
        g_assert_true(found == (error == NULL));
        if (found) {
            g_assert_cmpfloat(r.sim.attainment, >=, in.problem->workload->attainment - 1e-9);
            g_assert_cmpfloat(cs_layout_rate(r.layout, NULL), >=,
                              in.problem->workload->rate_rps * (1 - 1e-6));
            fo.no_simulation = true;
            g_assert_true(cs_fast_plan(flow, &fo, &plain, NULL));
            g_assert_cmpfloat(cs_layout_cost(r.layout), >=, plain.objective - 1e-9);
            sized++;
            dearer += cs_layout_cost(r.layout) > plain.objective + 1e-9;
            cs_fast_result_clear(&plain);
            cs_provision_result_clear(&r);
        }
        instance_clear(&in);
    }
    g_test_message("%d sized, %d of them for more than the rates alone", sized, dearer);
    g_assert_cmpint(sized, >=, 3);
    g_assert_cmpint(dearer, >=, 1);
}

/* The explanation is text that does not change from run to run. */
static void test_explains(void)
{
    instance_options o = {.components = 3,
                          .max_nodes = 1,
                          .max_devices = 6,
                          .max_kinds = 1,
                          .max_types = 2,
                          .max_count = 1};
    instance in;
    g_assert_true(instance_make(&in, &o, 11));
    g_autoptr(cs_flow) flow = cs_flow_new(in.problem);
    g_autofree char *first = NULL;
    for (int i = 0; i < 2; i++) {
        cs_fast_options fo = {.policy = CS_POLICY_THROUGHPUT, .seed = 3, .sim_requests = 500};
        cs_fast_result f;
        g_autoptr(GError) error = NULL;
        cs_fast_plan(flow, &fo, &f, &error);
        g_assert_no_error(error);
        g_test_message("%s", f.explanation);
        if (i == 0)
            first = g_strdup(f.explanation);
        else
            g_assert_cmpstr(first, ==, f.explanation);
        g_assert_true(g_str_has_prefix(f.explanation, "1 enumerate: "));
        for (int phase = 2; phase <= 5; phase++) {
            g_autofree char *line = g_strdup_printf("\n%d ", phase);
            g_assert_nonnull(strstr(f.explanation, line));
        }
        cs_fast_result_clear(&f);
    }
    instance_clear(&in);
}

/* More work than the cluster carries: says whose. */
static void test_infeasible(void)
{
    instance_options o = {.components = 3,
                          .max_nodes = 1,
                          .max_devices = 3,
                          .max_kinds = 1,
                          .max_types = 2,
                          .max_count = 1,
                          .load = 3};
    instance in;
    g_assert_true(instance_make(&in, &o, 4));
    g_autoptr(cs_flow) flow = cs_flow_new(in.problem);
    g_autoptr(GError) error = NULL;
    cs_fast_options fo = {.policy = CS_POLICY_COST};
    cs_fast_result f;
    g_assert_false(cs_fast_plan(flow, &fo, &f, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, " devices of "));
    g_assert_nonnull(strstr(error->message, " are left"));
    instance_clear(&in);
}

/* Cancelled from the start: an error that says so, or a plan, never a hang. */
static void test_cancelled(void)
{
    instance_options o = {.components = 4,
                          .max_nodes = 2,
                          .max_devices = 8,
                          .max_kinds = 1,
                          .max_types = 2,
                          .max_count = 1};
    instance in;
    g_assert_true(instance_make(&in, &o, 2));
    g_autoptr(cs_flow) flow = cs_flow_new(in.problem);
    g_autoptr(GError) error = NULL;
    int cancel = 1;
    cs_fast_options fo = {.policy = CS_POLICY_THROUGHPUT, .cancel = &cancel};
    cs_fast_result f;
    if (cs_fast_plan(flow, &fo, &f, &error))
        cs_fast_result_clear(&f);
    else
        g_assert_error(error, CS_ERROR, CS_ERROR_CANCELLED);
    instance_clear(&in);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/plan/fast/explains", test_explains);
    g_test_add_func("/plan/fast/infeasible", test_infeasible);
    g_test_add_func("/plan/fast/cancelled", test_cancelled);
    g_test_add_func("/plan/fast/goodput", test_goodput);
    g_test_add_func("/plan/fast/provision", test_provision);
    g_test_add_func("/plan/fast/against-exact", test_against_exact);
    return g_test_run();
}
