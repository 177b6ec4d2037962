/* What kernels of AMX tiles share. Eight tiles: 0-3 accumulate [upper, lower rows][panel], 4-5 hold
 * rows of A, upper and lower, 6-7 hold a panel of B each. */
#ifndef CS_TENSOR_CPU_KERNELS_AMX_H
#define CS_TENSOR_CPU_KERNELS_AMX_H

#include <immintrin.h>
#include <stdint.h>

enum { CS_AMX_ROWS = 16, CS_AMX_BLOCK = 2 * CS_AMX_ROWS };

/* Loads the tile configuration: rows of the upper tiles (0, 1, 4) and of the lower (2, 3, 5). */
static inline void cs_amx_configure(int upper, int lower)
{
    struct { /* the layout that LDTILECFG reads */
        uint8_t palette;
        uint8_t start_row;
        uint8_t reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    _Static_assert(sizeof config == 64, "as large as LDTILECFG reads");
    const int rows[8] = {upper, upper, lower, lower, upper, lower, CS_AMX_ROWS, CS_AMX_ROWS};
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = 64;
        config.rows[t] = (uint8_t)rows[t];
    }
    __asm__ volatile(""
                     :
                     : "r"(&config)
                     : "memory"); /* the intrinsic does not say that it reads it */
    _tile_loadconfig(&config);
}

#endif
