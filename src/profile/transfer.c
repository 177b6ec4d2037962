/* Tensors from one process to another of this machine, through the sidecar: between two of its
 * participants, one thread each. */
#include "base/error.h"
#include "base/os.h"
#include "profile/profile.h"
#include "sidecar/sidecar.h"

#include <string.h>

#define REQUEST 1
#define CHUNK_BYTES (4u << 20)
#define SMALL_BYTES 64
#define WARM_UP 4
#define CHUNKS 64

typedef struct {
    cs_sidecar *sidecar;
    uint32_t stream;
    GError *error;
    uint64_t sum; /* of what was read */
} reader;

static gpointer read_stream(gpointer data)
{
    reader *r = data;
    cs_receiver *in = cs_receiver_open(r->sidecar, REQUEST, r->stream, 0, &r->error);
    cs_receive got = in ? CS_RECEIVE_CHUNK : CS_RECEIVE_ERROR;
    for (uint64_t i = 0; got == CS_RECEIVE_CHUNK; i++) {
        cs_chunk chunk;
        got = cs_receiver_get(in, i, -1, &chunk, &r->error);
        for (size_t k = 0; got == CS_RECEIVE_CHUNK && k + 8 <= chunk.size_bytes; k += 8)
            r->sum += *(const uint64_t *)(const void *)(chunk.data + k);
        if (got == CS_RECEIVE_CHUNK)
            cs_receiver_release(in, i);
    }
    if (in)
        cs_receiver_close(in);
    return NULL;
}

/* Seconds from the first byte written to the last one read, of the chunks after the warm-up. */
static bool send_stream(cs_sender *out, size_t chunk_bytes, const uint8_t *bytes, GError **error)
{
    cs_chunk_desc desc = {.rank = 1, .shape = {chunk_bytes}};
    for (int i = 0; i < CHUNKS; i++) {
        cs_chunk chunk;
        if (!cs_sender_alloc(out, chunk_bytes, -1, &chunk, error))
            return false;
        memcpy(chunk.data, bytes, chunk_bytes);
        if (!cs_sender_put(out, &desc, error))
            return false;
    }
    return cs_sender_end(out, error);
}

static bool time_stream(cs_sidecar *from, cs_sidecar *to, uint32_t stream, size_t chunk_bytes,
                        const uint8_t *bytes, double *seconds, GError **error)
{
    cs_sender *out = cs_sender_open(
        from, REQUEST, stream, (cs_sender_options){.n_consumers = 1, .n_chunks = CHUNKS}, error);
    if (!out)
        return false;
    reader r = {.sidecar = to, .stream = stream};
    GThread *thread = g_thread_new("reader", read_stream, &r);
    int64_t start = cs_now_us();
    bool ok = send_stream(out, chunk_bytes, bytes, error);
    cs_sender_close(out);
    g_thread_join(thread);
    *seconds = (double)(cs_now_us() - start) * 1e-6;
    if (!ok || !r.error) {
        g_clear_error(&r.error);
        return ok;
    }
    g_propagate_error(error, r.error);
    return false;
}

static bool time_both(cs_sidecar *from, cs_sidecar *to, const uint8_t *bytes, double *bytes_per_s,
                      double *latency_s, GError **error)
{
    double large_s = 0, small_s = 0;
    for (uint32_t i = 0; i < WARM_UP; i++) /* the last one counts */
        if (!time_stream(from, to, 2 * i, CHUNK_BYTES, bytes, &large_s, error) ||
            !time_stream(from, to, 2 * i + 1, SMALL_BYTES, bytes, &small_s, error))
            return false;
    *latency_s = small_s / CHUNKS;
    *bytes_per_s = (double)CHUNK_BYTES * CHUNKS / large_s;
    return true;
}

bool cs_profiler_transfer(double *bytes_per_s, double *latency_s, GError **error)
{
    cs_sidecar *from = cs_sidecar_create_shared(NULL, "profile", error);
    if (!from)
        return false;
    cs_sidecar *to = cs_sidecar_join_shared(cs_sidecar_fd(from), "profile reader", error);
    g_autofree uint8_t *bytes = g_malloc0(CHUNK_BYTES);
    bool ok = to && cs_sidecar_request_begin(from, REQUEST, 0, error) &&
              time_both(from, to, bytes, bytes_per_s, latency_s, error);
    if (to)
        cs_sidecar_request_end(from, REQUEST);
    cs_sidecar_close(to);
    cs_sidecar_close(from);
    return ok;
}
