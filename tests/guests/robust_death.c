/* Owners of robust mutexes die, a thread and a child: the next one who locks is told, also after a restart. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

/* In memory that processes share. */
static struct {
    pthread_mutex_t of_child, of_thread;
    atomic_int child_has, child_may_die, thread_has, thread_may_die;
} *robust;

static void *dies_with_lock(void *argument)
{
    CHECK_EQ(pthread_mutex_lock(&robust->of_thread), 0);
    robust->thread_has = 1;
    while (!robust->thread_may_die)
        guest_nap_us(1000);
    return argument;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    robust = mmap(NULL, sizeof *robust, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(robust != MAP_FAILED);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&robust->of_child, &attributes);
    pthread_mutex_init(&robust->of_thread, &attributes);

    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(pthread_mutex_lock(&robust->of_child), 0);
        robust->child_has = 1;
        while (!robust->child_may_die && getppid() == parent)
            guest_nap_us(1000);
        raise(SIGKILL);
    }
    pthread_t holder;
    CHECK_EQ(pthread_create(&holder, NULL, dies_with_lock, NULL), 0);
    while (!robust->child_has || !robust->thread_has)
        guest_nap_us(500);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        CHECK_EQ(pthread_mutex_trylock(&robust->of_child), EBUSY);
        CHECK_EQ(pthread_mutex_trylock(&robust->of_thread), EBUSY);
    }
    robust->child_may_die = robust->thread_may_die = 1;
    CHECK_EQ(pthread_mutex_lock(&robust->of_child), EOWNERDEAD);
    CHECK_EQ(pthread_mutex_consistent(&robust->of_child), 0);
    CHECK_EQ(pthread_mutex_unlock(&robust->of_child), 0);
    CHECK_EQ(pthread_mutex_lock(&robust->of_thread), EOWNERDEAD);
    CHECK_EQ(pthread_mutex_consistent(&robust->of_thread), 0);
    CHECK_EQ(pthread_mutex_unlock(&robust->of_thread), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK_EQ(pthread_join(holder, NULL), 0);
    guest_line("ok robust_death");
    return 0;
}
