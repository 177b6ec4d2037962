#include "models/qwen2_5_omni/config.h"

#include "base/json.h"

#include <string.h>

/* Bounds far above published models, so that products of them stay inside 64 bits. */
enum {
    MAX_SIZE = 1 << 20,
    MAX_LAYERS = 1024,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 256,
    MAX_VOCAB = 1 << 22
};

static void require_activation(cs_json_reader *r, const char *key, const char *expected)
{
    const char *found = cs_json_string_or(r, key, expected);
    if (strcmp(found, expected) != 0)
        cs_json_fault(r, key, "activation \"%.20s\" is not implemented, only \"%s\"", found,
                      expected);
}

static void read_rope(cs_json_reader *r, cs_qwen2_decoder_config *c)
{
    c->rope_theta = cs_json_number_or(r, "rope_theta", 1, 1e12, 1e6);
    cs_json_enter(r, "rope_scaling");
    const char *type = cs_json_string_or(r, "type", cs_json_string_or(r, "rope_type", "default"));
    if (strcmp(type, "default") != 0 && strcmp(type, "mrope") != 0)
        cs_json_fault(r, "type",
                      "rope scaling \"%.20s\" is not implemented, only \"default\" and \"mrope\"",
                      type);
    cs_json_ints(r, "mrope_section", 0, MAX_HEAD_DIM, c->rope_sections, 3);
    int64_t sum = c->rope_sections[0] + c->rope_sections[1] + c->rope_sections[2];
    if (sum * 2 != c->head_dim)
        cs_json_fault(r, "mrope_section",
                      "sections add up to %" G_GINT64_FORMAT
                      ", expected half of the head size %" G_GINT64_FORMAT,
                      sum, c->head_dim);
    cs_json_leave(r);
}

static void read_decoder(cs_json_reader *r, cs_qwen2_decoder_config *c)
{
    c->hidden_size = cs_json_int(r, "hidden_size", 1, MAX_SIZE);
    c->n_layers = cs_json_int(r, "num_hidden_layers", 1, MAX_LAYERS);
    c->n_heads = cs_json_int(r, "num_attention_heads", 1, MAX_HEADS);
    c->n_kv_heads = cs_json_int_or(r, "num_key_value_heads", 1, MAX_HEADS, c->n_heads);
    c->head_dim = cs_json_int_or(r, "head_dim", 2, MAX_HEAD_DIM, c->hidden_size / c->n_heads);
    c->intermediate_size = cs_json_int(r, "intermediate_size", 1, MAX_SIZE);
    c->vocab_size = cs_json_int(r, "vocab_size", 1, MAX_VOCAB);
    c->max_positions = cs_json_int_or(r, "max_position_embeddings", 1, 1 << 24, 32768);
    c->rms_epsilon = (float)cs_json_number_or(r, "rms_norm_eps", 0, 1, 1e-6);
    c->tied_embeddings = cs_json_bool_or(r, "tie_word_embeddings", false);
    require_activation(r, "hidden_act", "silu");
    if (c->head_dim < 2 || c->head_dim > MAX_HEAD_DIM || c->head_dim % 2 != 0)
        cs_json_fault(r, "num_attention_heads",
                      "gives a head size of %" G_GINT64_FORMAT
                      ", expected an even number of at most %d",
                      c->head_dim, MAX_HEAD_DIM);
    /* Query heads of one kv head are computed together, at most 32. */
    if (c->n_heads % c->n_kv_heads != 0 || c->n_heads / c->n_kv_heads > 32)
        cs_json_fault(r, "num_key_value_heads",
                      "%" G_GINT64_FORMAT " does not share out %" G_GINT64_FORMAT
                      " query heads, at most 32 to each",
                      c->n_kv_heads, c->n_heads);
    if (cs_json_bool_or(r, "use_sliding_window", false))
        cs_json_fault(r, "use_sliding_window", "sliding-window attention is not implemented");
    read_rope(r, c);
}

static void read_full_attention(cs_json_reader *r, cs_qwen2_5_omni_vision_config *c)
{
    size_t n = cs_json_enter_array(r, "fullatt_block_indexes");
    cs_json_leave(r);
    int64_t blocks[CS_VISION_MAX_DEPTH];
    if (n > CS_VISION_MAX_DEPTH) {
        cs_json_fault(r, "fullatt_block_indexes", "more than %d entries", CS_VISION_MAX_DEPTH);
        return;
    }
    cs_json_ints(r, "fullatt_block_indexes", 0, c->depth - 1, blocks, n);
    for (size_t i = 0; i < n; i++)
        c->full_attention[blocks[i] / 64] |= (uint64_t)1 << (blocks[i] % 64);
}

static void read_vision(cs_json_reader *r, cs_qwen2_5_omni_vision_config *c)
{
    c->depth = cs_json_int(r, "depth", 1, CS_VISION_MAX_DEPTH);
    c->hidden_size = cs_json_int(r, "hidden_size", 1, MAX_SIZE);
    c->n_heads = cs_json_int(r, "num_heads", 1, MAX_HEADS);
    c->intermediate_size = cs_json_int(r, "intermediate_size", 1, MAX_SIZE);
    c->in_channels = cs_json_int_or(r, "in_channels", 3, 3, 3);
    c->patch_size = cs_json_int_or(r, "patch_size", 1, 256, 14);
    c->temporal_patch_size = cs_json_int_or(r, "temporal_patch_size", 1, 16, 2);
    c->merge_size = cs_json_int_or(r, "spatial_merge_size", 1, 16, 2);
    c->window_size = cs_json_int_or(r, "window_size", 1, 4096, 112);
    c->out_size = cs_json_int(r, "out_hidden_size", 1, MAX_SIZE);
    require_activation(r, "hidden_act", "silu");
    if (c->hidden_size % c->n_heads != 0 || c->hidden_size / c->n_heads % 4 != 0 ||
        c->hidden_size / c->n_heads > MAX_HEAD_DIM)
        cs_json_fault(r, "num_heads",
                      "%" G_GINT64_FORMAT " heads do not share out hidden_size %" G_GINT64_FORMAT
                      " in multiples of 4, at most %d",
                      c->n_heads, c->hidden_size, MAX_HEAD_DIM);
    if (c->window_size / c->merge_size / c->patch_size < 1)
        cs_json_fault(r, "window_size",
                      "%" G_GINT64_FORMAT " pixels hold no merge group of %" G_GINT64_FORMAT
                      " patches of %" G_GINT64_FORMAT,
                      c->window_size, c->merge_size, c->patch_size);
    read_full_attention(r, c);
}

static void read_audio(cs_json_reader *r, cs_qwen2_5_omni_audio_config *c)
{
    c->n_mels = cs_json_int(r, "num_mel_bins", 1, 1024);
    c->hidden_size = cs_json_int(r, "d_model", 4, MAX_SIZE);
    c->n_layers = cs_json_int(r, "encoder_layers", 1, MAX_LAYERS);
    c->n_heads = cs_json_int(r, "encoder_attention_heads", 1, MAX_HEADS);
    c->ffn_size = cs_json_int(r, "encoder_ffn_dim", 1, MAX_SIZE);
    c->n_window = cs_json_int_or(r, "n_window", 1, 4096, 100);
    c->out_size = cs_json_int(r, "output_dim", 1, MAX_SIZE);
    require_activation(r, "activation_function", "gelu");
    if (c->hidden_size % 2 != 0 || c->hidden_size % c->n_heads != 0 ||
        c->hidden_size / c->n_heads > MAX_HEAD_DIM)
        cs_json_fault(r, "encoder_attention_heads",
                      "%" G_GINT64_FORMAT
                      " heads do not share out an even d_model of %" G_GINT64_FORMAT
                      ", at most %d each",
                      c->n_heads, c->hidden_size, MAX_HEAD_DIM);
    int64_t positions = cs_json_int_or(r, "max_source_positions", 1, 1 << 20, 1500);
    if (c->n_window > positions)
        cs_json_fault(r, "n_window",
                      "a chunk gives %" G_GINT64_FORMAT
                      " frames, max_source_positions is %" G_GINT64_FORMAT,
                      c->n_window, positions);
}

static int32_t read_token(cs_json_reader *r, const char *key, int64_t vocab_size)
{
    return (int32_t)cs_json_int(r, key, 0, vocab_size - 1);
}

bool cs_qwen2_5_omni_config_read(cs_qwen2_5_omni_config *c, json_t *root, const char *source,
                                 GError **error)
{
    *c = (cs_qwen2_5_omni_config){0};
    cs_json_reader r;
    cs_json_reader_init(&r, root, source);
    cs_json_enter(&r, "thinker_config");
    cs_json_enter(&r, "text_config");
    read_decoder(&r, &c->text);
    cs_json_leave(&r);
    cs_json_enter(&r, "vision_config");
    read_vision(&r, &c->vision);
    cs_json_leave(&r);
    cs_json_enter(&r, "audio_config");
    read_audio(&r, &c->audio);
    cs_json_leave(&r);
    int64_t vocab = c->text.vocab_size;
    c->image_token = read_token(&r, "image_token_index", vocab);
    c->video_token = read_token(&r, "video_token_index", vocab);
    c->audio_token = read_token(&r, "audio_token_index", vocab);
    c->vision_start_token = read_token(&r, "vision_start_token_id", vocab);
    c->vision_end_token = read_token(&r, "vision_end_token_id", vocab);
    c->audio_start_token = read_token(&r, "audio_start_token_id", vocab);
    c->audio_end_token = read_token(&r, "audio_end_token_id", vocab);
    c->position_id_per_seconds = cs_json_int_or(&r, "position_id_per_seconds", 1, 10000, 25);
    c->seconds_per_chunk = cs_json_number_or(&r, "seconds_per_chunk", 0.01, 1000, 2);
    if (c->vision.out_size != c->text.hidden_size)
        cs_json_fault(&r, "vision_config.out_hidden_size",
                      "%" G_GINT64_FORMAT ", the thinker's hidden_size is %" G_GINT64_FORMAT,
                      c->vision.out_size, c->text.hidden_size);
    if (c->audio.out_size != c->text.hidden_size)
        cs_json_fault(&r, "audio_config.output_dim",
                      "%" G_GINT64_FORMAT ", the thinker's hidden_size is %" G_GINT64_FORMAT,
                      c->audio.out_size, c->text.hidden_size);
    cs_json_leave(&r);
    return cs_json_reader_finish(&r, error);
}
