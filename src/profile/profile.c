#include "profile/profile.h"

#include "base/error.h"
#include "base/os.h"
#include "models/qwen2_5_omni/token2wav.h"
#include "profile/profile_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIN_SAMPLES 2
#define SURE_SAMPLES 5 /* before a standard error is believed */
#define MAX_SAMPLES 200
#define STANDARD_ERROR 0.01 /* of the mean */
#define MIXED_STEP_S 0.1    /* for which executors aim while answers are written */

/* ---- points ---- */

bool profile_is_cancelled(const cs_profiler_options *options)
{
    return options->cancel && *options->cancel;
}

cs_profiler_entry *profile_add_entry(profile_run *run, cs_plan_role role)
{
    cs_profiler_entry *entry = g_new0(cs_profiler_entry, 1);
    entry->component = g_strdup(run->component);
    entry->role = role;
    entry->threads = run->threads;
    entry->max_batch = 1;
    entry->samples = g_array_new(FALSE, FALSE, sizeof(cs_profiler_sample));
    g_ptr_array_add(run->result->entries, entry);
    return entry;
}

profile_point profile_point_new(const profile_run *run, cs_profiler_entry *entry, double work,
                                double share_s, uint32_t warm_up)
{
    return (profile_point){.entry = entry,
                           .cancel = run->options->cancel,
                           .work = work,
                           .share_s = share_s,
                           .warm_up = warm_up};
}

void profile_point_add(profile_point *point, double seconds)
{
    if (point->warm_up > 0) {
        point->warm_up--;
        return;
    }
    if (profile_point_is_done(point))
        return;
    cs_profiler_sample sample = {point->work, MAX(seconds, 1e-9)};
    g_array_append_val(point->entry->samples, sample);
    point->n++;
    point->sum_s += seconds;
    point->sum_squares += seconds * seconds;
}

/* Of the mean, as a share of it. */
static double standard_error(const profile_point *point)
{
    double mean = point->sum_s / point->n;
    double variance = MAX(point->sum_squares / point->n - mean * mean, 0);
    return sqrt(variance / (point->n - 1)) / mean;
}

bool profile_point_is_done(const profile_point *point)
{
    if (point->cancel && *point->cancel)
        return true;
    if (point->n < MIN_SAMPLES)
        return false;
    return point->n >= MAX_SAMPLES || point->sum_s >= point->share_s ||
           (point->n >= SURE_SAMPLES && standard_error(point) < STANDARD_ERROR);
}

void profile_point_say(const profile_run *run, const profile_point *point, const char *format, ...)
{
    if (!run->options->say || point->n < MIN_SAMPLES)
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *line =
        g_strdup_printf("%s, %u thread%s, %s: %.4g ms +- %.1f %% (%u steps)", run->component,
                        run->threads, run->threads == 1 ? "" : "s", what,
                        1e3 * point->sum_s / point->n, 100 * standard_error(point), point->n);
    run->options->say(run->options->user, line);
}

/* ---- components ---- */

typedef enum { PROFILE_LLM, PROFILE_ENCODER, PROFILE_TALKER, PROFILE_GENERATOR } profile_kind;

static const struct {
    const char *name;
    profile_kind kind;
    cs_modality modality;
} known[] = {
    {"image_encoder", PROFILE_ENCODER, CS_MODALITY_IMAGE},
    {"audio_encoder", PROFILE_ENCODER, CS_MODALITY_AUDIO},
    {"thinker", PROFILE_LLM, CS_N_MODALITIES},
    {"talker", PROFILE_TALKER, CS_N_MODALITIES},
    {"vocoder", PROFILE_GENERATOR, CS_N_MODALITIES},
};

static size_t find_known(const char *component)
{
    size_t i = 0;
    while (i < G_N_ELEMENTS(known) && strcmp(known[i].name, component) != 0)
        i++;
    return i;
}

bool cs_profiler_knows(const char *component)
{
    return find_known(component) < G_N_ELEMENTS(known);
}

/* ---- memory ---- */

/* Of this process and of nobody else: what it has written to. */
static double anonymous_bytes(void)
{
    g_autofree char *status = NULL;
    const char *line;
    if (!g_file_get_contents("/proc/self/status", &status, NULL, NULL) ||
        !(line = strstr(status, "RssAnon:")))
        return 0;
    return (double)g_ascii_strtoull(line + strlen("RssAnon:"), NULL, 10) * 1024;
}

void profile_note_activations(profile_run *run, double other_bytes)
{
    double grown = anonymous_bytes() - run->before_bytes - run->memory.weights_bytes - other_bytes;
    run->memory.activation_bytes = MAX(grown, 0);
}

static void keep_memory(cs_profiler_result *result, const profile_run *run)
{
    cs_profiler_memory *kept = NULL;
    for (guint i = 0; i < result->memory->len; i++)
        if (strcmp(((cs_profiler_memory *)result->memory->pdata[i])->component, run->component) ==
            0)
            kept = result->memory->pdata[i];
    if (!kept) {
        kept = g_new0(cs_profiler_memory, 1);
        kept->component = g_strdup(run->component);
        g_ptr_array_add(result->memory, kept);
    }
    kept->weights_bytes = MAX(kept->weights_bytes, run->memory.weights_bytes);
    kept->activation_bytes = MAX(kept->activation_bytes, run->memory.activation_bytes);
    kept->kv_bytes_per_token = MAX(kept->kv_bytes_per_token, run->memory.kv_bytes_per_token);
}

/* ---- others ---- */

#define CACHE_BYTES (64.0 * 1048576) /* of a CPU that does not tell */
#define LINE_WORDS 8

static bool make_others(profile_run *run, double bytes, GError **error)
{
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    run->n_others = (size_t)(MIN(bytes, cache > 0 ? (double)cache : CACHE_BYTES) / 8);
    run->others = g_try_malloc_n(run->n_others, sizeof *run->others);
    if (run->n_others > 0 && !run->others)
        return cs_fail(error, CS_ERROR_FAILED, "no memory for %zu bytes that others read",
                       run->n_others * sizeof *run->others);
    for (size_t i = 0; i < run->n_others; i += LINE_WORDS) /* pages of its own */
        run->others[i] = i;
    return true;
}

void profile_let_others(const profile_run *run)
{
    const volatile uint64_t *words = run->others;
    for (size_t i = 0; i < run->n_others; i += LINE_WORDS)
        (void)words[i];
}

/* ---- runs ---- */

static void keep_stream(cs_profiler_result *result, const profile_run *run)
{
    for (guint i = 0; i < result->streams->len; i++)
        if (strcmp(((cs_profiler_stream *)result->streams->pdata[i])->component, run->component) ==
            0)
            return;
    cs_profiler_stream *kept = g_memdup2(&run->stream, sizeof run->stream);
    kept->component = g_strdup(run->component);
    g_ptr_array_add(result->streams, kept);
}

static bool measure(profile_run *run, profile_kind kind, cs_modality modality, GError **error)
{
    cs_speech *speech = run->model->speech;
    if (kind == PROFILE_LLM)
        return profile_llm(run, g_steal_pointer(&run->model->llm), NULL, error);
    if (kind == PROFILE_ENCODER)
        return profile_encoder(run, modality, error);
    if (!speech)
        return cs_fail(error, CS_ERROR_NOT_FOUND, "%s: the checkpoint does not speak",
                       run->component);
    if (kind == PROFILE_TALKER)
        return profile_llm(run, g_steal_pointer(&speech->talker), speech, error);
    return profile_generator(run, cs_token2wav_generator(speech->token2wav), error);
}

static bool load_and_measure(profile_run *run, GError **error)
{
    const cs_profiler_options *o = run->options;
    size_t which = find_known(run->component);
    if (which == G_N_ELEMENTS(known))
        return cs_fail(error, CS_ERROR_UNSUPPORTED,
                       "component %s: executors of this machine do not run it", run->component);
    run->before_bytes = anonymous_bytes();
    g_autoptr(cs_compute) compute =
        cs_compute_new(&(cs_compute_options){.n_threads = run->threads, .isa = o->isa}, error);
    if (!compute)
        return false;
    const char *only[] = {run->component, NULL};
    g_autoptr(cs_model) model =
        cs_model_load(o->dir,
                      &(cs_model_options){.compute = compute,
                                          .dtype = o->dtype,
                                          .components = only,
                                          .speech = known[which].kind >= PROFILE_TALKER,
                                          .no_text = known[which].kind != PROFILE_LLM},
                      error);
    if (!model)
        return false;
    if (!run->result->isa)
        run->result->isa = g_strdup(cs_compute_isa(compute));
    run->model = model;
    run->memory.weights_bytes = (double)cs_parameters_bytes(model->parameters);
    if (!measure(run, known[which].kind, known[which].modality, error))
        return false;
    keep_memory(run->result, run);
    if (run->stream.piece > 0)
        keep_stream(run->result, run);
    return true;
}

static bool run_one(profile_run *run, double others_bytes, GError **error)
{
    bool ok = make_others(run, others_bytes, error) && load_and_measure(run, error);
    g_free(run->others);
    return ok;
}

static void free_entry(void *data)
{
    cs_profiler_entry *entry = data;
    g_free(entry->component);
    g_array_unref(entry->samples);
    g_free(entry);
}

static void free_memory(void *data)
{
    g_free(((cs_profiler_memory *)data)->component);
    g_free(data);
}

static void free_stream(void *data)
{
    g_free(((cs_profiler_stream *)data)->component);
    g_free(data);
}

void cs_profiler_result_free(cs_profiler_result *result)
{
    if (!result)
        return;
    g_ptr_array_unref(result->entries);
    g_ptr_array_unref(result->memory);
    g_ptr_array_unref(result->streams);
    g_free(result->isa);
    g_free(result);
}

cs_profiler_result *cs_profiler_run(const cs_profiler_options *options, GError **error)
{
    g_autoptr(cs_profiler_result) result = g_new0(cs_profiler_result, 1);
    result->entries = g_ptr_array_new_with_free_func(free_entry);
    result->memory = g_ptr_array_new_with_free_func(free_memory);
    result->streams = g_ptr_array_new_with_free_func(free_stream);
    for (uint32_t c = 0; options->components[c]; c++)
        for (uint32_t t = 0; t < options->threads.n && !profile_is_cancelled(options); t++) {
            profile_run run = {.options = options,
                               .result = result,
                               .component = options->components[c],
                               .threads = options->threads.values[t]};
            if (!run_one(&run, options->others_bytes ? options->others_bytes[c] : 0, error))
                return NULL;
        }
    result->cancelled = profile_is_cancelled(options);
    return g_steal_pointer(&result);
}

/* ---- files ---- */

static json_t *entry_json(const cs_profiler_entry *entry)
{
    json_t *samples = json_array();
    for (guint i = 0; i < entry->samples->len; i++) {
        const cs_profiler_sample *s = &g_array_index(entry->samples, cs_profiler_sample, i);
        json_array_append_new(samples,
                              json_pack("{s:f, s:f}", "work", s->work, "seconds", s->seconds));
    }
    json_t *object =
        json_pack("{s:s, s:s, s:i, s:i}", "component", entry->component, "device", "cpu", "count",
                  (int)entry->threads, "max_batch", (int)entry->max_batch);
    if (entry->role != CS_ROLE_BOTH)
        json_object_set_new(object, "role", json_string(cs_plan_role_name(entry->role)));
    if (entry->chunk_units > 0)
        json_object_set_new(object, "chunk_units", json_integer(entry->chunk_units));
    if (entry->role == CS_ROLE_PREFILL)
        json_object_set_new(object, "mixed_step_s", json_real(MIXED_STEP_S));
    if (entry->turns > 1)
        json_object_set_new(object, "turns", json_integer(entry->turns));
    json_object_set_new(object, "samples", samples);
    return object;
}

json_t *cs_profiler_to_json(const cs_profiler_result *result, const char *name)
{
    json_t *profiles = json_array();
    for (guint i = 0; i < result->entries->len; i++) {
        const cs_profiler_entry *entry = result->entries->pdata[i];
        if (entry->samples->len >= MIN_SAMPLES)
            json_array_append_new(profiles, entry_json(entry));
    }
    return json_pack("{s:i, s:s, s:o}", "version", 1, "name", name, "profiles", profiles);
}

static void set_memory(const cs_profiler_result *result, json_t *component)
{
    const char *name = json_string_value(json_object_get(component, "name"));
    for (guint i = 0; i < result->memory->len; i++) {
        const cs_profiler_memory *m = result->memory->pdata[i];
        if (strcmp(m->component, name) != 0)
            continue;
        json_object_set_new(component, "weights_bytes", json_real(m->weights_bytes));
        json_object_set_new(component, "activation_bytes", json_real(m->activation_bytes));
        if (m->kv_bytes_per_token > 0)
            json_object_set_new(component, "kv_bytes_per_token", json_real(m->kv_bytes_per_token));
    }
}

static void set_pieces(const cs_profiler_stream *stream, json_t *component)
{
    if (strcmp(stream->component, json_string_value(json_object_get(component, "name"))) != 0 ||
        stream->piece <= 1)
        return;
    json_object_set_new(component, "first_piece", json_real(stream->first_piece));
    json_object_set_new(component, "piece", json_real(stream->piece));
    if (stream->piece_extra > 0)
        json_object_set_new(component, "piece_extra", json_real(stream->piece_extra));
}

/* Of an edge that streams to the component. */
static void set_ahead(const cs_profiler_stream *stream, json_t *edge)
{
    if (strcmp(stream->component, json_string_value(json_object_get(edge, "to"))) == 0 &&
        json_integer_value(json_object_get(edge, "chunks")) > 1)
        json_object_set_new(edge, "ahead", json_real(stream->ahead));
}

void cs_profiler_set_graph(const cs_profiler_result *result, json_t *graph)
{
    size_t c, e;
    json_t *component, *edge;
    json_array_foreach (json_object_get(graph, "components"), c, component) {
        set_memory(result, component);
        for (guint i = 0; i < result->streams->len; i++)
            set_pieces(result->streams->pdata[i], component);
    }
    json_array_foreach (json_object_get(graph, "edges"), e, edge)
        for (guint i = 0; i < result->streams->len; i++)
            set_ahead(result->streams->pdata[i], edge);
}
