/* Which instruction sets this CPU and its operating system offer. */
#include "tensor/cpu/kernels.h"

#include <string.h>

bool cs_isa_portable(void);
bool cs_isa_avx2(void);
bool cs_isa_avx512(void);
bool cs_isa_avx512bf16(void);
bool cs_isa_amx(void);

bool cs_isa_portable(void)
{
    return true;
}

#ifdef __x86_64__
#include <sys/syscall.h>
#include <unistd.h>

/* __builtin_cpu_supports also checks that the system saves the registers. */
bool cs_isa_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool cs_isa_avx512(void)
{
    return cs_isa_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

bool cs_isa_avx512bf16(void)
{
    return cs_isa_avx512() && __builtin_cpu_supports("avx512bf16");
}

/* Tile registers are given to a process on request only (Linux, Documentation/x86/xstate.rst). */
bool cs_isa_amx(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    if (!cs_isa_avx512bf16())
        return false;
    uint32_t a = 7, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    bool amx_bf16 = d >> 22 & 1, amx_tile = d >> 24 & 1;
    return amx_bf16 && amx_tile && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

const cs_kernels *cs_kernels_choose(const char *name)
{
    static const cs_kernels *const best_first[] = {
#ifdef __x86_64__
        &cs_kernels_amx,      &cs_kernels_avx512bf16, &cs_kernels_avx512, &cs_kernels_avx2,
#endif
        &cs_kernels_portable,
    };
    for (size_t i = 0; i < sizeof best_first / sizeof *best_first; i++) {
        bool wanted = !name || strcmp(name, best_first[i]->name) == 0;
        if (wanted && best_first[i]->available())
            return best_first[i];
    }
    return NULL;
}
