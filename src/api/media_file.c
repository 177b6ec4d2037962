#include "api/media_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int open_beneath(const char *dir, const char *relative)
{
    int dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return -1;
    /* O_NONBLOCK: a FIFO must not hold the server up. */
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    int fd = (int)syscall(SYS_openat2, dir_fd, relative, &how, sizeof(how));
    close(dir_fd);
    return fd;
}

/* The part of the path below dir; NULL when it is not below it. */
static const char *below(const char *dir, const char *path)
{
    size_t n = strlen(dir);
    while (n > 0 && dir[n - 1] == '/')
        n--;
    if (strncmp(path, dir, n) != 0 || path[n] != '/')
        return NULL;
    path += n;
    while (*path == '/')
        path++;
    return *path ? path : NULL;
}

static GBytes *read_all(int fd, size_t size_bytes)
{
    char *data = g_try_malloc(size_bytes);
    size_t got = 0;
    while (data && got < size_bytes) {
        ssize_t n = read(fd, data + got, size_bytes - got);
        if (n <= 0) {
            g_clear_pointer(&data, g_free);
            break;
        }
        got += (size_t)n;
    }
    return data ? g_bytes_new_take(data, size_bytes) : NULL;
}

GBytes *cs_media_file_read(const char *dir, const char *url, size_t max_bytes, GError **error)
{
    g_autofree char *host = NULL;
    g_autofree char *path = g_filename_from_uri(url, &host, NULL);
    if (host && *host && strcmp(host, "localhost") != 0)
        g_clear_pointer(&path, g_free);
    g_autofree char *real_dir = realpath(dir, NULL);
    const char *relative = path ? below(dir, path) : NULL;
    if (!relative && path && real_dir)
        relative = below(real_dir, path);
    int fd = relative ? open_beneath(dir, relative) : -1;
    struct stat st;
    GBytes *bytes = NULL;
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        cs_fail(error, CS_ERROR_FORBIDDEN,
                "not a readable file inside the directory that this server allows");
    else if (st.st_size == 0)
        cs_fail(error, CS_ERROR_INVALID, "the file is empty");
    else if ((uint64_t)st.st_size > max_bytes)
        cs_fail(error, CS_ERROR_TOO_LARGE, "the file has %lld bytes, over the limit of %zu",
                (long long)st.st_size, max_bytes);
    else if (!(bytes = read_all(fd, (size_t)st.st_size)))
        cs_fail(error, CS_ERROR_FAILED, "the file cannot be read");
    if (fd >= 0)
        close(fd);
    return bytes;
}
