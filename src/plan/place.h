/* Placement: replicas of a logical plan onto nodes, and routes that keep data local. */
#ifndef CS_PLAN_PLACE_H
#define CS_PLAN_PLACE_H

#include "plan/candidates.h"

/* Gives every node a share of each executor type in proportion to its devices (largest remainders,
 * wide executors first), then routes every type's requests stage by stage to the same replica, the
 * same node, or the least used link, in this order. NULL when replicas of several devices do not
 * fit the nodes. The layout's rate may fall short of the candidate's where links bind. */
cs_layout *cs_place_balanced(const cs_flow *flow, const cs_candidate *candidate);

/* Routes anew over the replicas that stand (the weights of the executor types by linear
 * programming, the nodes greedily). */
void cs_place_route(const cs_flow *flow, cs_layout *layout);

/* The exact placement of these counts: node model with the counts fixed, for as many columns as
 * given. NULL when it is larger or unsolved in time. */
cs_layout *cs_place_exact(const cs_flow *flow, const cs_candidate *candidate, bool fixed_rate,
                          size_t max_columns, double seconds);

#endif
