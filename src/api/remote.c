#include "api/remote.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

#define MAX_REDIRECTS 3L

/* IPv4 ranges that are not the public internet: IANA's special-purpose address registry. */
static const struct {
    uint32_t address;
    int prefix_bits;
} special_v4[] = {
    {0x00000000, 8},  /* this network */
    {0x0a000000, 8},  /* private */
    {0x64400000, 10}, /* shared by carriers */
    {0x7f000000, 8},  /* loopback */
    {0xa9fe0000, 16}, /* link-local, cloud metadata */
    {0xac100000, 12}, /* private */
    {0xc0000000, 24}, /* protocol assignments */
    {0xc0000200, 24}, /* documentation */
    {0xc0586300, 24}, /* 6to4 relays */
    {0xc0a80000, 16}, /* private */
    {0xc6120000, 15}, /* benchmarks */
    {0xc6336400, 24}, /* documentation */
    {0xcb007100, 24}, /* documentation */
    {0xe0000000, 3},  /* multicast, reserved, broadcast */
};

static bool v4_is_public(uint32_t address)
{
    for (size_t i = 0; i < G_N_ELEMENTS(special_v4); i++)
        if ((address ^ special_v4[i].address) >> (32 - special_v4[i].prefix_bits) == 0)
            return false;
    return true;
}

static uint32_t read_u32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static bool v6_is_public(const uint8_t a[16])
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    static const uint8_t nat64[12] = {0x00, 0x64, 0xff, 0x9b};
    if (memcmp(a, mapped, 12) == 0 || memcmp(a, nat64, 12) == 0)
        return v4_is_public(read_u32(a + 12));
    if (a[0] == 0x20 && a[1] == 0x02) /* 6to4 carries an IPv4 address */
        return v4_is_public(read_u32(a + 2));
    if (a[0] == 0x20 && a[1] == 0x01 && (a[2] < 0x02 || (a[2] == 0x0d && a[3] == 0xb8)))
        return false;             /* Teredo and other assignments, documentation */
    return (a[0] & 0xe0) == 0x20; /* global unicast is 2000::/3 */
}

bool cs_remote_address_is_public(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return v4_is_public(ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr));
    if (address->sa_family == AF_INET6)
        return v6_is_public(((const struct sockaddr_in6 *)address)->sin6_addr.s6_addr);
    return false;
}

typedef struct {
    GByteArray *data;
    size_t max_bytes;
    bool too_large, refused;
} transfer;

static curl_socket_t open_socket(void *user, curlsocktype purpose, struct curl_sockaddr *address)
{
    transfer *t = user;
    if (purpose != CURLSOCKTYPE_IPCXN || !cs_remote_address_is_public(&address->addr)) {
        t->refused = true;
        return CURL_SOCKET_BAD;
    }
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static size_t take_bytes(char *bytes, size_t size, size_t n, void *user)
{
    transfer *t = user;
    if (size * n > t->max_bytes - t->data->len) {
        t->too_large = true;
        return 0;
    }
    g_byte_array_append(t->data, (const guint8 *)bytes, (guint)(size * n));
    return size * n;
}

static void set_options(CURL *curl, const char *url, const cs_remote_limits *limits, transfer *t)
{
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "https");
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, MAX_REDIRECTS);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)limits->timeout_ms);
    curl_easy_setopt(curl, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)limits->max_bytes);
    curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "cornserve/" CS_VERSION);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, t);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, t);
}

static void explain(CURLcode result, const transfer *t, const cs_remote_limits *limits,
                    GError **error)
{
    if (t->refused)
        cs_fail(error, CS_ERROR_FORBIDDEN, "the URL leads to an address that is not public");
    else if (t->too_large || result == CURLE_FILESIZE_EXCEEDED)
        cs_fail(error, CS_ERROR_TOO_LARGE, "the URL's content is over the limit of %zu bytes",
                limits->max_bytes);
    else if (result == CURLE_OPERATION_TIMEDOUT)
        cs_fail(error, CS_ERROR_INVALID, "the URL's content did not come within %u s",
                limits->timeout_ms / 1000);
    else if (result == CURLE_UNSUPPORTED_PROTOCOL)
        cs_fail(error, CS_ERROR_FORBIDDEN, "the URL, or a redirect of it, is not https");
    else
        cs_fail(error, CS_ERROR_INVALID, "the URL cannot be fetched");
}

GBytes *cs_remote_fetch(const char *url, const cs_remote_limits *limits, GError **error)
{
    static gsize once;
    if (g_once_init_enter(&once)) {
        curl_global_init(CURL_GLOBAL_DEFAULT);
        g_once_init_leave(&once, 1);
    }
    CURL *curl = curl_easy_init();
    if (!curl) {
        cs_fail(error, CS_ERROR_FAILED, "no memory to fetch a URL");
        return NULL;
    }
    transfer t = {.data = g_byte_array_new(), .max_bytes = MIN(limits->max_bytes, G_MAXUINT / 2)};
    set_options(curl, url, limits, &t);
    CURLcode result = curl_easy_perform(curl);
    curl_easy_cleanup(curl);
    if (result == CURLE_OK && t.data->len > 0)
        return g_byte_array_free_to_bytes(t.data);
    explain(result, &t, limits, error);
    g_byte_array_unref(t.data);
    return NULL;
}
