/* What pipeline.c (life of the model and its engines), request.c (life of a request) and
 * speech.c (its speech) share. */
#ifndef CS_RUNTIME_PIPELINE_INTERNAL_H
#define CS_RUNTIME_PIPELINE_INTERNAL_H

#include "engine/encoder_engine.h"
#include "engine/generator_engine.h"
#include "engine/llm_engine.h"
#include "media/decoder/pool.h"
#include "models/model.h"
#include "runtime/pipeline/pipeline.h"
#include "runtime/runtime.h"
#include "runtime/talk.h"
#include "runtime/text_stream.h"

/* What speaks; names NULL: this model does not. */
typedef struct {
    cs_llm_engine *talker;
    cs_generator_engine *generator;
    char **names;    /* the model's */
    int32_t *tokens; /* that begin the speech of each voice */
    GArray *bans;    /* cs_token_bias */
} pipeline_voices;

struct cs_pipeline {
    char *id;
    cs_compute *compute;
    cs_model *model;
    cs_turn *turn;    /* of the device, between all engines */
    cs_turn *batches; /* between encoders, for whole batches */
    cs_llm_engine *llm;
    size_t kv_block_bytes;
    cs_encoder_engine *encoders[CS_N_MODALITIES]; /* image and video may be one */
    pipeline_voices voices;
    cs_media_pool *media;        /* NULL: a model of text only */
    cs_runtime *runtime;         /* with a plan; then there is neither llm nor encoders */
    bool takes[CS_N_MODALITIES]; /* with a plan */
    uint32_t max_queued_requests;
    uint32_t max_tokens;        /* of prompt and answer */
    uint32_t max_talker_tokens; /* with a plan: of a talker's prompt and answer */

    GPtrArray *workers; /* GThread *: they prepare requests */
    GMutex lock;        /* what follows */
    GCond changed;
    /* cs_pipeline_request *, a reference each, to be prepared. One worker takes text only, so that
     * media that are long to decode hold up no request without any. */
    GQueue text_queue, media_queue;
    bool has_text_worker;
    GHashTable *live; /* set of requests whose on_done has not come */
    guint n_objects;  /* requests not yet freed */
    bool ending;
    cs_pipeline_stats counts; /* the counters that are the pipeline's own */
};

/* One answer of a request. */
typedef struct {
    cs_text_stream stream;
    bool finished;
} pipeline_answer;

/* An encoder's job for one medium of a prompt. */
typedef struct {
    cs_pipeline_request *request;
    uint32_t item;
    cs_encoder_job *job; /* under the request's lock */
} pipeline_encoding;

/* The speech of a request. */
typedef struct {
    uint32_t voice;
    float temperature, repetition_penalty;
    uint64_t credit_samples;
    /* Set under the request's lock before the LLM engine has the request; later reads need no lock.
     */
    cs_llm_request *talker;
    cs_generator_request *sound;
    /* By the LLM engine's thread. */
    GArray *heard_ids; /* int32_t: of the prompt, then of the reply */
    cs_talk_ear ear;
    uint32_t n_codes;   /* by the talker's thread; with a plan by the runtime's */
    uint64_t n_samples; /* with a plan */
    GMutex sink_lock;   /* held while text or sound is handed out */
} pipeline_speech;

struct cs_pipeline_request {
    gint refs;
    cs_pipeline *pipeline;
    cs_sink sink;
    void *user;

    /* Copies of the request. */
    json_t *messages, *tools, *template_arguments;
    char *prompt;
    GArray *prompt_ids; /* int32_t; NULL: a text or messages */
    GArray *aloud_ids;  /* int32_t: the answer itself, which is read aloud; or NULL */
    GPtrArray *media;   /* GBytes * */
    cs_modality *modalities;
    uint32_t *max_pixels; /* of images */
    bool echo, use_audio_in_video;
    cs_sampling sampling; /* arrays are owned */
    uint32_t n_choices;
    pipeline_speech *speech; /* NULL: text only */

    /* Made by the worker that prepares it. */
    cs_prompt *built;
    gint inputs_left; /* encodings that still read built->items */
    uint32_t n_encodings;
    pipeline_encoding *encodings;
    uint32_t modality_tokens[CS_N_MODALITIES];

    pipeline_answer *answers;   /* [n_choices]; by the engine's thread */
    GMutex lock;                /* what follows, and the order of on_start before the rest */
    cs_llm_request *llm;        /* set once; later reads need no lock */
    cs_runtime_request *remote; /* the same, with a plan */
    cs_llm_usage remote_usage;  /* by the runtime's thread, as what follows */
    GError *remote_fault;       /* an executor spoke nonsense */
    bool cancelled;
    bool done;
    uint32_t stages_left; /* engines, or the worker before them, whose end has not come */
    GError *error;        /* the first of any stage */
    bool has_usage;
    cs_usage usage;
};

/* What a request does with tokens, whoever draws them. */
extern const cs_llm_sink pipeline_llm_sink;
/* Calls on_start, and gives the prompt's text back if the request asks for it. */
void pipeline_request_started(cs_pipeline_request *request);

/* Starts the executors of the plan. */
bool pipeline_remote_start(cs_pipeline *pipeline, const char *dir,
                           const cs_pipeline_options *options, GError **error);
void pipeline_remote_stop(cs_pipeline *pipeline);
/* Adds what the executors say. */
void pipeline_remote_stats(cs_pipeline *pipeline, cs_pipeline_stats *stats);
/* Hands the built prompt to the executors; under the request's lock. */
bool pipeline_remote_submit(cs_pipeline_request *request, GError **error);

/* Speech can be asked for if the plan hosts what speaks; an error if it hosts a part of it. */
bool pipeline_remote_voices(cs_pipeline *pipeline, const cs_plan *plan, const char *source,
                            GError **error);
/* What talker and vocoder are told of the request, as an attachment. */
GBytes *pipeline_remote_pack_speech(const cs_pipeline_request *request, const cs_prompt *prompt);
/* Pieces of codes and of sound; false: they are malformed. */
bool pipeline_remote_codes(cs_pipeline_request *request, const void *data, size_t size_bytes);
bool pipeline_remote_samples(cs_pipeline_request *request, const void *data, size_t size_bytes);

/* The body of a worker thread. */
gpointer pipeline_worker_main(gpointer pipeline);

/* A stage of the request has ended; an error ends the others. The last one ends the request. */
void pipeline_stage_done(cs_pipeline_request *request, const cs_usage *usage, const GError *error);

/* The model's voices can be asked for. */
void pipeline_voices_open(cs_pipeline *pipeline);
/* Starts talker and generator with the LLM engine's options if the model speaks. */
bool pipeline_voices_start(cs_pipeline *pipeline, const cs_llm_engine_options *thinker,
                           GError **error);
void pipeline_voices_stop(pipeline_voices *voices);
void pipeline_voices_clear(pipeline_voices *voices);

/* NULL when no voice is asked for; a voice that is there otherwise. */
pipeline_speech *pipeline_speech_new(const cs_pipeline *pipeline, const cs_voice *voice);
void pipeline_speech_free(pipeline_speech *speech); /* accepts NULL */
/* The text to be read aloud becomes the request's answer, and the conversation it stands in its
 * messages. */
bool pipeline_speech_read_aloud(cs_pipeline_request *request, const char *text, const char *how,
                                GError **error);
void pipeline_speech_stats(const pipeline_voices *voices, cs_pipeline_stats *stats);
/* Submits the request to talker and generator, a stage each; under the request's lock. */
bool pipeline_speech_begin(cs_pipeline_request *request, GError **error);
/* Hidden states of the LLM's rows, and the end of its text. */
void pipeline_speech_hidden(cs_pipeline_request *request, uint32_t row, uint32_t n,
                            const float *hidden);
void pipeline_speech_text_end(cs_pipeline_request *request);

#endif
