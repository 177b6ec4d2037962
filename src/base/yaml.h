/* YAML files as JSON trees, so that a cs_json_reader validates both alike.
 *
 * The subset is what configuration needs: one document; mappings with string keys, sequences,
 * scalars. Plain scalars become null, booleans (true, false), integers and reals by JSON's rules
 * (1e9 is a real; a leading zero or plus sign makes a string); quoted scalars are strings. Anchors,
 * aliases, tags and duplicate keys are errors, as are more than 64 levels: nothing can expand.
 */
#ifndef CS_BASE_YAML_H
#define CS_BASE_YAML_H

#include <glib.h>
#include <jansson.h>
#include <stddef.h>

/* Parses text; `source` names it in errors ("cluster.yaml: line 3, column 5: ..."). json_decref. */
json_t *cs_yaml_load(const char *text, size_t size_bytes, const char *source, GError **error);

/* Parses a file of at most max_bytes: as JSON if its name ends in .json, as YAML otherwise.
 * json_decref. */
json_t *cs_config_load_file(const char *path, size_t max_bytes, GError **error);

#endif
