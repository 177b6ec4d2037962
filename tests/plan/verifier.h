/* An independent judge of plan files: knows the five constraints of the model and nothing of how
 * plans are found. Work and bytes per request are taken from the problem as given data. */
#ifndef TESTS_PLAN_VERIFIER_H
#define TESTS_PLAN_VERIFIER_H

#include "plan/plan_file.h"
#include "plan/problem.h"

/* NULL if the plan carries the mix at this total rate, else what it breaks. g_free. */
char *verify_plan(const cs_problem *problem, const cs_plan *plan, double rate_rps);

/* Largest link utilisation and bytes per second between nodes of the plan at this rate. */
void measure_traffic(const cs_problem *problem, const cs_plan *plan, double rate_rps,
                     double *link_use, double *bytes);

#endif
