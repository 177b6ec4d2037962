#include "models/model.h"

#include "base/error.h"
#include "base/json.h"
#include "models/families.h"
#include "models/qwen2_5_omni/token2wav.h"
#include "text/chat_template.h"

#include <string.h>

#define MAX_CONFIG_BYTES ((size_t)16 << 20)

static const cs_family *const families[] = {&cs_family_qwen2_5_omni};

static const cs_family *find_family(const cs_checkpoint *checkpoint, GError **error)
{
    g_autoptr(GString) known = g_string_new(NULL);
    const char *type =
        json_string_value(json_object_get(cs_checkpoint_config(checkpoint), "model_type"));
    for (size_t i = 0; i < G_N_ELEMENTS(families); i++) {
        if (type && strcmp(type, families[i]->name) == 0)
            return families[i];
        g_string_append_printf(known, "%s%s", i ? ", " : "", families[i]->name);
    }
    cs_fail(error, CS_ERROR_UNSUPPORTED,
            "%s/config.json: model_type %s%.60s%s is not implemented; known are %s",
            cs_checkpoint_dir(checkpoint), type ? "\"" : "", type ? type : "(none)",
            type ? "\"" : "", known->str);
    return NULL;
}

/* ---- The text side ---- */

static void add_eos(cs_generation_defaults *g, int64_t id)
{
    for (uint32_t i = 0; i < g->n_eos_ids; i++)
        if (g->eos_ids[i] == id)
            return;
    if (g->n_eos_ids < G_N_ELEMENTS(g->eos_ids))
        g->eos_ids[g->n_eos_ids++] = (int32_t)id;
}

static void read_eos(cs_json_reader *r, json_t *root, cs_generation_defaults *g)
{
    const json_t *value = json_object_get(root, "eos_token_id");
    if (json_is_array(value)) {
        int64_t ids[G_N_ELEMENTS(g->eos_ids)];
        size_t n = json_array_size(value);
        if (n > G_N_ELEMENTS(ids)) {
            cs_json_fault(r, "eos_token_id", "expected at most %zu ids, found %zu",
                          G_N_ELEMENTS(ids), n);
            return;
        }
        cs_json_ints(r, "eos_token_id", 0, INT32_MAX, ids, n);
        for (size_t i = 0; i < n && !r->error; i++)
            add_eos(g, ids[i]);
    } else if (cs_json_has(r, "eos_token_id")) {
        add_eos(g, cs_json_int(r, "eos_token_id", 0, INT32_MAX));
    }
}

/* A file that is not there leaves the defaults. */
static bool read_generation(cs_model *model, const char *dir, GError **error)
{
    cs_generation_defaults *g = &model->generation;
    *g = (cs_generation_defaults){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    g_autofree char *path = g_build_filename(dir, "generation_config.json", NULL);
    if (!g_file_test(path, G_FILE_TEST_EXISTS))
        return true;
    json_t *root = cs_json_load_file(path, MAX_CONFIG_BYTES, error);
    if (!root)
        return false;
    cs_json_reader r;
    cs_json_reader_init(&r, root, path);
    bool sample = cs_json_bool_or(&r, "do_sample", false);
    g->do_sample = sample;
    g->temperature = (float)cs_json_number_or(&r, "temperature", 0, 100, 1);
    g->top_k = (int32_t)cs_json_int_or(&r, "top_k", 0, INT32_MAX, 0);
    g->top_p = (float)cs_json_number_or(&r, "top_p", 0, 1, 1);
    g->repetition_penalty = (float)cs_json_number_or(&r, "repetition_penalty", 0.01, 100, 1);
    read_eos(&r, root, g);
    bool ok = cs_json_reader_finish(&r, error);
    json_decref(root);
    return ok;
}

/* The tokenizer's own end of turn ends an answer too: config files of some checkpoints name only
 * the end of a document. */
static void add_tokenizer_eos(cs_model *model, const char *dir)
{
    g_autofree char *path = g_build_filename(dir, "tokenizer_config.json", NULL);
    json_t *root = cs_json_load_file(path, MAX_CONFIG_BYTES, NULL);
    const json_t *eos = json_object_get(root, "eos_token");
    const char *content =
        json_string_value(json_is_object(eos) ? json_object_get(eos, "content") : eos);
    int32_t id = content ? cs_tokenizer_id(model->tokenizer, content) : -1;
    if (id >= 0)
        add_eos(&model->generation, id);
    json_decref(root);
}

/* A checkpoint without a template serves completions only. */
static bool load_template(cs_model *model, const char *dir, GError **error)
{
    GError *missing = NULL;
    model->chat_template = cs_chat_template_load(dir, &missing);
    if (model->chat_template || g_error_matches(missing, CS_ERROR, CS_ERROR_NOT_FOUND)) {
        g_clear_error(&missing);
        return true;
    }
    g_propagate_error(error, missing);
    return false;
}

static bool load_text(cs_model *model, const char *dir, GError **error)
{
    model->tokenizer = cs_tokenizer_load(dir, error);
    if (!model->tokenizer || !read_generation(model, dir, error))
        return false;
    add_tokenizer_eos(model, dir);
    return load_template(model, dir, error);
}

/* Ids from the tokenizer index the embedding table. */
static bool check_vocabulary(const cs_model *model, const char *dir, GError **error)
{
    if (!model->llm || !model->tokenizer ||
        cs_tokenizer_size(model->tokenizer) <= (int64_t)model->llm->vocab_size)
        return true;
    return cs_fail(error, CS_ERROR_INVALID,
                   "%s: tokenizer.json has %d tokens, the model's vocabulary %u", dir,
                   cs_tokenizer_size(model->tokenizer), model->llm->vocab_size);
}

/* ---- Loading ---- */

/* bf16 when most weights are 16 bits wide, else f32. */
static cs_dtype auto_dtype(const cs_checkpoint *checkpoint)
{
    uint64_t narrow = 0, wide = 0;
    for (uint32_t i = 0; i < cs_checkpoint_n_tensors(checkpoint); i++) {
        const cs_checkpoint_tensor *t = cs_checkpoint_tensor_at(checkpoint, i);
        if (t->computable)
            *(t->dtype == CS_DTYPE_F32 ? &wide : &narrow) +=
                t->size_bytes / cs_dtype_size_bytes(t->dtype);
    }
    return narrow >= wide ? CS_DTYPE_BF16 : CS_DTYPE_F32;
}

static bool choose_dtype(const cs_checkpoint *checkpoint, const char *name, cs_dtype *dtype,
                         GError **error)
{
    if (!name || strcmp(name, "auto") == 0)
        *dtype = auto_dtype(checkpoint);
    else if (strcmp(name, "f32") == 0)
        *dtype = CS_DTYPE_F32;
    else if (strcmp(name, "bf16") == 0)
        *dtype = CS_DTYPE_BF16;
    else
        return cs_fail(error, CS_ERROR_INVALID, "dtype \"%s\": expected auto, f32 or bf16", name);
    return true;
}

/* The text side is read beside the weights: a tokenizer of 150,000 entries takes as long as a
 * gigabyte. */
typedef struct {
    cs_model *model;
    const char *dir;
    bool skip;
    GError *error;
} text_load;

static gpointer text_load_main(gpointer data)
{
    text_load *load = data;
    if (load->skip)
        return GINT_TO_POINTER(true);
    return GINT_TO_POINTER(load_text(load->model, load->dir, &load->error));
}

bool cs_model_wants(const cs_model_options *options, const char *component)
{
    return !options->components || g_strv_contains(options->components, component);
}

cs_model *cs_model_load(const char *dir, const cs_model_options *options, GError **error)
{
    g_autoptr(cs_model) model = g_new0(cs_model, 1);
    g_autofree char *absolute = g_canonicalize_filename(dir, NULL);
    model->id = g_path_get_basename(absolute);
    model->checkpoint = cs_checkpoint_open(dir, error);
    if (!model->checkpoint)
        return NULL;
    cs_dtype dtype;
    const cs_family *family = find_family(model->checkpoint, error);
    if (!family || !choose_dtype(model->checkpoint, options->dtype, &dtype, error))
        return NULL;
    model->family = family;
    model->parameters = cs_parameters_new(options->compute);
    text_load text = {.model = model, .dir = dir, .skip = options->no_text};
    GThread *thread = g_thread_new("load-text", text_load_main, &text);
    bool loaded = family->load(model, dtype, options, error);
    if (!g_thread_join(thread)) {
        if (loaded)
            g_propagate_error(error, text.error);
        else
            g_error_free(text.error);
        return NULL;
    }
    return loaded && check_vocabulary(model, dir, error) ? g_steal_pointer(&model) : NULL;
}

void cs_model_free(cs_model *model)
{
    if (!model)
        return;
    if (model->llm)
        model->llm->ops->free(model->llm);
    if (model->speech) {
        if (model->speech->talker)
            model->speech->talker->ops->free(model->speech->talker);
        cs_token2wav_free(model->speech->token2wav);
        g_strfreev(model->speech->voices);
        g_free(model->speech->voice_tokens);
        g_free(model->speech);
    }
    for (int m = 0; m < CS_N_MODALITIES; m++) {
        cs_encoder *encoder = model->encoders[m];
        for (int other = m; encoder && other < CS_N_MODALITIES; other++)
            if (model->encoders[other] == encoder)
                model->encoders[other] = NULL;
        if (encoder)
            encoder->ops->free(encoder);
    }
    if (model->family)
        model->family->free(model);
    cs_parameters_free(model->parameters);
    cs_mel_extractor_free(model->mel);
    cs_tokenizer_free(model->tokenizer);
    cs_chat_template_free(model->chat_template);
    cs_checkpoint_close(model->checkpoint);
    g_free(model->id);
    g_free(model);
}

/* ---- Prompts ---- */

void cs_prompt_free(cs_prompt *prompt)
{
    if (!prompt)
        return;
    for (guint i = 0; i < prompt->items->len; i++)
        g_free(g_array_index(prompt->items, cs_prompt_item, i).owned);
    g_array_unref(prompt->items);
    g_array_unref(prompt->spans);
    g_free(prompt->token_ids);
    g_free(prompt->positions);
    g_free(prompt);
}

/* ---- Description ---- */

static cs_component_summary *summary_of(GArray *summaries, const char *name)
{
    for (guint i = 0; i < summaries->len; i++) {
        cs_component_summary *s = &g_array_index(summaries, cs_component_summary, i);
        if (strcmp(s->name, name) == 0)
            return s;
    }
    cs_component_summary fresh = {.name = name};
    g_array_append_val(summaries, fresh);
    return &g_array_index(summaries, cs_component_summary, summaries->len - 1);
}

static void add_dtype(cs_component_summary *s, const cs_checkpoint_tensor *t)
{
    const char *name = t->computable ? cs_dtype_name(t->dtype) : "other";
    if (!strstr(s->dtypes, name)) {
        if (s->dtypes[0])
            g_strlcat(s->dtypes, ", ", sizeof s->dtypes);
        g_strlcat(s->dtypes, name, sizeof s->dtypes);
    }
}

GArray *cs_model_describe(const cs_checkpoint *checkpoint, const char *dtype_name, GError **error)
{
    cs_dtype dtype;
    const cs_family *family = find_family(checkpoint, error);
    if (!family || !choose_dtype(checkpoint, dtype_name, &dtype, error))
        return NULL;
    GArray *summaries = g_array_new(FALSE, TRUE, sizeof(cs_component_summary));
    for (uint32_t i = 0; i < cs_checkpoint_n_tensors(checkpoint); i++) {
        const cs_checkpoint_tensor *t = cs_checkpoint_tensor_at(checkpoint, i);
        const char *component = family->component_of(t->name);
        cs_component_summary *s = summary_of(summaries, component ? component : "other");
        uint64_t elements = 1;
        for (uint32_t d = 0; d < t->n_dims; d++)
            elements *= (uint64_t)t->shape[d];
        s->parameters += elements;
        s->stored_bytes += t->size_bytes;
        /* Matrices take the dtype asked for; biases and norms are f32. */
        s->loaded_bytes += elements * (t->n_dims >= 2 ? cs_dtype_size_bytes(dtype) : sizeof(float));
        s->n_tensors++;
        add_dtype(s, t);
    }
    return summaries;
}
