/* The task graph as the planner sees it: components, the data between them, and request types.
 *
 * Read from JSON, or filled by whoever records a task (the struct is plain and public; build one
 * and call cs_plan_graph_check). Sizes and formulas are of plan/sizes.h.
 */
#ifndef CS_PLAN_GRAPH_INPUT_H
#define CS_PLAN_GRAPH_INPUT_H

#include "plan/sizes.h"

#define CS_PLAN_MAX_COMPONENTS                                                                     \
    12 /* a split LLM counts twice; executors are bit sets over stages                             \
        */

typedef enum { CS_COMPONENT_ENCODER, CS_COMPONENT_LLM, CS_COMPONENT_GENERATOR } cs_component_kind;

typedef struct {
    char *name;
    cs_component_kind kind;
    double weights_bytes;
    double activation_bytes;   /* workspace at the largest batch */
    double kv_bytes_per_token; /* LLM only */
    bool split;                /* LLM only: prefill and decode may run on different executors */
    cs_size_formula units; /* encoder: units of work of a request; LLM: prompt tokens; generator:
                              steps */
    cs_size_formula output_units; /* LLM: tokens generated */
    cs_size_formula weight;       /* generator: cost of a step relative to the profile's; 1 */
    /* Generator: units that it makes, and gives away, together: the first piece, and the largest;
     * each may be twice the one before. 1: one by one. A piece is as much work as its units and
     * so many more. */
    double first_piece, piece, piece_extra;
    char *output; /* "text", "audio", "image": what leaves to the user, or NULL */
} cs_graph_component;

typedef struct {
    guint from, to;        /* components */
    cs_size_formula bytes; /* per request */
    int chunks; /* > 1: streamed; the consumer starts with the first of so many equal chunks */
    /* Streamed: the consumer's unit n needs the producer's unit n and so many beyond it, or all
     * that there will be. Negative: it needs as large a part of all as its own is. */
    double ahead;
} cs_graph_edge;

typedef struct {
    char *name;
    guint64 components; /* bit set */
} cs_graph_type;

/* Components in one group, and every subset of them, may share an executor. */
typedef struct {
    char *name;
    cs_graph_component *components;
    size_t n_components;
    cs_graph_edge *edges;
    size_t n_edges;
    cs_graph_type *types;
    size_t n_types;
    guint64 *groups; /* bit sets of components */
    size_t n_groups;
} cs_plan_graph;

cs_plan_graph *cs_plan_graph_from_json(json_t *root, const char *source, GError **error);
cs_plan_graph *cs_plan_graph_load(const char *path, GError **error);
/* Edges between components that are there, no two alike, no cycle. */
bool cs_plan_graph_check(const cs_plan_graph *graph, const char *source, GError **error);
void cs_plan_graph_free(cs_plan_graph *graph);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_plan_graph, cs_plan_graph_free)

/* Index, or n_components / n_types when there is none. */
size_t cs_plan_graph_component(const cs_plan_graph *graph, const char *name);
size_t cs_plan_graph_type(const cs_plan_graph *graph, const char *name);

#endif
