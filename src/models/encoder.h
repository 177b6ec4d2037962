/* What an encoder component (image and video, audio) offers the encoder engine.
 *
 * An item is one preprocessed medium (one image, one clip, one sound). Items of a batch are
 * computed together and do not influence one another. One thread (the engine's) calls forward.
 */
#ifndef CS_MODELS_ENCODER_H
#define CS_MODELS_ENCODER_H

#include "base/error.h"
#include "tensor/compute.h"

typedef struct {
    /* Image, video: patches [n_patches, patch_dim] f32 in the family's order. Audio: log-mel
     * [frames, n_mels] f32. */
    cs_tensor input;
    /* Image, video: grid of patches, time, height, width (before spatial merging). Audio: unused.
     */
    int32_t grid[3];
} cs_encoder_item;

typedef struct cs_encoder cs_encoder;

typedef struct {
    /* Tokens (rows of output, each of output_size) that an item becomes; 0 when the item is
     * malformed. */
    uint32_t (*output_tokens)(const cs_encoder *encoder, const cs_encoder_item *item);

    /* Rows of work an item costs before merging (patches, frames): what token budgets count. */
    uint32_t (*cost_tokens)(const cs_encoder *encoder, const cs_encoder_item *item);

    /* Computes n items; outputs[i] is a new f32 tensor [output_tokens, output_size], owned by the
     * caller. All or nothing: on failure no output is set. Workspace grows to the largest batch
     * seen. */
    bool (*forward)(cs_encoder *encoder, uint32_t n, const cs_encoder_item *items,
                    cs_shared_tensor **outputs, GError **error);

    void (*free)(cs_encoder *encoder); /* accepts NULL */
} cs_encoder_ops;

/* Components embed this as their first member. */
struct cs_encoder {
    const cs_encoder_ops *ops;
    uint32_t output_size;
    /* Set by the engine, or NULL. forward calls it between layers: others may use the device then.
     * False: nobody wants the outputs any more. */
    bool (*yield)(void *user);
    void *yield_user;
};

/* For forward, between layers: first finishes what is queued, so that a fault stays with whom it
 * belongs to. Scratch tensors keep their contents. */
static inline bool cs_encoder_yield(const cs_encoder *encoder, cs_compute *compute, GError **error)
{
    if (!encoder->yield)
        return true;
    if (!cs_compute_sync(compute, error))
        return false;
    return encoder->yield(encoder->yield_user) ||
           cs_fail(error, CS_ERROR_CANCELLED, "encoder: nobody wants the outputs any more");
}

#endif
