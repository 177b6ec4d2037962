/* Requests of subcommands to a server that runs. The key is $CORNSERVE_API_KEY. */
#ifndef CS_CLI_CLIENT_H
#define CS_CLI_CLIENT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#define CS_CLI_DEFAULT_URL "http://127.0.0.1:8000"

/* What the server answers to METHOD PATH; body NULL: none. base is "http://host:port", with or
 * without "/v1". NULL with the server's own sentence when it is an error. json_decref. */
json_t *cs_cli_request(const char *base, const char *method, const char *path, const json_t *body,
                       GError **error);

/* The same for an answer of server-sent events: each one's data as it comes. on_event returns false
 * to end with its error. */
bool cs_cli_stream(const char *base, const char *path, const json_t *body,
                   bool (*on_event)(void *user, const char *data, GError **error), void *user,
                   GError **error);

#endif
