/* The family's table: which components a Qwen2.5-Omni checkpoint has and how they are loaded. */
#include "base/error.h"
#include "base/json.h"
#include "models/families.h"
#include "models/loader.h"
#include "models/qwen2_5_omni/audio.h"
#include "models/qwen2_5_omni/config.h"
#include "models/qwen2_5_omni/decoder.h"
#include "models/qwen2_5_omni/prompt.h"
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

static size_t thinker_bytes(const cs_checkpoint *checkpoint)
{
    size_t total = 0;
    for (uint32_t i = 0; i < cs_checkpoint_n_tensors(checkpoint); i++) {
        const cs_checkpoint_tensor *t = cs_checkpoint_tensor_at(checkpoint, i);
        if (g_str_has_prefix(t->name, "thinker."))
            total += t->size_bytes;
    }
    return total;
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
    progress p = {.options = options, .total = thinker_bytes(model->checkpoint)};
    cs_loader loader = {.checkpoint = model->checkpoint,
                        .parameters = model->parameters,
                        .dtype = dtype,
                        .loaded = options->progress ? report : NULL,
                        .user = &p};
    cs_encoder *vision =
        cs_qwen2_5_omni_vision_load(&loader, options->compute, &config->vision, "thinker.visual");
    model->encoders[CS_MODALITY_IMAGE] = model->encoders[CS_MODALITY_VIDEO] = vision;
    model->encoders[CS_MODALITY_AUDIO] = cs_qwen2_5_omni_audio_load(
        &loader, options->compute, &config->audio, "thinker.audio_tower");
    model->llm = cs_qwen2_decoder_load(&loader, options->compute, &config->text, "thinker.model",
                                       "thinker", "lm_head.weight");
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
