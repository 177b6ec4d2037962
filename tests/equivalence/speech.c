/* A request that speaks: the pipeline's sound is, bit for bit, that of the reference's codes put
 * through the vocoder by hand; faults end it with an error, never with less sound. */
#include "base/error.h"
#include "base/json.h"
#include "base/os.h"
#include "golden/golden.h"
#include "media/decoder/child.h"
#include "models/model.h"
#include "models/qwen2_5_omni/talker.h"
#include "models/qwen2_5_omni/token2wav.h"
#include "runtime/pipeline/pipeline.h"

#include <stdlib.h>

#define SEED 7
#define N_CLIENTS 6

static char *golden_dir, *demo_dir;
static json_t *requests;

/* ---- a client ---- */

typedef struct {
    GMutex lock;
    GCond changed;
    GArray *tokens;  /* int32_t */
    GArray *samples; /* float */
    bool finished, done;
    uint32_t n_early; /* samples before the text had ended */
    uint32_t speech_tokens;
    GError *error;
    cs_pipeline_request *handle;
} client;

static void on_start(void *user, uint32_t prompt_tokens)
{
}

static void on_piece(void *user, const cs_piece *piece)
{
    client *c = user;
    g_assert_false(c->finished);
    g_array_append_vals(c->tokens, piece->token_ids, piece->n_tokens);
}

static void on_finish(void *user, uint32_t choice, cs_finish_reason reason)
{
    ((client *)user)->finished = true;
}

static void on_audio(void *user, uint32_t n, const float *samples)
{
    client *c = user;
    g_mutex_lock(&c->lock);
    g_assert_false(c->done);
    g_array_append_vals(c->samples, samples, n);
    c->n_early += c->finished ? 0 : n;
    g_cond_broadcast(&c->changed);
    g_mutex_unlock(&c->lock);
}

static void on_done(void *user, const cs_usage *usage, const GError *error)
{
    client *c = user;
    g_mutex_lock(&c->lock);
    g_assert_false(c->done);
    c->done = true;
    c->error = error ? g_error_copy(error) : NULL;
    c->speech_tokens = usage ? usage->speech_tokens : 0;
    g_cond_broadcast(&c->changed);
    g_mutex_unlock(&c->lock);
}

static const cs_sink sink = {on_start, on_piece, on_finish, on_audio, on_done};

static void client_init(client *c)
{
    *c = (client){.tokens = g_array_new(FALSE, FALSE, sizeof(int32_t)),
                  .samples = g_array_new(FALSE, FALSE, sizeof(float))};
    g_mutex_init(&c->lock);
    g_cond_init(&c->changed);
}

static void client_wait(client *c)
{
    g_mutex_lock(&c->lock);
    while (!c->done)
        g_cond_wait(&c->changed, &c->lock);
    g_mutex_unlock(&c->lock);
}

static void client_clear(client *c)
{
    if (c->handle)
        cs_pipeline_release(c->handle);
    g_clear_error(&c->error);
    g_array_unref(c->tokens);
    g_array_unref(c->samples);
    g_mutex_clear(&c->lock);
    g_cond_clear(&c->changed);
}

/* ---- requests ---- */

static json_t *find_request(const char *name)
{
    size_t i;
    json_t *request;
    json_array_foreach (json_object_get(requests, "requests"), i, request)
        if (strcmp(json_string_value(json_object_get(request, "name")), name) == 0)
            return request;
    g_error("no request %s", name);
}

/* The prompt of the first utterance, greedy all through. */
static cs_request make_request(const char *voice, float repetition_penalty, uint32_t max_tokens)
{
    json_t *request = find_request("req00");
    return (cs_request){.messages = json_object_get(request, "messages"),
                        .n_choices = 1,
                        .sampling = {.top_p = 1,
                                     .repetition_penalty = 1,
                                     .n_logprobs = -1,
                                     .has_seed = true,
                                     .seed = SEED,
                                     .ignore_eos = true,
                                     .max_tokens = max_tokens},
                        .voice = {.name = voice, .repetition_penalty = repetition_penalty}};
}

static cs_pipeline *load_from(const char *dir, bool no_speech)
{
    const cs_pipeline_options options = {
        .dtype = "f32", .n_threads = 2, .kv_budget_bytes = 16 << 20, .no_speech = no_speech};
    g_autoptr(GError) error = NULL;
    cs_pipeline *pipeline = cs_pipeline_new(dir, &options, &error);
    g_assert_no_error(error);
    return pipeline;
}

static cs_pipeline *load(bool no_speech)
{
    g_autofree char *dir = g_build_filename(golden_dir, "qwen2.5-omni-tiny", NULL);
    return load_from(dir, no_speech);
}

/* ---- by hand ---- */

static GArray *speak_by_hand(const char *dir, const char *voice, const int32_t *codes, uint32_t n)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_compute) compute = cs_compute_new(&(cs_compute_options){.n_threads = 2}, &error);
    g_assert_no_error(error);
    cs_model *model = cs_model_load(
        dir, &(cs_model_options){.compute = compute, .dtype = "f32", .speech = true}, &error);
    g_assert_no_error(error);
    cs_token2wav_stream *stream = cs_token2wav_stream_new(
        model->speech->token2wav, voice, &(cs_token2wav_options){.seed = SEED}, &error);
    g_assert_no_error(error);
    cs_token2wav_stream_push(stream, n, codes, true, &error);
    g_assert_no_error(error);
    while (cs_token2wav_stream_ready(stream)) {
        cs_token2wav_step(model->speech->token2wav, 1, &stream, &error);
        g_assert_no_error(error);
    }
    g_assert_true(cs_token2wav_stream_finished(stream));
    GArray *samples = g_array_new(FALSE, FALSE, sizeof(float));
    g_array_set_size(samples, cs_token2wav_stream_unread(stream));
    cs_token2wav_stream_read(stream, samples->len, (float *)(void *)samples->data);
    cs_token2wav_stream_free(stream);
    cs_model_free(model);
    return samples;
}

static void assert_same_sound(const GArray *got, const GArray *expected)
{
    g_assert_cmpuint(expected->len, >, 0);
    g_assert_cmpuint(got->len, ==, expected->len);
    for (guint i = 0; i < got->len; i++)
        g_assert_cmpfloat(g_array_index(got, float, i), ==, g_array_index(expected, float, i));
}

/* ---- tests ---- */

/* Many at once, in two voices' worth of sampling, all as if alone. */
static void test_golden(void)
{
    golden_file file = golden_open(golden_dir, "speech0.safetensors");
    const cs_checkpoint_tensor *tokens = golden_get(&file, "thinker.tokens");
    static const char *const names[] = {"codes", "codes_penalty"};
    GArray *expected[2];
    g_autofree char *dir = g_build_filename(golden_dir, "qwen2.5-omni-tiny", NULL);
    for (int k = 0; k < 2; k++) {
        const cs_checkpoint_tensor *codes = golden_get(&file, names[k]);
        expected[k] = speak_by_hand(dir, "Chelsie", codes->data, (uint32_t)codes->shape[0]);
    }
    cs_pipeline *pipeline = load(false);
    g_assert_cmpuint(cs_pipeline_audio_rate(pipeline), ==, 24000);
    client clients[N_CLIENTS];
    for (int i = 0; i < N_CLIENTS; i++) {
        cs_request request = make_request("Chelsie", i % 2 ? 1.05f : 1, (uint32_t)tokens->shape[0]);
        g_autoptr(GError) error = NULL;
        client_init(&clients[i]);
        clients[i].handle = cs_pipeline_submit(pipeline, &request, &sink, &clients[i], &error);
        g_assert_no_error(error);
        if (i == 0)
            client_wait(&clients[i]); /* alone */
    }
    for (int i = 0; i < N_CLIENTS; i++) {
        client_wait(&clients[i]);
        g_assert_no_error(clients[i].error);
        g_assert_cmpmem(clients[i].tokens->data, clients[i].tokens->len * sizeof(int32_t),
                        tokens->data, tokens->size_bytes);
        assert_same_sound(clients[i].samples, expected[i % 2]);
        client_clear(&clients[i]);
    }
    cs_pipeline_free(pipeline);
    g_array_unref(expected[0]);
    g_array_unref(expected[1]);
    golden_close(&file);
}

static void test_refusals(void)
{
    cs_pipeline *pipeline = load(false), *silent = load(true);
    cs_voice voice;
    cs_pipeline_voice_defaults(pipeline, &voice);
    g_assert_cmpstr(voice.name, ==, "Chelsie");
    g_assert_null(cs_pipeline_voices(silent));
    client c;
    client_init(&c);
    g_autoptr(GError) error = NULL;
    cs_request request = make_request("nobody", 1, 8);
    g_assert_null(cs_pipeline_submit(pipeline, &request, &sink, &c, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_NOT_FOUND);
    g_assert_nonnull(strstr(error->message, "Ethan, Chelsie"));
    g_clear_error(&error);
    request = make_request("Ethan", 1, 8);
    request.n_choices = 2;
    g_assert_null(cs_pipeline_submit(pipeline, &request, &sink, &c, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_UNSUPPORTED);
    g_clear_error(&error);
    request.n_choices = 1;
    g_assert_null(cs_pipeline_submit(silent, &request, &sink, &c, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_UNSUPPORTED);
    client_clear(&c);
    cs_pipeline_free(silent);
    cs_pipeline_free(pipeline);
}

static void run_one(cs_pipeline *pipeline, const cs_request *request, client *c)
{
    g_autoptr(GError) error = NULL;
    client_init(c);
    c->handle = cs_pipeline_submit(pipeline, request, &sink, c, &error);
    g_assert_no_error(error);
    client_wait(c);
}

/* An answer without a second token has no state to be spoken from. */
static void test_too_short(void)
{
    cs_pipeline *pipeline = load(false);
    cs_request request = make_request("Ethan", 1, 1);
    client c;
    run_one(pipeline, &request, &c);
    g_assert_error(c.error, CS_ERROR, CS_ERROR_FAILED);
    g_assert_nonnull(strstr(c.error->message, "too short to be spoken"));
    client_clear(&c);
    cs_pipeline_free(pipeline);
}

/* Reading a text aloud is the speech of a model that gives this text as its answer. */
static void test_aloud(void)
{
    enum { N_SEVENS = 12 };
    cs_pipeline *pipeline = load(false);
    g_autofree char *text = g_strnfill(N_SEVENS, '7'); /* digits are tokens of their own */
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int32_t));
    g_autoptr(GError) error = NULL;
    g_assert_true(cs_pipeline_tokenize(pipeline, text, N_SEVENS, ids, &error));
    g_assert_cmpuint(ids->len, ==, N_SEVENS);
    const cs_token_bias bias = {g_array_index(ids, int32_t, 0), 1000};
    g_autofree char *ask = g_strconcat(CS_TALKER_READ_ALOUD, text, NULL);
    json_t *messages = json_pack("[{s:s,s:s},{s:s,s:s}]", "role", "system", "content",
                                 CS_TALKER_SYSTEM, "role", "user", "content", ask);
    cs_request request = make_request("Ethan", 1.05f, N_SEVENS + 1);
    request.messages = messages;
    request.sampling.n_biases = 1;
    request.sampling.biases = &bias;
    client given, drawn;
    run_one(pipeline, &request, &drawn);
    request = make_request("Ethan", 1.05f, 0);
    request.messages = NULL;
    request.aloud = text;
    run_one(pipeline, &request, &given);
    g_assert_no_error(drawn.error);
    g_assert_no_error(given.error);
    g_assert_cmpuint(drawn.tokens->len, ==, N_SEVENS + 1);
    g_assert_cmpuint(given.tokens->len, ==, 0);
    assert_same_sound(given.samples, drawn.samples);
    json_decref(messages);
    client_clear(&given);
    client_clear(&drawn);
    cs_pipeline_free(pipeline);
}

static void check_trained(cs_pipeline *pipeline, const json_t *entry)
{
    const json_t *wanted = json_object_get(entry, "codes");
    const char *voice = json_string_value(json_object_get(entry, "voice"));
    g_autoptr(GArray) codes = g_array_new(FALSE, FALSE, sizeof(int32_t));
    size_t i;
    json_t *code;
    json_array_foreach (wanted, i, code)
        g_array_append_vals(codes, &(int32_t){(int32_t)json_integer_value(code)}, 1);
    GArray *expected =
        speak_by_hand(demo_dir, voice, (const int32_t *)(const void *)codes->data, codes->len);
    json_t *messages =
        json_pack("[{s:s,s:O}]", "role", "user", "content", json_object_get(entry, "question"));
    cs_request request = make_request(voice, 1.05f, 96);
    request.messages = messages;
    request.sampling.ignore_eos = false;
    client c;
    run_one(pipeline, &request, &c);
    g_assert_no_error(c.error);
    assert_same_sound(c.samples, expected);
    g_array_unref(expected);
    json_decref(messages);
    client_clear(&c);
}

/* Trained weights, whose answers and speeches end by themselves: the codes of tools/demo/spoken.py.
 */
static void test_trained(void)
{
    g_autofree char *path = g_build_filename(golden_dir, "..", "demo_speech.json", NULL);
    json_t *entries = json_load_file(path, 0, NULL);
    g_assert_cmpuint(json_array_size(entries), >, 0);
    cs_pipeline *pipeline = load_from(demo_dir, false);
    size_t i;
    json_t *entry;
    json_array_foreach (entries, i, entry)
        check_trained(pipeline, entry);
    cs_pipeline_free(pipeline);
    json_decref(entries);
}

static void test_text_only(void)
{
    cs_pipeline *pipeline = load(false);
    cs_request request = make_request(NULL, 1, 21);
    client c;
    run_one(pipeline, &request, &c);
    g_assert_no_error(c.error);
    g_assert_cmpuint(c.tokens->len, ==, 21);
    g_assert_cmpuint(c.samples->len, ==, 0);
    g_assert_cmpuint(c.speech_tokens, ==, 0);
    client_clear(&c);
    cs_pipeline_free(pipeline);
}

static void wait_for_sound(client *c)
{
    g_mutex_lock(&c->lock);
    while (c->samples->len == 0 && !c->done)
        g_cond_wait(&c->changed, &c->lock);
    g_assert_false(c->done);
    g_mutex_unlock(&c->lock);
}

/* A request that is cancelled at its first sound has nothing left of it when it is done, a step
 * later; one that the pipeline's end finds in mid-speech ends too. */
static void test_cancel(void)
{
    cs_pipeline *pipeline = load(false);
    cs_request request = make_request("Ethan", 1, 400);
    client c;
    cs_pipeline_stats before, after;
    g_autoptr(GError) error = NULL;
    for (int i = 0; i < 2; i++) {
        client_init(&c);
        c.handle = cs_pipeline_submit(pipeline, &request, &sink, &c, &error);
        g_assert_no_error(error);
        wait_for_sound(&c);
        if (i == 1)
            break;
        cs_pipeline_cancel(c.handle);
        cs_pipeline_stats_get(pipeline, &before);
        client_wait(&c);
        cs_pipeline_stats_get(pipeline, &after);
        g_assert_error(c.error, CS_ERROR, CS_ERROR_CANCELLED);
        g_assert_cmpuint(after.kv_blocks_used, ==, 0);
        g_assert_cmpuint(after.talker_kv_blocks_used, ==, 0);
        g_assert_cmpuint(after.talker_running, ==, 0);
        g_assert_cmpuint(after.sounds, ==, 0);
        g_assert_cmpuint(after.sound_steps - before.sound_steps, <=, 1);
        g_assert_cmpuint(after.completion_tokens - before.completion_tokens, <=, 2);
        g_assert_cmpuint(after.speech_tokens - before.speech_tokens, <=, 2);
        client_clear(&c);
    }
    cs_pipeline_release(g_steal_pointer(&c.handle));
    cs_pipeline_free(pipeline);
    g_assert_true(c.done);
    client_clear(&c);
}

/* A client without credit gets no more; others go on; with credit it gets the rest of the same. */
static void test_slow_client(void)
{
    enum { CREDIT = 500 };
    cs_pipeline *pipeline = load(false);
    cs_request request = make_request("Chelsie", 1, 21);
    client slow, other;
    run_one(pipeline, &request, &other);
    g_assert_no_error(other.error);
    g_assert_cmpuint(other.samples->len, >, 2 * CREDIT);
    request.voice.credit_samples = CREDIT;
    g_autoptr(GError) error = NULL;
    client_init(&slow);
    slow.handle = cs_pipeline_submit(pipeline, &request, &sink, &slow, &error);
    g_assert_no_error(error);
    request.voice.credit_samples = 0;
    client between;
    run_one(pipeline, &request, &between);
    assert_same_sound(between.samples, other.samples);
    g_usleep(G_USEC_PER_SEC / 5);
    g_mutex_lock(&slow.lock);
    g_assert_cmpuint(slow.samples->len, ==, CREDIT);
    g_assert_false(slow.done);
    g_mutex_unlock(&slow.lock);
    cs_pipeline_audio_allow(slow.handle, 1);
    cs_pipeline_audio_allow(slow.handle, UINT64_MAX);
    client_wait(&slow);
    g_assert_no_error(slow.error);
    assert_same_sound(slow.samples, other.samples);
    client_clear(&between);
    client_clear(&slow);
    client_clear(&other);
    cs_pipeline_free(pipeline);
}

/* ---- soak ---- */

/* Speeches one after another from each of N_SOAKING clients, some of which are cancelled; memory
 * stops growing and nothing stays. CS_SOAK_SECONDS sets how long. */
#define N_SOAKING 32
#define SOAK_SECONDS 6
/* Caches, allocator and stacks settle in the first half; a leak of one chunk a speech is far over.
 */
#ifdef __SANITIZE_ADDRESS__ /* keeps freed memory aside, and finds leaks itself */
#define SOAK_GROWTH_BYTES (512 << 20)
#else
#define SOAK_GROWTH_BYTES (24 << 20)
#endif

typedef struct {
    cs_pipeline *pipeline;
    int64_t end_us;
    uint32_t seed;
    uint32_t n_spoken, n_cancelled;
} soaking;

static gpointer soak_main(gpointer user)
{
    soaking *s = user;
    g_autoptr(GRand) random = g_rand_new_with_seed(s->seed);
    while (cs_now_us() < s->end_us) {
        client c;
        g_autoptr(GError) error = NULL;
        cs_request request = make_request(g_rand_boolean(random) ? "Ethan" : "Chelsie", 1.05f,
                                          (uint32_t)g_rand_int_range(random, 2, 40));
        request.sampling.seed = g_rand_int(random);
        request.voice.temperature = 1;
        client_init(&c);
        c.handle = cs_pipeline_submit(s->pipeline, &request, &sink, &c, &error);
        g_assert_no_error(error);
        bool cancels = g_rand_int_range(random, 0, 4) == 0;
        if (cancels) {
            g_usleep((gulong)g_rand_int_range(random, 0, 200000));
            cs_pipeline_cancel(c.handle);
        }
        client_wait(&c);
        if (c.error && !g_error_matches(c.error, CS_ERROR, CS_ERROR_CANCELLED))
            g_assert_nonnull(strstr(c.error->message, "no sound"));
        s->n_spoken += !c.error;
        s->n_cancelled += c.error != NULL;
        client_clear(&c);
    }
    return NULL;
}

static void soak_for(cs_pipeline *pipeline, double seconds, uint32_t *n_spoken)
{
    soaking soakings[N_SOAKING];
    GThread *threads[N_SOAKING];
    int64_t end_us = cs_now_us() + (int64_t)(seconds * G_USEC_PER_SEC);
    for (uint32_t i = 0; i < N_SOAKING; i++) {
        soakings[i] = (soaking){.pipeline = pipeline, .end_us = end_us, .seed = i};
        threads[i] = g_thread_new("soak", soak_main, &soakings[i]);
    }
    for (uint32_t i = 0; i < N_SOAKING; i++) {
        g_thread_join(threads[i]);
        *n_spoken += soakings[i].n_spoken;
    }
}

static void test_soak(void)
{
    const char *given = g_getenv("CS_SOAK_SECONDS");
    double seconds = given ? g_ascii_strtod(given, NULL) : SOAK_SECONDS;
    cs_pipeline *pipeline = load(false);
    uint32_t n_spoken = 0;
    soak_for(pipeline, seconds / 2, &n_spoken);
    uint64_t settled = cs_process_resident_bytes();
    soak_for(pipeline, seconds / 2, &n_spoken);
    int64_t grown = (int64_t)cs_process_resident_bytes() - (int64_t)settled;
    cs_pipeline_stats stats;
    cs_pipeline_stats_get(pipeline, &stats);
    g_test_message("%u speeches by %d clients in %g s; in the second half resident memory grew by "
                   "%.1f MiB",
                   n_spoken, N_SOAKING, seconds, (double)grown / (1 << 20));
    g_assert_cmpuint(n_spoken, >, 0);
    g_assert_cmpuint(stats.kv_blocks_used + stats.talker_kv_blocks_used + stats.sounds, ==, 0);
    g_assert_cmpint(grown, <, SOAK_GROWTH_BYTES);
    cs_pipeline_free(pipeline);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "media-decoder") == 0) /* as the pipeline starts itself */
        return cs_media_decoder_main(atoi(argv[2]));
    g_test_init(&argc, &argv, NULL);
    g_assert_cmpint(argc, ==, 3); /* golden directory, the trained checkpoint */
    golden_dir = argv[1];
    demo_dir = argv[2];
    g_autofree char *path = g_build_filename(golden_dir, "requests.json", NULL);
    g_autoptr(GError) error = NULL;
    requests = cs_json_load_file(path, 1 << 24, &error);
    g_assert_no_error(error);
    g_test_add_func("/speech/golden", test_golden);
    g_test_add_func("/speech/trained", test_trained);
    g_test_add_func("/speech/refusals", test_refusals);
    g_test_add_func("/speech/too_short", test_too_short);
    g_test_add_func("/speech/aloud", test_aloud);
    g_test_add_func("/speech/text_only", test_text_only);
    g_test_add_func("/speech/cancel", test_cancel);
    g_test_add_func("/speech/slow_client", test_slow_client);
    g_test_add_func("/speech/soak", test_soak);
    int result = g_test_run();
    json_decref(requests);
    return result;
}
