/* Discrete-event simulation of a layout under a workload: the judge of latency.
 *
 * Every replica is a server that works in rounds. A round runs one step of every stage that has
 * work on it, one after the other: a batch of an encoder, a chunk of prompts, one iteration of
 * decode or of a generator for all requests in it (continuous batching), limited by batch sizes and
 * the KV budget. Rounds in which nothing joins or leaves are taken in one event. Results move to
 * the next stage in chunks where the edge streams; a transfer waits for its ordered pair of nodes.
 * A request's path is drawn by the routing weights (a low-discrepancy sequence), its replicas by
 * present load.
 *
 * Deterministic by seed; layouts compared with one seed see the same requests. No state is shared:
 * simulations may run in parallel over one layout.
 */
#ifndef CS_PLAN_SIM_H
#define CS_PLAN_SIM_H

#include "plan/layout.h"

typedef enum {
    CS_DISPATCH_LEAST_REQUESTS, /* what the runtime does */
    CS_DISPATCH_LEAST_WORK,     /* knows service times; with batch 1 this is one shared queue */
} cs_sim_dispatch;

typedef struct {
    double rate_rps; /* total; 0: the workload's */
    guint64 seed;
    size_t requests;       /* to arrive; 0: 10,000 */
    double warm_up;        /* share of them that is not counted; 0: 0.05 */
    size_t bins;           /* of use over time; 0: none */
    size_t max_in_flight;  /* give up above so many requests at once; 0: 200,000 */
    bool stop_when_missed; /* give up once a type has missed more targets than attainment allows */
    cs_sim_dispatch dispatch;
    void (*progress)(double share, void *data); /* about every 20,000 arrivals */
    void *progress_data;
    const volatile int *cancel;
} cs_sim_options;

typedef struct {
    size_t requests;            /* counted ones, completed */
    size_t met;                 /* within both targets */
    float *latency_s, *first_s; /* [requests], sorted */
    double mean_s, first_mean_s;
} cs_sim_type;

typedef struct {
    double duration_s; /* from the first arrival to the last completion */
    double offered_rps, completed_rps, goodput_rps;
    double attainment; /* the least of any type with a target */
    bool gave_up;      /* too many in flight, missed too many, or cancelled */
    bool cancelled;
    size_t arrived, completed;
    guint64 events; /* arrivals, rounds and deliveries */
    double bytes_sent, bytes_delivered;
    cs_sim_type *types; /* of the problem */
    size_t n_types;
    double *busy;      /* [n_execs * n_nodes] mean share of replicas at work */
    double *link_busy; /* [n_nodes * n_nodes] */
    float *busy_bins;  /* [bins][n_execs * n_nodes] */
    float *link_bins;  /* [bins] bytes/s over all links */
    size_t bins;
    double bin_s;
} cs_sim_result;

bool cs_sim_run(const cs_layout *layout, const cs_sim_options *options, cs_sim_result *result,
                GError **error);
void cs_sim_result_clear(cs_sim_result *result);

/* Nearest-rank percentile of a sorted array; 0 for an empty one. */
double cs_sim_percentile(const float *sorted, size_t n, double p);

/* Writes percentiles, attainment and goodput into a plan's predictions. */
void cs_sim_predict(const cs_sim_result *result, const cs_problem *problem, cs_plan *plan);

/* The whole result for reports; json_decref. */
json_t *cs_sim_to_json(const cs_sim_result *result, const cs_layout *layout);

#endif
