/* Turns between threads and processes: one at a time, by their dates, and a death gives its turn
 * back and waits no more. */
#include "engine/turn.h"

#include "base/os.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N_PROCESSES = 3, N_TURNS = 400 };

typedef struct {
    atomic_int holders, crowds, n_done;
} shared_state;

static void take_turns(int fd, shared_state *s)
{
    cs_turn *turn = cs_turn_new_shared(fd);
    for (int i = 0; i < N_TURNS; i++) {
        cs_turn_take(turn, 0);
        if (atomic_fetch_add(&s->holders, 1) != 0)
            atomic_fetch_add(&s->crowds, 1);
        g_usleep(20);
        atomic_fetch_sub(&s->holders, 1);
        cs_turn_give(turn);
    }
    cs_turn_free(turn);
    atomic_fetch_add(&s->n_done, 1);
}

static shared_state *map_state(void)
{
    return mmap(NULL, sizeof(shared_state), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                0);
}

static void test_one_at_a_time(void)
{
    int fd = memfd_create("turn", 0);
    shared_state *s = map_state();
    for (int i = 0; i < N_PROCESSES; i++)
        if (fork() == 0) {
            take_turns(fd, s);
            _exit(0);
        }
    for (int i = 0; i < N_PROCESSES; i++)
        g_assert_cmpint(wait(NULL), >, 0);
    g_assert_cmpint(atomic_load(&s->n_done), ==, N_PROCESSES);
    g_assert_cmpint(atomic_load(&s->crowds), ==, 0);
    munmap(s, sizeof(*s));
    close(fd);
}

static void test_death(void)
{
    int fd = memfd_create("turn", 0);
    shared_state *s = map_state();
    pid_t child = fork();
    if (child == 0) {
        cs_turn_take(cs_turn_new_shared(fd), 0);
        atomic_store(&s->holders, 1);
        pause();
    }
    while (!atomic_load(&s->holders))
        g_usleep(1000);
    kill(child, SIGKILL);
    g_assert_cmpint(waitpid(child, NULL, 0), ==, child);
    g_autoptr(cs_turn) turn = cs_turn_new_shared(fd);
    cs_turn_take(turn, 0);
    cs_turn_give(turn);
    munmap(s, sizeof(*s));
    close(fd);
}

/* ---- Dates ---- */

enum { N_WAITERS = 5, WAIT_US = 100000 /* until one that was started waits */ };

typedef struct {
    cs_turn *turn;
    atomic_int *n_served;
    int64_t due_us;
    int place; /* among those served */
} asker;

static void *ask(void *data)
{
    asker *a = data;
    cs_turn_take(a->turn, a->due_us);
    a->place = atomic_fetch_add(a->n_served, 1);
    cs_turn_give(a->turn);
    return NULL;
}

/* They ask while another has the turn. Places as their dates, work without one where it says. */
static void check_dates(cs_turn *turn)
{
    int64_t now = cs_now_us();
    atomic_int n_served = 0;
    asker askers[N_WAITERS] = {{.due_us = now + 500000},
                               {.due_us = now - 100000},
                               {.due_us = now - 5000000}, /* counts for a second */
                               {.due_us = 0},
                               {.due_us = now + 100000}};
    static const int places[N_WAITERS] = {4, 2, 0, 1, 3};
    GThread *threads[N_WAITERS];
    cs_turn_take(turn, 0);
    for (int i = 0; i < N_WAITERS; i++) {
        askers[i].turn = turn;
        askers[i].n_served = &n_served;
        threads[i] = g_thread_new("asker", ask, &askers[i]);
        g_usleep(WAIT_US);
    }
    cs_turn_give(turn);
    for (int i = 0; i < N_WAITERS; i++) {
        g_thread_join(threads[i]);
        g_assert_cmpint(askers[i].place, ==, places[i]);
    }
}

static void test_dates_of_threads(void)
{
    g_autoptr(cs_turn) turn = cs_turn_new();
    check_dates(turn);
}

static void test_dates_between_processes(void)
{
    int fd = memfd_create("turn", 0);
    g_autoptr(cs_turn) turn = cs_turn_new_shared(fd);
    check_dates(turn);
    close(fd);
}

/* However many ask with dates long past, work without one is done. */
static void *crowd(void *data)
{
    asker *a = data;
    while (!atomic_load(a->n_served)) {
        cs_turn_take(a->turn, 1);
        g_usleep(20000);
        cs_turn_give(a->turn);
    }
    return NULL;
}

static void test_nobody_starves(void)
{
    g_autoptr(cs_turn) turn = cs_turn_new();
    atomic_int n_served = 0;
    asker a = {.turn = turn, .n_served = &n_served};
    GThread *threads[N_WAITERS];
    for (int i = 0; i < N_WAITERS; i++)
        threads[i] = g_thread_new("crowd", crowd, &a);
    int64_t begun = cs_now_us();
    ask(&a);
    g_assert_cmpint(cs_now_us() - begun, <, 2 * G_USEC_PER_SEC);
    for (int i = 0; i < N_WAITERS; i++)
        g_thread_join(threads[i]);
}

/* Whoever dies while it waits, at a date before all others, holds nobody up. */
static void test_death_of_a_waiter(void)
{
    int fd = memfd_create("turn", 0);
    g_autoptr(cs_turn) turn = cs_turn_new_shared(fd);
    cs_turn_take(turn, 0);
    pid_t child = fork();
    if (child == 0) {
        cs_turn_take(cs_turn_new_shared(fd), 1);
        _exit(0);
    }
    g_usleep(WAIT_US);
    kill(child, SIGKILL);
    g_assert_cmpint(waitpid(child, NULL, 0), ==, child);
    cs_turn_give(turn);
    cs_turn_take(turn, 0);
    cs_turn_give(turn);
    close(fd);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/engine/turn/one_at_a_time", test_one_at_a_time);
    g_test_add_func("/engine/turn/death", test_death);
    g_test_add_func("/engine/turn/dates_of_threads", test_dates_of_threads);
    g_test_add_func("/engine/turn/dates_between_processes", test_dates_between_processes);
    g_test_add_func("/engine/turn/nobody_starves", test_nobody_starves);
    g_test_add_func("/engine/turn/death_of_a_waiter", test_death_of_a_waiter);
    return g_test_run();
}
