/* plan.json: what is accepted is written and read again as it is, and can be shown. */
#include "plan/report.h"
#include "plan_inputs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    json_t *root = cs_json_load((const char *)data, size, "plan", &error);
    if (!root)
        return 0;
    g_autoptr(cs_plan) plan = cs_plan_from_json(root, "plan", &error);
    g_assert_true((plan != NULL) == (error == NULL));
    if (plan) {
        json_t *written = cs_plan_to_json(plan);
        g_autoptr(cs_plan) again = cs_plan_from_json(written, "written", &error);
        g_assert_no_error(error);
        json_t *twice = cs_plan_to_json(again);
        g_assert_true(json_equal(written, twice));
        json_decref(written);
        json_decref(twice);
        g_autofree char *table = cs_report_table(plan);
        g_autofree char *svg = cs_report_svg(plan, fuzz_plan_cluster());
        GMarkupParser nothing = {0};
        g_autoptr(GMarkupParseContext) xml = g_markup_parse_context_new(&nothing, 0, NULL, NULL);
        g_markup_parse_context_parse(xml, svg, -1, &error);
        g_assert_no_error(error);
        g_assert_nonnull(table);
    }
    json_decref(root);
    return 0;
}
