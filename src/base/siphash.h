/* A keyed 128-bit hash: SipHash-2-4 (Aumasson and Bernstein 2012) under a key drawn when the
 * process starts.
 *
 * For tables and caches whose keys come from outside: without the key nobody can make two inputs
 * that collide. Values differ from process to process, so they are never stored or sent.
 */
#ifndef CS_BASE_SIPHASH_H
#define CS_BASE_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

/* out depends on the data and on `domain`, which keeps kinds of data apart. */
void cs_siphash128(uint64_t domain, const void *data, size_t size_bytes, uint64_t out[2]);

#endif
