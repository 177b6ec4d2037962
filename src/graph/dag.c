/* The component graph for the planner, found by recording: each request kind is recorded at several
 * sizes, and the work of components and the bytes of edges are read off as affine functions of the
 * sizes. One more recording checks that they are affine. */
#include "base/error.h"
#include "graph/graph_internal.h"

#include <math.h>
#include <string.h>

const char *const cs_graph_sizes[] = {"text_in_tokens",
                                      "text_out_tokens",
                                      "images",
                                      "image_tokens",
                                      "image_pixels",
                                      "video_frames",
                                      "video_tokens",
                                      "audio_in_seconds",
                                      "audio_in_tokens",
                                      "audio_out_seconds",
                                      "audio_out_tokens",
                                      "images_out",
                                      "image_out_pixels",
                                      "steps",
                                      NULL};

enum { N_SIZES = G_N_ELEMENTS(cs_graph_sizes) - 1 };

#define BASE_SIZE 1000.0
#define EDGE_CHUNKS 32 /* of a streamed edge: the consumer can start after 1/32 of the work */

/* One recording as numbers: for each unit its work and output, for each pair of units the bytes. */
typedef struct {
    uint32_t n_units;
    double *values; /* [n_units] units, [n_units] output units, [n_units][n_units] bytes */
    bool *used;     /* [n_units] */
    bool *edges;    /* [n_units][n_units] */
    bool *streamed; /* [n_units][n_units] */
} numbers;

static uint32_t n_values(uint32_t n_units)
{
    return n_units * (n_units + 2);
}

static void numbers_clear(numbers *m)
{
    g_free(m->values);
    g_free(m->used);
    g_free(m->edges);
    g_free(m->streamed);
}

static uint32_t unit_index(const cs_tasks *tasks, const cs_unit *unit)
{
    uint32_t i = 0;
    while (cs_tasks_unit(tasks, i) != unit)
        i++;
    return i;
}

static void count_inputs(const cs_tasks *tasks, const cs_recording *r, const cs_invocation *call,
                         numbers *m)
{
    uint32_t n = m->n_units, to = unit_index(tasks, call->unit);
    for (guint k = 0; k < call->inputs->len; k++) {
        const cs_invocation_input *input = &g_array_index(call->inputs, cs_invocation_input, k);
        const cs_forward *f = cs_recording_forward(r, input->forward);
        const cs_unit *producer = cs_recording_invocation(r, f->producer)->unit;
        uint32_t from = unit_index(tasks, producer);
        m->values[2 * n + from * n + to] += f->bytes;
        m->edges[from * n + to] = true;
        m->streamed[from * n + to] |= producer->outputs[f->output].streamed;
    }
}

static bool measure(cs_tasks *tasks, const char *alias, const char *kind, const double *sizes,
                    numbers *m, GError **error)
{
    uint32_t n = cs_tasks_n_units(tasks);
    json_t *object = json_object();
    for (unsigned i = 0; i < N_SIZES; i++)
        json_object_set_new(object, cs_graph_sizes[i], json_integer((json_int_t)sizes[i]));
    json_t *request = cs_tasks_example(tasks, alias, kind, object, error);
    json_decref(object);
    if (!request)
        return false;
    g_autoptr(cs_recording) r = cs_tasks_record(tasks, alias, request, error);
    json_decref(request);
    if (!r)
        return false;
    *m = (numbers){.n_units = n,
                   .values = g_new0(double, n_values(n)),
                   .used = g_new0(bool, n),
                   .edges = g_new0(bool, n *n),
                   .streamed = g_new0(bool, n *n)};
    for (uint32_t i = 0; i < r->invocations->len; i++) {
        const cs_invocation *call = cs_recording_invocation(r, i);
        uint32_t u = unit_index(tasks, call->unit);
        m->used[u] = true;
        m->values[u] += call->units;
        m->values[n + u] += call->output_units;
        count_inputs(tasks, r, call, m);
    }
    return true;
}

/* Formulas of one kind: [n_values][1 + N_SIZES], the constant first. */
static bool fit(cs_tasks *tasks, const char *alias, const char *kind, numbers *base,
                double *formulas, GError **error)
{
    double sizes[N_SIZES];
    for (unsigned i = 0; i < N_SIZES; i++)
        sizes[i] = BASE_SIZE;
    if (!measure(tasks, alias, kind, sizes, base, error))
        return false;
    uint32_t n = n_values(base->n_units), width = 1 + N_SIZES;
    for (uint32_t v = 0; v < n; v++)
        formulas[v * width] = base->values[v];
    for (unsigned s = 0; s < N_SIZES; s++) {
        numbers m = {0};
        sizes[s] = 2 * BASE_SIZE;
        if (!measure(tasks, alias, kind, sizes, &m, error))
            return false;
        sizes[s] = BASE_SIZE;
        for (uint32_t v = 0; v < n; v++) {
            double slope = (m.values[v] - base->values[v]) / BASE_SIZE;
            formulas[v * width + 1 + s] = slope;
            formulas[v * width] -= slope * BASE_SIZE;
        }
        numbers_clear(&m);
    }
    for (unsigned s = 0; s < N_SIZES; s++)
        sizes[s] = BASE_SIZE * (3 + s % 5);
    numbers check = {0};
    if (!measure(tasks, alias, kind, sizes, &check, error))
        return false;
    bool affine = true;
    for (uint32_t v = 0; v < n; v++) {
        double expected = formulas[v * width];
        for (unsigned s = 0; s < N_SIZES; s++)
            expected += formulas[v * width + 1 + s] * sizes[s];
        affine = affine && fabs(expected - check.values[v]) <= 1e-6 * (1 + fabs(expected));
    }
    numbers_clear(&check);
    return affine || cs_fail(error, CS_ERROR_INVALID,
                             "%s: request kind %s: units and bytes are no affine functions of the "
                             "sizes",
                             alias, kind);
}

static json_t *formula_json(const double *formula)
{
    json_t *object = json_object();
    if (fabs(formula[0]) > 1e-6)
        json_object_set_new(object, "constant", json_real(formula[0]));
    for (unsigned s = 0; s < N_SIZES; s++)
        if (fabs(formula[1 + s]) > 1e-9)
            json_object_set_new(object, cs_graph_sizes[s], json_real(formula[1 + s]));
    return object;
}

/* What all kinds together say. */
typedef struct {
    cs_tasks *tasks;
    uint32_t n;
    double *formulas;
    bool *edges, *streamed;
    bool *used;
    json_t *types;
} summary;

static void add_kind(summary *sum, const char *kind, const numbers *m, const double *formulas)
{
    uint32_t n = sum->n, width = 1 + N_SIZES;
    json_t *components = json_array();
    for (uint32_t u = 0; u < n; u++) {
        sum->used[u] |= m->used[u];
        if (m->used[u])
            json_array_append_new(components, json_string(cs_tasks_unit(sum->tasks, u)->name));
    }
    for (uint32_t e = 0; e < n * n; e++) {
        sum->edges[e] |= m->edges[e];
        sum->streamed[e] |= m->streamed[e];
    }
    /* a kind that does not use a size has no slope for it: the largest of all kinds serves all */
    for (uint32_t v = 0; v < n_values(n) * width; v++)
        sum->formulas[v] = MAX(sum->formulas[v], formulas[v]);
    json_array_append_new(sum->types,
                          json_pack("{s:s, s:o}", "name", kind, "components", components));
}

static json_t *component_json(const summary *sum, uint32_t u,
                              double (*weights_bytes)(void *, const cs_unit *), void *user)
{
    static const char *const kinds[] = {"encoder", "llm", "generator"};
    const cs_unit *unit = cs_tasks_unit(sum->tasks, u);
    uint32_t width = 1 + N_SIZES;
    json_t *c = json_pack("{s:s, s:s, s:f, s:f, s:o}", "name", unit->name, "kind",
                          kinds[unit->kind], "weights_bytes",
                          weights_bytes ? weights_bytes(user, unit) : 0.0, "activation_bytes",
                          unit->activation_bytes, "units", formula_json(sum->formulas + u * width));
    if (unit->kind == CS_UNIT_LLM) {
        json_object_set_new(c, "kv_bytes_per_token", json_real(unit->kv_bytes_per_token));
        json_object_set_new(c, "split", json_boolean(unit->split));
        json_object_set_new(c, "output_units", formula_json(sum->formulas + (sum->n + u) * width));
    }
    if (unit->to_user)
        json_object_set_new(c, "output", json_string(unit->to_user));
    return c;
}

static json_t *edges_json(const summary *sum)
{
    json_t *edges = json_array();
    for (uint32_t e = 0; e < sum->n * sum->n; e++) {
        if (!sum->edges[e])
            continue;
        const double *bytes = sum->formulas + (2 * sum->n + e) * (1 + N_SIZES);
        json_array_append_new(edges, json_pack("{s:s, s:s, s:o, s:i}", "from",
                                               cs_tasks_unit(sum->tasks, e / sum->n)->name, "to",
                                               cs_tasks_unit(sum->tasks, e % sum->n)->name, "bytes",
                                               formula_json(bytes), "chunks",
                                               sum->streamed[e] ? EDGE_CHUNKS : 1));
    }
    return edges;
}

static const task_model *model_of(const cs_tasks *tasks, const char *alias)
{
    for (guint i = 0; i < tasks->models->len; i++)
        if (strcmp(((task_model *)tasks->models->pdata[i])->alias, alias) == 0)
            return tasks->models->pdata[i];
    return NULL;
}

json_t *cs_tasks_to_plan_graph(cs_tasks *tasks, const char *alias,
                               double (*weights_bytes)(void *user, const cs_unit *unit), void *user,
                               GError **error)
{
    const task_model *model = model_of(tasks, alias);
    if (!model) {
        cs_fail(error, CS_ERROR_NOT_FOUND, "%s: there is no model %s", tasks->name, alias);
        return NULL;
    }
    uint32_t n = cs_tasks_n_units(tasks), n_formulas = n_values(n) * (1 + N_SIZES);
    g_autofree double *formulas = g_new0(double, n_formulas);
    g_autofree double *all = g_new0(double, n_formulas);
    g_autofree bool *edges = g_new0(bool, n *n), *streamed = g_new0(bool, n *n);
    g_autofree bool *used = g_new0(bool, n);
    summary sum = {tasks, n, all, edges, streamed, used, json_array()};
    bool ok = true;
    for (const char *const *kind = cs_tasks_request_kinds(tasks, alias); ok && *kind; kind++) {
        numbers base = {0};
        ok = fit(tasks, alias, *kind, &base, formulas, error);
        if (ok)
            add_kind(&sum, *kind, &base, formulas);
        numbers_clear(&base);
    }
    if (!ok) {
        json_decref(sum.types);
        return NULL;
    }
    json_t *components = json_array();
    for (uint32_t u = 0; u < n; u++)
        if (used[u])
            json_array_append_new(components, component_json(&sum, u, weights_bytes, user));
    json_t *graph =
        json_pack("{s:i, s:s, s:o, s:o, s:o}", "version", 1, "name", model->name, "components",
                  components, "edges", edges_json(&sum), "request_types", sum.types);
    if (model->colocate)
        json_object_set(graph, "colocate", model->colocate);
    return graph;
}
