/* Stored (uncompressed) entries of a zip archive in memory, such as torch.save writes.
 *
 * Every offset and size is checked against the archive before it is used. Archives of more than one
 * disk, of 4 GiB and more, encrypted or compressed entries are refused.
 */
#ifndef CS_CHECKPOINT_ZIP_H
#define CS_CHECKPOINT_ZIP_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *data; /* in the archive */
    size_t size_bytes;
} cs_zip_entry;

/* Fills `entries` (char * owned by the table -> cs_zip_entry * owned) with all entries. `source`
 * names the archive in errors. */
bool cs_zip_read(const uint8_t *data, size_t size_bytes, const char *source, GHashTable *entries,
                 GError **error);

/* An empty table for cs_zip_read. */
GHashTable *cs_zip_table_new(void);

#endif
