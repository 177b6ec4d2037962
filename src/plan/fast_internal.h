/* What the phases of the fast planner share: fast.c enumerates, bounds by flow and places,
 * fast_judge.c screens, simulates and picks the winner. */
#ifndef CS_PLAN_FAST_INTERNAL_H
#define CS_PLAN_FAST_INTERNAL_H

#include "plan/fast.h"

typedef struct {
    cs_candidate c;
    cs_layout *layout;
    double objective;    /* of the policy, as placed; larger is better */
    double score, error; /* of latency or nearness to the targets; smaller is better */
    bool baseline;       /* stays to the end */
    bool safe;           /* screening does not drop it */
    bool finalist;       /* of the race */
    double *rounds;      /* scores of the race, by round */
} contender;

typedef struct {
    const cs_flow *flow;
    const cs_problem *p;
    cs_fast_options o;
    GArray *all; /* contender */
    GString *text;
    int64_t start_us;
    double bound;
} planner;

/* Adds to the explanation. */
void fast_say(planner *f, const char *format, ...) G_GNUC_PRINTF(2, 3);
bool fast_interrupted(const planner *f);
/* Interrupted, or beyond the time limit. */
bool fast_out_of_time(const planner *f);
/* Drops all contenders but the first n. */
void fast_keep_first(planner *f, guint n);
/* Differences of an objective below this are ties. */
double fast_slack(double value);

/* Phase 3: sorts by sampled latency and drops the worst. */
void fast_screen(planner *f);
/* Phase 4: the winner of the race in the simulator; all that are left become finalists. */
contender *fast_race(planner *f);
/* Goodput of the winner in one long run that the race did not see. Finalists and baselines run it
 * too, so that chance in the race never returns less than they give; *winner is the best. */
double fast_judge_goodput(planner *f, contender **winner);

#endif
