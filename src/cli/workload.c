/* cornserve workload fit: request types and distributions from a trace. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/plan_inputs.h"
#include "plan/workload.h"

#include <stdlib.h>
#include <string.h>

static bool fit(const char *trace, const char *graph_path, const char *output, GError **error)
{
    if (!graph_path)
        return cs_fail(error, CS_ERROR_INVALID, "option --graph is needed");
    g_autoptr(cs_plan_graph) graph = cs_plan_graph_load(graph_path, error);
    json_t *root = graph ? cs_workload_fit(trace, graph, error) : NULL;
    if (!root)
        return false;
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    free(text);
    json_decref(root);
    return cs_cli_write_text(output ? output : "-", line, error);
}

int cs_cli_workload(int argc, char **argv)
{
    g_autofree char *graph = NULL, *output = NULL;
    const GOptionEntry entries[] = {
        {"graph", 'g', 0, G_OPTION_ARG_FILENAME, &graph, "Task graph", "FILE"},
        {"output", 'o', 0, G_OPTION_ARG_FILENAME, &output, "Where to write (stdout)", "FILE"},
        {NULL},
    };
    const cs_cli_spec spec = {
        .name = "workload",
        .arguments = "fit TRACE",
        .description =
            "Finds request types in a JSON-lines trace, fits the distributions of their sizes "
            "and their arrivals, and writes a workload file.",
        .example = "  cornserve workload fit requests.jsonl -g graph.json -o workload.yaml",
        .entries = entries,
        .min_arguments = 2,
        .max_arguments = 2,
    };
    int code;
    if (!cs_cli_parse(&spec, &argc, argv, &code))
        return code;
    if (strcmp(argv[1], "fit") != 0)
        return cs_cli_usage("workload", "there is no %s; did you mean fit?", argv[1]);
    GError *error = NULL;
    return fit(argv[2], graph, output, &error) ? CS_EXIT_OK : cs_cli_fail("workload", error);
}
