/* A client of a server outside the job, which after a restart finds that gone. The last argument is the port. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(argc, 3);
    CHECK(signal(SIGPIPE, SIG_IGN) == SIG_DFL);
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))}, peer;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK_EQ(connect(fd, (struct sockaddr *)&server, sizeof server), 0);
    CHECK_EQ(send(fd, "hello", 5, 0), 5);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        socklen_t len = sizeof peer;
        CHECK_EQ(getpeername(fd, (struct sockaddr *)&peer, &len), 0);
        CHECK(peer.sin_port == server.sin_port && peer.sin_addr.s_addr == server.sin_addr.s_addr);
    }
    char text[64] = {0};
    size_t len = 0;
    for (ssize_t n; (n = recv(fd, text + len, sizeof text - 1 - len, 0)) != 0; len += (size_t)n)
        CHECK(n > 0);
    /* The first may still leave; it is answered with a reset. */
    while (send(fd, "x", 1, 0) == 1)
        guest_nap_us(1000);
    CHECK(errno == EPIPE || errno == ECONNRESET);
    guest_line("read %s, and the end", text);
    return 0;
}
