/* How soon a speech is heard, beside the sum of what must come before it, each measured alone.
 *
 *     build/bench/first_audio CHECKPOINT [--dtype f32|bf16] [--users N] [--repeat N] [--parts 0|1]
 *
 * One speech, then --users at once (8). --parts 0 leaves out the parts, and the one.
 * CHECKPOINT is a Qwen2.5-Omni directory that speaks; tools/reference/full_size --speech 3b makes
 * one with random weights. Parts: the LLM's first hidden states, as many more of its tokens as the
 * first chunk of sound has codes (a code hears one more row of the reply each), these codes by the
 * talker with all rows there, and the chunk's samples. The same device for all; medians.
 */
#include "base/os.h"
#include "engine/generator_engine.h"
#include "engine/llm_engine.h"
#include "media/decoder/child.h"
#include "models/model.h"
#include "models/qwen2_5_omni/token2wav.h"

#include "listeners.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_PROMPT = 64, SEED = 1 };

static struct {
    const char *dir, *dtype;
    int users, repeat, parts;
} options = {.dtype = "bf16", .users = 8, .repeat = 3, .parts = 1};

/* ---- one engine alone ---- */

/* When the n-th token, or the first sample, came. */
typedef struct {
    GMutex lock;
    GCond changed;
    uint32_t n;
    int64_t first_us, last_us;
    bool done;
} watch;

static void watch_count(watch *w)
{
    w->last_us = cs_now_us();
    w->first_us = w->n++ ? w->first_us : w->last_us;
}

static bool on_token(void *user, const cs_llm_token *token)
{
    watch_count(user);
    return true;
}

static void watch_end(watch *w, const GError *error)
{
    fail_on(error);
    g_mutex_lock(&w->lock);
    w->done = true;
    g_cond_signal(&w->changed);
    g_mutex_unlock(&w->lock);
}

static void llm_done(void *user, const cs_llm_usage *usage, const GError *error)
{
    watch_end(user, error);
}

static void on_hidden(void *user, uint32_t choice, uint32_t row, uint32_t n, const float *hidden)
{
}

static void on_finish(void *user, uint32_t choice, cs_llm_finish reason)
{
}

static void on_samples(void *user, uint32_t n, const float *samples)
{
    watch_count(user);
}

static void sound_done(void *user, const GError *error)
{
    watch_end(user, error);
}

static void watch_wait(watch *w)
{
    g_mutex_lock(&w->lock);
    while (!w->done)
        g_cond_wait(&w->changed, &w->lock);
    g_mutex_unlock(&w->lock);
}

static const cs_llm_sink llm_sink = {
    .on_token = on_token, .on_hidden = on_hidden, .on_finish = on_finish, .on_done = llm_done};
static const cs_generator_sink sound_sink = {on_samples, sound_done};

/* Seconds to the first and to the last of n_tokens; `rows` [N_PROMPT, input_size]: what the prompt
 * and, its last one for ever, the answer hear; or NULL. */
static void time_llm(cs_llm_engine *engine, cs_shared_tensor *rows, uint32_t n_tokens,
                     double *first_s, double *all_s)
{
    int32_t ids[N_PROMPT];
    for (int i = 0; i < N_PROMPT; i++)
        ids[i] = 1 + i;
    const cs_llm_input_span span = {0, N_PROMPT, 0, 0};
    const cs_llm_input_item items[] = {{.n_rows = N_PROMPT, .tensor = rows}, {.n_rows = 0}};
    cs_llm_request_options o = {.n_tokens = N_PROMPT,
                                .token_ids = ids,
                                .sampling = {.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1},
                                .max_tokens = n_tokens,
                                .n_spans = rows ? 1 : 0,
                                .spans = &span,
                                .n_items = rows ? 2 : 0,
                                .items = items,
                                .has_reply_item = rows != NULL,
                                .reply_item = 1,
                                .hidden_states = !rows};
    g_autoptr(GError) error = NULL;
    watch w = {0};
    int64_t begun = cs_now_us();
    cs_llm_request *r = cs_llm_engine_submit(engine, &o, &llm_sink, &w, &error);
    fail_on(error);
    if (rows)
        cs_llm_request_provide(r, 1, rows, true);
    watch_wait(&w);
    cs_llm_request_release(r);
    *first_s = (double)(w.first_us - begun) * 1e-6;
    *all_s = (double)(w.last_us - begun) * 1e-6;
}

static double time_sound(cs_generator_engine *engine, const char *voice, uint32_t n_codes)
{
    const cs_generator_request_options o = {.voice = voice, .seed = SEED};
    g_autofree int32_t *codes = g_new0(int32_t, n_codes);
    g_autoptr(GError) error = NULL;
    watch w = {0};
    int64_t begun = cs_now_us();
    cs_generator_request *r = cs_generator_engine_submit(engine, &o, &sound_sink, &w, &error);
    fail_on(error);
    cs_generator_request_push(r, n_codes, codes, false);
    for (g_mutex_lock(&w.lock); !w.n;) { /* n is written by the engine's thread: look again */
        g_mutex_unlock(&w.lock);
        g_usleep(1000);
        g_mutex_lock(&w.lock);
    }
    g_mutex_unlock(&w.lock);
    cs_generator_request_push(r, 0, NULL, true);
    watch_wait(&w);
    cs_generator_request_release(r);
    return (double)(w.first_us - begun) * 1e-6;
}

/* ---- parts ---- */

typedef struct {
    uint32_t n_codes; /* before which nothing is heard */
    double hidden, tokens, codes, sound;
} parts;

static cs_llm_engine *start_llm(cs_llm *llm, bool hidden_states)
{
    const cs_llm_engine_options o = {
        .kv_budget_bytes = 64u << 20, .hidden_states = hidden_states, .no_prefix_cache = true};
    g_autoptr(GError) error = NULL;
    cs_llm_engine *engine = cs_llm_engine_new(llm, &o, &error);
    fail_on(error);
    return engine;
}

static parts measure_parts(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_compute) compute = cs_compute_new(&(cs_compute_options){0}, &error);
    fail_on(error);
    cs_model *model = cs_model_load(
        options.dir,
        &(cs_model_options){.compute = compute, .dtype = options.dtype, .speech = true}, &error);
    fail_on(error);
    uint32_t n_codes = model->speech->first_codes;
    g_autofree char *voice =
        g_strdup(cs_token2wav_speakers(model->speech->token2wav)->speakers[0].name);
    cs_llm_engine *thinker = start_llm(g_steal_pointer(&model->llm), true);
    cs_llm_engine *talker = start_llm(g_steal_pointer(&model->speech->talker), false);
    cs_generator_engine *sound =
        cs_generator_engine_new(cs_token2wav_generator(g_steal_pointer(&model->speech->token2wav)),
                                &(cs_generator_engine_options){0}, &error);
    fail_on(error);
    g_autoptr(cs_shared_tensor) rows =
        cs_shared_tensor_new(CS_DTYPE_F32, N_PROMPT, model->speech->heard_size);
    memset(rows->t.data, 0, sizeof(float) * N_PROMPT * model->speech->heard_size);
    double t[4][MAX_REPEAT], all;
    for (int i = 0; i < options.repeat; i++) {
        time_llm(thinker, NULL, n_codes + 1, &t[0][i], &all);
        t[1][i] = all - t[0][i];
        time_llm(talker, rows, n_codes, &all, &t[2][i]);
        t[3][i] = time_sound(sound, voice, n_codes);
    }
    cs_llm_engine_free(thinker);
    cs_llm_engine_free(talker);
    cs_generator_engine_free(sound);
    cs_model_free(model);
    return (parts){n_codes, median(t[0], options.repeat), median(t[1], options.repeat),
                   median(t[2], options.repeat), median(t[3], options.repeat)};
}

/* ---- the whole ---- */

static void measure_users(cs_pipeline *pipeline, int users, const parts *p)
{
    double times[MAX_REPEAT], sum = p->hidden + p->codes + p->sound;
    for (int i = 0; i < options.repeat; i++)
        listen(pipeline, users, 0, &times[i]);
    double took = median(times, options.repeat);
    printf("%d at once: first sound after %.3f s", users, took);
    if (options.parts)
        printf(": %.2f x the sum of the parts, %.2f x with the LLM's tokens among them", took / sum,
               took / (sum + p->tokens));
    printf("\n");
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "media-decoder") == 0) /* as the pipeline starts itself */
        return cs_media_decoder_main(atoi(argv[2]));
    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--dtype") == 0)
            options.dtype = argv[i + 1];
        else
            *(strcmp(argv[i], "--users") == 0   ? &options.users
              : strcmp(argv[i], "--parts") == 0 ? &options.parts
                                                : &options.repeat) = atoi(argv[i + 1]);
    }
    if (argc < 2 || options.users < 1 || options.users > MAX_LISTENERS || options.repeat < 1 ||
        options.repeat > MAX_REPEAT) {
        fprintf(stderr,
                "first_audio CHECKPOINT [--dtype f32|bf16] [--users 1..64] [--repeat 1..16]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    options.dir = argv[1];
    parts p = {0};
    if (options.parts) {
        p = measure_parts();
        printf("first hidden states %.3f s, %u more tokens %.3f s, %u codes %.3f s, their sound "
               "%.3f s\n",
               p.hidden, p.n_codes, p.tokens, p.n_codes, p.codes, p.sound);
    }
    g_autoptr(GError) error = NULL;
    const cs_pipeline_options o = {.dtype = options.dtype, .kv_budget_bytes = 256u << 20};
    cs_pipeline *pipeline = cs_pipeline_new(options.dir, &o, &error);
    fail_on(error);
    if (options.parts)
        measure_users(pipeline, 1, &p);
    if (options.users > 1)
        measure_users(pipeline, options.users, &p);
    cs_pipeline_free(pipeline);
    return 0;
}
