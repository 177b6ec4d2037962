#include "api/output.h"

#include "api/http.h"

#include <math.h>
#include <string.h>

/* ---- scalars ---- */

static void append_valid(GString *out, const char *text, size_t size_bytes)
{
    static const char hex[] = "0123456789abcdef";
    for (size_t i = 0; i < size_bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            g_string_append_c(out, '\\');
            g_string_append_c(out, (char)c);
        } else if (c == '\n') {
            g_string_append(out, "\\n");
        } else if (c < 0x20 || c == 0x7f) {
            g_string_append(out, "\\u00");
            g_string_append_c(out, hex[c >> 4]);
            g_string_append_c(out, hex[c & 15]);
        } else {
            g_string_append_c(out, (char)c);
        }
    }
}

void cs_output_string(GString *out, const char *text, size_t size_bytes)
{
    g_string_append_c(out, '"');
    if (g_utf8_validate_len(text, size_bytes, NULL)) {
        append_valid(out, text, size_bytes);
    } else {
        g_autofree char *valid = g_utf8_make_valid(text, (gssize)size_bytes);
        append_valid(out, valid, strlen(valid));
    }
    g_string_append_c(out, '"');
}

static void append_number(GString *out, double number)
{
    char text[G_ASCII_DTOSTR_BUF_SIZE];
    /* JSON has no infinity: a token that cannot come is as unlikely as OpenAI's own floor says. */
    g_string_append(
        out, g_ascii_formatd(text, sizeof(text), "%.7g", isfinite(number) ? number : -9999.0));
}

static const char *finish_word(const cs_answer *answer)
{
    return answer->reason == CS_FINISH_LENGTH ? "\"length\"" : "\"stop\"";
}

/* ---- answers ---- */

void cs_answer_init(cs_answer *answer, uint32_t index)
{
    *answer = (cs_answer){.index = index,
                          .text = g_string_new(NULL),
                          .token_ids = g_array_new(FALSE, FALSE, sizeof(int32_t)),
                          .logprobs = g_array_new(FALSE, FALSE, sizeof(float)),
                          .top = g_array_new(FALSE, FALSE, sizeof(cs_token_logprob))};
}

void cs_answer_clear(cs_answer *answer)
{
    g_string_free(answer->text, TRUE);
    g_array_unref(answer->token_ids);
    g_array_unref(answer->logprobs);
    g_array_unref(answer->top);
}

void cs_answer_told(cs_answer *answer)
{
    answer->text_offset += (uint32_t)g_utf8_strlen(answer->text->str, (gssize)answer->text->len);
    g_string_truncate(answer->text, 0);
    g_array_set_size(answer->token_ids, 0);
    g_array_set_size(answer->logprobs, 0);
    g_array_set_size(answer->top, 0);
}

/* ---- log-probabilities ---- */

static void token_text(const cs_output *o, int32_t id, GString *bytes)
{
    g_string_truncate(bytes, 0);
    cs_pipeline_token_bytes(o->pipeline, id, bytes);
}

/* "token": "...", "logprob": ..., "bytes": [...] */
static void append_token(const cs_output *o, int32_t id, float logprob, GString *bytes,
                         GString *out)
{
    token_text(o, id, bytes);
    g_string_append(out, "\"token\":");
    cs_output_string(out, bytes->str, bytes->len);
    g_string_append(out, ",\"logprob\":");
    append_number(out, logprob);
    g_string_append(out, ",\"bytes\":[");
    for (gsize i = 0; i < bytes->len; i++)
        g_string_append_printf(out, "%s%u", i ? "," : "", (guint8)bytes->str[i]);
    g_string_append_c(out, ']');
}

static const cs_token_logprob *top_row(const cs_output *o, const cs_answer *answer, guint token)
{
    return &g_array_index(answer->top, cs_token_logprob, token * (guint)o->n_logprobs);
}

static void append_chat_logprobs(const cs_output *o, const cs_answer *answer, GString *out)
{
    g_autoptr(GString) bytes = g_string_new(NULL);
    g_string_append(out, "{\"content\":[");
    for (guint i = 0; i < answer->token_ids->len; i++) {
        g_string_append(out, i ? ",{" : "{");
        append_token(o, g_array_index(answer->token_ids, int32_t, i),
                     g_array_index(answer->logprobs, float, i), bytes, out);
        g_string_append(out, ",\"top_logprobs\":[");
        const cs_token_logprob *top = top_row(o, answer, i);
        for (int32_t k = 0; k < o->n_logprobs && top[k].id >= 0; k++) {
            g_string_append(out, k ? ",{" : "{");
            append_token(o, top[k].id, top[k].logprob, bytes, out);
            g_string_append_c(out, '}');
        }
        g_string_append(out, "]}");
    }
    g_string_append(out, "],\"refusal\":null}");
}

static void append_top_object(const cs_output *o, const cs_answer *answer, guint token,
                              GString *bytes, GString *out)
{
    const cs_token_logprob *top = top_row(o, answer, token);
    g_string_append(out, token ? ",{" : "{");
    for (int32_t k = 0; k < o->n_logprobs && top[k].id >= 0; k++) {
        token_text(o, top[k].id, bytes);
        g_string_append(out, k ? "," : "");
        cs_output_string(out, bytes->str, bytes->len);
        g_string_append_c(out, ':');
        append_number(out, top[k].logprob);
    }
    g_string_append_c(out, '}');
}

/* Four arrays side by side, as the older API has them. */
static void append_completion_logprobs(const cs_output *o, const cs_answer *answer, GString *out)
{
    g_autoptr(GString) bytes = g_string_new(NULL);
    g_autoptr(GString) offsets = g_string_new(NULL);
    guint n = answer->token_ids->len;
    uint32_t offset = answer->text_offset;
    g_string_append(out, "{\"tokens\":[");
    for (guint i = 0; i < n; i++) {
        token_text(o, g_array_index(answer->token_ids, int32_t, i), bytes);
        g_string_append(out, i ? "," : "");
        cs_output_string(out, bytes->str, bytes->len);
        g_string_append_printf(offsets, "%s%u", i ? "," : "", offset);
        for (gsize b = 0; b < bytes->len; b++)
            offset += ((guint8)bytes->str[b] & 0xc0) != 0x80; /* first bytes of characters */
    }
    g_string_append(out, "],\"token_logprobs\":[");
    for (guint i = 0; i < n; i++) {
        g_string_append(out, i ? "," : "");
        append_number(out, g_array_index(answer->logprobs, float, i));
    }
    g_string_append(out, "],\"top_logprobs\":[");
    for (guint i = 0; i < n; i++)
        append_top_object(o, answer, i, bytes, out);
    g_string_append_printf(out, "],\"text_offset\":[%s]}", offsets->str);
}

static void append_logprobs(const cs_output *o, const cs_answer *answer, GString *out)
{
    g_string_append(out, ",\"logprobs\":");
    if (o->n_logprobs < 0 || answer->token_ids->len == 0)
        g_string_append(out, "null");
    else if (o->endpoint == CS_ENDPOINT_CHAT)
        append_chat_logprobs(o, answer, out);
    else
        append_completion_logprobs(o, answer, out);
}

/* ---- envelopes ---- */

static void append_head(const cs_output *o, bool chunk, GString *out)
{
    const char *object = o->endpoint == CS_ENDPOINT_COMPLETION ? "text_completion"
                         : chunk                               ? "chat.completion.chunk"
                                                               : "chat.completion";
    g_string_append_printf(
        out, "{\"id\":\"%s-%s\",\"object\":\"%s\",\"created\":%" G_GINT64_FORMAT ",\"model\":",
        o->endpoint == CS_ENDPOINT_CHAT ? "chatcmpl" : "cmpl", o->id, object, o->created_s);
    const char *model = cs_pipeline_model_id(o->pipeline);
    cs_output_string(out, model, strlen(model));
}

static void append_usage(const cs_usage *usage, GString *out)
{
    uint32_t completion = usage->completion_tokens + usage->speech_tokens;
    g_string_append_printf(
        out,
        "\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u,"
        "\"prompt_tokens_details\":{\"cached_tokens\":%u,\"image_tokens\":%u,\"audio_tokens\":%u,"
        "\"video_tokens\":%u},\"completion_tokens_details\":{\"text_tokens\":%u,\"audio_tokens\":"
        "%u}}",
        usage->prompt_tokens, completion, usage->prompt_tokens + completion, usage->cached_tokens,
        usage->modality_tokens[CS_MODALITY_IMAGE], usage->modality_tokens[CS_MODALITY_AUDIO],
        usage->modality_tokens[CS_MODALITY_VIDEO], usage->completion_tokens, usage->speech_tokens);
}

static void append_base64(GString *out, const GByteArray *bytes)
{
    gsize at = out->len, room = ((gsize)bytes->len / 3 + 2) * 4;
    gint state = 0, save = 0;
    g_string_set_size(out, at + room);
    gsize n = g_base64_encode_step(bytes->data, bytes->len, FALSE, out->str + at, &state, &save);
    n += g_base64_encode_close(FALSE, out->str + at + n, &state, &save);
    g_string_truncate(out, at + n);
}

/* The text of a spoken answer is the transcript of its sound. */
static void append_spoken(const cs_output *o, const cs_answer *answer, const GByteArray *sound,
                          GString *out)
{
    g_string_append_printf(out,
                           "\"message\":{\"role\":\"assistant\",\"content\":null,\"refusal\":null,"
                           "\"audio\":{\"id\":\"audio-%s\",\"expires_at\":%" G_GINT64_FORMAT
                           ",\"transcript\":",
                           o->id, o->created_s);
    cs_output_string(out, answer->text->str, answer->text->len);
    g_string_append(out, ",\"data\":\"");
    append_base64(out, sound);
    g_string_append(out, "\"}}");
}

static void append_whole_choice(const cs_output *o, const cs_answer *answer,
                                const GByteArray *sound, GString *out)
{
    g_string_append_printf(out, "{\"index\":%u,", answer->index);
    if (sound) {
        append_spoken(o, answer, sound, out);
    } else if (o->endpoint == CS_ENDPOINT_CHAT) {
        g_string_append(out, "\"message\":{\"role\":\"assistant\",\"content\":");
        cs_output_string(out, answer->text->str, answer->text->len);
        g_string_append(out, ",\"refusal\":null}");
    } else {
        g_string_append(out, "\"text\":");
        cs_output_string(out, answer->text->str, answer->text->len);
    }
    append_logprobs(o, answer, out);
    g_string_append_printf(out, ",\"finish_reason\":%s}", finish_word(answer));
}

void cs_output_whole(const cs_output *o, cs_answer *answers, uint32_t n_answers,
                     const GByteArray *sound, const cs_usage *usage, GString *out)
{
    append_head(o, false, out);
    g_string_append(out, ",\"choices\":[");
    for (uint32_t i = 0; i < n_answers; i++) {
        g_string_append(out, i ? "," : "");
        append_whole_choice(o, &answers[i], sound, out);
    }
    g_string_append(out, "],");
    append_usage(usage, out);
    g_string_append_c(out, '}');
}

/* ---- chunks ---- */

static void chunk_begin(const cs_output *o, uint32_t index, GString *out)
{
    g_string_append(out, "data: ");
    append_head(o, true, out);
    g_string_append_printf(out, ",\"choices\":[{\"index\":%u,", index);
}

static void chunk_end(const cs_output *o, const char *finish_reason, GString *out)
{
    g_string_append_printf(out, ",\"finish_reason\":%s}]%s}\n\n", finish_reason,
                           o->usage_member ? ",\"usage\":null" : "");
}

void cs_output_role(const cs_output *o, uint32_t index, GString *out)
{
    chunk_begin(o, index, out);
    g_string_append_printf(out,
                           "\"delta\":{\"role\":\"assistant\",\"content\":%s},\"logprobs\":null",
                           o->speaks ? "null" : "\"\"");
    chunk_end(o, "null", out);
}

void cs_output_piece(const cs_output *o, cs_answer *answer, GString *out)
{
    chunk_begin(o, answer->index, out);
    if (o->speaks)
        g_string_append_printf(out,
                               "\"delta\":{\"audio\":{\"id\":\"audio-%s\",\"transcript\":", o->id);
    else
        g_string_append(out,
                        o->endpoint == CS_ENDPOINT_CHAT ? "\"delta\":{\"content\":" : "\"text\":");
    cs_output_string(out, answer->text->str, answer->text->len);
    g_string_append(out, o->speaks ? "}}" : o->endpoint == CS_ENDPOINT_CHAT ? "}" : "");
    append_logprobs(o, answer, out);
    chunk_end(o, "null", out);
}

void cs_output_sound(const cs_output *o, const GByteArray *bytes, GString *out)
{
    chunk_begin(o, 0, out);
    g_string_append_printf(out, "\"delta\":{\"audio\":{\"id\":\"audio-%s\",\"data\":\"", o->id);
    append_base64(out, bytes);
    g_string_append(out, "\"}},\"logprobs\":null");
    chunk_end(o, "null", out);
}

void cs_output_sound_end(const cs_output *o, GString *out)
{
    chunk_begin(o, 0, out);
    g_string_append_printf(
        out,
        "\"delta\":{\"audio\":{\"id\":\"audio-%s\",\"expires_at\":%" G_GINT64_FORMAT
        "}},\"logprobs\":null",
        o->id, o->created_s);
    chunk_end(o, "null", out);
}

void cs_output_speech(const GByteArray *bytes, GString *out)
{
    g_string_append(out, "data: {\"type\":\"speech.audio.delta\",\"audio\":\"");
    append_base64(out, bytes);
    g_string_append(out, "\"}\n\n");
}

void cs_output_speech_end(const cs_usage *usage, GString *out)
{
    g_string_append_printf(out,
                           "data: {\"type\":\"speech.audio.done\",\"usage\":{\"input_tokens\":%u,"
                           "\"output_tokens\":%u,\"total_tokens\":%u}}\n\n",
                           usage->prompt_tokens, usage->speech_tokens,
                           usage->prompt_tokens + usage->speech_tokens);
}

void cs_output_finish(const cs_output *o, const cs_answer *answer, GString *out)
{
    chunk_begin(o, answer->index, out);
    g_string_append(out, o->endpoint == CS_ENDPOINT_CHAT ? "\"delta\":{},\"logprobs\":null"
                                                         : "\"text\":\"\",\"logprobs\":null");
    chunk_end(o, finish_word(answer), out);
}

void cs_output_usage(const cs_output *o, const cs_usage *usage, GString *out)
{
    g_string_append(out, "data: ");
    append_head(o, true, out);
    g_string_append(out, ",\"choices\":[],");
    append_usage(usage, out);
    g_string_append(out, "}\n\n");
}

void cs_output_error(const GError *error, GString *out)
{
    g_autofree char *text = cs_api_error_json(error, NULL, NULL);
    g_string_append_printf(out, "data: %s\n\n", text);
}

void cs_output_end(GString *out)
{
    g_string_append(out, "data: [DONE]\n\n");
}
