/* cornserve apps: the registered apps of a state file. */
#include "base/error.h"
#include "base/os.h"
#include "cli/cli.h"
#include "graph/builtin.h"
#include "runtime/registry.h"

#include <stdio.h>
#include <string.h>

#define SOURCE_MAX_BYTES (256u << 10)

static char *option_state;
static char **option_models;

static const GOptionEntry entries[] = {
    {"state", 0, 0, G_OPTION_ARG_FILENAME, &option_state,
     "The state file (default: cornserve.db here)", "FILE"},
    {"model", 'm', 0, G_OPTION_ARG_STRING_ARRAY, &option_models,
     "What the app calls models.ALIAS is the served model of this id (add; repeatable)",
     "ALIAS=ID"},
    {NULL},
};

static const cs_cli_spec spec = {
    .name = "apps",
    .arguments = "list | add NAME FILE | remove NAME",
    .description =
        "Lists, adds and removes apps: Lua files with a function serve(request). FILE may "
        "be the name of an app that comes with the program: chat, arena.",
    .example = "  cornserve apps add duel arena -m left=A -m right=B\n"
               "  cornserve apps list",
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

static bool add(cs_registry *registry, const char *name, const char *file, GError **error)
{
    size_t size_bytes = 0;
    const char *builtin = cs_builtin_app(file, &size_bytes);
    g_autofree char *source = builtin ? g_strndup(builtin, size_bytes)
                                      : cs_file_read(file, SOURCE_MAX_BYTES, &size_bytes, error);
    json_t *models = source ? read_models(error) : NULL;
    bool ok = models && cs_registry_add(registry, name, source, models, error);
    json_decref(models);
    return ok;
}

static bool list(cs_registry *registry, GError **error)
{
    json_t *apps = cs_registry_list(registry, error), *app, *dir;
    size_t i;
    const char *alias;
    if (!apps)
        return false;
    json_array_foreach (apps, i, app) {
        printf("%s", json_string_value(json_object_get(app, "name")));
        json_object_foreach (json_object_get(app, "models"), alias, dir)
            printf("  %s=%s", alias, json_string_value(dir));
        putchar('\n');
    }
    json_decref(apps);
    return true;
}

int cs_cli_apps(int argc, char **argv)
{
    int exit_code;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    bool is_list = strcmp(argv[1], "list") == 0 && argc == 2;
    bool is_add = strcmp(argv[1], "add") == 0 && argc == 4;
    bool is_remove = strcmp(argv[1], "remove") == 0 && argc == 3;
    if (!is_list && !is_add && !is_remove)
        return cs_cli_usage(spec.name, "expected %s", spec.arguments);
    GError *error = NULL;
    g_autoptr(cs_registry) registry =
        cs_registry_open(option_state ? option_state : "cornserve.db", &error);
    bool ok = registry && (is_list  ? list(registry, &error)
                           : is_add ? add(registry, argv[2], argv[3], &error)
                                    : cs_registry_remove(registry, argv[2], &error));
    return ok ? CS_EXIT_OK : cs_cli_fail(spec.name, error);
}
