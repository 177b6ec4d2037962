#include "base/yaml.h"

#include "base/error.h"
#include "base/json.h"
#include "base/os.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define MAX_DEPTH 64

typedef struct {
    yaml_parser_t parser;
    const char *source;
    GError **error;
} loader;

static json_t *fail_at(loader *l, yaml_mark_t mark, const char *sentence)
{
    cs_fail(l->error, CS_ERROR_INVALID, "%s: line %zu, column %zu: %s", l->source, mark.line + 1,
            mark.column + 1, sentence);
    return NULL;
}

static bool next_event(loader *l, yaml_event_t *event)
{
    if (yaml_parser_parse(&l->parser, event))
        return true;
    const char *problem = l->parser.problem ? l->parser.problem : "out of memory";
    fail_at(l, l->parser.problem_mark, problem);
    return false;
}

/* JSON's grammar of numbers: -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)? */
static bool looks_like_number(const char *text, bool *integer)
{
    const char *p = text + (text[0] == '-');
    if (!g_ascii_isdigit(*p) || (p[0] == '0' && g_ascii_isdigit(p[1])))
        return false;
    p += strspn(p, "0123456789");
    *integer = *p == '\0';
    if (*p == '.') {
        size_t digits = strspn(p + 1, "0123456789");
        if (digits == 0)
            return false;
        p += 1 + digits;
    }
    if (*p == 'e' || *p == 'E') {
        p += 1 + (p[1] == '+' || p[1] == '-');
        size_t digits = strspn(p, "0123456789");
        if (digits == 0)
            return false;
        p += digits;
    }
    return *p == '\0';
}

static json_t *number_value(loader *l, const char *text, bool integer, yaml_mark_t mark)
{
    errno = 0;
    if (integer) {
        long long value = strtoll(text, NULL, 10);
        return errno ? fail_at(l, mark, "integer out of range") : json_integer(value);
    }
    double value = g_ascii_strtod(text, NULL);
    return isfinite(value) ? json_real(value) : fail_at(l, mark, "number out of range");
}

static json_t *scalar_value(loader *l, const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE, integer = false;
    if (event->data.scalar.anchor || event->data.scalar.tag)
        return fail_at(l, event->start_mark, "anchors and tags are not supported");
    if (strlen(text) != length)
        return fail_at(l, event->start_mark, "a string holds a NUL byte");
    if (plain && (length == 0 || g_str_equal(text, "~") || g_str_equal(text, "null")))
        return json_null();
    if (plain && (g_str_equal(text, "true") || g_str_equal(text, "false")))
        return json_boolean(text[0] == 't');
    if (plain && looks_like_number(text, &integer))
        return number_value(l, text, integer, event->start_mark);
    json_t *value = json_stringn(text, length);
    return value ? value : fail_at(l, event->start_mark, "not valid UTF-8");
}

static json_t *node_value(loader *l, yaml_event_t *event, int depth);

static json_t *sequence_value(loader *l, int depth)
{
    json_t *array = json_array();
    for (;;) {
        yaml_event_t event;
        if (!next_event(l, &event))
            break;
        if (event.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&event);
            return array;
        }
        json_t *item = node_value(l, &event, depth);
        yaml_event_delete(&event);
        if (!item || json_array_append_new(array, item) != 0)
            break;
    }
    json_decref(array);
    return NULL;
}

/* Reads the value that belongs to the key in `event` into object. */
static bool mapping_member(loader *l, json_t *object, const yaml_event_t *key_event, int depth)
{
    if (key_event->type != YAML_SCALAR_EVENT)
        return fail_at(l, key_event->start_mark, "a key must be a word") != NULL;
    g_autofree char *key = g_strdup((const char *)key_event->data.scalar.value);
    if (json_object_get(object, key))
        return fail_at(l, key_event->start_mark, "duplicate key") != NULL;
    yaml_event_t event;
    if (!next_event(l, &event))
        return false;
    json_t *value = node_value(l, &event, depth);
    yaml_mark_t mark = event.start_mark;
    yaml_event_delete(&event);
    if (!value)
        return false;
    if (json_object_set_new(object, key, value) != 0)
        return fail_at(l, mark, "not valid UTF-8") != NULL;
    return true;
}

static json_t *mapping_value(loader *l, int depth)
{
    json_t *object = json_object();
    for (;;) {
        yaml_event_t event;
        if (!next_event(l, &event))
            break;
        bool end = event.type == YAML_MAPPING_END_EVENT;
        bool ok = end || mapping_member(l, object, &event, depth);
        yaml_event_delete(&event);
        if (end)
            return object;
        if (!ok)
            break;
    }
    json_decref(object);
    return NULL;
}

static json_t *node_value(loader *l, yaml_event_t *event, int depth)
{
    if (depth >= MAX_DEPTH)
        return fail_at(l, event->start_mark, "nested more than 64 levels deep");
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return scalar_value(l, event);
    case YAML_SEQUENCE_START_EVENT:
        if (event->data.sequence_start.anchor || event->data.sequence_start.tag)
            break;
        return sequence_value(l, depth + 1);
    case YAML_MAPPING_START_EVENT:
        if (event->data.mapping_start.anchor || event->data.mapping_start.tag)
            break;
        return mapping_value(l, depth + 1);
    default:
        break;
    }
    return fail_at(l, event->start_mark, "anchors, aliases and tags are not supported");
}

/* Skips to the document's first node, reads it and checks that nothing follows. */
static json_t *load_document(loader *l)
{
    json_t *root = NULL;
    bool end = false;
    while (!end) {
        yaml_event_t event;
        if (!next_event(l, &event))
            break;
        bool ok = true;
        if (event.type == YAML_STREAM_END_EVENT) {
            end = true;
        } else if (event.type == YAML_DOCUMENT_START_EVENT && root) {
            ok = fail_at(l, event.start_mark, "expected one document") != NULL;
        } else if (event.type != YAML_STREAM_START_EVENT &&
                   event.type != YAML_DOCUMENT_START_EVENT &&
                   event.type != YAML_DOCUMENT_END_EVENT) {
            root = node_value(l, &event, 0);
            ok = root != NULL;
        }
        yaml_event_delete(&event);
        if (!ok)
            break;
    }
    if (end && root)
        return root;
    if (end)
        cs_fail(l->error, CS_ERROR_INVALID, "%s: the document is empty", l->source);
    json_decref(root);
    return NULL;
}

json_t *cs_yaml_load(const char *text, size_t size_bytes, const char *source, GError **error)
{
    loader l = {.source = source, .error = error};
    if (!yaml_parser_initialize(&l.parser)) {
        cs_fail(error, CS_ERROR_FAILED, "%s: out of memory", source);
        return NULL;
    }
    yaml_parser_set_input_string(&l.parser, (const unsigned char *)text, size_bytes);
    json_t *root = load_document(&l);
    yaml_parser_delete(&l.parser);
    return root;
}

json_t *cs_config_load_file(const char *path, size_t max_bytes, GError **error)
{
    size_t size_bytes = 0;
    g_autofree char *text = cs_file_read(path, max_bytes, &size_bytes, error);
    if (!text)
        return NULL;
    return g_str_has_suffix(path, ".json") ? cs_json_load(text, size_bytes, path, error)
                                           : cs_yaml_load(text, size_bytes, path, error);
}
