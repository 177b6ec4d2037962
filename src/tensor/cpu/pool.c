#include "tensor/cpu/pool.h"

#include "base/error.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

/* About 20 us of pauses: longer than the gap between two operations, shorter than a time slice. */
enum { SPINS = 2000 };

struct cs_pool {
    uint32_t n_threads;
    pthread_t *threads; /* [n_threads - 1] */

    /* The job. Written by the submitter while no worker is active. */
    cs_pool_piece *piece;
    void *job;
    int64_t n;

    _Alignas(64) _Atomic int64_t next; /* first piece not yet taken */
    _Alignas(
        64) _Atomic uint32_t sequence; /* number of jobs submitted; workers wait for it to change */
    _Alignas(64) _Atomic uint32_t busy; /* workers that have not yet finished the job */
    _Atomic uint32_t sleepers;
    _Atomic bool stop;
};

typedef struct {
    cs_pool *pool;
    uint32_t thread;
} worker_start;

static void pause_cpu(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Returns when *word is no longer `value`. `sleepers` tells the waker whether a system call is
 * needed. */
static void wait_for_change(_Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *sleepers)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != value)
            return;
        pause_cpu();
    }
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(word) == value)
        futex_wait(word, value);
    atomic_fetch_sub(sleepers, 1);
}

static void take_pieces(cs_pool *pool, uint32_t thread)
{
    for (;;) {
        int64_t index = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (index >= pool->n)
            return;
        pool->piece(pool->job, index, thread);
    }
}

static void *worker_main(void *argument)
{
    worker_start start = *(worker_start *)argument;
    g_free(argument);
    cs_pool *pool = start.pool;
    uint32_t seen = 0;
    for (;;) {
        wait_for_change(&pool->sequence, seen, &pool->sleepers);
        seen++;
        if (atomic_load(&pool->stop))
            return NULL;
        take_pieces(pool, start.thread);
        atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_release);
    }
}

static void announce(cs_pool *pool)
{
    atomic_fetch_add(&pool->sequence, 1);
    if (atomic_load(&pool->sleepers) > 0)
        futex_wake_all(&pool->sequence);
}

cs_pool *cs_pool_new(uint32_t n_threads, GError **error)
{
    cs_pool *pool = g_aligned_alloc0(1, sizeof *pool, 64);
    pool->n_threads = 1;
    pool->threads = g_new0(pthread_t, n_threads);
    for (uint32_t i = 1; i < n_threads; i++) {
        worker_start *start = g_new(worker_start, 1);
        *start = (worker_start){.pool = pool, .thread = i};
        int err = pthread_create(&pool->threads[i - 1], NULL, worker_main, start);
        if (err != 0) {
            g_free(start);
            cs_pool_free(pool);
            cs_fail_errno(error, err, "cannot start compute thread %u of %u", i + 1, n_threads);
            return NULL;
        }
        pool->n_threads++;
    }
    return pool;
}

void cs_pool_free(cs_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->stop, true);
    announce(pool);
    for (uint32_t i = 0; i + 1 < pool->n_threads; i++)
        pthread_join(pool->threads[i], NULL);
    g_free(pool->threads);
    g_aligned_free(pool);
}

uint32_t cs_pool_n_threads(const cs_pool *pool)
{
    return pool->n_threads;
}

void cs_pool_run(cs_pool *pool, int64_t n, cs_pool_piece *piece, void *job)
{
    if (pool->n_threads == 1 || n <= 1) {
        for (int64_t i = 0; i < n; i++)
            piece(job, i, 0);
        return;
    }
    pool->piece = piece;
    pool->job = job;
    pool->n = n;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->busy, pool->n_threads - 1, memory_order_relaxed);
    announce(pool);
    take_pieces(pool, 0);
    for (int i = 0; atomic_load_explicit(&pool->busy, memory_order_acquire) > 0; i++) {
        if (i < SPINS)
            pause_cpu();
        else
            sched_yield();
    }
}
