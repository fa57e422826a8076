/* UDP sockets: bound, connected, with datagrams that nobody has read yet, multicast and broadcast. */
#include "names.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>

/* A host in 127.0.0.0/8 that is our own, so that no other test has its ports. */
static struct name loopback(int family)
{
    struct name name;
    memset(&name, 0, sizeof name);
    if (family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)&name.address;
        v4->sin_family = AF_INET;
        v4->sin_addr.s_addr = htonl(0x7f000000u | ((uint32_t)getpid() & 0xfffff) << 2 | 2);
        name.len = sizeof *v4;
    } else {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&name.address;
        v6->sin6_family = AF_INET6;
        v6->sin6_addr = in6addr_loopback;
        name.len = sizeof *v6;
    }
    return name;
}

static int bound(int family, struct name *name)
{
    int fd = socket(family, SOCK_DGRAM, 0);
    CHECK(fd >= 0);
    *name = loopback(family);
    CHECK_EQ(bind(fd, (struct sockaddr *)&name->address, name->len), 0);
    *name = name_of(fd, getsockname);
    return fd;
}

static void send_long(int fd, const struct name *to, long number)
{
    CHECK_EQ(sendto(fd, &number, sizeof number, 0, (const struct sockaddr *)&to->address, to->len), sizeof number);
}

static void receive_long(int fd, const struct name *from, long wanted)
{
    struct name source = {.len = sizeof source.address};
    memset(&source.address, 0, sizeof source.address);
    long number = -1;
    CHECK_EQ(recvfrom(fd, &number, sizeof number, MSG_DONTWAIT, (struct sockaddr *)&source.address, &source.len),
             sizeof number);
    CHECK_EQ(number, wanted);
    CHECK_EQ(source.len, from->len);
    CHECK(memcmp(&source.address, &from->address, from->len) == 0);
}

static int option(int fd, int level, int name)
{
    int value = -1;
    socklen_t len = sizeof value;
    CHECK_EQ(getsockopt(fd, level, name, &value, &len), 0);
    return value;
}

static void set(int fd, int level, int name, int value)
{
    CHECK_EQ(setsockopt(fd, level, name, &value, sizeof value), 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int probe = socket(AF_INET6, SOCK_DGRAM, 0);
    int families[2] = {AF_INET, probe >= 0 ? AF_INET6 : AF_INET};
    if (probe >= 0)
        CHECK_EQ(close(probe), 0);

    /* A server, a client that is connected to it, one that is not, one that is gone. */
    struct pair {
        int server, connected, free;
        struct name server_name, connected_name, free_name, gone_name;
    } pairs[2];
    char large[20000];
    memset(large, 'U', sizeof large);
    for (int f = 0; f < 2; f++) {
        struct pair *one = &pairs[f];
        one->server = bound(families[f], &one->server_name);
        one->free = bound(families[f], &one->free_name);
        one->connected = socket(families[f], SOCK_DGRAM | SOCK_NONBLOCK, 0);
        CHECK(one->connected >= 0);
        CHECK_EQ(connect(one->connected, (struct sockaddr *)&one->server_name.address, one->server_name.len), 0);
        one->connected_name = name_of(one->connected, getsockname);
        for (long i = 0; i < 2; i++) {
            send_long(one->free, &one->server_name, i);
            send_long(one->server, &one->connected_name, -i);
        }
    }
    int gone = bound(AF_INET, &pairs[0].gone_name), holds, closed;
    struct name holds_name, closed_name;
    holds = bound(AF_INET, &holds_name);
    send_long(gone, &holds_name, 4711);
    CHECK_EQ(close(gone), 0);
    CHECK_EQ(sendto(holds, large, sizeof large, 0, (struct sockaddr *)&holds_name.address, holds_name.len),
             sizeof large);
    closed = bound(AF_INET, &closed_name);
    set(closed, SOL_SOCKET, SO_BROADCAST, 1);
    set(closed, SOL_SOCKET, SO_RCVBUF, 70000);
    set(closed, IPPROTO_IP, IP_PKTINFO, 1);
    set(closed, IPPROTO_IP, IP_TTL, 33);

    /* In a group. */
    int member = socket(AF_INET, SOCK_DGRAM, 0), fresh = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(member >= 0 && fresh >= 0);
    struct ip_mreqn group = {.imr_ifindex = (int)if_nametoindex("lo")};
    group.imr_multiaddr.s_addr = htonl(0xef000000u | ((uint32_t)getpid() & 0xffffff));
    struct name group_name = loopback(AF_INET);
    ((struct sockaddr_in *)&group_name.address)->sin_addr = group.imr_multiaddr;
    CHECK_EQ(bind(member, (struct sockaddr *)&group_name.address, group_name.len), 0);
    group_name = name_of(member, getsockname);
    CHECK_EQ(setsockopt(member, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group), 0);
    struct in_addr own = {htonl(INADDR_LOOPBACK)};
    CHECK_EQ(setsockopt(fresh, IPPROTO_IP, IP_MULTICAST_IF, &own, sizeof own), 0);

    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        for (int f = 0; f < 2; f++) {
            struct pair *one = &pairs[f];
            check_name(&one->server_name, one->server, getsockname);
            check_name(&one->connected_name, one->connected, getsockname);
            check_name(&one->server_name, one->connected, getpeername);
            receive_long(one->server, &one->free_name, i);
            send_long(one->free, &one->server_name, i + 2);
            receive_long(one->connected, &one->server_name, -i);
            send_long(one->server, &one->connected_name, -i - 2);
            CHECK_EQ(fcntl(one->connected, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
        }
        int waiting = 0;
        CHECK_EQ(ioctl(holds, FIONREAD, &waiting), 0);
        CHECK_EQ(waiting, sizeof(long));
        CHECK_EQ(option(closed, SOL_SOCKET, SO_BROADCAST), 1);
        CHECK_EQ(option(closed, SOL_SOCKET, SO_RCVBUF), 140000);
        CHECK_EQ(option(closed, IPPROTO_IP, IP_PKTINFO), 1);
        CHECK_EQ(option(closed, IPPROTO_IP, IP_TTL), 33);
        CHECK_EQ(fcntl(fresh, F_GETFD), FD_CLOEXEC);
        send_long(fresh, &group_name, i);
        long number = -1;
        struct pollfd arrives = {member, POLLIN, 0};
        CHECK_EQ(poll(&arrives, 1, 5000), 1);
        CHECK_EQ(recv(member, &number, sizeof number, MSG_DONTWAIT), sizeof number);
        CHECK_EQ(number, i);
    }
    receive_long(holds, &pairs[0].gone_name, 4711);
    memset(large, 0, sizeof large);
    CHECK_EQ(recv(holds, large, sizeof large, MSG_DONTWAIT), sizeof large);
    for (size_t i = 0; i < sizeof large; i++)
        CHECK_EQ(large[i], 'U');
    guest_line("ok udp");
    return 0;
}
