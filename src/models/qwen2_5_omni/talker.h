/* The talker: speaks the thinker's reply in codec tokens.
 *
 * It is an LLM component over codec tokens (decoder.h). What it hears is a row for each token of
 * the thinker: the thinker's final normed hidden state plus the token's embedding (zero where an
 * encoder's output stood). Its prompt is as long as the thinker's and two more:
 *
 *   row           codec token   hears
 *   0 .. n-1      codec_mask    thinker's prompt
 *   n             codec_pad     embedding of the voice's bos_token
 *   n+1           codec_start   thinker's reply, row 0
 *   then          its own       thinker's reply, rows 1 ..., then text_end, then text_pad for ever
 *
 * Row i of the reply is the state of the thinker after reading its own token i; the last token,
 * which ends the reply, is never read. Positions are those of the thinker's prompt, then count on.
 */
#ifndef CS_MODELS_QWEN2_5_OMNI_TALKER_H
#define CS_MODELS_QWEN2_5_OMNI_TALKER_H

#include "models/llm.h"
#include "models/loader.h"
#include "models/qwen2_5_omni/config.h"

/* NULL on a fault, which the loader keeps. */
cs_llm *cs_qwen2_5_omni_talker_load(cs_loader *loader, cs_compute *compute,
                                    const cs_qwen2_5_omni_talker_config *config);

/* Defaults of the published model's speech. */
#define CS_TALKER_VOICE "Chelsie"
/* The model was taught to speak under this system prompt. */
#define CS_TALKER_SYSTEM                                                                           \
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "         \
    "perceiving auditory and visual inputs, as well as generating text and speech."
#define CS_TALKER_READ_ALOUD "Read this text aloud, word for word:\n\n"
#define CS_TALKER_TEMPERATURE 0.9f
#define CS_TALKER_TOP_K 40
#define CS_TALKER_TOP_P 0.8f
#define CS_TALKER_REPETITION_PENALTY 1.05f
#define CS_TALKER_MAX_TOKENS 4096

/* Fills rows [n, width] of what the talker hears: embeddings of thinker tokens plus hidden states
 * [n, width], or embeddings alone where hidden is NULL. `table` is the thinker's embedding table,
 * host memory. */
void cs_talker_hear(const cs_qwen2_5_omni_config *config, const cs_checkpoint_tensor *table,
                    uint32_t n, const int32_t *token_ids, const float *hidden, float *rows);

/* The thinker's embedding table of a checkpoint that has been loaded. */
const cs_checkpoint_tensor *cs_talker_thinker_table(const cs_checkpoint *checkpoint);

#endif
