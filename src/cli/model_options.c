#include "cli/model_options.h"

#include "base/error.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool cs_cli_parse_size(const char *text, const char *option, size_t *size_bytes, GError **error)
{
    static const char units[] = "KMGT";
    char *end;
    double number = g_ascii_strtod(text, &end);
    const char *unit = *end ? strchr(units, g_ascii_toupper(*end)) : NULL;
    double scale = unit ? exp2(10.0 * (double)(unit - units + 1)) : 1;
    const char *rest = unit ? end + 1 : end;
    bool known =
        strcmp(rest, "") == 0 ||
        (unit && (g_ascii_strcasecmp(rest, "B") == 0 || g_ascii_strcasecmp(rest, "iB") == 0));
    if (end == text || !known || !(number > 0) || number * scale > 1e15)
        return cs_fail(error, CS_ERROR_INVALID, "%s: expected a size such as 512M or 2G, found %s",
                       option, text);
    *size_bytes = (size_t)(number * scale);
    return true;
}

typedef struct {
    bool terminal;
    int shown_percent;
} progress;

/* One line that is written over on a terminal; elsewhere a line each quarter. */
static void on_progress(void *user, const char *stage, double fraction)
{
    progress *p = user;
    int percent = (int)(fraction * 100);
    if (percent == p->shown_percent ||
        (!p->terminal && percent / 25 == p->shown_percent / 25 && p->shown_percent >= 0))
        return;
    p->shown_percent = percent;
    if (p->terminal)
        fprintf(stderr, "\rloading %s: %3d %%%s", stage, percent, percent == 100 ? "\n" : "");
    else
        fprintf(stderr, "loading %s: %d %%\n", stage, percent);
    fflush(stderr);
}

static bool check_range(const char *option, int value, GError **error)
{
    if (value >= 0)
        return true;
    return cs_fail(error, CS_ERROR_INVALID, "%s: expected a positive number, found %d", option,
                   value);
}

cs_pipeline *cs_cli_load_model(const char *dir, const cs_cli_model_options *o, GError **error)
{
    progress shown = {.terminal = isatty(STDERR_FILENO), .shown_percent = -1};
    cs_pipeline_options options = {
        .dtype = o->dtype ? o->dtype : "auto",
        .isa = o->isa,
        .no_speech = o->no_speech,
        .plan = o->plan,
        .n_threads = (uint32_t)o->threads,
        .max_batch_tokens = (uint32_t)o->max_batch_tokens,
        .max_sequences = (uint32_t)o->max_sequences,
        .max_context_tokens = (uint32_t)o->max_context,
        .max_queued_requests = (uint32_t)o->max_queued,
        .progress = on_progress,
        .progress_user = &shown,
    };
    static const char *const dtypes[] = {"auto", "f32", "bf16", NULL};
    if (!g_strv_contains(dtypes, options.dtype)) {
        cs_fail(error, CS_ERROR_INVALID, "--dtype: expected auto, f32 or bf16, found %s",
                options.dtype);
        return NULL;
    }
    if (!check_range("--threads", o->threads, error) ||
        !check_range("--max-context", o->max_context, error) ||
        !check_range("--max-batch-tokens", o->max_batch_tokens, error) ||
        !check_range("--max-sequences", o->max_sequences, error) ||
        !check_range("--max-queued", o->max_queued, error))
        return NULL;
    if (o->kv_budget &&
        !cs_cli_parse_size(o->kv_budget, "--kv-budget", &options.kv_budget_bytes, error))
        return NULL;
    return cs_pipeline_new(dir, &options, error);
}
