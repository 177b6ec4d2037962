/* A turnstile in front of a device: engines that share a cs_compute take turns.
 *
 * First come, first served: an engine that gives its turn back and wants the next one stands behind
 * those already waiting, so two engines with work alternate step by step. Any thread; not
 * recursive.
 */
#ifndef CS_ENGINE_TURN_H
#define CS_ENGINE_TURN_H

#include <glib.h>

typedef struct cs_turn cs_turn;

cs_turn *cs_turn_new(void);
/* Also between processes: all whose turns are over the same file, of which two bytes are locked (it
 * is neither read nor written). Between processes nobody who gives a turn back gets the next one
 * while another waits; a process that dies gives its turn back. A file that cannot be locked is as
 * none. fd is the caller's. */
cs_turn *cs_turn_new_shared(int fd);
void cs_turn_free(cs_turn *turn); /* nobody holds or awaits it; accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_turn, cs_turn_free)

/* Both accept NULL and do nothing then: a device that is not shared. */
void cs_turn_take(cs_turn *turn);
void cs_turn_give(cs_turn *turn);

#endif
