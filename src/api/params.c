#include "api/params.h"

#include <math.h>
#include <string.h>

#define MAX_STOPS 16
#define MAX_STOP_BYTES 1024
#define MAX_VOICE_BYTES 256
#define MAX_BIASES 1024
#define MAX_CHOICES 64
/* Of a speech: about half an hour. The OpenAI API takes 4096. */
#define MAX_INPUT_CHARACTERS 32768
#define MAX_INSTRUCTIONS_CHARACTERS 4096

/* ---- faults ---- */

void cs_fault_clear(cs_fault *fault)
{
    g_clear_error(&fault->error);
    g_clear_pointer(&fault->param, g_free);
}

bool cs_fault_set(cs_fault *fault, cs_error_code code, const char *param, const char *format, ...)
{
    if (fault->error)
        return false;
    va_list args;
    va_start(args, format);
    g_autofree char *sentence = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *whole =
        g_strdup_printf("%s%s%s", param ? param : "", param ? ": " : "", sentence);
    /* What came from outside was cut to a length, perhaps inside of a character. */
    g_autofree char *valid = g_utf8_make_valid(whole, -1);
    fault->param = param ? g_utf8_make_valid(param, -1) : NULL;
    return cs_fail(&fault->error, code, "%s", valid);
}

#define SHOWN_BYTES 60

/* A string as it came: long ones are elsewhere in the body. */
static char *dump_string(const cs_body *body, const json_t *string)
{
    size_t n;
    const char *text = cs_body_string(body, string, &n);
    g_autofree char *shown = g_utf8_make_valid(text, (gssize)MIN(n, SHOWN_BYTES));
    json_t *copy = json_string(shown);
    char *dumped = json_dumps(copy, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    json_decref(copy);
    return dumped;
}

/* Inside of arrays and objects long strings are "...". */
static void hide_lifted(const cs_body *body, char *dumped)
{
    char *at = dumped;
    while ((at = strstr(at, body->marker))) {
        char *end = strchr(at, '"');
        if (!end || end - at < 3)
            break;
        memcpy(at, "...", 3);
        memmove(at + 3, end, strlen(end) + 1);
    }
}

bool cs_fault_expected(cs_fault *fault, const char *param, const char *expected,
                       const json_t *found)
{
    char *dumped = NULL;
    if (fault->body && json_is_string(found))
        dumped = dump_string(fault->body, found);
    else if (found)
        dumped = json_dumps(found, JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    if (fault->body && dumped)
        hide_lifted(fault->body, dumped);
    cs_fault_set(fault, CS_ERROR_INVALID, param, "expected %s, found %.*s%s", expected, SHOWN_BYTES,
                 dumped ? dumped : "nothing", dumped && strlen(dumped) > SHOWN_BYTES ? "..." : "");
    free(dumped);
    return false;
}

/* ---- fields with a reader of their own ---- */

typedef struct {
    const cs_body *body;
    cs_params *params;
    cs_fault *fault;
} reader;

static bool read_model(reader *r, const char *name, json_t *value)
{
    size_t n;
    const char *text = json_is_string(value) ? cs_body_string(r->body, value, &n) : NULL;
    if (!text || n == 0)
        return cs_fault_expected(r->fault, name, "the model's id", value);
    r->params->model = g_strndup(text, n);
    return true;
}

static bool read_user(reader *r, const char *name, json_t *value)
{
    size_t n;
    const char *text = json_is_string(value) ? cs_body_string(r->body, value, &n) : NULL;
    if (!text || n > 256)
        return cs_fault_expected(r->fault, name, "a string of at most 256 bytes", value);
    r->params->user = g_strndup(text, n);
    return true;
}

static bool add_stop(reader *r, const char *name, json_t *value)
{
    size_t n;
    const char *text = json_is_string(value) ? cs_body_string(r->body, value, &n) : NULL;
    if (!text || n == 0 || n > MAX_STOP_BYTES)
        return cs_fault_expected(r->fault, name, "a string of 1 to 1024 bytes", value);
    g_ptr_array_add(r->params->stop, g_strndup(text, n));
    return true;
}

static bool read_stop(reader *r, const char *name, json_t *value)
{
    if (json_is_array(value) && json_array_size(value) > MAX_STOPS)
        return cs_fault_set(r->fault, CS_ERROR_INVALID, name,
                            "expected at most %d strings, found %zu", MAX_STOPS,
                            json_array_size(value));
    r->params->stop = g_ptr_array_new_with_free_func(g_free);
    size_t i;
    json_t *item;
    json_array_foreach (value, i, item)
        if (!add_stop(r, name, item))
            return false;
    if (!json_is_array(value) && !add_stop(r, name, value))
        return false;
    if (r->params->stop->len == 0)
        g_clear_pointer(&r->params->stop, g_ptr_array_unref);
    else
        g_ptr_array_add(r->params->stop, NULL);
    return true;
}

static bool read_logit_bias(reader *r, const char *name, json_t *value)
{
    if (!json_is_object(value) || json_object_size(value) > MAX_BIASES)
        return cs_fault_expected(r->fault, name, "an object of at most 1024 token ids", value);
    r->params->biases = g_array_new(FALSE, FALSE, sizeof(cs_token_bias));
    const char *key;
    json_t *item;
    json_object_foreach (value, key, item) {
        g_autofree char *path = g_strdup_printf("%s.%.20s", name, key);
        gint64 id;
        if (!g_ascii_string_to_signed(key, 10, 0, INT32_MAX, &id, NULL) ||
            (key[0] == '0' && key[1]) || key[0] == '+')
            return cs_fault_set(r->fault, CS_ERROR_INVALID, path, "expected a token id as the key");
        if (!json_is_number(item) || fabs(json_number_value(item)) > 100)
            return cs_fault_expected(r->fault, path, "a number in [-100, 100]", item);
        /* As in the OpenAI API, -100 bans a token. */
        double bias = json_number_value(item);
        cs_token_bias entry = {(int32_t)id, bias == -100 ? -INFINITY : (float)bias};
        g_array_append_val(r->params->biases, entry);
    }
    return true;
}

/* An object with one boolean member. */
static bool read_flag_object(reader *r, const char *name, json_t *value, const char *member,
                             bool *flag)
{
    if (!json_is_object(value))
        return cs_fault_expected(r->fault, name, "an object", value);
    const char *key;
    json_t *item;
    json_object_foreach (value, key, item) {
        g_autofree char *path = g_strdup_printf("%s.%.60s", name, key);
        if (strcmp(key, member) != 0)
            return cs_fault_set(r->fault, CS_ERROR_UNSUPPORTED, path,
                                "is not supported; %s takes %s", name, member);
        if (!json_is_boolean(item) && !json_is_null(item))
            return cs_fault_expected(r->fault, path, "true or false", item);
        *flag = json_is_true(item);
    }
    return true;
}

static bool read_stream_options(reader *r, const char *name, json_t *value)
{
    r->params->has_stream_options = true;
    return read_flag_object(r, name, value, "include_usage", &r->params->include_usage);
}

static bool read_processor(reader *r, const char *name, json_t *value)
{
    return read_flag_object(r, name, value, "use_audio_in_video", &r->params->use_audio_in_video);
}

static bool read_template_arguments(reader *r, const char *name, json_t *value)
{
    if (!json_is_object(value) || json_object_size(value) > 64)
        return cs_fault_expected(r->fault, name, "an object of at most 64 members", value);
    static const char *const taken[] = {"messages", "tools", "add_generation_prompt", "bos_token",
                                        "eos_token"};
    for (size_t i = 0; i < G_N_ELEMENTS(taken); i++)
        if (json_object_get(value, taken[i]))
            return cs_fault_set(r->fault, CS_ERROR_INVALID, name, "%s is set by the server",
                                taken[i]);
    r->params->template_arguments = cs_body_restore(r->body, value);
    return true;
}

/* ---- speech ---- */

static bool read_modalities(reader *r, const char *name, json_t *value)
{
    bool text = false;
    size_t i;
    json_t *item;
    json_array_foreach (value, i, item) {
        const char *word = json_string_value(item);
        bool *wanted = g_strcmp0(word, "text") == 0    ? &text
                       : g_strcmp0(word, "audio") == 0 ? &r->params->speaks
                                                       : NULL;
        if (!wanted || *wanted)
            return cs_fault_expected(r->fault, name, "[\"text\"] or [\"text\", \"audio\"]", value);
        *wanted = true;
    }
    if (!text)
        return cs_fault_expected(r->fault, name, "[\"text\"] or [\"text\", \"audio\"]", value);
    return true;
}

/* A name, or {"id": name}. */
static bool read_voice(reader *r, const char *name, json_t *value)
{
    if (json_is_object(value) && json_object_size(value) == 1)
        value = json_object_get(value, "id");
    size_t n;
    const char *voice = json_is_string(value) ? cs_body_string(r->body, value, &n) : NULL;
    if (!voice || n == 0 || n > MAX_VOICE_BYTES)
        return cs_fault_expected(r->fault, name, "a voice's name", value);
    r->params->voice = g_strndup(voice, n);
    return true;
}

static bool read_format(reader *r, const char *name, json_t *value)
{
    const char *word = json_string_value(value);
    if (word && strcmp(word, "pcm") == 0)
        word = "pcm16";
    if (!word || !cs_audio_format_parse(word, &r->params->audio_format))
        return cs_fault_expected(r->fault, name, "wav, mp3, flac, opus or pcm16", value);
    return true;
}

static bool read_audio(reader *r, const char *name, json_t *value)
{
    const char *key;
    json_t *item;
    if (!json_is_object(value))
        return cs_fault_expected(r->fault, name, "an object with voice and format", value);
    r->params->has_audio = true;
    json_object_foreach (value, key, item) {
        g_autofree char *path = g_strdup_printf("%s.%.40s", name, key);
        bool is_voice = strcmp(key, "voice") == 0;
        if (!is_voice && strcmp(key, "format") != 0)
            return cs_fault_set(r->fault, CS_ERROR_UNSUPPORTED, path,
                                "is not supported; audio takes voice and format");
        if (!(is_voice ? read_voice : read_format)(r, path, item))
            return false;
    }
    return true;
}

static bool read_characters(reader *r, const char *name, json_t *value, glong most, char **text)
{
    size_t n;
    const char *bytes = json_is_string(value) ? cs_body_string(r->body, value, &n) : NULL;
    if (!bytes)
        return cs_fault_expected(r->fault, name, "a string", value);
    if (!g_utf8_validate_len(bytes, n, NULL))
        return cs_fault_set(r->fault, CS_ERROR_INVALID, name, "expected UTF-8");
    glong n_characters = g_utf8_strlen(bytes, (gssize)n);
    if (n_characters > most)
        return cs_fault_set(r->fault, CS_ERROR_INVALID, name,
                            "expected at most %ld characters, found %ld", most, n_characters);
    *text = g_strndup(bytes, n);
    return true;
}

static bool read_input(reader *r, const char *name, json_t *value)
{
    return read_characters(r, name, value, MAX_INPUT_CHARACTERS, &r->params->input);
}

static bool read_instructions(reader *r, const char *name, json_t *value)
{
    return read_characters(r, name, value, MAX_INSTRUCTIONS_CHARACTERS, &r->params->instructions);
}

static bool read_stream_format(reader *r, const char *name, json_t *value)
{
    const char *word = json_string_value(value);
    r->params->sound_events = g_strcmp0(word, "sse") == 0;
    r->params->stream = true;
    return r->params->sound_events || g_strcmp0(word, "audio") == 0 ||
           cs_fault_expected(r->fault, name, "audio or sse", value);
}

/* ---- the table ---- */

typedef enum {
    CONTENT, /* read elsewhere */
    INTEGER, /* int64_t at `offset`, in [min, max] */
    NUMBER,  /* double at `offset`, in [min, max] */
    BOOLEAN, /* bool at `offset` */
    SPECIAL, /* `read` */
    ONLY,    /* one of the values of the JSON array `values`; others are refused with `reason` */
} field_kind;

typedef struct {
    const char *name;
    int endpoints;
    field_kind kind;
    size_t offset;
    double min, max;
    size_t has_offset; /* of a bool that tells whether the field was given; 0: none */
    bool (*read)(reader *r, const char *name, json_t *value);
    const char *values;
    const char *reason;
} field;

#define CHAT CS_ENDPOINT_CHAT
#define COMPLETION CS_ENDPOINT_COMPLETION
#define SPEECH CS_ENDPOINT_SPEECH
#define BOTH (CHAT | COMPLETION)
#define ALL (CHAT | COMPLETION | SPEECH)
#define AT(member) .offset = offsetof(cs_params, member)
#define HAS(member) .has_offset = offsetof(cs_params, has_##member)

static const char tools_reason[] = "answers are not parsed into tool calls";
static const char nothing_kept[] = "nothing of a request is kept";

static const field fields[] = {
    {"messages", CHAT, CONTENT},
    {"prompt", COMPLETION, CONTENT},
    {"model", ALL, SPECIAL, .read = read_model},
    /* sampling */
    {"temperature", BOTH, NUMBER, AT(temperature), 0, 2, HAS(temperature)},
    {"top_p", BOTH, NUMBER, AT(top_p), 1e-6, 1, HAS(top_p)},
    {"top_k", BOTH, INTEGER, AT(top_k), -1, 1000000, HAS(top_k)}, /* -1 and 0: off */
    {"min_p", BOTH, NUMBER, AT(min_p), 0, 1, HAS(min_p)},
    {"repetition_penalty", BOTH, NUMBER, AT(repetition_penalty), 0.01, 10, HAS(repetition_penalty)},
    {"presence_penalty", BOTH, NUMBER, AT(presence_penalty), -2, 2},
    {"frequency_penalty", BOTH, NUMBER, AT(frequency_penalty), -2, 2},
    {"seed", ALL, INTEGER, AT(seed), (double)INT64_MIN, (double)INT64_MAX, HAS(seed)},
    {"logit_bias", BOTH, SPECIAL, .read = read_logit_bias},
    /* length and end */
    {"max_tokens", BOTH, INTEGER, AT(max_tokens), 1, 1 << 24, HAS(max_tokens)},
    {"max_completion_tokens", CHAT, INTEGER, AT(max_completion_tokens), 1, 1 << 24,
     HAS(max_completion_tokens)},
    {"stop", BOTH, SPECIAL, .read = read_stop},
    {"ignore_eos", BOTH, BOOLEAN, AT(ignore_eos)},
    /* shape of the answer */
    {"n", BOTH, INTEGER, AT(n), 1, MAX_CHOICES},
    {"stream", ALL, BOOLEAN, AT(stream)},
    {"stream_options", BOTH, SPECIAL, .read = read_stream_options},
    {"logprobs", CHAT, BOOLEAN, AT(logprobs)},
    {"top_logprobs", CHAT, INTEGER, AT(top_logprobs), 0, CS_MAX_LOGPROBS, HAS(top_logprobs)},
    {"logprobs", COMPLETION, INTEGER, AT(completion_logprobs), 0, CS_MAX_LOGPROBS,
     HAS(completion_logprobs)},
    {"echo", COMPLETION, BOOLEAN, AT(echo)},
    /* how the prompt is made */
    {"mm_processor_kwargs", CHAT, SPECIAL, .read = read_processor},
    {"use_audio_in_video", CHAT, BOOLEAN, AT(use_audio_in_video)},
    {"chat_template_kwargs", CHAT, SPECIAL, .read = read_template_arguments},
    /* speech */
    {"modalities", CHAT, SPECIAL, .read = read_modalities},
    {"audio", CHAT, SPECIAL, .read = read_audio},
    {"input", SPEECH, SPECIAL, .read = read_input},
    {"voice", SPEECH, SPECIAL, .read = read_voice},
    {"instructions", SPEECH, SPECIAL, .read = read_instructions},
    {"response_format", SPEECH, SPECIAL, .read = read_format},
    {"stream_format", SPEECH, SPECIAL, .read = read_stream_format},
    /* for the log */
    {"user", ALL, SPECIAL, .read = read_user},
    /* not served, but for the value that asks for nothing */
    {"speed", SPEECH, ONLY, .values = "[1, 1.0]", .reason = "the model speaks at its own speed"},
    {"response_format", CHAT, ONLY, .values = "[{\"type\": \"text\"}]",
     .reason = "answers are free text"},
    {"tools", CHAT, ONLY, .values = "[[]]", .reason = tools_reason},
    {"tool_choice", CHAT, ONLY, .values = "[\"none\", \"auto\"]", .reason = tools_reason},
    {"parallel_tool_calls", CHAT, ONLY, .values = "[true, false]", .reason = tools_reason},
    {"functions", CHAT, ONLY, .values = "[[]]", .reason = tools_reason},
    {"function_call", CHAT, ONLY, .values = "[\"none\", \"auto\"]", .reason = tools_reason},
    {"service_tier", BOTH, ONLY, .values = "[\"auto\", \"default\"]",
     .reason = "there is one tier"},
    {"store", CHAT, ONLY, .values = "[false]", .reason = nothing_kept},
    {"metadata", CHAT, ONLY, .values = "[{}]", .reason = nothing_kept},
    {"best_of", COMPLETION, ONLY, .values = "[1]", .reason = "ask for n answers and choose"},
    {"suffix", COMPLETION, ONLY, .values = "[\"\"]",
     .reason = "the model continues texts, it does not fill gaps"},
    {"skip_special_tokens", BOTH, ONLY, .values = "[true]", .reason = "special tokens are no text"},
    {"add_generation_prompt", CHAT, ONLY, .values = "[true]", .reason = "the model answers"},
};

static const field *field_find(const char *name, cs_endpoint endpoint)
{
    for (size_t i = 0; i < G_N_ELEMENTS(fields); i++)
        if ((fields[i].endpoints & (int)endpoint) && strcmp(fields[i].name, name) == 0)
            return &fields[i];
    return NULL;
}

static bool read_integer(reader *r, const field *f, json_t *value)
{
    /* 1.0 is an integer to JSON, and some clients write it so. */
    double number = json_number_value(value);
    bool whole = json_is_integer(value) ||
                 (json_is_real(value) && floor(number) == number && fabs(number) < 1e15);
    if (whole && number >= f->min && number <= f->max) {
        *(int64_t *)((char *)r->params + f->offset) =
            json_is_integer(value) ? json_integer_value(value) : (int64_t)number;
        return true;
    }
    g_autofree char *expected = g_strdup_printf("an integer in [%.0f, %.0f]", f->min, f->max);
    return cs_fault_expected(r->fault, f->name, expected, value);
}

static bool read_number(reader *r, const field *f, json_t *value)
{
    double number = json_number_value(value);
    if (json_is_number(value) && number >= f->min && number <= f->max) {
        *(double *)((char *)r->params + f->offset) = number;
        return true;
    }
    g_autofree char *expected = g_strdup_printf("a number in [%g, %g]", f->min, f->max);
    return cs_fault_expected(r->fault, f->name, expected, value);
}

static bool read_only(reader *r, const field *f, json_t *value)
{
    json_t *values = json_loads(f->values, 0, NULL);
    bool found = false;
    size_t i;
    json_t *allowed;
    json_array_foreach (values, i, allowed)
        found = found || json_equal(allowed, value);
    json_decref(values);
    if (found)
        return true;
    if (strcmp(f->values, "[]") == 0)
        return cs_fault_set(r->fault, CS_ERROR_UNSUPPORTED, f->name, "is not supported: %s",
                            f->reason);
    return cs_fault_set(r->fault, CS_ERROR_UNSUPPORTED, f->name, "only one of %s is supported: %s",
                        f->values, f->reason);
}

static bool read_field(reader *r, const field *f, json_t *value)
{
    if (f->has_offset)
        *(bool *)((char *)r->params + f->has_offset) = true;
    switch (f->kind) {
    case INTEGER:
        return read_integer(r, f, value);
    case NUMBER:
        return read_number(r, f, value);
    case BOOLEAN:
        if (!json_is_boolean(value))
            return cs_fault_expected(r->fault, f->name, "true or false", value);
        *(bool *)((char *)r->params + f->offset) = json_is_true(value);
        return true;
    case SPECIAL:
        return f->read(r, f->name, value);
    case ONLY:
        return read_only(r, f, value);
    case CONTENT:
        return true;
    }
    return true;
}

/* Rules over more than one field. */
static bool check_together(const cs_params *p, cs_fault *fault)
{
    if (p->has_max_tokens && p->has_max_completion_tokens &&
        p->max_tokens != p->max_completion_tokens)
        return cs_fault_set(fault, CS_ERROR_INVALID, "max_tokens",
                            "differs from max_completion_tokens; give one of them");
    if (p->has_stream_options && !p->stream)
        return cs_fault_set(fault, CS_ERROR_INVALID, "stream_options",
                            "is for \"stream\": true only");
    if (p->has_top_logprobs && !p->logprobs)
        return cs_fault_set(fault, CS_ERROR_INVALID, "top_logprobs", "needs \"logprobs\": true");
    if (p->has_audio && !p->speaks)
        return cs_fault_set(fault, CS_ERROR_INVALID, "audio",
                            "is for \"modalities\": [\"text\", \"audio\"] only");
    if (p->speaks && p->n != 1)
        return cs_fault_set(fault, CS_ERROR_UNSUPPORTED, "n",
                            "of %" G_GINT64_FORMAT " answers none can be spoken; ask for one",
                            p->n);
    if (p->echo && p->has_completion_logprobs)
        return cs_fault_set(fault, CS_ERROR_UNSUPPORTED, "logprobs",
                            "is not supported together with echo");
    return true;
}

bool cs_params_read(cs_params *params, const cs_body *body, cs_endpoint endpoint, cs_fault *fault)
{
    /* What the OpenAI API sends for speeches that do not say; sound in a chat names its own. */
    bool mp3 = endpoint == CS_ENDPOINT_SPEECH;
    *params = (cs_params){.n = 1, .audio_format = mp3 ? CS_AUDIO_MP3 : CS_AUDIO_WAV};
    reader r = {body, params, fault};
    const char *name;
    json_t *value;
    json_object_foreach (body->root, name, value) {
        const field *f = field_find(name, endpoint);
        if (!f) {
            g_autofree char *shown = g_strdup_printf("%.60s", name);
            return cs_fault_set(fault, CS_ERROR_UNSUPPORTED, shown,
                                "there is no such parameter here");
        }
        if (!json_is_null(value) && !read_field(&r, f, value))
            return false;
    }
    if (endpoint == CS_ENDPOINT_SPEECH && !params->input)
        return cs_fault_expected(fault, "input", "a text to be read aloud", NULL);
    return check_together(params, fault);
}

void cs_params_clear(cs_params *params)
{
    g_free(params->model);
    g_free(params->user);
    g_free(params->voice);
    g_free(params->input);
    g_free(params->instructions);
    g_clear_pointer(&params->stop, g_ptr_array_unref);
    g_clear_pointer(&params->biases, g_array_unref);
    g_clear_pointer(&params->template_arguments, json_decref);
}

void cs_params_sampling(const cs_params *p, const cs_pipeline *pipeline, cs_sampling *s)
{
    cs_pipeline_defaults(pipeline, s);
    s->temperature = p->has_temperature ? (float)p->temperature : s->temperature;
    s->top_p = p->has_top_p ? (float)p->top_p : s->top_p;
    s->top_k = p->has_top_k ? (int32_t)MAX(p->top_k, 0) : s->top_k;
    s->min_p = p->has_min_p ? (float)p->min_p : s->min_p;
    s->repetition_penalty =
        p->has_repetition_penalty ? (float)p->repetition_penalty : s->repetition_penalty;
    s->presence_penalty = (float)p->presence_penalty;
    s->frequency_penalty = (float)p->frequency_penalty;
    s->has_seed = p->has_seed;
    s->seed = (uint64_t)p->seed;
    s->max_tokens =
        (uint32_t)(p->has_max_completion_tokens ? p->max_completion_tokens : p->max_tokens);
    s->n_logprobs = p->logprobs                  ? (int32_t)p->top_logprobs
                    : p->has_completion_logprobs ? (int32_t)p->completion_logprobs
                                                 : -1;
    s->ignore_eos = p->ignore_eos;
    s->n_biases = p->biases ? p->biases->len : 0;
    s->biases = p->biases ? (const cs_token_bias *)p->biases->data : NULL;
    s->stop = p->stop ? (const char *const *)p->stop->pdata : NULL;
}
