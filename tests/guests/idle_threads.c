/* Threads that run when nothing else does (SCHED_IDLE), among processes that take all the time that there is: they stop for
 * a checkpoint all the same, take signals there, and are what they were behind it. Not where nobody may raise them. */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { THREADS = 3 };

static int policy = SCHED_IDLE;
static atomic_long counts[THREADS];
static atomic_int end;

/* It may be seen raised at the moment at which it is asked to stop, and is not for long. */
static void check_policy(void)
{
    int found = SCHED_OTHER;
    for (int tries = 0; tries < 5 && (found = sched_getscheduler(0)) != policy; tries++) {
        CHECK_EQ(found, SCHED_OTHER);
        guest_nap_us(20000);
    }
    CHECK_EQ(found, policy);
}

static void *idle(void *count)
{
    struct sched_param none = {0};
    CHECK_EQ(sched_setscheduler(0, policy, &none), 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    while (!end) {
        if (++*(atomic_long *)count % 100000 == 1)
            check_policy();
        /* The last one waits. */
        if (count == &counts[THREADS - 1]) {
            int taken = sigwaitinfo(&set, NULL);
            CHECK_EQ(taken, SIGUSR1);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    struct rlimit limit;
    CHECK_EQ(getrlimit(RLIMIT_NICE, &limit), 0);
    if (geteuid() != 0 && limit.rlim_cur < 20)
        policy = SCHED_OTHER;
    guest_line("note policy %d", policy);
    long hogs = policy == SCHED_IDLE ? 2 * sysconf(_SC_NPROCESSORS_ONLN) : 1;
    pid_t root = getpid(), pids[hogs];
    for (long i = 0; i < hogs; i++) {
        pids[i] = fork();
        CHECK(pids[i] >= 0);
        if (pids[i] == 0) {
            CHECK_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);
            while (getppid() == root)
                ;
            _exit(0);
        }
    }
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, idle, &counts[i]), 0);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        CHECK_EQ(sched_getscheduler(0), SCHED_OTHER);
        CHECK_EQ(pthread_kill(threads[THREADS - 1], SIGUSR1), 0);
    }
    end = 1;
    CHECK_EQ(pthread_kill(threads[THREADS - 1], SIGUSR1), 0);
    /* The others have the processors no longer. */
    for (long i = 0; i < hogs; i++) {
        CHECK_EQ(kill(pids[i], SIGKILL), 0);
        CHECK_EQ(waitpid(pids[i], NULL, 0), pids[i]);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    guest_line("ok idle_threads");
    return 0;
}
