/* The HTTP server under the API: connections, bodies, keys, limits, streaming; it knows nothing of
 * models.
 *
 * A cs_http owns a libmicrohttpd daemon (poll mode, a pool of threads) and a watcher thread. A
 * request is a cs_exchange: routes[] names the handler, which is called on a thread of the pool
 * once the body is complete and must see to a response, at once or later, from any thread. While
 * nothing is to be done the connection is suspended and costs nothing but memory.
 *
 * libmicrohttpd does not look at suspended connections, nor at how slowly a head or a body comes:
 * the watcher thread watches every socket for the client's leaving (EPOLLRDHUP; a client that
 * closes its sending half counts as gone) and enforces deadlines.
 *
 * Streams are pulled: the source says "there is more" (cs_exchange_wake), and when the socket can
 * take bytes its pull function is called for all there is. So a slow client gets fewer, larger
 * events and nobody is blocked.
 *
 * Locks: watcher before exchange; no callback is called with either held.
 */
#ifndef CS_API_HTTP_H
#define CS_API_HTTP_H

#include "api/metrics.h"
#include "base/error.h"

#include <stdint.h>

typedef struct cs_http cs_http;
typedef struct cs_exchange cs_exchange;

typedef struct {
    const char *method; /* "GET" (HEAD goes with it), "POST" or "DELETE" */
    const char *path;   /* exact, or ending in "/" followed by "*": one more segment */
    bool open;          /* needs no API key */
    void (*handle)(void *user, cs_exchange *x);
} cs_route;

typedef struct {
    const char *host; /* an address or name to bind to */
    uint16_t port;    /* 0: chosen by the kernel */
    uint32_t n_threads;
    uint32_t max_connections;
    size_t max_body_bytes; /* of one request */
    size_t
        max_buffered_bytes;   /* of the bodies of all requests that are being received or handled */
    uint32_t head_timeout_ms; /* from the connection's opening to the end of its first head */
    uint32_t body_timeout_ms; /* from there to the end of the body */
    uint32_t idle_timeout_s;  /* without a byte moving, also of a client that stops reading */
    char **api_keys;          /* NULL: no key is asked for */
    const cs_route *routes;
    guint n_routes;
    cs_metrics *metrics; /* borrowed; requests are counted in it */
    void *user;          /* of the handlers */
} cs_http_options;

/* Binds, listens and starts the threads. Strings of the options are copied, routes are borrowed. */
cs_http *cs_http_new(const cs_http_options *options, GError **error);

/* The port it listens on. */
uint16_t cs_http_port(const cs_http *http);

/* Accepts no further connections and answers further requests on open ones with 503. */
void cs_http_quiesce(cs_http *http);

/* Waits until no request is being handled; false after timeout_us. */
bool cs_http_wait_idle(cs_http *http, int64_t timeout_us);

/* Ends every exchange as if its client had left. */
void cs_http_drop_all(cs_http *http);

/* Quiesces, drops what is left, stops the threads. Accepts NULL. Handlers must no longer hold
 * exchanges that they mean to answer. */
void cs_http_free(cs_http *http);

cs_exchange *cs_exchange_ref(cs_exchange *x);
void cs_exchange_unref(cs_exchange *x);

const char *
cs_exchange_id(const cs_exchange *x); /* of the request, as in X-Request-Id and the log */
const char *cs_exchange_method(const cs_exchange *x);
const char *cs_exchange_path(const cs_exchange *x); /* unescaped */
const char *cs_exchange_tail(const cs_exchange *x); /* what stood for "*" in the route */
GBytes *cs_exchange_body(const cs_exchange *x);     /* borrowed */
void cs_exchange_release_body(
    cs_exchange *x); /* by the handler, before it returns: it needs it no more */

/* Responds in full. The first response counts; calls after the client left do nothing. Takes the
 * body. */
void cs_exchange_respond(cs_exchange *x, int status, const char *content_type, GBytes *body);
/* Adds a header to the response that is to come; call before responding. */
void cs_exchange_header(cs_exchange *x, const char *name, const char *value);
/* Responds with an OpenAI error object; param and code may be NULL. */
void cs_exchange_fail(cs_exchange *x, const GError *error, const char *param, const char *code);
/* Words to be added to the request's log line. */
void cs_exchange_note(cs_exchange *x, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* All are called on the connection's thread, so never at the same time, and nothing after `closed`.
 */
typedef struct {
    /* After a wake, as long as there is no response: may respond or start a stream, or leave it for
     * later. */
    void (*ready)(void *user, cs_exchange *x);
    /* Streaming: appends what there is; false when that was the last of it. */
    bool (*pull)(void *user, GString *out);
    /* Once, when the exchange is over: sent, failed, or the client left. */
    void (*closed)(void *user);
} cs_exchange_ops;

/* Hands the rest of the exchange to `user`; call once, from the handler. */
void cs_exchange_attach(cs_exchange *x, const cs_exchange_ops *ops, void *user);
/* Starts a response whose body comes from ops->pull. */
void cs_exchange_stream(cs_exchange *x, const char *content_type);
/* In pull, which returns false then: breaks the connection off, so that nobody takes what was sent
 * for the whole. */
void cs_exchange_abort(cs_exchange *x);
/* There is something for ready or pull; any thread, never blocks on the client. */
void cs_exchange_wake(cs_exchange *x);

/* {"error": {...}} for an error; g_free. */
char *cs_api_error_json(const GError *error, const char *param, const char *code);

#endif
