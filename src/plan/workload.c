#include "plan/workload.h"

#include "base/error.h"
#include "base/yaml.h"
#include "plan/workload_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES (64u << 20)
#define MAX_LINE_BYTES (1u << 20)
#define MAX_TRACE 50000000u
#define MAX_RATE 1e9

void cs_workload_free(cs_workload *workload)
{
    if (!workload)
        return;
    for (size_t i = 0; i < workload->n_types; i++) {
        g_free(workload->types[i].name);
        for (int s = 0; s < CS_SIZE_COUNT; s++)
            cs_dist_clear(&workload->types[i].sizes[s]);
    }
    g_free(workload->types);
    g_free(workload->trace);
    g_free(workload);
}

static void read_sizes(cs_json_reader *r, cs_workload_type *type)
{
    if (!cs_json_has(r, "sizes"))
        return;
    cs_json_enter(r, "sizes");
    json_t *object = cs_json_current(r), *value;
    const char *name;
    json_object_foreach (object, name, value) {
        cs_size size = cs_size_parse(name);
        if (size == CS_SIZE_COUNT) {
            cs_json_fault(r, name, "there is no such size");
            continue;
        }
        cs_dist_read(r, name, &type->sizes[size]);
        if (!r->error)
            type->mean_sizes[size] = cs_dist_mean(&type->sizes[size]);
    }
    cs_json_leave(r);
}

static void read_type(cs_json_reader *r, const cs_plan_graph *graph, cs_workload *w)
{
    cs_workload_type *type = &w->types[w->n_types++];
    cs_json_only(r, (const char *const[]){"name", "path", "rate_rps", "share", "sizes", "latency_s",
                                          "first_s", NULL});
    type->name = g_strdup(cs_json_string(r, "name"));
    const char *path = cs_json_string_or(r, "path", type->name);
    size_t t = cs_plan_graph_type(graph, path);
    if (t == graph->n_types)
        cs_json_fault(r, "path", "the task graph has no request type %s", path);
    else
        type->components = graph->types[t].components;
    for (size_t i = 0; i + 1 < w->n_types; i++)
        if (g_str_equal(w->types[i].name, type->name))
            cs_json_fault(r, "name", "there are two types %s", type->name);
    if (cs_json_has(r, "rate_rps") == cs_json_has(r, "share"))
        cs_json_fault(r, NULL, "expected either rate_rps or share");
    type->rate_rps = cs_json_has(r, "share") ? w->rate_rps * cs_json_number(r, "share", 0, 1e9)
                                             : cs_json_number(r, "rate_rps", 0, MAX_RATE);
    type->latency_s = cs_json_number_or(r, "latency_s", 1e-6, 1e9, INFINITY);
    type->first_s = cs_json_number_or(r, "first_s", 1e-6, 1e9, INFINITY);
    read_sizes(r, type);
}

/* Shares need not sum to 1: they are scaled so that all rates sum to the total, when one is given.
 */
static void read_types(cs_json_reader *r, const cs_plan_graph *graph, cs_workload *w)
{
    size_t n = cs_json_enter_array(r, "types");
    if (n == 0 || n > 1024)
        cs_json_fault(r, NULL, "expected 1 to 1024 types, found %zu", n);
    w->types = g_new0(cs_workload_type, MIN(n, 1024) + 1);
    double total = w->rate_rps, sum = 0;
    for (size_t i = 0; i < MIN(n, 1024); i++) {
        cs_json_enter_item(r, i);
        if (cs_json_has(r, "share") && total <= 0)
            cs_json_fault(r, "share", "a share needs the workload's rate_rps");
        read_type(r, graph, w);
        sum += w->types[i].rate_rps;
        cs_json_leave(r);
    }
    if (!(sum > 0))
        cs_json_fault(r, NULL, "all rates are 0: there is nothing to plan for");
    for (size_t i = 0; i < w->n_types && total > 0 && sum > 0; i++)
        w->types[i].rate_rps *= total / sum;
    w->rate_rps = total > 0 ? total : sum;
    cs_json_leave(r);
}

static void read_arrivals(cs_json_reader *r, cs_workload *w)
{
    static const char *const names[] = {"poisson", "bursty", "duty", "uniform"};
    w->cv2 = 1;
    if (!cs_json_has(r, "arrivals"))
        return;
    cs_json_enter(r, "arrivals");
    const char *word = cs_json_string(r, "process");
    size_t k = 0;
    while (k < G_N_ELEMENTS(names) && !g_str_equal(names[k], word))
        k++;
    if (k == G_N_ELEMENTS(names))
        cs_json_fault(r, "process", "expected poisson, bursty, duty or uniform, found \"%s\"",
                      word);
    w->arrivals = (cs_arrivals_kind)k;
    cs_json_only(r, k == CS_ARRIVALS_BURSTY ? (const char *const[]){"process", "cv2", NULL}
                    : k == CS_ARRIVALS_DUTY
                        ? (const char *const[]){"process", "on_s", "off_s", NULL}
                        : (const char *const[]){"process", NULL});
    if (k == CS_ARRIVALS_BURSTY)
        w->cv2 = cs_json_number(r, "cv2", 1, 1e4);
    if (k == CS_ARRIVALS_DUTY) {
        w->on_s = cs_json_number(r, "on_s", 1e-3, 1e6);
        w->off_s = cs_json_number(r, "off_s", 0, 1e6);
    }
    cs_json_leave(r);
}

cs_workload *cs_workload_from_json(json_t *root, const char *source, const cs_plan_graph *graph,
                                   GError **error)
{
    g_autoptr(cs_workload) w = g_new0(cs_workload, 1);
    cs_json_reader r;
    cs_json_reader_init(&r, root, source);
    cs_json_only(
        &r, (const char *const[]){"version", "rate_rps", "arrivals", "attainment", "types", NULL});
    cs_json_int(&r, "version", 1, 1);
    w->rate_rps = cs_json_has(&r, "rate_rps") ? cs_json_number(&r, "rate_rps", 1e-9, MAX_RATE) : 0;
    w->attainment = cs_json_number_or(&r, "attainment", 0, 1, 0.95);
    read_arrivals(&r, w);
    read_types(&r, graph, w);
    return cs_json_reader_finish(&r, error) ? g_steal_pointer(&w) : NULL;
}

/* ---- traces ---- */

static void read_trace_sizes(cs_json_reader *r, cs_trace_entry *entry)
{
    cs_json_enter(r, "sizes");
    json_t *object = cs_json_current(r), *value;
    const char *name;
    json_object_foreach (object, name, value) {
        cs_size size = cs_size_parse(name);
        if (size == CS_SIZE_COUNT)
            cs_json_fault(r, name, "there is no such size");
        else
            entry->sizes[size] = (float)cs_json_number(r, name, 0, 1e15);
    }
    cs_json_leave(r);
}

static bool read_trace_line(const char *line, size_t length, const char *source,
                            const cs_plan_graph *graph, cs_trace_entry *entry, GError **error)
{
    json_t *root = cs_json_load(line, length, source, error);
    if (!root)
        return false;
    cs_json_reader r;
    cs_json_reader_init(&r, root, source);
    cs_json_only(&r, (const char *const[]){"t", "type", "sizes", NULL});
    entry->t = cs_json_number(&r, "t", 0, 1e12);
    const char *name = cs_json_string(&r, "type");
    size_t type = cs_plan_graph_type(graph, name);
    if (type == graph->n_types)
        cs_json_fault(&r, "type", "the task graph has no request type %s", name);
    entry->type = (guint)type;
    read_trace_sizes(&r, entry);
    bool ok = cs_json_reader_finish(&r, error);
    json_decref(root);
    return ok;
}

static int compare_entries(const void *a, const void *b)
{
    double x = ((const cs_trace_entry *)a)->t, y = ((const cs_trace_entry *)b)->t;
    return (x > y) - (x < y);
}

GArray *cs_trace_load(const char *path, const cs_plan_graph *graph, GError **error)
{
    FILE *file = fopen(path, "re");
    if (!file) {
        cs_fail_errno(error, errno, "%s: cannot be opened", path);
        return NULL;
    }
    g_autoptr(GArray) entries = g_array_new(FALSE, TRUE, sizeof(cs_trace_entry));
    char *line = NULL;
    size_t capacity = 0, number = 0;
    ssize_t length = 0;
    bool ok = true;
    while (ok && (length = getline(&line, &capacity, file)) >= 0) {
        cs_trace_entry entry = {0};
        g_autofree char *where = g_strdup_printf("%s:%zu", path, ++number);
        if (length > MAX_LINE_BYTES || entries->len >= MAX_TRACE)
            ok = cs_fail(error, CS_ERROR_TOO_LARGE, "%s: the trace or its line is too long", where);
        else if (line[strspn(line, " \t\r\n")] != '\0') {
            ok = read_trace_line(line, (size_t)length, where, graph, &entry, error);
            g_array_append_val(entries, entry);
        }
    }
    free(line);
    fclose(file);
    if (ok && entries->len < 2)
        ok = cs_fail(error, CS_ERROR_INVALID, "%s: expected at least two requests", path);
    if (!ok)
        return NULL;
    g_array_sort(entries, compare_entries);
    if (g_array_index(entries, cs_trace_entry, entries->len - 1).t <=
        g_array_index(entries, cs_trace_entry, 0).t) {
        cs_fail(error, CS_ERROR_INVALID, "%s: all requests come at the same time", path);
        return NULL;
    }
    return g_steal_pointer(&entries);
}

/* Types that occur, with empirical means; entry->type becomes the index of its type. */
static cs_workload *workload_of_trace(GArray *entries, const cs_plan_graph *graph)
{
    cs_workload *w = g_new0(cs_workload, 1);
    g_autofree size_t *counts = g_new0(size_t, graph->n_types);
    g_autofree guint *index = g_new0(guint, graph->n_types);
    for (guint i = 0; i < entries->len; i++)
        counts[g_array_index(entries, cs_trace_entry, i).type]++;
    double t0 = g_array_index(entries, cs_trace_entry, 0).t;
    double span = g_array_index(entries, cs_trace_entry, entries->len - 1).t - t0;
    w->rate_rps = (entries->len - 1) / span;
    w->types = g_new0(cs_workload_type, graph->n_types);
    for (size_t t = 0; t < graph->n_types; t++) {
        if (counts[t] == 0)
            continue;
        index[t] = (guint)w->n_types;
        w->types[w->n_types++] = (cs_workload_type){
            .name = g_strdup(graph->types[t].name),
            .components = graph->types[t].components,
            .rate_rps = w->rate_rps * (double)counts[t] / entries->len,
            .latency_s = INFINITY,
            .first_s = INFINITY,
        };
    }
    for (guint i = 0; i < entries->len; i++) {
        cs_trace_entry *entry = &g_array_index(entries, cs_trace_entry, i);
        cs_workload_type *type = &w->types[index[entry->type]];
        for (int s = 0; s < CS_SIZE_COUNT; s++)
            type->mean_sizes[s] += entry->sizes[s] / (double)counts[entry->type];
        entry->type = index[entry->type];
        entry->t -= t0;
    }
    w->arrivals = CS_ARRIVALS_TRACE;
    w->attainment = 0.95;
    w->n_trace = entries->len;
    w->trace = g_memdup2(entries->data, entries->len * sizeof(cs_trace_entry));
    return w;
}

cs_workload *cs_workload_load(const char *path, const cs_plan_graph *graph, GError **error)
{
    if (g_str_has_suffix(path, ".jsonl")) {
        g_autoptr(GArray) entries = cs_trace_load(path, graph, error);
        return entries ? workload_of_trace(entries, graph) : NULL;
    }
    json_t *root = cs_config_load_file(path, MAX_FILE_BYTES, error);
    if (!root)
        return NULL;
    cs_workload *workload = cs_workload_from_json(root, path, graph, error);
    json_decref(root);
    return workload;
}
