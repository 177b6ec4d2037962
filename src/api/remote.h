/* Fetching remote media for a request, for servers whose operator allowed it.
 *
 * https only. A name is resolved once, by the transfer itself, and the address that is about to be
 * connected to is judged, so that a second, different answer of the name server cannot slip in
 * between; redirects are judged the same way. Private, loopback, link-local, multicast and
 * otherwise special addresses are refused, also when mapped into IPv6. Proxies of the environment
 * are not used: behind one, nothing would be known of the address.
 */
#ifndef CS_API_REMOTE_H
#define CS_API_REMOTE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

typedef struct {
    size_t max_bytes;
    uint32_t timeout_ms; /* of the whole transfer, redirects included */
} cs_remote_limits;

/* Blocks. The bytes of the answer, or NULL: CS_ERROR_FORBIDDEN (address, protocol),
 * CS_ERROR_TOO_LARGE, CS_ERROR_INVALID (it cannot be had; the caller named it). Errors do not tell
 * what the other side said. */
GBytes *cs_remote_fetch(const char *url, const cs_remote_limits *limits, GError **error);

/* Whether an address may be connected to: global unicast. */
bool cs_remote_address_is_public(const struct sockaddr *address);

#endif
