/* From a tokenised conversation and its media to the thinker's prompt: placeholders expanded,
 * TMRoPE positions. */
#ifndef CS_MODELS_QWEN2_5_OMNI_PROMPT_H
#define CS_MODELS_QWEN2_5_OMNI_PROMPT_H

#include "models/model.h"
#include "models/qwen2_5_omni/config.h"

cs_prompt *cs_qwen2_5_omni_prompt(const cs_model *model, const char *text, size_t text_bytes,
                                  uint32_t n_media, const cs_prompt_medium *media, GError **error);

#endif
