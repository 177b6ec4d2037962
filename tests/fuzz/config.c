/* config.json of the families. */
#include "base/json.h"
#include "models/qwen2_5_omni/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    json_t *root = cs_json_load((const char *)data, size, "config.json", &error);
    if (!root)
        return 0;
    cs_qwen2_5_omni_config config;
    if (cs_qwen2_5_omni_config_read(&config, root, "config.json", &error)) {
        /* What loading relies on. */
        g_assert_cmpint(config.text.n_heads % config.text.n_kv_heads, ==, 0);
        g_assert_cmpint(config.vision.hidden_size % config.vision.n_heads, ==, 0);
        g_assert_cmpint(config.audio.hidden_size % config.audio.n_heads, ==, 0);
        g_assert_cmpint(config.text.hidden_size, ==, config.vision.out_size);
        g_assert_cmpint(config.text.hidden_size, ==, config.audio.out_size);
    } else {
        g_assert_nonnull(error);
    }
    json_decref(root);
    return 0;
}
