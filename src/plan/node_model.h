/* Constraints 1 to 5 of the model with nodes as a mixed integer program.
 *
 * Columns: x[e,n] replicas; for every path (an executor type for each stage of a request type;
 * stages on one type move together as a group) its rate, the rate z of each group on each node, and
 * the rate y between nodes for each pair of groups that exchange data (edges between the same two
 * groups are one column: given their common end points, a common flow costs the links no more). The
 * total rate and the largest link utilisation are columns of their own.
 */
#ifndef CS_PLAN_NODE_MODEL_H
#define CS_PLAN_NODE_MODEL_H

#include "plan/layout.h"
#include "plan/milp.h"

typedef struct cs_node_path cs_node_path;

typedef struct {
    const cs_problem *problem;
    cs_milp m;
    int *x;        /* [n_execs][n_nodes] column, -1 where a replica cannot stand */
    int alpha;     /* column of the total rate */
    int link_use;  /* column of the largest link utilisation */
    GArray *paths; /* cs_node_path */
} cs_node_model;

/* allowed[n_execs]: types that may be used. free_rate: the total rate is a variable, else the
 * workload's. False, with nothing to clear, when more than max_columns columns would be needed. */
bool cs_node_model_init(cs_node_model *model, const cs_problem *problem, const bool *allowed,
                        bool free_rate, size_t max_columns);
void cs_node_model_clear(cs_node_model *model);

/* Sets the objective to the bytes per second between nodes (in units of the slowest link). */
void cs_node_model_weigh_bytes(cs_node_model *model);

/* Replicas and routes of a solution: flows are peeled into weighted routes. */
cs_layout *cs_node_model_layout(const cs_node_model *model, const double *x);

#endif
