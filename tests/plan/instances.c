#include "plan/instances.h"

#include "base/json.h"

#include <string.h>

json_t *quoted_json(const char *text)
{
    g_autofree char *json = g_strdelimit(g_strdup(text), "'", '"');
    g_autoptr(GError) error = NULL;
    json_t *root = cs_json_load(json, strlen(json), "test", &error);
    g_assert_no_error(error);
    return root;
}

static int draw(cs_rng *rng, int from, int to)
{
    return from + (int)(cs_rng_uniform(rng) * (to - from + 1));
}

static double draw_real(cs_rng *rng, double from, double to)
{
    return from * pow(to / from, cs_rng_uniform(rng));
}

/* Encoders feed an LLM (sometimes split), which feeds generators: the shape of omni models. */
static const char *const roles[] = {"llm",     "encoder",   "generator",
                                    "encoder", "generator", "encoder"};

static cs_plan_graph *make_graph(const instance_options *o, cs_rng *rng)
{
    g_autoptr(GString) s = g_string_new("{'version':1,'name':'random','components':[");
    for (int c = 0; c < o->components; c++) {
        bool llm = c == 0;
        g_string_append_printf(s, "%s{'name':'c%d','kind':'%s','weights_bytes':%.0f,'units':%s",
                               c ? "," : "", c, roles[c],
                               draw_real(rng, 5e9, o->tight_memory ? 60e9 : 15e9),
                               llm ? "{'text_in_tokens':1}" : "{'constant':1}");
        if (llm)
            g_string_append_printf(s,
                                   ",'kv_bytes_per_token':%.0f,'output_units':"
                                   "{'text_out_tokens':1},'split':%s",
                                   draw_real(rng, 1e4, 2e5),
                                   o->components <= 4 && draw(rng, 0, 2) == 0 ? "true" : "false");
        g_string_append(s, "}");
    }
    g_string_append(s, "],'edges':[");
    for (int c = 1; c < o->components; c++) {
        bool in = g_str_equal(roles[c], "encoder");
        g_string_append_printf(s, "%s{'from':'c%d','to':'c%d','bytes':%.0f}", c > 1 ? "," : "",
                               in ? c : 0, in ? 0 : c, draw_real(rng, 1e5, 1e8));
    }
    g_string_append(s, "],'request_types':[");
    int types = draw(rng, 1, o->max_types);
    for (int t = 0; t < types; t++) {
        g_string_append_printf(s, "%s{'name':'t%d','components':['c0'", t ? "," : "", t);
        for (int c = 1; c < o->components; c++)
            if (t == 0 || draw(rng, 0, 1))
                g_string_append_printf(s, ",'c%d'", c);
        g_string_append(s, "]}");
    }
    g_string_append(s, "]");
    if (o->components > 4) { /* keeps the number of executor types in bounds */
        g_string_append(s, ",'colocate':[");
        for (int k = 0; k < 3; k++) {
            int a = draw(rng, 0, o->components - 1), b = draw(rng, 0, o->components - 1);
            g_string_append_printf(s, "%s['c%d','c%d','c0']", k ? "," : "", a, b);
        }
        g_string_append(s, "]");
    }
    g_string_append(s, "}");
    json_t *root = quoted_json(s->str);
    g_autoptr(GError) error = NULL;
    cs_plan_graph *graph = cs_plan_graph_from_json(root, "graph", &error);
    g_assert_no_error(error);
    json_decref(root);
    return graph;
}

static cs_cluster *make_cluster(const instance_options *o, cs_rng *rng)
{
    static const char *const shapes[] = {"full", "ring", "fat-tree", "rail"};
    int kinds = draw(rng, 1, o->max_kinds), nodes = draw(rng, 1, o->max_nodes);
    g_autoptr(GString) s = g_string_new("{'version':1,'devices':{");
    for (int k = 0; k < kinds; k++)
        g_string_append_printf(s, "%s'k%d':{'memory_bytes':%.0f,'cost':%d}", k ? "," : "", k,
                               k ? 48e9 : 80e9, draw(rng, 1, 3) + (k ? 0 : 1));
    g_string_append(s, "},'nodes':[");
    bool equal = draw(rng, 0, 1);
    int devices[2] = {draw(rng, 1, o->max_devices), draw(rng, 1, o->max_devices)};
    for (int n = 0; n < nodes; n++) {
        g_string_append_printf(s, "%s{'name':'n%d','devices':{", n ? "," : "", n);
        for (int k = 0; k < kinds; k++)
            g_string_append_printf(s, "%s'k%d':%d", k ? "," : "", k,
                                   equal ? devices[k] : draw(rng, 1, o->max_devices));
        g_string_append(s, "}}");
    }
    int shape = draw(rng, 0, 3);
    g_string_append_printf(
        s, "],'topology':{'kind':'%s','bandwidth_bytes_per_s':%.0f,'latency_s':0.001%s}}",
        shapes[shape], o->tight_links ? draw_real(rng, 1e6, 1e9) : 25e9,
        shape >= 2 ? ",'oversubscription':2,'pod_nodes':2" : "");
    json_t *root = quoted_json(s->str);
    g_autoptr(GError) error = NULL;
    cs_cluster *cluster = cs_cluster_from_json(root, "cluster", &error);
    g_assert_no_error(error);
    json_decref(root);
    return cluster;
}

static void append_profile(GString *s, const instance_options *o, cs_rng *rng, int c,
                           const char *role, size_t kinds)
{
    double fixed = draw_real(rng, 1e-3, 2e-2), per = g_str_equal(role, "prefill")  ? 1e-4
                                                     : g_str_equal(role, "decode") ? 5e-4
                                                                                   : 0.1;
    per *= draw_real(rng, 0.3, 6);
    for (size_t k = 0; k < kinds; k++)
        for (int count = 1; count <= o->max_count; count++)
            g_string_append_printf(
                s,
                "%s{'component':'c%d','role':'%s','device':'k%zu','count':%d,'max_batch':%d,"
                "'fixed_s':%.6f,'per_unit_s':%.8f}",
                s->str[s->len - 1] == '[' ? "" : ",", c, role, k, count, 16, fixed,
                per * (k ? draw_real(rng, 0.7, 3) : 1) /
                    (count > 1 ? draw_real(rng, 1.4, 2.1) : 1));
}

static cs_profiles *make_profiles(const instance_options *o, const instance *in, cs_rng *rng)
{
    g_autoptr(GString) s = g_string_new("{'version':1,'profiles':[");
    for (int c = 0; c < o->components; c++) {
        if (c > 0) {
            append_profile(s, o, rng, c, "both", in->cluster->n_kinds);
            continue;
        }
        append_profile(s, o, rng, c, "prefill", in->cluster->n_kinds);
        append_profile(s, o, rng, c, "decode", in->cluster->n_kinds);
    }
    g_string_append(s, "]}");
    json_t *root = quoted_json(s->str);
    g_autoptr(GError) error = NULL;
    cs_profiles *profiles = cs_profiles_from_json(root, "profiles", in->graph, in->cluster, &error);
    g_assert_no_error(error);
    json_decref(root);
    return profiles;
}

static cs_workload *make_workload(const instance_options *o, const instance *in, double rate,
                                  cs_rng *rng)
{
    g_autoptr(GString) s = g_string_new(NULL);
    g_string_append_printf(s, "{'version':1,'rate_rps':%.9g,'types':[", rate);
    for (size_t t = 0; t < in->graph->n_types; t++) {
        g_string_append_printf(
            s,
            "%s{'name':'%s','share':%.3f,'sizes':{'text_in_tokens':{'dist':'uniform',"
            "'from':100,'to':%d},'text_out_tokens':{'dist':'exponential','mean':%d}}",
            t ? "," : "", in->graph->types[t].name, draw_real(rng, 0.2, 2), draw(rng, 200, 4000),
            draw(rng, 20, 300));
        if (o->targets)
            g_string_append_printf(s, ",'latency_s':%.3f", draw_real(rng, 3, 40));
        g_string_append(s, "}");
    }
    g_string_append(s, "]}");
    json_t *root = quoted_json(s->str);
    g_autoptr(GError) error = NULL;
    cs_workload *workload = cs_workload_from_json(root, "workload", in->graph, &error);
    g_assert_no_error(error);
    json_decref(root);
    return workload;
}

/* Requests/s if every stage ran on its best executor type and devices could be divided. */
static double ideal_rate(const cs_problem *p)
{
    double need = 0;
    int devices = 0;
    for (size_t t = 0; t < p->n_types; t++)
        for (size_t s = 0; s < p->n_stages; s++) {
            double best = INFINITY;
            for (size_t e = 0; e < p->n_execs; e++)
                best = MIN(best, cs_problem_work(p, e, s, t) * p->execs[e].count);
            if (p->types[t].stages >> s & 1)
                need += p->types[t].share * best;
        }
    for (size_t k = 0; k < p->cluster->n_kinds; k++)
        devices += p->capacity[k];
    return devices / need;
}

bool instance_make(instance *in, const instance_options *o, guint64 seed)
{
    *in = (instance){0};
    cs_rng rng;
    cs_rng_seed(&rng, seed);
    in->graph = make_graph(o, &rng);
    in->cluster = make_cluster(o, &rng);
    in->profiles = make_profiles(o, in, &rng);
    cs_rng sizes = rng; /* the second workload repeats the first one's draws at another rate */
    in->workload = make_workload(o, in, 1, &sizes);
    cs_problem_options options = {.utilisation_cap = 0.9};
    in->problem =
        cs_problem_new(in->graph, in->cluster, in->profiles, in->workload, &options, NULL);
    if (!in->problem)
        return false;
    double rate = ideal_rate(in->problem) * (o->load > 0 ? o->load : 0.5);
    cs_problem_free(in->problem);
    cs_workload_free(in->workload);
    in->workload = make_workload(o, in, rate, &rng);
    in->problem =
        cs_problem_new(in->graph, in->cluster, in->profiles, in->workload, &options, NULL);
    return in->problem != NULL;
}

void instance_clear(instance *in)
{
    cs_problem_free(in->problem);
    cs_workload_free(in->workload);
    cs_profiles_free(in->profiles);
    cs_cluster_free(in->cluster);
    cs_plan_graph_free(in->graph);
    *in = (instance){0};
}
