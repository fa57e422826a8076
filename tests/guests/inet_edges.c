/* A TCP connection with itself, empty datagrams amid others, and, for root, raw sockets. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <sys/socket.h>

/* struct icmp_filter of linux/icmp.h, which does not go with netinet/ip_icmp.h, is a word. */
#define ICMP_FILTER 1

static socklen_t len = sizeof(struct sockaddr_in);

static int bound(int kind, int protocol, struct sockaddr_in *name)
{
    int fd = socket(AF_INET, kind, protocol);
    if (fd < 0)
        return fd;
    *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK_EQ(bind(fd, (struct sockaddr *)name, sizeof *name), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)name, &len), 0);
    return fd;
}

static void check_names(int fd, const struct sockaddr_in *name, int peer)
{
    struct sockaddr_in now;
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&now, &len), 0);
    CHECK(now.sin_port == name->sin_port && now.sin_addr.s_addr == name->sin_addr.s_addr);
    if (!peer)
        return;
    CHECK_EQ(getpeername(fd, (struct sockaddr *)&now, &len), 0);
    CHECK(now.sin_port == name->sin_port && now.sin_addr.s_addr == name->sin_addr.s_addr);
}

static uint16_t checksum(const void *data, size_t size)
{
    const uint16_t *words = data;
    uint32_t sum = 0;
    for (size_t i = 0; i < size / 2; i++)
        sum += words[i];
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)~(sum + (sum >> 16));
}

/* Asks the host for an echo; what is under way when the process is saved may be lost. */
static void ping(int raw, const struct sockaddr_in *to, long step)
{
    for (int attempt = 0;; attempt++) {
        CHECK(attempt < 50);
        struct icmphdr ask = {.type = ICMP_ECHO, .un.echo = {htons((uint16_t)getpid()), htons((uint16_t)step)}};
        ask.checksum = checksum(&ask, sizeof ask);
        CHECK_EQ(sendto(raw, &ask, sizeof ask, 0, (const struct sockaddr *)to, sizeof *to), sizeof ask);
        struct pollfd comes = {raw, POLLIN, 0};
        while (poll(&comes, 1, 200) == 1) {
            char packet[1500];
            ssize_t n = recv(raw, packet, sizeof packet, MSG_DONTWAIT);
            CHECK(n >= (ssize_t)(20 + sizeof(struct icmphdr)));
            struct icmphdr answer;
            memcpy(&answer, packet + 20, sizeof answer);
            CHECK_EQ(answer.type, ICMP_ECHOREPLY);
            if (answer.un.echo.id == ask.un.echo.id && answer.un.echo.sequence == ask.un.echo.sequence)
                return;
        }
    }
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    struct sockaddr_in self_name, from_name, to_name, raw_name;
    int self = bound(SOCK_STREAM, 0, &self_name);
    CHECK_EQ(connect(self, (struct sockaddr *)&self_name, len), 0);
    CHECK_EQ(send(self, "under way", 9, 0), 9);

    int from = bound(SOCK_DGRAM, 0, &from_name), to = bound(SOCK_DGRAM, 0, &to_name);
    static const char *const datagrams[] = {"", "one", "", "two", ""};
    for (int i = 0; i < 5; i++)
        CHECK_EQ(sendto(from, datagrams[i], strlen(datagrams[i]), 0, (struct sockaddr *)&to_name, len),
                 strlen(datagrams[i]));

    int raw = bound(SOCK_RAW, IPPROTO_ICMP, &raw_name), headers = -1;
    uint32_t filter = ~(1u << ICMP_ECHOREPLY), now = 0;
    socklen_t size = sizeof filter;
    if (raw >= 0) {
        CHECK_EQ(setsockopt(raw, SOL_RAW, ICMP_FILTER, &filter, sizeof filter), 0);
        headers = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
        CHECK(headers >= 0);
    }
    for (long step = 1; step <= steps; step++) {
        guest_step(step);
        char bytes[16];
        check_names(self, &self_name, 1);
        CHECK_EQ(recv(self, bytes, 9, MSG_WAITALL), 9);
        CHECK(memcmp(bytes, "under way", 9) == 0);
        CHECK_EQ(send(self, "under way", 9, 0), 9);
        check_names(from, &from_name, 0);
        check_names(to, &to_name, 0);
        if (raw < 0)
            continue;
        CHECK_EQ(getsockopt(raw, SOL_RAW, ICMP_FILTER, &now, &size), 0);
        CHECK_EQ(now, filter);
        check_names(raw, &raw_name, 0);
        int value = -1;
        socklen_t value_size = sizeof value;
        CHECK_EQ(getsockopt(headers, IPPROTO_IP, IP_HDRINCL, &value, &value_size), 0);
        CHECK_EQ(value, 1);
        CHECK_EQ(getsockopt(headers, SOL_SOCKET, SO_PROTOCOL, &value, &value_size), 0);
        CHECK_EQ(value, IPPROTO_RAW);
        ping(raw, &raw_name, step);
    }
    for (int i = 0; i < 5; i++) {
        char bytes[16];
        struct sockaddr_in source;
        CHECK_EQ(recvfrom(to, bytes, sizeof bytes, MSG_DONTWAIT, (struct sockaddr *)&source, &len),
                 strlen(datagrams[i]));
        CHECK(memcmp(bytes, datagrams[i], strlen(datagrams[i])) == 0);
        CHECK_EQ(source.sin_port, from_name.sin_port);
    }
    CHECK_EQ(shutdown(self, SHUT_WR), 0);
    char bytes[16];
    CHECK_EQ(recv(self, bytes, 9, MSG_WAITALL), 9);
    CHECK_EQ(recv(self, bytes, sizeof bytes, 0), 0);
    guest_line("ok inet_edges");
    return 0;
}
