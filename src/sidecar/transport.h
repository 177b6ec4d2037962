/* What a transport of tensors provides. sidecar.h is the only caller: it checks arguments, injects
 * faults and copies where put_bytes is NULL, so that the contracts there hold for all transports
 * and one suite of tests (tests/unit/sidecar_contract.c) runs over each.
 *
 * A transport embeds cs_sidecar, cs_sender and cs_receiver as first members of its own objects. */
#ifndef CS_SIDECAR_TRANSPORT_H
#define CS_SIDECAR_TRANSPORT_H

#include "sidecar/sidecar.h"

typedef struct {
    const char *name;
    void (*close)(cs_sidecar *);
    bool (*request_begin)(cs_sidecar *, uint64_t request, uint64_t quota_bytes, GError **);
    void (*request_end)(cs_sidecar *, uint64_t request);
    bool (*is_over)(cs_sidecar *, uint64_t request, uint32_t stream);

    cs_sender *(*sender_open)(cs_sidecar *, uint64_t request, uint32_t stream, cs_sender_options,
                              GError **);
    void (*limit)(cs_sender *, uint32_t n_chunks);
    bool (*alloc)(cs_sender *, size_t size_bytes, int64_t timeout_us, cs_chunk *, GError **);
    bool (*put)(cs_sender *, const cs_chunk_desc *, GError **);
    /* NULL where nothing is gained over alloc, copy, put */
    bool (*put_bytes)(cs_sender *, GBytes *, const cs_chunk_desc *, int64_t timeout_us, GError **);
    bool (*end)(cs_sender *, GError **);
    void (*fail)(cs_sender *, const GError *);
    void (*sender_close)(cs_sender *);

    cs_receiver *(*receiver_open)(cs_sidecar *, uint64_t request, uint32_t stream,
                                  uint32_t consumer, GError **);
    cs_receive (*get)(cs_receiver *, uint64_t sequence, int64_t timeout_us, cs_chunk *, GError **);
    void (*release)(cs_receiver *, uint64_t sequence);
    uint64_t (*published)(cs_receiver *);
    void (*receiver_close)(cs_receiver *);

    uint32_t (*doorbell)(cs_sidecar *);
    void (*wait)(cs_sidecar *, uint32_t seen, int64_t timeout_us);
    void (*ring)(cs_sidecar *);

    unsigned (*reap)(cs_sidecar *, int pid);
    void (*get_stats)(cs_sidecar *, cs_sidecar_stats *);
    bool (*check)(cs_sidecar *, GError **);
} cs_transport;

struct cs_sidecar {
    const cs_transport *transport;
    int fd; /* -1: none */
};

struct cs_sender {
    const cs_transport *transport;
};

struct cs_receiver {
    const cs_transport *transport;
};

#endif
