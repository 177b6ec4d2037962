/* What people read: a plan as a table, as a drawing on the topology, and a page with both and the
 * simulation's curves. SVG and HTML hold no links and no scripts: one file is the whole report. */
#ifndef CS_PLAN_REPORT_H
#define CS_PLAN_REPORT_H

#include "plan/layout.h"
#include "plan/sim.h"

/* All g_free. */
char *cs_report_table(const cs_plan *plan);
char *cs_report_svg(const cs_plan *plan, const cs_cluster *cluster);
/* sim may be NULL. */
char *cs_report_html(const cs_plan *plan, const cs_layout *layout, const cs_sim_result *sim);
/* Percentiles, attainment and use as text. */
char *cs_report_sim(const cs_sim_result *sim, const cs_layout *layout);

#endif
