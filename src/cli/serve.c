/* cornserve serve: loads a model and serves it over HTTP until it is told to end. */
#include "api/api.h"
#include "base/error.h"
#include "base/log.h"
#include "base/os.h"
#include "cli/model_options.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static cs_cli_model_options model_options;
static char *host, *log_level, *media_dir, *max_body, *key_file, *state_path;
static char **keys;
static int port = 8000;
static double drain_seconds = 4;
static gboolean public_without_key, remote_media;

static const GOptionEntry entries[] = {
    {"host", 0, 0, G_OPTION_ARG_STRING, &host, "Address to listen on (127.0.0.1)", "ADDRESS"},
    {"port", 0, 0, G_OPTION_ARG_INT, &port, "Port to listen on; 0: any that is free (8000)", "N"},
    CS_CLI_MODEL_ENTRIES(model_options),
    {"api-key-file", 0, 0, G_OPTION_ARG_FILENAME, &key_file,
     "API keys, one a line; also from $CORNSERVE_API_KEY", "FILE"},
    {"api-key", 0, 0, G_OPTION_ARG_STRING_ARRAY, &keys,
     "An API key; may be repeated (other users of the machine can see it)", "KEY"},
    {"allow-public-without-key", 0, 0, G_OPTION_ARG_NONE, &public_without_key,
     "Let other machines use the server without a key", NULL},
    {"allow-remote-media", 0, 0, G_OPTION_ARG_NONE, &remote_media,
     "Fetch https URLs of media that requests name", NULL},
    {"allow-media-dir", 0, 0, G_OPTION_ARG_FILENAME, &media_dir,
     "Read file: URLs of media inside this directory", "DIR"},
    {"max-body", 0, 0, G_OPTION_ARG_STRING, &max_body, "Largest request body (128M)", "SIZE"},
    {"state", 0, 0, G_OPTION_ARG_FILENAME, &state_path,
     "Where apps are kept (cornserve.db here, made when the first is registered)", "FILE"},
    {"drain-seconds", 0, 0, G_OPTION_ARG_DOUBLE, &drain_seconds,
     "At the end, time for running requests to finish (4)", "S"},
    {"log-level", 0, 0, G_OPTION_ARG_STRING, &log_level, "error, warn, info or debug (info)",
     "LEVEL"},
    {NULL},
};

static const cs_cli_spec spec = {
    .name = "serve",
    .arguments = "DIR...",
    .description =
        "Serves the model in DIR, a Hugging Face checkpoint directory, over the OpenAI API; or the "
        "models in several.\n"
        "SIGTERM or Ctrl-C lets running requests finish; a second one ends the program at once.",
    .example =
        "  cornserve serve ~/models/Qwen2.5-Omni-3B --port 8000\n"
        "  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Say hello.\"}]}'",
    .entries = entries,
    .min_arguments = 1,
    .max_arguments = 16,
};

/* ---- keys ---- */

static void add_keys(GPtrArray *all, const char *text)
{
    g_auto(GStrv) lines = g_strsplit_set(text, "\r\n", -1);
    for (char **line = lines; *line; line++)
        if (*g_strstrip(*line))
            g_ptr_array_add(all, g_strdup(*line));
}

/* From the file, the environment and the command line; NULL with an error, or without keys an empty
 * list. */
static GPtrArray *read_keys(GError **error)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func(g_free);
    const char *from_environment = getenv("CORNSERVE_API_KEY");
    if (key_file) {
        size_t n;
        g_autofree char *text = cs_file_read(key_file, 1 << 20, &n, error);
        if (!text)
            return NULL;
        add_keys(all, text);
        if (all->len == 0) {
            cs_fail(error, CS_ERROR_INVALID, "%s: there is no key in it", key_file);
            return NULL;
        }
    }
    if (from_environment)
        add_keys(all, from_environment);
    for (char **key = keys; key && *key; key++)
        g_ptr_array_add(all, g_strdup(*key));
    if (all->len > 0)
        g_ptr_array_add(all, NULL);
    return g_steal_pointer(&all);
}

/* ---- signals ---- */

static sigset_t ending_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    return set;
}

static gpointer second_signal_main(gpointer unused)
{
    sigset_t set = ending_signals();
    int signal_number;
    sigwait(&set, &signal_number);
    cs_log(CS_LOG_WARN, "serve", "told to end a second time: ending at once");
    _exit(128 + signal_number);
}

/* ---- serving ---- */

static void say_model(cs_pipeline *pipeline)
{
    cs_pipeline_stats stats;
    cs_pipeline_stats_get(pipeline, &stats);
    printf(" serves %s; KV cache %.0f MiB for %u tokens, %u at most in one request;",
           cs_pipeline_model_id(pipeline), (double)stats.kv_bytes_total / (1 << 20),
           stats.kv_blocks_total * 32, cs_pipeline_max_context_tokens(pipeline));
}

static void say_ready(const GPtrArray *models, const cs_api *api, int64_t begun_us)
{
    const char *shown_host = host ? host : "127.0.0.1";
    bool is_v6 = strchr(shown_host, ':') != NULL;
    printf("ready in %.1f s: http://%s%s%s:%u/v1", (double)(cs_now_us() - begun_us) * 1e-6,
           is_v6 ? "[" : "", shown_host, is_v6 ? "]" : "", cs_api_port(api));
    for (guint i = 0; i < models->len; i++)
        say_model(models->pdata[i]);
    printf(" resident %.0f MiB\n", (double)cs_process_resident_bytes() / (1 << 20));
    fflush(stdout);
}

static void wait_and_drain(cs_api *api)
{
    sigset_t set = ending_signals();
    int signal_number;
    sigwait(&set, &signal_number);
    cs_log(CS_LOG_INFO, "serve", "told to end: running requests have %.1f s to finish",
           drain_seconds);
    g_thread_unref(g_thread_new("second-signal", second_signal_main, NULL));
    cs_api_drain(api, (int64_t)(drain_seconds * G_USEC_PER_SEC));
}

static bool load_model(GPtrArray *models, const char *dir, GError **error)
{
    cs_pipeline *pipeline = cs_cli_load_model(dir, &model_options, error);
    for (guint i = 0; pipeline && i < models->len; i++)
        if (strcmp(cs_pipeline_model_id(models->pdata[i]), cs_pipeline_model_id(pipeline)) == 0) {
            cs_fail(error, CS_ERROR_CONFLICT,
                    "%s: there are two models %s: a directory's name is "
                    "its model's id",
                    dir, cs_pipeline_model_id(pipeline));
            g_clear_pointer(&pipeline, cs_pipeline_free);
        }
    if (pipeline)
        g_ptr_array_add(models, pipeline);
    return pipeline != NULL;
}

static bool serve(char **dirs, cs_api_options *options, GError **error)
{
    int64_t begun_us = cs_now_us();
    g_autoptr(GPtrArray) models = g_ptr_array_new_with_free_func((GDestroyNotify)cs_pipeline_free);
    for (; *dirs; dirs++)
        if (!load_model(models, *dirs, error))
            return false;
    g_autofree cs_pipeline **more = g_new0(cs_pipeline *, models->len);
    for (guint i = 1; i < models->len; i++)
        more[i - 1] = models->pdata[i];
    options->more_models = more;
    cs_api *api = cs_api_new(models->pdata[0], options, error);
    if (api) {
        say_ready(models, api, begun_us);
        wait_and_drain(api);
    }
    bool ok = api != NULL;
    cs_api_free(api);
    return ok;
}

static bool check_options(cs_api_options *options, GError **error)
{
    cs_log_level level = CS_LOG_INFO;
    if (port < 0 || port > 65535)
        return cs_fail(error, CS_ERROR_INVALID, "--port: expected a number in [0, 65535], found %d",
                       port);
    if (!(drain_seconds >= 0 && drain_seconds <= 3600))
        return cs_fail(error, CS_ERROR_INVALID,
                       "--drain-seconds: expected a number in [0, 3600], found %g", drain_seconds);
    if (log_level && !cs_log_level_parse(log_level, &level))
        return cs_fail(error, CS_ERROR_INVALID,
                       "--log-level: expected error, warn, info or debug, found %s", log_level);
    if (media_dir && !g_file_test(media_dir, G_FILE_TEST_IS_DIR))
        return cs_fail(error, CS_ERROR_NOT_FOUND, "--allow-media-dir: %s is no directory",
                       media_dir);
    if (max_body && !cs_cli_parse_size(max_body, "--max-body", &options->max_body_bytes, error))
        return false;
    cs_log_set_level(level);
    options->max_buffered_bytes = options->max_body_bytes * 4;
    options->max_medium_bytes = options->max_body_bytes;
    return true;
}

int cs_cli_serve(int argc, char **argv)
{
    int exit_code;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    GError *error = NULL;
    g_autoptr(GPtrArray) all_keys = read_keys(&error);
    if (!all_keys)
        return cs_cli_fail(spec.name, error);
    cs_api_options options = {
        .host = host,
        .port = (uint16_t)port,
        .api_keys = all_keys->len > 0 ? (char **)all_keys->pdata : NULL,
        .allow_public_without_key = public_without_key,
        .allow_remote_media = remote_media,
        .media_dir = media_dir,
        .state_path = state_path ? state_path : "cornserve.db",
    };
    if (model_options.plan && argc > 2)
        return cs_cli_usage(spec.name, "--plan is for one model, there are %d", argc - 1);
    if (!check_options(&options, &error))
        return cs_cli_usage(spec.name, "%s", error->message);

    /* Before any thread starts, so that all of them inherit it and sigwait gets the signals. */
    sigset_t set = ending_signals();
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (!serve(argv + 1, &options, &error))
        return cs_cli_fail(spec.name, error);
    return CS_EXIT_OK;
}
