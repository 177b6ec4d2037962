/* The flow-matching transformer of token2wav: codec tokens to mel frames.
 *
 * A window is a run of codes with its own voice, noise and progress. The ODE dx/dt = v(x, t) is
 * followed from noise at t = 0 to mel frames at t = 1 in CS_DIT_STEPS steps of a Runge-Kutta method
 * of order 4 (Kutta's 3/8 rule, four evaluations a step) at times that crowd towards 0. Each
 * evaluation sees a window twice, with voice and codes and without (classifier-free guidance).
 * Windows of unequal length and progress are computed together; a window's result does not depend
 * on its company.
 *
 * Modulations (adaptive layer norms) depend on the time alone and times are the same for all, so
 * they are computed once at load.
 *
 * One thread at a time uses a cs_dit and its windows.
 */
#ifndef CS_MODELS_QWEN2_5_OMNI_DIT_H
#define CS_MODELS_QWEN2_5_OMNI_DIT_H

#include "models/qwen2_5_omni/speaker_encoder.h"
#include "models/qwen2_5_omni/speakers.h"

#define CS_DIT_STEPS 9
#define CS_DIT_GUIDANCE 0.5f

typedef struct cs_dit cs_dit;
typedef struct cs_dit_window cs_dit_window;

/* What the transformer hears of a voice. */
typedef struct {
    float *cond;    /* [voice_size] */
    float *speaker; /* [2, speaker_size] of the recording, and of silence for the null half */
} cs_dit_voice;

/* NULL on a fault, which the loader keeps. */
cs_dit *cs_dit_load(cs_loader *loader, cs_compute *compute,
                    const cs_qwen2_5_omni_dit_config *config, const char *scope);
void cs_dit_free(cs_dit *dit); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_dit, cs_dit_free)

bool cs_dit_voice_init(cs_dit_voice *voice, const cs_dit *dit, const cs_speaker *speaker,
                       GError **error);
void cs_dit_voice_clear(cs_dit_voice *voice);

/* A window of n codes; noise [n * repeats, n_mels] of standard normal numbers. CS_ERROR_INVALID for
 * a code that is none, CS_ERROR_FAILED without memory. */
cs_dit_window *cs_dit_window_new(cs_dit *dit, const cs_dit_voice *voice, int64_t n_codes,
                                 const int32_t *codes, const float *noise, GError **error);
void cs_dit_window_free(cs_dit_window *window); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_dit_window, cs_dit_window_free)

uint32_t cs_dit_window_steps(const cs_dit_window *window); /* done, of CS_DIT_STEPS */
int64_t cs_dit_window_frames(const cs_dit_window *window);
/* [frames, n_mels]: the state after so many steps; after the last, the mel frames. */
const float *cs_dit_window_state(const cs_dit_window *window);

/* One step of each window, none of them done. On failure no window has moved. */
bool cs_dit_step(cs_dit *dit, uint32_t n, cs_dit_window *const *windows, GError **error);

/* For tests: called with [rows, ...] after the input embedding (layer -1), after each layer, and
 * with the prediction (layer n_layers), of each evaluation. Rows: guided, then null of each window.
 */
typedef void cs_dit_tap(void *user, int64_t layer, const cs_tensor *rows);
void cs_dit_set_tap(cs_dit *dit, cs_dit_tap *tap, void *user);
/* Time of evaluation `stage` (0..3) of a step. */
float cs_dit_time(uint32_t step, uint32_t stage);

#endif
