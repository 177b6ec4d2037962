/* What the API adds to a request: HTTP, parsing, streaming, in front of a pipeline that computes
 * nothing.
 *
 *     build/bench/api [SECONDS]
 *
 * Prints what 2,000 streams at once take; latencies of a streamed chat request of one token: one
 * client after the other, as many as go, and at 500 requests/s from 16 clients; then what a request
 * with 8 MiB of base64 costs.
 */
#include "api/api.h"
#include "base/log.h"
#include "base/os.h"
#include "fake_pipeline.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define N_CLIENTS 16

typedef struct {
    uint16_t port;
    const char *request;
    size_t request_bytes;
    int64_t interval_us; /* between the requests of one client; 0: none */
    int64_t end_us;
    GArray *latencies_us; /* int64_t */
} client;

static int dial(uint16_t port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
        perror("connect");
        exit(1);
    }
    return fd;
}

static void send_request(int fd, const client *c)
{
    for (size_t sent = 0; sent < c->request_bytes;) {
        ssize_t n = send(fd, c->request + sent, c->request_bytes - sent, MSG_NOSIGNAL);
        if (n <= 0)
            exit(1);
        sent += (size_t)n;
    }
}

/* Reads to the end of a chunked or plain answer. */
static void read_answer(int fd, const char *end)
{
    char buffer[65536];
    size_t got = 0;
    do {
        ssize_t n = recv(fd, buffer + got, sizeof(buffer) - 1 - got, 0);
        if (n <= 0) {
            fprintf(stderr, "the server closed: %.200s\n", buffer);
            exit(1);
        }
        got += (size_t)n;
        buffer[got] = '\0';
    } while (!g_str_has_suffix(buffer, end));
}

static void exchange(int fd, const client *c, const char *end)
{
    send_request(fd, c);
    read_answer(fd, end);
}

static gpointer client_main(gpointer user)
{
    client *c = user;
    int fd = dial(c->port);
    int64_t due_us =
        cs_now_us() + (c->interval_us ? g_random_int_range(0, (gint32)c->interval_us) : 0);
    while (due_us < c->end_us && cs_now_us() < c->end_us) {
        int64_t wait_us = due_us - cs_now_us();
        if (wait_us > 0)
            g_usleep((gulong)wait_us);
        int64_t begun_us = cs_now_us();
        exchange(fd, c, "0\r\n\r\n");
        int64_t took_us = cs_now_us() - begun_us;
        g_array_append_val(c->latencies_us, took_us);
        due_us = c->interval_us ? due_us + c->interval_us : cs_now_us();
    }
    close(fd);
    return NULL;
}

static gint compare(gconstpointer a, gconstpointer b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static void measure(const char *name, const client *model, guint n_clients, double seconds)
{
    client clients[N_CLIENTS];
    GThread *threads[N_CLIENTS];
    g_autoptr(GArray) all = g_array_new(FALSE, FALSE, sizeof(int64_t));
    for (guint i = 0; i < n_clients; i++) {
        clients[i] = *model;
        clients[i].end_us = cs_now_us() + (int64_t)(seconds * G_USEC_PER_SEC);
        clients[i].latencies_us = g_array_new(FALSE, FALSE, sizeof(int64_t));
        threads[i] = g_thread_new("client", client_main, &clients[i]);
    }
    for (guint i = 0; i < n_clients; i++) {
        g_thread_join(threads[i]);
        g_array_append_vals(all, clients[i].latencies_us->data, clients[i].latencies_us->len);
        g_array_unref(clients[i].latencies_us);
    }
    g_array_sort(all, compare);
    const int64_t *sorted = (const int64_t *)all->data;
    printf("%-34s %8.0f requests/s  median %6.2f ms  p99 %6.2f ms\n", name, all->len / seconds,
           (double)sorted[all->len / 2] / 1000, (double)sorted[all->len * 99 / 100] / 1000);
}

static char *http_post(const char *body)
{
    return g_strdup_printf(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: %zu\r\n\r\n%s",
        strlen(body), body);
}

static void measure_base64(uint16_t port)
{
    g_autofree char *base64 = g_strnfill(8 << 20, 'A');
    g_autofree char *body = g_strdup_printf(
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":"
        "{\"url\":\"data:image/png;base64,%s\"}},{\"type\":\"text\",\"text\":\"tokens=1\"}]}]}",
        base64);
    g_autofree char *request = http_post(body);
    client c = {.port = port, .request = request, .request_bytes = strlen(request)};
    int fd = dial(port);
    int64_t best_us = INT64_MAX;
    for (int i = 0; i < 20; i++) {
        int64_t begun_us = cs_now_us();
        exchange(fd, &c, "}");
        best_us = MIN(best_us, cs_now_us() - begun_us);
    }
    close(fd);
    printf("%-34s %.1f ms (least of 20), %.2f ms a MiB\n", "a request with 8 MiB of base64",
           (double)best_us / 1000, (double)best_us / 8000);
}

/* Many streams at once, of twenty tokens each; the memory is of both sides, and of the stand-in's
 * thread for each request. */
static void measure_streams(uint16_t port, guint n)
{
    g_autofree char *request = http_post("{\"stream\":true,\"messages\":[{\"role\":\"user\","
                                         "\"content\":\"tokens=20 delay=100\"}]}");
    client c = {.port = port, .request = request, .request_bytes = strlen(request)};
    g_autofree int *fds = g_new(int, n);
    size_t before_bytes = cs_process_resident_bytes();
    int64_t begun_us = cs_now_us();
    for (guint i = 0; i < n; i++) {
        fds[i] = dial(port);
        send_request(fds[i], &c);
    }
    int64_t sent_us = cs_now_us();
    size_t resident_bytes = cs_process_resident_bytes();
    for (guint i = 0; i < n; i++) {
        read_answer(fds[i], "0\r\n\r\n");
        resident_bytes = MAX(resident_bytes, cs_process_resident_bytes());
        close(fds[i]);
    }
    printf(
        "%u streams at once: begun in %.1f s, all ended after %.1f s; %.0f MiB resident, %.0f MiB "
        "before\n",
        n, (double)(sent_us - begun_us) * 1e-6, (double)(cs_now_us() - begun_us) * 1e-6,
        (double)resident_bytes / (1 << 20), (double)before_bytes / (1 << 20));
}

static void allow_descriptors(rlim_t n)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = MIN(limit.rlim_max, MAX(limit.rlim_cur, n));
    setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
    enum { N_STREAMS = 2000 };
    double seconds = argc > 1 ? g_ascii_strtod(argv[1], NULL) : 5;
    cs_log_set_level(CS_LOG_ERROR);
    allow_descriptors(2 * N_STREAMS + 100);
    g_autoptr(GError) error = NULL;
    cs_pipeline *pipeline = fake_pipeline_new();
    cs_api *api = cs_api_new(pipeline, &(cs_api_options){0}, &error);
    if (!api) {
        fprintf(stderr, "%s\n", error->message);
        return 1;
    }
    g_autofree char *request =
        http_post("{\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"tokens=1\"}]}");
    client c = {.port = cs_api_port(api), .request = request, .request_bytes = strlen(request)};
    measure_streams(c.port, N_STREAMS);
    measure("one client", &c, 1, seconds);
    measure("16 clients, as many as go", &c, N_CLIENTS, seconds);
    c.interval_us = N_CLIENTS * G_USEC_PER_SEC / 500;
    measure("16 clients, 500 requests/s", &c, N_CLIENTS, seconds);
    measure_base64(c.port);
    cs_api_free(api);
    cs_pipeline_free(pipeline);
    return 0;
}
