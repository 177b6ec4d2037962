#include "api/metrics.h"

/* Upper bounds in seconds; from a token on a fast machine to an answer on a slow one. */
static const double bucket_bounds[] = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
                                       0.5,   1,     2,     5,    10,   20,   60,  300};
#define N_BUCKETS G_N_ELEMENTS(bucket_bounds)

typedef struct {
    uint64_t buckets[N_BUCKETS + 1]; /* not cumulative; the last is +Inf */
    double sum;
    uint64_t count;
} histogram;

struct cs_metrics {
    GMutex lock;
    GHashTable *requests; /* "route\nstatus" -> uint64_t * */
    histogram histograms[CS_N_METRICS];
    double counters[CS_N_COUNTERS];
    int64_t in_flight;
    int64_t body_bytes; /* atomic: read on the body path without the lock */
};

static const struct {
    const char *name;
    const char *help;
} histogram_names[CS_N_METRICS] = {
    [CS_METRIC_TTFT] = {"cornserve_time_to_first_token_seconds",
                        "From a request's arrival to its first token."},
    [CS_METRIC_ITL] = {"cornserve_inter_token_seconds", "Between two tokens of one answer."},
    [CS_METRIC_E2E] = {"cornserve_request_seconds",
                       "From a generation request's arrival to its last token."},
    [CS_METRIC_TTFA] = {"cornserve_time_to_first_audio_seconds",
                        "From a request's arrival to the first sound of its speech."},
    [CS_METRIC_RTF] =
        {"cornserve_speech_real_time_factor",
         "From a request's arrival to its last sound, over the length of its speech."},
};

static const struct {
    const char *name;
    const char *help;
} counter_names[CS_N_COUNTERS] = {
    [CS_COUNTER_SPEECH_S] = {"cornserve_speech_seconds_total", "Speech that was finished."},
    [CS_COUNTER_UNDERRUN_S] = {"cornserve_speech_underrun_seconds_total",
                               "Silence in streams that are played from their first sound on."},
};

cs_metrics *cs_metrics_new(void)
{
    cs_metrics *metrics = g_new0(cs_metrics, 1);
    g_mutex_init(&metrics->lock);
    metrics->requests = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    return metrics;
}

void cs_metrics_free(cs_metrics *metrics)
{
    if (!metrics)
        return;
    g_hash_table_unref(metrics->requests);
    g_mutex_clear(&metrics->lock);
    g_free(metrics);
}

void cs_metrics_request(cs_metrics *metrics, const char *route, int status)
{
    g_autofree char *key = g_strdup_printf("%s\n%d", route, status);
    g_mutex_lock(&metrics->lock);
    uint64_t *count = g_hash_table_lookup(metrics->requests, key);
    if (!count) {
        count = g_new0(uint64_t, 1);
        g_hash_table_insert(metrics->requests, g_steal_pointer(&key), count);
    }
    ++*count;
    g_mutex_unlock(&metrics->lock);
}

void cs_metrics_in_flight(cs_metrics *metrics, int change)
{
    __atomic_add_fetch(&metrics->in_flight, change, __ATOMIC_RELAXED);
}

void cs_metrics_body_bytes(cs_metrics *metrics, int64_t change)
{
    __atomic_add_fetch(&metrics->body_bytes, change, __ATOMIC_RELAXED);
}

int64_t cs_metrics_body_bytes_now(const cs_metrics *metrics)
{
    return __atomic_load_n(&metrics->body_bytes, __ATOMIC_RELAXED);
}

void cs_metrics_observe(cs_metrics *metrics, cs_metric metric, double seconds, uint32_t count)
{
    size_t bucket = 0;
    while (bucket < N_BUCKETS && seconds > bucket_bounds[bucket])
        bucket++;
    g_mutex_lock(&metrics->lock);
    histogram *h = &metrics->histograms[metric];
    h->buckets[bucket] += count;
    h->sum += seconds * count;
    h->count += count;
    g_mutex_unlock(&metrics->lock);
}

void cs_metrics_add(cs_metrics *metrics, cs_counter counter, double amount)
{
    g_mutex_lock(&metrics->lock);
    metrics->counters[counter] += amount;
    g_mutex_unlock(&metrics->lock);
}

void cs_metrics_print_value(GString *out, const char *name, const char *type, const char *help,
                            double value)
{
    char number[G_ASCII_DTOSTR_BUF_SIZE];
    g_ascii_formatd(number, sizeof(number), "%.15g", value);
    g_string_append_printf(out, "# HELP %s %s\n# TYPE %s %s\n%s %s\n", name, help, name, type, name,
                           number);
}

static void print_histogram(GString *out, cs_metric metric, const histogram *h)
{
    const char *name = histogram_names[metric].name;
    char number[G_ASCII_DTOSTR_BUF_SIZE];
    g_string_append_printf(out, "# HELP %s %s\n# TYPE %s histogram\n", name,
                           histogram_names[metric].help, name);
    uint64_t below = 0;
    for (size_t i = 0; i < N_BUCKETS; i++) {
        below += h->buckets[i];
        g_ascii_formatd(number, sizeof(number), "%g", bucket_bounds[i]);
        g_string_append_printf(out, "%s_bucket{le=\"%s\"} %" G_GUINT64_FORMAT "\n", name, number,
                               below);
    }
    g_ascii_formatd(number, sizeof(number), "%.9g", h->sum);
    g_string_append_printf(out,
                           "%s_bucket{le=\"+Inf\"} %" G_GUINT64_FORMAT
                           "\n%s_sum %s\n%s_count %" G_GUINT64_FORMAT "\n",
                           name, h->count, name, number, name, h->count);
}

static void print_requests(GString *out, GHashTable *requests)
{
    g_string_append(out,
                    "# HELP cornserve_http_requests_total Requests answered, by route and status.\n"
                    "# TYPE cornserve_http_requests_total counter\n");
    g_autoptr(GList) keys = g_list_sort(g_hash_table_get_keys(requests), (GCompareFunc)g_strcmp0);
    for (GList *k = keys; k; k = k->next) {
        g_auto(GStrv) part = g_strsplit(k->data, "\n", 2);
        const uint64_t *count = g_hash_table_lookup(requests, k->data);
        g_string_append_printf(
            out,
            "cornserve_http_requests_total{route=\"%s\",status=\"%s\"} %" G_GUINT64_FORMAT "\n",
            part[0], part[1], *count);
    }
}

void cs_metrics_print(cs_metrics *metrics, GString *out)
{
    g_mutex_lock(&metrics->lock);
    print_requests(out, metrics->requests);
    for (int m = 0; m < CS_N_METRICS; m++)
        print_histogram(out, (cs_metric)m, &metrics->histograms[m]);
    for (int c = 0; c < CS_N_COUNTERS; c++)
        cs_metrics_print_value(out, counter_names[c].name, "counter", counter_names[c].help,
                               metrics->counters[c]);
    g_mutex_unlock(&metrics->lock);
    cs_metrics_print_value(out, "cornserve_http_requests_in_flight", "gauge",
                           "Requests being handled now.",
                           (double)__atomic_load_n(&metrics->in_flight, __ATOMIC_RELAXED));
    cs_metrics_print_value(out, "cornserve_http_body_bytes", "gauge",
                           "Bytes of request bodies held now.",
                           (double)cs_metrics_body_bytes_now(metrics));
}
