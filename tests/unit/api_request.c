/* Reading generation requests: every field's type and range, content parts, placeholders for
 * base64. */
#include "api/content.h"
#include "api/http.h"
#include "fake_pipeline.h"

#include <string.h>

static bool read_text(cs_endpoint endpoint, const char *text, cs_fault *fault, cs_params *params,
                      cs_content *content)
{
    g_autoptr(GBytes) bytes = g_bytes_new(text, strlen(text));
    cs_media_policy policy = {.max_medium_bytes = 1 << 20};
    cs_body body;
    *params = (cs_params){0};
    *content = (cs_content){0};
    if (!cs_body_parse(&body, bytes, &fault->error))
        return false;
    bool ok =
        cs_params_read(params, &body, endpoint, fault) &&
        (endpoint == CS_ENDPOINT_CHAT ? cs_content_read_messages(content, &body, &policy, fault)
                                      : cs_content_read_prompt(content, &body, 256, fault));
    cs_body_clear(&body);
    return ok;
}

typedef struct {
    cs_endpoint endpoint;
    const char *body;
    const char *param;   /* of the fault; NULL: none is named */
    const char *message; /* a part of it; NULL: the request is fine */
} request_case;

#define CHAT CS_ENDPOINT_CHAT
#define COMPLETION CS_ENDPOINT_COMPLETION
#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define PART(part) "{\"messages\":[{\"role\":\"user\",\"content\":[" part "]}]}"

static const request_case cases[] = {
    {CHAT, "{" HI "}", NULL, NULL},
    {CHAT, "{" HI ",\"temperature\":null,\"tools\":null}", NULL, NULL},
    {CHAT,
     "{" HI
     ",\"temperature\":0,\"top_p\":1,\"n\":2,\"seed\":-5,\"max_tokens\":3,\"stop\":[\"a\",\"b\"]}",
     NULL, NULL},
    {CHAT,
     "{" HI ",\"max_tokens\":3,\"max_completion_tokens\":3,\"stream\":true,\"stream_options\":{"
     "\"include_usage\":true}}",
     NULL, NULL},
    {CHAT,
     "{" HI ",\"tools\":[],\"response_format\":{\"type\":\"text\"},\"modalities\":[\"text\"]}",
     NULL, NULL},
    {CHAT, "{" HI ",\"logit_bias\":{\"5\":-100,\"7\":1.5},\"n\":2.0}", NULL, NULL},
    /* malformed */
    {CHAT, "", NULL, "empty"},
    {CHAT, "{", NULL, "request body: line 1"},
    {CHAT, "[]", NULL, "expected a JSON object"},
    {CHAT, "{" HI "} x", NULL, "request body"},
    {CHAT, "{" HI ",\"temperature\":NaN}", NULL, "request body"},
    {CHAT, "{" HI ",\"temperature\":1e999}", NULL, "request body"},
    {CHAT, "{" HI ",\"n\":1,\"n\":2}", NULL, "duplicate"},
    {CHAT, "{" HI ",\"user\":\"\xff\"}", NULL, "request body"},
    /* ranges and types */
    {CHAT, "{" HI ",\"temperature\":-0.1}", "temperature",
     "expected a number in [0, 2], found -0.1"},
    {CHAT, "{" HI ",\"temperature\":\"NaN\"}", "temperature",
     "expected a number in [0, 2], found \"NaN\""},
    {CHAT, "{" HI ",\"temperature\":true}", "temperature", "expected a number"},
    {CHAT, "{" HI ",\"top_p\":0}", "top_p", "expected a number"},
    {CHAT, "{" HI ",\"top_k\":-2}", "top_k", "[-1, 1000000]"},
    {CHAT, "{" HI ",\"min_p\":1.1}", "min_p", "[0, 1]"},
    {CHAT, "{" HI ",\"n\":0}", "n", "[1, 64]"},
    {CHAT, "{" HI ",\"n\":1.5}", "n", "expected an integer"},
    {CHAT, "{" HI ",\"max_tokens\":-1}", "max_tokens", "expected an integer"},
    {CHAT, "{" HI ",\"max_tokens\":1,\"max_completion_tokens\":2}", "max_tokens", "differs"},
    {CHAT, "{" HI ",\"presence_penalty\":2.01}", "presence_penalty", "[-2, 2]"},
    {CHAT, "{" HI ",\"stream\":\"yes\"}", "stream", "true or false"},
    {CHAT, "{" HI ",\"stream_options\":{}}", "stream_options", "is for"},
    {CHAT, "{" HI ",\"stream\":true,\"stream_options\":{\"x\":1}}", "stream_options.x",
     "not supported"},
    {CHAT, "{" HI ",\"stop\":\"\"}", "stop", "1 to 1024"},
    {CHAT, "{" HI ",\"stop\":[1]}", "stop", "1 to 1024"},
    {CHAT, "{" HI ",\"top_logprobs\":2}", "top_logprobs", "needs"},
    {CHAT, "{" HI ",\"logprobs\":true,\"top_logprobs\":21}", "top_logprobs", "[0, 20]"},
    {CHAT, "{" HI ",\"logit_bias\":{\"x\":1}}", "logit_bias.x", "token id"},
    {CHAT, "{" HI ",\"logit_bias\":{\"1\":101}}", "logit_bias.1", "[-100, 100]"},
    {CHAT, "{" HI ",\"logit_bias\":{\"01\":1}}", "logit_bias.01", "token id"},
    {CHAT, "{" HI ",\"chat_template_kwargs\":{\"messages\":1}}", "chat_template_kwargs",
     "set by the server"},
    /* unsupported and unknown, by name */
    {CHAT, "{" HI ",\"tools\":[{\"type\":\"function\"}]}", "tools", "only one of"},
    {CHAT, "{" HI ",\"modalities\":[\"text\",\"audio\"]}", NULL, NULL},
    {CHAT, "{" HI ",\"modalities\":[\"audio\"]}", "modalities", "[\"text\", \"audio\"]"},
    {CHAT, "{" HI ",\"modalities\":[\"text\",\"smell\"]}", "modalities", "[\"text\", \"audio\"]"},
    {CHAT, "{" HI ",\"modalities\":[\"text\",\"text\"]}", "modalities", "[\"text\", \"audio\"]"},
    {CHAT, "{" HI ",\"audio\":{\"voice\":\"x\"}}", "audio", "modalities"},
    {CHAT, "{" HI ",\"modalities\":[\"text\",\"audio\"],\"audio\":{\"format\":\"aac\"}}",
     "audio.format", "expected wav, mp3"},
    {CHAT, "{" HI ",\"modalities\":[\"text\",\"audio\"],\"audio\":{\"speed\":2}}", "audio.speed",
     "takes voice and format"},
    {CHAT, "{" HI ",\"modalities\":[\"text\",\"audio\"],\"n\":2}", "n", "ask for one"},
    {CHAT, "{" HI ",\"response_format\":{\"type\":\"json_object\"}}", "response_format",
     "only one of"},
    {CHAT, "{" HI ",\"frobnicate\":1}", "frobnicate", "no such parameter"},
    {CHAT, "{" HI ",\"prompt\":\"x\"}", "prompt", "no such parameter"},
    {COMPLETION, "{\"prompt\":\"x\",\"suffix\":\"y\"}", "suffix", "only one of"},
    {COMPLETION, "{\"prompt\":\"x\",\"best_of\":2}", "best_of", "only one of"},
    {COMPLETION, "{\"prompt\":\"x\",\"echo\":true,\"logprobs\":1}", "logprobs",
     "together with echo"},
    /* messages */
    {CHAT, "{}", "messages", "an array of 1 to 4096"},
    {CHAT, "{\"messages\":[]}", "messages", "an array of 1 to 4096"},
    {CHAT, "{\"messages\":[1]}", "messages[0]", "an object"},
    {CHAT, "{\"messages\":[{\"role\":\"robot\",\"content\":\"x\"}]}", "messages[0].role",
     "found \"robot\""},
    {CHAT, "{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content", "a string or an array"},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"y\":1}]}", "messages[0].y",
     "no such member"},
    {CHAT, PART("{\"type\":\"text\"}"), "messages[0].content[0].text", "a string"},
    {CHAT, PART("{\"type\":\"picture\"}"), "messages[0].content[0].type", "found \"picture\""},
    {CHAT, PART("{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,AAAA\"}}"),
     NULL, NULL},
    {CHAT, PART("{\"type\":\"image_url\",\"image_url\":\"data:image/png;base64,AAAA\"}"), NULL,
     NULL},
    {CHAT,
     PART("{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/"
          "png;base64,AAAA\",\"detail\":\"low\"}}"),
     NULL, NULL},
    {CHAT,
     PART("{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/"
          "png;base64,AAAA\",\"detail\":\"ultra\"}}"),
     "messages[0].content[0].image_url.detail", "\"auto\", \"low\" or \"high\""},
    {CHAT, PART("{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,AA!A\"}}"),
     "messages[0].content[0].image_url.url", "messages[0].content[0].image_url.url"},
    {CHAT, PART("{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,\"}}"),
     "messages[0].content[0].image_url.url", "messages[0].content[0].image_url.url"},
    {CHAT, PART("{\"type\":\"image_url\",\"image_url\":{\"url\":\"https://example.org/a.png\"}}"),
     "messages[0].content[0].image_url.url", "--allow-remote-media"},
    {CHAT, PART("{\"type\":\"image_url\",\"image_url\":{\"url\":\"file:///etc/passwd\"}}"),
     "messages[0].content[0].image_url.url", "--allow-media-dir"},
    {CHAT, PART("{\"type\":\"image_url\",\"image_url\":{\"url\":\"gopher://x/\"}}"),
     "messages[0].content[0].image_url.url", "data: or https:"},
    {CHAT,
     PART("{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"AAAA\",\"format\":\"wav\"}}"),
     NULL, NULL},
    {CHAT,
     PART("{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"AAAA\",\"format\":\"midi\"}}"),
     "messages[0].content[0].input_audio.format", "found \"midi\""},
    {CHAT, PART("{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"AAAA\"}}"),
     "messages[0].content[0].input_audio.format", "a string"},
    {CHAT,
     "{\"messages\":[{\"role\":\"assistant\",\"content\":[{\"type\":\"image_url\",\"image_url\":"
     "\"data:,\"}]}]}",
     "messages[0].content[0]", "user's"},
    {CHAT,
     "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\","
     "\"function\":{\"name\":\"f\","
     "\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"7\"}]}",
     NULL, NULL},
    {CHAT,
     "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
     "\"arguments\":\"[\"}}]}]}",
     "messages[0].tool_calls[0].function", "JSON object"},
    /* prompts */
    {COMPLETION, "{\"prompt\":\"x\"}", NULL, NULL},
    {COMPLETION, "{\"prompt\":[\"x\",\"y\"]}", NULL, NULL},
    {COMPLETION, "{\"prompt\":[1,2,3]}", NULL, NULL},
    {COMPLETION, "{\"prompt\":[[1],[2]]}", NULL, NULL},
    {COMPLETION, "{}", "prompt", "a string, an array"},
    {COMPLETION, "{\"prompt\":\"\"}", "prompt", "not empty"},
    {COMPLETION, "{\"prompt\":[]}", "prompt", "a string, an array"},
    {COMPLETION, "{\"prompt\":[1,256]}", "prompt[1]", "[0, 256)"},
    {COMPLETION, "{\"prompt\":[1,-1]}", "prompt[1]", "[0, 256)"},
    {COMPLETION, "{\"prompt\":[\"x\",1]}", "prompt[1]", "a string"},
    {COMPLETION, "{\"prompt\":[[1],\"x\"]}", "prompt[1]", "token ids"},
};

static void test_case(gconstpointer data)
{
    const request_case *c = data;
    cs_fault fault = {0};
    cs_params params;
    cs_content content;
    bool ok = read_text(c->endpoint, c->body, &fault, &params, &content);
    g_assert_cmpint(ok, ==, fault.error == NULL);
    if (c->message) {
        g_assert_false(ok);
        g_assert_nonnull(strstr(fault.error->message, c->message));
        g_assert_cmpstr(fault.param, ==, c->param);
    } else {
        g_assert_no_error(fault.error);
    }
    cs_params_clear(&params);
    cs_content_clear(&content);
    cs_fault_clear(&fault);
}

/* A long base64 string is cut out, given back whole, and its placeholder cannot be forged. */
static void test_lift(void)
{
    g_autofree char *base64 = g_strnfill(100000, 'A');
    g_autofree char *text = g_strdup_printf(
        "{\"a\":\"%s\",\"b\":[\"data:image/png;base64,%s\"],\"%s\":1,\"c\":\"%s \"}", base64,
        base64, base64, base64);
    g_autoptr(GBytes) bytes = g_bytes_new(text, strlen(text));
    cs_body body;
    g_autoptr(GError) error = NULL;
    g_assert_true(cs_body_parse(&body, bytes, &error));
    g_assert_cmpuint(body.lifted->len, ==, 2);
    size_t n;
    const char *a = cs_body_string(&body, json_object_get(body.root, "a"), &n);
    g_assert_cmpmem(a, n, base64, 100000);
    g_assert_cmpint(json_integer_value(json_object_get(body.root, base64)), ==, 1);
    json_t *restored = cs_body_restore(&body, body.root);
    json_t *direct = json_loads(text, 0, NULL);
    g_assert_true(json_equal(restored, direct));
    json_decref(restored);
    json_decref(direct);
    cs_body_clear(&body);
}

/* A name that is cut inside of a character still makes JSON. */
static void test_cut_names(void)
{
    g_autoptr(GString) body = g_string_new("{\"a");
    for (int i = 0; i < 100; i++)
        g_string_append(body, "é");
    g_string_append(body, "\":1}");
    cs_fault fault = {0};
    cs_params params;
    cs_content content;
    g_assert_false(read_text(CHAT, body->str, &fault, &params, &content));
    g_autofree char *text = cs_api_error_json(fault.error, fault.param, fault.code);
    json_t *root = json_loads(text, 0, NULL);
    json_t *error = json_object_get(root, "error");
    g_assert_true(g_str_has_prefix(json_string_value(json_object_get(error, "param")), "aéé"));
    json_decref(root);
    cs_params_clear(&params);
    cs_content_clear(&content);
    cs_fault_clear(&fault);
}

/* An error shows what came, not what stands for it. */
static void test_lifted_in_errors(void)
{
    g_autofree char *base64 = g_strnfill(5000, 'A');
    g_autofree char *text = g_strdup_printf("{\"a\":\"%s\",\"b\":[\"%s\"]}", base64, base64);
    g_autoptr(GBytes) bytes = g_bytes_new(text, strlen(text));
    cs_body body;
    g_assert_true(cs_body_parse(&body, bytes, NULL));
    static const char *const found[] = {"found \"AAAA", "found [\"...\"]"};
    for (size_t i = 0; i < G_N_ELEMENTS(found); i++) {
        cs_fault fault = {.body = &body};
        cs_fault_expected(&fault, "x", "y", json_object_get(body.root, i ? "b" : "a"));
        g_assert_nonnull(strstr(fault.error->message, found[i]));
        g_assert_null(strstr(fault.error->message, body.marker));
        cs_fault_clear(&fault);
    }
    cs_body_clear(&body);
}

/* Looking for the end of a string with many escapes takes one pass. */
static void test_many_escapes(void)
{
    enum { N = 3 << 20 };
    GString *text = g_string_new("{\"a\":\"");
    for (int i = 0; i < N; i++)
        g_string_append(text, i % 2 ? "\\\"" : "\\\\");
    g_string_append(text, "\",\"b\":\"\\\\\"}");
    g_autoptr(GBytes) bytes = g_string_free_to_bytes(text);
    g_autoptr(GError) error = NULL;
    cs_body body;
    cs_body_parse(&body, bytes, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(json_string_length(json_object_get(body.root, "a")), ==, N);
    g_assert_cmpstr(json_string_value(json_object_get(body.root, "b")), ==, "\\");
    cs_body_clear(&body);
}

/* Text that nobody parses in time is refused before the parser sees it. */
static void test_too_much_text(void)
{
    size_t n = 33u << 20;
    g_autofree char *text = g_strnfill(n, ' ');
    memcpy(text, "{\"a\":\"", 6);
    memcpy(text + n - 2, "\"}", 2);
    g_autoptr(GBytes) bytes = g_bytes_new_static(text, n);
    g_autoptr(GError) error = NULL;
    cs_body body;
    g_assert_false(cs_body_parse(&body, bytes, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
}

static void test_lift_keeps_escapes(void)
{
    g_autofree char *base64 = g_strnfill(5000, 'A');
    g_autofree char *text = g_strdup_printf("{\"a\":\"\\/%s\",\"b\":\"x\\\"%s\"}", base64, base64);
    g_autoptr(GBytes) bytes = g_bytes_new(text, strlen(text));
    cs_body body;
    g_assert_true(cs_body_parse(&body, bytes, NULL));
    g_assert_cmpuint(body.lifted->len, ==, 0);
    g_assert_cmpint(json_string_value(json_object_get(body.root, "a"))[0], ==, '/');
    cs_body_clear(&body);
}

static void test_messages_are_reduced(void)
{
    cs_fault fault = {0};
    cs_params params;
    cs_content content;
    g_assert_true(read_text(
        CHAT,
        "{\"messages\":[{\"role\":\"developer\",\"content\":\"s\"},{\"role\":\"user\",\"content\":["
        "{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"AAAA\",\"format\":\"wav\"}},"
        "{\"type\":\"text\",\"text\":\"t\"},"
        "{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:;base64,AAECAw==\","
        "\"detail\":\"low\"}}]}]}",
        &fault, &params, &content));
    json_t *expected = json_loads("[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\","
                                  "\"content\":[{\"type\":\"audio\"},"
                                  "{\"type\":\"text\",\"text\":\"t\"},{\"type\":\"image\"}]}]",
                                  0, NULL);
    g_assert_true(json_equal(content.messages, expected));
    g_assert_cmpuint(content.media->len, ==, 2);
    const cs_content_medium *sound = g_ptr_array_index(content.media, 0);
    const cs_content_medium *image = g_ptr_array_index(content.media, 1);
    g_assert_cmpint(sound->modality, ==, CS_MODALITY_AUDIO);
    g_assert_cmpint(image->modality, ==, CS_MODALITY_IMAGE);
    g_assert_cmpuint(sound->max_pixels, ==, 0);
    g_assert_cmpuint(image->max_pixels, ==, 512 * 512);
    g_assert_cmpuint(g_bytes_get_size(sound->bytes), ==, 3);
    g_assert_cmpuint(g_bytes_get_size(image->bytes), ==, 4);
    json_decref(expected);
    cs_params_clear(&params);
    cs_content_clear(&content);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *name = g_strdup_printf("/api/request/%03zu", i);
        g_test_add_data_func(name, &cases[i], test_case);
    }
    g_test_add_func("/api/request/lift", test_lift);
    g_test_add_func("/api/request/cut_names", test_cut_names);
    g_test_add_func("/api/request/lifted_in_errors", test_lifted_in_errors);
    g_test_add_func("/api/request/many_escapes", test_many_escapes);
    g_test_add_func("/api/request/too_much_text", test_too_much_text);
    g_test_add_func("/api/request/lift_keeps_escapes", test_lift_keeps_escapes);
    g_test_add_func("/api/request/messages_are_reduced", test_messages_are_reduced);
    return g_test_run();
}
