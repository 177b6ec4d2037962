/* The decoder process for tests of src/media: what `cornserve media-decoder FD` runs, alone. */
#include "media/decoder/child.h"

#include <stdlib.h>

int main(int argc, char **argv)
{
    return argc == 2 ? cs_media_decoder_main(atoi(argv[1])) : 2;
}
