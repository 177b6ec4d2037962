#include "runtime/memory.h"

#include <string.h>

/* The rest of what is free is for media, activations and everybody else. */
#define KV_FRACTION_OF_FREE 0.5

static uint64_t read_number_file(const char *path, uint64_t fallback)
{
    g_autofree char *text = NULL;
    guint64 number;
    if (!g_file_get_contents(path, &text, NULL, NULL) ||
        !g_ascii_string_to_unsigned(g_strchomp(text), 10, 0, G_MAXUINT64, &number, NULL))
        return fallback;
    return number;
}

/* Bytes that this process may still take: of the machine, and of its control group. */
static uint64_t free_memory_bytes(void)
{
    uint64_t free_bytes = 1u << 30;
    g_autofree char *meminfo = NULL;
    const char *line;
    if (g_file_get_contents("/proc/meminfo", &meminfo, NULL, NULL) &&
        (line = strstr(meminfo, "MemAvailable:")))
        free_bytes = g_ascii_strtoull(line + strlen("MemAvailable:"), NULL, 10) * 1024;
    uint64_t limit = read_number_file("/sys/fs/cgroup/memory.max", UINT64_MAX);
    uint64_t used = read_number_file("/sys/fs/cgroup/memory.current", 0);
    return MIN(free_bytes, limit > used ? limit - used : 0);
}

size_t cs_kv_budget_bytes(const cs_llm *llm, const cs_llm_engine_options *options, double share)
{
    uint64_t context =
        options->max_context_tokens ? options->max_context_tokens : llm->max_context_tokens;
    uint64_t useful =
        (context / CS_LLM_BLOCK_TOKENS + 1) * options->max_sequences * llm->kv_block_bytes;
    uint64_t budget = (uint64_t)((double)free_memory_bytes() * KV_FRACTION_OF_FREE * share);
    return MAX(MIN(budget, useful), llm->kv_block_bytes * 4);
}
