/* System calls that are made by syscall(2), and others that take ids: they agree with libc's functions, and have the same names after a restart. */
#include "guest.h"
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

static atomic_int stop;
static pid_t tid;
static volatile sig_atomic_t came;
static siginfo_t last;

static void on_signal(int signo, siginfo_t *info, void *context)
{
    (void)signo, (void)context;
    last = *info;
    came++;
}

static void *work(void *nothing)
{
    tid = (pid_t)syscall(SYS_gettid);
    sigset_t set;
    sigfillset(&set);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    while (!stop) {
        int signo;
        CHECK_EQ(sigwait(&set, &signo), 0);
        CHECK_EQ(syscall(SYS_gettid), tid);
        CHECK_EQ(gettid(), tid);
        came++;
    }
    return nothing;
}

/* Asks for a signal, and waits until it is there. */
#define SENT(call)                          \
    do {                                    \
        sig_atomic_t before = came;         \
        CHECK_EQ((call), 0);                \
        while (came == before)              \
            sched_yield();                  \
    } while (0)

static int status_of(pid_t child, int how)
{
    int status = 0;
    siginfo_t info;
    memset(&info, 0, sizeof info);
    switch (how) {
    case 0:
        CHECK_EQ(syscall(SYS_wait4, child, &status, 0, NULL), child);
        return WEXITSTATUS(status);
    case 1:
        CHECK_EQ(syscall(SYS_waitid, P_PID, child, &info, WEXITED, NULL), 0);
        CHECK_EQ(info.si_pid, child);
        return info.si_status;
    default:
        CHECK_EQ(syscall(SYS_wait4, -1, &status, 0, NULL), child);
        return WEXITSTATUS(status);
    }
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(syscall(SYS_setpgid, 0, 0), 0);
    pid_t pid = getpid(), parent = getppid(), group = getpgrp(), session = getsid(0);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK_EQ(sigaction(SIGRTMIN + 1, &action, NULL), 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
    pthread_t worker;
    CHECK_EQ(pthread_create(&worker, NULL, work, NULL), 0);
    while (*(volatile pid_t *)&tid == 0)
        guest_nap_us(500);
    /* Natively it may be there; a checkpoint would refuse it. It stays open. */
    unsigned char ring_parameters[120] = {0};
    long ring = syscall(425, 8, ring_parameters);
    CHECK(ring >= 0 || errno == ENOSYS || errno == EPERM);
    /* As a program that is linked with liburing finds it. */
    int (*queue_init)(unsigned, void *, unsigned) = NULL;
    *(void **)&queue_init = dlsym(RTLD_DEFAULT, "io_uring_queue_init");
    CHECK(queue_init == NULL || queue_init(8, ring_parameters, 0) == -ENOSYS);
    int pair[2];
    CHECK_EQ(pipe(pair), 0);
    /* A child that lives over the restarts. */
    pid_t child = fork();
    CHECK(child >= 0);
    static int there = 4711;
    if (child == 0) {
        CHECK_EQ(close(pair[1]), 0);
        char byte;
        CHECK_EQ(read(pair[0], &byte, 1), 0);
        CHECK_EQ(syscall(SYS_getppid), pid);
        _exit(23);
    }
    for (long i = 1; i <= steps; i++) {
        CHECK_EQ(syscall(SYS_getpid), pid);
        CHECK_EQ(getpid(), pid);
        CHECK_EQ(syscall(SYS_gettid), pid);
        CHECK_EQ(getppid(), parent);
        CHECK_EQ(syscall(SYS_getppid), parent);
        CHECK_EQ(syscall(SYS_getpgid, 0), group);
        CHECK_EQ(syscall(SYS_getpgid, child), group);
        CHECK_EQ(syscall(SYS_getpgrp), group);
        CHECK_EQ(syscall(SYS_getsid, child), session);
        /* Arguments and errors come through as they are, the sixth as well. */
        errno = 0;
        CHECK(syscall(SYS_close, -1) == -1 && errno == EBADF);
        long page = syscall(SYS_mmap, NULL, 4096, 3, 0x22, -1, 0L);
        CHECK(page > 0);
        CHECK_EQ(syscall(SYS_munmap, page, 4096), 0);
        errno = 0;
        CHECK(syscall(SYS_getpgid, -5) == -1 && errno == ESRCH);
        CHECK(syscall(9999) == -1 && errno == ENOSYS);
        /* Signals. */
        SENT(syscall(SYS_tgkill, pid, tid, SIGUSR1));
        SENT(syscall(SYS_tkill, tid, SIGUSR1));
        SENT(syscall(SYS_kill, pid, SIGRTMIN + 1));
        CHECK_EQ(last.si_code, SI_USER);
        siginfo_t info;
        memset(&info, 0, sizeof info);
        info.si_code = SI_QUEUE;
        info.si_signo = SIGRTMIN + 1;
        info.si_value.sival_int = (int)i;
        SENT(syscall(SYS_rt_sigqueueinfo, pid, SIGRTMIN + 1, &info));
        CHECK_EQ(last.si_value.sival_int, i);
        SENT(syscall(SYS_rt_tgsigqueueinfo, pid, pid, SIGRTMIN + 1, &info));
        /* Scheduling and limits, of a thread, a process and another process. */
        cpu_set_t cpus;
        CHECK(syscall(SYS_sched_getaffinity, tid, sizeof cpus, &cpus) > 0);
        CHECK_EQ(syscall(SYS_sched_getscheduler, tid), SCHED_OTHER);
        CHECK_EQ(sched_getscheduler(child), SCHED_OTHER);
        struct rlimit limit, same;
        CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
        CHECK_EQ(syscall(SYS_prlimit64, child, RLIMIT_NOFILE, NULL, &same), 0);
        CHECK_EQ(prlimit(child, RLIMIT_NOFILE, NULL, &same), 0);
        CHECK(same.rlim_cur == limit.rlim_cur);
        CHECK_EQ(syscall(SYS_getpriority, PRIO_PROCESS, child), 20 - getpriority(PRIO_PROCESS, child));
        /* Memory of the child, where it may be read: the place is ours, as of any fork. */
        int found = 0;
        struct iovec here = {&found, sizeof found}, other = {&there, sizeof there};
        ssize_t len = process_vm_readv(child, &here, 1, &other, 1, 0);
        CHECK(len == sizeof found ? found == 4711 : errno == EPERM || errno == ENOSYS);
        len = syscall(SYS_process_vm_readv, pid, &here, 1, &other, 1, 0);
        CHECK(len == sizeof found || errno == ENOSYS);
        int fd = (int)syscall(SYS_pidfd_open, child, 0);
        CHECK(fd >= 0);
        CHECK_EQ(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0), 0);
        CHECK_EQ(close(fd), 0);
        /* Children by clone and vfork through syscall. */
        pid_t other_child = fork();
        CHECK(other_child >= 0);
        if (other_child == 0)
            _exit((int)(i % 50));
        CHECK_EQ(status_of(other_child, (int)(i % 2)), i % 50);
        pid_t cloned = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0L);
        CHECK(cloned >= 0);
        if (cloned == 0)
            _exit(31);
        CHECK_EQ(status_of(cloned, 0), 31);
        guest_step(i);
    }
    stop = 1;
    SENT(syscall(SYS_tgkill, pid, tid, SIGUSR1));
    CHECK_EQ(pthread_join(worker, NULL), 0);
    CHECK_EQ(close(pair[1]), 0);
    CHECK_EQ(status_of(child, 2), 23);
    guest_line("ok raw_calls");
    return 0;
}
