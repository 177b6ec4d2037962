/* Reading configuration from JSON with every fault named by file and path.
 *
 * A cs_json_reader walks one json_t tree. The first fault is kept and later reads return defaults,
 * so a struct of fifty fields is read in fifty plain lines and checked once at the end:
 *
 *     cs_json_reader r;
 *     cs_json_reader_init(&r, root, "config.json");
 *     cs_json_enter(&r, "thinker_config");
 *     c->hidden_size = cs_json_int(&r, "hidden_size", 1, 65536);
 *     cs_json_leave(&r);
 *     return cs_json_reader_finish(&r, error);
 *
 * gives "config.json: thinker_config.hidden_size: expected an integer in [1, 65536], found "big"".
 * In files whose format is ours, unknown members are errors: call cs_json_only() in each object.
 */
#ifndef CS_BASE_JSON_H
#define CS_BASE_JSON_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const char *source; /* borrowed: the file's name, first word of every message */
    GPtrArray *nodes;   /* borrowed json_t *, the objects or arrays entered; the last is current */
    GPtrArray *names; /* owned char *, "thinker_config" or "[3]", one for each node but the root */
    GError *error;    /* the first fault, or NULL */
} cs_json_reader;

/* Parses a file (at most max_bytes). Duplicate keys are errors. json_decref. */
json_t *cs_json_load_file(const char *path, size_t max_bytes, GError **error);

/* Parses text; `source` names it in errors. json_decref. */
json_t *cs_json_load(const char *text, size_t size_bytes, const char *source, GError **error);

void cs_json_reader_init(cs_json_reader *r, json_t *root, const char *source);

/* Frees the reader; false and *error filled if there was a fault. */
bool cs_json_reader_finish(cs_json_reader *r, GError **error);

/* Records a fault of member `key` (or of the current node if NULL); the path is put before the
 * sentence. */
void cs_json_fault(cs_json_reader *r, const char *key, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* True when the member is there and not null. */
bool cs_json_has(const cs_json_reader *r, const char *key);

/* Enters an object member; a missing one or another type is a fault and enters an empty object.
 * Each enter is paired with a leave. */
void cs_json_enter(cs_json_reader *r, const char *key);
/* Enters an array member (missing: a fault, length 0) and returns its length. */
size_t cs_json_enter_array(cs_json_reader *r, const char *key);
/* Enters the object at index of the current array. */
void cs_json_enter_item(cs_json_reader *r, size_t index);
void cs_json_leave(cs_json_reader *r);
/* The object or array entered last, to iterate over; NULL after a fault. Borrowed. */
json_t *cs_json_current(const cs_json_reader *r);

/* Members of the current object. The plain form requires them; _or takes a default when absent or
 * null. */
int64_t cs_json_int(cs_json_reader *r, const char *key, int64_t min, int64_t max);
int64_t cs_json_int_or(cs_json_reader *r, const char *key, int64_t min, int64_t max,
                       int64_t fallback);
double cs_json_number(cs_json_reader *r, const char *key, double min, double max);
double cs_json_number_or(cs_json_reader *r, const char *key, double min, double max,
                         double fallback);
bool cs_json_bool(cs_json_reader *r, const char *key);
bool cs_json_bool_or(cs_json_reader *r, const char *key, bool fallback);
/* Borrowed from the tree; "" after a fault. */
const char *cs_json_string(cs_json_reader *r, const char *key);
const char *cs_json_string_or(cs_json_reader *r, const char *key, const char *fallback);

/* Fills out[0..n) from an array of integers of exactly n elements. */
void cs_json_ints(cs_json_reader *r, const char *key, int64_t min, int64_t max, int64_t *out,
                  size_t n);

/* Fault if the current object has a member that is not in the NULL-terminated list. */
void cs_json_only(cs_json_reader *r, const char *const *keys);

#endif
