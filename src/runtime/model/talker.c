/* A request in the talker's engine:  Speech, rows as they come -> engine -> codes, Tokens of them.
 *
 * Codes are told to the gateway as Tokens, so that a talker that takes its place goes on from them,
 * and a round later they go to the vocoder. When that has many to read the talker stands still. */
#include "base/error.h"
#include "runtime/model/internal.h"
#include "runtime/model/tokens.h"

#include <string.h>

/* Codes, a chunk each, that the vocoder may leave unread. */
#define UNREAD_CODES 256

typedef struct {
    model_job base;
    uint32_t input;                  /* `hidden` */
    uint32_t output;                 /* `codes` */
    Cornserve__Wire__Speech *speech; /* NULL: has not come */
    GArray *seen;                    /* int32_t: codes that the gateway has */
    bool seen_finished, seen_usage;
    cs_llm_request *request; /* NULL: not begun, or all is known */
    bool begun;
    cs_talk_ear ear;
    uint64_t n_taken; /* chunks of rows */
    bool heard_all;
    model_outbox codes;
    bool held;

    /* Under the model's lock. */
    GByteArray *pending; /* Tokens, packed */
    GArray *fresh;       /* int32_t: the codes in them */
    uint32_t n_codes;
    bool ended, length;
    GError *error;
} talker_job;

/* --- the engine's calls --- */

static bool on_token(void *user, const cs_llm_token *token)
{
    talker_job *j = user;
    const cs_sampled_token bare = {.id = token->token->id};
    pthread_mutex_lock(&j->base.owner->lock);
    model_tokens_token(j->pending, 0, &bare);
    g_array_append_val(j->fresh, bare.id);
    j->n_codes++;
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
    return true;
}

static void on_finish(void *user, uint32_t choice, cs_llm_finish reason)
{
    talker_job *j = user;
    pthread_mutex_lock(&j->base.owner->lock);
    j->length = reason == CS_LLM_FINISH_LENGTH;
    if (!j->length)
        model_tokens_finish(j->pending, 0, false, true);
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
}

static void on_done(void *user, const cs_llm_usage *usage, const GError *error)
{
    talker_job *j = user;
    pthread_mutex_lock(&j->base.owner->lock);
    j->ended = true;
    if (error && !j->error)
        j->error = g_error_copy(error);
    model_list(&j->base);
    pthread_mutex_unlock(&j->base.owner->lock);
}

/* --- going on --- */

/* Hands new rows to the engine. */
static void poll_rows(talker_job *j)
{
    while (j->request && !j->heard_all) {
        g_autoptr(GError) error = NULL;
        g_autoptr(cs_shared_tensor) rows = NULL;
        cs_receive got =
            model_stream_next(&j->base, j->input, &j->n_taken, CS_DTYPE_F32, &rows, &error);
        if (got == CS_RECEIVE_AGAIN)
            return;
        j->heard_all = got != CS_RECEIVE_CHUNK;
        if (got == CS_RECEIVE_CHUNK)
            cs_talk_hear(&j->ear, rows);
        else if (got == CS_RECEIVE_END)
            cs_talk_end(&j->ear);
        else
            cs_llm_request_fail(j->request, error);
    }
}

/* As one chunk. */
static bool put_codes(talker_job *j, uint32_t n, const int32_t *ids, GError **error)
{
    g_autoptr(cs_shared_tensor) codes = n ? cs_shared_tensor_new(CS_DTYPE_I32, 1, n) : NULL;
    if (n > 0 && !codes)
        return cs_fail(error, CS_ERROR_FAILED, "%s: no memory", j->base.job->component);
    if (n == 0)
        return true;
    memcpy(codes->t.data, ids, n * sizeof(*ids));
    model_stream_put(&j->base, &j->codes, codes);
    return true;
}

/* Tells the gateway of new codes, and puts them into the outbox. */
static bool tell_codes(talker_job *j, GError **error)
{
    model *m = j->base.owner;
    g_autoptr(GByteArray) pending = g_byte_array_new();
    g_autoptr(GArray) fresh = g_array_new(FALSE, FALSE, sizeof(int32_t));
    pthread_mutex_lock(&m->lock);
    GByteArray *told = j->pending;
    j->pending = g_steal_pointer(&pending);
    pending = told;
    GArray *codes = j->fresh;
    j->fresh = g_steal_pointer(&fresh);
    fresh = codes;
    pthread_mutex_unlock(&m->lock);
    if (j->base.job->cancelled || pending->len == 0)
        return true;
    cs_executor_piece(j->base.job, j->output, pending->data, pending->len, fresh->len);
    for (guint i = 0; i < fresh->len; i++)
        if (!put_codes(j, 1, &g_array_index(fresh, int32_t, i), error))
            return false;
    return true;
}

static void hold(talker_job *j, bool held)
{
    if (j->request && held != j->held)
        cs_llm_request_hold(j->request, held);
    j->held = held;
}

static void look(talker_job *j)
{
    model *m = j->base.owner;
    GError *error = NULL;
    pthread_mutex_lock(&m->lock);
    bool ended = j->ended, length = j->length;
    uint32_t n_codes = j->n_codes;
    if (ended)
        error = g_steal_pointer(&j->error);
    pthread_mutex_unlock(&m->lock);
    bool sent = error || (tell_codes(j, &error) && model_outbox_flush(&j->base, &j->codes, &error));
    hold(j, j->codes.ripe.length > 0);
    if (!error && ended)
        cs_talk_is_cut(n_codes, length, &error);
    if (ended && (sent || error)) {
        model_finish(&j->base, error);
    } else if (error) { /* it cannot be sent: the engine's end follows */
        cs_llm_request_fail(j->request, error);
        g_error_free(error);
    }
}

/* --- starting --- */

/* What the gateway has of the codes. */
static bool read_seen(talker_job *j, GError **error)
{
    GBytes *seen = j->base.job->outputs[j->output].seen;
    gsize size_bytes = 0;
    const void *data = seen ? g_bytes_get_data(seen, &size_bytes) : NULL;
    Cornserve__Wire__Tokens *tokens = cornserve__wire__tokens__unpack(NULL, size_bytes, data);
    if (!tokens)
        return cs_fail(error, CS_ERROR_INVALID, "%s: what was seen before is malformed",
                       j->base.job->component);
    for (size_t i = 0; i < tokens->n_tokens; i++)
        g_array_append_val(j->seen, tokens->tokens[i]->id);
    j->seen_finished = tokens->n_finishes > 0;
    j->n_codes = j->seen->len;
    cornserve__wire__tokens__free_unpacked(tokens, NULL);
    return true;
}

static bool find_voice(const cs_speech *speech, const char *name, int32_t *token, GError **error)
{
    for (uint32_t i = 0; speech->voices[i]; i++)
        if (strcmp(speech->voices[i], name) == 0) {
            *token = speech->voice_tokens[i];
            return true;
        }
    return cs_fail(error, CS_ERROR_NOT_FOUND, "there is no voice \"%.40s\"", name);
}

static bool start(talker_job *j, GError **error)
{
    static const cs_llm_sink sink = {
        .on_token = on_token, .on_finish = on_finish, .on_done = on_done};
    const Cornserve__Wire__Speech *s = j->speech;
    model *m = j->base.owner;
    int32_t voice_token = 0;
    const int32_t *seen = (const int32_t *)(const void *)j->seen->data;
    if (!read_seen(j, error) || !find_voice(m->checkpoint->speech, s->voice, &voice_token, error))
        return false;
    seen = (const int32_t *)(const void *)j->seen->data;
    if (!put_codes(j, j->seen->len, seen, error))
        return false;
    j->ended = j->seen_finished;
    if (j->ended)
        return true;
    const cs_talk_options options = {
        .n_prompt = s->n_prompt,
        .positions = s->positions.len ? (const int32_t(*)[3])(const void *)s->positions.data : NULL,
        .next_position = s->next_position,
        .temperature = s->temperature,
        .repetition_penalty = s->repetition_penalty,
        .seed = s->seed,
        .n_codes = j->seen->len,
        .codes = seen};
    j->request =
        cs_talk_submit(m->talker, m->checkpoint->speech, m->bans, &options, &sink, j, error);
    j->ear = (cs_talk_ear){.model = m->checkpoint,
                           .talker = j->request,
                           .n_prompt = s->n_prompt,
                           .voice_token = voice_token};
    return j->request != NULL;
}

static void begin(talker_job *j)
{
    GError *error = NULL;
    j->speech = model_take_speech(&j->base, &error);
    if (!j->speech && !error)
        return;
    j->begun = true;
    if (error || !start(j, &error)) {
        model_finish(&j->base, error);
        return;
    }
    poll_rows(j);
    look(j);
}

/* --- as a job --- */

static void poll_inputs(model_job *base)
{
    talker_job *j = (talker_job *)base;
    if (!j->begun) {
        begin(j);
        return;
    }
    poll_rows(j);
    if (!model_outbox_is_empty(&j->codes))
        look(j);
}

static void read_news(model_job *base)
{
    talker_job *j = (talker_job *)base;
    if (j->begun)
        look(j);
}

static void flush_later(model_job *base)
{
    talker_job *j = (talker_job *)base;
    model_outbox_ripen(&j->codes);
    look(j);
}

static void cancel(model_job *base)
{
    talker_job *j = (talker_job *)base;
    pthread_mutex_lock(&base->owner->lock);
    bool ended = j->ended;
    pthread_mutex_unlock(&base->owner->lock);
    if (j->request && !ended)
        cs_llm_request_cancel(j->request);
    else /* nothing else will end it */
        model_finish(
            base, g_error_new(CS_ERROR, CS_ERROR_CANCELLED, "%s: cancelled", base->job->component));
}

static void free_job(model_job *base)
{
    talker_job *j = (talker_job *)base;
    if (j->request)
        cs_llm_request_release(j->request);
    if (j->speech)
        cornserve__wire__speech__free_unpacked(j->speech, NULL);
    model_outbox_clear(&j->codes);
    g_array_unref(j->seen);
    g_byte_array_unref(j->pending);
    g_array_unref(j->fresh);
    g_clear_error(&j->error);
    g_free(j);
}

model_job *model_talker_job_new(model *m, cs_job *job, GError **error)
{
    static const model_job_ops ops = {.poll = poll_inputs,
                                      .news = read_news,
                                      .later = flush_later,
                                      .cancel = cancel,
                                      .free = free_job};
    uint32_t input = model_find_input(job, "hidden", 0);
    if (input == job->n_inputs || model_find_input(job, "attachment", 0) == job->n_inputs ||
        job->n_outputs != 1 || !job->outputs[0].to_client) {
        cs_fail(error, CS_ERROR_INVALID,
                "%s: expected an attachment and hidden states, and codes that are told",
                job->component);
        return NULL;
    }
    talker_job *j = g_new0(talker_job, 1);
    j->base = (model_job){.owner = m, .job = job, .ops = &ops};
    j->input = input;
    model_outbox_init(&j->codes, j->output);
    model_outbox_limit(&j->base, &j->codes, UNREAD_CODES);
    j->seen = g_array_new(FALSE, FALSE, sizeof(int32_t));
    j->pending = g_byte_array_new();
    j->fresh = g_array_new(FALSE, FALSE, sizeof(int32_t));
    return &j->base;
}

/* --- Speech --- */

Cornserve__Wire__Speech *model_take_speech(model_job *base, GError **error)
{
    cs_job *job = base->job;
    uint32_t input = model_find_input(job, "attachment", 0);
    cs_chunk chunk;
    if (model_take_chunk(job, input, &chunk, error) != CS_RECEIVE_CHUNK)
        return NULL;
    Cornserve__Wire__Speech *speech =
        cornserve__wire__speech__unpack(NULL, chunk.size_bytes, chunk.data);
    cs_receiver_release(job->inputs[input].receiver, 0);
    if (speech && speech->n_prompt > 0 && speech->n_prompt < INT32_MAX - 2 &&
        (speech->positions.len == 0 ||
         speech->positions.len == speech->n_prompt * sizeof(int32_t[3])))
        return speech;
    if (speech)
        cornserve__wire__speech__free_unpacked(speech, NULL);
    cs_fail(error, CS_ERROR_INVALID, "%s: a speech that is malformed", job->component);
    return NULL;
}
