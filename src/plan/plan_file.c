#include "plan/plan_file.h"

#include "base/error.h"
#include "base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES (256u << 20)
#define MAX_BYTES 1e18 /* of any memory size or rate: far above hardware, far below overflow */
#define MAX_RATE 1e12
#define MAX_SECONDS 1e12
#define WEIGHT_SLACK 1e-6

static const char *const role_names[] = {
    [CS_ROLE_BOTH] = "both", [CS_ROLE_PREFILL] = "prefill", [CS_ROLE_DECODE] = "decode"};

const char *cs_plan_role_name(cs_plan_role role)
{
    return role_names[role];
}

static void executor_clear(cs_plan_executor *e)
{
    for (size_t i = 0; i < e->n_hosted; i++)
        g_free(e->hosted[i].name);
    g_free(e->hosted);
    g_free(e->name);
    g_free(e->node);
    g_free(e->device);
    g_free(e->device_ids);
}

static void route_clear(cs_plan_route *route)
{
    for (size_t p = 0; p < route->n_paths; p++) {
        for (size_t h = 0; h < route->paths[p].n_hops; h++)
            g_free(route->paths[p].hops[h].component);
        g_free(route->paths[p].hops);
    }
    g_free(route->paths);
    g_free(route->request_type);
}

static void predictions_clear(cs_plan_predictions *p)
{
    for (size_t i = 0; i < p->n_latencies; i++)
        g_free(p->latencies[i].request_type);
    for (size_t i = 0; i < p->n_links; i++) {
        g_free(p->links[i].from);
        g_free(p->links[i].to);
    }
    g_free(p->latencies);
    g_free(p->links);
}

void cs_plan_free(cs_plan *plan)
{
    if (!plan)
        return;
    for (size_t i = 0; i < plan->n_executors; i++)
        executor_clear(&plan->executors[i]);
    for (size_t i = 0; i < plan->n_routes; i++)
        route_clear(&plan->routes[i]);
    predictions_clear(&plan->predictions);
    g_free(plan->executors);
    g_free(plan->routes);
    g_free(plan->model);
    g_free(plan->policy);
    g_free(plan->bottleneck);
    g_free(plan);
}

const cs_plan_executor *cs_plan_find_executor(const cs_plan *plan, const char *name)
{
    for (size_t i = 0; i < plan->n_executors; i++)
        if (g_str_equal(plan->executors[i].name, name))
            return &plan->executors[i];
    return NULL;
}

const cs_plan_route *cs_plan_find_route(const cs_plan *plan, const char *request_type)
{
    for (size_t i = 0; i < plan->n_routes; i++)
        if (g_str_equal(plan->routes[i].request_type, request_type))
            return &plan->routes[i];
    return NULL;
}

/* ---- reading ---- */

static char *read_name(cs_json_reader *r, const char *key)
{
    const char *name = cs_json_string(r, key);
    if (name[0] == '\0' || strlen(name) > 256)
        cs_json_fault(r, key, "expected a name of 1 to 256 bytes");
    return g_strdup(name);
}

static cs_plan_role read_role(cs_json_reader *r, const char *key)
{
    const char *word = cs_json_string_or(r, key, "both");
    for (size_t i = 0; i < G_N_ELEMENTS(role_names); i++)
        if (g_str_equal(word, role_names[i]))
            return (cs_plan_role)i;
    cs_json_fault(r, key, "expected both, prefill or decode, found \"%s\"", word);
    return CS_ROLE_BOTH;
}

static bool hosts(const cs_plan_executor *e, const char *component, cs_plan_role role)
{
    for (size_t i = 0; i < e->n_hosted; i++)
        if (g_str_equal(e->hosted[i].name, component) &&
            (e->hosted[i].role == role || e->hosted[i].role == CS_ROLE_BOTH))
            return true;
    return false;
}

static void read_hosted(cs_json_reader *r, cs_plan_executor *e)
{
    size_t n = cs_json_enter_array(r, "components");
    if (n == 0)
        cs_json_fault(r, NULL, "expected at least one component");
    e->hosted = g_new0(cs_plan_hosted, n);
    for (size_t i = 0; i < n; i++) {
        cs_plan_hosted h = {0};
        cs_json_enter_item(r, i);
        cs_json_only(r, (const char *const[]){"name", "role", "max_batch", NULL});
        h.name = read_name(r, "name");
        h.role = read_role(r, "role");
        h.max_batch = (int)cs_json_int_or(r, "max_batch", 0, 1 << 20, 0);
        if (hosts(e, h.name, h.role))
            cs_json_fault(r, "name", "component %s is hosted twice", h.name);
        cs_json_leave(r);
        e->hosted[e->n_hosted++] = h;
    }
    cs_json_leave(r);
}

/* Device numbers: [0..] when absent, so that a hand-written plan need not count. */
static void read_device_ids(cs_json_reader *r, cs_plan_executor *e)
{
    size_t n = (size_t)e->replicas * (size_t)e->devices_per_replica;
    if (n > 1u << 20) {
        cs_json_fault(r, "replicas", "expected at most 1048576 devices, found %zu", n);
        n = 0;
    }
    e->device_ids = g_new0(int, MAX(n, 1));
    g_autofree int64_t *ids = g_new0(int64_t, MAX(n, 1));
    if (cs_json_has(r, "devices"))
        cs_json_ints(r, "devices", 0, 1 << 20, ids, n);
    for (size_t i = 0; i < n; i++)
        e->device_ids[i] = cs_json_has(r, "devices") ? (int)ids[i] : (int)i;
}

static void read_executor(cs_json_reader *r, cs_plan_executor *e)
{
    cs_json_only(r, (const char *const[]){"name", "components", "node", "device",
                                          "devices_per_replica", "replicas", "devices", "threads",
                                          "kv_budget_bytes", NULL});
    e->name = read_name(r, "name");
    read_hosted(r, e);
    e->node = read_name(r, "node");
    e->device = read_name(r, "device");
    e->devices_per_replica = (int)cs_json_int_or(r, "devices_per_replica", 1, 1024, 1);
    e->replicas = (int)cs_json_int_or(r, "replicas", 1, 1 << 20, 1);
    read_device_ids(r, e);
    e->threads = (int)cs_json_int_or(r, "threads", 0, 4096, 0);
    e->kv_budget_bytes = cs_json_number_or(r, "kv_budget_bytes", 0, MAX_BYTES, 0);
}

/* No name twice, and no device of a node given to two replicas. */
static void check_executors(cs_json_reader *r, const cs_plan *plan)
{
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GHashTable) used = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (size_t i = 0; i < plan->n_executors && !r->error; i++) {
        const cs_plan_executor *e = &plan->executors[i];
        if (!g_hash_table_add(names, e->name))
            cs_json_fault(r, NULL, "executors[%zu]: name %s is used twice", i, e->name);
        for (int d = 0; d < e->replicas * e->devices_per_replica; d++)
            if (!g_hash_table_add(
                    used, g_strdup_printf("%s/%s/%d", e->node, e->device, e->device_ids[d])))
                cs_json_fault(r, NULL,
                              "executors[%zu] (%s): device %d of kind %s on node %s is "
                              "used twice",
                              i, e->name, e->device_ids[d], e->device, e->node);
    }
}

static void read_executors(cs_json_reader *r, cs_plan *plan)
{
    size_t n = cs_json_enter_array(r, "executors");
    if (n == 0)
        cs_json_fault(r, NULL, "expected at least one executor");
    plan->executors = g_new0(cs_plan_executor, n);
    plan->n_executors = n;
    for (size_t i = 0; i < n; i++) {
        cs_json_enter_item(r, i);
        read_executor(r, &plan->executors[i]);
        cs_json_leave(r);
    }
    cs_json_leave(r);
    check_executors(r, plan);
}

/* "thinker" is the whole component, "thinker:prefill" and "thinker:decode" its halves. */
static void split_stage(const char *key, cs_plan_hop *hop)
{
    hop->role = g_str_has_suffix(key, ":prefill")  ? CS_ROLE_PREFILL
                : g_str_has_suffix(key, ":decode") ? CS_ROLE_DECODE
                                                   : CS_ROLE_BOTH;
    const char *colon = hop->role == CS_ROLE_BOTH ? NULL : strrchr(key, ':');
    hop->component = colon ? g_strndup(key, (gsize)(colon - key)) : g_strdup(key);
}

static bool find_hop(const cs_plan_path *path, size_t n, const char *component, cs_plan_role role)
{
    for (size_t i = 0; i < n; i++)
        if (g_str_equal(path->hops[i].component, component) && path->hops[i].role == role)
            return true;
    return false;
}

/* Half an LLM alone would never answer. */
static void check_halves(cs_json_reader *r, const cs_plan_path *path)
{
    for (size_t i = 0; i < path->n_hops; i++) {
        const cs_plan_hop *hop = &path->hops[i];
        bool prefill = find_hop(path, path->n_hops, hop->component, CS_ROLE_PREFILL);
        bool decode = find_hop(path, path->n_hops, hop->component, CS_ROLE_DECODE);
        bool both = find_hop(path, path->n_hops, hop->component, CS_ROLE_BOTH);
        if (prefill != decode || (both && prefill))
            cs_json_fault(r, NULL,
                          "component %s needs either one executor, or one for prefill "
                          "and one for decode",
                          hop->component);
    }
}

static void read_assign(cs_json_reader *r, const cs_plan *plan, GHashTable *index,
                        cs_plan_path *path)
{
    cs_json_enter(r, "assign");
    json_t *object = cs_json_current(r);
    path->hops = g_new0(cs_plan_hop, json_object_size(object) + 1);
    const char *key;
    json_t *value;
    json_object_foreach (object, key, value) {
        cs_plan_hop hop = {0};
        split_stage(key, &hop);
        const char *name = json_is_string(value) ? json_string_value(value) : "";
        gpointer found = g_hash_table_lookup(index, name);
        if (!found)
            cs_json_fault(r, key, "no executor is named \"%s\"", name);
        hop.executor = found ? GPOINTER_TO_SIZE(found) - 1 : 0;
        if (found && !hosts(&plan->executors[hop.executor], hop.component, hop.role))
            cs_json_fault(r, key, "executor %s does not host it", name);
        path->hops[path->n_hops++] = hop;
    }
    if (path->n_hops == 0)
        cs_json_fault(r, NULL, "expected at least one component");
    check_halves(r, path);
    cs_json_leave(r);
}

static void read_route(cs_json_reader *r, const cs_plan *plan, GHashTable *index,
                       cs_plan_route *route)
{
    cs_json_only(r, (const char *const[]){"request_type", "rate_rps", "paths", NULL});
    route->request_type = read_name(r, "request_type");
    route->rate_rps = cs_json_number_or(r, "rate_rps", 0, MAX_RATE, 0);
    size_t n = cs_json_enter_array(r, "paths");
    route->paths = g_new0(cs_plan_path, n + 1);
    route->n_paths = n;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        cs_json_enter_item(r, i);
        cs_json_only(r, (const char *const[]){"weight", "assign", NULL});
        route->paths[i].weight = cs_json_number(r, "weight", 0, 1);
        sum += route->paths[i].weight;
        read_assign(r, plan, index, &route->paths[i]);
        cs_json_leave(r);
    }
    if (fabs(sum - 1) > WEIGHT_SLACK)
        cs_json_fault(r, NULL, "expected weights that sum to 1, found %g", sum);
    cs_json_leave(r);
}

static void read_routes(cs_json_reader *r, cs_plan *plan)
{
    g_autoptr(GHashTable) index = g_hash_table_new(g_str_hash, g_str_equal);
    for (size_t i = 0; i < plan->n_executors; i++)
        g_hash_table_insert(index, plan->executors[i].name, GSIZE_TO_POINTER(i + 1));
    size_t n = cs_json_enter_array(r, "routes");
    plan->routes = g_new0(cs_plan_route, n + 1);
    plan->n_routes = n;
    g_autoptr(GHashTable) types = g_hash_table_new(g_str_hash, g_str_equal);
    for (size_t i = 0; i < n; i++) {
        cs_json_enter_item(r, i);
        read_route(r, plan, index, &plan->routes[i]);
        if (!g_hash_table_add(types, plan->routes[i].request_type))
            cs_json_fault(r, "request_type", "%s has two routes", plan->routes[i].request_type);
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

static void read_latencies(cs_json_reader *r, cs_plan_predictions *p)
{
    size_t n = cs_json_enter_array(r, "latencies");
    p->latencies = g_new0(cs_plan_latency, n + 1);
    p->n_latencies = n;
    for (size_t i = 0; i < n; i++) {
        cs_plan_latency *l = &p->latencies[i];
        cs_json_enter_item(r, i);
        cs_json_only(r, (const char *const[]){"request_type", "p50_s", "p95_s", "p99_s",
                                              "first_p50_s", "first_p95_s", "attainment", NULL});
        l->request_type = read_name(r, "request_type");
        l->p50_s = cs_json_number(r, "p50_s", 0, MAX_SECONDS);
        l->p95_s = cs_json_number(r, "p95_s", 0, MAX_SECONDS);
        l->p99_s = cs_json_number(r, "p99_s", 0, MAX_SECONDS);
        l->first_p50_s = cs_json_number_or(r, "first_p50_s", 0, MAX_SECONDS, 0);
        l->first_p95_s = cs_json_number_or(r, "first_p95_s", 0, MAX_SECONDS, 0);
        l->attainment = cs_json_number_or(r, "attainment", 0, 1, 1);
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

static void read_links(cs_json_reader *r, cs_plan_predictions *p)
{
    size_t n = cs_json_enter_array(r, "links");
    p->links = g_new0(cs_plan_link, n + 1);
    p->n_links = n;
    for (size_t i = 0; i < n; i++) {
        cs_plan_link *l = &p->links[i];
        cs_json_enter_item(r, i);
        cs_json_only(r, (const char *const[]){"from", "to", "bytes_per_s", "utilisation", NULL});
        l->from = read_name(r, "from");
        l->to = read_name(r, "to");
        l->bytes_per_s = cs_json_number(r, "bytes_per_s", 0, MAX_BYTES);
        l->utilisation = cs_json_number_or(r, "utilisation", 0, 1e9, 0);
        cs_json_leave(r);
    }
    cs_json_leave(r);
}

static void read_predictions(cs_json_reader *r, cs_plan_predictions *p)
{
    cs_json_enter(r, "predictions");
    cs_json_only(r, (const char *const[]){"throughput_rps", "goodput_rps", "bound_rps", "devices",
                                          "cost", "load_rps", "latencies", "links", NULL});
    p->throughput_rps = cs_json_number_or(r, "throughput_rps", 0, MAX_RATE, 0);
    p->goodput_rps = cs_json_number_or(r, "goodput_rps", 0, MAX_RATE, 0);
    p->bound_rps = cs_json_number_or(r, "bound_rps", 0, MAX_RATE, 0);
    p->devices = (int)cs_json_int_or(r, "devices", 0, 1 << 24, 0);
    p->cost = cs_json_number_or(r, "cost", 0, MAX_BYTES, 0);
    p->load_rps = cs_json_number_or(r, "load_rps", 0, MAX_RATE, 0);
    if (cs_json_has(r, "latencies"))
        read_latencies(r, p);
    if (cs_json_has(r, "links"))
        read_links(r, p);
    cs_json_leave(r);
}

cs_plan *cs_plan_from_json(json_t *root, const char *source, GError **error)
{
    g_autoptr(cs_plan) plan = g_new0(cs_plan, 1);
    cs_json_reader r;
    cs_json_reader_init(&r, root, source);
    cs_json_only(&r, (const char *const[]){"version", "model", "policy", "executors", "routes",
                                           "predictions", "bottleneck", NULL});
    cs_json_int(&r, "version", CS_PLAN_VERSION, CS_PLAN_VERSION);
    plan->model = g_strdup(cs_json_string_or(&r, "model", ""));
    plan->policy = g_strdup(cs_json_string_or(&r, "policy", ""));
    plan->bottleneck = g_strdup(cs_json_string_or(&r, "bottleneck", ""));
    read_executors(&r, plan);
    read_routes(&r, plan);
    if (cs_json_has(&r, "predictions"))
        read_predictions(&r, &plan->predictions);
    return cs_json_reader_finish(&r, error) ? g_steal_pointer(&plan) : NULL;
}

cs_plan *cs_plan_load(const char *path, GError **error)
{
    json_t *root = cs_json_load_file(path, MAX_FILE_BYTES, error);
    if (!root)
        return NULL;
    cs_plan *plan = cs_plan_from_json(root, path, error);
    json_decref(root);
    return plan;
}

/* ---- writing ---- */

static json_t *hosted_to_json(const cs_plan_executor *e)
{
    json_t *array = json_array();
    for (size_t i = 0; i < e->n_hosted; i++)
        json_array_append_new(array, json_pack("{ss ss si}", "name", e->hosted[i].name, "role",
                                               cs_plan_role_name(e->hosted[i].role), "max_batch",
                                               e->hosted[i].max_batch));
    return array;
}

static json_t *executors_to_json(const cs_plan *plan)
{
    json_t *array = json_array();
    for (size_t i = 0; i < plan->n_executors; i++) {
        const cs_plan_executor *e = &plan->executors[i];
        json_t *ids = json_array();
        for (int d = 0; d < e->replicas * e->devices_per_replica; d++)
            json_array_append_new(ids, json_integer(e->device_ids[d]));
        json_array_append_new(array,
                              json_pack("{ss so ss ss si si so si sf}", "name", e->name,
                                        "components", hosted_to_json(e), "node", e->node, "device",
                                        e->device, "devices_per_replica", e->devices_per_replica,
                                        "replicas", e->replicas, "devices", ids, "threads",
                                        e->threads, "kv_budget_bytes", e->kv_budget_bytes));
    }
    return array;
}

static json_t *path_to_json(const cs_plan *plan, const cs_plan_path *path)
{
    json_t *assign = json_object();
    for (size_t h = 0; h < path->n_hops; h++) {
        const cs_plan_hop *hop = &path->hops[h];
        g_autofree char *key =
            hop->role == CS_ROLE_BOTH
                ? g_strdup(hop->component)
                : g_strdup_printf("%s:%s", hop->component, cs_plan_role_name(hop->role));
        json_object_set_new(assign, key, json_string(plan->executors[hop->executor].name));
    }
    return json_pack("{sf so}", "weight", path->weight, "assign", assign);
}

static json_t *routes_to_json(const cs_plan *plan)
{
    json_t *array = json_array();
    for (size_t i = 0; i < plan->n_routes; i++) {
        const cs_plan_route *route = &plan->routes[i];
        json_t *paths = json_array();
        for (size_t p = 0; p < route->n_paths; p++)
            json_array_append_new(paths, path_to_json(plan, &route->paths[p]));
        json_array_append_new(array, json_pack("{ss sf so}", "request_type", route->request_type,
                                               "rate_rps", route->rate_rps, "paths", paths));
    }
    return array;
}

static json_t *predictions_to_json(const cs_plan_predictions *p)
{
    json_t *latencies = json_array(), *links = json_array();
    for (size_t i = 0; i < p->n_latencies; i++) {
        const cs_plan_latency *l = &p->latencies[i];
        json_array_append_new(latencies,
                              json_pack("{ss sf sf sf sf sf sf}", "request_type", l->request_type,
                                        "p50_s", l->p50_s, "p95_s", l->p95_s, "p99_s", l->p99_s,
                                        "first_p50_s", l->first_p50_s, "first_p95_s",
                                        l->first_p95_s, "attainment", l->attainment));
    }
    for (size_t i = 0; i < p->n_links; i++) {
        const cs_plan_link *l = &p->links[i];
        json_array_append_new(links, json_pack("{ss ss sf sf}", "from", l->from, "to", l->to,
                                               "bytes_per_s", l->bytes_per_s, "utilisation",
                                               l->utilisation));
    }
    return json_pack("{sf sf sf si sf sf so so}", "throughput_rps", p->throughput_rps,
                     "goodput_rps", p->goodput_rps, "bound_rps", p->bound_rps, "devices",
                     p->devices, "cost", p->cost, "load_rps", p->load_rps, "latencies", latencies,
                     "links", links);
}

json_t *cs_plan_to_json(const cs_plan *plan)
{
    return json_pack("{si ss ss so so so ss}", "version", CS_PLAN_VERSION, "model", plan->model,
                     "policy", plan->policy, "executors", executors_to_json(plan), "routes",
                     routes_to_json(plan), "predictions", predictions_to_json(&plan->predictions),
                     "bottleneck", plan->bottleneck ? plan->bottleneck : "");
}

bool cs_plan_save(const cs_plan *plan, const char *path, GError **error)
{
    json_t *root = cs_plan_to_json(plan);
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) : NULL;
    json_decref(root);
    if (!text)
        return cs_fail(error, CS_ERROR_FAILED, "%s: the plan cannot be written as JSON", path);
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    free(text);
    return g_file_set_contents(path, line, -1, error);
}
