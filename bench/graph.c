/* What recording and replaying a task graph costs, on one core.
 *
 *     build/bench/graph CONFIG_JSON      CONFIG_JSON: config.json of a Qwen2.5-Omni checkpoint */
#include "base/os.h"
#include "graph/app.h"
#include "tasks.h"

#include <stdio.h>

enum { ROUNDS = 5000 };

static bool start(void *user, uint32_t call, const cs_recording *recording, GError **error)
{
    *(uint32_t *)user = recording->invocations->len;
    return true;
}

static bool emit(void *user, const json_t *event, GError **error)
{
    return true;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_tasks) tasks = argc == 2 ? cs_bench_tasks(argv[1], &error) : NULL;
    if (!tasks) {
        fprintf(stderr, "graph: %s\n", error ? error->message : "expected CONFIG_JSON");
        return 1;
    }
    json_t *request = json_pack("{s:[{s:s, s:i}], s:i, s:i, s:i, s:b}", "media", "modality",
                                "image", "tokens", 1200, "text_in_tokens", 100, "text_out_tokens",
                                100, "audio_out_tokens", 500, "speech", 1);
    static const cs_app_host host = {start, emit};
    uint32_t n_invocations = 0;
    int64_t begin = cs_now_us();
    for (int i = 0; i < ROUNDS; i++)
        cs_recording_free(cs_tasks_record(tasks, "model", request, NULL));
    int64_t recorded = cs_now_us();
    for (int i = 0; i < ROUNDS; i++) {
        cs_app_run *run = cs_app_run_new(tasks, request, &host, &n_invocations, NULL);
        if (cs_app_run_step(run, NULL) != CS_APP_DONE)
            return 1;
        cs_app_run_free(run);
    }
    int64_t end = cs_now_us();
    printf("%u invocations: record %.1f us, app run (record and replay) %.1f us\n", n_invocations,
           (double)(recorded - begin) / ROUNDS, (double)(end - recorded) / ROUNDS);
    json_decref(request);
    return 0;
}
