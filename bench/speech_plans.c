/* What it costs, and brings, to have what speaks in executors of its own: the time until each of so
 * many users has heard so much speech, and the first of it.
 *
 *     build/bench/speech_plans CHECKPOINT [--where here|one|apart] [--threads A,B,C] [--users N]
 *                              [--seconds S] [--repeat N] [--dtype f32|bf16]
 *
 * here: in this process, A threads; one: all in one executor of A threads; apart: thinker, talker
 * and vocoder in executors of A, B and C threads. CHECKPOINT is a Qwen2.5-Omni directory that
 * speaks; tools/reference/full_size --speech 3b makes one with random weights, whose speech knows
 * no end: users leave when they have heard enough. Medians of the repeats, after one that warms up.
 */
#include "base/os.h"
#include "media/decoder/child.h"
#include "runtime/executor.h"
#include "runtime/pipeline/pipeline.h"

#include <glib/gstdio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_USERS = 64, MAX_REPEAT = 16, N_ANSWER = 96 };

static struct {
    const char *dir, *where, *dtype;
    int threads[3], users, repeat;
    double seconds;
} options = {
    .where = "here", .dtype = "bf16", .threads = {2, 2, 2}, .users = 1, .repeat = 3, .seconds = 1};

static void fail_on(const GError *error)
{
    if (error) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
}

/* ---- where ---- */

static json_t *executor_of(int index, const char *name, const char *const *components, int threads)
{
    json_t *hosted = json_array();
    for (; *components; components++)
        json_array_append_new(hosted, json_pack("{s:s, s:s}", "name", *components, "role", "both"));
    return json_pack("{s:s, s:o, s:s, s:s, s:i, s:i, s:[i], s:i, s:f}", "name", name, "components",
                     hosted, "node", "local", "device", "cpu", "devices_per_replica", 1, "replicas",
                     1, "devices", index, "threads", threads, "kv_budget_bytes", 268435456.0);
}

static char *write_plan(const char *dir)
{
    static const char *const all[] = {"thinker", "talker", "vocoder", NULL};
    json_t *executors = json_array();
    bool apart = strcmp(options.where, "apart") == 0;
    for (int i = 0; i < (apart ? 3 : 1); i++) {
        const char *const alone[] = {all[i], NULL};
        json_array_append_new(executors,
                              executor_of(i, all[i], apart ? alone : all, options.threads[i]));
    }
    json_t *plan = json_pack("{s:i, s:s, s:s, s:o, s:[]}", "version", 1, "model", "qwen2_5_omni",
                             "policy", "throughput", "executors", executors, "routes");
    char *path = g_build_filename(dir, "plan.json", NULL);
    if (json_dump_file(plan, path, 0) != 0)
        exit(1);
    json_decref(plan);
    return path;
}

/* ---- users ---- */

typedef struct {
    GMutex lock;
    GCond changed;
    int64_t begun_us, first_us, enough_us;
    uint64_t n_samples, wanted;
    bool done;
    GError *error;
} user_state;

static void on_start(void *user, uint32_t prompt_tokens)
{
}

static void on_piece(void *user, const cs_piece *piece)
{
}

static void on_finish(void *user, uint32_t choice, cs_finish_reason reason)
{
}

static void on_audio(void *data, uint32_t n, const float *samples)
{
    user_state *u = data;
    g_mutex_lock(&u->lock);
    u->first_us = u->first_us ? u->first_us : cs_now_us();
    u->n_samples += n;
    if (u->n_samples >= u->wanted && !u->enough_us)
        u->enough_us = cs_now_us();
    g_cond_signal(&u->changed);
    g_mutex_unlock(&u->lock);
}

static void on_done(void *data, const cs_usage *usage, const GError *error)
{
    user_state *u = data;
    g_mutex_lock(&u->lock);
    u->done = true;
    u->error = error ? g_error_copy(error) : NULL;
    g_cond_signal(&u->changed);
    g_mutex_unlock(&u->lock);
}

static const cs_sink sink = {on_start, on_piece, on_finish, on_audio, on_done};

static void wait_until(user_state *u, bool enough)
{
    g_mutex_lock(&u->lock);
    while (!u->done && !(enough && u->enough_us))
        g_cond_wait(&u->changed, &u->lock);
    g_mutex_unlock(&u->lock);
    if (enough && !u->enough_us) {
        fprintf(stderr, "a speech ended early: %s\n", u->error ? u->error->message : "complete");
        exit(1);
    }
}

static cs_pipeline_request *begin(cs_pipeline *p, user_state *u, int number)
{
    g_autoptr(GError) error = NULL;
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content",
                                 "Tell me about the harbour, its ships, and the people there.");
    cs_request request = {.messages = messages,
                          .n_choices = 1,
                          .sampling = {.top_p = 1,
                                       .repetition_penalty = 1,
                                       .n_logprobs = -1,
                                       .ignore_eos = true,
                                       .has_seed = true,
                                       .seed = (uint64_t)number,
                                       .max_tokens = N_ANSWER}};
    cs_pipeline_voice_defaults(p, &request.voice);
    *u = (user_state){.begun_us = cs_now_us(),
                      .wanted = (uint64_t)(options.seconds * cs_pipeline_audio_rate(p))};
    cs_pipeline_request *handle = cs_pipeline_submit(p, &request, &sink, u, &error);
    fail_on(error);
    json_decref(messages);
    return handle;
}

/* Seconds until all have heard enough, and the mean until the first sound. */
static double run(cs_pipeline *p, double *first_s)
{
    user_state users[MAX_USERS];
    cs_pipeline_request *handles[MAX_USERS];
    int64_t begun = cs_now_us(), end = begun;
    *first_s = 0;
    for (int i = 0; i < options.users; i++)
        handles[i] = begin(p, &users[i], i);
    for (int i = 0; i < options.users; i++) {
        wait_until(&users[i], true);
        end = MAX(end, users[i].enough_us);
        *first_s += (double)(users[i].first_us - users[i].begun_us) * 1e-6 / options.users;
    }
    for (int i = 0; i < options.users; i++)
        cs_pipeline_cancel(handles[i]);
    for (int i = 0; i < options.users; i++) {
        wait_until(&users[i], false);
        cs_pipeline_release(handles[i]);
        g_clear_error(&users[i].error);
    }
    return (double)(end - begun) * 1e-6;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_dir_make_tmp("speech-plans-XXXXXX", &error);
    fail_on(error);
    g_autofree char *plan = strcmp(options.where, "here") == 0 ? NULL : write_plan(dir);
    cs_pipeline *p =
        cs_pipeline_new(options.dir,
                        &(cs_pipeline_options){.dtype = options.dtype,
                                               .plan = plan,
                                               .kv_budget_bytes = 256u << 20,
                                               .n_threads = (uint32_t)options.threads[0]},
                        &error);
    if (plan)
        g_unlink(plan);
    g_rmdir(dir);
    fail_on(error);
    double took[MAX_REPEAT], first[MAX_REPEAT], warm;
    if (options.repeat > 1)
        run(p, &warm);
    for (int i = 0; i < options.repeat; i++)
        took[i] = run(p, &first[i]);
    qsort(took, (size_t)options.repeat, sizeof(*took), compare);
    qsort(first, (size_t)options.repeat, sizeof(*first), compare);
    printf("%-5s %d users: %.2f s of speech each after %.2f s, the first of it after %.2f s\n",
           options.where, options.users, options.seconds, took[options.repeat / 2],
           first[options.repeat / 2]);
    cs_pipeline_free(p);
}

static bool read_threads(const char *text)
{
    int n = sscanf(text, "%d,%d,%d", &options.threads[0], &options.threads[1], &options.threads[2]);
    for (int i = MAX(n, 1); i < 3; i++)
        options.threads[i] = options.threads[0];
    return n >= 1;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "executor") == 0) /* as the pipeline starts itself */
        return cs_executor_main(CS_EXECUTOR_CONTROL_FD, CS_EXECUTOR_SIDECAR_FD);
    if (argc == 3 && strcmp(argv[1], "media-decoder") == 0)
        return cs_media_decoder_main(atoi(argv[2]));
    bool ok = argc >= 2 && argc % 2 == 0;
    for (int i = 2; ok && i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (strcmp(name, "--where") == 0)
            options.where = value;
        else if (strcmp(name, "--dtype") == 0)
            options.dtype = value;
        else if (strcmp(name, "--threads") == 0)
            ok = read_threads(value);
        else if (strcmp(name, "--seconds") == 0)
            options.seconds = atof(value);
        else if (strcmp(name, "--users") == 0)
            options.users = atoi(value);
        else
            options.repeat = atoi(value);
    }
    if (!ok || options.users < 1 || options.users > MAX_USERS || options.repeat < 1 ||
        options.repeat > MAX_REPEAT) {
        fprintf(stderr, "speech_plans CHECKPOINT [--where here|one|apart] [--threads A,B,C] "
                        "[--users 1..64] [--seconds S] [--repeat 1..16] [--dtype f32|bf16]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    options.dir = argv[1];
    measure();
    return 0;
}
