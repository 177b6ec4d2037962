/* Workloads, as YAML or JSON: what is accepted can be drawn from. */
#include "plan/workload.h"
#include "plan_inputs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_type(const cs_workload_type *type)
{
    cs_rng rng;
    cs_rng_seed(&rng, 1);
    g_assert_true(type->rate_rps >= 0 && isfinite(type->rate_rps));
    for (int s = 0; s < CS_SIZE_COUNT; s++) {
        g_assert_true(type->mean_sizes[s] >= 0 && isfinite(type->mean_sizes[s]));
        for (int i = 0; i < 8; i++) {
            double value = cs_dist_sample(&type->sizes[s], &rng);
            g_assert_true(value >= type->sizes[s].min && isfinite(value));
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    json_t *root = cs_yaml_load((const char *)data, size, "workload", &error);
    if (!root)
        return 0;
    g_autoptr(cs_workload) workload =
        cs_workload_from_json(root, "workload", fuzz_plan_graph(), &error);
    g_assert_true((workload != NULL) == (error == NULL));
    for (size_t t = 0; workload && t < workload->n_types; t++)
        check_type(&workload->types[t]);
    json_decref(root);
    return 0;
}
