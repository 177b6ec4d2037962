/* What only the segment does: its allocator against a model, and processes that are killed. */
#include "base/error.h"
#include "base/fault.h"
#include "base/os.h"
#include "sidecar/segment.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void assert_check(cs_sidecar *s)
{
    g_autoptr(GError) error = NULL;
    cs_sidecar_check(s, &error);
    g_assert_no_error(error);
}

static cs_sidecar *create(uint64_t pool_bytes)
{
    g_autoptr(GError) error = NULL;
    cs_sidecar *s =
        cs_sidecar_create_shared(&(cs_sidecar_options){.pool_bytes = pool_bytes,
                                                       .request_quota_bytes = pool_bytes,
                                                       .requests_max = 64,
                                                       .streams_max = 256,
                                                       .chunks_max = 1024},
                                 "test", &error);
    g_assert_no_error(error);
    return s;
}

/* --- allocator --- */

/* Random runs against a bitmap: no overlap, all free again at the end. 1000 units is no power of
 * two. */
static void test_pool(void)
{
    enum { UNITS = 1000, LIVE = 64, ROUNDS = 20000 };
    cs_sidecar *sidecar = create(UNITS * SEG_UNIT);
    segment *s = (segment *)sidecar;
    g_autoptr(GRand) random = g_rand_new_with_seed(1);
    uint8_t taken[UNITS] = {0};
    struct {
        uint32_t unit, n;
    } live[LIVE] = {0};
    for (int round = 0; round < ROUNDS; round++) {
        int k = g_rand_int_range(random, 0, LIVE);
        seg_lock(s);
        if (live[k].n > 0) {
            pool_free(s, live[k].unit, live[k].n);
            memset(taken + live[k].unit, 0, live[k].n);
            live[k].n = 0;
        } else {
            uint32_t n = (uint32_t)g_rand_int_range(random, 1, 1 << g_rand_int_range(random, 1, 8));
            uint32_t unit = pool_alloc(s, n);
            if (unit != SEG_NONE) {
                g_assert_cmpuint(unit + n, <=, UNITS);
                for (uint32_t i = 0; i < n; i++)
                    g_assert_cmpuint(taken[unit + i]++, ==, 0);
                live[k].unit = unit;
                live[k].n = n;
            }
        }
        uint64_t n_free = 0, expected = 0;
        g_assert_true(pool_check(s, &n_free, NULL));
        for (int i = 0; i < UNITS; i++)
            expected += taken[i] == 0;
        g_assert_cmpuint(n_free, ==, expected);
        seg_unlock(s);
    }
    seg_lock(s);
    for (int k = 0; k < LIVE; k++)
        if (live[k].n > 0)
            pool_free(s, live[k].unit, live[k].n);
    uint32_t whole = pool_alloc(s, 512); /* merged again */
    g_assert_cmpuint(whole, !=, SEG_NONE);
    pool_free(s, whole, 512);
    seg_unlock(s);
    assert_check(sidecar);
    cs_sidecar_close(sidecar);
}

static void test_join_garbage(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("sidecar-XXXXXX", &path, NULL);
    g_assert_null(cs_sidecar_join_shared(fd, "test", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_cmpint(ftruncate(fd, 1 << 20), ==, 0);
    g_assert_null(cs_sidecar_join_shared(fd, "test", &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_null(cs_sidecar_join_shared(-1, "test", &error));
    g_assert_nonnull(error);
    unlink(path);
    close(fd);
}

/* --- kill -9 --- */

/* Everything a process can do to a segment. In a child: fd's segment is joined anew. */
static void child_work(int fd)
{
    cs_chunk chunk;
    cs_sidecar *s = cs_sidecar_join_shared(fd, "child", NULL);
    if (!s || !cs_sidecar_request_begin(s, 2, 0, NULL))
        _exit(1);
    cs_sender *out = cs_sender_open(s, 1, 20, (cs_sender_options){.n_consumers = 1}, NULL);
    cs_sender *own = cs_sender_open(s, 2, 21, (cs_sender_options){.n_consumers = 2}, NULL);
    cs_receiver *in = cs_receiver_open(s, 1, 10, 0, NULL);
    cs_receiver *self = cs_receiver_open(s, 2, 21, 1, NULL);
    for (uint64_t i = 0; i < 3; i++) {
        if (cs_receiver_get(in, i, 0, &chunk, NULL) != CS_RECEIVE_CHUNK)
            _exit(2);
        size_t size_bytes = chunk.size_bytes;
        if (!cs_sender_alloc(out, size_bytes * 3, 0, &chunk, NULL) ||
            !cs_sender_put(out, NULL, NULL) || !cs_sender_alloc(own, 9000, 0, &chunk, NULL) ||
            !cs_sender_put(own, NULL, NULL))
            _exit(3);
        if (i == 1)
            cs_receiver_release(in, 0);
    }
    cs_receiver_get(self, 1, 0, &chunk, NULL);
    cs_sender_end(out, NULL);
    cs_receiver_close(self);
    cs_sidecar_request_end(s, 2);
    cs_receiver_close(in);
    cs_sender_close(out);
    cs_sender_close(own);
    cs_sidecar_close(s);
    _exit(0);
}

static void feed(cs_sidecar *s, cs_sender **sender)
{
    g_autoptr(GError) error = NULL;
    cs_chunk chunk;
    cs_sidecar_request_begin(s, 1, 0, &error);
    *sender = cs_sender_open(s, 1, 10, (cs_sender_options){.n_consumers = 1}, &error);
    for (int i = 0; i < 3; i++) {
        cs_sender_alloc(*sender, 5000 * (i + 1), 0, &chunk, &error);
        cs_sender_put(*sender, NULL, &error);
    }
    g_assert_no_error(error);
}

/* The child of a fork has the parent's handles in memory and must not use them: it joins anew. */
static int run_child(cs_sidecar *s, uint32_t kill_at, pid_t *pid)
{
    *pid = fork();
    if (*pid == 0) {
        cs_fault_arm(CS_FAULT_SIDECAR_STORE, kill_at);
        child_work(cs_sidecar_fd(s));
    }
    int status = 0;
    g_assert_cmpint(waitpid(*pid, &status, 0), ==, *pid);
    return status;
}

/* A process is killed before its N-th store to metadata, for every N: the segment is whole, a
 * replacement can take its place, and nothing of it is left at the end. */
static void test_kill_every_store(void)
{
    cs_sidecar *s = create(4 << 20);
    uint32_t n = 1;
    for (;; n++) {
        cs_sender *sender = NULL;
        pid_t pid = 0;
        feed(s, &sender);
        int status = run_child(s, n, &pid);
        if (WIFSIGNALED(status)) {
            g_assert_cmpint(WTERMSIG(status), ==, SIGKILL);
            assert_check(s);
            cs_sidecar_reap(s, pid);
        } else {
            g_assert_cmpint(WEXITSTATUS(status), ==, 0);
        }
        assert_check(s);
        cs_sidecar_stats stats;
        cs_sidecar_get_stats(s, &stats);
        g_assert_cmpuint(stats.participants, ==, 1);
        g_assert_cmpuint(stats.requests, ==, 1); /* request 2 was its own */
        cs_sender_close(sender);
        cs_sidecar_request_end(s, 1);
        cs_sidecar_get_stats(s, &stats);
        g_assert_cmpuint(stats.requests + stats.streams + stats.chunks, ==, 0);
        g_assert_cmpuint(stats.used_bytes, ==, 0);
        assert_check(s);
        if (!WIFSIGNALED(status))
            break;
    }
    g_test_message("killed at each of %u stores", n - 1);
    g_assert_cmpuint(n, >, 400);
    cs_sidecar_close(s);
}

/* The same while the reaper is the one that gets killed. */
static void test_kill_reaper(void)
{
    cs_sidecar *s = create(4 << 20);
    for (uint32_t n = 1, done = 0; !done; n++) {
        cs_sender *sender = NULL;
        pid_t victim = 0;
        feed(s, &sender);
        run_child(s, 330, &victim);
        pid_t reaper = fork();
        if (reaper == 0) {
            cs_sidecar *other = cs_sidecar_join_shared(cs_sidecar_fd(s), "reaper", NULL);
            cs_fault_arm(CS_FAULT_SIDECAR_STORE, n);
            cs_sidecar_reap(other, victim);
            _exit(cs_fault_pending(CS_FAULT_SIDECAR_STORE) ? 0 : 4);
        }
        int status = 0;
        waitpid(reaper, &status, 0);
        done = WIFEXITED(status);
        cs_sidecar_reap(s, 0);
        cs_sender_close(sender);
        cs_sidecar_request_end(s, 1);
        cs_sidecar_stats stats;
        cs_sidecar_get_stats(s, &stats);
        g_assert_cmpuint(stats.participants, ==, 1);
        g_assert_cmpuint(stats.requests + stats.streams + stats.chunks, ==, 0);
        assert_check(s);
    }
    cs_sidecar_close(s);
}

/* A consumer that dies holding chunks leaves its place to another, which reads them again; a
 * producer that dies fails its stream after what it had put. */
static void test_replacement(void)
{
    cs_sidecar *s = create(4 << 20);
    g_autoptr(GError) error = NULL;
    cs_sender *sender = NULL;
    feed(s, &sender);
    int ready[2];
    g_assert_cmpint(pipe(ready), ==, 0);
    pid_t pid = fork();
    if (pid == 0) {
        cs_sidecar *c = cs_sidecar_join_shared(cs_sidecar_fd(s), "victim", NULL);
        cs_receiver *in = cs_receiver_open(c, 1, 10, 0, NULL);
        cs_sender *out = cs_sender_open(c, 1, 11, (cs_sender_options){.n_consumers = 1}, NULL);
        cs_chunk chunk;
        cs_receiver_get(in, 0, 0, &chunk, NULL);
        cs_sender_alloc(out, 10, 0, &chunk, NULL);
        cs_sender_put(out, NULL, NULL);
        cs_sender_alloc(out, 10, 0, &chunk, NULL);
        _exit(write(ready[1], "x", 1) == 1 ? (int)pause() : 1);
    }
    char byte;
    g_assert_cmpint(read(ready[0], &byte, 1), ==, 1);
    g_assert_null(cs_receiver_open(s, 1, 10, 0, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_CONFLICT);
    g_clear_error(&error);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    g_assert_cmpuint(cs_sidecar_reap(s, pid), ==, 1);
    cs_receiver *in = cs_receiver_open(s, 1, 10, 0, &error);
    cs_receiver *out = cs_receiver_open(s, 1, 11, 0, &error);
    g_assert_no_error(error);
    cs_chunk chunk;
    g_assert_cmpint(cs_receiver_get(in, 0, 0, &chunk, &error), ==, CS_RECEIVE_CHUNK);
    g_assert_cmpint(cs_receiver_get(out, 0, 0, &chunk, &error), ==, CS_RECEIVE_CHUNK);
    g_assert_cmpint(cs_receiver_get(out, 1, -1, &chunk, &error), ==, CS_RECEIVE_ERROR);
    g_assert_error(error, CS_ERROR, CS_ERROR_EXECUTOR_LOST);
    g_assert_nonnull(strstr(error->message, "victim"));
    cs_receiver_close(in);
    cs_receiver_close(out);
    cs_sender_close(sender);
    cs_sidecar_request_end(s, 1);
    assert_check(s);
    close(ready[0]);
    close(ready[1]);
    cs_sidecar_close(s);
}

/* Workers that pass chunks around are killed at random moments for two seconds. */
static void storm_worker(int fd, uint32_t seed)
{
    cs_sidecar *s = cs_sidecar_join_shared(fd, "worker", NULL);
    g_autoptr(GRand) random = g_rand_new_with_seed(seed);
    for (;;) {
        uint64_t request = (uint64_t)g_rand_int_range(random, 1, 9);
        uint32_t stream = (uint32_t)g_rand_int_range(random, 0, 4);
        cs_chunk chunk;
        cs_sidecar_request_begin(s, request, 0, NULL);
        cs_sender *out =
            cs_sender_open(s, request, stream, (cs_sender_options){.n_consumers = 2}, NULL);
        for (int i = 0; out && i < 8; i++)
            if (cs_sender_alloc(out, (size_t)g_rand_int_range(random, 0, 200000), 0, &chunk, NULL))
                cs_sender_put(out, NULL, NULL);
        uint32_t place = (uint32_t)g_rand_int_range(random, 0, 2);
        cs_receiver *in = cs_receiver_open(s, request, stream, place, NULL);
        for (uint64_t i = 0; in && i < 8; i++)
            if (cs_receiver_get(in, i, 1000, &chunk, NULL) == CS_RECEIVE_CHUNK && i % 2)
                cs_receiver_release(in, i);
        cs_receiver_close(in);
        cs_sender_close(out);
        if (g_rand_int_range(random, 0, 4) == 0)
            cs_sidecar_request_end(s, request);
    }
}

static pid_t spawn_storm_worker(cs_sidecar *s, uint32_t seed)
{
    pid_t pid = fork();
    if (pid == 0)
        storm_worker(cs_sidecar_fd(s), seed);
    return pid;
}

static void test_kill_storm(void)
{
    enum { WORKERS = 4 };
    cs_sidecar *s = create(16 << 20);
    g_autoptr(GRand) random = g_rand_new_with_seed(7);
    pid_t workers[WORKERS];
    uint32_t seed = 1, kills = 0;
    for (int i = 0; i < WORKERS; i++)
        workers[i] = spawn_storm_worker(s, seed++);
    int64_t end_us = cs_now_us() + 2000000;
    while (cs_now_us() < end_us) {
        int i = g_rand_int_range(random, 0, WORKERS);
        g_usleep((gulong)g_rand_int_range(random, 100, 8000));
        kill(workers[i], SIGKILL);
        waitpid(workers[i], NULL, 0);
        cs_sidecar_reap(s, workers[i]);
        assert_check(s);
        workers[i] = spawn_storm_worker(s, seed++);
        kills++;
    }
    for (int i = 0; i < WORKERS; i++) {
        kill(workers[i], SIGKILL);
        waitpid(workers[i], NULL, 0);
        cs_sidecar_reap(s, workers[i]);
    }
    for (uint64_t request = 1; request < 9; request++)
        cs_sidecar_request_end(s, request);
    cs_sidecar_stats stats;
    cs_sidecar_get_stats(s, &stats);
    g_test_message("%u kills, %" G_GUINT64_FORMAT " chunks", kills, stats.chunks_total);
    g_assert_cmpuint(stats.participants, ==, 1);
    g_assert_cmpuint(stats.requests + stats.streams + stats.chunks, ==, 0);
    g_assert_cmpuint(stats.used_bytes, ==, 0);
    g_assert_cmpuint(stats.chunks_total, >, 100);
    assert_check(s);
    cs_sidecar_close(s);
}

/* A process stopped while it holds the lock is killed by whoever wants it. */
static void test_stopped_holder(void)
{
    cs_sidecar *s = create(1 << 20);
    int ready[2];
    g_assert_cmpint(pipe(ready), ==, 0);
    pid_t pid = fork();
    if (pid == 0) {
        segment *own = (segment *)cs_sidecar_join_shared(cs_sidecar_fd(s), "stopped", NULL);
        seg_lock(own);
        SEG_SET(own, own->h->used_units, 7); /* half of something */
        _exit(write(ready[1], "x", 1) == 1 ? raise(SIGSTOP) : 1);
    }
    char byte;
    g_assert_cmpint(read(ready[0], &byte, 1), ==, 1);
    int status = 0;
    waitpid(pid, &status, WUNTRACED);
    g_assert_true(WIFSTOPPED(status));
    assert_check(s);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    close(ready[0]);
    close(ready[1]);
    cs_sidecar_close(s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/sidecar/pool", test_pool);
    g_test_add_func("/sidecar/join_garbage", test_join_garbage);
    g_test_add_func("/sidecar/kill_every_store", test_kill_every_store);
    g_test_add_func("/sidecar/kill_reaper", test_kill_reaper);
    g_test_add_func("/sidecar/stopped_holder", test_stopped_holder);
    g_test_add_func("/sidecar/replacement", test_replacement);
    g_test_add_func("/sidecar/kill_storm", test_kill_storm);
    return g_test_run();
}
