/* A server that is slow to accept, and clients that have sent before that, or are gone already: what is under way
 * then cannot be looked at, for a while. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

/* The part of the time in which something is there that was not accepted is two thirds. */
#define BUSY_US 60000
#define IDLE_US 30000

static int listener(int family, struct sockaddr_storage *name, socklen_t *len)
{
    memset(name, 0, sizeof *name);
    name->ss_family = (sa_family_t)family;
    int fd = socket(family, SOCK_STREAM, 0);
    *len = family == AF_UNIX ? sizeof(sa_family_t) : sizeof(struct sockaddr_in);
    if (family == AF_UNIX) {
        struct sockaddr_un *path = (struct sockaddr_un *)name;
        snprintf(path->sun_path, sizeof path->sun_path, "slow-server");
        *len = sizeof *path;
    } else {
        ((struct sockaddr_in *)name)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
    int one = 1;
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)name, *len), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)name, len), 0);
    CHECK_EQ(listen(fd, 16), 0);
    return fd;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int family = argc > 2 && strcmp(argv[2], "unix") == 0 ? AF_UNIX : AF_INET;
    struct sockaddr_storage name;
    socklen_t len;
    int fd = listener(family, &name, &len);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        int client = socket(family, SOCK_STREAM, 0);
        CHECK_EQ(connect(client, (struct sockaddr *)&name, len), 0);
        CHECK_EQ(send(client, &i, sizeof i, 0), sizeof i);
        if (i % 2)
            CHECK_EQ(close(client), 0);
        guest_nap_us(BUSY_US);
        int accepted = accept(fd, NULL, NULL);
        CHECK(accepted >= 0);
        long got = 0;
        CHECK_EQ(recv(accepted, &got, sizeof got, MSG_WAITALL), sizeof got);
        CHECK_EQ(got, i);
        CHECK_EQ(close(accepted), 0);
        if (i % 2 == 0)
            CHECK_EQ(close(client), 0);
        guest_nap_us(IDLE_US);
    }
    if (family == AF_UNIX)
        CHECK_EQ(unlink("slow-server"), 0);
    guest_line("ok slow_server");
    return 0;
}
