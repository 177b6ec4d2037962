/* How a model that speaks is driven: a talker (an LLM over codec tokens) that hears the main LLM,
 * and a generator that turns its codes into sound.
 *
 * What the talker hears is a row [heard_size] for each token of the main LLM: its hidden state plus
 * the token's embedding. Its prompt is cs_speech_prompt; with each of its own tokens it hears the
 * next row of the reply, at last the rows of text_end and text_pad, the latter for ever (a reply
 * item of the LLM engine). Codes drawn until a stop id go to the generator.
 */
#ifndef CS_MODELS_SPEECH_H
#define CS_MODELS_SPEECH_H

#include "models/llm.h"

typedef struct cs_model cs_model;
typedef struct cs_token2wav cs_token2wav; /* models/qwen2_5_omni/token2wav.h */

typedef struct {
    /* NULL: not loaded. Whoever takes one over sets it to NULL and frees it before the model. */
    cs_llm *talker;
    cs_token2wav *token2wav;
    uint32_t heard_size;
    int32_t mask_id, pad_id, start_id; /* of the talker's vocabulary */
    int32_t stop_ids[2];
    /* Ids from here on are no sound: all but the stop ids are to be banned (a bias of -infinity).
     */
    int32_t n_codes;
    int32_t text_end, text_pad; /* of the main LLM's vocabulary */
    /* A conversation in which the main LLM answers with a text that it is given, so that the text
     * is heard: what the system says, and what the user asks for before the text. */
    const char *reader_system, *reader_request;
    /* The voices, NULL-terminated, and the token of the main LLM's vocabulary that begins each. */
    char **voices;
    int32_t *voice_tokens;
    const char *voice;    /* of a request that names none, if the checkpoint has it */
    uint32_t sample_rate; /* in Hz */
    uint32_t first_codes; /* before which nothing is heard */
    uint32_t code_us;     /* of sound that a code is */
    /* Sampling of a request that says nothing. */
    float temperature, top_p, repetition_penalty;
    int32_t top_k;
    uint32_t max_tokens;
    /* Rows [n, heard_size] of tokens of the main LLM and their hidden states; hidden NULL: of the
     * tokens alone. Thread-safe. */
    void (*hear)(const cs_model *model, uint32_t n, const int32_t *token_ids, const float *hidden,
                 float *rows);
} cs_speech;

/* The talker's prompt for a prompt of n tokens: ids [n + 2], which hear the n rows of the prompt,
 * the row of the voice's own token (no hidden state), and the first row of the reply. Positions of
 * the last two follow those of the prompt. */
static inline void cs_speech_prompt(const cs_speech *speech, uint32_t n, int32_t *ids)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = speech->mask_id;
    ids[n] = speech->pad_id;
    ids[n + 1] = speech->start_id;
}

#endif
