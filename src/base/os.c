#include "base/os.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int64_t cs_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Opens a regular file and tells its size; anything else (a FIFO would block, a device has no size)
 * is refused. */
static int open_regular(const char *path, size_t *size_bytes, GError **error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        cs_fail_errno(error, errno, "%s", path);
        return -1;
    }
    struct stat st;
    if (fstat(fd, &st) < 0) {
        cs_fail_errno(error, errno, "%s", path);
    } else if (!S_ISREG(st.st_mode)) {
        cs_fail(error, CS_ERROR_INVALID, "%s: not a regular file", path);
    } else {
        *size_bytes = (size_t)st.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

bool cs_file_map_open(cs_file_map *map, const char *path, GError **error)
{
    size_t size_bytes = 0;
    int fd = open_regular(path, &size_bytes, error);
    if (fd < 0)
        return false;
    void *data = NULL;
    if (size_bytes > 0) {
        data = mmap(NULL, size_bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            int err = errno;
            close(fd);
            return cs_fail_errno(error, err, "%s: cannot map %zu bytes", path, size_bytes);
        }
    }
    close(fd);
    *map = (cs_file_map){.data = data, .size_bytes = size_bytes};
    return true;
}

void cs_file_map_close(cs_file_map *map)
{
    if (map->data)
        munmap((void *)map->data, map->size_bytes);
    *map = (cs_file_map){0};
}

char *cs_file_read(const char *path, size_t max_bytes, size_t *size_bytes, GError **error)
{
    size_t expected = 0;
    int fd = open_regular(path, &expected, error);
    if (fd < 0)
        return NULL;
    char *text = NULL;
    size_t have = 0;
    if (expected > max_bytes) {
        cs_fail(error, CS_ERROR_TOO_LARGE, "%s: %zu bytes, at most %zu are read", path, expected,
                max_bytes);
    } else if (!(text = g_try_malloc(expected + 1))) {
        cs_fail(error, CS_ERROR_FAILED, "%s: no memory for %zu bytes", path, expected);
    } else {
        ssize_t got = 0;
        while (have < expected &&
               ((got = read(fd, text + have, expected - have)) > 0 || (got < 0 && errno == EINTR)))
            have += got > 0 ? (size_t)got : 0;
        if (got < 0) {
            cs_fail_errno(error, errno, "%s", path);
            g_clear_pointer(&text, g_free);
        }
    }
    close(fd);
    if (text) {
        text[have] = '\0';
        if (size_bytes)
            *size_bytes = have;
    }
    return text;
}

size_t cs_process_resident_bytes(void)
{
    unsigned long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f)
        return 0;
    if (fscanf(f, "%lu %lu", &total, &resident) != 2)
        resident = 0;
    fclose(f);
    return (size_t)resident * (size_t)sysconf(_SC_PAGESIZE);
}

static uint64_t read_number_file(const char *path, uint64_t fallback)
{
    g_autofree char *text = NULL;
    guint64 number;
    if (!g_file_get_contents(path, &text, NULL, NULL) ||
        !g_ascii_string_to_unsigned(g_strchomp(text), 10, 0, G_MAXUINT64, &number, NULL))
        return fallback;
    return number;
}

uint64_t cs_memory_free_bytes(void)
{
    uint64_t free_bytes = 1u << 30;
    g_autofree char *meminfo = NULL;
    const char *line;
    if (g_file_get_contents("/proc/meminfo", &meminfo, NULL, NULL) &&
        (line = strstr(meminfo, "MemAvailable:")))
        free_bytes = g_ascii_strtoull(line + strlen("MemAvailable:"), NULL, 10) * 1024;
    uint64_t limit = read_number_file("/sys/fs/cgroup/memory.max", UINT64_MAX);
    uint64_t used = read_number_file("/sys/fs/cgroup/memory.current", 0);
    return MIN(free_bytes, limit > used ? limit - used : 0);
}

int cs_cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    return 1;
}

uint64_t cs_hash(uint64_t hash, const void *data, size_t size_bytes)
{
    const uint8_t *bytes = data;
    for (size_t i = 0; i < size_bytes; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}
