/* Reads a file that torch.save wrote, without running what is in it.
 *
 * The file is a zip archive with a pickle, which is a program for a stack machine, and the raw
 * storages of its tensors. This reader knows the opcodes that build numbers, strings, tuples, lists
 * and dictionaries, and of the names a pickle may call exactly three kinds: the storages of float
 * tensors, torch._utils._rebuild_tensor_v2, and an empty collections.OrderedDict. Anything else is
 * refused by name before anything is done with it. Nothing of the file is ever executed, imported
 * or looked up.
 *
 * Opcodes: Python's Lib/pickletools.py. Immutable after opening.
 */
#ifndef CS_CHECKPOINT_TORCH_FILE_H
#define CS_CHECKPOINT_TORCH_FILE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    CS_TORCH_NONE,
    CS_TORCH_BOOL,
    CS_TORCH_INT,
    CS_TORCH_FLOAT,
    CS_TORCH_STRING,
    CS_TORCH_LIST, /* tuples too */
    CS_TORCH_DICT, /* keys are strings */
    CS_TORCH_TENSOR
} cs_torch_kind;

#define CS_TORCH_MAX_DIMS 6

typedef struct cs_torch_value cs_torch_value;

/* Of a tensor: dense f32, row-major, whatever the file stored (f32, bf16, f16). */
typedef struct {
    uint32_t n_dims;
    int64_t shape[CS_TORCH_MAX_DIMS];
    float *data;
} cs_torch_tensor;

typedef struct cs_torch_file cs_torch_file;

/* `source` names the file in errors. Copies what it keeps. CS_ERROR_INVALID, or
 * CS_ERROR_UNSUPPORTED with the opcode or name that is refused. */
cs_torch_file *cs_torch_file_read(const uint8_t *data, size_t size_bytes, const char *source,
                                  GError **error);
void cs_torch_file_free(cs_torch_file *file); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_torch_file, cs_torch_file_free)

/* Values are borrowed from the file. */
const cs_torch_value *cs_torch_file_root(const cs_torch_file *file);
cs_torch_kind cs_torch_value_kind(const cs_torch_value *value);
int64_t cs_torch_value_int(const cs_torch_value *value);                   /* of INT and BOOL */
double cs_torch_value_float(const cs_torch_value *value);                  /* of FLOAT */
const char *cs_torch_value_string(const cs_torch_value *value);            /* of STRING */
const cs_torch_tensor *cs_torch_value_tensor(const cs_torch_value *value); /* of TENSOR */

/* Of LIST: item i. Of DICT: the value of entry i, in order of the file, and its key. */
uint32_t cs_torch_value_length(const cs_torch_value *value);
const cs_torch_value *cs_torch_value_at(const cs_torch_value *value, uint32_t i);
const char *cs_torch_value_key(const cs_torch_value *value, uint32_t i);
/* Of DICT: the entry of this key, the last one written; NULL when there is none. */
const cs_torch_value *cs_torch_value_get(const cs_torch_value *value, const char *key);

#endif
