/* src/text/chat_template against the reference's renderings: the published template over
 * conversations, and small templates over the language. argv[1] is the golden directory. */
#include "base/error.h"
#include "base/json.h"
#include "text/chat_template.h"

#include <string.h>

static json_t *golden;
static cs_chat_template *published;

static json_t *take_options(json_t *options, bool *add_generation_prompt)
{
    json_t *extra = json_copy(options);
    *add_generation_prompt = json_is_true(json_object_get(extra, "add_generation_prompt"));
    json_object_del(extra, "add_generation_prompt");
    return extra;
}

static void test_chat(void)
{
    json_t *cases = json_object_get(golden, "chat"), *one;
    size_t i;
    g_assert_cmpuint(json_array_size(cases), >, 40);
    json_array_foreach (cases, i, one) {
        g_autoptr(GError) error = NULL;
        cs_chat_request request = {.messages = json_object_get(one, "messages")};
        request.extra =
            take_options(json_object_get(one, "options"), &request.add_generation_prompt);
        size_t size_bytes;
        g_autofree char *text = cs_chat_template_render(published, &request, &size_bytes, &error);
        g_assert_no_error(error);
        g_assert_cmpstr(text, ==, json_string_value(json_object_get(one, "expected")));
        g_assert_cmpuint(size_bytes, ==, strlen(text));
        json_decref(request.extra);
    }
}

static void test_language(void)
{
    json_t *cases = json_object_get(golden, "language"), *one;
    size_t i;
    g_assert_cmpuint(json_array_size(cases), >, 30);
    json_array_foreach (cases, i, one) {
        g_autoptr(GError) error = NULL;
        json_t *source = json_object_get(one, "template");
        g_autoptr(cs_chat_template) t = cs_chat_template_parse(
            json_string_value(source), json_string_length(source), "t.jinja", &error);
        g_assert_no_error(error);
        cs_chat_request request = {.extra = json_object_get(golden, "language_context")};
        size_t size_bytes;
        g_autofree char *text = cs_chat_template_render(t, &request, &size_bytes, &error);
        const char *expected = json_string_value(json_object_get(one, "expected"));
        if (expected) {
            g_assert_no_error(error);
            g_assert_cmpstr(text, ==, expected);
        } else {
            g_assert_error(error, CS_ERROR, CS_ERROR_INVALID);
            g_autofree char *sentence =
                g_strdup_printf("t.jinja:1: %s", json_string_value(json_object_get(one, "error")));
            g_assert_cmpstr(error->message, ==, sentence);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_assert_cmpint(argc, ==, 2);
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(argv[1], "chat_template.json", NULL);
    g_autofree char *model = g_build_filename(argv[1], "qwen2.5-omni-tiny", NULL);
    golden = cs_json_load_file(path, 16u << 20, &error);
    g_assert_no_error(error);
    published = cs_chat_template_load(model, &error);
    g_assert_no_error(error);
    g_test_add_func("/text/chat-template/golden/chat", test_chat);
    g_test_add_func("/text/chat-template/golden/language", test_language);
    int rc = g_test_run();
    cs_chat_template_free(published);
    json_decref(golden);
    return rc;
}
