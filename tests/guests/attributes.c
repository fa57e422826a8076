/* What the kernel keeps for a process and its threads: processors, I/O priority, groups, no huge pages, and who is told of a descriptor. */
#include "guest.h"
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef PR_GET_THP_DISABLE
#define PR_SET_THP_DISABLE 41
#define PR_GET_THP_DISABLE 42
#endif

enum { WORKERS = 3, PIPES = 3, IOPRIO_BE = 2 << 13, IOPRIO_IDLE = 3 << 13 };

static atomic_int stop, ready;
static atomic_long told[PIPES];
static int pipes[PIPES][2];
static pid_t tids[WORKERS];
static cpu_set_t sets[WORKERS], everywhere;
static const int priorities[WORKERS] = {IOPRIO_BE | 6, IOPRIO_IDLE, 0};
static pthread_t workers[WORKERS];

static int io_priority(pid_t tid)
{
    return (int)syscall(SYS_ioprio_get, 1, tid);
}

static void check_worker(long i)
{
    cpu_set_t set;
    CHECK_EQ(gettid(), tids[i]);
    CHECK_EQ(syscall(SYS_gettid), tids[i]);
    CHECK_EQ(sched_getaffinity(0, sizeof set, &set), 0);
    CHECK(CPU_EQUAL(&set, &sets[i]));
    CHECK_EQ(io_priority(0), priorities[i]);
}

static void *work(void *argument)
{
    long i = (long)argument;
    tids[i] = gettid();
    CHECK_EQ(sched_setaffinity(0, sizeof sets[i], &sets[i]), 0);
    CHECK_EQ(sched_getaffinity(0, sizeof sets[i], &sets[i]), 0);
    if (priorities[i] != 0)
        CHECK_EQ(syscall(SYS_ioprio_set, 1, 0, priorities[i]), 0);
    ready++;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    while (!stop) {
        check_worker(i);
        /* The first is the one that is told of the first pipe; nobody else takes its signal. */
        struct timespec t = {0, 3000000};
        siginfo_t info;
        if (i == 0 && sigtimedwait(&set, &info, &t) > 0) {
            CHECK_EQ(info.si_fd, pipes[0][0]);
            CHECK(info.si_band != 0);
            told[0]++;
        } else if (i != 0) {
            guest_nap_us(3000);
        }
    }
    return NULL;
}

static void expect(int which, sigset_t *set, int signo)
{
    siginfo_t info;
    struct timespec t = {30, 0};
    CHECK_EQ(sigtimedwait(set, &info, &t), signo);
    if (signo != SIGIO)
        CHECK_EQ(info.si_fd, pipes[which][0]);
}

static void check_owner(int fd, int kind, pid_t id, int signo)
{
    struct f_owner_ex owner;
    CHECK_EQ(fcntl(fd, F_GETOWN_EX, &owner), 0);
    CHECK_EQ(owner.type, kind);
    CHECK_EQ(owner.pid, id);
    CHECK_EQ(fcntl(fd, F_GETSIG), signo);
    CHECK_EQ(fcntl(fd, F_GETOWN), kind == F_OWNER_PGRP ? -id : id);
    CHECK((fcntl(fd, F_GETFL) & (O_ASYNC | O_NONBLOCK)) == (O_ASYNC | O_NONBLOCK));
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(setpgid(0, 0), 0);
    gid_t groups[64], wanted[] = {7, 1234, 99};
    if (geteuid() == 0)
        CHECK_EQ(setgroups(3, wanted), 0);
    int group_count = getgroups(64, groups);
    CHECK(group_count >= 0);
    CHECK_EQ(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);

    sigset_t all, by_pid, by_group;
    sigemptyset(&all);
    sigemptyset(&by_pid);
    sigemptyset(&by_group);
    sigaddset(&by_pid, SIGRTMIN + 2);
    sigaddset(&by_group, SIGIO);
    sigaddset(&all, SIGRTMIN + 1);
    sigaddset(&all, SIGRTMIN + 2);
    sigaddset(&all, SIGIO);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &all, NULL), 0);

    CHECK_EQ(sched_getaffinity(0, sizeof everywhere, &everywhere), 0);
    int cpu = 0;
    for (long i = 0; i < WORKERS; i++) {
        if (i < 2) {
            while (!CPU_ISSET(cpu % CPU_SETSIZE, &everywhere))
                cpu++;
            CPU_SET(cpu++ % CPU_SETSIZE, &sets[i]);
        } else {
            sets[i] = everywhere;
        }
        CHECK_EQ(pthread_create(&workers[i], NULL, work, (void *)i), 0);
        while (ready <= i)
            guest_nap_us(500);
    }
    for (int i = 0; i < PIPES; i++) {
        CHECK_EQ(pipe2(pipes[i], O_NONBLOCK), 0);
        CHECK_EQ(fcntl(pipes[i][0], F_SETFL, O_NONBLOCK | O_ASYNC), 0);
    }
    struct f_owner_ex owner = {F_OWNER_TID, tids[0]};
    CHECK_EQ(fcntl(pipes[0][0], F_SETOWN_EX, &owner), 0);
    CHECK_EQ(fcntl(pipes[0][0], F_SETSIG, SIGRTMIN + 1), 0);
    CHECK_EQ(fcntl(pipes[1][0], F_SETOWN, getpid()), 0);
    CHECK_EQ(fcntl(pipes[1][0], F_SETSIG, SIGRTMIN + 2), 0);
    CHECK_EQ(fcntl(pipes[2][0], F_SETOWN, -getpgrp()), 0);

    for (long i = 1; i <= steps; i++) {
        char byte;
        long before = told[0];
        CHECK_EQ(write(pipes[0][1], "x", 1), 1);
        for (int wait = 0; told[0] == before; wait++) {
            CHECK(wait < 20000);
            guest_nap_us(1000);
        }
        CHECK_EQ(read(pipes[0][0], &byte, 1), 1);
        CHECK_EQ(write(pipes[1][1], "x", 1), 1);
        expect(1, &by_pid, SIGRTMIN + 2);
        CHECK_EQ(read(pipes[1][0], &byte, 1), 1);
        CHECK_EQ(write(pipes[2][1], "x", 1), 1);
        expect(2, &by_group, SIGIO);
        CHECK_EQ(read(pipes[2][0], &byte, 1), 1);
        check_owner(pipes[0][0], F_OWNER_TID, tids[0], SIGRTMIN + 1);
        check_owner(pipes[1][0], F_OWNER_PID, getpid(), SIGRTMIN + 2);
        check_owner(pipes[2][0], F_OWNER_PGRP, getpgrp(), 0);

        cpu_set_t set;
        for (int j = 0; j < WORKERS; j++) {
            CHECK_EQ(pthread_getaffinity_np(workers[j], sizeof set, &set), 0);
            CHECK(CPU_EQUAL(&set, &sets[j]));
            CHECK_EQ(io_priority(tids[j]), priorities[j]);
        }
        CHECK_EQ(sched_getaffinity(0, sizeof set, &set), 0);
        CHECK(CPU_EQUAL(&set, &everywhere));
        CHECK_EQ(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
        gid_t found[64];
        CHECK_EQ(getgroups(64, found), group_count);
        CHECK(memcmp(found, groups, sizeof *found * (size_t)group_count) == 0);
        guest_step(i);
    }
    stop = 1;
    for (int i = 0; i < WORKERS; i++)
        CHECK_EQ(pthread_join(workers[i], NULL), 0);
    guest_line("ok attributes");
    return 0;
}
