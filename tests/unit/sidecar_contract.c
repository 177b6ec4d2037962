/* The contract of sidecar.h, run over every transport. */
#include "base/error.h"
#include "base/fault.h"
#include "base/os.h"
#include "sidecar/sidecar.h"

#include <string.h>

typedef struct {
    const char *name;
    cs_sidecar *(*open)(const cs_sidecar_options *options, GError **error);
} transport;

static cs_sidecar *open_shared(const cs_sidecar_options *options, GError **error)
{
    return cs_sidecar_create_shared(options, "test", error);
}

static const transport transports[] = {
    {"local", cs_sidecar_open_local},
    {"shared", open_shared},
};

static cs_sidecar *open_small(const transport *t)
{
    g_autoptr(GError) error = NULL;
    cs_sidecar *s = t->open(
        &(cs_sidecar_options){.pool_bytes = 4 << 20, .request_quota_bytes = 1 << 20}, &error);
    g_assert_no_error(error);
    return s;
}

static void assert_empty(cs_sidecar *s)
{
    g_autoptr(GError) error = NULL;
    cs_sidecar_stats stats;
    cs_sidecar_get_stats(s, &stats);
    g_assert_cmpuint(stats.used_bytes, ==, 0);
    g_assert_cmpuint(stats.borrowed_bytes, ==, 0);
    g_assert_cmpuint(stats.requests, ==, 0);
    g_assert_cmpuint(stats.streams, ==, 0);
    g_assert_cmpuint(stats.chunks, ==, 0);
    cs_sidecar_check(s, &error);
    g_assert_no_error(error);
}

static void begin(cs_sidecar *s, uint64_t request)
{
    g_autoptr(GError) error = NULL;
    cs_sidecar_request_begin(s, request, 0, &error);
    g_assert_no_error(error);
}

static cs_sender *send_to(cs_sidecar *s, uint64_t request, uint32_t stream, uint32_t n_consumers)
{
    g_autoptr(GError) error = NULL;
    cs_sender *sender =
        cs_sender_open(s, request, stream, (cs_sender_options){.n_consumers = n_consumers}, &error);
    g_assert_no_error(error);
    return sender;
}

static cs_receiver *receive_from(cs_sidecar *s, uint64_t request, uint32_t stream, uint32_t place)
{
    g_autoptr(GError) error = NULL;
    cs_receiver *receiver = cs_receiver_open(s, request, stream, place, &error);
    g_assert_no_error(error);
    return receiver;
}

static void put_text(cs_sender *sender, const char *text)
{
    g_autoptr(GError) error = NULL;
    cs_chunk chunk;
    cs_sender_alloc(sender, strlen(text), 0, &chunk, &error);
    g_assert_no_error(error);
    memcpy(chunk.data, text, strlen(text));
    cs_sender_put(sender, &(cs_chunk_desc){.type = 3, .rank = 1, .shape = {strlen(text)}, .tag = 9},
                  &error);
    g_assert_no_error(error);
}

static void assert_text(cs_receiver *receiver, uint64_t sequence, const char *text)
{
    g_autoptr(GError) error = NULL;
    cs_chunk chunk;
    cs_receive got = cs_receiver_get(receiver, sequence, 0, &chunk, &error);
    g_assert_no_error(error);
    g_assert_cmpint(got, ==, CS_RECEIVE_CHUNK);
    g_assert_cmpmem(chunk.data, chunk.size_bytes, text, strlen(text));
    g_assert_cmpuint(chunk.sequence, ==, sequence);
    g_assert_cmpuint(chunk.desc.type, ==, 3);
    g_assert_cmpuint(chunk.desc.rank, ==, 1);
    g_assert_cmpuint(chunk.desc.shape[0], ==, strlen(text));
    g_assert_cmpuint(chunk.desc.tag, ==, 9);
}

static void assert_get(cs_receiver *receiver, uint64_t sequence, cs_receive expected, int code)
{
    g_autoptr(GError) error = NULL;
    cs_chunk chunk;
    g_assert_cmpint(cs_receiver_get(receiver, sequence, 0, &chunk, &error), ==, expected);
    if (expected == CS_RECEIVE_ERROR)
        g_assert_error(error, CS_ERROR, code);
    else
        g_assert_no_error(error);
}

/* Chunks reach every consumer, again and again until released, and are freed with the last. */
static void test_stream(const void *t)
{
    cs_sidecar *s = open_small(t);
    g_autoptr(GError) error = NULL;
    begin(s, 7);
    cs_receiver *a = receive_from(s, 7, 1, 0); /* before the producer */
    assert_get(a, 0, CS_RECEIVE_AGAIN, 0);
    cs_sender *sender = send_to(s, 7, 1, 2);
    put_text(sender, "first");
    put_text(sender, "second");
    cs_receiver *b = receive_from(s, 7, 1, 1);
    assert_text(a, 0, "first");
    assert_text(a, 0, "first");
    assert_text(b, 1, "second");
    assert_text(b, 0, "first");
    g_assert_cmpuint(cs_receiver_published(b), ==, 2);
    cs_receiver_release(a, 0);
    cs_receiver_release(a, 0);
    assert_get(a, 0, CS_RECEIVE_ERROR, CS_ERROR_INVALID);
    assert_text(b, 0, "first");
    cs_receiver_release(b, 0);
    cs_receiver_release(b, 1);
    assert_text(a, 1, "second");
    assert_get(a, 2, CS_RECEIVE_AGAIN, 0);
    g_assert_true(cs_sender_end(sender, &error));
    assert_get(a, 2, CS_RECEIVE_END, 0);
    cs_receiver_release(a, 1);
    cs_sidecar_stats stats;
    cs_sidecar_get_stats(s, &stats);
    g_assert_cmpuint(stats.used_bytes, ==, 0);
    g_assert_cmpuint(stats.chunks_total, ==, 2);
    g_assert_cmpuint(stats.bytes_total, ==, 11);
    cs_sender_close(sender);
    cs_receiver_close(a);
    cs_receiver_close(b);
    cs_sidecar_request_end(s, 7);
    assert_empty(s);
    cs_sidecar_close(s);
}

static void test_empty_chunks(const void *t)
{
    cs_sidecar *s = open_small(t);
    g_autoptr(GError) error = NULL;
    begin(s, 1);
    cs_sender *sender = send_to(s, 1, 1, 1);
    cs_chunk chunk;
    g_assert_true(cs_sender_alloc(sender, 0, 0, &chunk, &error));
    g_assert_nonnull(chunk.data);
    g_assert_true(cs_sender_put(sender, NULL, &error));
    cs_receiver *r = receive_from(s, 1, 1, 0);
    g_assert_cmpint(cs_receiver_get(r, 0, 0, &chunk, &error), ==, CS_RECEIVE_CHUNK);
    g_assert_cmpuint(chunk.size_bytes, ==, 0);
    cs_receiver_close(r);
    /* nobody is left to want it: gone at once */
    put_text(sender, "unwanted");
    cs_sidecar_stats stats;
    cs_sidecar_get_stats(s, &stats);
    g_assert_cmpuint(stats.chunks, ==, 0);
    cs_sender_close(sender);
    cs_sidecar_request_end(s, 1);
    assert_empty(s);
    cs_sidecar_close(s);
}

static void test_over(const void *t)
{
    cs_sidecar *s = open_small(t);
    begin(s, 1);
    g_assert_false(cs_sidecar_is_over(s, 1, 0));
    cs_receiver *receiver = receive_from(s, 1, 0, 0);
    g_assert_false(cs_sidecar_is_over(s, 1, 0));
    cs_sender *sender = send_to(s, 1, 0, 1);
    put_text(sender, "a");
    g_assert_false(cs_sidecar_is_over(s, 1, 0));
    g_assert_true(cs_sender_end(sender, NULL));
    g_assert_true(cs_sidecar_is_over(s, 1, 0));
    cs_sender_close(sender);
    g_assert_true(cs_sidecar_is_over(s, 1, 0));
    cs_receiver_close(receiver);
    g_assert_true(cs_sidecar_is_over(s, 1, 0));
    sender = send_to(s, 1, 1, 1);
    g_assert_false(cs_sidecar_is_over(s, 1, 1));
    cs_sender_close(sender); /* neither ended nor failed: it fails */
    g_assert_true(cs_sidecar_is_over(s, 1, 1));
    cs_sidecar_request_end(s, 1);
    g_assert_true(cs_sidecar_is_over(s, 1, 2));
    assert_empty(s);
    cs_sidecar_close(s);
}

static void test_known_length(const void *t)
{
    cs_sidecar *s = open_small(t);
    g_autoptr(GError) error = NULL;
    begin(s, 1);
    cs_sender *sender =
        cs_sender_open(s, 1, 1, (cs_sender_options){.n_consumers = 1, .n_chunks = 2}, &error);
    put_text(sender, "one");
    cs_receiver *r = receive_from(s, 1, 1, 0);
    g_assert_false(cs_sender_end(sender, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, "1 chunks, expected 2"));
    assert_text(r, 0, "one");
    assert_get(r, 1, CS_RECEIVE_ERROR, CS_ERROR_FAILED);
    cs_sender_close(sender);
    cs_receiver_close(r);
    cs_sidecar_request_end(s, 1);
    assert_empty(s);
    cs_sidecar_close(s);
}

/* An error comes after the chunks put before it, with its code and sentence; an abandoned stream
 * is an error too. */
static void test_errors(const void *t)
{
    cs_sidecar *s = open_small(t);
    begin(s, 1);
    cs_sender *sender = send_to(s, 1, 1, 1);
    cs_receiver *r = receive_from(s, 1, 1, 0);
    put_text(sender, "good");
    g_autoptr(GError) why = g_error_new(CS_ERROR, CS_ERROR_TOO_LARGE, "image 3: 90 megapixels");
    cs_sender_fail(sender, why);
    assert_text(r, 0, "good");
    g_autoptr(GError) error = NULL;
    cs_chunk chunk;
    g_assert_cmpint(cs_receiver_get(r, 1, -1, &chunk, &error), ==, CS_RECEIVE_ERROR);
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
    g_assert_cmpstr(error->message, ==, "image 3: 90 megapixels");
    g_clear_error(&error);
    g_assert_false(cs_sender_alloc(sender, 1, 0, &chunk, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_CONFLICT);
    cs_sender_close(sender);
    cs_receiver_close(r);
    sender = send_to(s, 1, 2, 1);
    r = receive_from(s, 1, 2, 0);
    g_clear_error(&error);
    g_assert_true(cs_sender_alloc(sender, 1, 0, &chunk, &error)); /* never put */
    cs_sender_close(sender);
    assert_get(r, 0, CS_RECEIVE_ERROR, CS_ERROR_CANCELLED);
    cs_receiver_close(r);
    cs_sidecar_request_end(s, 1);
    assert_empty(s);
    cs_sidecar_close(s);
}

static void assert_code(GError **error, int code)
{
    g_assert_error(*error, CS_ERROR, code);
    g_clear_error(error);
}

static void test_misuse(const void *t)
{
    cs_sidecar *s = open_small(t);
    g_autoptr(GError) error = NULL;
    g_assert_null(cs_sender_open(s, 5, 1, (cs_sender_options){.n_consumers = 1}, &error));
    assert_code(&error, CS_ERROR_CANCELLED); /* never begun, or ended: the same to executors */
    g_assert_null(cs_receiver_open(s, 5, 1, 0, &error));
    assert_code(&error, CS_ERROR_CANCELLED);
    begin(s, 5);
    g_assert_false(cs_sidecar_request_begin(s, 5, 0, &error));
    assert_code(&error, CS_ERROR_CONFLICT);
    g_assert_null(cs_sender_open(s, 5, 1, (cs_sender_options){.n_consumers = 32}, &error));
    assert_code(&error, CS_ERROR_INVALID);
    cs_sender *sender = send_to(s, 5, 1, 1);
    g_assert_null(cs_sender_open(s, 5, 1, (cs_sender_options){.n_consumers = 1}, &error));
    assert_code(&error, CS_ERROR_CONFLICT);
    g_assert_null(cs_receiver_open(s, 5, 1, 1, &error));
    assert_code(&error, CS_ERROR_INVALID);
    g_assert_null(cs_receiver_open(s, 5, 1, 40, &error));
    assert_code(&error, CS_ERROR_INVALID);
    cs_receiver *r = receive_from(s, 5, 1, 0);
    g_assert_null(cs_receiver_open(s, 5, 1, 0, &error));
    assert_code(&error, CS_ERROR_CONFLICT);
    g_assert_false(cs_sender_put(sender, NULL, &error));
    assert_code(&error, CS_ERROR_CONFLICT);
    cs_chunk chunk;
    g_assert_true(cs_sender_alloc(sender, 10, 0, &chunk, &error));
    g_assert_false(cs_sender_alloc(sender, 10, 0, &chunk, &error));
    assert_code(&error, CS_ERROR_CONFLICT);
    g_assert_false(cs_sender_put(sender, &(cs_chunk_desc){.rank = 7}, &error));
    assert_code(&error, CS_ERROR_INVALID);
    g_assert_true(cs_sender_put(sender, NULL, &error));
    cs_receiver_close(r);
    g_assert_null(cs_receiver_open(s, 5, 1, 0, &error));
    assert_code(&error, CS_ERROR_CONFLICT);
    cs_sender_close(sender);
    r = receive_from(s, 5, 2, 3);
    g_assert_null(cs_sender_open(s, 5, 2, (cs_sender_options){.n_consumers = 2}, &error));
    assert_code(&error, CS_ERROR_INVALID);
    cs_receiver_close(r);
    cs_sidecar_request_end(s, 5);
    cs_sidecar_request_end(s, 5);
    assert_empty(s);
    cs_sidecar_close(s);
}

/* --- quota --- */

static void test_quota(const void *t)
{
    cs_sidecar *s = open_small(t); /* quota 1 MiB */
    g_autoptr(GError) error = NULL;
    begin(s, 1);
    cs_sender *sender = send_to(s, 1, 1, 1);
    cs_receiver *r = receive_from(s, 1, 1, 0);
    cs_chunk chunk;
    g_assert_false(cs_sender_alloc(sender, (1 << 20) + 1, -1, &chunk, &error));
    assert_code(&error, CS_ERROR_TOO_LARGE);
    for (int i = 0; i < 2; i++) {
        g_assert_true(cs_sender_alloc(sender, 1 << 19, 0, &chunk, &error));
        g_assert_true(cs_sender_put(sender, NULL, &error));
    }
    g_assert_false(cs_sender_alloc(sender, 1, 0, &chunk, &error));
    assert_code(&error, CS_ERROR_BUSY);
    int64_t start = cs_now_us();
    g_assert_false(cs_sender_alloc(sender, 1, 20000, &chunk, &error));
    g_assert_cmpint(cs_now_us() - start, >=, 20000);
    assert_code(&error, CS_ERROR_BUSY);
    uint32_t seen = cs_sidecar_doorbell(s);
    g_assert_false(cs_sender_alloc(sender, 1, 0, &chunk, &error));
    assert_code(&error, CS_ERROR_BUSY);
    cs_receiver_release(r, 0); /* never got: a consumer may skip chunks */
    g_assert_cmpuint(cs_sidecar_doorbell(s), !=, seen);
    g_assert_true(cs_sender_alloc(sender, 1, 0, &chunk, &error));
    g_assert_true(cs_sender_put(sender, NULL, &error));
    cs_sender_close(sender);
    cs_receiver_close(r);
    cs_sidecar_request_end(s, 1);
    assert_empty(s);
    cs_sidecar_close(s);
}

/* A consumer that is slow to release holds up its producer, whatever memory there is. */
static void test_limit(const void *t)
{
    cs_sidecar *s = open_small(t);
    g_autoptr(GError) error = NULL;
    begin(s, 1);
    cs_sender *sender = send_to(s, 1, 1, 1);
    cs_receiver *r = receive_from(s, 1, 1, 0);
    cs_chunk chunk;
    cs_sender_limit(sender, 3);
    for (uint64_t i = 0; i < 10; i++) {
        if (i >= 3) {
            uint32_t seen = cs_sidecar_doorbell(s);
            g_assert_false(cs_sender_alloc(sender, 1, 0, &chunk, &error));
            assert_code(&error, CS_ERROR_BUSY);
            cs_receiver_release(r, i - 3);
            g_assert_cmpuint(cs_sidecar_doorbell(s), !=, seen);
        }
        g_assert_true(cs_sender_alloc(sender, 1, 0, &chunk, &error));
        g_assert_true(cs_sender_put(sender, NULL, &error));
    }
    cs_sender_limit(sender, 0);
    g_assert_true(cs_sender_alloc(sender, 1, 0, &chunk, &error));
    g_assert_true(cs_sender_put(sender, NULL, &error));
    cs_sender_close(sender);
    cs_receiver_close(r);
    cs_sidecar_request_end(s, 1);
    assert_empty(s);
    cs_sidecar_close(s);
}

static void test_pool_full(const void *t)
{
    cs_sidecar *s = open_small(t); /* 4 MiB */
    g_autoptr(GError) error = NULL;
    cs_sidecar_request_begin(s, 1, 64 << 20, &error);
    cs_sender *sender = send_to(s, 1, 1, 1);
    cs_chunk chunk;
    for (int i = 0; i < 4; i++) {
        g_assert_true(cs_sender_alloc(sender, 1 << 20, 0, &chunk, &error));
        g_assert_true(cs_sender_put(sender, NULL, &error));
    }
    g_assert_false(cs_sender_alloc(sender, 1, 0, &chunk, &error));
    assert_code(&error, CS_ERROR_BUSY);
    g_assert_false(cs_sender_alloc(sender, 5 << 20, -1, &chunk, &error));
    assert_code(&error, CS_ERROR_TOO_LARGE);
    cs_sender_close(sender);
    cs_sidecar_request_end(s, 1);
    assert_empty(s);
    cs_sidecar_close(s);
}

/* --- ends --- */

typedef struct {
    cs_sidecar *s;
    cs_sender *sender;
    cs_receiver *receiver;
    int code;
} blocked;

static gpointer block_in_get(gpointer data)
{
    blocked *b = data;
    g_autoptr(GError) error = NULL;
    cs_chunk chunk;
    g_assert_cmpint(cs_receiver_get(b->receiver, 0, -1, &chunk, &error), ==, CS_RECEIVE_ERROR);
    b->code = error->code;
    return NULL;
}

static gpointer block_in_alloc(gpointer data)
{
    blocked *b = data;
    g_autoptr(GError) error = NULL;
    cs_chunk chunk;
    while (cs_sender_alloc(b->sender, 1 << 18, -1, &chunk, &error))
        g_assert_true(cs_sender_put(b->sender, NULL, NULL));
    b->code = error->code;
    return NULL;
}

/* Ending a request wakes everybody in it; held chunks stay readable until released. */
static void test_request_end(const void *t)
{
    cs_sidecar *s = open_small(t);
    begin(s, 1);
    blocked get = {.s = s, .receiver = receive_from(s, 1, 1, 0)};
    blocked alloc = {.s = s, .sender = send_to(s, 1, 2, 1)};
    cs_sender *sender = send_to(s, 1, 3, 1);
    cs_receiver *holder = receive_from(s, 1, 3, 0);
    put_text(sender, "held");
    put_text(sender, "not held");
    g_autoptr(GError) error = NULL;
    cs_chunk held;
    g_assert_cmpint(cs_receiver_get(holder, 0, 0, &held, &error), ==, CS_RECEIVE_CHUNK);
    cs_sender *writer = send_to(s, 1, 4, 1);
    cs_chunk writing;
    g_assert_true(cs_sender_alloc(writer, 100, 0, &writing, &error));
    GThread *a = g_thread_new("get", block_in_get, &get);
    GThread *b = g_thread_new("alloc", block_in_alloc, &alloc);
    cs_sidecar_stats stats;
    do {
        g_usleep(1000);
        cs_sidecar_get_stats(s, &stats);
    } while (stats.chunks < 6); /* three more fit into the quota */
    cs_sidecar_request_end(s, 1);
    g_thread_join(a);
    g_assert_cmpint(get.code, ==, CS_ERROR_CANCELLED);
    g_thread_join(b);
    g_assert_cmpmem(held.data, held.size_bytes, "held", 4);
    memset(writing.data, 1, 100);
    cs_sidecar_get_stats(s, &stats);
    g_assert_cmpuint(stats.requests, ==, 1);
    assert_get(holder, 0, CS_RECEIVE_ERROR, CS_ERROR_CANCELLED);
    cs_receiver_release(holder, 0);
    g_assert_false(cs_sender_put(writer, NULL, &error));
    assert_code(&error, CS_ERROR_CANCELLED);
    begin(s, 2);
    cs_receiver_close(holder);
    cs_receiver_close(get.receiver);
    cs_sender_close(alloc.sender);
    cs_sender_close(sender);
    cs_sender_close(writer);
    cs_sidecar_request_end(s, 2);
    assert_empty(s);
    cs_sidecar_close(s);
}

/* --- hand-over --- */

static int n_freed;

static void count_freed(gpointer data)
{
    n_freed++;
    g_free(data);
}

static void test_put_bytes(const void *data)
{
    const transport *t = data;
    cs_sidecar *s = open_small(t);
    g_autoptr(GError) error = NULL;
    bool local = strcmp(t->name, "local") == 0;
    begin(s, 1);
    n_freed = 0;
    void *memory = g_strdup("tensor");
    GBytes *bytes = g_bytes_new_with_free_func(memory, 6, count_freed, memory);
    cs_sender *sender = send_to(s, 1, 1, 1);
    g_assert_true(cs_sender_put_bytes(sender, bytes, NULL, 0, &error));
    g_bytes_unref(bytes);
    cs_receiver *r = receive_from(s, 1, 1, 0);
    cs_chunk chunk;
    g_assert_cmpint(cs_receiver_get(r, 0, 0, &chunk, &error), ==, CS_RECEIVE_CHUNK);
    g_assert_cmpmem(chunk.data, chunk.size_bytes, "tensor", 6);
    g_assert_cmpint(n_freed, ==, local ? 0 : 1);
    g_assert_true((chunk.data == memory) == local); /* in-process: the very bytes */
    cs_receiver_release(r, 0);
    g_assert_cmpint(n_freed, ==, 1);
    cs_receiver_close(r);
    cs_sender_close(sender);
    cs_sidecar_request_end(s, 1);
    assert_empty(s);
    cs_sidecar_close(s);
}

/* --- many threads --- */

enum { PAIRS = 4, CHUNKS = 400 };

typedef struct {
    cs_sidecar *s;
    uint64_t request;
} pair;

static gpointer produce(gpointer data)
{
    const pair *p = data;
    g_autoptr(GError) error = NULL;
    cs_sender *sender = send_to(p->s, p->request, 1, 2);
    for (uint32_t i = 0; i < CHUNKS; i++) {
        size_t size_bytes = 1 + (i * 7919 + p->request) % 60000;
        cs_chunk chunk;
        cs_sender_alloc(sender, size_bytes, -1, &chunk, &error);
        g_assert_no_error(error);
        memset(chunk.data, (int)(i ^ p->request) & 0xff, size_bytes);
        cs_sender_put(sender, &(cs_chunk_desc){.tag = i}, &error);
        g_assert_no_error(error);
    }
    cs_sender_end(sender, &error);
    g_assert_no_error(error);
    cs_sender_close(sender);
    return NULL;
}

static gpointer consume(gpointer data)
{
    const pair *p = data;
    g_autoptr(GError) error = NULL;
    cs_receiver *r = cs_receiver_open(p->s, p->request, 1, 0, &error);
    cs_receiver *other = cs_receiver_open(p->s, p->request, 1, 1, &error);
    g_assert_no_error(error);
    cs_chunk chunk;
    uint32_t n = 0;
    while (cs_receiver_get(r, n, -1, &chunk, &error) == CS_RECEIVE_CHUNK) {
        g_assert_cmpuint(chunk.desc.tag, ==, n);
        g_assert_cmpuint(chunk.data[0], ==, (n ^ p->request) & 0xff);
        g_assert_cmpuint(chunk.data[chunk.size_bytes - 1], ==, (n ^ p->request) & 0xff);
        cs_receiver_release(r, n);
        if (n % 2)
            cs_receiver_release(other, n - 1);
        if (n % 2)
            cs_receiver_release(other, n);
        n++;
    }
    g_assert_no_error(error);
    g_assert_cmpuint(n, ==, CHUNKS);
    cs_receiver_close(r);
    cs_receiver_close(other);
    return NULL;
}

static void test_threads(const void *t)
{
    cs_sidecar *s = open_small(t);
    GThread *threads[2 * PAIRS];
    pair pairs[PAIRS];
    for (int i = 0; i < PAIRS; i++) {
        pairs[i] = (pair){s, (uint64_t)i + 1};
        begin(s, pairs[i].request);
        threads[2 * i] = g_thread_new("produce", produce, &pairs[i]);
        threads[2 * i + 1] = g_thread_new("consume", consume, &pairs[i]);
    }
    for (int i = 0; i < 2 * PAIRS; i++)
        g_thread_join(threads[i]);
    for (int i = 0; i < PAIRS; i++)
        cs_sidecar_request_end(s, pairs[i].request);
    assert_empty(s);
    cs_sidecar_close(s);
}

/* One loop over many streams by the doorbell. */
static void test_doorbell(const void *t)
{
    cs_sidecar *s = open_small(t);
    pair p = {s, 3};
    begin(s, 3);
    cs_receiver *r[2] = {receive_from(s, 3, 1, 0), receive_from(s, 3, 1, 1)};
    GThread *thread = g_thread_new("produce", produce, &p);
    uint64_t next[2] = {0, 0};
    while (next[0] < CHUNKS || next[1] < CHUNKS) {
        uint32_t seen = cs_sidecar_doorbell(s);
        bool idle = true;
        for (int i = 0; i < 2; i++) {
            g_autoptr(GError) error = NULL;
            cs_chunk chunk;
            if (cs_receiver_get(r[i], next[i], 0, &chunk, &error) != CS_RECEIVE_CHUNK)
                continue;
            cs_receiver_release(r[i], next[i]++);
            idle = false;
        }
        if (idle)
            cs_sidecar_wait(s, seen, -1);
    }
    g_thread_join(thread);
    uint32_t seen = cs_sidecar_doorbell(s);
    cs_sidecar_ring(s);
    cs_sidecar_wait(s, seen, -1);
    int64_t start = cs_now_us();
    cs_sidecar_wait(s, cs_sidecar_doorbell(s), 10000);
    g_assert_cmpint(cs_now_us() - start, >=, 10000);
    cs_receiver_close(r[0]);
    cs_receiver_close(r[1]);
    cs_sidecar_request_end(s, 3);
    assert_empty(s);
    cs_sidecar_close(s);
}

/* --- faults: whichever call fails, ending the request leaves nothing behind --- */

static bool scenario(cs_sidecar *s)
{
    g_autoptr(GError) error = NULL;
    cs_chunk chunk;
    bool ok = cs_sidecar_request_begin(s, 1, 0, &error);
    cs_sender *sender =
        ok ? cs_sender_open(s, 1, 1, (cs_sender_options){.n_consumers = 1}, &error) : NULL;
    cs_receiver *r = sender ? cs_receiver_open(s, 1, 1, 0, &error) : NULL;
    g_autoptr(GBytes) bytes = g_bytes_new_static("abc", 3);
    ok = r && cs_sender_alloc(sender, 5000, 0, &chunk, &error) &&
         cs_sender_put(sender, NULL, &error) &&
         cs_receiver_get(r, 0, 0, &chunk, &error) == CS_RECEIVE_CHUNK &&
         cs_sender_put_bytes(sender, bytes, NULL, 0, &error) && cs_sender_end(sender, &error) &&
         cs_receiver_get(r, 1, 0, &chunk, &error) == CS_RECEIVE_CHUNK &&
         cs_receiver_get(r, 2, 0, &chunk, &error) == CS_RECEIVE_END;
    g_assert_true(ok == (error == NULL));
    cs_receiver_close(r);
    cs_sender_close(sender);
    cs_sidecar_request_end(s, 1);
    return ok;
}

static void test_faults(const void *t)
{
    cs_sidecar *s = open_small(t);
    static const cs_fault_point points[] = {CS_FAULT_SIDECAR_ALLOC, CS_FAULT_SIDECAR_SEND,
                                            CS_FAULT_SIDECAR_RECEIVE};
    for (unsigned i = 0; i < G_N_ELEMENTS(points); i++) {
        for (uint32_t n = 1;; n++) {
            cs_fault_arm(points[i], n);
            bool ok = scenario(s);
            bool unused = cs_fault_pending(points[i]);
            cs_fault_disarm();
            assert_empty(s);
            g_assert_true(ok == unused);
            if (unused) {
                g_assert_cmpuint(n, >, 2); /* the scenario passes each point twice or more */
                break;
            }
        }
    }
    cs_sidecar_close(s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    static const struct {
        const char *name;
        void (*run)(const void *);
    } tests[] = {
        {"stream", test_stream},       {"empty_chunks", test_empty_chunks},
        {"over", test_over},           {"known_length", test_known_length},
        {"errors", test_errors},       {"misuse", test_misuse},
        {"quota", test_quota},         {"limit", test_limit},
        {"pool_full", test_pool_full}, {"request_end", test_request_end},
        {"put_bytes", test_put_bytes}, {"threads", test_threads},
        {"doorbell", test_doorbell},   {"faults", test_faults},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(transports); i++) {
        for (unsigned k = 0; k < G_N_ELEMENTS(tests); k++) {
            g_autofree char *path =
                g_strdup_printf("/sidecar/%s/%s", transports[i].name, tests[k].name);
            g_test_add_data_func(path, &transports[i], tests[k].run);
        }
    }
    return g_test_run();
}
