/* Speed of token2wav at real sizes on one thread, as a share of the peak of its instruction, both
 * measured in this run.
 *
 *     build/bench/speech CHECKPOINT [--isa NAME] [--dtype f32|bf16] [--only dit|vocoder] [--repeat
 * N]
 *
 * CHECKPOINT is a Qwen2.5-Omni directory that speaks; tools/reference/full_size --speech 3b makes
 * one with random weights. A DiT step is four evaluations of both halves; a window needs nine.
 */
#include "base/os.h"
#include "models/qwen2_5_omni/token2wav.h"
#include "peak.h"

#include <math.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPEAT = 3 }; /* of the peak */

static struct {
    const char *isa, *dtype, *only;
    int repeat;
} options = {.dtype = "bf16", .only = "", .repeat = 3};

static double seconds(void)
{
    return (double)cs_now_us() * 1e-6;
}

static double peak(const char *isa, cs_dtype dtype)
{
    double best = 0;
    for (int r = 0; r < REPEAT; r++) {
        double start = seconds();
        double operations = cs_peak_of(isa, dtype == CS_DTYPE_BF16)(2000000);
        best = MAX(best, operations / (seconds() - start));
    }
    return best;
}

static void fail_on(const GError *error)
{
    if (error) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
}

static double dit_operations(const cs_qwen2_5_omni_dit_config *c, double rows)
{
    double inner = (double)(c->n_heads * c->head_dim), hidden = (double)c->hidden_size;
    double layer = 4 * hidden * inner + 2 * hidden * (double)c->ff_size;
    return 2 * rows * ((double)c->n_layers * layer + 2 * hidden * (double)c->n_mels);
}

static double vocoder_operations(const cs_qwen2_5_omni_vocoder_config *c, double frames)
{
    double rows = frames, total = frames * 7 * (double)(c->n_mels * c->channels);
    for (int64_t s = 0; s < c->n_stages; s++) {
        double in = (double)(c->channels >> s), out = (double)(c->channels >> (s + 1));
        total += rows * in * out * (double)c->rate_kernels[s];
        rows *= (double)c->rates[s];
        for (int64_t b = 0; b < c->n_blocks; b++)
            total += rows * 2 * CS_VOCODER_DILATIONS * out * out * (double)c->block_kernels[b];
    }
    return 2 * total;
}

static void report(const char *what, double took, double operations, double most, double sound)
{
    printf("%-28s %8.1f ms  %7.1f Gop/s  %5.1f %% of peak  %6.2f s of work for a second of sound\n",
           what, took * 1e3, operations / took * 1e-9, 100 * operations / took / most,
           took / sound);
}

static void measure_dit(cs_dit *dit, const cs_qwen2_5_omni_config *config,
                        const cs_speaker *speaker, int64_t n_codes, double most)
{
    const cs_qwen2_5_omni_dit_config *c = &config->dit;
    cs_dit_voice voice;
    g_autoptr(GError) error = NULL;
    cs_dit_voice_init(&voice, dit, speaker, &error);
    fail_on(error);
    int64_t frames = n_codes * c->repeats;
    g_autofree int32_t *codes = g_new0(int32_t, n_codes);
    g_autofree float *noise = g_new0(float, frames * c->n_mels);
    g_autoptr(cs_dit_window) w = cs_dit_window_new(dit, &voice, n_codes, codes, noise, &error);
    fail_on(error);
    double best = INFINITY;
    for (int r = 0; r < options.repeat; r++) {
        if (cs_dit_window_steps(w) == CS_DIT_STEPS) {
            cs_dit_window_free(w);
            w = cs_dit_window_new(dit, &voice, n_codes, codes, noise, &error);
            fail_on(error);
        }
        double start = seconds();
        cs_dit_step(dit, 1, &w, &error);
        fail_on(error);
        best = MIN(best, seconds() - start);
    }
    g_autofree char *what = g_strdup_printf("DiT step, %d codes", (int)n_codes);
    report(what, best, 4 * dit_operations(c, 2 * (double)frames), most,
           (double)n_codes * 480 / CS_VOCODER_RATE / CS_DIT_STEPS);
    cs_dit_voice_clear(&voice);
}

static void measure_vocoder(cs_vocoder *vocoder, const cs_qwen2_5_omni_config *config,
                            int64_t frames, double most)
{
    g_autoptr(GError) error = NULL;
    int64_t rate = cs_vocoder_samples_per_frame(vocoder);
    g_autofree float *mel = g_new0(float, frames * config->vocoder.n_mels);
    g_autofree float *samples = g_new(float, frames *rate);
    double best = INFINITY;
    for (int r = 0; r < options.repeat; r++) {
        double start = seconds();
        cs_vocoder_run(vocoder, frames, mel, samples, &error);
        fail_on(error);
        best = MIN(best, seconds() - start);
    }
    g_autofree char *what = g_strdup_printf("vocoder, %d frames", (int)frames);
    report(what, best, vocoder_operations(&config->vocoder, (double)frames), most,
           (double)(frames * rate) / CS_VOCODER_RATE);
}

int main(int argc, char **argv)
{
    for (int i = 2; i + 1 < argc; i += 2)
        if (strcmp(argv[i], "--repeat") == 0)
            options.repeat = atoi(argv[i + 1]);
        else
            *(strcmp(argv[i], "--isa") == 0    ? &options.isa
              : strcmp(argv[i], "--only") == 0 ? &options.only
                                               : &options.dtype) = argv[i + 1];
    if (argc < 2) {
        fprintf(stderr, "speech CHECKPOINT [--isa NAME] [--dtype f32|bf16] [--only dit|vocoder] "
                        "[--repeat N]\n");
        return 2;
    }
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_compute) compute =
        cs_compute_new(&(cs_compute_options){.n_threads = 1, .isa = options.isa}, &error);
    fail_on(error);
    g_autoptr(cs_checkpoint) checkpoint = cs_checkpoint_open(argv[1], &error);
    fail_on(error);
    cs_qwen2_5_omni_config config;
    cs_qwen2_5_omni_config_read(&config, cs_checkpoint_config(checkpoint), argv[1], &error);
    fail_on(error);
    cs_dtype dtype = strcmp(options.dtype, "f32") == 0 ? CS_DTYPE_F32 : CS_DTYPE_BF16;
    cs_parameters *parameters = cs_parameters_new(compute);
    cs_loader loader = {.checkpoint = checkpoint, .parameters = parameters, .dtype = dtype};
    g_autoptr(cs_dit) dit =
        cs_dit_load(&loader, compute, &config.dit, "token2wav.code2wav_dit_model");
    g_autoptr(cs_vocoder) vocoder =
        cs_vocoder_load(&loader, compute, &config.vocoder, "token2wav.code2wav_bigvgan_model");
    cs_loader_finish(&loader, &error);
    fail_on(error);
    g_autofree char *path = g_build_filename(argv[1], "spk_dict.pt", NULL);
    cs_speakers speakers;
    cs_speakers_read(&speakers, path, config.dit.voice_size, config.dit.n_mels,
                     config.text.vocab_size, &error);
    fail_on(error);
    double most = peak(cs_compute_isa(compute), dtype);
    printf("%s, %s, one thread: peak %.1f Gop/s\n", cs_compute_isa(compute), options.dtype,
           most * 1e-9);
    if (strcmp(options.only, "vocoder") != 0) {
        measure_dit(dit, &config, &speakers.speakers[0], 36, most);
        measure_dit(dit, &config, &speakers.speakers[0], 108, most);
    }
    if (strcmp(options.only, "dit") != 0) {
        measure_vocoder(vocoder, &config, 100, most);
        measure_vocoder(vocoder, &config, 400, most);
    }
    cs_speakers_clear(&speakers);
    cs_parameters_free(parameters);
    return 0;
}
