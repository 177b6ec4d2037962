/* The walls around a decoder process: no new privileges, not dumpable, no core files, a bound on
 * address space, and a filter of system calls that leaves reading and writing the one socket,
 * memory that is never executable, and time. Files cannot be opened (EACCES); any other call that
 * is not listed kills the process. Irreversible. */
#ifndef CS_MEDIA_DECODER_SANDBOX_H
#define CS_MEDIA_DECODER_SANDBOX_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "media/decoder/protocol.h"

/* Closes every descriptor but 0, 1, 2 and socket. memory_bytes come on top of what is mapped now.
 */
bool cs_decoder_sandbox_enter(int socket, uint64_t memory_bytes, GError **error);

/* Attempts what the probe names, for tests of the walls. Fills the error with how it was refused;
 * true if it succeeded, which is a hole. */
bool cs_decoder_sandbox_probe(cs_decoder_probe probe, GError **error);

#endif
