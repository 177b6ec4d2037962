#include "plan/graph_input.h"

#include "base/error.h"
#include "base/yaml.h"

#include <string.h>

#define MAX_FILE_BYTES (16u << 20)
#define MAX_BYTES 1e18

static const char *const kind_names[] = {[CS_COMPONENT_ENCODER] = "encoder",
                                         [CS_COMPONENT_LLM] = "llm",
                                         [CS_COMPONENT_GENERATOR] = "generator"};

void cs_plan_graph_free(cs_plan_graph *graph)
{
    if (!graph)
        return;
    for (size_t i = 0; i < graph->n_components; i++) {
        g_free(graph->components[i].name);
        g_free(graph->components[i].output);
    }
    for (size_t i = 0; i < graph->n_types; i++)
        g_free(graph->types[i].name);
    g_free(graph->components);
    g_free(graph->edges);
    g_free(graph->types);
    g_free(graph->groups);
    g_free(graph->name);
    g_free(graph);
}

size_t cs_plan_graph_component(const cs_plan_graph *graph, const char *name)
{
    size_t i = 0;
    while (i < graph->n_components && !g_str_equal(graph->components[i].name, name))
        i++;
    return i;
}

size_t cs_plan_graph_type(const cs_plan_graph *graph, const char *name)
{
    size_t i = 0;
    while (i < graph->n_types && !g_str_equal(graph->types[i].name, name))
        i++;
    return i;
}

/* An array of component names as a bit set. */
static guint64 read_set(cs_json_reader *r, const cs_plan_graph *graph)
{
    guint64 set = 0;
    json_t *array = cs_json_current(r);
    for (size_t i = 0; i < json_array_size(array); i++) {
        const char *name = json_string_value(json_array_get(array, i));
        size_t c = name ? cs_plan_graph_component(graph, name) : graph->n_components;
        if (c == graph->n_components)
            cs_json_fault(r, NULL, "[%zu]: there is no component %s", i, name ? name : "(no name)");
        else
            set |= (guint64)1 << c;
    }
    if (set == 0)
        cs_json_fault(r, NULL, "expected at least one component");
    return set;
}

static void read_component(cs_json_reader *r, cs_plan_graph *graph)
{
    cs_graph_component c = {0};
    cs_json_only(r, (const char *const[]){"name", "kind", "weights_bytes", "activation_bytes",
                                          "kv_bytes_per_token", "split", "units", "output_units",
                                          "weight", "output", "first_piece", "piece", "piece_extra",
                                          NULL});
    const char *name = cs_json_string(r, "name"), *kind = cs_json_string(r, "kind");
    if (name[0] == '\0' || strchr(name, ':') || strlen(name) > 64)
        cs_json_fault(r, "name", "expected 1 to 64 bytes without a colon");
    if (cs_plan_graph_component(graph, name) < graph->n_components)
        cs_json_fault(r, "name", "there are two components %s", name);
    while (c.kind < G_N_ELEMENTS(kind_names) && !g_str_equal(kind_names[c.kind], kind))
        c.kind++;
    if (c.kind == G_N_ELEMENTS(kind_names)) {
        cs_json_fault(r, "kind", "expected encoder, llm or generator, found \"%s\"", kind);
        c.kind = CS_COMPONENT_ENCODER;
    }
    bool llm = c.kind == CS_COMPONENT_LLM;
    c.weights_bytes = cs_json_number(r, "weights_bytes", 0, MAX_BYTES);
    c.activation_bytes = cs_json_number_or(r, "activation_bytes", 0, MAX_BYTES, 0);
    c.kv_bytes_per_token = cs_json_number_or(r, "kv_bytes_per_token", 0, MAX_BYTES, 0);
    c.split = cs_json_bool_or(r, "split", false);
    cs_size_formula_read(r, "units", NAN, &c.units);
    cs_size_formula_read(r, "output_units", llm ? NAN : 0, &c.output_units);
    cs_size_formula_read(r, "weight", 1, &c.weight);
    c.piece = cs_json_number_or(r, "piece", 1, 1e6, 1);
    c.piece_extra = cs_json_number_or(r, "piece_extra", 0, 1e6, 0);
    c.first_piece = cs_json_number_or(r, "first_piece", 1, c.piece, c.piece);
    const char *output = cs_json_string_or(r, "output", "");
    if (c.kind != CS_COMPONENT_GENERATOR && cs_json_has(r, "piece"))
        cs_json_fault(r, "piece", "belongs to a generator");
    if (!llm && (c.split || c.kv_bytes_per_token > 0 || cs_json_has(r, "output_units")))
        cs_json_fault(r, NULL, "split, kv_bytes_per_token and output_units belong to an llm");
    c.name = g_strdup(name);
    c.output = output[0] ? g_strdup(output) : NULL;
    graph->components[graph->n_components++] = c;
}

static void read_components(cs_json_reader *r, cs_plan_graph *graph)
{
    size_t n = cs_json_enter_array(r, "components");
    if (n == 0 || n > CS_PLAN_MAX_COMPONENTS)
        cs_json_fault(r, NULL, "expected 1 to %d components, found %zu", CS_PLAN_MAX_COMPONENTS, n);
    graph->components = g_new0(cs_graph_component, CS_PLAN_MAX_COMPONENTS);
    for (size_t i = 0; i < MIN(n, CS_PLAN_MAX_COMPONENTS); i++) {
        cs_json_enter_item(r, i);
        read_component(r, graph);
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

static guint read_end(cs_json_reader *r, const cs_plan_graph *graph, const char *key)
{
    const char *name = cs_json_string(r, key);
    size_t c = cs_plan_graph_component(graph, name);
    if (c < graph->n_components)
        return (guint)c;
    cs_json_fault(r, key, "there is no component %s", name);
    return 0;
}

static void read_edges(cs_json_reader *r, cs_plan_graph *graph)
{
    size_t n = cs_json_enter_array(r, "edges");
    if (n > CS_PLAN_MAX_COMPONENTS * CS_PLAN_MAX_COMPONENTS) {
        cs_json_fault(r, NULL, "expected an edge between two components at most once, found %zu",
                      n);
        n = 0;
    }
    graph->edges = g_new0(cs_graph_edge, n + 1);
    graph->n_edges = n;
    for (size_t i = 0; i < n; i++) {
        cs_graph_edge *e = &graph->edges[i];
        cs_json_enter_item(r, i);
        cs_json_only(r, (const char *const[]){"from", "to", "bytes", "chunks", "ahead", NULL});
        e->from = read_end(r, graph, "from");
        e->to = read_end(r, graph, "to");
        cs_size_formula_read(r, "bytes", 0, &e->bytes);
        e->chunks = (int)cs_json_int_or(r, "chunks", 1, 1024, 1);
        e->ahead = cs_json_has(r, "ahead") ? cs_json_number(r, "ahead", 0, 1e6) : -1;
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

static void read_types(cs_json_reader *r, cs_plan_graph *graph)
{
    size_t n = cs_json_enter_array(r, "request_types");
    if (n == 0 || n > 1024)
        cs_json_fault(r, NULL, "expected 1 to 1024 request types, found %zu", n);
    graph->types = g_new0(cs_graph_type, n + 1);
    for (size_t i = 0; i < n; i++) {
        cs_json_enter_item(r, i);
        cs_json_only(r, (const char *const[]){"name", "components", NULL});
        const char *name = cs_json_string(r, "name");
        if (name[0] == '\0' || cs_plan_graph_type(graph, name) < graph->n_types)
            cs_json_fault(r, "name", "expected a name of its own, found \"%s\"", name);
        cs_json_enter_array(r, "components");
        guint64 set = read_set(r, graph);
        cs_json_leave(r);
        graph->types[graph->n_types++] = (cs_graph_type){g_strdup(name), set};
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

/* No "colocate": anything may share an executor. */
static void read_groups(cs_json_reader *r, cs_plan_graph *graph)
{
    if (!cs_json_has(r, "colocate")) {
        graph->groups = g_new0(guint64, 1);
        graph->groups[graph->n_groups++] = ((guint64)1 << graph->n_components) - 1;
        return;
    }
    size_t n = cs_json_enter_array(r, "colocate");
    graph->groups = g_new0(guint64, n + 1);
    for (size_t i = 0; i < n; i++) {
        cs_json_enter_item(r, i);
        if (!json_is_array(cs_json_current(r)))
            cs_json_fault(r, NULL, "expected an array of component names");
        graph->groups[graph->n_groups++] = read_set(r, graph);
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

/* A component on a cycle, or n_components: repeatedly drops components without incoming edges. */
static size_t find_cycle(const cs_plan_graph *graph)
{
    guint64 left = ((guint64)1 << graph->n_components) - 1, before = 0;
    while (left != before) {
        before = left;
        for (size_t c = 0; c < graph->n_components; c++) {
            bool fed = false;
            for (size_t e = 0; e < graph->n_edges; e++)
                fed |= graph->edges[e].to == c && (left >> graph->edges[e].from & 1);
            if (!fed)
                left &= ~((guint64)1 << c);
        }
    }
    return left ? (size_t)__builtin_ctzll(left) : graph->n_components;
}

bool cs_plan_graph_check(const cs_plan_graph *graph, const char *source, GError **error)
{
    if (graph->n_components == 0 || graph->n_components > CS_PLAN_MAX_COMPONENTS)
        return cs_fail(error, CS_ERROR_INVALID, "%s: expected 1 to %d components, found %zu",
                       source, CS_PLAN_MAX_COMPONENTS, graph->n_components);
    for (size_t e = 0; e < graph->n_edges; e++) {
        const cs_graph_edge *a = &graph->edges[e];
        if (a->from >= graph->n_components || a->to >= graph->n_components || a->chunks < 1)
            return cs_fail(error, CS_ERROR_INVALID, "%s: edges[%zu]: no such component", source, e);
        for (size_t f = 0; f < e; f++)
            if (graph->edges[f].from == a->from && graph->edges[f].to == a->to)
                return cs_fail(error, CS_ERROR_INVALID, "%s: edges[%zu]: a second edge %s -> %s",
                               source, e, graph->components[a->from].name,
                               graph->components[a->to].name);
    }
    size_t c = find_cycle(graph);
    if (c < graph->n_components)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: edges: component %s is on a cycle; a task graph has none", source,
                       graph->components[c].name);
    return true;
}

cs_plan_graph *cs_plan_graph_from_json(json_t *root, const char *source, GError **error)
{
    g_autoptr(cs_plan_graph) graph = g_new0(cs_plan_graph, 1);
    cs_json_reader r;
    cs_json_reader_init(&r, root, source);
    cs_json_only(&r, (const char *const[]){"version", "name", "components", "edges",
                                           "request_types", "colocate", NULL});
    cs_json_int(&r, "version", 1, 1);
    graph->name = g_strdup(cs_json_string(&r, "name"));
    read_components(&r, graph);
    read_edges(&r, graph);
    read_types(&r, graph);
    read_groups(&r, graph);
    if (!cs_json_reader_finish(&r, error) || !cs_plan_graph_check(graph, source, error))
        return NULL;
    return g_steal_pointer(&graph);
}

cs_plan_graph *cs_plan_graph_load(const char *path, GError **error)
{
    json_t *root = cs_config_load_file(path, MAX_FILE_BYTES, error);
    if (!root)
        return NULL;
    cs_plan_graph *graph = cs_plan_graph_from_json(root, path, error);
    json_decref(root);
    return graph;
}
