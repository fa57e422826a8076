// A tree of eight processes that does all that plugins are told of: threads, fork, exec, an exec that fails, exit.
#include <pthread.h>
#include <sys/wait.h>

#include "guest.h"

static void *thread(void *unused)
{
    return unused;
}

static int executed(void)
{
    // Until the parent ends, or says something.
    char byte;
    CHECK_EQ(read(0, &byte, 1), 0);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 2)
        return executed();
    long steps = guest_steps(argc, argv);
    pthread_t id;
    CHECK_EQ(pthread_create(&id, NULL, thread, NULL), 0);
    CHECK_EQ(pthread_join(id, NULL), 0);
    char *nothing[] = {"nothing", NULL};
    CHECK_EQ(execv("/no/such/program", nothing), -1);
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    pid_t children[7];
    for (int i = 0; i < 7; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            close(ends[1]);
            CHECK_EQ(dup2(ends[0], 0), 0);
            if (i == 6) {
                execl("/proc/self/exe", "plugged", "1", "executed", (char *)NULL);
                _exit(1);
            }
            _exit(executed());
        }
    }
    close(ends[0]);
    for (long step = 1; step <= steps; step++)
        guest_step(step);
    close(ends[1]);
    for (int i = 0; i < 7; i++) {
        int status;
        CHECK_EQ(waitpid(children[i], &status, 0), children[i]);
        CHECK_EQ(status, 0);
    }
    guest_line("ok plugged");
    return 0;
}
