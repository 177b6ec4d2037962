/* Layout of records: PKWARE APPNOTE 6.3.9, sections 4.3.7 (local header), 4.3.12 (central
 * directory) and 4.3.16 (end of central directory). */
#include "checkpoint/zip.h"

#include "base/error.h"

#include <string.h>

enum {
    LOCAL_BYTES = 30,
    CENTRAL_BYTES = 46,
    END_BYTES = 22,
    MAX_COMMENT_BYTES = 65535,
    ENCRYPTED = 1, /* general purpose flag */
};

static const uint8_t local_signature[] = {'P', 'K', 3, 4}, central_signature[] = {'P', 'K', 1, 2},
                     end_signature[] = {'P', 'K', 5, 6};

static uint32_t u16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32(const uint8_t *p)
{
    return u16(p) | u16(p + 2) << 16;
}

GHashTable *cs_zip_table_new(void)
{
    return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
}

/* The end record stands last, behind it only a comment of the length that it names. */
static const uint8_t *find_end(const uint8_t *data, size_t size_bytes)
{
    if (size_bytes < END_BYTES)
        return NULL;
    size_t last = size_bytes - END_BYTES;
    size_t first = last > MAX_COMMENT_BYTES ? last - MAX_COMMENT_BYTES : 0;
    for (size_t at = last + 1; at-- > first;)
        if (memcmp(data + at, end_signature, sizeof end_signature) == 0 &&
            at + END_BYTES + u16(data + at + 20) == size_bytes)
            return data + at;
    return NULL;
}

/* Finds an entry's bytes behind its local header, which has a name and extra field of its own
 * lengths. */
static bool locate(const uint8_t *data, size_t size_bytes, const uint8_t *central,
                   const char *source, const char *name, cs_zip_entry *entry, GError **error)
{
    uint32_t stored = u32(central + 20), original = u32(central + 24);
    if (u16(central + 8) & ENCRYPTED)
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: entry %s is encrypted", source, name);
    if (u16(central + 10) != 0 || stored != original)
        return cs_fail(error, CS_ERROR_UNSUPPORTED,
                       "%s: entry %s is compressed (method %u), expected a stored one", source,
                       name, u16(central + 10));
    uint64_t at = u32(central + 42);
    if (at + LOCAL_BYTES > size_bytes ||
        memcmp(data + at, local_signature, sizeof local_signature) != 0)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: entry %s has no header at byte %" G_GUINT64_FORMAT, source, name, at);
    at += LOCAL_BYTES + u16(data + at + 26) + u16(data + at + 28);
    if (at > size_bytes || stored > size_bytes - at)
        return cs_fail(error, CS_ERROR_INVALID, "%s: entry %s of %u bytes lies outside the file",
                       source, name, stored);
    *entry = (cs_zip_entry){data + at, stored};
    return true;
}

bool cs_zip_read(const uint8_t *data, size_t size_bytes, const char *source, GHashTable *entries,
                 GError **error)
{
    const uint8_t *end = find_end(data, size_bytes);
    if (!end)
        return cs_fail(error, CS_ERROR_INVALID, "%s: no zip archive: it has no end record", source);
    uint32_t n = u16(end + 10);
    uint64_t at = u32(end + 16), directory_end = at + u32(end + 12);
    if (directory_end > (size_t)(end - data) || u16(end + 4) != 0 || u16(end + 8) != n)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: the zip directory lies outside the file, or on another disk", source);
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *central = data + at;
        if (directory_end - at < CENTRAL_BYTES ||
            memcmp(central, central_signature, sizeof central_signature) != 0)
            return cs_fail(error, CS_ERROR_INVALID, "%s: zip directory entry %u is malformed",
                           source, i);
        uint32_t name_bytes = u16(central + 28);
        uint64_t size = CENTRAL_BYTES + name_bytes + u16(central + 30) + u16(central + 32);
        if (directory_end - at < size)
            return cs_fail(error, CS_ERROR_INVALID,
                           "%s: zip directory entry %u is longer than the directory", source, i);
        g_autofree char *name = g_strndup((const char *)central + CENTRAL_BYTES, name_bytes);
        cs_zip_entry entry;
        if (strlen(name) != name_bytes || !g_utf8_validate(name, -1, NULL))
            return cs_fail(error, CS_ERROR_INVALID, "%s: the name of zip entry %u is no text",
                           source, i);
        if (!locate(data, size_bytes, central, source, name, &entry, error))
            return false;
        if (g_hash_table_contains(entries, name))
            return cs_fail(error, CS_ERROR_INVALID, "%s: two zip entries %s", source, name);
        g_hash_table_insert(entries, g_steal_pointer(&name), g_memdup2(&entry, sizeof entry));
        at += size;
    }
    return true;
}
