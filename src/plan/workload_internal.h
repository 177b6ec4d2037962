/* Shared by workload.c and workload_fit.c. */
#ifndef CS_PLAN_WORKLOAD_INTERNAL_H
#define CS_PLAN_WORKLOAD_INTERNAL_H

#include "plan/workload.h"

/* cs_trace_entry by time; `type` is the graph's request type. g_array_unref. */
GArray *cs_trace_load(const char *path, const cs_plan_graph *graph, GError **error);

#endif
