/* Passages that come in any order of time leave as one sound. */
#include "api/recital.h"

#include <math.h>

enum { RATE = 1000, FADE = 5, SENTENCE = 250, CLAUSE = 120 };

typedef struct {
    cs_recital *recital;
    GArray *out;
} fixture;

static void set_up(fixture *f, const char *text, double max_seconds, guint n)
{
    g_autoptr(GArray) passages = cs_passages_of(text, max_seconds);
    g_assert_cmpuint(passages->len, ==, n);
    f->recital = cs_recital_new(n > 1 ? passages : NULL, RATE);
    f->out = g_array_new(FALSE, FALSE, sizeof(float));
}

static void tear_down(fixture *f)
{
    cs_recital_free(f->recital);
    g_array_unref(f->out);
}

static void add(fixture *f, uint32_t passage, uint32_t n, float level)
{
    g_autofree float *samples = g_new(float, n + 1);
    for (uint32_t i = 0; i < n; i++)
        samples[i] = level;
    cs_recital_add(f->recital, passage, n, samples, f->out);
}

static float at(const fixture *f, guint i)
{
    return g_array_index(f->out, float, i);
}

/* Not a sample is changed, and none waits. */
static void test_single(void)
{
    fixture f;
    set_up(&f, "One.", 30, 1);
    add(&f, 0, 3, 0.5f);
    g_assert_cmpuint(f.out->len, ==, 3);
    add(&f, 0, 100, 0.25f);
    cs_recital_end(f.recital, 0, f.out);
    g_assert_cmpuint(f.out->len, ==, 103);
    g_assert_cmpfloat(at(&f, 0), ==, 0.5f);
    g_assert_cmpfloat(at(&f, 102), ==, 0.25f);
    g_assert_cmpuint(cs_recital_current(f.recital), ==, 1);
    tear_down(&f);
}

/* No step from one sample to the next is larger than a fade's, and none but the ends are changed.
 */
static void check_smooth(const fixture *f, guint begin, guint end)
{
    for (guint i = begin + 1; i < end; i++)
        g_assert_cmpfloat(fabsf(at(f, i) - at(f, i - 1)), <, 1.01f / (FADE + 1));
}

static void test_order(void)
{
    fixture f;
    set_up(&f, "One one one. Two two two, two two two. Three three three.", 1.3, 4);
    add(&f, 1, 40, 0.5f);
    add(&f, 0, 100, 1);
    add(&f, 2, 1, 1); /* shorter than a fade */
    g_assert_cmpuint(f.out->len, ==, 100 - FADE);
    cs_recital_end(f.recital, 1, f.out);
    cs_recital_end(f.recital, 2, f.out);
    g_assert_cmpuint(f.out->len, ==, 100 - FADE);
    g_assert_cmpuint(cs_recital_current(f.recital), ==, 0);
    cs_recital_end(f.recital, 0, f.out);
    g_assert_cmpuint(cs_recital_current(f.recital), ==, 3);
    add(&f, 3, 50, 1);
    cs_recital_end(f.recital, 3, f.out);
    const guint second = 100 + SENTENCE, third = second + 40 + CLAUSE,
                fourth = third + 1 + SENTENCE;
    g_assert_cmpuint(f.out->len, ==, fourth + 50);
    g_assert_cmpfloat(at(&f, 0), ==, 1); /* the sound's own beginning and end are not faded */
    g_assert_cmpfloat(at(&f, f.out->len - 1), ==, 1);
    g_assert_cmpfloat(at(&f, 100 - FADE - 1), ==, 1);
    g_assert_cmpfloat(at(&f, 100), ==, 0);
    g_assert_cmpfloat(at(&f, second - 1), ==, 0);
    g_assert_cmpfloat(at(&f, second + 20), ==, 0.5f);
    g_assert_cmpfloat(at(&f, third), >, 0);
    check_smooth(&f, 0, f.out->len);
    tear_down(&f);
}

/* However the samples are cut, the sound is the same. */
static void test_pieces(void)
{
    fixture f;
    g_autoptr(GRand) random = g_rand_new_with_seed(2);
    g_autoptr(GArray) expected = NULL;
    for (int round = 0; round < 50; round++) {
        set_up(&f, "One one one. Two two two.", 1, 2);
        uint32_t left[2] = {300, 200};
        while (left[0] + left[1] > 0) {
            uint32_t i = (uint32_t)g_rand_int_range(random, 0, 2);
            uint32_t most = (uint32_t)g_rand_int_range(random, 0, 9), n = MIN(left[i], most);
            add(&f, i, n, 0.5f);
            left[i] -= n;
            if (n > 0 && left[i] == 0)
                cs_recital_end(f.recital, i, f.out);
        }
        g_assert_cmpuint(f.out->len, ==, 300 + SENTENCE + 200);
        if (!expected)
            expected = g_array_ref(f.out);
        g_assert_cmpmem(f.out->data, f.out->len * sizeof(float), expected->data,
                        expected->len * sizeof(float));
        tear_down(&f);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/recital/single", test_single);
    g_test_add_func("/recital/order", test_order);
    g_test_add_func("/recital/pieces", test_pieces);
    return g_test_run();
}
