/* Qwen2.5-Omni's thinker and talker against the reference implementation, from files to greedy
 * tokens and codes.
 *
 * Each golden request is replayed: media decoded and preprocessed, encoders, prompt, prefill in one
 * step, and 64 greedy tokens. Once with the weights in f32 on every instruction set of this CPU,
 * where everything must agree; once in bf16, where the bar is the reference's own distance from f32
 * when it runs in bf16.
 */
#include "base/json.h"
#include "media/decoder/pool.h"
#include "models/model.h"
#include "models/qwen2_5_omni/decoder.h"
#include "models/qwen2_5_omni/token2wav.h"
#include "settings.h"

#include <stdlib.h>

/* Ours may be as far from f32 as the reference's bf16 is; where that is next to nothing, rounding
 * of ours counts. */
static const double BF16_FLOOR = 6e-3;

static char *golden_dir;
static json_t *requests, *utterances;
static cs_media_pool *pool;

typedef struct {
    const golden_setting *setting;
    cs_compute *compute;
    cs_model *model;
} run;

typedef struct {
    cs_prompt_medium medium;
    cs_image image;
    cs_audio audio;
    cs_video video;
} decoded;

/* ---- The bars ---- */

static void check(const run *r, json_t *request, const golden_file *file, const char *name,
                  const float *got, int64_t cols)
{
    double error = golden_error(file, name, got, cols);
    if (error < 0)
        return;
    double bar = GOLDEN_BAR_F32;
    if (golden_is_bf16(r->setting)) {
        json_t *reference = json_object_get(json_object_get(request, "bf16_error"), name);
        bar = reference ? MAX(json_number_value(reference), BF16_FLOOR) : GOLDEN_BAR_BF16;
    }
    golden_hold(json_string_value(json_object_get(request, "name")), name, error, bar);
}

/* ---- Media ---- */

static const char *part_url(json_t *part, cs_modality *modality)
{
    static const struct {
        const char *type, *member;
        cs_modality modality;
    } kinds[] = {{"image_url", "image_url", CS_MODALITY_IMAGE},
                 {"audio_url", "audio_url", CS_MODALITY_AUDIO},
                 {"input_audio", "input_audio", CS_MODALITY_AUDIO},
                 {"video_url", "video_url", CS_MODALITY_VIDEO}};
    const char *type = json_string_value(json_object_get(part, "type"));
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (strcmp(type, kinds[i].type) == 0) {
            *modality = kinds[i].modality;
            return json_string_value(
                json_object_get(json_object_get(part, kinds[i].member), "url"));
        }
    return NULL;
}

static void decode(const run *r, const char *url, bool audio_in_video, decoded *d)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(golden_dir, "media", url, NULL);
    cs_file_map map;
    bool ok = cs_file_map_open(&map, path, &error);
    g_assert_no_error(error);
    switch (d->medium.modality) {
    case CS_MODALITY_IMAGE:
        ok = cs_media_decode_image(pool, map.data, map.size_bytes, &d->image, &error);
        d->medium.data = &d->image;
        break;
    case CS_MODALITY_AUDIO:
        ok = cs_media_decode_audio(pool, map.data, map.size_bytes, r->model->audio_rate, &d->audio,
                                   &error);
        d->medium.data = &d->audio;
        break;
    default:
        ok = cs_media_decode_video(pool, map.data, map.size_bytes, r->model->video_rule,
                                   audio_in_video ? r->model->audio_rate : 0, &d->video, &error);
        d->medium.data = &d->video;
        d->medium.use_audio_in_video = audio_in_video;
    }
    g_assert_no_error(error);
    g_assert_true(ok);
    cs_file_map_close(&map);
}

static cs_prompt *make_prompt(const run *r, json_t *request)
{
    enum { MOST = 8 };
    decoded all[MOST] = {0};
    cs_prompt_medium media[MOST];
    uint32_t n = 0;
    bool audio_in_video = json_is_true(json_object_get(request, "use_audio_in_video"));
    size_t i, j;
    json_t *message, *part;
    json_array_foreach (json_object_get(request, "messages"), i, message)
        json_array_foreach (json_object_get(message, "content"), j, part) {
            const char *url = part_url(part, &all[n].medium.modality);
            if (!url)
                continue;
            decode(r, url, audio_in_video, &all[n]);
            media[n] = all[n].medium;
            n++;
        }
    const char *text = json_string_value(json_object_get(request, "prompt"));
    g_autoptr(GError) error = NULL;
    cs_prompt *prompt = r->model->family->prompt(r->model, text, strlen(text), n, media, &error);
    g_assert_no_error(error);
    for (uint32_t k = 0; k < n; k++) {
        cs_image_clear(&all[k].image);
        cs_audio_clear(&all[k].audio);
        cs_video_clear(&all[k].video);
    }
    return prompt;
}

static void check_prompt(const golden_file *file, const cs_prompt *prompt)
{
    if (golden_measuring)
        return;
    const cs_checkpoint_tensor *ids = golden_get(file, "input_ids"),
                               *positions = golden_get(file, "position_ids");
    g_assert_cmpuint(prompt->n_tokens, ==, ids->shape[0]);
    g_assert_cmpmem(prompt->token_ids, prompt->n_tokens * sizeof(int32_t), ids->data,
                    ids->size_bytes);
    for (uint32_t i = 0; i < prompt->n_tokens; i++)
        for (int axis = 0; axis < 3; axis++)
            g_assert_cmpint(
                prompt->positions[i][axis], ==,
                ((const int32_t *)positions->data)[axis * (int64_t)prompt->n_tokens + i]);
    int32_t delta = *(const int32_t *)golden_get(file, "position_delta")->data;
    g_assert_cmpint(prompt->next_position, ==, (int32_t)prompt->n_tokens + delta);
}

/* ---- Encoders ---- */

/* Runs all items; the outputs of each modality, one after the other, are compared with NAME.out. */
static cs_shared_tensor **encode(const run *r, json_t *request, const golden_file *file,
                                 const cs_prompt *prompt)
{
    static const char *const names[] = {[CS_MODALITY_IMAGE] = "vision.out",
                                        [CS_MODALITY_VIDEO] = "video.out",
                                        [CS_MODALITY_AUDIO] = "audio.out"};
    cs_shared_tensor **outputs = g_new0(cs_shared_tensor *, prompt->items->len + 1);
    for (int m = 0; m < CS_N_MODALITIES; m++) {
        cs_encoder *encoder = r->model->encoders[m];
        g_autoptr(GArray) rows = g_array_new(FALSE, FALSE, sizeof(float));
        for (guint i = 0; i < prompt->items->len; i++) {
            const cs_prompt_item *item = &g_array_index(prompt->items, cs_prompt_item, i);
            if ((int)item->modality != m)
                continue;
            g_autoptr(GError) error = NULL;
            encoder->ops->forward(encoder, 1, &item->input, &outputs[i], &error);
            g_assert_no_error(error);
            g_assert_cmpint(outputs[i]->t.rows, ==, item->n_tokens);
            g_array_append_vals(rows, outputs[i]->t.data,
                                (guint)(outputs[i]->t.rows * outputs[i]->t.cols));
        }
        if (rows->len > 0)
            check(r, request, file, names[m], (const float *)(void *)rows->data,
                  encoder->output_size);
    }
    return outputs;
}

/* ---- Thinker ---- */

typedef struct {
    cs_compute *compute;
    float *embeds, *layer0;
} tapped;

static void tap(void *user, int64_t layer, const cs_tensor *residual)
{
    tapped *t = user;
    float **to = layer == -1 ? &t->embeds : layer == 0 ? &t->layer0 : NULL;
    if (to) {
        *to = g_realloc_n(*to, (gsize)(residual->rows * residual->cols), sizeof(float));
        cs_tensor_read(t->compute, *to, residual);
    }
}

static int32_t largest(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

enum { BLOCKS = 128 };

static void forward(const run *r, const cs_llm_batch *batch, float *logits, float *hidden)
{
    g_autoptr(GError) error = NULL;
    r->model->llm->ops->forward(r->model->llm, batch, logits, hidden, &error);
    g_assert_no_error(error);
}

static float *prefill(const run *r, json_t *request, const golden_file *file,
                      const cs_prompt *prompt, cs_shared_tensor **outputs, const int32_t *blocks)
{
    const cs_llm *llm = r->model->llm;
    g_autofree cs_llm_span *spans = g_new(cs_llm_span, prompt->spans->len + 1);
    g_autofree uint32_t *rows = g_new(uint32_t, prompt->n_tokens);
    for (guint i = 0; i < prompt->spans->len; i++) {
        const cs_prompt_span *s = &g_array_index(prompt->spans, cs_prompt_span, i);
        spans[i] = (cs_llm_span){
            .row = s->row, .n = s->n, .source = &outputs[s->item]->t, .source_row = s->source_row};
    }
    for (uint32_t i = 0; i < prompt->n_tokens; i++)
        rows[i] = i;
    const cs_llm_sequence sequence = {.n_new = prompt->n_tokens, .kv_blocks = blocks};
    const cs_llm_batch batch = {.n_rows = prompt->n_tokens,
                                .token_ids = prompt->token_ids,
                                .positions = (const int32_t(*)[3])prompt->positions,
                                .n_sequences = 1,
                                .sequences = &sequence,
                                .n_spans = prompt->spans->len,
                                .spans = spans,
                                .n_logit_rows = prompt->n_tokens,
                                .logit_rows = rows};
    float *logits = g_new(float, (gsize)prompt->n_tokens * llm->vocab_size);
    g_autofree float *hidden = g_new(float, (gsize)prompt->n_tokens * llm->hidden_size);
    tapped t = {.compute = r->compute};
    cs_qwen2_decoder_set_tap(r->model->llm, tap, &t);
    forward(r, &batch, logits, hidden);
    cs_qwen2_decoder_set_tap(r->model->llm, NULL, NULL);
    check(r, request, file, "thinker.embeds", t.embeds, llm->hidden_size);
    check(r, request, file, "thinker.layer0", t.layer0, llm->hidden_size);
    check(r, request, file, "thinker.hidden", hidden, llm->hidden_size);
    check(r, request, file, "logits_prefill", logits, llm->vocab_size);
    g_free(t.embeds);
    g_free(t.layer0);
    return logits;
}

/* Follows the reference's tokens. In f32 each must be ours too; in bf16 one whose lead the
 * reference itself puts below the bar may differ. */
static void decode_greedily(const run *r, json_t *request, const golden_file *file,
                            const cs_prompt *prompt, const float *first, const int32_t *blocks)
{
    const cs_llm *llm = r->model->llm;
    const cs_checkpoint_tensor *tokens = golden_get(file, "greedy_tokens");
    const float *gaps = golden_get(file, "greedy_gap")->data;
    bool exact = !golden_is_bf16(r->setting);
    g_autofree float *logits = g_memdup2(first, llm->vocab_size * sizeof(float));
    for (int64_t i = 0; i < tokens->shape[0]; i++) {
        int32_t token = ((const int32_t *)tokens->data)[i];
        if (!golden_measuring && (exact || gaps[i] > 0.1f))
            g_assert_cmpint(largest(logits, llm->vocab_size), ==, token);
        if (i + 1 == tokens->shape[0])
            break;
        int32_t p = prompt->next_position + (int32_t)i;
        const int32_t position[1][3] = {{p, p, p}};
        const uint32_t row = 0;
        const cs_llm_sequence sequence = {
            .n_past = prompt->n_tokens + (uint32_t)i, .n_new = 1, .kv_blocks = blocks};
        const cs_llm_batch batch = {.n_rows = 1,
                                    .token_ids = &token,
                                    .positions = position,
                                    .n_sequences = 1,
                                    .sequences = &sequence,
                                    .n_logit_rows = 1,
                                    .logit_rows = &row};
        forward(r, &batch, logits, NULL);
    }
    check(r, request, file, "logits_last", logits, llm->vocab_size);
}

static void replay(const run *r, json_t *request)
{
    golden_file file = golden_open(golden_dir, json_string_value(json_object_get(request, "file")));
    int32_t blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        blocks[i] = (i * 37 + 11) % BLOCKS;
    g_autoptr(cs_prompt) prompt = make_prompt(r, request);
    check_prompt(&file, prompt);
    cs_shared_tensor **outputs = encode(r, request, &file, prompt);
    g_autofree float *logits = prefill(r, request, &file, prompt, outputs, blocks);
    const float *last = logits + (size_t)(prompt->n_tokens - 1) * r->model->llm->vocab_size;
    decode_greedily(r, request, &file, prompt, last, blocks);
    for (guint i = 0; i < prompt->items->len; i++)
        cs_shared_tensor_unref(outputs[i]);
    g_free(outputs);
    golden_close(&file);
}

/* ---- Talker ---- */

/* Golden tensors of what the talker hears are cut, so the rows of the f32 runs serve bf16 ones too:
 * then errors are the talker's own. */
typedef struct {
    float *prompt; /* [n + 2, heard_size] */
    float *reply;  /* [n_reply, heard_size] */
} heard;

enum { MAX_UTTERANCES = 8 };
static heard heard_in_f32[MAX_UTTERANCES];

/* Hidden states of the thinker's prompt, then of each of its tokens but the last. */
static float *think(const run *r, const cs_prompt *prompt, cs_shared_tensor **outputs,
                    const cs_checkpoint_tensor *tokens)
{
    const cs_llm *llm = r->model->llm;
    int32_t blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        blocks[i] = i;
    uint32_t n = prompt->n_tokens, n_tokens = (uint32_t)tokens->shape[0];
    float *hidden = g_new(float, (gsize)(n + n_tokens) * llm->hidden_size);
    g_autofree cs_llm_span *spans = g_new(cs_llm_span, prompt->spans->len + 1);
    for (guint i = 0; i < prompt->spans->len; i++) {
        const cs_prompt_span *s = &g_array_index(prompt->spans, cs_prompt_span, i);
        spans[i] = (cs_llm_span){
            .row = s->row, .n = s->n, .source = &outputs[s->item]->t, .source_row = s->source_row};
    }
    cs_llm_sequence sequence = {.n_new = n, .kv_blocks = blocks};
    cs_llm_batch batch = {.n_rows = n,
                          .token_ids = prompt->token_ids,
                          .positions = (const int32_t(*)[3])prompt->positions,
                          .n_sequences = 1,
                          .sequences = &sequence,
                          .n_spans = prompt->spans->len,
                          .spans = spans};
    forward(r, &batch, NULL, hidden);
    for (uint32_t i = 0; i + 1 < n_tokens; i++) {
        int32_t p = prompt->next_position + (int32_t)i;
        const int32_t position[1][3] = {{p, p, p}};
        sequence = (cs_llm_sequence){.n_past = n + i, .n_new = 1, .kv_blocks = blocks};
        batch = (cs_llm_batch){.n_rows = 1,
                               .token_ids = (const int32_t *)tokens->data + i,
                               .positions = position,
                               .n_sequences = 1,
                               .sequences = &sequence};
        forward(r, &batch, NULL, hidden + (size_t)(n + i) * llm->hidden_size);
    }
    return hidden;
}

/* The rows of prompt and reply as speech.h has them. */
static heard listen(const run *r, const cs_prompt *prompt, const cs_checkpoint_tensor *tokens,
                    const float *hidden, int32_t voice_token)
{
    const cs_speech *speech = r->model->speech;
    uint32_t n = prompt->n_tokens, n_tokens = (uint32_t)tokens->shape[0];
    size_t width = speech->heard_size;
    heard h = {.prompt = g_new(float, (n + 2) * width), .reply = g_new(float, n_tokens *width)};
    g_autofree float *read = g_new(float, n_tokens *width);
    speech->hear(r->model, n, prompt->token_ids, hidden, h.prompt);
    speech->hear(r->model, 1, &voice_token, NULL, h.prompt + n * width);
    speech->hear(r->model, n_tokens - 1, tokens->data, hidden + n * width, read);
    memcpy(h.prompt + (n + 1) * width, read, width * sizeof *read);
    memcpy(h.reply, read + width, (n_tokens - 2) * width * sizeof *read);
    speech->hear(r->model, 1, &speech->text_end, NULL, h.reply + (n_tokens - 2) * width);
    speech->hear(r->model, 1, &speech->text_pad, NULL, h.reply + (n_tokens - 1) * width);
    return h;
}

typedef struct {
    cs_compute *compute;
    float *input, *layer0;
} talker_tapped;

static void talker_tap(void *user, int64_t layer, const cs_tensor *rows)
{
    talker_tapped *t = user;
    float **to = layer == CS_QWEN2_TAP_INPUT ? &t->input : layer == 0 ? &t->layer0 : NULL;
    if (to) {
        *to = g_realloc_n(*to, (gsize)(rows->rows * rows->cols), sizeof(float));
        cs_tensor_read(t->compute, *to, rows);
    }
}

static void talk(const run *r, const cs_llm_batch *batch, float *logits, float *hidden)
{
    g_autoptr(GError) error = NULL;
    cs_llm *talker = r->model->speech->talker;
    talker->ops->forward(talker, batch, logits, hidden, &error);
    g_assert_no_error(error);
}

/* Prefill; returns the logits of its last row. */
static float *check_talker_prefill(const run *r, json_t *utterance, const golden_file *file,
                                   const cs_prompt *prompt, const float *rows,
                                   const int32_t *blocks)
{
    const cs_speech *speech = r->model->speech;
    cs_llm *talker = speech->talker;
    uint32_t n = prompt->n_tokens + 2;
    g_autofree int32_t *ids = g_new(int32_t, n);
    g_autofree uint32_t *wanted = g_new(uint32_t, n);
    int32_t(*positions)[3] = g_malloc_n(n, sizeof *positions);
    const int32_t *expected = golden_get(file, "talker.position_ids")->data;
    cs_speech_prompt(speech, prompt->n_tokens, ids);
    for (uint32_t i = 0; i < n; i++)
        for (int axis = 0; axis < 3; axis++) {
            positions[i][axis] = i < prompt->n_tokens
                                     ? prompt->positions[i][axis]
                                     : prompt->next_position + (int32_t)(i - prompt->n_tokens);
            if (!golden_measuring)
                g_assert_cmpint(positions[i][axis], ==, expected[axis * n + i]);
            wanted[i] = i;
        }
    cs_tensor source = cs_tensor_view((void *)rows, CS_DTYPE_F32, n, (int64_t)speech->heard_size);
    const cs_llm_span span = {.n = n, .source = &source};
    const cs_llm_sequence sequence = {.n_new = n, .kv_blocks = blocks};
    const cs_llm_batch batch = {.n_rows = n,
                                .token_ids = ids,
                                .positions = (const int32_t(*)[3])positions,
                                .n_sequences = 1,
                                .sequences = &sequence,
                                .n_spans = 1,
                                .spans = &span,
                                .n_logit_rows = n,
                                .logit_rows = wanted};
    g_autofree float *logits = g_new(float, (gsize)n * talker->vocab_size);
    g_autofree float *hidden = g_new(float, (gsize)n * talker->hidden_size);
    talker_tapped t = {.compute = r->compute};
    cs_qwen2_decoder_set_tap(talker, talker_tap, &t);
    talk(r, &batch, logits, hidden);
    cs_qwen2_decoder_set_tap(talker, NULL, NULL);
    check(r, utterance, file, "talker.embeds", t.input, speech->heard_size);
    check(r, utterance, file, "talker.layer0", t.layer0, talker->hidden_size);
    check(r, utterance, file, "talker.hidden", hidden, talker->hidden_size);
    check(r, utterance, file, "talker.logits_prefill", logits, talker->vocab_size);
    g_free(t.input);
    g_free(t.layer0);
    g_free(positions);
    return g_memdup2(logits + (size_t)(n - 1) * talker->vocab_size,
                     talker->vocab_size * sizeof(float));
}

/* Follows the reference's codes, as decode_greedily does; the start token is never drawn. */
static void check_codes(const run *r, json_t *utterance, const golden_file *file,
                        const cs_prompt *prompt, const heard *h, float *logits,
                        const int32_t *blocks)
{
    const cs_speech *speech = r->model->speech;
    const cs_checkpoint_tensor *codes = golden_get(file, "talker.codes");
    int64_t n_reply = golden_get(file, "talker.reply")->shape[0];
    const float *gaps = golden_get(file, "talker.gap")->data;
    bool exact = !golden_is_bf16(r->setting);
    cs_tensor reply = cs_tensor_view(h->reply, CS_DTYPE_F32, n_reply, (int64_t)speech->heard_size);
    check(r, utterance, file, "talker.reply", h->reply, speech->heard_size);
    for (int64_t i = 0; i < codes->shape[0]; i++) {
        int32_t code = ((const int32_t *)codes->data)[i];
        float start = logits[speech->start_id];
        logits[speech->start_id] = -INFINITY;
        if (!golden_measuring && (exact || gaps[i] > 0.1f))
            g_assert_cmpint(largest(logits, speech->talker->vocab_size), ==, code);
        logits[speech->start_id] = start;
        if (i + 1 == codes->shape[0])
            break;
        int32_t p = prompt->next_position + 2 + (int32_t)i;
        const int32_t position[1][3] = {{p, p, p}};
        const uint32_t row = 0;
        const cs_llm_span span = {
            .n = 1, .source = &reply, .source_row = (uint32_t)MIN(i, n_reply - 1)};
        const cs_llm_sequence sequence = {
            .n_past = prompt->n_tokens + 2 + (uint32_t)i, .n_new = 1, .kv_blocks = blocks};
        const cs_llm_batch batch = {.n_rows = 1,
                                    .token_ids = &code,
                                    .positions = position,
                                    .n_sequences = 1,
                                    .sequences = &sequence,
                                    .n_spans = 1,
                                    .spans = &span,
                                    .n_logit_rows = 1,
                                    .logit_rows = &row};
        talk(r, &batch, logits, NULL);
    }
    check(r, utterance, file, "talker.logits_last", logits, speech->talker->vocab_size);
}

static json_t *find_request(const char *name)
{
    size_t i;
    json_t *request;
    json_array_foreach (json_object_get(requests, "requests"), i, request)
        if (strcmp(json_string_value(json_object_get(request, "name")), name) == 0)
            return request;
    g_error("no request %s", name);
}

static void replay_utterance(const run *r, size_t index, json_t *utterance)
{
    golden_file file =
        golden_open(golden_dir, json_string_value(json_object_get(utterance, "file")));
    json_t *request = find_request(json_string_value(json_object_get(utterance, "request")));
    const cs_checkpoint_tensor *tokens = golden_get(&file, "thinker.tokens");
    const cs_speaker *speaker =
        cs_speakers_find(cs_token2wav_speakers(r->model->speech->token2wav),
                         json_string_value(json_object_get(utterance, "speaker")));
    int32_t blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        blocks[i] = (i * 29 + 3) % BLOCKS;
    g_assert_nonnull(speaker);
    g_assert_cmpuint(index, <, MAX_UTTERANCES);
    g_autoptr(cs_prompt) prompt = make_prompt(r, request);
    heard *h = &heard_in_f32[index];
    if (!golden_is_bf16(r->setting)) {
        golden_file request_file =
            golden_open(golden_dir, json_string_value(json_object_get(request, "file")));
        cs_shared_tensor **outputs = encode(r, request, &request_file, prompt);
        g_autofree float *hidden = think(r, prompt, outputs, tokens);
        g_free(h->prompt);
        g_free(h->reply);
        *h = listen(r, prompt, tokens, hidden, speaker->bos_token);
        for (guint i = 0; i < prompt->items->len; i++)
            cs_shared_tensor_unref(outputs[i]);
        g_free(outputs);
        golden_close(&request_file);
    }
    if (h->prompt) {
        g_autofree float *logits =
            check_talker_prefill(r, utterance, &file, prompt, h->prompt, blocks);
        check_codes(r, utterance, &file, prompt, h, logits, blocks);
    } else {
        g_test_message("%s: needs the f32 run before it",
                       json_string_value(json_object_get(utterance, "name")));
    }
    golden_close(&file);
}

static void load(run *r, const char *dir)
{
    g_autoptr(GError) error = NULL;
    r->model = cs_model_load(
        dir, &(cs_model_options){.compute = r->compute, .dtype = r->setting->dtype, .speech = true},
        &error);
    g_assert_no_error(error);
    cs_llm *const llms[] = {r->model->llm, r->model->speech->talker};
    for (size_t i = 0; i < G_N_ELEMENTS(llms); i++) {
        llms[i]->ops->reserve(llms[i], BLOCKS, BLOCKS * 32, 1, BLOCKS * 32, &error);
        g_assert_no_error(error);
    }
}

/* All of them, or the one named ITEM. */
static void replay_all(run *r, const char *dir, const char *item)
{
    size_t i;
    json_t *request;
    load(r, dir);
    json_array_foreach (json_object_get(requests, "requests"), i, request)
        if (!item || g_str_equal(json_string_value(json_object_get(request, "name")), item))
            replay(r, request);
    json_array_foreach (utterances, i, request)
        if (!item || g_str_equal(json_string_value(json_object_get(request, "name")), item))
            replay_utterance(r, i, request);
    cs_model_free(r->model);
}

static void test_requests(const void *data)
{
    run r = {.setting = data};
    r.compute = golden_compute(r.setting);
    if (!r.compute)
        return;
    g_autofree char *dir = g_build_filename(golden_dir, "qwen2.5-omni-tiny", NULL);
    replay_all(&r, dir, NULL);
    cs_compute_free(r.compute);
}

static void measure(const char *dir, const char *item)
{
    static const golden_setting f32 = {.dtype = "f32"};
    run r = {.setting = &f32};
    g_autoptr(GError) error = NULL;
    r.compute = cs_compute_new(&(cs_compute_options){.n_threads = 2}, &error);
    g_assert_no_error(error);
    golden_measuring = true;
    replay_all(&r, dir, item);
    cs_compute_free(r.compute);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    /* Golden directory, program with the media decoder; to measure, a checkpoint and an item. */
    g_assert_true(argc == 3 || argc == 5);
    golden_dir = argv[1];
    g_autofree char *path = g_build_filename(golden_dir, "requests.json", NULL);
    g_autoptr(GError) error = NULL;
    requests = cs_json_load_file(path, 1 << 24, &error);
    g_assert_no_error(error);
    g_autofree char *speech_path = g_build_filename(golden_dir, "speech.json", NULL);
    json_t *speech = cs_json_load_file(speech_path, 1 << 24, &error);
    g_assert_no_error(error);
    utterances = json_object_get(speech, "utterances");
    const char *const program[] = {argv[2], "media-decoder", NULL};
    cs_media_pool_options options = CS_MEDIA_POOL_OPTIONS_DEFAULT;
    options.program = program;
    pool = cs_media_pool_new(&options, &error);
    g_assert_no_error(error);

    golden_settings_add("/golden/thinker", test_requests);
    int result = 0;
    if (argc == 5)
        measure(argv[3], argv[4]);
    else
        result = g_test_run();
    cs_media_pool_free(pool);
    json_decref(requests);
    json_decref(speech);
    for (int i = 0; i < MAX_UTTERANCES; i++) {
        g_free(heard_in_f32[i].prompt);
        g_free(heard_in_f32[i].reply);
    }
    return result;
}
