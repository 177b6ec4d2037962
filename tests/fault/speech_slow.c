/* A listener who takes nothing: with talker and vocoder in executors of their own, or in one, sound
 * is made as far as his credit reaches, codes a little farther, and the talker stands still. Others
 * are spoken to meanwhile. When he goes, all of it goes. The test program is its own executor. */
#include "base/error.h"
#include "base/log.h"
#include "media/decoder/child.h"
#include "runtime/executor.h"
#include "runtime/pipeline/pipeline.h"

#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CREDIT = 4800,
    /* Codes that a vocoder takes ahead, those that lie between it and the talker, and what was in
     * the making. */
    BACKLOG_CODES = 1024,
    UNREAD_CODES = 256,
    SLACK_CODES = 128,
    SAMPLES_PER_CODE = 120,
};

static char *checkpoint;

#define EXECUTOR(name, device, components)                                                         \
    "{\"name\": \"" name "\", \"components\": [" components                                        \
    "], \"node\": \"local\", \"device\": \"cpu\", \"devices_per_replica\": 1, \"replicas\": 1, "   \
    "\"devices\": [" device "], \"threads\": 1, \"kv_budget_bytes\": 67108864}"
#define HOSTED(name) "{\"name\": \"" name "\", \"role\": \"both\"}"
#define PLAN(executors)                                                                            \
    "{\"version\": 1, \"model\": \"qwen2_5_omni\", \"policy\": \"throughput\", \"routes\": [], "   \
    "\"executors\": [" executors "]}"

static const char *const plans[] = {
    PLAN(EXECUTOR("thinker", "0", HOSTED("thinker")) "," EXECUTOR(
        "talker", "1", HOSTED("talker")) "," EXECUTOR("vocoder", "2", HOSTED("vocoder"))),
    PLAN(EXECUTOR("all", "0", HOSTED("thinker") "," HOSTED("talker") "," HOSTED("vocoder")))};

typedef struct {
    gint n_samples, done;
    GError *error;
} listener;

static void on_start(void *user, uint32_t prompt_tokens)
{
}

static void on_piece(void *user, const cs_piece *piece)
{
}

static void on_finish(void *user, uint32_t choice, cs_finish_reason reason)
{
}

static void on_audio(void *user, uint32_t n, const float *samples)
{
    g_atomic_int_add(&((listener *)user)->n_samples, (gint)n);
}

static void on_done(void *user, const cs_usage *usage, const GError *error)
{
    listener *l = user;
    l->error = error ? g_error_copy(error) : NULL;
    g_atomic_int_set(&l->done, 1);
}

static cs_pipeline_request *ask(cs_pipeline *p, listener *l, float temperature, uint64_t credit)
{
    static const cs_sink sink = {on_start, on_piece, on_finish, on_audio, on_done};
    g_autoptr(GError) error = NULL;
    *l = (listener){0};
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content", "hello");
    cs_request request = {.messages = messages, .n_choices = 1};
    cs_pipeline_defaults(p, &request.sampling);
    request.sampling.max_tokens = 24;
    request.sampling.has_seed = true;
    cs_pipeline_voice_defaults(p, &request.voice);
    request.voice.name = "Ethan";
    request.voice.temperature = temperature;
    request.voice.repetition_penalty = 1; /* and greedy: it goes round in circles */
    request.voice.credit_samples = credit;
    cs_pipeline_request *handle = cs_pipeline_submit(p, &request, &sink, l, &error);
    g_assert_no_error(error);
    json_decref(messages);
    return handle;
}

static cs_pipeline_stats stats_of(cs_pipeline *p)
{
    cs_pipeline_stats stats;
    cs_pipeline_stats_get(p, &stats);
    return stats;
}

/* Until no code has come for a while. */
static uint64_t wait_until_still(cs_pipeline *p)
{
    uint64_t before = 0, now = 0;
    for (int still = 0; still<10; still = now> 0 && now == before ? still + 1 : 0) {
        before = now;
        g_usleep(100000);
        now = stats_of(p).speech_tokens;
    }
    return now;
}

static void wait_done(listener *l)
{
    for (int i = 0; i < 1200 && !g_atomic_int_get(&l->done); i++)
        g_usleep(50000);
    g_assert_true(g_atomic_int_get(&l->done));
}

static void test_slow(gconstpointer plan)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_dir_make_tmp("slow-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "plan.json", NULL);
    g_assert_true(g_file_set_contents(path, plan, -1, NULL));
    cs_pipeline *p = cs_pipeline_new(
        checkpoint,
        &(cs_pipeline_options){.dtype = "f32", .plan = path, .max_context_tokens = 1024}, &error);
    g_assert_no_error(error);
    listener slow, quick;
    cs_pipeline_request *a = ask(p, &slow, 0, CREDIT);
    uint64_t n_codes = wait_until_still(p);
    g_test_message("%u codes", (guint)n_codes);
    g_assert_false(g_atomic_int_get(&slow.done));
    g_assert_cmpint(g_atomic_int_get(&slow.n_samples), ==, CREDIT);
    g_assert_cmpuint(n_codes, >, BACKLOG_CODES); /* or it proves nothing */
    g_assert_cmpuint(n_codes, <=,
                     CREDIT / SAMPLES_PER_CODE + BACKLOG_CODES + UNREAD_CODES + SLACK_CODES);

    cs_pipeline_request *b = ask(p, &quick, 0.9f, 0);
    wait_done(&quick);
    g_assert_no_error(quick.error);
    g_assert_cmpint(g_atomic_int_get(&quick.n_samples), >, 0);
    cs_pipeline_release(b);

    uint64_t before = wait_until_still(p);
    cs_pipeline_audio_allow(a, 4 * CREDIT);
    for (int i = 0; i < 600 && g_atomic_int_get(&slow.n_samples) < 5 * CREDIT; i++)
        g_usleep(50000);
    g_assert_cmpint(g_atomic_int_get(&slow.n_samples), ==, 5 * CREDIT);
    g_assert_cmpuint(wait_until_still(p), >, before);

    cs_pipeline_cancel(a);
    wait_done(&slow);
    g_assert_error(slow.error, CS_ERROR, CS_ERROR_CANCELLED);
    g_clear_error(&slow.error);
    cs_pipeline_release(a);
    g_usleep(700000); /* executors tell what they have twice a second */
    cs_pipeline_stats stats = stats_of(p);
    g_assert_cmpuint(stats.talker_running + stats.sounds, ==, 0);
    g_assert_cmpuint(stats.talker_kv_blocks_used, ==, 0);
    g_assert_cmpuint(stats.sidecar_bytes, ==, 0);
    cs_pipeline_free(p);
    g_unlink(path);
    g_rmdir(dir);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "executor") == 0) /* as the pipeline starts itself */
        return cs_executor_main(CS_EXECUTOR_CONTROL_FD, CS_EXECUTOR_SIDECAR_FD);
    if (argc == 3 && strcmp(argv[1], "media-decoder") == 0)
        return cs_media_decoder_main(atoi(argv[2]));
    g_test_init(&argc, &argv, NULL);
    cs_log_set_level(CS_LOG_ERROR);
    g_assert_cmpint(argc, ==, 2); /* golden directory */
    checkpoint = g_build_filename(argv[1], "qwen2.5-omni-tiny", NULL);
    g_test_add_data_func("/speech/slow/apart", plans[0], test_slow);
    g_test_add_data_func("/speech/slow/together", plans[1], test_slow);
    int status = g_test_run();
    g_free(checkpoint);
    return status;
}
