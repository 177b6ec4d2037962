/* A medium through an encoder:  attachment -> engine -> embeddings -> sidecar or hand-over. */
#include "base/error.h"
#include "runtime/model/internal.h"
#include "runtime/model/payload.h"

#include <string.h>

typedef struct {
    model_job base;
    cs_encoder_job *encoding; /* NULL: its attachment has not come */
    bool sent;
    uint32_t n_sent; /* outputs that have it */
    /* Under the model's lock. */
    cs_shared_tensor *output;
    GError *error;
    bool let_go; /* the engine needs the input no more */
} encoder_job;

static void on_done(void *user, cs_shared_tensor *output, const GError *error)
{
    encoder_job *j = user;
    pthread_mutex_lock(&j->base.owner->lock);
    j->output = output ? cs_shared_tensor_ref(output) : NULL;
    j->error = error ? g_error_copy(error) : NULL;
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
    model_post(j->base.owner);
}

static void on_let_go(void *user)
{
    encoder_job *j = user;
    model *m = j->base.owner;
    pthread_mutex_lock(&m->lock);
    j->let_go = true; /* the job may be gone with the lock */
    model_list(&j->base);
    pthread_mutex_unlock(&m->lock);
    model_post(m);
}

static bool read_medium(const cs_job *job, const cs_chunk *chunk, cs_medium_head *head,
                        GError **error)
{
    if (chunk->size_bytes < sizeof(*head))
        return cs_fail(error, CS_ERROR_INVALID, "%s: a medium of %zu bytes, expected a head of %zu",
                       job->component, chunk->size_bytes, sizeof(*head));
    memcpy(head, chunk->data, sizeof(*head));
    size_t room = (chunk->size_bytes - sizeof(*head)) / sizeof(float);
    if (head->modality < 0 || head->modality >= CS_N_MODALITIES || head->rows < 1 ||
        head->cols < 1 || head->cols > (int64_t)room || head->rows > (int64_t)room / head->cols)
        return cs_fail(error, CS_ERROR_INVALID, "%s: a medium that is malformed", job->component);
    return true;
}

/* The engine reads the medium where the gateway wrote it. */
static bool start(encoder_job *j, const cs_chunk *chunk, GError **error)
{
    cs_medium_head head;
    if (!read_medium(j->base.job, chunk, &head, error))
        return false;
    cs_encoder_engine *engine = j->base.owner->encoders[head.modality];
    if (!engine)
        return cs_fail(error, CS_ERROR_INVALID, "%s: it takes no such medium",
                       j->base.job->component);
    cs_encoder_job_options options = {
        .input = {.item = {.input = cs_tensor_view(chunk->data + sizeof(head), CS_DTYPE_F32,
                                                   head.rows, head.cols),
                           .grid = {head.grid[0], head.grid[1], head.grid[2]}},
                  .content_hash = {head.content_hash[0], head.content_hash[1]}},
        .on_done = on_done,
        .free_user = on_let_go,
        .user = j,
    };
    j->encoding = cs_encoder_engine_submit(engine, &options, error);
    return j->encoding != NULL;
}

/* False and no error: the sidecar has no room now. */
static bool send_output(encoder_job *j, cs_shared_tensor *output, GError **error)
{
    for (; j->n_sent < j->base.job->n_outputs; j->n_sent++)
        if (!model_output_send(&j->base, j->n_sent, output, error))
            return false;
    return true;
}

static void look(encoder_job *j)
{
    model *m = j->base.owner;
    GError *error = NULL;
    pthread_mutex_lock(&m->lock);
    cs_shared_tensor *output = j->output;
    bool failed = j->error != NULL, let_go = j->let_go;
    pthread_mutex_unlock(&m->lock);
    bool cancelled = j->base.job->cancelled;
    if (output && !j->sent && !cancelled)
        j->sent = send_output(j, output, &error);
    if (error) { /* it cannot be sent: nothing else is to come */
        g_clear_error(&j->error);
        j->error = error;
        failed = true;
    }
    if (!let_go || !(j->sent || failed || cancelled))
        return;
    error = g_steal_pointer(&j->error);
    if (!error && !j->sent)
        cs_fail(&error, CS_ERROR_CANCELLED, "%s: cancelled", j->base.job->component);
    model_finish(&j->base, error);
}

static void poll_inputs(model_job *base)
{
    encoder_job *j = (encoder_job *)base;
    GError *error = NULL;
    cs_chunk chunk;
    if (j->encoding) {
        look(j);
        return;
    }
    cs_receive got = model_take_chunk(base->job, 0, &chunk, &error);
    if (got == CS_RECEIVE_AGAIN)
        return;
    if (got != CS_RECEIVE_CHUNK || !start(j, &chunk, &error))
        model_finish(base, error);
}

static void read_news(model_job *base)
{
    look((encoder_job *)base);
}

static void cancel(model_job *base)
{
    encoder_job *j = (encoder_job *)base;
    if (!j->encoding) {
        model_finish(
            base, g_error_new(CS_ERROR, CS_ERROR_CANCELLED, "%s: cancelled", base->job->component));
        return;
    }
    cs_encoder_job_cancel(j->encoding);
    look(j);
}

static void free_job(model_job *base)
{
    encoder_job *j = (encoder_job *)base;
    if (j->encoding)
        cs_encoder_job_release(j->encoding);
    cs_shared_tensor_unref(j->output);
    g_clear_error(&j->error);
    g_free(j);
}

model_job *model_encoder_job_new(model *m, cs_job *job, GError **error)
{
    static const model_job_ops ops = {
        .poll = poll_inputs, .news = read_news, .cancel = cancel, .free = free_job};
    if (job->n_inputs != 1 || strcmp(job->inputs[0].name, "attachment") != 0) {
        cs_fail(error, CS_ERROR_INVALID, "%s: expected an attachment as its only input",
                job->component);
        return NULL;
    }
    encoder_job *j = g_new0(encoder_job, 1);
    j->base = (model_job){.owner = m, .job = job, .ops = &ops};
    return &j->base;
}
