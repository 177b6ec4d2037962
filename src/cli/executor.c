/* cornserve executor: the child processes that the program starts by itself. */
#include "cli/cli.h"
#include "runtime/executor.h"

int cs_cli_executor(int argc, char **argv)
{
    if (argc != 1)
        return cs_cli_usage(argv[0], "this subcommand is started by `cornserve serve` only");
    return cs_executor_main(CS_EXECUTOR_CONTROL_FD, CS_EXECUTOR_SIDECAR_FD);
}
