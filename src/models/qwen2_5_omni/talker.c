#include "models/qwen2_5_omni/talker.h"

#include "models/qwen2_5_omni/decoder.h"

#include <string.h>

cs_llm *cs_qwen2_5_omni_talker_load(cs_loader *loader, cs_compute *compute,
                                    const cs_qwen2_5_omni_talker_config *config)
{
    return cs_qwen2_decoder_load(loader, compute, &config->decoder, "talker.model", "talker",
                                 "codec_head.weight");
}

const cs_checkpoint_tensor *cs_talker_thinker_table(const cs_checkpoint *checkpoint)
{
    return cs_checkpoint_find(checkpoint, "thinker.model.embed_tokens.weight");
}

void cs_talker_hear(const cs_qwen2_5_omni_config *config, const cs_checkpoint_tensor *table,
                    uint32_t n, const int32_t *token_ids, const float *hidden, float *rows)
{
    int64_t width = config->text.hidden_size;
    size_t row_bytes = (size_t)width * cs_dtype_size_bytes(table->dtype);
    for (uint32_t i = 0; i < n; i++) {
        int32_t id = token_ids[i];
        float *row = rows + i * width;
        g_assert(id >= 0 && id < table->shape[0]);
        if (id == config->image_token || id == config->video_token || id == config->audio_token)
            memset(row, 0, (size_t)width * sizeof *row);
        else
            cs_convert_to_f32(width, row, (const char *)table->data + (size_t)id * row_bytes,
                              table->dtype);
        for (int64_t j = 0; hidden && j < width; j++)
            row[j] += hidden[i * width + j];
    }
}
