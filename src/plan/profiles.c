#include "plan/profiles.h"

#include "base/error.h"
#include "base/yaml.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES (256u << 20)
#define MIN_SECONDS 1e-9
#define MAX_SECONDS 1e9
#define FIT_ROUNDS 8

void cs_profiles_free(cs_profiles *profiles)
{
    if (!profiles)
        return;
    for (size_t i = 0; i < profiles->n_entries; i++)
        g_free(profiles->entries[i].scatter);
    g_free(profiles->entries);
    g_free(profiles->name);
    g_free(profiles);
}

const cs_profile *cs_profiles_find(const cs_profiles *profiles, size_t component, cs_plan_role role,
                                   size_t kind, int count)
{
    for (size_t i = 0; i < profiles->n_entries; i++) {
        const cs_profile *p = &profiles->entries[i];
        if (p->component == component && p->role == role && p->kind == kind && p->count == count)
            return p;
    }
    return NULL;
}

typedef struct {
    double work, seconds;
} sample;

/* One step of the fit: least squares with both coefficients kept non-negative. */
static void fit_weighted(cs_profile *p, const sample *samples, const double *weights, size_t n)
{
    double w = 0, wx = 0, wy = 0, wxx = 0, wxy = 0;
    for (size_t i = 0; i < n; i++) {
        double weight = weights[i], x = samples[i].work;
        w += weight;
        wx += weight * x;
        wy += weight * samples[i].seconds;
        wxx += weight * x * x;
        wxy += weight * x * samples[i].seconds;
    }
    double spread = w * wxx - wx * wx;
    p->per_unit_s = spread > 1e-12 * w * wxx ? (w * wxy - wx * wy) / spread : 0;
    p->fixed_s = (wy - p->per_unit_s * wx) / w;
    if (p->per_unit_s <= 0) {
        p->per_unit_s = 0;
        p->fixed_s = wy / w;
    } else if (p->fixed_s < 0) {
        p->fixed_s = 0;
        p->per_unit_s = wxy / wxx;
    }
}

static double fitted_s(const cs_profile *p, double work)
{
    return MAX(p->fixed_s + p->per_unit_s * work, MIN_SECONDS);
}

/* Seconds over work, so that small steps count as much as large ones: weighted by 1 / fitted^2,
 * repeatedly. (By 1 / measured^2 slow steps would hardly count, and the mean would lie above.) */
static void fit(cs_profile *p, const sample *samples, size_t n)
{
    g_autofree double *weights = g_new0(double, n);
    for (size_t i = 0; i < n; i++)
        weights[i] = 1 / (samples[i].seconds * samples[i].seconds);
    for (int round = 0; round < FIT_ROUNDS; round++) {
        fit_weighted(p, samples, weights, n);
        for (size_t i = 0; i < n; i++)
            weights[i] = pow(fitted_s(p, samples[i].work), -2);
    }
    p->scatter = g_new0(double, n);
    p->n_scatter = n;
    for (size_t i = 0; i < n; i++)
        p->scatter[i] = samples[i].seconds / fitted_s(p, samples[i].work);
    qsort(p->scatter, n, sizeof p->scatter[0], cs_compare_doubles);
}

static void read_samples(cs_json_reader *r, cs_profile *p)
{
    size_t n = cs_json_enter_array(r, "samples");
    g_autofree sample *samples = g_new0(sample, n + 1);
    if (n < 2)
        cs_json_fault(r, NULL, "expected at least two samples, found %zu", n);
    for (size_t i = 0; i < n; i++) {
        cs_json_enter_item(r, i);
        cs_json_only(r, (const char *const[]){"work", "seconds", NULL});
        samples[i].work = cs_json_number(r, "work", 0, 1e15);
        samples[i].seconds = cs_json_number(r, "seconds", MIN_SECONDS, MAX_SECONDS);
        cs_json_leave(r);
    }
    cs_json_leave(r);
    if (!r->error)
        fit(p, samples, n);
}

/* Saturated throughput at reference sizes: a request of `units` of work costs 1 / throughput. In an
 * iterating component each unit is a step shared by max_batch requests. */
static void read_throughput(cs_json_reader *r, cs_profile *p, bool iterates)
{
    double rate = cs_json_number(r, "throughput_rps", 1e-9, 1e12);
    double units = cs_json_number_or(r, "reference_units", 1e-9, 1e15, 1);
    p->fixed_s = cs_json_number_or(r, "fixed_s", 0, MAX_SECONDS, 0);
    double fixed = p->fixed_s / p->max_batch * (iterates ? units : 1);
    p->per_unit_s = (1 / rate - fixed) / units;
    if (p->per_unit_s < 0)
        cs_json_fault(r, "fixed_s",
                      "at batch %d it alone costs %g s a request, more than the %g s "
                      "of the throughput",
                      p->max_batch, fixed, 1 / rate);
}

static void read_speed(cs_json_reader *r, cs_profile *p, bool iterates)
{
    if (cs_json_has(r, "samples")) {
        read_samples(r, p);
    } else if (cs_json_has(r, "throughput_rps")) {
        read_throughput(r, p, iterates);
    } else {
        p->fixed_s = cs_json_number_or(r, "fixed_s", 0, MAX_SECONDS, 0);
        p->per_unit_s = cs_json_number(r, "per_unit_s", 0, MAX_SECONDS);
    }
    if (p->fixed_s + p->per_unit_s <= 0)
        cs_json_fault(r, "per_unit_s", "expected a step that takes time");
}

static cs_plan_role read_role(cs_json_reader *r, bool llm)
{
    const char *word = cs_json_string_or(r, "role", "both");
    if (llm && g_str_equal(word, "prefill"))
        return CS_ROLE_PREFILL;
    if (llm && g_str_equal(word, "decode"))
        return CS_ROLE_DECODE;
    if (llm || !g_str_equal(word, "both"))
        cs_json_fault(r, "role", "expected %s, found \"%s\"", llm ? "prefill or decode" : "both",
                      word);
    return CS_ROLE_BOTH;
}

static const char *const known[] = {
    "component",    "role",        "device",         "count",           "max_batch", "fixed_s",
    "per_unit_s",   "chunk_units", "throughput_rps", "reference_units", "samples",   "turns",
    "mixed_step_s", NULL};

static void read_entry(cs_json_reader *r, cs_profiles *profiles, const cs_plan_graph *graph,
                       const cs_cluster *cluster)
{
    cs_profile p = {0};
    cs_json_only(r, known);
    p.component = cs_plan_graph_component(graph, cs_json_string(r, "component"));
    if (p.component == graph->n_components) {
        cs_json_fault(r, "component", "the task graph has no component %s",
                      cs_json_string(r, "component"));
        return;
    }
    cs_component_kind kind = graph->components[p.component].kind;
    p.role = read_role(r, kind == CS_COMPONENT_LLM);
    p.kind = cs_cluster_kind(cluster, cs_json_string(r, "device"));
    p.count = (int)cs_json_int_or(r, "count", 1, 1024, 1);
    p.max_batch = (int)cs_json_int_or(r, "max_batch", 1, 1 << 16, 1);
    p.chunk_units = cs_json_number_or(r, "chunk_units", 1, 1e15, 0);
    p.turns = (int)cs_json_int_or(r, "turns", 1, 4096, 1);
    p.mixed_step_s = cs_json_number_or(r, "mixed_step_s", MIN_SECONDS, MAX_SECONDS, 0);
    if (p.mixed_step_s > 0 && p.role != CS_ROLE_PREFILL)
        cs_json_fault(r, "mixed_step_s", "belongs to prefill");
    if (p.turns > 1 && kind != CS_COMPONENT_ENCODER)
        cs_json_fault(r, "turns", "belong to an encoder");
    read_speed(r, &p, p.role == CS_ROLE_DECODE || kind == CS_COMPONENT_GENERATOR);
    if (cs_profiles_find(profiles, p.component, p.role, p.kind, p.count))
        cs_json_fault(r, NULL, "a second profile of the same component, role, device and count");
    if (p.kind < cluster->n_kinds)
        profiles->entries[profiles->n_entries++] = p;
    else
        g_free(p.scatter);
}

cs_profiles *cs_profiles_from_json(json_t *root, const char *source, const cs_plan_graph *graph,
                                   const cs_cluster *cluster, GError **error)
{
    g_autoptr(cs_profiles) profiles = g_new0(cs_profiles, 1);
    cs_json_reader r;
    cs_json_reader_init(&r, root, source);
    cs_json_only(&r, (const char *const[]){"version", "name", "profiles", NULL});
    cs_json_int(&r, "version", 1, 1);
    profiles->name = g_strdup(cs_json_string_or(&r, "name", ""));
    size_t n = cs_json_enter_array(&r, "profiles");
    profiles->entries = g_new0(cs_profile, n + 1);
    for (size_t i = 0; i < n; i++) {
        cs_json_enter_item(&r, i);
        read_entry(&r, profiles, graph, cluster);
        cs_json_leave(&r);
    }
    cs_json_leave(&r);
    return cs_json_reader_finish(&r, error) ? g_steal_pointer(&profiles) : NULL;
}

cs_profiles *cs_profiles_load(const char *path, const cs_plan_graph *graph,
                              const cs_cluster *cluster, GError **error)
{
    json_t *root = cs_config_load_file(path, MAX_FILE_BYTES, error);
    if (!root)
        return NULL;
    cs_profiles *profiles = cs_profiles_from_json(root, path, graph, cluster, error);
    json_decref(root);
    return profiles;
}
