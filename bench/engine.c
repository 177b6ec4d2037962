/* What the LLM engine costs beside its component, and what sampling costs.
 *
 *     build/bench/engine
 *
 * The component does no work, so a step's time is the engine's own: scheduling, block tables,
 * greedy sampling over 128 ids, callbacks. Sampling is measured by itself over 151,936 logits (the
 * vocabulary of Qwen2.5), against one read of the row (a sum) in the same run.
 */
#include "base/os.h"
#include "engine/llm_engine.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- Scheduling ---- */

enum { SMALL_VOCAB = 128, PROMPT = 200, OUTPUT = 2000 };

static bool idle_reserve(cs_llm *llm, uint32_t n_kv_blocks, uint32_t max_rows,
                         uint32_t max_sequences, uint32_t max_logit_rows, GError **error)
{
    return true;
}

static bool idle_forward(cs_llm *llm, const cs_llm_batch *batch, float *logits, float *hidden,
                         GError **error)
{
    for (uint32_t i = 0; i < batch->n_logit_rows; i++)
        logits[(size_t)i * SMALL_VOCAB + batch->token_ids[batch->logit_rows[i]]] = (float)i;
    return true;
}

static void idle_copy_block(cs_llm *llm, int32_t to, int32_t from)
{
}

static void idle_free(cs_llm *llm)
{
    g_free(llm);
}

static const cs_llm_ops idle_ops = {.reserve = idle_reserve,
                                    .forward = idle_forward,
                                    .copy_block = idle_copy_block,
                                    .free = idle_free};

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int n_done;
} counter;

static bool on_token(void *user, const cs_llm_token *token)
{
    return true;
}

static void on_finish(void *user, uint32_t choice, cs_llm_finish reason)
{
}

static void on_done(void *user, const cs_llm_usage *usage, const GError *error)
{
    counter *c = user;
    pthread_mutex_lock(&c->lock);
    c->n_done++;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static void run_streams(cs_llm_engine *engine, uint32_t n)
{
    const cs_llm_sink sink = {.on_token = on_token, .on_finish = on_finish, .on_done = on_done};
    counter c = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    for (uint32_t i = 0; i < n; i++) {
        int32_t prompt[PROMPT];
        for (uint32_t j = 0; j < PROMPT; j++)
            prompt[j] = (int32_t)((i * 7 + j) % SMALL_VOCAB);
        cs_llm_request_options options = {.n_tokens = PROMPT,
                                          .token_ids = prompt,
                                          .max_tokens = OUTPUT,
                                          .sampling = CS_SAMPLING_GREEDY};
        cs_llm_request_release(cs_llm_engine_submit(engine, &options, &sink, &c, NULL));
    }
    pthread_mutex_lock(&c.lock);
    while (c.n_done < (int)n)
        pthread_cond_wait(&c.changed, &c.lock);
    pthread_mutex_unlock(&c.lock);
}

static void measure_steps(uint32_t n)
{
    cs_llm *llm = g_new0(cs_llm, 1);
    *llm = (cs_llm){.ops = &idle_ops,
                    .vocab_size = SMALL_VOCAB,
                    .hidden_size = 8,
                    .max_context_tokens = 32768,
                    .kv_block_bytes = 1};
    cs_llm_engine_options options = {.kv_budget_bytes = 16384, .max_sequences = 64};
    cs_llm_engine *engine = cs_llm_engine_new(llm, &options, NULL);
    run_streams(engine, n);
    cs_llm_engine_stats stats;
    cs_llm_engine_stats_get(engine, &stats);
    double own_us = (double)(stats.step_time_us - stats.forward_time_us) / (double)stats.steps;
    printf("  %2u streams  %7.2f us a step  %6.3f us a token\n", n, own_us, own_us / n);
    cs_llm_engine_free(engine);
}

/* ---- Sampling ---- */

enum { VOCAB = 151936, ROUNDS = 200 };

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_us(double *times)
{
    qsort(times, ROUNDS, sizeof *times, compare_doubles);
    return times[ROUNDS / 2] / 1000;
}

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static volatile float sink_value;

static double measure_read(const float *logits)
{
    double times[ROUNDS];
    for (int r = 0; r < ROUNDS; r++) {
        double start = now_ns();
        float lanes[64] = {0};
        for (int i = 0; i + 64 <= VOCAB; i += 64)
            for (int j = 0; j < 64; j++)
                lanes[j] += logits[i + j];
        for (int j = 0; j < 64; j++)
            sink_value = lanes[j];
        times[r] = now_ns() - start;
    }
    return median_us(times);
}

static void measure_draw(cs_sampler *sampler, const float *logits, const char *what,
                         cs_sampling_params params, cs_token_counts *counts, double read_us)
{
    double times[ROUNDS];
    for (uint32_t r = 0; r < ROUNDS; r++) {
        cs_sampling_request request = {.params = &params, .counts = counts, .index = r};
        cs_sampled_token token;
        double start = now_ns();
        cs_sampler_draw(sampler, logits, &request, &token, NULL);
        times[r] = now_ns() - start;
    }
    double us = median_us(times);
    printf("  %-44s %7.1f us  %5.1f x one read\n", what, us, us / read_us);
}

static void measure_sampling(const char *what, float spread)
{
    float *logits = g_new(float, VOCAB);
    GRand *rand = g_rand_new_with_seed(1);
    for (int i = 0; i < VOCAB; i++)
        logits[i] = spread * (float)(sqrt(-2 * log(1 - g_rand_double(rand))) *
                                     cos(2 * G_PI * g_rand_double(rand)));
    cs_sampler *sampler = cs_sampler_new(VOCAB);
    double read_us = measure_read(logits);
    printf("sampling, %d logits, %s; one read %.1f us:\n", VOCAB, what, read_us);
    cs_sampling_params p = CS_SAMPLING_GREEDY;
    measure_draw(sampler, logits, "greedy", p, NULL, read_us);
    p.n_logprobs = 20;
    measure_draw(sampler, logits, "greedy, 20 logprobs", p, NULL, read_us);
    p.n_logprobs = -1;
    p.temperature = 1;
    measure_draw(sampler, logits, "temperature 1", p, NULL, read_us);
    p.top_k = 50;
    measure_draw(sampler, logits, "temperature 1, top-k 50", p, NULL, read_us);
    p.top_k = 0, p.top_p = 0.9f;
    measure_draw(sampler, logits, "temperature 1, top-p 0.9", p, NULL, read_us);
    p.temperature = 0.7f, p.top_k = 20, p.top_p = 0.8f, p.repetition_penalty = 1.05f;
    cs_token_counts *counts = cs_token_counts_new(1000);
    for (int32_t i = 0; i < 1000; i++)
        cs_token_counts_add_output(counts, i * 100);
    measure_draw(sampler, logits, "Qwen2.5's defaults, 1000 tokens seen", p, counts, read_us);
    cs_token_counts_free(counts);
    cs_sampler_free(sampler);
    g_rand_free(rand);
    g_free(logits);
}

int main(void)
{
    printf("engine alone, %d prompt and %d output tokens a stream:\n", PROMPT, OUTPUT);
    measure_steps(1);
    measure_steps(16);
    measure_steps(64);
    measure_sampling("peaked (deviation 4)", 4);
    measure_sampling("nearly flat (deviation 0.5)", 0.5f);
    return 0;
}
