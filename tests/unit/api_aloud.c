/* Texts of several passages, read aloud over real sockets by a pipeline that computes nothing. */
#include "api_case.h"
#include "base/log.h"

#include <string.h>
#include <unistd.h>

#define PATH "/v1/audio/speech"
#define RATE 24000
#define TOKEN_BYTES (FAKE_PIPELINE_TOKEN_SAMPLES * 2)
#define PAUSE_BYTES (RATE / 4 * 2) /* between sentences */

/* A sentence that fills a passage by itself, and says to the pipeline how it is spoken. */
static char *sentence(const char *words)
{
    GString *s = g_string_new("Long ");
    while (s->len < 280)
        g_string_append(s, "and longer ");
    g_string_append_printf(s, "%s. ", words);
    return g_string_free(s, FALSE);
}

/* A body whose text has a sentence for each of the words. */
static char *body_of(const char *const *words, const char *more)
{
    g_autoptr(GString) text = g_string_new(NULL);
    for (; *words; words++) {
        g_autofree char *s = sentence(*words);
        g_string_append(text, s);
    }
    return g_strdup_printf("{\"input\":\"%s\",\"response_format\":\"pcm\"%s}", text->str, more);
}

static size_t content_bytes(const char *response)
{
    const char *length = strstr(response, "Content-Length: ");
    g_assert_nonnull(length);
    return (size_t)g_ascii_strtoull(length + 16, NULL, 10);
}

/* Whole and streamed: all passages, the pauses between them, and usage of all. */
static void test_passages(void)
{
    static const char *const words[] = {"tokens=30", "tokens=2", "tokens=25", NULL};
    const size_t expected = 57 * TOKEN_BYTES + 2 * PAUSE_BYTES;
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *body = body_of(words, "");
    g_autofree char *whole = post(&f, PATH, body);
    assert_has(whole, "HTTP/1.1 200");
    g_assert_cmpuint(content_bytes(whole), ==, expected);
    g_autofree char *stream_body = body_of(words, ",\"stream_format\":\"sse\"");
    g_autofree char *events = post(&f, PATH, stream_body);
    g_autoptr(GByteArray) bytes = decode_events(events, "audio");
    g_assert_cmpuint(bytes->len, ==, expected);
    g_autofree char *usage = g_strdup_printf("\"output_tokens\":%d,", 57 * 5);
    assert_has(events, usage);
    g_assert_cmpuint(count(events, "speech.audio.done"), ==, 1);
    wait_until_idle(&f);
    tear_down(&f);
}

/* The next passage is made while one is heard, but only a little of it. */
static void test_ahead(void)
{
    static const char *const words[] = {"tokens=24 delay=10", "tokens=600", "tokens=600", NULL};
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *body = body_of(words, ",\"stream_format\":\"sse\"");
    g_autofree char *request = post_text(PATH, body);
    int fd = dial(&f);
    send_text(fd, request);
    while (fake_pipeline_live(f.pipeline) < 2) /* fails by the test's timeout */
        g_usleep(1000);
    uint64_t made = fake_pipeline_samples(f.pipeline);
    g_assert_cmpuint(made, >=, 2 * RATE);
    g_assert_cmpuint(made, <, (24 + 20) * FAKE_PIPELINE_TOKEN_SAMPLES);
    g_autofree char *events = dechunk(read_all(fd));
    g_autoptr(GByteArray) bytes = decode_events(events, "audio");
    g_assert_cmpuint(bytes->len, ==, 1224 * TOKEN_BYTES + 2 * PAUSE_BYTES);
    wait_until_idle(&f);
    tear_down(&f);
}

/* An error in the middle ends the speech, and what was being made beside it. */
static void test_break(void)
{
    static const char *const words[] = {"tokens=30 delay=2", "tokens=60 delay=2 break",
                                        "tokens=30 delay=2", NULL};
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *events_body = body_of(words, ",\"stream_format\":\"sse\"");
    g_autofree char *events = post(&f, PATH, events_body);
    assert_has(events, "speech.audio.delta");
    assert_has(events, "the executor died");
    g_assert_null(strstr(events, "speech.audio.done"));
    g_autofree char *whole_body = body_of(words, "");
    g_autofree char *whole = post(&f, PATH, whole_body);
    assert_has(whole, "HTTP/1.1 503");
    g_autofree char *bytes_body = body_of(words, ",\"stream\":true");
    g_autofree char *request = post_text(PATH, bytes_body);
    int fd = dial(&f);
    send_text(fd, request);
    g_autoptr(GString) raw = read_bytes(fd);
    assert_has(raw->str, "HTTP/1.1 200");
    g_assert_false(raw->len >= 5 && memcmp(raw->str + raw->len - 5, "0\r\n\r\n", 5) == 0);
    wait_until_idle(&f);
    tear_down(&f);
}

/* The queue fills up while the first passage is spoken. */
static void test_refused(void)
{
    static const char *const words[] = {"tokens=30 delay=20", "tokens=30", NULL};
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *body = body_of(words, ",\"stream_format\":\"sse\"");
    g_autofree char *request = post_text(PATH, body);
    int fd = dial(&f);
    send_text(fd, request);
    while (fake_pipeline_samples(f.pipeline) == 0)
        g_usleep(1000);
    fake_pipeline_set_busy(f.pipeline, true);
    g_autofree char *events = dechunk(read_all(fd));
    assert_has(events, "the queue is full");
    g_assert_null(strstr(events, "speech.audio.done"));
    wait_until_idle(&f);
    tear_down(&f);
}

/* Who leaves takes the passage that is heard and the next with him, and no more are begun. */
static void test_leaving(void)
{
    static const char *const words[] = {"tokens=500 delay=5", "tokens=500", "tokens=500", NULL};
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *body = body_of(words, ",\"stream\":true");
    g_autofree char *request = post_text(PATH, body);
    for (int i = 0; i < 5; i++) {
        int fd = dial(&f);
        send_text(fd, request);
        while (fake_pipeline_live(f.pipeline) < 2)
            g_usleep(1000);
        close(fd);
        wait_until_idle(&f);
        g_assert_cmpuint(fake_pipeline_handles(f.pipeline), ==, 0);
    }
    tear_down(&f);
}

/* A client that does not read holds back all passages together. */
static void test_slow_reader(void)
{
    /* As of a single passage: 30 s that wait, as much that is being sent, and what the kernel
     * holds. */
    enum { MOST_AHEAD_S = 150, N = 20, N_TOKENS = 200 };
    const char *words[N + 1] = {NULL};
    for (int i = 0; i < N; i++)
        words[i] = "tokens=200";
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *body = body_of(words, ",\"stream_format\":\"sse\"");
    g_autofree char *request = post_text(PATH, body);
    int fd = dial_with_buffer(&f, 4096);
    send_text(fd, request);
    uint64_t before = 0, now = fake_pipeline_samples(f.pipeline);
    do { /* until it rests */
        before = now;
        g_usleep(G_USEC_PER_SEC / 4);
        now = fake_pipeline_samples(f.pipeline);
    } while (now != before || now == 0);
    g_assert_cmpuint(now, <, (uint64_t)MOST_AHEAD_S * RATE);
    g_assert_cmpuint(fake_pipeline_live(f.pipeline), <=, 2);
    g_autofree char *events = dechunk(read_all(fd));
    g_autoptr(GByteArray) bytes = decode_events(events, "audio");
    g_assert_cmpuint(bytes->len, ==, N * N_TOKENS * TOKEN_BYTES + (N - 1) * PAUSE_BYTES);
    wait_until_idle(&f);
    tear_down(&f);
}

static void test_limits(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    g_autofree char *long_text = g_strnfill(32769, 'x');
    g_autofree char *too_long = g_strdup_printf("{\"input\":\"%s\"}", long_text);
    const char *bodies[] = {too_long, "{\"input\":\"\"}", "{\"input\":\" \\n\\t \"}",
                            "{\"input\":\"...\"}", "{\"input\":\"\\u2014 !?\"}"};
    for (size_t i = 0; i < G_N_ELEMENTS(bodies); i++) {
        g_autofree char *answer = post(&f, PATH, bodies[i]);
        assert_has(answer, "HTTP/1.1 400");
        assert_has(answer, i == 0 ? "at most 32768 characters, found 32769"
                                  : "expected a text to be read aloud");
    }
    /* a single word of the longest text */
    long_text[32768] = '\0';
    g_autofree char *longest =
        g_strdup_printf("{\"input\":\"%s\",\"response_format\":\"pcm\"}", long_text);
    g_autofree char *answer = post(&f, PATH, longest);
    assert_has(answer, "HTTP/1.1 200");
    wait_until_idle(&f);
    tear_down(&f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    cs_log_set_level(CS_LOG_ERROR);
    g_test_add_func("/aloud/passages", test_passages);
    g_test_add_func("/aloud/ahead", test_ahead);
    g_test_add_func("/aloud/break", test_break);
    g_test_add_func("/aloud/refused", test_refused);
    g_test_add_func("/aloud/leaving", test_leaving);
    g_test_add_func("/aloud/slow reader", test_slow_reader);
    g_test_add_func("/aloud/limits", test_limits);
    return g_test_run();
}
