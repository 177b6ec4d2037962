/* Traces of requests: what is accepted fits to a workload that the reader takes. */
#include "plan/workload.h"
#include "plan_inputs.h"

#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd = memfd_create("trace", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) {
        close(fd);
        return 0;
    }
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autoptr(GError) error = NULL, again = NULL;
    json_t *root = cs_workload_fit(path, fuzz_plan_graph(), &error);
    g_assert_true((root != NULL) == (error == NULL));
    if (root) {
        g_autoptr(cs_workload) workload =
            cs_workload_from_json(root, "fitted", fuzz_plan_graph(), &again);
        g_assert_no_error(again);
        g_assert_cmpfloat(workload->rate_rps, >, 0);
        json_decref(root);
    }
    close(fd);
    return 0;
}
