/* Speech: from the states of the LLM to sound, while it is still writing.
 *
 *   LLM engine -- hidden states --> talker's engine -- codes --> generator engine -> on_audio
 *
 * A request that speaks has three stages; the first error of any of them ends the others, and the
 * request is done when the last one is.
 */
#include "runtime/pipeline/internal.h"

#include "base/error.h"
#include "models/qwen2_5_omni/token2wav.h"

#include <string.h>

/* The talker's blocks are small beside the LLM's: a share of the free memory, or of the budget that
 * was given for the LLM. */
#define TALKER_KV_FRACTION 0.25

/* ---- engines ---- */

void pipeline_voices_open(cs_pipeline *p)
{
    p->voices.names = p->model->speech->voices;
    p->voices.tokens = p->model->speech->voice_tokens;
}

bool pipeline_voices_start(cs_pipeline *p, const cs_llm_engine_options *thinker, GError **error)
{
    cs_speech *speech = p->model->speech;
    pipeline_voices *v = &p->voices;
    if (!speech)
        return true;
    pipeline_voices_open(p);
    cs_generator *generator = cs_token2wav_generator(speech->token2wav);
    speech->token2wav = NULL; /* the engine's now */
    cs_generator_engine_options sound = {
        .name = "vocoder", .max_requests = p->max_queued_requests, .turn = p->turn};
    v->generator = cs_generator_engine_new(generator, &sound, error);
    if (!v->generator)
        return false;
    cs_llm *talker = g_steal_pointer(&speech->talker);
    v->bans = cs_talk_bans(speech, talker->vocab_size);
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
    g_clear_pointer(&v->bans, g_array_unref);
}

const char *const *cs_pipeline_voices(const cs_pipeline *p)
{
    return (const char *const *)p->voices.names;
}

uint32_t cs_pipeline_audio_rate(const cs_pipeline *p)
{
    return p->voices.names ? p->model->speech->sample_rate : 0;
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
        return cs_fail(error, CS_ERROR_UNSUPPORTED,
                       p->model->speech ? "no executor of this server's plan speaks"
                                        : "this model does not speak");
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
    if (!v->talker)
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
    s->heard_ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
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
    g_array_unref(s->heard_ids);
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
    cs_runtime_request *remote = r->remote;
    g_mutex_unlock(&r->lock);
    if (remote)
        cs_runtime_request_allow(remote, n_samples);
    if (sound) /* without it nothing can have been handed out that would make room */
        cs_generator_request_allow(sound, n_samples);
}

/* ---- what the talker hears ---- */

void pipeline_speech_hidden(cs_pipeline_request *r, uint32_t row, uint32_t n, const float *hidden)
{
    pipeline_speech *s = r->speech;
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_shared_tensor) rows = cs_talk_rows(
        r->pipeline->model, n, &g_array_index(s->heard_ids, int32_t, row), hidden, &error);
    if (rows)
        cs_talk_hear(&s->ear, rows);
    else
        cs_llm_request_fail(s->talker, error);
}

void pipeline_speech_text_end(cs_pipeline_request *r)
{
    if (r->speech->talker) /* with a plan its executor hears the LLM's end itself */
        cs_talk_end(&r->speech->ear);
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
    if (cs_talk_is_cut(s->n_codes, reason == CS_LLM_FINISH_LENGTH, &error))
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

static cs_llm_request *submit_talker(cs_pipeline_request *r, GError **error)
{
    const cs_pipeline *p = r->pipeline;
    const cs_talk_options options = {.n_prompt = r->built->n_tokens,
                                     .positions = (const int32_t(*)[3])r->built->positions,
                                     .next_position = r->built->next_position,
                                     .temperature = r->speech->temperature,
                                     .repetition_penalty = r->speech->repetition_penalty,
                                     .seed = r->sampling.seed};
    return cs_talk_submit(p->voices.talker, p->model->speech, p->voices.bans, &options,
                          &talker_sink, r, error);
}

bool pipeline_speech_begin(cs_pipeline_request *r, GError **error)
{
    pipeline_speech *s = r->speech;
    g_array_append_vals(s->heard_ids, r->built->token_ids, r->built->n_tokens);
    if (r->aloud_ids)
        g_array_append_vals(s->heard_ids, r->aloud_ids->data, r->aloud_ids->len);
    s->sound = submit_sound(r, error);
    if (!s->sound)
        return false;
    r->stages_left++;
    s->talker = submit_talker(r, error);
    if (!s->talker)
        return false;
    r->stages_left++;
    s->ear = (cs_talk_ear){.model = r->pipeline->model,
                           .talker = s->talker,
                           .n_prompt = r->built->n_tokens,
                           .voice_token = r->pipeline->voices.tokens[s->voice]};
    return true;
}
