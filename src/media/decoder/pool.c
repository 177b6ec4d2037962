#include "media/decoder/pool_internal.h"

#include "base/error.h"
#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHILD_SOCKET = 3 };

/* Owned by the thread that has it acquired, by the pool's mutex otherwise. */
typedef struct {
    pid_t pid;   /* 0: not running; written atomically, so that anybody may read it */
    int socket;  /* our end */
    bool ready;  /* its sandbox stands */
    bool killed; /* it ended by somebody else's SIGKILL */
    bool busy;   /* acquired; of the mutex at all times */
} process;

struct cs_media_pool {
    cs_media_pool_options options;
    GMutex mutex;
    GCond freed;
    process *processes[CS_DECODER_KINDS];
    uint32_t n_processes[CS_DECODER_KINDS];
    uint64_t restarts;
    uint64_t last_session;
};

/* ---- one process ---- */

/* Set in the processes of a pool. A program that lacks the media-decoder subcommand (a test, say,
 * that left options.program out) would start itself here, that one itself, and so on. */
#define CHILD_MARK "CORNSERVE_MEDIA_PROCESS"

static char *const environment[] = {
    (char *)"LC_ALL=C",
    (char *)CHILD_MARK "=1",
    /* The leak check traces the process, which the sandbox does not let happen. */
    (char *)"ASAN_OPTIONS=detect_leaks=0:abort_on_error=1",
    NULL,
};

static int spawn(const cs_media_pool *pool, int socket, pid_t *pid)
{
    static const char *const self[] = {"/proc/self/exe", "media-decoder", NULL};
    const char *const *program = pool->options.program ? pool->options.program : self;
    g_autoptr(GPtrArray) arguments = g_ptr_array_new();
    for (; *program; program++)
        g_ptr_array_add(arguments, (gpointer)*program);
    g_ptr_array_add(arguments, (gpointer)G_STRINGIFY(3));
    g_ptr_array_add(arguments, NULL);

    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, socket, CHILD_SOCKET);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addclosefrom_np(&actions, CHILD_SOCKET + 1);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                              POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    /* A group of its own: the terminal's Ctrl-C is for the server, which lets requests finish. */
    posix_spawnattr_setpgroup(&attributes, 0);
    char **argv = (char **)arguments->pdata;
    int result = posix_spawn(pid, argv[0], &actions, &attributes, argv, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return result;
}

static bool process_start(cs_media_pool *pool, process *p, cs_decoder_kind kind, GError **error)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return cs_fail_errno(error, errno, "media decoder: socket pair");
    /* The child's end must not be its own target number with close-on-exec still set. */
    int child = fcntl(pair[1], F_DUPFD_CLOEXEC, CHILD_SOCKET + 1);
    close(pair[1]);
    pid_t pid = 0;
    int result = child < 0 ? errno : spawn(pool, child, &pid);
    if (child >= 0)
        close(child);
    if (result != 0) {
        close(pair[0]);
        return cs_fail_errno(error, result, "media decoder: cannot start its process");
    }
    g_atomic_int_set(&p->pid, pid);
    p->socket = pair[0];
    p->ready = p->killed = false;
    const cs_media_limits *limits = &pool->options.limits;
    cs_decoder_setup setup = {
        .kind = kind,
        .memory_bytes =
            pool->options.memory_bytes + limits->max_input_bytes + limits->max_output_bytes,
    };
    /* A process that is gone already shows when its reply is awaited. */
    (void)!send(p->socket, &setup, sizeof setup, MSG_NOSIGNAL);
    return true;
}

/* Kills and reaps; returns the wait status. */
static int process_end(process *p)
{
    int status = 0;
    if (p->pid == 0)
        return 0;
    close(p->socket);
    kill(p->pid, SIGKILL);
    while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR)
        ;
    g_atomic_int_set(&p->pid, 0);
    p->ready = false;
    return status;
}

/* A process that closed its socket is dying by itself; its own end tells more than our SIGKILL. */
static bool process_died(process *p, GError **error)
{
    int status = 0;
    pid_t reaped = 0;
    for (int i = 0; i < 100 && reaped == 0; i++) {
        reaped = waitpid(p->pid, &status, WNOHANG);
        if (reaped == 0)
            g_usleep(1000);
    }
    if (reaped == 0) {
        status = process_end(p);
    } else { /* reaped here, or already by somebody who waits for all children */
        close(p->socket);
        g_atomic_int_set(&p->pid, 0);
        p->ready = false;
        p->killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    }
    if (WIFSIGNALED(status))
        return cs_fail(error, CS_ERROR_FAILED,
                       "the media decoder process was ended by signal %d (%s)", WTERMSIG(status),
                       strsignal(WTERMSIG(status)));
    return cs_fail(error, CS_ERROR_FAILED, "the media decoder process ended with status %d",
                   WEXITSTATUS(status));
}

/* The next reply. On failure the process is gone. */
static bool process_await(process *p, uint32_t deadline_ms, cs_decoder_reply *reply, GError **error)
{
    int64_t end_us = cs_now_us() + (int64_t)deadline_ms * 1000;
    for (;;) {
        int64_t left_ms = MAX((end_us - cs_now_us() + 999) / 1000, 0);
        struct pollfd wait = {p->socket, POLLIN, 0};
        int n = poll(&wait, 1, (int)MIN(left_ms, G_MAXINT));
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0) {
            process_end(p);
            return cs_fail(error, CS_ERROR_TIMEOUT, "decoding took longer than %.1f s",
                           deadline_ms / 1000.0);
        }
        ssize_t got = recv(p->socket, reply, sizeof *reply, MSG_DONTWAIT);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got == (ssize_t)sizeof *reply)
            return true;
        return process_died(p, error);
    }
}

/* The cap on processor time is for a process whose pool is no more there to kill it. */
static void process_limit_cpu(const process *p, uint32_t deadline_ms)
{
    clockid_t clock;
    struct timespec used = {0};
    if (clock_getcpuclockid(p->pid, &clock) != 0 || clock_gettime(clock, &used) != 0)
        return;
    struct rlimit limit = {(rlim_t)used.tv_sec + deadline_ms / 1000 + 2, RLIM_INFINITY};
    prlimit(p->pid, RLIMIT_CPU, &limit, NULL);
}

static bool reply_failed(const cs_decoder_reply *reply, GError **error)
{
    char message[sizeof reply->message + 1];
    memcpy(message, reply->message, sizeof reply->message);
    message[sizeof reply->message] = 0;
    g_autofree char *valid = g_utf8_make_valid(message, -1);
    int code = reply->code >= CS_ERROR_INVALID && reply->code <= CS_ERROR_NODE_LOST
                   ? reply->code
                   : CS_ERROR_FAILED;
    return cs_fail(error, (cs_error_code)code, "%s", valid);
}

static bool process_ready(cs_media_pool *pool, process *p, cs_decoder_kind kind, GError **error)
{
    if (p->pid == 0 && !process_start(pool, p, kind, error))
        return false;
    if (p->ready)
        return true;
    cs_decoder_reply reply;
    if (!process_await(p, pool->options.deadline_ms, &reply, error))
        return false;
    if (reply.failed) {
        process_end(p);
        return reply_failed(&reply, error);
    }
    p->ready = true;
    return true;
}

/* ---- the pool ---- */

cs_media_pool *cs_media_pool_new(const cs_media_pool_options *options, GError **error)
{
    if (g_getenv(CHILD_MARK)) {
        cs_fail(error, CS_ERROR_FAILED,
                "a media process was asked to start media processes: the "
                "program started has no media-decoder subcommand");
        return NULL;
    }
    cs_media_pool *pool = g_new0(cs_media_pool, 1);
    pool->options = *options;
    g_mutex_init(&pool->mutex);
    g_cond_init(&pool->freed);
    pool->n_processes[CS_DECODER_IMAGES] = MAX(options->image_processes, 1);
    pool->n_processes[CS_DECODER_TRACKS] = MAX(options->track_processes, 1);
    pool->n_processes[CS_DECODER_SPEECH] = 1; /* it has the state of all sessions */
    for (int kind = 0; kind < CS_DECODER_KINDS; kind++)
        pool->processes[kind] = g_new0(process, pool->n_processes[kind]);
    for (uint32_t i = 0; i < pool->n_processes[CS_DECODER_IMAGES]; i++)
        if (!process_start(pool, &pool->processes[CS_DECODER_IMAGES][i], CS_DECODER_IMAGES,
                           error)) {
            cs_media_pool_free(pool);
            return NULL;
        }
    return pool;
}

void cs_media_pool_free(cs_media_pool *pool)
{
    if (!pool)
        return;
    for (int kind = 0; kind < CS_DECODER_KINDS; kind++) {
        for (uint32_t i = 0; i < pool->n_processes[kind]; i++)
            process_end(&pool->processes[kind][i]);
        g_free(pool->processes[kind]);
    }
    g_mutex_clear(&pool->mutex);
    g_cond_clear(&pool->freed);
    g_free(pool);
}

uint64_t cs_media_pool_restarts(cs_media_pool *pool)
{
    g_mutex_lock(&pool->mutex);
    uint64_t n = pool->restarts;
    g_mutex_unlock(&pool->mutex);
    return n;
}

pid_t cs_media_pool_process(cs_media_pool *pool, cs_decoder_kind kind, uint32_t i)
{
    g_mutex_lock(&pool->mutex);
    pid_t pid = i < pool->n_processes[kind] ? g_atomic_int_get(&pool->processes[kind][i].pid) : 0;
    g_mutex_unlock(&pool->mutex);
    return pid;
}

/* A free process, one that already runs before one that would have to be started. */
static process *find_free(cs_media_pool *pool, cs_decoder_kind kind)
{
    process *best = NULL;
    for (uint32_t i = 0; i < pool->n_processes[kind]; i++) {
        process *p = &pool->processes[kind][i];
        if (!p->busy && (!best || (best->pid == 0 && p->pid != 0)))
            best = p;
    }
    return best;
}

static process *acquire(cs_media_pool *pool, cs_decoder_kind kind, GError **error)
{
    int64_t end_us = g_get_monotonic_time() + (int64_t)pool->options.deadline_ms * 1000;
    process *p = NULL;
    g_mutex_lock(&pool->mutex);
    while (!(p = find_free(pool, kind)))
        if (!g_cond_wait_until(&pool->freed, &pool->mutex, end_us))
            break;
    if (p)
        p->busy = true;
    g_mutex_unlock(&pool->mutex);
    if (!p)
        cs_fail(error, CS_ERROR_BUSY, "all %u media decoders were busy for %.1f s",
                pool->n_processes[kind], pool->options.deadline_ms / 1000.0);
    return p;
}

static void release(cs_media_pool *pool, process *p)
{
    g_mutex_lock(&pool->mutex);
    p->busy = false;
    pool->restarts += p->pid == 0;
    g_cond_signal(&pool->freed);
    g_mutex_unlock(&pool->mutex);
}

/* ---- memory handed over ---- */

static int sealed_input(const uint8_t *data, size_t size, GError **error)
{
    int fd = memfd_create("media-in", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    for (size_t done = 0; fd >= 0 && done < size;) {
        ssize_t n = write(fd, data + done, size - done);
        if (n < 0 && errno != EINTR) {
            int err = errno;
            close(fd);
            errno = err;
            fd = -1;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    if (fd < 0)
        cs_fail_errno(error, errno, "media decoder: memory for %zu bytes", size);
    else
        fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    return fd;
}

/* As large as the result may become; pages come into being when they are written. */
static int sized_output(size_t size, GError **error)
{
    int fd = memfd_create("media-out", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0)
        return fd;
    cs_fail_errno(error, errno, "media decoder: memory for up to %zu bytes", size);
    if (fd >= 0)
        close(fd);
    return -1;
}

/* Takes the result's first `bytes` for reading. The write seal holds only if the process kept no
 * mapping that could change them. */
static bool map_output(int fd, size_t bytes, cs_media_mapping *mapping, GError **error)
{
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) != 0)
        return cs_fail_errno(error, errno, "media decoder: its output cannot be sealed");
    void *address = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED)
        return cs_fail_errno(error, errno, "media decoder: mapping %zu bytes", bytes);
    *mapping = (cs_media_mapping){address, bytes};
    return true;
}

static bool send_request(process *p, const cs_decoder_request *request, const int fds[2])
{
    union {
        char bytes[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec part = {(void *)request, sizeof *request};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof control.bytes};
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(2 * sizeof(int));
    memcpy(CMSG_DATA(c), fds, 2 * sizeof(int));
    return sendmsg(p->socket, &header, MSG_NOSIGNAL) == (ssize_t)sizeof *request;
}

static void count_restart(cs_media_pool *pool)
{
    g_mutex_lock(&pool->mutex);
    pool->restarts++;
    g_mutex_unlock(&pool->mutex);
}

/* Asks p and waits. A process found dead before it was asked is replaced once. */
static bool ask_once(cs_media_pool *pool, process *p, cs_decoder_kind kind,
                     const cs_decoder_request *request, const int fds[2], cs_decoder_reply *reply,
                     GError **error)
{
    if (!process_ready(pool, p, kind, error))
        return false;
    process_limit_cpu(p, pool->options.deadline_ms);
    if (!send_request(p, request, fds)) {
        process_end(p);
        count_restart(pool);
        if (!process_ready(pool, p, kind, error))
            return false;
        if (!send_request(p, request, fds))
            return process_died(p, error);
    }
    return process_await(p, pool->options.deadline_ms, reply, error);
}

/* SIGKILL is the system's or the operator's, never what a hostile file brings about, so the request
 * is asked once more; a process that crashed is not handed the same bytes again. Encoders have the
 * state of their sessions, which died with them. */
static bool ask(cs_media_pool *pool, process *p, cs_decoder_kind kind,
                const cs_decoder_request *request, const int fds[2], cs_decoder_reply *reply,
                GError **error)
{
    g_autoptr(GError) first = NULL;
    bool answered = ask_once(pool, p, kind, request, fds, reply, &first);
    if (!answered && p->pid == 0 && p->killed && kind != CS_DECODER_SPEECH) {
        count_restart(pool);
        g_clear_error(&first);
        answered = ask_once(pool, p, kind, request, fds, reply, &first);
    }
    if (!answered) {
        g_propagate_error(error, g_steal_pointer(&first));
        return false;
    }
    return !reply->failed || reply_failed(reply, error);
}

/* Bytes of the output that a reply speaks of; 0 when its numbers cannot be true. */
static uint64_t reply_bytes(const cs_decoder_request *q, const cs_decoder_reply *r)
{
    uint64_t room = q->output_bytes, used = 0;
    if (q->task == CS_DECODER_ENCODE)
        return r->n_bytes <= room ? r->n_bytes : 0;
    if (q->task != CS_DECODER_AUDIO) {
        uint64_t row = (uint64_t)r->width * 3, n = q->task == CS_DECODER_IMAGE ? 1 : r->n_frames;
        if (row == 0 || r->height == 0 || n == 0 || r->height > room / row ||
            n > room / (row * r->height))
            return 0;
        used = row * r->height * n;
    }
    if (q->task == CS_DECODER_IMAGE || r->n_samples == 0)
        return q->task == CS_DECODER_AUDIO ? 0 : used;
    if (r->audio_at % 64 || r->audio_at < used || r->audio_at >= room ||
        r->n_samples > (room - r->audio_at) / sizeof(float) || r->source_rate == 0)
        return 0;
    return r->audio_at + r->n_samples * sizeof(float);
}

static bool run(cs_media_pool *pool, cs_decoder_kind kind, const uint8_t *data,
                cs_decoder_request *request, cs_decoder_reply *reply, cs_media_mapping *mapping,
                GError **error)
{
    request->limits = pool->options.limits;
    int fds[2] = {sealed_input(data, request->input_bytes, error), -1};
    if (fds[0] >= 0)
        fds[1] = sized_output(request->output_bytes, error);
    process *p = fds[1] >= 0 ? acquire(pool, kind, error) : NULL;
    bool good = false;
    if (p) {
        good = ask(pool, p, kind, request, fds, reply, error);
        bool nothing = request->task == CS_DECODER_PROBE ||
                       (request->task == CS_DECODER_ENCODE && reply->n_bytes == 0);
        if (good && !nothing) {
            uint64_t bytes = reply_bytes(request, reply);
            good = bytes ? map_output(fds[1], bytes, mapping, error)
                         : cs_fail(error, CS_ERROR_FAILED, "media decoder: an impossible reply");
            if (!good)
                process_end(p);
        }
        release(pool, p);
    }
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return good;
}

static bool check_input(const cs_media_pool *pool, const char *what, size_t size, GError **error)
{
    if (size == 0)
        return cs_fail(error, CS_ERROR_INVALID, "empty %s", what);
    if (size > pool->options.limits.max_input_bytes)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "%s of %zu bytes; at most %zu are taken", what,
                       size, pool->options.limits.max_input_bytes);
    return true;
}

bool cs_media_decode_image(cs_media_pool *pool, const uint8_t *data, size_t size, cs_image *image,
                           GError **error)
{
    const cs_media_limits *limits = &pool->options.limits;
    cs_decoder_request request = {
        .task = CS_DECODER_IMAGE,
        .input_bytes = size,
        .output_bytes = MIN(limits->max_output_bytes / 3, limits->max_pixels) * 3,
    };
    cs_decoder_reply r;
    cs_media_mapping mapping;
    if (!check_input(pool, "image", size, error) ||
        !run(pool, CS_DECODER_IMAGES, data, &request, &r, &mapping, error))
        return false;
    *image = (cs_image){mapping.address, r.width, r.height, mapping};
    return true;
}

bool cs_media_decode_audio(cs_media_pool *pool, const uint8_t *data, size_t size,
                           uint32_t sample_rate, cs_audio *audio, GError **error)
{
    const cs_media_limits *limits = &pool->options.limits;
    double most = (limits->max_seconds + 1) * sample_rate * (double)sizeof(float);
    cs_decoder_request request = {
        .task = CS_DECODER_AUDIO,
        .input_bytes = size,
        .output_bytes = (uint64_t)fmin((double)limits->max_output_bytes, most),
        .sample_rate = sample_rate,
    };
    cs_decoder_reply r;
    cs_media_mapping mapping;
    if (!check_input(pool, "audio", size, error) ||
        !run(pool, CS_DECODER_TRACKS, data, &request, &r, &mapping, error))
        return false;
    const void *samples = (const uint8_t *)mapping.address + r.audio_at;
    *audio = (cs_audio){samples, r.n_samples, sample_rate, r.source_rate, mapping};
    return true;
}

bool cs_media_decode_video(cs_media_pool *pool, const uint8_t *data, size_t size,
                           const cs_video_rule *rule, uint32_t audio_rate, cs_video *video,
                           GError **error)
{
    cs_decoder_request request = {
        .task = CS_DECODER_VIDEO,
        .input_bytes = size,
        .output_bytes = pool->options.limits.max_output_bytes,
        .video = *rule,
        .sample_rate = audio_rate,
        .want_audio = audio_rate != 0,
    };
    cs_decoder_reply r;
    cs_media_mapping mapping;
    if (!check_input(pool, "video", size, error) ||
        !run(pool, CS_DECODER_TRACKS, data, &request, &r, &mapping, error))
        return false;
    *video = (cs_video){
        .rgb = mapping.address,
        .n_frames = r.n_frames,
        .width = r.width,
        .height = r.height,
        .source_width = r.source_width,
        .source_height = r.source_height,
        .source_frames = r.source_frames,
        .source_fps = r.source_fps,
        .sample_fps = r.source_frames ? r.n_frames / (double)r.source_frames * r.source_fps : 0,
        .has_audio = r.has_audio,
        .mapping = mapping,
    };
    if (r.n_samples) {
        const void *samples = (const uint8_t *)mapping.address + r.audio_at;
        video->audio = (cs_audio){samples, r.n_samples, audio_rate, r.source_rate, {0}};
    }
    return true;
}

uint64_t cs_media_pool_next_session(cs_media_pool *pool)
{
    g_mutex_lock(&pool->mutex);
    uint64_t session = ++pool->last_session;
    g_mutex_unlock(&pool->mutex);
    return session;
}

bool cs_media_pool_encode(cs_media_pool *pool, const cs_encode_request *step, const float *samples,
                          GByteArray *out, GError **error)
{
    /* No format needs more than its samples as floats, beside headers and what was held back. */
    const size_t slack = 256 << 10;
    size_t bytes = step->n_samples * sizeof(float);
    cs_decoder_request request = {
        .task = CS_DECODER_ENCODE,
        .input_bytes = MAX(bytes, 1),
        .output_bytes = bytes + slack,
        .encode = *step,
    };
    cs_decoder_reply reply;
    cs_media_mapping mapping = {0};
    const void *data = bytes ? (const void *)samples : "";
    if (!run(pool, CS_DECODER_SPEECH, data, &request, &reply, &mapping, error))
        return false;
    if (mapping.bytes) {
        g_byte_array_append(out, mapping.address, (guint)mapping.bytes);
        munmap(mapping.address, mapping.bytes);
    }
    return true;
}

bool cs_media_pool_probe(cs_media_pool *pool, cs_decoder_kind kind, cs_decoder_probe probe,
                         GError **error)
{
    cs_decoder_request request = {
        .task = CS_DECODER_PROBE, .probe = probe, .input_bytes = 1, .output_bytes = 4096};
    cs_decoder_reply reply;
    return run(pool, kind, (const uint8_t *)"", &request, &reply, NULL, error);
}
