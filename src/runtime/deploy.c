/* Plans against task graphs. */
#include "base/error.h"
#include "runtime/runtime_internal.h"

#include <string.h>

static const cs_unit *find_unit(const cs_tasks *tasks, const char *name)
{
    for (uint32_t i = 0; i < cs_tasks_n_units(tasks); i++)
        if (strcmp(cs_tasks_unit(tasks, i)->name, name) == 0)
            return cs_tasks_unit(tasks, i);
    return NULL;
}

static bool check_executor(const cs_plan_executor *e, const cs_tasks *tasks, GError **error)
{
    if (!agent_kind_of_device(e->device))
        return cs_fail(error, CS_ERROR_UNSUPPORTED,
                       "plan: executor %s: device %s: expected cpu, emu:NAME or openai", e->name,
                       e->device);
    for (size_t i = 0; i < e->n_hosted; i++) {
        const cs_unit *unit = find_unit(tasks, e->hosted[i].name);
        if (!unit)
            return cs_fail(error, CS_ERROR_INVALID,
                           "plan: executor %s: the model has no component %s", e->name,
                           e->hosted[i].name);
        if (e->hosted[i].role != CS_ROLE_BOTH &&
            (!unit->split || strcmp(agent_kind_of_device(e->device), "model") != 0))
            return cs_fail(error, CS_ERROR_UNSUPPORTED,
                           "plan: executor %s: %s in the role %s: on device %s it runs whole only",
                           e->name, e->hosted[i].name, cs_plan_role_name(e->hosted[i].role),
                           e->device);
    }
    return true;
}

static bool is_hosted_as(const cs_plan *plan, const char *component, cs_plan_role role)
{
    for (size_t e = 0; e < plan->n_executors; e++)
        for (size_t i = 0; i < plan->executors[e].n_hosted; i++)
            if (strcmp(plan->executors[e].hosted[i].name, component) == 0 &&
                plan->executors[e].hosted[i].role == role)
                return true;
    return false;
}

/* Whole or in halves. */
static bool is_hosted(const cs_plan *plan, const char *component)
{
    return is_hosted_as(plan, component, CS_ROLE_BOTH) ||
           (is_hosted_as(plan, component, CS_ROLE_PREFILL) &&
            is_hosted_as(plan, component, CS_ROLE_DECODE));
}

/* What a request of this kind would do, at 1000 of every size. */
static cs_recording *record_kind(cs_tasks *tasks, const char *alias, const char *kind,
                                 GError **error)
{
    json_t *sizes = json_object();
    for (const char *const *s = cs_graph_sizes; *s; s++)
        json_object_set_new(sizes, *s, json_integer(1000));
    json_t *request = cs_tasks_example(tasks, alias, kind, sizes, error);
    cs_recording *r = request ? cs_tasks_record(tasks, alias, request, error) : NULL;
    json_decref(sizes);
    json_decref(request);
    return r;
}

static bool path_has(const cs_plan_path *path, const char *component)
{
    for (size_t i = 0; i < path->n_hops; i++)
        if (strcmp(path->hops[i].component, component) == 0)
            return true;
    return false;
}

static bool check_route(const cs_plan_route *route, cs_tasks *tasks, const char *alias,
                        GError **error)
{
    const char *const *kinds = cs_tasks_request_kinds(tasks, alias);
    if (!g_strv_contains(kinds, route->request_type)) {
        g_autofree char *known = g_strjoinv(", ", (char **)kinds);
        return cs_fail(error, CS_ERROR_INVALID,
                       "plan: route %s: the model has no such request kind, only %s",
                       route->request_type, known);
    }
    g_autoptr(cs_recording) r = record_kind(tasks, alias, route->request_type, error);
    if (!r)
        return false;
    for (guint i = 0; i < r->invocations->len; i++) {
        const char *component = cs_recording_invocation(r, i)->unit->name;
        for (size_t p = 0; p < route->n_paths; p++)
            if (!path_has(&route->paths[p], component))
                return cs_fail(error, CS_ERROR_INVALID,
                               "plan: route %s: paths[%zu] has no executor for %s, which such "
                               "requests use",
                               route->request_type, p, component);
    }
    return true;
}

bool cs_plan_hosts_kind(const cs_plan *plan, cs_tasks *tasks, const char *alias, const char *kind)
{
    g_autoptr(cs_recording) r = record_kind(tasks, alias, kind, NULL);
    for (guint i = 0; r && i < r->invocations->len; i++)
        if (!is_hosted(plan, cs_recording_invocation(r, i)->unit->name))
            return false;
    return r != NULL;
}

bool cs_plan_check_graph(const cs_plan *plan, cs_tasks *tasks, const char *alias, GError **error)
{
    if (!cs_tasks_request_kinds(tasks, alias))
        return cs_fail(error, CS_ERROR_NOT_FOUND, "there is no model %s", alias);
    for (size_t i = 0; i < plan->n_executors; i++)
        if (!check_executor(&plan->executors[i], tasks, error))
            return false;
    for (size_t i = 0; i < plan->n_routes; i++) {
        if (!check_route(&plan->routes[i], tasks, alias, error))
            return false;
        for (size_t k = 0; k < i; k++)
            if (strcmp(plan->routes[i].request_type, plan->routes[k].request_type) == 0)
                return cs_fail(error, CS_ERROR_INVALID, "plan: there are two routes %s",
                               plan->routes[i].request_type);
    }
    if (plan->n_routes > 0) /* what no route uses need not be there */
        return true;
    for (const char *const *kind = cs_tasks_request_kinds(tasks, alias); *kind; kind++)
        if (cs_plan_hosts_kind(plan, tasks, alias, *kind))
            return true;
    for (uint32_t i = 0; i < cs_tasks_n_units(tasks); i++)
        if (!is_hosted(plan, cs_tasks_unit(tasks, i)->name))
            return cs_fail(error, CS_ERROR_INVALID, "plan: no executor has component %s",
                           cs_tasks_unit(tasks, i)->name);
    return true;
}

static json_t *colocated_route(cs_tasks *tasks, const char *alias, const char *kind, GError **error)
{
    g_autoptr(cs_recording) r = record_kind(tasks, alias, kind, error);
    if (!r)
        return NULL;
    json_t *assign = json_object();
    for (guint i = 0; i < r->invocations->len; i++)
        json_object_set_new(assign, cs_recording_invocation(r, i)->unit->name, json_string("all"));
    return json_pack("{s:s, s:f, s:[{s:f, s:o}]}", "request_type", kind, "rate_rps", 1.0, "paths",
                     "weight", 1.0, "assign", assign);
}

cs_plan *cs_plan_colocated(cs_tasks *tasks, const char *alias, const char *device, int replicas,
                           GError **error)
{
    const char *const *kinds = cs_tasks_request_kinds(tasks, alias);
    if (!kinds) {
        cs_fail(error, CS_ERROR_NOT_FOUND, "there is no model %s", alias);
        return NULL;
    }
    json_t *components = json_array(), *routes = json_array();
    for (uint32_t i = 0; i < cs_tasks_n_units(tasks); i++)
        json_array_append_new(components, json_pack("{s:s, s:s}", "name",
                                                    cs_tasks_unit(tasks, i)->name, "role", "both"));
    bool ok = true;
    for (; ok && *kinds; kinds++) {
        json_t *route = colocated_route(tasks, alias, *kinds, error);
        ok = route != NULL;
        if (ok)
            json_array_append_new(routes, route);
    }
    json_t *root = json_pack("{s:i, s:s, s:s, s:[{s:s, s:o, s:s, s:s, s:i, s:i}], s:o}", "version",
                             1, "model", alias, "policy", "throughput", "executors", "name", "all",
                             "components", components, "node", "local", "device", device,
                             "devices_per_replica", 1, "replicas", replicas, "routes", routes);
    cs_plan *plan = ok ? cs_plan_from_json(root, "default plan", error) : NULL;
    json_decref(root);
    return plan;
}
