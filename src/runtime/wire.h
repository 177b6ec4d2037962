/* A connection that carries frames of proto/runtime.proto, over a stream socket and a loop.
 *
 * Frames sent in one round of the loop leave in one write. Limits: a frame of at most 16 MiB, at
 * most 64 MiB waiting to be read by the other side; beyond them, and on anything that is no frame,
 * the connection closes with an error. */
#ifndef CS_RUNTIME_WIRE_H
#define CS_RUNTIME_WIRE_H

#include "runtime/loop.h"
#include "runtime.pb-c.h"

#define CS_WIRE_FRAME_MAX (16u << 20)
#define CS_WIRE_BACKLOG_MAX (64u << 20)

typedef Cornserve__Wire__Frame cs_frame;

typedef struct {
    /* Borrowed. May close the wire. */
    void (*on_frame)(void *user, const cs_frame *frame);
    /* Once, when the other side is gone or spoke nonsense; not after cs_wire_free. error NULL: it
     * closed in good order. */
    void (*on_closed)(void *user, const GError *error);
} cs_wire_events;

typedef struct cs_wire cs_wire;

/* Takes the descriptor over, also on failure. `name` stands in errors. */
cs_wire *cs_wire_new(cs_loop *loop, int fd, const char *name, const cs_wire_events *events,
                     void *user, GError **error);
void cs_wire_free(cs_wire *wire); /* closes it; accepts NULL; may be called from the callbacks */

/* Queues a frame; a wire that is closed drops it. */
void cs_wire_send(cs_wire *wire, const cs_frame *frame);
/* Writes what is queued, as far as the socket takes it; the rest follows by itself. */
void cs_wire_flush(cs_wire *wire);

#define CS_FRAME(member, value)                                                                    \
    ((cs_frame){PROTOBUF_C_MESSAGE_INIT(&cornserve__wire__frame__descriptor), .body_case = member, \
                value})

#endif
