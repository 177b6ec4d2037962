/* The API over real sockets, in front of a pipeline that computes nothing: statuses, streams,
 * limits, leaving clients. */
#include "api_case.h"
#include "base/error.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SECOND G_USEC_PER_SEC

/* ---- statuses ---- */

static void test_statuses(void)
{
    static const struct {
        const char *request; /* without "Connection: close" and the empty line */
        const char *body;
        const char *status, *part;
    } cases[] = {
        {"GET /health HTTP/1.1", "", " 200 ", "\"ok\""},
        {"GET /version HTTP/1.1", "", " 200 ", "\"version\":\"0."},
        {"GET / HTTP/1.1", "", " 200 ", "<!doctype html>"},
        {"HEAD /health HTTP/1.1", "", " 200 ", "Content-Length: 15"},
        {"GET /v1/models HTTP/1.1", "", " 200 ", "\"id\":\"fake\""},
        {"GET /v1/models/fake HTTP/1.1", "", " 200 ", "\"id\":\"fake\""},
        {"GET /v1/models/other HTTP/1.1", "", " 404 ", "model_not_found"},
        {"GET /status HTTP/1.1", "", " 200 ", "\"executors\":[{\"name\":\"fake\""},
        {"GET /metrics HTTP/1.1", "", " 200 ", "cornserve_kv_blocks_total"},
        {"GET /nothing HTTP/1.1", "", " 404 ", "unknown_url"},
        {"GET /v1/models/ HTTP/1.1", "", " 404 ", "unknown_url"},
        {"GET /v1/chat/completions HTTP/1.1", "", " 405 ", "Allow: POST"},
        {"DELETE /v1/models HTTP/1.1", "", " 405 ", "Allow: GET"},
        {"POST /v1/completions HTTP/1.1\r\nContent-Type: text/plain", "{}", " 415 ",
         "application/json"},
        {"POST /v1/completions HTTP/1.1", "{}", " 415 ", "application/json"},
        {"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json; charset=utf-8",
         "{\"prompt\":\"x\"}", " 200 ", "text_completion"},
        {"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json", "{", " 400 ",
         "invalid_request_error"},
        {"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json",
         "{\"prompt\":\"x\",\"model\":\"y\"}", " 404 ", "\"param\":\"model\""},
        {"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: "
         "chunked",
         "{}", " 400 ", ""},
        {"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2",
         "{}", " 400 ", ""},
        {"POST /tokenize HTTP/1.1\r\nContent-Type: application/json", "{\"prompt\":\"ab\"}",
         " 200 ", "\"tokens\":[97,98]"},
        {"POST /detokenize HTTP/1.1\r\nContent-Type: application/json", "{\"tokens\":[97,98]}",
         " 200 ", "\"prompt\":\"ab\""},
        {"POST /detokenize HTTP/1.1\r\nContent-Type: application/json", "{\"tokens\":[999]}",
         " 400 ", "tokens[0]"},
        {"POST /tokenize HTTP/1.1\r\nContent-Type: application/json", "{\"prompt\":\"ab\",\"x\":1}",
         " 400 ", "\"param\":\"x\""},
    };
    fixture f;
    set_up(&f, &(cs_api_options){0});
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *length =
            cases[i].body[0] ? g_strdup_printf("Content-Length: %zu\r\n", strlen(cases[i].body))
                             : g_strdup("");
        g_autofree char *text = g_strdup_printf("%s\r\nHost: x\r\n%sConnection: close\r\n\r\n%s",
                                                cases[i].request, length, cases[i].body);
        g_autofree char *response = exchange_text(&f, text);
        assert_has(response, cases[i].status);
        assert_has(response, cases[i].part);
    }
    tear_down(&f);
}

static void test_request_id(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *own = exchange_text(
        &f, "GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc.1\r\nConnection: close\r\n\r\n");
    assert_has(own, "X-Request-Id: abc.1\r\n");
    g_autofree char *bad = exchange_text(
        &f, "GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: a b\r\nConnection: close\r\n\r\n");
    assert_has(bad, "X-Request-Id: req-");
    tear_down(&f);
}

static void test_keys(void)
{
    char *keys[] = {(char *)"first", (char *)"second", NULL};
    fixture f;
    set_up(&f, &(cs_api_options){.api_keys = keys});
    static const struct {
        const char *path, *header, *status;
    } cases[] = {
        {"/v1/models", "", " 401 "},
        {"/v1/models", "Authorization: Bearer wrong\r\n", " 401 "},
        {"/v1/models", "Authorization: Bearer firs\r\n", " 401 "},
        {"/v1/models", "Authorization: Basic first\r\n", " 401 "},
        {"/v1/models", "Authorization: Bearer first\r\n", " 200 "},
        {"/v1/models", "Authorization: Bearer second\r\n", " 200 "},
        {"/metrics", "", " 401 "},
        {"/nothing", "", " 401 "},
        {"/health", "", " 200 "},
        {"/", "", " 200 "},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text =
            g_strdup_printf("GET %s HTTP/1.1\r\nHost: x\r\n%sConnection: close\r\n\r\n",
                            cases[i].path, cases[i].header);
        g_autofree char *response = exchange_text(&f, text);
        assert_has(response, cases[i].status);
    }
    tear_down(&f);

    g_autoptr(GError) error = NULL;
    cs_pipeline *pipeline = fake_pipeline_new();
    g_assert_null(cs_api_new(pipeline, &(cs_api_options){.host = "0.0.0.0"}, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_FORBIDDEN);
    cs_api *api = cs_api_new(
        pipeline, &(cs_api_options){.host = "0.0.0.0", .allow_public_without_key = true}, NULL);
    g_assert_nonnull(api);
    cs_api_free(api);
    cs_pipeline_free(pipeline);
}

/* ---- answers ---- */

static void test_whole(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *plain = chat(&f, "tokens=3", ",\"model\":\"fake\"");
    assert_has(plain, " 200 ");
    assert_has(plain, "\"object\":\"chat.completion\"");
    assert_has(
        plain,
        "\"message\":{\"role\":\"assistant\",\"content\":\"h\xc3\xa9llo 1 2\",\"refusal\":null}");
    assert_has(plain, "\"finish_reason\":\"stop\"");
    assert_has(plain, "\"prompt_tokens\":");
    g_autofree char *several =
        chat(&f, "tokens=1", ",\"n\":3,\"logprobs\":true,\"top_logprobs\":2");
    assert_has(several, "\"index\":2");
    assert_has(several, "\"token\":\"l\",\"logprob\":-0.5,\"bytes\":[108],\"top_logprobs\":[{"
                        "\"token\":\"l\",\"logprob\":-0.5,\"bytes\":[108]}]");
    g_autofree char *prompts = post(
        &f, "/v1/completions", "{\"prompt\":[\"tokens=1\",\"tokens=2\"],\"n\":2,\"logprobs\":1}");
    assert_has(prompts, "\"index\":3,\"text\":\"h\xc3\xa9llo 1\"");
    assert_has(prompts, "\"text_offset\":[0,1,2,2,3,4]");
    tear_down(&f);
}

static void test_stream(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *response =
        chat(&f, "tokens=4 delay=5",
             ",\"n\":2,\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    assert_has(response, "Content-Type: text/event-stream");
    assert_has(response, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}");
    assert_has(response, "\"delta\":{\"content\":\"h\xc3\xa9llo\"}");
    g_assert_cmpuint(count(response, "\"finish_reason\":\"stop\""), ==, 2);
    g_assert_cmpuint(count(response, "\"choices\":[],\"usage\":{\"prompt_tokens\""), ==, 1);
    g_assert_true(g_str_has_suffix(response, "data: [DONE]\n\n"));
    g_assert_true(g_utf8_validate(response, -1, NULL));
    tear_down(&f);
}

static void test_media(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *base64 = g_strnfill(400000, 'A');
    g_autofree char *body = g_strdup_printf(
        "{\"messages\":[{\"role\":\"user\",\"content\":["
        "{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"AAAA\",\"format\":\"wav\"}},"
        "{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,%s\"}},"
        "{\"type\":\"text\",\"text\":\"tokens=1\"}]}]}",
        base64);
    g_autofree char *response = post(&f, "/v1/chat/completions", body);
    assert_has(response, "h\xc3\xa9llo [2: 3 bytes] [0: 300000 bytes]");
    g_autofree char *video = post(&f, "/v1/chat/completions",
                                  "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":"
                                  "\"video_url\",\"video_url\":{\"url\":"
                                  "\"data:video/mp4;base64,AAAA\"}}]}]}");
    assert_has(video, " 400 ");
    assert_has(video, "this model takes no video");
    tear_down(&f);
}

static void test_errors(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    static const char *const streams[] = {"", ",\"stream\":true"};
    for (size_t i = 0; i < 2; i++) {
        g_autofree char *before = chat(&f, "fail", streams[i]);
        assert_has(before, " 400 ");
        assert_has(before, "context_length_exceeded");
        fake_pipeline_set_busy(f.pipeline, true);
        g_autofree char *busy = chat(&f, "hi", streams[i]);
        assert_has(busy, " 503 ");
        assert_has(busy, "Retry-After: 1");
        fake_pipeline_set_busy(f.pipeline, false);
    }
    g_autofree char *whole = chat(&f, "break tokens=2", "");
    assert_has(whole, " 503 ");
    assert_has(whole, "the executor died");
    g_autofree char *stream = chat(&f, "break tokens=2 delay=50", ",\"stream\":true");
    assert_has(stream, " 200 ");
    assert_has(stream, "data: {\"error\":{\"message\":\"the executor died\"");
    g_assert_null(strstr(stream, "[DONE]"));
    g_autofree char *one_of_two = post(&f, "/v1/completions", "{\"prompt\":[\"silent\",\"fail\"]}");
    assert_has(one_of_two, " 400 ");
    wait_until_idle(&f);
    tear_down(&f);
}

/* ---- limits ---- */

static void test_body_limit(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){.max_body_bytes = 10000});
    g_autofree char *big = g_strnfill(20000, ' ');
    g_autofree char *announced = post(&f, "/v1/completions", big);
    assert_has(announced, " 413 ");
    assert_has(announced, "over the limit of 10000 bytes");
    g_autofree char *chunked = g_strdup_printf(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n4e20\r\n%s\r\n0\r\n\r\n",
        big);
    g_autofree char *unannounced = exchange_text(&f, chunked);
    assert_has(unannounced, " 413 ");
    g_autofree char *expecting = exchange_text(
        &f, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 20000\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n");
    assert_has(expecting, "HTTP/1.1 413 ");
    g_autofree char *fits = g_strdup_printf("{\"prompt\":\"x\"%.*s}", 9000, big);
    g_autofree char *ok = post(&f, "/v1/completions", fits);
    assert_has(ok, " 200 ");
    tear_down(&f);
}

/* Bodies that are being received count against one budget. */
static void test_buffer_budget(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){.max_body_bytes = 100000, .max_buffered_bytes = 120000});
    g_autofree char *part = g_strnfill(90000, ' ');
    int fd = dial(&f);
    send_text(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                  "application/json\r\nContent-Length: 99999\r\n\r\n");
    send_text(fd, part);
    g_usleep(SECOND / 5);
    g_autofree char *refused = post(&f, "/v1/completions", part);
    assert_has(refused, " 503 ");
    close(fd);
    g_usleep(SECOND / 5);
    g_autofree char *taken = post(&f, "/v1/completions", part);
    assert_has(taken, " 400 "); /* it is read now, and is no JSON */
    g_autofree char *metrics =
        exchange_text(&f, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_has(metrics, "\ncornserve_http_body_bytes 0\n");
    tear_down(&f);
}

static void assert_closed_soon(int fd)
{
    gint64 start_us = g_get_monotonic_time();
    g_autofree char *said = read_all(fd);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 3 * SECOND);
    g_assert_null(strstr(said, " 200 "));
}

static void test_slow_head_and_body(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){.head_timeout_ms = 500, .body_timeout_ms = 500});
    int head = dial(&f), body = dial(&f), nothing = dial(&f);
    send_text(head, "GET /health HTTP/1.1\r\n");
    send_text(body, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                    "application/json\r\nContent-Length: 100\r\n\r\n");
    for (int i = 0; i < 12; i++) { /* bytes keep coming, slowly */
        send_text(head, "X: y\r\n");
        send_text(body, "{");
        g_usleep(SECOND / 10);
    }
    assert_closed_soon(head);
    assert_closed_soon(body);
    assert_closed_soon(nothing);
    tear_down(&f);
}

static void test_huge_head(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *big = g_strnfill(200000, 'y');
    g_autofree char *text =
        g_strdup_printf("GET /health HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", big);
    int fd = dial(&f);
    send_text(fd, text);
    assert_closed_soon(fd);
    g_autofree char *fine =
        exchange_text(&f, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_has(fine, " 200 ");
    tear_down(&f);
}

/* ---- leaving, waiting, ending ---- */

static void test_client_leaves(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    static const char *const streams[] = {"", ",\"stream\":true"};
    for (size_t i = 0; i < 2; i++) {
        g_autofree char *body = chat_body("silent", streams[i]);
        g_autofree char *text = post_text("/v1/chat/completions", body);
        int fd = dial(&f);
        send_text(fd, text);
        while (fake_pipeline_live(f.pipeline) == 0)
            g_usleep(1000);
        g_usleep(50000);
        gint64 left_us = g_get_monotonic_time();
        close(fd);
        wait_until_idle(&f);
        g_assert_cmpint(g_get_monotonic_time() - left_us, <, SECOND);
    }
    tear_down(&f);
}

/* A client that does not read gets its answer in fewer, larger events, and all of it. */
static void test_slow_reader(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *body = chat_body("tokens=100000", ",\"stream\":true");
    g_autofree char *text = post_text("/v1/chat/completions", body);
    int fd = dial_with_buffer(&f, 4096);
    send_text(fd, text);
    for (int i = 0; i < 6000 && fake_pipeline_live(f.pipeline) > 0; i++)
        g_usleep(10000);
    g_autofree char *response = dechunk(read_all(fd));
    g_assert_cmpuint(count(response, "data: "), <,
                     90000); /* of 100,000; what the socket takes counts */
    assert_has(response, " 99999\"");
    g_assert_true(g_str_has_suffix(response, "data: [DONE]\n\n"));
    tear_down(&f);
}

static void test_keep_alive(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    int fd = dial(&f);
    g_autofree char *body = chat_body("tokens=2", "");
    for (int i = 0; i < 3; i++) {
        g_autofree char *text = g_strdup_printf(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: %zu\r\n%s\r\n%s",
            strlen(body), i == 2 ? "Connection: close\r\n" : "", body);
        send_text(fd, text); /* the later ones before the first is answered */
    }
    g_autofree char *response = read_all(fd);
    g_assert_cmpuint(count(response, " 200 OK"), ==, 3);
    tear_down(&f);
}

static gpointer random_client(gpointer user)
{
    const fixture *f = user;
    g_autoptr(GRand) random = g_rand_new_with_seed(7 + GPOINTER_TO_UINT(g_thread_self()) % 1000);
    for (int i = 0; i < 25; i++) {
        bool stream = g_rand_boolean(random), leave = g_rand_int_range(random, 0, 4) == 0;
        g_autofree char *body = chat_body("tokens=20 delay=1", stream ? ",\"stream\":true" : "");
        g_autofree char *text = post_text("/v1/chat/completions", body);
        int fd = dial(f);
        send_text(fd, text);
        if (leave) {
            g_usleep((gulong)g_rand_int_range(random, 0, 30000));
            close(fd);
            continue;
        }
        g_autofree char *response = dechunk(read_all(fd));
        assert_has(response, stream ? "[DONE]" : "h\xc3\xa9llo 1 2 3");
    }
    return NULL;
}

static void test_random_disconnects(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    GThread *threads[16];
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("client", random_client, &f);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        g_thread_join(threads[i]);
    wait_until_idle(&f);
    g_autofree char *metrics =
        exchange_text(&f, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_has(metrics, "\ncornserve_http_requests_in_flight 1\n"); /* this one */
    assert_has(metrics, "\ncornserve_http_body_bytes 0\n");
    tear_down(&f);
}

/* ---- speech ---- */

#define SPEECH_PATH "/v1/audio/speech"
#define TOKEN_BYTES (FAKE_PIPELINE_TOKEN_SAMPLES * 2)

static void test_speech(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *whole = post(
        &f, SPEECH_PATH, "{\"input\":\"tokens=7\",\"response_format\":\"wav\",\"voice\":\"Ben\"}");
    g_autofree char *length = g_strdup_printf("Content-Length: %d\r\n", 44 + 7 * TOKEN_BYTES);
    assert_has(whole, "HTTP/1.1 200");
    assert_has(whole, "Content-Type: audio/wav");
    assert_has(whole, length);

    g_autofree char *events =
        post(&f, SPEECH_PATH,
             "{\"input\":\"tokens=7\",\"response_format\":\"pcm\",\"stream_format\":\"sse\"}");
    assert_has(events, "text/event-stream");
    assert_has(events, "\"speech.audio.done\",\"usage\":{\"input_tokens\":8,\"output_tokens\":35");
    g_autoptr(GByteArray) bytes = decode_events(events, "audio");
    g_assert_cmpuint(bytes->len, ==, 7 * TOKEN_BYTES);

    g_autofree char *spoken = chat(&f, "tokens=3", ",\"modalities\":[\"audio\",\"text\"]");
    g_autoptr(GByteArray) wav = decode_events(spoken, "data");
    g_assert_cmpuint(wav->len, ==, 44 + 3 * TOKEN_BYTES);
    assert_has(spoken, "\"content\":null");
    assert_has(spoken, "\"transcript\":\"h\xc3\xa9llo 1 2\"");
    assert_has(spoken, "\"completion_tokens\":18");
    assert_has(spoken, "{\"text_tokens\":3,\"audio_tokens\":15}");

    g_autofree char *streamed = chat(
        &f, "tokens=3 delay=20",
        ",\"stream\":true,\"modalities\":[\"text\",\"audio\"],\"audio\":{\"format\":\"pcm16\"}");
    g_autoptr(GByteArray) pcm = decode_events(streamed, "data");
    g_assert_cmpuint(pcm->len, ==, 3 * TOKEN_BYTES);
    g_assert_true(strstr(streamed, "\"transcript\"") < strstr(streamed, "\"data\":"));
    g_assert_true(strstr(streamed, "\"expires_at\"") <
                  strstr(streamed, "\"finish_reason\":\"stop\""));
    assert_has(streamed, "data: [DONE]");
    tear_down(&f);
}

/* The voice and format that are not there, by name; text that asks for sound. */
static void test_speech_refusals(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    static const struct {
        const char *body, *param, *part;
    } cases[] = {
        {"{\"input\":\"x\",\"voice\":\"Eve\"}", "voice",
         "no voice \\\"Eve\\\"; this model has Ann, Ben"},
        {"{\"input\":\"x\",\"response_format\":\"aac\"}", "response_format",
         "expected wav, mp3, flac, opus or pcm16"},
        {"{\"input\":\"  \"}", "input", "expected a text to be read aloud"},
        {"{\"voice\":\"Ann\"}", "input", "expected a text to be read aloud"},
        {"{\"input\":\"x\",\"speed\":2}", "speed", "its own speed"},
        {"{\"input\":\"x\",\"stream_format\":\"tape\"}", "stream_format", "audio or sse"},
        {"{\"input\":\"x\",\"temperature\":1}", "temperature", "no such parameter"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *answer = post(&f, SPEECH_PATH, cases[i].body);
        g_autofree char *param = g_strdup_printf("\"param\": \"%s\"", cases[i].param);
        g_autofree char *compact = g_strdup_printf("\"param\":\"%s\"", cases[i].param);
        assert_has(answer, "HTTP/1.1 400");
        assert_has(answer, cases[i].part);
        g_assert_true(strstr(answer, param) || strstr(answer, compact));
    }
    g_autofree char *voice =
        chat(&f, "x", ",\"modalities\":[\"text\",\"audio\"],\"audio\":{\"voice\":\"Eve\"}");
    assert_has(voice, "audio.voice: there is no voice");
    tear_down(&f);
}

/* What breaks before the first sound has a status; what breaks later is no complete response. */
static void test_speech_faults(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *early = post(&f, SPEECH_PATH, "{\"input\":\"fail\",\"stream\":true}");
    assert_has(early, "HTTP/1.1 400");
    g_autofree char *whole =
        post(&f, SPEECH_PATH, "{\"input\":\"tokens=3 break\",\"response_format\":\"wav\"}");
    assert_has(whole, "HTTP/1.1 503");
    int fd = dial(&f);
    g_autofree char *request = post_text(
        SPEECH_PATH,
        "{\"input\":\"tokens=3 delay=50 break\",\"response_format\":\"pcm\",\"stream\":true}");
    send_text(fd, request);
    g_autoptr(GString) raw = read_bytes(fd);
    assert_has(raw->str, "HTTP/1.1 200");
    g_assert_false(raw->len >= 5 && memcmp(raw->str + raw->len - 5, "0\r\n\r\n", 5) == 0);
    g_autofree char *events = post(&f, SPEECH_PATH,
                                   "{\"input\":\"tokens=3 delay=50 break\",\"response_format\":"
                                   "\"pcm\",\"stream_format\":\"sse\"}");
    assert_has(events, "the executor died");
    g_assert_null(strstr(events, "speech.audio.done"));
    wait_until_idle(&f);
    tear_down(&f);
}

/* A client that does not read holds back its speech, and gets all of it when it does. */
static void test_speech_slow_reader(void)
{
    /* 30 s that wait, as much that is being sent, and what the kernel holds: up to 4 MiB. */
    enum { N_TOKENS = 4000, MOST_AHEAD_S = 150 };
    fixture f;
    set_up(&f, &(cs_api_options){0});
    int fd = dial_with_buffer(&f, 4096);
    g_autofree char *body = g_strdup_printf(
        "{\"input\":\"tokens=%d\",\"response_format\":\"pcm\",\"stream_format\":\"sse\"}",
        N_TOKENS);
    g_autofree char *request = post_text(SPEECH_PATH, body);
    send_text(fd, request);
    uint64_t before = 0, now = fake_pipeline_samples(f.pipeline);
    do { /* until it rests */
        before = now;
        g_usleep(SECOND / 4);
        now = fake_pipeline_samples(f.pipeline);
    } while (now != before || now == 0);
    g_assert_cmpuint(now, <, (uint64_t)MOST_AHEAD_S * 24000);
    g_autofree char *events = dechunk(read_all(fd));
    g_autoptr(GByteArray) bytes = decode_events(events, "audio");
    g_assert_cmpuint(bytes->len, ==, N_TOKENS * TOKEN_BYTES);
    wait_until_idle(&f);
    tear_down(&f);
}

static gpointer drain_main(gpointer api)
{
    cs_api_drain(api, SECOND);
    return NULL;
}

static void test_drain(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *short_body = chat_body("tokens=10 delay=40", ",\"stream\":true");
    g_autofree char *long_body = chat_body("silent", ",\"stream\":true");
    g_autofree char *short_text = post_text("/v1/chat/completions", short_body);
    g_autofree char *long_text = post_text("/v1/chat/completions", long_body);
    int ends = dial(&f), stays = dial(&f);
    send_text(ends, short_text);
    send_text(stays, long_text);
    while (fake_pipeline_live(f.pipeline) < 2)
        g_usleep(1000);
    GThread *drain = g_thread_new("drain", drain_main, f.api);
    g_autofree char *whole = dechunk(read_all(ends));
    g_assert_true(g_str_has_suffix(whole, "data: [DONE]\n\n"));
    g_autofree char *ended = dechunk(read_all(stays));
    assert_has(ended, "the server is shutting down");
    g_thread_join(drain);
    wait_until_idle(&f);
    tear_down(&f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    cs_log_set_level(CS_LOG_ERROR);
    g_test_add_func("/api/http/statuses", test_statuses);
    g_test_add_func("/api/http/request_id", test_request_id);
    g_test_add_func("/api/http/keys", test_keys);
    g_test_add_func("/api/http/whole", test_whole);
    g_test_add_func("/api/http/stream", test_stream);
    g_test_add_func("/api/http/media", test_media);
    g_test_add_func("/api/http/errors", test_errors);
    g_test_add_func("/api/http/body_limit", test_body_limit);
    g_test_add_func("/api/http/buffer_budget", test_buffer_budget);
    g_test_add_func("/api/http/slow_head_and_body", test_slow_head_and_body);
    g_test_add_func("/api/http/huge_head", test_huge_head);
    g_test_add_func("/api/http/client_leaves", test_client_leaves);
    g_test_add_func("/api/http/slow_reader", test_slow_reader);
    g_test_add_func("/api/http/keep_alive", test_keep_alive);
    g_test_add_func("/api/http/random_disconnects", test_random_disconnects);
    g_test_add_func("/api/http/speech", test_speech);
    g_test_add_func("/api/http/speech_refusals", test_speech_refusals);
    g_test_add_func("/api/http/speech_faults", test_speech_faults);
    g_test_add_func("/api/http/speech_slow_reader", test_speech_slow_reader);
    g_test_add_func("/api/http/drain", test_drain);
    return g_test_run();
}
