#include "api_case.h"

#include "base/error.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void set_up(fixture *f, const cs_api_options *options)
{
    g_autoptr(GError) error = NULL;
    f->pipeline = fake_pipeline_new();
    f->api = cs_api_new(f->pipeline, options, &error);
    g_assert_no_error(error);
}

void tear_down(fixture *f)
{
    cs_api_free(f->api);
    g_assert_cmpuint(fake_pipeline_handles(f->pipeline), ==, 0);
    cs_pipeline_free(f->pipeline);
}

int dial_with_buffer(const fixture *f, int receive_bytes)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_bytes)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(cs_api_port(f->api)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    g_assert_cmpint(connect(fd, (struct sockaddr *)&to, sizeof(to)), ==, 0);
    return fd;
}

int dial(const fixture *f)
{
    return dial_with_buffer(f, 0);
}

void send_text(int fd, const char *text)
{
    size_t n = strlen(text);
    while (n > 0) {
        ssize_t sent = send(fd, text, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return; /* the server closed; what it said is read next */
        text += sent;
        n -= (size_t)sent;
    }
}

/* Reads to the end of the connection; fails the test after 20 s. */
GString *read_bytes(int fd)
{
    GString *got = g_string_new(NULL);
    char buffer[65536];
    for (;;) {
        struct pollfd p = {fd, POLLIN, 0};
        g_assert_cmpint(poll(&p, 1, 20000), ==, 1);
        ssize_t n = recv(fd, buffer, sizeof(buffer), 0);
        if (n <= 0)
            break;
        g_string_append_len(got, buffer, n);
    }
    close(fd);
    return got;
}

char *read_all(int fd)
{
    return g_string_free(read_bytes(fd), FALSE);
}

/* Takes the chunk sizes out of a chunked body. */
char *dechunk(char *response)
{
    char *body = strstr(response, "\r\n\r\n");
    if (!body || !strstr(response, "chunked"))
        return response;
    GString *out = g_string_new_len(response, body + 4 - response);
    for (body += 4;;) {
        char *end;
        gulong n = strtoul(body, &end, 16);
        if (n == 0 || end == body)
            break;
        g_string_append_len(out, end + 2, (gssize)n);
        body = end + 2 + n + 2;
    }
    g_free(response);
    return g_string_free(out, FALSE);
}

char *exchange_text(const fixture *f, const char *text)
{
    int fd = dial(f);
    send_text(fd, text);
    return dechunk(read_all(fd));
}

char *post_text(const char *path, const char *body)
{
    return g_strdup_printf(
        "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
        "Connection: close\r\n\r\n%s",
        path, strlen(body), body);
}

char *post(const fixture *f, const char *path, const char *body)
{
    g_autofree char *text = post_text(path, body);
    return exchange_text(f, text);
}

char *chat_body(const char *prompt, const char *more)
{
    return g_strdup_printf("{\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]%s}", prompt,
                           more);
}

char *chat(const fixture *f, const char *prompt, const char *more)
{
    g_autofree char *body = chat_body(prompt, more);
    return post(f, "/v1/chat/completions", body);
}

void assert_has(const char *text, const char *part)
{
    if (!strstr(text, part))
        g_error("expected \"%s\" in: %.3000s", part, text);
}

/* Not by strstr: sanitizers make it look at the whole of a long text each time. */
guint count(const char *text, const char *part)
{
    guint n = 0;
    for (const char *at = text; *at; at++)
        n += *at == *part && strncmp(at, part, strlen(part)) == 0;
    return n;
}

void wait_until_idle(const fixture *f)
{
    for (int i = 0;
         i < 300 && fake_pipeline_live(f->pipeline) + fake_pipeline_handles(f->pipeline) > 0; i++)
        g_usleep(10000);
    g_assert_cmpuint(fake_pipeline_live(f->pipeline), ==, 0);
    g_assert_cmpuint(fake_pipeline_handles(f->pipeline), ==, 0);
}

GByteArray *decode_events(const char *events, const char *member)
{
    GByteArray *all = g_byte_array_new();
    g_autofree char *opening = g_strdup_printf("\"%s\":\"", member);
    for (const char *at = events; (at = strstr(at, opening)); at++) {
        at += strlen(opening);
        g_autofree char *base64 = g_strndup(at, strcspn(at, "\""));
        gsize n;
        g_autofree guchar *bytes = g_base64_decode(base64, &n);
        g_byte_array_append(all, bytes, (guint)n);
    }
    return all;
}
