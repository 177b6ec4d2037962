/* Users who listen to a pipeline's speech, for the measurements of it. */
#ifndef CS_BENCH_LISTENERS_H
#define CS_BENCH_LISTENERS_H

#include "runtime/pipeline/pipeline.h"

enum { MAX_LISTENERS = 64, MAX_REPEAT = 16 };

/* Ends the program. */
void fail_on(const GError *error);

double median(double *values, int n); /* sorts them */

/* So many users ask for speech at once; all leave when each has heard so many seconds of it, or, at
 * 0, anything: random weights know no end of a speech. Returns the seconds until then; *first_s:
 * the mean until the first sound of each. */
double listen(cs_pipeline *pipeline, int n_users, double heard_s, double *first_s);

#endif
