/* Turns between processes: one at a time, nobody twice while another waits, and a death gives its
 * turn back. */
#include "engine/turn.h"

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
        cs_turn_take(turn);
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
        cs_turn_take(cs_turn_new_shared(fd));
        atomic_store(&s->holders, 1);
        pause();
    }
    while (!atomic_load(&s->holders))
        g_usleep(1000);
    kill(child, SIGKILL);
    g_assert_cmpint(waitpid(child, NULL, 0), ==, child);
    g_autoptr(cs_turn) turn = cs_turn_new_shared(fd);
    cs_turn_take(turn);
    cs_turn_give(turn);
    munmap(s, sizeof(*s));
    close(fd);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/engine/turn/one_at_a_time", test_one_at_a_time);
    g_test_add_func("/engine/turn/death", test_death);
    return g_test_run();
}
