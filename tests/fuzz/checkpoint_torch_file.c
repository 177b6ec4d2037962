/* Files of torch.save: whole archives, and, since few changes of an archive reach the pickle in it,
 * the bytes as the pickle of a well-formed archive with two storages. */
#include "checkpoint/torch_file.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void append_u16(GByteArray *to, uint32_t x)
{
    const uint8_t bytes[] = {(uint8_t)x, (uint8_t)(x >> 8)};
    g_byte_array_append(to, bytes, sizeof bytes);
}

static void append_u32(GByteArray *to, uint32_t x)
{
    append_u16(to, x & 0xffff);
    append_u16(to, x >> 16);
}

static void append_entry(GByteArray *archive, GByteArray *directory, const char *name,
                         const uint8_t *data, size_t size)
{
    static const uint8_t zeros[12];
    uint32_t at = archive->len, name_bytes = (uint32_t)strlen(name);
    g_byte_array_append(archive, (const uint8_t *)"PK\3\4", 4);
    for (int both = 0; both < 2; both++) {
        GByteArray *to = both ? directory : archive;
        if (both)
            g_byte_array_append(to, (const uint8_t *)"PK\1\2\0\0", 6);
        g_byte_array_append(to, zeros, 10); /* version, flags, method, time, date */
        append_u32(to, 0);                  /* checksum, not looked at */
        append_u32(to, (uint32_t)size);
        append_u32(to, (uint32_t)size);
        append_u16(to, name_bytes);
        append_u16(to, 0);
        if (both) {
            g_byte_array_append(to, zeros, 10);
            append_u32(to, at);
        }
        g_byte_array_append(to, (const uint8_t *)name, name_bytes);
    }
    g_byte_array_append(archive, data, (guint)size);
}

static void read_whole(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_torch_file) file = cs_torch_file_read(data, size, "fuzz", &error);
    g_assert_true((file != NULL) == (error == NULL));
    if (file && cs_torch_value_kind(cs_torch_file_root(file)) == CS_TORCH_DICT)
        cs_torch_value_get(cs_torch_file_root(file), "cond");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t storage[88];
    read_whole(data, size);
    g_autoptr(GByteArray) archive = g_byte_array_new(), directory = g_byte_array_new();
    append_entry(archive, directory, "a/data.pkl", data, size);
    append_entry(archive, directory, "a/data/0", storage, sizeof storage);
    append_entry(archive, directory, "a/data/1", storage, 40);
    uint32_t at = archive->len;
    g_byte_array_append(archive, directory->data, directory->len);
    g_byte_array_append(archive, (const uint8_t *)"PK\5\6\0\0\0\0", 8);
    append_u16(archive, 3);
    append_u16(archive, 3);
    append_u32(archive, directory->len);
    append_u32(archive, at);
    append_u16(archive, 0);
    read_whole(archive->data, archive->len);
    return 0;
}
