/* Mixed integer linear programs through COIN-OR CBC, in a child process.
 *
 * CBC may crash, print or overrun its limit; none of that reaches this process: the child's output
 * is discarded, its answer comes over a pipe, and it is killed some seconds after its limit. The
 * answer is checked here (bounds, integrality, every row) before it is returned, because CBC may
 * hand back a fractional vector after a time limit.
 */
#ifndef CS_PLAN_MILP_H
#define CS_PLAN_MILP_H

#include <glib.h>
#include <stdbool.h>

typedef struct {
    GArray *lower, *upper, *objective, *integer; /* double, double, double, guint8; per column */
    GArray *row_lower, *row_upper;               /* double, per row */
    GArray *rows, *columns, *values;             /* int, int, double; the non-zeros */
} cs_milp;

void cs_milp_init(cs_milp *m);
void cs_milp_clear(cs_milp *m);
/* Return the new column's or row's index. Bounds may be +-INFINITY. Always minimised. */
int cs_milp_column(cs_milp *m, double lower, double upper, double objective, bool integer);
int cs_milp_row(cs_milp *m, double lower, double upper);
void cs_milp_entry(cs_milp *m, int row, int column, double value);

typedef struct {
    double seconds;             /* limit of the search; 0: 60 */
    double gap;                 /* relative gap at which it may stop */
    const double *start;        /* a feasible solution to begin from, or NULL */
    const volatile int *cancel; /* set to non-zero by anyone: stop and return the best so far */
} cs_milp_options;

typedef enum {
    CS_MILP_OPTIMAL,    /* proven within the gap */
    CS_MILP_FEASIBLE,   /* a checked solution, not proven */
    CS_MILP_INFEASIBLE, /* proven */
    CS_MILP_UNKNOWN,    /* nothing usable before the limit, or the solver failed */
} cs_milp_status;

typedef struct {
    cs_milp_status status;
    double *x; /* [columns] for OPTIMAL and FEASIBLE, else NULL; g_free */
    double objective;
    double bound; /* proven lower bound on the objective, -INFINITY if none */
} cs_milp_result;

/* Fails only when no child can be made. */
bool cs_milp_solve(const cs_milp *m, const cs_milp_options *options, cs_milp_result *result,
                   GError **error);

/* Whether x meets every bound, row and integrality within 1e-6, relative to each row's size. */
bool cs_milp_check(const cs_milp *m, const double *x);

#endif
