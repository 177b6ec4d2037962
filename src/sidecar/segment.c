#include "sidecar/segment.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* --- layout --- */

static const cs_sidecar_options defaults = {
    .pool_bytes = 1ull << 30,
    .request_quota_bytes = 256ull << 20,
    .requests_max = 8192,
    .streams_max = 65536,
    .chunks_max = 262144,
    .participants_max = 512,
};

static cs_sidecar_options with_defaults(const cs_sidecar_options *given)
{
    cs_sidecar_options o = given ? *given : defaults;
#define OR_DEFAULT(member) o.member = o.member ? o.member : defaults.member
    OR_DEFAULT(pool_bytes);
    OR_DEFAULT(request_quota_bytes);
    OR_DEFAULT(requests_max);
    OR_DEFAULT(streams_max);
    OR_DEFAULT(chunks_max);
    OR_DEFAULT(participants_max);
#undef OR_DEFAULT
    return o;
}

static uint64_t take_room(uint64_t *at, uint64_t count, uint64_t size)
{
    uint64_t start = (*at + 63) & ~63ull;
    *at = start + count * size;
    return start;
}

/* Fills the sizes and offsets of a header; the counts were bounded before. */
static void lay_out(seg_header *h, const cs_sidecar_options *o)
{
    h->header_bytes = sizeof(*h);
    h->default_quota_bytes = o->request_quota_bytes;
    h->unit_count = (uint32_t)(o->pool_bytes / SEG_UNIT);
    h->bucket_count = o->requests_max;
    h->participants.max = o->participants_max;
    h->requests.max = o->requests_max;
    h->streams.max = o->streams_max;
    h->chunks.max = o->chunks_max;
    uint64_t at = sizeof(*h);
    h->participants_at = take_room(&at, o->participants_max, sizeof(seg_participant));
    h->requests_at = take_room(&at, o->requests_max, sizeof(seg_request));
    h->streams_at = take_room(&at, o->streams_max, sizeof(seg_stream));
    h->chunks_at = take_room(&at, o->chunks_max, sizeof(seg_chunk));
    h->buckets_at = take_room(&at, h->bucket_count, sizeof(uint32_t));
    h->links_at = take_room(&at, h->unit_count, sizeof(seg_unit_link));
    h->tags_at = take_room(&at, h->unit_count, 1);
    h->pool_at = (at + SEG_UNIT - 1) / SEG_UNIT * SEG_UNIT;
    h->segment_bytes = h->pool_at + (uint64_t)h->unit_count * SEG_UNIT;
}

static void resolve(segment *s)
{
    s->h = (seg_header *)s->map;
    s->participants = (seg_participant *)(s->map + s->h->participants_at);
    s->requests = (seg_request *)(s->map + s->h->requests_at);
    s->streams = (seg_stream *)(s->map + s->h->streams_at);
    s->chunks = (seg_chunk *)(s->map + s->h->chunks_at);
    s->buckets = (uint32_t *)(s->map + s->h->buckets_at);
    s->links = (seg_unit_link *)(s->map + s->h->links_at);
    s->tags = s->map + s->h->tags_at;
    s->pool = s->map + s->h->pool_at;
    s->me = SEG_NONE;
}

static void init_lock(pthread_mutex_t *lock, bool shared)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    if (shared) {
        pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    }
    pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static bool check_options(const cs_sidecar_options *o, GError **error)
{
    if (o->pool_bytes < SEG_UNIT || o->pool_bytes / SEG_UNIT > (1u << 31))
        return cs_fail(error, CS_ERROR_INVALID,
                       "sidecar: pool of %" G_GUINT64_FORMAT " bytes, expected 4 KiB to 8 TiB",
                       o->pool_bytes);
    if (o->requests_max > (1u << 24) || o->streams_max > (1u << 24) || o->chunks_max > (1u << 28) ||
        o->participants_max > (1u << 16))
        return cs_fail(error, CS_ERROR_INVALID,
                       "sidecar: tables of %u requests, %u streams, %u chunks, %u participants, "
                       "expected at most 2^24, 2^24, 2^28, 2^16",
                       o->requests_max, o->streams_max, o->chunks_max, o->participants_max);
    return true;
}

static void *map_new(int fd, uint64_t bytes, GError **error)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED | MAP_NORESERVE;
    void *map = cs_fault_errno(CS_FAULT_SIDECAR_OPEN, ENOMEM)
                    ? MAP_FAILED
                    : mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (map != MAP_FAILED)
        return map;
    cs_fail_errno(error, errno, "sidecar: cannot map %" G_GUINT64_FORMAT " bytes", bytes);
    return NULL;
}

static int make_memfd(uint64_t bytes, GError **error)
{
    int fd = cs_fault_errno(CS_FAULT_SIDECAR_OPEN, EMFILE)
                 ? -1
                 : memfd_create("cornserve-sidecar", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    /* sealed, so that no participant can shrink it under the others (SIGBUS) */
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0)
        return fd;
    cs_fail_errno(error, errno, "sidecar: cannot make a segment of %" G_GUINT64_FORMAT " bytes",
                  bytes);
    if (fd >= 0)
        close(fd);
    return -1;
}

segment *seg_create(const cs_sidecar_options *options, bool shared, GError **error)
{
    cs_sidecar_options o = with_defaults(options);
    if (!check_options(&o, error))
        return NULL;
    g_autofree seg_header *plan = g_new0(seg_header, 1);
    lay_out(plan, &o);
    int fd = shared ? make_memfd(plan->segment_bytes, error) : -1;
    if (shared && fd < 0)
        return NULL;
    uint8_t *map = map_new(fd, plan->segment_bytes, error);
    if (!map) {
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    segment *s = g_new0(segment, 1);
    s->map = map;
    s->map_bytes = plan->segment_bytes;
    s->base.fd = fd;
    memcpy(map, plan, sizeof(*plan));
    resolve(s);
    init_lock(&s->h->lock, shared);
    atomic_init(&s->h->lock_holder, SEG_NONE);
    s->h->participants.free = s->h->requests.free = SEG_NONE;
    s->h->streams.free = s->h->chunks.free = SEG_NONE;
    memset(s->buckets, 0xff, s->h->bucket_count * sizeof(uint32_t));
    pool_init(s);
    s->h->version = SEG_VERSION;
    s->h->magic = SEG_MAGIC;
    s->dropped = g_ptr_array_new();
    return s;
}

segment *seg_map(int fd, GError **error)
{
    struct stat st;
    if (fstat(fd, &st) < 0) {
        cs_fail_errno(error, errno, "sidecar: descriptor %d", fd);
        return NULL;
    }
    if (st.st_size < (off_t)sizeof(seg_header)) {
        cs_fail(error, CS_ERROR_INVALID,
                "sidecar: descriptor %d: %" G_GINT64_FORMAT " bytes, expected a segment", fd,
                (gint64)st.st_size);
        return NULL;
    }
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    uint8_t *map = copy < 0 ? NULL : map_new(copy, (uint64_t)st.st_size, error);
    if (!map) {
        if (copy < 0)
            cs_fail_errno(error, errno, "sidecar: descriptor %d", fd);
        else
            close(copy);
        return NULL;
    }
    const seg_header *h = (const seg_header *)map;
    if (h->magic != SEG_MAGIC || h->version != SEG_VERSION || h->header_bytes != sizeof(*h) ||
        h->segment_bytes != (uint64_t)st.st_size) {
        cs_fail(error, CS_ERROR_INVALID, "sidecar: descriptor %d: no segment of version %u", fd,
                SEG_VERSION);
        munmap(map, (size_t)st.st_size);
        close(copy);
        return NULL;
    }
    segment *s = g_new0(segment, 1);
    s->map = map;
    s->map_bytes = (size_t)st.st_size;
    s->base.fd = copy;
    resolve(s);
    s->dropped = g_ptr_array_new();
    return s;
}

void seg_unmap(segment *s)
{
    munmap(s->map, s->map_bytes);
    if (s->base.fd >= 0)
        close(s->base.fd);
    g_ptr_array_free(s->dropped, TRUE);
    g_free(s);
}

/* --- journal and lock --- */

static uint64_t load(const void *field, size_t width)
{
    uint64_t value = 0;
    memcpy(&value, field, width); /* little-endian, as every target of this program */
    return value;
}

void seg_store(segment *s, void *field, size_t width, uint64_t value)
{
    if (cs_fault_pending(CS_FAULT_SIDECAR_STORE) && cs_fault_hit(CS_FAULT_SIDECAR_STORE))
        raise(SIGKILL);
    uint32_t n = atomic_load_explicit(&s->h->journal_count, memory_order_relaxed);
    g_assert(n < SEG_JOURNAL_MAX);
    s->h->journal[n] = (seg_journal_entry){
        .offset = (uint64_t)((uint8_t *)field - s->map), .width = width, .old = load(field, width)};
    /* A kill stops a thread between two instructions: the order of stores in the program is all
     * that matters, and the fences keep the compiler to it. */
    atomic_store_explicit(&s->h->journal_count, n + 1, memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
    memcpy(field, &value, width);
    atomic_signal_fence(memory_order_seq_cst);
}

void seg_commit(segment *s)
{
    atomic_signal_fence(memory_order_seq_cst);
    atomic_store_explicit(&s->h->journal_count, 0, memory_order_release);
}

static void roll_back(segment *s)
{
    uint32_t n = atomic_load(&s->h->journal_count);
    while (n > 0) {
        const seg_journal_entry *e = &s->h->journal[--n];
        memcpy(s->map + e->offset, &e->old, e->width);
        atomic_store(&s->h->journal_count, n);
    }
}

/* State letter and start time of a process from /proc/PID/stat; false when there is none. */
static bool process_stat(uint32_t pid, char *state, uint64_t *start_time)
{
    char path[32], text[512];
    snprintf(path, sizeof(path), "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = '\0';
    const char *p = strrchr(text, ')'); /* the name before it may hold anything */
    unsigned long long start = 0;
    if (!p || sscanf(p + 1,
                     " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d "
                     "%*d %*d %llu",
                     state, &start) != 2)
        return false;
    *start_time = start;
    return true;
}

/* The lock has not come for a while. A section takes microseconds: who holds it is stopped, or has
 * gone astray in damaged metadata, and holds up the whole node. It is killed; the lock then comes
 * with EOWNERDEAD. */
static void kill_holder(segment *s, int64_t waited_us)
{
    uint32_t holder = atomic_load(&s->h->lock_holder);
    if (holder == SEG_NONE || holder == s->me || holder >= s->h->participants.max)
        return;
    const seg_participant *p = &s->participants[holder];
    char state = 0;
    uint64_t start_time = 0;
    if (p->live && process_stat(p->pid, &state, &start_time) && start_time == p->start_time &&
        (state == 'T' || state == 't' || waited_us > SEG_LOCK_HELD_MAX_US))
        kill((pid_t)p->pid, SIGKILL);
}

static int lock_patiently(segment *s)
{
    int64_t start_us = cs_now_us();
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += SEG_WAIT_SLICE_US * 1000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        int result = pthread_mutex_timedlock(&s->h->lock, &until);
        if (result != ETIMEDOUT)
            return result;
        kill_holder(s, cs_now_us() - start_us);
    }
}

void seg_lock(segment *s)
{
    int result = pthread_mutex_trylock(&s->h->lock);
    if (result == EBUSY)
        result = lock_patiently(s);
    if (result == EOWNERDEAD) {
        roll_back(s);
        pthread_mutex_consistent(&s->h->lock);
    }
    atomic_store_explicit(&s->h->lock_holder, s->me, memory_order_relaxed);
}

static void futex_wake_all(seg_word *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void seg_unlock(segment *s)
{
    seg_word *wakes[SEG_WAKES_MAX];
    unsigned n_wakes = s->n_wakes;
    memcpy(wakes, s->wakes, n_wakes * sizeof(wakes[0]));
    s->n_wakes = 0;
    GPtrArray *dropped = NULL;
    if (s->dropped->len > 0) {
        dropped = s->dropped;
        s->dropped = g_ptr_array_new();
    }
    seg_commit(s);
    atomic_store_explicit(&s->h->lock_holder, SEG_NONE, memory_order_relaxed);
    pthread_mutex_unlock(&s->h->lock);
    for (unsigned i = 0; i < n_wakes; i++)
        futex_wake_all(wakes[i]);
    if (dropped) {
        g_ptr_array_foreach(dropped, (GFunc)(void (*)(void))g_bytes_unref, NULL);
        g_ptr_array_free(dropped, TRUE);
    }
}

/* --- waiting --- */

void seg_wake(segment *s, seg_word *event, seg_word *waiters)
{
    atomic_fetch_add(event, 1);
    if (atomic_load(waiters) == 0)
        return;
    if (s->n_wakes < SEG_WAKES_MAX)
        s->wakes[s->n_wakes++] = event;
    else
        futex_wake_all(event);
}

void seg_sleep(seg_word *event, seg_word *waiters, uint32_t seen, int64_t deadline_us)
{
    int64_t left = SEG_WAIT_SLICE_US;
    if (deadline_us >= 0)
        left = MIN(left, deadline_us - cs_now_us());
    if (left <= 0)
        return;
    struct timespec timeout = {.tv_sec = left / 1000000, .tv_nsec = left % 1000000 * 1000};
    atomic_fetch_add(waiters, 1);
    if (atomic_load(event) == seen)
        syscall(SYS_futex, event, FUTEX_WAIT, seen, &timeout, NULL, 0);
    atomic_fetch_sub(waiters, 1);
}

/* --- tables and participants --- */

uint32_t seg_table_take(segment *s, seg_table *table, uint32_t (*next_of)(segment *, uint32_t))
{
    uint32_t index = table->free;
    if (index != SEG_NONE) {
        SEG_SET(s, table->free, next_of(s, index));
    } else if (table->high < table->max) {
        index = table->high;
        SEG_SET(s, table->high, index + 1);
    } else {
        return SEG_NONE;
    }
    SEG_SET(s, table->used, table->used + 1);
    return index;
}

bool seg_participant_alive(segment *s, uint32_t participant)
{
    const seg_participant *p = &s->participants[participant];
    uint64_t start_time = 0;
    char state = 0;
    return p->live && process_stat(p->pid, &state, &start_time) && start_time == p->start_time &&
           state != 'Z' && state != 'X';
}

bool seg_participant_join(segment *s, const char *name, GError **error)
{
    uint64_t start_time = 0;
    char state = 0;
    process_stat((uint32_t)getpid(), &state, &start_time);
    seg_lock(s);
    uint32_t i = 0;
    while (i < s->h->participants.high && s->participants[i].live)
        i++;
    if (i == s->h->participants.max) {
        seg_unlock(s);
        return cs_fail(error, CS_ERROR_BUSY, "sidecar: %u processes have joined, none can more", i);
    }
    seg_participant *p = &s->participants[i];
    g_strlcpy(p->name, name, sizeof(p->name));
    SEG_SET(s, p->pid, getpid());
    SEG_SET(s, p->start_time, start_time);
    SEG_SET(s, p->wants_space, 0);
    SEG_SET(s, p->live, 1);
    if (i == s->h->participants.high)
        SEG_SET(s, s->h->participants.high, i + 1);
    SEG_SET(s, s->h->participants.used, s->h->participants.used + 1);
    s->me = i;
    seg_unlock(s);
    return true;
}
