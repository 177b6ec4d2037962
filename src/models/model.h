/* A loaded checkpoint: its components, its text side, and how a conversation becomes a prompt.
 *
 * A family (src/models/NAME) is a const table; cs_model_load picks it by config.json's model_type.
 * Loaded once, then read-only but for the components, which their engines own.
 */
#ifndef CS_MODELS_MODEL_H
#define CS_MODELS_MODEL_H

#include "checkpoint/checkpoint.h"
#include "media/preprocess/config.h"
#include "media/preprocess/mel.h"
#include "models/encoder.h"
#include "models/llm.h"
#include "models/modality.h"
#include "models/speech.h"
#include "tensor/compute.h"
#include "text/tokenizer.h"

/* generation_config.json: what a request that says nothing gets. Neutral values where the file is
 * silent. */
typedef struct {
    bool do_sample;
    float temperature;
    int32_t top_k; /* 0: off */
    float top_p;
    float repetition_penalty;
    int32_t eos_ids[16];
    uint32_t n_eos_ids;
} cs_generation_defaults;

/* A decoded medium of a conversation, in the order of its appearance; borrowed by cs_model_prompt.
 */
typedef struct {
    cs_modality modality;
    const void *data;        /* cs_image, cs_video or cs_audio of media/media.h; NULL: opened */
    bool use_audio_in_video; /* video: interleave its own audio track */
    uint32_t max_pixels;     /* image: resized to at most so many; 0: the processor's own limit */
    /* Gives the data when its turn comes, so that only one medium at a time is held decoded; NULL
     * with an error. Closed once, also when the prompt then fails. */
    const void *(*open)(void *user, GError **error);
    void (*close)(void *user);
    void *user;
} cs_prompt_medium;

/* A run of the prompt whose embeddings come from an encoder: rows [row, row + n) of the prompt are
 * rows [source_row, source_row + n) of the output of item `item`. A video interleaved with its
 * sound has many. */
typedef struct {
    uint32_t row;
    uint32_t n;
    uint32_t item;
    uint32_t source_row;
} cs_prompt_span;

typedef struct {
    cs_modality modality; /* which encoder */
    cs_encoder_item input;
    uint32_t n_tokens;        /* rows of its output */
    uint64_t content_hash[2]; /* of the decoded medium, for caches; keyed by process */
    float *owned;             /* memory behind input; freed with the prompt */
} cs_prompt_item;

typedef struct {
    uint32_t n_tokens;
    int32_t *token_ids;
    int32_t (*positions)[3]; /* [n_tokens] temporal, height, width */
    int32_t next_position;   /* of the first generated token, the same in all three */
    GArray *spans;           /* cs_prompt_span, ordered by row */
    GArray *items;           /* cs_prompt_item */
} cs_prompt;

void cs_prompt_free(cs_prompt *prompt); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_prompt, cs_prompt_free)

typedef struct cs_chat_template cs_chat_template; /* text/chat_template.h */

typedef struct {
    cs_compute *compute; /* borrowed; must outlive the model */
    const char
        *dtype;  /* of weights and KV cache: "f32", "bf16"; "auto" or NULL: as the checkpoint's */
    bool speech; /* what speaks too, if the checkpoint has it */
    /* Units of the family's task file ("thinker", "image_encoder", "audio_encoder"; with speech
     * "talker", "vocoder"), NULL-terminated: only these components are loaded. NULL: all. */
    const char *const *components;
    bool no_text; /* neither tokenizer nor chat template */
    /* Called from the loading thread as bytes of weights are packed; may be NULL. */
    void (*progress)(void *user, size_t done_bytes, size_t total_bytes);
    void *user;
} cs_model_options;

typedef struct {
    const char *name; /* model_type of config.json */

    /* Reads the configuration and loads the components. */
    bool (*load)(cs_model *model, cs_dtype dtype, const cs_model_options *options, GError **error);

    /* Builds the prompt of a rendered conversation (or of a plain text, without media): tokenises
     * it, with the guards of cs_tokenizer_guard taken out, preprocesses the media, expands each
     * medium's placeholder to as many tokens as its encoder gives, and assigns positions.
     * Thread-safe, also when engines have taken the components over. The number and order of media
     * must equal the placeholders in the text (CS_ERROR_INVALID). */
    cs_prompt *(*prompt)(const cs_model *model, const char *text, size_t text_bytes,
                         uint32_t n_media, const cs_prompt_medium *media, GError **error);

    /* The component that a tensor belongs to, or NULL. */
    const char *(*component_of)(const char *tensor_name);

    void (*free)(cs_model *model); /* what load put into family_data */
} cs_family;

struct cs_model {
    const cs_family *family;
    char *id; /* the directory's name */
    cs_checkpoint *checkpoint;
    cs_parameters *parameters;
    cs_tokenizer *tokenizer;
    cs_chat_template *chat_template; /* NULL: the checkpoint has none */
    cs_generation_defaults generation;
    /* Components. NULL: the model does not take it; image and video may be one. Whoever takes one
     * over (an engine) sets it to NULL and frees it before the model. */
    cs_llm *llm;
    cs_encoder *encoders[CS_N_MODALITIES];
    cs_speech *speech; /* NULL: not asked for, or the checkpoint has none */
    /* Preprocessing. */
    cs_vision_config vision_config;
    cs_mel_config mel_config;
    cs_mel_extractor *mel;
    const cs_video_rule *video_rule; /* how videos are to be decoded; NULL: not taken */
    uint32_t audio_rate;             /* in Hz, to which sounds are to be decoded */
    void *family_data;
};

/* CS_ERROR_NOT_FOUND, CS_ERROR_INVALID with the file and what is wrong with it,
 * CS_ERROR_UNSUPPORTED for a family that is not here. */
cs_model *cs_model_load(const char *dir, const cs_model_options *options, GError **error);
/* Whether the options ask for the component. */
bool cs_model_wants(const cs_model_options *options, const char *component);
void cs_model_free(cs_model *model); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_model, cs_model_free)

/* What `inspect` tells of one component of a checkpoint. */
typedef struct {
    const char *name; /* "thinker", "image and video encoder"... */
    uint32_t n_tensors;
    uint64_t parameters;
    uint64_t stored_bytes;
    uint64_t loaded_bytes; /* memory for its weights in the dtype asked for, without KV cache and
                              activations */
    char dtypes[64];       /* as stored: "bf16" or "bf16, f32" */
} cs_component_summary;

/* Components of a checkpoint by the graph of its family, "other" for tensors that belong to none.
 * Elements: cs_component_summary. dtype as in cs_model_options. CS_ERROR_UNSUPPORTED for an unknown
 * family. */
GArray *cs_model_describe(const cs_checkpoint *checkpoint, const char *dtype, GError **error);

#endif
