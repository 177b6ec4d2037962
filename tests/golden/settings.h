/* What golden tests of models share: they run in every setting of instruction set and weights, and
 * hold each tensor to a bar; to measure, they tell the error instead. */
#ifndef CS_TESTS_GOLDEN_SETTINGS_H
#define CS_TESTS_GOLDEN_SETTINGS_H

#include "golden.h"
#include "tensor/compute.h"

#define GOLDEN_BAR_F32 1e-4
#define GOLDEN_BAR_BF16 2e-2

typedef struct {
    const char *isa;
    const char *dtype; /* of the weights: f32 or bf16 */
} golden_setting;

/* Errors are told, and nothing is held against the bars: mutations.py plants bugs in a checkpoint
 * and judges. */
static bool golden_measuring;

/* A test PREFIX/ISA/DTYPE for each setting, whose data is the setting. */
static inline void golden_settings_add(const char *prefix, GTestDataFunc test)
{
    static const char *const isas[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
    static golden_setting settings[G_N_ELEMENTS(isas) * 2];
    for (size_t i = 0; i < G_N_ELEMENTS(settings); i++) {
        settings[i] = (golden_setting){.isa = isas[i / 2], .dtype = i % 2 ? "bf16" : "f32"};
        g_autofree char *name =
            g_strdup_printf("%s/%s/%s", prefix, settings[i].isa, settings[i].dtype);
        g_test_add_data_func(name, &settings[i], test);
    }
}

/* On two threads; NULL, and the test is skipped, where this CPU lacks the instruction set. */
static inline cs_compute *golden_compute(const golden_setting *setting)
{
    const cs_compute_options options = {.n_threads = 2, .isa = setting->isa};
    cs_compute *compute = cs_compute_new(&options, NULL);
    if (!compute)
        g_test_skip("this CPU lacks the instruction set");
    return compute;
}

/* `who` is what the message names beside the tensor. */
static inline void golden_hold(const char *who, const char *name, double error, double bar)
{
    if (golden_measuring) {
        g_print("%s %.6e\n", name, error);
        return;
    }
    g_test_message("%s %s: %.2e, at most %.2e", who, name, error, bar);
    g_assert_cmpfloat(error, <=, bar);
}

static inline bool golden_is_bf16(const golden_setting *setting)
{
    return strcmp(setting->dtype, "bf16") == 0;
}

#endif
