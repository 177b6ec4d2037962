#include "listeners.h"

#include "base/os.h"

#include <stdio.h>
#include <stdlib.h>

enum { N_ANSWER = 96 };

void fail_on(const GError *error)
{
    if (error) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof(*values), compare);
    return values[n / 2];
}

typedef struct {
    GMutex lock;
    GCond changed;
    int64_t begun_us, first_us, enough_us;
    uint64_t n_samples, wanted;
    bool done;
    GError *error;
} listener;

static void on_start(void *user, uint32_t prompt_tokens)
{
}

static void on_piece(void *user, const cs_piece *piece)
{
}

static void on_finish(void *user, uint32_t choice, cs_finish_reason reason)
{
}

static void on_audio(void *user, uint32_t n, const float *samples)
{
    listener *l = user;
    g_mutex_lock(&l->lock);
    l->first_us = l->first_us ? l->first_us : cs_now_us();
    l->n_samples += n;
    if (l->n_samples >= l->wanted && !l->enough_us)
        l->enough_us = cs_now_us();
    g_cond_signal(&l->changed);
    g_mutex_unlock(&l->lock);
}

static void on_done(void *user, const cs_usage *usage, const GError *error)
{
    listener *l = user;
    g_mutex_lock(&l->lock);
    l->done = true;
    l->error = error ? g_error_copy(error) : NULL;
    g_cond_signal(&l->changed);
    g_mutex_unlock(&l->lock);
}

static const cs_sink sink = {on_start, on_piece, on_finish, on_audio, on_done};

/* Until he has heard enough, or until his request is over. */
static void await(listener *l, bool enough)
{
    g_mutex_lock(&l->lock);
    while (!l->done && !(enough && l->enough_us))
        g_cond_wait(&l->changed, &l->lock);
    g_mutex_unlock(&l->lock);
    if (enough && !l->enough_us) {
        fprintf(stderr, "a speech ended early: %s\n", l->error ? l->error->message : "complete");
        exit(1);
    }
}

static cs_pipeline_request *begin(cs_pipeline *p, listener *l, int number, double heard_s)
{
    g_autoptr(GError) error = NULL;
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content",
                                 "Tell me about the harbour, its ships, and the people there.");
    cs_request request = {.messages = messages,
                          .n_choices = 1,
                          .sampling = {.top_p = 1,
                                       .repetition_penalty = 1,
                                       .n_logprobs = -1,
                                       .ignore_eos = true,
                                       .has_seed = true,
                                       .seed = (uint64_t)number,
                                       .max_tokens = N_ANSWER}};
    cs_pipeline_voice_defaults(p, &request.voice);
    *l = (listener){.begun_us = cs_now_us(),
                    .wanted = MAX(1, (uint64_t)(heard_s * cs_pipeline_audio_rate(p)))};
    cs_pipeline_request *handle = cs_pipeline_submit(p, &request, &sink, l, &error);
    fail_on(error);
    json_decref(messages);
    return handle;
}

double listen(cs_pipeline *pipeline, int n_users, double heard_s, double *first_s)
{
    listener listeners[MAX_LISTENERS];
    cs_pipeline_request *handles[MAX_LISTENERS];
    int64_t begun = cs_now_us(), end = begun;
    *first_s = 0;
    for (int i = 0; i < n_users; i++)
        handles[i] = begin(pipeline, &listeners[i], i, heard_s);
    for (int i = 0; i < n_users; i++) {
        await(&listeners[i], true);
        end = MAX(end, listeners[i].enough_us);
        *first_s += (double)(listeners[i].first_us - listeners[i].begun_us) * 1e-6 / n_users;
    }
    for (int i = 0; i < n_users; i++)
        cs_pipeline_cancel(handles[i]);
    for (int i = 0; i < n_users; i++) {
        await(&listeners[i], false);
        cs_pipeline_release(handles[i]);
        g_clear_error(&listeners[i].error);
    }
    return (double)(end - begun) * 1e-6;
}
