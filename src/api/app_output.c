/* What the client of an app reads.
 *
 *     POST /v1/apps/NAME     {"event": ...}  {"stream": "text", "text": "..."}  {"result": ...}
 *     chat completions       a choice for each stream that serve returned and for each `answer` of
 *                            its events that have a text
 */
#include "api/apps_internal.h"
#include "api/output.h"

#include <stdlib.h>
#include <string.h>

static void choice_free(gpointer data)
{
    app_choice *c = data;
    g_free(c->name);
    g_string_free(c->text, TRUE);
    g_free(c);
}

static void text_free(gpointer text)
{
    g_string_free(text, TRUE);
}

void app_output_init(app_output *o)
{
    o->out = g_string_new(NULL);
    o->events = json_array();
    o->streams = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, text_free);
    o->choices = g_ptr_array_new_with_free_func(choice_free);
}

void app_output_clear(app_output *o)
{
    g_string_free(o->out, TRUE);
    json_decref(o->events);
    g_hash_table_unref(o->streams);
    g_ptr_array_unref(o->choices);
}

static void append_sse(app_output *o, json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT);
    size_t before = o->out->len;
    g_string_append_printf(o->out, "data: %s\n\n", text);
    o->size_bytes += o->out->len - before;
    free(text);
    json_decref(object);
}

/* --- chat completions --- */

static guint find_choice(app_output *o, const char *name)
{
    for (guint i = 0; i < o->choices->len; i++)
        if (strcmp(((app_choice *)o->choices->pdata[i])->name, name) == 0)
            return i;
    app_choice *fresh = g_new0(app_choice, 1);
    *fresh = (app_choice){.name = g_strdup(name), .text = g_string_new(NULL)};
    g_ptr_array_add(o->choices, fresh);
    return o->choices->len - 1;
}

static json_t *chunk(const app_output *o, json_t *choices)
{
    g_autofree char *id = g_strdup_printf("chatcmpl-%s", o->id);
    json_t *object = json_pack("{s:s, s:s, s:I, s:s, s:o}", "id", id, "object",
                               o->stream ? "chat.completion.chunk" : "chat.completion", "created",
                               (json_int_t)o->created_s, "model", o->app, "choices", choices);
    if (o->stream && o->include_usage)
        json_object_set_new(object, "usage", json_null());
    return object;
}

static void append_chunk(app_output *o, guint index, json_t *delta, const char *finish_reason)
{
    const app_choice *c = o->choices->pdata[index];
    json_t *choice = json_pack("{s:i, s:o, s:n, s:s?}", "index", (int)index, "delta", delta,
                               "logprobs", "finish_reason", finish_reason);
    json_object_set_new(choice, "answer", json_string(c->name));
    append_sse(o, chunk(o, json_pack("[o]", choice)));
}

static void chat_text(app_output *o, const char *name, const char *text, size_t size_bytes)
{
    guint index = find_choice(o, name);
    app_choice *c = o->choices->pdata[index];
    if (!o->stream) {
        g_string_append_len(c->text, text, (gssize)size_bytes);
        o->size_bytes += size_bytes;
        return;
    }
    json_t *delta = json_pack("{s:s%}", "content", text, size_bytes);
    if (!c->told)
        json_object_set_new(delta, "role", json_string("assistant"));
    c->told = true;
    append_chunk(o, index, delta, NULL);
}

static const char *finish_reason(const app_choice *c)
{
    return c->length ? "length" : "stop";
}

static json_t *usage_json(const cs_usage *u)
{
    return json_pack("{s:i, s:i, s:i, s:{s:i}}", "prompt_tokens", (int)u->prompt_tokens,
                     "completion_tokens", (int)u->completion_tokens, "total_tokens",
                     (int)(u->prompt_tokens + u->completion_tokens), "prompt_tokens_details",
                     "cached_tokens", (int)u->cached_tokens);
}

static json_t *whole_chat(const app_output *o)
{
    json_t *choices = json_array();
    for (guint i = 0; i < o->choices->len; i++) {
        const app_choice *c = o->choices->pdata[i];
        json_array_append_new(choices,
                              json_pack("{s:i, s:{s:s, s:s%, s:n}, s:n, s:s, s:s}", "index", (int)i,
                                        "message", "role", "assistant", "content", c->text->str,
                                        c->text->len, "refusal", "logprobs", "finish_reason",
                                        finish_reason(c), "answer", c->name));
    }
    json_t *object = chunk(o, choices);
    json_object_set_new(object, "usage", usage_json(&o->usage));
    return object;
}

static void end_chat(app_output *o)
{
    for (guint i = 0; i < o->choices->len; i++)
        append_chunk(o, i, json_object(), finish_reason(o->choices->pdata[i]));
    if (o->include_usage) {
        json_t *last = chunk(o, json_array());
        json_object_set_new(last, "usage", usage_json(&o->usage));
        append_sse(o, last);
    }
}

/* --- both --- */

void app_output_event(app_output *o, const json_t *event)
{
    json_t *borrowed = (json_t *)event;
    const json_t *text = json_object_get(event, "text");
    const char *answer = json_string_value(json_object_get(event, "answer"));
    if (o->chat) {
        if (json_is_string(text))
            chat_text(o, answer ? answer : "", json_string_value(text), json_string_length(text));
    } else if (o->stream) {
        append_sse(o, json_pack("{s:O}", "event", borrowed));
    } else {
        char *dumped = json_dumps(event, JSON_COMPACT | JSON_ENCODE_ANY);
        o->size_bytes += strlen(dumped);
        free(dumped);
        json_array_append(o->events, borrowed);
    }
}

void app_output_piece(app_output *o, const char *path, const char *text, size_t size_bytes)
{
    if (o->chat) {
        chat_text(o, path, text, size_bytes);
        return;
    }
    if (o->stream) {
        append_sse(o, json_pack("{s:s, s:s%}", "stream", path, "text", text, size_bytes));
        return;
    }
    GString *whole = g_hash_table_lookup(o->streams, path);
    if (!whole) {
        whole = g_string_new(NULL);
        g_hash_table_insert(o->streams, g_strdup(path), whole);
    }
    g_string_append_len(whole, text, (gssize)size_bytes);
    o->size_bytes += size_bytes;
}

void app_output_length(app_output *o, const char *path)
{
    if (o->chat)
        ((app_choice *)o->choices->pdata[find_choice(o, path)])->length = true;
}

/* What serve returned, with the text of each stream, or its path, where the stream stood. */
static json_t *fill_in(const app_output *o, const json_t *value, const char *path)
{
    if (json_object_get(value, "$stream")) {
        const GString *text = g_hash_table_lookup(o->streams, path);
        return o->stream ? json_pack("{s:s}", "stream", path)
                         : json_pack("s%", text ? text->str : "", text ? text->len : (size_t)0);
    }
    if (json_is_object(value)) {
        json_t *copy = json_object(), *item;
        const char *key;
        json_object_foreach ((json_t *)value, key, item) {
            g_autofree char *below = g_strjoin(*path ? "." : "", path, key, NULL);
            json_object_set_new(copy, key, fill_in(o, item, below));
        }
        return copy;
    }
    if (json_is_array(value)) {
        json_t *copy = json_array();
        for (size_t i = 0; i < json_array_size(value); i++) {
            g_autofree char *below = g_strdup_printf("%s%s%zu", path, *path ? "." : "", i);
            json_array_append_new(copy, fill_in(o, json_array_get(value, i), below));
        }
        return copy;
    }
    return json_incref((json_t *)value);
}

static void whole(app_output *o, const json_t *result)
{
    json_t *object =
        o->chat ? whole_chat(o)
                : json_pack("{s:s, s:O, s:o, s:o}", "app", o->app, "events", o->events, "result",
                            fill_in(o, result, ""), "usage", usage_json(&o->usage));
    char *text = json_dumps(object, JSON_COMPACT);
    g_string_assign(o->out, text);
    free(text);
    json_decref(object);
}

void app_output_end(app_output *o, const json_t *result)
{
    if (!o->stream) {
        whole(o, result);
        return;
    }
    if (o->chat)
        end_chat(o);
    else
        append_sse(o, json_pack("{s:o, s:o}", "result", fill_in(o, result, ""), "usage",
                                usage_json(&o->usage)));
    cs_output_end(o->out);
}
