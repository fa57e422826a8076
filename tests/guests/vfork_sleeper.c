/* A parent that cannot be stopped: the child of a vfork that neither ends nor executes anything leaves it in uninterruptible sleep. */
#include "guest.h"
#include <sys/wait.h>

int main(int argc, char **argv)
{
    volatile long steps = guest_steps(argc, argv);
    guest_line("ok to sleep");
    pid_t pid = vfork();
    CHECK(pid >= 0);
    if (pid == 0) {
        while (guest_limit(NULL) < steps)
            usleep(1000);
        _exit(5);
    }
    int status = 0;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    for (long i = 1; i <= steps; i++)
        guest_line("step %ld", i);
    return 0;
}
