/* The life of a request.
 *
 *   submit -> queue -> a worker: render, decode media, build the prompt -> LLM engine, encoders ->
 * tokens -> done
 *
 * A request is kept alive by its caller's handle, by the queue and the worker, by the LLM engine
 * until its on_done, and by each encoding until the encoder engine lets go of its input. Sink calls
 * come from the worker until the LLM engine has the request, then from the engine's thread;
 * request->lock, held across submission and on_start, keeps that order.
 */
#include "runtime/pipeline/internal.h"

#include "base/error.h"
#include "text/chat_template.h"

#include <string.h>

/* ---- references ---- */

static void request_ref(cs_pipeline_request *r)
{
    g_atomic_int_inc(&r->refs);
}

static void sampling_clear(cs_sampling *s)
{
    g_free((void *)s->biases);
    g_strfreev((char **)s->stop);
}

static void request_free(cs_pipeline_request *r)
{
    for (uint32_t i = 0; i < r->n_encodings; i++)
        if (r->encodings[i].job)
            cs_encoder_job_release(r->encodings[i].job);
    if (r->llm)
        cs_llm_request_release(r->llm);
    if (r->remote)
        cs_runtime_request_release(r->remote);
    g_clear_error(&r->remote_fault);
    for (uint32_t i = 0; i < r->n_choices; i++)
        cs_text_stream_clear(&r->answers[i].stream);
    cs_prompt_free(r->built);
    pipeline_speech_free(r->speech);
    g_clear_error(&r->error);
    json_decref(r->messages);
    json_decref(r->tools);
    json_decref(r->template_arguments);
    g_clear_pointer(&r->prompt_ids, g_array_unref);
    g_clear_pointer(&r->aloud_ids, g_array_unref);
    g_ptr_array_unref(r->media);
    sampling_clear(&r->sampling);
    g_free(r->modalities);
    g_free(r->max_pixels);
    g_free(r->encodings);
    g_free(r->answers);
    g_free(r->prompt);
    g_mutex_clear(&r->lock);
    g_free(r);
}

static void request_unref(cs_pipeline_request *r)
{
    if (!g_atomic_int_dec_and_test(&r->refs))
        return;
    cs_pipeline *p = r->pipeline;
    request_free(r);
    g_mutex_lock(&p->lock);
    p->n_objects--;
    g_cond_broadcast(&p->changed);
    g_mutex_unlock(&p->lock);
}

/* ---- submission ---- */

static cs_sampling sampling_copy(const cs_sampling *from)
{
    cs_sampling copy = *from;
    copy.biases = g_memdup2(from->biases, from->n_biases * sizeof(*from->biases));
    copy.stop = (const char *const *)g_strdupv((char **)from->stop);
    if (!copy.has_seed)
        copy.seed = (uint64_t)g_random_int() << 32 | g_random_int();
    return copy;
}

static cs_pipeline_request *request_new(cs_pipeline *p, const cs_request *request,
                                        const cs_sink *sink, void *user)
{
    cs_pipeline_request *r = g_new0(cs_pipeline_request, 1);
    r->refs = 2; /* the caller's handle, and the way to on_done */
    r->pipeline = p;
    r->sink = *sink;
    r->user = user;
    /* Not shared with the caller's thread: jansson's reference counts order no memory accesses. */
    r->messages = json_deep_copy(request->messages);
    r->tools = json_deep_copy(request->tools);
    r->template_arguments = json_deep_copy(request->template_arguments);
    r->prompt = g_strdup(request->prompt);
    if (request->prompt_ids) {
        r->prompt_ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
        g_array_append_vals(r->prompt_ids, request->prompt_ids, request->n_prompt_ids);
    }
    r->media = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    r->modalities = g_new0(cs_modality, request->n_media + 1);
    r->max_pixels = g_new0(uint32_t, request->n_media + 1);
    for (uint32_t i = 0; i < request->n_media; i++) {
        g_ptr_array_add(r->media, g_bytes_ref(request->media[i].bytes));
        r->modalities[i] = request->media[i].modality;
        r->max_pixels[i] = request->media[i].max_pixels;
    }
    r->echo = request->echo;
    r->use_audio_in_video = request->use_audio_in_video;
    r->sampling = sampling_copy(&request->sampling);
    r->n_choices = request->n_choices;
    r->answers = g_new0(pipeline_answer, r->n_choices);
    for (uint32_t i = 0; i < r->n_choices; i++)
        cs_text_stream_init(&r->answers[i].stream, p->model->tokenizer, r->sampling.stop);
    r->speech = pipeline_speech_new(p, &request->voice);
    r->stages_left = 1;
    g_mutex_init(&r->lock);
    return r;
}

static size_t text_bytes(const json_t *value)
{
    size_t n = 0, i;
    const char *key;
    json_t *item;
    if (json_is_string(value))
        return json_string_length(value);
    json_array_foreach (value, i, item)
        n += text_bytes(item);
    json_object_foreach ((json_t *)value, key, item)
        n += strlen(key) + text_bytes(item);
    return n;
}

static bool check_text(const cs_pipeline *p, const cs_request *request, GError **error)
{
    size_t max_bytes = cs_pipeline_max_text_bytes(p);
    size_t n = text_bytes(request->messages) + text_bytes(request->tools) +
               text_bytes(request->template_arguments) +
               (request->prompt ? strlen(request->prompt) : 0);
    return n <= max_bytes ||
           cs_fail(error, CS_ERROR_OVER_CONTEXT,
                   "the prompt has %zu bytes of text; this server takes at most %zu, and prompt "
                   "and answer of at most %u tokens together",
                   n, max_bytes, p->max_tokens);
}

static bool request_check(const cs_pipeline *p, const cs_request *request, GError **error)
{
    static const char *const words[CS_N_MODALITIES] = {"images", "video", "audio"};
    if ((request->messages || request->aloud) && !p->model->chat_template)
        return cs_fail(error, CS_ERROR_UNSUPPORTED,
                       "this model has no chat template; use completions");
    for (uint32_t i = 0; i < request->n_media; i++)
        if (!cs_pipeline_takes(p, request->media[i].modality))
            return cs_fail(error, CS_ERROR_UNSUPPORTED, "this model takes no %s",
                           words[request->media[i].modality]);
    if (request->voice.name && request->n_choices != 1)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "of %u answers none can be spoken; ask for one",
                       request->n_choices);
    if (!check_text(p, request, error))
        return false;
    const char *voice = request->voice.name ? request->voice.name : request->aloud ? "" : NULL;
    return !voice || cs_pipeline_voice_check(p, voice, error);
}

cs_pipeline_request *cs_pipeline_submit(cs_pipeline *p, const cs_request *request,
                                        const cs_sink *sink, void *user, GError **error)
{
    if (!request_check(p, request, error))
        return NULL;
    cs_pipeline_request *r = request_new(p, request, sink, user);
    g_mutex_lock(&p->lock);
    p->n_objects++;
    g_mutex_unlock(&p->lock);
    if (request->aloud &&
        !pipeline_speech_read_aloud(r, request->aloud, request->aloud_how, error)) {
        request_unref(r);
        request_unref(r);
        return NULL;
    }
    g_mutex_lock(&p->lock);
    guint n_live = g_hash_table_size(p->live);
    bool taken = !p->ending && n_live < p->max_queued_requests;
    if (taken) {
        g_hash_table_add(p->live, r);
        g_queue_push_tail(r->media->len > 0 ? &p->media_queue : &p->text_queue, r);
        p->counts.requests_started++;
        g_cond_broadcast(&p->changed);
    }
    g_mutex_unlock(&p->lock);
    if (taken)
        return r;
    cs_fail(error, CS_ERROR_BUSY, "%u requests are being handled or wait already; try again later",
            n_live);
    request_unref(r);
    request_unref(r);
    return NULL;
}

/* Ends what the engines have of it within a step. */
static void cancel_stages(cs_pipeline_request *r)
{
    g_mutex_lock(&r->lock);
    cs_runtime_request *remote = r->remote;
    cs_llm_request *llm = r->llm, *talker = r->speech ? r->speech->talker : NULL;
    cs_generator_request *sound = r->speech ? r->speech->sound : NULL;
    g_mutex_unlock(&r->lock);
    if (remote)
        cs_runtime_request_cancel(remote);
    if (llm)
        cs_llm_request_cancel(llm);
    if (talker)
        cs_llm_request_cancel(talker);
    if (sound)
        cs_generator_request_cancel(sound);
}

void cs_pipeline_cancel(cs_pipeline_request *r)
{
    g_mutex_lock(&r->lock);
    r->cancelled = true;
    g_mutex_unlock(&r->lock);
    cancel_stages(r);
}

void cs_pipeline_release(cs_pipeline_request *r)
{
    request_unref(r);
}

/* ---- the end ---- */

/* Nobody waits for what encoders still have of it. */
static void cancel_encodings(cs_pipeline_request *r)
{
    g_autoptr(GPtrArray) jobs = g_ptr_array_new();
    g_mutex_lock(&r->lock);
    r->done = true;
    for (uint32_t i = 0; i < r->n_encodings; i++)
        if (r->encodings[i].job)
            g_ptr_array_add(jobs, r->encodings[i].job);
    g_mutex_unlock(&r->lock);
    for (guint i = 0; i < jobs->len; i++)
        cs_encoder_job_cancel(g_ptr_array_index(jobs, i));
}

/* Calls on_done and drops the reference that waited for it. */
static void request_done(cs_pipeline_request *r, const cs_usage *usage, const GError *error)
{
    cs_pipeline *p = r->pipeline;
    if (error)
        cancel_encodings(r);
    g_mutex_lock(&p->lock);
    g_hash_table_remove(p->live, r);
    p->counts.requests_finished += !error;
    bool cancelled = g_error_matches(error, CS_ERROR, CS_ERROR_CANCELLED);
    p->counts.requests_cancelled += cancelled;
    p->counts.requests_failed += error && !cancelled;
    g_cond_broadcast(&p->changed);
    g_mutex_unlock(&p->lock);
    r->sink.on_done(r->user, usage, error);
    request_unref(r);
}

void pipeline_stage_done(cs_pipeline_request *r, const cs_usage *usage, const GError *error)
{
    g_mutex_lock(&r->lock);
    bool ends_others = error && !r->error && r->stages_left > 1;
    if (error && !r->error)
        r->error = g_error_copy(error);
    if (usage) {
        r->has_usage = true;
        r->usage = *usage;
    }
    g_mutex_unlock(&r->lock);
    if (ends_others)
        cancel_stages(r);
    g_mutex_lock(&r->lock);
    bool last = --r->stages_left == 0;
    g_mutex_unlock(&r->lock);
    if (!last)
        return;
    if (r->speech)
        r->usage.speech_tokens = r->speech->n_codes;
    request_done(r, r->has_usage ? &r->usage : NULL, r->error);
}

/* ---- the LLM engine's calls ---- */

static void piece_send(cs_pipeline_request *r, uint32_t choice, size_t show_bytes,
                       const cs_sampled_token *token)
{
    cs_text_stream *stream = &r->answers[choice].stream;
    cs_token_logprob top[CS_MAX_LOGPROBS];
    cs_piece piece = {.choice = choice, .text = stream->text->str, .text_bytes = show_bytes};
    if (token) {
        piece.n_tokens = 1;
        piece.token_ids = &token->id;
        for (int32_t i = 0; i < r->sampling.n_logprobs; i++)
            top[i] = (uint32_t)i < token->n_top ? token->top[i] : (cs_token_logprob){-1, 0};
        piece.logprobs = r->sampling.n_logprobs >= 0 ? &token->logprob : NULL;
        piece.top = r->sampling.n_logprobs > 0 ? top : NULL;
    }
    if (r->speech)
        g_mutex_lock(&r->speech->sink_lock);
    r->sink.on_piece(r->user, &piece);
    if (r->speech)
        g_mutex_unlock(&r->speech->sink_lock);
    cs_text_stream_shown(stream, show_bytes);
}

static bool llm_on_token(void *user, const cs_llm_token *token)
{
    cs_pipeline_request *r = user;
    g_mutex_lock(&r->lock); /* on_start comes first */
    g_mutex_unlock(&r->lock);
    size_t show_bytes;
    if (r->aloud_ids)
        return false; /* what would come behind the text */
    if (r->speech)
        g_array_append_val(r->speech->heard_ids, token->token->id);
    bool goes_on =
        cs_text_stream_push(&r->answers[token->choice].stream, token->token->id, &show_bytes);
    piece_send(r, token->choice, show_bytes, token->token);
    return goes_on;
}

static void llm_on_hidden(void *user, uint32_t choice, uint32_t row, uint32_t n,
                          const float *hidden)
{
    cs_pipeline_request *r = user;
    g_mutex_lock(&r->lock); /* no sound before on_start */
    g_mutex_unlock(&r->lock);
    pipeline_speech_hidden(r, row, n, hidden);
}

static void llm_on_finish(void *user, uint32_t choice, cs_llm_finish reason)
{
    cs_pipeline_request *r = user;
    cs_text_stream *stream = &r->answers[choice].stream;
    size_t show_bytes;
    g_mutex_lock(&r->lock);
    g_mutex_unlock(&r->lock);
    cs_text_stream_end(stream, &show_bytes);
    if (show_bytes > 0)
        piece_send(r, choice, show_bytes, NULL);
    bool cut = reason == CS_LLM_FINISH_LENGTH && !stream->stopped;
    if (r->speech)
        g_mutex_lock(&r->speech->sink_lock);
    r->sink.on_finish(r->user, choice, cut ? CS_FINISH_LENGTH : CS_FINISH_STOP);
    if (r->speech) {
        g_mutex_unlock(&r->speech->sink_lock);
        pipeline_speech_text_end(r);
    }
}

static void llm_on_done(void *user, const cs_llm_usage *llm, const GError *error)
{
    cs_pipeline_request *r = user;
    g_mutex_lock(&r->lock);
    g_mutex_unlock(&r->lock);
    cs_usage usage = {.prompt_tokens = llm ? llm->prompt_tokens : 0,
                      .cached_tokens = llm ? llm->cached_tokens : 0,
                      .completion_tokens = llm && !r->aloud_ids ? llm->completion_tokens : 0};
    memcpy(usage.modality_tokens, r->modality_tokens, sizeof(usage.modality_tokens));
    pipeline_stage_done(r, &usage, error);
}

const cs_llm_sink pipeline_llm_sink = {.on_token = llm_on_token,
                                       .on_hidden = llm_on_hidden,
                                       .on_finish = llm_on_finish,
                                       .on_done = llm_on_done};

/* ---- media ---- */

/* A medium on its way into the prompt; decoded while the prompt reads it. */
typedef struct {
    cs_pipeline_request *request;
    guint index;
    cs_image image;
    cs_video video;
    cs_audio audio;
} decoded_medium;

static void medium_close(void *user)
{
    decoded_medium *medium = user;
    cs_image_clear(&medium->image);
    cs_video_clear(&medium->video);
    cs_audio_clear(&medium->audio);
}

static bool request_is_cancelled(cs_pipeline_request *r)
{
    g_mutex_lock(&r->lock);
    bool cancelled = r->cancelled;
    g_mutex_unlock(&r->lock);
    return cancelled;
}

static bool decode_medium(const cs_pipeline_request *r, decoded_medium *medium, GError **error)
{
    cs_pipeline *p = r->pipeline;
    gsize n;
    const uint8_t *data = g_bytes_get_data(g_ptr_array_index(r->media, medium->index), &n);
    switch (r->modalities[medium->index]) {
    case CS_MODALITY_IMAGE:
        return cs_media_decode_image(p->media, data, n, &medium->image, error);
    case CS_MODALITY_AUDIO:
        return cs_media_decode_audio(p->media, data, n, p->model->audio_rate, &medium->audio,
                                     error);
    default:
        return cs_media_decode_video(p->media, data, n, p->model->video_rule,
                                     r->use_audio_in_video ? p->model->audio_rate : 0,
                                     &medium->video, error);
    }
}

static const void *medium_open(void *user, GError **error)
{
    decoded_medium *medium = user;
    if (request_is_cancelled(medium->request)) {
        cs_fail(error, CS_ERROR_CANCELLED, "the request was cancelled");
        return NULL;
    }
    if (!decode_medium(medium->request, medium, error))
        return NULL;
    const void *const objects[CS_N_MODALITIES] = {&medium->image, &medium->video, &medium->audio};
    return objects[medium->request->modalities[medium->index]];
}

/* ---- prompts ---- */

static cs_prompt *prompt_of_ids(GArray *ids)
{
    cs_prompt *prompt = g_new0(cs_prompt, 1);
    prompt->n_tokens = ids->len;
    prompt->token_ids = g_memdup2(ids->data, ids->len * sizeof(int32_t));
    prompt->next_position = (int32_t)ids->len;
    prompt->spans = g_array_new(FALSE, FALSE, sizeof(cs_prompt_span));
    prompt->items = g_array_new(FALSE, FALSE, sizeof(cs_prompt_item));
    return prompt;
}

static cs_prompt *build_from_text(cs_pipeline_request *r, GError **error)
{
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    if (!cs_pipeline_tokenize(r->pipeline, r->prompt, strlen(r->prompt), ids, error))
        return NULL;
    return prompt_of_ids(ids);
}

static cs_prompt *build_from_messages(cs_pipeline_request *r, GError **error)
{
    const cs_model *model = r->pipeline->model;
    cs_chat_request chat = {.messages = r->messages,
                            .tools = r->tools,
                            .extra = r->template_arguments,
                            .add_generation_prompt = true,
                            .guard = model->tokenizer};
    size_t text_bytes = 0;
    g_autofree char *text =
        cs_chat_template_render(model->chat_template, &chat, &text_bytes, error);
    if (!text)
        return NULL;
    const uint32_t n = r->media->len;
    g_autofree decoded_medium *decoded = g_new0(decoded_medium, n + 1);
    g_autofree cs_prompt_medium *media = g_new0(cs_prompt_medium, n + 1);
    for (uint32_t i = 0; i < n; i++) {
        decoded[i] = (decoded_medium){.request = r, .index = i};
        media[i] = (cs_prompt_medium){.modality = r->modalities[i],
                                      .use_audio_in_video = r->use_audio_in_video,
                                      .max_pixels = r->max_pixels[i],
                                      .open = medium_open,
                                      .close = medium_close,
                                      .user = &decoded[i]};
    }
    return model->family->prompt(model, text, text_bytes, n, media, error);
}

static cs_prompt *build_prompt(cs_pipeline_request *r, GError **error)
{
    if (r->messages)
        return build_from_messages(r, error);
    return r->prompt_ids ? prompt_of_ids(r->prompt_ids) : build_from_text(r, error);
}

static bool check_length(const cs_pipeline_request *r, const cs_prompt *prompt, GError **error)
{
    uint32_t max = r->pipeline->max_tokens;
    if (prompt->n_tokens == 0)
        return cs_fail(error, CS_ERROR_INVALID, "the prompt is empty");
    if (prompt->n_tokens >= max)
        return cs_fail(error, CS_ERROR_OVER_CONTEXT,
                       "the prompt has %u tokens; this server takes prompt and answer of at most "
                       "%u tokens together",
                       prompt->n_tokens, max);
    if (r->sampling.max_tokens > max - prompt->n_tokens)
        return cs_fail(error, CS_ERROR_OVER_CONTEXT,
                       "the prompt has %u tokens and %u more are asked for; this server takes at "
                       "most %u tokens together",
                       prompt->n_tokens, r->sampling.max_tokens, max);
    return true;
}

/* ---- encoders ---- */

static void input_dropped(void *user)
{
    pipeline_encoding *encoding = user;
    cs_pipeline_request *r = encoding->request;
    if (g_atomic_int_dec_and_test(&r->inputs_left))
        g_clear_pointer(
            &r->built, cs_prompt_free); /* pixels and spectrograms: the answer needs them no more */
    request_unref(r);
}

static void encoding_done(void *user, cs_shared_tensor *output, const GError *error)
{
    pipeline_encoding *encoding = user;
    if (error)
        cs_llm_request_fail(encoding->request->llm, error);
    else
        cs_llm_request_provide(encoding->request->llm, encoding->item, output, true);
}

static void encode_item(cs_pipeline_request *r, uint32_t i)
{
    const cs_prompt_item *item = &g_array_index(r->built->items, cs_prompt_item, i);
    pipeline_encoding *encoding = &r->encodings[i];
    cs_encoder_job_options options = {
        .input = {.item = item->input,
                  .content_hash = {item->content_hash[0], item->content_hash[1]}},
        .on_done = encoding_done,
        .free_user = input_dropped,
        .user = encoding,
    };
    g_autoptr(GError) error = NULL;
    request_ref(r);
    cs_encoder_job *job =
        cs_encoder_engine_submit(r->pipeline->encoders[item->modality], &options, &error);
    if (!job) {
        cs_llm_request_fail(r->llm, error);
        input_dropped(encoding);
        return;
    }
    g_mutex_lock(&r->lock);
    encoding->job = job;
    bool done = r->done;
    g_mutex_unlock(&r->lock);
    if (done)
        cs_encoder_job_cancel(job);
}

/* The worker's own share in inputs_left keeps the prompt until all are submitted. */
static void encode_items(cs_pipeline_request *r)
{
    uint32_t n = r->n_encodings;
    uint64_t counts[CS_N_MODALITIES] = {0};
    for (uint32_t i = 0; i < n; i++) {
        counts[g_array_index(r->built->items, cs_prompt_item, i).modality]++;
        encode_item(r, i);
    }
    g_mutex_lock(&r->pipeline->lock);
    for (int m = 0; m < CS_N_MODALITIES; m++)
        r->pipeline->counts.encoder_items[m] += counts[m];
    g_mutex_unlock(&r->pipeline->lock);
}

/* ---- handing over to the engines ---- */

static void fill_items(cs_pipeline_request *r, cs_llm_input_item *items, cs_llm_input_span *spans)
{
    const cs_prompt *prompt = r->built;
    for (guint i = 0; i < prompt->items->len; i++) {
        const cs_prompt_item *item = &g_array_index(prompt->items, cs_prompt_item, i);
        items[i] =
            (cs_llm_input_item){.content_hash = {item->content_hash[0], item->content_hash[1]},
                                .n_rows = item->n_tokens};
    }
    for (guint i = 0; i < prompt->spans->len; i++) {
        const cs_prompt_span *span = &g_array_index(prompt->spans, cs_prompt_span, i);
        const cs_prompt_item *item = &g_array_index(prompt->items, cs_prompt_item, span->item);
        spans[i] = (cs_llm_input_span){span->row, span->n, span->item, span->source_row};
        r->modality_tokens[item->modality] += span->n;
    }
}

static cs_sampling_params sampling_params(const cs_sampling *s)
{
    return (cs_sampling_params){.temperature = s->temperature,
                                .top_k = s->top_k,
                                .top_p = s->top_p,
                                .min_p = s->min_p,
                                .repetition_penalty = s->repetition_penalty,
                                .presence_penalty = s->presence_penalty,
                                .frequency_penalty = s->frequency_penalty,
                                .seed = s->seed,
                                .n_logprobs = s->n_logprobs,
                                .n_biases = s->n_biases,
                                .biases = s->biases};
}

/* With echo the prompt's text stands before every answer. */
static void send_echo(cs_pipeline_request *r)
{
    g_autofree char *text =
        r->prompt ? g_strdup(r->prompt)
                  : cs_pipeline_detokenize(r->pipeline, r->built->token_ids, r->built->n_tokens);
    for (uint32_t i = 0; i < r->n_choices; i++)
        r->sink.on_piece(r->user,
                         &(cs_piece){.choice = i, .text = text, .text_bytes = strlen(text)});
}

void pipeline_request_started(cs_pipeline_request *r)
{
    r->sink.on_start(r->user, r->built->n_tokens);
    if (r->echo)
        send_echo(r);
}

/* Under r->lock: the LLM engine has the request and nothing has been told before on_start. */
static bool submit_llm(cs_pipeline_request *r, GError **error)
{
    const cs_prompt *prompt = r->built;
    const cs_generation_defaults *generation = &r->pipeline->model->generation;
    g_autofree cs_llm_input_item *items = g_new0(cs_llm_input_item, prompt->items->len + 1);
    g_autofree cs_llm_input_span *spans = g_new0(cs_llm_input_span, prompt->spans->len + 1);
    fill_items(r, items, spans);
    cs_llm_request_options options = {
        .n_tokens = prompt->n_tokens,
        .token_ids = prompt->token_ids,
        .positions = (const int32_t(*)[3])prompt->positions,
        .next_position = prompt->next_position,
        .n_spans = prompt->spans->len,
        .spans = spans,
        .n_items = prompt->items->len,
        .items = items,
        .n_choices = r->n_choices,
        .sampling = sampling_params(&r->sampling),
        .max_tokens = r->sampling.max_tokens,
        .n_stop_ids = r->sampling.ignore_eos ? 0 : generation->n_eos_ids,
        .stop_ids = generation->eos_ids,
        .hidden_states = r->speech != NULL,
    };
    if (r->speech)
        options.pace = cs_talk_pace(r->pipeline->model->speech);
    if (r->aloud_ids) {
        options.n_generated = r->aloud_ids->len;
        options.generated = (const int32_t *)(void *)r->aloud_ids->data;
        options.max_tokens = r->aloud_ids->len + 1;
    }
    if (r->speech && !pipeline_speech_begin(r, error))
        return false;
    r->llm = cs_llm_engine_submit(r->pipeline->llm, &options, &pipeline_llm_sink, r, error);
    if (!r->llm)
        return false;
    pipeline_request_started(r);
    return true;
}

static bool start_remote(cs_pipeline_request *r, GError **error)
{
    g_mutex_lock(&r->lock);
    bool ok = pipeline_remote_submit(r, error);
    bool cancelled = r->cancelled;
    g_mutex_unlock(&r->lock);
    if (ok && cancelled)
        cs_runtime_request_cancel(r->remote);
    return ok;
}

static bool request_start(cs_pipeline_request *r, GError **error)
{
    if (r->pipeline->runtime)
        return start_remote(r, error);
    r->n_encodings = r->built->items->len;
    r->encodings = g_new0(pipeline_encoding, r->n_encodings + 1);
    for (uint32_t i = 0; i < r->n_encodings; i++)
        r->encodings[i] = (pipeline_encoding){.request = r, .item = i};
    r->inputs_left = (gint)r->n_encodings + 1;
    g_mutex_lock(&r->lock);
    bool ok = submit_llm(r, error);
    bool cancelled = r->cancelled || r->error;
    g_mutex_unlock(&r->lock);
    if (!ok)
        return false;
    if (cancelled)
        cancel_stages(r);
    encode_items(r);
    if (g_atomic_int_dec_and_test(&r->inputs_left))
        g_clear_pointer(&r->built, cs_prompt_free);
    return true;
}

/* ---- the workers ---- */

/* What the prompt was built from is of no more use. */
static void release_inputs(cs_pipeline_request *r)
{
    g_ptr_array_set_size(r->media, 0);
    g_clear_pointer(&r->messages, json_decref);
    g_clear_pointer(&r->tools, json_decref);
    g_clear_pointer(&r->template_arguments, json_decref);
}

static void request_prepare(cs_pipeline_request *r)
{
    g_autoptr(GError) error = NULL;
    if (request_is_cancelled(r))
        cs_fail(&error, CS_ERROR_CANCELLED, "the request was cancelled");
    else
        r->built = build_prompt(r, &error);
    release_inputs(r);
    if (r->built && check_length(r, r->built, &error))
        request_start(r, &error);
    if (error)
        pipeline_stage_done(r, NULL, error);
}

gpointer pipeline_worker_main(gpointer user)
{
    cs_pipeline *p = user;
    g_mutex_lock(&p->lock);
    bool text_only = !p->has_text_worker;
    p->has_text_worker = true;
    for (;;) {
        cs_pipeline_request *r = g_queue_pop_head(&p->text_queue);
        if (!r && (!text_only || p->ending))
            r = g_queue_pop_head(&p->media_queue);
        if (!r && p->ending)
            break;
        if (!r) {
            g_cond_wait(&p->changed, &p->lock);
            continue;
        }
        g_mutex_unlock(&p->lock);
        request_ref(r); /* on_done may come before it is left */
        request_prepare(r);
        request_unref(r);
        g_mutex_lock(&p->lock);
    }
    g_mutex_unlock(&p->lock);
    return NULL;
}
