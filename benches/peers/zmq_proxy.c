/* The broker that ZeroMQ's users build for themselves: zmq_proxy(3) between an XSUB socket that
 * publishers connect to and an XPUB socket that subscribers connect to. ZeroMQ has no daemon, so
 * this is one, with the library's defaults throughout. It ends by a signal.
 *
 *     cc -O2 -o zmq_proxy zmq_proxy.c -lzmq
 *     zmq_proxy ADDRESS_FOR_PUBLISHERS ADDRESS_FOR_SUBSCRIBERS
 *     zmq_proxy --version
 */
#include <stdio.h>
#include <string.h>
#include <zmq.h>

static int fail(const char *what)
{
    fprintf(stderr, "zmq_proxy: %s: %s\n", what, zmq_strerror(zmq_errno()));
    return 1;
}

static int print_version(void)
{
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    printf("libzmq %d.%d.%d\n", major, minor, patch);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--version") == 0)
        return print_version();
    if (argc != 3) {
        fprintf(stderr, "usage: zmq_proxy ADDRESS_FOR_PUBLISHERS ADDRESS_FOR_SUBSCRIBERS\n");
        return 2;
    }
    void *context = zmq_ctx_new();
    void *from = context ? zmq_socket(context, ZMQ_XSUB) : NULL;
    void *to = context ? zmq_socket(context, ZMQ_XPUB) : NULL;
    if (!from || !to)
        return fail("no sockets");
    if (zmq_bind(from, argv[1]) != 0)
        return fail(argv[1]);
    if (zmq_bind(to, argv[2]) != 0)
        return fail(argv[2]);
    zmq_proxy(from, to, NULL);
    return fail("the proxy ended");
}
