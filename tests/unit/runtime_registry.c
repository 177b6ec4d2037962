/* Apps kept in SQLite. */
#include "base/error.h"
#include "graph/builtin.h"
#include "runtime/registry.h"

#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

static json_t *two_models(void)
{
    return json_pack("{s:s, s:s}", "left", "one", "right", "one");
}

static cs_registry *open_file(const char *path)
{
    g_autoptr(GError) error = NULL;
    cs_registry *r = cs_registry_open(path, &error);
    g_assert_no_error(error);
    return r;
}

static void expect_code(GError **error, int code)
{
    g_assert_error(*error, CS_ERROR, code);
    g_clear_error(error);
}

static void test_kept(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_dir_make_tmp("registry-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "state.db", NULL);
    size_t size_bytes = 0;
    const char *arena = cs_builtin_app("arena", &size_bytes);
    json_t *models = two_models();
    cs_registry *r = open_file(path);
    g_assert_true(cs_registry_add(r, "duel", arena, models, &error));
    g_assert_false(cs_registry_add(r, "duel", arena, models, &error));
    expect_code(&error, CS_ERROR_CONFLICT);
    cs_registry_close(r);

    r = open_file(path); /* after a restart */
    json_t *apps = cs_registry_list(r, &error);
    g_assert_cmpuint(json_array_size(apps), ==, 1);
    g_assert_cmpstr(json_string_value(json_object_get(json_array_get(apps, 0), "name")), ==,
                    "duel");
    g_assert_true(json_equal(json_object_get(json_array_get(apps, 0), "models"), models));
    json_decref(apps);
    g_autoptr(cs_tasks) tasks = cs_registry_load(r, "duel", &error);
    g_assert_no_error(error);
    g_assert_cmpuint(cs_tasks_n_units(tasks), ==, 1); /* one model twice: shared */
    g_assert_true(cs_registry_remove(r, "duel", &error));
    g_assert_false(cs_registry_remove(r, "duel", &error));
    expect_code(&error, CS_ERROR_NOT_FOUND);
    g_assert_null(cs_registry_load(r, "duel", &error));
    expect_code(&error, CS_ERROR_NOT_FOUND);
    cs_registry_close(r);
    json_decref(models);
    g_unlink(path);
    g_rmdir(dir);
}

static void test_refused(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(cs_registry) r = open_file(":memory:");
    json_t *models = two_models(), *none = json_object();
    static const char *const names[] = {"", "Upper", "a b", "a/b", "'; DROP TABLE apps; --"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_assert_false(cs_registry_add(r, names[i], "function serve() end", none, &error));
        expect_code(&error, CS_ERROR_INVALID);
    }
    g_assert_false(cs_registry_add(r, "a", "this is not Lua", none, &error));
    expect_code(&error, CS_ERROR_INVALID);
    g_assert_false(cs_registry_add(r, "a", "x = 1", none, &error)); /* no serve */
    expect_code(&error, CS_ERROR_INVALID);
    json_t *odd = json_pack("{s:i}", "m", 3);
    g_assert_false(cs_registry_add(r, "a", "function serve() end", odd, &error));
    expect_code(&error, CS_ERROR_INVALID);
    json_t *apps = cs_registry_list(r, &error);
    g_assert_cmpuint(json_array_size(apps), ==, 0);
    json_decref(apps);
    json_decref(odd);
    json_decref(models);
    json_decref(none);
}

static void test_not_a_database(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("registry-XXXXXX", &path, NULL);
    static const char text[] = "something else altogether, longer than a header of SQLite is, and "
                               "then some more of it to be sure that it is read as one page.......";
    g_assert_cmpint(write(fd, text, sizeof(text)), ==, sizeof(text));
    close(fd);
    g_assert_null(cs_registry_open(path, &error));
    expect_code(&error, CS_ERROR_FAILED);
    g_assert_null(cs_registry_open("/nowhere/at/all.db", &error));
    expect_code(&error, CS_ERROR_FAILED);
    g_unlink(path);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/registry/kept", test_kept);
    g_test_add_func("/registry/refused", test_refused);
    g_test_add_func("/registry/not_a_database", test_not_a_database);
    return g_test_run();
}
