#include "graph/builtin.h"

#include "builtin_files.h"

#include <string.h>

static const char *find(const builtin_file *files, size_t n, const char *name, size_t *size_bytes)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(files[i].name, name) != 0)
            continue;
        *size_bytes = files[i].size_bytes;
        return (const char *)files[i].data;
    }
    return NULL;
}

const char *cs_builtin_task(const char *family, size_t *size_bytes)
{
    return find(builtin_tasks, sizeof(builtin_tasks) / sizeof(builtin_tasks[0]), family,
                size_bytes);
}

const char *cs_builtin_app(const char *name, size_t *size_bytes)
{
    return find(builtin_apps, sizeof(builtin_apps) / sizeof(builtin_apps[0]), name, size_bytes);
}
