/* Executor kind "model": components of a checkpoint, computed here.
 *
 *     {"dir": "/models/Qwen2.5-Omni-7B", "dtype": "auto", "isa": "", "threads": 0,
 *      "max_batch_tokens": 0, "max_sequences": 0, "max_context_tokens": 0, "max_queued": 0}
 *
 * It loads only what it hosts. Encoders read a medium as the gateway prepared it (payload.h)
 * and give embeddings; the LLM reads a Prompt (proto/runtime.proto), takes embeddings as they come,
 * and gives Tokens and, to a talker, states; the talker
 * gives codes, the vocoder samples. What producer and consumer here have in common is handed over
 * without a copy. All hosted components share one device: its threads, and turns on it. */
#include "base/error.h"
#include "base/json.h"
#include "models/qwen2_5_omni/token2wav.h"
#include "runtime/memory.h"
#include "runtime/model/internal.h"

#include <string.h>

#define DEFAULT_SEQUENCES 64
/* Of an executor's KV memory, where it hosts thinker and talker: its blocks are small. */
#define TALKER_KV_FRACTION 0.2
#define ENCODER_CACHE_BYTES (64u << 20)
/* While answers are being written, a step is kept about this long, so that a long prompt does not
 * hold them up. */
#define MIXED_STEP_TARGET_US 100000

/* --- news from engines --- */

void model_list(model_job *job)
{
    if (job->listed)
        return;
    job->listed = true;
    g_ptr_array_add(job->owner->news, job);
}

static void read_news(void *user)
{
    model *m = user;
    pthread_mutex_lock(&m->lock);
    g_autoptr(GPtrArray) news = m->news;
    m->news = g_ptr_array_new();
    m->posted = false;
    for (guint i = 0; i < news->len; i++)
        ((model_job *)news->pdata[i])->listed = false;
    pthread_mutex_unlock(&m->lock);
    for (guint i = 0; i < news->len; i++) {
        model_job *job = news->pdata[i];
        if (g_hash_table_contains(m->jobs, job))
            job->ops->news(job);
    }
}

void model_post(model *m)
{
    pthread_mutex_lock(&m->lock);
    bool post = !m->posted && m->news->len > 0;
    m->posted = m->posted || post;
    pthread_mutex_unlock(&m->lock);
    if (post)
        cs_loop_post(cs_executor_loop(m->host), read_news, m);
}

void model_poll_all(void *user)
{
    model *m = user;
    g_autofree gpointer *all = g_hash_table_get_keys_as_array(m->jobs, NULL);
    for (gpointer *job = all; *job; job++)
        if (g_hash_table_contains(m->jobs, *job))
            ((model_job *)*job)->ops->poll(*job);
}

static void run_later(void *user)
{
    model *m = user;
    g_autofree gpointer *all = g_hash_table_get_keys_as_array(m->later, NULL);
    g_hash_table_remove_all(m->later);
    for (gpointer *job = all; *job; job++)
        if (g_hash_table_contains(m->jobs, *job))
            ((model_job *)*job)->ops->later(*job);
}

void model_later(model_job *job)
{
    model *m = job->owner;
    if (g_hash_table_size(m->later) == 0)
        cs_loop_post(cs_executor_loop(m->host), run_later, m);
    g_hash_table_add(m->later, job);
}

/* --- jobs --- */

static void unlist(model_job *job)
{
    model *m = job->owner;
    pthread_mutex_lock(&m->lock);
    if (job->listed)
        g_ptr_array_remove_fast(m->news, job);
    pthread_mutex_unlock(&m->lock);
}

void model_finish(model_job *job, GError *error)
{
    model *m = job->owner;
    cs_job *host_job = job->job;
    unlist(job);
    g_hash_table_remove(m->jobs, job);
    g_hash_table_remove(m->later, job);
    model_handovers_leave(m, host_job, error != NULL);
    job->ops->free(job);
    host_job->data = NULL;
    cs_executor_done(host_job, error);
}

static model_job *new_job(model *m, cs_job *job, GError **error)
{
    static const struct {
        const char *component;
        model_job *(*make)(model *m, cs_job *job, GError **error);
    } kinds[] = {{"thinker", model_llm_job_new},
                 {"talker", model_talker_job_new},
                 {"vocoder", model_vocoder_job_new}};
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (strcmp(job->component, kinds[i].component) == 0)
            return kinds[i].make(m, job, error);
    return model_encoder_job_new(m, job, error);
}

static bool model_submit(void *state, cs_job *job, GError **error)
{
    model *m = state;
    model_handovers_enter(m, job);
    model_job *created = new_job(m, job, error);
    if (!created) {
        model_handovers_leave(m, job, true);
        return false;
    }
    job->data = created;
    g_hash_table_add(m->jobs, created);
    created->ops->poll(created);
    return true;
}

static void model_cancel(void *state, cs_job *job)
{
    model_job *j = job->data;
    j->ops->cancel(j);
}

static void model_allow(void *state, cs_job *job, uint64_t n_units)
{
    model_job *j = job->data;
    if (j->ops->allow)
        j->ops->allow(j, n_units);
}

static void model_load(void *state, Cornserve__Wire__Load *load)
{
    model *m = state;
    cs_llm_engine_stats stats;
    if (m->talker) {
        cs_llm_engine_stats_get(m->talker, &stats);
        load->talker_running = stats.running;
        load->talker_kv_blocks_used = stats.kv_blocks_used;
        load->talker_kv_blocks_total = stats.kv_blocks_total;
        load->talker_max_tokens = cs_llm_engine_max_tokens(m->talker);
    }
    if (m->vocoder) {
        cs_generator_engine_stats sound;
        cs_generator_engine_stats_get(m->vocoder, &sound);
        load->sounds = sound.requests;
        load->sound_steps = sound.steps;
        load->sound_step_streams = sound.step_streams;
    }
    if (!m->llm) {
        load->running = g_hash_table_size(m->jobs);
        return;
    }
    cs_llm_engine_stats_get(m->llm, &stats);
    load->running = stats.running;
    load->waiting = stats.waiting;
    load->kv_blocks_used = stats.kv_blocks_used;
    load->kv_blocks_total = stats.kv_blocks_total;
    load->preemptions = (uint32_t)stats.preemptions;
    load->max_tokens = cs_llm_engine_max_tokens(m->llm);
    load->vocab_size = m->vocab_size;
    load->kv_block_bytes = m->kv_block_bytes;
}

/* --- life --- */

typedef struct {
    const char *dir, *dtype, *isa;
    uint32_t threads, max_batch_tokens, max_sequences, max_context_tokens, max_queued;
} configuration;

static bool read_configuration(const json_t *config, configuration *c, GError **error)
{
    cs_json_reader r;
    cs_json_reader_init(&r, (json_t *)config, "executor");
    cs_json_only(&r,
                 (const char *const[]){"dir", "dtype", "isa", "threads", "max_batch_tokens",
                                       "max_sequences", "max_context_tokens", "max_queued", NULL});
    c->dir = cs_json_string(&r, "dir");
    c->dtype = cs_json_string_or(&r, "dtype", "auto");
    c->isa = cs_json_string_or(&r, "isa", "");
    c->threads = (uint32_t)cs_json_int_or(&r, "threads", 0, 4096, 0);
    c->max_batch_tokens = (uint32_t)cs_json_int_or(&r, "max_batch_tokens", 0, INT32_MAX, 0);
    c->max_sequences = (uint32_t)cs_json_int_or(&r, "max_sequences", 0, INT32_MAX, 0);
    c->max_context_tokens = (uint32_t)cs_json_int_or(&r, "max_context_tokens", 0, INT32_MAX, 0);
    c->max_queued = (uint32_t)cs_json_int_or(&r, "max_queued", 0, INT32_MAX, 0);
    return cs_json_reader_finish(&r, error);
}

static bool check_components(char **components, GError **error)
{
    static const char *const known[] = {"thinker", "image_encoder", "audio_encoder",
                                        "talker",  "vocoder",       NULL};
    for (char **name = components; *name; name++)
        if (!g_strv_contains(known, *name))
            return cs_fail(error, CS_ERROR_UNSUPPORTED,
                           "component %s: an executor on this device runs thinker, image_encoder, "
                           "audio_encoder, talker and vocoder only",
                           *name);
    return true;
}

static bool load_components(model *m, const configuration *c, char **components, GError **error)
{
    const cs_executor_share *share = cs_executor_get_share(m->host);
    m->compute = cs_compute_new(
        &(cs_compute_options){.n_threads = share->threads ? share->threads : c->threads,
                              .isa = *c->isa ? c->isa : NULL},
        error);
    if (!m->compute)
        return false;
    bool has_llm = g_strv_contains((const char *const *)components, "thinker");
    m->checkpoint =
        cs_model_load(c->dir,
                      &(cs_model_options){.compute = m->compute,
                                          .dtype = c->dtype,
                                          .speech = true, /* what a talker hears, at least */
                                          .components = (const char *const *)components,
                                          .no_text = !has_llm}, /* it looks for stop strings */
                      error);
    return m->checkpoint != NULL;
}

/* Of a component that is hosted in halves, the larger. */
static uint32_t batch_of(const cs_executor_share *share, char **components, const char *name)
{
    uint32_t batch = 0;
    for (uint32_t i = 0; i < share->n_max_batch && components[i]; i++)
        if (strcmp(components[i], name) == 0)
            batch = MAX(batch, share->max_batch[i]);
    return batch;
}

static cs_llm_engine_options llm_options(const model *m, const configuration *c, uint32_t batch)
{
    uint32_t fallback = c->max_sequences ? c->max_sequences : DEFAULT_SEQUENCES;
    return (cs_llm_engine_options){.max_step_tokens = c->max_batch_tokens,
                                   .max_sequences = batch ? batch : fallback,
                                   .max_context_tokens = c->max_context_tokens,
                                   .max_queued_requests = c->max_queued,
                                   .mixed_step_target_us = MIXED_STEP_TARGET_US,
                                   .turn = m->turn,
                                   .on_step = model_llm_on_step,
                                   .on_step_user = (void *)m};
}

static bool start_thinker(model *m, const configuration *c, char **components, GError **error)
{
    cs_llm *llm = g_steal_pointer(&m->checkpoint->llm); /* the engine's now */
    const cs_executor_share *share = cs_executor_get_share(m->host);
    if (!llm)
        return true;
    cs_llm_engine_options options = llm_options(m, c, batch_of(share, components, "thinker"));
    options.hidden_states = m->checkpoint->speech != NULL;
    m->kv_block_bytes = llm->kv_block_bytes;
    m->vocab_size = llm->vocab_size;
    bool has_talker = g_strv_contains((const char *const *)components, "talker");
    options.kv_budget_bytes = share->kv_budget_bytes
                                  ? share->kv_budget_bytes
                                  : cs_kv_budget_bytes(llm, &options, share->memory_share);
    if (has_talker)
        options.kv_budget_bytes =
            MAX((size_t)((double)options.kv_budget_bytes * (1 - TALKER_KV_FRACTION)),
                MIN(llm->kv_block_bytes, options.kv_budget_bytes));
    m->llm = cs_llm_engine_new(llm, &options, error);
    return m->llm != NULL;
}

static bool start_talker(model *m, const configuration *c, char **components, GError **error)
{
    cs_llm *talker = m->checkpoint->speech ? g_steal_pointer(&m->checkpoint->speech->talker) : NULL;
    const cs_executor_share *share = cs_executor_get_share(m->host);
    if (!talker)
        return true;
    cs_llm_engine_options options = llm_options(m, c, batch_of(share, components, "talker"));
    options.name = "talker";
    options.max_context_tokens = 0;
    options.kv_budget_bytes = share->kv_budget_bytes
                                  ? share->kv_budget_bytes
                                  : cs_kv_budget_bytes(talker, &options, share->memory_share);
    if (m->llm)
        options.kv_budget_bytes = MAX(
            (size_t)((double)options.kv_budget_bytes * TALKER_KV_FRACTION), talker->kv_block_bytes);
    m->bans = cs_talk_bans(m->checkpoint->speech, talker->vocab_size);
    m->talker = cs_llm_engine_new(talker, &options, error);
    return m->talker != NULL;
}

static bool start_vocoder(model *m, const configuration *c, char **components, GError **error)
{
    cs_token2wav *token2wav =
        m->checkpoint->speech ? g_steal_pointer(&m->checkpoint->speech->token2wav) : NULL;
    if (!token2wav)
        return true;
    cs_generator *generator = cs_token2wav_generator(token2wav);
    m->samples_per_code = generator->samples_per_code;
    const cs_generator_engine_options options = {
        .name = "vocoder",
        .max_requests = c->max_queued,
        .max_batch = batch_of(cs_executor_get_share(m->host), components, "vocoder"),
        .turn = m->turn};
    m->vocoder = cs_generator_engine_new(generator, &options, error);
    return m->vocoder != NULL;
}

/* A component of a checkpoint without it. */
static bool check_speech(const model *m, char **components, GError **error)
{
    const char *const *names = (const char *const *)components;
    bool asked = g_strv_contains(names, "talker") || g_strv_contains(names, "vocoder");
    return !asked || m->checkpoint->speech ||
           cs_fail(error, CS_ERROR_UNSUPPORTED, "this checkpoint does not speak");
}

static bool start_encoders(model *m, GError **error)
{
    static const char *const names[CS_N_MODALITIES] = {"image", "video", "audio"};
    cs_encoder **components = m->checkpoint->encoders;
    bool shared = components[CS_MODALITY_VIDEO] == components[CS_MODALITY_IMAGE];
    for (int i = 0; i < CS_N_MODALITIES; i++) {
        bool is_shared = i == CS_MODALITY_VIDEO && shared;
        cs_encoder *encoder = g_steal_pointer(&components[i]); /* the engine's now */
        if (is_shared)
            m->encoders[i] = m->encoders[CS_MODALITY_IMAGE];
        if (!encoder || is_shared)
            continue;
        cs_encoder_engine_options options = {.name = names[i],
                                             .cache_bytes = ENCODER_CACHE_BYTES,
                                             .turn = m->turn,
                                             .batches = m->batches};
        m->encoders[i] = cs_encoder_engine_new(encoder, &options, error);
        if (!m->encoders[i])
            return false;
    }
    return true;
}

static void stop_engines(model *m)
{
    bool shared = m->encoders[CS_MODALITY_VIDEO] == m->encoders[CS_MODALITY_IMAGE];
    for (int i = 0; i < CS_N_MODALITIES; i++)
        if (i != CS_MODALITY_VIDEO || !shared)
            cs_encoder_engine_free(m->encoders[i]);
    cs_llm_engine_free(m->llm);
    cs_llm_engine_free(m->talker);
    cs_generator_engine_free(m->vocoder);
}

static void model_close(void *state)
{
    model *m = state;
    stop_engines(m); /* ends their requests; the news are not read any more */
    GHashTableIter iter;
    void *job;
    g_hash_table_iter_init(&iter, m->jobs);
    while (g_hash_table_iter_next(&iter, &job, NULL))
        ((model_job *)job)->ops->free(job);
    g_hash_table_unref(m->jobs);
    g_hash_table_unref(m->handovers);
    g_hash_table_unref(m->later);
    g_clear_pointer(&m->bans, g_array_unref);
    cs_model_free(m->checkpoint);
    cs_compute_free(m->compute);
    cs_turn_free(m->turn);
    cs_turn_free(m->batches);
    g_ptr_array_unref(m->news);
    pthread_mutex_destroy(&m->lock);
    g_free(m);
}

static void *model_open(cs_executor *host, const json_t *config, char **components, GError **error)
{
    configuration c;
    if (!read_configuration(config, &c, error) || !check_components(components, error))
        return NULL;
    model *m = g_new0(model, 1);
    m->host = host;
    m->jobs = g_hash_table_new(NULL, NULL);
    m->handovers = model_handovers_new();
    m->later = g_hash_table_new(NULL, NULL);
    m->news = g_ptr_array_new();
    m->turn = cs_executor_get_share(host)->shares_cpus
                  ? cs_turn_new_shared(cs_executor_common_file(host))
                  : cs_turn_new();
    m->batches = cs_turn_new();
    pthread_mutex_init(&m->lock, NULL);
    if (load_components(m, &c, components, error) && check_speech(m, components, error) &&
        start_thinker(m, &c, components, error) && start_talker(m, &c, components, error) &&
        start_vocoder(m, &c, components, error) && start_encoders(m, error))
        return m;
    model_close(m);
    return NULL;
}

const cs_executor_kind cs_executor_model = {
    .name = "model",
    .hands_over = true,
    .open = model_open,
    .submit = model_submit,
    .cancel = model_cancel,
    .allow = model_allow,
    .doorbell = model_poll_all,
    .load = model_load,
    .close = model_close,
};
