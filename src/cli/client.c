#include "cli/client.h"

#include "base/error.h"
#include "base/json.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MAX_BYTES (64u << 20)
#define CONNECT_TIMEOUT_S 10L

typedef struct {
    GString *text; /* that is not handled yet */
    bool (*on_event)(void *user, const char *data, GError **error);
    void *user;
    bool is_stream;
    GError *error;
    CURL *easy;
} answer;

static void take_events(answer *a)
{
    char *end;
    while (!a->error && (end = strstr(a->text->str, "\n\n"))) {
        *end = '\0';
        const char *data = g_str_has_prefix(a->text->str, "data: ") ? a->text->str + 6 : NULL;
        if (data && strcmp(data, "[DONE]") != 0)
            a->on_event(a->user, data, &a->error);
        g_string_erase(a->text, 0, end + 2 - a->text->str);
    }
}

static size_t on_data(char *data, size_t size, size_t n, void *user)
{
    answer *a = user;
    const char *type = NULL;
    if (a->text->len + n > ANSWER_MAX_BYTES) {
        cs_fail(&a->error, CS_ERROR_TOO_LARGE, "the answer is over %u bytes", ANSWER_MAX_BYTES);
        return 0;
    }
    g_string_append_len(a->text, data, (gssize)n);
    curl_easy_getinfo(a->easy, CURLINFO_CONTENT_TYPE, &type);
    a->is_stream = a->on_event && type && g_str_has_prefix(type, "text/event-stream");
    if (a->is_stream)
        take_events(a);
    return a->error ? 0 : n;
}

static char *full_url(const char *base, const char *path)
{
    g_autofree char *root = g_strdup(base);
    while (g_str_has_suffix(root, "/"))
        root[strlen(root) - 1] = '\0';
    if (g_str_has_suffix(root, "/v1"))
        root[strlen(root) - strlen("/v1")] = '\0';
    return g_strconcat(strstr(root, "://") ? "" : "http://", root, path, NULL);
}

static struct curl_slist *make_headers(bool has_body)
{
    const char *key = getenv("CORNSERVE_API_KEY");
    struct curl_slist *headers = NULL;
    if (has_body)
        headers = curl_slist_append(headers, "Content-Type: application/json");
    if (key && *key) {
        g_autofree char *line = g_strdup_printf("Authorization: Bearer %s", key);
        headers = curl_slist_append(headers, line);
    }
    return headers;
}

static bool perform(answer *a, const char *url, GError **error)
{
    long status = 0;
    CURLcode code = curl_easy_perform(a->easy);
    if (a->error) {
        g_propagate_error(error, g_steal_pointer(&a->error));
        return false;
    }
    if (code != CURLE_OK)
        return cs_fail(error, CS_ERROR_FAILED, "%s: %s", url, curl_easy_strerror(code));
    curl_easy_getinfo(a->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status < 400)
        return true;
    json_t *root = json_loadb(a->text->str, a->text->len, 0, NULL);
    const char *message =
        json_string_value(json_object_get(json_object_get(root, "error"), "message"));
    cs_fail(error, CS_ERROR_FAILED, "%s: %ld%s%s", url, status, message ? ": " : "",
            message ? message : "");
    json_decref(root);
    return false;
}

static bool transfer(answer *a, const char *base, const char *method, const char *path,
                     const json_t *body, GError **error)
{
    g_autofree char *url = full_url(base, path);
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    struct curl_slist *headers = make_headers(body != NULL);
    a->easy = curl_easy_init();
    curl_easy_setopt(a->easy, CURLOPT_URL, url);
    curl_easy_setopt(a->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(a->easy, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(a->easy, CURLOPT_CONNECTTIMEOUT, CONNECT_TIMEOUT_S);
    curl_easy_setopt(a->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(a->easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(a->easy, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(a->easy, CURLOPT_WRITEDATA, a);
    if (text)
        curl_easy_setopt(a->easy, CURLOPT_POSTFIELDS, text);
    bool ok = perform(a, url, error);
    curl_easy_cleanup(a->easy);
    curl_slist_free_all(headers);
    free(text);
    return ok;
}

json_t *cs_cli_request(const char *base, const char *method, const char *path, const json_t *body,
                       GError **error)
{
    answer a = {.text = g_string_new(NULL)};
    json_t *root = transfer(&a, base, method, path, body, error)
                       ? cs_json_load(a.text->str, a.text->len, "the server's answer", error)
                       : NULL;
    g_string_free(a.text, TRUE);
    return root;
}

bool cs_cli_stream(const char *base, const char *path, const json_t *body,
                   bool (*on_event)(void *user, const char *data, GError **error), void *user,
                   GError **error)
{
    answer a = {.text = g_string_new(NULL), .on_event = on_event, .user = user};
    bool ok = transfer(&a, base, "POST", path, body, error);
    if (ok && !a.is_stream)
        ok = cs_fail(error, CS_ERROR_FAILED, "the server answered, but not with a stream");
    g_string_free(a.text, TRUE);
    return ok;
}
