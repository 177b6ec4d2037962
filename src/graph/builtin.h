/* The Lua files of tasks/ that are compiled into the program. */
#ifndef CS_GRAPH_BUILTIN_H
#define CS_GRAPH_BUILTIN_H

#include <stddef.h>

/* The task file of a model family (model_type of config.json), or NULL. */
const char *cs_builtin_task(const char *family, size_t *size_bytes);
/* The app of this name, or NULL. */
const char *cs_builtin_app(const char *name, size_t *size_bytes);

#endif
