/* Sizing with latency: the least that carries the workload's rates and meets its latency targets.
 *
 * The flow knows no queues: the cheapest plan that carries the rates is full, and everybody waits.
 * Here executors are planned for a share of their time, which is lowered until the simulator says
 * that every request type attains its targets at the workload's rates. Then replicas are taken
 * away one at a time for as long as it still does.
 */
#ifndef CS_PLAN_PROVISION_H
#define CS_PLAN_PROVISION_H

#include "plan/fast.h"

typedef struct {
    cs_layout *layout;
    cs_sim_result sim; /* at the workload's rates */
    char *explanation;
} cs_provision_result;

/* options->policy is cost or devices. Fails when no type has a target, when the rates cannot be
 * carried, and when they can but not in time: then the sentence says what comes nearest. Cancelled,
 * it returns the best so far if there is one. */
bool cs_provision(const cs_flow *flow, const cs_fast_options *options, cs_provision_result *result,
                  GError **error);
void cs_provision_result_clear(cs_provision_result *result);

#endif
