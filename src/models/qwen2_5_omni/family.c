/* The family's table: which components a Qwen2.5-Omni checkpoint has and how they are loaded. */
#include "base/error.h"
#include "base/json.h"
#include "models/families.h"
#include "models/loader.h"
#include "models/qwen2_5_omni/audio.h"
#include "models/qwen2_5_omni/config.h"
#include "models/qwen2_5_omni/decoder.h"
#include "models/qwen2_5_omni/prompt.h"
#include "models/qwen2_5_omni/talker.h"
#include "models/qwen2_5_omni/token2wav.h"
#include "models/qwen2_5_omni/vision.h"

#define MAX_CONFIG_BYTES ((size_t)16 << 20)

static const struct {
    const char *prefix;
    const char *component;
} components[] = {
    {"thinker.visual.", "image and video encoder"},
    {"thinker.audio_tower.", "audio encoder"},
    {"thinker.", "thinker"},
    {"talker.", "talker"},
    {"token2wav.code2wav_dit_model.", "token2wav DiT"},
    {"token2wav.code2wav_bigvgan_model.", "token2wav vocoder"},
    {"token2wav.", "token2wav"},
};

static const char *component_of(const char *tensor_name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(components); i++)
        if (g_str_has_prefix(tensor_name, components[i].prefix))
            return components[i].component;
    return NULL;
}

static bool read_preprocessor(cs_model *model, const cs_qwen2_5_omni_config *config, GError **error)
{
    g_autofree char *path =
        g_build_filename(cs_checkpoint_dir(model->checkpoint), "preprocessor_config.json", NULL);
    json_t *root = cs_json_load_file(path, MAX_CONFIG_BYTES, error);
    if (!root)
        return false;
    cs_json_reader r;
    cs_json_reader_init(&r, root, path);
    cs_vision_config_read(&model->vision_config, &r);
    cs_mel_config_read(&model->mel_config, &r);
    const cs_vision_config *v = &model->vision_config;
    if (v->patch_size != config->vision.patch_size || v->merge_size != config->vision.merge_size ||
        v->temporal_patch_size != config->vision.temporal_patch_size)
        cs_json_fault(
            &r, "patch_size",
            "patches of %u (%u frames, merged by %u) are not those of config.json's vision_config",
            v->patch_size, v->temporal_patch_size, v->merge_size);
    if (model->mel_config.n_mels != config->audio.n_mels)
        cs_json_fault(&r, "feature_size",
                      "%u mel bins, config.json's audio_config has %" G_GINT64_FORMAT,
                      model->mel_config.n_mels, config->audio.n_mels);
    bool ok = cs_json_reader_finish(&r, error);
    json_decref(root);
    if (!ok)
        return false;
    model->mel = cs_mel_extractor_new(&model->mel_config);
    model->video_rule = &model->vision_config.video;
    model->audio_rate = model->mel_config.sampling_rate;
    return true;
}

typedef struct {
    const cs_model_options *options;
    size_t done, total;
} progress;

static void report(void *user, size_t bytes)
{
    progress *p = user;
    p->done += bytes;
    p->options->progress(p->options->user, MIN(p->done, p->total), p->total);
}

static bool is_wanted(const cs_model_options *options, bool speech, const char *tensor)
{
    if (g_str_has_prefix(tensor, "thinker.visual."))
        return cs_model_wants(options, "image_encoder");
    if (g_str_has_prefix(tensor, "thinker.audio_tower."))
        return cs_model_wants(options, "audio_encoder");
    if (g_str_has_prefix(tensor, "thinker."))
        return cs_model_wants(options, "thinker");
    return speech &&
           cs_model_wants(options, g_str_has_prefix(tensor, "talker.") ? "talker" : "vocoder");
}

static size_t bytes_to_load(const cs_checkpoint *checkpoint, const cs_model_options *options,
                            bool speech)
{
    size_t total = 0;
    for (uint32_t i = 0; i < cs_checkpoint_n_tensors(checkpoint); i++) {
        const cs_checkpoint_tensor *t = cs_checkpoint_tensor_at(checkpoint, i);
        if (is_wanted(options, speech, t->name))
            total += t->size_bytes;
    }
    return total;
}

static void hear(const cs_model *model, uint32_t n, const int32_t *token_ids, const float *hidden,
                 float *rows)
{
    cs_talker_hear(model->family_data, cs_talker_thinker_table(model->checkpoint), n, token_ids,
                   hidden, rows);
}

static void read_voices(cs_model *model, cs_loader *loader)
{
    const cs_qwen2_5_omni_config *config = model->family_data;
    cs_speech *speech = model->speech;
    g_autofree char *path =
        g_build_filename(cs_checkpoint_dir(model->checkpoint), "spk_dict.pt", NULL);
    cs_speakers speakers;
    if (loader->error ||
        !cs_speakers_read(&speakers, path, config->dit.voice_size, config->dit.n_mels,
                          config->text.vocab_size, &loader->error))
        return;
    speech->voices = g_new0(char *, speakers.n + 1);
    speech->voice_tokens = g_new0(int32_t, speakers.n + 1);
    for (uint32_t i = 0; i < speakers.n; i++) {
        speech->voices[i] = g_strdup(speakers.speakers[i].name);
        speech->voice_tokens[i] = speakers.speakers[i].bos_token;
    }
    cs_speakers_clear(&speakers);
}

static uint32_t code_us(const cs_qwen2_5_omni_config *config)
{
    int64_t samples = config->dit.repeats;
    for (int64_t i = 0; i < config->vocoder.n_stages; i++)
        samples *= config->vocoder.rates[i];
    return (uint32_t)(samples * G_USEC_PER_SEC / CS_VOCODER_RATE);
}

/* How it speaks, and of its components those that are asked for. */
static void load_speech(cs_model *model, cs_loader *loader, const cs_model_options *options)
{
    const cs_qwen2_5_omni_config *config = model->family_data;
    const cs_qwen2_5_omni_talker_config *talker = &config->talker;
    model->speech = g_new0(cs_speech, 1);
    *model->speech = (cs_speech){.heard_size = (uint32_t)config->text.hidden_size,
                                 .mask_id = talker->codec_mask,
                                 .pad_id = talker->codec_pad,
                                 .start_id = talker->codec_start,
                                 .stop_ids = {talker->codec_pad, talker->codec_end},
                                 .n_codes = (int32_t)config->dit.n_codes + 1,
                                 .text_end = talker->text_end,
                                 .text_pad = talker->text_pad,
                                 .reader_system = CS_TALKER_SYSTEM,
                                 .reader_request = CS_TALKER_READ_ALOUD,
                                 .voice = CS_TALKER_VOICE,
                                 .sample_rate = CS_VOCODER_RATE,
                                 .first_codes = cs_token2wav_first_codes(config),
                                 .code_us = code_us(config),
                                 .temperature = CS_TALKER_TEMPERATURE,
                                 .top_p = CS_TALKER_TOP_P,
                                 .top_k = CS_TALKER_TOP_K,
                                 .repetition_penalty = CS_TALKER_REPETITION_PENALTY,
                                 .max_tokens = CS_TALKER_MAX_TOKENS,
                                 .hear = hear};
    read_voices(model, loader);
    if (cs_model_wants(options, "talker"))
        model->speech->talker = cs_qwen2_5_omni_talker_load(loader, options->compute, talker);
    if (cs_model_wants(options, "vocoder"))
        model->speech->token2wav = cs_token2wav_load(loader, options->compute, config);
}

static bool load(cs_model *model, cs_dtype dtype, const cs_model_options *options, GError **error)
{
    g_autofree char *path =
        g_build_filename(cs_checkpoint_dir(model->checkpoint), "config.json", NULL);
    cs_qwen2_5_omni_config *config = g_new0(cs_qwen2_5_omni_config, 1);
    model->family_data = config;
    if (!cs_qwen2_5_omni_config_read(config, cs_checkpoint_config(model->checkpoint), path,
                                     error) ||
        !read_preprocessor(model, config, error))
        return false;
    bool speech = options->speech && config->speaks;
    progress p = {.options = options, .total = bytes_to_load(model->checkpoint, options, speech)};
    cs_loader loader = {.checkpoint = model->checkpoint,
                        .parameters = model->parameters,
                        .dtype = dtype,
                        .loaded = options->progress ? report : NULL,
                        .user = &p};
    if (cs_model_wants(options, "image_encoder"))
        model->encoders[CS_MODALITY_IMAGE] = model->encoders[CS_MODALITY_VIDEO] =
            cs_qwen2_5_omni_vision_load(&loader, options->compute, &config->vision,
                                        "thinker.visual");
    if (cs_model_wants(options, "audio_encoder"))
        model->encoders[CS_MODALITY_AUDIO] = cs_qwen2_5_omni_audio_load(
            &loader, options->compute, &config->audio, "thinker.audio_tower");
    if (cs_model_wants(options, "thinker"))
        model->llm = cs_qwen2_decoder_load(&loader, options->compute, &config->text,
                                           "thinker.model", "thinker", "lm_head.weight");
    if (speech)
        load_speech(model, &loader, options);
    return cs_loader_finish(&loader, error);
}

static void free_data(cs_model *model)
{
    g_free(model->family_data);
}

const cs_family cs_family_qwen2_5_omni = {.name = "qwen2_5_omni",
                                          .load = load,

                                          .prompt = cs_qwen2_5_omni_prompt,
                                          .free = free_data,
                                          .component_of = component_of};
