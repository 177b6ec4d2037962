/* Speed of one matrix product on one thread with bf16 weights at the shapes of the components, as a
 * share of the peak of its instruction and of what reading the weights takes, all measured in this
 * run.
 *
 *     build/bench/product [--isa NAME]
 *
 * Each product has many weight matrices, 384 MiB together, and takes them in turn: they come from
 * memory, as in a model.
 */
#include "base/os.h"
#include "peak.h"
#include "tensor/compute.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPEAT = 3, WEIGHT_BYTES = 384 << 20 };

static const struct {
    const char *what;
    int64_t rows, outputs, inputs;
    bool to_bf16; /* with GELU, into bf16; else into f32 */
} shapes[] = {
    {"DiT qkv, 36 codes", 144, 3072, 1024, false},
    {"DiT out, 36 codes", 144, 1024, 1024, false},
    {"DiT up, 36 codes", 144, 2048, 1024, true},
    {"DiT down, 36 codes", 144, 1024, 2048, false},
    {"DiT qkv, 108 codes", 432, 3072, 1024, false},
    {"DiT out, 108 codes", 432, 1024, 1024, false},
    {"DiT up, 108 codes", 432, 2048, 1024, true},
    {"DiT down, 108 codes", 432, 1024, 2048, false},
    {"thinker 0.5b up, 128 rows", 128, 4864, 896, true},
    {"thinker 0.5b up, 512 rows", 512, 4864, 896, true},
    {"thinker 0.5b down, 512 rows", 512, 896, 4864, false},
    {"thinker 3b up, 512 rows", 512, 11008, 2048, true},
    {"thinker 3b down, 512 rows", 512, 2048, 11008, false},
    {"decode, 1 row", 1, 4864, 896, false},
    {"decode, 16 rows", 16, 4864, 896, false},
    {"decode, 32 rows", 32, 4864, 896, false},
};

static double seconds(void)
{
    return (double)cs_now_us() * 1e-6;
}

static void fail_on(const GError *error)
{
    if (error) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
}

static double peak(const char *isa)
{
    double best = 0;
    for (int r = 0; r < REPEAT; r++) {
        double start = seconds(), operations = cs_peak_of(isa, true)(1000000);
        best = MAX(best, operations / (seconds() - start));
    }
    return best;
}

/* Bytes a second of a plain read of as many bytes as the weights have. */
static double reading(void)
{
    typedef uint64_t words8 __attribute__((vector_size(64)));
    words8 *data = aligned_alloc(64, WEIGHT_BYTES), sum = {0};
    memset(data, 1, WEIGHT_BYTES);
    double best = 0;
    for (int r = 0; r < REPEAT; r++) {
        double start = seconds();
        for (size_t i = 0; i < WEIGHT_BYTES / sizeof *data; i += 4)
            sum += (data[i] ^ data[i + 1]) + (data[i + 2] ^ data[i + 3]);
        __asm__ volatile("" : : "r"(&sum) : "memory");
        best = MAX(best, WEIGHT_BYTES / (seconds() - start));
    }
    free(data);
    return best;
}

static void measure(cs_compute *compute, size_t shape, double most, double read)
{
    int64_t m = shapes[shape].rows, n = shapes[shape].outputs, k = shapes[shape].inputs;
    cs_parameters *parameters = cs_parameters_new(compute);
    int64_t n_weights = MAX(1, WEIGHT_BYTES / 2 / n / k);
    g_autofree uint16_t *values = g_new(uint16_t, n * k);
    for (int64_t i = 0; i < n * k; i++)
        values[i] = (uint16_t)(0x3c00 + i * 7919 % 512); /* 0.008 to 0.03 */
    g_autofree const cs_weight **weights = g_new(const cs_weight *, n_weights);
    g_autoptr(GError) error = NULL;
    for (int64_t i = 0; i < n_weights && !error; i++)
        weights[i] = cs_parameters_matrix(parameters, CS_DTYPE_BF16, k, 1,
                                          &(cs_weight_part){values, CS_DTYPE_BF16, n}, &error);
    fail_on(error);
    g_autofree float *zeros = g_new0(float, MAX(n, m * k));
    cs_tensor bias = cs_parameters_tensor(parameters, zeros, CS_DTYPE_F32, 1, n, &error);
    fail_on(error);
    size_t mark = cs_compute_mark(compute);
    cs_dtype input = cs_compute_input_dtype(compute, CS_DTYPE_BF16);
    cs_tensor x = cs_compute_scratch(compute, input, m, k);
    cs_tensor y =
        cs_compute_scratch(compute, shapes[shape].to_bf16 ? CS_DTYPE_BF16 : CS_DTYPE_F32, m, n);
    cs_tensor wide = cs_compute_scratch(compute, CS_DTYPE_F32, m, k);
    cs_tensor_write(compute, &wide, zeros);
    cs_op_copy(compute, &x, &wide);
    const cs_linear_options options = {.bias = &bias,
                                       .activation = shapes[shape].to_bf16 ? CS_ACTIVATION_GELU_TANH
                                                                           : CS_ACTIVATION_NONE};
    int64_t rounds = MAX(n_weights, (int64_t)(1e11 / (2.0 * (double)(m * n * k))));
    rounds = MIN(rounds, 4 * n_weights);
    double best = INFINITY;
    for (int r = 0; r < REPEAT; r++) {
        double start = seconds();
        for (int64_t i = 0; i < rounds; i++)
            cs_op_linear(compute, &y, &x, weights[i % n_weights], &options);
        best = MIN(best, (seconds() - start) / (double)rounds);
    }
    cs_compute_sync(compute, &error);
    fail_on(error);
    printf("%-28s %5d x %5d x %5d  %8.3f ms  %5.1f %% of peak  %5.1f %% of reading\n",
           shapes[shape].what, (int)m, (int)n, (int)k, best * 1e3,
           200 * (double)(m * n * k) / best / most, 200 * (double)(n * k) / best / read);
    fflush(stdout);
    cs_compute_release(compute, mark);
    cs_parameters_free(parameters);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    const char *isa = argc == 3 && strcmp(argv[1], "--isa") == 0 ? argv[2] : NULL;
    g_autoptr(cs_compute) compute =
        cs_compute_new(&(cs_compute_options){.n_threads = 1, .isa = isa}, &error);
    fail_on(error);
    double most = peak(cs_compute_isa(compute)), read = reading();
    printf("%s, one thread: peak %.0f Gop/s, reading %.1f GB/s\n", cs_compute_isa(compute),
           most * 1e-9, read * 1e-9);
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++)
        measure(compute, i, most, read);
    return 0;
}
