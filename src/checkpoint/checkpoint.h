/* A Hugging Face checkpoint directory: config.json and the tensors of its *.safetensors files.
 *
 * Files are mapped, never copied. Every number of a header is checked against the file before it is
 * used: a checkpoint that opens has tensors that lie inside their file, have the size their shape
 * says, and do not overlap. Read-only after opening, so any thread may use it.
 *
 * Format: https://huggingface.co/docs/safetensors: u64 header length, JSON header
 * {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__"}, then the bytes of the tensors
 * without gaps.
 */
#ifndef CS_CHECKPOINT_CHECKPOINT_H
#define CS_CHECKPOINT_CHECKPOINT_H

#include "tensor/tensor.h"

#include <jansson.h>

#define CS_CHECKPOINT_MAX_DIMS 6

typedef struct {
    const char *name;
    const char *file; /* base name of the file it is in */
    const void *data; /* in the mapping */
    size_t size_bytes;
    cs_dtype dtype;
    bool computable; /* f32, bf16 or f16: what weights may be */
    uint32_t n_dims;
    int64_t shape[CS_CHECKPOINT_MAX_DIMS];
} cs_checkpoint_tensor;

typedef struct cs_checkpoint cs_checkpoint;

/* Opens DIR/config.json and the tensors: the files that model.safetensors.index.json names, or
 * model.safetensors. */
cs_checkpoint *cs_checkpoint_open(const char *dir, GError **error);
void cs_checkpoint_close(cs_checkpoint *checkpoint); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_checkpoint, cs_checkpoint_close)

const char *cs_checkpoint_dir(const cs_checkpoint *checkpoint);
json_t *cs_checkpoint_config(const cs_checkpoint *checkpoint); /* borrowed */

/* All tensors by name. */
uint32_t cs_checkpoint_n_tensors(const cs_checkpoint *checkpoint);
const cs_checkpoint_tensor *cs_checkpoint_tensor_at(const cs_checkpoint *checkpoint,
                                                    uint32_t index);

/* NULL when there is none of that name. */
const cs_checkpoint_tensor *cs_checkpoint_find(const cs_checkpoint *checkpoint, const char *name);

/* The tensor of exactly this shape in a dtype that weights may have, or NULL and an error that
 * names the file, the tensor, what was found and what was expected. */
const cs_checkpoint_tensor *cs_checkpoint_weight(const cs_checkpoint *checkpoint, const char *name,
                                                 uint32_t n_dims, const int64_t *shape,
                                                 GError **error);

/* Tells the system that a tensor's pages are not needed again, after its weights were packed. */
void cs_checkpoint_drop_pages(const cs_checkpoint_tensor *tensor);

/* Reads the header of one mapped safetensors file and adds its tensors to `tensors` (char * owned
 * by the table
 * -> cs_checkpoint_tensor *). Exposed for golden files and for fuzzing. */
bool cs_safetensors_read(const uint8_t *data, size_t size_bytes, const char *file,
                         GHashTable *tensors, GError **error);

/* An empty table for cs_safetensors_read. */
GHashTable *cs_safetensors_table_new(void);

#endif
