#include "api/content.h"

#include "api/media_file.h"
#include "media/data_url.h"

#include <string.h>

#define MAX_MESSAGES 4096
#define MAX_PARTS 1024
#define MAX_MEDIA 256
#define MAX_PROMPTS 64
/* What the OpenAI API makes of an image of low detail. */
#define LOW_DETAIL_PIXELS (512 * 512)
/* Tokens of one prompt; the context is checked later and is smaller. */
#define MAX_PROMPT_IDS (1 << 24)

typedef struct {
    cs_content *content;
    const cs_body *body;
    const cs_media_policy *policy;
    cs_fault *fault;
} reader;

static void medium_free(gpointer p)
{
    cs_content_medium *medium = p;
    g_free(medium->param);
    g_free(medium->url);
    if (medium->bytes)
        g_bytes_unref(medium->bytes);
    g_free(medium);
}

void cs_content_clear(cs_content *content)
{
    g_clear_pointer(&content->messages, json_decref);
    g_clear_pointer(&content->media, g_ptr_array_unref);
    g_clear_pointer(&content->prompts, g_ptr_array_unref);
    g_clear_pointer(&content->prompt_ids, g_ptr_array_unref);
}

static bool fault_from(cs_fault *fault, const char *param, GError *error)
{
    cs_fault_set(fault, (cs_error_code)error->code, param, "%s", error->message);
    g_error_free(error);
    return false;
}

/* ---- members of an object, by path ---- */

/* False and a fault when `object` has a member that is not in the NULL-terminated list. */
static bool only_members(reader *r, const char *path, json_t *object, const char *const *names)
{
    const char *key;
    json_t *value;
    json_object_foreach (object, key, value) {
        if (!json_is_null(value) &&
            !g_strv_contains(names, key)) { /* clients spell out absent ones */
            g_autofree char *param = g_strdup_printf("%s.%.60s", path, key);
            return cs_fault_set(r->fault, CS_ERROR_UNSUPPORTED, param,
                                "there is no such member here");
        }
    }
    return true;
}

/* A string member, borrowed; NULL with a fault when it is something else or missing. */
static const char *string_member(reader *r, const char *path, json_t *object, const char *key,
                                 size_t *size_bytes)
{
    json_t *value = json_object_get(object, key);
    if (json_is_string(value))
        return cs_body_string(r->body, value, size_bytes);
    g_autofree char *param = g_strdup_printf("%s.%s", path, key);
    cs_fault_expected(r->fault, param, "a string", value);
    return NULL;
}

/* ---- media ---- */

static GBytes *decode_base64(reader *r, const char *param, const char *text, size_t size_bytes)
{
    GError *error = NULL;
    size_t decoded_bytes = 0;
    uint8_t *decoded =
        cs_base64_decode(text, size_bytes, r->policy->max_medium_bytes, &decoded_bytes, &error);
    if (!decoded) {
        fault_from(r->fault, param, error);
        return NULL;
    }
    return g_bytes_new_take(decoded, decoded_bytes);
}

static GBytes *decode_data_url(reader *r, const char *param, const char *text, size_t size_bytes)
{
    GError *error = NULL;
    cs_data_url url;
    if (!cs_data_url_parse(text, size_bytes, &url, &error)) {
        fault_from(r->fault, param, error);
        return NULL;
    }
    return decode_base64(r, param, url.payload, url.payload_length);
}

static GBytes *read_file_url(reader *r, const char *param, const char *url)
{
    if (!r->policy->media_dir) {
        cs_fault_set(r->fault, CS_ERROR_FORBIDDEN, param,
                     "file URLs are off on this server; send a data: URL (the operator may allow a "
                     "directory with "
                     "--allow-media-dir)");
        return NULL;
    }
    GError *error = NULL;
    GBytes *bytes =
        cs_media_file_read(r->policy->media_dir, url, r->policy->max_medium_bytes, &error);
    if (!bytes)
        fault_from(r->fault, param, error);
    return bytes;
}

/* Fills the medium's bytes or url from a URL. */
static bool locate(reader *r, cs_content_medium *medium, const char *text, size_t size_bytes)
{
    if (cs_data_url_is(text, size_bytes)) {
        medium->bytes = decode_data_url(r, medium->param, text, size_bytes);
        return medium->bytes != NULL;
    }
    if (size_bytes > 4096)
        return cs_fault_set(r->fault, CS_ERROR_INVALID, medium->param,
                            "expected a URL of at most 4096 bytes, or a data: URL");
    g_autofree char *url = g_strndup(text, size_bytes);
    g_autofree char *scheme = g_uri_parse_scheme(url);
    if (g_strcmp0(scheme, "file") == 0) {
        medium->bytes = read_file_url(r, medium->param, url);
        return medium->bytes != NULL;
    }
    if (g_strcmp0(scheme, "https") != 0 && g_strcmp0(scheme, "http") != 0)
        return cs_fault_set(r->fault, CS_ERROR_INVALID, medium->param,
                            "expected a data: or https: URL");
    if (!r->policy->allow_remote)
        return cs_fault_set(r->fault, CS_ERROR_FORBIDDEN, medium->param,
                            "remote URLs are off on this server; send a data: URL (the operator "
                            "may allow them with "
                            "--allow-remote-media)");
    if (strcmp(scheme, "https") != 0)
        return cs_fault_set(r->fault, CS_ERROR_FORBIDDEN, medium->param,
                            "remote media is fetched over https only");
    medium->url = g_steal_pointer(&url);
    return true;
}

static cs_content_medium *medium_add(reader *r, cs_modality modality, const char *path,
                                     const char *member)
{
    if (r->content->media->len >= MAX_MEDIA) {
        cs_fault_set(r->fault, CS_ERROR_TOO_LARGE, path,
                     "a request takes at most %d images, sounds and videos", MAX_MEDIA);
        return NULL;
    }
    cs_content_medium *medium = g_new0(cs_content_medium, 1);
    medium->modality = modality;
    medium->param = g_strdup_printf("%s.%s", path, member);
    g_ptr_array_add(r->content->media, medium);
    return medium;
}

/* ---- content parts ---- */

typedef struct part_kind part_kind;
struct part_kind {
    const char *type;
    bool (*read)(reader *r, const part_kind *kind, const char *path, json_t *value);
    cs_modality modality;
    const char *reduced; /* the template's word for it */
};

/* auto and high: the resolution that the model's own processor gives an image. */
static bool read_detail(reader *r, const char *path, json_t *detail, uint32_t *max_pixels)
{
    const char *word = json_string_value(detail);
    *max_pixels = g_strcmp0(word, "low") == 0 ? LOW_DETAIL_PIXELS : 0;
    if (!detail || json_is_null(detail) || *max_pixels || g_strcmp0(word, "auto") == 0 ||
        g_strcmp0(word, "high") == 0)
        return true;
    g_autofree char *param = g_strdup_printf("%s.detail", path);
    return cs_fault_expected(r->fault, param, "\"auto\", \"low\" or \"high\"", detail);
}

/* {"url": ..., "detail": ...}; vLLM's clients also send the URL itself. */
static bool read_url_part(reader *r, const part_kind *kind, const char *path, json_t *value)
{
    static const char *const image_members[] = {"url", "detail", NULL};
    static const char *const members[] = {"url", NULL};
    bool is_image = kind->modality == CS_MODALITY_IMAGE;
    bool is_object = json_is_object(value);
    if (!is_object && !json_is_string(value))
        return cs_fault_expected(r->fault, path, "an object with a url", value);
    if (is_object && !only_members(r, path, value, is_image ? image_members : members))
        return false;
    uint32_t max_pixels = 0;
    if (is_object && !read_detail(r, path, json_object_get(value, "detail"), &max_pixels))
        return false;
    size_t n;
    const char *text =
        is_object ? string_member(r, path, value, "url", &n) : cs_body_string(r->body, value, &n);
    if (!text)
        return false;
    cs_content_medium *medium = medium_add(r, kind->modality, path, "url");
    if (!medium)
        return false;
    medium->max_pixels = max_pixels;
    return locate(r, medium, text, n);
}

static bool read_input_audio_part(reader *r, const part_kind *kind, const char *path, json_t *value)
{
    static const char *const members[] = {"data", "format", NULL};
    static const char *const formats[] = {"wav", "mp3", "flac", "ogg",  "opus",
                                          "aac", "m4a", "mp4",  "webm", NULL};
    if (!json_is_object(value))
        return cs_fault_expected(r->fault, path, "an object with data and format", value);
    size_t n_format, n;
    const char *format = NULL, *data = NULL;
    if (!only_members(r, path, value, members) ||
        !(format = string_member(r, path, value, "format", &n_format)) ||
        !(data = string_member(r, path, value, "data", &n)))
        return false;
    g_autofree char *word = g_strndup(format, MIN(n_format, 20));
    if (!g_strv_contains(formats, word)) {
        g_autofree char *param = g_strdup_printf("%s.format", path);
        return cs_fault_set(
            r->fault, CS_ERROR_UNSUPPORTED, param,
            "expected one of wav, mp3, flac, ogg, opus, aac, m4a, mp4, webm; found \"%s\"", word);
    }
    cs_content_medium *medium = medium_add(r, kind->modality, path, "data");
    if (!medium)
        return false;
    medium->bytes = cs_data_url_is(data, n) ? decode_data_url(r, medium->param, data, n)
                                            : decode_base64(r, medium->param, data, n);
    return medium->bytes != NULL;
}

static const part_kind part_kinds[] = {
    {"image_url", read_url_part, CS_MODALITY_IMAGE, "image"},
    {"audio_url", read_url_part, CS_MODALITY_AUDIO, "audio"},
    {"video_url", read_url_part, CS_MODALITY_VIDEO, "video"},
    {"input_audio", read_input_audio_part, CS_MODALITY_AUDIO, "audio"},
};

static bool read_text_part(reader *r, const char *path, json_t *part, json_t *parts)
{
    static const char *const members[] = {"type", "text", NULL};
    size_t n;
    const char *text = string_member(r, path, part, "text", &n);
    if (!text || !only_members(r, path, part, members))
        return false;
    json_array_append_new(parts,
                          json_pack("{s:s,s:o}", "type", "text", "text", json_stringn(text, n)));
    return true;
}

/* Appends the part as templates see it. */
static bool read_part(reader *r, const char *path, json_t *part, bool takes_media, json_t *parts)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    if (!type)
        return cs_fault_expected(r->fault, path, "an object with a type", part);
    if (strcmp(type, "text") == 0)
        return read_text_part(r, path, part, parts);
    for (size_t i = 0; i < G_N_ELEMENTS(part_kinds); i++) {
        const part_kind *kind = &part_kinds[i];
        const char *const members[] = {"type", kind->type, NULL};
        if (strcmp(type, kind->type) != 0)
            continue;
        if (!takes_media)
            return cs_fault_set(r->fault, CS_ERROR_UNSUPPORTED, path,
                                "%s belongs into a user's or system message", type);
        if (!only_members(r, path, part, members))
            return false;
        g_autofree char *inner = g_strdup_printf("%s.%s", path, kind->type);
        json_array_append_new(parts, json_pack("{s:s}", "type", kind->reduced));
        return kind->read(r, kind, inner, json_object_get(part, kind->type));
    }
    g_autofree char *param = g_strdup_printf("%s.type", path);
    return cs_fault_set(
        r->fault, CS_ERROR_UNSUPPORTED, param,
        "expected text, image_url, input_audio, audio_url or video_url; found \"%.40s\"", type);
}

/* A new reference, or NULL with a fault. */
static json_t *read_content(reader *r, const char *path, json_t *content, bool takes_media)
{
    if (json_is_string(content)) {
        size_t n;
        const char *text = cs_body_string(r->body, content, &n);
        return json_stringn(text, n);
    }
    size_t n_parts = json_array_size(content);
    if (!json_is_array(content) || n_parts == 0 || n_parts > MAX_PARTS) {
        cs_fault_expected(r->fault, path, "a string or an array of 1 to 1024 parts", content);
        return NULL;
    }
    json_t *parts = json_array();
    size_t i;
    json_t *part;
    json_array_foreach (content, i, part) {
        g_autofree char *part_path = g_strdup_printf("%s[%zu]", path, i);
        if (!read_part(r, part_path, part, takes_media, parts)) {
            json_decref(parts);
            return NULL;
        }
    }
    return parts;
}

/* ---- messages ---- */

/* [{"id", "type": "function", "function": {"name", "arguments": "JSON"}}]; templates want arguments
 * as an object. */
static json_t *read_tool_calls(reader *r, const char *path, json_t *calls)
{
    json_t *copy = cs_body_restore(r->body, calls);
    size_t i;
    json_t *call;
    json_array_foreach (copy, i, call) {
        g_autofree char *param = g_strdup_printf("%s[%zu].function", path, i);
        json_t *function = json_object_get(call, "function");
        if (!json_is_string(json_object_get(function, "name"))) {
            cs_fault_expected(r->fault, param, "an object with a name and arguments", function);
            break;
        }
        json_t *arguments = json_object_get(function, "arguments");
        json_t *parsed = json_is_string(arguments) ? json_loads(json_string_value(arguments),
                                                                JSON_REJECT_DUPLICATES, NULL)
                                                   : json_incref(arguments);
        if (!json_is_object(parsed)) {
            json_decref(parsed);
            cs_fault_expected(r->fault, param, "arguments that are a JSON object", arguments);
            break;
        }
        json_object_set_new(function, "arguments", parsed);
    }
    if (!json_is_array(copy) || json_array_size(copy) == 0)
        cs_fault_expected(r->fault, path, "an array of tool calls", calls);
    if (r->fault->error)
        g_clear_pointer(&copy, json_decref);
    return copy;
}

typedef struct {
    const char *role;
    bool takes_media;
    const char *const *members;
} role_rule;

static const char *const plain_members[] = {"role", "content", "name", NULL};
static const char *const assistant_members[] = {"role",       "content", "name", "refusal",
                                                "tool_calls", "audio",   NULL};
static const char *const tool_members[] = {"role", "content", "name", "tool_call_id", NULL};

static const role_rule role_rules[] = {
    {"system", true, plain_members},
    {"developer", true, plain_members}, /* the OpenAI API's newer word for system */
    {"user", true, plain_members},
    {"assistant", false, assistant_members},
    {"tool", false, tool_members},
};

static const role_rule *find_role(const char *role)
{
    for (size_t i = 0; role && i < G_N_ELEMENTS(role_rules); i++)
        if (strcmp(role_rules[i].role, role) == 0)
            return &role_rules[i];
    return NULL;
}

/* Members that are copied as they are: name, tool_call_id. */
static bool copy_string(reader *r, const char *path, json_t *from, const char *key, json_t *to)
{
    json_t *value = json_object_get(from, key);
    if (!value || json_is_null(value))
        return true;
    size_t n;
    const char *text = string_member(r, path, from, key, &n);
    return text && json_object_set_new(to, key, json_stringn(text, n)) == 0;
}

/* What an assistant's message says: of a spoken answer that is sent back whole it is the
 * transcript. */
static json_t *said(reader *r, const char *path, json_t *message)
{
    json_t *content = json_object_get(message, "content");
    json_t *audio = json_object_get(message, "audio");
    if (!json_is_object(audio) || (content && !json_is_null(content)))
        return content;
    json_t *transcript = json_object_get(audio, "transcript");
    if (!json_is_string(transcript))
        cs_fault_set(r->fault, CS_ERROR_UNSUPPORTED, path,
                     "audio of an earlier answer is not kept; send its transcript with it, or "
                     "as content");
    return transcript;
}

static bool read_message_members(reader *r, const char *path, json_t *message,
                                 const role_rule *rule, json_t *out)
{
    g_autofree char *content_path = g_strdup_printf("%s.content", path);
    g_autofree char *calls_path = g_strdup_printf("%s.tool_calls", path);
    json_t *content = said(r, path, message);
    if (r->fault->error)
        return false;
    json_t *calls = json_object_get(message, "tool_calls");
    bool has_calls = calls && !json_is_null(calls);
    if (has_calls && (!content || json_is_null(content)))
        content = NULL; /* an assistant that called tools may have said nothing */
    json_t *read = content || !has_calls ? read_content(r, content_path, content, rule->takes_media)
                                         : json_string("");
    if (!read)
        return false;
    json_object_set_new(out, "content", read);
    if (has_calls) {
        json_t *copy = read_tool_calls(r, calls_path, calls);
        if (!copy)
            return false;
        json_object_set_new(out, "tool_calls", copy);
    }
    return copy_string(r, path, message, "name", out) &&
           copy_string(r, path, message, "tool_call_id", out);
}

static bool read_message(reader *r, const char *path, json_t *message)
{
    if (!json_is_object(message))
        return cs_fault_expected(r->fault, path, "an object with role and content", message);
    const role_rule *rule = find_role(json_string_value(json_object_get(message, "role")));
    if (!rule) {
        g_autofree char *param = g_strdup_printf("%s.role", path);
        return cs_fault_expected(r->fault, param, "system, developer, user, assistant or tool",
                                 json_object_get(message, "role"));
    }
    if (!only_members(r, path, message, rule->members))
        return false;
    json_t *out = json_object();
    json_object_set_new(out, "role",
                        json_string(strcmp(rule->role, "developer") == 0 ? "system" : rule->role));
    json_array_append_new(r->content->messages, out);
    return read_message_members(r, path, message, rule, out);
}

bool cs_content_read_messages(cs_content *content, const cs_body *body,
                              const cs_media_policy *policy, cs_fault *fault)
{
    *content = (cs_content){.messages = json_array(),
                            .media = g_ptr_array_new_with_free_func(medium_free)};
    reader r = {content, body, policy, fault};
    json_t *messages = json_object_get(body->root, "messages");
    if (!json_is_array(messages) || json_array_size(messages) == 0 ||
        json_array_size(messages) > MAX_MESSAGES)
        return cs_fault_expected(fault, "messages", "an array of 1 to 4096 messages", messages);
    size_t i;
    json_t *message;
    json_array_foreach (messages, i, message) {
        g_autofree char *path = g_strdup_printf("messages[%zu]", i);
        if (!read_message(&r, path, message))
            return false;
    }
    return true;
}

/* ---- prompts ---- */

static bool is_id_array(json_t *value)
{
    return json_is_array(value) && json_is_integer(json_array_get(value, 0));
}

static bool add_text(reader *r, const char *path, json_t *value)
{
    if (!json_is_string(value))
        return cs_fault_expected(r->fault, path, "a string", value);
    size_t n;
    const char *text = cs_body_string(r->body, value, &n);
    if (n == 0)
        return cs_fault_set(r->fault, CS_ERROR_INVALID, path,
                            "expected a prompt that is not empty");
    g_ptr_array_add(r->content->prompts, g_strndup(text, n));
    return true;
}

static bool add_ids(reader *r, const char *path, json_t *value, uint32_t vocab_size)
{
    size_t n = json_array_size(value);
    if (!is_id_array(value) || n > MAX_PROMPT_IDS)
        return cs_fault_expected(r->fault, path, "an array of token ids", value);
    GArray *ids = g_array_sized_new(FALSE, FALSE, sizeof(int32_t), (guint)n);
    g_ptr_array_add(r->content->prompt_ids, ids);
    size_t i;
    json_t *item;
    json_array_foreach (value, i, item) {
        int32_t id = (int32_t)json_integer_value(item);
        if (!json_is_integer(item) || json_integer_value(item) < 0 ||
            json_integer_value(item) >= vocab_size) {
            g_autofree char *param = g_strdup_printf("%s[%zu]", path, i);
            g_autofree char *expected = g_strdup_printf("a token id in [0, %u)", vocab_size);
            return cs_fault_expected(r->fault, param, expected, item);
        }
        g_array_append_val(ids, id);
    }
    return true;
}

static bool add_prompt(reader *r, const char *path, json_t *value, uint32_t vocab_size)
{
    return r->content->prompts ? add_text(r, path, value) : add_ids(r, path, value, vocab_size);
}

bool cs_content_read_prompt(cs_content *content, const cs_body *body, uint32_t vocab_size,
                            cs_fault *fault)
{
    *content = (cs_content){0};
    reader r = {content, body, NULL, fault};
    json_t *prompt = json_object_get(body->root, "prompt");
    bool several = json_is_array(prompt) && !is_id_array(prompt);
    if (!json_is_string(prompt) && (!json_is_array(prompt) || json_array_size(prompt) == 0))
        return cs_fault_expected(fault, "prompt", "a string, an array of strings, or token ids",
                                 prompt);
    if (several && json_array_size(prompt) > MAX_PROMPTS)
        return cs_fault_set(fault, CS_ERROR_TOO_LARGE, "prompt",
                            "a request takes at most %d prompts", MAX_PROMPTS);
    if (json_is_array(several ? json_array_get(prompt, 0) : prompt))
        content->prompt_ids = g_ptr_array_new_with_free_func((GDestroyNotify)g_array_unref);
    else
        content->prompts = g_ptr_array_new_with_free_func(g_free);
    if (!several)
        return add_prompt(&r, "prompt", prompt, vocab_size);
    size_t i;
    json_t *item;
    json_array_foreach (prompt, i, item) {
        g_autofree char *path = g_strdup_printf("prompt[%zu]", i);
        if (!add_prompt(&r, path, item, vocab_size))
            return false;
    }
    return true;
}
