/* The voices of a Qwen2.5-Omni checkpoint: spk_dict.pt. */
#ifndef CS_MODELS_QWEN2_5_OMNI_SPEAKERS_H
#define CS_MODELS_QWEN2_5_OMNI_SPEAKERS_H

#include "checkpoint/torch_file.h"

typedef struct {
    const char *name;
    int32_t bos_token; /* of the text vocabulary: begins what the talker speaks */
    int64_t n_cond;
    const float *cond; /* [n_cond] speaker embedding */
    int64_t n_frames, n_mels;
    const float *mel; /* [n_frames, n_mels] a recording of the voice */
} cs_speaker;

typedef struct {
    cs_torch_file *file; /* what the voices point into */
    uint32_t n;
    cs_speaker *speakers; /* in order of the file */
} cs_speakers;

/* Reads a file whose voices have embeddings of n_cond values, mel frames of n_mels, and tokens
 * below vocab_size. Nothing to clear on failure. */
bool cs_speakers_read(cs_speakers *speakers, const char *path, int64_t n_cond, int64_t n_mels,
                      int64_t vocab_size, GError **error);
void cs_speakers_clear(cs_speakers *speakers);

/* NULL when there is none of that name. Names are compared without regard to case. */
const cs_speaker *cs_speakers_find(const cs_speakers *speakers, const char *name);

#endif
