/* A pool of threads that run the pieces of one job together with the caller.
 *
 * Workers wait for the next job by spinning for a bounded time, since the next operation of a
 * forward pass comes within microseconds, then sleep on a futex. One thread at a time submits.
 */
#ifndef CS_TENSOR_CPU_POOL_H
#define CS_TENSOR_CPU_POOL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct cs_pool cs_pool;

/* Piece `index` of a job, on thread `thread` (0: the caller). */
typedef void cs_pool_piece(void *job, int64_t index, uint32_t thread);

/* n_threads counts the caller; NULL when threads cannot be created. */
cs_pool *cs_pool_new(uint32_t n_threads, GError **error);
void cs_pool_free(cs_pool *pool); /* accepts NULL */
uint32_t cs_pool_n_threads(const cs_pool *pool);

/* Runs pieces 0 ... n - 1, each once, and returns when all are done. Pieces are handed out in
 * ascending order. */
void cs_pool_run(cs_pool *pool, int64_t n, cs_pool_piece *piece, void *job);

#endif
