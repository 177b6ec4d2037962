/* src/plan/plan_file: what is written is read back equal, and each fault is named by its path. */
#include "base/error.h"
#include "base/json.h"
#include "plan/plan_file.h"

#include <glib/gstdio.h>
#include <string.h>

static const char *const good =
    "{'version': 1, 'model': 'm', 'policy': 'cost', 'executors': ["
    "{'name': 'e', 'components': [{'name': 'enc', 'max_batch': 4}, {'name': 'llm', 'role': "
    "'prefill'}], 'node': 'n0', 'device': 'a', 'devices_per_replica': 2, 'replicas': 2, "
    "'devices': [0, 1, 2, 3], 'kv_budget_bytes': 1e9},"
    "{'name': 'd', 'components': [{'name': 'llm', 'role': 'decode'}], 'node': 'n1', 'device': "
    "'a'}],"
    "'routes': [{'request_type': 't', 'rate_rps': 2, 'paths': ["
    "{'weight': 1.0, 'assign': {'enc': 'e', 'llm:prefill': 'e', 'llm:decode': 'd'}}]}],"
    "'predictions': {'throughput_rps': 3, 'devices': 5, 'latencies': [{'request_type': 't', "
    "'p50_s': 1, 'p95_s': 2, 'p99_s': 3}], 'links': [{'from': 'n0', 'to': 'n1', 'bytes_per_s': "
    "7}]}, 'bottleneck': 'd'}";

static json_t *parse(const char *text)
{
    g_autofree char *json = g_strdelimit(g_strdup(text), "'", '"');
    g_autoptr(GError) error = NULL;
    json_t *root = cs_json_load(json, strlen(json), "plan.json", &error);
    g_assert_no_error(error);
    return root;
}

static void test_round_trip(void)
{
    json_t *root = parse(good);
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_plan) plan = cs_plan_from_json(root, "plan.json", &error);
    g_assert_no_error(error);
    json_decref(root);
    g_assert_cmpuint(plan->n_executors, ==, 2);
    g_assert_cmpint(plan->executors[0].device_ids[3], ==, 3);
    g_assert_cmpint(plan->executors[1].replicas, ==, 1);
    g_assert_cmpuint(cs_plan_find_route(plan, "t")->paths[0].n_hops, ==, 3);
    g_assert_cmpint(plan->routes[0].paths[0].hops[2].role, ==, CS_ROLE_DECODE);
    g_assert_cmpuint(plan->routes[0].paths[0].hops[2].executor, ==, 1);
    json_t *once = cs_plan_to_json(plan);
    g_autoptr(cs_plan) again = cs_plan_from_json(once, "again", &error);
    g_assert_no_error(error);
    json_t *twice = cs_plan_to_json(again);
    g_assert_true(json_equal(once, twice));
    json_decref(once);
    json_decref(twice);
}

static void test_save(void)
{
    json_t *root = parse(good);
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_plan) plan = cs_plan_from_json(root, "plan.json", &error);
    json_decref(root);
    g_autofree char *dir = g_dir_make_tmp("cs-plan-XXXXXX", &error);
    g_autofree char *path = g_build_filename(dir, "plan.json", NULL);
    g_assert_true(cs_plan_save(plan, path, &error));
    g_autoptr(cs_plan) loaded = cs_plan_load(path, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(loaded->bottleneck, ==, "d");
    g_unlink(path);
    g_rmdir(dir);
    g_assert_null(cs_plan_load(path, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_NOT_FOUND);
}

/* Replaces `from` in the good plan and expects this fault. */
static void assert_fault(const char *from, const char *to, const char *message)
{
    g_auto(GStrv) parts = g_strsplit(good, from, 2);
    g_assert_cmpuint(g_strv_length(parts), ==, 2);
    g_autofree char *text = g_strjoinv(to, parts);
    json_t *root = parse(text);
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_plan_from_json(root, "plan.json", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_assert_cmpstr(error->message, ==, message);
    json_decref(root);
}

static void test_faults(void)
{
    assert_fault("'version': 1", "'version': 2",
                 "plan.json: version: expected an integer in [1, 1], found 2");
    assert_fault("'enc': 'e'", "'enc': 'x'",
                 "plan.json: routes[0].paths[0].assign.enc: no executor is named \"x\"");
    assert_fault("'enc': 'e'", "'enc': 'd'",
                 "plan.json: routes[0].paths[0].assign.enc: executor d does not host it");
    assert_fault(", 'llm:decode': 'd'", "",
                 "plan.json: routes[0].paths[0].assign: component llm needs either one executor, "
                 "or one for prefill and one for decode");
    assert_fault("'weight': 1.0", "'weight': 0.5",
                 "plan.json: routes[0].paths: expected weights that sum to 1, found 0.5");
    assert_fault("[0, 1, 2, 3]", "[0, 1, 2, 2]",
                 "plan.json: executors[0] (e): device 2 of kind a on node n0 is used twice");
    assert_fault("[0, 1, 2, 3]", "[0, 1]",
                 "plan.json: executors[0].devices: expected an array of 4 integers, found an "
                 "array of 2");
    assert_fault("'name': 'd'", "'name': 'e'", "plan.json: executors[1]: name e is used twice");
    assert_fault("'role': 'decode'", "'role': 'both halves'",
                 "plan.json: executors[1].components[0].role: expected both, prefill or decode, "
                 "found \"both halves\"");
    assert_fault("'p50_s': 1", "'p50_s': -1",
                 "plan.json: predictions.latencies[0].p50_s: expected a number in [0, 1e+12], "
                 "found -1");
    assert_fault("'bottleneck'", "'bottlenek'",
                 "plan.json: bottlenek: unknown member; known are version, model, policy, "
                 "executors, routes, predictions, bottleneck");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/plan/file/round-trip", test_round_trip);
    g_test_add_func("/plan/file/save", test_save);
    g_test_add_func("/plan/file/faults", test_faults);
    return g_test_run();
}
