#include "runtime/pipeline/internal.h"

#include "base/error.h"
#include "base/os.h"
#include "runtime/memory.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_QUEUED_REQUESTS 1024
#define DEFAULT_SEQUENCES 64
#define N_WORKERS 4
#define ENCODER_CACHE_BYTES (64u << 20)
/* While answers are being written, a step is kept about this long, so that a long prompt does not
 * hold them up. */
#define MIXED_STEP_TARGET_US 100000
/* Text has three to five bytes a token; long runs of spaces or dashes have more. */
#define MAX_BYTES_PER_TOKEN 64

/* ---- life ---- */

static char *directory_name(const char *dir, GError **error)
{
    g_autofree char *real = realpath(dir, NULL);
    if (!real) {
        cs_fail(error, CS_ERROR_NOT_FOUND, "%s: there is no such directory", dir);
        return NULL;
    }
    return g_path_get_basename(real);
}

typedef struct {
    const cs_pipeline_options *options;
} load_progress;

static void on_load_progress(void *user, size_t done_bytes, size_t total_bytes)
{
    const load_progress *progress = user;
    if (progress->options->progress)
        progress->options->progress(progress->options->progress_user, "weights",
                                    total_bytes ? (double)done_bytes / (double)total_bytes : 1);
}

static bool load_model(cs_pipeline *p, const char *dir, const cs_pipeline_options *o,
                       GError **error)
{
    static const char *const none[] = {NULL}; /* executors load the components */
    load_progress progress = {o};
    p->compute = cs_compute_new(
        &(cs_compute_options){.n_threads = o->plan ? 1 : o->n_threads, .isa = o->isa}, error);
    if (!p->compute)
        return false;
    p->model = cs_model_load(dir,
                             &(cs_model_options){.compute = p->compute,
                                                 .dtype = o->dtype,
                                                 .speech = !o->no_speech,
                                                 .components = o->plan ? none : NULL,
                                                 .progress = on_load_progress,
                                                 .user = &progress},
                             error);
    if (p->model && !o->plan)
        on_load_progress(&progress, 1, 1);
    return p->model != NULL;
}

static bool start_llm(cs_pipeline *p, const cs_pipeline_options *o, GError **error)
{
    cs_llm_engine_options options = {.max_step_tokens = o->max_batch_tokens,
                                     .max_sequences =
                                         o->max_sequences ? o->max_sequences : DEFAULT_SEQUENCES,
                                     .max_context_tokens = o->max_context_tokens,
                                     .max_queued_requests = p->max_queued_requests,
                                     .mixed_step_target_us = MIXED_STEP_TARGET_US,
                                     .hidden_states = p->model->speech != NULL,
                                     .turn = p->turn};
    cs_llm *llm = g_steal_pointer(&p->model->llm); /* the engine's now */
    p->kv_block_bytes = llm->kv_block_bytes;
    options.kv_budget_bytes =
        o->kv_budget_bytes ? o->kv_budget_bytes : cs_kv_budget_bytes(llm, &options, 1);
    p->llm = cs_llm_engine_new(llm, &options, error);
    if (!p->llm)
        return false;
    p->max_tokens = cs_llm_engine_max_tokens(p->llm);
    return pipeline_voices_start(p, &options, error);
}

static bool start_encoders(cs_pipeline *p, GError **error)
{
    static const char *const names[CS_N_MODALITIES] = {"image", "video", "audio"};
    cs_encoder **components = p->model->encoders;
    bool shared = components[CS_MODALITY_VIDEO] == components[CS_MODALITY_IMAGE];
    for (int m = 0; m < CS_N_MODALITIES; m++) {
        bool is_shared = m == CS_MODALITY_VIDEO && shared;
        cs_encoder *encoder = g_steal_pointer(&components[m]); /* the engine's now */
        if (is_shared)
            p->encoders[m] = p->encoders[CS_MODALITY_IMAGE];
        if (!encoder || is_shared)
            continue;
        cs_encoder_engine_options options = {.name = names[m],
                                             .cache_bytes = ENCODER_CACHE_BYTES,
                                             .turn = p->turn,
                                             .batches = p->batches};
        p->encoders[m] = cs_encoder_engine_new(encoder, &options, error);
        if (!p->encoders[m])
            return false;
    }
    return true;
}

static bool start_media(cs_pipeline *p, GError **error)
{
    if (!cs_pipeline_takes(p, CS_MODALITY_IMAGE) && !cs_pipeline_takes(p, CS_MODALITY_VIDEO) &&
        !cs_pipeline_takes(p, CS_MODALITY_AUDIO) && !p->voices.names)
        return true;
    p->media = cs_media_pool_new(&CS_MEDIA_POOL_OPTIONS_DEFAULT, error);
    return p->media != NULL;
}

static bool start_components(cs_pipeline *p, const char *dir, const cs_pipeline_options *o,
                             GError **error)
{
    if (o->plan)
        return pipeline_remote_start(p, dir, o, error);
    return start_llm(p, o, error) && start_encoders(p, error);
}

cs_pipeline *cs_pipeline_new(const char *dir, const cs_pipeline_options *o, GError **error)
{
    cs_pipeline *p = g_new0(cs_pipeline, 1);
    g_mutex_init(&p->lock);
    g_cond_init(&p->changed);
    g_queue_init(&p->text_queue);
    g_queue_init(&p->media_queue);
    p->live = g_hash_table_new(NULL, NULL);
    p->workers = g_ptr_array_new();
    p->turn = cs_turn_new();
    p->batches = cs_turn_new();
    p->max_queued_requests =
        o->max_queued_requests ? o->max_queued_requests : DEFAULT_QUEUED_REQUESTS;
    p->id = directory_name(dir, error);
    if (!p->id || !load_model(p, dir, o, error) || !start_components(p, dir, o, error) ||
        !start_media(p, error)) {
        cs_pipeline_free(p);
        return NULL;
    }
    for (int i = 0; i < N_WORKERS; i++)
        g_ptr_array_add(p->workers, g_thread_new("prepare", pipeline_worker_main, p));
    return p;
}

static void cancel_all(cs_pipeline *p)
{
    g_mutex_lock(&p->lock);
    p->ending = true;
    g_autofree gpointer *all = g_hash_table_get_keys_as_array(p->live, NULL);
    for (gpointer *r = all; *r; r++)
        g_atomic_int_inc(&((cs_pipeline_request *)*r)->refs);
    g_cond_broadcast(&p->changed);
    g_mutex_unlock(&p->lock);
    for (gpointer *r = all; *r; r++) {
        cs_pipeline_cancel(*r);
        cs_pipeline_release(*r);
    }
}

void cs_pipeline_free(cs_pipeline *p)
{
    if (!p)
        return;
    cancel_all(p);
    for (guint i = 0; i < p->workers->len; i++)
        g_thread_join(g_ptr_array_index(p->workers, i));
    /* Engines end their requests with errors: they free them and need the rest of the pipeline. */
    bool shared = p->encoders[CS_MODALITY_VIDEO] == p->encoders[CS_MODALITY_IMAGE];
    for (int m = 0; m < CS_N_MODALITIES; m++)
        if (m != CS_MODALITY_VIDEO || !shared)
            cs_encoder_engine_free(p->encoders[m]);
    cs_llm_engine_free(p->llm);
    pipeline_voices_stop(&p->voices);
    pipeline_remote_stop(p);
    g_mutex_lock(&p->lock);
    while (p->n_objects > 0)
        g_cond_wait(&p->changed, &p->lock);
    g_mutex_unlock(&p->lock);
    if (p->media)
        cs_media_pool_free(p->media);
    pipeline_voices_clear(&p->voices);
    cs_model_free(p->model);
    cs_compute_free(p->compute);
    cs_turn_free(p->turn);
    cs_turn_free(p->batches);
    g_ptr_array_unref(p->workers);
    g_hash_table_unref(p->live);
    g_mutex_clear(&p->lock);
    g_cond_clear(&p->changed);
    g_free(p->id);
    g_free(p);
}

/* ---- what is served ---- */

const char *cs_pipeline_model_id(const cs_pipeline *p)
{
    return p->id;
}

bool cs_pipeline_takes(const cs_pipeline *p, cs_modality modality)
{
    return p->runtime ? p->takes[modality] : p->encoders[modality] != NULL;
}

uint32_t cs_pipeline_max_context_tokens(const cs_pipeline *p)
{
    return p->max_tokens;
}

size_t cs_pipeline_max_text_bytes(const cs_pipeline *p)
{
    return (size_t)CLAMP((uint64_t)p->max_tokens * MAX_BYTES_PER_TOKEN, 1u << 16,
                         CS_TOKENIZER_MAX_TEXT_BYTES);
}

uint32_t cs_pipeline_vocab_size(const cs_pipeline *p)
{
    return (uint32_t)cs_tokenizer_size(p->model->tokenizer);
}

bool cs_pipeline_tokenize(const cs_pipeline *p, const char *text, size_t text_bytes, GArray *ids,
                          GError **error)
{
    return cs_tokenizer_encode(p->model->tokenizer, text, text_bytes, CS_ENCODE_ADD_SPECIAL, ids,
                               error);
}

void cs_pipeline_token_bytes(const cs_pipeline *p, int32_t id, GString *bytes)
{
    size_t n = 0;
    const uint8_t *data = cs_tokenizer_bytes(p->model->tokenizer, id, &n);
    if (data)
        g_string_append_len(bytes, (const char *)data, (gssize)n);
}

char *cs_pipeline_detokenize(const cs_pipeline *p, const int32_t *ids, uint32_t n_ids)
{
    GString *text = g_string_new(NULL);
    cs_tokenizer_decode(p->model->tokenizer, ids, n_ids, text);
    return g_string_free(text, FALSE);
}

void cs_pipeline_defaults(const cs_pipeline *p, cs_sampling *s)
{
    const cs_generation_defaults *d = &p->model->generation;
    *s = (cs_sampling){.temperature = d->do_sample ? d->temperature : 0,
                       .top_k = d->top_k,
                       .top_p = d->top_p,
                       .repetition_penalty = d->repetition_penalty,
                       .n_logprobs = -1};
}

static void add_engine(const cs_pipeline *p, cs_pipeline_stats *stats)
{
    cs_llm_engine_stats llm;
    cs_llm_engine_stats_get(p->llm, &llm);
    stats->running = llm.running;
    stats->kv_blocks_used = llm.kv_blocks_used;
    stats->kv_blocks_total = llm.kv_blocks_total;
    stats->prompt_tokens = llm.prompt_tokens;
    stats->cached_tokens = llm.cached_tokens;
    stats->completion_tokens = llm.completion_tokens;
    stats->preemptions = llm.preemptions;
    pipeline_speech_stats(&p->voices, stats);
}

void cs_pipeline_stats_get(cs_pipeline *p, cs_pipeline_stats *stats)
{
    g_mutex_lock(&p->lock);
    *stats = p->counts;
    guint n_live = g_hash_table_size(p->live);
    g_mutex_unlock(&p->lock);
    if (p->runtime)
        pipeline_remote_stats(p, stats);
    else
        add_engine(p, stats);
    stats->waiting = n_live > stats->running ? n_live - stats->running : 0;
    stats->kv_bytes_total = stats->kv_blocks_total * p->kv_block_bytes;
}
