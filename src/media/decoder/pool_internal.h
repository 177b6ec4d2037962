/* The pool's speech process, for encode.h, and what tests need beyond pool.h. */
#ifndef CS_MEDIA_DECODER_POOL_INTERNAL_H
#define CS_MEDIA_DECODER_POOL_INTERNAL_H

#include "media/decoder/pool.h"
#include "media/decoder/protocol.h"

#include <sys/types.h>

/* A name for a session that no other has. */
uint64_t cs_media_pool_next_session(cs_media_pool *pool);

/* One step of an encoder: appends what it gives to `out` (may be NULL for CS_ENCODE_DROP). */
bool cs_media_pool_encode(cs_media_pool *pool, const cs_encode_request *step, const float *samples,
                          GByteArray *out, GError **error);

/* Has a process of the kind attempt a probe: true when it succeeded. */
bool cs_media_pool_probe(cs_media_pool *pool, cs_decoder_kind kind, cs_decoder_probe probe,
                         GError **error);

/* The process in place i of a kind, 0 if none runs. */
pid_t cs_media_pool_process(cs_media_pool *pool, cs_decoder_kind kind, uint32_t i);

#endif
