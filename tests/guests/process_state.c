/* What the kernel keeps for a process as a whole: limits, who adopts orphans, no new privileges, what ends with its parent, the score for
 * want of memory, personality, title, names and vectors in /proc; and the scheduling of threads. */
#include "guest.h"
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { THREADS = 4, LONG = 8192 };

static atomic_int stop, ready;

static void *scheduled(void *argument)
{
    /* The last is for those who may. */
    static const int policies[THREADS] = {SCHED_BATCH, SCHED_BATCH, SCHED_OTHER, SCHED_RR | SCHED_RESET_ON_FORK};
    long i = (long)argument;
    struct sched_param wanted = {.sched_priority = i == 3 ? 2 : 0}, found;
    int policy = policies[i];
    if (sched_setscheduler(0, policy, &wanted) != 0) {
        CHECK(i == 3 && errno == EPERM);
        policy = SCHED_OTHER;
        wanted.sched_priority = 0;
    }
    if (i == 0)
        CHECK_EQ(setpriority(PRIO_PROCESS, 0, 7), 0);
    ready++;
    while (!stop) {
        CHECK_EQ(sched_getscheduler(0), policy);
        CHECK_EQ(sched_getparam(0, &found), 0);
        CHECK_EQ(found.sched_priority, wanted.sched_priority);
        errno = 0;
        CHECK_EQ(getpriority(PRIO_PROCESS, 0), i == 0 ? 7 : 0);
        CHECK_EQ(errno, 0);
        guest_nap_us(3000);
    }
    return NULL;
}

static long content(const char *path, char *into)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    long len = 0, more;
    while ((more = read(fd, into + len, (size_t)(LONG - len))) > 0)
        len += more;
    CHECK_EQ(more, 0);
    CHECK(len < LONG);
    CHECK_EQ(close(fd), 0);
    return len;
}

static const struct {
    int resource;
    rlim_t most;
} limits[] = {
    {RLIMIT_FSIZE, (rlim_t)1 << 33},
    {RLIMIT_DATA, (rlim_t)1 << 41},
    {RLIMIT_STACK, 6 << 20},
    {RLIMIT_CORE, 4096},
    {RLIMIT_RSS, (rlim_t)1 << 42},
    {RLIMIT_NOFILE, 300},
    {RLIMIT_MEMLOCK, 40960},
    {RLIMIT_AS, (rlim_t)1 << 45},
    {RLIMIT_LOCKS, 77},
    {RLIMIT_SIGPENDING, 2000},
    {RLIMIT_MSGQUEUE, 100000},
    {RLIMIT_NICE, 0},
    {RLIMIT_RTTIME, 100000000},
};
enum { LIMITS = sizeof limits / sizeof *limits };

/* What a limit was set to: the hard one of every other is lowered as well. */
static struct rlimit set_limit(int i)
{
    struct rlimit limit;
    CHECK_EQ(getrlimit(limits[i].resource, &limit), 0);
    if (limit.rlim_cur > limits[i].most)
        limit.rlim_cur = limits[i].most;
    if (i % 2)
        limit.rlim_max = limit.rlim_cur;
    CHECK_EQ(setrlimit(limits[i].resource, &limit), 0);
    return limit;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    static char before[4][LONG], now[LONG];
    static const char *const paths[] = {"/proc/self/auxv", "/proc/self/environ", "/proc/self/cmdline", "/proc/self/oom_score_adj"};
    long lens[4];

    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, scheduled, (void *)i), 0);
    while (ready < THREADS)
        guest_nap_us(500);

    CHECK_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
    CHECK_EQ(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), 0);
    CHECK(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED) == 0 || errno == EPERM);
    int secure = prctl(PR_GET_SECUREBITS);
    CHECK(secure & SECBIT_KEEP_CAPS);
    CHECK_EQ(prctl(PR_SET_NAME, "a name (with )", 0, 0, 0), 0);
    CHECK(personality(0xffffffff) >= 0);
    CHECK(personality((unsigned long)personality(0xffffffff) | ADDR_NO_RANDOMIZE) >= 0);
    int person = personality(0xffffffff);
    CHECK(person & ADDR_NO_RANDOMIZE);
    int score = open("/proc/self/oom_score_adj", O_WRONLY);
    CHECK(score >= 0);
    CHECK_EQ(write(score, "137", 3), 3);
    CHECK_EQ(close(score), 0);
    struct rlimit set[LIMITS], found;
    for (int i = 0; i < LIMITS; i++)
        set[i] = set_limit(i);
    /* As programs do that show what they are about. */
    argv[0][0] = 'X';
    char exe[1000] = {0}, link[1000] = {0};
    CHECK(readlink("/proc/self/exe", exe, sizeof exe - 1) > 0);
    for (int i = 0; i < 4; i++)
        lens[i] = content(paths[i], before[i]);
    CHECK(before[2][0] == 'X' && memcmp(before[3], "137\n", 4) == 0);

    /* A child that ends with its parent, which is another one; it is not to be looked into. */
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    pid_t parent = fork();
    CHECK(parent >= 0);
    if (parent == 0) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            CHECK_EQ(prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0), 0);
            CHECK_EQ(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), 0);
            child = getpid();
            CHECK_EQ(write(ends[1], &child, sizeof child), sizeof child);
            for (;;) {
                int signo = 0;
                CHECK_EQ(prctl(PR_GET_PDEATHSIG, &signo), 0);
                CHECK_EQ(signo, SIGTERM);
                CHECK_EQ(prctl(PR_GET_DUMPABLE), 0);
                guest_nap_us(2000);
            }
        }
        for (;;)
            pause();
    }
    pid_t child = 0;
    CHECK_EQ(read(ends[0], &child, sizeof child), sizeof child);

    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        CHECK_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
        CHECK_EQ(prctl(PR_GET_SECUREBITS), secure);
        CHECK_EQ(prctl(PR_GET_DUMPABLE), 1);
        CHECK_EQ(personality(0xffffffff), person);
        int adopts = 0;
        CHECK_EQ(prctl(PR_GET_CHILD_SUBREAPER, &adopts), 0);
        CHECK_EQ(adopts, 1);
        char name[16];
        CHECK_EQ(prctl(PR_GET_NAME, name), 0);
        CHECK_EQ(strcmp(name, "a name (with )"), 0);
        CHECK(readlink("/proc/self/exe", link, sizeof link - 1) > 0);
        CHECK_EQ(strcmp(exe, link), 0);
        for (int k = 0; k < 4; k++) {
            CHECK_EQ(content(paths[k], now), lens[k]);
            CHECK_EQ(memcmp(now, before[k], (size_t)lens[k]), 0);
        }
        for (int k = 0; k < LIMITS; k++) {
            CHECK_EQ(getrlimit(limits[k].resource, &found), 0);
            CHECK_EQ(found.rlim_cur, set[k].rlim_cur);
            CHECK_EQ(found.rlim_max, set[k].rlim_max);
        }
        /* An orphan comes to us. */
        if (i % 5 == 0) {
            pid_t one = fork();
            CHECK(one >= 0);
            if (one == 0) {
                CHECK_EQ(prctl(PR_GET_CHILD_SUBREAPER, &adopts), 0);
                CHECK_EQ(adopts, 0);
                pid_t other = fork();
                CHECK(other >= 0);
                if (other == 0) {
                    guest_nap_us(2000);
                    _exit(9);
                }
                CHECK_EQ(write(ends[1], &other, sizeof other), sizeof other);
                _exit(8);
            }
            int status = 0;
            pid_t other = 0;
            CHECK_EQ(waitpid(one, &status, 0), one);
            CHECK_EQ(WEXITSTATUS(status), 8);
            CHECK_EQ(read(ends[0], &other, sizeof other), sizeof other);
            CHECK_EQ(waitpid(other, &status, 0), other);
            CHECK_EQ(WEXITSTATUS(status), 9);
        }
    }
    int status = 0;
    CHECK_EQ(kill(parent, SIGKILL), 0);
    CHECK_EQ(waitpid(parent, &status, 0), parent);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    guest_line("ok process_state");
    return 0;
}
