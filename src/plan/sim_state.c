/* Set-up of a simulation and its results. */
#include "plan/sim_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_SLOTS 256

/* ---- set-up ---- */

static guint8 output_kind(const char *output)
{
    if (!output)
        return SIM_NONE;
    return g_str_equal(output, "text")    ? SIM_TEXT
           : g_str_equal(output, "audio") ? SIM_AUDIO
                                          : SIM_IMAGE;
}

static void init_info(sim *s)
{
    const cs_problem *p = s->p;
    for (size_t k = 0; k < p->n_stages; k++) {
        s->info[k].kind = p->stages[k].kind;
        s->info[k].output = output_kind(p->graph->components[p->stages[k].component].output);
        s->info[k].first_piece = p->stages[k].first_piece;
        s->info[k].piece = p->stages[k].piece;
        s->info[k].piece_extra = p->stages[k].piece_extra;
    }
    for (size_t a = 0; a < p->n_edges; a++) {
        const cs_stage_edge *edge = &p->edges[a];
        sim_stage_info *from = &s->info[edge->from];
        const cs_stage *to = &p->stages[edge->to];
        from->out[from->n_out++] = (int)a;
        s->gated[a] = -1;
        if (edge->chunks > 1 && to->kind != CS_STAGE_BATCH)
            s->gated[a] = to->kind == CS_STAGE_ITERATE ? edge->to : to->twin;
        if (s->gated[a] >= 0) {
            sim_stage_info *gated = &s->info[s->gated[a]];
            gated->gates[gated->n_gates++] = (int)a;
        }
    }
    s->first_kind = g_new0(guint8, p->n_types + 1);
    for (size_t t = 0; t < p->n_types; t++)
        for (size_t k = 0; k < p->n_stages; k++)
            if (p->types[t].stages >> k & 1)
                s->first_kind[t] = MAX(s->first_kind[t], s->info[k].output);
    s->problem_type = g_new0(guint, p->workload->n_types + 1);
    for (size_t t = 0; t < p->n_types; t++)
        s->problem_type[p->types[t].workload_type] = (guint)t;
}

/* The executor type with the limits of the plan file. */
static cs_exec_type *limited_type(const cs_exec_type *type, const cs_layout_limit *limit)
{
    cs_exec_type *own = g_memdup2(type, sizeof *own);
    for (int k = 0; k < CS_PLAN_MAX_STAGES; k++)
        if (limit->batch[k] > 0)
            own->stages[k].batch = MIN(own->stages[k].batch, limit->batch[k]);
    if (limit->kv_budget_bytes > 0)
        own->kv_budget_bytes = MIN(own->kv_budget_bytes, limit->kv_budget_bytes);
    return own;
}

static void init_server(const sim *s, sim_server *server, const cs_layout *layout, size_t site)
{
    const cs_problem *p = s->p;
    size_t exec = site / p->cluster->n_nodes, node = site % p->cluster->n_nodes;
    server->exec = &p->execs[exec];
    if (layout->limits)
        server->exec = server->limited = limited_type(server->exec, &layout->limits[site]);
    server->site = site;
    server->node = node;
    server->n_stages = __builtin_popcount(server->exec->mask);
    server->stages = g_new0(sim_stage, (size_t)server->n_stages);
    int i = 0;
    for (size_t k = 0; k < p->n_stages; k++) {
        if (!(server->exec->mask >> k & 1))
            continue;
        sim_stage *stage = &server->stages[i];
        server->stage_of[k] = i++;
        stage->index = (int)k;
        stage->kind = p->stages[k].kind;
        stage->mixed_work = SIM_MIXED_MIN;
        stage->active = g_new(guint32, (size_t)server->exec->stages[k].batch + 1);
    }
    for (size_t k = 0; k < p->n_stages; k++)
        if ((server->exec->mask >> k & 1) && p->stages[k].role == CS_ROLE_PREFILL &&
            (server->exec->mask >> p->stages[k].twin & 1)) {
            sim_stage *stage = &server->stages[server->stage_of[k]];
            stage->decode = &server->stages[server->stage_of[p->stages[k].twin]];
            stage->decode->prefill = stage;
            stage->twin_offset = p->stages[k].twin - (int)k;
        }
}

static void init_servers(sim *s, const cs_layout *layout)
{
    s->n_sites = s->p->n_execs * s->p->cluster->n_nodes;
    s->first_server = g_new0(guint32, s->n_sites + 1);
    for (size_t i = 0; i < s->n_sites; i++) {
        s->first_server[i] = (guint32)s->n_servers;
        s->n_servers += (size_t)layout->replicas[i];
    }
    s->first_server[s->n_sites] = (guint32)s->n_servers;
    s->servers = g_new0(sim_server, s->n_servers + 1);
    for (size_t i = 0; i < s->n_sites; i++)
        for (guint32 k = s->first_server[i]; k < s->first_server[i + 1]; k++)
            init_server(s, &s->servers[k], layout, i);
}

static void init_paths(sim *s, const cs_layout *layout)
{
    s->paths = g_new0(sim_paths, s->p->n_types + 1);
    for (size_t t = 0; t < s->p->n_types; t++) {
        s->paths[t].routes = g_new0(const cs_layout_route *, layout->routes->len + 1);
        s->paths[t].cumulative = g_new0(double, layout->routes->len + 1);
    }
    for (guint i = 0; i < layout->routes->len; i++) {
        const cs_layout_route *r = &g_array_index(layout->routes, cs_layout_route, i);
        sim_paths *paths = &s->paths[r->type];
        double before = paths->n ? paths->cumulative[paths->n - 1] : 0;
        paths->routes[paths->n] = r;
        paths->cumulative[paths->n++] = before + r->weight;
    }
}

void sim_grow(sim *s)
{
    guint32 n = s->n_slots ? s->n_slots * 2 : FIRST_SLOTS;
    s->requests = g_renew(sim_request, s->requests, n);
    s->jobs = g_renew(sim_job, s->jobs, (size_t)n * s->n_stages);
    s->got = g_renew(guint16, s->got, (size_t)n * s->n_edges + 1);
    s->sent = g_renew(guint16, s->sent, (size_t)n * s->n_edges + 1);
    s->bytes = g_renew(double, s->bytes, (size_t)n * s->n_edges + 1);
    s->free_slots = g_renew(guint32, s->free_slots, n);
    s->n_slots = n;
}

void sim_init(sim *s, const cs_layout *layout)
{
    const cs_problem *p = s->p;
    size_t n_types = p->n_types, n_links = p->cluster->n_nodes * p->cluster->n_nodes;
    /* Streams of their own: what is drawn for sizes does not depend on the layout. */
    cs_rng_seed(&s->rng_time, s->o->seed * 3 + 1);
    cs_rng_seed(&s->rng_size, s->o->seed * 3 + 2);
    cs_rng_seed(&s->rng_noise, s->o->seed * 3 + 3);
    s->n_stages = (guint32)p->n_stages;
    s->n_edges = p->n_edges;
    init_info(s);
    init_servers(s, layout);
    init_paths(s, layout);
    s->drawn = g_new0(guint64, n_types + 1);
    s->link_free = g_new0(double, n_links + 1);
    s->latencies = g_new0(GArray *, n_types + 1);
    s->missed = g_new0(size_t, n_types + 1);
    s->may_miss = g_new0(double, n_types + 1);
    for (size_t t = 0; t < n_types; t++) {
        s->latencies[t] = g_array_new(FALSE, FALSE, sizeof(float));
        s->may_miss[t] = (1 - p->workload->attainment) * p->types[t].share *
                             (double)(s->n_requests - s->n_warm_up) +
                         1;
    }
    s->r->n_types = n_types;
    s->r->types = g_new0(cs_sim_type, n_types + 1);
    s->r->busy = g_new0(double, s->n_sites + 1);
    s->r->link_busy = g_new0(double, n_links + 1);
    s->r->bins = s->o->bins;
    if (s->o->bins > 0) {
        s->bin_s = (double)s->n_requests / s->rate * 1.1 / (double)s->o->bins;
        s->r->busy_bins = g_new0(float, s->o->bins * s->n_sites + 1);
        s->r->link_bins = g_new0(float, s->o->bins + 1);
    }
}

void sim_clear(sim *s)
{
    for (size_t i = 0; i < s->n_servers; i++) {
        for (int k = 0; k < s->servers[i].n_stages; k++) {
            g_free(s->servers[i].stages[k].active);
            g_free(s->servers[i].stages[k].queue.items);
        }
        g_free(s->servers[i].stages);
        g_free(s->servers[i].limited);
    }
    for (size_t t = 0; t < s->p->n_types; t++) {
        g_array_unref(s->latencies[t]);
        g_free(s->paths[t].routes);
        g_free(s->paths[t].cumulative);
    }
    void *all[] = {s->heap,   s->servers,    s->first_server, s->link_free,  s->paths,
                   s->drawn,  s->first_kind, s->problem_type, s->requests,   s->jobs,
                   s->got,    s->sent,       s->bytes,        s->free_slots, s->latencies,
                   s->missed, s->may_miss};
    for (size_t i = 0; i < G_N_ELEMENTS(all); i++)
        g_free(all[i]);
}

/* ---- results ---- */

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void finish_type(const sim *s, size_t t)
{
    cs_sim_type *type = &s->r->types[t];
    const GArray *pairs = s->latencies[t];
    type->requests = pairs->len / 2;
    type->latency_s = g_new0(float, type->requests + 1);
    type->first_s = g_new0(float, type->requests + 1);
    for (size_t i = 0; i < type->requests; i++) {
        type->latency_s[i] = g_array_index(pairs, float, 2 * i);
        type->first_s[i] = g_array_index(pairs, float, 2 * i + 1);
    }
    qsort(type->latency_s, type->requests, sizeof(float), compare_floats);
    qsort(type->first_s, type->requests, sizeof(float), compare_floats);
    if (type->requests == 0)
        return;
    type->mean_s /= (double)type->requests;
    type->first_mean_s /= (double)type->requests;
}

static void finish_bins(sim *s)
{
    for (size_t b = 0; b < s->o->bins; b++) {
        for (size_t i = 0; i < s->n_sites; i++) {
            size_t servers = s->first_server[i + 1] - s->first_server[i];
            if (servers > 0)
                s->r->busy_bins[b * s->n_sites + i] /= (float)(s->bin_s * (double)servers);
        }
        s->r->link_bins[b] /= (float)s->bin_s;
    }
    s->r->bin_s = s->bin_s;
}

void sim_finish(sim *s)
{
    cs_sim_result *r = s->r;
    size_t met = 0, counted = 0;
    r->duration_s = MAX(s->now, 1e-12);
    r->offered_rps = s->rate;
    r->completed_rps = (double)r->completed / r->duration_s;
    r->attainment = 1;
    for (size_t t = 0; t < r->n_types; t++) {
        finish_type(s, t);
        met += r->types[t].met;
        counted += r->types[t].requests;
        if (r->types[t].requests > 0)
            r->attainment =
                MIN(r->attainment, (double)r->types[t].met / (double)r->types[t].requests);
    }
    r->goodput_rps = counted ? MIN(s->rate, r->completed_rps) * (double)met / (double)counted : 0;
    for (size_t i = 0; i < s->n_sites; i++) {
        size_t servers = s->first_server[i + 1] - s->first_server[i];
        r->busy[i] = servers ? r->busy[i] / r->duration_s / (double)servers : 0;
    }
    for (size_t i = 0; i < s->p->cluster->n_nodes * s->p->cluster->n_nodes; i++)
        r->link_busy[i] /= r->duration_s;
    if (s->o->bins > 0)
        finish_bins(s);
}

void cs_sim_result_clear(cs_sim_result *r)
{
    for (size_t t = 0; t < r->n_types; t++) {
        g_free(r->types[t].latency_s);
        g_free(r->types[t].first_s);
    }
    g_free(r->types);
    g_free(r->busy);
    g_free(r->link_busy);
    g_free(r->busy_bins);
    g_free(r->link_bins);
    *r = (cs_sim_result){0};
}

double cs_sim_percentile(const float *sorted, size_t n, double p)
{
    if (n == 0)
        return 0;
    size_t rank = (size_t)ceil(p * (double)n);
    return (double)sorted[CLAMP(rank, 1, n) - 1];
}

void cs_sim_predict(const cs_sim_result *r, const cs_problem *problem, cs_plan *plan)
{
    cs_plan_predictions *out = &plan->predictions;
    for (size_t i = 0; i < out->n_latencies; i++)
        g_free(out->latencies[i].request_type);
    g_free(out->latencies);
    out->latencies = g_new0(cs_plan_latency, r->n_types + 1);
    out->n_latencies = r->n_types;
    out->load_rps = r->offered_rps;
    out->goodput_rps = r->goodput_rps;
    for (size_t t = 0; t < r->n_types; t++) {
        const cs_sim_type *type = &r->types[t];
        size_t n = type->requests;
        out->latencies[t] = (cs_plan_latency){
            .request_type =
                g_strdup(problem->workload->types[problem->types[t].workload_type].name),
            .p50_s = cs_sim_percentile(type->latency_s, n, 0.50),
            .p95_s = cs_sim_percentile(type->latency_s, n, 0.95),
            .p99_s = cs_sim_percentile(type->latency_s, n, 0.99),
            .first_p50_s = cs_sim_percentile(type->first_s, n, 0.50),
            .first_p95_s = cs_sim_percentile(type->first_s, n, 0.95),
            .attainment = n ? (double)type->met / (double)n : 1,
        };
    }
}

static json_t *types_to_json(const cs_sim_result *r, const cs_problem *p)
{
    static const double ranks[] = {0.5, 0.9, 0.95, 0.99};
    static const char *const names[] = {"p50_s", "p90_s", "p95_s", "p99_s"};
    json_t *array = json_array();
    for (size_t t = 0; t < r->n_types; t++) {
        const cs_sim_type *type = &r->types[t];
        size_t n = type->requests;
        json_t *latency = json_pack("{sf}", "mean_s", type->mean_s);
        json_t *first = json_pack("{sf}", "mean_s", type->first_mean_s);
        for (size_t i = 0; i < G_N_ELEMENTS(ranks); i++) {
            json_object_set_new(latency, names[i],
                                json_real(cs_sim_percentile(type->latency_s, n, ranks[i])));
            json_object_set_new(first, names[i],
                                json_real(cs_sim_percentile(type->first_s, n, ranks[i])));
        }
        json_array_append_new(array, json_pack("{ss sI sf so so}", "type",
                                               p->workload->types[p->types[t].workload_type].name,
                                               "requests", (json_int_t)n, "attainment",
                                               n ? (double)type->met / (double)n : 1.0, "latency",
                                               latency, "first", first));
    }
    return array;
}

static json_t *use_to_json(const cs_sim_result *r, const cs_layout *layout)
{
    const cs_problem *p = layout->problem;
    size_t n = p->cluster->n_nodes, sites = p->n_execs * n;
    json_t *array = json_array();
    for (size_t i = 0; i < sites; i++) {
        if (layout->replicas[i] == 0)
            continue;
        json_t *bins = json_array();
        for (size_t b = 0; b < r->bins; b++)
            json_array_append_new(bins, json_real((double)r->busy_bins[b * sites + i]));
        json_array_append_new(array, json_pack("{ss ss si sf so}", "executor", p->execs[i / n].name,
                                               "node", p->cluster->nodes[i % n].name, "replicas",
                                               layout->replicas[i], "busy", r->busy[i], "over_time",
                                               bins));
    }
    return array;
}

json_t *cs_sim_to_json(const cs_sim_result *r, const cs_layout *layout)
{
    const cs_cluster *c = layout->problem->cluster;
    json_t *links = json_array(), *bins = json_array();
    for (size_t i = 0; i < c->n_nodes * c->n_nodes; i++)
        if (r->link_busy[i] > 0)
            json_array_append_new(
                links, json_pack("{ss ss sf}", "from", c->nodes[i / c->n_nodes].name, "to",
                                 c->nodes[i % c->n_nodes].name, "busy", r->link_busy[i]));
    for (size_t b = 0; b < r->bins; b++)
        json_array_append_new(bins, json_real((double)r->link_bins[b]));
    return json_pack("{si sf sf sf sf sf sb sb sI sI sI sf sf so so so so sf}", "version", 1,
                     "duration_s", r->duration_s, "offered_rps", r->offered_rps, "completed_rps",
                     r->completed_rps, "goodput_rps", r->goodput_rps, "attainment", r->attainment,
                     "gave_up", r->gave_up, "cancelled", r->cancelled, "arrived",
                     (json_int_t)r->arrived, "completed", (json_int_t)r->completed, "events",
                     (json_int_t)r->events, "bytes_sent", r->bytes_sent, "bytes_delivered",
                     r->bytes_delivered, "types", types_to_json(r, layout->problem), "executors",
                     use_to_json(r, layout), "links", links, "link_bytes_per_s_over_time", bins,
                     "bin_s", r->bin_s);
}
