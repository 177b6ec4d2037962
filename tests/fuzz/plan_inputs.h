/* A small problem that the planner's fuzz targets complete their input with. */
#ifndef CS_FUZZ_PLAN_INPUTS_H
#define CS_FUZZ_PLAN_INPUTS_H

#include "base/yaml.h"
#include "plan/cluster.h"
#include "plan/graph_input.h"

/* Made once; never freed. */
const cs_plan_graph *fuzz_plan_graph(void);
const cs_cluster *fuzz_plan_cluster(void);

#endif
