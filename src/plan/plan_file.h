/* plan.json: what the planner decides and the runtime executes. Format version 1.
 *
 * A plan lists executors (each entry: one kind of executor on one node, with a number of equal
 * replicas) and, per request type, the weighted paths that give every component of the type's
 * sub-graph to one of these entries. Predictions and the bottleneck are for reading; nothing
 * executes them. docs/PLAN.md has an annotated example. A loaded plan is whole: every reference
 * resolves, every path's executors host what they are given, and weights of a type sum to 1.
 *
 * Plain data without hidden state: may be read by several threads once built.
 */
#ifndef CS_PLAN_PLAN_FILE_H
#define CS_PLAN_PLAN_FILE_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define CS_PLAN_VERSION 1

/* What part of an LLM a replica runs. Components of other kinds are always CS_ROLE_BOTH. */
typedef enum { CS_ROLE_BOTH, CS_ROLE_PREFILL, CS_ROLE_DECODE } cs_plan_role;

typedef struct {
    char *name; /* of the component in the task graph */
    cs_plan_role role;
    int max_batch; /* requests in one step; 0: the engine's default */
} cs_plan_hosted;

typedef struct {
    char *name;             /* unique in the plan, "thinker+image_encoder@n0" */
    cs_plan_hosted *hosted; /* at least one; no component twice in the same role */
    size_t n_hosted;
    char *node;
    char *device;            /* device kind, as in the cluster file: "a100", "cpu", "emu:a100" */
    int devices_per_replica; /* tensor- or sequence-parallel degree */
    int replicas;
    int *device_ids; /* [replicas * devices_per_replica], numbers on that node, each used once */
    int threads;     /* CPU threads of each replica; 0: the runtime's choice */
    double kv_budget_bytes; /* per replica, for all LLM components together; 0 if none */
} cs_plan_executor;

/* Stage of a request type: a component in a role. A split LLM has two, else one with ROLE_BOTH. */
typedef struct {
    char *component;
    cs_plan_role role;
    size_t executor; /* index into cs_plan.executors */
} cs_plan_hop;

typedef struct {
    double weight; /* share of the type's requests, in (0, 1] */
    cs_plan_hop *hops;
    size_t n_hops;
} cs_plan_path;

typedef struct {
    char *request_type;
    double rate_rps; /* the rate the plan was made for */
    cs_plan_path *paths;
    size_t n_paths;
} cs_plan_route;

typedef struct {
    char *request_type;
    double p50_s, p95_s, p99_s;      /* end to end */
    double first_p50_s, first_p95_s; /* first token, or first audio where the type speaks */
    double attainment;               /* share of requests within their latency target */
} cs_plan_latency;

typedef struct {
    char *from, *to; /* nodes */
    double bytes_per_s;
    double utilisation;
} cs_plan_link;

typedef struct {
    double throughput_rps; /* saturated, for the workload's mix */
    double goodput_rps;    /* within latency targets; 0 if not predicted */
    double bound_rps;      /* proven upper bound on throughput; 0 if none */
    int devices;
    double cost;
    double load_rps; /* the rate at which the latencies were predicted; 0 if they were not */
    cs_plan_latency *latencies;
    size_t n_latencies;
    cs_plan_link *links; /* pairs that carry traffic */
    size_t n_links;
} cs_plan_predictions;

typedef struct {
    char *model;  /* the task graph's name */
    char *policy; /* "cost", "devices", "throughput", "goodput" */
    cs_plan_executor *executors;
    size_t n_executors;
    cs_plan_route *routes;
    size_t n_routes;
    cs_plan_predictions predictions;
    char *bottleneck; /* a sentence, "" if none */
} cs_plan;

/* Reads and validates; `source` names the text in errors. cs_plan_free. */
cs_plan *cs_plan_from_json(json_t *root, const char *source, GError **error);
cs_plan *cs_plan_load(const char *path, GError **error);

/* json_decref. */
json_t *cs_plan_to_json(const cs_plan *plan);
/* Written to a temporary file beside `path` and renamed, so that a reader never sees half a plan.
 */
bool cs_plan_save(const cs_plan *plan, const char *path, GError **error);

void cs_plan_free(cs_plan *plan);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_plan, cs_plan_free)

/* NULL if there is none of that name. */
const cs_plan_executor *cs_plan_find_executor(const cs_plan *plan, const char *name);
const cs_plan_route *cs_plan_find_route(const cs_plan *plan, const char *request_type);

/* "both", "prefill", "decode". */
const char *cs_plan_role_name(cs_plan_role role);

#endif
