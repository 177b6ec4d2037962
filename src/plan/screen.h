/* Latency of a logical plan by sampling: sizes are drawn once, each stage's time comes from the
 * profiles at the batch its load would bring about, and waiting from an approximation of M/G/k
 * queues (Sakasegawa). A thousand times cheaper than simulation and wrong by some tens of percent:
 * for ranking, never for predictions. */
#ifndef CS_PLAN_SCREEN_H
#define CS_PLAN_SCREEN_H

#include "plan/flow.h"

typedef struct cs_screen cs_screen;

/* Draws `samples` requests of the workload. */
cs_screen *cs_screen_new(const cs_problem *problem, size_t samples, guint64 seed);
void cs_screen_free(cs_screen *screen);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_screen, cs_screen_free)

typedef struct {
    double mean_s;     /* over all requests */
    double error_s;    /* standard error of it */
    double attainment; /* the least of any type with a target; 1 if none has */
    double pressure;   /* worst type: its latency over its target at the attainment's quantile */
} cs_screen_result;

/* The first n samples under a total rate, on these replicas with the shares of a solved flow. */
cs_screen_result cs_screen_latency(const cs_screen *screen, const cs_flow *flow, const int *counts,
                                   const cs_flow_result *shares, double rate_rps, size_t n);

#endif
