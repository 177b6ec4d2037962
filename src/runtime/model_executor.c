/* Executor kind "model": components of a checkpoint, computed here.
 *
 *     {"dir": "/models/Qwen2.5-Omni-7B", "dtype": "auto", "isa": "", "threads": 0,
 *      "max_batch_tokens": 0, "max_sequences": 0, "max_context_tokens": 0, "max_queued": 0}
 *
 * It loads only what it hosts. Encoders read a medium as the gateway prepared it (model_payload.h)
 * and give embeddings; the LLM reads a Prompt (proto/runtime.proto), takes embeddings as they come,
 * and gives Tokens. What producer and consumer here have in common is handed over without a copy.
 * All hosted components share one device: its threads, and turns on it. */
#include "base/error.h"
#include "base/json.h"
#include "runtime/memory.h"
#include "runtime/model_internal.h"

#include <string.h>

#define DEFAULT_SEQUENCES 64
#define ENCODER_CACHE_BYTES (64u << 20)
/* While answers are being written, a step is kept about this long, so that a long prompt does not
 * hold them up. */
#define MIXED_STEP_TARGET_US 100000

/* --- hand-over --- */

typedef struct {
    uint64_t request;
    uint32_t stream;
} handover_key;

typedef struct {
    cs_shared_tensor *tensor;
    bool produced; /* the producer's job has ended */
    int left;      /* consumers whose jobs have not ended; below 0: the producer is yet to come */
} model_handover;

static guint hash_key(const void *p)
{
    const handover_key *key = p;
    return (guint)(key->request * 31 + key->stream);
}

static gboolean equal_keys(const void *a, const void *b)
{
    const handover_key *x = a, *y = b;
    return x->request == y->request && x->stream == y->stream;
}

static void free_handover(void *data)
{
    model_handover *h = data;
    cs_shared_tensor_unref(h->tensor);
    g_free(h);
}

static model_handover *get_handover(model *m, uint64_t request, uint32_t stream)
{
    handover_key key = {request, stream};
    model_handover *h = g_hash_table_lookup(m->handovers, &key);
    if (!h) {
        h = g_new0(model_handover, 1);
        g_hash_table_insert(m->handovers, g_memdup2(&key, sizeof(key)), h);
    }
    return h;
}

static void model_doorbell(void *state);

void model_handover_put(model_job *producer, uint32_t output, cs_shared_tensor *tensor)
{
    const cs_job *job = producer->job;
    model_handover *h = get_handover(producer->owner, job->request, job->outputs[output].stream);
    h->tensor = cs_shared_tensor_ref(tensor);
    cs_loop_post(cs_executor_loop(producer->owner->host), model_doorbell, producer->owner);
}

cs_shared_tensor *model_handover_look(model_job *consumer, uint32_t input)
{
    const cs_job *job = consumer->job;
    return get_handover(consumer->owner, job->request, job->inputs[input].stream)->tensor;
}

static void enter_handovers(model *m, const cs_job *job)
{
    for (uint32_t i = 0; i < job->n_outputs; i++)
        if (job->outputs[i].n_local > 0)
            get_handover(m, job->request, job->outputs[i].stream)->left +=
                (int)job->outputs[i].n_local;
}

static void drop_handover(model *m, uint64_t request, uint32_t stream)
{
    handover_key key = {request, stream};
    const model_handover *h = g_hash_table_lookup(m->handovers, &key);
    if (h->produced && h->left == 0)
        g_hash_table_remove(m->handovers, &key);
}

static void leave_handovers(model *m, const cs_job *job)
{
    for (uint32_t i = 0; i < job->n_inputs; i++) {
        if (!job->inputs[i].local)
            continue;
        get_handover(m, job->request, job->inputs[i].stream)->left--;
        drop_handover(m, job->request, job->inputs[i].stream);
    }
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        if (job->outputs[i].n_local == 0)
            continue;
        get_handover(m, job->request, job->outputs[i].stream)->produced = true;
        drop_handover(m, job->request, job->outputs[i].stream);
    }
}

/* --- inputs --- */

uint32_t model_find_input(const cs_job *job, const char *name, uint32_t from)
{
    while (from < job->n_inputs && strcmp(job->inputs[from].name, name) != 0)
        from++;
    return from;
}

cs_receive model_take_chunk(cs_job *job, uint32_t input, cs_chunk *chunk, GError **error)
{
    cs_receive got = cs_receiver_get(job->inputs[input].receiver, 0, 0, chunk, error);
    if (got == CS_RECEIVE_END)
        cs_fail(error, CS_ERROR_FAILED, "%s: input %s ended without data", job->component,
                job->inputs[input].name);
    return got;
}

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
    leave_handovers(m, host_job);
    job->ops->free(job);
    host_job->data = NULL;
    cs_executor_done(host_job, error);
}

static bool model_submit(void *state, cs_job *job, GError **error)
{
    model *m = state;
    enter_handovers(m, job);
    model_job *created = strcmp(job->component, "thinker") == 0
                             ? model_llm_job_new(m, job, error)
                             : model_encoder_job_new(m, job, error);
    if (!created) {
        leave_handovers(m, job);
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

static void model_doorbell(void *state)
{
    model *m = state;
    g_autofree gpointer *all = g_hash_table_get_keys_as_array(m->jobs, NULL);
    for (gpointer *job = all; *job; job++)
        if (g_hash_table_contains(m->jobs, *job))
            ((model_job *)*job)->ops->poll(*job);
}

static void model_load(void *state, Cornserve__Wire__Load *load)
{
    model *m = state;
    if (!m->llm) {
        load->running = g_hash_table_size(m->jobs);
        return;
    }
    cs_llm_engine_stats stats;
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
    static const char *const known[] = {"thinker", "image_encoder", "audio_encoder", NULL};
    for (char **name = components; *name; name++)
        if (!g_strv_contains(known, *name))
            return cs_fail(error, CS_ERROR_UNSUPPORTED,
                           "component %s: an executor on this device runs thinker, image_encoder "
                           "and audio_encoder only",
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

static bool start_llm(model *m, const configuration *c, char **components, GError **error)
{
    cs_llm *llm = g_steal_pointer(&m->checkpoint->llm); /* the engine's now */
    const cs_executor_share *share = cs_executor_get_share(m->host);
    uint32_t batch = batch_of(share, components, "thinker");
    uint32_t fallback = c->max_sequences ? c->max_sequences : DEFAULT_SEQUENCES;
    cs_llm_engine_options options = {.max_step_tokens = c->max_batch_tokens,
                                     .max_sequences = batch ? batch : fallback,
                                     .max_context_tokens = c->max_context_tokens,
                                     .max_queued_requests = c->max_queued,
                                     .mixed_step_target_us = MIXED_STEP_TARGET_US,
                                     .turn = m->turn,
                                     .on_step = model_llm_on_step,
                                     .on_step_user = m};
    if (!llm)
        return true;
    m->kv_block_bytes = llm->kv_block_bytes;
    m->vocab_size = llm->vocab_size;
    options.kv_budget_bytes = share->kv_budget_bytes
                                  ? share->kv_budget_bytes
                                  : cs_kv_budget_bytes(llm, &options, share->memory_share);
    m->llm = cs_llm_engine_new(llm, &options, error);
    return m->llm != NULL;
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
    m->handovers = g_hash_table_new_full(hash_key, equal_keys, g_free, free_handover);
    m->news = g_ptr_array_new();
    m->turn = cs_turn_new();
    m->batches = cs_turn_new();
    pthread_mutex_init(&m->lock, NULL);
    if (load_components(m, &c, components, error) && start_llm(m, &c, components, error) &&
        start_encoders(m, error))
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
    .doorbell = model_doorbell,
    .load = model_load,
    .close = model_close,
};
