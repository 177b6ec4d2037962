/* A pipeline that computes nothing, for testing what stands in front of one.
 *
 * Tokens are bytes (ids 0..255). The answer says what came in, then counts; words in the prompt
 * steer it: tokens=N  pieces to say (default 5)      delay=MS  before each fail      error instead
 * of a start       break     error after the pieces silent    never says anything
 */
#ifndef CS_TESTS_FAKE_PIPELINE_H
#define CS_TESTS_FAKE_PIPELINE_H

#include "runtime/pipeline/pipeline.h"

/* Of speech with each token; the voices are Ann and Ben. */
#define FAKE_PIPELINE_TOKEN_SAMPLES 2400

cs_pipeline *fake_pipeline_new(void); /* its id is "fake" */
/* Another id, which its answers begin with. */
void fake_pipeline_rename(cs_pipeline *pipeline, const char *id);
/* Requests submitted and not yet done, handles not yet released. */
uint32_t fake_pipeline_live(cs_pipeline *pipeline);
uint32_t fake_pipeline_handles(cs_pipeline *pipeline);
/* Of speech, handed out. */
uint64_t fake_pipeline_samples(cs_pipeline *pipeline);
/* Further submissions fail with CS_ERROR_BUSY, or no longer. */
void fake_pipeline_set_busy(cs_pipeline *pipeline, bool busy);

#endif
