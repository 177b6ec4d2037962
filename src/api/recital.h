/* Passages of a text that are spoken by requests of their own, joined to one sound.
 *
 * Samples of the passages may come in any order; they leave in the order of the text. Between two
 * passages is a silence, as long as what the first of them ends with makes usual, and the sound
 * fades out and in around it, so that there is no click. A single passage leaves as it is.
 *
 * Threads: one at a time.
 */
#ifndef CS_API_RECITAL_H
#define CS_API_RECITAL_H

#include "text/passages.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct cs_recital cs_recital;

/* Of these passages (cs_passage), at least one; NULL: of one. */
cs_recital *cs_recital_new(const GArray *passages, uint32_t sample_rate);
void cs_recital_free(cs_recital *recital); /* accepts NULL */

/* The next samples of a passage. What may now be heard of all is appended to `out` (float). */
void cs_recital_add(cs_recital *recital, uint32_t passage, uint32_t n, const float *samples,
                    GArray *out);
/* The passage is complete. */
void cs_recital_end(cs_recital *recital, uint32_t passage, GArray *out);
/* The passage that is being heard; their number when all are complete. */
uint32_t cs_recital_current(const cs_recital *recital);

#endif
