#include "plan/report.h"

#include <math.h>
#include <string.h>

#define NODE_WIDTH 190
#define LINE_HEIGHT 16
#define DEVICE_SIZE 16
#define GAP 40

/* ---- text ---- */

static void table_executors(GString *out, const cs_plan *plan)
{
    size_t width = 8;
    for (size_t i = 0; i < plan->n_executors; i++)
        width = MAX(width, strlen(plan->executors[i].name));
    g_string_append_printf(out, "%-*s  %8s  %-10s  %7s  %9s\n", (int)width, "executor", "replicas",
                           "device", "devices", "KV GB");
    for (size_t i = 0; i < plan->n_executors; i++) {
        const cs_plan_executor *e = &plan->executors[i];
        g_string_append_printf(out, "%-*s  %8d  %-10s  %7d  %9.1f\n", (int)width, e->name,
                               e->replicas, e->device, e->replicas * e->devices_per_replica,
                               e->kv_budget_bytes / 1e9);
    }
}

static void table_routes(GString *out, const cs_plan *plan)
{
    enum { MOST_PATHS = 6 };
    for (size_t i = 0; i < plan->n_routes; i++) {
        const cs_plan_route *r = &plan->routes[i];
        g_string_append_printf(out, "%s, %.4g requests/s\n", r->request_type, r->rate_rps);
        for (size_t k = 0; k < MIN(r->n_paths, MOST_PATHS); k++) {
            g_string_append_printf(out, "  %5.1f %%", 100 * r->paths[k].weight);
            for (size_t h = 0; h < r->paths[k].n_hops; h++) {
                const cs_plan_hop *hop = &r->paths[k].hops[h];
                g_string_append_printf(
                    out, "  %s%s%s on %s", hop->component, hop->role == CS_ROLE_BOTH ? "" : ":",
                    hop->role == CS_ROLE_BOTH ? "" : cs_plan_role_name(hop->role),
                    plan->executors[hop->executor].name);
            }
            g_string_append(out, "\n");
        }
        if (r->n_paths > MOST_PATHS)
            g_string_append_printf(out, "  and %zu paths more\n", r->n_paths - MOST_PATHS);
    }
}

char *cs_report_table(const cs_plan *plan)
{
    GString *out = g_string_new(NULL);
    const cs_plan_predictions *p = &plan->predictions;
    table_executors(out, plan);
    g_string_append(out, "\n");
    table_routes(out, plan);
    g_string_append_printf(out, "\n%d devices, cost %.6g, throughput %.4g requests/s", p->devices,
                           p->cost, p->throughput_rps);
    if (p->bound_rps > 0)
        g_string_append_printf(out, " (no plan exceeds %.4g)", p->bound_rps);
    g_string_append(out, "\n");
    if (plan->bottleneck && plan->bottleneck[0])
        g_string_append_printf(out, "bottleneck: %s\n", plan->bottleneck);
    if (p->n_latencies > 0)
        g_string_append_printf(out, "\nat %.4g requests/s, simulated:\n%-24s %9s %9s %9s %9s %9s\n",
                               p->load_rps, "type", "p50 s", "p95 s", "p99 s", "first p50",
                               "in time");
    for (size_t i = 0; i < p->n_latencies; i++) {
        const cs_plan_latency *l = &p->latencies[i];
        g_string_append_printf(out, "%-24s %9.3f %9.3f %9.3f %9.3f %8.1f%%\n", l->request_type,
                               l->p50_s, l->p95_s, l->p99_s, l->first_p50_s, 100 * l->attainment);
    }
    return g_string_free(out, FALSE);
}

char *cs_report_sim(const cs_sim_result *sim, const cs_layout *layout)
{
    const cs_problem *p = layout->problem;
    size_t n = p->cluster->n_nodes;
    GString *out = g_string_new(NULL);
    g_string_append_printf(out,
                           "%zu of %zu requests in %.1f s; offered %.4g/s, completed %.4g/s, "
                           "in time %.4g/s%s\n",
                           sim->completed, sim->arrived, sim->duration_s, sim->offered_rps,
                           sim->completed_rps, sim->goodput_rps,
                           sim->cancelled ? "; interrupted"
                           : sim->gave_up ? "; given up: more comes than is served"
                                          : "");
    g_string_append_printf(out, "%-24s %9s %9s %9s %9s %9s %9s %9s\n", "type", "requests", "mean s",
                           "p50 s", "p95 s", "p99 s", "first p50", "in time");
    for (size_t t = 0; t < sim->n_types; t++) {
        const cs_sim_type *x = &sim->types[t];
        if (x->requests == 0) {
            g_string_append_printf(out, "%-24s %9d %9s %9s %9s %9s %9s %9s\n",
                                   p->workload->types[p->types[t].workload_type].name, 0, "-", "-",
                                   "-", "-", "-", "-");
            continue;
        }
        g_string_append_printf(out, "%-24s %9zu %9.3f %9.3f %9.3f %9.3f %9.3f %8.1f%%\n",
                               p->workload->types[p->types[t].workload_type].name, x->requests,
                               x->mean_s, cs_sim_percentile(x->latency_s, x->requests, 0.5),
                               cs_sim_percentile(x->latency_s, x->requests, 0.95),
                               cs_sim_percentile(x->latency_s, x->requests, 0.99),
                               cs_sim_percentile(x->first_s, x->requests, 0.5),
                               100.0 * (double)x->met / (double)x->requests);
    }
    for (size_t i = 0; i < p->n_execs * n; i++)
        if (layout->replicas[i] > 0)
            g_string_append_printf(out, "%s@%s x %d: busy %.1f %%\n", p->execs[i / n].name,
                                   p->cluster->nodes[i % n].name, layout->replicas[i],
                                   100 * sim->busy[i]);
    return g_string_free(out, FALSE);
}

/* ---- drawing ---- */

/* A colour for each kind of executor, by the name before '@'. */
static void colour_of(const char *name, char out[32])
{
    g_autofree char *type = g_strndup(name, strcspn(name, "@"));
    g_snprintf(out, 32, "hsl(%u,55%%,62%%)", g_str_hash(type) * 2654435761u % 360);
}

static int lines_of_node(const cs_plan *plan, const char *node)
{
    int lines = 0;
    for (size_t i = 0; i < plan->n_executors; i++)
        if (g_str_equal(plan->executors[i].node, node)) {
            int devices = plan->executors[i].replicas * plan->executors[i].devices_per_replica;
            lines += 1 + (devices + 9) / 10;
        }
    return lines;
}

static void draw_node(GString *out, const cs_plan *plan, const char *node, int x, int y, int height)
{
    g_autofree char *title = g_markup_escape_text(node, -1);
    g_string_append_printf(out,
                           "<rect x='%d' y='%d' width='%d' height='%d' rx='6' fill='#f7f7f7' "
                           "stroke='#888'/><text x='%d' y='%d' font-weight='bold'>%s</text>\n",
                           x, y, NODE_WIDTH, height, x + 8, y + 16, title);
    int line = y + 24;
    for (size_t i = 0; i < plan->n_executors; i++) {
        const cs_plan_executor *e = &plan->executors[i];
        char colour[32];
        if (!g_str_equal(e->node, node))
            continue;
        colour_of(e->name, colour);
        g_autofree char *type = g_strndup(e->name, strcspn(e->name, "@"));
        g_autofree char *full = g_markup_escape_text(type, -1);
        g_autofree char *start = g_utf8_substring(type, 0, MIN(g_utf8_strlen(type, -1), 24));
        g_autofree char *brief =
            g_utf8_strlen(type, -1) > 26 ? g_strconcat(start, "..", NULL) : g_strdup(type);
        g_autofree char *label = g_markup_escape_text(brief, -1);
        g_string_append_printf(out, "<text x='%d' y='%d'><title>%s</title>%d x %s</text>\n", x + 8,
                               line + 11, full, e->replicas, label);
        line += LINE_HEIGHT;
        int devices = e->replicas * e->devices_per_replica;
        for (int d = 0; d < devices; d++)
            g_string_append_printf(out,
                                   "<rect x='%d' y='%d' width='14' height='12' fill='%s' "
                                   "stroke='#555'><title>%s, device %d</title></rect>\n",
                                   x + 8 + (d % 10) * DEVICE_SIZE, line + d / 10 * LINE_HEIGHT,
                                   colour, full, e->device_ids[d]);
        line += (devices + 9) / 10 * LINE_HEIGHT;
    }
}

typedef struct {
    size_t columns;
    int height; /* of a node */
} grid;

static void node_corner(const grid *g, size_t i, int *x, int *y)
{
    *x = GAP + (int)(i % g->columns) * (NODE_WIDTH + GAP);
    *y = GAP + (int)(i / g->columns) * (g->height + GAP);
}

static void draw_links(GString *out, const cs_plan *plan, const cs_cluster *c, const grid *g)
{
    for (size_t i = 0; i < plan->predictions.n_links; i++) {
        const cs_plan_link *l = &plan->predictions.links[i];
        size_t from = cs_cluster_find_node(c, l->from), to = cs_cluster_find_node(c, l->to);
        int x0, y0, x1, y1;
        if (from == c->n_nodes || to == c->n_nodes)
            continue;
        node_corner(g, from, &x0, &y0);
        node_corner(g, to, &x1, &y1);
        int shift = from < to ? -4 : 4; /* both directions stay visible */
        g_autofree char *source = g_markup_escape_text(l->from, -1);
        g_autofree char *target = g_markup_escape_text(l->to, -1);
        g_string_append_printf(
            out,
            "<line x1='%d' y1='%d' x2='%d' y2='%d' stroke='%s' stroke-width='%.1f' "
            "opacity='0.6'><title>%s to %s: %.3g MB/s, %.2g %% of the link</title></line>\n",
            x0 + NODE_WIDTH / 2, y0 + g->height / 2 + shift, x1 + NODE_WIDTH / 2,
            y1 + g->height / 2 + shift, l->utilisation > 0.7 ? "#c33" : "#47a",
            1 + 6 * MIN(l->utilisation, 1), source, target, l->bytes_per_s / 1e6,
            100 * l->utilisation);
    }
}

char *cs_report_svg(const cs_plan *plan, const cs_cluster *c)
{
    GString *out = g_string_new(NULL);
    grid g = {.columns = (size_t)ceil(sqrt((double)c->n_nodes)), .height = 40};
    for (size_t n = 0; n < c->n_nodes; n++)
        g.height = MAX(g.height, 32 + LINE_HEIGHT * lines_of_node(plan, c->nodes[n].name));
    int rows = (int)((c->n_nodes + g.columns - 1) / g.columns);
    g_string_append_printf(out,
                           "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' "
                           "font-family='sans-serif' font-size='12'>\n",
                           GAP + (int)g.columns * (NODE_WIDTH + GAP),
                           GAP + rows * (g.height + GAP));
    draw_links(out, plan, c, &g);
    for (size_t n = 0; n < c->n_nodes; n++) {
        int x, y;
        node_corner(&g, n, &x, &y);
        draw_node(out, plan, c->nodes[n].name, x, y, g.height);
    }
    g_string_append(out, "</svg>\n");
    return g_string_free(out, FALSE);
}

/* ---- the page ---- */

enum { PLOT_WIDTH = 640, PLOT_HEIGHT = 160 };

static void plot_begin(GString *out, const char *title, const char *x_label, double x_most,
                       double y_most, const char *y_unit)
{
    g_string_append_printf(
        out,
        "<h3>%s</h3><svg width='%d' height='%d' font-family='sans-serif' font-size='11'>"
        "<rect x='50' y='5' width='%d' height='%d' fill='none' stroke='#999'/>"
        "<text x='4' y='14'>%.3g%s</text><text x='4' y='%d'>0</text>"
        "<text x='%d' y='%d' text-anchor='end'>%.4g %s</text>",
        title, PLOT_WIDTH + 60, PLOT_HEIGHT + 26, PLOT_WIDTH, PLOT_HEIGHT, y_most, y_unit,
        PLOT_HEIGHT + 5, PLOT_WIDTH + 50, PLOT_HEIGHT + 20, x_most, x_label);
}

static void plot_cdf(GString *out, const cs_sim_type *type, const char *name)
{
    g_autofree char *safe = g_markup_escape_text(name, -1);
    g_autofree char *title = g_strdup_printf("Latency of %s", safe);
    double most = type->requests ? (double)type->latency_s[type->requests - 1] : 1;
    plot_begin(out, title, "s", most, 1, "");
    for (int k = 0; k < 2; k++) {
        const float *values = k ? type->first_s : type->latency_s;
        g_string_append_printf(out, "<polyline fill='none' stroke='%s' points='",
                               k ? "#e80" : "#27c");
        for (int i = 0; i <= 200 && type->requests; i++) {
            double share = i / 200.0;
            double x = cs_sim_percentile(values, type->requests, share) / MAX(most, 1e-9);
            g_string_append_printf(out, "%.1f,%.1f ", 50 + x * PLOT_WIDTH,
                                   5 + (1 - share) * PLOT_HEIGHT);
        }
        g_string_append(out, "'/>");
    }
    g_string_append(out, "</svg><p>blue: the whole answer; orange: its beginning</p>\n");
}

static void plot_use(GString *out, const cs_sim_result *sim, const cs_layout *layout)
{
    const cs_problem *p = layout->problem;
    size_t n = p->cluster->n_nodes, sites = p->n_execs * n;
    if (sim->bins == 0)
        return;
    plot_begin(out, "Use of executors over time", "s", sim->bin_s * (double)sim->bins, 1, "");
    g_autoptr(GString) legend = g_string_new("<p>");
    for (size_t i = 0; i < sites; i++) {
        char colour[32];
        if (layout->replicas[i] == 0)
            continue;
        colour_of(p->execs[i / n].name, colour);
        g_string_append_printf(out, "<polyline fill='none' stroke='%s' points='", colour);
        for (size_t b = 0; b < sim->bins; b++)
            g_string_append_printf(
                out, "%.1f,%.1f ", 50 + ((double)b + 0.5) / (double)sim->bins * PLOT_WIDTH,
                5 + (1 - MIN(1, (double)sim->busy_bins[b * sites + i])) * PLOT_HEIGHT);
        g_string_append(out, "'/>");
        g_autofree char *name = g_markup_escape_text(p->execs[i / n].name, -1);
        g_autofree char *node = g_markup_escape_text(p->cluster->nodes[i % n].name, -1);
        g_string_append_printf(legend, "<span style='color:%s'>&#9632;</span> %s@%s ", colour, name,
                               node);
    }
    g_string_append_printf(out, "</svg>%s</p>\n", legend->str);
    double most = 0;
    for (size_t b = 0; b < sim->bins; b++)
        most = MAX(most, (double)sim->link_bins[b]);
    if (most <= 0)
        return;
    plot_begin(out, "Bytes per second over all links", "s", sim->bin_s * (double)sim->bins, most,
               "");
    g_string_append(out, "<polyline fill='none' stroke='#27c' points='");
    for (size_t b = 0; b < sim->bins; b++)
        g_string_append_printf(out, "%.1f,%.1f ",
                               50 + ((double)b + 0.5) / (double)sim->bins * PLOT_WIDTH,
                               5 + (1 - (double)sim->link_bins[b] / most) * PLOT_HEIGHT);
    g_string_append(out, "'/></svg>\n");
}

char *cs_report_html(const cs_plan *plan, const cs_layout *layout, const cs_sim_result *sim)
{
    const cs_problem *p = layout->problem;
    GString *out = g_string_new(NULL);
    g_autofree char *model = g_markup_escape_text(plan->model, -1);
    g_autofree char *table = cs_report_table(plan), *svg = cs_report_svg(plan, p->cluster);
    g_autofree char *safe = g_markup_escape_text(table, -1);
    g_string_append_printf(out,
                           "<!DOCTYPE html><html><head><meta charset='utf-8'><title>%s</title>"
                           "<style>body{font-family:sans-serif;margin:2em}pre{background:#f4f4f4;"
                           "padding:1em;overflow-x:auto}</style></head><body><h1>%s</h1><pre>%s"
                           "</pre><h2>On the cluster</h2>%s",
                           model, model, safe, svg);
    if (sim) {
        g_autofree char *text = cs_report_sim(sim, layout);
        g_autofree char *quoted = g_markup_escape_text(text, -1);
        g_string_append_printf(out, "<h2>Simulated</h2><pre>%s</pre>", quoted);
        for (size_t t = 0; t < sim->n_types; t++)
            plot_cdf(out, &sim->types[t], p->workload->types[p->types[t].workload_type].name);
        plot_use(out, sim, layout);
    }
    g_string_append(out, "</body></html>\n");
    return g_string_free(out, FALSE);
}
