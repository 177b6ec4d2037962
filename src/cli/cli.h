/* The command line: what every subcommand shares.
 *
 * main.c holds the const table of subcommands; each has one file and one cs_cli_<name> function. A
 * subcommand describes its options as GOptionEntry, hands them to cs_cli_parse, and returns one of
 * the exit codes below. It may print to the terminal freely; results go to stdout, everything else
 * to stderr.
 */
#ifndef CS_CLI_CLI_H
#define CS_CLI_CLI_H

#include <glib.h>
#include <stdbool.h>

enum {
    CS_EXIT_OK = 0,
    CS_EXIT_FAILED = 1, /* understood, but it did not work: "cornserve: ..." said why on stderr */
    CS_EXIT_USAGE = 2,  /* the command line itself is wrong */
};

typedef struct {
    const char *name;
    const char
        *summary; /* one line of `cornserve help`; NULL: hidden, started by the program itself */
    int (*run)(int argc, char **argv); /* argv[0] is the subcommand's name */
} cs_cli_command;

typedef struct {
    const char *name;
    const char *arguments;   /* "DIR [PROMPT]" */
    const char *description; /* a paragraph on what it does */
    const char *example;     /* one or more command lines, each starting with two spaces */
    const GOptionEntry *entries;
    int min_arguments, max_arguments; /* positional ones; max -1: any number */
} cs_cli_spec;

/* Parses argv in place: options are taken out and positional arguments stay in argv[1..*argc).
 * Returns true to go on. Otherwise the subcommand returns *exit_code at once: help was shown, or a
 * fault was explained with a hint. */
bool cs_cli_parse(const cs_cli_spec *spec, int *argc, char **argv, int *exit_code);

/* Says "cornserve SUBCOMMAND: message" on stderr, frees the error and returns CS_EXIT_FAILED. */
int cs_cli_fail(const char *subcommand, GError *error);
/* The same for a command line that is wrong: adds where help is found, returns CS_EXIT_USAGE. */
int cs_cli_usage(const char *subcommand, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* The candidate nearest to a mistyped word, or NULL when none is near. */
const char *cs_cli_nearest(const char *word, const char *const *candidates, guint n_candidates);

/* Subcommands, one file each. */
int cs_cli_apps(int argc, char **argv);
int cs_cli_executor(int argc, char **argv);
int cs_cli_graph(int argc, char **argv);
int cs_cli_media_decoder(int argc, char **argv);
int cs_cli_plan(int argc, char **argv);
int cs_cli_profile(int argc, char **argv);
int cs_cli_simulate(int argc, char **argv);
int cs_cli_workload(int argc, char **argv);
int cs_cli_inspect(int argc, char **argv);
int cs_cli_run(int argc, char **argv);
int cs_cli_status(int argc, char **argv);
int cs_cli_serve(int argc, char **argv);
int cs_cli_help(int argc, char **argv);
int cs_cli_version(int argc, char **argv);

#endif
