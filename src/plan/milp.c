#include "plan/milp.h"

#include "base/error.h"
#include "base/os.h"

#include <coin/Cbc_C_Interface.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#elif defined(__has_feature) /* clang's way to say so */
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif

#define ROW_SLACK 1e-6
#define KILL_AFTER_S 3.0
#define CHILD_MEMORY_BYTES ((rlim_t)3 << 30)

void cs_milp_init(cs_milp *m)
{
    *m = (cs_milp){
        .lower = g_array_new(FALSE, FALSE, sizeof(double)),
        .upper = g_array_new(FALSE, FALSE, sizeof(double)),
        .objective = g_array_new(FALSE, FALSE, sizeof(double)),
        .integer = g_array_new(FALSE, FALSE, sizeof(guint8)),
        .row_lower = g_array_new(FALSE, FALSE, sizeof(double)),
        .row_upper = g_array_new(FALSE, FALSE, sizeof(double)),
        .rows = g_array_new(FALSE, FALSE, sizeof(int)),
        .columns = g_array_new(FALSE, FALSE, sizeof(int)),
        .values = g_array_new(FALSE, FALSE, sizeof(double)),
    };
}

void cs_milp_clear(cs_milp *m)
{
    GArray *arrays[] = {m->lower,     m->upper, m->objective, m->integer, m->row_lower,
                        m->row_upper, m->rows,  m->columns,   m->values};
    for (size_t i = 0; i < G_N_ELEMENTS(arrays); i++)
        g_clear_pointer(&arrays[i], g_array_unref);
    *m = (cs_milp){0};
}

int cs_milp_column(cs_milp *m, double lower, double upper, double objective, bool integer)
{
    guint8 flag = integer;
    g_array_append_val(m->lower, lower);
    g_array_append_val(m->upper, upper);
    g_array_append_val(m->objective, objective);
    g_array_append_val(m->integer, flag);
    return (int)m->lower->len - 1;
}

int cs_milp_row(cs_milp *m, double lower, double upper)
{
    g_array_append_val(m->row_lower, lower);
    g_array_append_val(m->row_upper, upper);
    return (int)m->row_lower->len - 1;
}

void cs_milp_entry(cs_milp *m, int row, int column, double value)
{
    g_array_append_val(m->rows, row);
    g_array_append_val(m->columns, column);
    g_array_append_val(m->values, value);
}

bool cs_milp_check(const cs_milp *m, const double *x)
{
    guint n = m->lower->len, rows = m->row_lower->len;
    for (guint j = 0; j < n; j++) {
        double low = g_array_index(m->lower, double, j), high = g_array_index(m->upper, double, j);
        double slack = ROW_SLACK * MAX(1, fabs(x[j]));
        if (!isfinite(x[j]) || x[j] < low - slack || x[j] > high + slack)
            return false;
        if (g_array_index(m->integer, guint8, j) && fabs(x[j] - round(x[j])) > ROW_SLACK)
            return false;
    }
    g_autofree double *sum = g_new0(double, rows + 1), *size = g_new0(double, rows + 1);
    for (guint i = 0; i < m->rows->len; i++) {
        double term = g_array_index(m->values, double, i) * x[g_array_index(m->columns, int, i)];
        sum[g_array_index(m->rows, int, i)] += term;
        size[g_array_index(m->rows, int, i)] += fabs(term);
    }
    for (guint i = 0; i < rows; i++) {
        double slack = ROW_SLACK * MAX(1, size[i]);
        if (sum[i] < g_array_index(m->row_lower, double, i) - slack ||
            sum[i] > g_array_index(m->row_upper, double, i) + slack)
            return false;
    }
    return true;
}

/* ---- the child ---- */

typedef struct {
    int solved, infeasible, have_solution;
    double objective, bound;
} answer;

/* Non-zeros by column, as CBC wants them. Arrays are not freed: the child ends. */
static Cbc_Model *load_model(const cs_milp *m)
{
    int n = (int)m->lower->len, rows = (int)m->row_lower->len, nz = (int)m->rows->len;
    int *start = g_new0(int, n + 1), *fill = g_new0(int, n + 1);
    int *index = g_new(int, nz + 1);
    double *value = g_new(double, nz + 1);
    for (int i = 0; i < nz; i++)
        start[g_array_index(m->columns, int, i) + 1]++;
    for (int j = 0; j < n; j++)
        start[j + 1] += start[j];
    memcpy(fill, start, sizeof(int) * (size_t)(n + 1));
    for (int i = 0; i < nz; i++) {
        int at = fill[g_array_index(m->columns, int, i)]++;
        index[at] = g_array_index(m->rows, int, i);
        value[at] = g_array_index(m->values, double, i);
    }
    Cbc_Model *model = Cbc_newModel();
    Cbc_loadProblem(model, n, rows, start, index, value, (double *)(void *)m->lower->data,
                    (double *)(void *)m->upper->data, (double *)(void *)m->objective->data,
                    (double *)(void *)m->row_lower->data, (double *)(void *)m->row_upper->data);
    for (int j = 0; j < n; j++)
        if (g_array_index(m->integer, guint8, j))
            Cbc_setInteger(model, j);
    return model;
}

static bool write_all(int fd, const void *data, size_t size)
{
    const char *p = data;
    while (size > 0) {
        ssize_t n = write(fd, p, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        size -= (size_t)n;
    }
    return true;
}

static void child_solve(const cs_milp *m, const cs_milp_options *o, int fd)
{
    int n = (int)m->lower->len;
    Cbc_Model *model = load_model(m);
    Cbc_setLogLevel(model, 0);
    Cbc_setParameter(model, "log", "0");
    Cbc_setMaximumSeconds(model, o->seconds > 0 ? o->seconds : 60);
    Cbc_setAllowableFractionGap(model, o->gap);
    Cbc_setAllowableGap(model, 1e-9);
    if (o->start) {
        int *columns = g_new(int, n);
        for (int j = 0; j < n; j++)
            columns[j] = j;
        Cbc_setMIPStartI(model, n, columns, o->start);
    }
    Cbc_solve(model);
    answer a = {
        .solved = Cbc_isProvenOptimal(model),
        .infeasible = Cbc_isProvenInfeasible(model),
        .bound = Cbc_getBestPossibleObjValue(model),
        .objective = Cbc_getObjValue(model),
    };
    const double *x = Cbc_bestSolution(model);
    if (!x && a.solved)
        x = Cbc_getColSolution(model);
    a.have_solution = x != NULL;
    if (write_all(fd, &a, sizeof a) && x)
        write_all(fd, x, sizeof(double) * (size_t)n);
}

static void child_run(const cs_milp *m, const cs_milp_options *o, int fd)
{
    struct rlimit core = {0, 0};
#ifndef SANITIZED /* sanitizers map terabytes */
    struct rlimit memory = {CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES};
    setrlimit(RLIMIT_AS, &memory);
#endif
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setrlimit(RLIMIT_CORE, &core);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is the parent's to handle: it keeps the best so far */
    for (int s = 0; s < 3; s++) {
        static const int faults[] = {SIGSEGV, SIGABRT, SIGFPE};
        signal(faults[s], SIG_DFL);
    }
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
    }
    child_solve(m, o, fd);
    _exit(0);
}

/* ---- the parent ---- */

/* Reads up to size bytes until the deadline, end of file or cancellation. */
static size_t read_until(int fd, void *data, size_t size, int64_t deadline_us,
                         const volatile int *cancel)
{
    size_t have = 0;
    while (have < size && cs_now_us() < deadline_us && !(cancel && *cancel)) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 50) <= 0)
            continue;
        ssize_t n = read(fd, (char *)data + have, size - have);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            break;
        have += (size_t)n;
    }
    return have;
}

static double objective_of(const cs_milp *m, const double *x)
{
    double sum = 0;
    for (guint j = 0; j < m->objective->len; j++)
        sum += g_array_index(m->objective, double, j) * x[j];
    return sum;
}

static void receive(const cs_milp *m, const cs_milp_options *o, int fd, cs_milp_result *result)
{
    guint n = m->lower->len;
    double seconds = (o->seconds > 0 ? o->seconds : 60) + KILL_AFTER_S;
    int64_t deadline = cs_now_us() + (int64_t)(seconds * 1e6);
    answer a = {0};
    if (read_until(fd, &a, sizeof a, deadline, o->cancel) != sizeof a)
        return;
    result->bound = a.bound;
    if (a.infeasible)
        result->status = CS_MILP_INFEASIBLE;
    if (!a.have_solution)
        return;
    g_autofree double *x = g_new0(double, n + 1);
    if (read_until(fd, x, sizeof(double) * n, deadline, o->cancel) != sizeof(double) * n)
        return;
    for (guint j = 0; j < n; j++)
        if (g_array_index(m->integer, guint8, j) && fabs(x[j] - round(x[j])) <= ROW_SLACK)
            x[j] = round(x[j]);
    if (!cs_milp_check(m, x))
        return;
    result->objective = objective_of(m, x);
    result->status = a.solved ? CS_MILP_OPTIMAL : CS_MILP_FEASIBLE;
    if (a.solved)
        result->bound = MIN(result->objective, MAX(a.bound, -INFINITY));
    result->x = g_steal_pointer(&x);
}

/* The start, where the solver brought nothing (crashed, cancelled, out of time). */
static void fall_back(const cs_milp *m, const cs_milp_options *o, cs_milp_result *result)
{
    if (result->x || !o->start || !cs_milp_check(m, o->start))
        return;
    result->x = g_memdup2(o->start, sizeof(double) * m->lower->len);
    result->objective = objective_of(m, o->start);
    result->status = CS_MILP_FEASIBLE;
}

bool cs_milp_solve(const cs_milp *m, const cs_milp_options *options, cs_milp_result *result,
                   GError **error)
{
    *result = (cs_milp_result){.status = CS_MILP_UNKNOWN, .bound = -INFINITY};
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0)
        return cs_fail_errno(error, errno, "the solver's pipe cannot be made");
    pid_t pid = fork();
    if (pid == 0) {
        close(fds[0]);
        child_run(m, options, fds[1]);
    }
    close(fds[1]);
    if (pid < 0) {
        close(fds[0]);
        return cs_fail_errno(error, errno, "the solver's process cannot be made");
    }
    receive(m, options, fds[0], result);
    close(fds[0]);
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
    fall_back(m, options, result);
    return true;
}
