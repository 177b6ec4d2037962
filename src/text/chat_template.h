/* Chat templates of Hugging Face checkpoints: a conversation to the text that the model was trained
 * on.
 *
 * The template is Jinja and is executed (jinja.h says how), in the environment that transformers
 * gives it: trim_blocks, lstrip_blocks, loop controls, tojson without HTML escapes,
 * raise_exception, strftime_now. It runs in a sandbox: an endless loop or an endless text is an
 * error. What is not there: {% include %}, {% extends %}, {% block %}, recursive loops, * and ** in
 * calls, parameters of {% call %}.
 *
 * Any thread may render; renders of one template take turns on a lock (a render takes tens of
 * microseconds).
 */
#ifndef CS_TEXT_CHAT_TEMPLATE_H
#define CS_TEXT_CHAT_TEMPLATE_H

#include "text/tokenizer.h"

#include <jansson.h>

typedef struct cs_chat_template cs_chat_template;

/* Reads DIR/chat_template.jinja, else chat_template of DIR/chat_template.json, else of
 * DIR/tokenizer_config.json: a template, or a list of {"name", "template"}, of which "tool_use"
 * serves requests with tools and "default" the others. The special tokens of tokenizer_config.json
 * (bos_token, eos_token ...) are variables. CS_ERROR_NOT_FOUND when there is no template. */
cs_chat_template *cs_chat_template_load(const char *dir, GError **error);

/* One template from text, without special tokens; `name` is for errors. */
cs_chat_template *cs_chat_template_parse(const char *text, size_t size_bytes, const char *name,
                                         GError **error);
void cs_chat_template_free(cs_chat_template *t);

/* All borrowed, and NULL where there is nothing. */
typedef struct {
    json_t *messages;           /* array: what OpenAI's API takes; parts of content as they are */
    json_t *tools;              /* array of {"type": "function", "function": {...}} */
    json_t *documents;          /* array */
    json_t *extra;              /* object: more variables, over all others */
    bool add_generation_prompt; /* end with the opening of the assistant's turn */
    const cs_tokenizer *guard;  /* put guards into every string: see tokenizer.h */
    int64_t now_s;              /* Unix time for strftime_now; 0: the clock */
} cs_chat_request;

/* The prompt, NUL-terminated beyond *size_bytes; g_free. Errors are CS_ERROR_INVALID with
 * "file:line: sentence" (raise_exception of the template as well), CS_ERROR_TOO_LARGE and
 * CS_ERROR_TIMEOUT for the sandbox's limits. */
char *cs_chat_template_render(cs_chat_template *t, const cs_chat_request *request,
                              size_t *size_bytes, GError **error);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_chat_template, cs_chat_template_free)

#endif
