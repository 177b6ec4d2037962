/* cornserve graph: what the requests of a model make its components do. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/model_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_SIZE 1000

static char *option_request, *option_svg;
static char **option_sizes;
static gboolean option_json;

static const GOptionEntry entries[] = {
    {"request", 'r', 0, G_OPTION_ARG_STRING, &option_request,
     "Kind of request, as the task file names it (without it: lists them)", "KIND"},
    {"size", 's', 0, G_OPTION_ARG_STRING_ARRAY, &option_sizes,
     "A size of the request, such as image_tokens=1200 (default: 1000 each)", "NAME=N"},
    {"svg", 0, 0, G_OPTION_ARG_FILENAME, &option_svg, "Also draw it into FILE", "FILE"},
    {"json", 0, 0, G_OPTION_ARG_NONE, &option_json,
     "Print the component graph of all request kinds, as `cornserve plan` reads it", NULL},
    {NULL},
};

static const cs_cli_spec spec = {
    .name = "graph",
    .arguments = "DIR",
    .description = "Shows the components that a request to the model in DIR uses, the data between "
                   "them and its expected bytes.",
    .example = "  cornserve graph Qwen2.5-Omni-7B --request image_to_speech -s image_tokens=1200\n"
               "  cornserve graph Qwen2.5-Omni-7B --json > graph.json",
    .entries = entries,
    .min_arguments = 1,
    .max_arguments = 1,
};

static bool known_size(const char *name)
{
    for (const char *const *s = cs_graph_sizes; *s; s++)
        if (strcmp(*s, name) == 0)
            return true;
    return false;
}

static json_t *read_sizes(GError **error)
{
    json_t *sizes = json_object();
    for (const char *const *s = cs_graph_sizes; *s; s++)
        json_object_set_new(sizes, *s, json_integer(DEFAULT_SIZE));
    for (char **given = option_sizes; given && *given; given++) {
        g_auto(GStrv) parts = g_strsplit(*given, "=", 2);
        guint64 n = 0;
        if (!parts[0] || !parts[1] || !known_size(parts[0]) ||
            !g_ascii_string_to_unsigned(parts[1], 10, 0, 1u << 30, &n, NULL)) {
            cs_fail(error, CS_ERROR_INVALID,
                    "--size %s: expected NAME=N, such as image_tokens=1200", *given);
            json_decref(sizes);
            return NULL;
        }
        json_object_set_new(sizes, parts[0], json_integer((json_int_t)n));
    }
    return sizes;
}

static bool show_request(cs_tasks *tasks, GError **error)
{
    json_t *sizes = read_sizes(error);
    json_t *request = sizes ? cs_tasks_example(tasks, "model", option_request, sizes, error) : NULL;
    json_decref(sizes);
    g_autoptr(cs_recording) r = request ? cs_tasks_record(tasks, "model", request, error) : NULL;
    json_decref(request);
    if (!r)
        return false;
    g_autofree char *text = cs_recording_to_text(r), *svg = cs_recording_to_svg(r);
    fputs(text, stdout);
    return !option_svg || g_file_set_contents(option_svg, svg, -1, error);
}

static bool show_json(cs_tasks *tasks, const cs_checkpoint *checkpoint, GError **error)
{
    json_t *graph = cs_cli_plan_graph(tasks, checkpoint, error);
    if (!graph)
        return false;
    char *text = json_dumps(graph, JSON_INDENT(2));
    puts(text);
    free(text);
    json_decref(graph);
    return true;
}

int cs_cli_graph(int argc, char **argv)
{
    int exit_code;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    GError *error = NULL;
    g_autoptr(cs_checkpoint) checkpoint = cs_checkpoint_open(argv[1], &error);
    g_autoptr(cs_tasks) tasks = checkpoint ? cs_cli_load_tasks(checkpoint, &error) : NULL;
    if (!tasks)
        return cs_cli_fail(spec.name, error);
    if (option_json) {
        if (!show_json(tasks, checkpoint, &error))
            return cs_cli_fail(spec.name, error);
    } else if (option_request) {
        if (!show_request(tasks, &error))
            return cs_cli_fail(spec.name, error);
    } else {
        for (const char *const *k = cs_tasks_request_kinds(tasks, "model"); *k; k++)
            puts(*k);
    }
    return CS_EXIT_OK;
}
