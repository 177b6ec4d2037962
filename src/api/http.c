#include "api/http_internal.h"
#include "base/log.h"
#include "base/os.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

/* Head and bookkeeping of one connection; a larger head is answered with 431. */
#define CONNECTION_MEMORY_BYTES (64 * 1024)
/* A body that is refused is read on up to this multiple of the limit, so that the client sees the
 * answer instead of a connection reset; past it the connection is closed. */
#define DISCARD_FACTOR 4
#define KEY_HASH_BYTES 32

struct cs_http {
    cs_http_options options; /* strings are owned */
    struct MHD_Daemon *daemon;
    cs_watch *watch;
    int listen_fd;
    uint16_t port;
    uint8_t *key_hashes; /* [n_keys][KEY_HASH_BYTES] */
    guint n_keys;
    gint draining; /* atomic */

    GMutex lock;
    GCond idle;
    GHashTable *live; /* set of cs_exchange *, a reference each */
};

size_t cs_http_max_body_bytes(const cs_http *http)
{
    return http->options.max_body_bytes;
}

size_t cs_http_max_buffered_bytes(const cs_http *http)
{
    return http->options.max_buffered_bytes;
}

cs_metrics *cs_http_metrics(const cs_http *http)
{
    return http->options.metrics;
}

uint16_t cs_http_port(const cs_http *http)
{
    return http->port;
}

/* ---- keys ---- */

static void key_hash(const char *key, size_t size_bytes, uint8_t hash[KEY_HASH_BYTES])
{
    g_autoptr(GChecksum) checksum = g_checksum_new(G_CHECKSUM_SHA256);
    g_checksum_update(checksum, (const guchar *)key, (gssize)size_bytes);
    gsize n = KEY_HASH_BYTES;
    g_checksum_get_digest(checksum, hash, &n);
}

/* Compares hashes, all keys and all bytes of them, so that the time taken tells nothing of a key.
 */
static bool key_is_known(const cs_http *http, const char *key)
{
    uint8_t hash[KEY_HASH_BYTES];
    key_hash(key, strlen(key), hash);
    guint n_equal = 0;
    for (guint i = 0; i < http->n_keys; i++) {
        volatile uint8_t difference = 0;
        for (size_t j = 0; j < KEY_HASH_BYTES; j++)
            difference |= http->key_hashes[i * KEY_HASH_BYTES + j] ^ hash[j];
        n_equal += difference == 0;
    }
    return n_equal > 0;
}

static bool check_key(const cs_http *http, cs_exchange *x, GError **error)
{
    if (http->n_keys == 0 || (x->route && x->route->open))
        return true;
    const char *given =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "Authorization");
    if (!given || g_ascii_strncasecmp(given, "Bearer ", 7) != 0) {
        cs_exchange_header(x, "WWW-Authenticate", "Bearer");
        return cs_fail(error, CS_ERROR_UNAUTHORIZED,
                       "this server asks for an API key: send \"Authorization: Bearer KEY\"");
    }
    if (!key_is_known(http, given + 7)) {
        cs_exchange_header(x, "WWW-Authenticate", "Bearer");
        return cs_fail(error, CS_ERROR_UNAUTHORIZED, "the API key is not one of this server's");
    }
    return true;
}

/* ---- heads ---- */

typedef struct {
    guint n_content_length, n_transfer_encoding;
} framing;

static enum MHD_Result count_framing(void *user, enum MHD_ValueKind kind, const char *name,
                                     const char *value)
{
    framing *f = user;
    f->n_content_length += strcasecmp(name, "Content-Length") == 0;
    f->n_transfer_encoding += strcasecmp(name, "Transfer-Encoding") == 0;
    return MHD_YES;
}

/* Two readings of where a body ends are how requests are smuggled past proxies. */
static bool check_framing(cs_exchange *x, GError **error)
{
    framing f = {0};
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, count_framing, &f);
    if (f.n_content_length + f.n_transfer_encoding <= 1)
        return true;
    return cs_fail(error, CS_ERROR_INVALID,
                   "the request has more than one Content-Length or Transfer-Encoding");
}

static bool path_matches(const cs_route *route, cs_exchange *x)
{
    size_t n = strlen(route->path);
    if (route->path[n - 1] != '*')
        return strcmp(route->path, x->path) == 0;
    if (strncmp(route->path, x->path, n - 1) != 0 || x->path[n - 1] == '\0')
        return false;
    x->tail = x->path + n - 1;
    return true;
}

static bool find_route(const cs_http *http, cs_exchange *x, GError **error)
{
    g_autoptr(GString) allowed = g_string_new(NULL);
    const char *method = strcmp(x->method, "HEAD") == 0 ? "GET" : x->method;
    for (guint i = 0; i < http->options.n_routes && !x->route; i++) {
        const cs_route *route = &http->options.routes[i];
        if (!path_matches(route, x))
            continue;
        g_string_append_printf(allowed, "%s%s", allowed->len ? ", " : "", route->method);
        if (strcmp(route->method, method) == 0)
            x->route = route;
    }
    if (x->route)
        return true;
    if (allowed->len == 0)
        return cs_fail(error, CS_ERROR_NOT_FOUND, "there is no route %s", x->path);
    cs_exchange_header(x, "Allow", allowed->str);
    return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s takes %s, not %s", x->path, allowed->str,
                   x->method);
}

static bool check_content_type(cs_exchange *x, GError **error)
{
    if (strcmp(x->route->method, "POST") != 0)
        return true;
    const char *type = MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "Content-Type");
    if (type && g_ascii_strncasecmp(type, "application/json", 16) == 0 && strchr("; \t", type[16]))
        return true;
    return cs_fail(error, CS_ERROR_UNSUPPORTED,
                   "the body must be sent with Content-Type: application/json%s%s",
                   type ? ", not " : "", type ? type : "");
}

static bool check_length(const cs_http *http, cs_exchange *x, GError **error)
{
    const char *length =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "Content-Length");
    if (!length || g_ascii_strtoull(length, NULL, 10) <= http->options.max_body_bytes)
        return true;
    return cs_fail(error, CS_ERROR_TOO_LARGE, "the request body is over the limit of %zu bytes",
                   http->options.max_body_bytes);
}

/* Responds with an error object under a status that the error's code does not map to. */
static void fail_with_status(cs_exchange *x, int status, const GError *error, const char *code)
{
    char *text = cs_api_error_json(error, NULL, code);
    cs_exchange_note(x, "\"%s\"", error->message);
    cs_exchange_respond(x, status, "application/json", g_bytes_new_take(text, strlen(text)));
}

/* All that can be said before the body came; an answer is ready when something is wrong. Without a
 * key nobody learns which routes there are. */
static void check_head(cs_http *http, cs_exchange *x)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GError) no_route = NULL;
    find_route(http, x, &no_route);
    if (!check_framing(x, &error)) {
        cs_exchange_header(x, "Connection", "close"); /* what follows may be no request */
        cs_exchange_fail(x, error, NULL, NULL);
    } else if (!check_key(http, x, &error))
        cs_exchange_fail(x, error, NULL, "invalid_api_key");
    else if (g_error_matches(no_route, CS_ERROR, CS_ERROR_NOT_FOUND))
        cs_exchange_fail(x, no_route, NULL, "unknown_url");
    else if (no_route)
        fail_with_status(x, 405, no_route, "method_not_allowed");
    else if (!check_content_type(x, &error))
        fail_with_status(x, 415, error, "unsupported_media_type");
    else if (!check_length(http, x, &error))
        cs_exchange_fail(x, error, NULL, NULL);
    else if (g_atomic_int_get(&http->draining) && !x->route->open) {
        cs_fail(&error, CS_ERROR_BUSY, "the server is shutting down");
        cs_exchange_fail(x, error, NULL, NULL);
    }
}

/* The client's own request id if it is harmless, otherwise a new one. */
static char *request_id(struct MHD_Connection *connection)
{
    const char *given = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "X-Request-Id");
    size_t n = given ? strlen(given) : 0;
    bool harmless = n >= 1 && n <= 64;
    for (size_t i = 0; i < n && harmless; i++)
        harmless = g_ascii_isalnum(given[i]) || strchr("._-", given[i]);
    if (harmless)
        return g_strdup(given);
    return g_strdup_printf("req-%08x%08x", g_random_int(), g_random_int());
}

/* ---- libmicrohttpd's callbacks, each on the connection's thread ---- */

static cs_watched *watched_of(struct MHD_Connection *connection)
{
    return MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
}

static enum MHD_Result request_begin(cs_http *http, struct MHD_Connection *connection,
                                     const char *method, const char *path, void **context)
{
    cs_exchange *x = cs_exchange_new(http, connection, method, path);
    *context = x;
    x->id = request_id(connection);
    x->watched = watched_of(connection);
    g_mutex_lock(&http->lock);
    g_hash_table_add(http->live, cs_exchange_ref(x));
    g_mutex_unlock(&http->lock);
    cs_metrics_in_flight(http->options.metrics, 1);
    cs_exchange_header(x, "X-Request-Id", x->id);
    if (x->watched) {
        cs_watch_deadline(http->watch, x->watched, http->options.body_timeout_ms);
        cs_watch_exchange(http->watch, x->watched, x);
    }
    check_head(http, x);
    /* A client that waits for "100 Continue" is spared the sending of a body that is refused. */
    bool waits = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Expect") != NULL;
    return x->response && waits ? cs_exchange_step(x) : MHD_YES;
}

static enum MHD_Result request_body(cs_http *http, cs_exchange *x, const char *data,
                                    size_t *size_bytes)
{
    g_autoptr(GError) error = NULL;
    bool refused = x->response != NULL;
    if (!refused && !cs_exchange_body_append(x, data, *size_bytes, &error)) {
        cs_exchange_release_body(x);
        cs_exchange_fail(x, error, NULL, NULL);
        refused = true;
    }
    if (refused)
        x->discarded_bytes += *size_bytes;
    *size_bytes = 0;
    return x->discarded_bytes / DISCARD_FACTOR > http->options.max_body_bytes ? MHD_NO : MHD_YES;
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data,
                                  size_t *size_bytes, void **context)
{
    cs_http *http = user;
    cs_exchange *x = *context;
    if (!x)
        return request_begin(http, connection, method, path, context);
    if (*size_bytes > 0)
        return request_body(http, x, data, size_bytes);
    if (!x->body_is_complete) {
        x->body_is_complete = true;
        if (x->watched)
            cs_watch_deadline(http->watch, x->watched, 0);
        x->body_view = g_bytes_new_static(x->body, x->body_bytes);
        if (!x->response)
            x->route->handle(http->options.user, x);
    }
    return cs_exchange_step(x);
}

static void log_request(cs_exchange *x, bool complete)
{
    g_autofree char *status =
        complete && x->status ? g_strdup_printf("%d", x->status) : g_strdup("499 client left");
    cs_log(CS_LOG_INFO, "api", "%s %s %s %s %.1f ms %" G_GUINT64_FORMAT " bytes%s", x->id,
           x->method, x->path, status, (double)(cs_now_us() - x->received_us) / 1000, x->sent_bytes,
           x->note->str);
}

static void on_completed(void *user, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode code)
{
    cs_http *http = user;
    cs_exchange *x = *context;
    *context = NULL;
    if (!x)
        return;
    bool complete = code == MHD_REQUEST_TERMINATED_COMPLETED_OK;
    if (x->watched) {
        cs_watch_exchange(http->watch, x->watched, NULL);
        cs_watch_deadline(http->watch, x->watched,
                          http->options.idle_timeout_s * 1000 + http->options.head_timeout_ms);
    }
    cs_exchange_over(x);
    log_request(x, complete);
    cs_metrics_request(http->options.metrics, x->route ? x->route->path : "none",
                       complete && x->status ? x->status : 499);
    cs_metrics_in_flight(http->options.metrics, -1);
    g_mutex_lock(&http->lock);
    if (g_hash_table_remove(http->live, x))
        cs_exchange_unref(x);
    g_cond_broadcast(&http->idle);
    g_mutex_unlock(&http->lock);
    cs_exchange_unref(x);
}

static void on_connection(void *user, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    cs_http *http = user;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        int fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        cs_watched *watched = cs_watch_add(http->watch, fd);
        cs_watch_deadline(http->watch, watched, http->options.head_timeout_ms);
        *socket_context = watched;
    } else if (*socket_context) {
        cs_watch_remove(http->watch, *socket_context);
        *socket_context = NULL;
    }
}

static void on_daemon_log(void *user, const char *format, va_list args)
{
    g_autofree char *message = g_strdup_vprintf(format, args);
    cs_log(CS_LOG_DEBUG, "http", "%s", g_strchomp(message));
}

/* ---- life ---- */

static bool listen_on(cs_http *http, const struct addrinfo *address, GError **error)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, SOMAXCONN) < 0) {
        cs_fail_errno(error, errno, "cannot listen on %s port %u", http->options.host,
                      http->options.port);
        if (fd >= 0)
            close(fd);
        return false;
    }
    struct sockaddr_storage bound;
    socklen_t size = sizeof(bound);
    getsockname(fd, (struct sockaddr *)&bound, &size);
    http->port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                   : ((struct sockaddr_in *)&bound)->sin_port);
    http->listen_fd = fd;
    return true;
}

static bool open_socket(cs_http *http, GError **error)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *addresses = NULL;
    char port[8];
    g_snprintf(port, sizeof(port), "%u", http->options.port);
    int failure = getaddrinfo(http->options.host, port, &hints, &addresses);
    if (failure)
        return cs_fail(error, CS_ERROR_INVALID, "cannot listen on \"%s\": %s", http->options.host,
                       gai_strerror(failure));
    bool ok = listen_on(http, addresses, error);
    freeaddrinfo(addresses);
    return ok;
}

static bool start_daemon(cs_http *http, GError **error)
{
    const cs_http_options *o = &http->options;
    http->daemon = MHD_start_daemon(
        MHD_USE_POLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
        on_request, http, MHD_OPTION_EXTERNAL_LOGGER, on_daemon_log, NULL, MHD_OPTION_LISTEN_SOCKET,
        http->listen_fd, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)o->n_threads,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)o->max_connections, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)o->idle_timeout_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, http, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, http, MHD_OPTION_END);
    if (!http->daemon)
        return cs_fail(error, CS_ERROR_FAILED, "cannot start the HTTP server's threads");
    return true;
}

cs_http *cs_http_new(const cs_http_options *options, GError **error)
{
    cs_http *http = g_new0(cs_http, 1);
    http->options = *options;
    http->options.host = g_strdup(options->host);
    http->options.api_keys = NULL; /* only their hashes are kept */
    http->listen_fd = -1;
    http->n_keys = options->api_keys ? g_strv_length(options->api_keys) : 0;
    http->key_hashes = g_malloc0_n(MAX(http->n_keys, 1), KEY_HASH_BYTES);
    for (guint i = 0; i < http->n_keys; i++)
        key_hash(options->api_keys[i], strlen(options->api_keys[i]),
                 http->key_hashes + i * KEY_HASH_BYTES);
    g_mutex_init(&http->lock);
    g_cond_init(&http->idle);
    http->live = g_hash_table_new(NULL, NULL);
    http->watch = cs_watch_new(error);
    if (!http->watch || !open_socket(http, error) || !start_daemon(http, error))
        g_clear_pointer(&http, cs_http_free);
    return http;
}

void cs_http_quiesce(cs_http *http)
{
    if (!g_atomic_int_compare_and_exchange(&http->draining, 0, 1))
        return;
    MHD_quiesce_daemon(http->daemon);
}

bool cs_http_wait_idle(cs_http *http, int64_t timeout_us)
{
    int64_t end_us = g_get_monotonic_time() + timeout_us;
    bool in_time = true;
    g_mutex_lock(&http->lock);
    while (in_time && g_hash_table_size(http->live) > 0)
        in_time = g_cond_wait_until(&http->idle, &http->lock, end_us);
    g_mutex_unlock(&http->lock);
    return in_time;
}

void cs_http_drop_all(cs_http *http)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)cs_exchange_unref);
    g_mutex_lock(&http->lock);
    GHashTableIter iter;
    gpointer x;
    g_hash_table_iter_init(&iter, http->live);
    while (g_hash_table_iter_next(&iter, &x, NULL))
        g_ptr_array_add(all, cs_exchange_ref(x));
    g_mutex_unlock(&http->lock);
    for (guint i = 0; i < all->len; i++)
        cs_exchange_gone(g_ptr_array_index(all, i));
}

void cs_http_free(cs_http *http)
{
    if (!http)
        return;
    if (http->daemon) {
        cs_http_quiesce(http);
        /* libmicrohttpd must not be stopped while a connection is suspended. */
        do {
            cs_http_drop_all(http);
            cs_watch_shutdown(http->watch);
        } while (!cs_http_wait_idle(http, G_USEC_PER_SEC / 10));
        MHD_stop_daemon(http->daemon);
    }
    if (http->listen_fd >= 0)
        close(http->listen_fd);
    cs_watch_free(http->watch);
    g_hash_table_unref(http->live);
    g_cond_clear(&http->idle);
    g_mutex_clear(&http->lock);
    g_free(http->key_hashes);
    g_free((char *)http->options.host);
    g_free(http);
}
