#include "plan/node_model.h"

#include <math.h>
#include <string.h>

#define MAX_GROUPS CS_PLAN_MAX_STAGES
#define MAX_PAIRS CS_PLAN_MAX_EDGES
#define FLOW_EPSILON 1e-9

typedef struct {
    int from, to; /* groups */
    double bytes; /* per request */
    int first;    /* y[n][m] is y_columns[first + n * n_nodes + m] */
} group_pair;

struct cs_node_path {
    guint type;
    int n_groups, n_pairs;
    gint16 exec[MAX_GROUPS];
    guint32 stages[MAX_GROUPS];
    group_pair pairs[MAX_PAIRS];
    int rate; /* column */
    int *z;   /* [n_groups][n_nodes] columns, -1: none */
    int *y;   /* [n_pairs][n_nodes][n_nodes] columns, -1: none */
};

/* ---- paths ---- */

typedef struct {
    const cs_problem *p;
    const bool *allowed;
    GArray *paths;
    size_t columns, max_columns;
    cs_node_path current;
} enumeration;

static void find_pairs(const cs_problem *p, cs_node_path *path)
{
    int group_of[CS_PLAN_MAX_STAGES];
    const cs_problem_type *type = &p->types[path->type];
    for (int g = 0; g < path->n_groups; g++)
        for (size_t s = 0; s < p->n_stages; s++)
            if (path->stages[g] >> s & 1)
                group_of[s] = g;
    path->n_pairs = 0;
    for (size_t a = 0; a < p->n_edges; a++) {
        if (!cs_problem_type_uses(type, &p->edges[a]))
            continue;
        int from = group_of[p->edges[a].from], to = group_of[p->edges[a].to], i = 0;
        if (from == to)
            continue;
        while (i < path->n_pairs && (path->pairs[i].from != from || path->pairs[i].to != to))
            i++;
        if (i == path->n_pairs)
            path->pairs[path->n_pairs++] = (group_pair){.from = from, .to = to};
        path->pairs[i].bytes += type->edge_bytes[a];
    }
}

static void finish_path(enumeration *en)
{
    cs_node_path path = en->current;
    size_t n = en->p->cluster->n_nodes;
    find_pairs(en->p, &path);
    en->columns += 1 + (size_t)path.n_groups * n + (n > 1 ? (size_t)path.n_pairs * n * n : 0);
    g_array_append_val(en->paths, path);
}

/* Gives the type's least stage not yet placed to every allowed executor type that hosts it. */
static void enumerate(enumeration *en, guint32 left)
{
    const cs_problem *p = en->p;
    if (en->columns > en->max_columns)
        return;
    if (!left) {
        finish_path(en);
        return;
    }
    int s = __builtin_ctz(left);
    guint32 moved = 1u << s;
    if (p->stages[s].inseparable)
        moved |= 1u << p->stages[s].twin;
    for (size_t e = 0; e < p->n_execs; e++) {
        if (!en->allowed[e] || (p->execs[e].mask & moved) != moved)
            continue;
        cs_node_path *path = &en->current;
        int g = 0;
        while (g < path->n_groups && path->exec[g] != (int)e)
            g++;
        bool fresh = g == path->n_groups;
        path->exec[g] = (gint16)e;
        path->stages[g] = fresh ? moved : path->stages[g] | moved;
        path->n_groups += fresh;
        enumerate(en, left & ~moved);
        path->n_groups -= fresh;
        if (!fresh)
            path->stages[g] &= ~moved;
    }
}

static GArray *make_paths(const cs_problem *p, const bool *allowed, size_t max_columns)
{
    enumeration en = {.p = p, .allowed = allowed, .max_columns = max_columns};
    en.paths = g_array_new(FALSE, TRUE, sizeof(cs_node_path));
    for (size_t t = 0; t < p->n_types; t++) {
        en.current = (cs_node_path){.type = (guint)t};
        enumerate(&en, p->types[t].stages);
    }
    if (en.columns <= max_columns)
        return en.paths;
    g_array_unref(en.paths);
    return NULL;
}

/* ---- columns and rows ---- */

static void add_replicas(cs_node_model *model, const bool *allowed)
{
    const cs_problem *p = model->problem;
    size_t n_nodes = p->cluster->n_nodes;
    model->x = g_new(int, p->n_execs *n_nodes + 1);
    for (size_t e = 0; e < p->n_execs; e++)
        for (size_t n = 0; n < n_nodes; n++) {
            int most = p->cluster->nodes[n].devices[p->execs[e].kind] / p->execs[e].count;
            bool may = allowed[e] && most > 0;
            model->x[e * n_nodes + n] = may ? cs_milp_column(&model->m, 0, most, 0, true) : -1;
        }
    for (size_t n = 0; n < n_nodes; n++)
        for (size_t k = 0; k < p->cluster->n_kinds; k++) {
            int row = cs_milp_row(&model->m, -INFINITY, p->cluster->nodes[n].devices[k]);
            for (size_t e = 0; e < p->n_execs; e++)
                if (p->execs[e].kind == k && model->x[e * n_nodes + n] >= 0)
                    cs_milp_entry(&model->m, row, model->x[e * n_nodes + n], p->execs[e].count);
        }
}

/* Like nodes are ordered by a weighted count of their replicas: of all their permutations one is
 * left. Any weights are valid; distinct ones leave fewer ties. */
static void add_ordering(cs_node_model *model)
{
    const cs_problem *p = model->problem;
    size_t n_nodes = p->cluster->n_nodes;
    g_autofree int *classes = g_new(int, n_nodes + 1);
    cs_cluster_classes(p->cluster, classes);
    for (size_t n = 0; n < n_nodes; n++) {
        size_t next = n + 1;
        while (next < n_nodes && classes[next] != classes[n])
            next++;
        if (next == n_nodes)
            continue;
        int row = cs_milp_row(&model->m, 0, INFINITY);
        for (size_t e = 0; e < p->n_execs; e++) {
            double weight = 1 + (double)(e * 7919 % 101) / 16;
            if (model->x[e * n_nodes + n] >= 0)
                cs_milp_entry(&model->m, row, model->x[e * n_nodes + n], weight);
            if (model->x[e * n_nodes + next] >= 0)
                cs_milp_entry(&model->m, row, model->x[e * n_nodes + next], -weight);
        }
    }
}

static void add_path_columns(cs_node_model *model, cs_node_path *path)
{
    const cs_problem *p = model->problem;
    size_t n_nodes = p->cluster->n_nodes;
    path->rate = cs_milp_column(&model->m, 0, INFINITY, 0, false);
    path->z = g_new(int, (size_t)path->n_groups *n_nodes + 1);
    for (int g = 0; g < path->n_groups; g++)
        for (size_t n = 0; n < n_nodes; n++)
            path->z[(size_t)g * n_nodes + n] =
                model->x[(size_t)path->exec[g] * n_nodes + n] >= 0
                    ? cs_milp_column(&model->m, 0, INFINITY, 0, false)
                    : -1;
    path->y = g_new(int, (size_t)path->n_pairs *n_nodes *n_nodes + 1);
    for (int i = 0; n_nodes > 1 && i < path->n_pairs; i++)
        for (size_t n = 0; n < n_nodes; n++)
            for (size_t m = 0; m < n_nodes; m++) {
                const group_pair *pair = &path->pairs[i];
                bool link =
                    n == m || p->cluster->bandwidth[n * n_nodes + m] > 0 || pair->bytes <= 0;
                bool may = link && path->z[(size_t)pair->from * n_nodes + n] >= 0 &&
                           path->z[(size_t)pair->to * n_nodes + m] >= 0;
                path->y[((size_t)i * n_nodes + n) * n_nodes + m] =
                    may ? cs_milp_column(&model->m, 0, INFINITY, 0, false) : -1;
            }
}

/* Every group carries the path's rate; between groups flow is conserved at both ends. */
static void add_path_rows(cs_node_model *model, const cs_node_path *path)
{
    size_t n_nodes = model->problem->cluster->n_nodes;
    cs_milp *m = &model->m;
    for (int g = 0; g < path->n_groups; g++) {
        int row = cs_milp_row(m, 0, 0);
        cs_milp_entry(m, row, path->rate, -1);
        for (size_t n = 0; n < n_nodes; n++)
            if (path->z[(size_t)g * n_nodes + n] >= 0)
                cs_milp_entry(m, row, path->z[(size_t)g * n_nodes + n], 1);
    }
    for (int i = 0; n_nodes > 1 && i < path->n_pairs; i++)
        for (size_t side = 0; side < 2; side++)
            for (size_t n = 0; n < n_nodes; n++) {
                int group = side ? path->pairs[i].to : path->pairs[i].from;
                int z = path->z[(size_t)group * n_nodes + n];
                if (z < 0)
                    continue;
                int row = cs_milp_row(m, 0, 0);
                cs_milp_entry(m, row, z, -1);
                for (size_t k = 0; k < n_nodes; k++) {
                    int y =
                        path->y[((size_t)i * n_nodes + (side ? k : n)) * n_nodes + (side ? n : k)];
                    if (y >= 0)
                        cs_milp_entry(m, row, y, 1);
                }
            }
}

static void add_demand(cs_node_model *model)
{
    const cs_problem *p = model->problem;
    for (size_t t = 0; t < p->n_types; t++) {
        int row = cs_milp_row(&model->m, 0, 0);
        cs_milp_entry(&model->m, row, model->alpha, -p->types[t].share);
        for (guint i = 0; i < model->paths->len; i++) {
            const cs_node_path *path = &g_array_index(model->paths, cs_node_path, i);
            if (path->type == t)
                cs_milp_entry(&model->m, row, path->rate, 1);
        }
    }
}

static void add_capacity(cs_node_model *model)
{
    const cs_problem *p = model->problem;
    size_t n_nodes = p->cluster->n_nodes;
    g_autofree int *rows = g_new(int, p->n_execs *n_nodes + 1);
    for (size_t i = 0; i < p->n_execs * n_nodes; i++) {
        rows[i] = model->x[i] >= 0 ? cs_milp_row(&model->m, -INFINITY, 0) : -1;
        if (rows[i] >= 0)
            cs_milp_entry(&model->m, rows[i], model->x[i], -p->utilisation_cap);
    }
    for (guint i = 0; i < model->paths->len; i++) {
        const cs_node_path *path = &g_array_index(model->paths, cs_node_path, i);
        for (int g = 0; g < path->n_groups; g++) {
            double work = 0;
            for (size_t s = 0; s < p->n_stages; s++)
                if (path->stages[g] >> s & 1)
                    work += cs_problem_work(p, (size_t)path->exec[g], s, path->type);
            for (size_t n = 0; n < n_nodes; n++)
                if (path->z[(size_t)g * n_nodes + n] >= 0)
                    cs_milp_entry(&model->m, rows[(size_t)path->exec[g] * n_nodes + n],
                                  path->z[(size_t)g * n_nodes + n], work);
        }
    }
}

/* Seconds of a link per second, at most link_use, which is at most 1. */
static void add_bandwidth(cs_node_model *model)
{
    const cs_cluster *c = model->problem->cluster;
    size_t cells = c->n_nodes * c->n_nodes;
    g_autofree int *rows = g_new(int, cells + 1);
    for (size_t i = 0; i < cells; i++) {
        bool link = i / c->n_nodes != i % c->n_nodes && c->bandwidth[i] > 0;
        rows[i] = link ? cs_milp_row(&model->m, -INFINITY, 0) : -1;
        if (link)
            cs_milp_entry(&model->m, rows[i], model->link_use, -1);
    }
    for (guint k = 0; c->n_nodes > 1 && k < model->paths->len; k++) {
        const cs_node_path *path = &g_array_index(model->paths, cs_node_path, k);
        for (int i = 0; i < path->n_pairs; i++)
            for (size_t j = 0; j < cells; j++)
                if (path->y[(size_t)i * cells + j] >= 0 && rows[j] >= 0)
                    cs_milp_entry(&model->m, rows[j], path->y[(size_t)i * cells + j],
                                  path->pairs[i].bytes / c->bandwidth[j]);
    }
}

bool cs_node_model_init(cs_node_model *model, const cs_problem *problem, const bool *allowed,
                        bool free_rate, size_t max_columns)
{
    *model = (cs_node_model){.problem = problem};
    model->paths = make_paths(problem, allowed, max_columns);
    if (!model->paths)
        return false;
    double rate = problem->workload->rate_rps;
    cs_milp_init(&model->m);
    add_replicas(model, allowed);
    add_ordering(model);
    model->alpha =
        cs_milp_column(&model->m, free_rate ? 0 : rate, free_rate ? INFINITY : rate, 0, false);
    model->link_use = cs_milp_column(&model->m, 0, 1, 0, false);
    for (guint i = 0; i < model->paths->len; i++) {
        cs_node_path *path = &g_array_index(model->paths, cs_node_path, i);
        add_path_columns(model, path);
        add_path_rows(model, path);
    }
    add_demand(model);
    add_capacity(model);
    add_bandwidth(model);
    return true;
}

void cs_node_model_clear(cs_node_model *model)
{
    for (guint i = 0; i < model->paths->len; i++) {
        g_free(g_array_index(model->paths, cs_node_path, i).z);
        g_free(g_array_index(model->paths, cs_node_path, i).y);
    }
    g_array_unref(model->paths);
    g_free(model->x);
    cs_milp_clear(&model->m);
}

void cs_node_model_weigh_bytes(cs_node_model *model)
{
    const cs_cluster *c = model->problem->cluster;
    size_t cells = c->n_nodes * c->n_nodes;
    double unit = INFINITY;
    for (size_t j = 0; j < cells; j++)
        if (j / c->n_nodes != j % c->n_nodes && c->bandwidth[j] > 0)
            unit = MIN(unit, c->bandwidth[j]);
    for (guint k = 0; k < model->paths->len; k++) {
        const cs_node_path *path = &g_array_index(model->paths, cs_node_path, k);
        for (int i = 0; i < path->n_pairs; i++)
            for (size_t j = 0; j < cells; j++)
                if (j / c->n_nodes != j % c->n_nodes && path->y[(size_t)i * cells + j] >= 0)
                    g_array_index(model->m.objective, double, path->y[(size_t)i * cells + j]) =
                        path->pairs[i].bytes / unit;
    }
}

/* ---- routes from flows ---- */

typedef struct {
    const cs_node_path *path;
    size_t n_nodes;
    double *x;            /* solution, reduced as routes are peeled off */
    int node[MAX_GROUPS]; /* of the route being made, -1: not chosen */
} peeling;

static double flow_at(const peeling *p, int column)
{
    return column >= 0 ? p->x[column] : 0;
}

/* The node of a group next to one already chosen: where most of what is left flows. */
static int choose_next(const peeling *p, int pair, bool forward)
{
    const group_pair *g = &p->path->pairs[pair];
    int fixed = p->node[forward ? g->from : g->to], best = -1;
    double most = FLOW_EPSILON;
    for (size_t n = 0; n < p->n_nodes; n++) {
        size_t from = forward ? (size_t)fixed : n, to = forward ? n : (size_t)fixed;
        double y = flow_at(p, p->path->y[((size_t)pair * p->n_nodes + from) * p->n_nodes + to]);
        double z = flow_at(p, p->path->z[(size_t)(forward ? g->to : g->from) * p->n_nodes + n]);
        if (MIN(y, z) > most) {
            most = MIN(y, z);
            best = (int)n;
        }
    }
    return best;
}

static int choose_first(const peeling *p, int group)
{
    int best = 0;
    for (size_t n = 1; n < p->n_nodes; n++)
        if (flow_at(p, p->path->z[(size_t)group * p->n_nodes + n]) >
            flow_at(p, p->path->z[(size_t)group * p->n_nodes + (size_t)best]))
            best = (int)n;
    return best;
}

/* Chooses a node for each group, along pairs from groups already chosen. On a tree of groups the
 * flows always allow it; where groups form an undirected cycle the last pair may have to give. */
static void choose_nodes(peeling *p)
{
    for (int g = 0; g < p->path->n_groups; g++)
        p->node[g] = -1;
    for (int chosen = 0; chosen < p->path->n_groups; chosen++) {
        int group = -1, node = -1;
        for (int i = 0; p->n_nodes > 1 && group < 0 && i < p->path->n_pairs; i++) {
            const group_pair *pair = &p->path->pairs[i];
            if ((p->node[pair->from] < 0) == (p->node[pair->to] < 0))
                continue;
            bool forward = p->node[pair->to] < 0;
            group = forward ? pair->to : pair->from;
            node = choose_next(p, i, forward);
        }
        for (int g = 0; group < 0 && g < p->path->n_groups; g++)
            if (p->node[g] < 0)
                group = g;
        p->node[group] = node >= 0 ? node : choose_first(p, group);
    }
}

/* Takes the route's rate off the flows it uses and returns that rate. */
static double peel(peeling *p)
{
    double rate = p->x[p->path->rate];
    for (int g = 0; g < p->path->n_groups; g++) {
        double z = flow_at(p, p->path->z[(size_t)g * p->n_nodes + (size_t)p->node[g]]);
        rate = z > FLOW_EPSILON ? MIN(rate, z) : rate;
    }
    for (int i = 0; p->n_nodes > 1 && i < p->path->n_pairs; i++) {
        const group_pair *pair = &p->path->pairs[i];
        double y = flow_at(
            p, p->path->y[((size_t)i * p->n_nodes + (size_t)p->node[pair->from]) * p->n_nodes +
                          (size_t)p->node[pair->to]]);
        rate = y > FLOW_EPSILON ? MIN(rate, y) : rate;
    }
    p->x[p->path->rate] -= rate;
    for (int g = 0; g < p->path->n_groups; g++) {
        int column = p->path->z[(size_t)g * p->n_nodes + (size_t)p->node[g]];
        if (column >= 0)
            p->x[column] = MAX(0, p->x[column] - rate);
    }
    for (int i = 0; p->n_nodes > 1 && i < p->path->n_pairs; i++) {
        const group_pair *pair = &p->path->pairs[i];
        int column =
            p->path->y[((size_t)i * p->n_nodes + (size_t)p->node[pair->from]) * p->n_nodes +
                       (size_t)p->node[pair->to]];
        if (column >= 0)
            p->x[column] = MAX(0, p->x[column] - rate);
    }
    return rate;
}

static void add_route(cs_layout *layout, const peeling *p, double weight)
{
    cs_layout_route route = {.type = p->path->type, .weight = weight};
    memset(route.exec, 0xff, sizeof route.exec);
    memset(route.node, 0xff, sizeof route.node);
    for (int g = 0; g < p->path->n_groups; g++)
        for (int s = 0; s < CS_PLAN_MAX_STAGES; s++)
            if (p->path->stages[g] >> s & 1) {
                route.exec[s] = p->path->exec[g];
                route.node[s] = (gint16)p->node[g];
            }
    g_array_append_val(layout->routes, route);
}

/* Rounding left the weights of a type a hair off 1. */
static void normalise(cs_layout *layout)
{
    g_autofree double *sum = g_new0(double, layout->problem->n_types + 1);
    for (guint i = 0; i < layout->routes->len; i++) {
        const cs_layout_route *r = &g_array_index(layout->routes, cs_layout_route, i);
        sum[r->type] += r->weight;
    }
    for (guint i = 0; i < layout->routes->len; i++) {
        cs_layout_route *r = &g_array_index(layout->routes, cs_layout_route, i);
        r->weight /= sum[r->type];
    }
}

cs_layout *cs_node_model_layout(const cs_node_model *model, const double *x)
{
    const cs_problem *p = model->problem;
    cs_layout *layout = cs_layout_new(p);
    for (size_t i = 0; i < p->n_execs * p->cluster->n_nodes; i++)
        layout->replicas[i] = model->x[i] >= 0 ? (int)round(x[model->x[i]]) : 0;
    g_autofree double *left = g_memdup2(x, sizeof(double) * model->m.lower->len);
    for (guint i = 0; i < model->paths->len; i++) {
        const cs_node_path *path = &g_array_index(model->paths, cs_node_path, i);
        peeling peeled = {.path = path, .n_nodes = p->cluster->n_nodes, .x = left};
        double total = x[model->alpha] * p->types[path->type].share;
        size_t rounds = ((size_t)path->n_groups + (size_t)path->n_pairs * 4 + 4) *
                        p->cluster->n_nodes * p->cluster->n_nodes;
        while (left[path->rate] > 1e-7 * total && rounds-- > 0) {
            choose_nodes(&peeled);
            double rate = peel(&peeled);
            if (rate > 0)
                add_route(layout, &peeled, rate / total);
        }
    }
    normalise(layout);
    return layout;
}
