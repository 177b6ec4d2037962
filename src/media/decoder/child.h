/* The decoder process: `cornserve media-decoder FD`, started by cs_media_pool with one end of a
 * socket pair. Enters the sandbox, then answers one request after the other until the socket
 * closes. */
#ifndef CS_MEDIA_DECODER_CHILD_H
#define CS_MEDIA_DECODER_CHILD_H

/* Returns the process's exit status. fd: the socket. */
int cs_media_decoder_main(int fd);

#endif
