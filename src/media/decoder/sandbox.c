#include "media/decoder/sandbox.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNDER_SANITIZER true /* its shadow memory is larger than any sensible bound */
#else
#define UNDER_SANITIZER false
#endif

/* What libc, the codecs and a sanitizer's runtime do once everything is loaded. */
static const int allowed[] = {
    SCMP_SYS(brk),           SCMP_SYS(clock_getres),
    SCMP_SYS(clock_gettime), SCMP_SYS(clock_nanosleep),
    SCMP_SYS(close),         SCMP_SYS(exit),
    SCMP_SYS(exit_group),    SCMP_SYS(fstat),
    SCMP_SYS(futex),         SCMP_SYS(getpid),
    SCMP_SYS(getrandom),     SCMP_SYS(gettid),
    SCMP_SYS(gettimeofday),  SCMP_SYS(madvise),
    SCMP_SYS(mremap),        SCMP_SYS(munmap),
    SCMP_SYS(nanosleep),     SCMP_SYS(restart_syscall),
    SCMP_SYS(rt_sigaction),  SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),  SCMP_SYS(sched_getaffinity),
    SCMP_SYS(sched_yield),   SCMP_SYS(sigaltstack),
    SCMP_SYS(sysinfo),
};

/* What libraries try without harm, and do without. */
static const int refused[] = {
    SCMP_SYS(access),    SCMP_SYS(faccessat),  SCMP_SYS(getcwd),     SCMP_SYS(ioctl),
    SCMP_SYS(lstat),     SCMP_SYS(newfstatat), SCMP_SYS(open),       SCMP_SYS(openat),
    SCMP_SYS(prlimit64), SCMP_SYS(readlink),   SCMP_SYS(readlinkat), SCMP_SYS(stat),
    SCMP_SYS(statx),     SCMP_SYS(uname),
};

static int add_plain_rules(scmp_filter_ctx filter)
{
    int result = 0;
    for (size_t i = 0; i < G_N_ELEMENTS(allowed) && result == 0; i++)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    for (size_t i = 0; i < G_N_ELEMENTS(refused) && result == 0; i++)
        result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EACCES), refused[i], 0);
    return result;
}

/* Rules that look at arguments: the socket only, no executable memory, signals to itself only
 * (abort), words to stderr only. */
static int add_argument_rules(scmp_filter_ctx filter, int socket)
{
    scmp_datum_t fd = (scmp_datum_t)socket, self = (scmp_datum_t)getpid();
    int result =
        seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(recvmsg), 1, SCMP_A0(SCMP_CMP_EQ, fd));
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(sendto), 2,
                                  SCMP_A0(SCMP_CMP_EQ, fd), SCMP_A4(SCMP_CMP_EQ, 0));
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(write), 1,
                                  SCMP_A0(SCMP_CMP_EQ, STDERR_FILENO));
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
                                  SCMP_A0(SCMP_CMP_EQ, self));
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    return result;
}

static bool load_filter(int socket, GError **error)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int result = filter ? add_plain_rules(filter) : -ENOMEM;
    if (result == 0)
        result = add_argument_rules(filter, socket);
    if (result == 0)
        result = seccomp_load(filter);
    seccomp_release(filter);
    return result == 0 || cs_fail(error, CS_ERROR_FAILED,
                                  "media is not decoded here: this system refuses a seccomp "
                                  "filter: %s",
                                  strerror(-result));
}

static uint64_t mapped_bytes(void)
{
    uint64_t pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");
    if (statm) {
        if (fscanf(statm, "%" G_GUINT64_FORMAT, &pages) != 1)
            pages = 0;
        fclose(statm);
    }
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static bool set_limit(int resource, uint64_t value, const char *name, GError **error)
{
    struct rlimit limit = {value, value};
    return setrlimit((__rlimit_resource_t)resource, &limit) == 0 ||
           cs_fail_errno(error, errno, "decoder process: limit of %s", name);
}

bool cs_decoder_sandbox_enter(int socket, uint64_t memory_bytes, GError **error)
{
    close_range(3, (unsigned)socket - 1, 0);
    close_range((unsigned)socket + 1, ~0u, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        return cs_fail_errno(error, errno, "decoder process: prctl");
    if (!set_limit(RLIMIT_CORE, 0, "core files", error) ||
        !set_limit(RLIMIT_FSIZE, 0, "file sizes", error) ||
        !set_limit(RLIMIT_NOFILE, (uint64_t)socket + 8, "descriptors", error))
        return false;
    if (!UNDER_SANITIZER &&
        !set_limit(RLIMIT_AS, mapped_bytes() + memory_bytes, "address space", error))
        return false;
    return load_filter(socket, error);
}

/* ---- probes ---- */

static bool refused_with(GError **error, const char *what)
{
    return cs_fail_errno(error, errno, "%s was refused", what);
}

/* Takes memory until there is no more, and gives it back. */
static bool probe_memory(GError **error)
{
    const size_t step = 64u << 20;
    void **last = NULL;
    bool refused_one = false;
    for (uint64_t taken = 0; taken < 64ull << 30 && !refused_one; taken += step) {
        void **block = g_try_malloc(step);
        refused_one = !block;
        if (block) {
            *block = last;
            last = block;
        }
    }
    while (last) {
        void **next = *last;
        g_free(last);
        last = next;
    }
    errno = ENOMEM;
    return !refused_one || refused_with(error, "memory");
}

bool cs_decoder_sandbox_probe(cs_decoder_probe probe, GError **error)
{
    switch (probe) {
    case CS_DECODER_PROBE_OPEN:
        return open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0 || refused_with(error, "open");
    case CS_DECODER_PROBE_SOCKET:
        return socket(AF_INET, SOCK_STREAM, 0) >= 0 || refused_with(error, "socket");
    case CS_DECODER_PROBE_EXEC:
        return execl("/bin/true", "true", NULL) == 0 || refused_with(error, "execve");
    case CS_DECODER_PROBE_FORK:
        return fork() >= 0 || refused_with(error, "fork");
    case CS_DECODER_PROBE_KILL_PARENT:
        return kill(getppid(), 0) == 0 || refused_with(error, "kill");
    case CS_DECODER_PROBE_EXECUTABLE_MEMORY:
        return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                    0) != MAP_FAILED ||
               refused_with(error, "executable memory");
    case CS_DECODER_PROBE_MEMORY:
        return probe_memory(error);
    case CS_DECODER_PROBE_HANG:
        for (;;)
            sleep(1);
    }
    return cs_fail(error, CS_ERROR_INVALID, "no such probe");
}
