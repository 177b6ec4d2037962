/* The API over real sockets: what its tests share, and a client of few words. */
#ifndef CS_TESTS_API_CASE_H
#define CS_TESTS_API_CASE_H

#include "api/api.h"
#include "fake_pipeline.h"

typedef struct {
    cs_pipeline *pipeline;
    cs_api *api;
} fixture;

/* The API in front of a pipeline that computes nothing. */
void set_up(fixture *f, const cs_api_options *options);
void tear_down(fixture *f);
int dial_with_buffer(const fixture *f, int receive_bytes);
int dial(const fixture *f);
void send_text(int fd, const char *text);
/* Reads to the end of the connection and closes it; fails the test after 20 s. */
GString *read_bytes(int fd);
char *read_all(int fd);
/* Takes the chunk sizes out of a chunked body. */
char *dechunk(char *response);
/* Sends a request that says Connection: close; the response. g_free. */
char *exchange_text(const fixture *f, const char *text);
char *post_text(const char *path, const char *body);
char *post(const fixture *f, const char *path, const char *body);
char *chat_body(const char *prompt, const char *more);
char *chat(const fixture *f, const char *prompt, const char *more);
void assert_has(const char *text, const char *part);
/* How often the part stands in the text. */
guint count(const char *text, const char *part);
/* Fails the test when a request lives on. */
void wait_until_idle(const fixture *f);

/* What the member decodes to in all events that have it, one after another. */
GByteArray *decode_events(const char *events, const char *member);

#endif
