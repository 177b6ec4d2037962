#include "engine/turn.h"

#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <unistd.h>

/* Bytes of the file that are locked: TURN by who has it, WAITING + its date by who awaits it. */
enum { TURN, WAITING };

typedef struct waiter {
    struct waiter *next;
    gint64 due_us;
} waiter;

struct cs_turn {
    int file; /* -1: of this process alone */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    waiter *first; /* the others behind it by their dates; equal ones as they came */
    bool taken;
    GArray *idle; /* int, open files of our own: a lock belongs to one, so each thread takes one */
    int holder;   /* the one that holds TURN, or -1 */
};

cs_turn *cs_turn_new(void)
{
    cs_turn *turn = g_new0(cs_turn, 1);
    turn->file = turn->holder = -1;
    turn->idle = g_array_new(FALSE, FALSE, sizeof(int));
    pthread_mutex_init(&turn->lock, NULL);
    pthread_cond_init(&turn->changed, NULL);
    return turn;
}

cs_turn *cs_turn_new_shared(int fd)
{
    cs_turn *turn = cs_turn_new();
    turn->file = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return turn;
}

void cs_turn_free(cs_turn *turn)
{
    if (!turn)
        return;
    for (guint i = 0; i < turn->idle->len; i++)
        close(g_array_index(turn->idle, int, i));
    g_array_unref(turn->idle);
    if (turn->file >= 0)
        close(turn->file);
    pthread_cond_destroy(&turn->changed);
    pthread_mutex_destroy(&turn->lock);
    g_free(turn);
}

/* ---- Between processes ---- */

static bool lock_bytes(int fd, gint64 first, gint64 n, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = first, .l_len = n};
    int result;
    do
        result = fcntl(fd, F_OFD_SETLKW, &lock);
    while (result != 0 && errno == EINTR);
    return result == 0;
}

static bool someone_is_before(int fd, gint64 due_us)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = WAITING, .l_len = due_us};
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

/* Somebody with an earlier date may come while this waits for TURN. */
static void take_between_processes(int fd, gint64 due_us)
{
    bool ok = lock_bytes(fd, WAITING + due_us, 1, F_RDLCK);
    while (ok) {
        ok = lock_bytes(fd, WAITING, due_us, F_WRLCK) && /* until nobody is before */
             lock_bytes(fd, WAITING, due_us, F_UNLCK) && lock_bytes(fd, TURN, 1, F_WRLCK);
        if (!ok || !someone_is_before(fd, due_us))
            break;
        lock_bytes(fd, TURN, 1, F_UNLCK);
    }
    lock_bytes(fd, WAITING + due_us, 1, F_UNLCK);
}

/* -1: none. */
static int take_file(cs_turn *turn)
{
    int fd = -1;
    pthread_mutex_lock(&turn->lock);
    if (turn->idle->len > 0) {
        fd = g_array_index(turn->idle, int, turn->idle->len - 1);
        g_array_set_size(turn->idle, turn->idle->len - 1);
    }
    pthread_mutex_unlock(&turn->lock);
    if (fd >= 0 || turn->file < 0)
        return fd;
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", turn->file);
    return open(path, O_RDWR | O_CLOEXEC);
}

/* ---- Between threads; the lock is held ---- */

static void wait_for_turn(cs_turn *turn, gint64 due_us)
{
    waiter self = {.due_us = due_us}, **at = &turn->first;
    while (*at && (*at)->due_us <= due_us)
        at = &(*at)->next;
    self.next = *at;
    *at = &self;
    while (turn->taken || turn->first != &self)
        pthread_cond_wait(&turn->changed, &turn->lock);
    turn->first = self.next;
    turn->taken = true;
}

/* ---- Both ---- */

void cs_turn_take(cs_turn *turn, gint64 due_us)
{
    if (!turn)
        return;
    gint64 now = cs_now_us();
    due_us = due_us ? MAX(due_us, now - CS_TURN_OVERDUE_US) : now - CS_TURN_UNDATED_US;
    due_us = CLAMP(due_us, 1, now + CS_TURN_LATEST_US);
    int fd = take_file(turn);
    if (fd >= 0)
        take_between_processes(fd, due_us);
    pthread_mutex_lock(&turn->lock);
    wait_for_turn(turn, due_us);
    turn->holder = fd;
    pthread_mutex_unlock(&turn->lock);
}

void cs_turn_give(cs_turn *turn)
{
    if (!turn)
        return;
    pthread_mutex_lock(&turn->lock);
    int fd = turn->holder;
    turn->holder = -1;
    turn->taken = false;
    if (fd >= 0) {
        lock_bytes(fd, TURN, 1, F_UNLCK);
        g_array_append_val(turn->idle, fd);
    }
    pthread_cond_broadcast(&turn->changed);
    pthread_mutex_unlock(&turn->lock);
}
