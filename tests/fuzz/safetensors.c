/* Headers of safetensors files. */
#include "checkpoint/checkpoint.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads what the header says is there, so that a wrong extent is a fault. */
static uint8_t touch(GHashTable *tensors)
{
    GHashTableIter iter;
    gpointer value;
    uint8_t sum = 0;
    g_hash_table_iter_init(&iter, tensors);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        const cs_checkpoint_tensor *t = value;
        for (size_t i = 0; i < t->size_bytes; i++)
            sum ^= ((const uint8_t *)t->data)[i];
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *aligned = g_aligned_alloc(1, size + 1, 64); /* as a mapping is */
    memcpy(aligned, data, size);
    g_autoptr(GHashTable) tensors = cs_safetensors_table_new();
    g_autoptr(GError) error = NULL;
    volatile uint8_t sum = 0;
    bool ok = cs_safetensors_read(aligned, size, "fuzz", tensors, &error);
    g_assert_true(ok == !error);
    if (ok)
        sum = touch(tensors);
    (void)sum;
    g_aligned_free(aligned);
    return 0;
}
