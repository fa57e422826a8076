/* Two threads that fork without pause; children fork again, exit with a status or die of a signal. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

static atomic_int stop;
static atomic_long forks;

/* Each child tells its parent its pid over the program's own pipe, and leaves with `status`. */
__attribute__((noreturn)) static void leave(int out, pid_t me, int status)
{
    CHECK_EQ(getpid(), me);
    CHECK_EQ(write(out, &me, sizeof me), sizeof me);
    _exit(status);
}

__attribute__((noreturn)) static void child(int out, int deep, int status)
{
    pid_t me = getpid();
    if (deep) {
        pid_t grandchild = fork();
        CHECK(grandchild >= 0);
        if (grandchild == 0)
            leave(out, getpid(), status + 1);
        int got = 0;
        CHECK_EQ(waitpid(grandchild, &got, 0), grandchild);
        CHECK(WIFEXITED(got) && WEXITSTATUS(got) == status + 1);
    }
    leave(out, me, status);
}

static pid_t start_vfork(int status)
{
    pid_t pid = vfork();
    if (pid == 0)
        _exit(status);
    return pid;
}

static pid_t start_fork(int out, int status, int deep, int killed)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    if (killed)
        kill(getpid(), SIGKILL);
    child(out, deep, status);
}

static void *storm(void *argument)
{
    uint64_t state = 0x2545f4914f6cdd1du + (uint64_t)(long)argument;
    while (!stop) {
        uint64_t random = guest_random(&state);
        int status = (int)(random % 100);
        int shared = (random >> 16) % 8 == 0, killed = !shared && (random >> 24) % 8 == 0;
        int ends[2];
        CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
        pid_t pid = shared ? start_vfork(status) : start_fork(ends[1], status, (random >> 8) % 4 == 0, killed);
        CHECK(pid > 0);
        CHECK_EQ(close(ends[1]), 0);
        pid_t said = 0, last = 0;
        ssize_t len;
        while ((len = read(ends[0], &said, sizeof said)) > 0) {
            CHECK_EQ(len, sizeof said);
            last = said;
        }
        CHECK_EQ(len, 0);
        CHECK_EQ(close(ends[0]), 0);
        int got = 0;
        CHECK_EQ(waitpid(pid, &got, 0), pid);
        if (killed) {
            CHECK(WIFSIGNALED(got) && WTERMSIG(got) == SIGKILL);
            CHECK_EQ(last, 0);
        } else {
            CHECK(WIFEXITED(got) && WEXITSTATUS(got) == status);
            CHECK_EQ(last, shared ? 0 : pid);
        }
        forks++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    pthread_t threads[2];
    for (long i = 0; i < 2; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, storm, (void *)i), 0);
    for (long i = 1; i <= steps; i++)
        guest_step(i);
    stop = 1;
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK(forks > 0);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    guest_line("ok fork_storm");
    return 0;
}
