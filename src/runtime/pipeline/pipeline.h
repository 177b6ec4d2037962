/* The pipeline: one served model, from a conversation to a stream of text, and of speech.
 *
 * It owns the way of a request through the components of a model on this machine: media are decoded
 * and preprocessed on worker threads, encoders run in their engine, the LLM starts its prefill on
 * what has arrived, and tokens come back as whole UTF-8 text. The API and the command line speak to
 * models only through this header; how components are spread over executors stays behind it.
 *
 * Threads: every function may be called from any thread. Sink calls of one request never overlap,
 * come from threads of the pipeline, must not block, and end with exactly one on_done.
 */
#ifndef CS_RUNTIME_PIPELINE_PIPELINE_H
#define CS_RUNTIME_PIPELINE_PIPELINE_H

#include "engine/sampling.h"
#include "media/decoder/pool.h"
#include "models/modality.h"

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Sampling of one request; cs_pipeline_defaults fills in the model's own. */
typedef struct {
    float temperature;        /* 0: greedy */
    int32_t top_k;            /* 0: off */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    float repetition_penalty; /* 1: off; over prompt and output, as transformers */
    float presence_penalty;   /* 0: off; over output, as the OpenAI API */
    float frequency_penalty;
    bool has_seed;
    uint64_t seed;
    uint32_t max_tokens; /* 0: up to the context */
    int32_t n_logprobs;  /* -1: none; 0..20 alternatives beside the sampled token */
    bool ignore_eos;
    uint32_t n_biases;
    const cs_token_bias *biases; /* an id at most once */
    const char *const *stop;     /* NULL-terminated, or NULL */
} cs_sampling;

/* A medium as it came in the request, not yet decoded. */
typedef struct {
    cs_modality modality;
    GBytes *bytes;
    uint32_t max_pixels; /* an image is shown to the model with at most so many; 0: its own limit */
} cs_request_medium;

/* How an answer is spoken; cs_pipeline_voice_defaults fills in the model's own. */
typedef struct {
    const char *name;  /* NULL: it is not spoken */
    float temperature; /* of the talker; 0: greedy */
    float repetition_penalty;
    /* Samples that on_audio gets before cs_pipeline_audio_allow says that it may have more (a slow
     * client holds up nobody else); 0: all. */
    uint64_t credit_samples;
} cs_voice;

typedef struct {
    json_t *messages;           /* chat: OpenAI-style messages; media parts reduced to {"type":
                                   "image"|"video"|"audio"} */
    json_t *tools;              /* or NULL */
    json_t *template_arguments; /* extra variables of the chat template, or NULL */
    const char *prompt;         /* completion: the text itself; messages is NULL then */
    const int32_t *prompt_ids;  /* completion: ready tokens; prompt is NULL then */
    uint32_t n_prompt_ids;
    const char *aloud;     /* speech: a text that is only read aloud, in cs_request.voice; the sink
                              gets no piece of it. messages, prompt and prompt_ids are NULL then */
    const char *aloud_how; /* words to the reader, or NULL */
    bool echo;             /* completion: the prompt stands before the answer */
    uint32_t n_media;
    const cs_request_medium *media; /* in order of appearance */
    bool use_audio_in_video;
    cs_sampling sampling;
    uint32_t n_choices; /* answers wanted, >= 1 */
    cs_voice voice;     /* with one choice only; the sink has on_audio then */
} cs_request;

/* A piece of an answer. Text is whole UTF-8 characters and may be empty while bytes of one are
 * missing. */
typedef struct {
    uint32_t choice;
    const char *text;
    size_t text_bytes;
    uint32_t n_tokens;           /* tokens behind this piece */
    const int32_t *token_ids;    /* [n_tokens] */
    const float *logprobs;       /* [n_tokens] or NULL */
    const cs_token_logprob *top; /* [n_tokens][n_logprobs], best first, or NULL; the tail of a row
                                    that has fewer holds ids of -1 */
} cs_piece;

typedef enum { CS_FINISH_STOP, CS_FINISH_LENGTH } cs_finish_reason;

typedef struct {
    uint32_t prompt_tokens;
    uint32_t cached_tokens; /* of the prompt, found in the prefix cache */
    uint32_t completion_tokens;
    uint32_t modality_tokens[CS_N_MODALITIES]; /* of the prompt */
    uint32_t speech_tokens;                    /* codes spoken; not among completion_tokens */
} cs_usage;

typedef struct {
    /* All take the `user` given at submission. */
    void (*on_start)(
        void *user,
        uint32_t prompt_tokens); /* prompt accepted: nothing of the caller's can be wrong now */
    void (*on_piece)(void *user, const cs_piece *piece);
    void (*on_finish)(void *user, uint32_t choice, cs_finish_reason reason);
    /* The next samples of the speech in [-1, 1], mono at cs_pipeline_audio_rate, while the text is
     * still being written and after its on_finish; borrowed. Complete when on_done has no error. */
    void (*on_audio)(void *user, uint32_t n, const float *samples);
    /* error NULL: every choice has finished. Otherwise nothing more comes; borrowed. */
    void (*on_done)(void *user, const cs_usage *usage, const GError *error);
} cs_sink;

typedef struct {
    const char *dtype;         /* "auto", "f32", "bf16" */
    const char *isa;           /* instruction set; NULL: the best of this CPU (tensor/compute.h) */
    uint32_t n_threads;        /* 0: all CPUs of this process */
    size_t kv_budget_bytes;    /* 0: from free memory */
    uint32_t max_batch_tokens; /* 0: default */
    uint32_t max_sequences;    /* 0: default */
    uint32_t max_context_tokens; /* 0: the model's */
    bool no_speech;              /* leave out what speaks, and its memory */
    const char *plan; /* a plan file: components run in executors, processes of their own, as it
                         says, and share options go to each; NULL: all in this process */
    uint32_t max_queued_requests; /* 0: default; more are refused with CS_ERROR_BUSY */
    void (*progress)(void *user, const char *stage, double fraction);
    void *progress_user;
} cs_pipeline_options;

typedef struct {
    uint32_t running, waiting;
    uint32_t kv_blocks_used, kv_blocks_total;
    size_t kv_bytes_total;
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
    uint64_t requests_started, requests_finished, requests_failed, requests_cancelled, preemptions;
    uint64_t encoder_items[CS_N_MODALITIES];
    /* With a plan; without one there are none. */
    uint32_t executors, executors_ready;
    uint64_t executor_deaths, retries; /* retries: requests, or parts of them, that ran again */
    uint64_t sidecar_bytes;            /* in use */
    /* Of what speaks. */
    uint32_t talker_running, talker_kv_blocks_used, talker_kv_blocks_total, sounds;
    uint64_t speech_tokens, speech_samples, sound_steps, sound_step_streams;
} cs_pipeline_stats;

typedef struct cs_pipeline cs_pipeline;
typedef struct cs_pipeline_request cs_pipeline_request;

/* Loads the checkpoint and starts the engines; returns when ready to serve. */
cs_pipeline *cs_pipeline_new(const char *dir, const cs_pipeline_options *options, GError **error);
void cs_pipeline_free(cs_pipeline *pipeline); /* cancels and waits for all requests; accepts NULL */

const char *cs_pipeline_model_id(const cs_pipeline *pipeline); /* the directory's name */
bool cs_pipeline_takes(const cs_pipeline *pipeline, cs_modality modality);
/* The longest prompt and answer together. */
uint32_t cs_pipeline_max_context_tokens(const cs_pipeline *pipeline);
/* Of all strings of a request together: a prompt of more could hardly be within the context, and is
 * refused before time is spent on it. */
size_t cs_pipeline_max_text_bytes(const cs_pipeline *pipeline);
uint32_t cs_pipeline_vocab_size(const cs_pipeline *pipeline);

/* The voices it speaks in, NULL-terminated; NULL: it does not speak, or was not to. */
const char *const *cs_pipeline_voices(const cs_pipeline *pipeline);
/* CS_ERROR_UNSUPPORTED or CS_ERROR_NOT_FOUND with the voices that there are. */
bool cs_pipeline_voice_check(const cs_pipeline *pipeline, const char *name, GError **error);
uint32_t cs_pipeline_audio_rate(const cs_pipeline *pipeline); /* of its speech, in Hz; 0: none */
/* The model's own voice and sampling. */
void cs_pipeline_voice_defaults(const cs_pipeline *pipeline, cs_voice *voice);

/* Where audio formats are made (media/encode.h); NULL: it does not speak. Borrowed. */
cs_media_pool *cs_pipeline_audio_pool(const cs_pipeline *pipeline);

/* Appends the ids (int32_t) of a text, special tokens in it included. */
bool cs_pipeline_tokenize(const cs_pipeline *pipeline, const char *text, size_t text_bytes,
                          GArray *ids, GError **error);
/* Appends the bytes of a token; they need not be whole characters. Special tokens show their name.
 */
void cs_pipeline_token_bytes(const cs_pipeline *pipeline, int32_t id, GString *bytes);
/* The text of tokens as an answer would show it, whole UTF-8. g_free. */
char *cs_pipeline_detokenize(const cs_pipeline *pipeline, const int32_t *ids, uint32_t n_ids);

/* The model's generation_config.json as sampling. */
void cs_pipeline_defaults(const cs_pipeline *pipeline, cs_sampling *sampling);

/* Takes a copy of what it needs of the request (media bytes by reference). Fails at once, with no
 * sink call, on what can be seen at once (queue full, modality the model lacks). The handle is
 * valid until cs_pipeline_release. */
cs_pipeline_request *cs_pipeline_submit(cs_pipeline *pipeline, const cs_request *request,
                                        const cs_sink *sink, void *user, GError **error);

/* Asks a request to end within one step; on_done still comes (CS_ERROR_CANCELLED unless it was
 * done). */
void cs_pipeline_cancel(cs_pipeline_request *request);
/* So many samples more may go to on_audio. */
void cs_pipeline_audio_allow(cs_pipeline_request *request, uint64_t n_samples);
/* Gives the handle back. Call once, after or before on_done; it does not cancel. */
void cs_pipeline_release(cs_pipeline_request *request);

void cs_pipeline_stats_get(cs_pipeline *pipeline, cs_pipeline_stats *stats);
/* With a plan, what cs_runtime_status tells of its executors, the sidecar and requests; NULL
 * without one. json_decref. */
json_t *cs_pipeline_executors(cs_pipeline *pipeline);

#endif
