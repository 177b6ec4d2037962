/* Expansion and positions as Qwen2_5OmniProcessor and get_rope_index give them (Xu et al. 2025,
 * Qwen2.5-Omni, section 2.2, TMRoPE).
 *
 * Text and sound advance all three axes by one a token. An image keeps its time and spreads height
 * and width over its grid; a video also moves in time, position_id_per_seconds a second. What
 * follows begins one behind the largest position. A video with its sound is cut into chunks of
 * seconds_per_chunk, pictures and sound of a chunk standing together; the two start tokens share a
 * position, and so do the two end tokens.
 */
#include "models/qwen2_5_omni/prompt.h"

#include "base/error.h"
#include "base/siphash.h"
#include "media/preprocess/patches.h"

#include <string.h>

/* Far above any context; bounds what a hostile request can make us build before the context is
 * checked. */
enum { MAX_PROMPT_TOKENS = 1 << 22 };

static const char *const modality_names[] = {
    [CS_MODALITY_IMAGE] = "image", [CS_MODALITY_VIDEO] = "video", [CS_MODALITY_AUDIO] = "sound"};

typedef struct {
    const cs_model *model;
    const cs_qwen2_5_omni_config *config;
    GArray *ids;       /* int32_t */
    GArray *positions; /* int32_t[3] */
    GArray *spans;     /* cs_prompt_span */
    GArray *items;     /* cs_prompt_item */
    int32_t next;      /* position of the next text token */
} builder;

/* ---- Preprocessing ---- */

static uint32_t append_item(builder *b, const cs_prompt_item *item)
{
    g_array_append_vals(b->items, item, 1);
    return b->items->len - 1;
}

/* Caches must tell apart what differs in content, in shape or in what it becomes. */
static void hash_medium(const cs_prompt_item *item, const void *data, size_t bytes,
                        const int32_t shape[3], uint64_t out[2])
{
    const int32_t *grid = item->input.grid;
    uint64_t parts[7] = {(uint64_t)item->modality, (uint64_t)shape[0],
                         (uint64_t)shape[1] << 32 | (uint32_t)shape[2], (uint64_t)grid[0],
                         (uint64_t)grid[1] << 32 | (uint32_t)grid[2]};
    cs_siphash128((uint64_t)item->modality, data, bytes, parts + 5);
    cs_siphash128(CS_N_MODALITIES, parts, sizeof parts, out);
}

/* An image or a video; the item's number, or -1. */
static int64_t add_patches(builder *b, cs_modality modality, cs_patches *patches,
                           const void *pixels, size_t bytes, const int32_t size[3], GError **error)
{
    cs_prompt_item item = {.modality = modality, .owned = g_steal_pointer(&patches->data)};
    item.input.input = cs_tensor_view(item.owned, CS_DTYPE_F32, (int64_t)patches->n_patches,
                                      (int64_t)patches->patch_dim);
    item.input.grid[0] = (int32_t)patches->grid_t;
    item.input.grid[1] = (int32_t)patches->grid_h;
    item.input.grid[2] = (int32_t)patches->grid_w;
    int64_t merge = b->config->vision.merge_size;
    item.n_tokens = (uint32_t)((int64_t)patches->n_patches / (merge * merge));
    hash_medium(&item, pixels, bytes, size, item.content_hash);
    if (item.n_tokens == 0 || item.n_tokens > MAX_PROMPT_TOKENS) {
        g_free(item.owned);
        cs_fail(error, CS_ERROR_TOO_LARGE, "becomes %u tokens", item.n_tokens);
        return -1;
    }
    return append_item(b, &item);
}

static int64_t add_image(builder *b, const cs_image *image, uint32_t max_pixels, GError **error)
{
    g_auto(cs_patches) patches = {0};
    cs_vision_config config = b->model->vision_config;
    if (max_pixels > 0)
        cs_vision_config_limit(&config, max_pixels);
    if (!cs_patches_from_image(&config, image, &patches, error))
        return -1;
    const int32_t size[3] = {1, (int32_t)image->height, (int32_t)image->width};
    return add_patches(b, CS_MODALITY_IMAGE, &patches, image->rgb,
                       (size_t)image->height * image->width * 3, size, error);
}

static int64_t add_video(builder *b, const cs_video *video, double *seconds_per_grid,
                         GError **error)
{
    g_auto(cs_patches) patches = {0};
    if (!cs_patches_from_video(&b->model->vision_config, video, &patches, error))
        return -1;
    const int32_t size[3] = {(int32_t)video->n_frames, (int32_t)video->height,
                             (int32_t)video->width};
    *seconds_per_grid = patches.seconds_per_grid;
    return add_patches(b, CS_MODALITY_VIDEO, &patches, video->rgb,
                       (size_t)video->n_frames * video->height * video->width * 3, size, error);
}

static int64_t add_audio(builder *b, const cs_audio *audio, GError **error)
{
    g_auto(cs_mel) mel = {0};
    if (!cs_mel_extract(b->model->mel, audio->samples, audio->n_samples, &mel, error))
        return -1;
    cs_prompt_item item = {.modality = CS_MODALITY_AUDIO, .owned = g_steal_pointer(&mel.data)};
    item.input.input = cs_tensor_view(item.owned, CS_DTYPE_F32, (int64_t)mel.n_frames, mel.n_mels);
    item.n_tokens = (uint32_t)(((int64_t)mel.n_frames - 1) / 2 + 1) / 2;
    const int32_t size[3] = {(int32_t)audio->sample_rate, 0, 0};
    hash_medium(&item, audio->samples, audio->n_samples * sizeof(float), size, item.content_hash);
    if (item.n_tokens == 0) {
        g_free(item.owned);
        cs_fail(error, CS_ERROR_INVALID, "%zu samples are too short to hear anything in",
                audio->n_samples);
        return -1;
    }
    return append_item(b, &item);
}

/* ---- Tokens and positions ---- */

static void put(builder *b, int32_t id, int32_t t, int32_t h, int32_t w)
{
    const int32_t position[3] = {t, h, w};
    g_array_append_val(b->ids, id);
    g_array_append_vals(b->positions, position, 1);
}

static void put_text(builder *b, int32_t id)
{
    put(b, id, b->next, b->next, b->next);
    b->next++;
}

static void put_span(builder *b, uint32_t item, uint32_t source_row, uint32_t n)
{
    cs_prompt_span span = {.row = b->ids->len, .n = n, .item = item, .source_row = source_row};
    if (n > 0)
        g_array_append_val(b->spans, span);
}

/* Tokens [first, end) of a sound whose first token has position `base`. */
static void put_audio_run(builder *b, uint32_t item, uint32_t first, uint32_t end, int32_t base)
{
    put_span(b, item, first, end - first);
    for (uint32_t i = first; i < end; i++) {
        int32_t p = base + (int32_t)i;
        put(b, b->config->audio_token, p, p, p);
        b->next = p + 1;
    }
}

/* A grid of merge groups laid out in time steps of `step` positions. */
typedef struct {
    uint32_t item;
    int32_t token;
    int32_t rows, cols; /* of merge groups */
    int32_t base;       /* position of its first token */
    float step;         /* positions from one grid time to the next */
} grid;

static int32_t grid_time(const grid *g, uint32_t token)
{
    return g->base + (int32_t)((float)((int32_t)token / (g->rows * g->cols)) * g->step);
}

static void put_grid_run(builder *b, const grid *g, uint32_t first, uint32_t end)
{
    int32_t largest = -1;
    put_span(b, g->item, first, end - first);
    for (uint32_t i = first; i < end; i++) {
        int32_t inside = (int32_t)i % (g->rows * g->cols);
        int32_t t = grid_time(g, i), h = g->base + inside / g->cols, w = g->base + inside % g->cols;
        put(b, g->token, t, h, w);
        largest = MAX(largest, MAX(t, MAX(h, w)));
    }
    if (end > first)
        b->next = largest + 1;
}

static grid make_grid(const builder *b, uint32_t item, int32_t token, float step)
{
    const int32_t *patches = g_array_index(b->items, cs_prompt_item, item).input.grid;
    int32_t merge = (int32_t)b->config->vision.merge_size;
    return (grid){.item = item,
                  .token = token,
                  .rows = patches[1] / merge,
                  .cols = patches[2] / merge,
                  .base = b->next,
                  .step = step};
}

static uint32_t item_tokens(const builder *b, uint32_t item)
{
    return g_array_index(b->items, cs_prompt_item, item).n_tokens;
}

/* The end of the chunk that begins at `first`: the first later token whose time reaches the chunk's
 * end. The reference closes at most one chunk at a token, so a gap in time makes the chunks after
 * it short. */
static uint32_t chunk_end(uint32_t first, uint32_t n, int32_t limit,
                          int32_t (*time)(const void *of, uint32_t token), const void *of)
{
    uint32_t i = first;
    while (i < n && time(of, i) < limit)
        i++;
    return i;
}

static int32_t grid_time_from_base(const void *of, uint32_t token)
{
    const grid *g = of;
    return grid_time(g, token) - g->base;
}

static int32_t audio_time_from_base(const void *of, uint32_t token)
{
    return (int32_t)token;
}

typedef struct {
    uint32_t start, at, n; /* the open chunk, the token looked at next, how many there are */
    int32_t chunk;
} cutter;

/* The next chunk [first, end) of a run of tokens, as the reference's get_chunked_index yields them:
 * looking at token after token, it closes a chunk when the token's time has reached the chunk's
 * end. False after the last. */
static bool next_chunk(cutter *c, int32_t chunk_positions,
                       int32_t (*time)(const void *of, uint32_t token), const void *of,
                       uint32_t *first, uint32_t *end)
{
    if (c->at > c->n)
        return false;
    c->at = chunk_end(c->at, c->n, c->chunk * chunk_positions, time, of);
    *first = c->start;
    *end = c->at;
    c->start = c->at++;
    c->chunk++;
    return true;
}

static void put_video_with_audio(builder *b, uint32_t video, uint32_t audio, float step)
{
    const cs_qwen2_5_omni_config *c = b->config;
    put(b, c->audio_start_token, b->next - 1, b->next - 1, b->next - 1);
    const grid g = make_grid(b, video, c->video_token, step);
    int32_t chunk_positions =
        MAX(1, (int32_t)((double)c->position_id_per_seconds * c->seconds_per_chunk));
    cutter pictures = {.n = item_tokens(b, video), .chunk = 1},
           sound = {.n = item_tokens(b, audio), .chunk = 1};
    bool more = true;
    while (more) {
        uint32_t first, end;
        more = false;
        if (next_chunk(&pictures, chunk_positions, grid_time_from_base, &g, &first, &end)) {
            put_grid_run(b, &g, first, end);
            more = true;
        }
        if (next_chunk(&sound, chunk_positions, audio_time_from_base, NULL, &first, &end)) {
            put_audio_run(b, audio, first, end, g.base);
            more = true;
        }
    }
    /* The video's own end token, which the text brings next, has the same position. */
    put(b, c->audio_end_token, b->next, b->next, b->next);
}

/* ---- Media ---- */

static bool put_image(builder *b, const cs_prompt_medium *medium, const void *data, GError **error)
{
    int64_t item = add_image(b, data, medium->max_pixels, error);
    if (item < 0)
        return false;
    const grid g = make_grid(b, (uint32_t)item, b->config->image_token,
                             (float)b->config->position_id_per_seconds);
    put_grid_run(b, &g, 0, item_tokens(b, (uint32_t)item));
    return true;
}

static bool put_audio(builder *b, const void *data, GError **error)
{
    int64_t item = add_audio(b, data, error);
    if (item < 0)
        return false;
    put_audio_run(b, (uint32_t)item, 0, item_tokens(b, (uint32_t)item), b->next);
    return true;
}

static bool put_video(builder *b, const cs_prompt_medium *medium, const void *data, GError **error)
{
    double seconds_per_grid;
    const cs_video *decoded = data;
    int64_t video = add_video(b, decoded, &seconds_per_grid, error);
    if (video < 0)
        return false;
    float step = (float)seconds_per_grid * (float)b->config->position_id_per_seconds;
    if (!medium->use_audio_in_video || !decoded->audio.samples) {
        const grid g = make_grid(b, (uint32_t)video, b->config->video_token, step);
        put_grid_run(b, &g, 0, item_tokens(b, (uint32_t)video));
        return true;
    }
    if (b->ids->len == 0 ||
        g_array_index(b->ids, int32_t, b->ids->len - 1) != b->config->vision_start_token)
        return cs_fail(error, CS_ERROR_INVALID,
                       "its placeholder does not follow a vision start token, so its sound "
                       "has no place");
    int64_t audio = add_audio(b, &decoded->audio, error);
    if (audio < 0)
        return false;
    put_video_with_audio(b, (uint32_t)video, (uint32_t)audio, step);
    return true;
}

/* Whether a token of the text is a placeholder, and of what. */
static bool placeholder(const cs_qwen2_5_omni_config *c, int32_t id, cs_modality *modality)
{
    *modality = id == c->image_token   ? CS_MODALITY_IMAGE
                : id == c->video_token ? CS_MODALITY_VIDEO
                                       : CS_MODALITY_AUDIO;
    return id == c->image_token || id == c->video_token || id == c->audio_token;
}

static bool put_data(builder *b, const cs_prompt_medium *medium, const void *data, GError **error)
{
    switch (medium->modality) {
    case CS_MODALITY_IMAGE:
        return put_image(b, medium, data, error);
    case CS_MODALITY_VIDEO:
        return put_video(b, medium, data, error);
    default:
        return put_audio(b, data, error);
    }
}

static bool put_medium(builder *b, const cs_prompt_medium *medium, GError **error)
{
    if (medium->data)
        return put_data(b, medium, medium->data, error);
    const void *data = medium->open(medium->user, error);
    if (!data)
        return false;
    bool ok = put_data(b, medium, data, error);
    medium->close(medium->user);
    return ok;
}

static bool put_all(builder *b, const GArray *text_ids, uint32_t n_media,
                    const cs_prompt_medium *media, GError **error)
{
    uint32_t used = 0, n_of[CS_N_MODALITIES] = {0};
    for (guint i = 0; i < text_ids->len; i++) {
        int32_t id = g_array_index(text_ids, int32_t, i);
        cs_modality modality;
        if (!placeholder(b->config, id, &modality)) {
            put_text(b, id);
            continue;
        }
        if (used == n_media)
            return cs_fail(error, CS_ERROR_INVALID,
                           "the text holds more placeholders (\"%s\" among them) than the request "
                           "has media: %u",
                           cs_tokenizer_content(b->model->tokenizer, id), n_media);
        const cs_prompt_medium *medium = &media[used++];
        const char *name = modality_names[medium->modality];
        uint32_t number = ++n_of[medium->modality];
        if (medium->modality != modality)
            return cs_fail(error, CS_ERROR_INVALID,
                           "%s %u: its placeholder in the text is of kind %s", name, number,
                           modality_names[modality]);
        if (!put_medium(b, medium, error)) {
            g_prefix_error(error, "%s %u: ", name, number);
            return false;
        }
        /* Before the next medium takes memory. */
        if (b->ids->len > b->config->text.max_positions)
            return cs_fail(error, CS_ERROR_OVER_CONTEXT,
                           "the prompt has over %" G_GINT64_FORMAT
                           " tokens, the model's context, with %s %u",
                           b->config->text.max_positions, name, number);
    }
    if (used < n_media)
        return cs_fail(error, CS_ERROR_INVALID,
                       "the request has %u media, its text only %u placeholders", n_media, used);
    return true;
}

cs_prompt *cs_qwen2_5_omni_prompt(const cs_model *model, const char *text, size_t text_bytes,
                                  uint32_t n_media, const cs_prompt_medium *media, GError **error)
{
    g_autoptr(GArray) text_ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    if (!cs_tokenizer_encode(model->tokenizer, text, text_bytes, CS_ENCODE_GUARDED, text_ids,
                             error))
        return NULL;
    builder b = {.model = model,
                 .config = model->family_data,
                 .ids = g_array_new(FALSE, FALSE, sizeof(int32_t)),
                 .positions = g_array_new(FALSE, FALSE, 3 * sizeof(int32_t)),
                 .spans = g_array_new(FALSE, FALSE, sizeof(cs_prompt_span)),
                 .items = g_array_new(FALSE, FALSE, sizeof(cs_prompt_item))};
    bool ok = put_all(&b, text_ids, n_media, media, error);
    cs_prompt *prompt = g_new0(cs_prompt, 1);
    prompt->n_tokens = b.ids->len;
    prompt->token_ids = (int32_t *)(void *)g_array_free(b.ids, FALSE);
    prompt->positions = (int32_t(*)[3])(void *)g_array_free(b.positions, FALSE);
    prompt->next_position = b.next;
    prompt->spans = b.spans;
    prompt->items = b.items;
    if (!ok)
        g_clear_pointer(&prompt, cs_prompt_free);
    return prompt;
}
