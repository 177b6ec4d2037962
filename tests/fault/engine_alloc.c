/* The N-th allocation of src/engine that may fail does: a clear error, nothing leaked (seen under
 * AddressSanitizer), and what runs already is not disturbed.
 *
 * The linker directs g_try_malloc and its kin of the libraries here (--wrap).
 */
#include "base/error.h"
#include "support/llm_case.h"

static gint countdown; /* calls until one fails; 0: none does */

static bool fails(void)
{
    return countdown > 0 && --countdown == 0;
}

gpointer __real_g_try_malloc(gsize n);
gpointer __real_g_try_malloc0(gsize n);
gpointer __real_g_try_malloc_n(gsize n, gsize size);
gpointer __real_g_try_malloc0_n(gsize n, gsize size);
gpointer __wrap_g_try_malloc(gsize n);
gpointer __wrap_g_try_malloc0(gsize n);
gpointer __wrap_g_try_malloc_n(gsize n, gsize size);
gpointer __wrap_g_try_malloc0_n(gsize n, gsize size);

gpointer __wrap_g_try_malloc(gsize n)
{
    return fails() ? NULL : __real_g_try_malloc(n);
}

gpointer __wrap_g_try_malloc0(gsize n)
{
    return fails() ? NULL : __real_g_try_malloc0(n);
}

gpointer __wrap_g_try_malloc_n(gsize n, gsize size)
{
    return fails() ? NULL : __real_g_try_malloc_n(n, size);
}

gpointer __wrap_g_try_malloc0_n(gsize n, gsize size)
{
    return fails() ? NULL : __real_g_try_malloc0_n(n, size);
}

static void test_engine(void)
{
    cs_llm_engine_options options = {.kv_budget_bytes = 8 * FAKE_BLOCK_BYTES,
                                     .hidden_states = true};
    for (gint n = 1;; n++) {
        fake_llm_control control = {0};
        g_autoptr(GError) error = NULL;
        cs_llm *llm = fake_llm_new(&control, 100);
        countdown = n;
        g_autoptr(cs_llm_engine) engine = cs_llm_engine_new(llm, &options, &error);
        bool reached = countdown == 0;
        countdown = 0;
        if (!reached) {
            g_assert_no_error(error);
            g_assert_cmpint(n, >, 15);
            return;
        }
        g_assert_null(engine);
        g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
        g_assert_true(control.freed);
    }
}

static llm_case *rich_case(void)
{
    llm_case *c = llm_case_new(1, 100, 20);
    llm_case_add_item(c, 1, 10, 30);
    c->options.n_choices = 3;
    c->options.sampling.temperature = 1;
    c->options.sampling.repetition_penalty = 1.1f;
    llm_case_solve(c);
    return c;
}

static void test_submit(void)
{
    fake_llm_control control = {.step_us = 100};
    cs_llm_engine_options options = {.kv_budget_bytes = 64 * FAKE_BLOCK_BYTES};
    g_autoptr(GError) no_error = NULL;
    cs_llm_engine *engine = cs_llm_engine_new(fake_llm_new(&control, 4000), &options, &no_error);
    g_assert_no_error(no_error);
    g_autoptr(llm_case) c = rich_case();
    g_autoptr(llm_client) neighbour = llm_client_start(engine, c, true, NULL);
    gint n = 1;
    for (;; n++) {
        g_autoptr(GError) error = NULL;
        countdown = n;
        g_autoptr(llm_client) client = llm_client_start(engine, c, true, &error);
        bool reached = countdown == 0;
        countdown = 0;
        if (!reached) {
            llm_client_wait(client);
            llm_client_check(client);
            break;
        }
        g_assert_null(client);
        g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
        g_assert_cmpstr(error->message, ==, "llm: no memory for a request of 100 tokens");
    }
    g_assert_cmpint(n, >, 20);
    llm_client_wait(neighbour);
    llm_client_check(neighbour);
    g_assert_cmpuint(llm_engine_blocks_held(engine), ==, 0);
    cs_llm_engine_free(engine);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/engine-alloc/engine", test_engine);
    g_test_add_func("/engine-alloc/submit", test_submit);
    return g_test_run();
}
