/* Fault injection: the N-th allocation, send, receive or spawn fails.
 *
 * Code that can fail for reasons of the machine asks `cs_fault_hit(point)` where it would find out.
 * Nothing is armed in service; the question is then one relaxed load. Tests arm a point with N, run
 * a scenario for N = 1, 2, 3 ... until it passes without a hit, and look for leaks each time.
 * Thread-safe; one count a process and point. */
#ifndef CS_BASE_FAULT_H
#define CS_BASE_FAULT_H

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    CS_FAULT_SIDECAR_OPEN,    /* making or mapping a segment */
    CS_FAULT_SIDECAR_ALLOC,   /* a block of the tensor pool */
    CS_FAULT_SIDECAR_SEND,    /* publishing a chunk, opening or ending a stream */
    CS_FAULT_SIDECAR_RECEIVE, /* reading a chunk, opening a stream to read */
    CS_FAULT_SIDECAR_STORE,   /* kills this process (SIGKILL) before the N-th store to metadata */
    CS_FAULT_RUNTIME_SPAWN,   /* starting an executor process: socket, process, its descriptor */
    CS_FAULT_RUNTIME_WATCH,   /* an event loop, and a descriptor in it */
    CS_FAULT_RUNTIME_SEND,    /* a message to another process */
    CS_FAULT_RUNTIME_RECEIVE, /* a message from another process */
    CS_FAULT_RUNTIME_ALLOC,   /* memory of a size that a message names */
    CS_FAULT_POINTS,
} cs_fault_point;

/* The N-th call of cs_fault_hit(point) from now on, counted from 1, and no other, will be true. */
void cs_fault_arm(cs_fault_point point, uint32_t n);

/* Disarms all points. */
void cs_fault_disarm(void);

/* True once, at the N-th call after arming. */
bool cs_fault_hit(cs_fault_point point);

/* The same for a system call that is left out then: sets errno to err. */
bool cs_fault_errno(cs_fault_point point, int err);

/* True while the point is armed and its N-th call has not come. */
bool cs_fault_pending(cs_fault_point point);

#endif
