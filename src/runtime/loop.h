/* An event loop over epoll: descriptors, timers, and functions posted from other threads.
 *
 * One thread runs it and owns everything registered; cs_loop_post and cs_loop_quit may be called
 * from any thread. Callbacks may add and remove anything, themselves included. */
#ifndef CS_RUNTIME_LOOP_H
#define CS_RUNTIME_LOOP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct cs_loop cs_loop;
typedef struct cs_loop_source cs_loop_source;
typedef struct cs_timer cs_timer;

cs_loop *cs_loop_new(GError **error);
void cs_loop_free(cs_loop *loop); /* what is still registered goes with it; accepts NULL */

/* events: EPOLLIN, EPOLLOUT. The descriptor stays the caller's and must outlive the watch. */
cs_loop_source *cs_loop_watch(cs_loop *loop, int fd, uint32_t events,
                              void (*ready)(void *user, uint32_t events), void *user,
                              GError **error);
void cs_loop_set_events(cs_loop_source *watch, uint32_t events);
void cs_loop_unwatch(cs_loop_source *watch); /* accepts NULL */

/* Fires once at a time of cs_now_us(); freed then, or by cs_timer_free before. */
cs_timer *cs_loop_at(cs_loop *loop, int64_t time_us, void (*fire)(void *user), void *user);
void cs_timer_free(cs_timer *timer); /* accepts NULL */

/* Calls fn(user) on the loop's thread, in the order of posting. */
void cs_loop_post(cs_loop *loop, void (*fn)(void *user), void *user);

/* Called after each round of callbacks, before the loop sleeps: where output is flushed. One. */
void cs_loop_set_after_round(cs_loop *loop, void (*fn)(void *user), void *user);

void cs_loop_run(cs_loop *loop); /* until cs_loop_quit */
void cs_loop_quit(cs_loop *loop);

#endif
