/* Speech: from the states of the LLM to sound, while it is still writing.
 *
 *   LLM engine -- hidden states --> talker's engine -- codes --> generator engine -> on_audio
 *
 * A request that speaks has three stages; the first error of any of them ends the others, and the
 * request is done when the last one is.
 */
#include "runtime/pipeline_internal.h"

#include "base/error.h"
#include "models/qwen2_5_omni/token2wav.h"

#include <math.h>
#include <string.h>

/* The talker's blocks are small beside the LLM's: a share of the free memory, or of the budget that
 * was given for the LLM. */
#define TALKER_KV_FRACTION 0.25

enum { ITEM_PROMPT, ITEM_REPLY, N_ITEMS };

/* ---- engines ---- */

static void read_voices(pipeline_voices *v, const cs_speakers *speakers)
{
    v->names = g_new0(char *, speakers->n + 1);
    v->tokens = g_new0(int32_t, speakers->n + 1);
    for (uint32_t i = 0; i < speakers->n; i++) {
        v->names[i] = g_strdup(speakers->speakers[i].name);
        v->tokens[i] = speakers->speakers[i].bos_token;
    }
}

/* All that is no sound and does not end it. */
static GArray *bans_of(const cs_speech *speech, uint32_t vocab_size)
{
    GArray *bans = g_array_new(FALSE, FALSE, sizeof(cs_token_bias));
    for (int32_t id = 0; id < (int32_t)vocab_size; id++) {
        bool stops = id == speech->stop_ids[0] || id == speech->stop_ids[1];
        cs_token_bias ban = {id, -INFINITY};
        if (id == speech->start_id || (id >= speech->n_codes && !stops))
            g_array_append_val(bans, ban);
    }
    return bans;
}

bool pipeline_voices_start(cs_pipeline *p, const cs_llm_engine_options *thinker, GError **error)
{
    cs_speech *speech = p->model->speech;
    pipeline_voices *v = &p->voices;
    if (!speech)
        return true;
    read_voices(v, cs_token2wav_speakers(speech->token2wav));
    cs_generator *generator = cs_token2wav_generator(speech->token2wav);
    v->sample_rate = generator->sample_rate;
    speech->token2wav = NULL; /* the engine's now */
    cs_generator_engine_options sound = {
        .name = "vocoder", .max_requests = p->max_queued_requests, .turn = p->turn};
    v->generator = cs_generator_engine_new(generator, &sound, error);
    if (!v->generator)
        return false;
    cs_llm *talker = g_steal_pointer(&speech->talker);
    v->bans = bans_of(speech, talker->vocab_size);
    cs_llm_engine_options options = *thinker;
    options.name = "talker";
    options.hidden_states = false;
    options.max_context_tokens = 0;
    options.kv_budget_bytes = MAX((size_t)((double)thinker->kv_budget_bytes * TALKER_KV_FRACTION),
                                  talker->kv_block_bytes * 64);
    v->talker = cs_llm_engine_new(talker, &options, error);
    return v->talker != NULL;
}

void pipeline_voices_stop(pipeline_voices *v)
{
    cs_llm_engine_free(v->talker);
    cs_generator_engine_free(v->generator);
}

void pipeline_voices_clear(pipeline_voices *v)
{
    g_strfreev(v->names);
    g_free(v->tokens);
    g_clear_pointer(&v->bans, g_array_unref);
}

const char *const *cs_pipeline_voices(const cs_pipeline *p)
{
    return (const char *const *)p->voices.names;
}

uint32_t cs_pipeline_audio_rate(const cs_pipeline *p)
{
    return p->voices.sample_rate;
}

/* -1: there is none of that name. */
static int find_voice(const pipeline_voices *v, const char *name)
{
    for (int i = 0; v->names[i]; i++)
        if (g_ascii_strcasecmp(v->names[i], name) == 0)
            return i;
    return -1;
}

void cs_pipeline_voice_defaults(const cs_pipeline *p, cs_voice *voice)
{
    const cs_speech *speech = p->model->speech;
    *voice = (cs_voice){0};
    if (p->voices.names)
        *voice = (cs_voice){.name = p->voices.names[MAX(0, find_voice(&p->voices, speech->voice))],
                            .temperature = speech->temperature,
                            .repetition_penalty = speech->repetition_penalty};
}

bool cs_pipeline_voice_check(const cs_pipeline *p, const char *name, GError **error)
{
    if (!p->voices.names)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "this model does not speak");
    if (find_voice(&p->voices, name) >= 0)
        return true;
    g_autofree char *names = g_strjoinv(", ", p->voices.names);
    return cs_fail(error, CS_ERROR_NOT_FOUND, "there is no voice \"%.40s\"; this model has %s",
                   name, names);
}

cs_media_pool *cs_pipeline_audio_pool(const cs_pipeline *p)
{
    return p->voices.names ? p->media : NULL;
}

void pipeline_speech_stats(const pipeline_voices *v, cs_pipeline_stats *stats)
{
    if (!v->names)
        return;
    cs_llm_engine_stats talker;
    cs_generator_engine_stats sound;
    cs_llm_engine_stats_get(v->talker, &talker);
    cs_generator_engine_stats_get(v->generator, &sound);
    stats->talker_running = talker.running;
    stats->talker_kv_blocks_used = talker.kv_blocks_used;
    stats->talker_kv_blocks_total = talker.kv_blocks_total;
    stats->speech_tokens = talker.completion_tokens;
    stats->sounds = sound.requests;
    stats->speech_samples = sound.samples;
    stats->sound_steps = sound.steps;
    stats->sound_step_streams = sound.step_streams;
}

/* ---- a request's speech ---- */

pipeline_speech *pipeline_speech_new(const cs_pipeline *p, const cs_voice *voice)
{
    if (!voice->name)
        return NULL;
    pipeline_speech *s = g_new0(pipeline_speech, 1);
    s->voice = (uint32_t)find_voice(&p->voices, voice->name);
    s->temperature = voice->temperature;
    s->repetition_penalty = voice->repetition_penalty;
    s->credit_samples = voice->credit_samples;
    s->prompt_ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    s->reply_ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g_mutex_init(&s->sink_lock);
    return s;
}

void pipeline_speech_free(pipeline_speech *s)
{
    if (!s)
        return;
    if (s->talker)
        cs_llm_request_release(s->talker);
    if (s->sound)
        cs_generator_request_release(s->sound);
    g_array_unref(s->prompt_ids);
    g_array_unref(s->reply_ids);
    g_mutex_clear(&s->sink_lock);
    g_free(s);
}

bool pipeline_speech_read_aloud(cs_pipeline_request *r, const char *text, const char *how,
                                GError **error)
{
    const cs_model *model = r->pipeline->model;
    r->aloud_ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    if (!cs_tokenizer_encode(model->tokenizer, text, strlen(text), 0, r->aloud_ids, error))
        return false;
    if (r->aloud_ids->len == 0)
        return cs_fail(error, CS_ERROR_INVALID, "there is no text to be read aloud");
    g_autofree char *ask =
        g_strconcat(model->speech->reader_request, text, how ? "\n\n" : "", how ? how : "", NULL);
    r->messages = json_pack("[{s:s,s:s},{s:s,s:s}]", "role", "system", "content",
                            model->speech->reader_system, "role", "user", "content", ask);
    return r->messages || cs_fail(error, CS_ERROR_INVALID, "the text to be read is no UTF-8");
}

void cs_pipeline_audio_allow(cs_pipeline_request *r, uint64_t n_samples)
{
    g_mutex_lock(&r->lock);
    cs_generator_request *sound = r->speech ? r->speech->sound : NULL;
    g_mutex_unlock(&r->lock);
    if (sound) /* without it nothing can have been handed out that would make room */
        cs_generator_request_allow(sound, n_samples);
}

/* ---- what the talker hears ---- */

static void provide(cs_pipeline_request *r, uint32_t item, uint32_t n, const int32_t *ids,
                    const float *hidden, bool last)
{
    const cs_model *model = r->pipeline->model;
    g_autoptr(cs_shared_tensor) rows =
        cs_shared_tensor_new(CS_DTYPE_F32, n, model->speech->heard_size);
    if (!rows) {
        g_autoptr(GError) error = NULL;
        cs_fail(&error, CS_ERROR_FAILED, "no memory for %u rows that the talker hears", n);
        cs_llm_request_fail(r->speech->talker, error);
        return;
    }
    model->speech->hear(model, n, ids, hidden, rows->t.data);
    cs_llm_request_provide(r->speech->talker, item, rows, last);
}

static void hear_prompt(cs_pipeline_request *r, uint32_t row, uint32_t n, const float *hidden)
{
    const pipeline_speech *s = r->speech;
    provide(r, ITEM_PROMPT, n, &g_array_index(s->prompt_ids, int32_t, row), hidden, false);
    if (row + n == s->prompt_ids->len)
        provide(r, ITEM_PROMPT, 1, &r->pipeline->voices.tokens[s->voice], NULL, false);
}

/* The first row of the reply is the last of the talker's prompt. */
static void hear_reply(cs_pipeline_request *r, uint32_t row, uint32_t n, const float *hidden)
{
    const int32_t *ids = &g_array_index(r->speech->reply_ids, int32_t, row);
    uint32_t n_first = row == 0 && n > 0;
    if (n_first)
        provide(r, ITEM_PROMPT, 1, ids, hidden, true);
    if (n > n_first)
        provide(r, ITEM_REPLY, n - n_first, ids + n_first,
                hidden + (size_t)n_first * r->pipeline->model->speech->heard_size, false);
    r->speech->n_heard += n;
}

void pipeline_speech_hidden(cs_pipeline_request *r, uint32_t row, uint32_t n, const float *hidden)
{
    uint32_t n_prompt = r->speech->prompt_ids->len;
    uint32_t of_prompt = row < n_prompt ? MIN(n, n_prompt - row) : 0;
    if (of_prompt > 0)
        hear_prompt(r, row, of_prompt, hidden);
    if (n > of_prompt)
        hear_reply(r, row + of_prompt - n_prompt, n - of_prompt,
                   hidden + (size_t)of_prompt * r->pipeline->model->speech->heard_size);
}

void pipeline_speech_text_end(cs_pipeline_request *r)
{
    const cs_speech *speech = r->pipeline->model->speech;
    if (r->speech->n_heard > 0) {
        const int32_t ids[] = {speech->text_end, speech->text_pad};
        provide(r, ITEM_REPLY, 2, ids, NULL, true);
        return;
    }
    g_autoptr(GError) error = NULL;
    cs_fail(&error, CS_ERROR_FAILED,
            "the answer has fewer than two tokens, which is too short to be spoken");
    cs_llm_request_fail(r->speech->talker, error);
}

/* ---- the talker's calls ---- */

static bool talker_on_token(void *user, const cs_llm_token *token)
{
    pipeline_speech *s = ((cs_pipeline_request *)user)->speech;
    s->n_codes++;
    cs_generator_request_push(s->sound, 1, &token->token->id, false);
    return true;
}

static void talker_on_finish(void *user, uint32_t choice, cs_llm_finish reason)
{
    pipeline_speech *s = ((cs_pipeline_request *)user)->speech;
    g_autoptr(GError) error = NULL;
    if (s->n_codes == 0)
        cs_fail(&error, CS_ERROR_FAILED, "the model made no sound for this answer");
    else if (reason == CS_LLM_FINISH_LENGTH)
        cs_fail(&error, CS_ERROR_TOO_LARGE,
                "the speech is longer than %u codes and would be cut there", s->n_codes);
    if (error)
        cs_generator_request_fail(s->sound, error);
    else
        cs_generator_request_push(s->sound, 0, NULL, true);
}

static void talker_on_done(void *user, const cs_llm_usage *usage, const GError *error)
{
    pipeline_stage_done(user, NULL, error);
}

static const cs_llm_sink talker_sink = {
    .on_token = talker_on_token, .on_finish = talker_on_finish, .on_done = talker_on_done};

/* ---- the generator's calls ---- */

static void sound_on_samples(void *user, uint32_t n, const float *samples)
{
    cs_pipeline_request *r = user;
    g_mutex_lock(&r->speech->sink_lock);
    r->sink.on_audio(r->user, n, samples);
    g_mutex_unlock(&r->speech->sink_lock);
}

static void sound_on_done(void *user, const GError *error)
{
    pipeline_stage_done(user, NULL, error);
}

static const cs_generator_sink sound_sink = {sound_on_samples, sound_on_done};

/* ---- submission ---- */

static cs_generator_request *submit_sound(cs_pipeline_request *r, GError **error)
{
    const pipeline_voices *v = &r->pipeline->voices;
    const cs_generator_request_options options = {.voice = v->names[r->speech->voice],
                                                  .seed = r->sampling.seed,
                                                  .credit_samples = r->speech->credit_samples};
    return cs_generator_engine_submit(v->generator, &options, &sound_sink, r, error);
}

/* Positions of the talker's prompt: those of the LLM's, then two more. NULL: 0, 1, 2, ... */
static int32_t (*positions_of(const cs_prompt *prompt))[3]
{
    uint32_t n = prompt->n_tokens;
    if (!prompt->positions)
        return NULL;
    int32_t(*positions)[3] = g_malloc_n(n + 2, sizeof(*positions));
    memcpy(positions, prompt->positions, n * sizeof(*positions));
    for (int axis = 0; axis < 3; axis++) {
        positions[n][axis] = prompt->next_position;
        positions[n + 1][axis] = prompt->next_position + 1;
    }
    return positions;
}

/* Codes that the talker may still write behind its prompt. */
static bool room_for_codes(const cs_pipeline *p, uint32_t n_prompt, uint32_t *n_codes,
                           GError **error)
{
    uint32_t max = cs_llm_engine_max_tokens(p->voices.talker);
    if (n_prompt >= max)
        return cs_fail(error, CS_ERROR_OVER_CONTEXT,
                       "the talker's prompt has %u tokens; it takes at most %u with its answer",
                       n_prompt, max);
    *n_codes = MIN(p->model->speech->max_tokens, max - n_prompt);
    return true;
}

static cs_llm_request *submit_talker(cs_pipeline_request *r, GError **error)
{
    cs_pipeline *p = r->pipeline;
    const cs_speech *speech = p->model->speech;
    uint32_t n = r->built->n_tokens, n_codes = 0;
    if (!room_for_codes(p, n + 2, &n_codes, error))
        return NULL;
    g_autofree int32_t *ids = g_new(int32_t, n + 2);
    cs_speech_prompt(speech, n, ids);
    g_autofree int32_t(*positions)[3] = positions_of(r->built);
    const cs_llm_input_span span = {0, n + 2, ITEM_PROMPT, 0};
    const cs_llm_input_item items[N_ITEMS] = {[ITEM_PROMPT] = {.n_rows = n + 2}};
    const cs_llm_request_options options = {
        .n_tokens = n + 2,
        .token_ids = ids,
        .positions = (const int32_t(*)[3])positions,
        .next_position = r->built->next_position + 2,
        .n_spans = 1,
        .spans = &span,
        .n_items = N_ITEMS,
        .items = items,
        .has_reply_item = true,
        .reply_item = ITEM_REPLY,
        .sampling = {.temperature = r->speech->temperature,
                     .top_k = speech->top_k,
                     .top_p = speech->top_p,
                     .repetition_penalty = r->speech->repetition_penalty,
                     .seed = r->sampling.seed,
                     .n_logprobs = -1,
                     .n_biases = p->voices.bans->len,
                     .biases = (const cs_token_bias *)(void *)p->voices.bans->data},
        .max_tokens = n_codes,
        .n_stop_ids = G_N_ELEMENTS(speech->stop_ids),
        .stop_ids = speech->stop_ids,
    };
    return cs_llm_engine_submit(p->voices.talker, &options, &talker_sink, r, error);
}

bool pipeline_speech_begin(cs_pipeline_request *r, GError **error)
{
    pipeline_speech *s = r->speech;
    g_array_append_vals(s->prompt_ids, r->built->token_ids, r->built->n_tokens);
    if (r->aloud_ids)
        g_array_append_vals(s->reply_ids, r->aloud_ids->data, r->aloud_ids->len);
    s->sound = submit_sound(r, error);
    if (!s->sound)
        return false;
    r->stages_left++;
    s->talker = submit_talker(r, error);
    if (!s->talker)
        return false;
    r->stages_left++;
    return true;
}
