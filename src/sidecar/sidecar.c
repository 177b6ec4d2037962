#include "sidecar/sidecar.h"

#include "base/error.h"
#include "base/fault.h"
#include "sidecar/transport.h"

#include <string.h>

static bool injected(cs_fault_point point, GError **error)
{
    if (!cs_fault_hit(point))
        return false;
    cs_fail(error, CS_ERROR_FAILED, "sidecar: fault injected at point %d", (int)point);
    return true;
}

int cs_sidecar_fd(const cs_sidecar *sidecar)
{
    return sidecar->fd;
}

void cs_sidecar_close(cs_sidecar *sidecar)
{
    if (sidecar)
        sidecar->transport->close(sidecar);
}

bool cs_sidecar_request_begin(cs_sidecar *sidecar, uint64_t request, uint64_t quota_bytes,
                              GError **error)
{
    if (injected(CS_FAULT_SIDECAR_ALLOC, error))
        return false;
    return sidecar->transport->request_begin(sidecar, request, quota_bytes, error);
}

void cs_sidecar_request_end(cs_sidecar *sidecar, uint64_t request)
{
    sidecar->transport->request_end(sidecar, request);
}

bool cs_sidecar_is_over(cs_sidecar *sidecar, uint64_t request, uint32_t stream)
{
    return sidecar->transport->is_over(sidecar, request, stream);
}

cs_sender *cs_sender_open(cs_sidecar *sidecar, uint64_t request, uint32_t stream,
                          cs_sender_options options, GError **error)
{
    if (options.n_consumers > CS_SIDECAR_CONSUMERS_MAX) {
        cs_fail(error, CS_ERROR_INVALID,
                "stream %u of request %" G_GUINT64_FORMAT ": %u consumers, expected at most %d",
                stream, request, options.n_consumers, CS_SIDECAR_CONSUMERS_MAX);
        return NULL;
    }
    if (injected(CS_FAULT_SIDECAR_SEND, error))
        return NULL;
    return sidecar->transport->sender_open(sidecar, request, stream, options, error);
}

bool cs_sender_alloc(cs_sender *sender, size_t size_bytes, int64_t timeout_us, cs_chunk *chunk,
                     GError **error)
{
    if (injected(CS_FAULT_SIDECAR_ALLOC, error))
        return false;
    return sender->transport->alloc(sender, size_bytes, timeout_us, chunk, error);
}

static bool check_desc(const cs_chunk_desc *desc, GError **error)
{
    if (desc && desc->rank > CS_CHUNK_RANK_MAX)
        return cs_fail(error, CS_ERROR_INVALID, "chunk: rank %u, expected at most %d", desc->rank,
                       CS_CHUNK_RANK_MAX);
    return true;
}

bool cs_sender_put(cs_sender *sender, const cs_chunk_desc *desc, GError **error)
{
    if (!check_desc(desc, error) || injected(CS_FAULT_SIDECAR_SEND, error))
        return false;
    return sender->transport->put(sender, desc, error);
}

void cs_sender_limit(cs_sender *sender, uint32_t n_chunks)
{
    sender->transport->limit(sender, n_chunks);
}

bool cs_sender_put_bytes(cs_sender *sender, GBytes *bytes, const cs_chunk_desc *desc,
                         int64_t timeout_us, GError **error)
{
    const cs_transport *t = sender->transport;
    if (!check_desc(desc, error) || injected(CS_FAULT_SIDECAR_SEND, error))
        return false;
    if (t->put_bytes)
        return t->put_bytes(sender, bytes, desc, timeout_us, error);
    gsize size_bytes = 0;
    const void *data = g_bytes_get_data(bytes, &size_bytes);
    cs_chunk chunk;
    if (!cs_sender_alloc(sender, size_bytes, timeout_us, &chunk, error))
        return false;
    if (size_bytes > 0)
        memcpy(chunk.data, data, size_bytes);
    return t->put(sender, desc, error);
}

bool cs_sender_end(cs_sender *sender, GError **error)
{
    if (injected(CS_FAULT_SIDECAR_SEND, error))
        return false;
    return sender->transport->end(sender, error);
}

void cs_sender_fail(cs_sender *sender, const GError *why)
{
    sender->transport->fail(sender, why);
}

void cs_sender_close(cs_sender *sender)
{
    if (sender)
        sender->transport->sender_close(sender);
}

cs_receiver *cs_receiver_open(cs_sidecar *sidecar, uint64_t request, uint32_t stream,
                              uint32_t consumer, GError **error)
{
    if (consumer >= CS_SIDECAR_CONSUMERS_MAX) {
        cs_fail(error, CS_ERROR_INVALID,
                "stream %u of request %" G_GUINT64_FORMAT ": consumer %u, expected less than %d",
                stream, request, consumer, CS_SIDECAR_CONSUMERS_MAX);
        return NULL;
    }
    if (injected(CS_FAULT_SIDECAR_RECEIVE, error))
        return NULL;
    return sidecar->transport->receiver_open(sidecar, request, stream, consumer, error);
}

cs_receive cs_receiver_get(cs_receiver *receiver, uint64_t sequence, int64_t timeout_us,
                           cs_chunk *chunk, GError **error)
{
    if (injected(CS_FAULT_SIDECAR_RECEIVE, error))
        return CS_RECEIVE_ERROR;
    return receiver->transport->get(receiver, sequence, timeout_us, chunk, error);
}

void cs_receiver_release(cs_receiver *receiver, uint64_t sequence)
{
    receiver->transport->release(receiver, sequence);
}

uint64_t cs_receiver_published(cs_receiver *receiver)
{
    return receiver->transport->published(receiver);
}

void cs_receiver_close(cs_receiver *receiver)
{
    if (receiver)
        receiver->transport->receiver_close(receiver);
}

uint32_t cs_sidecar_doorbell(cs_sidecar *sidecar)
{
    return sidecar->transport->doorbell(sidecar);
}

void cs_sidecar_wait(cs_sidecar *sidecar, uint32_t seen, int64_t timeout_us)
{
    sidecar->transport->wait(sidecar, seen, timeout_us);
}

void cs_sidecar_ring(cs_sidecar *sidecar)
{
    sidecar->transport->ring(sidecar);
}

unsigned cs_sidecar_reap(cs_sidecar *sidecar, int pid)
{
    return sidecar->transport->reap(sidecar, pid);
}

void cs_sidecar_get_stats(cs_sidecar *sidecar, cs_sidecar_stats *stats)
{
    sidecar->transport->get_stats(sidecar, stats);
}

bool cs_sidecar_check(cs_sidecar *sidecar, GError **error)
{
    return sidecar->transport->check(sidecar, error);
}
