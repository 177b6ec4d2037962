#include "fake_pipeline.h"

#include "base/error.h"

#include <string.h>

struct cs_pipeline {
    const char *id;
    GMutex lock;
    GCond changed;
    uint32_t live, handles;
    uint64_t n_samples; /* of speech, handed out */
    bool busy;
    uint64_t started, finished, failed, cancelled;
};

struct cs_pipeline_request {
    gint refs;
    cs_pipeline *pipeline;
    cs_sink sink;
    void *user;
    char *prompt;
    char *opening; /* what the answer says first */
    uint32_t n_tokens, delay_ms, n_choices;
    int32_t n_logprobs;
    bool speaks, aloud;
    uint64_t credit; /* samples, under pipeline->lock */
    bool cancelled;  /* under pipeline->lock */
};

cs_pipeline *fake_pipeline_new(void)
{
    cs_pipeline *pipeline = g_new0(cs_pipeline, 1);
    pipeline->id = "fake";
    g_mutex_init(&pipeline->lock);
    g_cond_init(&pipeline->changed);
    return pipeline;
}

void fake_pipeline_rename(cs_pipeline *pipeline, const char *id)
{
    pipeline->id = id;
}

void cs_pipeline_free(cs_pipeline *pipeline)
{
    g_mutex_lock(&pipeline->lock);
    while (pipeline->live > 0)
        g_cond_wait(&pipeline->changed, &pipeline->lock);
    g_mutex_unlock(&pipeline->lock);
    g_mutex_clear(&pipeline->lock);
    g_cond_clear(&pipeline->changed);
    g_free(pipeline);
}

static uint32_t locked_read(cs_pipeline *pipeline, const uint32_t *value)
{
    g_mutex_lock(&pipeline->lock);
    uint32_t read = *value;
    g_mutex_unlock(&pipeline->lock);
    return read;
}

uint32_t fake_pipeline_live(cs_pipeline *pipeline)
{
    return locked_read(pipeline, &pipeline->live);
}

uint32_t fake_pipeline_handles(cs_pipeline *pipeline)
{
    return locked_read(pipeline, &pipeline->handles);
}

uint64_t fake_pipeline_samples(cs_pipeline *pipeline)
{
    g_mutex_lock(&pipeline->lock);
    uint64_t n = pipeline->n_samples;
    g_mutex_unlock(&pipeline->lock);
    return n;
}

void fake_pipeline_set_busy(cs_pipeline *pipeline, bool busy)
{
    g_mutex_lock(&pipeline->lock);
    pipeline->busy = busy;
    g_mutex_unlock(&pipeline->lock);
}

const char *cs_pipeline_model_id(const cs_pipeline *pipeline)
{
    return pipeline->id;
}

bool cs_pipeline_takes(const cs_pipeline *pipeline, cs_modality modality)
{
    return modality != CS_MODALITY_VIDEO;
}

uint32_t cs_pipeline_max_context_tokens(const cs_pipeline *pipeline)
{
    return 1000;
}

size_t cs_pipeline_max_text_bytes(const cs_pipeline *pipeline)
{
    return 1 << 20;
}

uint32_t cs_pipeline_vocab_size(const cs_pipeline *pipeline)
{
    return 256;
}

/* ---- speech: a tenth of a second of a tone a token ---- */

static const char *const voices[] = {"Ann", "Ben", NULL};

const char *const *cs_pipeline_voices(const cs_pipeline *pipeline)
{
    return voices;
}

bool cs_pipeline_voice_check(const cs_pipeline *pipeline, const char *name, GError **error)
{
    return g_strv_contains(voices, name) ||
           cs_fail(error, CS_ERROR_NOT_FOUND, "there is no voice \"%s\"; this model has Ann, Ben",
                   name);
}

uint32_t cs_pipeline_audio_rate(const cs_pipeline *pipeline)
{
    return 24000;
}

void cs_pipeline_voice_defaults(const cs_pipeline *pipeline, cs_voice *voice)
{
    *voice = (cs_voice){.name = "Ann", .temperature = 1, .repetition_penalty = 1};
}

cs_media_pool *cs_pipeline_audio_pool(const cs_pipeline *pipeline)
{
    return NULL; /* so only wav and pcm16 */
}

bool cs_pipeline_tokenize(const cs_pipeline *pipeline, const char *text, size_t text_bytes,
                          GArray *ids, GError **error)
{
    for (size_t i = 0; i < text_bytes; i++) {
        int32_t id = (guint8)text[i];
        g_array_append_val(ids, id);
    }
    return true;
}

void cs_pipeline_token_bytes(const cs_pipeline *pipeline, int32_t id, GString *bytes)
{
    g_string_append_c(bytes, (char)id);
}

char *cs_pipeline_detokenize(const cs_pipeline *pipeline, const int32_t *ids, uint32_t n_ids)
{
    g_autoptr(GString) bytes = g_string_new(NULL);
    for (uint32_t i = 0; i < n_ids; i++)
        g_string_append_c(bytes, (char)ids[i]);
    return g_utf8_make_valid(bytes->str, (gssize)bytes->len);
}

void cs_pipeline_defaults(const cs_pipeline *pipeline, cs_sampling *sampling)
{
    *sampling =
        (cs_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1};
}

void cs_pipeline_stats_get(cs_pipeline *pipeline, cs_pipeline_stats *stats)
{
    g_mutex_lock(&pipeline->lock);
    *stats = (cs_pipeline_stats){.running = pipeline->live,
                                 .requests_started = pipeline->started,
                                 .requests_finished = pipeline->finished,
                                 .requests_failed = pipeline->failed,
                                 .requests_cancelled = pipeline->cancelled};
    g_mutex_unlock(&pipeline->lock);
}

json_t *cs_pipeline_executors(cs_pipeline *pipeline)
{
    return NULL;
}

/* ---- requests ---- */

static void request_unref(cs_pipeline_request *r)
{
    if (!g_atomic_int_dec_and_test(&r->refs))
        return;
    g_free(r->prompt);
    g_free(r->opening);
    g_free(r);
}

/* Waits; false when the request was cancelled. */
static bool wait_ms(cs_pipeline_request *r, uint32_t ms)
{
    gint64 end_us = g_get_monotonic_time() + (gint64)ms * 1000;
    g_mutex_lock(&r->pipeline->lock);
    while (!r->cancelled && g_cond_wait_until(&r->pipeline->changed, &r->pipeline->lock, end_us))
        ;
    bool goes_on = !r->cancelled;
    g_mutex_unlock(&r->pipeline->lock);
    return goes_on;
}

static void say(cs_pipeline_request *r, uint32_t choice, const char *text)
{
    uint32_t n = (uint32_t)strlen(text);
    int32_t *ids = g_new0(int32_t, n + 1);
    float *logprobs = g_new0(float, n + 1);
    cs_token_logprob *top = g_new0(cs_token_logprob, (n + 1) * (guint)MAX(r->n_logprobs, 1));
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = (guint8)text[i];
        logprobs[i] = -0.5f;
        for (int32_t k = 0; k < r->n_logprobs; k++)
            top[i * (uint32_t)r->n_logprobs + (uint32_t)k] =
                (cs_token_logprob){k == 0 ? ids[i] : -1, -0.5f};
    }
    cs_piece piece = {choice,
                      text,
                      n,
                      n,
                      ids,
                      r->n_logprobs >= 0 ? logprobs : NULL,
                      r->n_logprobs > 0 ? top : NULL};
    r->sink.on_piece(r->user, &piece);
    g_free(ids);
    g_free(logprobs);
    g_free(top);
}

/* Waits for credit; false when the request was cancelled. */
static bool sing(cs_pipeline_request *r)
{
    float samples[FAKE_PIPELINE_TOKEN_SAMPLES];
    for (int i = 0; i < FAKE_PIPELINE_TOKEN_SAMPLES; i++)
        samples[i] = (float)(i % 100) / 100;
    g_mutex_lock(&r->pipeline->lock);
    while (!r->cancelled && r->credit < FAKE_PIPELINE_TOKEN_SAMPLES)
        g_cond_wait(&r->pipeline->changed, &r->pipeline->lock);
    r->credit -= r->credit == UINT64_MAX ? 0 : FAKE_PIPELINE_TOKEN_SAMPLES;
    r->pipeline->n_samples += FAKE_PIPELINE_TOKEN_SAMPLES;
    bool goes_on = !r->cancelled;
    g_mutex_unlock(&r->pipeline->lock);
    if (goes_on)
        r->sink.on_audio(r->user, FAKE_PIPELINE_TOKEN_SAMPLES, samples);
    return goes_on;
}

static bool answer(cs_pipeline_request *r)
{
    for (uint32_t i = 0; i < r->n_tokens; i++) {
        if (!wait_ms(r, r->delay_ms))
            return false;
        g_autofree char *text = i == 0 ? g_strdup(r->opening) : g_strdup_printf(" %u", i);
        for (uint32_t c = 0; c < r->n_choices && !r->aloud; c++)
            say(r, c, text);
        if (r->speaks && !sing(r))
            return false;
    }
    for (uint32_t c = 0; c < r->n_choices; c++)
        r->sink.on_finish(r->user, c, CS_FINISH_STOP);
    return true;
}

static void run(cs_pipeline_request *r, GError **error)
{
    if (strstr(r->prompt, "fail")) {
        cs_fail(error, CS_ERROR_OVER_CONTEXT,
                "the prompt has 5000 tokens, over the context of 1000");
        return;
    }
    r->sink.on_start(r->user, (uint32_t)strlen(r->prompt));
    bool whole = !strstr(r->prompt, "silent") ? answer(r) : wait_ms(r, 600000);
    if (!whole)
        cs_fail(error, CS_ERROR_CANCELLED, "cancelled");
    else if (strstr(r->prompt, "break"))
        cs_fail(error, CS_ERROR_EXECUTOR_LOST, "the executor died");
}

static gpointer request_main(gpointer user)
{
    cs_pipeline_request *r = user;
    cs_pipeline *pipeline = r->pipeline;
    g_autoptr(GError) error = NULL;
    run(r, &error);
    cs_usage usage = {.prompt_tokens = (uint32_t)strlen(r->prompt),
                      .completion_tokens = r->aloud ? 0 : r->n_tokens * r->n_choices,
                      .speech_tokens = r->speaks ? 5 * r->n_tokens : 0};
    r->sink.on_done(r->user, &usage, error);
    bool cancelled = g_error_matches(error, CS_ERROR, CS_ERROR_CANCELLED);
    request_unref(r);
    g_mutex_lock(&pipeline->lock);
    pipeline->live--;
    pipeline->finished += !error;
    pipeline->cancelled += cancelled;
    pipeline->failed += error && !cancelled;
    g_cond_broadcast(&pipeline->changed);
    g_mutex_unlock(&pipeline->lock);
    return NULL;
}

static uint32_t word_number(const char *prompt, const char *word, uint32_t fallback)
{
    const char *at = strstr(prompt, word);
    return at ? (uint32_t)g_ascii_strtoull(at + strlen(word), NULL, 10) : fallback;
}

static char *flatten(const cs_request *request)
{
    if (request->aloud)
        return g_strdup(request->aloud);
    if (request->prompt)
        return g_strdup(request->prompt);
    if (request->prompt_ids)
        return cs_pipeline_detokenize(NULL, request->prompt_ids, request->n_prompt_ids);
    char *dumped = json_dumps(request->messages, JSON_COMPACT);
    char *text = g_strdup(dumped);
    free(dumped);
    return text;
}

cs_pipeline_request *cs_pipeline_submit(cs_pipeline *pipeline, const cs_request *request,
                                        const cs_sink *sink, void *user, GError **error)
{
    g_mutex_lock(&pipeline->lock);
    bool busy = pipeline->busy;
    pipeline->live += !busy;
    pipeline->handles += !busy;
    pipeline->started += !busy;
    g_mutex_unlock(&pipeline->lock);
    if (busy) {
        cs_fail(error, CS_ERROR_BUSY, "the queue is full");
        return NULL;
    }
    cs_pipeline_request *r = g_new0(cs_pipeline_request, 1);
    *r = (cs_pipeline_request){.refs = 2, .pipeline = pipeline, .sink = *sink, .user = user};
    r->prompt = flatten(request);
    r->n_tokens = word_number(r->prompt, "tokens=", 5);
    r->delay_ms = word_number(r->prompt, "delay=", 0);
    r->n_choices = request->n_choices;
    r->speaks = request->voice.name != NULL;
    r->aloud = request->aloud != NULL;
    r->credit = request->voice.credit_samples ? request->voice.credit_samples : UINT64_MAX;
    r->n_logprobs = request->sampling.n_logprobs;
    GString *opening =
        g_string_new(strcmp(pipeline->id, "fake") == 0 ? "h\xc3\xa9llo" : pipeline->id);
    for (uint32_t i = 0; i < request->n_media; i++)
        g_string_append_printf(opening, " [%d: %zu bytes]", request->media[i].modality,
                               g_bytes_get_size(request->media[i].bytes));
    r->opening = g_string_free(opening, FALSE);
    g_thread_unref(g_thread_new("fake", request_main, r));
    return r;
}

void cs_pipeline_cancel(cs_pipeline_request *r)
{
    g_mutex_lock(&r->pipeline->lock);
    r->cancelled = true;
    g_cond_broadcast(&r->pipeline->changed);
    g_mutex_unlock(&r->pipeline->lock);
}

void cs_pipeline_audio_allow(cs_pipeline_request *r, uint64_t n_samples)
{
    g_mutex_lock(&r->pipeline->lock);
    r->credit += n_samples;
    g_cond_broadcast(&r->pipeline->changed);
    g_mutex_unlock(&r->pipeline->lock);
}

void cs_pipeline_release(cs_pipeline_request *r)
{
    g_mutex_lock(&r->pipeline->lock);
    r->pipeline->handles--;
    g_mutex_unlock(&r->pipeline->lock);
    request_unref(r);
}
