/* Speech with a plan: executors hand states and codes to one another; here come the codes, which
 * are counted, and the samples. */
#include "base/error.h"
#include "runtime.pb-c.h"
#include "runtime/pipeline/internal.h"

#include <string.h>

static bool hosts(const cs_plan *plan, const char *component)
{
    for (size_t i = 0; i < plan->n_executors; i++)
        for (size_t k = 0; k < plan->executors[i].n_hosted; k++)
            if (strcmp(plan->executors[i].hosted[k].name, component) == 0)
                return true;
    return false;
}

bool pipeline_remote_voices(cs_pipeline *p, const cs_plan *plan, const char *source, GError **error)
{
    bool talker = hosts(plan, "talker"), vocoder = hosts(plan, "vocoder");
    if (talker != vocoder)
        return cs_fail(error, CS_ERROR_INVALID,
                       "%s: executors have component %s but none has %s, and speech needs both",
                       source, talker ? "talker" : "vocoder", talker ? "vocoder" : "talker");
    if (talker && p->model->speech)
        pipeline_voices_open(p);
    return true;
}

GBytes *pipeline_remote_pack_speech(const cs_pipeline_request *r, const cs_prompt *prompt)
{
    const pipeline_speech *s = r->speech;
    Cornserve__Wire__Speech m = CORNSERVE__WIRE__SPEECH__INIT;
    m.n_prompt = prompt->n_tokens;
    if (prompt->positions) {
        m.positions.data = (uint8_t *)prompt->positions;
        m.positions.len = prompt->n_tokens * sizeof(int32_t[3]);
    }
    m.next_position = prompt->next_position;
    m.voice = r->pipeline->voices.names[s->voice];
    m.temperature = s->temperature;
    m.repetition_penalty = s->repetition_penalty;
    m.seed = r->sampling.seed;
    size_t size_bytes = cornserve__wire__speech__get_packed_size(&m);
    uint8_t *data = g_malloc(size_bytes + 1);
    cornserve__wire__speech__pack(&m, data);
    return g_bytes_new_take(data, size_bytes);
}

static void count(cs_pipeline *p, uint64_t n_codes, uint64_t n_samples)
{
    g_mutex_lock(&p->lock);
    p->counts.speech_tokens += n_codes;
    p->counts.speech_samples += n_samples;
    g_mutex_unlock(&p->lock);
}

bool pipeline_remote_codes(cs_pipeline_request *r, const void *data, size_t size_bytes)
{
    Cornserve__Wire__Tokens *tokens = cornserve__wire__tokens__unpack(NULL, size_bytes, data);
    if (!tokens || !r->speech) {
        if (tokens)
            cornserve__wire__tokens__free_unpacked(tokens, NULL);
        return false;
    }
    r->speech->n_codes += (uint32_t)tokens->n_tokens;
    count(r->pipeline, tokens->n_tokens, 0);
    cornserve__wire__tokens__free_unpacked(tokens, NULL);
    return true;
}

bool pipeline_remote_samples(cs_pipeline_request *r, const void *data, size_t size_bytes)
{
    size_t n = size_bytes / sizeof(float);
    if (!r->speech || size_bytes % sizeof(float) != 0 || n > UINT32_MAX)
        return false;
    g_autofree float *samples = g_memdup2(data, size_bytes); /* aligned */
    r->speech->n_samples += n;
    count(r->pipeline, 0, n);
    if (n > 0)
        r->sink.on_audio(r->user, (uint32_t)n, samples);
    return true;
}
