/* A generation request: from the parsed body to the last event.
 *
 *   read -> (fetch remote media, on the fetchers' threads) -> submit -> on_start -> pieces ->
 * on_done
 *
 * A job is shared between the connection's thread (which reads the body and writes the answer) and
 * the pipeline's threads (which add to the answers). Everything they share is under job->lock; the
 * pipeline and the exchange are never called with it held. The exchange holds one reference until
 * it is closed; each submitted prompt holds one until its on_done.
 */
#include "api/api_internal.h"
#include "api/output.h"
#include "api/recital.h"
#include "api/remote.h"
#include "base/os.h"

#include <string.h>

/* Text and log-probabilities that wait for a slow client; past it the request is ended. */
#define MAX_WAITING_BYTES (32u << 20)
#define MAX_ANSWERS 256
#define FETCH_TIMEOUT_MS 30000
/* Speech made ahead of a client that reads a stream. */
#define CREDIT_SECONDS 30
/* A text that is read aloud is spoken in passages of at most about so long. The published talker
 * says up to 82 s in one go; what takes how long is an estimate. */
#define PASSAGE_SECONDS 30
/* Of a passage this much has been made when the next is begun, and as much of that one is made
 * before it is heard: enough that no gap comes between them, and little that is taken from others
 * who speak. */
#define AHEAD_SECONDS 2

typedef struct job job;

/* One prompt of the request, or one passage of a text that is read aloud. */
typedef struct {
    job *job;
    uint32_t first_answer;
    cs_pipeline_request *handle; /* under job->lock, as what follows */
    uint64_t n_allowed;          /* samples, for streams: that may be made */
    uint64_t n_made;
} part;

struct job {
    gint refs;
    cs_api *api;
    cs_pipeline *pipeline; /* the model that is asked */
    cs_exchange *x;
    cs_output output;
    cs_params params;
    cs_content content;
    cs_sampling sampling;
    bool role_told;    /* connection's thread */
    cs_sound *sound;   /* of the one part; NULL: text only */
    GByteArray *bytes; /* of the sound, taken and not told; connection's thread, as is the next */
    bool sound_complete, sound_told;
    int64_t received_us;

    uint32_t n_parts, n_answers;
    part *parts;
    GArray *passages; /* cs_passage: one a part; NULL: not read aloud */

    GMutex lock; /* what follows */
    cs_answer *answers;
    int64_t *last_token_us; /* [n_answers], for inter-token times */
    bool *finish_told;
    size_t waiting_bytes;
    uint32_t n_started, n_done;
    int64_t first_token_us;
    cs_recital *recital; /* of the sound's parts */
    uint32_t n_begun;    /* passages that were submitted */
    /* Of the speech: when the first came; up to when what came lasts if it is played from then on;
     * how long that player waited. */
    int64_t first_audio_us, played_us, underrun_us;
    uint64_t n_samples, n_taken; /* that went into the sound; those of them that the client took */
    cs_usage usage;
    GError *error;  /* the first; ends the request */
    cs_fault fault; /* names the field, when the error is about one */
    bool cancelled; /* handles that come later are cancelled at once */
};

static job *job_ref(job *j)
{
    g_atomic_int_inc(&j->refs);
    return j;
}

static void job_unref(job *j)
{
    cs_api *api = j->api;
    g_mutex_lock(&api->lock); /* nobody finds a job in the set that is on its way out */
    bool last = g_atomic_int_dec_and_test(&j->refs);
    if (last)
        g_hash_table_remove(api->jobs, j);
    g_mutex_unlock(&api->lock);
    if (!last)
        return;
    for (uint32_t i = 0; i < j->n_parts; i++)
        if (j->parts[i].handle)
            cs_pipeline_release(j->parts[i].handle);
    for (uint32_t i = 0; i < j->n_answers; i++)
        cs_answer_clear(&j->answers[i]);
    cs_sound_unref(j->sound);
    cs_recital_free(j->recital);
    g_clear_pointer(&j->passages, g_array_unref);
    if (j->bytes)
        g_byte_array_unref(j->bytes);
    cs_params_clear(&j->params);
    cs_content_clear(&j->content);
    cs_fault_clear(&j->fault);
    g_clear_error(&j->error);
    g_free(j->answers);
    g_free(j->last_token_us);
    g_free(j->finish_told);
    g_free(j->parts);
    g_mutex_clear(&j->lock);
    cs_exchange_unref(j->x);
    g_free(j);
    g_mutex_lock(&api->lock);
    if (--api->n_jobs == 0)
        g_cond_broadcast(&api->no_jobs);
    g_mutex_unlock(&api->lock);
}

/* ---- ending ---- */

/* Cancels every prompt that was submitted, now and later. */
static void job_cancel(job *j)
{
    g_autoptr(GPtrArray) handles = g_ptr_array_new();
    g_mutex_lock(&j->lock);
    j->cancelled = true;
    for (uint32_t i = 0; i < j->n_parts; i++)
        if (j->parts[i].handle)
            g_ptr_array_add(handles, j->parts[i].handle);
    g_mutex_unlock(&j->lock);
    for (guint i = 0; i < handles->len; i++)
        cs_pipeline_cancel(g_ptr_array_index(handles, i));
}

/* Keeps the first error and ends the rest of the request. */
static void job_fail(job *j, const GError *error)
{
    g_mutex_lock(&j->lock);
    if (!j->error)
        j->error = g_error_copy(error);
    g_mutex_unlock(&j->lock);
    job_cancel(j);
    cs_exchange_wake(j->x);
}

static void job_fail_with(job *j, cs_error_code code, const char *sentence)
{
    g_autoptr(GError) error = g_error_new_literal(CS_ERROR, (int)code, sentence);
    job_fail(j, error);
}

/* ---- the pipeline's side ---- */

static void begin_next(job *j);
static void allow(job *j);

/* With the lock held. Passages start one after the other. */
static bool has_started(const job *j)
{
    return j->n_started >= (j->passages ? 1 : j->n_parts);
}

static void on_start(void *user, uint32_t prompt_tokens)
{
    part *p = user;
    g_mutex_lock(&p->job->lock);
    p->job->n_started++;
    bool started = has_started(p->job);
    g_mutex_unlock(&p->job->lock);
    if (started)
        cs_exchange_wake(p->job->x);
}

/* With the lock held: first token and inter-token times. */
static void observe_tokens(job *j, uint32_t answer, uint32_t n_tokens)
{
    int64_t now_us = cs_now_us();
    int64_t last_us = j->last_token_us[answer];
    if (!j->first_token_us) {
        j->first_token_us = now_us;
        cs_metrics_observe(j->api->metrics, CS_METRIC_TTFT,
                           (double)(now_us - j->received_us) * 1e-6, 1);
    }
    if (last_us)
        cs_metrics_observe(j->api->metrics, CS_METRIC_ITL,
                           (double)(now_us - last_us) * 1e-6 / n_tokens, n_tokens);
    j->last_token_us[answer] = now_us;
}

static void on_piece(void *user, const cs_piece *piece)
{
    part *p = user;
    job *j = p->job;
    uint32_t index = p->first_answer + piece->choice;
    g_mutex_lock(&j->lock);
    cs_answer *answer = &j->answers[index];
    g_string_append_len(answer->text, piece->text, (gssize)piece->text_bytes);
    j->waiting_bytes += piece->text_bytes;
    if (piece->logprobs) {
        guint n_top = piece->n_tokens * (guint)MAX(j->output.n_logprobs, 0);
        g_array_append_vals(answer->token_ids, piece->token_ids, piece->n_tokens);
        g_array_append_vals(answer->logprobs, piece->logprobs, piece->n_tokens);
        if (piece->top)
            g_array_append_vals(answer->top, piece->top, n_top);
        j->waiting_bytes += piece->n_tokens * 8 + n_top * sizeof(cs_token_logprob);
    }
    if (piece->n_tokens > 0)
        observe_tokens(j, index, piece->n_tokens);
    bool too_slow = j->params.stream && j->waiting_bytes > MAX_WAITING_BYTES;
    g_mutex_unlock(&j->lock);
    if (too_slow)
        job_fail_with(j, CS_ERROR_TIMEOUT, "the answer was not read fast enough");
    else if (j->params.stream)
        cs_exchange_wake(j->x);
}

/* With the lock held: first sound, and whether it came in time. */
static void observe_audio(job *j, uint32_t n)
{
    int64_t now_us = cs_now_us();
    if (!j->first_audio_us) {
        j->first_audio_us = j->played_us = now_us;
        cs_metrics_observe(j->api->metrics, CS_METRIC_TTFA,
                           (double)(now_us - j->received_us) * 1e-6, 1);
    }
    j->underrun_us += MAX(0, now_us - j->played_us);
    j->played_us = MAX(j->played_us, now_us) +
                   (int64_t)n * G_USEC_PER_SEC / cs_pipeline_audio_rate(j->pipeline);
    j->n_samples += n;
}

/* With the lock held, so that samples stay in order. */
static void hear(job *j, const GArray *samples)
{
    if (samples->len == 0)
        return;
    observe_audio(j, samples->len);
    cs_sound_add(j->sound, samples->len, (const float *)(const void *)samples->data);
}

static void on_audio(void *user, uint32_t n, const float *samples)
{
    part *p = user;
    job *j = p->job;
    g_autoptr(GArray) heard = g_array_new(FALSE, FALSE, sizeof(float));
    g_mutex_lock(&j->lock);
    p->n_made += n;
    cs_recital_add(j->recital, (uint32_t)(p - j->parts), n, samples, heard);
    hear(j, heard);
    g_mutex_unlock(&j->lock);
    begin_next(j);
}

/* With the lock held, of a speech that is complete. */
static void observe_speech(job *j)
{
    double seconds = (double)j->n_samples / cs_pipeline_audio_rate(j->pipeline);
    double took_s = (double)(cs_now_us() - j->received_us) * 1e-6;
    cs_metrics_add(j->api->metrics, CS_COUNTER_SPEECH_S, seconds);
    if (j->params.stream)
        cs_metrics_add(j->api->metrics, CS_COUNTER_UNDERRUN_S, (double)j->underrun_us * 1e-6);
    if (seconds > 0)
        cs_metrics_observe(j->api->metrics, CS_METRIC_RTF, took_s / seconds, 1);
}

static void on_finish(void *user, uint32_t choice, cs_finish_reason reason)
{
    part *p = user;
    g_mutex_lock(&p->job->lock);
    cs_answer *answer = &p->job->answers[p->first_answer + choice];
    answer->finished = true;
    answer->reason = reason;
    g_mutex_unlock(&p->job->lock);
}

/* With the lock held. */
static void end_part(part *p)
{
    g_autoptr(GArray) heard = g_array_new(FALSE, FALSE, sizeof(float));
    cs_recital_end(p->job->recital, (uint32_t)(p - p->job->parts), heard);
    hear(p->job, heard);
}

static void on_done(void *user, const cs_usage *usage, const GError *error)
{
    part *p = user;
    job *j = p->job;
    g_mutex_lock(&j->lock);
    j->n_done++;
    if (error && !j->error)
        j->error = g_error_copy(error);
    if (usage) {
        j->usage.prompt_tokens += usage->prompt_tokens;
        j->usage.cached_tokens += usage->cached_tokens;
        j->usage.completion_tokens += usage->completion_tokens;
        j->usage.speech_tokens += usage->speech_tokens;
        for (int m = 0; m < CS_N_MODALITIES; m++)
            j->usage.modality_tokens[m] += usage->modality_tokens[m];
    }
    if (j->sound && !j->error)
        end_part(p);
    bool complete = j->n_done == j->n_parts && !j->error;
    if (complete && j->sound)
        observe_speech(j);
    g_mutex_unlock(&j->lock);
    if (complete && j->sound)
        cs_sound_end(j->sound);
    if (complete)
        cs_metrics_observe(j->api->metrics, CS_METRIC_E2E,
                           (double)(cs_now_us() - j->received_us) * 1e-6, 1);
    if (error && j->n_parts > 1)
        job_cancel(j);
    if (j->sound && !error && !complete) {
        begin_next(j);
        allow(j);
    }
    cs_exchange_wake(j->x);
    job_unref(j);
}

static const cs_sink sink = {.on_start = on_start,
                             .on_piece = on_piece,
                             .on_finish = on_finish,
                             .on_audio = on_audio,
                             .on_done = on_done};

/* ---- submission ---- */

static void fill_voice(const job *j, cs_voice *voice)
{
    cs_pipeline_voice_defaults(j->pipeline, voice);
    voice->name = j->params.voice ? j->params.voice : voice->name;
}

static void fill_request(job *j, uint32_t i, cs_request *request, cs_request_medium *media)
{
    *request = (cs_request){
        .sampling = j->sampling, .n_choices = (uint32_t)j->params.n, .echo = j->params.echo};
    if (j->sound) {
        fill_voice(j, &request->voice);
        request->voice.credit_samples = j->parts[i].n_allowed;
    }
    if (j->passages) {
        request->aloud = g_array_index(j->passages, cs_passage, i).text;
        request->aloud_how = j->params.instructions;
        return;
    }
    if (j->output.endpoint == CS_ENDPOINT_COMPLETION) {
        if (j->content.prompts) {
            request->prompt = g_ptr_array_index(j->content.prompts, i);
        } else {
            GArray *ids = g_ptr_array_index(j->content.prompt_ids, i);
            request->prompt_ids = (const int32_t *)ids->data;
            request->n_prompt_ids = ids->len;
        }
        return;
    }
    request->messages = j->content.messages;
    request->template_arguments = j->params.template_arguments;
    request->use_audio_in_video = j->params.use_audio_in_video;
    request->n_media = j->content.media->len;
    request->media = media;
    for (guint m = 0; m < j->content.media->len; m++) {
        const cs_content_medium *medium = g_ptr_array_index(j->content.media, m);
        media[m] = (cs_request_medium){medium->modality, medium->bytes, medium->max_pixels};
    }
}

static bool submit_part(job *j, uint32_t i, GError **error)
{
    g_autofree cs_request_medium *media =
        g_new0(cs_request_medium, j->content.media ? j->content.media->len + 1 : 1);
    cs_request request;
    fill_request(j, i, &request, media);
    part *p = &j->parts[i];
    job_ref(j);
    cs_pipeline_request *handle = cs_pipeline_submit(j->pipeline, &request, &sink, p, error);
    if (!handle) {
        job_unref(j);
        return false;
    }
    g_mutex_lock(&j->lock);
    p->handle = handle;
    bool cancelled = j->cancelled;
    g_mutex_unlock(&j->lock);
    if (cancelled)
        cs_pipeline_cancel(handle);
    return true;
}

/* With the lock held: the next passage is due. */
static bool is_next_due(const job *j)
{
    uint32_t current = cs_recital_current(j->recital);
    uint64_t enough = (uint64_t)AHEAD_SECONDS * cs_pipeline_audio_rate(j->pipeline);
    if (!j->passages || j->error || j->cancelled || j->n_begun == j->n_parts)
        return false;
    return current == j->n_begun ||
           (current + 1 == j->n_begun && j->parts[current].n_made >= enough);
}

/* Submits the next passage when it is time. */
static void begin_next(job *j)
{
    g_autoptr(GError) error = NULL;
    g_mutex_lock(&j->lock);
    bool due = is_next_due(j);
    uint32_t i = j->n_begun;
    j->n_begun += due;
    g_mutex_unlock(&j->lock);
    if (due && !submit_part(j, i, &error))
        job_fail(j, error);
}

/* Lets the passage that is heard go on as far as the client's reading makes room. */
static void allow(job *j)
{
    g_mutex_lock(&j->lock);
    uint32_t current = cs_recital_current(j->recital);
    part *p = current < j->n_parts ? &j->parts[current] : NULL;
    uint64_t most = (uint64_t)CREDIT_SECONDS * cs_pipeline_audio_rate(j->pipeline), room = 0;
    if (j->params.stream && p && p->handle) {
        uint64_t taken = j->n_samples - j->n_taken + (p->n_allowed - p->n_made);
        room = most > taken ? most - taken : 0;
        p->n_allowed += room;
    }
    cs_pipeline_request *handle = p ? p->handle : NULL; /* lives as long as the job */
    g_mutex_unlock(&j->lock);
    if (room > 0)
        cs_pipeline_audio_allow(handle, room);
}

/* Submits every prompt, of passages the first; on failure those before are cancelled and the job
 * ends with the error. */
static void job_submit(job *j)
{
    g_autoptr(GError) error = NULL;
    for (uint32_t i = 0; i < j->n_parts && !j->passages && !error; i++)
        if (!submit_part(j, i, &error))
            job_fail(j, error);
    if (j->passages)
        begin_next(j);
    /* The pipeline has references to what it needs. */
    cs_content_clear(&j->content);
}

static bool has_remote(const job *j)
{
    for (guint i = 0; j->content.media && i < j->content.media->len; i++)
        if (((cs_content_medium *)g_ptr_array_index(j->content.media, i))->url)
            return true;
    return false;
}

/* False when the job has ended with a fault. */
static bool fetch_medium(job *j, cs_content_medium *medium)
{
    g_autoptr(GError) error = NULL;
    cs_remote_limits limits = {j->api->policy.max_medium_bytes, FETCH_TIMEOUT_MS};
    medium->bytes = cs_remote_fetch(medium->url, &limits, &error);
    if (medium->bytes)
        return true;
    g_mutex_lock(&j->lock);
    cs_fault_set(&j->fault, (cs_error_code)error->code, medium->param, "%s", error->message);
    g_mutex_unlock(&j->lock);
    job_fail(j, j->fault.error);
    return false;
}

void cs_api_generate_fetch(gpointer user, gpointer unused)
{
    job *j = user;
    bool ok = true;
    for (guint i = 0; i < j->content.media->len && ok; i++) {
        cs_content_medium *medium = g_ptr_array_index(j->content.media, i);
        g_mutex_lock(&j->lock);
        bool cancelled = j->cancelled;
        g_mutex_unlock(&j->lock);
        ok = !cancelled && (!medium->url || fetch_medium(j, medium));
    }
    if (ok)
        job_submit(j);
    job_unref(j);
}

/* ---- the connection's side ---- */

static void respond_error(job *j, const GError *error)
{
    g_mutex_lock(&j->lock);
    bool has_fault = j->fault.error != NULL;
    g_mutex_unlock(&j->lock);
    if (has_fault)
        cs_api_fail(j->x, &j->fault);
    else
        cs_exchange_fail(j->x, error, NULL,
                         g_error_matches(error, CS_ERROR, CS_ERROR_OVER_CONTEXT)
                             ? "context_length_exceeded"
                             : NULL);
}

/* Moves new bytes of the sound to j->bytes, and makes room for as many samples. */
static void take_sound(job *j)
{
    g_autoptr(GError) error = NULL;
    uint64_t n_samples = 0;
    if (!cs_sound_take(j->sound, j->bytes, &n_samples, &j->sound_complete, &error)) {
        job_fail(j, error);
        return;
    }
    g_mutex_lock(&j->lock);
    j->n_taken += n_samples;
    g_mutex_unlock(&j->lock);
    allow(j);
}

static void note_answer(job *j)
{
    double ttft_ms = j->first_token_us ? (double)(j->first_token_us - j->received_us) / 1000 : 0;
    cs_exchange_note(j->x, "prompt %u cached %u completion %u tokens first %.1f ms%s%s",
                     j->usage.prompt_tokens, j->usage.cached_tokens, j->usage.completion_tokens,
                     ttft_ms, j->params.user ? " user " : "", j->params.user ? j->params.user : "");
    if (j->sound)
        cs_exchange_note(j->x, "speech %.2f s first %.1f ms",
                         (double)j->n_samples / cs_pipeline_audio_rate(j->pipeline),
                         (double)(j->first_audio_us - j->received_us) / 1000);
}

static void respond_speech(job *j)
{
    note_answer(j);
    cs_exchange_respond(j->x, 200, cs_audio_format_type(j->params.audio_format),
                        g_byte_array_free_to_bytes(g_steal_pointer(&j->bytes)));
}

static void respond_whole(job *j)
{
    GString *out = g_string_sized_new(1024);
    cs_output_whole(&j->output, j->answers, j->n_answers, j->bytes, &j->usage, out);
    note_answer(j);
    cs_exchange_respond(j->x, 200, "application/json", g_string_free_to_bytes(out));
}

/* A speech begins with its first sound: until then its faults have a status. */
static bool can_begin(const job *j, bool started)
{
    return started && (j->output.endpoint != CS_ENDPOINT_SPEECH || j->bytes->len > 0);
}

static void job_ready(void *user, cs_exchange *x)
{
    job *j = user;
    bool is_speech = j->output.endpoint == CS_ENDPOINT_SPEECH;
    if (j->sound)
        take_sound(j);
    g_mutex_lock(&j->lock);
    bool started = has_started(j);
    bool done = j->n_done == j->n_parts && (!j->sound || j->sound_complete);
    g_autoptr(GError) error = j->error ? g_error_copy(j->error) : NULL;
    g_mutex_unlock(&j->lock);
    if (error)
        respond_error(j, error);
    else if (j->params.stream && can_begin(j, started))
        cs_exchange_stream(x, is_speech && !j->params.sound_events
                                  ? cs_audio_format_type(j->params.audio_format)
                                  : "text/event-stream; charset=utf-8");
    else if (done && !j->params.stream)
        is_speech ? respond_speech(j) : respond_whole(j);
}

static bool has_news(const cs_answer *answer)
{
    return answer->text->len > 0 || answer->token_ids->len > 0;
}

/* Events of the sound. The base64 of all but the last holds whole groups of three bytes, so that
 * clients may also put it together before they decode it. */
static void pull_sound(job *j, GString *out)
{
    bool chat = j->output.endpoint == CS_ENDPOINT_CHAT;
    guint rest = j->sound_complete ? 0 : j->bytes->len % 3;
    uint8_t kept[2];
    if (j->sound_told)
        return;
    if (rest > 0)
        memcpy(kept, j->bytes->data + j->bytes->len - rest, rest);
    g_byte_array_set_size(j->bytes, j->bytes->len - rest);
    if (j->bytes->len > 0 && chat)
        cs_output_sound(&j->output, j->bytes, out);
    else if (j->bytes->len > 0)
        cs_output_speech(j->bytes, out);
    g_byte_array_set_size(j->bytes, 0);
    g_byte_array_append(j->bytes, kept, rest);
    j->sound_told = j->sound_complete;
    if (j->sound_told && chat)
        cs_output_sound_end(&j->output, out);
}

/* With the lock held: everything that is new. */
static void pull_answers(job *j, GString *out)
{
    for (uint32_t i = 0; i < j->n_answers; i++) {
        cs_answer *answer = &j->answers[i];
        if (!j->role_told && j->output.endpoint == CS_ENDPOINT_CHAT)
            cs_output_role(&j->output, i, out);
        if (has_news(answer)) {
            cs_output_piece(&j->output, answer, out);
            cs_answer_told(answer);
        }
        if (j->sound)
            pull_sound(j, out);
        if (answer->finished && !j->finish_told[i] && (!j->sound || j->sound_told)) {
            cs_output_finish(&j->output, answer, out);
            j->finish_told[i] = true;
        }
    }
    j->role_told = true;
    j->waiting_bytes = 0;
}

/* The stream of a speech: its bytes alone, or events. */
static bool pull_speech(job *j, bool done, const GError *error, GString *out)
{
    if (error && !j->params.sound_events)
        cs_exchange_abort(j->x);
    else if (error)
        cs_output_error(error, out);
    else if (j->params.sound_events)
        pull_sound(j, out);
    else
        g_string_append_len(out, (const char *)j->bytes->data, j->bytes->len);
    if (!j->params.sound_events)
        g_byte_array_set_size(j->bytes, 0);
    if (error)
        cs_exchange_note(j->x, "stream ended: \"%s\"", error->message);
    if (error || !done)
        return !error;
    if (j->params.sound_events)
        cs_output_speech_end(&j->usage, out);
    note_answer(j);
    return false;
}

static bool job_pull(void *user, GString *out)
{
    job *j = user;
    if (j->sound)
        take_sound(j);
    g_mutex_lock(&j->lock);
    bool done = j->n_done == j->n_parts && !j->error && (!j->sound || j->sound_complete);
    g_autoptr(GError) error = j->error ? g_error_copy(j->error) : NULL;
    if (j->output.endpoint != CS_ENDPOINT_SPEECH)
        pull_answers(j, out);
    g_mutex_unlock(&j->lock);
    if (j->output.endpoint == CS_ENDPOINT_SPEECH)
        return pull_speech(j, done, error, out);
    if (error) {
        cs_output_error(error, out);
        cs_exchange_note(j->x, "stream ended: \"%s\"", error->message);
        return false;
    }
    if (!done)
        return true;
    if (j->params.include_usage)
        cs_output_usage(&j->output, &j->usage, out);
    cs_output_end(out);
    note_answer(j);
    return false;
}

static void job_closed(void *user)
{
    job *j = user;
    job_cancel(j);
    job_unref(j);
}

static const cs_exchange_ops job_ops = {job_ready, job_pull, job_closed};

/* ---- reading the request ---- */

void cs_api_fail(cs_exchange *x, const cs_fault *fault)
{
    cs_exchange_fail(x, fault->error, fault->param, fault->code);
}

static const char *known_models(const cs_api *api, GString *all)
{
    for (guint i = 0; i < api->models->len; i++)
        g_string_append_printf(all, "%s\"%s\"", i ? ", " : "",
                               cs_pipeline_model_id(api->models->pdata[i]));
    return all->str;
}

cs_pipeline *cs_api_find_model(const cs_api *api, const char *id, cs_fault *fault)
{
    for (guint i = 0; i < api->models->len; i++)
        if (!id || strcmp(id, cs_pipeline_model_id(api->models->pdata[i])) == 0)
            return api->models->pdata[i];
    g_autoptr(GString) all = g_string_new(NULL);
    cs_fault_set(fault, CS_ERROR_NOT_FOUND, "model",
                 "there is no model \"%.100s\" here; this server has %s", id,
                 known_models(api, all));
    fault->code = "model_not_found";
    return NULL;
}

static bool find_model(job *j, cs_fault *fault)
{
    j->pipeline = cs_api_find_model(j->api, j->params.model, fault);
    j->output.pipeline = j->pipeline;
    return j->pipeline != NULL;
}

static bool check_modalities(const job *j, cs_fault *fault)
{
    static const char *const words[CS_N_MODALITIES] = {"images", "video", "audio"};
    for (guint i = 0; j->content.media && i < j->content.media->len; i++) {
        const cs_content_medium *medium = g_ptr_array_index(j->content.media, i);
        if (!cs_pipeline_takes(j->pipeline, medium->modality))
            return cs_fault_set(fault, CS_ERROR_UNSUPPORTED, medium->param,
                                "this model takes no %s", words[medium->modality]);
    }
    return true;
}

static bool check_voice(const job *j, cs_fault *fault)
{
    bool chat = j->output.endpoint == CS_ENDPOINT_CHAT;
    g_autoptr(GError) error = NULL;
    cs_voice voice;
    if (chat && !j->params.speaks)
        return true;
    if (!cs_pipeline_voices(j->pipeline)) {
        cs_pipeline_voice_check(j->pipeline, "", &error);
        return cs_fault_set(fault, CS_ERROR_UNSUPPORTED, chat ? "modalities" : NULL, "%s",
                            error->message);
    }
    fill_voice(j, &voice);
    return cs_pipeline_voice_check(j->pipeline, voice.name, &error) ||
           cs_fault_set(fault, CS_ERROR_INVALID, chat ? "audio.voice" : "voice", "%s",
                        error->message);
}

static bool read_passages(job *j, const cs_body *body, cs_fault *fault)
{
    j->passages = cs_passages_of(j->params.input, PASSAGE_SECONDS);
    return j->passages->len > 0 || cs_fault_expected(fault, "input", "a text to be read aloud",
                                                     json_object_get(body->root, "input"));
}

static bool read_content(job *j, const cs_body *body, cs_fault *fault)
{
    if (j->output.endpoint == CS_ENDPOINT_SPEECH)
        return read_passages(j, body, fault);
    if (j->output.endpoint == CS_ENDPOINT_COMPLETION)
        return cs_content_read_prompt(&j->content, body, cs_pipeline_vocab_size(j->pipeline),
                                      fault);
    return cs_content_read_messages(&j->content, body, &j->api->policy, fault) &&
           check_modalities(j, fault);
}

static uint32_t n_prompts(const job *j)
{
    return j->passages             ? j->passages->len
           : j->content.prompts    ? j->content.prompts->len
           : j->content.prompt_ids ? j->content.prompt_ids->len
                                   : 1;
}

static bool read_request(job *j, const cs_body *body, cs_fault *fault)
{
    if (!cs_params_read(&j->params, body, j->output.endpoint, fault) || !find_model(j, fault) ||
        (j->output.endpoint != CS_ENDPOINT_COMPLETION && !check_voice(j, fault)) ||
        !read_content(j, body, fault))
        return false;
    if (!j->passages && n_prompts(j) * (uint64_t)j->params.n > MAX_ANSWERS)
        return cs_fault_set(fault, CS_ERROR_TOO_LARGE, "n",
                            "%u prompts of %" G_GINT64_FORMAT " answers are over the limit of %d",
                            n_prompts(j), j->params.n, MAX_ANSWERS);
    return true;
}

static void prepare_sound(job *j)
{
    const cs_sound_options options = {.format = j->params.audio_format,
                                      .sample_rate = cs_pipeline_audio_rate(j->pipeline),
                                      .pool = cs_pipeline_audio_pool(j->pipeline),
                                      .makers = j->api->makers,
                                      .x = j->x,
                                      .whole = !j->params.stream};
    j->sound = cs_sound_new(&options);
    j->recital = cs_recital_new(j->passages, options.sample_rate);
    j->bytes = g_byte_array_new();
}

/* What a part of a streamed speech may make before anything is read. */
static uint64_t first_credit(const job *j, uint32_t i)
{
    uint32_t seconds = i == 0 ? CREDIT_SECONDS : AHEAD_SECONDS;
    return j->sound && j->params.stream ? (uint64_t)seconds * cs_pipeline_audio_rate(j->pipeline)
                                        : 0;
}

static void job_prepare(job *j)
{
    if (j->params.speaks || j->output.endpoint == CS_ENDPOINT_SPEECH)
        prepare_sound(j);
    j->output.speaks = j->params.speaks;
    cs_params_sampling(&j->params, j->pipeline, &j->sampling);
    /* What the OpenAI API does for completions that do not say. */
    if (j->output.endpoint == CS_ENDPOINT_COMPLETION && !j->params.has_max_tokens)
        j->sampling.max_tokens = 16;
    if (j->passages && !j->sampling.has_seed) { /* the same for all */
        j->sampling.has_seed = true;
        j->sampling.seed = (uint64_t)g_random_int() << 32 | g_random_int();
    }
    j->output.n_logprobs = j->sampling.n_logprobs;
    j->output.usage_member = j->params.include_usage;
    const uint32_t n_parts = n_prompts(j);
    part *parts = g_new0(part, n_parts);
    j->n_answers = j->passages ? 1 : n_parts * (uint32_t)j->params.n;
    j->answers = g_new0(cs_answer, j->n_answers);
    j->last_token_us = g_new0(int64_t, j->n_answers);
    j->finish_told = g_new0(bool, j->n_answers);
    for (uint32_t i = 0; i < n_parts; i++)
        parts[i] = (part){.job = j,
                          .first_answer = j->passages ? 0 : i * (uint32_t)j->params.n,
                          .n_allowed = first_credit(j, i)};
    for (uint32_t i = 0; i < j->n_answers; i++)
        cs_answer_init(&j->answers[i], i);
    g_mutex_lock(&j->lock); /* whoever ends all jobs may look at this one already */
    j->parts = parts;
    j->n_parts = n_parts;
    g_mutex_unlock(&j->lock);
}

static job *job_new(cs_api *api, cs_exchange *x, cs_endpoint endpoint)
{
    job *j = g_new0(job, 1);
    j->refs = 1;
    j->api = api;
    j->x = cs_exchange_ref(x);
    j->received_us = cs_now_us();
    j->output = (cs_output){.endpoint = endpoint,
                            .id = cs_exchange_id(x),
                            .created_s = g_get_real_time() / G_USEC_PER_SEC};
    g_mutex_init(&j->lock);
    g_mutex_lock(&api->lock);
    g_hash_table_add(api->jobs, j);
    api->n_jobs++;
    g_mutex_unlock(&api->lock);
    return j;
}

void cs_api_generate(cs_api *api, cs_exchange *x, cs_endpoint endpoint, const cs_body *body)
{
    job *j = job_new(api, x, endpoint);
    cs_fault fault = {.body = body};
    bool ok = read_request(j, body, &fault);
    cs_exchange_release_body(x);
    if (!ok) {
        cs_api_fail(x, &fault);
        cs_fault_clear(&fault);
        job_unref(j);
        return;
    }
    job_prepare(j);
    cs_exchange_attach(x, &job_ops, j);
    if (has_remote(j))
        g_thread_pool_push(api->fetchers, job_ref(j), NULL);
    else
        job_submit(j);
}

void cs_api_generate_end_all(cs_api *api)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)job_unref);
    g_mutex_lock(&api->lock);
    GHashTableIter iter;
    gpointer key;
    g_hash_table_iter_init(&iter, api->jobs);
    while (g_hash_table_iter_next(&iter, &key, NULL))
        g_ptr_array_add(all, job_ref(key));
    g_mutex_unlock(&api->lock);
    for (guint i = 0; i < all->len; i++)
        job_fail_with(g_ptr_array_index(all, i), CS_ERROR_BUSY, "the server is shutting down");
}
