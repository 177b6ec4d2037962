/* What the gateway sends to executors of kind "model" beside the messages of proto/runtime.proto:
 * the attachment of an encoder's invocation is a head and the medium's f32 values [rows, cols].
 * Both sides are the same program on the same machine. */
#ifndef CS_RUNTIME_MODEL_PAYLOAD_H
#define CS_RUNTIME_MODEL_PAYLOAD_H

#include <stdint.h>

typedef struct {
    uint64_t content_hash[2];
    int64_t rows, cols;
    int32_t grid[3];
    int32_t modality;
    uint8_t pad[16]; /* keeps what follows at the alignment of a chunk */
} cs_medium_head;
_Static_assert(sizeof(cs_medium_head) == 64, "the head of an encoder's attachment");

#endif
