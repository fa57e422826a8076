/* A datagram of another host that nobody has read yet: it is there, with its sender, after a restart. The last argument is the address. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(argc, 3);
    struct sockaddr_in name = {.sin_family = AF_INET};
    socklen_t len = sizeof name;
    CHECK_EQ(inet_pton(AF_INET, argv[2], &name.sin_addr), 1);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&name, len), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&name, &len), 0);
    guest_line("port %d", ntohs(name.sin_port));
    for (long i = 1; i <= steps; i++)
        guest_step(i);
    char text[64] = "", from[64];
    CHECK(recvfrom(fd, text, sizeof text - 1, MSG_DONTWAIT, (struct sockaddr *)&name, &len) > 0);
    CHECK(inet_ntop(AF_INET, &name.sin_addr, from, sizeof from) != NULL);
    guest_line("%s from %s", text, from);
    return 0;
}
