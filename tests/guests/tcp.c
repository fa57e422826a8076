/* TCP connections whose ends are all in the job: names, queues, half closed ones, listening sockets, connections not yet accepted. */
#include "names.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

/* The loopback, of this family; with `mapped`, IPv4's for a socket of IPv6. The host in 127.0.0.0/8 is our
 * own, so that no other test has its ports. */
static struct name loopback(int family, int mapped, int port)
{
    struct name name;
    memset(&name, 0, sizeof name);
    uint32_t own = 0x7f000000u | ((uint32_t)getpid() & 0xfffff) << 2 | 1;
    if (family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)&name.address;
        v4->sin_family = AF_INET;
        v4->sin_addr.s_addr = htonl(own);
        v4->sin_port = (in_port_t)port;
        name.len = sizeof *v4;
        return name;
    }
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&name.address;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = (in_port_t)port;
    if (mapped) {
        v6->sin6_addr.s6_addr[10] = v6->sin6_addr.s6_addr[11] = 0xff;
        own = htonl(own);
        memcpy(&v6->sin6_addr.s6_addr[12], &own, 4);
    } else {
        v6->sin6_addr = in6addr_loopback;
    }
    name.len = sizeof *v6;
    return name;
}

static in_port_t port_of(const struct name *name)
{
    return name->address.ss_family == AF_INET ? ((const struct sockaddr_in *)&name->address)->sin_port
                                              : ((const struct sockaddr_in6 *)&name->address)->sin6_port;
}

static int listener(struct name *name, int backlog)
{
    int fd = socket(name->address.ss_family, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&name->address, name->len), 0);
    CHECK_EQ(listen(fd, backlog), 0);
    *name = name_of(fd, getsockname);
    return fd;
}

struct connection {
    int client, server;
    struct name client_name, server_name;
};

static int connected(int family, const struct name *to)
{
    int fd = socket(family, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK_EQ(connect(fd, (const struct sockaddr *)&to->address, to->len), 0);
    return fd;
}

/* A connection from a socket of family `client` to one of family `server`. */
static struct connection connection(int client, int server, int mapped)
{
    struct connection made;
    struct name at = loopback(server, mapped || client != server, 0);
    int listening = listener(&at, 1);
    struct name to = loopback(client, mapped, port_of(&at));
    made.client = connected(client, &to);
    made.server = accept(listening, NULL, NULL);
    CHECK(made.server >= 0);
    CHECK_EQ(close(listening), 0);
    made.client_name = name_of(made.client, getsockname);
    made.server_name = name_of(made.server, getsockname);
    return made;
}

static void check_names(const struct connection *made)
{
    check_name(&made->client_name, made->client, getsockname);
    check_name(&made->server_name, made->server, getsockname);
    if (made->client_name.address.ss_family == made->server_name.address.ss_family) {
        check_name(&made->server_name, made->client, getpeername);
        check_name(&made->client_name, made->server, getpeername);
    }
}

static void send_number(int fd, long number)
{
    CHECK_EQ(send(fd, &number, sizeof number, 0), sizeof number);
}

static long receive_number(int fd)
{
    long number = -1;
    CHECK_EQ(recv(fd, &number, sizeof number, MSG_WAITALL), sizeof number);
    return number;
}

static int waiting_in(int fd)
{
    int waiting = -1;
    CHECK_EQ(ioctl(fd, FIONREAD, &waiting), 0);
    return waiting;
}

static int poll_for(int fd, int events)
{
    struct pollfd poll_fd = {fd, (short)events, 0};
    CHECK(poll(&poll_fd, 1, 0) >= 0);
    return poll_fd.revents;
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

/* A stream whose receiver lags behind: the sender waits most of the time. */
static struct connection stream;
#define BLOCK 32768

static void *stream_writer(void *argument)
{
    long blocks = (long)argument;
    static uint32_t block[BLOCK / 4];
    for (long i = 0; i < blocks; i++) {
        for (long k = 0; k < BLOCK / 4; k++)
            block[k] = (uint32_t)(i * (BLOCK / 4) + k);
        for (size_t done = 0; done < sizeof block;) {
            ssize_t n = send(stream.client, (char *)block + done, sizeof block - done, 0);
            CHECK(n > 0);
            done += (size_t)n;
        }
    }
    CHECK_EQ(shutdown(stream.client, SHUT_WR), 0);
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK(signal(SIGPIPE, SIG_IGN) == SIG_DFL);
    int probe = socket(AF_INET6, SOCK_STREAM, 0);
    int v6 = probe >= 0 ? AF_INET6 : AF_INET;
    if (probe >= 0)
        CHECK_EQ(close(probe), 0);

    /* Two numbers are under way in each direction of each at every step. */
    enum { KINDS = 4 };
    struct connection kinds[KINDS] = {
        connection(AF_INET, AF_INET, 0),
        connection(v6, v6, 0),
        connection(v6, v6, 1),
        connection(AF_INET, v6, 0),
    };
    for (int k = 0; k < KINDS; k++)
        for (long i = 0; i < 2; i++) {
            send_number(kinds[k].client, i);
            send_number(kinds[k].server, -i);
        }
    CHECK_EQ(fcntl(kinds[0].server, F_SETFL, O_NONBLOCK), 0);
    set(kinds[0].client, IPPROTO_TCP, TCP_NODELAY, 1);
    set(kinds[0].client, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(kinds[0].client, IPPROTO_TCP, TCP_KEEPIDLE, 321);
    set(kinds[0].client, IPPROTO_TCP, TCP_USER_TIMEOUT, 76543);
    set(kinds[0].client, SOL_SOCKET, SO_RCVBUF, 54321);
    set(kinds[0].client, IPPROTO_IP, IP_TOS, 0x10);
    struct linger linger = {1, 7};
    CHECK_EQ(setsockopt(kinds[0].client, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);

    /* Held back by TCP_CORK or full of what nobody reads. */
    struct connection corked = connection(AF_INET, AF_INET, 0), full = connection(AF_INET, AF_INET, 0);
    set(corked.client, IPPROTO_TCP, TCP_CORK, 1);
    long in_full = 0;
    CHECK_EQ(fcntl(full.client, F_SETFL, O_NONBLOCK), 0);
    for (ssize_t n; (n = send(full.client, "0123456789abcdef0123456789abcdef", 32, 0)) > 0;)
        in_full += n;
    CHECK_EQ(errno, EAGAIN);
    guest_line("note %ld bytes fill a connection", in_full);

    /* Half closed, each with something unread; ends that are gone. */
    struct connection half = connection(AF_INET, AF_INET, 0), left = connection(v6, v6, 0);
    struct connection both = connection(AF_INET, AF_INET, 0), reset = connection(AF_INET, AF_INET, 0);
    send_number(half.client, 77);
    CHECK_EQ(shutdown(half.client, SHUT_WR), 0);
    send_number(left.server, 88);
    CHECK_EQ(close(left.server), 0);
    send_number(both.client, 99);
    CHECK(shutdown(both.client, SHUT_WR) == 0 && shutdown(both.server, SHUT_WR) == 0);
    send_number(reset.client, 1);
    CHECK_EQ(close(reset.server), 0); /* With something unread: a reset. */
    while (poll_for(reset.client, POLLIN) == 0)
        guest_nap_us(1000);

    /* Bound, not bound, listening, and waiting to be accepted. */
    struct name at = loopback(AF_INET, 0, 0), bound_at = loopback(AF_INET, 0, 0), v6_at = loopback(v6, 0, 0);
    int listening = listener(&at, 7), v6_listening = listener(&v6_at, 5);
    set(listening, SOL_SOCKET, SO_REUSEADDR, 1);
    int bound = socket(AF_INET, SOCK_STREAM, 0), fresh = socket(v6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(bound, (struct sockaddr *)&bound_at.address, bound_at.len), 0);
    bound_at = name_of(bound, getsockname);
    int waits = connected(AF_INET, &at);
    struct name waits_name = name_of(waits, getsockname);

    /* An echo in another process, which shares one end. */
    struct connection echo = connection(AF_INET, AF_INET, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* All others would not end where they were closed, had it them too. */
        CHECK_EQ(close_range(3, (unsigned)echo.server - 1, 0), 0);
        CHECK_EQ(close_range((unsigned)echo.server + 1, ~0u, 0), 0);
        long number;
        while (recv(echo.server, &number, sizeof number, MSG_WAITALL) == sizeof number) {
            check_name(&echo.server_name, echo.server, getsockname);
            check_name(&echo.client_name, echo.server, getpeername);
            send_number(echo.server, number * 2 + 1);
        }
        _exit(22);
    }
    CHECK_EQ(close(echo.server), 0);
    for (long i = 0; i < 2; i++)
        send_number(echo.client, i);

    stream = connection(AF_INET, AF_INET, 0);
    set(stream.client, SOL_SOCKET, SO_SNDBUF, 100000);
    set(stream.server, SOL_SOCKET, SO_RCVBUF, 100000);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, stream_writer, (void *)(steps * 4)), 0);
    uint32_t next = 0;
    static uint32_t block[BLOCK / 4];

    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        for (int k = 0; k < KINDS; k++) {
            struct connection *one = &kinds[k];
            check_names(one);
            CHECK_EQ(waiting_in(one->server), 2 * sizeof(long));
            CHECK_EQ(receive_number(one->server), i);
            send_number(one->client, i + 2);
            CHECK_EQ(receive_number(one->client), -i);
            send_number(one->server, -i - 2);
        }
        CHECK_EQ(fcntl(kinds[0].server, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
        CHECK_EQ(option(kinds[0].client, IPPROTO_TCP, TCP_NODELAY), 1);
        CHECK_EQ(option(kinds[0].client, SOL_SOCKET, SO_KEEPALIVE), 1);
        CHECK_EQ(option(kinds[0].client, IPPROTO_TCP, TCP_KEEPIDLE), 321);
        CHECK_EQ(option(kinds[0].client, IPPROTO_TCP, TCP_USER_TIMEOUT), 76543);
        CHECK_EQ(option(kinds[0].client, SOL_SOCKET, SO_RCVBUF), 2 * 54321);
        CHECK_EQ(option(kinds[0].client, IPPROTO_IP, IP_TOS), 0x10);
        CHECK_EQ(option(kinds[1].server, IPPROTO_TCP, TCP_NODELAY), 0);
        socklen_t len = sizeof linger;
        memset(&linger, 0, sizeof linger);
        CHECK_EQ(getsockopt(kinds[0].client, SOL_SOCKET, SO_LINGER, &linger, &len), 0);
        CHECK(linger.l_onoff == 1 && linger.l_linger == 7);

        send_number(corked.client, i);
        if (i % 3 == 2) {
            for (long k = i - 2; k <= i; k++)
                CHECK_EQ(receive_number(corked.server), k);
            CHECK_EQ(option(corked.client, IPPROTO_TCP, TCP_CORK), 1);
        }

        CHECK_EQ(poll_for(half.server, POLLIN | POLLRDHUP), POLLIN | POLLRDHUP);
        CHECK_EQ(waiting_in(half.server), sizeof(long));
        CHECK(send(half.client, "x", 1, 0) == -1 && errno == EPIPE);
        send_number(half.server, i);
        CHECK_EQ(receive_number(half.client), i);
        CHECK_EQ(poll_for(left.client, POLLIN | POLLRDHUP), POLLIN | POLLRDHUP);
        CHECK_EQ(waiting_in(left.client), sizeof(long));
        check_name(&left.client_name, left.client, getsockname);
        CHECK_EQ(poll_for(both.server, POLLIN | POLLRDHUP), POLLIN | POLLRDHUP | POLLHUP);
        CHECK_EQ(waiting_in(both.server), sizeof(long));
        CHECK(send(both.server, "x", 1, 0) == -1 && errno == EPIPE);
        CHECK(poll_for(reset.client, POLLIN) & POLLERR);

        check_name(&at, listening, getsockname);
        check_name(&v6_at, v6_listening, getsockname);
        check_name(&bound_at, bound, getsockname);
        CHECK_EQ(option(listening, SOL_SOCKET, SO_ACCEPTCONN), 1);
        CHECK_EQ(option(listening, SOL_SOCKET, SO_REUSEADDR), 1);
        CHECK_EQ(option(v6_listening, SOL_SOCKET, SO_REUSEADDR), 0);
        CHECK_EQ(poll_for(fresh, POLLIN), POLLHUP);
        CHECK_EQ(fcntl(fresh, F_GETFD), FD_CLOEXEC);
        struct tcp_info info;
        len = sizeof info;
        CHECK_EQ(getsockopt(listening, IPPROTO_TCP, TCP_INFO, &info, &len), 0);
        CHECK_EQ(info.tcpi_sacked, 7);
        CHECK_EQ(info.tcpi_unacked, 1);
        /* The one that waits is accepted, and another waits. */
        check_name(&waits_name, waits, getsockname);
        check_name(&at, waits, getpeername);
        int accepted = accept(listening, NULL, NULL);
        CHECK(accepted >= 0);
        send_number(waits, i);
        CHECK_EQ(receive_number(accepted), i);
        CHECK(close(accepted) == 0 && close(waits) == 0);
        waits = connected(AF_INET, &at);
        waits_name = name_of(waits, getsockname);

        check_name(&echo.client_name, echo.client, getsockname);
        check_name(&echo.server_name, echo.client, getpeername);
        CHECK_EQ(receive_number(echo.client), 2 * i + 1);
        send_number(echo.client, i + 2);

        for (int k = 0; k < 4; k++) {
            for (size_t done = 0; done < sizeof block;) {
                ssize_t n = recv(stream.server, (char *)block + done, sizeof block - done, 0);
                CHECK(n > 0);
                done += (size_t)n;
            }
            for (int word = 0; word < BLOCK / 4; word++)
                CHECK(block[word] == next++);
        }
        CHECK_EQ(waiting_in(full.server) > 0, 1);
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    char byte;
    CHECK_EQ(recv(stream.server, &byte, 1, 0), 0);
    CHECK_EQ(receive_number(half.server), 77);
    CHECK_EQ(recv(half.server, &byte, 1, 0), 0);
    CHECK_EQ(receive_number(left.client), 88);
    CHECK_EQ(recv(left.client, &byte, 1, 0), 0);
    CHECK_EQ(receive_number(both.server), 99);
    CHECK_EQ(recv(both.server, &byte, 1, 0), 0);
    CHECK(recv(reset.client, &byte, 1, 0) == -1 && errno == ECONNRESET);
    CHECK_EQ(close(full.client), 0);
    static char text[65536];
    for (long done = 0; done < in_full;) {
        ssize_t n = recv(full.server, text, sizeof text, 0);
        CHECK(n > 0);
        for (ssize_t k = 0; k < n; k++, done++)
            CHECK_EQ(text[k], "0123456789abcdef"[done % 16]);
    }
    CHECK_EQ(recv(full.server, &byte, 1, 0), 0);
    CHECK_EQ(shutdown(echo.client, SHUT_WR), 0);
    CHECK_EQ(receive_number(echo.client), 2 * steps + 1);
    CHECK_EQ(receive_number(echo.client), 2 * (steps + 1) + 1);
    CHECK_EQ(recv(echo.client, &byte, 1, 0), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 22);
    guest_line("ok tcp %u", next);
    return 0;
}
