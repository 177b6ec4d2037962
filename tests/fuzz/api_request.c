/* Bodies of generation requests: read or refused with a message, by all endpoints; what is read
 * keeps its promises. */
#include "api/content.h"
#include "api/http.h"
#include "fake_pipeline.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_params(const cs_params *p)
{
    cs_sampling s;
    cs_params_sampling(p, NULL, &s);
    if (!(s.temperature >= 0 && s.temperature <= 2) || !(s.top_p > 0 && s.top_p <= 1) ||
        !isfinite(s.repetition_penalty) || s.n_logprobs > CS_MAX_LOGPROBS || p->n < 1)
        __builtin_trap();
}

static void check_content(const cs_content *content, cs_endpoint endpoint)
{
    if (endpoint == CS_ENDPOINT_CHAT) {
        for (guint i = 0; i < content->media->len; i++)
            if (!((cs_content_medium *)g_ptr_array_index(content->media, i))->bytes)
                __builtin_trap(); /* remote media are off */
    } else if ((content->prompts ? content->prompts : content->prompt_ids)->len == 0) {
        __builtin_trap();
    }
}

/* The answer is JSON whatever the names in the request were. */
static void check_fault(const cs_fault *fault)
{
    g_autofree char *text = cs_api_error_json(fault->error, fault->param, fault->code);
    json_t *root = text ? json_loads(text, 0, NULL) : NULL;
    if (!json_is_string(json_object_get(json_object_get(root, "error"), "message")))
        __builtin_trap();
    json_decref(root);
}

/* A speech is all parameters. */
static bool read_content(cs_content *content, const cs_body *body, cs_endpoint endpoint,
                         cs_fault *fault)
{
    cs_media_policy policy = {.max_medium_bytes = 1 << 20};
    if (endpoint == CS_ENDPOINT_SPEECH)
        return true;
    return endpoint == CS_ENDPOINT_CHAT ? cs_content_read_messages(content, body, &policy, fault)
                                        : cs_content_read_prompt(content, body, 256, fault);
}

static void read_as(cs_endpoint endpoint, GBytes *bytes)
{
    cs_fault fault = {0};
    cs_params params = {0};
    cs_content content = {0};
    cs_body body;
    if (!cs_body_parse(&body, bytes, &fault.error)) {
        check_fault(&fault);
        cs_fault_clear(&fault);
        return;
    }
    fault.body = &body;
    bool ok = cs_params_read(&params, &body, endpoint, &fault) &&
              read_content(&content, &body, endpoint, &fault);
    cs_body_clear(&body);
    if (ok != !fault.error)
        __builtin_trap();
    if (!ok)
        check_fault(&fault);
    if (ok) {
        check_params(&params);
        if (endpoint == CS_ENDPOINT_SPEECH && !(params.input && *params.input))
            __builtin_trap();
        if (endpoint != CS_ENDPOINT_SPEECH)
            check_content(&content, endpoint);
    }
    cs_params_clear(&params);
    cs_content_clear(&content);
    cs_fault_clear(&fault);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GBytes) bytes = g_bytes_new(data, size);
    read_as(CS_ENDPOINT_CHAT, bytes);
    read_as(CS_ENDPOINT_COMPLETION, bytes);
    read_as(CS_ENDPOINT_SPEECH, bytes);
    return 0;
}
