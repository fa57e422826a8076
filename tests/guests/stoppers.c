/* Processes that stop and continue each other at random: who is stopped does nothing until he is continued, and his parent is
 * told of each stop once, also one that was stopped with its stopped child. */
#include "guest.h"
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { WORKERS = 6, PARENT, CHILD, WARDEN, ALL };

static struct shared {
    /* 1: nobody is stopped any more; 2: all end. */
    atomic_int end, done;
    atomic_long rounds;
    struct {
        atomic_int pid, busy;
        atomic_long beats;
        /* Stops and continuations: that were asked for, and that the parent was told of. */
        atomic_long stops, told_stops, goes, told_goes;
    } at[ALL];
} *shared;

static long beats(int who)
{
    return shared->at[who].beats;
}

/* Stops a process, and waits until its parent was told. */
static void stop(int who)
{
    long stops = ++shared->at[who].stops;
    CHECK_EQ(kill(shared->at[who].pid, SIGSTOP), 0);
    while (shared->at[who].told_stops < stops)
        guest_nap_us(200);
}

static void go_on(int who)
{
    long before = beats(who);
    CHECK_EQ(shared->at[who].told_stops, shared->at[who].stops);
    shared->at[who].goes++;
    CHECK_EQ(kill(shared->at[who].pid, SIGCONT), 0);
    while (beats(who) <= before + 1)
        guest_nap_us(200);
}

static void nap_at_random(uint64_t *random)
{
    for (int i = (int)(guest_random(random) % 4); i > 0; i--)
        guest_nap_us((long)(guest_random(random) % 2000));
}

/* Has a process stand still for a while, if nobody else does so. */
static void hold(int who, uint64_t *random)
{
    int nobody = 0;
    if (!atomic_compare_exchange_strong(&shared->at[who].busy, &nobody, 1))
        return;
    stop(who);
    long before = beats(who);
    nap_at_random(random);
    CHECK_EQ(beats(who), before);
    go_on(who);
    shared->at[who].busy = 0;
    shared->rounds++;
}

/* Beats until the end. */
static void beat(int me)
{
    while (shared->end < 2) {
        shared->at[me].beats++;
        guest_nap_us(500);
    }
    _exit(me);
}

/* Beats, and stops those that were made before: so no two wait for each other. */
static void work(int me)
{
    uint64_t random = 77 + (uint64_t)me;
    while (shared->end == 0) {
        shared->at[me].beats++;
        guest_nap_us(500);
        if (me > 0 && guest_random(&random) % 4 == 0)
            hold((int)(guest_random(&random) % (uint64_t)me), &random);
    }
    shared->done++;
    beat(me);
}

/* Counts what the kernel tells of children; false if it tells nothing, or of an end. */
static int hear(int options)
{
    int status = 0;
    pid_t pid = waitpid(-1, &status, options | WUNTRACED | WCONTINUED);
    CHECK(pid >= 0);
    if (pid == 0)
        return 0;
    int who = 0;
    while (shared->at[who].pid != pid)
        CHECK(++who < ALL);
    if (WIFEXITED(status)) {
        CHECK_EQ(shared->end, 2);
        CHECK_EQ(WEXITSTATUS(status), who);
        return 0;
    }
    if (WIFSTOPPED(status)) {
        CHECK_EQ(WSTOPSIG(status), SIGSTOP);
        long told = ++shared->at[who].told_stops;
        CHECK(told <= shared->at[who].stops);
    } else {
        CHECK(WIFCONTINUED(status));
        long told = ++shared->at[who].told_goes;
        CHECK(told <= shared->at[who].goes);
    }
    return 1;
}

static void start(int who, void (*does)(int))
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        shared->at[who].pid = getpid();
        does(who);
        _exit(98);
    }
    while (shared->at[who].pid == 0)
        guest_nap_us(200);
}

/* One that is stopped with its stopped child. */
static void parent(int me)
{
    start(CHILD, beat);
    while (shared->end < 2) {
        shared->at[me].beats++;
        guest_nap_us(500);
        while (shared->end < 2 && hear(WNOHANG))
            ;
    }
    while (hear(0))
        ;
    _exit(me);
}

/* Stops both, the child first. */
static void guard(int me)
{
    uint64_t random = 99;
    while (shared->end == 0) {
        stop(CHILD);
        stop(PARENT);
        long child = beats(CHILD), parent = beats(PARENT);
        nap_at_random(&random);
        CHECK_EQ(beats(CHILD), child);
        CHECK_EQ(beats(PARENT), parent);
        go_on(PARENT);
        nap_at_random(&random);
        CHECK_EQ(beats(CHILD), child);
        go_on(CHILD);
        shared->rounds++;
    }
    shared->done++;
    beat(me);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    for (int i = 0; i < WORKERS; i++)
        start(i, work);
    start(PARENT, parent);
    while (shared->at[CHILD].pid == 0)
        guest_nap_us(200);
    start(WARDEN, guard);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        while (hear(WNOHANG))
            ;
    }
    shared->end = 1;
    while (shared->done < WORKERS + 1) {
        guest_nap_us(200);
        while (hear(WNOHANG))
            ;
    }
    shared->end = 2;
    for (int left = WORKERS + 2; left > 0;)
        left -= !hear(0);
    for (int i = 0; i < ALL; i++)
        CHECK_EQ(shared->at[i].told_stops, shared->at[i].stops);
    CHECK(shared->rounds > 0);
    guest_line("ok stoppers");
    return 0;
}
