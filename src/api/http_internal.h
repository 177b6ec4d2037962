/* What http.c, exchange.c and watch.c share. */
#ifndef CS_API_HTTP_INTERNAL_H
#define CS_API_HTTP_INTERNAL_H

#include "api/http.h"

#include <microhttpd.h>

/* ---- watch.c: leaving clients and deadlines, by socket ---- */

typedef struct cs_watch cs_watch;
typedef struct cs_watched cs_watched;

cs_watch *cs_watch_new(GError **error);
void cs_watch_free(cs_watch *watch); /* after all sockets are removed; accepts NULL */

/* Watches a socket until remove, which must come before the socket is closed. */
cs_watched *cs_watch_add(cs_watch *watch, int fd);
void cs_watch_remove(cs_watch *watch, cs_watched *watched);

/* After timeout_ms the socket is shut down unless another deadline is set before; 0: none. */
void cs_watch_deadline(cs_watch *watch, cs_watched *watched, int64_t timeout_ms);

/* The exchange to be told when the client leaves (or has left); NULL: none. */
void cs_watch_exchange(cs_watch *watch, cs_watched *watched, cs_exchange *x);

/* Shuts every socket down. */
void cs_watch_shutdown(cs_watch *watch);

/* ---- exchange.c ---- */

struct cs_exchange {
    gint refs;
    cs_http *http;
    const cs_route *route;
    char *id, *method, *path;
    const char *tail;    /* in path */
    cs_watched *watched; /* borrowed: of the connection */
    int64_t received_us; /* when the head was complete */
    int status;          /* that was sent; 0: none */
    uint64_t sent_bytes; /* of the body */

    /* Owned by the connection's thread. */
    char *body;
    size_t body_bytes, body_capacity, discarded_bytes;
    bool body_is_complete;
    GBytes *body_view;
    const cs_exchange_ops *ops;
    void *ops_user;
    GString *out; /* of a stream: pulled and not yet taken by the socket */
    size_t out_taken;
    bool out_ended;

    GMutex lock;                       /* what follows */
    struct MHD_Connection *connection; /* NULL when the exchange is over */
    bool suspended;
    bool woken; /* since ready or pull were last called */
    bool gone;  /* the client left, or the server ends */
    struct MHD_Response *response;
    int response_status;
    GPtrArray *headers; /* name, value, name, value... */
    GString *note;      /* of the log line */
};

cs_exchange *cs_exchange_new(cs_http *http, struct MHD_Connection *connection, const char *method,
                             const char *path);
/* The connection is done with it: tells ops->closed. On the connection's thread. */
void cs_exchange_over(cs_exchange *x);
/* The client left: wakes the connection up so that it ends. Any thread. */
void cs_exchange_gone(cs_exchange *x);

/* Appends to the body, on the connection's thread; false and an error when it is over a limit. */
bool cs_exchange_body_append(cs_exchange *x, const void *data, size_t size_bytes, GError **error);

/* Runs ready and queues the response if there is one, otherwise suspends the connection; MHD_NO
 * closes it. */
enum MHD_Result cs_exchange_step(cs_exchange *x);

/* Limits that body_append needs, of http.c. */
size_t cs_http_max_body_bytes(const cs_http *http);
size_t cs_http_max_buffered_bytes(const cs_http *http);
cs_metrics *cs_http_metrics(const cs_http *http);

#endif
