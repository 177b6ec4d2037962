/* Scans over a row of logits, the inner loops of sampling.
 *
 * One body, compiled for the baseline and for wider vectors, chosen at run time. Lanes and
 * association are fixed and no multiply-add is fused, so every build of a scan gives the same bits.
 */
#ifndef CS_ENGINE_ROW_SCAN_H
#define CS_ENGINE_ROW_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Weights are summed in chunks of this many. */
#define CS_ROW_CHUNK 1024

typedef struct {
    /* Largest value; *has_nan tells whether a NaN was met (and skipped). -INFINITY for n = 0. */
    float (*max)(const float *x, size_t n, bool *has_nan);

    /* Index of the first value equal to `value`; n when there is none. */
    size_t (*find)(const float *x, size_t n, float value);

    /* weights[i] = exp((x[i] - max) * scale), 0 below e^-87; returns their sum, and the sum of each
     * chunk in chunk_sums [ceil(n / CS_ROW_CHUNK)]. */
    double (*weights)(const float *x, size_t n, float max, float scale, float *weights,
                      double *chunk_sums);

    /* The sum alone. */
    double (*sum_exp)(const float *x, size_t n, float max);

    /* First index >= from of a run of CS_ROW_RUN values (the last may be shorter) that holds a
     * value >= threshold; n when there is none. from is a multiple of CS_ROW_RUN. */
    size_t (*next_run)(const float *x, size_t n, size_t from, float threshold);
} cs_row_scan;

#define CS_ROW_RUN 64

/* The fastest for this CPU, or the portable one. */
const cs_row_scan *cs_row_scan_best(void);
const cs_row_scan *cs_row_scan_portable(void);

#endif
