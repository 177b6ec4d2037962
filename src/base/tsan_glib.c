/* GLib's locks, made visible to ThreadSanitizer; built only with b_sanitize=thread.
 *
 * GLib takes its locks with futexes inside a library that is not instrumented, so every use of them
 * would be reported as a race. These definitions stand before the library's when the program is
 * linked and do the same with POSIX locks, which the sanitizer knows. Like GLib's own portable
 * version, they make the lock when a zeroed GMutex or GCond is first used.
 */
#include <dlfcn.h>
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

/* The object behind a lock, made by the first thread that needs it. */
static void *object_get(gpointer *slot, size_t size_bytes, void (*init)(void *))
{
    void *object = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
    if (object)
        return object;
    void *made = calloc(1, size_bytes);
    init(made);
    if (__atomic_compare_exchange_n(slot, &object, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return made;
    free(made);
    return object;
}

static void mutex_make(void *mutex)
{
    pthread_mutex_init(mutex, NULL);
}

static void cond_make(void *cond)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

static pthread_mutex_t *mutex_get(GMutex *mutex)
{
    return object_get(&mutex->p, sizeof(pthread_mutex_t), mutex_make);
}

static pthread_cond_t *cond_get(GCond *cond)
{
    return object_get(&cond->p, sizeof(pthread_cond_t), cond_make);
}

void g_mutex_init(GMutex *mutex)
{
    mutex->p = NULL;
}

void g_mutex_clear(GMutex *mutex)
{
    if (mutex->p)
        pthread_mutex_destroy(mutex->p);
    free(mutex->p);
    mutex->p = NULL;
}

void g_mutex_lock(GMutex *mutex)
{
    pthread_mutex_lock(mutex_get(mutex));
}

void g_mutex_unlock(GMutex *mutex)
{
    pthread_mutex_unlock(mutex_get(mutex));
}

gboolean g_mutex_trylock(GMutex *mutex)
{
    return pthread_mutex_trylock(mutex_get(mutex)) == 0;
}

void g_cond_init(GCond *cond)
{
    cond->p = NULL;
}

void g_cond_clear(GCond *cond)
{
    if (cond->p)
        pthread_cond_destroy(cond->p);
    free(cond->p);
    cond->p = NULL;
}

void g_cond_wait(GCond *cond, GMutex *mutex)
{
    pthread_cond_wait(cond_get(cond), mutex_get(mutex));
}

gboolean g_cond_wait_until(GCond *cond, GMutex *mutex, gint64 end_time)
{
    struct timespec end = {.tv_sec = end_time / G_USEC_PER_SEC,
                           .tv_nsec = end_time % G_USEC_PER_SEC * 1000};
    return pthread_cond_timedwait(cond_get(cond), mutex_get(mutex), &end) != ETIMEDOUT;
}

void g_cond_signal(GCond *cond)
{
    pthread_cond_signal(cond_get(cond));
}

void g_cond_broadcast(GCond *cond)
{
    pthread_cond_broadcast(cond_get(cond));
}

/* A count of references that GLib takes down where the sanitizer cannot see it: who frees the bytes
 * comes after all who let go of them. */
void g_bytes_unref(GBytes *bytes)
{
    static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
    static void (*unref)(GBytes *);
    pthread_mutex_lock(&order);
    if (!unref)
        *(void **)&unref = dlsym(RTLD_NEXT, "g_bytes_unref");
    unref(bytes);
    pthread_mutex_unlock(&order);
}
