#include "api/api_internal.h"
#include "api/output.h"
#include "base/os.h"

#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define N_FETCHERS 8

/* ---- small routes ---- */

static void respond_json(cs_exchange *x, GString *out)
{
    cs_exchange_respond(x, 200, "application/json", g_string_free_to_bytes(out));
}

static void respond_dumped(cs_exchange *x, json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT);
    respond_json(x, g_string_new(text));
    free(text);
    json_decref(object);
}

static void append_model(const cs_api *api, const cs_pipeline *pipeline, GString *out)
{
    const char *id = cs_pipeline_model_id(pipeline);
    g_string_append(out, "{\"id\":");
    cs_output_string(out, id, strlen(id));
    g_string_append_printf(out,
                           ",\"object\":\"model\",\"created\":%" G_GINT64_FORMAT
                           ",\"owned_by\":\"cornserve\",\"max_model_len\":%u,"
                           "\"modalities\":[\"text\"%s%s%s]",
                           api->started_s, cs_pipeline_max_context_tokens(pipeline),
                           cs_pipeline_takes(pipeline, CS_MODALITY_IMAGE) ? ",\"image\"" : "",
                           cs_pipeline_takes(pipeline, CS_MODALITY_VIDEO) ? ",\"video\"" : "",
                           cs_pipeline_takes(pipeline, CS_MODALITY_AUDIO) ? ",\"audio\"" : "");
    const char *const *voices = cs_pipeline_voices(pipeline);
    for (guint i = 0; voices && voices[i]; i++) {
        g_string_append(out, i ? "," : ",\"voices\":[");
        cs_output_string(out, voices[i], strlen(voices[i]));
    }
    g_string_append(out, voices ? "]}" : "}");
}

static json_t *app_as_model(const json_t *app)
{
    return json_pack("{s:O, s:s, s:O, s:s}", "id", json_object_get(app, "name"), "object", "model",
                     "created", json_object_get(app, "created_s"), "owned_by", "app");
}

/* Apps too: a chat completion may name one as its model. */
static void handle_models(void *user, cs_exchange *x)
{
    cs_api *api = user;
    GString *out = g_string_new("{\"object\":\"list\",\"data\":[");
    for (guint i = 0; i < api->models->len; i++) {
        g_string_append(out, i ? "," : "");
        append_model(api, api->models->pdata[i], out);
    }
    json_t *apps = cs_apps_list(api->apps), *app;
    size_t i;
    json_array_foreach (apps, i, app) {
        json_t *model = app_as_model(app);
        char *text = json_dumps(model, JSON_COMPACT);
        g_string_append_printf(out, ",%s", text);
        free(text);
        json_decref(model);
    }
    json_decref(apps);
    g_string_append(out, "]}");
    respond_json(x, out);
}

/* NULL if there is none. */
static json_t *find_app_as_model(cs_api *api, const char *id)
{
    json_t *apps = cs_apps_list(api->apps), *app, *found = NULL;
    size_t i;
    json_array_foreach (apps, i, app)
        if (strcmp(json_string_value(json_object_get(app, "name")), id) == 0)
            found = app_as_model(app);
    json_decref(apps);
    return found;
}

static void handle_model(void *user, cs_exchange *x)
{
    cs_fault fault = {0};
    json_t *app = find_app_as_model(user, cs_exchange_tail(x));
    if (app) {
        respond_dumped(x, app);
        return;
    }
    const cs_pipeline *pipeline = cs_api_find_model(user, cs_exchange_tail(x), &fault);
    if (!pipeline) {
        cs_api_fail(x, &fault);
        cs_fault_clear(&fault);
        return;
    }
    GString *out = g_string_new(NULL);
    append_model(user, pipeline, out);
    respond_json(x, out);
}

static void handle_health(void *user, cs_exchange *x)
{
    cs_api *api = user;
    if (g_atomic_int_get(&api->draining)) {
        g_autoptr(GError) error = NULL;
        cs_fail(&error, CS_ERROR_BUSY, "the server is shutting down");
        cs_exchange_fail(x, error, NULL, NULL);
        return;
    }
    respond_json(x, g_string_new("{\"status\":\"ok\"}"));
}

/* ---- status ---- */

static json_t *components_here(const cs_pipeline *pipeline)
{
    json_t *components = json_pack("[s]", "llm");
    if (cs_pipeline_takes(pipeline, CS_MODALITY_IMAGE))
        json_array_append_new(components, json_string("image_encoder"));
    if (cs_pipeline_takes(pipeline, CS_MODALITY_AUDIO))
        json_array_append_new(components, json_string("audio_encoder"));
    return components;
}

/* Without a plan the server itself is the executor. */
static json_t *executor_here(const cs_pipeline *pipeline, const cs_pipeline_stats *s)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:i, s:i, s:i, s:i, s:i}", "name",
                     cs_pipeline_model_id(pipeline), "model", cs_pipeline_model_id(pipeline),
                     "device", "cpu", "state", "ready", "components", components_here(pipeline),
                     "running", (int)s->running, "waiting", (int)s->waiting, "kv_blocks_used",
                     (int)s->kv_blocks_used, "kv_blocks_total", (int)s->kv_blocks_total, "pid",
                     (int)getpid());
}

static json_t *model_status(cs_pipeline *pipeline, json_t *executors)
{
    cs_pipeline_stats s = {0};
    cs_pipeline_stats_get(pipeline, &s);
    json_t *plan = cs_pipeline_executors(pipeline);
    if (plan)
        json_array_extend(executors, json_object_get(plan, "executors"));
    else
        json_array_append_new(executors, executor_here(pipeline, &s));
    json_t *status = json_pack(
        "{s:s, s:{s:i, s:i, s:I, s:I, s:I, s:I, s:I}, s:{s:i, s:i, s:I}, s:O?, s:O?}", "id",
        cs_pipeline_model_id(pipeline), "requests", "running", (int)s.running, "waiting",
        (int)s.waiting, "started", (json_int_t)s.requests_started, "finished",
        (json_int_t)s.requests_finished, "failed", (json_int_t)s.requests_failed, "cancelled",
        (json_int_t)s.requests_cancelled, "preemptions", (json_int_t)s.preemptions, "kv",
        "blocks_used", (int)s.kv_blocks_used, "blocks_total", (int)s.kv_blocks_total, "bytes_total",
        (json_int_t)s.kv_bytes_total, "sidecar", json_object_get(plan, "sidecar"), "dispatcher",
        json_object_get(plan, "requests"));
    json_decref(plan);
    return status;
}

static json_t *status_of(cs_api *api)
{
    json_t *models = json_array(), *executors = json_array();
    for (guint i = 0; i < api->models->len; i++)
        json_array_append_new(models, model_status(api->models->pdata[i], executors));
    return json_pack("{s:s, s:s, s:I, s:I, s:o, s:o, s:o}", "version", CS_VERSION, "state",
                     g_atomic_int_get(&api->draining) ? "ending" : "ready", "uptime_s",
                     (json_int_t)(g_get_real_time() / G_USEC_PER_SEC - api->started_s),
                     "resident_bytes", (json_int_t)cs_process_resident_bytes(), "models", models,
                     "executors", executors, "apps", cs_apps_list(api->apps));
}

static void handle_status(void *user, cs_exchange *x)
{
    respond_dumped(x, status_of(user));
}

static void handle_version(void *user, cs_exchange *x)
{
    respond_json(x, g_string_new("{\"version\":\"" CS_VERSION "\"}"));
}

static void handle_page(void *user, cs_exchange *x)
{
    cs_exchange_header(x, "Content-Security-Policy",
                       "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                       "connect-src 'self'");
    cs_exchange_respond(x, 200, "text/html; charset=utf-8",
                        g_bytes_new_static(cs_api_page_html, strlen(cs_api_page_html)));
}

/* ---- metrics ---- */

static void print_pipeline(const cs_pipeline_stats *s, GString *out)
{
    const struct {
        const char *name, *type, *help;
        double value;
    } rows[] = {
        {"cornserve_requests_running", "gauge", "Sequences that are generating.", s->running},
        {"cornserve_requests_waiting", "gauge",
         "Requests that wait for media, encoders or KV memory.", s->waiting},
        {"cornserve_kv_blocks_used", "gauge", "KV blocks held by sequences.", s->kv_blocks_used},
        {"cornserve_kv_blocks_total", "gauge", "KV blocks there are.", s->kv_blocks_total},
        {"cornserve_prompt_tokens_total", "counter", "Tokens of prompts.",
         (double)s->prompt_tokens},
        {"cornserve_cached_tokens_total", "counter", "Tokens of prompts found in the prefix cache.",
         (double)s->cached_tokens},
        {"cornserve_completion_tokens_total", "counter", "Tokens generated.",
         (double)s->completion_tokens},
        {"cornserve_requests_started_total", "counter", "Prompts accepted.",
         (double)s->requests_started},
        {"cornserve_requests_finished_total", "counter", "Prompts answered.",
         (double)s->requests_finished},
        {"cornserve_requests_failed_total", "counter", "Prompts that ended with an error.",
         (double)s->requests_failed},
        {"cornserve_requests_cancelled_total", "counter", "Prompts whose client left.",
         (double)s->requests_cancelled},
        {"cornserve_preemptions_total", "counter", "Sequences set back for want of KV memory.",
         (double)s->preemptions},
        {"cornserve_encoder_images_total", "counter", "Images encoded.",
         (double)s->encoder_items[CS_MODALITY_IMAGE]},
        {"cornserve_encoder_videos_total", "counter", "Videos encoded.",
         (double)s->encoder_items[CS_MODALITY_VIDEO]},
        {"cornserve_encoder_sounds_total", "counter", "Sounds encoded.",
         (double)s->encoder_items[CS_MODALITY_AUDIO]},
        {"cornserve_executors", "gauge", "Executors of the plan.", s->executors},
        {"cornserve_executors_ready", "gauge", "Executors that take work.", s->executors_ready},
        {"cornserve_executor_deaths_total", "counter", "Executors that ended and start again.",
         (double)s->executor_deaths},
        {"cornserve_retries_total", "counter", "Requests that ran again after such an end.",
         (double)s->retries},
        {"cornserve_sidecar_bytes", "gauge", "Tensors on their way between executors.",
         (double)s->sidecar_bytes},
        {"cornserve_speech_running", "gauge", "Speeches that are being made.", s->sounds},
        {"cornserve_talker_kv_blocks_used", "gauge", "KV blocks held by speeches.",
         s->talker_kv_blocks_used},
        {"cornserve_talker_kv_blocks_total", "gauge", "KV blocks for speeches there are.",
         s->talker_kv_blocks_total},
        {"cornserve_speech_tokens_total", "counter", "Codes spoken.", (double)s->speech_tokens},
        {"cornserve_speech_samples_total", "counter", "Samples of sound made.",
         (double)s->speech_samples},
        {"cornserve_speech_steps_total", "counter", "Steps of the sound generator.",
         (double)s->sound_steps},
        {"cornserve_speech_step_streams_total", "counter", "Streams in them, summed over steps.",
         (double)s->sound_step_streams},
        {"process_resident_memory_bytes", "gauge", "Resident memory of the server process.",
         (double)cs_process_resident_bytes()},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        cs_metrics_print_value(out, rows[i].name, rows[i].type, rows[i].help, rows[i].value);
}

/* All models together. */
static void add_stats(cs_pipeline_stats *sum, cs_pipeline *pipeline)
{
    cs_pipeline_stats s = {0};
    cs_pipeline_stats_get(pipeline, &s);
    sum->running += s.running;
    sum->waiting += s.waiting;
    sum->kv_blocks_used += s.kv_blocks_used;
    sum->kv_blocks_total += s.kv_blocks_total;
    sum->kv_bytes_total += s.kv_bytes_total;
    sum->prompt_tokens += s.prompt_tokens;
    sum->cached_tokens += s.cached_tokens;
    sum->completion_tokens += s.completion_tokens;
    sum->requests_started += s.requests_started;
    sum->requests_finished += s.requests_finished;
    sum->requests_failed += s.requests_failed;
    sum->requests_cancelled += s.requests_cancelled;
    sum->preemptions += s.preemptions;
    sum->executors += s.executors;
    sum->executors_ready += s.executors_ready;
    sum->executor_deaths += s.executor_deaths;
    sum->retries += s.retries;
    sum->sidecar_bytes += s.sidecar_bytes;
    sum->talker_running += s.talker_running;
    sum->talker_kv_blocks_used += s.talker_kv_blocks_used;
    sum->talker_kv_blocks_total += s.talker_kv_blocks_total;
    sum->sounds += s.sounds;
    sum->speech_tokens += s.speech_tokens;
    sum->speech_samples += s.speech_samples;
    sum->sound_steps += s.sound_steps;
    sum->sound_step_streams += s.sound_step_streams;
    for (int m = 0; m < CS_N_MODALITIES; m++)
        sum->encoder_items[m] += s.encoder_items[m];
}

static void handle_metrics(void *user, cs_exchange *x)
{
    cs_api *api = user;
    GString *out = g_string_sized_new(8192);
    cs_pipeline_stats stats = {0};
    for (guint i = 0; i < api->models->len; i++)
        add_stats(&stats, api->models->pdata[i]);
    cs_metrics_print(api->metrics, out);
    print_pipeline(&stats, out);
    cs_exchange_respond(x, 200, "text/plain; version=0.0.4; charset=utf-8",
                        g_string_free_to_bytes(out));
}

/* ---- tokens ---- */

/* The members of vLLM's routes of these names. */
static bool only_members(json_t *object, const char *const *names, cs_fault *fault)
{
    const char *key;
    json_t *value;
    json_object_foreach (object, key, value) {
        g_autofree char *shown = g_strdup_printf("%.60s", key);
        if (!g_strv_contains(names, key))
            return cs_fault_set(fault, CS_ERROR_UNSUPPORTED, shown,
                                "there is no such parameter here");
    }
    json_t *model = json_object_get(object, "model");
    if (model && !json_is_null(model) && !json_is_string(model))
        return cs_fault_expected(fault, "model", "the model's id", model);
    return true;
}

static bool find_named(const cs_api *api, const cs_body *body, cs_pipeline **pipeline,
                       cs_fault *fault)
{
    const char *id = json_string_value(json_object_get(body->root, "model"));
    *pipeline = cs_api_find_model(api, id, fault);
    return *pipeline != NULL;
}

static bool tokenize(cs_api *api, const cs_body *body, cs_pipeline **pipeline, GArray *ids,
                     cs_fault *fault)
{
    static const char *const names[] = {"model", "prompt", NULL};
    if (!only_members(body->root, names, fault) || !find_named(api, body, pipeline, fault))
        return false;
    json_t *prompt = json_object_get(body->root, "prompt");
    if (!json_is_string(prompt))
        return cs_fault_expected(fault, "prompt", "a string", prompt);
    size_t n;
    const char *text = cs_body_string(body, prompt, &n);
    size_t max_bytes = cs_pipeline_max_text_bytes(*pipeline);
    if (n > max_bytes)
        return cs_fault_set(fault, CS_ERROR_TOO_LARGE, "prompt",
                            "expected at most %zu bytes, found %zu", max_bytes, n);
    return cs_pipeline_tokenize(*pipeline, text, n, ids, &fault->error);
}

static bool detokenize(cs_api *api, const cs_body *body, cs_pipeline **pipeline, GString *out,
                       cs_fault *fault)
{
    static const char *const names[] = {"model", "tokens", NULL};
    if (!only_members(body->root, names, fault) || !find_named(api, body, pipeline, fault))
        return false;
    json_t *tokens = json_object_get(body->root, "tokens");
    if (!json_is_array(tokens))
        return cs_fault_expected(fault, "tokens", "an array of token ids", tokens);
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    size_t i;
    json_t *item;
    json_array_foreach (tokens, i, item) {
        int32_t id = (int32_t)json_integer_value(item);
        if (!json_is_integer(item) || json_integer_value(item) < 0 ||
            json_integer_value(item) >= cs_pipeline_vocab_size(*pipeline)) {
            g_autofree char *path = g_strdup_printf("tokens[%zu]", i);
            return cs_fault_expected(fault, path, "a token id of the model", item);
        }
        g_array_append_val(ids, id);
    }
    g_autofree char *text = cs_pipeline_detokenize(*pipeline, (const int32_t *)ids->data, ids->len);
    cs_output_string(out, text, strlen(text));
    return true;
}

static void append_ids(const cs_pipeline *pipeline, const GArray *ids, GString *out)
{
    g_string_append_printf(out, "{\"count\":%u,\"max_model_len\":%u,\"tokens\":[", ids->len,
                           cs_pipeline_max_context_tokens(pipeline));
    for (guint i = 0; i < ids->len; i++)
        g_string_append_printf(out, "%s%d", i ? "," : "", g_array_index(ids, int32_t, i));
    g_string_append(out, "]}");
}

static void handle_tokens(cs_api *api, cs_exchange *x, bool to_ids)
{
    cs_fault fault = {0};
    cs_body body;
    cs_pipeline *pipeline = NULL;
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    GString *out = g_string_new(to_ids ? "" : "{\"prompt\":");
    bool ok = cs_body_parse(&body, cs_exchange_body(x), &fault.error);
    if (ok) {
        fault.body = &body;
        ok = to_ids ? tokenize(api, &body, &pipeline, ids, &fault)
                    : detokenize(api, &body, &pipeline, out, &fault);
        cs_body_clear(&body);
    }
    if (!ok) {
        g_string_free(out, TRUE);
        cs_api_fail(x, &fault);
        cs_fault_clear(&fault);
        return;
    }
    if (to_ids)
        append_ids(pipeline, ids, out);
    else
        g_string_append_c(out, '}');
    respond_json(x, out);
}

static void handle_tokenize(void *user, cs_exchange *x)
{
    handle_tokens(user, x, true);
}

static void handle_detokenize(void *user, cs_exchange *x)
{
    handle_tokens(user, x, false);
}

static void handle_chat(void *user, cs_exchange *x)
{
    cs_api *api = user;
    g_autoptr(GError) error = NULL;
    cs_body body = {0};
    if (!cs_body_parse(&body, cs_exchange_body(x), &error)) {
        cs_exchange_fail(x, error, NULL, NULL);
        return;
    }
    const char *model = json_string_value(json_object_get(body.root, "model"));
    if (!model || !cs_apps_chat(api->apps, model, &body, x))
        cs_api_generate(api, x, CS_ENDPOINT_CHAT, &body);
    cs_body_clear(&body);
}

static void generate(cs_api *api, cs_exchange *x, cs_endpoint endpoint)
{
    g_autoptr(GError) error = NULL;
    cs_body body = {0};
    if (!cs_body_parse(&body, cs_exchange_body(x), &error)) {
        cs_exchange_fail(x, error, NULL, NULL);
        return;
    }
    cs_api_generate(api, x, endpoint, &body);
    cs_body_clear(&body);
}

static void handle_completion(void *user, cs_exchange *x)
{
    generate(user, x, CS_ENDPOINT_COMPLETION);
}

static void handle_speech(void *user, cs_exchange *x)
{
    generate(user, x, CS_ENDPOINT_SPEECH);
}

static const cs_route routes[] = {
    {"POST", "/v1/chat/completions", false, handle_chat},
    {"POST", "/v1/completions", false, handle_completion},
    {"POST", "/v1/audio/speech", false, handle_speech},
    {"GET", "/v1/models", false, handle_models},
    {"GET", "/v1/models/*", false, handle_model},
    {"GET", "/v1/apps", false, cs_apps_handle_list},
    {"POST", "/v1/apps", false, cs_apps_handle_add},
    {"GET", "/v1/apps/*", false, cs_apps_handle_get},
    {"POST", "/v1/apps/*", false, cs_apps_handle_invoke},
    {"DELETE", "/v1/apps/*", false, cs_apps_handle_remove},
    {"POST", "/tokenize", false, handle_tokenize},
    {"POST", "/detokenize", false, handle_detokenize},
    {"GET", "/metrics", false, handle_metrics},
    {"GET", "/status", false, handle_status},
    {"GET", "/version", false, handle_version},
    {"GET", "/health", true,
     handle_health},                 /* for whoever restarts or balances: no secrets in it */
    {"GET", "/", true, handle_page}, /* the same text for everybody */
};

/* ---- life ---- */

static bool host_is_loopback(const char *host)
{
    struct addrinfo *addresses = NULL;
    bool loopback =
        getaddrinfo(host, NULL, &(struct addrinfo){.ai_socktype = SOCK_STREAM}, &addresses) == 0;
    for (struct addrinfo *a = addresses; a && loopback; a = a->ai_next) {
        char name[64] = "";
        getnameinfo(a->ai_addr, a->ai_addrlen, name, sizeof(name), NULL, 0, NI_NUMERICHOST);
        loopback = g_str_has_prefix(name, "127.") || strcmp(name, "::1") == 0;
    }
    if (addresses)
        freeaddrinfo(addresses);
    return loopback;
}

static bool check_options(const cs_api_options *o, GError **error)
{
    const char *host = o->host ? o->host : "127.0.0.1";
    for (char **key = o->api_keys; key && *key; key++)
        if (!**key)
            return cs_fail(error, CS_ERROR_INVALID, "an API key is empty");
    bool has_key = o->api_keys && o->api_keys[0];
    if (has_key || o->allow_public_without_key || host_is_loopback(host))
        return true;
    return cs_fail(error, CS_ERROR_FORBIDDEN,
                   "%s can be reached from other machines and no API key is set, so anybody could "
                   "use this server; set a key, or "
                   "allow it with --allow-public-without-key",
                   host);
}

cs_api *cs_api_new(cs_pipeline *pipeline, const cs_api_options *o, GError **error)
{
    if (!check_options(o, error))
        return NULL;
    cs_api *api = g_new0(cs_api, 1);
    api->models = g_ptr_array_new();
    g_ptr_array_add(api->models, pipeline);
    for (cs_pipeline *const *more = o->more_models; more && *more; more++)
        g_ptr_array_add(api->models, *more);
    api->metrics = cs_metrics_new();
    api->media_dir = g_strdup(o->media_dir);
    api->started_s = g_get_real_time() / G_USEC_PER_SEC;
    api->jobs = g_hash_table_new(NULL, NULL);
    g_mutex_init(&api->lock);
    g_cond_init(&api->no_jobs);
    api->makers = cs_sound_makers_new();
    api->policy = (cs_media_policy){o->allow_remote_media, api->media_dir,
                                    o->max_medium_bytes ? o->max_medium_bytes : 256u << 20};
    if (o->allow_remote_media)
        api->fetchers = g_thread_pool_new(cs_api_generate_fetch, NULL, N_FETCHERS, FALSE, NULL);
    api->apps = cs_apps_new(api, o->state_path, error);
    if (!api->apps) {
        cs_api_free(api);
        return NULL;
    }
    api->http = cs_http_new(
        &(cs_http_options){
            .host = o->host ? o->host : "127.0.0.1",
            .port = o->port,
            .n_threads = o->n_threads ? o->n_threads : 4,
            .max_connections = o->max_connections ? o->max_connections : 4096,
            .max_body_bytes = o->max_body_bytes ? o->max_body_bytes : 128u << 20,
            .max_buffered_bytes = o->max_buffered_bytes ? o->max_buffered_bytes : 1024u << 20,
            .head_timeout_ms = o->head_timeout_ms ? o->head_timeout_ms : 10000,
            .body_timeout_ms = o->body_timeout_ms ? o->body_timeout_ms : 120000,
            .idle_timeout_s = o->idle_timeout_s ? o->idle_timeout_s : 60,
            .api_keys = o->api_keys,
            .routes = routes,
            .n_routes = G_N_ELEMENTS(routes),
            .metrics = api->metrics,
            .user = api,
        },
        error);
    if (!api->http)
        g_clear_pointer(&api, cs_api_free);
    return api;
}

uint16_t cs_api_port(const cs_api *api)
{
    return cs_http_port(api->http);
}

void cs_api_drain(cs_api *api, int64_t timeout_us)
{
    g_atomic_int_set(&api->draining, 1);
    cs_http_quiesce(api->http);
    if (cs_http_wait_idle(api->http, timeout_us))
        return;
    cs_api_generate_end_all(api);
    cs_apps_end_all(api->apps);
    cs_http_wait_idle(api->http, G_USEC_PER_SEC / 2); /* for the error events to be sent */
}

void cs_api_free(cs_api *api)
{
    if (!api)
        return;
    cs_http_free(api->http);
    if (api->fetchers)
        g_thread_pool_free(api->fetchers, FALSE, TRUE);
    g_mutex_lock(&api->lock);
    while (api->n_jobs > 0)
        g_cond_wait(&api->no_jobs, &api->lock);
    g_mutex_unlock(&api->lock);
    g_thread_pool_free(api->makers, FALSE, TRUE);
    cs_apps_free(api->apps);
    g_hash_table_unref(api->jobs);
    g_ptr_array_unref(api->models);
    g_mutex_clear(&api->lock);
    g_cond_clear(&api->no_jobs);
    cs_metrics_free(api->metrics);
    g_free(api->media_dir);
    g_free(api);
}
