#include "cli/cli.h"

#include <stdio.h>
#include <string.h>

/* Levenshtein distance of two short words, over bytes. */
static guint word_distance(const char *a, const char *b)
{
    size_t n = strlen(b);
    g_autofree guint *row = g_new(guint, n + 1);
    for (size_t j = 0; j <= n; j++)
        row[j] = (guint)j;
    for (size_t i = 1; a[i - 1]; i++) {
        guint diagonal = row[0];
        row[0] = (guint)i;
        for (size_t j = 1; j <= n; j++) {
            guint above = row[j];
            row[j] = MIN(MIN(row[j], row[j - 1]) + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[n];
}

const char *cs_cli_nearest(const char *word, const char *const *candidates, guint n_candidates)
{
    const char *best = NULL;
    guint best_distance = (guint)MIN(strlen(word), 64) / 2;
    for (guint i = 0; strlen(word) < 64 && i < n_candidates; i++) {
        guint distance = word_distance(word, candidates[i]);
        if (distance <= best_distance && distance < strlen(candidates[i])) {
            best = candidates[i];
            best_distance = distance > 0 ? distance - 1 : 0;
        }
    }
    return best;
}

static GOptionContext *context_new(const cs_cli_spec *spec, gboolean *help)
{
    GOptionContext *context = g_option_context_new(spec->arguments);
    GOptionEntry help_entries[] = {
        {"help", 'h', 0, G_OPTION_ARG_NONE, help, "Show this help", NULL},
        {NULL},
    };
    g_option_context_set_help_enabled(context, FALSE);
    if (spec->entries)
        g_option_context_add_main_entries(context, spec->entries, NULL);
    g_option_context_add_main_entries(context, help_entries, NULL);
    g_option_context_set_summary(context, spec->description);
    g_autofree char *example = g_strdup_printf("Example:\n%s\n", spec->example);
    g_option_context_set_description(context, example);
    return context;
}

/* The first word of argv that looks like an option and is none, as typed up to '='; NULL if none.
 */
static char *unknown_option(const cs_cli_spec *spec, char **argv)
{
    for (char **arg = argv + 1; *arg && strcmp(*arg, "--") != 0; arg++) {
        if (!g_str_has_prefix(*arg, "--"))
            continue;
        g_autofree char *name = g_strndup(*arg + 2, strcspn(*arg + 2, "="));
        bool known = strcmp(name, "help") == 0;
        for (const GOptionEntry *e = spec->entries; !known && e && e->long_name; e++)
            known = strcmp(e->long_name, name) == 0;
        if (!known)
            return g_steal_pointer(&name);
    }
    return NULL;
}

static int option_fault(const cs_cli_spec *spec, char **argv, const GError *error)
{
    g_autofree char *name = NULL;
    if (g_error_matches(error, G_OPTION_ERROR, G_OPTION_ERROR_UNKNOWN_OPTION))
        name = unknown_option(spec, argv);
    if (!name)
        return cs_cli_usage(spec->name, "%s", error->message);

    g_autoptr(GPtrArray) names = g_ptr_array_new();
    g_ptr_array_add(names, (gpointer) "help");
    for (const GOptionEntry *e = spec->entries; e && e->long_name; e++)
        g_ptr_array_add(names, (gpointer)e->long_name);
    const char *nearest = cs_cli_nearest(name, (const char *const *)names->pdata, names->len);
    if (nearest)
        return cs_cli_usage(spec->name, "there is no option --%s; did you mean --%s?", name,
                            nearest);
    return cs_cli_usage(spec->name, "there is no option --%s", name);
}

bool cs_cli_parse(const cs_cli_spec *spec, int *argc, char **argv, int *exit_code)
{
    gboolean help = FALSE;
    g_autoptr(GOptionContext) context = context_new(spec, &help);
    g_autofree char *program_name = g_strdup_printf("cornserve %s", spec->name);
    g_set_prgname(program_name); /* the first line of help shows it */

    g_auto(GStrv) typed = g_strdupv(argv);
    g_autoptr(GError) error = NULL;
    if (!g_option_context_parse(context, argc, &argv, &error)) {
        *exit_code = option_fault(spec, typed, error);
        return false;
    }
    if (help) {
        g_autofree char *text = g_option_context_get_help(context, TRUE, NULL);
        fputs(text, stdout);
        *exit_code = CS_EXIT_OK;
        return false;
    }
    int n = *argc - 1;
    if (n > 0 && strcmp(argv[1], "--") == 0) { /* GOption leaves the separator in place */
        memmove(argv + 1, argv + 2, sizeof(*argv) * (size_t)n);
        *argc = n--;
    }
    if (n < spec->min_arguments) {
        *exit_code = cs_cli_usage(spec->name, "expected %s", spec->arguments);
        return false;
    }
    if (spec->max_arguments >= 0 && n > spec->max_arguments) {
        *exit_code =
            cs_cli_usage(spec->name, "%s is one argument too many%s", argv[spec->max_arguments + 1],
                         spec->max_arguments ? " (quote a text of several words)" : "");
        return false;
    }
    return true;
}

int cs_cli_fail(const char *subcommand, GError *error)
{
    fprintf(stderr, "cornserve %s: %s\n", subcommand, error->message);
    g_error_free(error);
    return CS_EXIT_FAILED;
}

int cs_cli_usage(const char *subcommand, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *message = g_strdup_vprintf(format, args);
    va_end(args);
    fprintf(stderr, "cornserve %s: %s\nTry `cornserve %s --help`.\n", subcommand, message,
            subcommand);
    return CS_EXIT_USAGE;
}
