/* Regular expressions of tokenizer.json on PCRE2 with JIT. Internal to src/text.
 *
 * The files are written for Oniguruma (Ruby syntax, UTF-8). The two engines agree on nearly all
 * that tokenizers use; what means something else is translated (\s, \w, \v, \u) or refused by name.
 * A cs_regex is immutable and shared; each thread matches with its own cs_regex_scratch. */
#ifndef CS_TEXT_REGEX_H
#define CS_TEXT_REGEX_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct cs_regex cs_regex;
typedef struct cs_regex_scratch cs_regex_scratch;

/* NULL and a sentence that does not name the place: the caller knows it. */
cs_regex *cs_regex_new(const char *pattern, GError **error);
void cs_regex_free(cs_regex *r);

cs_regex_scratch *cs_regex_scratch_new(void);
void cs_regex_scratch_free(cs_regex_scratch *s);

/* True if valid UTF-8 may have characters of Unicode 15 and 16, which the reference knows and this
 * PCRE2 may not. They cost time, so only text that has them is matched with them. */
bool cs_regex_has_late(const char *text, size_t size_bytes);

/* The first match in text[from, size) of valid UTF-8: 1 and its range, 0 for none, -1 and *error
 * when the expression needs more backtracking than is allowed. `late`: what cs_regex_has_late says.
 */
int cs_regex_find(const cs_regex *r, cs_regex_scratch *scratch, const char *text, size_t size_bytes,
                  size_t from, bool late, size_t *start, size_t *end, GError **error);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_regex, cs_regex_free)

#endif
