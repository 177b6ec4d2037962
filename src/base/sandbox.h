/* A Lua 5.4 sandbox: runs text that is not trusted (chat templates, task graphs, apps) so that the
 * worst it can do is fail with an error.
 *
 * What a script sees: the base functions that neither load code nor steer the collector, and the
 * libraries string (without dump, pack, unpack), table, math, utf8 and coroutine (without close).
 * There is no io, os, debug, package, load or print. Metatables with __gc are refused.
 *
 * What it may use in one run: bytes of heap, steps (an instruction is one step; C functions are
 * charged for the bytes and elements they touch) and wall-clock time. A limit once reached ends the
 * run: pcall, xpcall and coroutines cannot catch it. Errors of memory can be caught while steps
 * are left.
 *
 * A sandbox has one owner thread at a time. Its memory returns with cs_sandbox_free.
 *
 *     cs_sandbox_limits limits = CS_SANDBOX_LIMITS_DEFAULT;
 *     cs_sandbox *s = cs_sandbox_new("apps", &limits, error);
 *     cs_sandbox_register(s, "fetch", host_fetch, context, error);
 *     cs_sandbox_exec(s, text, strlen(text), "app.lua", error);      // defines functions
 *     cs_sandbox_run(s, call_serve, &request, error);                // calls one of them
 *
 * where call_serve(lua_State *L) finds &request by lua_touserdata(L, 1), pushes arguments, calls
 * lua_call, and copies results into *request. It and host functions run in protected mode: they may
 * raise Lua errors, which is a longjmp, so what they own must hang on *request, not on locals.
 */
#ifndef CS_BASE_SANDBOX_H
#define CS_BASE_SANDBOX_H

#include <glib.h>
#include <lua.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cs_sandbox cs_sandbox;

typedef struct {
    size_t memory_bytes; /* heap of the whole state */
    size_t source_bytes; /* one chunk of source text: the parser runs outside the step count */
    uint64_t steps;      /* in one run */
    int64_t time_us;     /* in one run */
} cs_sandbox_limits;

/* Ten million steps are about 0.1 s here. */
#define CS_SANDBOX_LIMITS_DEFAULT                                                                  \
    {                                                                                              \
        .memory_bytes = 64u << 20, .source_bytes = 256u << 10, .steps = 10u * 1000 * 1000,         \
        .time_us = 2 * G_USEC_PER_SEC                                                              \
    }

/* `name` stands before errors that have no place in a script. */
cs_sandbox *cs_sandbox_new(const char *name, const cs_sandbox_limits *limits, GError **error);
void cs_sandbox_free(cs_sandbox *s);

/* Later runs have these limits; the heap may already be over a smaller memory_bytes. */
void cs_sandbox_set_limits(cs_sandbox *s, const cs_sandbox_limits *limits);

/* Runs body(L) in protected mode with fresh limits; its first argument is `data` as light userdata.
 * Not from inside a run (there lua_call serves). False fills *error with "file:line: sentence":
 * CS_ERROR_INVALID for a script's own error, CS_ERROR_TOO_LARGE for memory or steps,
 * CS_ERROR_TIMEOUT for time, or the error given to cs_sandbox_raise. */
bool cs_sandbox_run(cs_sandbox *s, lua_CFunction body, void *data, GError **error);

/* Compiles text and runs it once; what it returns is dropped. */
bool cs_sandbox_exec(cs_sandbox *s, const char *text, size_t size_bytes, const char *chunk_name,
                     GError **error);

/* Makes fn the global `name`; it finds `context` by cs_sandbox_context(L). */
bool cs_sandbox_register(cs_sandbox *s, const char *name, lua_CFunction fn, void *context,
                         GError **error);

/* Steps used by the present or last run. */
uint64_t cs_sandbox_steps(const cs_sandbox *s);
size_t cs_sandbox_memory_bytes(const cs_sandbox *s);

/* The rest is for bodies and host functions, inside a run. */

cs_sandbox *cs_sandbox_of(lua_State *L);
void *cs_sandbox_context(lua_State *L);

/* Pushes the compiled chunk (source text only) or raises. */
void cs_sandbox_load(lua_State *L, const char *text, size_t size_bytes, const char *chunk_name);

/* Charges work done in C; raises when the run is over its limits. One step is about 10 ns. */
void cs_sandbox_charge(lua_State *L, uint64_t steps);

/* Raises an error that keeps its code if no script catches it; takes the error. Never returns. */
int cs_sandbox_raise(lua_State *L, GError *error);

/* lua_resume with the limits kept: LUA_OK or LUA_YIELD with *n_results values on co's stack. An
 * error of co is raised in L. Charges what a coroutine costs; use it in place of lua_resume. */
int cs_sandbox_resume(lua_State *L, lua_State *co, int n_args, int *n_results);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(cs_sandbox, cs_sandbox_free)

#endif
