/* cornserve inspect: what is in a checkpoint directory, without loading it. */
#include "base/error.h"
#include "cli/cli.h"
#include "models/model.h"

#include <stdio.h>
#include <string.h>

static char *dtype;
static gboolean as_json;

static const GOptionEntry entries[] = {
    {"dtype", 0, 0, G_OPTION_ARG_STRING, &dtype,
     "Precision to reckon memory for: auto (the checkpoint's), f32 or bf16", "TYPE"},
    {"json", 0, 0, G_OPTION_ARG_NONE, &as_json, "Print JSON", NULL},
    {NULL},
};

static const cs_cli_spec spec = {
    .name = "inspect",
    .arguments = "DIR",
    .description =
        "Prints the components of the checkpoint in DIR: tensors, parameters, how they are stored, "
        "and the memory\n"
        "that the weights of each would take when loaded (without KV cache and activations).",
    .example = "  cornserve inspect ~/models/Qwen2.5-Omni-3B --dtype bf16",
    .entries = entries,
    .min_arguments = 1,
    .max_arguments = 1,
};

static cs_component_summary sum(const GArray *components)
{
    cs_component_summary total = {.name = "total"};
    for (guint i = 0; i < components->len; i++) {
        const cs_component_summary *c = &g_array_index(components, cs_component_summary, i);
        total.n_tensors += c->n_tensors;
        total.parameters += c->parameters;
        total.stored_bytes += c->stored_bytes;
        total.loaded_bytes += c->loaded_bytes;
    }
    return total;
}

/* "3.09 G", "417 k": three digits that tell. */
static char *short_number(double value, double step, const char *const *units)
{
    size_t unit = 0;
    for (; value >= step && units[unit + 1]; unit++)
        value /= step;
    int digits = unit == 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
    return g_strdup_printf("%.*f %s", digits, value, units[unit]);
}

static void print_row(const cs_component_summary *c, int width)
{
    static const char *const powers[] = {"", "k", "M", "G", "T", NULL};
    static const char *const bytes[] = {"B", "KiB", "MiB", "GiB", "TiB", NULL};
    g_autofree char *parameters = short_number((double)c->parameters, 1000, powers);
    g_autofree char *stored = short_number((double)c->stored_bytes, 1024, bytes);
    g_autofree char *loaded = short_number((double)c->loaded_bytes, 1024, bytes);
    printf("%-*s  %8u  %10s  %-10s  %12s  %12s\n", width, c->name, c->n_tensors, parameters,
           c->dtypes, stored, loaded);
}

static void print_table(const cs_checkpoint *checkpoint, const GArray *components)
{
    int width = (int)strlen("component");
    for (guint i = 0; i < components->len; i++)
        width = MAX(width, (int)strlen(g_array_index(components, cs_component_summary, i).name));
    const char *family =
        json_string_value(json_object_get(cs_checkpoint_config(checkpoint), "model_type"));
    printf("%s: %s\n\n", cs_checkpoint_dir(checkpoint), family ? family : "of no named family");
    printf("%-*s  %8s  %10s  %-10s  %12s  %12s\n", width, "component", "tensors", "parameters",
           "stored as", "stored", "loaded");
    for (guint i = 0; i < components->len; i++)
        print_row(&g_array_index(components, cs_component_summary, i), width);
    cs_component_summary total = sum(components);
    print_row(&total, width);
}

static json_t *to_json(const cs_component_summary *c)
{
    return json_pack("{s:s,s:I,s:I,s:s,s:I,s:I}", "name", c->name, "tensors",
                     (json_int_t)c->n_tensors, "parameters", (json_int_t)c->parameters, "dtypes",
                     c->dtypes, "stored_bytes", (json_int_t)c->stored_bytes, "loaded_bytes",
                     (json_int_t)c->loaded_bytes);
}

static void print_json(const cs_checkpoint *checkpoint, const GArray *components)
{
    json_t *list = json_array();
    for (guint i = 0; i < components->len; i++)
        json_array_append_new(list, to_json(&g_array_index(components, cs_component_summary, i)));
    json_t *family = json_object_get(cs_checkpoint_config(checkpoint), "model_type");
    json_t *all =
        json_pack("{s:i,s:s,s:O?,s:o}", "version", 1, "directory", cs_checkpoint_dir(checkpoint),
                  "model_type", family, "components", list);
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
}

int cs_cli_inspect(int argc, char **argv)
{
    int exit_code;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    GError *error = NULL;
    g_autoptr(cs_checkpoint) checkpoint = cs_checkpoint_open(argv[1], &error);
    g_autoptr(GArray) components = checkpoint ? cs_model_describe(checkpoint, dtype, &error) : NULL;
    if (!components)
        return cs_cli_fail(spec.name, error);
    if (as_json)
        print_json(checkpoint, components);
    else
        print_table(checkpoint, components);
    return CS_EXIT_OK;
}
