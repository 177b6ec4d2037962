/* Compute: the operations that components are made of, on one device.
 *
 * A cs_compute is a device with its threads, its stream of queued operations and a workspace for
 * activations. Model files call the cs_op_* functions below and nothing else; behind them stands a
 * const table per device (cpu/, later cuda/). Operations are queued in order and may still be
 * running when the function returns; cs_compute_sync waits and reports. On the CPU they have
 * finished on return.
 *
 * One thread at a time uses a cs_compute. Shapes are the caller's duty: a mismatch is a bug and
 * asserts.
 */
#ifndef CS_TENSOR_COMPUTE_H
#define CS_TENSOR_COMPUTE_H

#include "tensor/tensor.h"

typedef struct cs_compute cs_compute;

typedef struct {
    const char *device; /* "cpu" (NULL: cpu) */
    uint32_t n_threads; /* 0: the CPUs of this process */
    const char *isa; /* NULL: best of this CPU; "portable", "avx2", "avx512", "avx512bf16", "amx" */
} cs_compute_options;

cs_compute *cs_compute_new(const cs_compute_options *options, GError **error);
void cs_compute_free(cs_compute *compute); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_compute, cs_compute_free)

#endif
