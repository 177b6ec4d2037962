/* Profiles, as YAML or JSON, of a fixed graph and cluster. */
#include "plan/profiles.h"
#include "plan_inputs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    json_t *root = cs_yaml_load((const char *)data, size, "profiles", &error);
    if (!root)
        return 0;
    g_autoptr(cs_profiles) profiles =
        cs_profiles_from_json(root, "profiles", fuzz_plan_graph(), fuzz_plan_cluster(), &error);
    g_assert_true((profiles != NULL) == (error == NULL));
    for (size_t i = 0; profiles && i < profiles->n_entries; i++) {
        const cs_profile *p = &profiles->entries[i];
        g_assert_true(p->fixed_s >= 0 && p->per_unit_s >= 0 && p->fixed_s + p->per_unit_s > 0);
        g_assert_true(isfinite(p->fixed_s + p->per_unit_s) && p->max_batch >= 1);
        for (size_t k = 0; k < p->n_scatter; k++)
            g_assert_true(p->scatter[k] > 0 && isfinite(p->scatter[k]));
    }
    json_decref(root);
    return 0;
}
