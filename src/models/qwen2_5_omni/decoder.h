/* A Qwen2 decoder as an LLM component: the thinker and the talker of Qwen2.5-Omni.
 *
 * The layers and their shapes are drawn in MODEL.md. Owned by its engine's thread.
 */
#ifndef CS_MODELS_QWEN2_5_OMNI_DECODER_H
#define CS_MODELS_QWEN2_5_OMNI_DECODER_H

#include "models/llm.h"
#include "models/loader.h"
#include "models/qwen2_5_omni/config.h"

/* Loads "<scope>.embed_tokens", "<scope>.layers.N", "<scope>.norm" and the output matrix `head`
 * ("thinker.lm_head"; left out when embeddings are tied), of a talker also
 * "<head_scope>.thinker_to_talker_proj". The compute device is the loader's. NULL
 * on a fault, which the loader keeps. The checkpoint must outlive the component: embeddings stay in
 * its mapping. */
cs_llm *cs_qwen2_decoder_load(cs_loader *loader, cs_compute *compute,
                              const cs_qwen2_decoder_config *config, const char *scope,
                              const char *head_scope, const char *head_name);

/* Taps for tests and for models that read inside: called in forward with the residual stream
 * [n_rows, hidden] after the embeddings (layer -1) and after each layer, in a talker also with what
 * goes into its projection. NULL: none. */
#define CS_QWEN2_TAP_INPUT (-2)
typedef void cs_qwen2_decoder_tap(void *user, int64_t layer, const cs_tensor *residual);
void cs_qwen2_decoder_set_tap(cs_llm *llm, cs_qwen2_decoder_tap *tap, void *user);

#endif
