/* cornserve run: asks a model from the terminal, once or in a conversation. */
#include "base/error.h"
#include "base/os.h"
#include "cli/model_options.h"
#include "media/encode.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MAX_FILE_BYTES (256u << 20)
#define MAX_STDIN_BYTES (16u << 20)

static cs_cli_model_options model_options;
static char **images, **sounds, **videos, **stops;
static char *system_text, *speak_file, *voice_name;
static double temperature = -1, top_p = -1, min_p = -1;
static int top_k = -1, max_tokens = 0;
static gint64 seed = -1;
static gboolean show_usage, audio_in_video;

static const GOptionEntry entries[] = {
    {"image", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &images, "An image to show; may be repeated",
     "FILE"},
    {"audio", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &sounds, "A sound to play; may be repeated",
     "FILE"},
    {"video", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &videos, "A video to show; may be repeated",
     "FILE"},
    {"use-audio-in-video", 0, 0, G_OPTION_ARG_NONE, &audio_in_video, "Also listen to the videos",
     NULL},
    {"system", 0, 0, G_OPTION_ARG_STRING, &system_text, "What the model is told before all else",
     "TEXT"},
    {"temperature", 't', 0, G_OPTION_ARG_DOUBLE, &temperature,
     "0: the likeliest token each time (the model's default)", "X"},
    {"top-p", 0, 0, G_OPTION_ARG_DOUBLE, &top_p, "Draw from the likeliest tokens of this mass",
     "X"},
    {"top-k", 0, 0, G_OPTION_ARG_INT, &top_k, "Draw from this many tokens; 0: all", "N"},
    {"min-p", 0, 0, G_OPTION_ARG_DOUBLE, &min_p,
     "Drop tokens less likely than this share of the likeliest", "X"},
    {"max-tokens", 'n', 0, G_OPTION_ARG_INT, &max_tokens, "Longest answer (up to the context)",
     "N"},
    {"seed", 0, 0, G_OPTION_ARG_INT64, &seed, "The same seed draws the same answer", "N"},
    {"stop", 0, 0, G_OPTION_ARG_STRING_ARRAY, &stops,
     "End the answer before this text; may be repeated", "TEXT"},
    {"speak", 0, 0, G_OPTION_ARG_FILENAME, &speak_file,
     "Also speak the answer: a .wav, .mp3, .flac, .opus or .pcm16 file", "FILE"},
    {"voice", 0, 0, G_OPTION_ARG_STRING, &voice_name, "Who speaks (the model's own choice)",
     "NAME"},
    {"usage", 0, 0, G_OPTION_ARG_NONE, &show_usage, "Afterwards show token counts and speed", NULL},
    CS_CLI_MODEL_ENTRIES(model_options),
    {NULL},
};

static const cs_cli_spec spec = {
    .name = "run",
    .arguments = "DIR [PROMPT]",
    .description = "Asks the model in DIR and prints its answer as it comes. PROMPT - is read from "
                   "standard input,\n"
                   "\"\" lets the media ask by themselves (a spoken question); without PROMPT a "
                   "conversation begins (an empty line or Ctrl-D ends it).",
    .example = "  cornserve run ~/models/Qwen2.5-Omni-3B \"What is in the picture, and what do you "
               "hear?\" \\\n"
               "    --image photo.jpg --audio voice.wav",
    .entries = entries,
    .min_arguments = 1,
    .max_arguments = 2,
};

/* ---- the request ---- */

static bool add_media(json_t *parts, GArray *media, cs_modality modality, const char *word,
                      char **files, GError **error)
{
    for (char **file = files; file && *file; file++) {
        size_t n;
        char *data = cs_file_read(*file, MAX_FILE_BYTES, &n, error);
        if (!data)
            return false;
        cs_request_medium medium = {modality, g_bytes_new_take(data, n)};
        g_array_append_val(media, medium);
        json_array_append_new(parts, json_pack("{s:s}", "type", word));
    }
    return true;
}

/* The user's message: media first, as the families' own examples have it. */
static json_t *user_message(const char *text, GArray *media, GError **error)
{
    json_t *parts = json_array();
    if (!add_media(parts, media, CS_MODALITY_IMAGE, "image", images, error) ||
        !add_media(parts, media, CS_MODALITY_VIDEO, "video", videos, error) ||
        !add_media(parts, media, CS_MODALITY_AUDIO, "audio", sounds, error)) {
        json_decref(parts);
        return NULL;
    }
    json_t *content = json_string(text);
    if (!content) {
        json_decref(parts);
        cs_fail(error, CS_ERROR_INVALID, "the prompt is not UTF-8");
        return NULL;
    }
    if (json_array_size(parts) > 0 && !*text) { /* the media ask: a spoken question */
        json_decref(content);
        content = parts;
    } else if (json_array_size(parts) > 0) {
        json_array_append_new(parts, json_pack("{s:s,s:o}", "type", "text", "text", content));
        content = parts;
    } else {
        json_decref(parts);
    }
    /* Shown once, at the beginning of a conversation. */
    g_clear_pointer(&images, g_strfreev);
    g_clear_pointer(&sounds, g_strfreev);
    g_clear_pointer(&videos, g_strfreev);
    return json_pack("{s:s,s:o}", "role", "user", "content", content);
}

static bool fill_sampling(const cs_pipeline *pipeline, cs_sampling *s, GError **error)
{
    cs_pipeline_defaults(pipeline, s);
    if (temperature > 2 || top_p > 1 || min_p > 1 || max_tokens < 0)
        return cs_fail(
            error, CS_ERROR_INVALID,
            "temperature goes up to 2, top-p and min-p to 1, and max-tokens is positive");
    s->temperature = temperature >= 0 ? (float)temperature : s->temperature;
    s->top_p = top_p > 0 ? (float)top_p : s->top_p;
    s->min_p = min_p >= 0 ? (float)min_p : s->min_p;
    s->top_k = top_k >= 0 ? top_k : s->top_k;
    s->max_tokens = (uint32_t)max_tokens;
    s->has_seed = seed >= 0;
    s->seed = (uint64_t)seed;
    s->stop = (const char *const *)stops;
    return true;
}

/* ---- the answer ---- */

/* Filled by the pipeline's threads, printed by the main thread, so that a slow terminal holds
 * nobody up. */
typedef struct {
    GMutex lock;
    GCond changed;
    GString *news;
    GArray *speech; /* float */
    bool done;
    GError *error;
    cs_usage usage;
    int64_t first_us, first_audio_us, done_us;
} answer;

static void on_start(void *user, uint32_t prompt_tokens)
{
}

static void on_piece(void *user, const cs_piece *piece)
{
    answer *a = user;
    g_mutex_lock(&a->lock);
    if (!a->first_us)
        a->first_us = cs_now_us();
    g_string_append_len(a->news, piece->text, (gssize)piece->text_bytes);
    g_cond_signal(&a->changed);
    g_mutex_unlock(&a->lock);
}

static void on_finish(void *user, uint32_t choice, cs_finish_reason reason)
{
}

static void on_done(void *user, const cs_usage *usage, const GError *error)
{
    answer *a = user;
    g_mutex_lock(&a->lock);
    a->done = true;
    a->done_us = cs_now_us();
    a->error = error ? g_error_copy(error) : NULL;
    if (usage)
        a->usage = *usage;
    g_cond_signal(&a->changed);
    g_mutex_unlock(&a->lock);
}

static void on_audio(void *user, uint32_t n, const float *samples)
{
    answer *a = user;
    g_mutex_lock(&a->lock);
    if (!a->first_audio_us)
        a->first_audio_us = cs_now_us();
    g_array_append_vals(a->speech, samples, n);
    g_mutex_unlock(&a->lock);
}

static const cs_sink sink = {.on_start = on_start,
                             .on_piece = on_piece,
                             .on_finish = on_finish,
                             .on_audio = on_audio,
                             .on_done = on_done};

/* Prints until the answer is complete; `all` collects it. */
static void print_answer(answer *a, GString *all)
{
    bool done = false;
    while (!done) {
        g_mutex_lock(&a->lock);
        while (a->news->len == 0 && !a->done)
            g_cond_wait(&a->changed, &a->lock);
        g_autofree char *news = g_strndup(a->news->str, a->news->len);
        g_string_truncate(a->news, 0);
        done = a->done;
        g_mutex_unlock(&a->lock);
        fputs(news, stdout);
        fflush(stdout);
        g_string_append(all, news);
    }
    fputc('\n', stdout);
    fflush(stdout);
}

static void print_usage(const answer *a, int64_t begun_us, uint32_t rate)
{
    double decode_s = (double)(a->done_us - a->first_us) * 1e-6;
    fprintf(stderr,
            "%u prompt tokens (%u cached), %u tokens; first after %.0f ms, then %.1f tokens/s\n",
            a->usage.prompt_tokens, a->usage.cached_tokens, a->usage.completion_tokens,
            (double)(a->first_us - begun_us) / 1000,
            decode_s > 0 && a->usage.completion_tokens > 1
                ? (a->usage.completion_tokens - 1) / decode_s
                : 0);
    double speech_s = rate ? (double)a->speech->len / rate : 0;
    if (speech_s > 0)
        fprintf(stderr, "%.2f s of speech; first after %.0f ms, %.2f s of work for a second\n",
                speech_s, (double)(a->first_audio_us - begun_us) / 1000,
                (double)(a->done_us - begun_us) * 1e-6 / speech_s);
}

/* ---- speech ---- */

/* By the file's ending. */
static bool speech_format(cs_audio_format *format, GError **error)
{
    const char *ending = strrchr(speak_file, '.');
    if (ending && cs_audio_format_parse(ending + 1, format))
        return true;
    return cs_fail(error, CS_ERROR_INVALID,
                   "--speak %s: expected a file name that ends with .wav, .mp3, .flac, .opus or "
                   ".pcm16",
                   speak_file);
}

/* Compressed formats are made in a process of their own. */
static bool open_speech_pool(cs_audio_format format, cs_media_pool **pool, GError **error)
{
    *pool = NULL;
    if (format == CS_AUDIO_WAV || format == CS_AUDIO_PCM16)
        return true;
    *pool = cs_media_pool_new(&CS_MEDIA_POOL_OPTIONS_DEFAULT, error);
    return *pool != NULL;
}

static bool write_speech(const GArray *speech, uint32_t rate, GError **error)
{
    cs_audio_format format;
    cs_media_pool *pool;
    if (!speech_format(&format, error) || !open_speech_pool(format, &pool, error))
        return false;
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    cs_audio_encoder *encoder = cs_audio_encoder_new(format, rate, speech->len, pool, bytes, error);
    bool ok = encoder &&
              cs_audio_encoder_write(encoder, (const float *)(void *)speech->data, speech->len,
                                     bytes, error) &&
              cs_audio_encoder_finish(encoder, bytes, error) &&
              g_file_set_contents(speak_file, (const char *)bytes->data, bytes->len, error);
    cs_audio_encoder_free(encoder);
    if (pool)
        cs_media_pool_free(pool);
    return ok;
}

static bool fill_voice(const cs_pipeline *pipeline, cs_voice *voice, GError **error)
{
    if (!speak_file)
        return true;
    cs_pipeline_voice_defaults(pipeline, voice);
    if (voice_name || !voice->name) /* without a voice the check says that it does not speak */
        voice->name = voice_name ? voice_name : "";
    return cs_pipeline_voice_check(pipeline, voice->name, error);
}

static void medium_clear(gpointer item)
{
    g_bytes_unref(((cs_request_medium *)item)->bytes);
}

/* Asks, prints, and appends the answer to the messages. */
static bool ask(cs_pipeline *pipeline, json_t *messages, GArray *media, GError **error)
{
    cs_request request = {.messages = messages,
                          .n_media = media->len,
                          .media = (const cs_request_medium *)media->data,
                          .use_audio_in_video = audio_in_video,
                          .n_choices = 1};
    if (!fill_sampling(pipeline, &request.sampling, error) ||
        !fill_voice(pipeline, &request.voice, error))
        return false;
    answer a = {.news = g_string_new(NULL), .speech = g_array_new(FALSE, FALSE, sizeof(float))};
    g_autoptr(GString) all = g_string_new(NULL);
    int64_t begun_us = cs_now_us();
    cs_pipeline_request *handle = cs_pipeline_submit(pipeline, &request, &sink, &a, error);
    if (handle) {
        print_answer(&a, all);
        cs_pipeline_release(handle);
    }
    if (handle && !a.error && show_usage)
        print_usage(&a, begun_us, cs_pipeline_audio_rate(pipeline));
    bool spoken = !handle || a.error || !speak_file ||
                  write_speech(a.speech, cs_pipeline_audio_rate(pipeline), error);
    g_string_free(a.news, TRUE);
    g_array_unref(a.speech);
    json_array_append_new(messages,
                          json_pack("{s:s,s:s}", "role", "assistant", "content", all->str));
    if (a.error)
        g_propagate_error(error, a.error);
    return handle && !a.error && spoken;
}

/* ---- one question, or a conversation ---- */

static char *read_line(void)
{
    char *line = NULL;
    size_t capacity = 0;
    fputs("> ", stdout);
    fflush(stdout);
    ssize_t n = getline(&line, &capacity, stdin);
    char *text = n > 0 ? g_strstrip(g_strndup(line, (gsize)n)) : NULL;
    free(line);
    if (text && !*text)
        g_clear_pointer(&text, g_free);
    return text;
}

static char *read_stdin(GError **error)
{
    GString *text = g_string_new(NULL);
    char buffer[65536];
    size_t n;
    while ((n = fread(buffer, 1, sizeof(buffer), stdin)) > 0 && text->len <= MAX_STDIN_BYTES)
        g_string_append_len(text, buffer, (gssize)n);
    if (text->len == 0 || text->len > MAX_STDIN_BYTES || strlen(text->str) != text->len) {
        cs_fail(error, CS_ERROR_INVALID, "expected a text of 1 to %u bytes on standard input",
                MAX_STDIN_BYTES);
        g_string_free(text, TRUE);
        return NULL;
    }
    return g_string_free(text, FALSE);
}

static bool ask_text(cs_pipeline *pipeline, const char *text, json_t *messages, GArray *media,
                     GError **error)
{
    json_t *message = user_message(text, media, error);
    if (!message)
        return false;
    json_array_append_new(messages, message);
    return ask(pipeline, messages, media, error);
}

static bool converse(cs_pipeline *pipeline, json_t *messages, GArray *media, GError **error)
{
    bool ok = true;
    char *line;
    while (ok && (line = read_line())) {
        ok = ask_text(pipeline, line, messages, media, error);
        g_free(line);
    }
    return ok;
}

static bool run(const char *dir, const char *prompt, GError **error)
{
    g_autofree char *read = NULL;
    bool from_stdin = prompt ? strcmp(prompt, "-") == 0 : !isatty(STDIN_FILENO);
    if (from_stdin && !(read = read_stdin(error)))
        return false;
    cs_audio_format format;
    if (speak_file && !speech_format(&format, error))
        return false;
    if (voice_name && !speak_file)
        return cs_fail(error, CS_ERROR_INVALID, "--voice is for --speak FILE");
    model_options.no_speech |= !speak_file; /* nothing else would use it */
    cs_pipeline *pipeline = cs_cli_load_model(dir, &model_options, error);
    if (!pipeline)
        return false;
    json_t *messages = json_array();
    g_autoptr(GArray) media = g_array_new(FALSE, FALSE, sizeof(cs_request_medium));
    g_array_set_clear_func(media, medium_clear);
    if (system_text)
        json_array_append_new(messages,
                              json_pack("{s:s,s:s}", "role", "system", "content", system_text));
    const char *text = from_stdin ? read : prompt;
    bool ok = text ? ask_text(pipeline, text, messages, media, error)
                   : converse(pipeline, messages, media, error);
    json_decref(messages);
    cs_pipeline_free(pipeline);
    return ok;
}

int cs_cli_run(int argc, char **argv)
{
    int exit_code;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    GError *error = NULL;
    if (!run(argv[1], argc > 2 ? argv[2] : NULL, &error))
        return cs_cli_fail(spec.name, error);
    return CS_EXIT_OK;
}
