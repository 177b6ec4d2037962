/* The way of a tensor between two executors of a node, against one memcpy of it in the same run.
 *
 *     build/bench/sidecar            a table: size, memcpy, end to end, ratio
 *
 * End to end: the producer has the tensor in its own memory; the time from before alloc (then copy,
 * put) until the consumer, asleep in get in another process, has the view. */
#include "base/os.h"
#include "sidecar/sidecar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROUNDS = 300 };

static const size_t sizes[] = {64, 4 << 10, 64 << 10, 1 << 20, 16 << 20};

static int compare_int64(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int64_t percentile(int64_t *values, int n, int percent)
{
    qsort(values, (size_t)n, sizeof(*values), compare_int64);
    return values[(n - 1) * percent / 100];
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Receives ROUNDS chunks and tells when each was in its hands. */
static void consumer(int fd, uint64_t request, int results)
{
    cs_sidecar *s = cs_sidecar_join_shared(fd, "consumer", NULL);
    cs_receiver *r = s ? cs_receiver_open(s, request, 1, 0, NULL) : NULL;
    cs_chunk chunk;
    for (uint64_t i = 0; r && i < ROUNDS; i++) {
        if (cs_receiver_get(r, i, -1, &chunk, NULL) != CS_RECEIVE_CHUNK)
            _exit(1);
        int64_t at_ns = now_ns();
        if (chunk.size_bytes > 0 && chunk.data[chunk.size_bytes - 1] != 7)
            _exit(2);
        cs_receiver_release(r, i);
        if (write(results, &at_ns, sizeof(at_ns)) != sizeof(at_ns))
            _exit(3);
    }
    cs_sidecar_close(s);
    _exit(r ? 0 : 4);
}

static int64_t copy_once(const uint8_t *tensor, uint8_t *copy, size_t size)
{
    int64_t start = now_ns();
    memcpy(copy, tensor, size);
    __asm__ volatile("" : : "r"(copy) : "memory");
    return now_ns() - start;
}

/* Copies and passages in turn, so that both see the same machine. */
static bool measure(cs_sidecar *s, uint64_t request, const uint8_t *tensor, uint8_t *copy,
                    size_t size, int64_t *copies, int64_t *times)
{
    int results[2];
    if (pipe(results) != 0 || !cs_sidecar_request_begin(s, request, 0, NULL))
        return false;
    pid_t pid = fork();
    if (pid == 0)
        consumer(cs_sidecar_fd(s), request, results[1]);
    cs_sender *sender = cs_sender_open(s, request, 1, (cs_sender_options){.n_consumers = 1}, NULL);
    bool ok = sender != NULL;
    for (int i = 0; ok && i < ROUNDS; i++) {
        g_usleep(300); /* the consumer is asleep again */
        copies[i] = copy_once(tensor, copy, size);
        cs_chunk chunk;
        int64_t start = now_ns(), at = 0;
        ok = cs_sender_alloc(sender, size, -1, &chunk, NULL);
        if (ok)
            memcpy(chunk.data, tensor, size);
        ok = ok && cs_sender_put(sender, NULL, NULL) &&
             read(results[0], &at, sizeof(at)) == sizeof(at);
        times[i] = at - start;
    }
    cs_sender_close(sender);
    cs_sidecar_request_end(s, request);
    waitpid(pid, NULL, 0);
    close(results[0]);
    close(results[1]);
    return ok;
}

int main(void)
{
    size_t largest = sizes[G_N_ELEMENTS(sizes) - 1];
    uint8_t *tensor = malloc(largest), *copy = malloc(largest);
    cs_sidecar *s = cs_sidecar_create_shared(NULL, "producer", NULL);
    if (!tensor || !copy || !s)
        return 1;
    memset(tensor, 7, largest);
    memset(copy, 1, largest);
    printf("%10s %14s %14s %14s %8s\n", "bytes", "memcpy us", "sidecar us", "p99 us", "ratio");
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        static int64_t copies[ROUNDS], times[ROUNDS];
        if (!measure(s, i + 1, tensor, copy, sizes[i], copies, times))
            return 1;
        double one = (double)percentile(copies, ROUNDS, 50) / 1e3;
        double all = (double)percentile(times, ROUNDS, 50) / 1e3;
        printf("%10zu %14.1f %14.1f %14.1f %8.2f\n", sizes[i], one, all,
               (double)percentile(times, ROUNDS, 99) / 1e3, one > 0 ? all / one : 0);
    }
    cs_sidecar_close(s);
    free(tensor);
    free(copy);
    return 0;
}
