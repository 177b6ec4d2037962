/* What the machine can do at most, measured: arithmetic in registers and reading of memory. */
#ifndef CS_BENCH_PEAK_H
#define CS_BENCH_PEAK_H

#include <stdint.h>

/* Operations (a multiplication and an addition count two) of one call, on one thread, with operands
 * that never leave registers. NULL where the CPU lacks the instruction; the caller checks by
 * cs_kernels_choose. */
typedef double cs_peak_run(int64_t rounds);

cs_peak_run cs_peak_portable;   /* f32, 128-bit */
cs_peak_run cs_peak_avx2;       /* f32 FMA, 256-bit */
cs_peak_run cs_peak_avx512;     /* f32 FMA, 512-bit */
cs_peak_run cs_peak_avx512bf16; /* VDPBF16PS */
cs_peak_run cs_peak_amx;        /* TDPBF16PS */

#endif
