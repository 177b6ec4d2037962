/* A pipeline whose components run in executors, as a plan says. Text, media and prompts stay here;
 * what encoders and the LLM read goes to them as attachments of a request of the runtime, and
 * tokens come back as pieces of its text. */
#include "base/error.h"
#include "base/os.h"
#include "graph/builtin.h"
#include "runtime/model/payload.h"
#include "runtime/pipeline/internal.h"
#include "runtime.pb-c.h"

#include <string.h>

#define ALIAS "model"
#define ATTEMPTS_MAX 8
/* Of an answer whose length nobody has bounded; for load only. */
#define USUAL_ANSWER_TOKENS 256
/* A token of text is about a quarter of a second of speech. */
#define USUAL_CODES_PER_TOKEN 12
/* Prompts with as many equal first tokens prefer the same executor. */
#define AFFINITY_TOKENS 256

/* ---- executors ---- */

static cs_tasks *load_tasks(const cs_pipeline *p, const char *dir, GError **error)
{
    json_t *config = cs_checkpoint_config(p->model->checkpoint);
    size_t size_bytes = 0;
    const char *source = cs_builtin_task(p->model->family->name, &size_bytes);
    if (!source) {
        cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: there is no task file for %s", dir,
                p->model->family->name);
        return NULL;
    }
    g_autoptr(cs_tasks) tasks = cs_tasks_new(p->id, NULL, error);
    if (!tasks || !cs_tasks_add_model(tasks, ALIAS, dir, source, size_bytes, p->model->family->name,
                                      config, error))
        return NULL;
    return g_steal_pointer(&tasks);
}

/* What every executor on a CPU is told. */
static json_t *executor_config(const char *dir, const cs_pipeline_options *o)
{
    g_autofree char *absolute = g_canonicalize_filename(dir, NULL);
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i}", "dir", absolute, "dtype",
                     o->dtype ? o->dtype : "auto", "isa", o->isa ? o->isa : "", "threads",
                     (int)o->n_threads, "max_batch_tokens", (int)o->max_batch_tokens,
                     "max_sequences", (int)o->max_sequences, "max_context_tokens",
                     (int)o->max_context_tokens, "max_queued", (int)o->max_queued_requests);
}

static bool check_devices(const cs_plan *plan, const char *source, GError **error)
{
    for (size_t i = 0; i < plan->n_executors; i++)
        if (strcmp(plan->executors[i].device, "cpu") != 0)
            return cs_fail(error, CS_ERROR_UNSUPPORTED,
                           "%s: executor %s: device %s: this machine has cpu only", source,
                           plan->executors[i].name, plan->executors[i].device);
    return true;
}

static bool deploy(cs_pipeline *p, const char *dir, const cs_plan *plan, cs_tasks *tasks,
                   const cs_pipeline_options *o, GError **error)
{
    cs_runtime_options options = {.attempts_max = ATTEMPTS_MAX,
                                  .max_requests = p->max_queued_requests};
    p->runtime = cs_runtime_new(&options, error);
    if (!p->runtime)
        return false;
    if (o->progress)
        o->progress(o->progress_user, "executors", 0);
    json_t *devices = json_pack("{s:o}", "cpu", executor_config(dir, o));
    bool ok = cs_runtime_deploy(p->runtime, dir, plan, tasks, ALIAS, devices, error);
    json_decref(devices);
    if (ok && o->progress)
        o->progress(o->progress_user, "executors", 1);
    return ok;
}

static void read_limits(cs_pipeline *p)
{
    json_t *status = cs_runtime_status(p->runtime), *executor;
    size_t i;
    p->max_tokens = p->max_talker_tokens = UINT32_MAX;
    json_array_foreach (json_object_get(status, "executors"), i, executor) {
        json_int_t n = json_integer_value(json_object_get(executor, "max_tokens"));
        json_int_t bytes = json_integer_value(json_object_get(executor, "kv_block_bytes"));
        if (n > 0) {
            p->max_tokens = MIN(p->max_tokens, (uint32_t)n);
            p->kv_block_bytes = (size_t)bytes;
        }
        const json_t *speech = json_object_get(executor, "speech");
        n = json_integer_value(json_object_get(speech, "talker_max_tokens"));
        if (n > 0)
            p->max_talker_tokens = MIN(p->max_talker_tokens, (uint32_t)n);
    }
    json_decref(status);
}

bool pipeline_remote_start(cs_pipeline *p, const char *dir, const cs_pipeline_options *o,
                           GError **error)
{
    static const char *const kinds[CS_N_MODALITIES] = {"image_to_text", "video_to_text",
                                                       "audio_to_text"};
    g_autoptr(cs_plan) plan = cs_plan_load(o->plan, error);
    g_autoptr(cs_tasks) tasks = plan ? load_tasks(p, dir, error) : NULL;
    if (!tasks || !check_devices(plan, o->plan, error))
        return false;
    if (!cs_plan_hosts_kind(plan, tasks, ALIAS, "text_to_text"))
        return cs_fail(error, CS_ERROR_INVALID, "%s: no executor has component thinker", o->plan);
    for (int i = 0; i < CS_N_MODALITIES; i++)
        p->takes[i] = cs_plan_hosts_kind(plan, tasks, ALIAS, kinds[i]);
    if (!pipeline_remote_voices(p, plan, o->plan, error) || !deploy(p, dir, plan, tasks, o, error))
        return false;
    read_limits(p);
    cs_tasks *app = g_steal_pointer(&tasks);
    if (cs_tasks_set_plain_app(app, ALIAS, error))
        return cs_runtime_add_app(p->runtime, ALIAS, app, error);
    cs_tasks_free(app);
    return false;
}

void pipeline_remote_stop(cs_pipeline *p)
{
    cs_runtime_free(p->runtime, 0);
}

json_t *cs_pipeline_executors(cs_pipeline *p)
{
    return p->runtime ? cs_runtime_status(p->runtime) : NULL;
}

static uint64_t number(const json_t *object, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(object, name));
}

static void add_executor(cs_pipeline_stats *stats, const json_t *executor)
{
    const char *state = json_string_value(json_object_get(executor, "state"));
    stats->executors++;
    stats->executors_ready += strcmp(state, "ready") == 0;
    const json_t *speech = json_object_get(executor, "speech");
    stats->talker_running += (uint32_t)number(speech, "talker_running");
    stats->talker_kv_blocks_used += (uint32_t)number(speech, "talker_kv_blocks_used");
    stats->talker_kv_blocks_total += (uint32_t)number(speech, "talker_kv_blocks_total");
    stats->sounds += (uint32_t)number(speech, "sounds");
    stats->sound_steps += number(speech, "sound_steps");
    stats->sound_step_streams += number(speech, "sound_step_streams");
    if (number(executor, "max_tokens") == 0) /* no thinker */
        return;
    stats->running += (uint32_t)number(executor, "running");
    stats->kv_blocks_used += (uint32_t)number(executor, "kv_blocks_used");
    stats->kv_blocks_total += (uint32_t)number(executor, "kv_blocks_total");
    stats->preemptions += number(executor, "preemptions");
}

void pipeline_remote_stats(cs_pipeline *p, cs_pipeline_stats *stats)
{
    json_t *status = cs_runtime_status(p->runtime), *executor;
    size_t i;
    json_array_foreach (json_object_get(status, "executors"), i, executor)
        add_executor(stats, executor);
    const json_t *requests = json_object_get(status, "requests");
    stats->executor_deaths = number(requests, "executor_deaths");
    stats->retries = number(requests, "retries");
    stats->sidecar_bytes = number(json_object_get(status, "sidecar"), "used_bytes");
    json_decref(status);
}

/* ---- attachments ---- */

/* The prompt, as long as an attachment reads its media. */
typedef struct {
    gint refs;
    cs_prompt *prompt;
} shared_prompt;

static void shared_prompt_unref(void *data)
{
    shared_prompt *shared = data;
    if (!g_atomic_int_dec_and_test(&shared->refs))
        return;
    cs_prompt_free(shared->prompt);
    g_free(shared);
}

static cs_attachment attach_medium(shared_prompt *shared, const cs_prompt_item *item)
{
    const cs_tensor *t = &item->input.input;
    cs_medium_head head = {.content_hash = {item->content_hash[0], item->content_hash[1]},
                           .rows = t->rows,
                           .cols = t->cols,
                           .grid = {item->input.grid[0], item->input.grid[1], item->input.grid[2]},
                           .modality = (int32_t)item->modality};
    g_assert(t->dtype == CS_DTYPE_F32 && t->stride == t->cols);
    g_atomic_int_inc(&shared->refs);
    return (cs_attachment){
        .head = g_bytes_new(&head, sizeof(head)),
        .body = g_bytes_new_with_free_func(t->data, (gsize)(t->rows * t->cols) * sizeof(float),
                                           shared_prompt_unref, shared)};
}

typedef struct {
    GPtrArray *owned;
    Cornserve__Wire__Prompt m;
} prompt_message;

static void *keep(prompt_message *p, void *memory)
{
    g_ptr_array_add(p->owned, memory);
    return memory;
}

static void fill_media(prompt_message *p, cs_pipeline_request *r, const cs_prompt *prompt)
{
    p->m.n_spans = prompt->spans->len;
    p->m.spans = keep(p, g_new0(Cornserve__Wire__Span *, p->m.n_spans + 1));
    for (size_t i = 0; i < p->m.n_spans; i++) {
        const cs_prompt_span *from = &g_array_index(prompt->spans, cs_prompt_span, i);
        const cs_prompt_item *item = &g_array_index(prompt->items, cs_prompt_item, from->item);
        Cornserve__Wire__Span *to = p->m.spans[i] = keep(p, g_new(Cornserve__Wire__Span, 1));
        cornserve__wire__span__init(to);
        to->row = from->row;
        to->n = from->n;
        to->item = from->item;
        to->source_row = from->source_row;
        r->modality_tokens[item->modality] += from->n;
    }
    p->m.n_items = prompt->items->len;
    p->m.items = keep(p, g_new0(Cornserve__Wire__Item *, p->m.n_items + 1));
    for (size_t i = 0; i < p->m.n_items; i++) {
        const cs_prompt_item *from = &g_array_index(prompt->items, cs_prompt_item, i);
        Cornserve__Wire__Item *to = p->m.items[i] = keep(p, g_new(Cornserve__Wire__Item, 1));
        cornserve__wire__item__init(to);
        to->hash_0 = from->content_hash[0];
        to->hash_1 = from->content_hash[1];
        to->n_rows = from->n_tokens;
    }
}

static void fill_sampling(prompt_message *p, const cs_pipeline_request *r)
{
    const cs_sampling *s = &r->sampling;
    const cs_generation_defaults *generation = &r->pipeline->model->generation;
    p->m.n_choices = r->n_choices;
    p->m.max_tokens = s->max_tokens;
    p->m.n_stop_ids = s->ignore_eos ? 0 : generation->n_eos_ids;
    p->m.stop_ids = (int32_t *)generation->eos_ids;
    p->m.stops = (char **)s->stop;
    p->m.n_stops = s->stop ? g_strv_length((char **)s->stop) : 0;
    p->m.temperature = s->temperature;
    p->m.top_k = s->top_k;
    p->m.top_p = s->top_p;
    p->m.min_p = s->min_p;
    p->m.repetition_penalty = s->repetition_penalty;
    p->m.presence_penalty = s->presence_penalty;
    p->m.frequency_penalty = s->frequency_penalty;
    p->m.seed = s->seed;
    p->m.n_logprobs = s->n_logprobs;
    p->m.n_bias_ids = p->m.n_biases = s->n_biases;
    p->m.bias_ids = keep(p, g_new0(int32_t, s->n_biases + 1));
    p->m.biases = keep(p, g_new0(float, s->n_biases + 1));
    for (uint32_t i = 0; i < s->n_biases; i++) {
        p->m.bias_ids[i] = s->biases[i].id;
        p->m.biases[i] = s->biases[i].bias;
    }
}

static GBytes *pack_prompt(cs_pipeline_request *r, const cs_prompt *prompt)
{
    prompt_message p = {.owned = g_ptr_array_new_with_free_func(g_free)};
    cornserve__wire__prompt__init(&p.m);
    p.m.token_ids.data = (uint8_t *)prompt->token_ids;
    p.m.token_ids.len = prompt->n_tokens * sizeof(int32_t);
    if (prompt->positions) {
        p.m.positions.data = (uint8_t *)prompt->positions;
        p.m.positions.len = prompt->n_tokens * sizeof(int32_t[3]);
        p.m.next_position = prompt->next_position;
    }
    p.m.hidden = r->speech != NULL;
    if (r->aloud_ids) {
        p.m.aloud.data = (uint8_t *)r->aloud_ids->data;
        p.m.aloud.len = r->aloud_ids->len * sizeof(int32_t);
    }
    fill_media(&p, r, prompt);
    fill_sampling(&p, r);
    size_t size_bytes = cornserve__wire__prompt__get_packed_size(&p.m);
    uint8_t *data = g_malloc(size_bytes + 1);
    cornserve__wire__prompt__pack(&p.m, data);
    g_ptr_array_unref(p.owned);
    return g_bytes_new_take(data, size_bytes);
}

/* ---- the request of the task graph ---- */

static char *affinity(const cs_prompt *prompt)
{
    uint64_t hash = cs_hash(CS_HASH_SEED, prompt->token_ids,
                            MIN(prompt->n_tokens, AFFINITY_TOKENS) * sizeof(int32_t));
    for (guint i = 0; i < prompt->items->len; i++)
        hash = cs_hash(hash, g_array_index(prompt->items, cs_prompt_item, i).content_hash,
                       sizeof(uint64_t[2]));
    return g_strdup_printf("%016" G_GINT64_MODIFIER "x", hash);
}

static json_t *task_request(const cs_pipeline_request *r, const cs_prompt *prompt)
{
    static const char *const words[CS_N_MODALITIES] = {"image", "video", "audio"};
    json_t *media = json_array();
    const char *kind = "text";
    uint32_t media_tokens = 0;
    for (guint i = 0; i < prompt->items->len; i++) {
        const cs_prompt_item *item = &g_array_index(prompt->items, cs_prompt_item, i);
        const char *word = words[item->modality];
        json_array_append_new(media, json_pack("{s:s, s:i, s:i}", "modality", word, "tokens",
                                               (int)item->n_tokens, "attachment", (int)i + 1));
        kind = i == 0 || kind == word ? word : "mixed";
        media_tokens += item->n_tokens;
    }
    g_autofree char *kind_name = g_strdup_printf("%s_to_%s", kind, r->speech ? "speech" : "text");
    g_autofree char *prefix = affinity(prompt);
    uint32_t text_tokens = prompt->n_tokens > media_tokens ? prompt->n_tokens - media_tokens : 0;
    uint32_t answer_tokens = r->aloud_ids             ? r->aloud_ids->len
                             : r->sampling.max_tokens ? r->sampling.max_tokens
                                                      : USUAL_ANSWER_TOKENS;
    json_t *request = json_pack("{s:s, s:o, s:i, s:i, s:i, s:s}", "kind", kind_name, "media", media,
                                "text_in_tokens", (int)text_tokens, "text_out_tokens",
                                (int)answer_tokens, "attachment", 0, "affinity", prefix);
    if (r->speech)
        json_object_update_new(request,
                               json_pack("{s:b, s:i, s:i}", "speech", 1, "audio_out_tokens",
                                         (int)MIN(answer_tokens * USUAL_CODES_PER_TOKEN, INT32_MAX),
                                         "speech_attachment", (int)prompt->items->len + 1));
    return request;
}

/* ---- tokens ---- */

static bool hand_token(cs_pipeline_request *r, const Cornserve__Wire__Token *t)
{
    cs_sampled_token token = {.id = t->id, .logprob = t->logprob, .n_top = (uint32_t)t->n_top_ids};
    if (t->choice >= r->n_choices || r->answers[t->choice].finished ||
        t->n_top_ids > CS_MAX_LOGPROBS || t->n_top_logprobs != t->n_top_ids)
        return false;
    for (uint32_t i = 0; i < token.n_top; i++)
        token.top[i] = (cs_token_logprob){t->top_ids[i], t->top_logprobs[i]};
    pipeline_llm_sink.on_token(r, &(cs_llm_token){.choice = t->choice, .token = &token});
    return true;
}

static bool hand_finish(cs_pipeline_request *r, const Cornserve__Wire__Finish *f)
{
    if (f->choice >= r->n_choices || r->answers[f->choice].finished)
        return false;
    r->answers[f->choice].finished = true;
    pipeline_llm_sink.on_finish(r, f->choice,
                                f->length ? CS_LLM_FINISH_LENGTH : CS_LLM_FINISH_STOP_ID);
    return true;
}

static bool hand_tokens(cs_pipeline_request *r, const Cornserve__Wire__Tokens *tokens)
{
    for (size_t i = 0; i < tokens->n_tokens; i++)
        if (!hand_token(r, tokens->tokens[i]))
            return false;
    for (size_t i = 0; i < tokens->n_finishes; i++)
        if (!hand_finish(r, tokens->finishes[i]))
            return false;
    if (tokens->usage)
        r->remote_usage = (cs_llm_usage){.prompt_tokens = tokens->usage->prompt_tokens,
                                         .cached_tokens = tokens->usage->cached_tokens,
                                         .completion_tokens = tokens->usage->completion_tokens};
    return true;
}

static bool hand_text(cs_pipeline_request *r, const void *data, size_t size_bytes)
{
    Cornserve__Wire__Tokens *tokens = cornserve__wire__tokens__unpack(NULL, size_bytes, data);
    bool ok = tokens && hand_tokens(r, tokens);
    if (tokens)
        cornserve__wire__tokens__free_unpacked(tokens, NULL);
    return ok;
}

static void on_piece(void *user, uint32_t call, const char *unit, const char *output,
                     const void *data, size_t size_bytes, uint32_t units)
{
    cs_pipeline_request *r = user;
    if (r->remote_fault)
        return;
    g_mutex_lock(&r->lock); /* until it is submitted */
    g_mutex_unlock(&r->lock);
    bool ok = strcmp(output, "text") == 0    ? hand_text(r, data, size_bytes)
              : strcmp(output, "codes") == 0 ? pipeline_remote_codes(r, data, size_bytes)
                                             : pipeline_remote_samples(r, data, size_bytes);
    if (ok)
        return;
    cs_fail(&r->remote_fault, CS_ERROR_FAILED, "an executor sent %s that is malformed", output);
    cs_runtime_request_cancel(r->remote);
}

static void on_event(void *user, const json_t *event)
{
}

static bool is_complete(const cs_pipeline_request *r)
{
    for (uint32_t i = 0; i < r->n_choices; i++)
        if (!r->answers[i].finished)
            return false;
    return !r->speech || (r->speech->n_codes > 0 && r->speech->n_samples > 0);
}

static void on_done(void *user, const json_t *result, const GError *error)
{
    cs_pipeline_request *r = user;
    cs_pipeline *p = r->pipeline;
    if (!r->remote_fault && !error && !is_complete(r))
        cs_fail(&r->remote_fault, CS_ERROR_FAILED, "an executor ended before the answer did");
    g_mutex_lock(&p->lock);
    p->counts.prompt_tokens += r->remote_usage.prompt_tokens;
    p->counts.cached_tokens += r->remote_usage.cached_tokens;
    p->counts.completion_tokens += r->remote_usage.completion_tokens;
    g_mutex_unlock(&p->lock);
    pipeline_llm_sink.on_done(r, &r->remote_usage, r->remote_fault ? r->remote_fault : error);
}

/* ---- submission ---- */

static void count_items(cs_pipeline_request *r, const cs_prompt *prompt)
{
    cs_pipeline *p = r->pipeline;
    g_mutex_lock(&p->lock);
    for (guint i = 0; i < prompt->items->len; i++)
        p->counts.encoder_items[g_array_index(prompt->items, cs_prompt_item, i).modality]++;
    g_mutex_unlock(&p->lock);
}

static void clear_attachment(void *item)
{
    cs_attachment *attachment = item;
    g_bytes_unref(attachment->head);
    g_clear_pointer(&attachment->body, g_bytes_unref);
}

bool pipeline_remote_submit(cs_pipeline_request *r, GError **error)
{
    static const cs_runtime_sink sink = {on_piece, on_event, on_done};
    const cs_prompt *prompt = r->built;
    shared_prompt *shared = g_new(shared_prompt, 1);
    *shared = (shared_prompt){.refs = 1, .prompt = r->built};
    g_autoptr(GArray) attachments = g_array_new(FALSE, FALSE, sizeof(cs_attachment));
    g_array_set_clear_func(attachments, clear_attachment);
    cs_attachment first = {.head = pack_prompt(r, prompt)};
    g_array_append_val(attachments, first);
    for (guint i = 0; i < prompt->items->len; i++) {
        cs_attachment next =
            attach_medium(shared, &g_array_index(prompt->items, cs_prompt_item, i));
        g_array_append_val(attachments, next);
    }
    if (r->speech) {
        cs_attachment speech = {.head = pipeline_remote_pack_speech(r, prompt)};
        g_array_append_val(attachments, speech);
    }
    json_t *request = task_request(r, prompt);
    const cs_submit_options options = {.n_attachments = attachments->len,
                                       .attachments =
                                           (const cs_attachment *)(const void *)attachments->data,
                                       .credit_units = r->speech ? r->speech->credit_samples : 0};
    if (!r->speech || cs_talk_check_room(prompt->n_tokens, r->pipeline->max_talker_tokens, error))
        r->remote =
            cs_runtime_submit_with(r->pipeline->runtime, ALIAS, request, &options, &sink, r, error);
    json_decref(request);
    if (r->remote) {
        count_items(r, prompt);
        pipeline_request_started(r);
    }
    r->built = NULL; /* with the attachments' last reader */
    shared_prompt_unref(shared);
    return r->remote != NULL;
}
