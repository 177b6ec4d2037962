#include "api/http_internal.h"
#include "base/os.h"

#include <jansson.h>
#include <string.h>

/* Bytes the reader hands to libmicrohttpd at once. */
#define STREAM_BLOCK_BYTES (32 * 1024)

cs_exchange *cs_exchange_new(cs_http *http, struct MHD_Connection *connection, const char *method,
                             const char *path)
{
    cs_exchange *x = g_new0(cs_exchange, 1);
    x->refs = 1;
    x->http = http;
    x->connection = connection;
    x->method = g_strdup(method);
    x->path = g_utf8_make_valid(path, -1);
    x->received_us = cs_now_us();
    x->headers = g_ptr_array_new_with_free_func(g_free);
    x->note = g_string_new(NULL);
    g_mutex_init(&x->lock);
    return x;
}

cs_exchange *cs_exchange_ref(cs_exchange *x)
{
    g_atomic_int_inc(&x->refs);
    return x;
}

void cs_exchange_unref(cs_exchange *x)
{
    if (!g_atomic_int_dec_and_test(&x->refs))
        return;
    if (x->out)
        g_string_free(x->out, TRUE);
    g_string_free(x->note, TRUE);
    g_ptr_array_unref(x->headers);
    g_free(x->id);
    g_free(x->method);
    g_free(x->path);
    g_mutex_clear(&x->lock);
    g_free(x);
}

const char *cs_exchange_id(const cs_exchange *x)
{
    return x->id;
}

const char *cs_exchange_method(const cs_exchange *x)
{
    return x->method;
}

const char *cs_exchange_path(const cs_exchange *x)
{
    return x->path;
}

const char *cs_exchange_tail(const cs_exchange *x)
{
    return x->tail;
}

GBytes *cs_exchange_body(const cs_exchange *x)
{
    return x->body_view;
}

/* ---- the body ---- */

static bool body_reserve(cs_exchange *x, size_t size_bytes, GError **error)
{
    if (size_bytes <= x->body_capacity)
        return true;
    size_t capacity = MIN(MAX(size_bytes, MAX(x->body_capacity * 2, 4096)),
                          MAX(size_bytes, cs_http_max_body_bytes(x->http)));
    size_t more = capacity - x->body_capacity;
    cs_metrics *metrics = cs_http_metrics(x->http);
    if ((uint64_t)cs_metrics_body_bytes_now(metrics) + more > cs_http_max_buffered_bytes(x->http))
        return cs_fail(error, CS_ERROR_BUSY,
                       "the server holds too many bytes of other requests; try again later");
    char *grown = g_try_realloc(x->body, capacity);
    if (!grown)
        return cs_fail(error, CS_ERROR_BUSY, "no memory for a request body of %zu bytes",
                       size_bytes);
    cs_metrics_body_bytes(metrics, (int64_t)more);
    x->body = grown;
    x->body_capacity = capacity;
    return true;
}

bool cs_exchange_body_append(cs_exchange *x, const void *data, size_t size_bytes, GError **error)
{
    size_t max_bytes = cs_http_max_body_bytes(x->http);
    if (size_bytes > max_bytes - x->body_bytes)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "the request body is over the limit of %zu bytes",
                       max_bytes);
    if (!body_reserve(x, x->body_bytes + size_bytes, error))
        return false;
    memcpy(x->body + x->body_bytes, data, size_bytes);
    x->body_bytes += size_bytes;
    return true;
}

void cs_exchange_release_body(cs_exchange *x)
{
    g_clear_pointer(&x->body_view, g_bytes_unref);
    g_clear_pointer(&x->body, g_free);
    cs_metrics_body_bytes(cs_http_metrics(x->http), -(int64_t)x->body_capacity);
    x->body_bytes = x->body_capacity = 0;
}

/* ---- waking and waiting ---- */

/* With the lock held. */
static void resume_locked(cs_exchange *x)
{
    if (x->suspended) {
        x->suspended = false;
        MHD_resume_connection(x->connection);
    }
}

/* With the lock held, on the connection's thread; false if there is a reason not to wait. */
static bool suspend_locked(cs_exchange *x)
{
    if (x->woken || x->gone)
        return false;
    x->suspended = true;
    MHD_suspend_connection(x->connection);
    return true;
}

void cs_exchange_wake(cs_exchange *x)
{
    g_mutex_lock(&x->lock);
    x->woken = true;
    resume_locked(x);
    g_mutex_unlock(&x->lock);
}

void cs_exchange_gone(cs_exchange *x)
{
    g_mutex_lock(&x->lock);
    x->gone = true;
    resume_locked(x);
    g_mutex_unlock(&x->lock);
}

void cs_exchange_abort(cs_exchange *x)
{
    cs_exchange_gone(x);
}

void cs_exchange_over(cs_exchange *x)
{
    g_mutex_lock(&x->lock);
    x->connection = NULL;
    g_clear_pointer(&x->response, MHD_destroy_response);
    g_mutex_unlock(&x->lock);
    cs_exchange_release_body(x);
    if (x->ops)
        x->ops->closed(x->ops_user);
    x->ops = NULL;
}

void cs_exchange_attach(cs_exchange *x, const cs_exchange_ops *ops, void *user)
{
    x->ops = ops;
    x->ops_user = user;
}

/* ---- responses ---- */

/* Takes the response; drops it if there is one already or nobody is there to read it. Without
 * memory for one (NULL), the connection is closed. */
static void respond(cs_exchange *x, int status, const char *content_type,
                    struct MHD_Response *response)
{
    if (!response) {
        cs_exchange_gone(x);
        return;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    g_mutex_lock(&x->lock);
    if (x->response || !x->connection) {
        g_mutex_unlock(&x->lock);
        MHD_destroy_response(response);
        return;
    }
    for (guint i = 0; i + 1 < x->headers->len; i += 2)
        MHD_add_response_header(response, g_ptr_array_index(x->headers, i),
                                g_ptr_array_index(x->headers, i + 1));
    x->response = response;
    x->response_status = status;
    x->woken = true;
    resume_locked(x);
    g_mutex_unlock(&x->lock);
}

static void bytes_free(void *bytes)
{
    g_bytes_unref(bytes);
}

void cs_exchange_respond(cs_exchange *x, int status, const char *content_type, GBytes *body)
{
    size_t size_bytes;
    const void *data = g_bytes_get_data(body, &size_bytes);
    x->sent_bytes = size_bytes;
    struct MHD_Response *response = MHD_create_response_from_buffer_with_free_callback_cls(
        size_bytes, (void *)data, bytes_free, body);
    respond(x, status, content_type, response);
}

void cs_exchange_header(cs_exchange *x, const char *name, const char *value)
{
    g_mutex_lock(&x->lock);
    g_ptr_array_add(x->headers, g_strdup(name));
    g_ptr_array_add(x->headers, g_strdup(value));
    g_mutex_unlock(&x->lock);
}

char *cs_api_error_json(const GError *error, const char *param, const char *code)
{
    g_autofree char *message = g_utf8_make_valid(error->message, -1);
    g_autofree char *valid_param = param ? g_utf8_make_valid(param, -1) : NULL;
    json_t *body = json_pack("{s:{s:s,s:s,s:s?,s:s?}}", "error", "message", message, "type",
                             cs_error_api_type(error), "param", valid_param, "code", code);
    char *dumped = json_dumps(body, JSON_COMPACT);
    char *text = g_strdup(dumped);
    free(dumped);
    json_decref(body);
    return text;
}

void cs_exchange_fail(cs_exchange *x, const GError *error, const char *param, const char *code)
{
    char *text = cs_api_error_json(error, param, code);
    int status = cs_error_http_status(error);
    cs_exchange_note(x, "\"%s\"", error->message);
    if (status == 503 || status == 429)
        cs_exchange_header(x, "Retry-After", "1");
    cs_exchange_respond(x, status, "application/json", g_bytes_new_take(text, strlen(text)));
}

void cs_exchange_note(cs_exchange *x, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_mutex_lock(&x->lock);
    g_string_append_c(x->note, ' ');
    g_string_append_vprintf(x->note, format, args);
    g_mutex_unlock(&x->lock);
    va_end(args);
}

/* ---- streams ---- */

/* Fills x->out from pull; false when there is nothing now and the connection was suspended. */
static bool out_refill(cs_exchange *x)
{
    for (;;) {
        g_string_truncate(x->out, 0);
        x->out_taken = 0;
        g_mutex_lock(&x->lock);
        x->woken = false;
        g_mutex_unlock(&x->lock);
        x->out_ended = !x->ops->pull(x->ops_user, x->out);
        if (x->out->len > 0 || x->out_ended)
            return true;
        g_mutex_lock(&x->lock);
        bool waits = suspend_locked(x);
        bool gone = x->gone;
        g_mutex_unlock(&x->lock);
        if (waits)
            return false;
        if (gone)
            return true;
    }
}

static ssize_t stream_read(void *user, uint64_t position, char *buffer, size_t size_bytes)
{
    cs_exchange *x = user;
    if (x->out_taken == x->out->len && !x->out_ended && !out_refill(x))
        return 0;
    g_mutex_lock(&x->lock);
    bool gone = x->gone;
    g_mutex_unlock(&x->lock);
    if (gone)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = MIN(size_bytes, x->out->len - x->out_taken);
    if (n == 0)
        return MHD_CONTENT_READER_END_OF_STREAM;
    memcpy(buffer, x->out->str + x->out_taken, n);
    x->out_taken += n;
    x->sent_bytes += n;
    return (ssize_t)n;
}

static void stream_free(void *user)
{
    cs_exchange_unref(user);
}

void cs_exchange_stream(cs_exchange *x, const char *content_type)
{
    if (!x->out)
        x->out = g_string_new(NULL);
    struct MHD_Response *response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, stream_read, cs_exchange_ref(x), stream_free);
    cs_exchange_header(x, "Cache-Control", "no-cache");
    cs_exchange_header(x, "X-Accel-Buffering", "no"); /* asks nginx not to hold events back */
    respond(x, MHD_HTTP_OK, content_type, response);
}

enum MHD_Result cs_exchange_step(cs_exchange *x)
{
    for (;;) {
        g_mutex_lock(&x->lock);
        struct MHD_Response *response = g_steal_pointer(&x->response);
        bool gone = x->gone;
        bool asked = x->woken;
        x->woken = false;
        if (!response && !gone && !asked && suspend_locked(x)) {
            g_mutex_unlock(&x->lock);
            return MHD_YES;
        }
        g_mutex_unlock(&x->lock);
        if (response) {
            x->status = x->response_status;
            enum MHD_Result queued =
                MHD_queue_response(x->connection, (unsigned)x->status, response);
            MHD_destroy_response(response);
            return queued;
        }
        if (gone)
            return MHD_NO;
        if (x->ops)
            x->ops->ready(x->ops_user, x);
    }
}
