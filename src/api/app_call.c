/* A call of a model by an app: a chat completion whose answer goes to Lua instead of a client. */
#include "api/apps_internal.h"
#include "api/remote.h"
#include "base/error.h"

#include <string.h>

#define FETCH_TIMEOUT_MS 30000

/* --- the pipeline's side --- */

static void on_start(void *user, uint32_t prompt_tokens)
{
}

static void on_piece(void *user, const cs_piece *piece)
{
    app_call *c = user;
    g_mutex_lock(&c->request->lock);
    g_string_append_len(c->news, piece->text, (gssize)piece->text_bytes);
    g_mutex_unlock(&c->request->lock);
    if (piece->text_bytes > 0)
        app_schedule(c->request);
}

static void on_finish(void *user, uint32_t choice, cs_finish_reason reason)
{
    app_call *c = user;
    g_mutex_lock(&c->request->lock);
    c->length = reason == CS_FINISH_LENGTH;
    g_mutex_unlock(&c->request->lock);
}

/* Takes the error, and the call's reference to the request. */
static void call_over(app_call *c, const cs_usage *usage, GError *error)
{
    app_request *r = c->request;
    g_mutex_lock(&r->lock);
    c->over = true;
    c->error = error;
    if (usage)
        c->usage = *usage;
    g_mutex_unlock(&r->lock);
    app_schedule(r);
    app_request_unref(r);
}

static void on_done(void *user, const cs_usage *usage, const GError *error)
{
    call_over(user, usage, error ? g_error_copy(error) : NULL);
}

static const cs_sink sink = {
    .on_start = on_start, .on_piece = on_piece, .on_finish = on_finish, .on_done = on_done};

/* --- submission --- */

/* The call has a reference to the request, which on_done gives back. */
static bool submit(app_call *c, GError **error)
{
    guint n = c->content.media->len;
    g_autofree cs_request_medium *media = g_new0(cs_request_medium, n + 1);
    for (guint m = 0; m < n; m++) {
        const cs_content_medium *medium = c->content.media->pdata[m];
        media[m] = (cs_request_medium){medium->modality, medium->bytes, medium->max_pixels};
    }
    cs_request request = {.messages = c->content.messages,
                          .template_arguments = c->params.template_arguments,
                          .use_audio_in_video = c->params.use_audio_in_video,
                          .n_media = n,
                          .media = media,
                          .n_choices = 1};
    cs_params_sampling(&c->params, c->pipeline, &request.sampling);
    cs_pipeline_request *handle = cs_pipeline_submit(c->pipeline, &request, &sink, c, error);
    if (!handle)
        return false;
    g_mutex_lock(&c->request->lock);
    c->handle = handle;
    bool cancelled = c->cancelled;
    g_mutex_unlock(&c->request->lock);
    if (cancelled)
        cs_pipeline_cancel(handle);
    cs_content_clear(&c->content); /* the pipeline has references to what it needs */
    return true;
}

static bool fetch_all(app_call *c, GError **error)
{
    cs_remote_limits limits = {c->request->app->apps->api->policy.max_medium_bytes,
                               FETCH_TIMEOUT_MS};
    for (guint i = 0; i < c->content.media->len; i++) {
        cs_content_medium *medium = c->content.media->pdata[i];
        g_mutex_lock(&c->request->lock);
        bool cancelled = c->cancelled;
        g_mutex_unlock(&c->request->lock);
        if (cancelled)
            return cs_fail(error, CS_ERROR_CANCELLED, "the request was cancelled");
        if (medium->url && !(medium->bytes = cs_remote_fetch(medium->url, &limits, error))) {
            g_prefix_error(error, "%s: ", medium->param);
            return false;
        }
    }
    return true;
}

void app_call_fetch(gpointer user, gpointer unused)
{
    app_call *c = user;
    app_request *r = app_request_ref(c->request); /* on_done may be faster than what comes here */
    GError *error = NULL;
    if (!fetch_all(c, &error) || !submit(c, &error))
        call_over(c, NULL, error);
    app_request_unref(r);
}

static bool has_remote(const app_call *c)
{
    for (guint i = 0; i < c->content.media->len; i++)
        if (((cs_content_medium *)c->content.media->pdata[i])->url)
            return true;
    return false;
}

static bool check(const app_call *c, cs_fault *fault)
{
    static const char *const words[CS_N_MODALITIES] = {"images", "video", "audio"};
    if (c->params.n != 1 || c->params.logprobs)
        return cs_fault_set(fault, CS_ERROR_UNSUPPORTED, c->params.logprobs ? "logprobs" : "n",
                            "apps get one answer of each call, and its text only");
    if (c->params.speaks)
        return cs_fault_set(fault, CS_ERROR_UNSUPPORTED, "modalities", "apps get text only");
    for (guint i = 0; i < c->content.media->len; i++) {
        const cs_content_medium *medium = c->content.media->pdata[i];
        if (!cs_pipeline_takes(c->pipeline, medium->modality))
            return cs_fault_set(fault, CS_ERROR_UNSUPPORTED, medium->param,
                                "this model takes no %s", words[medium->modality]);
    }
    return true;
}

/* The body's strings may be placeholders of the request's. */
static bool read_body(app_call *c, json_t *body, GError **error)
{
    const app_request *r = c->request;
    cs_body view = r->body;
    view.root = body;
    cs_fault fault = {.body = &view};
    bool ok = cs_params_read(&c->params, &view, CS_ENDPOINT_CHAT, &fault) &&
              cs_content_read_messages(&c->content, &view, &r->app->apps->api->policy, &fault) &&
              check(c, &fault);
    if (!ok)
        g_propagate_error(error, g_steal_pointer(&fault.error));
    cs_fault_clear(&fault);
    return ok;
}

app_call *app_call_new(app_request *r, const char *model, uint32_t forward, json_t *body,
                       GError **error)
{
    cs_apps *apps = r->app->apps;
    cs_fault fault = {0};
    cs_pipeline *pipeline = cs_api_find_model(apps->api, model, &fault);
    if (!pipeline) {
        g_propagate_error(error, g_steal_pointer(&fault.error));
        cs_fault_clear(&fault);
        return NULL;
    }
    app_call *c = g_new0(app_call, 1);
    *c = (app_call){
        .request = r, .pipeline = pipeline, .forward = forward, .news = g_string_new(NULL)};
    bool ok = read_body(c, body, error);
    if (ok) {
        app_request_ref(r);
        if (has_remote(c))
            g_thread_pool_push(apps->fetchers, c, NULL);
        else if (!(ok = submit(c, error)))
            app_request_unref(r);
    }
    if (!ok)
        g_clear_pointer(&c, app_call_free);
    return c;
}

void app_call_cancel(app_call *c)
{
    g_mutex_lock(&c->request->lock);
    cs_pipeline_request *handle = c->handle;
    c->cancelled = true;
    g_mutex_unlock(&c->request->lock);
    if (handle)
        cs_pipeline_cancel(handle);
}

void app_call_free(app_call *c)
{
    if (!c)
        return;
    if (c->handle)
        cs_pipeline_release(c->handle);
    cs_params_clear(&c->params);
    cs_content_clear(&c->content);
    g_string_free(c->news, TRUE);
    g_clear_error(&c->error);
    g_free(c->path);
    g_free(c);
}
