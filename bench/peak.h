/* What the machine can do at most, measured: arithmetic in registers and reading of memory. */
#ifndef CS_BENCH_PEAK_H
#define CS_BENCH_PEAK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Operations (a multiplication and an addition count two) of one call, on one thread, with operands
 * that never leave registers. NULL where the CPU lacks the instruction; the caller checks by
 * cs_kernels_choose. */
typedef double cs_peak_run(int64_t rounds);

cs_peak_run cs_peak_portable;   /* f32, 128-bit */
cs_peak_run cs_peak_avx2;       /* f32 FMA, 256-bit */
cs_peak_run cs_peak_avx512;     /* f32 FMA, 512-bit */
cs_peak_run cs_peak_avx512bf16; /* VDPBF16PS */
cs_peak_run cs_peak_amx;        /* TDPBF16PS */

/* The instruction with which the kernels of an instruction set multiply bf16 or f32; NULL: there
 * are none of that name. */
static inline cs_peak_run *cs_peak_of(const char *isa, bool bf16)
{
    static const struct {
        const char *isa;
        cs_peak_run *bf16, *f32;
    } peaks[] = {
        {"portable", cs_peak_portable, cs_peak_portable},
#ifdef __x86_64__
        {"avx2", cs_peak_avx2, cs_peak_avx2},
        {"avx512", cs_peak_avx512, cs_peak_avx512},
        {"avx512bf16", cs_peak_avx512bf16, cs_peak_avx512},
        {"amx", cs_peak_amx, cs_peak_avx512},
#endif
    };
    for (size_t i = 0; i < sizeof peaks / sizeof *peaks; i++)
        if (strcmp(isa, peaks[i].isa) == 0)
            return bf16 ? peaks[i].bf16 : peaks[i].f32;
    return NULL;
}

#endif
