/* cornserve status: what a server that runs has to do, once or again and again. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static gboolean option_watch, option_json;
static double option_interval = 1;

static const GOptionEntry entries[] = {
    {"watch", 'w', 0, G_OPTION_ARG_NONE, &option_watch, "Show it again and again, until Ctrl-C",
     NULL},
    {"interval", 0, 0, G_OPTION_ARG_DOUBLE, &option_interval, "Seconds between two looks (1)", "S"},
    {"json", 0, 0, G_OPTION_ARG_NONE, &option_json,
     "Show it as the server says it, one line a look", NULL},
    {NULL},
};

static const cs_cli_spec spec = {
    .name = "status",
    .arguments = "[URL]",
    .description = "Shows executors, queues, KV cache, sidecar and apps of the server at URL "
                   "(" CS_CLI_DEFAULT_URL ").\nThe key, if it asks for one, is $CORNSERVE_API_KEY.",
    .example = "  cornserve status\n  cornserve status http://127.0.0.1:8000 --watch",
    .entries = entries,
    .min_arguments = 0,
    .max_arguments = 1,
};

/* --- a table: columns as wide as their widest cell --- */

typedef struct {
    GPtrArray *cells; /* char *, row by row */
    guint n_columns;
    guint n_left; /* columns of words, which begin at the left */
} table;

static void table_init(table *t, guint n_columns, guint n_left, const char *const *titles)
{
    *t = (table){g_ptr_array_new_with_free_func(g_free), n_columns, n_left};
    for (guint i = 0; i < n_columns; i++)
        g_ptr_array_add(t->cells, g_strdup(titles[i]));
}

static void table_print(table *t, GString *out)
{
    guint n_rows = t->cells->len / t->n_columns;
    g_autofree int *widths = g_new0(int, t->n_columns);
    for (guint i = 0; i < t->cells->len; i++) {
        int width = (int)g_utf8_strlen(t->cells->pdata[i], -1);
        widths[i % t->n_columns] = MAX(widths[i % t->n_columns], width);
    }
    for (guint r = 0; r < n_rows; r++) {
        for (guint c = 0; c < t->n_columns; c++) {
            const char *cell = t->cells->pdata[r * t->n_columns + c];
            int pad = widths[c] - (int)g_utf8_strlen(cell, -1);
            bool last = c + 1 == t->n_columns;
            if (c < t->n_left)
                g_string_append_printf(out, "%s%*s", cell, last ? 0 : pad + 2, "");
            else
                g_string_append_printf(out, "%*s%s%s", pad, "", cell, last ? "" : "  ");
        }
        g_string_append_c(out, '\n');
    }
    g_ptr_array_unref(t->cells);
}

/* --- what is shown --- */

static json_int_t number(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

/* Text of a server must not steer the terminal. */
static char *text(const json_t *object, const char *name)
{
    const char *value = json_string_value(json_object_get(object, name));
    char *copy = g_strdup(value ? value : "-");
    for (char *c = copy; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    return copy;
}

static void add_text(table *t, const json_t *object, const char *name)
{
    g_ptr_array_add(t->cells, text(object, name));
}

static void add_number(table *t, const json_t *object, const char *name)
{
    bool known = json_is_integer(json_object_get(object, name));
    g_ptr_array_add(t->cells, known ? g_strdup_printf("%" JSON_INTEGER_FORMAT, number(object, name))
                                    : g_strdup("-"));
}

static char *join(const json_t *names)
{
    GString *all = g_string_new(NULL);
    for (size_t i = 0; i < json_array_size(names); i++) {
        json_t *wrapped = json_pack("{s:O}", "n", json_array_get(names, i));
        g_autofree char *name = text(wrapped, "n");
        g_string_append_printf(all, "%s%s", i ? "+" : "", name);
        json_decref(wrapped);
    }
    return g_string_free(all, FALSE);
}

static void print_executors(const json_t *executors, GString *out)
{
    static const char *const titles[] = {"EXECUTOR", "STATE", "COMPONENTS", "DEVICE", "RUNNING",
                                         "WAITING",  "KV",    "RESTARTS",   "PID",    "FAILURE"};
    bool failed = false;
    for (size_t i = 0; i < json_array_size(executors); i++)
        failed = failed || json_object_get(json_array_get(executors, i), "failure");
    table t;
    guint n = failed ? 10 : 9;
    table_init(&t, n, 4, titles);
    for (size_t i = 0; i < json_array_size(executors); i++) {
        const json_t *x = json_array_get(executors, i);
        add_text(&t, x, "name");
        add_text(&t, x, "state");
        g_ptr_array_add(t.cells, join(json_object_get(x, "components")));
        add_text(&t, x, "device");
        add_number(&t, x, "running");
        add_number(&t, x, "waiting");
        json_int_t total = number(x, "kv_blocks_total");
        g_ptr_array_add(
            t.cells,
            total ? g_strdup_printf("%.0f %%",
                                    100.0 * (double)number(x, "kv_blocks_used") / (double)total)
                  : g_strdup("-"));
        add_number(&t, x, "restarts");
        add_number(&t, x, "pid");
        if (failed)
            add_text(&t, x, "failure");
    }
    table_print(&t, out);
}

static void print_apps(const json_t *apps, GString *out)
{
    static const char *const titles[] = {"APP",      "MODELS", "RUNNING",  "STARTED",
                                         "FINISHED", "FAILED", "CANCELLED"};
    if (json_array_size(apps) == 0)
        return;
    table t;
    table_init(&t, G_N_ELEMENTS(titles), 2, titles);
    for (size_t i = 0; i < json_array_size(apps); i++) {
        const json_t *a = json_array_get(apps, i);
        const json_t *requests = json_object_get(a, "requests");
        json_t *models = json_array(), *model;
        const char *alias;
        json_object_foreach (json_object_get(a, "models"), alias, model)
            json_array_append(models, model);
        add_text(&t, a, "name");
        g_ptr_array_add(t.cells, json_object_get(a, "error") ? text(a, "error") : join(models));
        for (guint k = 2; k < G_N_ELEMENTS(titles); k++) {
            g_autofree char *key = g_ascii_strdown(titles[k], -1);
            add_number(&t, requests, key);
        }
        json_decref(models);
    }
    g_string_append_c(out, '\n');
    table_print(&t, out);
}

static void print_head(const json_t *s, const char *url, GString *out)
{
    json_int_t up_s = number(s, "uptime_s");
    g_autofree char *version = text(s, "version"), *state = text(s, "state");
    g_string_append_printf(out, "cornserve %s at %s: %s, up %d:%02d:%02d, resident %.0f MiB\n",
                           version, url, state, (int)(up_s / 3600), (int)(up_s / 60 % 60),
                           (int)(up_s % 60), (double)number(s, "resident_bytes") / (1 << 20));
}

static void print_model(const json_t *m, GString *out)
{
    const json_t *r = json_object_get(m, "requests"), *kv = json_object_get(m, "kv");
    const json_t *sidecar = json_object_get(m, "sidecar"), *d = json_object_get(m, "dispatcher");
    g_autofree char *id = text(m, "id");
    g_string_append_printf(out,
                           "%s\n  requests: %d running, %d waiting; %" JSON_INTEGER_FORMAT
                           " finished, %" JSON_INTEGER_FORMAT " failed, %" JSON_INTEGER_FORMAT
                           " cancelled, %" JSON_INTEGER_FORMAT " set back for want of memory\n",
                           id, (int)number(r, "running"), (int)number(r, "waiting"),
                           number(r, "finished"), number(r, "failed"), number(r, "cancelled"),
                           number(r, "preemptions"));
    g_string_append_printf(out, "  KV cache: %d of %d blocks, %.0f MiB in all\n",
                           (int)number(kv, "blocks_used"), (int)number(kv, "blocks_total"),
                           (double)number(kv, "bytes_total") / (1 << 20));
    if (json_is_object(sidecar))
        g_string_append_printf(out, "  sidecar: %.1f of %.1f MiB, %d streams, %d chunks\n",
                               (double)number(sidecar, "used_bytes") / (1 << 20),
                               (double)number(sidecar, "pool_bytes") / (1 << 20),
                               (int)number(sidecar, "streams"), (int)number(sidecar, "chunks"));
    if (json_is_object(d))
        g_string_append_printf(
            out,
            "  dispatcher: %d running, %d waiting for an executor; %d runs again "
            "after %d deaths of executors\n",
            (int)number(d, "active"), (int)number(d, "parked"), (int)number(d, "retries"),
            (int)number(d, "executor_deaths"));
}

static void print_status(const json_t *s, const char *url, GString *out)
{
    if (option_json) {
        char *line = json_dumps(s, JSON_COMPACT);
        g_string_append_printf(out, "%s\n", line);
        free(line);
        return;
    }
    print_head(s, url, out);
    const json_t *models = json_object_get(s, "models");
    for (size_t i = 0; i < json_array_size(models); i++)
        print_model(json_array_get(models, i), out);
    g_string_append_c(out, '\n');
    print_executors(json_object_get(s, "executors"), out);
    print_apps(json_object_get(s, "apps"), out);
}

static bool look(const char *url, GString *out, GError **error)
{
    json_t *status = cs_cli_request(url, "GET", "/status", NULL, error);
    if (status)
        print_status(status, url, out);
    json_decref(status);
    return status != NULL;
}

static void print_fault(const GError *error, GString *out)
{
    if (!option_json) {
        g_string_append_printf(out, "%s\n", error->message);
        return;
    }
    json_t *object = json_pack("{s:s}", "error", error->message);
    char *line = json_dumps(object, JSON_COMPACT);
    g_string_append_printf(out, "%s\n", line);
    free(line);
    json_decref(object);
}

/* On a terminal each look takes the place of the one before; elsewhere they stand one below the
 * other. A server that does not answer is waited for. */
static void watch(const char *url)
{
    bool terminal = isatty(STDOUT_FILENO) && !option_json;
    bool first = true;
    do {
        g_autoptr(GString) out = g_string_new(terminal ? "\033[H\033[J" : "");
        g_autoptr(GError) error = NULL;
        if (!first && !terminal && !option_json)
            g_string_append_c(out, '\n');
        if (!look(url, out, &error))
            print_fault(error, out);
        fputs(out->str, stdout);
        first = false;
        if (fflush(stdout) != 0)
            return; /* nobody reads it any more */
        g_usleep((gulong)(option_interval * G_USEC_PER_SEC));
    } while (true);
}

int cs_cli_status(int argc, char **argv)
{
    int exit_code;
    GError *error = NULL;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    if (!(option_interval >= 0.05 && option_interval <= 86400))
        return cs_cli_usage(spec.name, "--interval %g: expected 0.05 to 86400", option_interval);
    const char *url = argc > 1 ? argv[1] : CS_CLI_DEFAULT_URL;
    if (option_watch) {
        watch(url);
        return CS_EXIT_OK;
    }
    g_autoptr(GString) out = g_string_new(NULL);
    if (!look(url, out, &error))
        return cs_cli_fail(spec.name, error);
    fputs(out->str, stdout);
    return CS_EXIT_OK;
}
