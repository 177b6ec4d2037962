/* src/media/data_url: strict base64 and data URLs. */
#include "base/error.h"
#include "media/data_url.h"

#include <string.h>

static void test_round_trips(void)
{
    uint8_t data[300];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 37 + 11);
    for (size_t n = 1; n <= sizeof data; n++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *theirs = g_base64_encode(data, n);
        size_t length = cs_base64_encoded_length(n), size = 0;
        g_autofree char *ours = g_malloc(length);
        cs_base64_encode(data, n, ours);
        g_assert_cmpmem(ours, length, theirs, strlen(theirs));
        g_autofree uint8_t *back = cs_base64_decode(ours, length, n, &size, &error);
        g_assert_no_error(error);
        g_assert_cmpmem(back, size, data, n);
    }
}

static void assert_refused(const char *text, const char *sentence)
{
    g_autoptr(GError) error = NULL;
    size_t size = 77;
    g_assert_null(cs_base64_decode(text, strlen(text), 1000, &size, &error));
    g_assert_cmpuint(size, ==, 77);
    g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
    g_assert_cmpstr(error->message, ==, sentence);
}

static void test_refusals(void)
{
    assert_refused("", "base64: expected a positive multiple of 4 characters, found 0");
    assert_refused("QUJ", "base64: expected a positive multiple of 4 characters, found 3");
    assert_refused("QUJDRA", "base64: expected a positive multiple of 4 characters, found 6");
    assert_refused("QU*DQUJD", "base64: character 2 is '*', not of the alphabet");
    assert_refused("QUJDQU_D", "base64: character 6 is '_', not of the alphabet");
    assert_refused("QUJDQUJ\n", "base64: byte 0x0a at character 7");
    assert_refused("QUJD\nQUJDQUJ", "base64: byte 0x0a at character 4");
    assert_refused("QQ==QUJD", "base64: padding at character 2, before the end of the text");
    assert_refused("Q===", "base64: padding at character 1, before the end of the text");
    assert_refused("====", "base64: padding at character 0, before the end of the text");
    assert_refused("QR==", "base64: bits left over at character 1");
    assert_refused("QUJ=", "base64: bits left over at character 2");
    assert_refused("QUJDQ\xc3\xa9\xc3", "base64: byte 0xc3 at character 5");
}

static void test_cap(void)
{
    g_autoptr(GError) error = NULL;
    size_t size;
    g_assert_null(cs_base64_decode("QUJDRA==", 8, 3, &size, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TOO_LARGE);
    g_autofree uint8_t *four = cs_base64_decode("QUJDRA==", 8, 4, &size, NULL);
    g_assert_cmpmem(four, size, "ABCD", 4);
}

static void assert_url(const char *text, const char *type, const char *payload)
{
    g_autoptr(GError) error = NULL;
    cs_data_url url;
    cs_data_url_parse(text, strlen(text), &url, &error);
    g_assert_no_error(error);
    g_assert_cmpmem(url.type, url.type_length, type, strlen(type));
    g_assert_cmpmem(url.payload, url.payload_length, payload, strlen(payload));
}

static void assert_no_url(const char *text, int code)
{
    g_autoptr(GError) error = NULL;
    cs_data_url url;
    g_assert_false(cs_data_url_parse(text, strlen(text), &url, &error));
    g_assert_error(error, CS_ERROR, code);
}

static void test_urls(void)
{
    assert_url("data:image/png;base64,QUJD", "image/png", "QUJD");
    assert_url("DATA:audio/wav;codecs=1;BASE64,", "audio/wav", "");
    assert_url("data:;base64,QQ==", "", "QQ==");
    assert_no_url("data:image/png,abc", CS_ERROR_UNSUPPORTED);
    assert_no_url("data:base64,abc", CS_ERROR_UNSUPPORTED);
    assert_no_url("data:,", CS_ERROR_UNSUPPORTED);
    assert_no_url("data:image/png;base64", CS_ERROR_INVALID);
    assert_no_url("https://example.org/a.png", CS_ERROR_INVALID);
    assert_no_url("data", CS_ERROR_INVALID);
    assert_no_url("", CS_ERROR_INVALID);
    g_assert_true(cs_data_url_is("Data:", 5));
    g_assert_false(cs_data_url_is("data:", 4));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/media/base64/round-trips", test_round_trips);
    g_test_add_func("/media/base64/refusals", test_refusals);
    g_test_add_func("/media/base64/cap", test_cap);
    g_test_add_func("/media/data-url", test_urls);
    return g_test_run();
}
