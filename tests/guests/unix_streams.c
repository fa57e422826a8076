/* Unix stream sockets keep what they hold, their names, their ends and their options; listeners keep who waits. */
#include "guest.h"
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static struct sockaddr_un address;

/* `name` begins with @ for an abstract one. */
static socklen_t name_to(const char *name)
{
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    size_t len = strlen(name);
    CHECK(len < sizeof address.sun_path);
    memcpy(address.sun_path, name, len);
    if (name[0] == '@') {
        address.sun_path[0] = 0;
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    }
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + 1);
}

static int bound(int type, const char *name)
{
    int fd = socket(AF_UNIX, type, 0);
    CHECK(fd >= 0);
    socklen_t len = name_to(name);
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, len), 0);
    return fd;
}

static int connected(int type, const char *name)
{
    int fd = socket(AF_UNIX, type, 0);
    CHECK(fd >= 0);
    socklen_t len = name_to(name);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, len), 0);
    return fd;
}

/* Which name an end has: "" for none. */
static void named(int fd, int peer, const char *name)
{
    struct sockaddr_un found;
    socklen_t len = sizeof found;
    memset(&found, 0, sizeof found);
    CHECK_EQ((peer ? getpeername : getsockname)(fd, (struct sockaddr *)&found, &len), 0);
    CHECK_EQ(found.sun_family, AF_UNIX);
    socklen_t wanted = *name ? name_to(name) : 2;
    CHECK_EQ(len, wanted);
    CHECK(wanted == 2 || memcmp(&found, &address, wanted) == 0);
}

static void say(int fd, const char *words)
{
    CHECK_EQ(send(fd, words, strlen(words), MSG_NOSIGNAL), strlen(words));
}

/* What is there is `words`, and stays. */
static void holds(int fd, const char *words)
{
    char found[256];
    int waiting = -1;
    CHECK_EQ(ioctl(fd, FIONREAD, &waiting), 0);
    CHECK_EQ(waiting, strlen(words));
    CHECK_EQ(recv(fd, found, sizeof found, MSG_PEEK | MSG_DONTWAIT), strlen(words));
    CHECK(memcmp(found, words, strlen(words)) == 0);
}

static void hears(int fd, const char *words)
{
    char found[256];
    size_t len = strlen(words), got = 0;
    while (got < len) {
        ssize_t n = recv(fd, found + got, len - got, 0);
        CHECK(n > 0);
        got += (size_t)n;
    }
    CHECK(memcmp(found, words, len) == 0);
}

static int option(int fd, int name)
{
    int value = -1;
    socklen_t len = sizeof value;
    CHECK_EQ(getsockopt(fd, SOL_SOCKET, name, &value, &len), 0);
    return value;
}

static void set_option(int fd, int name, int value)
{
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, name, &value, sizeof value), 0);
}

/* A stream of numbers between two threads over a socket that is full nearly all the time. */
static int busy[2];

static void *talker(void *argument)
{
    long count = (long)argument;
    uint32_t block[1024];
    for (long i = 0; i < count; i++) {
        for (int k = 0; k < 1024; k++)
            block[k] = (uint32_t)(i * 1024 + k);
        size_t done = 0;
        /* A short count is the kernel's right only after a signal of the program's own. */
        ssize_t n = send(busy[1], (char *)block + done, sizeof block - done, 0);
        CHECK_EQ(n, sizeof block);
    }
    CHECK_EQ(shutdown(busy[1], SHUT_WR), 0);
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK(signal(SIGPIPE, SIG_IGN) == SIG_DFL);
    char abstract[64], other[64];
    /* Two hosts that are one have one set of abstract names: then it is to do without. */
    int paths = argc > 2;
    strcpy(abstract, "server");
    strcpy(other, "client");
    if (!paths) {
        snprintf(abstract, sizeof abstract, "@ulpm-streams-%d", (int)getpid());
        snprintf(other, sizeof other, "@ulpm-client-%d", (int)getpid());
    }
    umask(0);

    /* Pairs. */
    int pair[2], closed[2], reset[2], half[2], flagged[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, closed), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, reset), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, half), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, flagged), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, busy), 0);
    say(closed[1], "last words");
    CHECK_EQ(close(closed[1]), 0);
    say(reset[0], "never read");
    say(reset[1], "but this");
    CHECK_EQ(close(reset[1]), 0);
    say(half[1], "before");
    CHECK_EQ(shutdown(half[1], SHUT_WR), 0);

    /* Options. */
    set_option(flagged[0], SO_KEEPALIVE, 1);
    set_option(flagged[0], SO_PASSCRED, 1);
    set_option(flagged[0], SO_RCVLOWAT, 3);
    set_option(flagged[0], SO_SNDBUF, 40000);
    set_option(flagged[0], SO_PEEK_OFF, 5);
    int sndbuf = option(flagged[0], SO_SNDBUF);
    struct timeval timeout = {7, 500000}, found_timeout;
    CHECK_EQ(setsockopt(flagged[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout), 0);

    /* A listener with a path, one with an abstract name, one that is gone with its file, one gone whose file stays. */
    int by_path = bound(SOCK_STREAM, "listener");
    CHECK_EQ(chmod("listener", 0640), 0);
    CHECK_EQ(listen(by_path, 5), 0);
    int by_name = bound(SOCK_STREAM, abstract);
    CHECK_EQ(listen(by_name, 5), 0);
    int path_client = connected(SOCK_STREAM, "listener"), path_server = accept(by_path, NULL, NULL);
    int name_client = bound(SOCK_STREAM, other);
    socklen_t len = name_to(abstract);
    CHECK_EQ(connect(name_client, (struct sockaddr *)&address, len), 0);
    int name_server = accept(by_name, NULL, NULL);
    CHECK(path_server >= 0 && name_server >= 0);
    int gone = bound(SOCK_STREAM, "gone");
    CHECK_EQ(listen(gone, 5), 0);
    int gone_client[2], gone_server[2];
    for (int i = 0; i < 2; i++) {
        gone_client[i] = connected(SOCK_STREAM, "gone");
        gone_server[i] = accept(gone, NULL, NULL);
        CHECK(gone_server[i] >= 0);
    }
    CHECK(close(gone) == 0 && unlink("gone") == 0);
    CHECK_EQ(close(gone_client[1]), 0);
    /* Bound and no more; bound by the kernel. */
    int only_bound = bound(SOCK_STREAM, "bound");
    int automatic = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un own, again;
    socklen_t own_len = sizeof own;
    sa_family_t family = AF_UNIX;
    socklen_t automatic_len = paths ? 2 : 8;
    if (!paths)
        CHECK_EQ(bind(automatic, (struct sockaddr *)&family, sizeof family), 0);
    CHECK_EQ(getsockname(automatic, (struct sockaddr *)&own, &own_len), 0);
    CHECK_EQ(own_len, automatic_len);
    int bare = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

    /* A server in another process, with one connection under way at every step. */
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        long number;
        CHECK_EQ(close(path_client), 0);
        while (recv(path_server, &number, sizeof number, MSG_WAITALL) == sizeof number) {
            number = number * 2 + 1;
            if (send(path_server, &number, sizeof number, MSG_NOSIGNAL) != sizeof number)
                break;
        }
        _exit(23);
    }
    CHECK_EQ(close(path_server), 0);

    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, talker, (void *)(steps * 4)), 0);
    /* Three wait in the listener at every step. */
    int waiting[3];
    for (int i = 0; i < 3; i++)
        waiting[i] = connected(SOCK_STREAM, "listener");
    for (long i = 0; i < 2; i++)
        CHECK_EQ(send(path_client, &i, sizeof i, 0), sizeof i);
    char words[64];
    uint32_t next = 0, block[1024];
    for (long i = 1; i <= steps; i++) {
        snprintf(words, sizeof words, "there %ld", i);
        say(pair[0], words);
        snprintf(words, sizeof words, "back %ld", i);
        say(pair[1], words);
        snprintf(words, sizeof words, "name %ld", i);
        say(name_client, words);
        say(gone_client[0], words);
        say(flagged[1], words);
        guest_step(i);
        snprintf(words, sizeof words, "there %ld", i);
        holds(pair[1], words);
        hears(pair[1], words);
        snprintf(words, sizeof words, "back %ld", i);
        holds(pair[0], words);
        hears(pair[0], words);
        snprintf(words, sizeof words, "name %ld", i);
        hears(name_server, words);
        hears(gone_server[0], words);
        CHECK_EQ(option(flagged[0], SO_PEEK_OFF), 5);
        hears(flagged[0], words);
        set_option(flagged[0], SO_PEEK_OFF, 5);

        long number;
        CHECK_EQ(recv(path_client, &number, sizeof number, MSG_WAITALL), sizeof number);
        CHECK_EQ(number, 2 * (i - 1) + 1);
        number = i + 1;
        CHECK_EQ(send(path_client, &number, sizeof number, 0), sizeof number);

        /* The one that has waited longest is the first. */
        int server = accept(by_path, NULL, NULL);
        CHECK(server >= 0);
        snprintf(words, sizeof words, "welcome %ld", i);
        say(server, words);
        hears(waiting[0], words);
        named(server, 0, "listener");
        named(waiting[0], 1, "listener");
        CHECK_EQ(recv(waiting[1], words, sizeof words, MSG_DONTWAIT), -1);
        CHECK_EQ(errno, EAGAIN);
        CHECK(close(server) == 0 && close(waiting[0]) == 0);
        waiting[0] = waiting[1];
        waiting[1] = waiting[2];
        waiting[2] = connected(SOCK_STREAM, "listener");

        holds(closed[0], "last words");
        struct pollfd poll_reset = {reset[0], POLLIN, 0};
        CHECK_EQ(poll(&poll_reset, 1, 0), 1);
        CHECK_EQ(poll_reset.revents & (POLLERR | POLLHUP), POLLERR | POLLHUP);
        holds(reset[0], "but this");
        holds(half[0], "before");
        struct pollfd poll_half = {half[0], POLLRDHUP, 0};
        CHECK_EQ(poll(&poll_half, 1, 0), 1);
        CHECK_EQ(poll_half.revents, POLLRDHUP);
        CHECK(send(half[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
        CHECK(send(closed[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
        CHECK(recv(flagged[1], words, 1, 0) == -1 && errno == EAGAIN);
        CHECK_EQ(recv(gone_server[1], words, 1, 0), 0);

        named(pair[0], 0, "");
        named(pair[0], 1, "");
        named(name_client, 0, other);
        named(name_client, 1, abstract);
        named(name_server, 0, abstract);
        named(name_server, 1, other);
        named(path_client, 1, "listener");
        named(path_client, 0, "");
        named(gone_client[0], 1, "gone");
        named(gone_server[0], 0, "gone");
        named(gone_server[1], 0, "gone");
        named(only_bound, 0, "bound");
        own_len = sizeof again;
        CHECK_EQ(getsockname(automatic, (struct sockaddr *)&again, &own_len), 0);
        CHECK(own_len == automatic_len && memcmp(&own, &again, automatic_len) == 0);
        CHECK(access("gone", F_OK) == -1 && errno == ENOENT);
        struct stat status;
        CHECK_EQ(stat("listener", &status), 0);
        CHECK_EQ(status.st_mode, S_IFSOCK | 0640);

        CHECK_EQ(option(flagged[0], SO_KEEPALIVE), 1);
        CHECK_EQ(option(flagged[0], SO_PASSCRED), 1);
        CHECK_EQ(option(flagged[0], SO_RCVLOWAT), 3);
        CHECK_EQ(option(flagged[0], SO_SNDBUF), sndbuf);
        CHECK_EQ(option(flagged[1], SO_PEEK_OFF), -1);
        CHECK_EQ(option(pair[0], SO_PASSCRED), 0);
        CHECK_EQ(option(by_path, SO_ACCEPTCONN), 1);
        len = sizeof found_timeout;
        CHECK_EQ(getsockopt(flagged[0], SOL_SOCKET, SO_RCVTIMEO, &found_timeout, &len), 0);
        CHECK(found_timeout.tv_sec == 7 && found_timeout.tv_usec == 500000);
        CHECK_EQ(fcntl(flagged[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
        CHECK_EQ(fcntl(flagged[0], F_GETFD), FD_CLOEXEC);
        CHECK_EQ(fcntl(pair[0], F_GETFL), O_RDWR);
        CHECK_EQ(fcntl(bare, F_GETFL), O_RDWR | O_NONBLOCK);
        CHECK(recv(bare, words, 1, 0) == -1 && errno == EINVAL);

        for (int k = 0; k < 4; k++) {
            CHECK_EQ(recv(busy[0], block, sizeof block, MSG_WAITALL), sizeof block);
            for (int word = 0; word < 1024; word++)
                CHECK(block[word] == next++);
        }
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(recv(busy[0], block, sizeof block, 0), 0);
    hears(closed[0], "last words");
    CHECK_EQ(recv(closed[0], words, 1, 0), 0);
    hears(reset[0], "but this");
    CHECK(recv(reset[0], words, 1, 0) == -1 && errno == ECONNRESET);
    CHECK_EQ(recv(reset[0], words, 1, 0), 0);
    hears(half[0], "before");
    CHECK_EQ(recv(half[0], words, 1, 0), 0);
    say(half[0], "the other way");
    hears(half[1], "the other way");
    CHECK_EQ(shutdown(path_client, SHUT_RDWR), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 23);
    CHECK_EQ(unlink("listener"), 0);
    CHECK_EQ(unlink("bound"), 0);
    guest_line("ok unix_streams %u", next);
    return 0;
}
