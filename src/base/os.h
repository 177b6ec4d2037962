/* Small helpers over the operating system: time, files, memory of this process. */
#ifndef CS_BASE_OS_H
#define CS_BASE_OS_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Monotonic time in microseconds (CLOCK_MONOTONIC). */
int64_t cs_now_us(void);

/* A file mapped read-only, or an empty one (data NULL, size 0). */
typedef struct {
    const uint8_t *data;
    size_t size_bytes;
} cs_file_map;

bool cs_file_map_open(cs_file_map *map, const char *path, GError **error);
void cs_file_map_close(cs_file_map *map);

/* Reads a whole file of at most max_bytes; the text is NUL-terminated beyond *size_bytes.
 * Returns NULL with CS_ERROR_TOO_LARGE, CS_ERROR_NOT_FOUND or CS_ERROR_FAILED. g_free. */
char *cs_file_read(const char *path, size_t max_bytes, size_t *size_bytes, GError **error);

/* Resident bytes of this process, now. */
size_t cs_process_resident_bytes(void);

/* Bytes that this process may still take: of the machine, and of its control group. */
uint64_t cs_memory_free_bytes(void);

/* CPUs this process may run on (its affinity mask), at least 1. */
int cs_cpu_count(void);

/* 64-bit FNV-1a; pass CS_HASH_SEED or the hash so far. For tables and cache keys, not for secrets.
 */
#define CS_HASH_SEED 0xcbf29ce484222325u
uint64_t cs_hash(uint64_t hash, const void *data, size_t size_bytes);

#endif
