/* A stream of codes to sound:  Speech, codes as they come -> generator engine -> samples.
 *
 * Samples that the client has heard already are left out. */
#include "base/error.h"
#include "runtime/model/internal.h"

/* Codes that are not heard yet: with more the rest stays with the talker. */
#define BACKLOG_CODES 1024

typedef struct {
    model_job base;
    uint32_t input;                /* `codes` */
    cs_generator_request *request; /* NULL: not begun */
    uint64_t n_taken;              /* chunks of codes */
    bool closed;                   /* no more codes, or none that count */
    uint64_t n_codes;              /* taken */

    /* Under the model's lock. */
    GArray *samples;    /* float, new ones */
    uint64_t n_samples; /* of the stream, those before it began counted */
    bool ended;
    GError *error;
} vocoder_job;

/* --- the engine's calls --- */

static void on_samples(void *user, uint32_t n, const float *samples)
{
    vocoder_job *j = user;
    model *m = j->base.owner;
    pthread_mutex_lock(&m->lock);
    g_array_append_vals(j->samples, samples, n);
    j->n_samples += n;
    model_list(&j->base);
    pthread_mutex_unlock(&m->lock);
    model_post(m);
}

static void on_done(void *user, const GError *error)
{
    vocoder_job *j = user;
    model *m = j->base.owner;
    pthread_mutex_lock(&m->lock);
    j->error = error ? g_error_copy(error) : NULL;
    j->ended = true; /* the job may be gone with the lock */
    model_list(&j->base);
    pthread_mutex_unlock(&m->lock);
    model_post(m);
}

/* --- going on --- */

static bool has_room(vocoder_job *j)
{
    model *m = j->base.owner;
    pthread_mutex_lock(&m->lock);
    uint64_t heard = j->n_samples / m->samples_per_code;
    pthread_mutex_unlock(&m->lock);
    return j->n_codes < heard + BACKLOG_CODES;
}

static void poll_codes(vocoder_job *j)
{
    while (j->request && !j->closed && has_room(j)) {
        g_autoptr(GError) error = NULL;
        g_autoptr(cs_shared_tensor) codes = NULL;
        cs_receive got =
            model_stream_next(&j->base, j->input, &j->n_taken, CS_DTYPE_I32, &codes, &error);
        if (got == CS_RECEIVE_AGAIN)
            return;
        j->closed = got != CS_RECEIVE_CHUNK;
        uint32_t n = codes ? (uint32_t)(codes->t.rows * codes->t.cols) : 0;
        j->n_codes += n;
        if (got == CS_RECEIVE_ERROR)
            cs_generator_request_fail(j->request, error);
        else
            cs_generator_request_push(j->request, n, codes ? codes->t.data : NULL,
                                      got == CS_RECEIVE_END);
    }
}

static void look(vocoder_job *j)
{
    model *m = j->base.owner;
    GError *error = NULL;
    g_autoptr(GArray) samples = g_array_new(FALSE, FALSE, sizeof(float));
    pthread_mutex_lock(&m->lock);
    GArray *fresh = j->samples;
    j->samples = g_steal_pointer(&samples);
    samples = fresh;
    bool ended = j->ended;
    if (ended)
        error = g_steal_pointer(&j->error);
    pthread_mutex_unlock(&m->lock);
    if (samples->len > 0 && !j->base.job->cancelled)
        cs_executor_piece(j->base.job, 0, samples->data, samples->len * sizeof(float),
                          samples->len);
    if (ended)
        model_finish(&j->base, error);
    else
        poll_codes(j);
}

static bool start(vocoder_job *j, const Cornserve__Wire__Speech *speech, GError **error)
{
    static const cs_generator_sink sink = {on_samples, on_done};
    const cs_job *job = j->base.job;
    const cs_generator_request_options options = {.voice = speech->voice,
                                                  .seed = speech->seed,
                                                  .credit_samples = job->allowed_units,
                                                  .first_sample = job->seen_units};
    j->n_samples = job->seen_units;
    j->request = cs_generator_engine_submit(j->base.owner->vocoder, &options, &sink, j, error);
    return j->request != NULL;
}

/* --- as a job --- */

static void poll_inputs(model_job *base)
{
    vocoder_job *j = (vocoder_job *)base;
    if (!j->request) {
        GError *error = NULL;
        Cornserve__Wire__Speech *speech = model_take_speech(base, &error);
        bool ok = speech && start(j, speech, &error);
        if (speech)
            cornserve__wire__speech__free_unpacked(speech, NULL);
        if (!ok && error)
            model_finish(base, error);
        if (!ok)
            return;
    }
    poll_codes(j);
}

static void read_news(model_job *base)
{
    look((vocoder_job *)base);
}

static void allow(model_job *base, uint64_t n_units)
{
    vocoder_job *j = (vocoder_job *)base;
    if (j->request)
        cs_generator_request_allow(j->request, n_units);
    else
        base->job->allowed_units += n_units;
}

static void cancel(model_job *base)
{
    vocoder_job *j = (vocoder_job *)base;
    if (j->request) /* its end comes by on_done */
        cs_generator_request_cancel(j->request);
    else
        model_finish(
            base, g_error_new(CS_ERROR, CS_ERROR_CANCELLED, "%s: cancelled", base->job->component));
}

static void free_job(model_job *base)
{
    vocoder_job *j = (vocoder_job *)base;
    if (j->request)
        cs_generator_request_release(j->request);
    g_array_unref(j->samples);
    g_clear_error(&j->error);
    g_free(j);
}

model_job *model_vocoder_job_new(model *m, cs_job *job, GError **error)
{
    static const model_job_ops ops = {
        .poll = poll_inputs, .news = read_news, .allow = allow, .cancel = cancel, .free = free_job};
    uint32_t input = model_find_input(job, "codes", 0);
    if (input == job->n_inputs || model_find_input(job, "attachment", 0) == job->n_inputs ||
        job->n_outputs != 1 || !job->outputs[0].to_client) {
        cs_fail(error, CS_ERROR_INVALID, "%s: expected an attachment and codes, and a client",
                job->component);
        return NULL;
    }
    vocoder_job *j = g_new0(vocoder_job, 1);
    j->base = (model_job){.owner = m, .job = job, .ops = &ops};
    j->input = input;
    j->samples = g_array_new(FALSE, FALSE, sizeof(float));
    return &j->base;
}
