/* src/base/json: each fault is named by file and path, and reading goes on after it. */
#include "base/error.h"
#include "base/json.h"

#include <string.h>

static json_t *parse(const char *text)
{
    g_autoptr(GError) error = NULL;
    json_t *root = cs_json_load(text, strlen(text), "t.json", &error);
    g_assert_no_error(error);
    return root;
}

static void test_reads(void)
{
    json_t *root = parse("{\"a\": {\"n\": 3, \"x\": 0.5, \"s\": \"é\", \"v\": [1, 2], \"o\": "
                         "[{\"b\": true}]}, \"z\": null}");
    cs_json_reader r;
    cs_json_reader_init(&r, root, "t.json");
    cs_json_enter(&r, "a");
    g_assert_cmpint(cs_json_int(&r, "n", 1, 5), ==, 3);
    g_assert_cmpfloat(cs_json_number(&r, "x", 0, 1), ==, 0.5);
    g_assert_cmpstr(cs_json_string(&r, "s"), ==, "é");
    int64_t v[2];
    cs_json_ints(&r, "v", 0, 9, v, 2);
    g_assert_cmpint(v[1], ==, 2);
    g_assert_cmpuint(cs_json_enter_array(&r, "o"), ==, 1);
    cs_json_enter_item(&r, 0);
    g_assert_true(cs_json_bool(&r, "b"));
    cs_json_leave(&r);
    cs_json_leave(&r);
    g_assert_cmpint(cs_json_int_or(&r, "missing", 0, 9, 7), ==, 7);
    cs_json_leave(&r);
    g_assert_false(cs_json_has(&r, "z"));
    g_autoptr(GError) error = NULL;
    g_assert_true(cs_json_reader_finish(&r, &error));
    g_assert_no_error(error);
    json_decref(root);
}

typedef void (*reads)(cs_json_reader *r);

static void assert_fault(const char *text, reads read, const char *message)
{
    json_t *root = parse(text);
    cs_json_reader r;
    cs_json_reader_init(&r, root, "t.json");
    read(&r);
    g_autoptr(GError) error = NULL;
    g_assert_false(cs_json_reader_finish(&r, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_assert_cmpstr(error->message, ==, message);
    json_decref(root);
}

static void read_nested(cs_json_reader *r)
{
    cs_json_enter(r, "a");
    cs_json_enter_array(r, "o");
    cs_json_enter_item(r, 1);
    cs_json_int(r, "n", 1, 5);
    cs_json_leave(r);
    cs_json_leave(r);
    cs_json_leave(r);
}

static void read_only_n(cs_json_reader *r)
{
    cs_json_only(r, (const char *const[]){"n", NULL});
}

static void read_vector(cs_json_reader *r)
{
    int64_t v[3];
    cs_json_ints(r, "v", 0, 9, v, 3);
}

static void test_faults(void)
{
    assert_fault("{\"a\": {\"o\": [{}, {\"n\": 6}]}}", read_nested,
                 "t.json: a.o[1].n: expected an integer in [1, 5], found 6");
    assert_fault("{\"a\": {\"o\": [{}, {\"n\": \"6\"}]}}", read_nested,
                 "t.json: a.o[1].n: expected an integer in [1, 5], found \"6\"");
    assert_fault("{\"a\": {\"o\": [{}]}}", read_nested,
                 "t.json: a.o[1]: expected an object, found nothing");
    assert_fault("{\"a\": 1}", read_nested, "t.json: a: expected an object, found 1");
    assert_fault("{\"n\": 1, \"m\": 2}", read_only_n, "t.json: m: unknown member; known are n");
    assert_fault("{\"v\": [1, 2]}", read_vector,
                 "t.json: v: expected an array of 3 integers, found an array of 2");
    assert_fault("{\"v\": [1, 2, 77]}", read_vector,
                 "t.json: v[2]: expected an integer in [0, 9], found 77");
}

static void test_malformed(void)
{
    static const char *const texts[] = {
        "", "{", "{\"a\": 1, \"a\": 2}", "[1,]", "{\"a\": \"\xff\"}", "{} x"};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(cs_json_load(texts[i], strlen(texts[i]), "t.json", &error));
        g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
        g_assert_true(g_str_has_prefix(error->message, "t.json: line "));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/base/json/reads", test_reads);
    g_test_add_func("/base/json/faults", test_faults);
    g_test_add_func("/base/json/malformed", test_malformed);
    return g_test_run();
}
