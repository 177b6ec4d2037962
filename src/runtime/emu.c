/* Executor kind "emu": a device that computes nothing. It occupies itself for the time its profile
 * says and emits tensors and tokens of the right number and size, so that everything around it (the
 * dispatcher, the sidecar, streaming, failures) runs for real.
 *
 *     {"components": {"thinker": {"kind": "llm", "fixed_us": 9000, "per_unit_us": 40,
 *                                 "prefill_fixed_us": 4000, "prefill_per_unit_us": 25,
 *                                 "max_batch": 64, "chunk_units": 2048}, ...}}
 *
 * A step over work u takes fixed + per_unit * u, as in plan/profiles.h: u is the units of a batch
 * for an encoder, the requests of a decode step, the prompt tokens of a prefill step. Components of
 * one executor share its device: one step at a time, in turn.
 *
 * What it emits can be checked: token n of an answer is "wN ", and a chunk's first and last bytes
 * are (request + sequence) mod 256; a consumer that finds others fails its job. */
#include "base/error.h"
#include "base/json.h"
#include "base/os.h"
#include "runtime/executor.h"

#include <string.h>
#include <unistd.h>

#define DEFAULT_MAX_BATCH 64
#define DEFAULT_CHUNK_UNITS 2048

typedef enum { EMU_ENCODER, EMU_LLM, EMU_GENERATOR } emu_kind;
static const char *const emu_kind_names[] = {"encoder", "llm", "generator"};

typedef struct {
    char *name;
    emu_kind kind;
    double fixed_us, per_unit_us, prefill_fixed_us, prefill_per_unit_us, chunk_units;
    int64_t max_batch;
    GQueue waiting;    /* emu_job *, inputs not there yet or no place in the batch */
    GPtrArray *active; /* emu_job * */
} emu_component;

typedef struct {
    cs_job *job;
    emu_component *component;
    double prefill_left;
    uint64_t made, target; /* emissions; target UINT64_MAX: as many as the input has */
    uint32_t outputs_made; /* of the emission under way, when the sidecar had no room */
    uint64_t *received;    /* [n_inputs] chunks taken */
    bool *ended;           /* [n_inputs] */
    bool in_step;
    bool blocked; /* the sidecar had no room; the doorbell rings when it has */
} emu_job;

typedef struct {
    cs_executor *host;
    emu_component *components;
    size_t n_components, turn;
    emu_component *busy; /* the step under way is its */
    cs_timer *timer;
    char *misbehave; /* tests: "exit", "hang" at the job of this number, counted from 1 */
    int64_t misbehave_at, n_jobs;
} emu;

/* --- configuration --- */

static void read_component(cs_json_reader *r, const char *name, emu_component *c)
{
    cs_json_enter(r, name);
    cs_json_only(r, (const char *const[]){"kind", "fixed_us", "per_unit_us", "prefill_fixed_us",
                                          "prefill_per_unit_us", "max_batch", "chunk_units", NULL});
    const char *kind = cs_json_string(r, "kind");
    while (c->kind <= EMU_GENERATOR && strcmp(emu_kind_names[c->kind], kind) != 0)
        c->kind++;
    if (c->kind > EMU_GENERATOR)
        cs_json_fault(r, "kind", "expected encoder, llm or generator, found \"%s\"", kind);
    c->fixed_us = cs_json_number_or(r, "fixed_us", 0, 1e9, 0);
    c->per_unit_us = cs_json_number_or(r, "per_unit_us", 0, 1e9, 0);
    c->prefill_fixed_us = cs_json_number_or(r, "prefill_fixed_us", 0, 1e9, 0);
    c->prefill_per_unit_us = cs_json_number_or(r, "prefill_per_unit_us", 0, 1e9, 0);
    c->max_batch = cs_json_int_or(r, "max_batch", 1, 1 << 20, DEFAULT_MAX_BATCH);
    c->chunk_units = cs_json_number_or(r, "chunk_units", 1, 1e9, DEFAULT_CHUNK_UNITS);
    cs_json_leave(r);
    c->name = g_strdup(name);
    c->active = g_ptr_array_new();
    g_queue_init(&c->waiting);
}

static void emu_close(void *state);

static void *emu_open(cs_executor *host, const json_t *config, char **components, GError **error)
{
    emu *e = g_new0(emu, 1);
    e->host = host;
    e->components = g_new0(emu_component, g_strv_length(components) + 1);
    cs_json_reader r;
    cs_json_reader_init(&r, (json_t *)config, "emulation");
    cs_json_only(&r, (const char *const[]){"components", "misbehave", "misbehave_at", NULL});
    e->misbehave = g_strdup(cs_json_string_or(&r, "misbehave", ""));
    e->misbehave_at = cs_json_int_or(&r, "misbehave_at", 0, INT64_MAX, 0);
    cs_json_enter(&r, "components");
    for (char **name = components; *name; name++)
        read_component(&r, *name, &e->components[e->n_components++]);
    cs_json_leave(&r);
    if (cs_json_reader_finish(&r, error))
        return e;
    emu_close(e);
    return NULL;
}

/* --- jobs --- */

static void free_emu_job(emu_job *j)
{
    g_free(j->received);
    g_free(j->ended);
    g_free(j);
}

/* Ends a job that is in no step; takes the error. */
static void finish(emu_job *j, GError *error)
{
    g_queue_remove(&j->component->waiting, j);
    g_ptr_array_remove(j->component->active, j);
    j->job->data = NULL;
    cs_executor_done(j->job, error);
    free_emu_job(j);
}

static bool check_chunk(const cs_job *job, const cs_chunk *chunk, GError **error)
{
    uint8_t expected = (uint8_t)(job->request + chunk->sequence);
    if (chunk->size_bytes == 0 ||
        (chunk->data[0] == expected && chunk->data[chunk->size_bytes - 1] == expected))
        return true;
    return cs_fail(error, CS_ERROR_FAILED,
                   "%s: chunk %" G_GUINT64_FORMAT " holds other bytes than "
                   "were sent",
                   job->component, chunk->sequence);
}

/* Takes what has arrived at one input. */
static bool poll_input(emu_job *j, uint32_t i, GError **error)
{
    cs_receiver *receiver = j->job->inputs[i].receiver;
    while (!j->ended[i]) {
        cs_chunk chunk;
        cs_receive got = cs_receiver_get(receiver, j->received[i], 0, &chunk, error);
        if (got == CS_RECEIVE_AGAIN)
            return true;
        if (got == CS_RECEIVE_ERROR)
            return false;
        if (got == CS_RECEIVE_END) {
            j->ended[i] = true;
            return true;
        }
        if (!check_chunk(j->job, &chunk, error))
            return false;
        cs_receiver_release(receiver, j->received[i]++);
    }
    return true;
}

/* False when the job failed and is gone. */
static bool poll_inputs(emu_job *j)
{
    GError *error = NULL;
    for (uint32_t i = 0; i < j->job->n_inputs; i++) {
        if (poll_input(j, i, &error))
            continue;
        if (j->in_step) { /* noticed again when the step is over */
            g_clear_error(&error);
            return true;
        }
        finish(j, error);
        return false;
    }
    return true;
}

static bool inputs_ready(const emu_job *j)
{
    for (uint32_t i = 0; i < j->job->n_inputs; i++)
        if (!j->ended[i] && !(j->job->inputs[i].streamed && j->received[i] > 0))
            return false;
    return true;
}

static bool inputs_ended(const emu_job *j)
{
    for (uint32_t i = 0; i < j->job->n_inputs; i++)
        if (!j->ended[i])
            return false;
    return true;
}

static bool is_stream_consumer(const emu_job *j)
{
    for (uint32_t i = 0; i < j->job->n_inputs; i++)
        if (j->job->inputs[i].streamed)
            return true;
    return false;
}

/* How many emissions the inputs so far allow. */
static uint64_t allowed(const emu_job *j)
{
    if (j->target != UINT64_MAX)
        return j->target;
    uint64_t n = UINT64_MAX;
    for (uint32_t i = 0; i < j->job->n_inputs; i++)
        if (j->job->inputs[i].streamed)
            n = MIN(n, j->received[i]);
    return n;
}

/* --- emitting --- */

static double emission_bytes(const emu_job *j, const cs_job_output *o)
{
    double n = j->target != UINT64_MAX ? (double)j->target : j->job->units;
    return n > 1 ? o->bytes / n : o->bytes;
}

typedef enum { EMIT_DONE, EMIT_WAIT, EMIT_ERROR } emit_result;

static emit_result emit_chunk(emu_job *j, const cs_job_output *o, GError **error)
{
    g_autoptr(GError) why = NULL;
    cs_chunk chunk;
    size_t size_bytes = (size_t)emission_bytes(j, o);
    if (!cs_sender_alloc(o->sender, size_bytes, 0, &chunk, &why)) {
        if (g_error_matches(why, CS_ERROR, CS_ERROR_BUSY))
            return EMIT_WAIT;
        g_propagate_error(error, g_steal_pointer(&why));
        return EMIT_ERROR;
    }
    if (size_bytes > 0)
        chunk.data[0] = chunk.data[size_bytes - 1] = (uint8_t)(j->job->request + chunk.sequence);
    return cs_sender_put(o->sender, &(cs_chunk_desc){.tag = j->made}, error) ? EMIT_DONE
                                                                             : EMIT_ERROR;
}

static void emit_piece(emu_job *j, uint32_t output)
{
    if (j->component->kind == EMU_LLM) {
        char text[32];
        int n = g_snprintf(text, sizeof(text), "w%" G_GUINT64_FORMAT " ", j->made);
        cs_executor_piece(j->job, output, text, (size_t)n, 1);
        return;
    }
    size_t size_bytes = (size_t)MIN(emission_bytes(j, &j->job->outputs[output]), 1 << 20);
    g_autofree uint8_t *data = g_malloc0(size_bytes + 1);
    cs_executor_piece(j->job, output, data, size_bytes, 1);
}

/* One token, or the result of an encoder, into all outputs; goes on where the sidecar had no room.
 * What the client has seen before a resumption is not said to it again. */
static emit_result emit(emu_job *j, GError **error)
{
    for (; j->outputs_made < j->job->n_outputs; j->outputs_made++) {
        cs_job_output *o = &j->job->outputs[j->outputs_made];
        emit_result result = o->sender ? emit_chunk(j, o, error) : EMIT_DONE;
        if (result != EMIT_DONE)
            return result;
        if (o->to_client && j->made >= j->job->seen_units)
            emit_piece(j, j->outputs_made);
    }
    j->outputs_made = 0;
    j->made++;
    return EMIT_DONE;
}

/* --- steps --- */

static bool wants_decode(const emu_job *j)
{
    return j->prefill_left <= 0 && !j->blocked && j->made < allowed(j);
}

/* Moves jobs whose inputs are there into the batch. */
static void admit(emu_component *c)
{
    for (GList *l = c->waiting.head, *next; l; l = next) {
        emu_job *j = l->data;
        next = l->next;
        if ((int64_t)c->active->len >= c->max_batch)
            return;
        if (!inputs_ready(j))
            continue;
        g_queue_delete_link(&c->waiting, l);
        g_ptr_array_add(c->active, j);
    }
}

/* The time of the component's next step, or -1 if it has nothing to do. Marks who takes part. */
static double plan_step(emu_component *c)
{
    double work = 0, prefill = 0;
    for (guint i = 0; i < c->active->len; i++) {
        emu_job *j = c->active->pdata[i];
        j->in_step = true;
        if (j->prefill_left > 0 && prefill < c->chunk_units)
            prefill += MIN(j->prefill_left, c->chunk_units - prefill);
        else if (wants_decode(j))
            work += c->kind == EMU_ENCODER ? j->job->units : 1;
        else
            j->in_step = false;
    }
    if (work == 0 && prefill == 0)
        for (guint i = 0; i < c->active->len; i++) /* an encoder's item of no units is work too */
            if (((emu_job *)c->active->pdata[i])->in_step)
                return c->fixed_us;
    return work == 0 && prefill == 0
               ? -1
               : (work > 0 ? c->fixed_us + c->per_unit_us * work : 0) +
                     (prefill > 0 ? c->prefill_fixed_us + c->prefill_per_unit_us * prefill : 0);
}

static void schedule(emu *e);

static void emit_or_finish(emu_job *j)
{
    GError *error = NULL;
    emit_result result = j->made < allowed(j) ? emit(j, &error) : EMIT_DONE;
    j->blocked = result == EMIT_WAIT;
    if (result == EMIT_ERROR)
        finish(j, error);
    else if (!j->blocked && j->made >= allowed(j) && inputs_ended(j))
        finish(j, NULL);
}

/* What a job did in the step; ends it when it is through. */
static void conclude(emu_job *j, double *prefill_budget)
{
    j->in_step = false;
    if (j->job->cancelled) {
        finish(j, g_error_new(CS_ERROR, CS_ERROR_CANCELLED, "%s: cancelled", j->job->component));
        return;
    }
    if (j->prefill_left > 0) {
        double done = MIN(j->prefill_left, *prefill_budget);
        j->prefill_left -= done;
        *prefill_budget -= done;
        return;
    }
    emit_or_finish(j);
}

static void end_step(void *user)
{
    emu *e = user;
    emu_component *c = e->busy;
    double prefill_budget = c->chunk_units;
    e->timer = NULL;
    e->busy = NULL;
    for (guint i = 0; i < c->active->len;) {
        emu_job *j = c->active->pdata[i];
        if (j->in_step)
            conclude(j, &prefill_budget);
        if (i < c->active->len && c->active->pdata[i] == j)
            i++;
    }
    schedule(e);
}

/* Ends jobs that have nothing left to do, as one resumed after its last piece. */
static void sweep(emu_component *c)
{
    admit(c);
    for (guint i = 0; i < c->active->len;) {
        emu_job *j = c->active->pdata[i];
        if (!j->in_step && !j->blocked && j->prefill_left <= 0 && j->made >= allowed(j) &&
            inputs_ended(j))
            finish(j, NULL);
        else
            i++;
    }
}

static void schedule(emu *e)
{
    for (size_t k = 0; k < e->n_components; k++)
        sweep(&e->components[k]);
    for (size_t k = 0; !e->busy && k < e->n_components; k++) {
        emu_component *c = &e->components[(e->turn + k) % e->n_components];
        double time_us = plan_step(c);
        if (time_us < 0)
            continue;
        e->busy = c;
        e->turn = (e->turn + k + 1) % e->n_components;
        e->timer =
            cs_loop_at(cs_executor_loop(e->host), cs_now_us() + (int64_t)time_us, end_step, e);
    }
}

static void poll_active(emu_job *j)
{
    if (poll_inputs(j) && !j->in_step && j->blocked)
        emit_or_finish(j);
}

static void emu_doorbell(void *state)
{
    emu *e = state;
    for (size_t k = 0; k < e->n_components; k++) {
        emu_component *c = &e->components[k];
        for (GList *l = c->waiting.head, *next; l; l = next) {
            next = l->next;
            poll_inputs(l->data);
        }
        for (guint i = 0; i < c->active->len;) {
            emu_job *j = c->active->pdata[i];
            poll_active(j);
            if (i < c->active->len && c->active->pdata[i] == j)
                i++;
        }
    }
    schedule(e);
}

/* --- the kind --- */

static emu_component *find_component(emu *e, const char *name)
{
    for (size_t i = 0; i < e->n_components; i++)
        if (strcmp(e->components[i].name, name) == 0)
            return &e->components[i];
    return NULL;
}

static void misbehave(emu *e)
{
    if (strcmp(e->misbehave, "exit") == 0)
        _exit(3);
    while (strcmp(e->misbehave, "hang") == 0)
        pause();
}

/* What the client has seen is prompt now, unless others need the states behind it as well. */
static bool resumable(const cs_job *job)
{
    for (uint32_t i = 0; i < job->n_outputs; i++)
        if (job->outputs[i].sender)
            return false;
    return true;
}

static bool emu_submit(void *state, cs_job *job, GError **error)
{
    emu *e = state;
    emu_component *c = find_component(e, job->component);
    if (++e->n_jobs == e->misbehave_at)
        misbehave(e);
    if (!c)
        return cs_fail(error, CS_ERROR_INVALID, "there is no component %s here", job->component);
    emu_job *j = g_new0(emu_job, 1);
    *j = (emu_job){.job = job,
                   .component = c,
                   .prefill_left = c->kind == EMU_LLM ? job->units : 0,
                   .received = g_new0(uint64_t, job->n_inputs + 1),
                   .ended = g_new0(bool, job->n_inputs + 1)};
    if (c->kind == EMU_LLM)
        j->target = (uint64_t)MAX(job->output_units, 1);
    else
        j->target = c->kind == EMU_GENERATOR && is_stream_consumer(j) ? UINT64_MAX : 1;
    if (resumable(job)) {
        j->made = MIN(job->seen_units, j->target);
        if (c->kind == EMU_LLM)
            j->prefill_left += (double)j->made;
    }
    job->data = j;
    g_queue_push_tail(&c->waiting, j);
    if (poll_inputs(j))
        schedule(e);
    return true;
}

static void emu_cancel(void *state, cs_job *job)
{
    emu_job *j = job->data;
    if (!j->in_step)
        finish(j, g_error_new(CS_ERROR, CS_ERROR_CANCELLED, "%s: cancelled", job->component));
}

static void emu_load(void *state, Cornserve__Wire__Load *load)
{
    emu *e = state;
    for (size_t i = 0; i < e->n_components; i++) {
        load->running += e->components[i].active->len;
        load->waiting += e->components[i].waiting.length;
    }
}

static void emu_close(void *state)
{
    emu *e = state;
    for (size_t i = 0; i < e->n_components; i++) {
        emu_component *c = &e->components[i];
        g_queue_clear_full(&c->waiting, (GDestroyNotify)free_emu_job);
        g_ptr_array_foreach(c->active, (GFunc)(void (*)(void))free_emu_job, NULL);
        g_ptr_array_unref(c->active);
        g_free(c->name);
    }
    cs_timer_free(e->timer);
    g_free(e->components);
    g_free(e->misbehave);
    g_free(e);
}

const cs_executor_kind cs_executor_emu = {
    .name = "emu",
    .open = emu_open,
    .submit = emu_submit,
    .cancel = emu_cancel,
    .doorbell = emu_doorbell,
    .load = emu_load,
    .close = emu_close,
};
