#include "engine/turn.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

/* Bytes of the file that are locked: who holds NEXT is the only one to wait for TURN. */
enum { TURN, NEXT };

struct cs_turn {
    int fd; /* -1: of this process alone */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    guint64 next_ticket;
    guint64 now_serving;
};

cs_turn *cs_turn_new(void)
{
    cs_turn *turn = g_new0(cs_turn, 1);
    turn->fd = -1;
    pthread_mutex_init(&turn->lock, NULL);
    pthread_cond_init(&turn->changed, NULL);
    return turn;
}

/* A lock belongs to an open file: each turn opens its own. */
cs_turn *cs_turn_new_shared(int fd)
{
    cs_turn *turn = cs_turn_new();
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    turn->fd = open(path, O_RDWR | O_CLOEXEC);
    return turn;
}

static void lock_byte(const cs_turn *turn, int byte, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    while (turn->fd >= 0 && fcntl(turn->fd, F_OFD_SETLKW, &lock) != 0 && errno == EINTR)
        continue;
}

void cs_turn_free(cs_turn *turn)
{
    if (!turn)
        return;
    if (turn->fd >= 0)
        close(turn->fd);
    pthread_cond_destroy(&turn->changed);
    pthread_mutex_destroy(&turn->lock);
    g_free(turn);
}

void cs_turn_take(cs_turn *turn)
{
    if (!turn)
        return;
    pthread_mutex_lock(&turn->lock);
    guint64 ticket = turn->next_ticket++;
    while (turn->now_serving != ticket)
        pthread_cond_wait(&turn->changed, &turn->lock);
    pthread_mutex_unlock(&turn->lock);
    lock_byte(turn, NEXT, F_WRLCK);
    lock_byte(turn, TURN, F_WRLCK);
    lock_byte(turn, NEXT, F_UNLCK);
}

void cs_turn_give(cs_turn *turn)
{
    if (!turn)
        return;
    lock_byte(turn, TURN, F_UNLCK);
    pthread_mutex_lock(&turn->lock);
    turn->now_serving++;
    pthread_cond_broadcast(&turn->changed);
    pthread_mutex_unlock(&turn->lock);
}
