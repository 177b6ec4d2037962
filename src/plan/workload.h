/* The workload: how often which requests come, how large they are, and how fast they must be.
 *
 * Read from YAML as a mix of types, or from a JSON-lines trace of requests that were seen:
 *
 *     {"t": 0.52, "type": "image_to_text", "sizes": {"text_in_tokens": 310, "images": 1}}
 */
#ifndef CS_PLAN_WORKLOAD_H
#define CS_PLAN_WORKLOAD_H

#include "plan/graph_input.h"

typedef enum {
    CS_ARRIVALS_POISSON,
    CS_ARRIVALS_BURSTY, /* hyper-exponential gaps with squared coefficient of variation cv2 */
    CS_ARRIVALS_DUTY,   /* Poisson during on_s seconds, silent during off_s; the mean is the rate */
    CS_ARRIVALS_UNIFORM, /* equal gaps */
    CS_ARRIVALS_TRACE,   /* as recorded, stretched to the rate asked for */
} cs_arrivals_kind;

typedef struct {
    char *name;
    guint64 components; /* of the graph's request type */
    double rate_rps;
    cs_dist sizes[CS_SIZE_COUNT];
    double mean_sizes[CS_SIZE_COUNT];
    double latency_s; /* target end to end; INFINITY: none */
    double first_s;   /* target to the first token or audio; INFINITY: none */
} cs_workload_type;

typedef struct {
    double t;
    guint type;
    float sizes[CS_SIZE_COUNT];
} cs_trace_entry;

typedef struct {
    cs_workload_type *types;
    size_t n_types;
    double rate_rps; /* of all types together */
    cs_arrivals_kind arrivals;
    double cv2, on_s, off_s;
    double attainment;     /* share of each type's requests that must meet their targets */
    cs_trace_entry *trace; /* for CS_ARRIVALS_TRACE, by time */
    size_t n_trace;
} cs_workload;

cs_workload *cs_workload_from_json(json_t *root, const char *source, const cs_plan_graph *graph,
                                   GError **error);
/* A .jsonl file is read as a trace; its types are the graph's, without latency targets. */
cs_workload *cs_workload_load(const char *path, const cs_plan_graph *graph, GError **error);
void cs_workload_free(cs_workload *workload);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_workload, cs_workload_free)

/* Clusters the requests of a trace into types by graph type and size (at most two size classes a
 * type, split where the spread of logarithms falls by half), fits each size's distribution, and
 * returns the workload file. json_decref. */
json_t *cs_workload_fit(const char *trace_path, const cs_plan_graph *graph, GError **error);

#endif
