#include "api/http_internal.h"
#include "base/os.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* How late a deadline may be noticed. */
#define TICK_MS 200

struct cs_watched {
    int fd;
    uint64_t serial; /* key in `all`: an event may name a socket that was removed meanwhile */
    int64_t deadline_us;
    bool gone;
    cs_exchange *exchange; /* a reference */
};

struct cs_watch {
    int epoll_fd;
    int stop_fd;
    GThread *thread;
    GMutex lock; /* all that follows, and every cs_watched */
    GHashTable *all;
    uint64_t next_serial;
};

static void socket_left(cs_watch *watch, uint64_t serial)
{
    cs_exchange *x = NULL;
    g_mutex_lock(&watch->lock);
    cs_watched *watched = g_hash_table_lookup(watch->all, &serial);
    if (watched) {
        watched->gone = true;
        x = watched->exchange ? cs_exchange_ref(watched->exchange) : NULL;
    }
    g_mutex_unlock(&watch->lock);
    if (x) {
        cs_exchange_gone(x);
        cs_exchange_unref(x);
    }
}

/* Shutting the socket down makes the connection's own thread see its end. */
static void deadlines_check(cs_watch *watch)
{
    int64_t now_us = cs_now_us();
    g_mutex_lock(&watch->lock);
    GHashTableIter iter;
    gpointer value;
    g_hash_table_iter_init(&iter, watch->all);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        cs_watched *watched = value;
        if (watched->deadline_us > 0 && now_us > watched->deadline_us) {
            watched->deadline_us = 0;
            shutdown(watched->fd, SHUT_RDWR);
        }
    }
    g_mutex_unlock(&watch->lock);
}

static gpointer watch_main(gpointer user)
{
    cs_watch *watch = user;
    struct epoll_event events[64];
    int64_t checked_us = cs_now_us();
    for (;;) {
        int n = epoll_wait(watch->epoll_fd, events, G_N_ELEMENTS(events), TICK_MS);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == 0)
                return NULL;
            socket_left(watch, events[i].data.u64);
        }
        if (cs_now_us() - checked_us > TICK_MS * 1000) {
            deadlines_check(watch);
            checked_us = cs_now_us();
        }
    }
}

cs_watch *cs_watch_new(GError **error)
{
    cs_watch *watch = g_new0(cs_watch, 1);
    watch->next_serial = 1; /* 0 is the stop signal */
    watch->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    g_mutex_init(&watch->lock);
    watch->all = g_hash_table_new(g_int64_hash, g_int64_equal);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    if (watch->epoll_fd < 0 || watch->stop_fd < 0 ||
        epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, watch->stop_fd, &event) < 0) {
        cs_fail_errno(error, errno, "cannot watch sockets");
        cs_watch_free(watch);
        return NULL;
    }
    watch->thread = g_thread_try_new("http-watch", watch_main, watch, error);
    if (!watch->thread)
        g_clear_pointer(&watch, cs_watch_free);
    return watch;
}

void cs_watch_free(cs_watch *watch)
{
    if (!watch)
        return;
    if (watch->thread) {
        eventfd_write(watch->stop_fd, 1);
        g_thread_join(watch->thread);
    }
    if (watch->epoll_fd >= 0)
        close(watch->epoll_fd);
    if (watch->stop_fd >= 0)
        close(watch->stop_fd);
    g_hash_table_unref(watch->all);
    g_mutex_clear(&watch->lock);
    g_free(watch);
}

cs_watched *cs_watch_add(cs_watch *watch, int fd)
{
    cs_watched *watched = g_new0(cs_watched, 1);
    watched->fd = fd;
    g_mutex_lock(&watch->lock);
    watched->serial = watch->next_serial++;
    g_hash_table_insert(watch->all, &watched->serial, watched);
    g_mutex_unlock(&watch->lock);
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = watched->serial};
    epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, fd, &event);
    return watched;
}

void cs_watch_remove(cs_watch *watch, cs_watched *watched)
{
    cs_watch_exchange(watch, watched, NULL);
    epoll_ctl(watch->epoll_fd, EPOLL_CTL_DEL, watched->fd, NULL);
    g_mutex_lock(&watch->lock);
    g_hash_table_remove(watch->all, &watched->serial);
    g_mutex_unlock(&watch->lock);
    g_free(watched);
}

void cs_watch_deadline(cs_watch *watch, cs_watched *watched, int64_t timeout_ms)
{
    g_mutex_lock(&watch->lock);
    watched->deadline_us = timeout_ms > 0 ? cs_now_us() + timeout_ms * 1000 : 0;
    g_mutex_unlock(&watch->lock);
}

void cs_watch_shutdown(cs_watch *watch)
{
    GHashTableIter iter;
    gpointer value;
    g_mutex_lock(&watch->lock);
    g_hash_table_iter_init(&iter, watch->all);
    while (g_hash_table_iter_next(&iter, NULL, &value))
        shutdown(((cs_watched *)value)->fd, SHUT_RDWR);
    g_mutex_unlock(&watch->lock);
}

void cs_watch_exchange(cs_watch *watch, cs_watched *watched, cs_exchange *x)
{
    g_mutex_lock(&watch->lock);
    cs_exchange *old = watched->exchange;
    watched->exchange = x ? cs_exchange_ref(x) : NULL;
    bool gone = watched->gone && x;
    g_mutex_unlock(&watch->lock);
    if (old)
        cs_exchange_unref(old);
    if (gone)
        cs_exchange_gone(x);
}
