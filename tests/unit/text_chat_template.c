/* src/text/chat_template: where templates come from, what is refused, hostile templates, guards;
 * and constructs of published templates whose renderings were checked against the reference. */
#include "base/error.h"
#include "base/os.h"
#include "text/chat_template.h"

#include <glib/gstdio.h>
#include <string.h>

static cs_chat_template *parse(const char *text)
{
    g_autoptr(GError) error = NULL;
    cs_chat_template *t = cs_chat_template_parse(text, strlen(text), "t.jinja", &error);
    g_assert_no_error(error);
    return t;
}

static json_t *json(const char *text)
{
    json_t *value = json_loads(text, 0, NULL);
    g_assert_nonnull(value);
    return value;
}

static char *render(cs_chat_template *t, const cs_chat_request *request)
{
    g_autoptr(GError) error = NULL;
    size_t size_bytes;
    char *text = cs_chat_template_render(t, request, &size_bytes, &error);
    g_assert_no_error(error);
    return text;
}

static void assert_renders(const char *source, const char *extra, const char *expected)
{
    g_autoptr(cs_chat_template) t = parse(source);
    cs_chat_request request = {.extra = json(extra), .now_s = 86400 * 3};
    g_autofree char *text = render(t, &request);
    g_assert_cmpstr(text, ==, expected);
    json_decref(request.extra);
}

static void test_macro(void)
{
    assert_renders("{% macro p(t) %}{% if t is string %}{{ t }}{% elif t is iterable %}"
                   "{% for x in t %}{{ p(x) }}{{ '|' if not loop.last }}{% endfor %}"
                   "{% else %}any{% endif %}{% endmacro %}{{ p(['a', ['b', 1]]) }}",
                   "{}", "a|b|any");
}

static void test_scopes(void)
{
    assert_renders("{% set n = 0 %}{% for i in [1, 2] %}{% set n = n + i %}{% endfor %}{{ n }}"
                   "{% if true %}{% set n = 5 %}{% endif %}{{ n }}",
                   "{}", "05");
    assert_renders("{% macro f(a, b='B') %}{{ a }}{{ b }}{{ x }}{{ caller() if caller }}"
                   "{% endmacro %}{% set x = 'X' %}{{ f('a') }} {{ f(b=1, a=2) }}"
                   "{% call f('c') %}[{{ x }}]{% endcall %}",
                   "{}", "aBX 21XcBX[X]");
    assert_renders("{% for a in [1, 2] %}{% for b in 'xy' %}{{ loop.index }}{{ b }}{% endfor %}"
                   "{{ loop.index }};{% endfor %}",
                   "{}", "1x2y1;1x2y2;");
    assert_renders("{% for i in [1, 1, 2] %}{{ loop.changed(i) }}{{ loop.cycle('a', 'b') }} "
                   "{% endfor %}",
                   "{}", "Truea Falseb Truea ");
}

static void test_lazy(void)
{
    assert_renders("{{ x.y.z if x is defined else 'none' }}{{ x is defined and x.y.z }}"
                   "{{ not x or x.y.z }}{{ (a or b or c) ~ (a and b) }}"
                   "{{ 'p' if a else 'q' if b else 'r' }}",
                   "{\"a\": \"\", \"b\": 0, \"c\": \"C\"}", "noneFalseTrueCr");
    assert_renders("{% if a and b[0].c == 'x' or d %}y{% else %}n{% endif %}", "{\"d\": 1}", "y");
    assert_renders("{{ [1 if a else 2, {'k': (3 or 4)}] | tojson }}", "{}", "[2, {\"k\": 3}]");
}

static void test_python(void)
{
    assert_renders("{{ 'abc'[::-1] }}{{ [1, 2, 3][-2:] }}{{ 'é你🙂'[1] }}{{ '%05.1f' % 2.25 }}",
                   "{}", "cba[2, 3]你002.2");
    assert_renders("{{ 'a b  c'.split(' ', 1) }}{{ ' x y '.split() }}{{ 'a.b.c'.rsplit('.', 1) }}"
                   "{{ 'l1\\nl2'.splitlines() }}",
                   "{}", "['a', 'b  c']['x', 'y']['a.b', 'c']['l1', 'l2']");
    assert_renders("{{ 1e16 }} {{ 0.1 + 0.2 }} {{ 1e-5 }} {{ 100.0 }} {{ -0.5 }} {{ 7.0 // 2 }}",
                   "{}", "1e+16 0.30000000000000004 1e-05 100.0 -0.5 3.0");
    assert_renders("{{ x | tojson }}", "{\"x\": {\"b\": 1.0, \"a\": [\"\\u0001\\t\", -2.5e-7]}}",
                   "{\"b\": 1.0, \"a\": [\"\\u0001\\t\", -2.5e-07]}");
    assert_renders("{{ x | tojson(indent=1, sort_keys=true) }}", "{\"x\": {\"b\": [], \"a\": {}}}",
                   "{\n \"a\": {},\n \"b\": []\n}");
    assert_renders("{{ 'a\\nb\\n\\nc' | indent(2) }}|{{ x | dictsort }}|{{ x | items | list }}",
                   "{\"x\": {\"b\": 1, \"A\": 2}}",
                   "a\n  b\n\n  c|[('A', 2), ('b', 1)]|[('b', 1), ('A', 2)]");
    assert_renders("{{ \"it's\" | list }}{{ '<b>' | safe + '<i>' }}{{ none }}{{ [none, true] }}",
                   "{}", "['i', 't', \"'\", 's']<b>&lt;i&gt;None[None, True]");
    assert_renders("{{ strftime_now('%Y-%m-%d') }}", "{}", "1970-01-04");
    assert_renders("{{ '{}-{name}-{}'.format(1, 2, name='n') }}{{ 'x'.join(['a', 'b']) }}", "{}",
                   "1-n-2axb");
}

static void test_white_space(void)
{
    assert_renders("{% if true %}\n  a\n  {%- if true %}\n  b\n  {% endif -%}\n  c\n{% endif %}\n",
                   "{}", "  a  b\nc\n");
    assert_renders("  {# c #}\nx {{- ' y' -}} \n z\r\n{%+ if true +%}\nw{% endif %}\n\n", "{}",
                   "x yz\n\nw");
    assert_renders("{% generation %}a{% endgeneration %}{% raw %}{% x %}{% endraw %}", "{}",
                   "a{% x %}");
}

typedef struct {
    const char *source, *sentence;
} refused;

static void test_refused(void)
{
    static const refused cases[] = {
        {"{% if x %}", "t.jinja:1: {% endif %} is missing"},
        {"a\n{{ x", "t.jinja:2: a tag is not closed"},
        {"\n{# c", "t.jinja:2: a comment is not closed"},
        {"{{ 'x }}", "t.jinja:1: a string is not closed"},
        {"\n\n{% include 'x' %}", "t.jinja:3: the tag {% include %} is not known"},
        {"{% endfor %}", "t.jinja:1: the tag {% endfor %} is not known or not expected here"},
        {"{{ }}", "t.jinja:1: expected an expression, found }}"},
        {"{{ a b }}", "t.jinja:1: expected }}, found b"},
        {"{{ f(*x) }}", "t.jinja:1: * and ** in a call are not supported"},
        {"{% break %}", "t.jinja:1: break outside of a loop"},
        {"{{ $ }}", "t.jinja:1: an unexpected character"},
        {"{{ '\\ud800' }}", "t.jinja:1: an escape in a string is no character"},
        {"{% raw %}", "t.jinja:1: {% raw %} is not closed"},
        {"\xff", "t.jinja: not UTF-8 text"},
        {"{{ 99999999999999999999 }}", "is too large"},
        {"{% for x in y recursive %}{% endfor %}", "recursive loops are not supported"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(
            cs_chat_template_parse(cases[i].source, strlen(cases[i].source), "t.jinja", &error));
        g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
        if (!strstr(error->message, cases[i].sentence))
            g_error("%s: %s, expected %s", cases[i].source, error->message, cases[i].sentence);
    }
}

static void assert_fails(const char *source, cs_error_code code, const char *sentence)
{
    g_autoptr(cs_chat_template) t = parse(source);
    g_autoptr(GError) error = NULL;
    cs_chat_request request = {.messages = json("[{\"role\": \"user\", \"content\": \"x\"}]")};
    size_t size_bytes;
    g_assert_null(cs_chat_template_render(t, &request, &size_bytes, &error));
    /* On a slow machine the limit of time comes before the one of steps. */
    bool timeout = code == CS_ERROR_TOO_LARGE && g_error_matches(error, CS_ERROR, CS_ERROR_TIMEOUT);
    if ((!timeout && !g_error_matches(error, CS_ERROR, (int)code)) ||
        !strstr(error->message, sentence))
        g_error("%s: %s, expected %s", source, error->message, sentence);
    g_assert_true(g_str_has_prefix(error->message, "t.jinja:"));
    json_decref(request.messages);
}

static void test_errors(void)
{
    assert_fails("\n{{ x.y }}", CS_ERROR_INVALID,
                 "t.jinja:2: attribute 'y' of a value that is undefined");
    assert_fails("{{ x + 1 }}", CS_ERROR_INVALID, "t.jinja:1: + with a value that is undefined");
    assert_fails("{{ 'a' + 1 }}", CS_ERROR_INVALID, "+ cannot be applied to str and int");
    assert_fails("{{ f() }}", CS_ERROR_INVALID, "'f' is undefined and cannot be called");
    assert_fails("{{ messages | nope }}", CS_ERROR_INVALID, "there is no filter 'nope'");
    assert_fails("{{ messages is nope }}", CS_ERROR_INVALID, "there is no test 'nope'");
    assert_fails("{{ messages.append(1) }}", CS_ERROR_INVALID, "cannot change a list");
    assert_fails("{{ 1 / 0 }}", CS_ERROR_INVALID, "division by zero");
    assert_fails("{{ x | tojson }}", CS_ERROR_INVALID, "tojson cannot write a undefined");
    assert_fails("{% for a, b, c in messages %}{% endfor %}\n", CS_ERROR_INVALID,
                 "values to unpack");
    assert_fails("{% set x.y = 1 %}", CS_ERROR_INVALID, "only a namespace");
    assert_fails("{% if true %}\n\n{{ raise_exception('no: ' ~ messages[0].role) }}{% endif %}",
                 CS_ERROR_INVALID, "t.jinja:3: no: user");
}

static void test_hostile(void)
{
    int64_t start_us = cs_now_us();
    assert_fails("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                 CS_ERROR_TOO_LARGE, "t.jinja: stopped after its ");
    assert_fails("{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for a in range(99) %}"
                 "{% set ns.s = ns.s + ns.s %}{% endfor %}",
                 CS_ERROR_TOO_LARGE, "limit of");
    assert_fails("{{ 'x' * 9999999999 }}", CS_ERROR_INVALID, "too large");
    assert_fails("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", CS_ERROR_INVALID,
                 "calls are nested more than 200 deep");
    assert_fails("{{ range(999999999) }}", CS_ERROR_INVALID, "more than 100000 items");
    assert_fails("{{ '%999999999d' % 1 }}", CS_ERROR_INVALID, "does not fit");
    g_assert_cmpint(cs_now_us() - start_us, <, 60 * G_USEC_PER_SEC);
}

static void test_deep_and_long(void)
{
    g_autoptr(GString) deep = g_string_new("{{ ");
    for (int i = 0; i < 5000; i++)
        g_string_append(deep, "(");
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_chat_template_parse(deep->str, deep->len, "t.jinja", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_autoptr(GString) sum = g_string_new("{{ 0");
    for (int i = 0; i < 5000; i++)
        g_string_append(sum, " + 1");
    g_string_append(sum, " }}{% if x == 0 %}");
    for (int i = 0; i < 500; i++)
        g_string_append_printf(sum, "{%% elif x == %d %%}%d", i, i);
    g_string_append(sum, "{% endif %}{{ [");
    for (int i = 0; i < 1000; i++)
        g_string_append(sum, "1,");
    g_string_append(sum, "] | sum }}");
    assert_renders(sum->str, "{\"x\": 321}", "50003211000");
    g_autofree char *large = g_strnfill(300000, 'x');
    g_clear_error(&error);
    g_assert_null(cs_chat_template_parse(large, 300000, "t.jinja", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
}

/* After any failure the next request is served. */
static void test_survives(void)
{
    g_autoptr(cs_chat_template) t =
        parse("{% for m in messages %}{{ m.content + '' }}{% endfor %}");
    json_t *good = json("[{\"content\": \"ok\"}]"), *bad = json("[{\"content\": [1]}]");
    json_t *nested = json_array();
    for (int i = 0; i < 500; i++) {
        json_t *outer = json_array();
        json_array_append_new(outer, nested);
        nested = outer;
    }
    for (int i = 0; i < 20; i++) {
        g_autoptr(GError) error = NULL;
        size_t size_bytes;
        cs_chat_request failing = {.messages = i % 2 ? bad : nested};
        g_assert_null(cs_chat_template_render(t, &failing, &size_bytes, &error));
        g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
        cs_chat_request request = {.messages = good};
        g_autofree char *text = render(t, &request);
        g_assert_cmpstr(text, ==, "ok");
    }
    json_decref(good);
    json_decref(bad);
    json_decref(nested);
}

static void write_file(const char *dir, const char *name, const char *text)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
}

static void assert_loads(const char *dir, json_t *tools, const char *expected)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_chat_template) t = cs_chat_template_load(dir, &error);
    g_assert_no_error(error);
    cs_chat_request request = {.tools = tools};
    g_autofree char *text = render(t, &request);
    g_assert_cmpstr(text, ==, expected);
}

static void test_load(void)
{
    g_autofree char *dir = g_dir_make_tmp("cornserve-template-XXXXXX", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_chat_template_load(dir, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_NOT_FOUND);
    g_clear_error(&error);
    write_file(
        dir, "tokenizer_config.json",
        "{\"bos_token\": {\"content\": \"<s>\"}, \"eos_token\": \"</s>\", \"pad_token\": null,"
        "\"chat_template\": [{\"name\": \"default\", \"template\": \"d{{ bos_token }}\"},"
        "{\"name\": \"tool_use\", \"template\": \"t{{ tools | length }}{{ eos_token }}\"}]}");
    json_t *tools = json("[{\"type\": \"function\"}]");
    assert_loads(dir, NULL, "d<s>");
    assert_loads(dir, tools, "t1</s>");
    write_file(dir, "chat_template.json", "{\"chat_template\": \"json{{ bos_token }}\"}");
    assert_loads(dir, tools, "json<s>");
    write_file(dir, "chat_template.jinja", "jinja{{ pad_token is defined }}{{ tools is none }}\n");
    assert_loads(dir, NULL, "jinjaFalseTrue");
    write_file(dir, "chat_template.jinja", "{% if %}");
    g_assert_null(cs_chat_template_load(dir, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_assert_true(g_str_has_prefix(error->message, "chat_template.jinja:1: "));
    json_decref(tools);
    static const char *const names[] = {"tokenizer_config.json", "chat_template.json",
                                        "chat_template.jinja"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(dir, names[i], NULL);
        g_unlink(path);
    }
    g_rmdir(dir);
}

static void test_guard(void)
{
    static const char file[] =
        "{\"added_tokens\":[{\"id\":1,\"content\":\"<end>\",\"special\":true}],"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false},"
        "\"model\":{\"vocab\":{\"e\":0},\"merges\":[]},\"decoder\":{\"type\":\"ByteLevel\"}}";
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_tokenizer) tokenizer = cs_tokenizer_parse(file, strlen(file), "t.json", &error);
    g_assert_no_error(error);
    g_autoptr(cs_chat_template) t =
        parse("{% for m in messages %}{{ m.content | trim }}{{ m.content | length }}<end>"
              "{% endfor %}{{ messages | tojson }}");
    cs_chat_request request = {.messages = json("[{\"content\": \" e<end>é \"}]"),
                               .guard = tokenizer};
    g_autofree char *text = render(t, &request);
    g_assert_cmpstr(text, ==,
                    "e<\xFF"
                    "end>é10<end>[{\"content\": \" e<\xFF"
                    "end>é \"}]");
    json_decref(request.messages);
}

static gpointer render_many(gpointer data)
{
    cs_chat_request request = {.messages = json("[{\"content\": \"ok\"}]")};
    for (int i = 0; i < 300; i++) {
        g_autofree char *text = render(data, &request);
        g_assert_cmpstr(text, ==, "ok");
    }
    json_decref(request.messages);
    return NULL;
}

static void test_threads(void)
{
    g_autoptr(cs_chat_template) t = parse("{% for m in messages %}{{ m.content }}{% endfor %}");
    GThread *threads[4];
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("render", render_many, t);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        g_thread_join(threads[i]);
}

int main(int argc, char **argv)
{
    g_setenv("TZ", "UTC", TRUE);
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/text/chat-template/macro", test_macro);
    g_test_add_func("/text/chat-template/scopes", test_scopes);
    g_test_add_func("/text/chat-template/lazy", test_lazy);
    g_test_add_func("/text/chat-template/python", test_python);
    g_test_add_func("/text/chat-template/white-space", test_white_space);
    g_test_add_func("/text/chat-template/refused", test_refused);
    g_test_add_func("/text/chat-template/errors", test_errors);
    g_test_add_func("/text/chat-template/hostile", test_hostile);
    g_test_add_func("/text/chat-template/deep-and-long", test_deep_and_long);
    g_test_add_func("/text/chat-template/survives", test_survives);
    g_test_add_func("/text/chat-template/load", test_load);
    g_test_add_func("/text/chat-template/guard", test_guard);
    g_test_add_func("/text/chat-template/threads", test_threads);
    return g_test_run();
}
