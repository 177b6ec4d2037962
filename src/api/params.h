/* The fields of a generation request: one table says of each its type, its range, and where it
 * goes. */
#ifndef CS_API_PARAMS_H
#define CS_API_PARAMS_H

#include "api/body.h"
#include "media/encode.h"
#include "runtime/pipeline/pipeline.h"

typedef enum {
    CS_ENDPOINT_CHAT = 1,
    CS_ENDPOINT_COMPLETION = 2,
    CS_ENDPOINT_SPEECH = 4,
} cs_endpoint;

/* What is wrong with a request: the first fault found. */
typedef struct {
    const cs_body *body; /* borrowed, what is read: values that are shown are looked up in it */
    GError *error;
    char *param;      /* the field's path, "messages[0].role"; or NULL */
    const char *code; /* or NULL */
} cs_fault;

void cs_fault_clear(cs_fault *fault);
/* Records a fault unless there is one; returns false. The message begins with the path. */
bool cs_fault_set(cs_fault *fault, cs_error_code code, const char *param, const char *format, ...)
    G_GNUC_PRINTF(4, 5);
/* "expected EXPECTED, found VALUE" with the value as JSON, cut short. */
bool cs_fault_expected(cs_fault *fault, const char *param, const char *expected,
                       const json_t *found);

typedef struct {
    /* Read by the table. */
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int64_t top_k, n, max_tokens, seed, top_logprobs, completion_logprobs;
    bool has_temperature, has_top_p, has_min_p, has_repetition_penalty, has_top_k;
    bool has_max_tokens, has_max_completion_tokens, has_seed, has_top_logprobs,
        has_completion_logprobs;
    int64_t max_completion_tokens;
    bool stream, logprobs, echo, ignore_eos, use_audio_in_video, include_usage;
    bool has_stream_options;
    char *model; /* NULL: not given */
    char *user;  /* an end user's id, for the log; NULL: not given */
    /* Speech. */
    bool speaks;        /* chat: an answer in text and sound */
    bool has_audio;     /* chat: the field */
    bool sound_events;  /* speech: streamed as events, not as the sound's own bytes */
    char *voice;        /* NULL: the model's own */
    char *input;        /* speech: the text */
    char *instructions; /* speech, or NULL */
    cs_audio_format audio_format;
    GPtrArray *stop;            /* char *, NULL-terminated once read; or NULL */
    GArray *biases;             /* cs_token_bias; or NULL */
    json_t *template_arguments; /* or NULL */
} cs_params;

/* Reads every field of the body but those that carry content (messages; prompt). Unknown fields are
 * faults. */
bool cs_params_read(cs_params *params, const cs_body *body, cs_endpoint endpoint, cs_fault *fault);
void cs_params_clear(cs_params *params);

/* The sampling of a request over the model's defaults; borrows from params. */
void cs_params_sampling(const cs_params *params, const cs_pipeline *pipeline,
                        cs_sampling *sampling);

#endif
