#include "runtime/loop.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/os.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct cs_loop_source {
    cs_loop *loop;
    int fd;
    bool freed;
    void (*ready)(void *user, uint32_t events);
    void *user;
};

struct cs_timer {
    cs_loop *loop;
    int64_t time_us;
    uint64_t sequence; /* equal times fire in the order of registration */
    void (*fire)(void *user);
    void *user;
};

typedef struct {
    void (*fn)(void *user);
    void *user;
} posted;

struct cs_loop {
    int epoll_fd, wake_fd;
    GTree *timers;
    uint64_t sequence;
    GPtrArray *freed; /* watches freed during a round: epoll may have handed them out already */
    GHashTable *watches;
    pthread_mutex_t lock;
    GArray *posts; /* posted */
    atomic_bool quit;
    void (*after_round)(void *user);
    void *after_user;
};

static int compare_timers(const void *a, const void *b)
{
    const cs_timer *x = a, *y = b;
    if (x->time_us != y->time_us)
        return x->time_us < y->time_us ? -1 : 1;
    return (x->sequence > y->sequence) - (x->sequence < y->sequence);
}

cs_loop *cs_loop_new(GError **error)
{
    cs_loop *loop = g_new0(cs_loop, 1);
    loop->epoll_fd =
        cs_fault_errno(CS_FAULT_RUNTIME_WATCH, EMFILE) ? -1 : epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = cs_fault_errno(CS_FAULT_RUNTIME_WATCH, EMFILE)
                        ? -1
                        : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    loop->timers = g_tree_new(compare_timers);
    loop->watches = g_hash_table_new_full(NULL, NULL, g_free, NULL);
    loop->freed = g_ptr_array_new_with_free_func(g_free);
    loop->posts = g_array_new(FALSE, FALSE, sizeof(posted));
    pthread_mutex_init(&loop->lock, NULL);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (loop->epoll_fd >= 0 && loop->wake_fd >= 0 &&
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &event) == 0)
        return loop;
    cs_fail_errno(error, errno, "event loop");
    cs_loop_free(loop);
    return NULL;
}

static gboolean free_timer(gpointer key, gpointer value, gpointer user)
{
    g_free(key);
    return FALSE;
}

void cs_loop_free(cs_loop *loop)
{
    if (!loop)
        return;
    g_tree_foreach(loop->timers, free_timer, NULL);
    g_tree_unref(loop->timers);
    g_hash_table_unref(loop->watches);
    g_ptr_array_unref(loop->freed);
    g_array_unref(loop->posts);
    pthread_mutex_destroy(&loop->lock);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    if (loop->wake_fd >= 0)
        close(loop->wake_fd);
    g_free(loop);
}

cs_loop_source *cs_loop_watch(cs_loop *loop, int fd, uint32_t events,
                              void (*ready)(void *user, uint32_t events), void *user,
                              GError **error)
{
    cs_loop_source *watch = g_new0(cs_loop_source, 1);
    *watch = (cs_loop_source){.loop = loop, .fd = fd, .ready = ready, .user = user};
    struct epoll_event event = {.events = events, .data.ptr = watch};
    if (cs_fault_errno(CS_FAULT_RUNTIME_WATCH, ENOSPC) ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        cs_fail_errno(error, errno, "event loop: descriptor %d", fd);
        g_free(watch);
        return NULL;
    }
    g_hash_table_add(loop->watches, watch);
    return watch;
}

void cs_loop_set_events(cs_loop_source *watch, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = watch};
    epoll_ctl(watch->loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &event);
}

void cs_loop_unwatch(cs_loop_source *watch)
{
    if (!watch)
        return;
    epoll_ctl(watch->loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    watch->freed = true;
    g_hash_table_steal(watch->loop->watches, watch);
    g_ptr_array_add(watch->loop->freed, watch);
}

cs_timer *cs_loop_at(cs_loop *loop, int64_t time_us, void (*fire)(void *user), void *user)
{
    cs_timer *timer = g_new(cs_timer, 1);
    *timer = (cs_timer){loop, time_us, loop->sequence++, fire, user};
    g_tree_insert(loop->timers, timer, timer);
    return timer;
}

void cs_timer_free(cs_timer *timer)
{
    if (!timer)
        return;
    g_tree_remove(timer->loop->timers, timer);
    g_free(timer);
}

static void wake(cs_loop *loop)
{
    uint64_t one = 1;
    if (write(loop->wake_fd, &one, sizeof(one)) < 0)
        return; /* full: it is awake */
}

void cs_loop_post(cs_loop *loop, void (*fn)(void *user), void *user)
{
    posted p = {fn, user};
    pthread_mutex_lock(&loop->lock);
    bool first = loop->posts->len == 0;
    g_array_append_val(loop->posts, p);
    pthread_mutex_unlock(&loop->lock);
    if (first)
        wake(loop);
}

void cs_loop_set_after_round(cs_loop *loop, void (*fn)(void *user), void *user)
{
    loop->after_round = fn;
    loop->after_user = user;
}

void cs_loop_quit(cs_loop *loop)
{
    atomic_store(&loop->quit, true);
    wake(loop);
}

static void run_posts(cs_loop *loop)
{
    uint64_t count;
    if (read(loop->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
        return;
    pthread_mutex_lock(&loop->lock);
    GArray *posts = loop->posts;
    loop->posts = g_array_new(FALSE, FALSE, sizeof(posted));
    pthread_mutex_unlock(&loop->lock);
    for (guint i = 0; i < posts->len; i++) {
        const posted *p = &g_array_index(posts, posted, i);
        p->fn(p->user);
    }
    g_array_unref(posts);
}

static cs_timer *first_timer(cs_loop *loop)
{
    GTreeNode *node = g_tree_node_first(loop->timers);
    return node ? g_tree_node_key(node) : NULL;
}

static void run_timers(cs_loop *loop)
{
    int64_t now_us = cs_now_us();
    for (cs_timer *t; (t = first_timer(loop)) && t->time_us <= now_us;) {
        void (*fire)(void *) = t->fire;
        void *user = t->user;
        cs_timer_free(t);
        fire(user);
    }
}

static int wait_ready(cs_loop *loop, struct epoll_event *events, int max)
{
    const cs_timer *t = first_timer(loop);
    if (!t)
        return epoll_wait(loop->epoll_fd, events, max, -1);
    int64_t left_us = MAX(t->time_us - cs_now_us(), 0);
    struct timespec timeout = {left_us / 1000000, left_us % 1000000 * 1000};
    return epoll_pwait2(loop->epoll_fd, events, max, &timeout, NULL);
}

void cs_loop_run(cs_loop *loop)
{
    struct epoll_event events[64];
    while (!atomic_load(&loop->quit)) {
        int n = wait_ready(loop, events, (int)G_N_ELEMENTS(events));
        for (int i = 0; i < n; i++) {
            cs_loop_source *watch = events[i].data.ptr;
            if (!watch)
                run_posts(loop);
            else if (!watch->freed)
                watch->ready(watch->user, events[i].events);
        }
        run_timers(loop);
        if (loop->after_round)
            loop->after_round(loop->after_user);
        g_ptr_array_set_size(loop->freed, 0);
    }
}
