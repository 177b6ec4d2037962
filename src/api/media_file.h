/* Media from file: URLs, strictly inside the directory that the operator named. */
#ifndef CS_API_MEDIA_FILE_H
#define CS_API_MEDIA_FILE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Reads a regular file of 1 to max_bytes bytes below dir. Paths and links that lead out of it are
 * refused by the kernel (openat2, RESOLVE_BENEATH); all refusals read alike, so that nothing is
 * learnt of files outside. */
GBytes *cs_media_file_read(const char *dir, const char *url, size_t max_bytes, GError **error);

#endif
