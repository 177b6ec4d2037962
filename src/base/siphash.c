#include "base/siphash.h"

#include <glib.h>
#include <string.h>
#include <sys/random.h>

static uint64_t process_key[2];

/* Falls back on GLib's generator where the system call is missing: the key is then weaker, never
 * fixed. */
static const uint64_t *key(void)
{
    static gsize drawn;
    if (g_once_init_enter(&drawn)) {
        if (getrandom(process_key, sizeof process_key, 0) != (ssize_t)sizeof process_key)
            for (int i = 0; i < 2; i++)
                process_key[i] = (uint64_t)g_random_int() << 32 | g_random_int();
        g_once_init_leave(&drawn, 1);
    }
    return process_key;
}

static uint64_t rotate(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static void rounds(uint64_t v[4], int n)
{
    for (int i = 0; i < n; i++) {
        v[0] += v[1];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[0] = rotate(v[0], 32);
        v[2] += v[3];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] += v[3];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[2] += v[1];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[2] = rotate(v[2], 32);
    }
}

static void absorb(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    rounds(v, 2);
    v[0] ^= word;
}

void cs_siphash128(uint64_t domain, const void *data, size_t size_bytes, uint64_t out[2])
{
    const uint64_t *k = key();
    uint64_t v[4] = {k[0] ^ 0x736f6d6570736575u, k[1] ^ 0x646f72616e646f6du ^ 0xee,
                     k[0] ^ 0x6c7967656e657261u, k[1] ^ 0x7465646279746573u};
    const uint8_t *bytes = data;
    absorb(v, domain);
    size_t whole = size_bytes / 8 * 8;
    for (size_t i = 0; i < whole; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, sizeof word);
        absorb(v, word);
    }
    uint64_t last = (uint64_t)size_bytes << 56;
    for (size_t i = whole; i < size_bytes; i++)
        last |= (uint64_t)bytes[i] << (8 * (i - whole));
    absorb(v, last);
    v[2] ^= 0xee;
    rounds(v, 4);
    out[0] = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    rounds(v, 4);
    out[1] = v[0] ^ v[1] ^ v[2] ^ v[3];
}
