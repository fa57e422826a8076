/* Everything a thread has for itself: TLS, keys, errno, id, name, mask, alternate stack, robust mutexes that are held, priorities. */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { THREADS = 40 };

static __thread long local = 5;
static __thread char local_text[100] = "initial";
static __thread uint64_t large[512];
static pthread_key_t key;
static atomic_int stop, destroyed;
static atomic_int tids[THREADS];
static atomic_long beats[THREADS];

static void destroy(void *value)
{
    destroyed++;
    free(value);
}

static atomic_int handled, handled_outside;
static __thread char *stack_low;

static void on_own_stack(int number)
{
    char here;
    if (number != SIGUSR1 || &here < stack_low || &here >= stack_low + 32768)
        handled_outside++;
    handled++;
}

static void *work(void *argument)
{
    long me = (long)argument;
    char name[16], found[16];
    snprintf(name, sizeof name, "worker %ld", me);
    CHECK_EQ(pthread_setname_np(pthread_self(), name), 0);
    long *value = malloc(sizeof *value);
    *value = me * 3;
    CHECK_EQ(pthread_setspecific(key, value), 0);
    stack_low = malloc(32768);
    stack_t stack = {.ss_sp = stack_low, .ss_size = 32768}, old;
    CHECK_EQ(sigaltstack(&stack, NULL), 0);
    local = me;
    snprintf(local_text, sizeof local_text, "text of %ld", me);
    for (int i = 0; i < 512; i++)
        large[i] = (uint64_t)(me * 1000 + i);
    sigset_t mask, current, one;
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    mask = one;
    sigaddset(&mask, SIGRTMIN + (int)(me % 10));
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &mask, NULL), 0);
    /* A real thread property that root and others may lower: the nice value. */
    pid_t tid = gettid();
    int nice_value = (int)(me % 5);
    CHECK_EQ(setpriority(PRIO_PROCESS, 0, nice_value), 0);
    CHECK_EQ(prctl(PR_SET_TIMERSLACK, 60000 + me), 0);
    pthread_t self = pthread_self();
    errno = (int)me + 1000;
    tids[me] = tid;
    while (!stop) {
        CHECK_EQ(errno, me + 1000);
        CHECK_EQ(local, me);
        CHECK(atol(local_text + 8) == me);
        for (int i = 0; i < 512; i++)
            CHECK(large[i] == (uint64_t)(me * 1000 + i));
        CHECK_EQ(*(long *)pthread_getspecific(key), me * 3);
        CHECK_EQ(gettid(), tid);
        CHECK(pthread_equal(self, pthread_self()));
        pthread_attr_t attributes;
        void *stack_found;
        size_t stack_len;
        CHECK_EQ(pthread_getattr_np(self, &attributes), 0);
        CHECK_EQ(pthread_attr_getstack(&attributes, &stack_found, &stack_len), 0);
        CHECK((char *)&attributes >= (char *)stack_found && (char *)&attributes < (char *)stack_found + stack_len);
        CHECK_EQ(pthread_attr_destroy(&attributes), 0);
        CHECK_EQ(pthread_setschedprio(self, 0), 0);
        clockid_t clock;
        struct timespec used;
        CHECK_EQ(clock_getcpuclockid(getpid(), &clock), 0);
        CHECK_EQ(clock_gettime(clock, &used), 0);
        CHECK_EQ(prctl(PR_GET_NAME, found), 0);
        CHECK(strcmp(found, name) == 0);
        CHECK_EQ(getpriority(PRIO_PROCESS, 0), nice_value);
        CHECK_EQ(prctl(PR_GET_TIMERSLACK), 60000 + me);
        CHECK_EQ(sigaltstack(NULL, &old), 0);
        CHECK(old.ss_sp == stack_low && old.ss_size == 32768);
        CHECK_EQ(pthread_sigmask(SIG_BLOCK, NULL, &current), 0);
        for (int number = SIGRTMIN; number < SIGRTMIN + 10; number++)
            CHECK_EQ(sigismember(&current, number), number == SIGRTMIN + me % 10);
        CHECK_EQ(sigismember(&current, SIGUSR1), 1);
        /* SIGUSR1 is let in here and nowhere else, for it would end a sleep. */
        CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &one, NULL), 0);
        CHECK_EQ(pthread_sigmask(SIG_BLOCK, &one, NULL), 0);
        beats[me]++;
        guest_nap_us(3000);
        errno = (int)me + 1000;
    }
    return NULL;
}

/* Robust mutexes in memory that processes share; robust_death.c has owners that die. */
static struct {
    pthread_mutex_t of_child, of_thread, kept;
    atomic_int child_has, child_may_end, thread_has, thread_may_end;
} *robust;

static void *holds(void *argument)
{
    CHECK_EQ(pthread_mutex_lock(&robust->of_thread), 0);
    robust->thread_has = 1;
    while (!robust->thread_may_end)
        guest_nap_us(1000);
    CHECK_EQ(pthread_mutex_unlock(&robust->of_thread), 0);
    return argument;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(prctl(PR_SET_NAME, "thread-state"), 0);
    CHECK_EQ(pthread_key_create(&key, destroy), 0);
    struct sigaction action = {.sa_handler = on_own_stack, .sa_flags = SA_ONSTACK | SA_RESTART};
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    robust = mmap(NULL, sizeof *robust, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(robust != MAP_FAILED);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&robust->of_child, &attributes);
    pthread_mutex_init(&robust->of_thread, &attributes);
    pthread_mutex_init(&robust->kept, &attributes);

    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(pthread_mutex_lock(&robust->of_child), 0);
        robust->child_has = 1;
        while (!robust->child_may_end && getppid() == parent)
            guest_nap_us(1000);
        CHECK_EQ(pthread_mutex_unlock(&robust->of_child), 0);
        raise(SIGKILL);
    }
    pthread_t holder, threads[THREADS];
    CHECK_EQ(pthread_create(&holder, NULL, holds, NULL), 0);
    for (long i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, work, (void *)i), 0);
    while (!robust->child_has || !robust->thread_has)
        guest_nap_us(500);
    CHECK_EQ(pthread_mutex_lock(&robust->kept), 0);
    for (int i = 0; i < THREADS; i++)
        while (tids[i] == 0)
            guest_nap_us(500);

    cpu_set_t cpus, found_cpus;
    CHECK_EQ(sched_getaffinity(0, sizeof cpus, &cpus), 0);
    for (long i = 1; i <= steps; i++) {
        long before[THREADS];
        for (int k = 0; k < THREADS; k++)
            before[k] = beats[k];
        guest_step(i);
        char name[16], wanted[16];
        for (int k = 0; k < THREADS; k++) {
            while (beats[k] == before[k])
                guest_nap_us(500);
            snprintf(wanted, sizeof wanted, "worker %d", k);
            CHECK_EQ(pthread_getname_np(threads[k], name, sizeof name), 0);
            CHECK(strcmp(name, wanted) == 0);
            CHECK_EQ(pthread_kill(threads[k], 0), 0);
            CHECK_EQ(tgkill(getpid(), tids[k], 0), 0);
            if (i % 8 == 0)
                CHECK_EQ(pthread_kill(threads[k], SIGUSR1), 0);
        }
        clockid_t clock;
        struct timespec spent;
        CHECK_EQ(pthread_getcpuclockid(threads[i % THREADS], &clock), 0);
        CHECK_EQ(clock_gettime(clock, &spent), 0);
        CHECK_EQ(sched_getaffinity(tids[i % THREADS], sizeof found_cpus, &found_cpus), 0);
        CHECK(CPU_EQUAL(&cpus, &found_cpus));
        CHECK_EQ(pthread_getaffinity_np(threads[i % THREADS], sizeof found_cpus, &found_cpus), 0);
        struct sched_param parameter;
        int policy;
        CHECK_EQ(pthread_getschedparam(threads[i % THREADS], &policy, &parameter), 0);
        CHECK_EQ(policy, SCHED_OTHER);
        CHECK_EQ(gettid(), getpid());
        CHECK_EQ(pthread_mutex_trylock(&robust->kept), EBUSY);
        CHECK_EQ(pthread_mutex_trylock(&robust->of_child), EBUSY);
        CHECK_EQ(pthread_mutex_trylock(&robust->of_thread), EBUSY);
        CHECK_EQ(handled_outside, 0);
    }
    /* Both owners let go, and the next one gets the lock without a word. */
    robust->child_may_end = robust->thread_may_end = 1;
    CHECK_EQ(pthread_mutex_lock(&robust->of_child), 0);
    CHECK_EQ(pthread_mutex_unlock(&robust->of_child), 0);
    CHECK_EQ(pthread_mutex_lock(&robust->of_thread), 0);
    CHECK_EQ(pthread_mutex_unlock(&robust->of_thread), 0);
    CHECK_EQ(pthread_mutex_unlock(&robust->kept), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK_EQ(pthread_join(holder, NULL), 0);
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK_EQ(destroyed, THREADS);
    CHECK(steps < 8 || handled > 0);
    guest_line("ok thread_state");
    return 0;
}
