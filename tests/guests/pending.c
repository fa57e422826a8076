/* Signals that wait: many of them, for threads and for the process, from itself and from a child that sends while all are being frozen; none is lost, doubled or out of order, and each says who has sent it. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { THREADS = 4, MANY = 700 };

static atomic_int stop, ready;
static pid_t tids[THREADS], child;
/* Signals of the threads, of the process, and from the child to a thread and to the process. */
#define OF_THREAD (SIGRTMIN + 3)
#define OF_PROCESS (SIGRTMIN + 4)
#define FROM_CHILD_TO_THREAD (SIGRTMIN + 5)
#define FROM_CHILD (SIGRTMIN + 6)

static int try_send(pid_t pid, pid_t tid, int signo, int value)
{
    siginfo_t info = {.si_signo = signo, .si_code = SI_QUEUE};
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_int = value;
    long sent = tid ? syscall(SYS_rt_tgsigqueueinfo, pid, tid, signo, &info) : syscall(SYS_rt_sigqueueinfo, pid, signo, &info);
    return (int)sent;
}

static void send(pid_t pid, pid_t tid, int signo, int value)
{
    int sent = try_send(pid, tid, signo, value);
    /* The parent is being killed, and so are we. */
    if (sent == -1 && errno == ESRCH && pid != getpid() && getppid() != pid)
        pause();
    CHECK_EQ(sent, 0);
}

/* What waits of `signo`, in order; returns how many. */
static int take(int signo, int first, pid_t sender)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signo);
    struct timespec now = {0, 0};
    siginfo_t info;
    int count = 0;
    while (sigtimedwait(&set, &info, &now) == signo) {
        CHECK_EQ(info.si_code, SI_QUEUE);
        CHECK_EQ(info.si_pid, sender);
        CHECK_EQ(info.si_uid, getuid());
        if (info.si_value.sival_int != first + count)
            guest_line("note signal %d: %d instead of %d, the first was %d", signo, info.si_value.sival_int, first + count, first);
        CHECK_EQ(info.si_value.sival_int, first + count);
        count++;
    }
    CHECK_EQ(errno, EAGAIN);
    return count;
}

static void *thread(void *argument)
{
    long me = (long)argument;
    tids[me] = (pid_t)syscall(SYS_gettid);
    ready++;
    /* The child's signals are only for the first. */
    int from_child = 0;
    for (int round = 0; !stop; round++) {
        int count = me == 1 ? MANY : 3;
        for (int i = 0; i < count; i++)
            send(getpid(), tids[me], OF_THREAD, round * 1000 + i);
        guest_nap_us(20000);
        CHECK_EQ(take(OF_THREAD, round * 1000, getpid()), count);
        if (me == 0)
            from_child += take(FROM_CHILD_TO_THREAD, from_child, child);
    }
    return (void *)(long)from_child;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    sigset_t all, set;
    sigfillset(&all);
    sigdelset(&all, SIGINT);
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, &all, NULL), 0);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, thread, (void *)i), 0);
    while (ready < THREADS)
        guest_nap_us(1000);
    int go[2];
    CHECK_EQ(pipe(go), 0);
    pid_t parent = getpid(), first = tids[0];
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(close(go[1]), 0);
        int sent = 0, to_thread = 0;
        /* All the time, so that some come in each freeze. The ids are those of before all restarts. */
        for (char byte; ; sent++) {
            /* After a restart without privileges nobody knows the ids of another process's threads. */
            if (try_send(parent, first, FROM_CHILD_TO_THREAD, to_thread) == 0)
                to_thread++;
            else
                CHECK_EQ(errno, ESRCH);
            send(parent, 0, FROM_CHILD, sent);
            guest_nap_us(100);
            if (fcntl(go[0], F_SETFL, O_NONBLOCK) == 0 && read(go[0], &byte, 1) == 0)
                break;
        }
        sent++;
        /* Told by signals of their own, for exit statuses are short. */
        send(parent, 0, SIGRTMIN + 7, sent);
        send(parent, 0, SIGRTMIN + 8, to_thread);
        _exit(5);
    }
    CHECK_EQ(close(go[0]), 0);
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    int told = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), of_child = 0;
    CHECK(told >= 0);
    for (long i = 1; i <= steps; i++) {
        for (int k = 0; k < 50; k++)
            send(parent, 0, OF_PROCESS, (int)i * 100 + k);
        CHECK_EQ(kill(parent, SIGTERM), 0);
        CHECK_EQ(kill(parent, SIGHUP), 0);
        guest_step(i);
        CHECK_EQ(take(OF_PROCESS, (int)i * 100, parent), 50);
        of_child += take(FROM_CHILD, of_child, child);
        struct signalfd_siginfo info;
        CHECK_EQ(read(told, &info, sizeof info), sizeof info);
        CHECK_EQ(info.ssi_signo, SIGHUP);
        sigset_t pending;
        CHECK_EQ(sigpending(&pending), 0);
        CHECK(sigismember(&pending, SIGTERM) && !sigismember(&pending, SIGHUP) && !sigismember(&pending, OF_PROCESS));
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        siginfo_t term;
        CHECK_EQ(sigwaitinfo(&set, &term), SIGTERM);
        CHECK_EQ(term.si_code, SI_USER);
        CHECK_EQ(term.si_pid, parent);
    }
    CHECK_EQ(close(go[1]), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 7);
    siginfo_t end, end_of_thread;
    CHECK_EQ(sigwaitinfo(&set, &end), SIGRTMIN + 7);
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 8);
    CHECK_EQ(sigwaitinfo(&set, &end_of_thread), SIGRTMIN + 8);
    of_child += take(FROM_CHILD, of_child, child);
    CHECK_EQ(of_child, end.si_value.sival_int);
    stop = 1;
    for (long i = 0; i < THREADS; i++) {
        void *result = NULL;
        CHECK_EQ(pthread_join(threads[i], &result), 0);
        if (i == 0)
            CHECK_EQ((long)result, end_of_thread.si_value.sival_int);
    }
    guest_line("ok pending");
    return 0;
}
