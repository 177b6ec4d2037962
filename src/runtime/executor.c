#include "runtime/executor.h"

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static const cs_executor_kind *const kinds[] = {&cs_executor_emu, &cs_executor_model,
                                                &cs_executor_openai};

struct cs_executor {
    cs_loop *loop;
    cs_wire *wire;
    cs_sidecar *sidecar;
    const cs_executor_kind *kind; /* NULL before Setup */
    void *state;
    char *name;
    cs_executor_share share;
    GHashTable *jobs;         /* job_key -> cs_job * */
    GPtrArray *pieces, *done; /* of this round: wire messages, owned */
    GThread *bell_thread;
    uint32_t bell_seen; /* the count before any stream was opened */
    atomic_bool stopping;
    atomic_bool bell_posted;
    bool draining;
    int status;
};

/* --- jobs --- */

typedef struct {
    uint64_t request;
    uint32_t invocation;
} job_key;

static guint hash_key(const void *p)
{
    const job_key *key = p;
    return (guint)(key->request * 31 + key->invocation);
}

static gboolean equal_keys(const void *a, const void *b)
{
    const job_key *x = a, *y = b;
    return x->request == y->request && x->invocation == y->invocation;
}

static void free_job(cs_job *job)
{
    for (uint32_t i = 0; i < job->n_inputs; i++) {
        cs_receiver_close(job->inputs[i].receiver);
        g_free(job->inputs[i].name);
    }
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        cs_sender_close(job->outputs[i].sender);
        g_clear_pointer(&job->outputs[i].seen, g_bytes_unref);
        g_free(job->outputs[i].name);
    }
    g_free(job->inputs);
    g_free(job->outputs);
    g_free(job->component);
    json_decref(job->params);
    g_free(job);
}

static bool open_streams(cs_executor *x, cs_job *job, const Cornserve__Wire__Submit *m,
                         GError **error)
{
    for (uint32_t i = 0; i < job->n_inputs; i++) {
        job->inputs[i].name = g_strdup(m->inputs[i]->name);
        job->inputs[i].stream = m->inputs[i]->stream;
        job->inputs[i].streamed = m->inputs[i]->streamed;
        job->inputs[i].local = m->inputs[i]->local && x->kind->hands_over;
    }
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        cs_job_output *o = &job->outputs[i];
        o->name = g_strdup(m->outputs[i]->name);
        o->stream = m->outputs[i]->stream;
        o->to_client = m->outputs[i]->to_client;
        o->n_local = m->outputs[i]->local && x->kind->hands_over ? m->outputs[i]->n_consumers : 0;
        o->bytes = m->outputs[i]->bytes;
        if (i < m->n_seen_text && m->seen_text[i].len > 0)
            o->seen = g_bytes_new(m->seen_text[i].data, m->seen_text[i].len);
    }
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        if (m->outputs[i]->n_consumers == 0 || job->outputs[i].n_local > 0)
            continue;
        job->outputs[i].sender =
            cs_sender_open(x->sidecar, m->request, m->outputs[i]->stream,
                           (cs_sender_options){.n_consumers = m->outputs[i]->n_consumers}, error);
        if (!job->outputs[i].sender)
            return false;
    }
    for (uint32_t i = 0; i < job->n_inputs; i++) {
        if (job->inputs[i].local)
            continue;
        job->inputs[i].receiver = cs_receiver_open(x->sidecar, m->request, m->inputs[i]->stream,
                                                   m->inputs[i]->place, error);
        if (!job->inputs[i].receiver)
            return false;
    }
    return true;
}

static void submit(cs_executor *x, const Cornserve__Wire__Submit *m)
{
    GError *error = NULL;
    if (g_hash_table_contains(x->jobs, &(job_key){m->request, m->invocation}))
        return; /* said twice */
    cs_job *job = g_new0(cs_job, 1);
    *job = (cs_job){.host = x,
                    .request = m->request,
                    .invocation = m->invocation,
                    .role = m->role,
                    .component = g_strdup(m->component),
                    .units = m->units,
                    .output_units = m->output_units,
                    .seen_units = m->seen_units,
                    .allowed_units = m->allowed_units,
                    .n_inputs = (uint32_t)m->n_inputs,
                    .n_outputs = (uint32_t)m->n_outputs,
                    .inputs = g_new0(cs_job_input, m->n_inputs + 1),
                    .outputs = g_new0(cs_job_output, m->n_outputs + 1)};
    job_key *key = g_memdup2(&(job_key){m->request, m->invocation}, sizeof(job_key));
    g_hash_table_insert(x->jobs, key, job);
    job->params = cs_json_load(m->params, strlen(m->params), "params", &error);
    if (!job->params || !open_streams(x, job, m, &error) || !x->kind->submit(x->state, job, &error))
        cs_executor_done(job, error);
}

void cs_executor_piece(cs_job *job, uint32_t output, const void *data, size_t size_bytes,
                       uint32_t units)
{
    Cornserve__Wire__Piece *p = g_new(Cornserve__Wire__Piece, 1);
    cornserve__wire__piece__init(p);
    p->request = job->request;
    p->invocation = job->invocation;
    p->output = output;
    p->units = units;
    p->data.data = g_memdup2(data, size_bytes);
    p->data.len = size_bytes;
    g_ptr_array_add(job->host->pieces, p);
}

static void finish_streams(cs_job *job, const GError *error)
{
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        cs_sender *sender = job->outputs[i].sender;
        if (!sender)
            continue;
        if (error)
            cs_sender_fail(sender, error);
        else if (!job->outputs[i].ended)
            cs_sender_end(sender, NULL);
    }
}

void cs_executor_done(cs_job *job, GError *error)
{
    cs_executor *x = job->host;
    Cornserve__Wire__Done *d = g_new(Cornserve__Wire__Done, 1);
    cornserve__wire__done__init(d);
    finish_streams(job, error);
    d->request = job->request;
    d->invocation = job->invocation;
    d->code = !error ? -1 : error->domain == CS_ERROR ? error->code : CS_ERROR_FAILED;
    d->message = g_strdup(error ? error->message : "");
    g_ptr_array_add(x->done, d);
    g_hash_table_remove(x->jobs, &(job_key){job->request, job->invocation});
    free_job(job);
    g_clear_error(&error);
}

static void cancel(cs_executor *x, const Cornserve__Wire__Cancel *m)
{
    cs_job *job = g_hash_table_lookup(x->jobs, &(job_key){m->request, m->invocation});
    if (!job || job->cancelled)
        return;
    job->cancelled = true;
    x->kind->cancel(x->state, job);
}

static void allow(cs_executor *x, const Cornserve__Wire__Allow *m)
{
    cs_job *job = g_hash_table_lookup(x->jobs, &(job_key){m->request, m->invocation});
    if (job && !job->cancelled && x->kind->allow)
        x->kind->allow(x->state, job, m->units);
}

cs_loop *cs_executor_loop(cs_executor *host)
{
    return host->loop;
}

int cs_executor_common_file(const cs_executor *host)
{
    return cs_sidecar_fd(host->sidecar);
}

const cs_executor_share *cs_executor_get_share(const cs_executor *host)
{
    return &host->share;
}

/* --- frames --- */

static void stop(cs_executor *x, int status)
{
    x->status = status;
    cs_loop_quit(x->loop);
}

static void say_failed(cs_executor *x, GError *error)
{
    Cornserve__Wire__Failed failed = CORNSERVE__WIRE__FAILED__INIT;
    failed.message = error->message;
    cs_wire_send(x->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_FAILED, .failed = &failed));
    cs_wire_flush(x->wire);
    g_error_free(error);
    stop(x, 1);
}

static void setup(cs_executor *x, const Cornserve__Wire__Setup *m)
{
    GError *error = NULL;
    x->name = g_strdup(m->name);
    x->share =
        (cs_executor_share){.threads = m->threads,
                            .n_max_batch = (uint32_t)m->n_max_batch,
                            .max_batch = g_memdup2(m->max_batch, m->n_max_batch * sizeof(uint32_t)),
                            .kv_budget_bytes = (size_t)m->kv_budget_bytes,
                            .shares_cpus = m->shares_cpus,
                            .memory_share = m->memory_share};
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (strcmp(kinds[i]->name, m->kind) == 0)
            x->kind = kinds[i];
    json_t *config = cs_json_load(m->config, strlen(m->config), m->name, &error);
    g_autofree char **components = g_new0(char *, m->n_components + 1);
    memcpy(components, m->components, m->n_components * sizeof(char *));
    if (config && !x->kind)
        cs_fail(&error, CS_ERROR_INVALID, "%s: there is no executor kind %s", m->name, m->kind);
    else if (config)
        x->state = x->kind->open(x, config, components, &error);
    json_decref(config);
    if (!x->state) {
        x->kind = NULL;
        say_failed(x, error);
        return;
    }
    Cornserve__Wire__Ready ready = CORNSERVE__WIRE__READY__INIT;
    Cornserve__Wire__Load load = CORNSERVE__WIRE__LOAD__INIT;
    x->kind->load(x->state, &load);
    ready.load = &load;
    cs_wire_send(x->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_READY, .ready = &ready));
}

static void pong(cs_executor *x, uint64_t n)
{
    Cornserve__Wire__Pong m = CORNSERVE__WIRE__PONG__INIT;
    Cornserve__Wire__Load load = CORNSERVE__WIRE__LOAD__INIT;
    if (x->kind)
        x->kind->load(x->state, &load);
    m.n = n;
    m.load = &load;
    cs_wire_send(x->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_PONG, .pong = &m));
}

static void on_frame(void *user, const cs_frame *frame)
{
    cs_executor *x = user;
    if (frame->body_case == CORNSERVE__WIRE__FRAME__BODY_SETUP && !x->kind)
        setup(x, frame->setup);
    else if (frame->body_case == CORNSERVE__WIRE__FRAME__BODY_PING)
        pong(x, frame->ping->n);
    else if (frame->body_case == CORNSERVE__WIRE__FRAME__BODY_SUBMIT && x->kind)
        submit(x, frame->submit);
    else if (frame->body_case == CORNSERVE__WIRE__FRAME__BODY_CANCEL && x->kind)
        cancel(x, frame->cancel);
    else if (frame->body_case == CORNSERVE__WIRE__FRAME__BODY_ALLOW && x->kind)
        allow(x, frame->allow);
    else if (frame->body_case == CORNSERVE__WIRE__FRAME__BODY_DRAIN)
        x->draining = true;
}

static void on_closed(void *user, const GError *error)
{
    cs_executor *x = user;
    if (error)
        cs_log(CS_LOG_WARN, "executor", "%s: %s", x->name ? x->name : "?", error->message);
    stop(x, error ? 1 : 0);
}

/* --- rounds --- */

static void free_piece(void *data)
{
    Cornserve__Wire__Piece *p = data;
    g_free(p->data.data);
    g_free(p);
}

static void free_done(void *data)
{
    Cornserve__Wire__Done *d = data;
    g_free(d->message);
    g_free(d);
}

static void after_round(void *user)
{
    cs_executor *x = user;
    if (x->pieces->len + x->done->len > 0) {
        Cornserve__Wire__Step step = CORNSERVE__WIRE__STEP__INIT;
        step.pieces = (Cornserve__Wire__Piece **)x->pieces->pdata;
        step.n_pieces = x->pieces->len;
        step.done = (Cornserve__Wire__Done **)x->done->pdata;
        step.n_done = x->done->len;
        cs_wire_send(x->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_STEP, .step = &step));
        g_ptr_array_set_size(x->pieces, 0);
        g_ptr_array_set_size(x->done, 0);
    }
    cs_wire_flush(x->wire);
    if (x->draining && g_hash_table_size(x->jobs) == 0)
        stop(x, 0);
}

/* --- the doorbell's thread --- */

static void on_bell(void *user)
{
    cs_executor *x = user;
    atomic_store(&x->bell_posted, false);
    if (x->kind && x->kind->doorbell)
        x->kind->doorbell(x->state);
}

static gpointer listen_bell(gpointer user)
{
    cs_executor *x = user;
    uint32_t seen = x->bell_seen;
    while (!atomic_load(&x->stopping)) {
        cs_sidecar_wait(x->sidecar, seen, -1);
        seen = cs_sidecar_doorbell(x->sidecar);
        if (!atomic_exchange(&x->bell_posted, true))
            cs_loop_post(x->loop, on_bell, x);
    }
    return NULL;
}

/* --- the process --- */

static bool start(cs_executor *x, int control_fd, int sidecar_fd, GError **error)
{
    static const cs_wire_events events = {on_frame, on_closed};
    x->jobs = g_hash_table_new_full(hash_key, equal_keys, g_free, NULL);
    x->pieces = g_ptr_array_new_with_free_func(free_piece);
    x->done = g_ptr_array_new_with_free_func(free_done);
    x->sidecar = cs_sidecar_join_shared(sidecar_fd, "executor", error);
    x->loop = x->sidecar ? cs_loop_new(error) : NULL;
    if (!x->loop)
        return false;
    x->bell_seen = cs_sidecar_doorbell(x->sidecar);
    fcntl(control_fd, F_SETFD, FD_CLOEXEC);
    x->wire = cs_wire_new(x->loop, control_fd, "gateway", &events, x, error);
    if (!x->wire)
        return false;
    cs_loop_set_after_round(x->loop, after_round, x);
    x->bell_thread = g_thread_new("doorbell", listen_bell, x);
    return true;
}

/* What reads streams of work that ends with the process is to wait for another's, not to fail. */
static void fail_streams(cs_executor *x)
{
    g_autoptr(GError) lost =
        g_error_new(CS_ERROR, CS_ERROR_EXECUTOR_LOST, "%s: it ended", x->name ? x->name : "?");
    GHashTableIter iter;
    void *job;
    g_hash_table_iter_init(&iter, x->jobs);
    while (g_hash_table_iter_next(&iter, NULL, &job))
        finish_streams(job, lost);
}

static void end(cs_executor *x)
{
    GHashTableIter iter;
    void *job;
    fail_streams(x);
    if (x->kind)
        x->kind->close(x->state);
    g_hash_table_iter_init(&iter, x->jobs);
    while (g_hash_table_iter_next(&iter, NULL, &job))
        free_job(job);
    if (x->bell_thread) {
        atomic_store(&x->stopping, true);
        cs_sidecar_ring(x->sidecar);
        g_thread_join(x->bell_thread);
    }
    cs_wire_free(x->wire);
    cs_loop_free(x->loop);
    cs_sidecar_close(x->sidecar);
    g_ptr_array_unref(x->pieces);
    g_ptr_array_unref(x->done);
    g_hash_table_unref(x->jobs);
    g_free(x->share.max_batch);
    g_free(x->name);
}

int cs_executor_main(int control_fd, int sidecar_fd)
{
    GError *error = NULL;
    cs_executor x = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a gateway that is killed leaves nothing behind */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN); /* the terminal's ^C goes to all; the gateway decides */
    if (start(&x, control_fd, sidecar_fd, &error)) {
        close(sidecar_fd);
        cs_loop_run(x.loop);
    } else {
        cs_log(CS_LOG_ERROR, "executor", "%s", error->message);
        g_error_free(error);
        x.status = 1;
    }
    end(&x);
    return x.status;
}
