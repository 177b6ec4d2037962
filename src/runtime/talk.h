/* How a talker's engine is driven, wherever it runs: beside the main LLM in one process, or in an
 * executor of its own.
 *
 * The talker hears rows (models/speech.h): one for each row of the main LLM, its prompt's and then
 * the reply's, in order. An ear takes them as they come and hands them to the talker's request
 * where they belong.
 *
 * Threads: an ear belongs to one thread at a time; the rest may be called from any.
 */
#ifndef CS_RUNTIME_TALK_H
#define CS_RUNTIME_TALK_H

#include "engine/llm_engine.h"
#include "models/model.h"

/* All that is no sound and does not end it: elements of cs_token_bias. */
GArray *cs_talk_bans(const cs_speech *speech, uint32_t vocab_size);

typedef struct {
    uint32_t n_prompt;             /* rows of the main LLM's prompt */
    const int32_t (*positions)[3]; /* [n_prompt]; NULL: 0, 1, 2, ... */
    int32_t next_position;
    float temperature, repetition_penalty;
    uint64_t seed;
    uint32_t n_codes; /* drawn before by another talker, which ended */
    const int32_t *codes;
} cs_talk_options;

/* By when the main LLM is to have written a reply that is spoken: a code hears the row of the reply
 * behind the one before it heard. */
cs_llm_pace cs_talk_pace(const cs_speech *speech);

/* CS_ERROR_OVER_CONTEXT when nothing could be said behind such a prompt. */
bool cs_talk_check_room(uint32_t n_prompt, uint32_t max_tokens, GError **error);
/* Submits to the talker's engine. */
cs_llm_request *cs_talk_submit(cs_llm_engine *engine, const cs_speech *speech, const GArray *bans,
                               const cs_talk_options *options, const cs_llm_sink *sink, void *user,
                               GError **error);

typedef struct {
    const cs_model *model;
    cs_llm_request *talker; /* borrowed */
    uint32_t n_prompt;
    int32_t voice_token;
    uint32_t n_heard; /* rows so far */
} cs_talk_ear;

/* Rows [n, heard_size] of tokens and their hidden states. NULL: there is no memory, and *error. */
cs_shared_tensor *cs_talk_rows(const cs_model *model, uint32_t n, const int32_t *token_ids,
                               const float *hidden, GError **error);
/* The next rows. */
void cs_talk_hear(cs_talk_ear *ear, cs_shared_tensor *rows);
/* The reply is complete. The talker's request fails if it is too short to be spoken. */
void cs_talk_end(cs_talk_ear *ear);

/* Why a speech that ended like this after n_codes is none; false if it is whole. */
bool cs_talk_is_cut(uint32_t n_codes, bool length, GError **error);

#endif
