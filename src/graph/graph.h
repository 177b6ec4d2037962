/* Task graphs: what a request makes components do, written once in Lua.
 *
 * A model family is a task file (tasks/NAME.lua). It declares unit tasks (a component with its
 * configuration) and a composite task, whose `invoke` is ordinary code that calls unit tasks:
 *
 *     local encoder = unit { name = "image_encoder", kind = "encoder", ... }
 *     local thinker = unit { name = "thinker", kind = "llm", ... }
 *     return task {
 *         name = "qwen2_5_omni",
 *         requests = { text = function(sizes) return {...} end, ... },
 *         invoke = function(request)
 *             local image = encoder { units = request.image_tokens }
 *             local answer = thinker { units = ..., image = image.embeddings }
 *             return { text = answer.text }
 *         end,
 *     }
 *
 * Record: invoke runs with placeholder outputs, up to its return or its first await. What it called
 * is the recording: invocations in order, and a forward for each output, which names the
 * invocations that consume it. The graph may depend on the request, never on data not computed yet.
 * Replay: invoke runs again and must make the same calls; outputs are then the real streams.
 *
 * An app (apps/NAME.lua) defines serve(request), which calls models and emits events (app.h). Tasks
 * and app of one cs_tasks share a sandbox (base/sandbox.h): whatever they do, the worst is an
 * error.
 *
 * Threads: a cs_tasks has one owner thread at a time. Recordings are plain data and belong to their
 * holder; they refer to units, which live as long as the cs_tasks.
 */
#ifndef CS_GRAPH_GRAPH_H
#define CS_GRAPH_GRAPH_H

#include "base/sandbox.h"

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define CS_GRAPH_OUTPUTS_MAX 8
#define CS_GRAPH_INVOCATIONS_MAX 1024 /* of one call */

typedef enum { CS_UNIT_ENCODER, CS_UNIT_LLM, CS_UNIT_GENERATOR, CS_UNIT_KINDS } cs_unit_kind;

typedef struct {
    char *name;
    bool streamed; /* chunks come while the producer works; else one chunk at its end */
} cs_unit_output;

/* A unit task. Two with equal keys are the same work, and share a deployment. */
typedef struct {
    char *name;  /* of the component in its model: "thinker" */
    char *model; /* the model's directory or name, as given to cs_tasks_add_model */
    char *key;   /* canonical JSON of model, name, kind and config */
    cs_unit_kind kind;
    bool split;     /* LLM: prefill and decode may run apart */
    char **weights; /* prefixes of its tensors in the checkpoint */
    double kv_bytes_per_token, activation_bytes;
    char *to_user; /* "text", "audio", "image": what the client gets of it, or NULL */
    cs_unit_output outputs[CS_GRAPH_OUTPUTS_MAX];
    uint32_t n_outputs;
} cs_unit;

/* A tensor or stream that one invocation produces and others consume. */
typedef struct {
    uint32_t producer;    /* invocation */
    uint32_t output;      /* of the producer's unit */
    uint32_t n_consumers; /* invocations, plus the client's side if to_client */
    bool to_client;       /* returned or awaited; its place is the last: n_consumers - 1 */
    double bytes;         /* expected; 0 if the task file does not say */
} cs_forward;

typedef struct {
    char *name; /* the argument it was passed as */
    uint32_t forward;
    uint32_t place; /* consumer number at that forward */
} cs_invocation_input;

typedef struct {
    const cs_unit *unit;
    json_t *params; /* arguments that are no forwards */
    double units, output_units;
    GArray *inputs;         /* cs_invocation_input */
    uint32_t first_forward; /* outputs are forwards [first_forward, + unit->n_outputs) */
} cs_invocation;

typedef struct {
    GArray *invocations; /* cs_invocation */
    GArray *forwards;    /* cs_forward */
} cs_recording;

cs_recording *cs_recording_new(void);
void cs_recording_free(cs_recording *recording); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_recording, cs_recording_free)

static inline const cs_invocation *cs_recording_invocation(const cs_recording *r, uint32_t i)
{
    return &g_array_index(r->invocations, cs_invocation, i);
}

static inline const cs_forward *cs_recording_forward(const cs_recording *r, uint32_t i)
{
    return &g_array_index(r->forwards, cs_forward, i);
}

/* --- a set of models, and perhaps an app over them --- */

typedef struct cs_tasks cs_tasks;

cs_tasks *cs_tasks_new(const char *name, const cs_sandbox_limits *limits, GError **error);
void cs_tasks_free(cs_tasks *tasks); /* accepts NULL; runs must be freed before */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_tasks, cs_tasks_free)

/* Runs a task file. Apps call the model as models.ALIAS(request). `model` stands in unit keys;
 * `config` (may be NULL) is the model's config.json, seen by the file as the global `config`. */
bool cs_tasks_add_model(cs_tasks *tasks, const char *alias, const char *model, const char *source,
                        size_t source_bytes, const char *source_name, const json_t *config,
                        GError **error);

uint32_t cs_tasks_n_units(const cs_tasks *tasks);
const cs_unit *cs_tasks_unit(const cs_tasks *tasks, uint32_t index);

/* Names of the request kinds that a model's file declares, in alphabetical order; NULL if there is
 * no such model. Borrowed. */
const char *const *cs_tasks_request_kinds(const cs_tasks *tasks, const char *alias);

/* The request that kind's function makes of sizes ({"image_tokens": 1000 ...}). json_decref. */
json_t *cs_tasks_example(cs_tasks *tasks, const char *alias, const char *kind, const json_t *sizes,
                         GError **error);

/* What a request would do. */
cs_recording *cs_tasks_record(cs_tasks *tasks, const char *alias, const json_t *request,
                              GError **error);

/* --- views --- */

/* Name of each size a kind may depend on ("text_in_tokens" ...), NULL-terminated. */
extern const char *const cs_graph_sizes[];

/* The component graph over all request kinds in the planner's format (version 1): formulas are
 * found by recording each kind at several sizes. weights_bytes(user, unit) may be NULL. Fails if a
 * file's sizes are not affine. json_decref. */
json_t *cs_tasks_to_plan_graph(cs_tasks *tasks, const char *alias,
                               double (*weights_bytes)(void *user, const cs_unit *unit), void *user,
                               GError **error);

/* A table of invocations and forwards. g_free. */
char *cs_recording_to_text(const cs_recording *recording);
/* The same as a drawing, left to right. g_free. */
char *cs_recording_to_svg(const cs_recording *recording);

#endif
