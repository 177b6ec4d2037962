/* The planning problem, compiled: stages, executor types and the work each request brings to each.
 *
 * A stage is a component, or one half (prefill, decode) of an LLM; both halves of an LLM that may
 * not be split always share an executor. An executor type is a set of stages that may share a
 * device group, a device kind and a device count for which every stage has a profile and the
 * memory suffices. work[e][s][r] is the replica-seconds a request of type r costs on an executor of
 * type e for stage s when the executor is saturated: the fixed cost of a step is shared by the
 * batch that its memory allows.
 *
 * Immutable once made; borrows graph, cluster, profiles and workload, which must outlive it.
 */
#ifndef CS_PLAN_PROBLEM_H
#define CS_PLAN_PROBLEM_H

#include "plan/cluster.h"
#include "plan/graph_input.h"
#include "plan/plan_file.h"
#include "plan/profiles.h"
#include "plan/workload.h"

#define CS_PLAN_MAX_STAGES 16
#define CS_PLAN_MAX_EDGES 48

typedef enum {
    CS_STAGE_BATCH,   /* encoder: one step over a batch */
    CS_STAGE_PREFILL, /* prompt tokens, in chunks */
    CS_STAGE_ITERATE, /* decode, diffusion, vocoder: one step is one unit of every request in it */
} cs_stage_kind;

typedef struct {
    size_t component;
    cs_plan_role role; /* prefill or decode for an LLM, both otherwise */
    cs_stage_kind kind;
    char *name; /* "thinker:decode", "image_encoder" */
    cs_size_formula units, weight;
    cs_size_formula prompt_units; /* of the LLM this is half of; 0 otherwise */
    double kv_bytes_per_token;
    guint32 first_piece, piece, piece_extra; /* as of graph_input.h */
    int twin;                                /* the other half of an LLM, -1 if none */
    bool inseparable;                        /* from its twin */
} cs_stage;

typedef struct {
    int from, to; /* stages */
    cs_size_formula bytes;
    int chunks;
    double ahead; /* as of graph_input.h */
} cs_stage_edge;

typedef struct {
    const cs_profile *profile;
    double fixed_s, per_unit_s;
    int batch; /* the profile's, or less where memory holds less */
} cs_exec_stage;

typedef struct {
    char *name; /* "thinker+image_encoder", with "/a100x2" when kinds or counts differ */
    guint32 mask;
    size_t kind;
    int count; /* devices of a replica */
    double cost;
    double kv_budget_bytes;
    cs_exec_stage stages[CS_PLAN_MAX_STAGES];
} cs_exec_type;

typedef struct {
    guint32 stages;
    size_t workload_type;
    double rate_rps, share;
    double units[CS_PLAN_MAX_STAGES], weight[CS_PLAN_MAX_STAGES]; /* means */
    double edge_bytes[CS_PLAN_MAX_EDGES];                         /* mean per request */
} cs_problem_type;

typedef struct {
    const cs_plan_graph *graph;
    const cs_cluster *cluster;
    const cs_profiles *profiles;
    const cs_workload *workload;
    cs_stage stages[CS_PLAN_MAX_STAGES];
    size_t n_stages;
    cs_stage_edge edges[CS_PLAN_MAX_EDGES];
    size_t n_edges;
    cs_problem_type *types;
    size_t n_types;
    cs_exec_type *execs;
    size_t n_execs;
    double *work; /* [n_execs][n_stages][n_types], INFINITY where not hosted */
    double utilisation_cap;
    int capacity[CS_PLAN_MAX_KINDS]; /* devices of each kind */
} cs_problem;

typedef struct {
    double utilisation_cap; /* rho, in (0, 1] */
} cs_problem_options;

/* Fails when a stage that a request with a positive rate needs has no executor type: missing
 * profile or memory, named. */
cs_problem *cs_problem_new(const cs_plan_graph *graph, const cs_cluster *cluster,
                           const cs_profiles *profiles, const cs_workload *workload,
                           const cs_problem_options *options, GError **error);
void cs_problem_free(cs_problem *problem);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_problem, cs_problem_free)

/* Steps that so many units of an iterating stage take: a token fewer for decode, whose first comes
 * of the prompt; what each piece costs beyond its units, for a generator. At least 1. */
double cs_stage_steps(const cs_stage *stage, double units);

/* Why no executor type hosts exactly these stages: a sentence that names them and what is missing
 * (permission to share, profiles, a wide node, memory). g_free. */
char *cs_problem_why_not(const cs_problem *problem, guint32 stages);

static inline double cs_problem_work(const cs_problem *p, size_t exec, size_t stage, size_t type)
{
    return p->work[(exec * p->n_stages + stage) * p->n_types + type];
}

/* Stages that any type with a rate needs. */
static inline guint32 cs_problem_stages_in_use(const cs_problem *p)
{
    guint32 used = 0;
    for (size_t t = 0; t < p->n_types; t++)
        used |= p->types[t].stages;
    return used;
}

/* The edge is used by a type that has both its ends. */
static inline bool cs_problem_type_uses(const cs_problem_type *type, const cs_stage_edge *edge)
{
    return (type->stages >> edge->from & 1) && (type->stages >> edge->to & 1);
}

#endif
