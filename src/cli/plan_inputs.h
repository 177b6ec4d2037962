/* The four files that planning and simulation read, and the options that name them. */
#ifndef CS_CLI_PLAN_INPUTS_H
#define CS_CLI_PLAN_INPUTS_H

#include "plan/flow.h"

typedef struct {
    char *graph, *profiles, *workload, *cluster; /* paths, from options */
} cs_cli_plan_paths;

typedef struct {
    cs_plan_graph *graph;
    cs_cluster *cluster;
    cs_profiles *profiles;
    cs_workload *workload;
    cs_problem *problem;
    cs_flow *flow;
} cs_cli_plan_inputs;

/* GOptionEntry rows for --graph, --profiles and --cluster over a cs_cli_plan_paths. */
#define CS_CLI_PLAN_ENTRIES(paths)                                                                 \
    {"graph", 'g', 0, G_OPTION_ARG_FILENAME, &(paths).graph, "Task graph", "FILE"},                \
        {"profiles", 'p', 0, G_OPTION_ARG_FILENAME, &(paths).profiles, "Measured speeds", "FILE"}, \
    {                                                                                              \
        "cluster", 'c', 0, G_OPTION_ARG_FILENAME, &(paths).cluster, "Nodes and network", "FILE"    \
    }

/* A path that is missing is a fault. lost_node: planned without it; NULL: none. */
bool cs_cli_plan_inputs_load(cs_cli_plan_inputs *in, const cs_cli_plan_paths *paths,
                             const char *lost_node, double utilisation_cap, GError **error);
void cs_cli_plan_inputs_clear(cs_cli_plan_inputs *in);

/* Set to 1 by the first Ctrl-C; a second one ends the program. */
extern volatile int cs_cli_interrupted;
void cs_cli_catch_interrupt(void);

/* Writes text to a file, or to stdout for "-". */
bool cs_cli_write_text(const char *path, const char *text, GError **error);

#endif
