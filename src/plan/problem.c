#include "plan/problem.h"

#include "base/error.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#define MAX_EXECS 20000

void cs_problem_free(cs_problem *p)
{
    if (!p)
        return;
    for (size_t s = 0; s < p->n_stages; s++)
        g_free(p->stages[s].name);
    for (size_t e = 0; e < p->n_execs; e++)
        g_free(p->execs[e].name);
    g_free(p->execs);
    g_free(p->types);
    g_free(p->work);
    g_free(p);
}

/* ---- stages ---- */

static void add_stage(cs_problem *p, size_t component, cs_plan_role role, cs_stage_kind kind)
{
    const cs_graph_component *c = &p->graph->components[component];
    cs_stage *s = &p->stages[p->n_stages++];
    *s = (cs_stage){.component = component, .role = role, .kind = kind, .twin = -1};
    s->name = role == CS_ROLE_BOTH ? g_strdup(c->name)
                                   : g_strdup_printf("%s:%s", c->name, cs_plan_role_name(role));
    s->units = role == CS_ROLE_DECODE ? c->output_units : c->units;
    s->weight = c->weight;
    s->piece = (guint32)MAX(c->piece, 1);
    s->piece_extra = (guint32)lround(c->piece_extra);
    s->first_piece = (guint32)CLAMP(c->first_piece, 1, s->piece);
    if (c->kind == CS_COMPONENT_LLM) {
        s->prompt_units = c->units;
        s->kv_bytes_per_token = c->kv_bytes_per_token;
    }
}

static bool make_stages(cs_problem *p, GError **error)
{
    const cs_plan_graph *g = p->graph;
    size_t need = g->n_components;
    for (size_t c = 0; c < g->n_components; c++)
        need += g->components[c].kind == CS_COMPONENT_LLM;
    if (need > CS_PLAN_MAX_STAGES)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: %zu stages; at most %d are planned",
                       g->name, need, CS_PLAN_MAX_STAGES);
    for (size_t c = 0; c < g->n_components; c++) {
        if (g->components[c].kind == CS_COMPONENT_ENCODER)
            add_stage(p, c, CS_ROLE_BOTH, CS_STAGE_BATCH);
        else if (g->components[c].kind == CS_COMPONENT_GENERATOR)
            add_stage(p, c, CS_ROLE_BOTH, CS_STAGE_ITERATE);
        else {
            add_stage(p, c, CS_ROLE_PREFILL, CS_STAGE_PREFILL);
            add_stage(p, c, CS_ROLE_DECODE, CS_STAGE_ITERATE);
            int last = (int)p->n_stages - 1;
            p->stages[last].twin = last - 1;
            p->stages[last - 1].twin = last;
            p->stages[last].inseparable = p->stages[last - 1].inseparable = !g->components[c].split;
        }
    }
    return true;
}

static int stage_of(const cs_problem *p, size_t component, bool entry)
{
    for (size_t s = 0; s < p->n_stages; s++)
        if (p->stages[s].component == component &&
            p->stages[s].role != (entry ? CS_ROLE_DECODE : CS_ROLE_PREFILL))
            return (int)s;
    return -1;
}

/* Data enters an LLM at its prefill and leaves at its decode; between them moves the KV cache of
 * the prompt. */
static bool make_edges(cs_problem *p, GError **error)
{
    const cs_plan_graph *g = p->graph;
    if (g->n_edges + p->n_stages > CS_PLAN_MAX_EDGES)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: %zu edges; at most %zu are planned",
                       g->name, g->n_edges, CS_PLAN_MAX_EDGES - p->n_stages);
    for (size_t e = 0; e < g->n_edges; e++)
        p->edges[p->n_edges++] = (cs_stage_edge){
            .from = stage_of(p, g->edges[e].from, false),
            .to = stage_of(p, g->edges[e].to, true),
            .bytes = g->edges[e].bytes,
            .chunks = g->edges[e].chunks,
            .ahead = g->edges[e].ahead,
        };
    for (size_t s = 0; s < p->n_stages; s++) {
        if (p->stages[s].role != CS_ROLE_PREFILL)
            continue;
        cs_stage_edge edge = {.from = (int)s, .to = p->stages[s].twin, .chunks = 1, .ahead = -1};
        edge.bytes.constant = p->stages[s].kv_bytes_per_token * p->stages[s].units.constant;
        for (int k = 0; k < CS_SIZE_COUNT; k++)
            edge.bytes.per[k] = p->stages[s].kv_bytes_per_token * p->stages[s].units.per[k];
        p->edges[p->n_edges++] = edge;
    }
    return true;
}

static double generator_steps(const cs_stage *stage, double units)
{
    double steps = 0, piece = stage->first_piece;
    for (; units > 0 && piece < stage->piece; piece = MIN(2 * piece, stage->piece)) {
        steps += MIN(piece, units) + stage->piece_extra;
        units -= piece;
    }
    return units > 0 ? steps + units + ceil(units / piece) * stage->piece_extra : steps;
}

double cs_stage_steps(const cs_stage *stage, double units)
{
    double steps = stage->role == CS_ROLE_DECODE ? units - 1
                   : stage->piece > 1            ? generator_steps(stage, units)
                                                 : units;
    return MAX(steps, 1);
}

static void make_types(cs_problem *p)
{
    const cs_workload *w = p->workload;
    p->types = g_new0(cs_problem_type, w->n_types);
    for (size_t t = 0; t < w->n_types; t++) {
        if (w->types[t].rate_rps <= 0)
            continue; /* nothing to serve; the simulator skips it too */
        cs_problem_type *type = &p->types[p->n_types++];
        type->workload_type = t;
        type->rate_rps = w->types[t].rate_rps;
        type->share = w->types[t].rate_rps / w->rate_rps;
        for (size_t s = 0; s < p->n_stages; s++) {
            if (w->types[t].components >> p->stages[s].component & 1)
                type->stages |= 1u << s;
            type->units[s] = cs_size_formula_value(&p->stages[s].units, w->types[t].mean_sizes);
            if (p->stages[s].piece > 1 && type->units[s] > 0)
                type->units[s] = cs_stage_steps(&p->stages[s], type->units[s]);
            type->weight[s] = cs_size_formula_value(&p->stages[s].weight, w->types[t].mean_sizes);
        }
        for (size_t e = 0; e < p->n_edges; e++)
            type->edge_bytes[e] = cs_size_formula_value(&p->edges[e].bytes, w->types[t].mean_sizes);
    }
}

/* ---- executor types ---- */

/* Time-averaged tokens a sequence of the stage holds, and a measure of how many it keeps busy. */
static void kv_demand(const cs_problem *p, size_t s, double *context, double *pressure)
{
    double tokens = 0, steps = 0;
    for (size_t t = 0; t < p->n_types; t++) {
        const cs_problem_type *type = &p->types[t];
        if (!(type->stages >> s & 1))
            continue;
        bool decode = p->stages[s].role == CS_ROLE_DECODE;
        double prompt = decode ? type->units[p->stages[s].twin] : type->units[s];
        double length = decode ? prompt + type->units[s] / 2 : prompt;
        double time = type->share * MAX(type->units[s], 1e-9);
        tokens += time * length;
        steps += time;
    }
    *context = steps > 0 ? tokens / steps : 0;
    *pressure = tokens * p->stages[s].kv_bytes_per_token;
}

/* Shares the memory that weights and activations leave among the LLMs, by how much cache each keeps
 * in use, and cuts batches to what fits. False: not even one request fits. */
static bool fit_memory(const cs_problem *p, cs_exec_type *e)
{
    const cs_device_kind *kind = &p->cluster->kinds[e->kind];
    double left = kind->memory_bytes * kind->usable * e->count, pressure[CS_PLAN_MAX_STAGES] = {0};
    double context[CS_PLAN_MAX_STAGES] = {0}, total = 0;
    guint64 counted = 0;
    for (size_t s = 0; s < p->n_stages; s++) {
        if (!(e->mask >> s & 1))
            continue;
        const cs_stage *stage = &p->stages[s];
        const cs_graph_component *c = &p->graph->components[stage->component];
        if (!(counted >> stage->component & 1))
            left -= c->weights_bytes + c->activation_bytes;
        counted |= (guint64)1 << stage->component;
        bool inside = stage->role == CS_ROLE_PREFILL && (e->mask >> stage->twin & 1);
        if (stage->kv_bytes_per_token > 0 && !inside) /* else counted at the decode half */
            kv_demand(p, s, &context[s], &pressure[s]);
        total += pressure[s];
    }
    if (left < 0)
        return false;
    e->kv_budget_bytes = total > 0 ? left : 0;
    for (size_t s = 0; s < p->n_stages; s++) {
        if (pressure[s] <= 0)
            continue;
        double each = context[s] * p->stages[s].kv_bytes_per_token;
        double fits = floor(left * pressure[s] / total / each);
        if (fits < 1)
            return false;
        e->stages[s].batch = (int)MIN((double)e->stages[s].batch, fits);
    }
    return true;
}

static double stage_work(const cs_problem *p, const cs_exec_type *e, size_t s, size_t t)
{
    const cs_exec_stage *x = &e->stages[s];
    const cs_problem_type *type = &p->types[t];
    double units = type->units[s];
    switch (p->stages[s].kind) {
    case CS_STAGE_BATCH:
        return x->fixed_s / x->batch + x->per_unit_s * units;
    case CS_STAGE_PREFILL:
        return x->per_unit_s * units +
               x->fixed_s *
                   (x->profile->chunk_units > 0 ? units / x->profile->chunk_units : 1.0 / x->batch);
    case CS_STAGE_ITERATE:
        return units * (x->fixed_s / x->batch + x->per_unit_s * type->weight[s]);
    }
    return INFINITY;
}

/* "thinker+image_encoder": a component whose halves are both here is named once. */
static char *stages_name(const cs_problem *p, guint32 mask)
{
    g_autoptr(GString) name = g_string_new(NULL);
    for (size_t s = 0; s < p->n_stages; s++) {
        const cs_stage *stage = &p->stages[s];
        bool whole = stage->twin >= 0 && (mask >> stage->twin & 1);
        if (!(mask >> s & 1) || (whole && stage->role == CS_ROLE_DECODE))
            continue;
        g_string_append_printf(name, "%s%s", name->len ? "+" : "",
                               whole ? p->graph->components[stage->component].name : stage->name);
    }
    return g_string_free(g_steal_pointer(&name), FALSE);
}

/* With "/a100" where kinds differ and "x2" for two devices. */
static char *exec_name(const cs_problem *p, const cs_exec_type *e)
{
    g_autofree char *stages = stages_name(p, e->mask);
    g_autoptr(GString) name = g_string_new(stages);
    if (p->cluster->n_kinds > 1)
        g_string_append_printf(name, "/%s", p->cluster->kinds[e->kind].name);
    if (e->count > 1)
        g_string_append_printf(name, "x%d", e->count);
    return g_string_free(g_steal_pointer(&name), FALSE);
}

static bool fits_a_node(const cs_problem *p, size_t kind, int count)
{
    for (size_t n = 0; n < p->cluster->n_nodes; n++)
        if (p->cluster->nodes[n].devices[kind] >= count)
            return true;
    return false;
}

typedef enum { EXEC_FITS, EXEC_NO_PROFILE, EXEC_NO_NODE, EXEC_NO_MEMORY } exec_verdict;

/* Whether every stage has a profile there, a node is wide enough and memory suffices; fills *e. */
static exec_verdict judge_exec(const cs_problem *p, guint32 mask, size_t kind, int count,
                               cs_exec_type *e)
{
    *e = (cs_exec_type){.mask = mask, .kind = kind, .count = count};
    for (size_t s = 0; s < p->n_stages; s++) {
        if (!(mask >> s & 1))
            continue;
        const cs_profile *profile =
            cs_profiles_find(p->profiles, p->stages[s].component, p->stages[s].role, kind, count);
        if (!profile)
            return EXEC_NO_PROFILE;
        e->stages[s] =
            (cs_exec_stage){profile, profile->fixed_s, profile->per_unit_s, profile->max_batch};
    }
    if (!fits_a_node(p, kind, count))
        return EXEC_NO_NODE;
    return fit_memory(p, e) ? EXEC_FITS : EXEC_NO_MEMORY;
}

static void try_exec(cs_problem *p, GArray *execs, guint32 mask, size_t kind, int count)
{
    cs_exec_type e;
    if (judge_exec(p, mask, kind, count, &e) != EXEC_FITS)
        return;
    e.cost = count * p->cluster->kinds[kind].cost;
    e.name = exec_name(p, &e);
    g_array_append_val(execs, e);
}

static bool mask_whole(const cs_problem *p, guint32 mask)
{
    for (size_t s = 0; s < p->n_stages; s++)
        if (p->stages[s].inseparable && (mask >> s & 1) != (mask >> p->stages[s].twin & 1))
            return false;
    return true;
}

static guint32 stages_of_components(const cs_problem *p, guint64 components)
{
    guint32 mask = 0;
    for (size_t s = 0; s < p->n_stages; s++)
        if (components >> p->stages[s].component & 1)
            mask |= 1u << s;
    return mask;
}

/* Sets of stages that may share an executor: subsets of a group, and every component alone. */
static void allowed_masks(const cs_problem *p, guint8 *allowed)
{
    for (size_t i = 0; i < p->graph->n_groups + p->graph->n_components; i++) {
        guint64 components =
            i < p->graph->n_groups ? p->graph->groups[i] : (guint64)1 << (i - p->graph->n_groups);
        guint32 all = stages_of_components(p, components);
        for (guint32 mask = all; mask; mask = (mask - 1) & all)
            allowed[mask] = mask_whole(p, mask);
    }
}

/* Device counts that any profile has, ascending. */
static GArray *profiled_counts(const cs_problem *p)
{
    GArray *counts = g_array_new(FALSE, FALSE, sizeof(int));
    for (int last = 0, next = INT_MAX;; last = next, next = INT_MAX) {
        for (size_t i = 0; i < p->profiles->n_entries; i++)
            if (p->profiles->entries[i].count > last)
                next = MIN(next, p->profiles->entries[i].count);
        if (next == INT_MAX)
            return counts;
        g_array_append_val(counts, next);
    }
}

static bool make_execs(cs_problem *p, GError **error)
{
    g_autofree guint8 *allowed = g_new0(guint8, 1u << CS_PLAN_MAX_STAGES);
    g_autoptr(GArray) execs = g_array_new(FALSE, TRUE, sizeof(cs_exec_type));
    g_autoptr(GArray) counts = profiled_counts(p);
    allowed_masks(p, allowed);
    guint32 used = cs_problem_stages_in_use(p);
    for (guint32 mask = 1; mask < 1u << p->n_stages && execs->len <= MAX_EXECS; mask++)
        for (size_t kind = 0; allowed[mask] && !(mask & ~used) && kind < p->cluster->n_kinds;
             kind++)
            for (guint k = 0; k < counts->len; k++)
                try_exec(p, execs, mask, kind, g_array_index(counts, int, k));
    p->n_execs = execs->len;
    p->execs = (cs_exec_type *)g_array_free(g_steal_pointer(&execs), FALSE);
    if (p->n_execs > MAX_EXECS)
        return cs_fail(error, CS_ERROR_TOO_LARGE,
                       "%s: more than %d executor types; restrict colocate", p->graph->name,
                       MAX_EXECS);
    return true;
}

static void make_work(cs_problem *p)
{
    p->work = g_new(double, p->n_execs * p->n_stages * p->n_types + 1);
    for (size_t e = 0; e < p->n_execs; e++)
        for (size_t s = 0; s < p->n_stages; s++)
            for (size_t t = 0; t < p->n_types; t++)
                p->work[(e * p->n_stages + s) * p->n_types + t] =
                    (p->execs[e].mask >> s & 1) ? stage_work(p, &p->execs[e], s, t) : INFINITY;
}

/* ---- why there is no executor type ---- */

static bool may_share(const cs_problem *p, guint32 mask)
{
    guint64 components = 0;
    for (size_t s = 0; s < p->n_stages; s++)
        if (mask >> s & 1)
            components |= (guint64)1 << p->stages[s].component;
    bool shared = (components & (components - 1)) == 0;
    for (size_t g = 0; g < p->graph->n_groups; g++)
        shared |= (components & ~p->graph->groups[g]) == 0;
    return shared;
}

static char *memory_sentence(const cs_problem *p, const cs_exec_type *e)
{
    double have = p->cluster->kinds[e->kind].memory_bytes * p->cluster->kinds[e->kind].usable;
    double need = 0;
    guint64 counted = 0;
    for (size_t s = 0; s < p->n_stages; s++)
        if (e->mask >> s & 1 && !(counted >> p->stages[s].component & 1)) {
            const cs_graph_component *c = &p->graph->components[p->stages[s].component];
            need += c->weights_bytes + c->activation_bytes;
            counted |= (guint64)1 << p->stages[s].component;
        }
    have *= e->count;
    g_autofree char *name = exec_name(p, e);
    return g_strdup_printf("no device holds %s: weights and activations take %.1f GB of %.1f GB "
                           "usable%s",
                           name, need / 1e9, have / 1e9,
                           need <= have ? "; not one request's KV cache fits beside them" : "");
}

char *cs_problem_why_not(const cs_problem *p, guint32 mask)
{
    cs_exec_type nearest = {.mask = mask, .count = 1};
    exec_verdict verdict = EXEC_NO_PROFILE;
    g_autoptr(GArray) counts = profiled_counts(p);
    g_autofree char *name = stages_name(p, mask);
    if (!may_share(p, mask))
        return g_strdup_printf("%s may not share an executor", name);
    for (size_t kind = 0; kind < p->cluster->n_kinds; kind++)
        for (guint k = 0; k < counts->len; k++) {
            cs_exec_type e;
            exec_verdict v = judge_exec(p, mask, kind, g_array_index(counts, int, k), &e);
            bool larger = p->cluster->kinds[kind].memory_bytes * e.count >
                          p->cluster->kinds[nearest.kind].memory_bytes * nearest.count;
            if (v > verdict || (v == EXEC_NO_MEMORY && v == verdict && larger)) {
                verdict = v;
                nearest = e;
            }
        }
    if (verdict == EXEC_NO_MEMORY)
        return memory_sentence(p, &nearest);
    if (verdict == EXEC_NO_NODE)
        return g_strdup_printf("no node has as many devices as the profiles of %s need", name);
    return g_strdup_printf("%s has no profile for any device kind and count of the cluster", name);
}

/* Every stage in use must run somewhere. */
static bool check_coverage(const cs_problem *p, GError **error)
{
    guint32 covered = 0, used = cs_problem_stages_in_use(p);
    for (size_t e = 0; e < p->n_execs; e++)
        covered |= p->execs[e].mask;
    for (size_t s = 0; s < p->n_stages; s++) {
        if (!(used & ~covered & 1u << s))
            continue;
        guint32 twin = p->stages[s].inseparable ? 1u << p->stages[s].twin : 0;
        g_autofree char *why = cs_problem_why_not(p, 1u << s | twin);
        return cs_fail(error, CS_ERROR_INVALID, "%s", why);
    }
    return true;
}

cs_problem *cs_problem_new(const cs_plan_graph *graph, const cs_cluster *cluster,
                           const cs_profiles *profiles, const cs_workload *workload,
                           const cs_problem_options *options, GError **error)
{
    g_autoptr(cs_problem) p = g_new0(cs_problem, 1);
    p->graph = graph;
    p->cluster = cluster;
    p->profiles = profiles;
    p->workload = workload;
    p->utilisation_cap = options ? options->utilisation_cap : 1;
    for (size_t k = 0; k < cluster->n_kinds; k++)
        p->capacity[k] = cs_cluster_devices(cluster, k);
    if (!make_stages(p, error) || !make_edges(p, error))
        return NULL;
    make_types(p);
    if (!make_execs(p, error) || !check_coverage(p, error))
        return NULL;
    make_work(p);
    return g_steal_pointer(&p);
}
