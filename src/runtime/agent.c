/* The node agent: executors as child processes. */
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/os.h"
#include "runtime/executor.h"
#include "runtime/runtime_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define BACKOFF_MAX 100
/* Ready this long, or work finished: the next failure is the first again. */
#define GOOD_FOR_US (10 * G_USEC_PER_SEC)

extern char **environ;

executor *agent_executor_new(cs_runtime *runtime, deployment *d, size_t entry, unsigned replica)
{
    executor *x = g_new0(executor, 1);
    x->runtime = runtime;
    x->deployment = d;
    x->entry = entry;
    x->name = g_strdup_printf("%s#%u", d->plan->executors[entry].name, replica);
    x->state = EXECUTOR_DOWN;
    x->pidfd = -1;
    x->calls = g_hash_table_new(NULL, NULL);
    return x;
}

static void close_process(executor *x)
{
    cs_wire_free(g_steal_pointer(&x->wire));
    cs_loop_unwatch(g_steal_pointer(&x->pid_watch));
    if (x->pidfd >= 0)
        close(x->pidfd);
    x->pidfd = -1;
    x->pid = 0;
}

void agent_executor_free(executor *x)
{
    if (x->pid > 0) {
        kill(x->pid, SIGKILL);
        waitpid(x->pid, NULL, 0);
        cs_sidecar_reap(x->runtime->sidecar, x->pid);
    }
    close_process(x);
    cs_timer_free(x->restart_timer);
    g_hash_table_unref(x->calls);
    g_free(x->failure);
    g_free(x->name);
    g_free(x);
}

/* --- ends --- */

static void restart(void *user)
{
    executor *x = user;
    x->restart_timer = NULL;
    x->restarts++;
    agent_start(x);
}

static void went_down(executor *x, const char *why)
{
    cs_runtime *rt = x->runtime;
    int64_t now_us = cs_now_us();
    bool good = x->ready_us > 0 && (x->has_worked || now_us - x->ready_us > GOOD_FOR_US);
    x->failures = good ? 1 : x->failures + 1;
    x->state = EXECUTOR_DOWN;
    x->ready_us = 0;
    x->has_worked = false;
    close_process(x);
    dispatch_lost(x, why);
    if (x->stopping)
        return;
    rt->counters.executor_deaths++;
    int64_t wait_us = rt->options.restart_us << MIN(x->failures - 1, 10);
    wait_us = MIN(wait_us, rt->options.restart_us * BACKOFF_MAX);
    cs_log(CS_LOG_WARN, "agent", "%s: %s; starts again in %.1f s", x->name, why,
           (double)wait_us / 1e6);
    x->restart_timer = cs_loop_at(rt->loop, now_us + wait_us, restart, x);
}

static void on_exit_ready(void *user, uint32_t events)
{
    executor *x = user;
    int status = 0, pid = x->pid;
    if (waitpid(pid, &status, WNOHANG) != pid)
        return;
    x->pid = 0;
    cs_sidecar_reap(x->runtime->sidecar, pid);
    g_autofree char *why = x->failure ? g_strdup(x->failure)
                           : WIFSIGNALED(status)
                               ? g_strdup_printf("killed by signal %d", WTERMSIG(status))
                               : g_strdup_printf("exited with status %d", WEXITSTATUS(status));
    went_down(x, why);
}

void agent_kill(executor *x, const char *why)
{
    if (x->pid <= 0 || x->state == EXECUTOR_DYING)
        return;
    if (!x->failure)
        x->failure = g_strdup(why);
    x->state = EXECUTOR_DYING;
    kill(x->pid, SIGKILL); /* its end comes by the pidfd */
}

static void on_closed(void *user, const GError *error)
{
    executor *x = user;
    if (x->stopping)
        return; /* it drained; its exit follows */
    agent_kill(x, error ? error->message : "closed its connection");
}

void agent_drain(executor *x)
{
    Cornserve__Wire__Drain drain = CORNSERVE__WIRE__DRAIN__INIT;
    x->stopping = true;
    cs_timer_free(g_steal_pointer(&x->restart_timer));
    if (!x->wire)
        return;
    cs_wire_send(x->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_DRAIN, .drain = &drain));
    cs_wire_flush(x->wire);
}

/* --- frames --- */

static void on_frame(void *user, const cs_frame *frame)
{
    executor *x = user;
    x->answered_us = cs_now_us();
    switch (frame->body_case) {
    case CORNSERVE__WIRE__FRAME__BODY_READY:
        if (x->state != EXECUTOR_STARTING)
            return;
        x->state = EXECUTOR_READY;
        x->ready_us = x->answered_us;
        if (frame->ready->load)
            x->load = *frame->ready->load;
        g_clear_pointer(&x->failure, g_free);
        dispatch_parked(x->runtime);
        break;
    case CORNSERVE__WIRE__FRAME__BODY_STEP:
        dispatch_step(x, frame->step);
        break;
    case CORNSERVE__WIRE__FRAME__BODY_PONG:
        if (frame->pong->load)
            x->load = *frame->pong->load;
        break;
    case CORNSERVE__WIRE__FRAME__BODY_FAILED:
        g_free(x->failure);
        x->failure = g_strdup(frame->failed->message);
        break;
    default:
        agent_kill(x, "sent a frame that only the gateway sends");
    }
}

/* --- starting --- */

const char *agent_kind_of_device(const char *device)
{
    static const char *const kinds[][2] = {{"cpu", "model"}, {"emu", "emu"}, {"openai", "openai"}};
    g_auto(GStrv) parts = g_strsplit(device, ":", 2);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (strcmp(parts[0], kinds[i][0]) == 0)
            return kinds[i][1];
    return NULL;
}

/* Whether executors that compute here have more threads than there are CPUs. */
static bool shares_cpus(const cs_runtime *rt)
{
    uint64_t n_threads = 0, n_executors = 0, n_cpus = g_get_num_processors();
    for (guint i = 0; i < rt->deployments->len; i++) {
        const cs_plan *plan = ((const deployment *)rt->deployments->pdata[i])->plan;
        for (size_t e = 0; e < plan->n_executors; e++) {
            const cs_plan_executor *x = &plan->executors[e];
            if (strcmp(agent_kind_of_device(x->device), "model") != 0)
                continue;
            n_threads += (uint64_t)x->replicas * (x->threads > 0 ? (uint64_t)x->threads : n_cpus);
            n_executors += (uint64_t)x->replicas;
        }
    }
    return n_executors > 1 && n_threads > n_cpus;
}

static void send_setup(executor *x)
{
    const cs_plan_executor *e = &x->deployment->plan->executors[x->entry];
    g_autofree char **components = g_new0(char *, e->n_hosted + 1);
    g_autofree uint32_t *max_batch = g_new0(uint32_t, e->n_hosted + 1);
    json_t *config = json_object_get(x->deployment->devices, e->device);
    char *text = config ? json_dumps(config, JSON_COMPACT) : NULL;
    Cornserve__Wire__Setup setup = CORNSERVE__WIRE__SETUP__INIT;
    for (size_t i = 0; i < e->n_hosted; i++) {
        components[i] = e->hosted[i].name;
        max_batch[i] = (uint32_t)e->hosted[i].max_batch;
    }
    setup.name = x->name;
    setup.kind = (char *)agent_kind_of_device(e->device);
    setup.config = text ? text : (char *)"{}";
    setup.components = components;
    setup.n_components = setup.n_max_batch = e->n_hosted;
    setup.max_batch = max_batch;
    setup.threads = (uint32_t)e->threads;
    setup.kv_budget_bytes = e->kv_budget_bytes;
    setup.shares_cpus = shares_cpus(x->runtime);
    setup.memory_share = 1.0 / MAX(x->deployment->n_llm_executors, 1);
    cs_wire_send(x->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_SETUP, .setup = &setup));
    cs_wire_flush(x->wire);
    free(text);
}

static bool spawn(executor *x, int control_fd, GError **error)
{
    const char *program = x->runtime->options.program;
    char *argv[] = {(char *)"cornserve", (char *)"executor", NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    pid_t pid = 0;
    /* out of the way of the numbers that the child gets */
    int control = fcntl(control_fd, F_DUPFD_CLOEXEC, 10);
    int sidecar = fcntl(cs_sidecar_fd(x->runtime->sidecar), F_DUPFD_CLOEXEC, 10);
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, control, CS_EXECUTOR_CONTROL_FD);
    posix_spawn_file_actions_adddup2(&actions, sidecar, CS_EXECUTOR_SIDECAR_FD);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int err = control < 0 || sidecar < 0 ? EMFILE
              : cs_fault_hit(CS_FAULT_RUNTIME_SPAWN)
                  ? EAGAIN
                  : posix_spawn(&pid, program ? program : "/proc/self/exe", &actions, &attributes,
                                argv, environ);
    close(control);
    close(sidecar);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    if (err != 0)
        return cs_fail_errno(error, err, "%s: cannot start %s", x->name,
                             program ? program : "/proc/self/exe");
    x->pid = pid;
    return true;
}

static bool start_process(executor *x, GError **error)
{
    static const cs_wire_events events = {on_frame, on_closed};
    int pair[2];
    if (cs_fault_errno(CS_FAULT_RUNTIME_SPAWN, EMFILE) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return cs_fail_errno(error, errno, "%s: socketpair", x->name);
    bool ok = spawn(x, pair[1], error);
    close(pair[1]);
    if (!ok) {
        close(pair[0]);
        return false;
    }
    x->wire = cs_wire_new(x->runtime->loop, pair[0], x->name, &events, x, error);
    x->pidfd = cs_fault_errno(CS_FAULT_RUNTIME_SPAWN, EMFILE)
                   ? -1
                   : (int)syscall(SYS_pidfd_open, x->pid, 0);
    if (x->wire && x->pidfd >= 0)
        x->pid_watch = cs_loop_watch(x->runtime->loop, x->pidfd, EPOLLIN, on_exit_ready, x, error);
    else if (x->wire)
        cs_fail_errno(error, errno, "%s: pidfd_open", x->name);
    if (x->pid_watch)
        return true;
    kill(x->pid, SIGKILL);
    waitpid(x->pid, NULL, 0);
    cs_sidecar_reap(x->runtime->sidecar, x->pid);
    return false;
}

void agent_start(executor *x)
{
    g_autoptr(GError) error = NULL;
    g_clear_pointer(&x->failure, g_free);
    if (!start_process(x, &error)) {
        went_down(x, error->message);
        return;
    }
    x->state = EXECUTOR_STARTING;
    x->started_us = x->answered_us = cs_now_us();
    send_setup(x);
}

/* --- health --- */

static void check_health(executor *x, int64_t now_us)
{
    const cs_runtime_options *o = &x->runtime->options;
    int64_t allowed_us = x->state == EXECUTOR_STARTING ? o->start_us : o->watchdog_us;
    if (x->state != EXECUTOR_STARTING && x->state != EXECUTOR_READY)
        return;
    if (now_us - x->answered_us > allowed_us) {
        agent_kill(x, x->state == EXECUTOR_STARTING ? "did not become ready in time"
                                                    : "did not answer: hung");
        return;
    }
    Cornserve__Wire__Ping ping = CORNSERVE__WIRE__PING__INIT;
    ping.n = x->runtime->pings;
    cs_wire_send(x->wire, &CS_FRAME(CORNSERVE__WIRE__FRAME__BODY_PING, .ping = &ping));
}

void agent_tick(cs_runtime *rt)
{
    int64_t now_us = cs_now_us();
    /* When this process was stopped (a suspended machine), the others were too, or their answers
     * lie unread: their time begins anew. */
    int64_t usual_us = MAX(rt->options.watchdog_us / 2, 4 * rt->options.ping_us);
    bool was_away = rt->ticked_us && now_us - rt->ticked_us > usual_us;
    rt->ticked_us = now_us;
    rt->pings++;
    for (guint i = 0; i < rt->deployments->len; i++) {
        deployment *d = rt->deployments->pdata[i];
        for (guint k = 0; k < d->executors->len; k++) {
            executor *x = d->executors->pdata[k];
            x->answered_us = was_away ? now_us : x->answered_us;
            check_health(x, now_us);
        }
    }
}

static bool hosts(const cs_plan_executor *e, const char *component)
{
    for (size_t i = 0; i < e->n_hosted; i++)
        if (strcmp(e->hosted[i].name, component) == 0)
            return true;
    return false;
}

static json_t *speech_status(const Cornserve__Wire__Load *load)
{
    return json_pack(
        "{s:i, s:i, s:i, s:i, s:i, s:I, s:I}", "talker_running", (int)load->talker_running,
        "talker_kv_blocks_used", (int)load->talker_kv_blocks_used, "talker_kv_blocks_total",
        (int)load->talker_kv_blocks_total, "talker_max_tokens", (int)load->talker_max_tokens,
        "sounds", (int)load->sounds, "sound_steps", (json_int_t)load->sound_steps,
        "sound_step_streams", (json_int_t)load->sound_step_streams);
}

json_t *agent_status(const executor *x)
{
    static const char *const states[] = {"starting", "ready", "dying", "down"};
    const cs_plan_executor *e = &x->deployment->plan->executors[x->entry];
    json_t *components = json_array();
    for (size_t i = 0; i < e->n_hosted; i++)
        json_array_append_new(components, json_string(e->hosted[i].name));
    json_t *status = json_pack(
        "{s:s, s:s, s:s, s:s, s:o, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:I}", "name",
        x->name, "model", x->deployment->model, "device", e->device, "state", states[x->state],
        "components", components, "pid", x->pid, "restarts", (int)x->restarts, "in_flight",
        (int)x->in_flight, "running", (int)x->load.running, "waiting", (int)x->load.waiting,
        "kv_blocks_used", (int)x->load.kv_blocks_used, "kv_blocks_total",
        (int)x->load.kv_blocks_total, "max_tokens", (int)x->load.max_tokens, "vocab_size",
        (int)x->load.vocab_size, "preemptions", (int)x->load.preemptions, "kv_block_bytes",
        (json_int_t)x->load.kv_block_bytes);
    if (hosts(e, "talker") || hosts(e, "vocoder"))
        json_object_set_new(status, "speech", speech_status(&x->load));
    if (x->failure)
        json_object_set_new(status, "failure", json_string(x->failure));
    return status;
}
