#include "cli/cli.h"

#include <stdio.h>

int cs_cli_version(int argc, char **argv)
{
    static const cs_cli_spec spec = {
        .name = "version",
        .arguments = "",
        .description = "Shows the version of this program.",
        .example = "  cornserve version",
    };
    int exit_code;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    printf("cornserve %s\n", CS_VERSION);
    return CS_EXIT_OK;
}
