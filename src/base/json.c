#include "base/json.h"

#include "base/error.h"
#include "base/os.h"

#include <math.h>
#include <string.h>

json_t *cs_json_load(const char *text, size_t size_bytes, const char *source, GError **error)
{
    json_error_t where;
    json_t *root = json_loadb(text, size_bytes, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        cs_fail(error, CS_ERROR_INVALID, "%s: line %d, column %d: %s", source, where.line,
                where.column, where.text);
    return root;
}

json_t *cs_json_load_file(const char *path, size_t max_bytes, GError **error)
{
    size_t size_bytes = 0;
    g_autofree char *text = cs_file_read(path, max_bytes, &size_bytes, error);
    return text ? cs_json_load(text, size_bytes, path, error) : NULL;
}

void cs_json_reader_init(cs_json_reader *r, json_t *root, const char *source)
{
    *r = (cs_json_reader){.source = source,
                          .nodes = g_ptr_array_new(),
                          .names = g_ptr_array_new_with_free_func(g_free)};
    g_ptr_array_add(r->nodes, root);
    if (!json_is_object(root) && !json_is_array(root))
        cs_json_fault(r, NULL, "expected an object");
}

bool cs_json_reader_finish(cs_json_reader *r, GError **error)
{
    g_ptr_array_unref(r->nodes);
    g_ptr_array_unref(r->names);
    if (r->error) {
        g_propagate_error(error, r->error);
        return false;
    }
    return true;
}

void cs_json_fault(cs_json_reader *r, const char *key, const char *format, ...)
{
    if (r->error)
        return;
    g_autoptr(GString) path = g_string_new(NULL);
    for (guint i = 0; i <= r->names->len; i++) {
        const char *name = i < r->names->len ? g_ptr_array_index(r->names, i) : key;
        if (name)
            g_string_append_printf(path, "%s%s", path->len > 0 && name[0] != '[' ? "." : "", name);
    }
    va_list args;
    va_start(args, format);
    g_autofree char *sentence = g_strdup_vprintf(format, args);
    va_end(args);
    cs_fail(&r->error, CS_ERROR_INVALID, "%s: %s%s%s", r->source, path->str,
            path->len > 0 ? ": " : "", sentence);
}

json_t *cs_json_current(const cs_json_reader *r)
{
    return g_ptr_array_index(r->nodes, r->nodes->len - 1);
}

static json_t *member(const cs_json_reader *r, const char *key)
{
    json_t *node = cs_json_current(r);
    json_t *value = node ? json_object_get(node, key) : NULL;
    return json_is_null(value) ? NULL : value;
}

bool cs_json_has(const cs_json_reader *r, const char *key)
{
    return member(r, key) != NULL;
}

/* What stands there, short enough for a message. Caller frees. */
static char *describe(const json_t *value)
{
    if (!value)
        return g_strdup("nothing");
    if (json_is_object(value))
        return g_strdup("an object");
    if (json_is_array(value))
        return g_strdup_printf("an array of %zu", json_array_size(value));
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    char *copy = g_strdup(text ? text : "a value");
    free(text);
    if (strlen(copy) > 60)
        memcpy(g_utf8_prev_char(copy + 57), "...", 4);
    return copy;
}

static void fault_expected(cs_json_reader *r, const char *key, const char *expected,
                           const json_t *found)
{
    g_autofree char *what = describe(found);
    cs_json_fault(r, key, "expected %s, found %s", expected, what);
}

static void push(cs_json_reader *r, json_t *node, char *name)
{
    g_ptr_array_add(r->nodes, node);
    g_ptr_array_add(r->names, name);
}

void cs_json_enter(cs_json_reader *r, const char *key)
{
    json_t *value = member(r, key);
    if (!json_is_object(value)) {
        fault_expected(r, key, "an object", value);
        value = NULL;
    }
    push(r, value, g_strdup(key));
}

size_t cs_json_enter_array(cs_json_reader *r, const char *key)
{
    json_t *value = member(r, key);
    if (!json_is_array(value)) {
        fault_expected(r, key, "an array", value);
        value = NULL;
    }
    push(r, value, g_strdup(key));
    return value ? json_array_size(value) : 0;
}

void cs_json_enter_item(cs_json_reader *r, size_t index)
{
    json_t *array = cs_json_current(r);
    json_t *value = array ? json_array_get(array, index) : NULL;
    push(r, value, g_strdup_printf("[%zu]", index));
    if (!json_is_object(value) && !json_is_array(value)) {
        fault_expected(r, NULL, "an object", value);
        g_ptr_array_index(r->nodes, r->nodes->len - 1) = NULL;
    }
}

void cs_json_leave(cs_json_reader *r)
{
    g_ptr_array_set_size(r->nodes, (gint)r->nodes->len - 1);
    g_ptr_array_set_size(r->names, (gint)r->names->len - 1);
}

static int64_t read_int(cs_json_reader *r, const char *key, const json_t *value, int64_t min,
                        int64_t max)
{
    if (json_is_integer(value)) {
        int64_t number = json_integer_value(value);
        if (number >= min && number <= max)
            return number;
    }
    g_autofree char *expected =
        g_strdup_printf("an integer in [%" G_GINT64_FORMAT ", %" G_GINT64_FORMAT "]", min, max);
    fault_expected(r, key, expected, value);
    return min;
}

int64_t cs_json_int(cs_json_reader *r, const char *key, int64_t min, int64_t max)
{
    return read_int(r, key, member(r, key), min, max);
}

int64_t cs_json_int_or(cs_json_reader *r, const char *key, int64_t min, int64_t max,
                       int64_t fallback)
{
    return cs_json_has(r, key) ? cs_json_int(r, key, min, max) : fallback;
}

double cs_json_number(cs_json_reader *r, const char *key, double min, double max)
{
    const json_t *value = member(r, key);
    if (json_is_number(value)) {
        double number = json_number_value(value);
        if (isfinite(number) && number >= min && number <= max)
            return number;
    }
    g_autofree char *expected = g_strdup_printf("a number in [%g, %g]", min, max);
    fault_expected(r, key, expected, value);
    return min;
}

double cs_json_number_or(cs_json_reader *r, const char *key, double min, double max,
                         double fallback)
{
    return cs_json_has(r, key) ? cs_json_number(r, key, min, max) : fallback;
}

bool cs_json_bool(cs_json_reader *r, const char *key)
{
    const json_t *value = member(r, key);
    if (!json_is_boolean(value))
        fault_expected(r, key, "true or false", value);
    return json_is_true(value);
}

bool cs_json_bool_or(cs_json_reader *r, const char *key, bool fallback)
{
    return cs_json_has(r, key) ? cs_json_bool(r, key) : fallback;
}

const char *cs_json_string(cs_json_reader *r, const char *key)
{
    const json_t *value = member(r, key);
    if (!json_is_string(value)) {
        fault_expected(r, key, "a string", value);
        return "";
    }
    return json_string_value(value);
}

const char *cs_json_string_or(cs_json_reader *r, const char *key, const char *fallback)
{
    return cs_json_has(r, key) ? cs_json_string(r, key) : fallback;
}

void cs_json_ints(cs_json_reader *r, const char *key, int64_t min, int64_t max, int64_t *out,
                  size_t n)
{
    const json_t *value = member(r, key);
    memset(out, 0, n * sizeof *out);
    if (!json_is_array(value) || json_array_size(value) != n) {
        g_autofree char *expected = g_strdup_printf("an array of %zu integers", n);
        fault_expected(r, key, expected, value);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        g_autofree char *name = g_strdup_printf("%s[%zu]", key, i);
        out[i] = read_int(r, name, json_array_get(value, i), min, max);
    }
}

void cs_json_only(cs_json_reader *r, const char *const *keys)
{
    json_t *node = cs_json_current(r);
    const char *key;
    json_t *value;
    if (!json_is_object(node))
        return;
    json_object_foreach (node, key, value) {
        if (!g_strv_contains((const char *const *)keys, key)) {
            g_autofree char *known = g_strjoinv(", ", (char **)keys);
            cs_json_fault(r, key, "unknown member; known are %s", known);
        }
    }
}
