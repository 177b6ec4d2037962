/* Random planning problems, made as JSON so that the readers are tested on the way. */
#ifndef TESTS_PLAN_INSTANCES_H
#define TESTS_PLAN_INSTANCES_H

#include "plan/problem.h"

typedef struct {
    cs_plan_graph *graph;
    cs_cluster *cluster;
    cs_profiles *profiles;
    cs_workload *workload;
    cs_problem *problem;
} instance;

typedef struct {
    int components;  /* 2 to 6 */
    int max_nodes;   /* 1 .. */
    int max_devices; /* of a node */
    int max_kinds;   /* 1 or 2 */
    int max_types;
    int max_count;     /* 1 or 2 devices a replica */
    bool tight_links;  /* bandwidth that binds now and then */
    bool tight_memory; /* not every colocation fits */
    double load;       /* rates are this share of what the devices could carry at best; 0: 0.5 */
    bool targets;      /* latency targets for the types */
} instance_options;

/* False: this draw has a stage that fits nowhere; take another seed. */
bool instance_make(instance *in, const instance_options *options, guint64 seed);
void instance_clear(instance *in);

/* Parses JSON with ' for ". */
json_t *quoted_json(const char *text);

#endif
