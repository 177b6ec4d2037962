/* Request types and distributions from a trace. */
#include "plan/workload_internal.h"

#include "base/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN_CLUSTER 30 /* requests below which a type is not divided, nor a shape fitted */
#define SPLIT_GAIN 0.5 /* a division must halve the variance of the logarithm */
#define EMPIRICAL_VALUES 64
#define FIT_DISTANCE 0.05 /* Kolmogorov distance up to which a shape describes the sizes */

typedef struct {
    guint graph_type;
    const cs_trace_entry **entries;
    size_t n;
    char *suffix; /* "", "-small", "-large" */
} cluster;

/* Sorted values of one size. */
static double *values_of(const cluster *c, int size)
{
    double *values = g_new(double, c->n + 1);
    for (size_t i = 0; i < c->n; i++)
        values[i] = (double)c->entries[i]->sizes[size];
    qsort(values, c->n, sizeof values[0], cs_compare_doubles);
    return values;
}

/* ---- dividing a type by size ---- */

/* The border that lowers the summed variance of the logarithms most (two-means in one dimension is
 * a scan over the sorted values); 0 when it does not halve it. */
static double best_border(const double *values, size_t n)
{
    g_autofree double *sum = g_new0(double, n + 1), *square = g_new0(double, n + 1);
    for (size_t i = 0; i < n; i++) {
        double x = log1p(values[i]);
        sum[i + 1] = sum[i] + x;
        square[i + 1] = square[i] + x * x;
    }
    double whole = square[n] - sum[n] * sum[n] / (double)n, best = whole;
    size_t at = 0;
    for (size_t k = MIN_CLUSTER; k + MIN_CLUSTER <= n; k++) {
        double left = square[k] - sum[k] * sum[k] / (double)k, rest = sum[n] - sum[k];
        double right = square[n] - square[k] - rest * rest / (double)(n - k);
        if (left + right < best && values[k] > values[k - 1]) {
            best = left + right;
            at = k;
        }
    }
    /* A uniform spread is halved twice by any division; two humps lose far more. */
    return at && best < whole * SPLIT_GAIN * SPLIT_GAIN * 0.8 ? (values[at - 1] + values[at]) / 2
                                                              : 0;
}

static void divide(GArray *clusters, cluster whole)
{
    int best_size = -1;
    double border = 0;
    for (int s = 0; s < CS_SIZE_COUNT && whole.n >= 2 * MIN_CLUSTER && best_size < 0; s++) {
        g_autofree double *values = values_of(&whole, s);
        border = best_border(values, whole.n);
        if (border > 0)
            best_size = s;
    }
    if (best_size < 0) {
        whole.suffix = g_strdup("");
        g_array_append_val(clusters, whole);
        return;
    }
    cluster small = {whole.graph_type, g_new(const cs_trace_entry *, whole.n), 0, NULL};
    cluster large = {whole.graph_type, g_new(const cs_trace_entry *, whole.n), 0, NULL};
    for (size_t i = 0; i < whole.n; i++) {
        cluster *c = (double)whole.entries[i]->sizes[best_size] < border ? &small : &large;
        c->entries[c->n++] = whole.entries[i];
    }
    small.suffix = g_strdup("-small");
    large.suffix = g_strdup("-large");
    g_array_append_val(clusters, small);
    g_array_append_val(clusters, large);
    g_free(whole.entries);
}

static GArray *find_clusters(GArray *entries, const cs_plan_graph *graph)
{
    GArray *clusters = g_array_new(FALSE, TRUE, sizeof(cluster));
    for (size_t t = 0; t < graph->n_types; t++) {
        cluster c = {.graph_type = (guint)t};
        c.entries = g_new(const cs_trace_entry *, entries->len + 1);
        for (guint i = 0; i < entries->len; i++)
            if (g_array_index(entries, cs_trace_entry, i).type == t)
                c.entries[c.n++] = &g_array_index(entries, cs_trace_entry, i);
        if (c.n > 0)
            divide(clusters, c);
        else
            g_free(c.entries);
    }
    return clusters;
}

/* ---- fitting one size ---- */

static double cdf(const cs_dist_part *part, double x)
{
    switch (part->kind) {
    case CS_DIST_UNIFORM:
        return part->b > part->a ? CLAMP((x - part->a) / (part->b - part->a), 0, 1) : x >= part->a;
    case CS_DIST_EXPONENTIAL:
        return 1 - exp(-x / part->a);
    case CS_DIST_LOGNORMAL:
        return x > 0 ? 0.5 * erfc(-log(x / part->a) / part->b / M_SQRT2) : 0;
    case CS_DIST_NORMAL:
        return 0.5 * erfc(-(x - part->a) / part->b / M_SQRT2);
    default:
        return 0;
    }
}

/* Kolmogorov's distance between the shape and the sorted values. */
static double distance(const cs_dist_part *part, const double *values, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double f = cdf(part, values[i]);
        worst =
            MAX(worst, MAX(fabs(f - (double)i / (double)n), fabs(f - (double)(i + 1) / (double)n)));
    }
    return worst;
}

/* The nearest of the known shapes; quantiles of the values themselves where none is near. */
static json_t *fit_size(const double *values, size_t n)
{
    double mean = 0, log_mean = 0, square = 0, log_square = 0;
    if (values[0] == values[n - 1])
        return json_real(values[0]);
    for (size_t i = 0; i < n; i++) {
        double l = log(MAX(values[i], 1e-9));
        mean += values[i] / (double)n;
        square += values[i] * values[i] / (double)n;
        log_mean += l / (double)n;
        log_square += l * l / (double)n;
    }
    cs_dist_part shapes[] = {
        {1, CS_DIST_UNIFORM, values[0], values[n - 1], NULL, 0},
        {1, CS_DIST_EXPONENTIAL, mean, 0, NULL, 0},
        {1, CS_DIST_LOGNORMAL, exp(log_mean), sqrt(MAX(log_square - log_mean * log_mean, 1e-12)),
         NULL, 0},
        {1, CS_DIST_NORMAL, mean, sqrt(MAX(square - mean * mean, 1e-12)), NULL, 0},
    };
    int best = -1;
    double least = n >= MIN_CLUSTER ? FIT_DISTANCE : 0;
    for (size_t k = 0; k < G_N_ELEMENTS(shapes); k++) {
        double d = values[0] < 0 ? 1 : distance(&shapes[k], values, n);
        if (d < least) {
            least = d;
            best = (int)k;
        }
    }
    double quantiles[EMPIRICAL_VALUES];
    cs_dist_part part = {1, CS_DIST_EMPIRICAL, 0, 0, quantiles, MIN(n, EMPIRICAL_VALUES)};
    for (size_t i = 0; i < part.n_values; i++)
        quantiles[i] = values[(size_t)(((double)i + 0.5) / (double)part.n_values * (double)n)];
    cs_dist dist = {best < 0 ? &part : &shapes[best], 1, values[0], values[n - 1]};
    return cs_dist_to_json(&dist);
}

static json_t *type_to_json(const cluster *c, const cs_plan_graph *graph, double share)
{
    json_t *sizes = json_object();
    for (int s = 0; s < CS_SIZE_COUNT; s++) {
        g_autofree double *values = values_of(c, s);
        if (values[c->n - 1] > 0)
            json_object_set_new(sizes, cs_size_name((cs_size)s), fit_size(values, c->n));
    }
    const char *path = graph->types[c->graph_type].name;
    g_autofree char *name = g_strconcat(path, c->suffix, NULL);
    return json_pack("{ss ss sf so}", "name", name, "path", path, "share", share, "sizes", sizes);
}

/* Squared coefficient of variation of the gaps: above 1.3 they are bursts. */
static json_t *arrivals_to_json(const GArray *entries)
{
    double sum = 0, square = 0, n = entries->len - 1;
    for (guint i = 1; i < entries->len; i++) {
        double gap = g_array_index(entries, cs_trace_entry, i).t -
                     g_array_index(entries, cs_trace_entry, i - 1).t;
        sum += gap;
        square += gap * gap;
    }
    double mean = sum / n, cv2 = mean > 0 ? (square / n - mean * mean) / (mean * mean) : 1;
    if (cv2 > 1.3)
        return json_pack("{ss sf}", "process", "bursty", "cv2", MIN(cv2, 1e4));
    return json_pack("{ss}", "process", cv2 < 0.1 ? "uniform" : "poisson");
}

json_t *cs_workload_fit(const char *trace_path, const cs_plan_graph *graph, GError **error)
{
    g_autoptr(GArray) entries = cs_trace_load(trace_path, graph, error);
    if (!entries)
        return NULL;
    double span = g_array_index(entries, cs_trace_entry, entries->len - 1).t -
                  g_array_index(entries, cs_trace_entry, 0).t;
    g_autoptr(GArray) clusters = find_clusters(entries, graph);
    json_t *types = json_array();
    for (guint i = 0; i < clusters->len; i++) {
        cluster *c = &g_array_index(clusters, cluster, i);
        json_array_append_new(types, type_to_json(c, graph, (double)c->n / entries->len));
        g_free(c->entries);
        g_free(c->suffix);
    }
    return json_pack("{si sf so so}", "version", 1, "rate_rps", (entries->len - 1) / span,
                     "arrivals", arrivals_to_json(entries), "types", types);
}
