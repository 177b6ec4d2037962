/* The dispatcher: which executor runs which invocation, and what happens when one is lost. */
#include "base/error.h"
#include "base/log.h"
#include "base/os.h"
#include "runtime/runtime_internal.h"

#include <stdlib.h>
#include <string.h>

/* Attempts that brought the client further are allowed this many times more. */
#define ATTEMPTS_FACTOR 8
/* A replica that has a prompt's prefix in its cache is worth waiting behind this many more. */
#define AFFINITY_SLACK 4
#define SEEN_BYTES_MAX                                                                             \
    (4u << 20) /* of one stream: kept for resumption, sent to its next executor */

deployment *dispatch_find(cs_runtime *rt, const char *model)
{
    for (guint i = 0; i < rt->deployments->len; i++) {
        deployment *d = rt->deployments->pdata[i];
        if (strcmp(d->model, model) == 0)
            return d;
    }
    return NULL;
}

/* --- choosing --- */

static bool hosts(const cs_plan_executor *e, const char *component, cs_plan_role role)
{
    for (size_t i = 0; i < e->n_hosted; i++)
        if (strcmp(e->hosted[i].name, component) == 0 && e->hosted[i].role == role)
            return true;
    return false;
}

static bool takes(const executor *x, const char *component, cs_plan_role role, size_t entry)
{
    const cs_plan *plan = x->deployment->plan;
    if (x->state != EXECUTOR_READY || x->stopping)
        return false;
    return entry < plan->n_executors ? x->entry == entry
                                     : hosts(&plan->executors[x->entry], component, role);
}

/* Rendezvous hashing: the same prefix prefers the same replica, whichever others come and go. */
static uint64_t affinity(const char *prefix, const executor *x)
{
    uint64_t hash = cs_hash(CS_HASH_SEED, prefix, strlen(prefix));
    return cs_hash(hash, x->name, strlen(x->name));
}

/* The least loaded ready executor that hosts the component in the role: of that entry, or of any
 * for an entry beyond the last. NULL if there is none. */
static executor *pick(const deployment *d, const char *component, cs_plan_role role, size_t entry,
                      const char *prefix)
{
    executor *least = NULL, *near = NULL;
    for (guint i = 0; i < d->executors->len; i++) {
        executor *x = d->executors->pdata[i];
        if (!takes(x, component, role, entry))
            continue;
        if (!least || x->in_flight < least->in_flight)
            least = x;
        if (prefix && (!near || affinity(prefix, x) > affinity(prefix, near)))
            near = x;
    }
    return near && near->in_flight <= least->in_flight + AFFINITY_SLACK ? near : least;
}

static const cs_plan_hop *find_hop(const cs_plan_path *path, const char *component)
{
    for (size_t i = 0; i < path->n_hops; i++)
        if (strcmp(path->hops[i].component, component) == 0)
            return &path->hops[i];
    return NULL;
}

static bool covers(const cs_plan_path *path, const cs_recording *r)
{
    for (guint i = 0; i < r->invocations->len; i++)
        if (!find_hop(path, cs_recording_invocation(r, i)->unit->name))
            return false;
    return true;
}

/* The route of the request's kind, else the narrowest that has all components of the recording. */
static size_t find_route(const deployment *d, const cs_recording *r, const char *kind)
{
    size_t best = d->plan->n_routes;
    for (size_t i = 0; i < d->plan->n_routes; i++) {
        const cs_plan_route *route = &d->plan->routes[i];
        if (route->n_paths == 0 || !covers(&route->paths[0], r))
            continue;
        if (kind && strcmp(route->request_type, kind) == 0)
            return i;
        if (best == d->plan->n_routes ||
            route->paths[0].n_hops < d->plan->routes[best].paths[0].n_hops)
            best = i;
    }
    return best;
}

/* Smooth weighted round robin: shares are exact over any stretch of requests. */
static const cs_plan_path *choose_path(deployment *d, size_t route, const cs_recording *r)
{
    const cs_plan_route *plan = &d->plan->routes[route];
    double *credit = d->path_credit[route], total = 0;
    size_t best = plan->n_paths;
    for (size_t i = 0; i < plan->n_paths; i++) {
        if (!covers(&plan->paths[i], r))
            continue;
        credit[i] += plan->paths[i].weight;
        total += plan->paths[i].weight;
        if (best == plan->n_paths || credit[i] > credit[best])
            best = i;
    }
    if (best == plan->n_paths)
        return NULL;
    credit[best] -= total;
    return &plan->paths[best];
}

/* On the path's executor, or when that is down on any that can. */
static executor *pick_on(const deployment *d, const cs_plan_path *path, const char *component,
                         cs_plan_role role, const char *prefix)
{
    executor *x = NULL;
    for (size_t i = 0; path && !x && i < path->n_hops; i++)
        if (path->hops[i].role == role && strcmp(path->hops[i].component, component) == 0)
            x = pick(d, component, role, path->hops[i].executor, prefix);
    return x ? x : pick(d, component, role, SIZE_MAX, prefix);
}

/* A path through halves takes them before an executor of the whole. */
static bool prefers_halves(const cs_plan_path *path, const char *component)
{
    const cs_plan_hop *hop = path ? find_hop(path, component) : NULL;
    return hop && hop->role != CS_ROLE_BOTH;
}

static bool choose_halves(const call *c, uint32_t i, const deployment *d, const cs_plan_path *path,
                          const char *prefix)
{
    const char *component = cs_recording_invocation(c->recording, i)->unit->name;
    executor *prefill = pick_on(d, path, component, CS_ROLE_PREFILL, prefix);
    executor *decode = pick_on(d, path, component, CS_ROLE_DECODE, NULL);
    if (!prefill || !decode)
        return false;
    c->invocations[i].on = decode;
    c->invocations[c->recording->invocations->len + i].on = prefill == decode ? NULL : prefill;
    return true;
}

static bool choose(const call *c, uint32_t i, const deployment *d, const cs_plan_path *path)
{
    const cs_invocation *invocation = cs_recording_invocation(c->recording, i);
    const char *component = invocation->unit->name;
    const char *prefix = json_string_value(json_object_get(invocation->params, "affinity"));
    bool halves_first = prefers_halves(path, component);
    c->invocations[c->recording->invocations->len + i].on = NULL;
    if (halves_first && choose_halves(c, i, d, path, prefix))
        return true;
    c->invocations[i].on = pick_on(d, path, component, CS_ROLE_BOTH, prefix);
    return c->invocations[i].on || (!halves_first && choose_halves(c, i, d, path, prefix));
}

/* Fills in an executor for every invocation; false if one has none that is ready. */
static bool choose_all(const call *c, const deployment *d, const cs_plan_path *path)
{
    for (guint i = 0; i < c->recording->invocations->len; i++)
        if (!choose(c, i, d, path))
            return false;
    return true;
}

/* Invocations, then their prefills, of which most are not there. */
static uint32_t n_slots(const call *c)
{
    return 2 * c->recording->invocations->len;
}

static executor *prefill_of(const call *c, uint32_t index)
{
    return c->invocations[c->recording->invocations->len + index].on;
}

/* --- sending --- */

typedef struct {
    GPtrArray *owned; /* everything the message points to */
    Cornserve__Wire__Submit m;
} submission;

static void *keep(submission *s, void *memory)
{
    g_ptr_array_add(s->owned, memory);
    return memory;
}

static json_t *attachment_of(const cs_invocation *invocation)
{
    return json_object_get(invocation->params, "attachment");
}

/* Attachments have the streams after those of the forwards, one an invocation. */
static uint32_t attachment_stream(const call *c, uint32_t index)
{
    return c->recording->forwards->len + index;
}

/* And after those, the KV blocks from a prefill to its decode. */
static uint32_t kv_stream(const call *c, uint32_t index)
{
    return attachment_stream(c, c->recording->invocations->len) + index;
}

/* Copies the invocation's attachment into the sidecar. CS_ERROR_BUSY: there is no room now. */
static bool send_attachment(call *c, uint32_t index, GError **error)
{
    const cs_invocation *invocation = cs_recording_invocation(c->recording, index);
    const GArray *all = c->request->attachments;
    const json_t *number = attachment_of(invocation);
    if (!number)
        return true;
    if (!json_is_integer(number) || json_integer_value(number) < 0 ||
        json_integer_value(number) >= all->len)
        return cs_fail(error, CS_ERROR_INVALID, "%s: attachment: the request has %u of them",
                       invocation->unit->name, all->len);
    const cs_attachment *a = &g_array_index(all, cs_attachment, json_integer_value(number));
    gsize head_bytes = 0, body_bytes = 0;
    const void *head = g_bytes_get_data(a->head, &head_bytes);
    const void *body = a->body ? g_bytes_get_data(a->body, &body_bytes) : NULL;
    cs_sender *sender = cs_sender_open(
        c->request->runtime->sidecar, c->attempt, attachment_stream(c, index),
        (cs_sender_options){.n_consumers = prefill_of(c, index) ? 2 : 1, .n_chunks = 1}, error);
    cs_chunk chunk;
    bool ok = sender && cs_sender_alloc(sender, head_bytes + body_bytes, 0, &chunk, error);
    if (ok && head_bytes > 0)
        memcpy(chunk.data, head, head_bytes);
    if (ok && body_bytes > 0)
        memcpy(chunk.data + head_bytes, body, body_bytes);
    ok = ok && cs_sender_put(sender, &(cs_chunk_desc){0}, error) && cs_sender_end(sender, error);
    if (sender)
        cs_sender_close(sender);
    return ok;
}

/* Whether all that read a forward run beside its producer. */
static bool is_local(const call *c, uint32_t forward)
{
    const cs_forward *f = cs_recording_forward(c->recording, forward);
    const executor *producer = c->invocations[f->producer].on;
    for (guint i = f->producer + 1; i < c->recording->invocations->len; i++) {
        const cs_invocation *invocation = cs_recording_invocation(c->recording, i);
        for (guint k = 0; k < invocation->inputs->len; k++)
            if (g_array_index(invocation->inputs, cs_invocation_input, k).forward == forward &&
                (prefill_of(c, i) ? prefill_of(c, i) : c->invocations[i].on) != producer)
                return false;
    }
    return true;
}

static Cornserve__Wire__Input *add_input(submission *s, const char *name, uint32_t stream)
{
    Cornserve__Wire__Input *to = keep(s, g_new(Cornserve__Wire__Input, 1));
    cornserve__wire__input__init(to);
    to->name = (char *)name;
    to->stream = stream;
    s->m.inputs[s->m.n_inputs++] = to;
    return to;
}

static void fill_inputs(submission *s, const call *c, uint32_t index, cs_plan_role role)
{
    const cs_invocation *invocation = cs_recording_invocation(c->recording, index);
    size_t n = role == CS_ROLE_DECODE ? 0 : invocation->inputs->len;
    s->m.inputs = keep(s, g_new0(Cornserve__Wire__Input *, n + 2));
    for (size_t i = 0; i < n; i++) {
        const cs_invocation_input *from =
            &g_array_index(invocation->inputs, cs_invocation_input, i);
        const cs_forward *f = cs_recording_forward(c->recording, from->forward);
        const cs_unit *producer = cs_recording_invocation(c->recording, f->producer)->unit;
        Cornserve__Wire__Input *to = add_input(s, from->name, from->forward);
        to->place = from->place;
        to->streamed = producer->outputs[f->output].streamed;
        to->local = is_local(c, from->forward);
    }
    if (attachment_of(invocation))
        add_input(s, "attachment", attachment_stream(c, index))->place = role == CS_ROLE_DECODE;
    if (role == CS_ROLE_DECODE)
        add_input(s, "kv", kv_stream(c, index))->streamed = true;
}

static void fill_kv_output(submission *s, const call *c, uint32_t index)
{
    Cornserve__Wire__Output *o = keep(s, g_new(Cornserve__Wire__Output, 1));
    cornserve__wire__output__init(o);
    o->name = (char *)"kv";
    o->stream = kv_stream(c, index);
    o->n_consumers = 1;
    s->m.n_outputs = 1;
    s->m.outputs = keep(s, g_new0(Cornserve__Wire__Output *, 2));
    s->m.outputs[0] = o;
}

static void fill_outputs(submission *s, const call *c, const cs_invocation *invocation)
{
    const cs_unit *unit = invocation->unit;
    s->m.n_outputs = s->m.n_seen_text = unit->n_outputs;
    s->m.outputs = keep(s, g_new0(Cornserve__Wire__Output *, unit->n_outputs + 1));
    s->m.seen_text = keep(s, g_new0(ProtobufCBinaryData, unit->n_outputs + 1));
    for (uint32_t i = 0; i < unit->n_outputs; i++) {
        uint32_t forward = invocation->first_forward + i;
        const cs_forward *f = cs_recording_forward(c->recording, forward);
        const client_stream *seen = &c->streams[forward];
        Cornserve__Wire__Output *o = keep(s, g_new(Cornserve__Wire__Output, 1));
        cornserve__wire__output__init(o);
        o->name = unit->outputs[i].name;
        o->stream = forward;
        o->n_consumers = f->n_consumers - f->to_client;
        o->to_client = f->to_client;
        o->bytes = f->bytes;
        o->local = is_local(c, forward);
        s->m.outputs[i] = o;
        if (seen->data)
            s->m.seen_text[i] = (ProtobufCBinaryData){seen->data->len, seen->data->data};
        s->m.seen_units = MAX(s->m.seen_units, seen->units);
    }
}

static void send_slot(call *c, uint32_t slot)
{
    uint32_t n = c->recording->invocations->len, index = slot % n;
    const cs_invocation *invocation = cs_recording_invocation(c->recording, index);
    cs_plan_role role = slot >= n              ? CS_ROLE_PREFILL
                        : prefill_of(c, index) ? CS_ROLE_DECODE
                                               : CS_ROLE_BOTH;
    submission s = {.owned = g_ptr_array_new_with_free_func(g_free)};
    cornserve__wire__submit__init(&s.m);
    char *params = json_dumps(invocation->params, JSON_COMPACT);
    s.m.request = c->attempt;
    s.m.invocation = slot;
    s.m.role = (Cornserve__Wire__Role)role;
    s.m.component = invocation->unit->name;
    s.m.params = params;
    s.m.units = invocation->units;
    s.m.output_units = invocation->output_units;
    s.m.allowed_units = c->request->allowed_units;
    fill_inputs(&s, c, index, role);
    if (role == CS_ROLE_PREFILL)
        fill_kv_output(&s, c, index);
    else
        fill_outputs(&s, c, invocation);
    cs_wire_send(c->invocations[slot].on->wire,
                 &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_SUBMIT, .submit = &s.m));
    g_ptr_array_unref(s.owned);
    free(params);
}

static void count_on(call *c, executor *x, int change)
{
    int n = GPOINTER_TO_INT(g_hash_table_lookup(x->calls, c)) + change;
    x->in_flight = (unsigned)((int)x->in_flight + change);
    if (n > 0)
        g_hash_table_insert(x->calls, c, GINT_TO_POINTER(n));
    else
        g_hash_table_remove(x->calls, c);
}

static void park(call *c)
{
    cs_runtime *rt = c->request->runtime;
    if (!c->parked)
        c->parked_until_us = cs_now_us() + rt->options.park_us;
    c->parked = true;
    if (!g_ptr_array_find(rt->parked, c, NULL))
        g_ptr_array_add(rt->parked, c);
}

static bool send_all(call *c, GError **error)
{
    cs_runtime *rt = c->request->runtime;
    uint64_t attempt = ++rt->last_attempt;
    if (!cs_sidecar_request_begin(rt->sidecar, attempt, 0, error))
        return false;
    c->attempt = attempt;
    for (uint32_t i = 0; i < c->recording->invocations->len; i++) {
        g_autoptr(GError) why = NULL;
        if (send_attachment(c, i, &why))
            continue;
        cs_sidecar_request_end(rt->sidecar, attempt);
        c->attempt = 0;
        if (g_error_matches(why, CS_ERROR, CS_ERROR_BUSY)) {
            park(c);
            return true;
        }
        g_propagate_error(error, g_steal_pointer(&why));
        return false;
    }
    c->attempts++;
    g_hash_table_insert(rt->attempts, &c->attempt, c);
    c->n_open = 0;
    for (uint32_t i = 0; i < n_slots(c); i++) {
        c->invocations[i].done = !c->invocations[i].on;
        if (c->invocations[i].done)
            continue;
        c->n_open++;
        count_on(c, c->invocations[i].on, 1);
    }
    for (uint32_t i = 0; i < n_slots(c); i++)
        if (c->invocations[i].on)
            send_slot(c, i);
    return true;
}

bool dispatch_call(call *c, GError **error)
{
    cs_runtime *rt = c->request->runtime;
    if (c->recording->invocations->len == 0) /* nothing to do */
        return true;
    const cs_unit *unit = cs_recording_invocation(c->recording, 0)->unit;
    deployment *d = dispatch_find(rt, unit->model);
    if (!d)
        return cs_fail(error, CS_ERROR_NOT_FOUND, "model %s is not deployed", unit->model);
    const char *kind = json_string_value(json_object_get(c->request->input, "kind"));
    size_t route = find_route(d, c->recording, kind);
    const cs_plan_path *path = NULL;
    if (route < d->plan->n_routes)
        path = choose_path(d, route, c->recording);
    if (!choose_all(c, d, path)) {
        park(c);
        return true;
    }
    bool was_parked = c->parked;
    int64_t until_us = c->parked_until_us;
    c->parked = false;
    bool ok = send_all(c, error);
    if (was_parked && c->parked)
        c->parked_until_us = until_us;
    return ok;
}

void dispatch_allow(call *c, uint64_t n_units)
{
    for (uint32_t i = 0; c->attempt > 0 && i < c->recording->invocations->len; i++) {
        Cornserve__Wire__Allow allow = CORNSERVE__WIRE__ALLOW__INIT;
        if (cs_recording_invocation(c->recording, i)->unit->kind != CS_UNIT_GENERATOR ||
            c->invocations[i].done || !c->invocations[i].on->wire)
            continue;
        allow.request = c->attempt;
        allow.invocation = i;
        allow.units = n_units;
        cs_wire_send(c->invocations[i].on->wire,
                     &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_ALLOW, .allow = &allow));
    }
}

/* --- ends --- */

static void send_cancel(call *c, uint32_t index)
{
    executor *x = c->invocations[index].on;
    Cornserve__Wire__Cancel cancel = CORNSERVE__WIRE__CANCEL__INIT;
    cancel.request = c->attempt;
    cancel.invocation = index;
    if (x->wire)
        cs_wire_send(x->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_CANCEL, .cancel = &cancel));
}

void dispatch_stop(call *c)
{
    cs_runtime *rt = c->request->runtime;
    g_ptr_array_remove(rt->parked, c);
    c->parked = false;
    if (c->attempt == 0)
        return;
    for (uint32_t i = 0; i < n_slots(c); i++) {
        if (c->invocations[i].done)
            continue;
        send_cancel(c, i);
        count_on(c, c->invocations[i].on, -1);
        c->invocations[i].done = true;
    }
    cs_sidecar_request_end(rt->sidecar, c->attempt);
    g_hash_table_remove(rt->attempts, &c->attempt);
    c->attempt = 0;
    c->n_open = 0;
}

/* Runs the call again after something under it was lost. */
static void run_again(call *c, const char *why)
{
    cs_runtime *rt = c->request->runtime;
    GError *error = NULL;
    dispatch_stop(c);
    for (guint i = 0; i < c->recording->forwards->len; i++)
        if (c->streams[i].full) {
            cs_fail(&error, CS_ERROR_EXECUTOR_LOST, "the answer is too long to go on with; %s",
                    why);
            request_call_failed(c, error);
            return;
        }
    c->fruitless = c->progressed ? 0 : c->fruitless + 1;
    c->progressed = false;
    if (c->fruitless >= rt->options.attempts_max ||
        c->attempts >= rt->options.attempts_max * ATTEMPTS_FACTOR) {
        cs_fail(&error, CS_ERROR_EXECUTOR_LOST, "given up after %u attempts; the last: %s",
                c->attempts, why);
        request_call_failed(c, error);
        return;
    }
    rt->counters.retries++;
    if (!dispatch_call(c, &error))
        request_call_failed(c, error);
}

void dispatch_lost(executor *x, const char *why)
{
    g_autofree char *reason = g_strdup_printf("%s: %s", x->name, why);
    g_autoptr(GList) calls = g_hash_table_get_keys(x->calls);
    for (GList *l = calls; l; l = l->next)
        if (g_hash_table_contains(x->calls, l->data)) /* another's failure may have ended it */
            run_again(l->data, reason);
}

/* Calls that wait for an executor, oldest first. */
void dispatch_parked(cs_runtime *rt)
{
    int64_t now_us = cs_now_us();
    g_autoptr(GPtrArray) waiting = g_ptr_array_new();
    for (guint i = 0; i < rt->parked->len; i++)
        g_ptr_array_add(waiting, rt->parked->pdata[i]);
    for (guint i = 0; i < waiting->len; i++) {
        call *c = waiting->pdata[i];
        GError *error = NULL;
        if (!g_ptr_array_find(rt->parked, c, NULL))
            continue; /* gone with its request, which another call failed */
        if (dispatch_call(c, &error)) {
            if (!c->parked)
                g_ptr_array_remove(rt->parked, c);
            else if (now_us > c->parked_until_us)
                cs_fail(&error, CS_ERROR_EXECUTOR_LOST, "no executor was ready in time");
        }
        if (error)
            request_call_failed(c, error);
    }
}

/* --- what executors say --- */

static void on_piece(executor *x, const Cornserve__Wire__Piece *p)
{
    call *c = g_hash_table_lookup(x->runtime->attempts, &p->request);
    if (!c) /* of an attempt that is over */
        return;
    if (p->invocation >= c->recording->invocations->len || c->invocations[p->invocation].on != x ||
        c->invocations[p->invocation].done) {
        agent_kill(x, "answered for an invocation that is not its own");
        return;
    }
    const cs_invocation *invocation = cs_recording_invocation(c->recording, p->invocation);
    uint32_t forward = invocation->first_forward + p->output;
    if (p->output >= invocation->unit->n_outputs ||
        !cs_recording_forward(c->recording, forward)->to_client) {
        agent_kill(x, "sent a piece of an output that nobody asked for");
        return;
    }
    client_stream *seen = &c->streams[forward];
    if (invocation->unit->kind == CS_UNIT_LLM) {
        if (!seen->data)
            seen->data = g_byte_array_new();
        seen->full = seen->full || seen->data->len + p->data.len > SEEN_BYTES_MAX;
        if (!seen->full)
            g_byte_array_append(seen->data, p->data.data, (guint)p->data.len);
    }
    seen->units += p->units;
    c->progressed = true;
    x->has_worked = true;
    request_piece(c, forward, p->data.data, p->data.len, p->units);
}

/* Of a live call nobody cancelled anything: there CANCELLED says that the producer of an input has
 * gone, and this consumer noticed before the gateway did. */
static bool may_run_again(int code)
{
    return code == CS_ERROR_CANCELLED || code == CS_ERROR_SESSION_LOST ||
           code == CS_ERROR_EXECUTOR_LOST || code == CS_ERROR_NODE_LOST;
}

static void on_failed(call *c, const Cornserve__Wire__Done *d)
{
    int code = d->code >= 0 && d->code <= CS_ERROR_NODE_LOST ? d->code : CS_ERROR_FAILED;
    if (may_run_again(code))
        run_again(c, d->message);
    else
        request_call_failed(c, g_error_new_literal(CS_ERROR, code, d->message));
}

static void end_streams(call *c, uint32_t index)
{
    const cs_invocation *invocation = cs_recording_invocation(c->recording, index);
    for (uint32_t i = 0; i < invocation->unit->n_outputs; i++)
        if (cs_recording_forward(c->recording, invocation->first_forward + i)->to_client)
            request_stream_end(c, invocation->first_forward + i);
}

static void on_finished(call *c, uint32_t slot)
{
    cs_runtime_request *r = c->request;
    if (slot < c->recording->invocations->len) /* a prefill's decode ends them */
        end_streams(c, slot);
    if (c->n_open == 0)
        dispatch_stop(c);
    request_progress(r);
}

/* Whether another executor reads the stream. */
static bool is_read_elsewhere(const call *c, uint32_t forward)
{
    const cs_forward *f = cs_recording_forward(c->recording, forward);
    return f->n_consumers > f->to_client && !is_local(c, forward);
}

/* Whether somebody still waits for what the slot's executor was to send. */
static bool owes_output(const call *c, uint32_t slot)
{
    cs_sidecar *sidecar = c->request->runtime->sidecar;
    uint32_t n = c->recording->invocations->len;
    if (slot >= n)
        return !cs_sidecar_is_over(sidecar, c->attempt, kv_stream(c, slot - n));
    const cs_invocation *invocation = cs_recording_invocation(c->recording, slot);
    for (uint32_t i = 0; i < invocation->unit->n_outputs; i++) {
        uint32_t forward = invocation->first_forward + i;
        if (is_read_elsewhere(c, forward) && !cs_sidecar_is_over(sidecar, c->attempt, forward))
            return true;
    }
    return false;
}

static void on_done(executor *x, const Cornserve__Wire__Done *d)
{
    call *c = g_hash_table_lookup(x->runtime->attempts, &d->request);
    if (!c)
        return;
    if (d->invocation >= n_slots(c) || c->invocations[d->invocation].on != x ||
        c->invocations[d->invocation].done) {
        agent_kill(x, "ended an invocation that is not its own");
        return;
    }
    if (d->code == -1 && owes_output(c, d->invocation)) {
        agent_kill(x, "ended an invocation whose output others wait for");
        return;
    }
    c->invocations[d->invocation].done = true;
    c->n_open--;
    count_on(c, x, -1);
    x->has_worked = x->has_worked || d->code == -1;
    if (d->code == -1)
        on_finished(c, d->invocation);
    else
        on_failed(c, d);
}

void dispatch_step(executor *x, const Cornserve__Wire__Step *step)
{
    for (size_t i = 0; i < step->n_pieces && x->state == EXECUTOR_READY; i++)
        on_piece(x, step->pieces[i]);
    request_step_dirty(x->runtime); /* before the ends that would find their data unread */
    for (size_t i = 0; i < step->n_done && x->state == EXECUTOR_READY; i++)
        on_done(x, step->done[i]);
    request_step_dirty(x->runtime);
}
