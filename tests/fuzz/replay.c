/* Runs a fuzz target over the files and folders given, and over each file cut and with bytes
 * changed (always the same way): the part of fuzzing that the test suite repeats everywhere, with
 * any compiler. Says TAP. */
#include "base/os.h"

#include <glib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VARIANTS = 24, MAX_BYTES = 16 << 20 };

/* A copy of exactly the size, so that a sanitizer sees a read beyond the end. */
static void run_copy(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(MAX(size, 1));
    if (size)
        memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static void run_variants(uint8_t *data, size_t size, GRand *random)
{
    run_copy(data, size);
    for (int i = 0; i < VARIANTS && size > 0; i++) {
        g_autofree uint8_t *changed = g_malloc(size);
        memcpy(changed, data, size);
        for (int n = g_rand_int_range(random, 0, 6); n > 0; n--)
            changed[(size_t)(g_rand_double(random) * (double)size)] = (uint8_t)g_rand_int(random);
        size_t cut = i % 3 ? size : (size_t)(g_rand_double(random) * (double)size);
        run_copy(changed, cut);
    }
}

static int run_path(const char *path, GRand *random)
{
    int n = 0;
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;
    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *inner = g_build_filename(path, name, NULL);
        n += run_path(inner, random);
    }
    size_t size;
    g_autofree char *data = dir ? NULL : cs_file_read(path, MAX_BYTES, &size, NULL);
    if (!data)
        return n;
    run_variants((uint8_t *)data, size, random);
    return n + 1;
}

int main(int argc, char **argv)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(1);
    printf("1..%d\n", argc - 1);
    for (int i = 1; i < argc; i++) {
        int n = run_path(argv[i], random);
        printf("%sok %d - %d files of %s\n", n ? "" : "not ", i, n, argv[i]);
        fflush(stdout);
    }
    return 0;
}
