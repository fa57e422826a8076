/* Many unix connections (with "tcp": TCP connections) to several processes (4, or as many as the last argument says), with bytes under way both ways in each: none is lost, doubled or cut short. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define MOST 1000

static char pattern(long connection, long at)
{
    return (char)(at * 31 + connection * 7 + (at >> 8));
}

/* Sends back what comes, until all have ended. */
static void echo(int listener, int count)
{
    struct pollfd fds[MOST];
    char bytes[4096];
    for (int i = 0; i < count; i++) {
        fds[i].fd = accept(listener, NULL, NULL);
        fds[i].events = POLLIN;
        CHECK(fds[i].fd >= 0);
    }
    CHECK_EQ(close(listener), 0);
    for (int open = count; open > 0;) {
        CHECK(poll(fds, (nfds_t)count, -1) > 0);
        for (int i = 0; i < count; i++) {
            if (fds[i].fd < 0 || !fds[i].revents)
                continue;
            ssize_t n = recv(fds[i].fd, bytes, sizeof bytes, 0);
            CHECK(n >= 0);
            CHECK_EQ(send(fds[i].fd, bytes, (size_t)n, MSG_NOSIGNAL), n);
            if (n == 0) {
                CHECK_EQ(close(fds[i].fd), 0);
                fds[i].fd = -1;
                open--;
            }
        }
    }
    _exit(31);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int count = argc > 2 ? atoi(argv[2]) : 100;
    int processes = argc > 4 ? atoi(argv[4]) : 4;
    CHECK(count <= MOST && count % processes == 0);
    struct rlimit limit = {4096, 4096};
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    int is_tcp = argc > 3 && strcmp(argv[3], "tcp") == 0;
    static int fds[MOST];
    static long sent[MOST], got[MOST];
    pid_t children[processes];
    for (int p = 0; p < processes; p++) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        struct sockaddr_in internet = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        struct sockaddr *name = is_tcp ? (struct sockaddr *)&internet : (struct sockaddr *)&address;
        socklen_t len = is_tcp ? sizeof internet : sizeof address;
        snprintf(address.sun_path, sizeof address.sun_path, "server%d", p);
        int listener = socket(name->sa_family, SOCK_STREAM, 0);
        CHECK_EQ(bind(listener, name, len), 0);
        CHECK_EQ(getsockname(listener, name, &len), 0);
        if (!is_tcp)
            len = sizeof address;
        CHECK_EQ(listen(listener, count), 0);
        children[p] = fork();
        CHECK(children[p] >= 0);
        if (children[p] == 0) {
            for (int i = 0; i < p * (count / processes); i++)
                CHECK_EQ(close(fds[i]), 0);
            echo(listener, count / processes);
        }
        CHECK_EQ(close(listener), 0);
        for (int i = p * (count / processes); i < (p + 1) * (count / processes); i++) {
            fds[i] = socket(name->sa_family, SOCK_STREAM, 0);
            CHECK(fds[i] >= 0);
            CHECK_EQ(connect(fds[i], name, len), 0);
        }
    }
    uint64_t random = 88172645463325252u;
    static char bytes[65536];
    for (long step = 1; step <= steps; step++) {
        for (int i = 0; i < count; i++) {
            size_t len = 1 + guest_random(&random) % 2000;
            for (size_t k = 0; k < len; k++)
                bytes[k] = pattern(i, sent[i] + (long)k);
            CHECK_EQ(send(fds[i], bytes, len, 0), len);
            sent[i] += (long)len;
        }
        guest_step(step);
        for (int i = 0; i < count; i++) {
            /* Some stays under way. */
            while (sent[i] - got[i] > 3000) {
                ssize_t n = recv(fds[i], bytes, (size_t)(sent[i] - got[i] - 1000), 0);
                CHECK(n > 0);
                for (ssize_t k = 0; k < n; k++)
                    CHECK_EQ(bytes[k], pattern(i, got[i] + k));
                got[i] += n;
            }
        }
    }
    long total = 0;
    for (int i = 0; i < count; i++) {
        CHECK_EQ(shutdown(fds[i], SHUT_WR), 0);
        ssize_t n;
        while ((n = recv(fds[i], bytes, sizeof bytes, 0)) > 0) {
            for (ssize_t k = 0; k < n; k++)
                CHECK_EQ(bytes[k], pattern(i, got[i] + k));
            got[i] += n;
        }
        CHECK_EQ(n, 0);
        CHECK_EQ(got[i], sent[i]);
        total += got[i];
    }
    for (int p = 0; p < processes; p++) {
        int status = 0;
        CHECK_EQ(waitpid(children[p], &status, 0), children[p]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 31);
        char name[32];
        snprintf(name, sizeof name, "server%d", p);
        if (!is_tcp)
            CHECK_EQ(unlink(name), 0);
    }
    guest_line("ok unix_many %ld", total);
    return 0;
}
