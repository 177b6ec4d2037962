/* Apps over HTTP, in front of a pipeline that computes nothing. */
#include "api_case.h"
#include "base/error.h"
#include "base/log.h"

#include <glib/gstdio.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *with_method(const fixture *f, const char *method, const char *path)
{
    g_autofree char *text =
        g_strdup_printf("%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path);
    return exchange_text(f, text);
}

static char *get(const fixture *f, const char *path)
{
    return with_method(f, "GET", path);
}

/* Registers an app whose models a and b are both the server's own. */
static char *add(const fixture *f, const char *name, const char *source)
{
    json_t *body = json_pack("{s:s, s:s, s:{s:s, s:s}}", "name", name, "source", source, "models",
                             "a", "fake", "b", "fake");
    char *text = json_dumps(body, 0), *response = post(f, "/v1/apps", text);
    free(text);
    json_decref(body);
    return response;
}

static void add_ok(const fixture *f, const char *name, const char *source)
{
    g_autofree char *response = add(f, name, source);
    assert_has(response, " 201 ");
}

static char *ask(const fixture *f, const char *name, const char *prompt, const char *more)
{
    g_autofree char *path = g_strdup_printf("/v1/apps/%s", name);
    g_autofree char *body = chat_body(prompt, more);
    return post(f, path, body);
}

static char *ask_chat(const fixture *f, const char *name, const char *prompt, const char *more)
{
    g_autofree char *all = g_strdup_printf(",\"model\":\"%s\"%s", name, more);
    return chat(f, prompt, all);
}

#define ASSERT_ALL(response, ...)                                                                  \
    do {                                                                                           \
        g_autofree char *text_ = (response);                                                       \
        static const char *const parts_[] = {__VA_ARGS__};                                         \
        for (size_t i_ = 0; i_ < G_N_ELEMENTS(parts_); i_++)                                       \
            assert_has(text_, parts_[i_]);                                                         \
    } while (0)

/* ---- life of an app ---- */

static void test_kept(void)
{
    g_autofree char *dir = g_dir_make_tmp("apps-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "state.db", NULL);
    fixture f;
    set_up(&f, &(cs_api_options){.state_path = path});
    g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS)); /* before there is anything to keep */
    ASSERT_ALL(get(&f, "/v1/apps"), " 200 ", "\"data\":[]");
    ASSERT_ALL(post(&f, "/v1/apps",
                    "{\"name\":\"duel\",\"builtin\":\"arena\",\"models\":"
                    "{\"left\":\"fake\",\"right\":\"fake\"}}"),
               " 201 ", "\"name\":\"duel\"");
    ASSERT_ALL(post(&f, "/v1/apps", "{\"name\":\"talk\",\"builtin\":\"chat\"}"), " 201 ");
    ASSERT_ALL(post(&f, "/v1/apps", "{\"name\":\"talk\",\"builtin\":\"chat\"}"), " 409 ",
               "there is an app talk");
    ASSERT_ALL(post(&f, "/v1/apps", "{\"name\":\"fake\",\"builtin\":\"chat\"}"), " 409 ",
               "there is a model fake");
    tear_down(&f);

    set_up(&f, &(cs_api_options){.state_path = path}); /* after a restart */
    ASSERT_ALL(get(&f, "/v1/apps"), "\"name\":\"duel\"", "\"name\":\"talk\"");
    ASSERT_ALL(get(&f, "/v1/apps/duel"), " 200 ", "function serve(request)", "\"left\":\"fake\"");
    ASSERT_ALL(get(&f, "/v1/models"), "\"id\":\"fake\"", "\"id\":\"duel\"", "\"owned_by\":\"app\"");
    ASSERT_ALL(get(&f, "/v1/models/talk"), " 200 ", "\"owned_by\":\"app\"");
    ASSERT_ALL(ask(&f, "talk", "x", ""), " 200 ", "\"result\":{\"text\":\"h\xc3\xa9llo 1 2 3 4\"}");
    ASSERT_ALL(with_method(&f, "DELETE", "/v1/apps/talk"), " 200 ", "\"deleted\":true");
    ASSERT_ALL(with_method(&f, "DELETE", "/v1/apps/talk"), " 404 ", "app_not_found");
    ASSERT_ALL(get(&f, "/v1/apps/talk"), " 404 ", "app_not_found");
    ASSERT_ALL(ask(&f, "talk", "x", ""), " 404 ", "app_not_found");
    ASSERT_ALL(ask_chat(&f, "talk", "x", ""), " 404 ", "model_not_found");
    tear_down(&f);

    set_up(&f, &(cs_api_options){.state_path = path});
    ASSERT_ALL(get(&f, "/v1/apps"), "\"data\":[{\"name\":\"duel\"");
    tear_down(&f);
    g_unlink(path);
    g_rmdir(dir);
}

static void test_not_a_state_file(void)
{
    g_autoptr(GError) error = NULL;
    cs_pipeline *pipeline = fake_pipeline_new();
    g_assert_null(cs_api_new(pipeline, &(cs_api_options){.state_path = "/proc/version"}, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
    cs_pipeline_free(pipeline);
    fixture f; /* one that cannot be made is the operator's business: no path goes out */
    set_up(&f, &(cs_api_options){.state_path = "/nowhere/at/all.db"});
    g_autofree char *response = post(&f, "/v1/apps", "{\"name\":\"talk\",\"builtin\":\"chat\"}");
    assert_has(response, " 500 ");
    g_assert_null(strstr(response, "nowhere"));
    tear_down(&f);
}

/* ---- answers ---- */

static const char arena[] = "function serve(request)\n"
                            "  local a, b = models.a(request), models.b(request)\n"
                            "  for name, piece in merge { left = a.text, right = b.text } do\n"
                            "    emit { answer = name, text = piece }\n"
                            "  end\n"
                            "  return { answers = array { 'left', 'right' } }\n"
                            "end";

/* The text of one side, put together from its events. */
static char *side(const char *stream, const char *name)
{
    GString *text = g_string_new(NULL);
    g_auto(GStrv) lines = g_strsplit(stream, "\n", -1);
    for (char **line = lines; *line; line++) {
        json_t *event = g_str_has_prefix(*line, "data: {") ? json_loads(*line + 6, 0, NULL) : NULL;
        json_t *inner = json_object_get(event, "event");
        if (g_strcmp0(json_string_value(json_object_get(inner, "answer")), name) == 0)
            g_string_append(text, json_string_value(json_object_get(inner, "text")));
        json_decref(event);
    }
    return g_string_free(text, FALSE);
}

static void test_arena(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    add_ok(&f, "duel", arena);
    g_autofree char *stream = ask(&f, "duel", "delay=5", ",\"stream\":true");
    assert_has(stream, " 200 ");
    assert_has(stream, "text/event-stream");
    g_autofree char *left = side(stream, "left"), *right = side(stream, "right");
    g_assert_cmpstr(left, ==, "h\xc3\xa9llo 1 2 3 4");
    g_assert_cmpstr(right, ==, left);
    /* the second side has begun before the first one ends */
    g_assert_true(strstr(stream, "\"answer\":\"right\"") < strstr(stream, " 4\""));
    g_assert_true(strstr(stream, "\"answer\":\"left\"") < strstr(stream, " 4\""));
    assert_has(stream, "\"result\":{\"answers\":[\"left\",\"right\"]}");
    assert_has(stream, "data: [DONE]");
    ASSERT_ALL(ask(&f, "duel", "x", ""), "\"events\":[{", "\"completion_tokens\":10");
    g_autofree char *as_chat = ask_chat(&f, "duel", "x", "");
    assert_has(as_chat, "\"object\":\"chat.completion\"");
    assert_has(as_chat, "\"model\":\"duel\"");
    g_assert_cmpuint(count(as_chat, "\"content\":\"h\xc3\xa9llo 1 2 3 4\""), ==, 2);
    g_autofree char *as_stream =
        ask_chat(&f, "duel", "x", ",\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    g_assert_cmpuint(count(as_stream, "\"finish_reason\":\"stop\""), ==, 2);
    assert_has(as_stream, "\"index\":1");
    assert_has(as_stream, "\"total_tokens\":");
    assert_has(as_stream, "data: [DONE]");
    tear_down(&f);
}

/* Two models behind one server: each is asked by its name, and both by an app. */
static void test_two_models(void)
{
    cs_pipeline *other = fake_pipeline_new();
    fake_pipeline_rename(other, "other");
    fixture f;
    set_up(&f, &(cs_api_options){.more_models = (cs_pipeline *[]){other, NULL}});
    ASSERT_ALL(get(&f, "/v1/models"), "\"id\":\"fake\"", "\"id\":\"other\"");
    ASSERT_ALL(get(&f, "/v1/models/other"), " 200 ", "\"id\":\"other\"");
    ASSERT_ALL(ask_chat(&f, "other", "x", ""), "\"model\":\"other\"", "\"content\":\"other 1");
    ASSERT_ALL(ask_chat(&f, "fake", "x", ""), "\"model\":\"fake\"", "\"content\":\"h\xc3\xa9llo 1");
    ASSERT_ALL(chat(&f, "x", ""), "\"model\":\"fake\"");
    ASSERT_ALL(ask_chat(&f, "third", "x", ""), " 404 ",
               "this server has \\\"fake\\\", \\\"other\\\"");
    ASSERT_ALL(post(&f, "/v1/apps",
                    "{\"name\":\"duel\",\"builtin\":\"arena\",\"models\":"
                    "{\"left\":\"fake\",\"right\":\"other\"}}"),
               " 201 ");
    g_autofree char *stream = ask(&f, "duel", "x", ",\"stream\":true");
    g_autofree char *left = side(stream, "left"), *right = side(stream, "right");
    g_assert_cmpstr(left, ==, "h\xc3\xa9llo 1 2 3 4");
    g_assert_cmpstr(right, ==, "other 1 2 3 4");
    ASSERT_ALL(get(&f, "/status"), "\"id\":\"fake\"", "\"id\":\"other\"");
    ASSERT_ALL(get(&f, "/metrics"), "cornserve_requests_started_total 5");
    tear_down(&f);
    g_assert_cmpuint(fake_pipeline_handles(other), ==, 0);
    cs_pipeline_free(other);
}

static void test_streams(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    add_ok(&f, "plain", "function serve(r) return models.a(r) end");
    add_ok(&f, "deep", "function serve(r) return { x = array { models.a(r).text } } end");
    add_ok(&f, "first",
           "function serve(r)\n"
           "  local a, b = models.a(r), models.b { messages = array { { role = 'user',"
           "    content = 'silent' } } }\n"
           "  emit { n = #a.text:all() }\n"
           "  return a\nend");
    add_ok(&f, "tail", "function serve(r) local a = models.a(r); a.text:next(); return a end");
    add_ok(&f, "const", "function serve(r) return { echo = r.messages[1].content } end");
    ASSERT_ALL(ask_chat(&f, "plain", "x", ""), "\"content\":\"h\xc3\xa9llo 1 2 3 4\"",
               "\"finish_reason\":\"stop\"");
    g_autofree char *stream = ask_chat(&f, "plain", "delay=3", ",\"stream\":true");
    assert_has(stream, "\"role\":\"assistant\"");
    assert_has(stream, "data: [DONE]");
    ASSERT_ALL(ask(&f, "deep", "x", ",\"stream\":true"), "\"stream\":\"x.0\"",
               "\"result\":{\"x\":[{\"stream\":\"x.0\"}]}");
    ASSERT_ALL(ask(&f, "deep", "x", ""), "\"result\":{\"x\":[\"h\xc3\xa9llo 1 2 3 4\"]}");
    /* the call that nobody reads is cancelled: it would never end */
    ASSERT_ALL(ask(&f, "first", "x", ""), " 200 ", "{\"n\":14}");
    ASSERT_ALL(ask(&f, "tail", "delay=20", ""), " 1 2 3 4\"}");
    ASSERT_ALL(ask(&f, "const", "as it came", ""), "\"result\":{\"echo\":\"as it came\"}");
    wait_until_idle(&f);
    tear_down(&f);
}

/* Media pass through Lua as placeholders and arrive whole. */
static void test_media(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    add_ok(&f, "look",
           "function serve(r) emit { n = #r.messages[1].content[1].image_url.url }\n"
           "  return models.a(r) end");
    g_autofree guchar *bytes = g_malloc(300000);
    for (size_t i = 0; i < 300000; i++)
        bytes[i] = (guchar)(i * 7);
    g_autofree char *base64 = g_base64_encode(bytes, 300000);
    g_autofree char *body = g_strdup_printf(
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{"
        "\"url\":\"data:image/png;base64,%s\"}}]}]}",
        base64);
    g_autofree char *response = post(&f, "/v1/apps/look", body);
    assert_has(response, "[0: 300000 bytes]");
    g_assert_null(strstr(response, "{\"n\":400"));
    ASSERT_ALL(ask(&f, "look", "x", ""), " 400 ");
    tear_down(&f);
}

/* ---- faults ---- */

/* Each ends its own request with a clear 4xx and leaves everything else alone. */
static void test_hostile(void)
{
    static const struct {
        const char *name, *source, *status, *part;
    } cases[] = {
        {"syntax", "function serve(", " 400 ", "syntax.lua:1"},
        {"nothing", "x = 1", " 400 ", "expected a function serve"},
        {"bytecode", "\x1bLua", " 400 ", ""},
        {"endless-load", "while true do end", " 413 ", "steps"},
        {"bomb-load", "local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(1e6) .. i end", " 413 ", ""},
        {"deep-load", "local function f() return 1 + f() end f()", " 413 ", "memory"},
        {"huge-load", "local s = 'x' while true do s = s .. s end", " 413 ", "memory"},
        {"pattern", "string.find(('a'):rep(1e6), ('a*'):rep(50) .. 'b')", " 4", ""},
        {"Bad Name", "function serve() end", " 400 ", "expected 1 to 64"},
        {"io", "io.open('/etc/passwd')", " 400 ", "io"},
    };
    static const struct {
        const char *name, *body, *status, *part;
    } at_run[] = {
        {"endless", "while true do end", " 413 ", "steps"},
        {"bomb", "local t = {} while true do t[#t + 1] = ('x'):rep(1e6) .. #t end", " 413 ", ""},
        {"deep", "local function f() return 1 + f() end return f()", " 413 ", "memory"},
        {"huge", "local s = 'x' while true do s = s .. s end", " 413 ", "memory"},
        {"flood", "local s = ('x'):rep(1e6) while true do emit { text = s } end", " 413 ", ""},
        {"calls", "while true do models.a(r) end", " 400 ", "64 calls"},
        {"caught", "while true do pcall(function() while true do end end) end", " 413 ", "steps"},
        {"raise", "error('no, thank you', 0)", " 400 ", "no, thank you"},
        {"odd", "error({})", " 400 ", "not a string"},
        {"result", "return { f = function() end }", " 400 ", ""},
        {"loop", "local t = {} t.t = t return t", " 400 ", ""},
        {"utf8", "return { s = '\\xff' }", " 400 ", ""},
        {"param", "r.temperature = 9 return models.a(r)", " 400 ", "temperature"},
        {"unknown", "r.frobnicate = 9 return models.a(r)", " 400 ", "frobnicate"},
        {"many", "r.n = 3 return models.a(r)", " 400 ", "n: "},
        {"nomodel", "return models.c(r)", " 400 ", "field 'c'"},
        {"noargs", "return models.a()", " 400 ", ""},
        {"context", "r.messages[1].content = 'fail' return models.a(r)", " 400 ", "context"},
    };
    fixture f;
    set_up(&f, &(cs_api_options){0});
    add_ok(&f, "good", "function serve(r) return models.a(r) end");
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *response = add(&f, cases[i].name, cases[i].source);
        g_test_message("%s", cases[i].name);
        assert_has(response, cases[i].status);
        assert_has(response, cases[i].part);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(at_run); i++) {
        g_autofree char *source = g_strdup_printf("function serve(r) %s end", at_run[i].body);
        add_ok(&f, at_run[i].name, source);
        g_autofree char *response = ask(&f, at_run[i].name, "tokens=2", "");
        g_test_message("%s", at_run[i].name);
        assert_has(response, at_run[i].status);
        assert_has(response, at_run[i].part);
        ASSERT_ALL(ask(&f, "good", "x", ""), " 200 ", "h\xc3\xa9llo 1 2 3 4");
    }
    wait_until_idle(&f);
    tear_down(&f);
}

static void test_refusals(void)
{
    static const struct {
        const char *body, *part;
    } cases[] = {
        {"{\"builtin\":\"chat\"}", "name: expected a string"},
        {"{\"name\":\"x\"}", "either"},
        {"{\"name\":\"x\",\"builtin\":\"chat\",\"source\":\"\"}", "either"},
        {"{\"name\":\"x\",\"builtin\":\"other\"}", "chat or arena"},
        {"{\"name\":\"x\",\"builtin\":7}", "chat or arena"},
        {"{\"name\":\"x\",\"source\":7}", "string of Lua"},
        {"{\"name\":\"x\",\"source\":\"a\\u0000b\"}", "u0000"},
        {"{\"name\":\"x\",\"builtin\":\"chat\",\"models\":7}", "models: expected an object"},
        {"{\"name\":\"x\",\"builtin\":\"chat\",\"models\":{\"model\":7}}", "model's id"},
        {"{\"name\":\"x\",\"builtin\":\"chat\",\"models\":{\"model\":\"y\"}}", "models.model"},
        {"{\"name\":\"x\",\"builtin\":\"chat\",\"frob\":1}", "frob"},
        {"[]", "JSON object"},
        {"{", "request body"},
    };
    fixture f;
    set_up(&f, &(cs_api_options){0});
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *response = post(&f, "/v1/apps", cases[i].body);
        assert_has(response, " 4");
        assert_has(response, cases[i].part);
    }
    add_ok(&f, "plain", "function serve(r) return models.a(r) end");
    ASSERT_ALL(ask(&f, "plain", "x", ",\"stream\":3"), " 400 ", "stream: expected");
    ASSERT_ALL(ask(&f, "plain", "x", ",\"stream\":true,\"stream_options\":3"), " 400 ");
    ASSERT_ALL(post(&f, "/v1/apps/plain", "[]"), " 400 ", "JSON object");
    ASSERT_ALL(with_method(&f, "PUT", "/v1/apps/plain"), " 405 ", "Allow: GET, POST, DELETE");
    tear_down(&f);
}

/* What breaks in the middle of a stream is an event of it. */
static void test_broken(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    add_ok(&f, "plain", "function serve(r) return models.a(r) end");
    add_ok(&f, "reader",
           "function serve(r) for piece in models.a(r).text.next,"
           " models.a(r).text do emit { text = piece } end end");
    add_ok(&f, "caught",
           "function serve(r)\n"
           "  local ok, why = pcall(function() return models.a(r).text:all() end)\n"
           "  return { ok = ok } end");
    ASSERT_ALL(ask(&f, "plain", "break", ""), " 503 ", "the executor died");
    g_autofree char *stream = ask(&f, "plain", "break delay=5", ",\"stream\":true");
    assert_has(stream, " 200 ");
    assert_has(stream, "the executor died");
    g_assert_null(strstr(stream, "[DONE]"));
    ASSERT_ALL(ask(&f, "caught", "break", ""), " 200 ", "\"ok\":false");
    fake_pipeline_set_busy(f.pipeline, true);
    ASSERT_ALL(ask(&f, "plain", "x", ""), " 503 ", "the queue is full");
    fake_pipeline_set_busy(f.pipeline, false);
    ASSERT_ALL(get(&f, "/v1/apps/plain"), "\"running\":0", "\"failed\":3");
    wait_until_idle(&f);
    tear_down(&f);
}

static void test_leaving(void)
{
    fixture f;
    set_up(&f, &(cs_api_options){0});
    add_ok(&f, "duel", arena);
    g_autofree char *body = chat_body("silent", ",\"stream\":true");
    g_autofree char *text = post_text("/v1/apps/duel", body);
    enum { N = 20 };
    int fds[N];
    for (int i = 0; i < N; i++) {
        fds[i] = dial(&f);
        send_text(fds[i], text);
    }
    for (int i = 0; i < 500 && fake_pipeline_live(f.pipeline) < 2 * N; i++)
        g_usleep(10000);
    g_assert_cmpuint(fake_pipeline_live(f.pipeline), ==, 2 * N);
    for (int i = 0; i < N; i++)
        close(fds[i]);
    wait_until_idle(&f);
    ASSERT_ALL(get(&f, "/v1/apps/duel"), "\"cancelled\":20");
    /* one that is removed while it runs, and a server that ends */
    int fd = dial(&f);
    send_text(fd, text);
    while (fake_pipeline_live(f.pipeline) < 2)
        g_usleep(10000);
    ASSERT_ALL(with_method(&f, "DELETE", "/v1/apps/duel"), " 200 ");
    g_assert_cmpuint(fake_pipeline_live(f.pipeline), ==, 2);
    cs_api_drain(f.api, 100000);
    g_autofree char *ended = read_all(fd);
    assert_has(ended, "shutting down");
    tear_down(&f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    cs_log_set_level(CS_LOG_ERROR);
    g_test_add_func("/apps/kept", test_kept);
    g_test_add_func("/apps/not_a_state_file", test_not_a_state_file);
    g_test_add_func("/apps/arena", test_arena);
    g_test_add_func("/apps/two_models", test_two_models);
    g_test_add_func("/apps/streams", test_streams);
    g_test_add_func("/apps/media", test_media);
    g_test_add_func("/apps/hostile", test_hostile);
    g_test_add_func("/apps/refusals", test_refusals);
    g_test_add_func("/apps/broken", test_broken);
    g_test_add_func("/apps/leaving", test_leaving);
    return g_test_run();
}
