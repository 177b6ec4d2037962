/* Measured speed of each component on each device kind and device count.
 *
 * One step over work u costs fixed_s + per_unit_s * u seconds, where u is the work of all requests
 * in the step: units for an encoder, prompt tokens for prefill, requests (times their weight) for
 * one iteration of decode or of a generator. An entry says so directly, or gives a saturated
 * throughput at reference sizes, or samples from which the two are fitted; the samples' scatter
 * around the fit is kept and drawn from in sampling and simulation.
 */
#ifndef CS_PLAN_PROFILES_H
#define CS_PLAN_PROFILES_H

#include "plan/cluster.h"
#include "plan/graph_input.h"
#include "plan/plan_file.h"

typedef struct {
    size_t component;
    cs_plan_role role; /* prefill or decode for an LLM, both otherwise */
    size_t kind;       /* device kind */
    int count;         /* devices of one replica */
    double fixed_s, per_unit_s;
    int max_batch;
    double chunk_units; /* most prompt tokens of one prefill step; 0: any */
    /* Prefill: while answers are written, prompts are cut so that a step takes about so long, at
     * the pace of the step before; 0: never. */
    double mixed_step_s;
    int turns;       /* of a batch of an encoder: others of its executor have theirs in between */
    double *scatter; /* sorted ratios of measured to fitted seconds; NULL: always 1 */
    size_t n_scatter;
} cs_profile;

typedef struct {
    cs_profile *entries;
    size_t n_entries;
    char *name; /* where the numbers come from, for reports */
} cs_profiles;

/* Names are resolved against the graph and the cluster. Entries for device kinds the cluster does
 * not have are dropped after validation. */
cs_profiles *cs_profiles_from_json(json_t *root, const char *source, const cs_plan_graph *graph,
                                   const cs_cluster *cluster, GError **error);
cs_profiles *cs_profiles_load(const char *path, const cs_plan_graph *graph,
                              const cs_cluster *cluster, GError **error);
void cs_profiles_free(cs_profiles *profiles);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_profiles, cs_profiles_free)

const cs_profile *cs_profiles_find(const cs_profiles *profiles, size_t component, cs_plan_role role,
                                   size_t kind, int count);

#endif
