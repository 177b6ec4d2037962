/* src/plan/sim against closed forms of queueing theory and against small cases done by hand. */
#include "base/os.h"
#include "plan/instances.h"
#include "plan/sim.h"

#include <math.h>
#include <string.h>

typedef struct {
    instance in;
    cs_layout *layout;
} model;

#define PARSE(field, make, text, ...)                                                              \
    do {                                                                                           \
        json_t *root = quoted_json(text);                                                          \
        GError *fault = NULL;                                                                      \
        field = make(root, "test", ##__VA_ARGS__, &fault);                                         \
        g_assert_no_error(fault);                                                                  \
        json_decref(root);                                                                         \
    } while (0)

static void model_make(model *m, const char *graph, const char *cluster, const char *profiles,
                       const char *workload)
{
    *m = (model){0};
    g_autoptr(GError) error = NULL;
    PARSE(m->in.graph, cs_plan_graph_from_json, graph);
    PARSE(m->in.cluster, cs_cluster_from_json, cluster);
    PARSE(m->in.profiles, cs_profiles_from_json, profiles, m->in.graph, m->in.cluster);
    PARSE(m->in.workload, cs_workload_from_json, workload, m->in.graph);
    m->in.problem =
        cs_problem_new(m->in.graph, m->in.cluster, m->in.profiles, m->in.workload, NULL, &error);
    g_assert_no_error(error);
    m->layout = cs_layout_new(m->in.problem);
}

static void model_clear(model *m)
{
    cs_layout_free(m->layout);
    instance_clear(&m->in);
}

static size_t exec_named(const model *m, const char *name)
{
    for (size_t e = 0; e < m->in.problem->n_execs; e++)
        if (g_str_equal(m->in.problem->execs[e].name, name))
            return e;
    g_error("no executor type %s", name);
}

/* One route of the only type: stage i on the named executor and node. */
static void route_all(model *m, const char *const *names, const int *nodes, const int *replicas)
{
    cs_layout_route r = {.weight = 1};
    for (size_t s = 0; s < m->in.problem->n_stages; s++) {
        r.exec[s] = (gint16)exec_named(m, names[s]);
        r.node[s] = (gint16)nodes[s];
        *cs_layout_at(m->layout, (size_t)r.exec[s], (size_t)nodes[s]) = replicas[s];
    }
    g_array_append_val(m->layout->routes, r);
}

static cs_sim_result run(const model *m, size_t requests, cs_sim_dispatch dispatch)
{
    cs_sim_options o = {.seed = 7, .requests = requests, .dispatch = dispatch};
    cs_sim_result r;
    g_autoptr(GError) error = NULL;
    cs_sim_run(m->layout, &o, &r, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(r.arrived, ==, requests);
    g_assert_cmpuint(r.completed, ==, requests);
    g_assert_cmpfloat_with_epsilon(r.bytes_sent, r.bytes_delivered, 1e-9 * r.bytes_sent + 1e-9);
    return r;
}

static const char *const one_encoder =
    "{'version':1,'name':'q','components':[{'name':'a','kind':'encoder','weights_bytes':1,"
    "'units':{'images':1}}],'edges':[],'request_types':[{'name':'t','components':['a']}]}";
static const char *const eight_devices =
    "{'version':1,'devices':{'d':{'memory_bytes':1e9}},'nodes':[{'name':'n','devices':{'d':8}}],"
    "'topology':{'kind':'full','bandwidth_bytes_per_s':1e9}}";
static const char *const unit_service =
    "{'version':1,'profiles':[{'component':'a','device':'d','per_unit_s':1}]}";

static void assert_mean(const char *service, const char *arrivals, double rate, int servers,
                        double expected)
{
    model m;
    g_autofree char *workload = g_strdup_printf(
        "{'version':1,'arrivals':%s,'types':[{'name':'t','rate_rps':%.9g,'sizes':{'images':%s}}]}",
        arrivals, rate, service);
    model_make(&m, one_encoder, eight_devices, unit_service, workload);
    route_all(&m, (const char *const[]){"a"}, (int[]){0}, (int[]){servers});
    cs_sim_result r = run(&m, 1000000, CS_DISPATCH_LEAST_WORK);
    g_test_message("mean sojourn %.5f, expected %.5f", r.types[0].mean_s, expected);
    g_assert_cmpfloat(fabs(r.types[0].mean_s / expected - 1), <, 0.01);
    cs_sim_result_clear(&r);
    model_clear(&m);
}

#define POISSON "{'process':'poisson'}"
#define EXPONENTIAL "{'dist':'exponential','mean':1}"

static void test_mm1(void)
{
    assert_mean(EXPONENTIAL, POISSON, 0.3, 1, 1 / (1 - 0.3));
    assert_mean(EXPONENTIAL, POISSON, 0.7, 1, 1 / (1 - 0.7));
}

/* Pollaczek and Khinchine: W = 1 + rho (1 + c^2) / (2 (1 - rho)). */
static void test_md1(void)
{
    assert_mean("1", POISSON, 0.7, 1, 1 + 0.7 / (2 * 0.3));
    /* M/G/1 with uniform service on [0, 2]: c^2 = 1/3 */
    assert_mean("{'dist':'uniform','from':0,'to':2}", POISSON, 0.6, 1,
                1 + 0.6 * (4.0 / 3) / (2 * 0.4));
    /* and with a half that costs nothing (a path through an encoder without anything to encode) */
    assert_mean("{'dist':'mixture','parts':[{'weight':1,'dist':'constant','value':0},{'weight':1,"
                "'dist':'constant','value':2}]}",
                POISSON, 0.6, 1, 1 + 0.6 * 2 / (2 * 0.4));
}

/* Erlang's C formula. */
static double mmk_sojourn(double rate, int k)
{
    double term = 1, sum = 0, rho = rate / k;
    for (int i = 0; i < k; i++) {
        sum += term;
        term *= rate / (i + 1);
    }
    double wait = term / (1 - rho) / (sum + term / (1 - rho));
    return 1 + wait / (k - rate);
}

static void test_mmk(void)
{
    assert_mean(EXPONENTIAL, POISSON, 1.4, 2, mmk_sojourn(1.4, 2));
    assert_mean(EXPONENTIAL, POISSON, 6.0, 8, mmk_sojourn(6.0, 8));
}

static void test_dd1(void)
{
    assert_mean("1", "{'process':'uniform'}", 0.9, 1, 1);
}

/* H2/M/1 with balanced means: sojourn 1 / (1 - sigma), sigma the root of A*(1 - sigma) = sigma,
 * where A* is the Laplace transform of the gaps. */
static void test_h2m1(void)
{
    double rate = 0.4, cv2 = 4, q = 0.5 * (1 + sqrt((cv2 - 1) / (cv2 + 1))), sigma = 0.5;
    for (int i = 0; i < 200; i++) {
        double fast = 2 * q * rate, slow = 2 * (1 - q) * rate, s = 1 - sigma;
        sigma = q * fast / (fast + s) + (1 - q) * slow / (slow + s);
    }
    assert_mean(EXPONENTIAL, "{'process':'bursty','cv2':4}", rate, 1, 1 / (1 - sigma));
}

/* Jackson: each queue of the tandem is an M/M/1 of its own. */
static void test_tandem(void)
{
    model m;
    model_make(
        &m,
        "{'version':1,'name':'q','components':[{'name':'a','kind':'encoder','weights_bytes':1,"
        "'units':{'images':1}},{'name':'b','kind':'encoder','weights_bytes':1,'units':"
        "{'steps':1}}],'edges':[{'from':'a','to':'b','bytes':1000}],'request_types':[{'name':'t',"
        "'components':['a','b']}]}",
        "{'version':1,'devices':{'d':{'memory_bytes':1e9}},'nodes':[{'name':'n','devices':{'d':8}}"
        "],'topology':{'kind':'full','bandwidth_bytes_per_s':1e9,'intra_bandwidth_bytes_per_s':"
        "1e15}}",
        "{'version':1,'profiles':[{'component':'a','device':'d','per_unit_s':1},{'component':'b',"
        "'device':'d','per_unit_s':0.5}]}",
        "{'version':1,'types':[{'name':'t','rate_rps':0.6,'sizes':{'images':" EXPONENTIAL
        ",'steps':" EXPONENTIAL "}}]}");
    route_all(&m, (const char *const[]){"a", "b"}, (int[]){0, 0}, (int[]){1, 1});
    cs_sim_result r = run(&m, 1000000, CS_DISPATCH_LEAST_REQUESTS);
    double expected = 1 / (1 - 0.6) + 0.5 / (1 - 0.3);
    g_assert_cmpfloat(fabs(r.types[0].mean_s / expected - 1), <, 0.01);
    g_assert_cmpfloat_with_epsilon(r.bytes_delivered, 1000.0 * 1000000, 1);
    cs_sim_result_clear(&r);
    model_clear(&m);
}

/* An LLM, then a streaming generator on another node; times by hand. */
static const char *const speech_graph =
    "{'version':1,'name':'s','components':["
    "{'name':'llm','kind':'llm','weights_bytes':10,'kv_bytes_per_token':1,'units':"
    "{'text_in_tokens':1},'output_units':{'text_out_tokens':1},'output':'text','split':true},"
    "{'name':'voc','kind':'generator','weights_bytes':10,'units':{'text_out_tokens':1},"
    "'output':'audio'}],'edges':[{'from':'llm','to':'voc','bytes':{'text_out_tokens':100},"
    "'chunks':%d}],'request_types':[{'name':'t','components':['llm','voc']}]}";
static const char *const two_nodes =
    "{'version':1,'devices':{'d':{'memory_bytes':2000,'usable':1}},'nodes':[{'name':'n','count':2,"
    "'devices':{'d':4}}],'topology':{'kind':'full','bandwidth_bytes_per_s':1000,'latency_s':0.25,"
    "'hop_overhead_s':0.125}}";
static const char *const speech_profiles =
    "{'version':1,'profiles':["
    "{'component':'llm','role':'prefill','device':'d','max_batch':8,'fixed_s':0.5,'per_unit_s':"
    "0.01},"
    "{'component':'llm','role':'decode','device':'d','max_batch':8,'fixed_s':0.09,'per_unit_s':"
    "0.01},"
    "{'component':'voc','device':'d','max_batch':4,'fixed_s':0.04,'per_unit_s':0.01}]}";

static cs_sim_result run_speech(int chunks, double rate, size_t requests, double *first)
{
    model m;
    g_autofree char *graph = g_strdup_printf(speech_graph, chunks);
    g_autofree char *workload = g_strdup_printf(
        "{'version':1,'arrivals':{'process':'uniform'},'types':[{'name':'t','rate_rps':%g,'sizes':"
        "{'text_in_tokens':100,'text_out_tokens':20}}]}",
        rate);
    model_make(&m, graph, two_nodes, speech_profiles, workload);
    route_all(&m, (const char *const[]){"llm", "llm", "voc"}, (int[]){0, 0, 1}, (int[]){1, 1, 1});
    cs_sim_result r = run(&m, requests, CS_DISPATCH_LEAST_REQUESTS);
    *first = cs_sim_percentile(r.types[0].first_s, r.types[0].requests, 0.5);
    model_clear(&m);
    return r;
}

static void test_by_hand(void)
{
    /* The first token comes of the prompt. */
    double first, prefill = 0.5 + 100 * 0.01, decode = 19 * 0.1, move = 2000 / 1000.0;
    /* Alone in the system, nothing streamed. */
    cs_sim_result r = run_speech(1, 0.01, 20, &first);
    double expected = prefill + decode + move + 0.25 + 0.125 + 20 * 0.05;
    g_assert_cmpfloat_with_epsilon(r.types[0].mean_s, expected, 1e-5);
    g_assert_cmpfloat_with_epsilon(first, expected - 19 * 0.05, 1e-5);
    cs_sim_result_clear(&r);
    /* In four chunks of 5 tokens: 0.5 s of decode, 0.5 s of link, 0.25 s of vocoder each. Chunks
     * leave the LLM every 0.5 s, the last after 19 steps, when the link is busy for 0.1 s more. */
    r = run_speech(4, 0.01, 20, &first);
    expected = prefill + decode + 0.1 + 0.5 + 0.375 + 5 * 0.05;
    g_assert_cmpfloat_with_epsilon(r.types[0].mean_s, expected, 1e-5);
    g_assert_cmpfloat_with_epsilon(first, prefill + 0.5 + 0.5 + 0.375 + 0.05, 1e-5);
    cs_sim_result_clear(&r);
}

/* Two requests at once share iterations: 0.09 + 2 x 0.01 s each while both decode. A prompt in the
 * same step shares the fixed cost. */
static void test_continuous_batching(void)
{
    model m;
    model_make(&m,
               "{'version':1,'name':'s','components':[{'name':'llm','kind':'llm','weights_bytes':"
               "10,'kv_bytes_per_token':1,'units':{'text_in_tokens':1},'output_units':"
               "{'text_out_tokens':1},'output':'text'}],'edges':[],'request_types':[{'name':'t',"
               "'components':['llm']}]}",
               two_nodes,
               "{'version':1,'profiles':[{'component':'llm','role':'prefill','device':'d',"
               "'max_batch':8,'fixed_s':0.05,'per_unit_s':0.01},{'component':'llm','role':"
               "'decode','device':'d','max_batch':8,'fixed_s':0.09,'per_unit_s':0.01}]}",
               "{'version':1,'arrivals':{'process':'uniform'},'types':[{'name':'t','rate_rps':1,"
               "'sizes':{'text_in_tokens':10,'text_out_tokens':100}}]}");
    route_all(&m, (const char *const[]){"llm", "llm"}, (int[]){0, 0}, (int[]){1, 1});
    cs_sim_options o = {.seed = 1, .requests = 2, .warm_up = 1e-9};
    cs_sim_result r;
    g_autoptr(GError) error = NULL;
    g_assert_true(cs_sim_run(m.layout, &o, &r, &error));
    /* A arrives at 1, prefills until 1.15, decodes alone: at 2.05 it ends its 9th step. B's prompt
     * joins the next round (0.09 + 0.01 + 0.1 s, A's 10th), then both decode at 0.11 s: A's other
     * 89 steps, then B's last 10 alone at 0.1 s. */
    double a = 2.25 + 89 * 0.11 - 1, b = 2.25 + 89 * 0.11 + 10 * 0.1 - 2;
    g_assert_cmpfloat_with_epsilon(cs_sim_percentile(r.types[0].latency_s, 2, 1.0), MAX(a, b),
                                   1e-4);
    g_assert_cmpfloat_with_epsilon(cs_sim_percentile(r.types[0].latency_s, 2, 0.1), MIN(a, b),
                                   1e-4);
    cs_sim_result_clear(&r);
    model_clear(&m);
}

/* An encoder's batch in ten turns of 0.1 s, between which the LLM beside it has its steps. */
static void test_turns(void)
{
    model m;
    model_make(&m,
               "{'version':1,'name':'s','components':[{'name':'enc','kind':'encoder',"
               "'weights_bytes':1,'units':{'images':1}},{'name':'llm','kind':'llm','weights_bytes':"
               "10,'units':{'text_in_tokens':1},'output_units':{'text_out_tokens':1},'output':"
               "'text'}],'edges':[{'from':'enc','to':'llm','bytes':0}],'request_types':[{'name':"
               "'t','components':['enc','llm']}]}",
               two_nodes,
               "{'version':1,'profiles':[{'component':'enc','device':'d','per_unit_s':1,'turns':"
               "10},{'component':'llm','role':'prefill','device':'d','max_batch':8,'per_unit_s':"
               "0.01},{'component':'llm','role':'decode','device':'d','max_batch':8,'per_unit_s':"
               "0.1}]}",
               "{'version':1,'arrivals':{'process':'uniform'},'types':[{'name':'t','rate_rps':0.8,"
               "'sizes':{'images':1,'text_in_tokens':10,'text_out_tokens':100}}]}");
    route_all(&m, (const char *const[]){"enc+llm", "enc+llm", "enc+llm"}, (int[]){0, 0, 0},
              (int[]){1, 1, 1});
    cs_sim_options o = {.seed = 1, .requests = 2, .warm_up = 1e-9};
    cs_sim_result r;
    g_autoptr(GError) error = NULL;
    g_assert_true(cs_sim_run(m.layout, &o, &r, &error));
    /* A arrives at 1.25, is encoded alone until 2.25 and has its first token at 2.35. B arrives at
     * 2.5, in A's second step; from 2.55 on ten turns and ten steps alternate until 4.55, then
     * comes B's prompt, with a step of A. */
    g_assert_cmpfloat_with_epsilon(r.types[0].first_s[0], 1.1, 1e-5);
    g_assert_cmpfloat_with_epsilon(r.types[0].first_s[1], 4.75 - 2.5, 1e-5);
    g_assert_cmpfloat_with_epsilon(r.types[0].first_mean_s, (1.1 + 2.25) / 2, 1e-5);
    cs_sim_result_clear(&r);
    model_clear(&m);
}

/* Prompts beside decode are cut so that a step takes about 0.15 s, at the pace of the step before.
 */
static void test_mixed_steps(void)
{
    model m;
    model_make(&m,
               "{'version':1,'name':'s','components':[{'name':'llm','kind':'llm','weights_bytes':"
               "10,'units':{'text_in_tokens':1},'output_units':{'text_out_tokens':1},'output':"
               "'text'}],'edges':[],'request_types':[{'name':'t','components':['llm']}]}",
               two_nodes,
               "{'version':1,'profiles':[{'component':'llm','role':'prefill','device':'d',"
               "'max_batch':8,'fixed_s':0.05,'per_unit_s':0.001,'mixed_step_s':0.15},{'component':"
               "'llm','role':'decode','device':'d','max_batch':8,'fixed_s':0.09,'per_unit_s':"
               "0.01}]}",
               "{'version':1,'arrivals':{'process':'uniform'},'types':[{'name':'t','rate_rps':1,"
               "'sizes':{'text_in_tokens':100,'text_out_tokens':100}}]}");
    route_all(&m, (const char *const[]){"llm", "llm"}, (int[]){0, 0}, (int[]){1, 1});
    cs_sim_options o = {.seed = 1, .requests = 2, .warm_up = 1e-9};
    cs_sim_result r;
    g_autoptr(GError) error = NULL;
    g_assert_true(cs_sim_run(m.layout, &o, &r, &error));
    /* A arrives at 1 and has its prompt whole until 1.15: beside decode it could then have been 64
     * tokens, twice as many as before. B arrives at 2, begins at 2.05 and has 64 and 36. */
    g_assert_cmpfloat_with_epsilon(r.types[0].first_s[0], 0.15, 1e-5);
    g_assert_cmpfloat_with_epsilon(r.types[0].first_s[1], 0.05 + (0.1 + 0.064) + (0.1 + 0.036),
                                   1e-5);
    cs_sim_result_clear(&r);
    model_clear(&m);
}

/* A generator that makes pieces of 4 and then 8 units, looks 2 units ahead, and works as long for a
 * piece as for one unit more; times by hand. */
static void test_pieces(void)
{
    model m;
    model_make(&m,
               "{'version':1,'name':'s','components':[{'name':'llm','kind':'llm','weights_bytes':"
               "10,'units':{'text_in_tokens':1},'output_units':{'text_out_tokens':1}},{'name':"
               "'voc','kind':'generator','weights_bytes':10,'units':{'text_out_tokens':1},"
               "'first_piece':4,'piece':8,'piece_extra':1,'output':'audio'}],'edges':[{'from':'llm'"
               ",'to':'voc',"
               "'chunks':39,'ahead':2}],'request_types':[{'name':'t','components':['llm','voc']}]}",
               two_nodes, speech_profiles,
               "{'version':1,'arrivals':{'process':'uniform'},'types':[{'name':'t','rate_rps':0.01,"
               "'sizes':{'text_in_tokens':100,'text_out_tokens':40}}]}");
    route_all(&m, (const char *const[]){"llm", "llm", "voc"}, (int[]){0, 0, 1}, (int[]){1, 1, 1});
    cs_sim_result r = run(&m, 20, CS_DISPATCH_LEAST_REQUESTS);
    /* Steps of 0.1 s after a prompt of 1.5 s, 0.375 s to the other node, 0.05 s a unit there. The
     * first piece needs 6 steps; the last but one, units 28 to 36, needs 38 and takes 0.45 s, in
     * which the last step is made, and with it the last four units can be. */
    g_assert_cmpfloat_with_epsilon(cs_sim_percentile(r.types[0].first_s, r.types[0].requests, 0.5),
                                   1.5 + 0.6 + 0.375 + 5 * 0.05, 1e-5);
    g_assert_cmpfloat_with_epsilon(r.types[0].mean_s, 1.5 + 3.8 + 0.375 + 9 * 0.05 + 5 * 0.05,
                                   1e-5);
    cs_sim_result_clear(&r);
    model_clear(&m);
}

/* KV for 2 requests only: a third waits though the batch has room. */
static void test_kv_budget(void)
{
    static const double memory[] = {10 + 2 * 150 + 20, 1e4};
    double mean[2];
    for (int i = 0; i < 2; i++) {
        model m;
        g_autofree char *cluster = g_strdup_printf(
            "{'version':1,'devices':{'d':{'memory_bytes':%g,'usable':1}},'nodes':[{'name':'n',"
            "'devices':{'d':1}}],'topology':{'kind':'full','bandwidth_bytes_per_s':1}}",
            memory[i]);
        model_make(&m,
                   "{'version':1,'name':'s','components':[{'name':'llm','kind':'llm',"
                   "'weights_bytes':10,'kv_bytes_per_token':1,'units':{'text_in_tokens':1},"
                   "'output_units':{'text_out_tokens':1}}],'edges':[],'request_types':[{'name':"
                   "'t','components':['llm']}]}",
                   cluster,
                   "{'version':1,'profiles':[{'component':'llm','role':'prefill','device':'d',"
                   "'max_batch':64,'per_unit_s':0.0001},{'component':'llm','role':'decode',"
                   "'device':'d','max_batch':64,'fixed_s':0.1,'per_unit_s':0.0001}]}",
                   "{'version':1,'types':[{'name':'t','rate_rps':0.15,'sizes':{'text_in_tokens':"
                   "100,'text_out_tokens':100}}]}");
        g_assert_cmpint(m.in.problem->execs[0].stages[1].batch, ==, i ? 64 : 2);
        route_all(&m, (const char *const[]){"llm", "llm"}, (int[]){0, 0}, (int[]){1, 1});
        cs_sim_result r = run(&m, 5000, CS_DISPATCH_LEAST_REQUESTS);
        mean[i] = r.types[0].mean_s;
        cs_sim_result_clear(&r);
        model_clear(&m);
    }
    g_assert_cmpfloat_with_epsilon(mean[1], 10.1, 0.3);
    g_assert_cmpfloat(mean[0], >, 12);
}

/* The same seed gives the same run to the last bit; another one does not. */
static void test_deterministic(void)
{
    double first;
    cs_sim_result a = run_speech(4, 0.4, 3000, &first), b = run_speech(4, 0.4, 3000, &first);
    g_assert_cmpmem(a.types[0].latency_s, a.types[0].requests * sizeof(float), b.types[0].latency_s,
                    b.types[0].requests * sizeof(float));
    g_assert_cmpuint(a.events, ==, b.events);
    cs_sim_result_clear(&a);
    cs_sim_result_clear(&b);
}

/* More than the devices carry: gives up instead of never ending. */
static void test_overload(void)
{
    model m;
    model_make(&m, one_encoder, eight_devices, unit_service,
               "{'version':1,'types':[{'name':'t','rate_rps':5,'sizes':{'images':1}}]}");
    route_all(&m, (const char *const[]){"a"}, (int[]){0}, (int[]){1});
    cs_sim_options o = {.seed = 1, .requests = 100000, .max_in_flight = 1000};
    cs_sim_result r;
    g_autoptr(GError) error = NULL;
    g_assert_true(cs_sim_run(m.layout, &o, &r, &error));
    g_assert_true(r.gave_up);
    g_assert_cmpuint(r.arrived - r.completed, <=, 1001);
    cs_sim_result_clear(&r);
    model_clear(&m);
}

/* Random layouts of random problems: nothing is lost, no server is more than busy. */
static void test_conserves(void)
{
    instance_options o = {.components = 4,
                          .max_nodes = 3,
                          .max_devices = 3,
                          .max_kinds = 2,
                          .max_types = 3,
                          .max_count = 2,
                          .tight_memory = true};
    int done = 0;
    for (guint64 seed = 1; done < 60; seed++) {
        model m = {0};
        if (!instance_make(&m.in, &o, seed)) {
            instance_clear(&m.in);
            continue;
        }
        const cs_problem *p = m.in.problem;
        m.layout = cs_layout_new(p);
        cs_rng rng;
        cs_rng_seed(&rng, seed);
        for (size_t t = 0; t < p->n_types; t++) {
            cs_layout_route r = {.type = (guint)t, .weight = 1};
            for (size_t s = 0; s < p->n_stages; s++) {
                size_t e = (size_t)(cs_rng_uniform(&rng) * (double)p->n_execs);
                int twin = p->stages[s].inseparable ? p->stages[s].twin : (int)s;
                while (!(p->execs[e].mask >> s & 1))
                    e = (e + 1) % p->n_execs;
                if (twin < (int)s && (p->types[t].stages >> twin & 1)) {
                    r.exec[s] = r.exec[twin];
                    r.node[s] = r.node[twin];
                } else {
                    r.exec[s] = (gint16)e;
                    r.node[s] = (gint16)(cs_rng_uniform(&rng) * (double)m.in.cluster->n_nodes);
                }
                *cs_layout_at(m.layout, (size_t)r.exec[s], (size_t)r.node[s]) = 1;
            }
            g_array_append_val(m.layout->routes, r);
        }
        for (size_t n = 0; n < m.in.cluster->n_nodes; n++)
            for (size_t k = 0; k < m.in.cluster->n_kinds; k++)
                m.in.cluster->nodes[n].devices[k] = 1000;
        cs_sim_options so = {.seed = seed,
                             .requests = 500,
                             .bins = 10,
                             .rate_rps = 0.8 * cs_layout_rate(m.layout, NULL)};
        cs_sim_result r;
        g_autoptr(GError) error = NULL;
        cs_sim_run(m.layout, &so, &r, &error);
        g_assert_no_error(error);
        g_assert_cmpuint(r.completed, ==, 500);
        g_assert_cmpfloat_with_epsilon(r.bytes_sent, r.bytes_delivered, 1e-9 * r.bytes_sent);
        for (size_t i = 0; i < p->n_execs * m.in.cluster->n_nodes; i++)
            g_assert_cmpfloat(r.busy[i], <=, 1 + 1e-9);
        json_t *json = cs_sim_to_json(&r, m.layout);
        g_assert_nonnull(json);
        json_decref(json);
        cs_sim_result_clear(&r);
        model_clear(&m);
        done++;
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/plan/sim/by-hand", test_by_hand);
    g_test_add_func("/plan/sim/continuous-batching", test_continuous_batching);
    g_test_add_func("/plan/sim/kv-budget", test_kv_budget);
    g_test_add_func("/plan/sim/turns", test_turns);
    g_test_add_func("/plan/sim/mixed-steps", test_mixed_steps);
    g_test_add_func("/plan/sim/pieces", test_pieces);
    g_test_add_func("/plan/sim/deterministic", test_deterministic);
    g_test_add_func("/plan/sim/overload", test_overload);
    g_test_add_func("/plan/sim/conserves", test_conserves);
    g_test_add_func("/plan/sim/mm1", test_mm1);
    g_test_add_func("/plan/sim/md1", test_md1);
    g_test_add_func("/plan/sim/mmk", test_mmk);
    g_test_add_func("/plan/sim/dd1", test_dd1);
    g_test_add_func("/plan/sim/h2m1", test_h2m1);
    g_test_add_func("/plan/sim/tandem", test_tandem);
    return g_test_run();
}
