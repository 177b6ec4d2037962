/* Recording and replaying task graphs, and what hostile files can do (fail, nothing else). */
#include "base/error.h"
#include "base/json.h"
#include "base/os.h"
#include "graph/app.h"
#include "plan/graph_input.h"

#include <string.h>

static char *read_source(const char *name, size_t *size_bytes)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "..", "tasks", name, NULL);
    char *text = cs_file_read(path, 1 << 20, size_bytes, &error);
    g_assert_no_error(error);
    return text;
}

static json_t *omni_config(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "golden", "qwen2_5_omni",
                                                  "qwen2.5-omni-tiny", "config.json", NULL);
    json_t *config = cs_json_load_file(path, 1 << 20, &error);
    g_assert_no_error(error);
    return config;
}

static void add_omni(cs_tasks *tasks, const char *alias, const char *model)
{
    g_autoptr(GError) error = NULL;
    size_t size_bytes = 0;
    g_autofree char *source = read_source("qwen2_5_omni.lua", &size_bytes);
    json_t *config = omni_config();
    cs_tasks_add_model(tasks, alias, model, source, size_bytes, "qwen2_5_omni.lua", config, &error);
    g_assert_no_error(error);
    json_decref(config);
}

static cs_tasks *omni(void)
{
    g_autoptr(GError) error = NULL;
    cs_tasks *tasks = cs_tasks_new("test", NULL, &error);
    g_assert_no_error(error);
    add_omni(tasks, "model", "tiny");
    return tasks;
}

static json_t *parse(const char *text)
{
    g_autoptr(GError) error = NULL;
    json_t *value = cs_json_load(text, strlen(text), "test", &error);
    g_assert_no_error(error);
    return value;
}

#define MIXED                                                                                      \
    "{\"media\": [{\"modality\": \"image\", \"tokens\": 40}, {\"modality\": \"audio\","            \
    " \"tokens\": 25}], \"text_in_tokens\": 10, \"text_out_tokens\": 7, \"audio_out_tokens\": 50," \
    " \"speech\": true}"

static cs_recording *record(cs_tasks *tasks, const char *text, GError **error)
{
    json_t *request = parse(text);
    cs_recording *r = cs_tasks_record(tasks, "model", request, error);
    json_decref(request);
    return r;
}

static void assert_input(const cs_recording *r, uint32_t invocation, uint32_t index,
                         const char *name, uint32_t producer, uint32_t place)
{
    const cs_invocation *call = cs_recording_invocation(r, invocation);
    const cs_invocation_input *input = &g_array_index(call->inputs, cs_invocation_input, index);
    g_assert_cmpstr(input->name, ==, name);
    g_assert_cmpuint(cs_recording_forward(r, input->forward)->producer, ==, producer);
    g_assert_cmpuint(input->place, ==, place);
}

static void test_record(void)
{
    g_autoptr(cs_tasks) tasks = omni();
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_recording) r = record(tasks, MIXED, &error);
    g_assert_no_error(error);
    static const char *const names[] = {"image_encoder", "audio_encoder", "thinker", "talker",
                                        "vocoder"};
    g_assert_cmpuint(r->invocations->len, ==, 5);
    for (uint32_t i = 0; i < 5; i++)
        g_assert_cmpstr(cs_recording_invocation(r, i)->unit->name, ==, names[i]);
    g_assert_cmpfloat(cs_recording_invocation(r, 0)->units, ==, 40);
    g_assert_cmpint(
        json_integer_value(json_object_get(cs_recording_invocation(r, 1)->params, "medium")), ==,
        1);
    g_assert_cmpfloat(cs_recording_invocation(r, 2)->units, ==, 75);
    g_assert_cmpfloat(cs_recording_invocation(r, 2)->output_units, ==, 7);
    assert_input(r, 2, 0, "media", 0, 0);
    assert_input(r, 2, 1, "media", 1, 0);
    assert_input(r, 3, 0, "hidden", 2, 0);
    assert_input(r, 4, 0, "codes", 3, 0);
    uint32_t n_client = 0;
    for (guint i = 0; i < r->forwards->len; i++) {
        const cs_forward *f = cs_recording_forward(r, i);
        n_client += f->to_client;
        /* codes have two: the vocoder, and who keeps them for the case that it is lost */
        g_assert_cmpuint(f->n_consumers, ==, f->producer == 3 ? 2 : 1);
    }
    g_assert_cmpuint(n_client, ==, 3);
    /* image embeddings: 40 rows of 108 floats */
    g_assert_cmpfloat(cs_recording_forward(r, 0)->bytes, ==, 40 * 108 * 4);

    g_autoptr(cs_recording) text =
        record(tasks, "{\"media\": [], \"text_in_tokens\": 5, \"text_out_tokens\": 9}", &error);
    g_assert_no_error(error);
    g_assert_cmpuint(text->invocations->len, ==, 1);
    g_assert_null(record(tasks,
                         "{\"media\": [{\"modality\": \"smell\", \"tokens\": 1}],"
                         " \"text_in_tokens\": 5}",
                         &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_assert_nonnull(strstr(error->message, "takes no smell"));
}

/* Equal unit tasks of two apps' models are one unit; another checkpoint's are not. */
static void test_sharing(void)
{
    g_autoptr(cs_tasks) tasks = omni();
    g_assert_cmpuint(cs_tasks_n_units(tasks), ==, 5);
    add_omni(tasks, "again", "tiny");
    g_assert_cmpuint(cs_tasks_n_units(tasks), ==, 5);
    add_omni(tasks, "other", "large");
    g_assert_cmpuint(cs_tasks_n_units(tasks), ==, 10);
}

static void test_plan_graph(void)
{
    g_autoptr(cs_tasks) tasks = omni();
    g_autoptr(GError) error = NULL;
    json_t *graph = cs_tasks_to_plan_graph(tasks, "model", NULL, NULL, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(json_string_value(json_object_get(graph, "name")), ==, "qwen2_5_omni");
    json_t *components = json_object_get(graph, "components");
    g_assert_cmpuint(json_array_size(components), ==, 5);
    json_t *thinker = json_array_get(components, 2);
    g_assert_cmpstr(json_string_value(json_object_get(thinker, "name")), ==, "thinker");
    g_assert_true(json_is_true(json_object_get(thinker, "split")));
    json_t *units = json_object_get(thinker, "units");
    static const char *const sizes[] = {"text_in_tokens", "image_tokens", "video_tokens",
                                        "audio_in_tokens"};
    g_assert_cmpuint(json_object_size(units), ==, G_N_ELEMENTS(sizes));
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++)
        g_assert_cmpfloat(json_real_value(json_object_get(units, sizes[i])), ==, 1);
    json_t *edges = json_object_get(graph, "edges");
    g_assert_cmpuint(json_array_size(edges), ==, 4);
    json_t *first = json_array_get(edges, 0);
    g_assert_cmpstr(json_string_value(json_object_get(first, "from")), ==, "image_encoder");
    g_assert_cmpfloat(
        json_real_value(json_object_get(json_object_get(first, "bytes"), "image_tokens")), ==,
        108 * 4);
    g_assert_cmpuint(json_array_size(json_object_get(graph, "request_types")), ==, 8);
    g_autoptr(cs_plan_graph) read = cs_plan_graph_from_json(graph, "test", &error);
    g_assert_no_error(error);
    g_assert_nonnull(read);
    json_decref(graph);
}

static void test_draw(void)
{
    g_autoptr(cs_tasks) tasks = omni();
    g_autoptr(cs_recording) r = record(tasks, MIXED, NULL);
    g_autofree char *text = cs_recording_to_text(r), *svg = cs_recording_to_svg(r);
    g_assert_cmpstr(text, ==,
                    "  1  image_encoder  40 units\n"
                    "  2  audio_encoder  25 units\n"
                    "  3  thinker  75 units -> 7\n"
                    "      media <- 1 image_encoder.embeddings  17 KB\n"
                    "      media <- 2 audio_encoder.embeddings  11 KB\n"
                    "  4  talker  82 units -> 50\n"
                    "      hidden <- 3 thinker.hidden  71 KB, streamed\n"
                    "  5  vocoder  50 units\n"
                    "      codes <- 4 talker.codes  200 B, streamed\n"
                    "     client <- 3 thinker.text\n"
                    "     client <- 4 talker.codes\n"
                    "     client <- 5 vocoder.audio\n"
                    "     between components: 99 KB\n");
    g_assert_true(g_str_has_prefix(svg, "<svg "));
    g_assert_true(g_str_has_suffix(svg, "</svg>\n"));
    g_assert_nonnull(strstr(svg, "vocoder"));
}

/* --- apps --- */

typedef struct {
    cs_app_run *run;
    GPtrArray *recordings; /* borrowed */
    GString *events;
    bool refuse;
} host_state;

static bool host_start(void *user, uint32_t call, const cs_recording *r, GError **error)
{
    host_state *h = user;
    if (h->refuse)
        return cs_fail(error, CS_ERROR_BUSY, "no executor is free");
    g_assert_cmpuint(call, ==, h->recordings->len);
    g_ptr_array_add(h->recordings, (gpointer)r);
    return true;
}

static bool host_emit(void *user, const json_t *event, GError **error)
{
    char *text = json_dumps(event, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
    g_string_append_printf(((host_state *)user)->events, "%s\n", text);
    free(text);
    return true;
}

static const cs_app_host test_host = {host_start, host_emit};

static void host_init(host_state *h, cs_tasks *tasks, const char *request)
{
    g_autoptr(GError) error = NULL;
    json_t *value = parse(request);
    *h = (host_state){.recordings = g_ptr_array_new(), .events = g_string_new(NULL)};
    h->run = cs_app_run_new(tasks, value, &test_host, h, &error);
    g_assert_no_error(error);
    json_decref(value);
}

static void host_clear(host_state *h)
{
    cs_app_run_free(h->run);
    g_ptr_array_unref(h->recordings);
    g_string_free(h->events, TRUE);
}

static cs_app_state step(host_state *h)
{
    g_autoptr(GError) error = NULL;
    cs_app_state state = cs_app_run_step(h->run, &error);
    g_assert_no_error(error);
    return state;
}

#define OVER_LIMIT (-1) /* of steps, time, memory or stack: whichever comes first here */

static void assert_fails(host_state *h, int code, const char *part)
{
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(cs_app_run_step(h->run, &error), ==, CS_APP_FAILED);
    if (code != OVER_LIMIT)
        g_assert_error(error, CS_ERROR, code);
    else
        g_assert_true(g_error_matches(error, CS_ERROR, CS_ERROR_TOO_LARGE) ||
                      g_error_matches(error, CS_ERROR, CS_ERROR_TIMEOUT) ||
                      g_error_matches(error, CS_ERROR, CS_ERROR_INVALID));
    if (!strstr(error->message, part))
        g_error("expected \"%s\" in \"%s\"", part, error->message);
}

/* The forward of `output` of the first invocation of a unit. */
static uint32_t forward_of(const cs_recording *r, const char *unit, const char *output)
{
    for (guint i = 0; i < r->forwards->len; i++) {
        const cs_forward *f = cs_recording_forward(r, i);
        const cs_unit *u = cs_recording_invocation(r, f->producer)->unit;
        if (strcmp(u->name, unit) == 0 && strcmp(u->outputs[f->output].name, output) == 0)
            return i;
    }
    g_assert_not_reached();
}

static void set_app(cs_tasks *tasks, const char *source)
{
    g_autoptr(GError) error = NULL;
    cs_tasks_set_app(tasks, source, strlen(source), "app.lua", &error);
    g_assert_no_error(error);
}

#define TEXT "{\"media\": [], \"text_in_tokens\": 5, \"text_out_tokens\": 9}"

static void test_chat(void)
{
    g_autoptr(cs_tasks) tasks = omni();
    size_t size_bytes = 0;
    g_autofree char *source = read_source("apps/chat.lua", &size_bytes);
    set_app(tasks, source);
    host_state h;
    host_init(&h, tasks, MIXED);
    g_assert_cmpint(step(&h), ==, CS_APP_DONE); /* nothing to wait for: the host pipes streams */
    const cs_recording *r = h.recordings->pdata[0];
    const json_t *audio = json_object_get(cs_app_run_result(h.run), "audio");
    json_t *place = json_object_get(audio, "$stream");
    g_assert_cmpint(json_integer_value(json_array_get(place, 0)), ==, 0);
    g_assert_cmpint(json_integer_value(json_array_get(place, 1)), ==,
                    forward_of(r, "vocoder", "audio"));
    host_clear(&h);
}

static void test_arena(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_tasks) tasks = cs_tasks_new("arena", NULL, &error);
    add_omni(tasks, "left", "a");
    add_omni(tasks, "right", "b");
    size_t size_bytes = 0;
    g_autofree char *source = read_source("apps/arena.lua", &size_bytes);
    set_app(tasks, source);
    host_state h, other;
    host_init(&h, tasks, TEXT);
    host_init(&other, tasks, TEXT); /* two requests take turns in one sandbox */
    g_assert_cmpint(step(&h), ==, CS_APP_WAITING);
    g_assert_cmpint(step(&other), ==, CS_APP_WAITING);
    g_assert_cmpuint(h.recordings->len, ==, 2);
    uint32_t text = forward_of(h.recordings->pdata[0], "thinker", "text");
    cs_app_run_put(other.run, 0, text, json_string("other"));
    cs_app_run_put(h.run, 1, text, json_string("B1"));
    g_assert_cmpint(step(&h), ==, CS_APP_WAITING);
    g_assert_cmpstr(h.events->str, ==, "{\"answer\":\"right\",\"text\":\"B1\"}\n");
    cs_app_run_put(h.run, 0, text, json_string("A1"));
    cs_app_run_put(h.run, 0, text, json_string("A2"));
    cs_app_run_put(h.run, 1, text, json_string("B2"));
    cs_app_run_end(h.run, 0, text);
    g_string_truncate(h.events, 0);
    g_assert_cmpint(step(&h), ==, CS_APP_WAITING);
    /* fairly in turn */
    g_assert_cmpuint(strstr(h.events->str, "B2") - h.events->str, <,
                     strstr(h.events->str, "A2") - h.events->str);
    cs_app_run_end(h.run, 1, text);
    g_assert_cmpint(step(&h), ==, CS_APP_DONE);
    g_assert_cmpint(step(&other), ==, CS_APP_WAITING);
    g_assert_cmpstr(other.events->str, ==, "{\"answer\":\"left\",\"text\":\"other\"}\n");
    g_autoptr(GError) lost = g_error_new(CS_ERROR, CS_ERROR_EXECUTOR_LOST, "gone for good");
    cs_app_run_fail(other.run, 1, text, lost);
    assert_fails(&other, CS_ERROR_EXECUTOR_LOST, "gone for good");
    host_clear(&h);
    host_clear(&other);
}

/* A file with one unit `u`, and the given invoke and serve. */
static cs_tasks *small(const char *invoke, const char *serve)
{
    g_autoptr(GError) error = NULL;
    static const cs_sandbox_limits limits = {.memory_bytes = 16 << 20,
                                             .source_bytes = 1 << 16,
                                             .steps = 2 * 1000 * 1000,
                                             .time_us = G_USEC_PER_SEC / 2};
    cs_tasks *tasks = cs_tasks_new("small", &limits, &error);
    g_autofree char *source = g_strdup_printf(
        "local u = unit { name = 'u', kind = 'llm', outputs = { text = { streamed = true } } }\n"
        "local v = unit { name = 'v', kind = 'llm', outputs = { text = { streamed = true } } }\n"
        "return task { name = 's', requests = {}, invoke = function(request) %s end }\n",
        invoke);
    cs_tasks_add_model(tasks, "m", "m", source, strlen(source), "s.lua", NULL, &error);
    g_assert_no_error(error);
    set_app(tasks, serve);
    return tasks;
}

/* await inside invoke: recording ends there, the replay goes on with the data. */
static void test_await(void)
{
    g_autoptr(cs_tasks) tasks =
        small("local a = u { units = 1 }; return { text = string.upper(await(a.text)) }",
              "function serve(r) local x = models.m(r); emit { got = x.text }; return x end");
    host_state h;
    host_init(&h, tasks, "{}");
    g_assert_cmpint(step(&h), ==, CS_APP_WAITING);
    cs_app_run_put(h.run, 0, 0, json_string("he"));
    g_assert_cmpint(step(&h), ==, CS_APP_WAITING);
    cs_app_run_put(h.run, 0, 0, json_string("llo"));
    cs_app_run_end(h.run, 0, 0);
    g_assert_cmpint(step(&h), ==, CS_APP_DONE);
    g_assert_cmpstr(h.events->str, ==, "{\"got\":\"HELLO\"}\n");
    host_clear(&h);
}

static void test_next_and_all(void)
{
    g_autoptr(cs_tasks) tasks = small(
        "local a, b = u { units = 1 }, v { units = 2, a = 'x' }; return { a.text, b.text }",
        "function serve(r) local x = models.m(r)\n"
        "  local one = x[1]:next(); emit(one); emit(x[1]:next() == nil); emit(x[2]:all()) end");
    host_state h;
    host_init(&h, tasks, "{}");
    g_assert_cmpint(step(&h), ==, CS_APP_WAITING);
    cs_app_run_put(h.run, 0, 0, json_integer(4));
    cs_app_run_end(h.run, 0, 0);
    cs_app_run_put(h.run, 0, 1, json_integer(5));
    g_assert_cmpint(step(&h), ==, CS_APP_WAITING);
    cs_app_run_put(h.run, 0, 1, json_string("six"));
    cs_app_run_end(h.run, 0, 1);
    cs_app_run_put(h.run, 0, 1, json_string("too late"));
    g_assert_cmpint(step(&h), ==, CS_APP_DONE);
    g_assert_cmpstr(h.events->str, ==, "4\ntrue\n[5,\"six\"]\n");
    host_clear(&h);
}

static void fails(const char *invoke, const char *serve, int code, const char *part)
{
    g_autoptr(cs_tasks) tasks = small(invoke, serve);
    host_state h;
    host_init(&h, tasks, "{}");
    assert_fails(&h, code, part);
    host_clear(&h);
}

#define CALL "function serve(r) return models.m(r) end"

static void test_wrong_graphs(void)
{
    fails("n = (n or 0) + 1; return { text = u { units = n }.text }", CALL, CS_ERROR_INVALID,
          "another call than when it was recorded");
    fails("n = (n or 0) + 1; if n == 1 then u { units = 1 } end", CALL, CS_ERROR_INVALID,
          "0 calls, 1 when it was recorded");
    fails("return { f = function() end }", CALL, CS_ERROR_INVALID, "function");
    fails("u { units = -1 }", CALL, CS_ERROR_INVALID, "units");
    fails("u { units = 1, f = print or string.len }", CALL, CS_ERROR_INVALID, "argument f");
    fails("u { units = 1, text = '\\xff' }", CALL, CS_ERROR_INVALID, "UTF-8");
    fails("for i = 1, 5000 do u { units = 1 } end", CALL, CS_ERROR_INVALID, "more than 1024");
    fails("local t = {} t.t = t; u { units = 1, t = t }", CALL, CS_ERROR_INVALID, "too deep");
    fails("return u { units = 1 }",
          "function serve(r) local x; local co = coroutine.wrap(function() models.m(r) end); co() "
          "end",
          CS_ERROR_INVALID, "own coroutine");
    fails("return u { units = 1 }",
          "function serve(r) local x = models.m(r); coroutine.wrap(function() x.text:next() end)() "
          "end",
          CS_ERROR_INVALID, "own coroutine");
    fails("", "function serve(r) emit(1/0) end", CS_ERROR_INVALID, "not finite");
    fails("", "function serve(r) return { [1.5] = 2 } end", CS_ERROR_INVALID, "keys");
    fails("", "function serve(r) unit { name = 'x', kind = 'llm', outputs = { a = {} } } end",
          CS_ERROR_INVALID, "only while a task file is loaded");
}

static void test_hostile(void)
{
    fails("while true do end", CALL, OVER_LIMIT, "");
    fails("", "function serve(r) while true do end end", OVER_LIMIT, "");
    fails("", "function serve(r) while true do pcall(serve, r) end end", OVER_LIMIT, "");
    fails("", "function serve(r) return serve(r) + 1 end", OVER_LIMIT, "");
    fails("", "function serve(r) local s = 'x'; while true do s = s .. s end end", OVER_LIMIT, "");
    fails("", "function serve(r) emit(string.rep('x', 1 << 40)) end", OVER_LIMIT, "");
    fails("", "function serve(r) local t = {}; for i = 1, 1e7 do t[i] = i end; emit(t) end",
          OVER_LIMIT, "");
    fails("", "function serve(r) local t = {}; for i = 1, 2e5 do t[i] = i end; emit(t) end",
          OVER_LIMIT, "");
}

/* A stream kept in a global outlives its request and is refused. */
static void test_stale_stream(void)
{
    g_autoptr(cs_tasks) tasks =
        small("return { text = u { units = 1 }.text }",
              "function serve(r) if kept then return kept:next() end; kept = models.m(r).text end");
    host_state h;
    host_init(&h, tasks, "{}");
    g_assert_cmpint(step(&h), ==, CS_APP_DONE);
    host_clear(&h);
    host_init(&h, tasks, "{}");
    assert_fails(&h, CS_ERROR_INVALID, "has ended");
    host_clear(&h);
}

static void test_refusal(void)
{
    g_autoptr(cs_tasks) tasks = small("return { text = u { units = 1 }.text }", CALL);
    host_state h;
    host_init(&h, tasks, "{}");
    h.refuse = true;
    assert_fails(&h, CS_ERROR_BUSY, "no executor is free");
    host_clear(&h);
    /* the sandbox serves on */
    host_init(&h, tasks, "{}");
    g_assert_cmpint(step(&h), ==, CS_APP_DONE);
    host_clear(&h);
}

static void test_bad_files(void)
{
    static const char *const sources[] = {
        "return 1",
        "return {}",
        "return task { name = 'x' }",
        "return task { name = 'x', invoke = 3, requests = {} }",
        "return task { name = 'x', invoke = function() end }",
        "unit {}",
        "unit { name = 'x', kind = 'oracle', outputs = { a = {} } }",
        "unit { name = 'x', kind = 'llm' }",
        "unit { name = 'x', kind = 'llm', outputs = {} }",
        "unit { name = 'x', kind = 'llm', outputs = { a = 1 } }",
        "unit { name = 'x', kind = 'llm', outputs = { a = {} }, kv_bytes_per_token = 'much' }",
        "unit { name = 'x', kind = 'llm', outputs = { a = {} }, config = { serve } , x = unit }"
        " error('no')",
        "unit { name = 'x', kind = 'llm', outputs = {a={},b={},c={},d={},e={},f={},g={},h={},i={}} "
        "}",
        "local t = setmetatable({}, {__index = function() error('trap') end})"
        " return t",
        "this is not Lua",
        "\x1bLua",
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(sources); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(cs_tasks) tasks = cs_tasks_new("bad", NULL, NULL);
        g_assert_false(cs_tasks_add_model(tasks, "m", "m", sources[i], strlen(sources[i]),
                                          "bad.lua", NULL, &error));
        g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
        g_assert_cmpuint(cs_tasks_n_units(tasks), ==, 0);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/graph/record", test_record);
    g_test_add_func("/graph/sharing", test_sharing);
    g_test_add_func("/graph/plan_graph", test_plan_graph);
    g_test_add_func("/graph/draw", test_draw);
    g_test_add_func("/graph/chat", test_chat);
    g_test_add_func("/graph/arena", test_arena);
    g_test_add_func("/graph/await", test_await);
    g_test_add_func("/graph/next_and_all", test_next_and_all);
    g_test_add_func("/graph/wrong_graphs", test_wrong_graphs);
    g_test_add_func("/graph/hostile", test_hostile);
    g_test_add_func("/graph/stale_stream", test_stale_stream);
    g_test_add_func("/graph/refusal", test_refusal);
    g_test_add_func("/graph/bad_files", test_bad_files);
    return g_test_run();
}
