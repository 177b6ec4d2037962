/* Lua from outside: it ends, within its limits, and the sandbox lives on. */
#include "base/os.h"
#include "base/sandbox.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cs_sandbox_limits limits = {.memory_bytes = 1 << 20,
                                .source_bytes = 1 << 16,
                                .steps = 100000,
                                .time_us = 2 * G_USEC_PER_SEC};
    g_autoptr(cs_sandbox) s = cs_sandbox_new("fuzz", &limits, NULL);
    g_autoptr(GError) error = NULL;
    int64_t start_us = cs_now_us();
    if (!cs_sandbox_exec(s, (const char *)data, size, "fuzz", &error) != !!error)
        __builtin_trap();
    if (cs_sandbox_memory_bytes(s) > limits.memory_bytes ||
        cs_now_us() - start_us > 10 * G_USEC_PER_SEC)
        __builtin_trap();
    cs_sandbox_exec(s, "x = 1", 5, "after", NULL); /* globals may be gone; it must not crash */
    return 0;
}
