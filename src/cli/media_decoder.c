/* cornserve media-decoder FD: the sandboxed process that decodes media, started by the server. */
#include "cli/cli.h"
#include "media/decoder/child.h"

int cs_cli_media_decoder(int argc, char **argv)
{
    static const cs_cli_spec spec = {
        .name = "media-decoder",
        .arguments = "FD",
        .description = "Decodes media for the server that started it, over the socket FD.",
        .example = "  cornserve media-decoder 3   (the server does this by itself)",
        .min_arguments = 1,
        .max_arguments = 1,
    };
    int exit_code;
    guint64 fd;
    if (!cs_cli_parse(&spec, &argc, argv, &exit_code))
        return exit_code;
    if (!g_ascii_string_to_unsigned(argv[1], 10, 3, G_MAXINT, &fd, NULL))
        return cs_cli_usage(spec.name, "expected the number of a socket, found %s", argv[1]);
    return cs_media_decoder_main((int)fd);
}
