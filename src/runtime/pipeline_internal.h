/* What pipeline.c (life of the model and its engines) and pipeline_request.c (life of a request)
 * share. */
#ifndef CS_RUNTIME_PIPELINE_INTERNAL_H
#define CS_RUNTIME_PIPELINE_INTERNAL_H

#include "engine/encoder_engine.h"
#include "engine/llm_engine.h"
#include "media/decoder/pool.h"
#include "models/model.h"
#include "runtime/pipeline.h"
#include "runtime/text_stream.h"

struct cs_pipeline {
    char *id;
    cs_compute *compute;
    cs_model *model;
    cs_turn *turn;    /* of the device, between all engines */
    cs_turn *batches; /* between encoders, for whole batches */
    cs_llm_engine *llm;
    size_t kv_block_bytes;
    cs_encoder_engine *encoders[CS_N_MODALITIES]; /* image and video may be one */
    cs_media_pool *media;                         /* NULL: a model of text only */
    uint32_t max_queued_requests;
    uint32_t max_tokens; /* of prompt and answer */

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

struct cs_pipeline_request {
    gint refs;
    cs_pipeline *pipeline;
    cs_sink sink;
    void *user;

    /* Copies of the request. */
    json_t *messages, *tools, *template_arguments;
    char *prompt;
    GArray *prompt_ids; /* int32_t; NULL: a text or messages */
    GPtrArray *media;   /* GBytes * */
    cs_modality *modalities;
    uint32_t *max_pixels; /* of images */
    bool echo, use_audio_in_video;
    cs_sampling sampling; /* arrays are owned */
    uint32_t n_choices;

    /* Made by the worker that prepares it. */
    cs_prompt *built;
    gint inputs_left; /* encodings that still read built->items */
    uint32_t n_encodings;
    pipeline_encoding *encodings;
    uint32_t modality_tokens[CS_N_MODALITIES];

    pipeline_answer *answers; /* [n_choices]; by the engine's thread */
    GMutex lock;              /* what follows, and the order of on_start before the rest */
    cs_llm_request *llm;      /* set once; later reads need no lock */
    bool cancelled;
    bool done;
};

/* The body of a worker thread. */
gpointer pipeline_worker_main(gpointer pipeline);

#endif
