#include "models/qwen2_5_omni/speakers.h"

#include "base/error.h"
#include "base/os.h"

/* Frames of a recording; published voices have some hundred (about 10 ms each). */
enum { MAX_FRAMES = 1 << 16 };

/* [1, n] or [1, rows, n]; NULL for anything else. */
static const cs_torch_tensor *tensor_of(const cs_torch_value *voice, const char *key,
                                        uint32_t n_dims, int64_t n)
{
    const cs_torch_value *v = cs_torch_value_get(voice, key);
    if (!v || cs_torch_value_kind(v) != CS_TORCH_TENSOR)
        return NULL;
    const cs_torch_tensor *t = cs_torch_value_tensor(v);
    return t->n_dims == n_dims && t->shape[0] == 1 && t->shape[n_dims - 1] == n ? t : NULL;
}

static bool read_voice(cs_speaker *speaker, const cs_torch_value *voice, const char *path,
                       int64_t n_cond, int64_t n_mels, int64_t vocab_size, GError **error)
{
    if (cs_torch_value_kind(voice) != CS_TORCH_DICT)
        return cs_fail(error, CS_ERROR_INVALID, "%s: voice %.60s is no dictionary", path,
                       speaker->name);
    const cs_torch_tensor *cond = tensor_of(voice, "cond", 2, n_cond),
                          *mel = tensor_of(voice, "ref_mel", 3, n_mels);
    const cs_torch_value *token = cs_torch_value_get(voice, "bos_token");
    if (!cond)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: voice %.60s: expected cond as a tensor [1, %" G_GINT64_FORMAT "]", path,
                       speaker->name, n_cond);
    if (!mel || mel->shape[1] > MAX_FRAMES)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: voice %.60s: expected ref_mel as a tensor [1, frames, %" G_GINT64_FORMAT
                       "] of at most %d frames",
                       path, speaker->name, n_mels, MAX_FRAMES);
    if (!token || cs_torch_value_kind(token) != CS_TORCH_INT || cs_torch_value_int(token) < 0 ||
        cs_torch_value_int(token) >= vocab_size)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: voice %.60s: expected bos_token below %" G_GINT64_FORMAT, path,
                       speaker->name, vocab_size);
    speaker->bos_token = (int32_t)cs_torch_value_int(token);
    speaker->n_cond = n_cond;
    speaker->cond = cond->data;
    speaker->n_frames = mel->shape[1];
    speaker->n_mels = n_mels;
    speaker->mel = mel->data;
    return true;
}

bool cs_speakers_read(cs_speakers *speakers, const char *path, int64_t n_cond, int64_t n_mels,
                      int64_t vocab_size, GError **error)
{
    cs_file_map map;
    if (!cs_file_map_open(&map, path, error))
        return false;
    cs_speakers read = {.file = cs_torch_file_read(map.data, map.size_bytes, path, error)};
    cs_file_map_close(&map);
    if (!read.file)
        return false;
    const cs_torch_value *root = cs_torch_file_root(read.file);
    bool ok = cs_torch_value_kind(root) == CS_TORCH_DICT && cs_torch_value_length(root) > 0;
    if (!ok)
        cs_fail(error, CS_ERROR_INVALID, "%s: expected a dictionary of voices", path);
    read.n = ok ? cs_torch_value_length(root) : 0;
    read.speakers = g_new0(cs_speaker, read.n);
    for (uint32_t i = 0; i < read.n && ok; i++) {
        read.speakers[i].name = cs_torch_value_key(root, i);
        ok = read_voice(&read.speakers[i], cs_torch_value_at(root, i), path, n_cond, n_mels,
                        vocab_size, error);
    }
    if (!ok) {
        cs_speakers_clear(&read);
        return false;
    }
    *speakers = read;
    return true;
}

void cs_speakers_clear(cs_speakers *speakers)
{
    g_free(speakers->speakers);
    cs_torch_file_free(speakers->file);
    *speakers = (cs_speakers){0};
}

const cs_speaker *cs_speakers_find(const cs_speakers *speakers, const char *name)
{
    for (uint32_t i = 0; i < speakers->n; i++)
        if (g_ascii_strcasecmp(speakers->speakers[i].name, name) == 0)
            return &speakers->speakers[i];
    return NULL;
}
