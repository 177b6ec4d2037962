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
    /* A talker's embeddings are of this width and are mapped to hidden_size; spans are added to
     * them, but stand alone where the token is silent_token. 0: neither, spans replace. */
    int64_t embedding_size;
    int32_t silent_token;
} cs_qwen2_decoder_config;

/* The talker: a decoder over codec tokens, and the tokens by which it is driven. */
typedef struct {
    cs_qwen2_decoder_config decoder;
    int32_t codec_mask, codec_pad, codec_start, codec_end; /* of its own vocabulary */
    int32_t text_end, text_pad;                            /* of the thinker's */
} cs_qwen2_5_omni_talker_config;

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

#define CS_DIT_MAX_DEPTH 64
#define CS_DIT_MAX_SPEAKER_BLOCKS 8

/* The flow-matching transformer of token2wav: codec tokens to mel frames. */
typedef struct {
    int64_t hidden_size;
    int64_t n_layers;
    int64_t n_heads;
    int64_t head_dim;
    int64_t ff_size;
    int64_t n_mels;
    int64_t n_codes;        /* of the embedding table, without the one spare entry */
    int64_t code_size;      /* of a code's embedding */
    int64_t repeats;        /* mel frames of a code */
    int64_t block_size;     /* frames of an attention block */
    uint64_t look_ahead;    /* bit i: layer i also sees the block after */
    uint64_t look_backward; /* the block before */
    double rope_theta;
    /* Speaker encoder (ECAPA-TDNN). */
    int64_t voice_size; /* of a voice's own embedding, cond */
    int64_t speaker_size;
    int64_t n_speaker_blocks;
    int64_t channels[CS_DIT_MAX_SPEAKER_BLOCKS];
    int64_t kernels[CS_DIT_MAX_SPEAKER_BLOCKS];
    int64_t dilations[CS_DIT_MAX_SPEAKER_BLOCKS];
    int64_t res2net_scale;
    int64_t se_channels;
    int64_t attention_channels;
} cs_qwen2_5_omni_dit_config;

#define CS_VOCODER_MAX_STAGES 8
#define CS_VOCODER_MAX_BLOCKS 4
#define CS_VOCODER_MAX_RATE 64
#define CS_VOCODER_DILATIONS 3

/* BigVGAN: mel frames to samples. */
typedef struct {
    int64_t n_mels;
    int64_t channels; /* before the first stage; each stage halves them */
    int64_t n_stages;
    int64_t rates[CS_VOCODER_MAX_STAGES];
    int64_t rate_kernels[CS_VOCODER_MAX_STAGES];
    int64_t n_blocks; /* residual blocks of a stage, averaged */
    int64_t block_kernels[CS_VOCODER_MAX_BLOCKS];
    int64_t block_dilations[CS_VOCODER_MAX_BLOCKS][CS_VOCODER_DILATIONS];
    bool final_bias;
} cs_qwen2_5_omni_vocoder_config;

typedef struct {
    cs_qwen2_decoder_config text;
    cs_qwen2_5_omni_vision_config vision;
    cs_qwen2_5_omni_audio_config audio;
    int32_t image_token, video_token, audio_token;
    int32_t vision_start_token, vision_end_token, audio_start_token, audio_end_token;
    int64_t position_id_per_seconds;
    double seconds_per_chunk;
    bool speaks; /* the checkpoint has a talker and what follows it */
    cs_qwen2_5_omni_talker_config talker;
    cs_qwen2_5_omni_dit_config dit;
    cs_qwen2_5_omni_vocoder_config vocoder;
} cs_qwen2_5_omni_config;

#define CS_VISION_MAX_DEPTH 256

static inline bool cs_vision_full_attention(const cs_qwen2_5_omni_vision_config *c, int64_t block)
{
    return c->full_attention[block / 64] >> (block % 64) & 1;
}

bool cs_qwen2_5_omni_config_read(cs_qwen2_5_omni_config *config, json_t *root, const char *source,
                                 GError **error);

#endif
