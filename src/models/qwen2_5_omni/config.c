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

static void read_talker(cs_json_reader *r, cs_qwen2_5_omni_talker_config *c, int64_t text_vocab)
{
    read_decoder(r, &c->decoder);
    int64_t vocab = c->decoder.vocab_size;
    c->decoder.embedding_size = cs_json_int(r, "embedding_size", 1, MAX_SIZE);
    c->codec_mask = read_token(r, "tts_codec_mask_token_id", vocab);
    c->codec_pad = read_token(r, "tts_codec_pad_token_id", vocab);
    c->codec_start = read_token(r, "tts_codec_start_token_id", vocab);
    c->codec_end = read_token(r, "tts_codec_end_token_id", vocab);
    c->text_end = read_token(r, "tts_text_end_token_id", text_vocab);
    c->text_pad = read_token(r, "tts_text_pad_token_id", text_vocab);
    c->decoder.silent_token = c->codec_mask;
}

/* A list of layers as bits. */
static uint64_t read_layers(cs_json_reader *r, const char *key, int64_t n_layers)
{
    int64_t layers[CS_DIT_MAX_DEPTH];
    uint64_t bits = 0;
    size_t n = cs_json_enter_array(r, key);
    cs_json_leave(r);
    if (n > CS_DIT_MAX_DEPTH) {
        cs_json_fault(r, key, "more than %d entries", CS_DIT_MAX_DEPTH);
        return 0;
    }
    cs_json_ints(r, key, 0, CS_DIT_MAX_DEPTH - 1, layers, n);
    for (size_t i = 0; i < n && !r->error; i++)
        if (layers[i] < n_layers) /* the reference looks layers up, so that others do nothing */
            bits |= (uint64_t)1 << layers[i];
    return bits;
}

static void read_speaker_encoder(cs_json_reader *r, cs_qwen2_5_omni_dit_config *c)
{
    c->voice_size = cs_json_int_or(r, "enc_emb_dim", 1, MAX_SIZE, 192);
    c->speaker_size = cs_json_int_or(r, "enc_dim", 1, MAX_SIZE, 128);
    size_t n = cs_json_enter_array(r, "enc_channels");
    cs_json_leave(r);
    if (n < 3 || n > CS_DIT_MAX_SPEAKER_BLOCKS) {
        cs_json_fault(r, "enc_channels", "%zu entries, expected 3 to %d", n,
                      CS_DIT_MAX_SPEAKER_BLOCKS);
        return;
    }
    c->n_speaker_blocks = (int64_t)n;
    cs_json_ints(r, "enc_channels", 1, 1 << 14, c->channels, n);
    cs_json_ints(r, "enc_kernel_sizes", 1, 63, c->kernels, n);
    cs_json_ints(r, "enc_dilations", 1, 64, c->dilations, n);
    c->res2net_scale = cs_json_int_or(r, "enc_res2net_scale", 2, 64, 2);
    c->se_channels = cs_json_int_or(r, "enc_se_channels", 1, 1 << 14, 64);
    c->attention_channels = cs_json_int_or(r, "enc_attention_channels", 1, 1 << 14, 64);
    int64_t joined = 0;
    for (size_t i = 1; i + 1 < n; i++) {
        joined += c->channels[i];
        if (c->channels[i] != c->channels[i - 1] || c->channels[i] % c->res2net_scale != 0)
            cs_json_fault(r, "enc_channels",
                          "blocks before the last must be equally wide and shared out by "
                          "enc_res2net_scale");
    }
    if (joined != c->channels[n - 1])
        cs_json_fault(r, "enc_channels",
                      "the last is %" G_GINT64_FORMAT
                      ", the ones between add up to %" G_GINT64_FORMAT,
                      c->channels[n - 1], joined);
}

static void read_dit(cs_json_reader *r, cs_qwen2_5_omni_dit_config *c)
{
    c->hidden_size = cs_json_int_or(r, "hidden_size", 1, MAX_SIZE, 1024);
    c->n_layers = cs_json_int_or(r, "num_hidden_layers", 1, CS_DIT_MAX_DEPTH, 22);
    c->n_heads = cs_json_int_or(r, "num_attention_heads", 1, MAX_HEADS, 16);
    c->head_dim = cs_json_int_or(r, "head_dim", 2, MAX_HEAD_DIM, 64);
    c->ff_size = (int64_t)((double)c->hidden_size * cs_json_number_or(r, "ff_mult", 0.1, 64, 2));
    c->n_mels = cs_json_int_or(r, "mel_dim", 1, 1024, 80);
    c->n_codes = cs_json_int_or(r, "num_embeds", 1, MAX_VOCAB, 8193);
    c->code_size = cs_json_int_or(r, "emb_dim", 1, MAX_SIZE, 512);
    c->repeats = cs_json_int_or(r, "repeats", 1, 64, 2);
    c->block_size = cs_json_int_or(r, "block_size", 1, 1 << 16, 24);
    c->rope_theta = cs_json_number_or(r, "rope_theta", 1, 1e12, 10000);
    c->look_ahead = read_layers(r, "look_ahead_layers", c->n_layers);
    c->look_backward = read_layers(r, "look_backward_layers", c->n_layers);
    if (c->head_dim % 2 != 0)
        cs_json_fault(r, "head_dim", "%" G_GINT64_FORMAT " is odd", c->head_dim);
    read_speaker_encoder(r, c);
}

static void read_vocoder(cs_json_reader *r, cs_qwen2_5_omni_vocoder_config *c)
{
    c->n_mels = cs_json_int_or(r, "mel_dim", 1, 1024, 80);
    c->channels = cs_json_int_or(r, "upsample_initial_channel", 2, 1 << 14, 1536);
    c->n_stages = (int64_t)cs_json_enter_array(r, "upsample_rates");
    cs_json_leave(r);
    c->n_blocks = (int64_t)cs_json_enter_array(r, "resblock_kernel_sizes");
    cs_json_leave(r);
    if (c->n_stages < 1 || c->n_stages > CS_VOCODER_MAX_STAGES || c->channels >> c->n_stages < 1 ||
        c->n_blocks < 1 || c->n_blocks > CS_VOCODER_MAX_BLOCKS) {
        cs_json_fault(r, "upsample_rates",
                      "%" G_GINT64_FORMAT " stages of %" G_GINT64_FORMAT
                      " blocks are not implemented for %" G_GINT64_FORMAT " channels",
                      c->n_stages, c->n_blocks, c->channels);
        return;
    }
    cs_json_ints(r, "upsample_rates", 1, CS_VOCODER_MAX_RATE, c->rates, (size_t)c->n_stages);
    cs_json_ints(r, "upsample_kernel_sizes", 1, 256, c->rate_kernels, (size_t)c->n_stages);
    for (int64_t i = 0; i < c->n_stages && !r->error; i++)
        if (c->rate_kernels[i] < c->rates[i] || (c->rate_kernels[i] - c->rates[i]) % 2 != 0)
            cs_json_fault(r, "upsample_kernel_sizes",
                          "%" G_GINT64_FORMAT " over a rate of %" G_GINT64_FORMAT
                          ": expected an even number more than the rate",
                          c->rate_kernels[i], c->rates[i]);
    cs_json_ints(r, "resblock_kernel_sizes", 1, 63, c->block_kernels, (size_t)c->n_blocks);
    json_t *dilations =
        json_object_get(g_ptr_array_index(r->nodes, r->nodes->len - 1), "resblock_dilation_sizes");
    for (int64_t i = 0; i < c->n_blocks; i++)
        for (int64_t j = 0; j < CS_VOCODER_DILATIONS; j++) {
            const json_t *d = json_array_get(json_array_get(dilations, (size_t)i), (size_t)j);
            c->block_dilations[i][j] = json_integer_value(d);
            if (c->block_dilations[i][j] < 1 || c->block_dilations[i][j] > 64)
                cs_json_fault(r, "resblock_dilation_sizes",
                              "expected %" G_GINT64_FORMAT " lists of %d integers in [1, 64]",
                              c->n_blocks, CS_VOCODER_DILATIONS);
            if (c->block_kernels[i] % 2 == 0)
                cs_json_fault(r, "resblock_kernel_sizes", "%" G_GINT64_FORMAT " is even",
                              c->block_kernels[i]);
        }
}

static void read_speech(cs_json_reader *r, cs_qwen2_5_omni_config *c)
{
    c->speaks = cs_json_bool_or(r, "enable_audio_output", true) &&
                cs_json_bool_or(r, "enable_talker", true) && cs_json_has(r, "talker_config") &&
                cs_json_has(r, "token2wav_config");
    if (!c->speaks)
        return;
    cs_json_enter(r, "talker_config");
    read_talker(r, &c->talker, c->text.vocab_size);
    if (c->talker.decoder.embedding_size != c->text.hidden_size)
        cs_json_fault(r, "embedding_size",
                      "%" G_GINT64_FORMAT ", the thinker's hidden_size is %" G_GINT64_FORMAT,
                      c->talker.decoder.embedding_size, c->text.hidden_size);
    cs_json_leave(r);
    cs_json_enter(r, "token2wav_config");
    cs_json_enter(r, "dit_config");
    read_dit(r, &c->dit);
    cs_json_leave(r);
    cs_json_enter(r, "bigvgan_config");
    read_vocoder(r, &c->vocoder);
    if (c->vocoder.n_mels != c->dit.n_mels)
        cs_json_fault(r, "mel_dim", "%" G_GINT64_FORMAT ", the DiT's is %" G_GINT64_FORMAT,
                      c->vocoder.n_mels, c->dit.n_mels);
    cs_json_leave(r);
    cs_json_leave(r);
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
    if (c->image_token == c->video_token || c->image_token == c->audio_token ||
        c->video_token == c->audio_token)
        cs_json_fault(&r, "image_token_index",
                      "images %d, videos %d and sounds %d: expected three tokens", c->image_token,
                      c->video_token, c->audio_token);
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
    read_speech(&r, c);
    return cs_json_reader_finish(&r, error);
}
