/* config.json of Qwen2.5-Omni: what the components here need of it, checked for range and for
 * agreement. */
#ifndef CS_MODELS_QWEN2_5_OMNI_CONFIG_H
#define CS_MODELS_QWEN2_5_OMNI_CONFIG_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* A Qwen2 decoder: RMS norms, grouped-query attention with biases on q, k, v, gated MLP, M-RoPE. */
typedef struct {
    int64_t hidden_size;
    int64_t n_layers;
    int64_t n_heads;
    int64_t n_kv_heads;
    int64_t head_dim;
    int64_t intermediate_size;
    int64_t vocab_size;
    int64_t max_positions;
    float rms_epsilon;
    double rope_theta;
    int64_t rope_sections[3]; /* of head_dim / 2: time, height, width */
    bool tied_embeddings;
} cs_qwen2_decoder_config;

typedef struct {
    int64_t depth;
    int64_t hidden_size;
    int64_t n_heads;
    int64_t intermediate_size;
    int64_t in_channels;
    int64_t patch_size;
    int64_t temporal_patch_size;
    int64_t merge_size;  /* patches of one side of a merge group */
    int64_t window_size; /* pixels of one side of an attention window */
    int64_t out_size;
    uint64_t full_attention[4]; /* bit i: block i attends to the whole frame */
} cs_qwen2_5_omni_vision_config;

typedef struct {
    int64_t n_mels;
    int64_t hidden_size;
    int64_t n_layers;
    int64_t n_heads;
    int64_t ffn_size;
    int64_t n_window; /* half the mel frames of a chunk */
    int64_t out_size;
} cs_qwen2_5_omni_audio_config;

typedef struct {
    cs_qwen2_decoder_config text;
    cs_qwen2_5_omni_vision_config vision;
    cs_qwen2_5_omni_audio_config audio;
    int32_t image_token, video_token, audio_token;
    int32_t vision_start_token, vision_end_token, audio_start_token, audio_end_token;
    int64_t position_id_per_seconds;
    double seconds_per_chunk;
} cs_qwen2_5_omni_config;

#define CS_VISION_MAX_DEPTH 256

static inline bool cs_vision_full_attention(const cs_qwen2_5_omni_vision_config *c, int64_t block)
{
    return c->full_attention[block / 64] >> (block % 64) & 1;
}

bool cs_qwen2_5_omni_config_read(cs_qwen2_5_omni_config *config, json_t *root, const char *source,
                                 GError **error);

#endif
