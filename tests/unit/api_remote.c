/* Where remote media may come from: the addresses that are refused, and files outside the allowed
 * directory. */
#include "api/media_file.h"
#include "api/remote.h"

#include <arpa/inet.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_public(const char *text)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    if (inet_pton(AF_INET, text, &v4.sin_addr) == 1)
        return cs_remote_address_is_public((struct sockaddr *)&v4);
    g_assert_cmpint(inet_pton(AF_INET6, text, &v6.sin6_addr), ==, 1);
    return cs_remote_address_is_public((struct sockaddr *)&v6);
}

static void test_addresses(void)
{
    static const char *const refused[] = {
        "127.0.0.1",       "127.255.1.2",     "10.1.2.3",      "172.16.0.1",  "172.31.255.255",
        "192.168.1.1",     "169.254.169.254", "0.0.0.0",       "100.64.0.1",  "224.0.0.1",
        "255.255.255.255", "198.18.0.1",      "192.0.2.1",     "::1",         "::",
        "fe80::1",         "fc00::1",         "fd12::1",       "ff02::1",     "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "2001::1",
        "::127.0.0.1",
    };
    static const char *const taken[] = {"8.8.8.8", "172.32.0.1",   "100.128.0.1",   "192.169.0.1",
                                        "2600::1", "2a00:1450::1", "::ffff:8.8.8.8"};
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++)
        if (is_public(refused[i]))
            g_error("%s must be refused", refused[i]);
    for (size_t i = 0; i < G_N_ELEMENTS(taken); i++)
        if (!is_public(taken[i]))
            g_error("%s must be taken", taken[i]);
}

static void assert_refused(const char *url)
{
    g_autoptr(GError) error = NULL;
    cs_remote_limits limits = {1000, 2000};
    g_assert_null(cs_remote_fetch(url, &limits, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_FORBIDDEN);
}

static void test_fetch_refuses(void)
{
    assert_refused("https://127.0.0.1:1/x.png");
    assert_refused("https://localhost/x.png");
    assert_refused("https://[::ffff:127.0.0.1]/x.png");
    assert_refused("https://169.254.169.254/latest/meta-data");
    assert_refused("https://0x7f000001/"); /* a spelling of 127.0.0.1 */
    assert_refused("http://8.8.8.8/x.png");
    assert_refused("file:///etc/passwd");
}

static void expect_file(const char *dir, const char *url, const char *content)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) bytes = cs_media_file_read(dir, url, 100, &error);
    if (content) {
        g_assert_no_error(error);
        g_assert_cmpmem(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), content,
                        strlen(content));
    } else {
        g_assert_null(bytes);
        g_assert_nonnull(error);
    }
}

static void test_files(void)
{
    g_autofree char *root = g_dir_make_tmp("cornserve-XXXXXX", NULL);
    g_autofree char *dir = g_build_filename(root, "media", NULL);
    g_autofree char *inside = g_build_filename(dir, "a b.png", NULL);
    g_autofree char *outside = g_build_filename(root, "secret", NULL);
    g_autofree char *link = g_build_filename(dir, "link", NULL);
    g_autofree char *fifo = g_build_filename(dir, "fifo", NULL);
    g_autofree char *big = g_build_filename(dir, "big", NULL);
    g_autofree char *hundred = g_strnfill(101, 'x');
    g_assert_cmpint(g_mkdir(dir, 0700), ==, 0);
    g_assert_true(g_file_set_contents(inside, "pixels", -1, NULL));
    g_assert_true(g_file_set_contents(outside, "secret", -1, NULL));
    g_assert_true(g_file_set_contents(big, hundred, -1, NULL));
    g_assert_cmpint(symlink(outside, link), ==, 0);
    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);

    static const struct {
        const char *format;
        const char *content;
    } cases[] = {
        {"file://%s/media/a%%20b.png", "pixels"},
        {"file://%s/media/../secret", NULL},
        {"file://%s/media/x/../../secret", NULL},
        {"file://%s/secret", NULL},
        {"file://%s/media/link", NULL},
        {"file://%s/media/fifo", NULL},
        {"file://%s/media/big", NULL},
        {"file://%s/media/", NULL},
        {"file://%s/mediaevil", NULL},
        {"file://%s/media/%%2e%%2e/secret", NULL},
        {"file://host%s/media/a%%20b.png", NULL},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        GString *url = g_string_new(cases[i].format);
        g_string_replace(url, "%s", root, 1);
        g_string_replace(url, "%%", "%", 0);
        expect_file(dir, url->str, cases[i].content);
        g_string_free(url, TRUE);
    }
    const char *const made[] = {inside, outside, link, fifo, big, dir, root};
    for (size_t i = 0; i < G_N_ELEMENTS(made); i++)
        g_assert_cmpint(g_remove(made[i]), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/api/remote/addresses", test_addresses);
    g_test_add_func("/api/remote/fetch_refuses", test_fetch_refuses);
    g_test_add_func("/api/remote/files", test_files);
    return g_test_run();
}
