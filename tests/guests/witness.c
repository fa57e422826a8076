/* Writes numbers, who wrote them and when to a file that all hosts see, in turn by processes that a tree of pipes, sockets
 * and TCP connections joins: witness STEPS FILE PROCESSES CHANNELS, where CHANNELS is some of the letters p, u and t. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static const char *file;

/* The kernel's word, not a name that is kept. */
static long real_pid(void)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_getpid) : "rcx", "r11", "memory");
    return result;
}

/* One write, behind everything that anybody has written. */
static void testify(long number, int who)
{
    struct timespec now;
    CHECK_EQ(clock_gettime(CLOCK_REALTIME, &now), 0);
    char line[100];
    int len = snprintf(line, sizeof line, "%ld %d %ld %lld\n", number, who, real_pid(),
                       (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000);
    int fd = open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(write(fd, line, (size_t)len), len);
    CHECK_EQ(close(fd), 0);
}

/* Two ends, each of which reads at [0] and writes at [1]. */
static void join(char how, int near[2], int far[2])
{
    if (how == 'p') {
        int to[2], from[2];
        CHECK(pipe(to) == 0 && pipe(from) == 0);
        near[0] = from[0], near[1] = to[1], far[0] = to[0], far[1] = from[1];
        return;
    }
    int pair[2];
    if (how == 'u') {
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    } else {
        struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof name;
        int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
        CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&name, len) == 0 && listen(listener, 1) == 0);
        CHECK_EQ(getsockname(listener, (struct sockaddr *)&name, &len), 0);
        pair[0] = socket(AF_INET, SOCK_STREAM, 0);
        CHECK_EQ(connect(pair[0], (struct sockaddr *)&name, len), 0);
        pair[1] = accept(listener, NULL, NULL);
        CHECK(pair[1] >= 0 && close(listener) == 0);
        for (int end = 0; end < 2; end++)
            CHECK_EQ(setsockopt(pair[end], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), 0);
    }
    near[0] = near[1] = pair[0], far[0] = far[1] = pair[1];
}

/* True when there is a number; false when the other end is gone. */
static int take(int fd, long *number)
{
    ssize_t len = read(fd, number, sizeof *number);
    CHECK(len == (ssize_t)sizeof *number || len == 0 || (len < 0 && errno == ECONNRESET));
    return len == (ssize_t)sizeof *number;
}

static void work(int who, int count, const int at[2])
{
    long number, last = 0;
    while (take(at[0], &number)) {
        CHECK(last == 0 || number == last + count);
        last = number;
        testify(number, who);
        if (write(at[1], &number, sizeof number) < 0)
            break;
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 5);
    long steps = atol(argv[1]);
    file = argv[2];
    int count = atoi(argv[3]), near[count][2];
    const char *channels = argv[4];
    CHECK(signal(SIGPIPE, SIG_IGN) == SIG_DFL && signal(SIGCHLD, SIG_IGN) == SIG_DFL);
    for (int who = 1; who < count; who++) {
        int far[2];
        join(channels[(size_t)who % strlen(channels)], near[who], far);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (int other = 1; other <= who; other++) {
                close(near[other][0]);
                if (near[other][1] != near[other][0])
                    close(near[other][1]);
            }
            work(who, count, far);
        }
        close(far[0]);
        if (far[1] != far[0])
            close(far[1]);
    }
    for (long number = 1; number <= steps; number++) {
        int who = (int)(number % count);
        long answer = number;
        if (who == 0) {
            testify(number, who);
        } else if (near[who][0] >= 0) {
            ssize_t len = write(near[who][1], &number, sizeof number);
            CHECK(len == (ssize_t)sizeof number || errno == EPIPE || errno == ECONNRESET);
            if (len < 0 || !take(near[who][0], &answer))
                near[who][0] = -1; /* It was killed, and the others go on. */
        }
        CHECK_EQ(answer, number);
        nanosleep(&(struct timespec){.tv_nsec = GUEST_PACE_MS * 1000000}, NULL);
    }
    return 0;
}
