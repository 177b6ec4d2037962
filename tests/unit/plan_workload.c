/* src/plan/workload: distributions, traces of a million lines, and fitting. */
#include "base/error.h"
#include "plan/instances.h"
#include "plan/workload.h"

#include <glib/gstdio.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static cs_plan_graph *graph_make(void)
{
    json_t *root = quoted_json(
        "{'version':1,'name':'g','components':[{'name':'a','kind':'encoder','weights_bytes':1,"
        "'units':{'images':1}}],'edges':[],'request_types':[{'name':'t','components':['a']},"
        "{'name':'u','components':['a']}]}");
    g_autoptr(GError) error = NULL;
    cs_plan_graph *graph = cs_plan_graph_from_json(root, "g", &error);
    g_assert_no_error(error);
    json_decref(root);
    return graph;
}

static cs_dist dist_make(const char *text)
{
    g_autofree char *whole = g_strdup_printf("{'d':%s}", text);
    json_t *root = quoted_json(whole);
    cs_json_reader r;
    cs_dist dist;
    cs_json_reader_init(&r, root, "t");
    cs_dist_read(&r, "d", &dist);
    g_autoptr(GError) error = NULL;
    cs_json_reader_finish(&r, &error);
    g_assert_no_error(error);
    json_decref(root);
    return dist;
}

static void assert_mean(const char *text, double mean, double slack)
{
    cs_dist dist = dist_make(text);
    cs_rng rng;
    cs_rng_seed(&rng, 5);
    double sum = 0;
    for (int i = 0; i < 200000; i++)
        sum += cs_dist_sample(&dist, &rng);
    g_assert_cmpfloat_with_epsilon(cs_dist_mean(&dist), mean, slack * mean);
    g_assert_cmpfloat_with_epsilon(sum / 200000, mean, 2 * slack * mean);
    json_t *json = cs_dist_to_json(&dist);
    g_assert_nonnull(json);
    json_decref(json);
    cs_dist_clear(&dist);
}

static void test_distributions(void)
{
    assert_mean("7", 7, 1e-9);
    assert_mean("{'dist':'uniform','from':100,'to':1000}", 550, 0.005);
    assert_mean("{'dist':'exponential','mean':3}", 3, 0.01);
    assert_mean("{'dist':'lognormal','median':100,'sigma':0.5}", 100 * exp(0.125), 0.01);
    assert_mean("{'dist':'normal','mean':290,'deviation':6.2}", 290, 0.001);
    assert_mean("{'dist':'empirical','values':[1,2,9]}", 4, 0.01);
    assert_mean("{'dist':'mixture','parts':[{'weight':1,'dist':'constant','value':1},{'weight':3,"
                "'dist':'constant','value':5}]}",
                4, 0.01);
    g_assert_cmpfloat_with_epsilon(cs_normal_quantile(0.975), 1.959964, 1e-5);
}

static char *write_trace(const char *name, size_t n)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_dir_make_tmp("cs-trace-XXXXXX", &error);
    char *path = g_build_filename(dir, name, NULL);
    FILE *f = fopen(path, "w");
    cs_rng rng;
    cs_rng_seed(&rng, 9);
    double t = 0;
    for (size_t i = 0; i < n; i++) {
        t += cs_rng_exponential(&rng) / 4;
        /* t: images small or large, text lognormal; u: exponential output */
        bool large = cs_rng_uniform(&rng) < 0.3, u = cs_rng_uniform(&rng) < 0.4;
        double text = 200 * exp(0.6 * cs_normal_quantile(cs_rng_uniform(&rng)));
        if (u)
            fprintf(f, "{\"t\": %.6f, \"type\": \"u\", \"sizes\": {\"text_out_tokens\": %.3f}}\n",
                    t, 50 * cs_rng_exponential(&rng));
        else
            fprintf(f,
                    "{\"t\": %.6f, \"type\": \"t\", \"sizes\": {\"text_in_tokens\": %.3f, "
                    "\"image_tokens\": %.0f}}\n",
                    t, text, (large ? 4000 : 250) * (1 + 0.2 * cs_rng_uniform(&rng)));
    }
    fclose(f);
    return path;
}

static void remove_trace(char *path)
{
    g_autofree char *dir = g_path_get_dirname(path);
    g_unlink(path);
    g_rmdir(dir);
    g_free(path);
}

/* What made the trace is found again: types, humps, shapes, rate. */
static void test_fit(void)
{
    g_autoptr(cs_plan_graph) graph = graph_make();
    g_autoptr(GError) error = NULL;
    char *path = write_trace("trace.jsonl", 20000);
    json_t *root = cs_workload_fit(path, graph, &error);
    g_assert_no_error(error);
    g_autoptr(cs_workload) w = cs_workload_from_json(root, "fitted", graph, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(w->n_types, ==, 3);
    g_assert_cmpstr(w->types[0].name, ==, "t-small");
    g_assert_cmpstr(w->types[1].name, ==, "t-large");
    g_assert_cmpfloat_with_epsilon(w->rate_rps, 4, 0.1);
    g_assert_cmpfloat_with_epsilon(w->types[1].rate_rps / w->rate_rps, 0.6 * 0.3, 0.02);
    g_assert_cmpint(w->arrivals, ==, CS_ARRIVALS_POISSON);
    const cs_dist *text = &w->types[0].sizes[CS_SIZE_TEXT_IN_TOKENS];
    g_assert_cmpint(text->parts[0].kind, ==, CS_DIST_LOGNORMAL);
    g_assert_cmpfloat_with_epsilon(text->parts[0].a, 200, 6);
    g_assert_cmpint(w->types[0].sizes[CS_SIZE_IMAGE_TOKENS].parts[0].kind, ==, CS_DIST_UNIFORM);
    g_assert_cmpint(w->types[2].sizes[CS_SIZE_TEXT_OUT_TOKENS].parts[0].kind, ==,
                    CS_DIST_EXPONENTIAL);
    json_decref(root);
    remove_trace(path);
}

static void test_long_trace(void)
{
    g_autoptr(cs_plan_graph) graph = graph_make();
    g_autoptr(GError) error = NULL;
    char *path = write_trace("long.jsonl", 1000000);
    g_autoptr(cs_workload) w = cs_workload_load(path, graph, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(w->n_trace, ==, 1000000);
    g_assert_cmpfloat_with_epsilon(w->rate_rps, 4, 0.05);
    remove_trace(path);
}

static void assert_bad_trace(const char *text, const char *expected)
{
    g_autoptr(cs_plan_graph) graph = graph_make();
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_dir_make_tmp("cs-trace-XXXXXX", NULL);
    char *path = g_build_filename(dir, "t.jsonl", NULL);
    g_file_set_contents(path, text, -1, NULL);
    g_assert_null(cs_workload_load(path, graph, &error));
    g_assert_nonnull(error);
    if (!strstr(error->message, expected))
        g_error("%s: expected %s", error->message, expected);
    remove_trace(path);
}

static void test_bad_traces(void)
{
    assert_bad_trace("", "expected at least two requests");
    assert_bad_trace("{\"t\": 0, \"type\": \"x\", \"sizes\": {}}\n",
                     ":1: type: the task graph has no");
    assert_bad_trace(
        "{\"t\": 0, \"type\": \"t\", \"sizes\": {}}\n{\"t\": -1, \"type\": \"t\", \"sizes\": {}}",
        ":2: t: expected a number");
    assert_bad_trace("{\"t\": 0, \"type\": \"t\", \"sizes\": {\"n\": 1}}\n",
                     "sizes.n: there is no such size");
    assert_bad_trace("{\"t\": NaN}\n", ":1: line 1");
    assert_bad_trace(
        "{\"t\": 3, \"type\": \"t\", \"sizes\": {}}\n{\"t\": 3, \"type\": \"t\", \"sizes\": {}}",
        "all requests come at the same time");
}

static void assert_fault(const char *text, const char *expected)
{
    g_autoptr(cs_plan_graph) graph = graph_make();
    json_t *root = quoted_json(text);
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_workload_from_json(root, "w", graph, &error));
    g_assert_cmpstr(error->message, ==, expected);
    json_decref(root);
}

static void test_faults(void)
{
    assert_fault("{'version':1,'types':[{'name':'t','rate_rps':0}]}",
                 "w: types: all rates are 0: there is nothing to plan for");
    assert_fault("{'version':1,'types':[{'name':'t','share':1}]}",
                 "w: types[0].share: a share needs the workload's rate_rps");
    assert_fault("{'version':1,'types':[{'name':'x','rate_rps':1}]}",
                 "w: types[0].path: the task graph has no request type x");
    assert_fault("{'version':1,'types':[{'name':'t','rate_rps':1,'sizes':{'images':{'dist':"
                 "'uniform','from':5,'to':1}}}]}",
                 "w: types[0].sizes.images.to: expected at least from (5), found 1");
    assert_fault("{'version':1,'types':[{'name':'t','rate_rps':1,'sizes':{'images':{'dist':"
                 "'empirical','values':[]}}}]}",
                 "w: types[0].sizes.images.values: expected at least one value");
    assert_fault("{'version':1,'types':[{'name':'t','rate_rps':1,'sizes':{'images':{'dist':"
                 "'uniform','from':1,'to':2,'mean':1}}}]}",
                 "w: types[0].sizes.images.mean: unknown member; known are dist, min, max, from, "
                 "to");
    assert_fault("{'version':1,'types':[{'name':'t','rate_rps':1,'sizes':{'images':{'dist':"
                 "'mixture','parts':[{'weight':1,'dist':'constant','value':1,'max':3}]}}}]}",
                 "w: types[0].sizes.images.parts[0].max: unknown member; known are dist, weight, "
                 "value");
    assert_fault("{'version':1,'arrivals':{'process':'poisson','cv2':3},'types':[{'name':'t',"
                 "'rate_rps':1}]}",
                 "w: arrivals.cv2: unknown member; known are process");
    assert_fault("{'version':1,'types':[]}", "w: types: expected 1 to 1024 types, found 0");
    assert_fault("{'version':1,'arrivals':{'process':'flood'},'types':[{'name':'t','rate_rps':1}]}",
                 "w: arrivals.process: expected poisson, bursty, duty or uniform, found \"flood\"");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/plan/workload/distributions", test_distributions);
    g_test_add_func("/plan/workload/faults", test_faults);
    g_test_add_func("/plan/workload/bad-traces", test_bad_traces);
    g_test_add_func("/plan/workload/fit", test_fit);
    g_test_add_func("/plan/workload/long-trace", test_long_trace);
    return g_test_run();
}
