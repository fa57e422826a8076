/* Descriptors of processes: of a child that lives, of one that has ended, of one that is gone, of its parent, of itself;
 * shared, and watched by epoll. */
#include "guest.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

extern int pidfd_open(pid_t pid, unsigned flags) __attribute__((weak));

static int process(pid_t pid)
{
    int fd = pidfd_open != NULL ? pidfd_open(pid, 0) : (int)syscall(SYS_pidfd_open, pid, 0);
    CHECK(fd >= 0);
    return fd;
}

static long send(int pidfd, int signal)
{
    return syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0);
}

static int ended(int pidfd)
{
    struct pollfd poll_fd = {pidfd, POLLIN, 0};
    return poll(&poll_fd, 1, 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int self = process(getpid()), out[2], go[2];
    CHECK(pipe(out) == 0 && pipe(go) == 0);

    pid_t gone = fork();
    CHECK(gone >= 0);
    if (gone == 0)
        _exit(0);
    int of_gone = process(gone);
    CHECK_EQ(waitpid(gone, NULL, 0), gone);
    pid_t zombie = fork();
    CHECK(zombie >= 0);
    if (zombie == 0)
        _exit(5);
    int of_zombie = process(zombie);
    siginfo_t info;
    CHECK_EQ(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT), 0);

    /* The child answers by way of what it has inherited, and has its parent in an epoll instance. */
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int parent = process(getppid()), epoll = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1};
        CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, parent, &event), 0);
        CHECK_EQ(close(go[1]), 0);
        char byte;
        while (read(go[0], &byte, 1) == 1) {
            CHECK_EQ(send(parent, 0), 0);
            CHECK_EQ(send(self, 0), 0);
            CHECK(ended(of_zombie) == 1 && ended(self) == 0);
            CHECK_EQ(epoll_wait(epoll, &event, 1, 0), 0);
            CHECK_EQ(write(out[1], "c", 1), 1);
        }
        _exit(6);
    }
    int of_child = process(child), again = fcntl(of_child, F_DUPFD, 50), epoll = epoll_create1(0);
    CHECK_EQ(again, 50);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 42};
    CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, of_child, &event), 0);
    CHECK_EQ(close(of_child), 0);
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        char byte;
        CHECK_EQ(write(go[1], "g", 1), 1);
        CHECK_EQ(read(out[0], &byte, 1), 1);
        CHECK_EQ(send(again, 0), 0);
        CHECK_EQ(send(self, 0), 0);
        CHECK(send(of_gone, 0) == -1 && errno == ESRCH);
        CHECK_EQ(ended(of_gone), 1);
        CHECK_EQ(ended(of_zombie), 1);
        CHECK_EQ(ended(again), 0);
        CHECK_EQ(epoll_wait(epoll, &event, 1, 0), 0);
        CHECK(waitid(P_PIDFD, (id_t)of_gone, &info, WEXITED) == -1 && errno == ECHILD);
        CHECK_EQ(fcntl(self, F_GETFD), FD_CLOEXEC);
    }
    CHECK_EQ(waitid(P_PIDFD, (id_t)of_zombie, &info, WEXITED), 0);
    CHECK_EQ(info.si_status, 5);
    CHECK_EQ(close(go[1]), 0);
    CHECK_EQ(epoll_wait(epoll, &event, 1, -1), 1);
    CHECK_EQ(event.data.u64, 42);
    CHECK_EQ(waitid(P_PIDFD, (id_t)again, &info, WEXITED), 0);
    CHECK_EQ(info.si_status, 6);
    guest_line("ok pidfd");
    return 0;
}
