/* Handlers that interrupt handlers, on an alternate stack and on the thread's own, and that are left by their end or by
 * siglongjmp: each step is taken in the innermost. Interval timers go on with what is left, and the timer slack stays. */
#include "guest.h"
#include <setjmp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>

enum { DEPTH = 3, SLACK = 70000, TIMERS = 3, LEFT = 1000, EVERY = 7 };

static char alternate[65536];
static volatile sig_atomic_t depth;
static volatile long step;
static sigjmp_buf way_out;
static int64_t began;

static int on_alternate(const void *place)
{
    return (const char *)place >= alternate && (const char *)place < alternate + sizeof alternate;
}

static void check_timers(void)
{
    static const int kinds[TIMERS] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
    static double before[TIMERS] = {LEFT, LEFT, LEFT};
    for (int i = 0; i < TIMERS; i++) {
        struct itimerval found;
        CHECK_EQ(getitimer(kinds[i], &found), 0);
        CHECK(found.it_interval.tv_sec == EVERY && found.it_interval.tv_usec == 0);
        double left = (double)found.it_value.tv_sec + (double)found.it_value.tv_usec / 1e6;
        /* A tick is how finely processor time is counted. */
        CHECK(left <= before[i] + 0.02);
        CHECK(left > LEFT / 2);
        before[i] = left;
        if (i == 0) {
            double passed = (double)(guest_now_ns() - began) / 1e9;
            /* What a restart takes counts for the clock, and not for the timer. */
            CHECK(left <= LEFT - passed + 20);
            CHECK(left >= LEFT - passed - 20);
        }
    }
    CHECK_EQ(prctl(PR_GET_TIMERSLACK), SLACK);
}

/* The first runs on the alternate stack, the others on top of it. */
static void handler(int signo, siginfo_t *info, void *context)
{
    volatile int level = depth++;
    const uint64_t mark = 0x1234567 * (uint64_t)(step + 1) + (uint64_t)level;
    volatile uint64_t own = mark;
    sigset_t mask;
    CHECK_EQ(signo, SIGRTMIN + level);
    CHECK(info->si_code == SI_TKILL && info->si_pid == getpid());
    CHECK(on_alternate((const void *)&own));
    stack_t stack;
    CHECK_EQ(sigaltstack(NULL, &stack), 0);
    CHECK(stack.ss_flags == SS_ONSTACK && stack.ss_sp == alternate);
    /* What this one has interrupted. */
    const ucontext_t *before = context;
    CHECK_EQ(on_alternate((const void *)before->uc_mcontext.gregs[REG_RSP]), level > 0);
    for (int i = 0; i < DEPTH; i++)
        CHECK_EQ(sigismember(&before->uc_sigmask, SIGRTMIN + i), i < level);
    if (level + 1 < DEPTH) {
        CHECK_EQ(raise(SIGRTMIN + level + 1), 0);
        CHECK_EQ(depth, level + 1);
    } else {
        guest_step(++step);
        check_timers();
        if (step % 3 == 0) {
            depth = 0;
            siglongjmp(way_out, 1);
        }
    }
    CHECK_EQ(own, mark);
    CHECK_EQ(sigprocmask(SIG_SETMASK, NULL, &mask), 0);
    for (int i = 0; i < DEPTH; i++)
        CHECK_EQ(sigismember(&mask, SIGRTMIN + i), i <= level);
    depth = level;
}

int main(int argc, char **argv)
{
    const volatile long steps = guest_steps(argc, argv);
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    CHECK_EQ(sigaltstack(&stack, NULL), 0);
    for (int i = 0; i < DEPTH; i++) {
        struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigemptyset(&action.sa_mask);
        CHECK_EQ(sigaction(SIGRTMIN + i, &action, NULL), 0);
    }
    CHECK_EQ(prctl(PR_SET_TIMERSLACK, SLACK), 0);
    struct itimerval timer = {.it_value.tv_sec = LEFT, .it_interval.tv_sec = EVERY};
    began = guest_now_ns();
    CHECK_EQ(setitimer(ITIMER_REAL, &timer, NULL), 0);
    CHECK_EQ(setitimer(ITIMER_VIRTUAL, &timer, NULL), 0);
    CHECK_EQ(setitimer(ITIMER_PROF, &timer, NULL), 0);
    while (step < steps) {
        if (sigsetjmp(way_out, 1) == 0)
            CHECK_EQ(raise(SIGRTMIN), 0);
        CHECK_EQ(depth, 0);
        CHECK(!on_alternate((const void *)&stack));
        sigset_t mask;
        CHECK_EQ(sigprocmask(SIG_SETMASK, NULL, &mask), 0);
        for (int i = 0; i < DEPTH; i++)
            CHECK_EQ(sigismember(&mask, SIGRTMIN + i), 0);
        stack_t now;
        CHECK_EQ(sigaltstack(NULL, &now), 0);
        CHECK(now.ss_flags == 0 && now.ss_sp == alternate && now.ss_size == sizeof alternate);
    }
    guest_line("ok handlers");
    return 0;
}
