/* Encoders: a forward pass over one medium of each size, and over several of the smallest. */
#include "base/error.h"
#include "base/os.h"
#include "media/preprocess/patches.h"
#include "profile/profile_internal.h"

#include <math.h>

#define BATCH_COST 8192 /* cost tokens of a batch: the encoder engine's own */
#define BATCH_MAX 16    /* items of a batch that is measured */

typedef struct {
    cs_encoder_item item;
    float *owned;
    uint32_t tokens, cost;
} medium;

static void clear_medium(void *data)
{
    g_free(((medium *)data)->owned);
}

/* A picture of noise, prepared as the gateway does it. */
static bool make_picture(const cs_model *model, uint32_t tokens, medium *m, GError **error)
{
    const cs_vision_config *config = &model->vision_config;
    uint32_t side =
        MAX(1, (uint32_t)lround(sqrt(tokens))) * config->patch_size * config->merge_size;
    size_t n_bytes = (size_t)side * side * 3;
    g_autofree uint8_t *rgb = g_try_malloc(n_bytes);
    g_auto(cs_patches) patches = {0};
    uint32_t noise = 1;
    if (!rgb)
        return cs_fail(error, CS_ERROR_FAILED, "no memory for a picture of %u x %u", side, side);
    for (size_t i = 0; i < n_bytes; i++)
        rgb[i] = (uint8_t)((noise = noise * 1664525u + 1013904223u) >> 24);
    cs_image image = {.rgb = rgb, .width = side, .height = side};
    if (!cs_patches_from_image(config, &image, &patches, error))
        return false;
    m->owned = g_steal_pointer(&patches.data);
    m->item = (cs_encoder_item){
        .input = cs_tensor_view(m->owned, CS_DTYPE_F32, (int64_t)patches.n_patches,
                                (int64_t)patches.patch_dim),
        .grid = {(int32_t)patches.grid_t, (int32_t)patches.grid_h, (int32_t)patches.grid_w}};
    return true;
}

static bool make_sound(const cs_model *model, uint32_t seconds, medium *m, GError **error)
{
    size_t n = MIN((size_t)seconds * model->mel_config.sampling_rate,
                   (size_t)model->mel_config.max_samples);
    g_autofree float *samples = g_try_malloc_n(n, sizeof *samples);
    g_auto(cs_mel) mel = {0};
    uint32_t noise = 1;
    if (!samples)
        return cs_fail(error, CS_ERROR_FAILED, "no memory for %u s of sound", seconds);
    for (size_t i = 0; i < n; i++)
        samples[i] = (float)(int32_t)(noise = noise * 1664525u + 1013904223u) * 0x1p-33f;
    if (!cs_mel_extract(model->mel, samples, n, &mel, error))
        return false;
    m->owned = g_steal_pointer(&mel.data);
    m->item = (cs_encoder_item){
        .input = cs_tensor_view(m->owned, CS_DTYPE_F32, (int64_t)mel.n_frames, mel.n_mels)};
    return true;
}

/* Of different numbers of tokens, in the order asked for. */
static GArray *make_media(const profile_run *run, const cs_encoder *encoder, cs_modality modality,
                          GError **error)
{
    bool sound = modality == CS_MODALITY_AUDIO;
    const cs_profiler_list *sizes =
        sound ? &run->options->audio_seconds : &run->options->image_tokens;
    g_autoptr(GArray) media = g_array_new(FALSE, TRUE, sizeof(medium));
    g_array_set_clear_func(media, clear_medium);
    for (uint32_t i = 0; i < sizes->n; i++) {
        medium m = {0};
        if (sound ? !make_sound(run->model, sizes->values[i], &m, error)
                  : !make_picture(run->model, sizes->values[i], &m, error))
            return NULL;
        m.tokens = encoder->ops->output_tokens(encoder, &m.item);
        m.cost = encoder->ops->cost_tokens(encoder, &m.item);
        bool fresh = m.tokens > 0;
        for (guint k = 0; k < media->len; k++) /* the model's limits made two sizes one */
            fresh = fresh && g_array_index(media, medium, k).tokens != m.tokens;
        if (fresh)
            g_array_append_val(media, m);
        else
            clear_medium(&m);
    }
    return g_steal_pointer(&media);
}

static bool count_turn(void *turns)
{
    ++*(uint32_t *)turns;
    return true;
}

static bool time_batch(const profile_run *run, profile_point *point, cs_encoder *encoder,
                       uint32_t n, const cs_encoder_item *items, GError **error)
{
    while (!profile_point_is_done(point)) {
        cs_shared_tensor *outputs[BATCH_MAX];
        profile_let_others(run);
        int64_t start = cs_now_us();
        if (!encoder->ops->forward(encoder, n, items, outputs, error))
            return false;
        profile_point_add(point, (double)(cs_now_us() - start) * 1e-6);
        for (uint32_t i = 0; i < n; i++)
            cs_shared_tensor_unref(outputs[i]);
    }
    return true;
}

/* In how many parts a batch is computed when others share the device. */
static bool count_turns(cs_profiler_entry *entry, cs_encoder *encoder, const medium *m,
                        GError **error)
{
    cs_shared_tensor *output = NULL;
    entry->turns = 1;
    encoder->yield = count_turn;
    encoder->yield_user = &entry->turns;
    bool ok = encoder->ops->forward(encoder, 1, &m->item, &output, error);
    encoder->yield = NULL;
    cs_shared_tensor_unref(output);
    return ok;
}

/* Whole budgets of small items too: what a batch saves is in the fit. */
static uint32_t batch_of(const medium *m)
{
    return CLAMP(BATCH_COST / MAX(m->cost, 1), 1, BATCH_MAX);
}

static bool time_media(profile_run *run, cs_profiler_entry *entry, cs_encoder *encoder,
                       const GArray *media, GError **error)
{
    double share_s = run->options->seconds / (media->len + 1);
    for (guint i = 0; i <= media->len; i++) {
        const medium *m = &g_array_index(media, medium, i == media->len ? 0 : i);
        uint32_t n = i == media->len ? batch_of(m) : 1;
        cs_encoder_item items[BATCH_MAX];
        for (uint32_t k = 0; k < n; k++)
            items[k] = m->item;
        profile_point point = profile_point_new(run, entry, (double)n * m->tokens, share_s, 1);
        if (!time_batch(run, &point, encoder, n, items, error))
            return false;
        profile_point_say(run, &point, "%u of %u tokens", n, m->tokens);
    }
    return true;
}

bool profile_encoder(profile_run *run, cs_modality modality, GError **error)
{
    cs_encoder *encoder = run->model->encoders[modality];
    if (!encoder)
        return cs_fail(error, CS_ERROR_NOT_FOUND, "%s: the checkpoint has none", run->component);
    g_autoptr(GArray) media = make_media(run, encoder, modality, error);
    if (!media)
        return false;
    cs_profiler_entry *entry = profile_add_entry(run, CS_ROLE_BOTH);
    entry->max_batch = batch_of(&g_array_index(media, medium, media->len / 2));
    if (!count_turns(entry, encoder, &g_array_index(media, medium, 0), error) ||
        !time_media(run, entry, encoder, media, error))
        return false;
    double inputs_bytes = 0;
    for (guint i = 0; i < media->len; i++) {
        const cs_tensor *t = &g_array_index(media, medium, i).item.input;
        inputs_bytes += (double)t->rows * (double)t->cols * sizeof(float);
    }
    profile_note_activations(run, inputs_bytes);
    return true;
}
