#include "engine/turn.h"

#include <pthread.h>

struct cs_turn {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    guint64 next_ticket;
    guint64 now_serving;
};

cs_turn *cs_turn_new(void)
{
    cs_turn *turn = g_new0(cs_turn, 1);
    pthread_mutex_init(&turn->lock, NULL);
    pthread_cond_init(&turn->changed, NULL);
    return turn;
}

void cs_turn_free(cs_turn *turn)
{
    if (!turn)
        return;
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
}

void cs_turn_give(cs_turn *turn)
{
    if (!turn)
        return;
    pthread_mutex_lock(&turn->lock);
    turn->now_serving++;
    pthread_cond_broadcast(&turn->changed);
    pthread_mutex_unlock(&turn->lock);
}
