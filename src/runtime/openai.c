/* Executor kind "openai": forwards an LLM's unit task to any server that speaks the OpenAI API,
 * such as vLLM or another cornserve.
 *
 *     {"url": "http://10.0.0.7:8000/v1", "model": "qwen", "key_env": "VLLM_KEY", "timeout_s": 600}
 *
 * A job's parameter `body` is the body of a chat completion; model and stream are set here. Its one
 * client output is the answer's text. key_env names the environment variable that holds the key.
 *
 * The loop's thread owns jobs; one thread more drives all transfers (curl's multi interface) and
 * posts what arrives. A transfer knows its job by number only: the job may be gone when it speaks.
 *
 * A server cannot go on in the middle of an answer: after a resumption the request is sent again
 * and what the client has seen is compared and left out. If the server answers otherwise, the job
 * fails. */
#include "base/error.h"
#include "base/json.h"
#include "runtime/executor.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MAX_BYTES (1u << 20)
#define ERROR_BODY_MAX_BYTES 4096
#define CONNECT_TIMEOUT_S 10L

typedef struct transfer transfer;

typedef struct {
    cs_executor *host;
    char *url, *model, *authorization;
    int64_t timeout_s;
    GHashTable *jobs; /* number -> cs_job *, on the loop's thread */
    uint64_t last_number;

    CURLM *multi;
    GThread *thread;
    pthread_mutex_t lock; /* what follows */
    GQueue added;         /* transfer *: to be started */
    GArray *cancelled;    /* uint64_t: numbers to be stopped */
    bool ending;

    GHashTable *running; /* number -> transfer *, on the transfer thread */
} openai;

struct transfer {
    openai *owner;
    uint64_t number;
    CURL *easy;
    struct curl_slist *headers;
    char *body;
    GString *line;
    GString *error_body; /* of an answer that is no stream */
    bool ended;          /* data: [DONE] */
    GError *fault;
};

/* What a transfer has to say, on its way to the loop. */
typedef struct {
    openai *owner;
    uint64_t number;
    GString *text; /* NULL: it is over */
    uint32_t n_pieces;
    GError *error;
} message;

/* --- on the loop's thread --- */

static uint32_t client_output(const cs_job *job)
{
    uint32_t i = 0;
    while (i < job->n_outputs && !job->outputs[i].to_client)
        i++;
    return i;
}

static void finish_job(openai *o, uint64_t number, cs_job *job, GError *error)
{
    g_hash_table_remove(o->jobs, &number);
    g_free(job->data);
    job->data = NULL;
    cs_executor_done(job, error);
}

typedef struct {
    uint64_t number;
    size_t skipped; /* bytes of what the client has seen, found again */
} job_state;

static void stop_transfer(openai *o, uint64_t number)
{
    pthread_mutex_lock(&o->lock);
    g_array_append_val(o->cancelled, number);
    pthread_mutex_unlock(&o->lock);
    curl_multi_wakeup(o->multi);
}

/* Leaves out what the client has; false when the answer has taken another turn. */
static bool skip_seen(cs_job *job, uint32_t output, const char **text, size_t *size_bytes)
{
    job_state *state = job->data;
    GBytes *seen = job->outputs[output].seen;
    gsize seen_bytes = 0;
    const char *known = seen ? g_bytes_get_data(seen, &seen_bytes) : NULL;
    size_t n = MIN(seen_bytes - state->skipped, *size_bytes);
    if (n > 0 && memcmp(known + state->skipped, *text, n) != 0)
        return false;
    state->skipped += n;
    *text += n;
    *size_bytes -= n;
    return true;
}

static void take_text(openai *o, cs_job *job, const message *m)
{
    uint32_t output = client_output(job);
    const char *text = m->text->str;
    size_t size_bytes = m->text->len;
    if (!skip_seen(job, output, &text, &size_bytes)) {
        stop_transfer(o, m->number);
        finish_job(o, m->number, job,
                   g_error_new(CS_ERROR, CS_ERROR_FAILED,
                               "%s: the server answered otherwise when it was asked again",
                               job->component));
    } else if (size_bytes > 0) {
        cs_executor_piece(job, output, text, size_bytes, m->n_pieces);
    }
}

static void deliver(void *user)
{
    message *m = user;
    cs_job *job = g_hash_table_lookup(m->owner->jobs, &m->number);
    if (job && m->text)
        take_text(m->owner, job, m);
    else if (job)
        finish_job(m->owner, m->number, job, g_steal_pointer(&m->error));
    if (m->text)
        g_string_free(m->text, TRUE);
    g_clear_error(&m->error);
    g_free(m);
}

/* --- on the transfer thread: server-sent events --- */

static void post(transfer *t, GString *text, uint32_t n_pieces, GError *error)
{
    message *m = g_new(message, 1);
    *m = (message){t->owner, t->number, text, n_pieces, error};
    cs_loop_post(cs_executor_loop(t->owner->host), deliver, m);
}

/* Appends the text of one event. */
static bool read_event(transfer *t, const char *data, size_t size_bytes, GString *text,
                       GError **error)
{
    json_t *event = cs_json_load(data, size_bytes, "server", error);
    if (!event)
        return false;
    json_t *fault = json_object_get(event, "error");
    json_t *delta = json_object_get(json_array_get(json_object_get(event, "choices"), 0), "delta");
    const char *content = json_string_value(json_object_get(delta, "content"));
    if (content)
        g_string_append(text, content);
    if (fault) {
        const char *why = json_string_value(json_object_get(fault, "message"));
        cs_fail(error, CS_ERROR_FAILED, "server: %s", why ? why : "an error");
    }
    json_decref(event);
    return !fault;
}

static bool read_line(transfer *t, GString *text, uint32_t *n_pieces, GError **error)
{
    GString *line = t->line;
    while (line->len > 0 && line->str[line->len - 1] == '\r')
        g_string_truncate(line, line->len - 1);
    if (!g_str_has_prefix(line->str, "data:"))
        return true; /* comments, event names, blank lines */
    const char *data = line->str + strlen("data:");
    while (*data == ' ')
        data++;
    if (strcmp(data, "[DONE]") == 0) {
        t->ended = true;
        return true;
    }
    size_t before = text->len;
    if (!read_event(t, data, strlen(data), text, error))
        return false;
    *n_pieces += text->len > before;
    return true;
}

static bool read_lines(transfer *t, const char *data, size_t size_bytes, GString *text,
                       uint32_t *n_pieces, GError **error)
{
    const char *end = data + size_bytes;
    while (data < end) {
        const char *newline = memchr(data, '\n', (size_t)(end - data));
        const char *stop = newline ? newline : end;
        if (t->line->len + (size_t)(stop - data) > LINE_MAX_BYTES)
            return cs_fail(error, CS_ERROR_FAILED, "server: a line of more than %u bytes",
                           LINE_MAX_BYTES);
        g_string_append_len(t->line, data, stop - data);
        data = newline ? newline + 1 : end;
        if (newline && !read_line(t, text, n_pieces, error))
            return false;
        if (newline)
            g_string_truncate(t->line, 0);
    }
    return true;
}

static size_t on_data(char *data, size_t size, size_t n, void *user)
{
    transfer *t = user;
    long status = 0;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200) {
        if (t->error_body->len < ERROR_BODY_MAX_BYTES)
            g_string_append_len(t->error_body, data,
                                (gssize)MIN(size * n, ERROR_BODY_MAX_BYTES - t->error_body->len));
        return size * n;
    }
    GString *text = g_string_new(NULL);
    uint32_t n_pieces = 0;
    bool ok = read_lines(t, data, size * n, text, &n_pieces, &t->fault);
    if (text->len > 0)
        post(t, text, n_pieces, NULL);
    else
        g_string_free(text, TRUE);
    return ok ? size * n : 0; /* fewer: curl ends the transfer */
}

/* --- on the transfer thread: life of a transfer --- */

static cs_error_code code_of_status(long status)
{
    switch (status) {
    case 400:
    case 404:
    case 422:
        return CS_ERROR_INVALID;
    case 413:
        return CS_ERROR_TOO_LARGE;
    case 429:
    case 503:
        return CS_ERROR_BUSY;
    default:
        return CS_ERROR_FAILED; /* a wrong key among them: ours, not the caller's */
    }
}

static GError *refusal(const transfer *t, long status)
{
    json_t *body = json_loadb(t->error_body->str, t->error_body->len, 0, NULL);
    const char *why = json_string_value(json_object_get(json_object_get(body, "error"), "message"));
    GError *error = g_error_new(CS_ERROR, (int)code_of_status(status), "server: status %ld%s%s",
                                status, why ? ": " : "", why ? why : "");
    json_decref(body);
    return error;
}

static GError *outcome(transfer *t, CURLcode result)
{
    long status = 0;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    if (t->fault)
        return g_steal_pointer(&t->fault);
    if (status != 0 && status != 200)
        return refusal(t, status);
    if (result == CURLE_OPERATION_TIMEDOUT)
        return g_error_new_literal(CS_ERROR, CS_ERROR_TIMEOUT, "server: no answer in time");
    if (status == 0)
        return g_error_new(CS_ERROR, CS_ERROR_FAILED, "server: cannot be reached: %s",
                           curl_easy_strerror(result));
    if (!t->ended) /* it broke off: worth another attempt, which leaves out what was seen */
        return g_error_new_literal(CS_ERROR, CS_ERROR_EXECUTOR_LOST,
                                   "server: broke off in the middle of an answer");
    return NULL;
}

static void free_transfer(void *data)
{
    transfer *t = data;
    if (t->easy)
        curl_easy_cleanup(t->easy);
    curl_slist_free_all(t->headers);
    g_string_free(t->line, TRUE);
    g_string_free(t->error_body, TRUE);
    g_clear_error(&t->fault);
    free(t->body);
    g_free(t);
}

static void start_transfer(openai *o, transfer *t)
{
    t->easy = curl_easy_init();
    t->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (o->authorization)
        t->headers = curl_slist_append(t->headers, o->authorization);
    curl_easy_setopt(t->easy, CURLOPT_URL, o->url);
    curl_easy_setopt(t->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, t->headers);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, t->body);
    curl_easy_setopt(t->easy, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(t->easy, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_PRIVATE, t);
    curl_easy_setopt(t->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(t->easy, CURLOPT_CONNECTTIMEOUT, CONNECT_TIMEOUT_S);
    curl_easy_setopt(t->easy, CURLOPT_TIMEOUT, (long)o->timeout_s);
    g_hash_table_insert(o->running, &t->number, t);
    curl_multi_add_handle(o->multi, t->easy);
}

static void drop_transfer(openai *o, transfer *t)
{
    curl_multi_remove_handle(o->multi, t->easy);
    g_hash_table_remove(o->running, &t->number); /* frees it */
}

static void take_orders(openai *o, bool *ending)
{
    pthread_mutex_lock(&o->lock);
    for (transfer *t; (t = g_queue_pop_head(&o->added));)
        start_transfer(o, t);
    for (guint i = 0; i < o->cancelled->len; i++) {
        transfer *t = g_hash_table_lookup(o->running, &g_array_index(o->cancelled, uint64_t, i));
        if (t)
            drop_transfer(o, t);
    }
    g_array_set_size(o->cancelled, 0);
    *ending = o->ending;
    pthread_mutex_unlock(&o->lock);
}

static void take_results(openai *o)
{
    int left = 0;
    for (CURLMsg *m; (m = curl_multi_info_read(o->multi, &left));) {
        transfer *t = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        CURLcode result = m->data.result;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &t);
        post(t, NULL, 0, outcome(t, result));
        drop_transfer(o, t);
    }
}

static gpointer run_transfers(gpointer user)
{
    openai *o = user;
    for (bool ending = false; !ending;) {
        int running = 0;
        curl_multi_perform(o->multi, &running);
        take_results(o);
        curl_multi_poll(o->multi, NULL, 0, 1000, NULL);
        take_orders(o, &ending);
    }
    return NULL;
}

/* --- the kind --- */

static void openai_close(void *state)
{
    openai *o = state;
    GHashTableIter iter;
    void *job;
    if (o->thread) {
        pthread_mutex_lock(&o->lock);
        o->ending = true;
        pthread_mutex_unlock(&o->lock);
        curl_multi_wakeup(o->multi);
        g_thread_join(o->thread);
    }
    g_hash_table_iter_init(&iter, o->running);
    while (g_hash_table_iter_next(&iter, NULL, &job))
        curl_multi_remove_handle(o->multi, ((transfer *)job)->easy);
    g_hash_table_unref(o->running);
    g_queue_clear_full(&o->added, free_transfer);
    g_hash_table_iter_init(&iter, o->jobs);
    while (g_hash_table_iter_next(&iter, NULL, &job))
        g_free(((cs_job *)job)->data);
    g_hash_table_unref(o->jobs);
    if (o->multi)
        curl_multi_cleanup(o->multi);
    g_array_unref(o->cancelled);
    pthread_mutex_destroy(&o->lock);
    g_free(o->url);
    g_free(o->model);
    g_free(o->authorization);
    g_free(o);
}

static bool read_config(openai *o, const json_t *config, GError **error)
{
    cs_json_reader r;
    cs_json_reader_init(&r, (json_t *)config, "openai");
    cs_json_only(&r, (const char *const[]){"url", "model", "key_env", "timeout_s", NULL});
    const char *url = cs_json_string(&r, "url");
    const char *key_env = cs_json_string_or(&r, "key_env", "");
    const char *key = key_env[0] ? g_getenv(key_env) : NULL;
    if (!g_str_has_prefix(url, "http://") && !g_str_has_prefix(url, "https://"))
        cs_json_fault(&r, "url", "expected http://... or https://..., found \"%s\"", url);
    if (key_env[0] && !key)
        cs_json_fault(&r, "key_env", "there is no environment variable %s", key_env);
    o->url = g_strdup_printf("%s/chat/completions", url);
    o->model = g_strdup(cs_json_string(&r, "model"));
    o->timeout_s = cs_json_int_or(&r, "timeout_s", 1, 86400, 600);
    o->authorization = key ? g_strdup_printf("Authorization: Bearer %s", key) : NULL;
    return cs_json_reader_finish(&r, error);
}

static void *openai_open(cs_executor *host, const json_t *config, char **components, GError **error)
{
    openai *o = g_new0(openai, 1);
    o->host = host;
    o->jobs = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    o->running = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, free_transfer);
    o->cancelled = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    pthread_mutex_init(&o->lock, NULL);
    g_queue_init(&o->added);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    o->multi = curl_multi_init();
    if (!read_config(o, config, error)) {
        openai_close(o);
        return NULL;
    }
    o->thread = g_thread_new("transfers", run_transfers, o);
    return o;
}

static char *request_body(const openai *o, const cs_job *job, GError **error)
{
    json_t *given = json_object_get(job->params, "body");
    if (!json_is_object(given)) {
        cs_fail(error, CS_ERROR_INVALID, "%s: body: expected an object", job->component);
        return NULL;
    }
    json_t *body = json_copy(given);
    json_object_set_new(body, "model", json_string(o->model));
    json_object_set_new(body, "stream", json_true());
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

static bool openai_submit(void *state, cs_job *job, GError **error)
{
    openai *o = state;
    if (client_output(job) == job->n_outputs)
        return cs_fail(error, CS_ERROR_INVALID, "%s: no output goes to the client", job->component);
    char *body = request_body(o, job, error);
    if (!body)
        return false;
    transfer *t = g_new0(transfer, 1);
    *t = (transfer){.owner = o,
                    .number = ++o->last_number,
                    .body = body,
                    .line = g_string_new(NULL),
                    .error_body = g_string_new(NULL)};
    job_state *data = g_new0(job_state, 1);
    data->number = t->number;
    job->data = data;
    g_hash_table_insert(o->jobs, g_memdup2(&t->number, sizeof(t->number)), job);
    pthread_mutex_lock(&o->lock);
    g_queue_push_tail(&o->added, t);
    pthread_mutex_unlock(&o->lock);
    curl_multi_wakeup(o->multi);
    return true;
}

static void openai_cancel(void *state, cs_job *job)
{
    openai *o = state;
    uint64_t number = ((job_state *)job->data)->number;
    stop_transfer(o, number);
    finish_job(o, number, job,
               g_error_new(CS_ERROR, CS_ERROR_CANCELLED, "%s: cancelled", job->component));
}

static void openai_load(void *state, Cornserve__Wire__Load *load)
{
    load->running = g_hash_table_size(((openai *)state)->jobs);
}

const cs_executor_kind cs_executor_openai = {
    .name = "openai",
    .open = openai_open,
    .submit = openai_submit,
    .cancel = openai_cancel,
    .load = openai_load,
    .close = openai_close,
};
