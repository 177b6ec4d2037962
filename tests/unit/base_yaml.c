/* src/base/yaml: the JSON tree that each YAML text gives, and faults by line and column. */
#include "base/error.h"
#include "base/yaml.h"

#include <string.h>

static void assert_dumps(const char *yaml, const char *json)
{
    g_autoptr(GError) error = NULL;
    json_t *root = cs_yaml_load(yaml, strlen(yaml), "t.yaml", &error);
    g_assert_no_error(error);
    char *text = json_dumps(root, JSON_COMPACT | JSON_ENCODE_ANY);
    g_assert_cmpstr(text, ==, json);
    free(text);
    json_decref(root);
}

static void test_values(void)
{
    assert_dumps("a: 1\nb: [x, 'y', \"3\"]\nc:\n  - d: 1.5\n    e: true\n",
                 "{\"a\":1,\"b\":[\"x\",\"y\",\"3\"],\"c\":[{\"d\":1.5,\"e\":true}]}");
    assert_dumps("{n: null, t: ~, e: , m: -3, x: 80e9, z: 007, v: 1.2.3}",
                 "{\"n\":null,\"t\":null,\"e\":null,\"m\":-3,\"x\":80000000000.0,\"z\":\"007\","
                 "\"v\":\"1.2.3\"}");
    assert_dumps("a: .nan\nb:\n  -\n", "{\"a\":\".nan\",\"b\":[null]}");
    assert_dumps("{\"json\": [1, {\"too\": false}]}", "{\"json\":[1,{\"too\":false}]}");
}

static void assert_fault(const char *yaml, const char *message)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_yaml_load(yaml, strlen(yaml), "t.yaml", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_assert_cmpstr(error->message, ==, message);
}

static void test_faults(void)
{
    assert_fault("", "t.yaml: the document is empty");
    assert_fault("a: 1\na: 2\n", "t.yaml: line 2, column 1: duplicate key");
    assert_fault("a: &x 1\nb: *x\n",
                 "t.yaml: line 1, column 4: anchors and tags are not supported");
    assert_fault("a: &x [1]\n",
                 "t.yaml: line 1, column 4: anchors, aliases and tags are not supported");
    assert_fault("a: 1\n---\nb: 2\n", "t.yaml: line 2, column 1: expected one document");
    assert_fault("a: 99999999999999999999\n", "t.yaml: line 1, column 4: integer out of range");
    assert_fault("a: 1e999\n", "t.yaml: line 1, column 4: number out of range");
    assert_fault("[a]: 1\n", "t.yaml: line 1, column 1: a key must be a word");
    g_autofree char *deep = g_strnfill(100, '[');
    assert_fault(deep, "t.yaml: line 1, column 65: nested more than 64 levels deep");
}

static void test_malformed(void)
{
    static const char *const texts[] = {"a: [1",   "{a: 1", "a: \"\xff\"",
                                        "a: b: c", "\t- x", "a: \"\\0\""};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(cs_yaml_load(texts[i], strlen(texts[i]), "t.yaml", &error));
        g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/base/yaml/values", test_values);
    g_test_add_func("/base/yaml/faults", test_faults);
    g_test_add_func("/base/yaml/malformed", test_malformed);
    return g_test_run();
}
