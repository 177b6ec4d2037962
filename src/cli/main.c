/* cornserve: the table of subcommands and the choice among them. */
#include "cli/cli.h"

#include <locale.h>
#include <stdio.h>
#include <string.h>

static const cs_cli_command commands[] = {
    {"serve", "serve a model over the OpenAI API", cs_cli_serve},
    {"run", "ask a model from the terminal", cs_cli_run},
    {"inspect", "show what is in a checkpoint directory", cs_cli_inspect},
    {"apps", "list, add, remove and invoke apps", cs_cli_apps},
    {"executor", NULL, cs_cli_executor},
    {"graph", "show the components that a request uses", cs_cli_graph},
    {"media-decoder", NULL, cs_cli_media_decoder},
    {"profile", "measure a model's components on this machine, for plans", cs_cli_profile},
    {"plan", "decide which executors stand where and how requests are routed", cs_cli_plan},
    {"simulate", "run a plan under a workload in simulation", cs_cli_simulate},
    {"workload", "fit a workload to a trace of requests", cs_cli_workload},
    {"status", "show what a server does", cs_cli_status},
    {"version", "show the version", cs_cli_version},
    {"help", "show this list, or the help of a subcommand", cs_cli_help},
};

static const cs_cli_command *command_find(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static void commands_print(FILE *out)
{
    fprintf(out,
            "cornserve %s serves any-to-any multimodal models over the OpenAI API.\n\n"
            "Usage: cornserve SUBCOMMAND [OPTION...] [ARGUMENT...]\n\nSubcommands:\n",
            CS_VERSION);
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
        if (commands[i].summary)
            fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\n`cornserve SUBCOMMAND --help` shows the options of one, with an example.\n");
}

static int unknown_command(const char *name)
{
    const char *names[G_N_ELEMENTS(commands)];
    guint n = 0;
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
        if (commands[i].summary)
            names[n++] = commands[i].name;
    const char *nearest = cs_cli_nearest(name, names, n);
    fprintf(stderr, "cornserve: there is no subcommand %s%s%s%s\nTry `cornserve help`.\n", name,
            nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
    return CS_EXIT_USAGE;
}

int cs_cli_help(int argc, char **argv)
{
    if (argc > 1 && argv[1][0] != '-') {
        const cs_cli_command *command = command_find(argv[1]);
        if (!command)
            return unknown_command(argv[1]);
        if (command->run != cs_cli_help) {
            char *arguments[] = {argv[1], "--help", NULL};
            return command->run(2, arguments);
        }
    }
    commands_print(stdout);
    return CS_EXIT_OK;
}

int main(int argc, char **argv)
{
    setlocale(LC_CTYPE, "");
    if (argc < 2) {
        commands_print(stderr);
        return CS_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        argv[1] = "help";
    if (strcmp(argv[1], "--version") == 0)
        argv[1] = "version";
    const cs_cli_command *command = command_find(argv[1]);
    return command ? command->run(argc - 1, argv + 1) : unknown_command(argv[1]);
}
