#include "runtime/wire.h"

#include "base/error.h"
#include "base/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_BYTES (64u << 10)
#define KEEP_SENT_BYTES (1u << 20)

struct cs_wire {
    cs_loop *loop;
    cs_loop_source *watch;
    int fd;
    char *name;
    cs_wire_events events;
    void *user;
    GByteArray *in, *out;
    size_t out_sent; /* bytes of `out` the socket has taken */
    bool closed, writing, freed;
    unsigned busy; /* callbacks running: free waits for them */
};

static void destroy(cs_wire *wire)
{
    g_byte_array_unref(wire->in);
    g_byte_array_unref(wire->out);
    g_free(wire->name);
    g_free(wire);
}

static void shut(cs_wire *wire)
{
    if (wire->closed)
        return;
    wire->closed = true;
    cs_loop_unwatch(wire->watch);
    wire->watch = NULL;
    close(wire->fd);
}

void cs_wire_free(cs_wire *wire)
{
    if (!wire)
        return;
    shut(wire);
    wire->freed = true;
    if (wire->busy == 0)
        destroy(wire);
}

/* Inside enter and leave. */
static void lost(cs_wire *wire, GError *error)
{
    if (!wire->closed) {
        shut(wire);
        wire->events.on_closed(wire->user, error);
    }
    g_clear_error(&error);
}

static void enter(cs_wire *wire)
{
    wire->busy++;
}

static void leave(cs_wire *wire)
{
    if (--wire->busy == 0 && wire->freed)
        destroy(wire);
}

static uint32_t frame_length(const cs_wire *wire, size_t at)
{
    const uint8_t *p = wire->in->data + at;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Hands out whole frames; false when the wire closed over them. */
static bool take_frames(cs_wire *wire)
{
    size_t at = 0;
    while (!wire->closed && wire->in->len - at >= 4) {
        uint32_t length = frame_length(wire, at);
        if (length > CS_WIRE_FRAME_MAX) {
            lost(wire, g_error_new(CS_ERROR, CS_ERROR_EXECUTOR_LOST,
                                   "%s: a frame of %u bytes, expected at most %u", wire->name,
                                   length, CS_WIRE_FRAME_MAX));
            return false;
        }
        if (wire->in->len - at - 4 < length)
            break;
        cs_frame *frame =
            cs_fault_hit(CS_FAULT_RUNTIME_ALLOC)
                ? NULL
                : cornserve__wire__frame__unpack(NULL, length, wire->in->data + at + 4);
        at += 4 + (size_t)length;
        if (!frame || frame->body_case == CORNSERVE__WIRE__FRAME__BODY__NOT_SET) {
            if (frame)
                cornserve__wire__frame__free_unpacked(frame, NULL);
            lost(wire, g_error_new(CS_ERROR, CS_ERROR_EXECUTOR_LOST,
                                   "%s: %u bytes that are no frame", wire->name, length));
            return false;
        }
        wire->events.on_frame(wire->user, frame);
        cornserve__wire__frame__free_unpacked(frame, NULL);
    }
    if (at > 0 && !wire->freed)
        g_byte_array_remove_range(wire->in, 0, (guint)at);
    return !wire->closed;
}

static bool read_some(cs_wire *wire)
{
    guint old = wire->in->len;
    g_byte_array_set_size(wire->in, old + READ_BYTES);
    ssize_t n = recv(wire->fd, wire->in->data + old, READ_BYTES, 0);
    int err = errno;
    g_byte_array_set_size(wire->in, old + (guint)MAX(n, 0));
    if (cs_fault_hit(CS_FAULT_RUNTIME_RECEIVE)) {
        n = -1;
        err = ECONNRESET;
    }
    if (n < 0 && (err == EAGAIN || err == EINTR))
        return false;
    if (n <= 0) {
        GError *error = NULL;
        if (n < 0)
            cs_fail_errno(&error, err, "%s", wire->name);
        lost(wire, error);
        return false;
    }
    return take_frames(wire) && n == READ_BYTES;
}

static void on_ready(void *user, uint32_t events)
{
    cs_wire *wire = user;
    enter(wire);
    if (events & EPOLLOUT)
        cs_wire_flush(wire);
    if (!wire->closed && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        while (read_some(wire))
            ;
    leave(wire);
}

cs_wire *cs_wire_new(cs_loop *loop, int fd, const char *name, const cs_wire_events *events,
                     void *user, GError **error)
{
    cs_wire *wire = g_new0(cs_wire, 1);
    *wire = (cs_wire){.loop = loop,
                      .fd = fd,
                      .name = g_strdup(name),
                      .events = *events,
                      .user = user,
                      .in = g_byte_array_new(),
                      .out = g_byte_array_new()};
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    wire->watch = cs_loop_watch(loop, fd, EPOLLIN, on_ready, wire, error);
    if (wire->watch)
        return wire;
    close(fd);
    destroy(wire);
    return NULL;
}

void cs_wire_send(cs_wire *wire, const cs_frame *frame)
{
    if (wire->closed)
        return;
    size_t length = cornserve__wire__frame__get_packed_size(frame);
    if (length > CS_WIRE_FRAME_MAX || wire->out->len - wire->out_sent > CS_WIRE_BACKLOG_MAX) {
        enter(wire);
        lost(wire,
             g_error_new(CS_ERROR, CS_ERROR_EXECUTOR_LOST,
                         "%s: %zu bytes to send and %zu waiting: the other side does not read",
                         wire->name, length, wire->out->len - wire->out_sent));
        leave(wire);
        return;
    }
    uint8_t header[4] = {length & 0xff, length >> 8 & 0xff, length >> 16 & 0xff, length >> 24};
    g_byte_array_append(wire->out, header, sizeof(header));
    guint old = wire->out->len;
    g_byte_array_set_size(wire->out, old + (guint)length);
    cornserve__wire__frame__pack(frame, wire->out->data + old);
}

/* False when the socket broke. */
static bool write_some(cs_wire *wire)
{
    while (wire->out_sent < wire->out->len) {
        ssize_t n = send(wire->fd, wire->out->data + wire->out_sent,
                         wire->out->len - wire->out_sent, MSG_NOSIGNAL);
        int err = errno;
        if (cs_fault_hit(CS_FAULT_RUNTIME_SEND)) {
            n = -1;
            err = EPIPE;
        }
        if (n < 0 && err == EINTR)
            continue;
        if (n < 0 && err == EAGAIN)
            return true;
        if (n < 0) {
            GError *error = NULL;
            cs_fail_errno(&error, err, "%s", wire->name);
            lost(wire, error);
            return false;
        }
        wire->out_sent += (size_t)n;
    }
    return true;
}

void cs_wire_flush(cs_wire *wire)
{
    if (wire->closed || wire->out->len == 0)
        return;
    enter(wire);
    if (write_some(wire)) {
        bool writing = wire->out_sent < wire->out->len;
        if (!writing || wire->out_sent > KEEP_SENT_BYTES) {
            g_byte_array_remove_range(wire->out, 0, (guint)wire->out_sent);
            wire->out_sent = 0;
        }
        if (writing != wire->writing)
            cs_loop_set_events(wire->watch, writing ? EPOLLIN | EPOLLOUT : EPOLLIN);
        wire->writing = writing;
    }
    leave(wire);
}
