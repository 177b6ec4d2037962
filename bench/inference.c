/* Speed of the components at real sizes, as shares of what the machine can do, both measured in
 * this run.
 *
 *     build/bench/inference CHECKPOINT [--isa NAME] [--threads N] [--repeat N]
 *
 * --only machine|llm|audio|vision measures one part. CHECKPOINT is a Qwen2.5-Omni directory;
 * tools/reference/full_size makes one with random weights. Every figure is the median of the
 * repeats. Peaks: the instruction of the kernel in registers on all threads, and reading of a
 * buffer far larger than the caches.
 */
#include "base/os.h"
#include "models/qwen2_5_omni/audio.h"
#include "models/qwen2_5_omni/decoder.h"
#include "models/qwen2_5_omni/vision.h"
#include "peak.h"
#include "tensor/cpu/kernels.h"
#include "tensor/cpu/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    const char *isa;
    int threads;
    int repeat;
    const char *only;
} options = {.repeat = 5};

static double seconds(void)
{
    return (double)cs_now_us() * 1e-6;
}

/* ---- The machine ---- */

typedef struct {
    cs_peak_run *run;
    double operations[256];
} peak_job;

static void peak_piece(void *data, int64_t index, uint32_t thread)
{
    peak_job *job = data;
    job->operations[index] = job->run(20000000 / 10);
}

static double measure_peak(cs_pool *pool, const char *isa)
{
    peak_job job = {.run = cs_peak_of(isa, true)};
    double best = 0;
    for (int r = 0; r < 5; r++) {
        double start = seconds(), total = 0;
        cs_pool_run(pool, cs_pool_n_threads(pool), peak_piece, &job);
        for (uint32_t i = 0; i < cs_pool_n_threads(pool); i++)
            total += job.operations[i];
        best = MAX(best, total / (seconds() - start));
    }
    return best;
}

typedef struct {
    const uint64_t *data;
    size_t words;
    uint64_t sums[256];
} read_job;

typedef uint64_t words8 __attribute__((vector_size(64)));

static void read_piece(void *data, int64_t index, uint32_t thread)
{
    read_job *job = data;
    enum { PIECES = 64 };
    size_t n = job->words / PIECES / 32 * 32;
    const uint64_t *p = job->data + (size_t)index * n;
    words8 sum[4] = {{0}};
    for (size_t i = 0; i < n; i += 32)
        for (int j = 0; j < 4; j++)
            sum[j] += *(const words8 *)(p + i + 8 * j);
    job->sums[index] = (sum[0] + sum[1] + sum[2] + sum[3])[0];
}

static double measure_read(cs_pool *pool)
{
    size_t size = (size_t)1 << 30;
    read_job job = {.data = aligned_alloc(2 << 20, size), .words = size / 8};
    memset((void *)job.data, 1, size);
    double best = 0;
    for (int r = 0; r < 5; r++) {
        double start = seconds();
        cs_pool_run(pool, 64, read_piece, &job);
        best = MAX(best, (double)size / (seconds() - start));
    }
    free((void *)job.data);
    return best;
}

/* ---- The model ---- */

typedef struct {
    cs_compute *compute;
    cs_checkpoint *checkpoint;
    cs_parameters *parameters;
    cs_qwen2_5_omni_config config;
    cs_llm *llm;
    cs_encoder *vision, *audio;
    double peak, read;
} bench;

static double median(double *values, int n)
{
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && values[j] < values[j - 1]; j--) {
            double t = values[j];
            values[j] = values[j - 1];
            values[j - 1] = t;
        }
    return values[n / 2];
}

/* Takes the error's address, because arguments are evaluated in any order. */
static void must(bool ok, GError **error)
{
    if (!ok) {
        fprintf(stderr, "%s\n", (*error)->message);
        exit(1);
    }
}

/* Multiplications and additions of one token through the layers, without attention over others. */
static double layer_operations(const cs_qwen2_decoder_config *c)
{
    double q = (double)(c->n_heads * c->head_dim), kv = (double)(c->n_kv_heads * c->head_dim);
    double h = (double)c->hidden_size, inner = (double)c->intermediate_size;
    return 2.0 * (double)c->n_layers * (h * (2 * q + 2 * kv) + 3 * h * inner);
}

static double attention_operations(const cs_qwen2_decoder_config *c, double n)
{
    return 2.0 * (double)c->n_layers * (double)(c->n_heads * c->head_dim) * n *
           n; /* causal: half of 2 n^2 twice */
}

enum { MAX_ROWS = 2048, MAX_SEQUENCES = 32, SEQUENCE_BLOCKS = 64 };

static double step(bench *b, uint32_t n_sequences, uint32_t n_new, uint32_t n_past, float *logits)
{
    static int32_t ids[MAX_ROWS], positions[MAX_ROWS][3], blocks[MAX_SEQUENCES][SEQUENCE_BLOCKS];
    cs_llm_sequence sequences[MAX_SEQUENCES];
    uint32_t rows[MAX_SEQUENCES];
    for (uint32_t s = 0; s < n_sequences; s++) {
        for (uint32_t i = 0; i < n_new; i++) {
            ids[s * n_new + i] = (int32_t)((s * 7919 + i * 104729) % 1000);
            for (int a = 0; a < 3; a++)
                positions[s * n_new + i][a] = (int32_t)(n_past + i);
        }
        for (int i = 0; i < SEQUENCE_BLOCKS; i++)
            blocks[s][i] = (int32_t)s * SEQUENCE_BLOCKS + i;
        sequences[s] = (cs_llm_sequence){.n_past = n_past, .n_new = n_new, .kv_blocks = blocks[s]};
        rows[s] = (s + 1) * n_new - 1;
    }
    const cs_llm_batch batch = {.n_rows = n_sequences * n_new,
                                .token_ids = ids,
                                .positions = (const int32_t(*)[3])positions,
                                .n_sequences = n_sequences,
                                .sequences = sequences,
                                .n_logit_rows = n_sequences,
                                .logit_rows = rows};
    GError *error = NULL;
    double start = seconds();
    must(b->llm->ops->forward(b->llm, &batch, logits, NULL, &error), &error);
    return seconds() - start;
}

static void bench_llm(bench *b)
{
    const cs_qwen2_decoder_config *c = &b->config.text;
    GError *error = NULL;
    must(b->llm->ops->reserve(b->llm, MAX_SEQUENCES * SEQUENCE_BLOCKS, MAX_ROWS, MAX_SEQUENCES,
                              MAX_SEQUENCES, &error),
         &error);
    g_autofree float *logits = g_new(float, (size_t)MAX_SEQUENCES *(size_t)c->vocab_size);
    double head = 2.0 * (double)c->hidden_size * (double)c->vocab_size;
    double times[64];

    static const uint32_t prompts[] = {512, 2048};
    for (size_t p = 0; p < G_N_ELEMENTS(prompts); p++) {
        uint32_t n = prompts[p];
        for (int r = -1; r < options.repeat; r++)
            times[MAX(r, 0)] = step(b, 1, n, 0, logits);
        double t = median(times, options.repeat);
        double operations = layer_operations(c) * n + attention_operations(c, n) + head;
        printf("prefill %4u        %9.1f tokens/s  %7.1f ms  %5.1f %% of peak\n", n, n / t, t * 1e3,
               operations / t / b->peak * 100);
    }
    double weight_bytes = (layer_operations(c) + head) / 2 * 2,
           one = 0; /* bf16: two bytes a multiplication */
    static const uint32_t streams[] = {1, 2, 4, 8, 16, 32};
    for (size_t s = 0; s < G_N_ELEMENTS(streams); s++) {
        uint32_t n = streams[s];
        step(b, n, 64, 0, logits);
        for (int r = 0; r < 3 * options.repeat; r++)
            times[r] = step(b, n, 1, 64 + (uint32_t)r, logits);
        double t = median(times, 3 * options.repeat);
        one = n == 1 ? 1 / t : one;
        printf("decode %2u streams   %9.1f tokens/s  %7.1f ms  %5.1f %% of read bandwidth, %.1f x "
               "one stream\n",
               n, n / t, t * 1e3, weight_bytes / t / b->read * 100, n / t / one);
    }
}

static void bench_encoder(bench *b, const char *name, cs_encoder *encoder,
                          const cs_encoder_item *item, double operations)
{
    double times[64];
    for (int r = -1; r < MAX(1, options.repeat / 2); r++) {
        cs_shared_tensor *out;
        GError *error = NULL;
        double start = seconds();
        must(encoder->ops->forward(encoder, 1, item, &out, &error), &error);
        times[MAX(r, 0)] = seconds() - start;
        cs_shared_tensor_unref(out);
    }
    double t = median(times, MAX(1, options.repeat / 2));
    printf("%-18s  %9.3f s  %5.1f %% of peak\n", name, t, operations / t / b->peak * 100);
}

static float *noise(int64_t n)
{
    float *x = g_new(float, n);
    uint32_t state = 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525 + 1013904223;
        x[i] = (float)(int32_t)state / 2147483648.0f;
    }
    return x;
}

static void bench_vision(bench *b, int32_t side)
{
    const cs_qwen2_5_omni_vision_config *c = &b->config.vision;
    int32_t grid = (int32_t)(side / (c->patch_size * c->merge_size) * c->merge_size);
    int64_t n = (int64_t)grid * grid,
            dim = c->in_channels * c->temporal_patch_size * c->patch_size * c->patch_size;
    g_autofree float *patches = noise(n * dim);
    cs_encoder_item item = {.input = cs_tensor_view(patches, CS_DTYPE_F32, n, dim),
                            .grid = {1, grid, grid}};
    double h = (double)c->hidden_size, rows = (double)n, operations = 2 * rows * (double)dim * h;
    int64_t in_window = c->window_size / c->patch_size * c->window_size / c->patch_size;
    for (int64_t i = 0; i < c->depth; i++) {
        double keys = cs_vision_full_attention(c, i) ? rows : (double)in_window;
        operations +=
            2 * rows * (4 * h * h + 3 * h * (double)c->intermediate_size) + 4 * rows * keys * h;
    }
    double merged = (double)(c->merge_size * c->merge_size) * h;
    operations += 2 * rows / (double)(c->merge_size * c->merge_size) * merged *
                  (merged + (double)c->out_size);
    g_autofree char *name = g_strdup_printf("image %dx%d", side, side);
    bench_encoder(b, name, b->vision, &item, operations);
}

static void bench_audio(bench *b, int32_t length)
{
    const cs_qwen2_5_omni_audio_config *c = &b->config.audio;
    int64_t frames = length * 100;
    g_autofree float *mel = noise(frames * c->n_mels);
    cs_encoder_item item = {.input = cs_tensor_view(mel, CS_DTYPE_F32, frames, c->n_mels)};
    double h = (double)c->hidden_size, rows = (double)frames / 2;
    double operations = 2 * (double)frames * 3 * (double)c->n_mels * h + 2 * rows * 3 * h * h;
    operations += (double)c->n_layers * (2 * rows * (4 * h * h + 2 * h * (double)c->ffn_size) +
                                         4 * rows * (double)c->n_window * h);
    operations += 2 * rows / 2 * h * (double)c->out_size;
    g_autofree char *name = g_strdup_printf("sound %d s", length);
    bench_encoder(b, name, b->audio, &item, operations);
}

static void load(bench *b, const char *dir)
{
    GError *error = NULL;
    cs_compute_options compute = {.isa = options.isa, .n_threads = (uint32_t)options.threads};
    b->compute = cs_compute_new(&compute, &error);
    must(b->compute != NULL, &error);
    double start = seconds();
    b->checkpoint = cs_checkpoint_open(dir, &error);
    must(b->checkpoint != NULL, &error);
    must(cs_qwen2_5_omni_config_read(&b->config, cs_checkpoint_config(b->checkpoint), "config.json",
                                     &error),
         &error);
    b->parameters = cs_parameters_new(b->compute);
    cs_loader loader = {
        .checkpoint = b->checkpoint, .parameters = b->parameters, .dtype = CS_DTYPE_BF16};
    b->llm = cs_qwen2_decoder_load(&loader, b->compute, &b->config.text, "thinker.model", "thinker",
                                   "lm_head.weight");
    b->vision =
        cs_qwen2_5_omni_vision_load(&loader, b->compute, &b->config.vision, "thinker.visual");
    b->audio =
        cs_qwen2_5_omni_audio_load(&loader, b->compute, &b->config.audio, "thinker.audio_tower");
    must(cs_loader_finish(&loader, &error), &error);
    printf("load                %9.2f s for %.2f GB of weights, resident %.2f GB\n",
           seconds() - start, (double)cs_parameters_bytes(b->parameters) * 1e-9,
           (double)cs_process_resident_bytes() * 1e-9);
}

static void print_cpu(void)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents("/proc/cpuinfo", &text, NULL, NULL))
        return;
    char *name = strstr(text, "model name"), *model = strstr(text, "model\t");
    if (name && model)
        printf("%.*s, model%.*s\n", (int)strcspn(name, "\n"), name, (int)strcspn(model + 5, "\n"),
               model + 5);
}

int main(int argc, char **argv)
{
    GOptionEntry entries[] = {
        {"isa", 0, 0, G_OPTION_ARG_STRING, &options.isa, "instruction set", "NAME"},
        {"threads", 0, 0, G_OPTION_ARG_INT, &options.threads, "threads", "N"},
        {"repeat", 0, 0, G_OPTION_ARG_INT, &options.repeat, "runs of each figure, up to 20", "N"},
        {"only", 0, 0, G_OPTION_ARG_STRING, &options.only, "one part", "machine|llm|audio|vision"},
        {NULL}};
    GOptionContext *context = g_option_context_new("CHECKPOINT");
    g_option_context_add_main_entries(context, entries, NULL);
    GError *error = NULL;
    must(g_option_context_parse(context, &argc, &argv, &error), &error);
    if (argc != 2 || options.repeat < 1 || options.repeat > 20) {
        fprintf(stderr, "%s", g_option_context_get_help(context, TRUE, NULL));
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    bench b = {0};
    print_cpu();
    load(&b, argv[1]);
    cs_pool *pool = cs_pool_new(cs_compute_n_threads(b.compute), NULL);
    b.peak = measure_peak(pool, cs_compute_isa(b.compute));
    b.read = measure_read(pool);
    cs_pool_free(pool);
    printf("machine             %s on %u threads: peak %.0f GFLOP/s, read %.1f GB/s\n",
           cs_compute_isa(b.compute), cs_compute_n_threads(b.compute), b.peak * 1e-9,
           b.read * 1e-9);
    if (!options.only || strcmp(options.only, "llm") == 0)
        bench_llm(&b);
    if (!options.only || strcmp(options.only, "audio") == 0)
        bench_audio(&b, 30);
    if (!options.only || strcmp(options.only, "vision") == 0) {
        bench_vision(&b, 448);
        bench_vision(&b, 1024);
    }
    return 0;
}
