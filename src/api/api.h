/* The OpenAI-compatible API over one or several pipelines. */
#ifndef CS_API_API_H
#define CS_API_API_H

#include "runtime/pipeline/pipeline.h"

typedef struct cs_api cs_api;

typedef struct {
    const char *host;              /* NULL: "127.0.0.1" */
    uint16_t port;                 /* 0: chosen by the kernel */
    char **api_keys;               /* NULL-terminated, or NULL: none is asked for */
    bool allow_public_without_key; /* a host that is not loopback is refused without a key unless
                                      this is set */

    /* Limits; 0: the default. */
    uint32_t n_threads;        /* 4 */
    uint32_t max_connections;  /* 4096 */
    size_t max_body_bytes;     /* 128 MiB, of one request */
    size_t max_buffered_bytes; /* 1 GiB, of all request bodies together */
    uint32_t head_timeout_ms;  /* 10 s */
    uint32_t body_timeout_ms;  /* 120 s */
    uint32_t idle_timeout_s;   /* 60 s */

    bool allow_remote_media; /* https URLs of media are fetched */
    const char *media_dir;   /* file URLs inside it are read; NULL: none */
    size_t max_medium_bytes; /* 256 MiB */

    cs_pipeline *const *more_models; /* NULL-terminated, or NULL */
    const char *state_path;          /* where apps are kept; NULL: nowhere */
} cs_api_options;

/* Listens. The pipelines are borrowed and outlive the API; their ids differ. */
cs_api *cs_api_new(cs_pipeline *pipeline, const cs_api_options *options, GError **error);
uint16_t cs_api_port(const cs_api *api);

/* Takes no further requests, waits up to timeout_us for those that run, ends the rest with an
 * error. */
void cs_api_drain(cs_api *api, int64_t timeout_us);
void cs_api_free(cs_api *api); /* accepts NULL; ends what still runs */

#endif
