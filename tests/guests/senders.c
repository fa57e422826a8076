/* Who has sent a signal or a message, whose end of a socket it is, and other threads and processes by their ids: after a restart too it is the id by which the program knows them. */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif

/* None that the kernel itself sends, as it does SIGHUP when the parent is killed while it traces. */
#define SECOND (SIGRTMIN + 1)

static pid_t sibling, self;
static atomic_int by_sibling, by_self, ended, stop, ready;
static volatile pid_t last_child;
static pid_t tid;

static void on_user(int signo, siginfo_t *info, void *context)
{
    CHECK(context != NULL);
    CHECK(signo == SIGUSR1 || signo == SECOND);
    CHECK(info->si_code == SI_USER || info->si_code == SI_TKILL);
    CHECK_EQ(info->si_uid, getuid());
    if (info->si_pid == sibling)
        by_sibling++;
    else if (info->si_pid == self)
        by_self++;
    else
        CHECK_EQ(info->si_pid, self);
}

static void on_child(int signo, siginfo_t *info, void *context)
{
    (void)context;
    CHECK_EQ(signo, SIGCHLD);
    CHECK_EQ(info->si_code, CLD_EXITED);
    CHECK_EQ(info->si_status, 3);
    last_child = info->si_pid;
    ended++;
}

static void simple(int signo)
{
    (void)signo;
}

static void wait_for(atomic_int *counter, int value)
{
    /* No sleep, which a handler would end. */
    for (long i = 0; *counter < value; i++) {
        CHECK(i < 60000000);
        sched_yield();
    }
}

static void *work(void *nothing)
{
    sigset_t all;
    sigfillset(&all);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &all, NULL), 0);
    tid = gettid();
    ready = 1;
    while (!stop)
        guest_nap_us(2000);
    return nothing;
}

/* The program is told of its own handlers, in each way of asking. */
static void check_handlers(void)
{
    struct sigaction old;
    struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } raw;
    CHECK_EQ(sigaction(SIGUSR1, NULL, &old), 0);
    CHECK(old.sa_sigaction == on_user);
    CHECK_EQ(old.sa_flags & (SA_SIGINFO | SA_RESTART), SA_SIGINFO | SA_RESTART);
    CHECK(sigismember(&old.sa_mask, SECOND) == 1 && sigismember(&old.sa_mask, SIGTERM) == 0);
    CHECK_EQ(syscall(SYS_rt_sigaction, SIGCHLD, NULL, &raw, 8), 0);
    CHECK(raw.handler == (void *)(uintptr_t)on_child);
    /* Put back as it was found, with others in between. */
    CHECK(signal(SECOND, simple) == (void (*)(int))(uintptr_t)on_user);
    CHECK(signal(SECOND, SIG_IGN) == simple);
    struct sigaction again = {.sa_sigaction = on_user, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK_EQ(sigaction(SECOND, &again, &old), 0);
    CHECK(old.sa_handler == SIG_IGN);
    CHECK_EQ(sigaction(SECOND, &again, &old), 0);
    CHECK(old.sa_sigaction == on_user);
    CHECK(sigaction(SIGKILL, &again, NULL) == -1 && errno == EINVAL);
    CHECK(sigaction(65, &again, NULL) == -1 && errno == EINVAL);
}

static void check_credentials(int fd, pid_t pid)
{
    struct ucred found = {0, 0, 0};
    socklen_t len = sizeof found;
    CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &found, &len), 0);
    CHECK_EQ(len, sizeof found);
    CHECK_EQ(found.pid, pid);
    CHECK(found.uid == getuid() && found.gid == getgid());
    int process = -1;
    len = sizeof process;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &process, &len) == -1) {
        CHECK(errno == ENOPROTOOPT); /* Linux before 6.5 */
        return;
    }
    /* The process is there, and it is that one: its child is waited for, any other cannot be. */
    CHECK_EQ(fcntl(process, F_GETFD), FD_CLOEXEC);
    CHECK_EQ(syscall(SYS_pidfd_send_signal, process, 0, NULL, 0), 0);
    siginfo_t info = {0};
    int result = waitid(P_PIDFD, (id_t)process, &info, WEXITED | WNOHANG | WNOWAIT);
    CHECK(pid == sibling && getpid() == self ? result == 0 : result == -1 && errno == ECHILD);
    CHECK_EQ(close(process), 0);
}

/* A message with credentials that the sender names, or with what the kernel puts in. */
static void tell(int fd, int names)
{
    union { char room[CMSG_SPACE(sizeof(struct ucred))]; struct cmsghdr header; } control;
    memset(&control, 0, sizeof control);
    char byte = 'x';
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (names) {
        struct ucred own = {getpid(), getuid(), getgid()};
        control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof own), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS};
        memcpy(CMSG_DATA(&control.header), &own, sizeof own);
        message.msg_control = control.room;
        message.msg_controllen = sizeof control.room;
    }
    CHECK_EQ(sendmsg(fd, &message, 0), 1);
    CHECK_EQ(byte, 'x');
    /* What cannot be read is the kernel's to refuse. */
    message.msg_control = (void *)8;
    message.msg_controllen = sizeof control.room;
    CHECK(sendmsg(fd, &message, MSG_DONTWAIT) == -1 && errno == EFAULT);
}

static pid_t sender_of(int fd)
{
    union { char room[256]; struct cmsghdr header; } control;
    char byte;
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    CHECK_EQ(recvmsg(fd, &message, 0), 1);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    CHECK(header != NULL && header->cmsg_type == SCM_CREDENTIALS);
    struct ucred found;
    memcpy(&found, CMSG_DATA(header), sizeof found);
    CHECK(found.uid == getuid() && found.gid == getgid());
    return found.pid;
}

/* One that was under way at a restart has another id; the next has the right one. */
static void check_message(int fd, int commands)
{
    for (int tries = 0; sender_of(fd) != sibling; tries++) {
        CHECK(tries < 3);
        CHECK_EQ(write(commands, "m", 1), 1);
    }
}

/* Sends a signal and messages whenever it is told to. */
static void be_sibling(int commands, int messages, int connection)
{
    CHECK_EQ(prctl(PR_SET_PTRACER, getppid(), 0, 0, 0) == 0 || errno == EINVAL, 1);
    char command;
    while (read(commands, &command, 1) == 1) {
        check_credentials(connection, self);
        CHECK_EQ(getppid(), self);
        if (command != 'm')
            CHECK_EQ(kill(self, command == 'u' ? SIGUSR1 : SECOND), 0);
        tell(messages, command != 'h');
    }
    _exit(7);
}

static void *stack_of(pthread_t thread, size_t *len)
{
    pthread_attr_t attributes;
    void *stack = NULL;
    cpu_set_t set, same;
    CHECK_EQ(pthread_getattr_np(thread, &attributes), 0);
    CHECK_EQ(pthread_attr_getstack(&attributes, &stack, len), 0);
    CHECK_EQ(pthread_attr_getaffinity_np(&attributes, sizeof set, &set), 0);
    CHECK_EQ(pthread_getaffinity_np(thread, sizeof same, &same), 0);
    CHECK(CPU_EQUAL(&set, &same));
    CHECK_EQ(pthread_attr_destroy(&attributes), 0);
    return stack;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(setpgid(0, 0), 0);
    self = getpid();
    struct sigaction user = {.sa_sigaction = on_user, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct sigaction child = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NOCLDSTOP};
    sigemptyset(&user.sa_mask);
    sigaddset(&user.sa_mask, SECOND);
    CHECK_EQ(sigaction(SIGUSR1, &user, NULL), 0);
    CHECK_EQ(sigaction(SECOND, &user, NULL), 0);
    CHECK_EQ(sigaction(SIGCHLD, &child, NULL), 0);
    pthread_t worker;
    CHECK_EQ(pthread_create(&worker, NULL, work, NULL), 0);
    wait_for(&ready, 1);
    size_t len, main_len;
    void *stack = stack_of(worker, &len);
    stack_of(pthread_self(), &main_len);

    int commands[2], messages[2], on = 1, sockets[2];
    CHECK_EQ(pipe(commands), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, messages), 0);
    CHECK_EQ(setsockopt(messages[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    /* A connection, of a child to us. */
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "senders.socket"};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(listener >= 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&name, sizeof name), 0);
    CHECK_EQ(listen(listener, 1), 0);
    sibling = fork();
    CHECK(sibling >= 0);
    if (sibling == 0) {
        CHECK_EQ(close(commands[1]), 0);
        int connection = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK(connection >= 0);
        CHECK_EQ(connect(connection, (struct sockaddr *)&name, sizeof name), 0);
        be_sibling(commands[0], messages[0], connection);
    }
    int accepted = accept(listener, NULL, NULL);
    CHECK(accepted >= 0);
    CHECK_EQ(unlink(name.sun_path), 0);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        int before = by_sibling;
        CHECK_EQ(write(commands[1], i % 2 ? "u" : "h", 1), 1);
        check_message(messages[1], commands[1]);
        wait_for(&by_sibling, before + 1);
        CHECK_EQ(by_sibling, before + 1);
        before = by_self;
        CHECK_EQ(kill(self, SIGUSR1), 0);
        wait_for(&by_self, before + 1);
        CHECK_EQ(killpg(self, 0), 0);
        check_handlers();

        before = ended;
        pid_t end = fork();
        CHECK(end >= 0);
        if (end == 0)
            _exit(3);
        wait_for(&ended, before + 1);
        CHECK_EQ(last_child, end);
        siginfo_t info;
        memset(&info, 0, sizeof info);
        CHECK_EQ(waitid(P_PGID, (id_t)self, &info, WEXITED), 0);
        CHECK_EQ(info.si_pid, end);

        check_credentials(sockets[0], self);
        check_credentials(sockets[1], self);
        check_credentials(accepted, sibling);
        int fresh[2];
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fresh), 0);
        check_credentials(fresh[1], self);
        CHECK(close(fresh[0]) == 0 && close(fresh[1]) == 0);

        /* Other threads and processes. */
        size_t now;
        CHECK(stack_of(worker, &now) == stack && now == len);
        stack_of(pthread_self(), &now);
        clockid_t clock;
        struct timespec time;
        CHECK_EQ(clock_getcpuclockid(sibling, &clock), 0);
        CHECK_EQ(clock_gettime(clock, &time), 0);
        CHECK_EQ(pthread_getcpuclockid(worker, &clock), 0);
        CHECK_EQ(clock_gettime(clock, &time), 0);
        cpu_set_t set;
        CHECK_EQ(sched_getaffinity(tid, sizeof set, &set), 0);
        CHECK_EQ(sched_getaffinity(sibling, sizeof set, &set), 0);
        CHECK_EQ(getpgid(sibling), self);
        CHECK_EQ(getsid(sibling), getsid(0));
        CHECK_EQ(setpgid(sibling, self), 0);
        CHECK_EQ(setpriority(PRIO_PROCESS, (id_t)sibling, 1), 0);
        errno = 0;
        CHECK(getpriority(PRIO_PROCESS, (id_t)sibling) == 1 && errno == 0);
        CHECK_EQ(getpriority(PRIO_PROCESS, (id_t)self), getpriority(PRIO_PROCESS, 0));
        CHECK(syscall(SYS_ioprio_get, 1, sibling) >= 0);
        struct timespec interval;
        CHECK_EQ(sched_rr_get_interval(sibling, &interval), 0);
        struct sched_param param;
        CHECK_EQ(sched_getparam(sibling, &param), 0);
        /* KCMP_VM: two processes, and one of them with its own thread. */
        long same = syscall(SYS_kcmp, self, tid, 1, 0, 0);
        CHECK(same == 0 || errno == EPERM || errno == ENOSYS);
        void *head = NULL;
        size_t head_len = 0;
        CHECK_EQ(syscall(SYS_get_robust_list, tid, &head, &head_len), 0);
        CHECK(head != NULL);
        /* It is not traced, so nothing can be asked of it. */
        CHECK(ptrace(PTRACE_PEEKUSER, sibling, 0, 0) == -1 && errno == ESRCH);
    }
    /* Only now: nobody is saved who is traced. */
    if (ptrace(PTRACE_SEIZE, sibling, 0, 0) == 0) {
        CHECK_EQ(ptrace(PTRACE_INTERRUPT, sibling, 0, 0), 0);
        int status = 0;
        CHECK_EQ(waitpid(sibling, &status, __WALL), sibling);
        CHECK(WIFSTOPPED(status));
        CHECK_EQ(ptrace(PTRACE_DETACH, sibling, 0, 0), 0);
    } else {
        CHECK_EQ(errno, EPERM);
    }
    stop = 1;
    CHECK_EQ(pthread_join(worker, NULL), 0);
    CHECK(signal(SIGCHLD, SIG_DFL) == (void (*)(int))(uintptr_t)on_child);
    CHECK_EQ(close(commands[1]), 0);
    int status = 0;
    CHECK_EQ(waitpid(sibling, &status, 0), sibling);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    guest_line("ok senders");
    return 0;
}
