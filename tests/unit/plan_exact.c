/* src/plan/exact against brute force on small random problems: every set of replicas is tried, and
 * the flows are solved over whole routes by the dense simplex, which the exact planner never uses.
 */
#include "plan/exact.h"
#include "plan/instances.h"
#include "plan/verifier.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    guint type;
    int site[CS_PLAN_MAX_STAGES];
} joint;

typedef struct {
    const cs_problem *p;
    int *x; /* [n_execs * n_nodes] */
    GArray *joints;
    cs_policy policy;
    double best;
} search;

/* Every way to give the stages of a type to sites; stages on one type stay on one node. */
static void list_joints(search *b, joint *j, size_t s)
{
    const cs_problem *p = b->p;
    size_t n_nodes = p->cluster->n_nodes;
    while (s < p->n_stages && !(p->types[j->type].stages >> s & 1))
        j->site[s++] = -1;
    if (s == p->n_stages) {
        g_array_append_vals(b->joints, j, 1);
        return;
    }
    for (size_t i = 0; i < p->n_execs * n_nodes; i++) {
        size_t e = i / n_nodes;
        bool ok = b->x[i] > 0 && (p->execs[e].mask >> s & 1);
        for (size_t k = 0; ok && k < s; k++) {
            bool same = j->site[k] >= 0 && (size_t)j->site[k] / n_nodes == e;
            ok = !same || (size_t)j->site[k] == i;
            if (ok && p->stages[s].inseparable && p->stages[s].twin == (int)k)
                ok = (size_t)j->site[k] == i;
        }
        if (!ok)
            continue;
        j->site[s] = (int)i;
        list_joints(b, j, s + 1);
    }
}

/* The highest rate these replicas carry. */
static double best_rate(search *b)
{
    const cs_problem *p = b->p;
    size_t n = p->cluster->n_nodes, sites = p->n_execs * n;
    g_array_set_size(b->joints, 0);
    for (size_t t = 0; t < p->n_types; t++) {
        joint j = {.type = (guint)t};
        list_joints(b, &j, 0);
    }
    cs_simplex lp;
    cs_simplex_init(&lp, (int)(p->n_types + sites + n * n), 1 + (int)b->joints->len);
    *cs_simplex_at(&lp, lp.m, 0) = 1;
    for (size_t t = 0; t < p->n_types; t++)
        *cs_simplex_at(&lp, (int)t, 0) = p->types[t].share;
    for (size_t i = 0; i < sites; i++)
        *cs_simplex_at(&lp, (int)(p->n_types + i), lp.n) = p->utilisation_cap * b->x[i];
    for (size_t i = 0; i < n * n; i++) /* in seconds of link a second, for scale */
        *cs_simplex_at(&lp, (int)(p->n_types + sites + i), lp.n) = 1;
    for (guint k = 0; k < b->joints->len; k++) {
        const joint *j = &g_array_index(b->joints, joint, k);
        int column = 1 + (int)k;
        *cs_simplex_at(&lp, (int)j->type, column) = -1;
        for (size_t s = 0; s < p->n_stages; s++)
            if (j->site[s] >= 0)
                *cs_simplex_at(&lp, (int)p->n_types + j->site[s], column) +=
                    cs_problem_work(p, (size_t)j->site[s] / n, s, j->type);
        for (size_t a = 0; a < p->n_edges; a++) {
            if (!cs_problem_type_uses(&p->types[j->type], &p->edges[a]))
                continue;
            size_t from = (size_t)j->site[p->edges[a].from] % n;
            size_t to = (size_t)j->site[p->edges[a].to] % n;
            if (from != to)
                *cs_simplex_at(&lp, (int)(p->n_types + sites + from * n + to), column) +=
                    p->types[j->type].edge_bytes[a] / p->cluster->bandwidth[from * n + to];
        }
    }
    bool optimal = cs_simplex_solve(&lp);
    double value = lp.value;
    g_assert_true(optimal);
    cs_simplex_clear(&lp);
    return value;
}

static double price(const search *b)
{
    double sum = 0;
    size_t n = b->p->cluster->n_nodes;
    for (size_t i = 0; i < b->p->n_execs * n; i++)
        sum += b->x[i] * (b->policy == CS_POLICY_DEVICES ? b->p->execs[i / n].count
                                                         : b->p->execs[i / n].cost);
    return sum;
}

static void brute_force(search *b, size_t i)
{
    const cs_problem *p = b->p;
    size_t n = p->cluster->n_nodes;
    if (i == p->n_execs * n) {
        if (b->policy == CS_POLICY_THROUGHPUT)
            b->best = MAX(b->best, best_rate(b));
        else if (price(b) < b->best - 1e-9 && best_rate(b) >= p->workload->rate_rps * (1 - 1e-9))
            b->best = price(b);
        return;
    }
    size_t e = i / n, kind = p->execs[e].kind;
    int used = 0;
    for (size_t k = 0; k < i; k++)
        if (k % n == i % n && p->execs[k / n].kind == kind)
            used += b->x[k] * p->execs[k / n].count;
    int most = (p->cluster->nodes[i % n].devices[kind] - used) / p->execs[e].count;
    for (b->x[i] = 0; b->x[i] <= most; b->x[i]++)
        brute_force(b, i + 1);
    b->x[i] = 0;
}

static double brute_force_best(const instance *in, cs_policy policy)
{
    size_t sites = in->problem->n_execs * in->cluster->n_nodes;
    search b = {.p = in->problem, .policy = policy, .x = g_new0(int, sites)};
    b.joints = g_array_new(FALSE, FALSE, sizeof(joint));
    b.best = policy == CS_POLICY_THROUGHPUT ? 0 : INFINITY;
    brute_force(&b, 0);
    g_array_unref(b.joints);
    g_free(b.x);
    return b.best;
}

static void check_plan(const instance *in, const cs_exact_result *r, cs_policy policy)
{
    double rate = policy == CS_POLICY_THROUGHPUT ? r->objective : in->workload->rate_rps;
    g_autoptr(cs_plan) plan = cs_layout_to_plan(r->layout, cs_policy_name(policy), rate);
    g_autofree char *fault = verify_plan(in->problem, plan, rate * (1 - 1e-7));
    g_assert_cmpstr(fault, ==, NULL);
    if (policy == CS_POLICY_COST)
        g_assert_cmpfloat_with_epsilon(plan->predictions.cost, r->objective, 1e-6);
    if (policy == CS_POLICY_THROUGHPUT)
        g_assert_cmpfloat_with_epsilon(plan->predictions.throughput_rps, r->objective,
                                       1e-4 * r->objective);
    /* The file's form loses nothing. */
    json_t *root = cs_plan_to_json(plan);
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_plan) read = cs_plan_from_json(root, "plan", &error);
    g_assert_no_error(error);
    g_autoptr(cs_layout) layout = cs_layout_from_plan(in->problem, read, &error);
    g_assert_no_error(error);
    g_assert_cmpint(cs_layout_devices(layout), ==, cs_layout_devices(r->layout));
    json_decref(root);
}

/* Returns 1 if the instance was usable. */
static int compare(const instance_options *o, guint64 seed, cs_policy policy)
{
    instance in;
    bool usable = instance_make(&in, o, seed);
    size_t sites = usable ? in.problem->n_execs * in.cluster->n_nodes : 0;
    if (!usable || sites > 18) {
        instance_clear(&in);
        return 0;
    }
    g_autoptr(cs_flow) flow = cs_flow_new(in.problem);
    g_autoptr(GError) error = NULL;
    /* Milliseconds are needed; a machine that stands still for a while must not fail the test. */
    cs_exact_options eo = {.policy = policy, .seconds = 300};
    cs_exact_result r;
    bool found = cs_exact_solve(flow, &eo, &r, &error);
    double best = brute_force_best(&in, policy);
    g_test_message("seed %" G_GUINT64_FORMAT " %s: exact %g brute force %g", seed,
                   cs_policy_name(policy), found ? r.objective : -1, best);
    g_assert_cmpint(found, ==, !isinf(best) && best > 1e-9);
    if (found) {
        g_assert_true(r.proven);
        g_assert_nonnull(r.layout);
        g_assert_cmpfloat_with_epsilon(r.objective, best, 2e-6 * MAX(1, best));
        check_plan(&in, &r, policy);
        cs_exact_result_clear(&r);
    }
    instance_clear(&in);
    return 1;
}

static void compare_many(const instance_options *o, cs_policy policy, int want)
{
    int done = 0;
    want = g_test_thorough() ? 4 * want : want;
    for (guint64 seed = 1; done < want; seed++)
        done += compare(o, seed * 77 + (guint64)policy, policy);
    g_test_message("%d instances equal to brute force", done);
}

static void test_cost(void)
{
    instance_options o = {.components = 2,
                          .max_nodes = 2,
                          .max_devices = 3,
                          .max_kinds = 2,
                          .max_types = 2,
                          .max_count = 1,
                          .tight_memory = true};
    compare_many(&o, CS_POLICY_COST, 25);
    o = (instance_options){.components = 3,
                           .max_nodes = 2,
                           .max_devices = 2,
                           .max_kinds = 1,
                           .max_types = 2,
                           .max_count = 1,
                           .tight_links = true};
    compare_many(&o, CS_POLICY_COST, 25);
}

static void test_devices(void)
{
    instance_options o = {.components = 2,
                          .max_nodes = 2,
                          .max_devices = 3,
                          .max_kinds = 1,
                          .max_types = 2,
                          .max_count = 2,
                          .tight_links = true,
                          .load = 0.29};
    compare_many(&o, CS_POLICY_DEVICES, 20);
}

static void test_throughput(void)
{
    instance_options o = {.components = 2,
                          .max_nodes = 2,
                          .max_devices = 3,
                          .max_kinds = 1,
                          .max_types = 2,
                          .max_count = 2,
                          .tight_links = true,
                          .tight_memory = true};
    compare_many(&o, CS_POLICY_THROUGHPUT, 25);
    o = (instance_options){.components = 3,
                           .max_nodes = 2,
                           .max_devices = 2,
                           .max_kinds = 1,
                           .max_types = 3,
                           .max_count = 1,
                           .tight_links = true};
    compare_many(&o, CS_POLICY_THROUGHPUT, 20);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/plan/exact/cost", test_cost);
    g_test_add_func("/plan/exact/devices", test_devices);
    g_test_add_func("/plan/exact/throughput", test_throughput);
    return g_test_run();
}
