/* A turnstile in front of a device: engines that share a cs_compute take turns, step by step.
 *
 * The step that is due first goes first. Speech has dates: what is to be heard next of a listener
 * who has heard nothing was due when he asked, later sound is due when the sound before it runs
 * out, and the work that gets ahead of that is due later still. All other work has none: of it,
 * first come, first served, so two engines with such work alternate.
 *
 * No date counts for more than CS_TURN_OVERDUE_US before it is asked for, and work without a date
 * as CS_TURN_UNDATED_US before. So nobody starves: work without a date is held up by what is asked
 * for within the difference (a quarter of a second) after it, at most, and work with a date by no
 * date that is later. Any thread; not recursive.
 */
#ifndef CS_ENGINE_TURN_H
#define CS_ENGINE_TURN_H

#include <glib.h>

#define CS_TURN_OVERDUE_US 1000000
#define CS_TURN_UNDATED_US 750000
/* No work is put off by more than this: what is known of the future is a guess. */
#define CS_TURN_LATEST_US 1000000

typedef struct cs_turn cs_turn;

cs_turn *cs_turn_new(void);
/* Also between processes: all whose turns are over the same file, of which bytes are locked (it is
 * neither read nor written). A process that dies gives its turn back, and waits no more. A file
 * that cannot be locked is as none. fd is the caller's. */
cs_turn *cs_turn_new_shared(int fd);
void cs_turn_free(cs_turn *turn); /* nobody holds or awaits it; accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_turn, cs_turn_free)

/* Both accept NULL and do nothing then: a device that is not shared. due_us: by cs_now_us(); 0: the
 * work has no date. */
void cs_turn_take(cs_turn *turn, gint64 due_us);
void cs_turn_give(cs_turn *turn);

#endif
