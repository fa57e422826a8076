/* Signals of every kind across a checkpoint: SIGUSR2 is the program's own; masks, handlers and pending signals stay. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <ucontext.h>

static volatile sig_atomic_t caught, last_value, on_stack, nested;
static char stack_memory[65536];
static atomic_int stop, waits, seen_by_thread;

static void handler(int number, siginfo_t *info, void *context)
{
    int error = errno;
    char here;
    (void)context;
    CHECK_EQ(number, SIGUSR2);
    CHECK_EQ(info->si_code, SI_QUEUE);
    CHECK_EQ(info->si_pid, getpid());
    CHECK_EQ(info->si_uid, getuid());
    on_stack = &here >= stack_memory && &here < stack_memory + sizeof stack_memory;
    /* sa_mask and the signal itself are blocked in here. */
    sigset_t blocked;
    CHECK_EQ(sigprocmask(SIG_BLOCK, NULL, &blocked), 0);
    CHECK(sigismember(&blocked, SIGUSR2) && sigismember(&blocked, SIGHUP));
    last_value = info->si_value.sival_int;
    caught++;
    errno = error;
}

static void plain(int number)
{
    nested += number == SIGUSR1;
}

/* Blocks SIGUSR2 and takes it by sigwaitinfo; it may wait in there across any number of checkpoints. */
static void *waiter(void *argument)
{
    sigset_t set;
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGRTMIN + 1);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
    waits++;
    while (!stop) {
        int got = sigwaitinfo(&set, &info);
        CHECK(got == SIGUSR2 || got == SIGRTMIN + 1);
        seen_by_thread++;
    }
    return argument;
}

/* sigsuspend and pause end for a caught signal, and for nothing else. */
static void *suspended(void *argument)
{
    sigset_t set;
    sigfillset(&set);
    sigdelset(&set, SIGUSR1);
    waits++;
    while (!stop) {
        int before = nested;
        CHECK(sigsuspend(&set) == -1 && errno == EINTR);
        CHECK(nested > before);
    }
    return argument;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    stack_t stack = {.ss_sp = stack_memory, .ss_size = sizeof stack_memory}, old_stack;
    CHECK_EQ(sigaltstack(&stack, NULL), 0);
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART}, found;
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGHUP);
    CHECK_EQ(sigaction(SIGUSR2, NULL, &found), 0);
    CHECK(found.sa_handler == SIG_DFL);
    CHECK_EQ(sigaction(SIGUSR2, &action, NULL), 0);
    CHECK(signal(SIGUSR1, plain) == SIG_DFL);
    CHECK(signal(SIGWINCH, SIG_IGN) == SIG_DFL);
    struct sigaction dispositions[SIGSYS + 1];
    for (int signo = 1; signo <= SIGSYS; signo++)
        CHECK_EQ(sigaction(signo, NULL, &dispositions[signo]), 0);

    sigset_t outer, queue, pending, mask;
    sigemptyset(&outer);
    sigaddset(&outer, SIGUSR1);
    sigaddset(&outer, SIGRTMIN + 1);
    sigaddset(&outer, SIGRTMIN + 2);
    sigaddset(&outer, SIGTERM);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &outer, NULL), 0);
    sigemptyset(&queue);
    sigaddset(&queue, SIGRTMIN + 2);

    pthread_t wait_thread, suspend_thread;
    CHECK_EQ(pthread_create(&wait_thread, NULL, waiter, NULL), 0);
    CHECK_EQ(pthread_create(&suspend_thread, NULL, suspended, NULL), 0);
    while (waits < 2)
        guest_nap_us(1000);

    /* Pending for the process from the first step to the last. */
    CHECK_EQ(kill(getpid(), SIGTERM), 0);
    int sent = 0;
    for (long i = 1; i <= steps; i++) {
        /* Three queued before the pause, so that a checkpoint finds them; order and values stay. */
        for (int k = 0; k < 3; k++)
            CHECK_EQ(pthread_sigqueue(pthread_self(), SIGRTMIN + 2, (union sigval){.sival_int = (int)i * 10 + k}), 0);
        guest_step(i);
        for (int signo = 1; signo <= SIGSYS; signo++) {
            CHECK_EQ(sigaction(signo, NULL, &found), 0);
            CHECK(found.sa_handler == dispositions[signo].sa_handler);
        }
        for (int k = 0; k < 3; k++) {
            siginfo_t info;
            struct timespec soon = {0, 0};
            CHECK_EQ(sigtimedwait(&queue, &info, &soon), SIGRTMIN + 2);
            CHECK_EQ(info.si_value.sival_int, i * 10 + k);
        }
        CHECK_EQ(sigpending(&pending), 0);
        CHECK(sigismember(&pending, SIGTERM) && !sigismember(&pending, SIGRTMIN + 2));
        CHECK(!sigismember(&pending, SIGUSR2));

        /* Caught on the alternate stack, with its value. */
        CHECK_EQ(pthread_sigqueue(pthread_self(), SIGUSR2, (union sigval){.sival_int = (int)i}), 0);
        CHECK_EQ(caught, i);
        CHECK_EQ(last_value, i);
        CHECK(on_stack);

        /* Blocked, it stays pending for the thread until it is let in. */
        sigset_t two;
        sigemptyset(&two);
        sigaddset(&two, SIGUSR2);
        CHECK_EQ(pthread_sigmask(SIG_BLOCK, &two, NULL), 0);
        CHECK_EQ(pthread_sigqueue(pthread_self(), SIGUSR2, (union sigval){.sival_int = -1}), 0);
        guest_nap_us(1000);
        CHECK_EQ(sigpending(&pending), 0);
        CHECK(sigismember(&pending, SIGUSR2));
        siginfo_t info;
        CHECK_EQ(sigwaitinfo(&two, &info), SIGUSR2);
        CHECK_EQ(info.si_value.sival_int, -1);
        CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &two, NULL), 0);
        CHECK_EQ(caught, i);

        /* To the threads: one waits for it, one is suspended until it comes. */
        if (i % 4 == 0) {
            CHECK_EQ(pthread_sigqueue(wait_thread, SIGUSR2, (union sigval){.sival_int = 0}), 0);
            sent++;
            int before = nested;
            CHECK_EQ(pthread_kill(suspend_thread, SIGUSR1), 0);
            while (nested == before || seen_by_thread < sent)
                guest_nap_us(200);
        }

        /* What was set is what is read. */
        CHECK_EQ(pthread_sigmask(SIG_BLOCK, NULL, &mask), 0);
        for (int number = 1; number < SIGRTMAX; number++)
            CHECK_EQ(sigismember(&mask, number) == 1, sigismember(&outer, number) == 1);
        CHECK_EQ(sigaction(SIGUSR2, NULL, &found), 0);
        CHECK(found.sa_sigaction == handler && sigismember(&found.sa_mask, SIGHUP));
        CHECK_EQ(found.sa_flags & (SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER | SA_RESETHAND),
                 SA_SIGINFO | SA_ONSTACK | SA_RESTART);
        CHECK_EQ(sigaction(SIGWINCH, NULL, &found), 0);
        CHECK(found.sa_handler == SIG_IGN);
        CHECK_EQ(sigaction(SIGALRM, NULL, &found), 0);
        CHECK(found.sa_handler == SIG_DFL);
        CHECK_EQ(sigaltstack(NULL, &old_stack), 0);
        CHECK(old_stack.ss_sp == stack_memory && old_stack.ss_size == sizeof stack_memory);
    }
    stop = 1;
    CHECK_EQ(pthread_kill(wait_thread, SIGRTMIN + 1), 0);
    CHECK_EQ(pthread_kill(suspend_thread, SIGUSR1), 0);
    CHECK_EQ(pthread_join(wait_thread, NULL), 0);
    CHECK_EQ(pthread_join(suspend_thread, NULL), 0);
    CHECK_EQ(seen_by_thread, sent + 1);
    int number = 0;
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    CHECK_EQ(sigwait(&term, &number), 0);
    CHECK_EQ(number, SIGTERM);
    guest_line("ok signals");
    return 0;
}
