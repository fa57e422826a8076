/* Signals that are read from signalfd: by a thread, by way of epoll, with signals that wait, with another set. */
#include "guest.h"
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

static int waited;

static int next(int fd)
{
    struct signalfd_siginfo info;
    ssize_t len = read(fd, &info, sizeof info);
    if (len == -1 && errno == EAGAIN)
        return 0;
    CHECK_EQ(len, sizeof info);
    return (int)info.ssi_signo;
}

/* Waits in read nearly all the time. */
static void *reader(void *argument)
{
    for (long i = 0; i < (long)argument; i++) {
        struct signalfd_siginfo info;
        CHECK_EQ(read(waited, &info, sizeof info), sizeof info);
        CHECK_EQ(info.ssi_signo, (unsigned)SIGRTMIN + 3);
        CHECK_EQ(info.ssi_int, i);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    sigset_t all, one, set;
    sigemptyset(&all);
    sigaddset(&all, SIGUSR1);
    sigaddset(&all, SIGHUP);
    sigaddset(&all, SIGRTMIN + 2);
    sigaddset(&all, SIGRTMIN + 3);
    sigaddset(&all, SIGCHLD);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &all, NULL), 0);
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    int first = signalfd(-1, &one, SFD_NONBLOCK);
    CHECK(first >= 0);
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    int second = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    sigaddset(&set, SIGHUP);
    CHECK_EQ(signalfd(second, &set, 0), second);
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    waited = signalfd(-1, &set, 0);
    CHECK(second >= 0 && waited >= 0);
    int epoll = epoll_create1(0), inner = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = 77};
    CHECK_EQ(epoll_ctl(inner, EPOLL_CTL_ADD, second, &event), 0);
    event.events = EPOLLIN;
    CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, inner, &event), 0);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, reader, (void *)steps), 0);
    for (long i = 0; i < steps; i++) {
        /* They wait while the step is taken. */
        CHECK_EQ(kill(getpid(), SIGUSR1), 0);
        guest_step(i + 1);
        CHECK_EQ(next(first), SIGUSR1);
        CHECK_EQ(next(first), 0);
        CHECK_EQ(next(second), 0);
        /* Signals that come later wake whoever waits, also behind a restart. */
        CHECK_EQ(kill(getpid(), SIGHUP), 0);
        CHECK_EQ(epoll_wait(epoll, &event, 1, 10000), 1);
        CHECK_EQ(event.data.u64, 77);
        CHECK_EQ(epoll_wait(inner, &event, 1, 10000), 1);
        CHECK_EQ(next(second), SIGHUP);
        CHECK_EQ(next(second), 0);
        union sigval value = {.sival_int = (int)i};
        CHECK_EQ(sigqueue(getpid(), SIGRTMIN + 2, value), 0);
        CHECK_EQ(epoll_wait(inner, &event, 1, 10000), 1);
        CHECK_EQ(next(second), SIGRTMIN + 2);
        CHECK_EQ(sigqueue(getpid(), SIGRTMIN + 3, value), 0);
        CHECK_EQ(fcntl(second, F_GETFD), FD_CLOEXEC);
        CHECK_EQ(fcntl(waited, F_GETFL) & O_NONBLOCK, 0);
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    guest_line("ok signalfd");
    return 0;
}
