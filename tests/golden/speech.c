/* Qwen2.5-Omni's speech against the reference implementation: DiT, mel and waveform.
 *
 * With the weights in f32 on every instruction set of this CPU every boundary must agree. In bf16
 * the reference has no figure, since it computes token2wav in f32 only; the general bar holds.
 */
#include "base/json.h"
#include "models/qwen2_5_omni/dit.h"
#include "models/qwen2_5_omni/vocoder.h"
#include "settings.h"

#include <stdlib.h>

static char *golden_dir;
static json_t *utterances;

typedef struct {
    const golden_setting *setting;
    cs_compute *compute;
    cs_qwen2_5_omni_config config;
    cs_dit *dit;
    cs_vocoder *vocoder;
    cs_speakers speakers;
    const golden_file *file;
    int64_t evaluations; /* of the DiT, in this utterance */
} run;

static void check(const run *r, const char *name, const float *got, int64_t cols)
{
    double error = golden_error(r->file, name, got, cols);
    if (error < 0)
        return;
    golden_hold("token2wav", name, error,
                golden_is_bf16(r->setting) ? GOLDEN_BAR_BF16 : GOLDEN_BAR_F32);
}

static float *download(const run *r, const cs_tensor *t)
{
    float *values = g_new(float, t->rows * t->cols);
    cs_tensor_read(r->compute, values, t);
    return values;
}

/* ---- DiT ---- */

/* The first evaluation of an utterance is golden inside. */
static void dit_tap(void *user, int64_t layer, const cs_tensor *rows)
{
    run *r = user;
    bool last = layer == r->config.dit.n_layers;
    const char *name = layer == -1  ? "dit.input"
                       : layer == 0 ? "dit.block0"
                       : layer == 1 ? "dit.block1"
                       : last       ? "dit.out"
                                    : NULL;
    if (name && r->evaluations == 0) {
        g_autofree float *values = download(r, rows);
        g_autofree char *guided = g_strconcat(name, ".guided", NULL);
        g_autofree char *null = g_strconcat(name, ".null", NULL);
        check(r, guided, values, rows->cols);
        check(r, null, values + rows->rows / 2 * rows->cols, rows->cols);
    }
    r->evaluations += last;
}

static void check_times(const run *r)
{
    const cs_checkpoint_tensor *times = golden_get(r->file, "dit.times");
    for (uint32_t i = 0; i <= CS_DIT_STEPS; i++) {
        float t = i < CS_DIT_STEPS ? cs_dit_time(i, 0) : cs_dit_time(i - 1, 3);
        g_assert_cmpfloat(fabsf(t - ((const float *)times->data)[i]), <=, 3e-7);
    }
}

static cs_dit_window *open_window(const run *r, const cs_dit_voice *voice)
{
    const cs_checkpoint_tensor *codes = golden_get(r->file, "codes");
    g_autoptr(GError) error = NULL;
    cs_dit_window *window = cs_dit_window_new(r->dit, voice, codes->shape[0], codes->data,
                                              golden_get(r->file, "dit.noise")->data, &error);
    g_assert_no_error(error);
    return window;
}

static void check_dit(run *r, cs_dit_window *window, int64_t n_mels)
{
    r->evaluations = 0;
    cs_dit_set_tap(r->dit, dit_tap, r);
    for (int step = 1; step <= CS_DIT_STEPS; step++) {
        g_autoptr(GError) error = NULL;
        cs_dit_step(r->dit, 1, &window, &error);
        g_assert_no_error(error);
        g_autofree char *name =
            step == CS_DIT_STEPS ? g_strdup("mel") : g_strdup_printf("dit.state%d", step);
        check(r, name, cs_dit_window_state(window), n_mels);
    }
    cs_dit_set_tap(r->dit, NULL, NULL);
}

/* ---- Vocoder ---- */

/* Golden tensors of the vocoder are [channels, time]. */
static void vocoder_tap(void *user, int64_t stage, int part, const cs_tensor *rows)
{
    run *r = user;
    const char *name = stage == -1               ? "vocoder.pre"
                       : stage == 0 && part == 0 ? "vocoder.up0"
                       : stage == 0              ? "vocoder.up1"
                                                 : NULL;
    if (!name)
        return;
    g_autofree float *values = download(r, rows);
    g_autofree float *turned = g_new(float, rows->rows * rows->cols);
    for (int64_t t = 0; t < rows->rows; t++)
        for (int64_t c = 0; c < rows->cols; c++)
            turned[c * rows->rows + t] = values[t * rows->cols + c];
    check(r, name, turned, rows->rows);
}

/* From the reference's mel frames, so that errors are the vocoder's own. */
static float *check_vocoder(run *r)
{
    const cs_checkpoint_tensor *mel = golden_get(r->file, "mel"),
                               *wave = golden_get(r->file, "waveform");
    int64_t n = mel->shape[0] * cs_vocoder_samples_per_frame(r->vocoder);
    g_assert_cmpint(n, ==, wave->shape[0]);
    float *samples = g_new(float, n);
    g_autoptr(GError) error = NULL;
    cs_vocoder_set_tap(r->vocoder, vocoder_tap, r);
    cs_vocoder_run(r->vocoder, mel->shape[0], mel->data, samples, &error);
    cs_vocoder_set_tap(r->vocoder, NULL, NULL);
    g_assert_no_error(error);
    check(r, "waveform", samples, n);
    return samples;
}

/* Samples of frames in the middle, from no more frames than they depend on, are the same bits. */
static void check_context(run *r, const float *samples)
{
    const cs_checkpoint_tensor *mel = golden_get(r->file, "mel");
    int64_t context = cs_vocoder_context(r->vocoder), n_mels = r->config.dit.n_mels;
    int64_t rate = cs_vocoder_samples_per_frame(r->vocoder), first = 2, n = 2 * context + 3;
    if (first + n > mel->shape[0])
        return;
    g_autofree float *part = g_new(float, n *rate);
    g_autoptr(GError) error = NULL;
    cs_vocoder_run(r->vocoder, n, (const float *)mel->data + first * n_mels, part, &error);
    g_assert_no_error(error);
    size_t size = (size_t)(3 * rate) * sizeof(float);
    g_assert_cmpmem(part + context * rate, size, samples + (first + context) * rate, size);
}

/* ---- Utterances ---- */

static void replay(run *r, json_t *utterance)
{
    golden_file file =
        golden_open(golden_dir, json_string_value(json_object_get(utterance, "file")));
    r->file = &file;
    check_times(r);
    const cs_speaker *speaker =
        cs_speakers_find(&r->speakers, json_string_value(json_object_get(utterance, "speaker")));
    g_assert_nonnull(speaker);
    cs_dit_voice voice;
    g_autoptr(GError) error = NULL;
    cs_dit_voice_init(&voice, r->dit, speaker, &error);
    g_assert_no_error(error);
    check(r, "dit.speaker", voice.speaker, r->config.dit.speaker_size);
    g_autoptr(cs_dit_window) window = open_window(r, &voice);
    check_dit(r, window, r->config.dit.n_mels);
    g_autofree float *samples = check_vocoder(r);
    check_context(r, samples);
    cs_dit_voice_clear(&voice);
    golden_close(&file);
}

/* All of them, or the one named ITEM. */
static void replay_all(run *r, const char *dir, const char *item)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *voices = g_build_filename(dir, "spk_dict.pt", NULL);
    g_autoptr(cs_checkpoint) checkpoint = cs_checkpoint_open(dir, &error);
    g_assert_no_error(error);
    cs_qwen2_5_omni_config_read(&r->config, cs_checkpoint_config(checkpoint), "config.json",
                                &error);
    g_assert_no_error(error);
    g_assert_true(r->config.speaks);
    cs_speakers_read(&r->speakers, voices, r->config.dit.voice_size, r->config.dit.n_mels,
                     r->config.text.vocab_size, &error);
    g_assert_no_error(error);
    cs_parameters *parameters = cs_parameters_new(r->compute);
    cs_loader loader = {.checkpoint = checkpoint,
                        .parameters = parameters,
                        .dtype = golden_is_bf16(r->setting) ? CS_DTYPE_BF16 : CS_DTYPE_F32};
    r->dit = cs_dit_load(&loader, r->compute, &r->config.dit, "token2wav.code2wav_dit_model");
    r->vocoder = cs_vocoder_load(&loader, r->compute, &r->config.vocoder,
                                 "token2wav.code2wav_bigvgan_model");
    cs_loader_finish(&loader, &error);
    g_assert_no_error(error);
    size_t i;
    json_t *utterance;
    json_array_foreach (utterances, i, utterance)
        if (!item || g_str_equal(json_string_value(json_object_get(utterance, "name")), item))
            replay(r, utterance);
    cs_dit_free(r->dit);
    cs_vocoder_free(r->vocoder);
    cs_speakers_clear(&r->speakers);
    cs_parameters_free(parameters);
}

static void test_utterances(const void *data)
{
    run r = {.setting = data};
    r.compute = golden_compute(r.setting);
    if (!r.compute)
        return;
    g_autofree char *dir = g_build_filename(golden_dir, "qwen2.5-omni-tiny", NULL);
    replay_all(&r, dir, NULL);
    cs_compute_free(r.compute);
}

static void measure(const char *dir, const char *item)
{
    static const golden_setting f32 = {.dtype = "f32"};
    run r = {.setting = &f32};
    g_autoptr(GError) error = NULL;
    r.compute = cs_compute_new(&(cs_compute_options){.n_threads = 2}, &error);
    g_assert_no_error(error);
    golden_measuring = true;
    replay_all(&r, dir, item);
    cs_compute_free(r.compute);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_assert_true(argc == 2 ||
                  argc == 4); /* golden directory; to measure, a checkpoint and an item */
    golden_dir = argv[1];
    g_autofree char *path = g_build_filename(golden_dir, "speech.json", NULL);
    g_autoptr(GError) error = NULL;
    json_t *root = cs_json_load_file(path, 1 << 24, &error);
    g_assert_no_error(error);
    utterances = json_object_get(root, "utterances");
    golden_settings_add("/golden/speech", test_utterances);
    int result = 0;
    if (argc == 4)
        measure(argv[2], argv[3]);
    else
        result = g_test_run();
    json_decref(root);
    return result;
}
