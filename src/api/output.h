/* The JSON of answers: chat completions and completions, whole and in chunks. */
#ifndef CS_API_OUTPUT_H
#define CS_API_OUTPUT_H

#include "api/params.h"

/* What is told of one answer since the last time (streams) or in all (whole answers). */
typedef struct {
    uint32_t index;
    GString *text;
    GArray *token_ids; /* int32_t; kept only when log-probabilities are asked for, as are the next
                          two */
    GArray *logprobs;  /* float */
    GArray *top;       /* cs_token_logprob, n_logprobs a token */
    uint32_t text_offset; /* completions: characters of this answer that came before */
    bool finished;
    cs_finish_reason reason;
} cs_answer;

void cs_answer_init(cs_answer *answer, uint32_t index);
void cs_answer_clear(cs_answer *answer);
/* Forgets what has been told. */
void cs_answer_told(cs_answer *answer);

/* What all objects of a response share. */
typedef struct {
    cs_endpoint endpoint;
    const cs_pipeline *pipeline; /* token texts of log-probabilities */
    const char *id;
    int64_t created_s;
    int32_t n_logprobs; /* -1: none */
    bool speaks;        /* chat: answers are sound and its transcript */
    bool usage_member;  /* chunks have "usage": null */
} cs_output;

/* A whole response; `sound`: of the one answer that is spoken, or NULL. */
void cs_output_whole(const cs_output *output, cs_answer *answers, uint32_t n_answers,
                     const GByteArray *sound, const cs_usage *usage, GString *out);

/* SSE events of a stream: "data: {...}\n\n". */
void cs_output_role(const cs_output *output, uint32_t index,
                    GString *out); /* chat: the first chunk of an answer */
void cs_output_piece(const cs_output *output, cs_answer *answer, GString *out);
/* Chat: the next bytes of the sound, a multiple of three but for the last ones. */
void cs_output_sound(const cs_output *output, const GByteArray *bytes, GString *out);
/* Chat: the sound is complete. */
void cs_output_sound_end(const cs_output *output, GString *out);
/* Speech: the same as events of that endpoint. */
void cs_output_speech(const GByteArray *bytes, GString *out);
void cs_output_speech_end(const cs_usage *usage, GString *out);
void cs_output_finish(const cs_output *output, const cs_answer *answer, GString *out);
void cs_output_usage(const cs_output *output, const cs_usage *usage, GString *out);
void cs_output_error(const GError *error, GString *out);
void cs_output_end(GString *out);

/* Appends a JSON string literal; bytes that are no UTF-8 become U+FFFD. */
void cs_output_string(GString *out, const char *text, size_t size_bytes);

#endif
