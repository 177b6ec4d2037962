/* Counters and histograms of the API, in Prometheus' text format. Thread-safe. */
#ifndef CS_API_METRICS_H
#define CS_API_METRICS_H

#include <glib.h>
#include <stdint.h>

typedef struct cs_metrics cs_metrics;

typedef enum {
    CS_METRIC_TTFT, /* request received to first token, s */
    CS_METRIC_ITL,  /* between tokens of one choice, s */
    CS_METRIC_E2E,  /* request received to answer complete, s */
    CS_METRIC_TTFA, /* request received to first sound, s */
    CS_METRIC_RTF,  /* time to make a speech over its length */
    CS_N_METRICS
} cs_metric;

typedef enum {
    CS_COUNTER_SPEECH_S,   /* of finished answers */
    CS_COUNTER_UNDERRUN_S, /* that somebody who plays a stream from its first sound on had to wait
                            */
    CS_N_COUNTERS
} cs_counter;

cs_metrics *cs_metrics_new(void);
void cs_metrics_free(cs_metrics *metrics); /* accepts NULL */

/* Counts a request answered with a status; route is the table's path or "none". */
void cs_metrics_request(cs_metrics *metrics, const char *route, int status);
/* Requests being handled. */
void cs_metrics_in_flight(cs_metrics *metrics, int change);
/* Bytes of request bodies held. */
void cs_metrics_body_bytes(cs_metrics *metrics, int64_t change);
int64_t cs_metrics_body_bytes_now(const cs_metrics *metrics);
/* Adds `count` observations of `seconds`. */
void cs_metrics_observe(cs_metrics *metrics, cs_metric metric, double seconds, uint32_t count);

void cs_metrics_add(cs_metrics *metrics, cs_counter counter, double amount);

void cs_metrics_print(cs_metrics *metrics, GString *out);

/* For callers with figures of their own: "# HELP", "# TYPE" and one sample. */
void cs_metrics_print_value(GString *out, const char *name, const char *type, const char *help,
                            double value);

#endif
