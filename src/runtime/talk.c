#include "runtime/talk.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

enum { ITEM_PROMPT, ITEM_REPLY, N_ITEMS };

/* ---- requests ---- */

GArray *cs_talk_bans(const cs_speech *speech, uint32_t vocab_size)
{
    GArray *bans = g_array_new(FALSE, FALSE, sizeof(cs_token_bias));
    for (int32_t id = 0; id < (int32_t)vocab_size; id++) {
        bool stops = id == speech->stop_ids[0] || id == speech->stop_ids[1];
        cs_token_bias ban = {id, -INFINITY};
        if (id == speech->start_id || (id >= speech->n_codes && !stops))
            g_array_append_val(bans, ban);
    }
    return bans;
}

cs_llm_pace cs_talk_pace(const cs_speech *speech)
{
    return (cs_llm_pace){speech->first_codes, speech->code_us};
}

bool cs_talk_check_room(uint32_t n_prompt, uint32_t max_tokens, GError **error)
{
    return n_prompt + 2 < max_tokens ||
           cs_fail(error, CS_ERROR_OVER_CONTEXT,
                   "the talker's prompt has %u tokens; it takes at most %u with its answer",
                   n_prompt + 2, max_tokens);
}

/* Positions of the talker's prompt: those of the LLM's, then two more. NULL: 0, 1, 2, ... */
static int32_t (*positions_of(const cs_talk_options *o))[3]
{
    uint32_t n = o->n_prompt;
    if (!o->positions)
        return NULL;
    int32_t(*positions)[3] = g_malloc_n(n + 2, sizeof(*positions));
    memcpy(positions, o->positions, n * sizeof(*positions));
    for (int axis = 0; axis < 3; axis++) {
        positions[n][axis] = o->next_position;
        positions[n + 1][axis] = o->next_position + 1;
    }
    return positions;
}

cs_llm_request *cs_talk_submit(cs_llm_engine *engine, const cs_speech *speech, const GArray *bans,
                               const cs_talk_options *o, const cs_llm_sink *sink, void *user,
                               GError **error)
{
    uint32_t n = o->n_prompt, max = cs_llm_engine_max_tokens(engine);
    if (!cs_talk_check_room(n, max, error))
        return NULL;
    g_autofree int32_t *ids = g_new(int32_t, n + 2);
    cs_speech_prompt(speech, n, ids);
    g_autofree int32_t(*positions)[3] = positions_of(o);
    const cs_llm_input_span span = {0, n + 2, ITEM_PROMPT, 0};
    const cs_llm_input_item items[N_ITEMS] = {[ITEM_PROMPT] = {.n_rows = n + 2}};
    const cs_llm_request_options options = {
        .n_tokens = n + 2,
        .token_ids = ids,
        .positions = (const int32_t(*)[3])positions,
        .next_position = o->next_position + 2,
        .n_spans = 1,
        .spans = &span,
        .n_items = N_ITEMS,
        .items = items,
        .has_reply_item = true,
        .reply_item = ITEM_REPLY,
        .n_generated = o->n_codes,
        .generated = o->codes,
        .sampling = {.temperature = o->temperature,
                     .top_k = speech->top_k,
                     .top_p = speech->top_p,
                     .repetition_penalty = o->repetition_penalty,
                     .seed = o->seed,
                     .n_logprobs = -1,
                     .n_biases = bans->len,
                     .biases = (const cs_token_bias *)(void *)bans->data},
        .max_tokens = MIN(speech->max_tokens, max - (n + 2)),
        .n_stop_ids = G_N_ELEMENTS(speech->stop_ids),
        .stop_ids = speech->stop_ids,
        .pace = {speech->first_codes - 1, speech->code_us}, /* the last code is nobody's input */
    };
    return cs_llm_engine_submit(engine, &options, sink, user, error);
}

bool cs_talk_is_cut(uint32_t n_codes, bool length, GError **error)
{
    if (n_codes == 0)
        return !cs_fail(error, CS_ERROR_FAILED, "the model made no sound for this answer");
    return length && !cs_fail(error, CS_ERROR_TOO_LARGE,
                              "the speech is longer than %u codes and would be cut there", n_codes);
}

/* ---- ears ---- */

cs_shared_tensor *cs_talk_rows(const cs_model *model, uint32_t n, const int32_t *token_ids,
                               const float *hidden, GError **error)
{
    cs_shared_tensor *rows = cs_shared_tensor_new(CS_DTYPE_F32, n, model->speech->heard_size);
    if (rows)
        model->speech->hear(model, n, token_ids, hidden, rows->t.data);
    else
        cs_fail(error, CS_ERROR_FAILED, "no memory for %u rows that the talker hears", n);
    return rows;
}

/* Rows of tokens alone. */
static void provide_tokens(cs_talk_ear *ear, uint32_t item, uint32_t n, const int32_t *ids,
                           bool last)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_shared_tensor) rows = cs_talk_rows(ear->model, n, ids, NULL, &error);
    if (rows)
        cs_llm_request_provide(ear->talker, item, rows, last);
    else
        cs_llm_request_fail(ear->talker, error);
}

static void unref_rows(void *rows)
{
    cs_shared_tensor_unref(rows);
}

/* n of the rows, from `first` on. */
static void provide(cs_talk_ear *ear, uint32_t item, cs_shared_tensor *rows, uint32_t first,
                    uint32_t n, bool last)
{
    const float *data = rows->t.data;
    g_autoptr(cs_shared_tensor) part = NULL;
    if (n == rows->t.rows) {
        cs_llm_request_provide(ear->talker, item, rows, last);
        return;
    }
    part = cs_shared_tensor_wrap(data + first * rows->t.cols, CS_DTYPE_F32, n, rows->t.cols,
                                 unref_rows, cs_shared_tensor_ref(rows));
    if (part) {
        cs_llm_request_provide(ear->talker, item, part, last);
        return;
    }
    g_autoptr(GError) error = NULL;
    cs_fail(&error, CS_ERROR_FAILED, "no memory for %u rows that the talker hears", n);
    cs_shared_tensor_unref(rows);
    cs_llm_request_fail(ear->talker, error);
}

void cs_talk_hear(cs_talk_ear *ear, cs_shared_tensor *rows)
{
    uint32_t n = (uint32_t)rows->t.rows, row = ear->n_heard, at = 0;
    ear->n_heard += n;
    if (row < ear->n_prompt) {
        at = MIN(n, ear->n_prompt - row);
        provide(ear, ITEM_PROMPT, rows, 0, at, false);
        if (row + at == ear->n_prompt)
            provide_tokens(ear, ITEM_PROMPT, 1, &ear->voice_token, false);
    }
    /* the first row of the reply is the last of the talker's prompt */
    if (at < n && row + at == ear->n_prompt) {
        provide(ear, ITEM_PROMPT, rows, at, 1, true);
        at++;
    }
    if (at < n)
        provide(ear, ITEM_REPLY, rows, at, n - at, false);
}

void cs_talk_end(cs_talk_ear *ear)
{
    const cs_speech *speech = ear->model->speech;
    if (ear->n_heard > ear->n_prompt) {
        const int32_t ids[] = {speech->text_end, speech->text_pad};
        provide_tokens(ear, ITEM_REPLY, 2, ids, true);
        return;
    }
    g_autoptr(GError) error = NULL;
    cs_fail(&error, CS_ERROR_FAILED,
            "the answer has fewer than two tokens, which is too short to be spoken");
    cs_llm_request_fail(ear->talker, error);
}
