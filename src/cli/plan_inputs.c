#include "cli/plan_inputs.h"

#include "base/error.h"
#include "base/os.h"

#include <signal.h>
#include <stdio.h>

volatile int cs_cli_interrupted;

#define REPEAT_US                                                                                  \
    300000 /* of one interruption: timeout(1) signals the child and then its group                 \
            */

static void on_interrupt(int number)
{
    static int64_t first_us;
    int64_t now = cs_now_us();
    if (!cs_cli_interrupted) {
        cs_cli_interrupted = 1;
        first_us = now;
    } else if (now - first_us > REPEAT_US) {
        signal(number, SIG_DFL);
        raise(number);
    }
}

void cs_cli_catch_interrupt(void)
{
    cs_cli_interrupted = 0;
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
}

bool cs_cli_plan_inputs_load(cs_cli_plan_inputs *in, const cs_cli_plan_paths *paths,
                             const char *lost_node, double utilisation_cap, GError **error)
{
    *in = (cs_cli_plan_inputs){0};
    const struct {
        const char *path, *option;
    } needed[] = {{paths->graph, "--graph"},
                  {paths->profiles, "--profiles"},
                  {paths->workload, "--workload"},
                  {paths->cluster, "--cluster"}};
    for (size_t i = 0; i < G_N_ELEMENTS(needed); i++)
        if (!needed[i].path)
            return cs_fail(error, CS_ERROR_INVALID, "option %s is needed", needed[i].option);
    if (!(in->graph = cs_plan_graph_load(paths->graph, error)) ||
        !(in->cluster = cs_cluster_load(paths->cluster, error)))
        return false;
    if (lost_node) {
        size_t node = cs_cluster_find_node(in->cluster, lost_node);
        if (node == in->cluster->n_nodes || in->cluster->n_nodes == 1)
            return cs_fail(error, CS_ERROR_INVALID,
                           "--lost %s: expected a node of the cluster that is not its only one",
                           lost_node);
        cs_cluster *left = cs_cluster_without(in->cluster, node);
        cs_cluster_free(in->cluster);
        in->cluster = left;
    }
    if (!(in->profiles = cs_profiles_load(paths->profiles, in->graph, in->cluster, error)) ||
        !(in->workload = cs_workload_load(paths->workload, in->graph, error)))
        return false;
    cs_problem_options o = {.utilisation_cap = utilisation_cap};
    in->problem = cs_problem_new(in->graph, in->cluster, in->profiles, in->workload, &o, error);
    in->flow = in->problem ? cs_flow_new(in->problem) : NULL;
    return in->flow != NULL;
}

void cs_cli_plan_inputs_clear(cs_cli_plan_inputs *in)
{
    cs_flow_free(in->flow);
    cs_problem_free(in->problem);
    cs_workload_free(in->workload);
    cs_profiles_free(in->profiles);
    cs_cluster_free(in->cluster);
    cs_plan_graph_free(in->graph);
    *in = (cs_cli_plan_inputs){0};
}

bool cs_cli_write_text(const char *path, const char *text, GError **error)
{
    if (!g_str_equal(path, "-"))
        return g_file_set_contents(path, text, -1, error);
    fputs(text, stdout);
    return true;
}
