/* cornserve apps: the registered apps of a server that runs, or of a state file. */
#include "base/error.h"
#include "base/json.h"
#include "base/os.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "graph/builtin.h"
#include "runtime/registry.h"

#include <stdio.h>
#include <string.h>

#define SOURCE_MAX_BYTES (256u << 10)

static char *option_state, *option_url;
static char **option_models;

static const GOptionEntry entries[] = {
    {"state", 0, 0, G_OPTION_ARG_FILENAME, &option_state,
     "The state file (default: cornserve.db here)", "FILE"},
    {"url", 0, 0, G_OPTION_ARG_STRING, &option_url,
     "The server that runs, instead of a state file (invoke: " CS_CLI_DEFAULT_URL ")", "URL"},
    {"model", 'm', 0, G_OPTION_ARG_STRING_ARRAY, &option_models,
     "What the app calls models.ALIAS is the served model of this id (add; repeatable)",
     "ALIAS=ID"},
    {NULL},
};

static const cs_cli_spec spec = {
    .name = "apps",
    .arguments = "list | add NAME FILE | remove NAME | invoke NAME REQUEST",
    .description =
        "Lists, adds, removes and invokes apps: Lua files with a function serve(request). FILE may "
        "be the name of an app that comes with the program: chat, arena. REQUEST is the request's "
        "JSON, or a text to be sent as a message; its events are printed as they come, one a line.",
    .example = "  cornserve apps add duel arena -m left=A -m right=B\n"
               "  cornserve apps list --url http://127.0.0.1:8000\n"
               "  cornserve apps invoke duel 'Say hello.'",
    .entries = entries,
    .min_arguments = 1,
    .max_arguments = 3,
};

static json_t *read_models(GError **error)
{
    json_t *models = json_object();
    for (char **given = option_models; given && *given; given++) {
        g_auto(GStrv) parts = g_strsplit(*given, "=", 2);
        if (!parts[0] || !parts[0][0] || !parts[1] || !parts[1][0]) {
            cs_fail(error, CS_ERROR_INVALID, "--model %s: expected ALIAS=ID", *given);
            json_decref(models);
            return NULL;
        }
        json_object_set_new(models, parts[0], json_string(parts[1]));
    }
    return models;
}

static char *read_source(const char *file, GError **error)
{
    size_t size_bytes = 0;
    const char *builtin = cs_builtin_app(file, &size_bytes);
    return builtin ? g_strndup(builtin, size_bytes)
                   : cs_file_read(file, SOURCE_MAX_BYTES, &size_bytes, error);
}

/* --- in a state file --- */

static bool add(cs_registry *registry, const char *name, const char *file, GError **error)
{
    g_autofree char *source = read_source(file, error);
    json_t *models = source ? read_models(error) : NULL;
    bool ok = models && cs_registry_add(registry, name, source, models, error);
    json_decref(models);
    return ok;
}

static void print_apps(const json_t *apps)
{
    const char *alias;
    json_t *app, *model;
    size_t i;
    json_array_foreach (apps, i, app) {
        printf("%s", json_string_value(json_object_get(app, "name")));
        json_object_foreach (json_object_get(app, "models"), alias, model)
            printf("  %s=%s", alias, json_string_value(model));
        const char *fault = json_string_value(json_object_get(app, "error"));
        printf("%s%s\n", fault ? "  cannot be used: " : "", fault ? fault : "");
    }
}

static bool list(cs_registry *registry, GError **error)
{
    json_t *apps = cs_registry_list(registry, error);
    print_apps(apps);
    json_decref(apps);
    return apps != NULL;
}

static bool in_file(char **argv, GError **error)
{
    g_autoptr(cs_registry) registry =
        cs_registry_open(option_state ? option_state : "cornserve.db", error);
    if (!registry)
        return false;
    if (strcmp(argv[1], "list") == 0)
        return list(registry, error);
    if (strcmp(argv[1], "add") == 0)
        return add(registry, argv[2], argv[3], error);
    return cs_registry_remove(registry, argv[2], error);
}

/* --- at a server --- */

static json_t *registration(char **argv, GError **error)
{
    g_autofree char *source = read_source(argv[3], error);
    json_t *models = source ? read_models(error) : NULL;
    if (!models)
        return NULL;
    json_t *body = json_pack("{s:s, s:s}", "name", argv[2], "source", source);
    if (!body)
        cs_fail(error, CS_ERROR_INVALID, "%s: is not UTF-8", argv[3]);
    else if (json_object_size(models) > 0) /* else the server's own */
        json_object_set(body, "models", models);
    json_decref(models);
    return body;
}

static bool print_event(void *user, const char *data, GError **error)
{
    bool *failed = user;
    json_t *event = json_loads(data, 0, NULL);
    *failed = *failed || json_object_get(event, "error");
    json_decref(event);
    puts(data);
    fflush(stdout);
    return true;
}

static bool invoke(const char *url, char **argv, GError **error)
{
    json_t *body = argv[3][0] == '{' ? cs_json_load(argv[3], strlen(argv[3]), "REQUEST", error)
                                     : json_pack("{s:[{s:s, s:s}]}", "messages", "role", "user",
                                                 "content", argv[3]);
    if (!body)
        return false;
    json_object_set_new(body, "stream", json_true());
    g_autofree char *name = g_uri_escape_string(argv[2], NULL, FALSE);
    g_autofree char *path = g_strconcat("/v1/apps/", name, NULL);
    bool failed = false;
    bool ok = cs_cli_stream(url, path, body, print_event, &failed, error);
    json_decref(body);
    if (ok && failed)
        return cs_fail(error, CS_ERROR_FAILED, "the answer broke off");
    return ok;
}

static bool at_server(char **argv, GError **error)
{
    const char *url = option_url ? option_url : CS_CLI_DEFAULT_URL;
    json_t *answer = NULL;
    if (strcmp(argv[1], "invoke") == 0)
        return invoke(url, argv, error);
    if (strcmp(argv[1], "list") == 0) {
        answer = cs_cli_request(url, "GET", "/v1/apps", NULL, error);
        print_apps(json_object_get(answer, "data"));
    } else if (strcmp(argv[1], "add") == 0) {
        json_t *body = registration(argv, error);
        answer = body ? cs_cli_request(url, "POST", "/v1/apps", body, error) : NULL;
        json_decref(body);
    } else {
        g_autofree char *name = g_uri_escape_string(argv[2], NULL, FALSE);
        g_autofree char *path = g_strconcat("/v1/apps/", name, NULL);
        answer = cs_cli_request(url, "DELETE", path, NULL, error);
    }
    json_decref(answer);
    return answer != NULL;
}

int cs_cli_apps(int argc, char **argv)
{
    static const struct {
        const char *name;
        int argc;
    } actions[] = {{"list", 2}, {"add", 4}, {"remove", 3}, {"invoke", 4}};
    int exit_code;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    bool known = false;
    for (size_t i = 0; i < G_N_ELEMENTS(actions); i++)
        known = known || (strcmp(argv[1], actions[i].name) == 0 && argc == actions[i].argc);
    if (!known)
        return cs_cli_usage(spec.name, "expected %s", spec.arguments);
    if (option_state && (option_url || strcmp(argv[1], "invoke") == 0))
        return cs_cli_usage(spec.name, "--state is a file, for %s a server is asked",
                            option_url ? "--url" : "invoke");
    GError *error = NULL;
    bool server = option_url || strcmp(argv[1], "invoke") == 0;
    bool ok = server ? at_server(argv, &error) : in_file(argv, &error);
    return ok ? CS_EXIT_OK : cs_cli_fail(spec.name, error);
}
