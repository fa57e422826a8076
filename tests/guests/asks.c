// A program that asks ULPM for checkpoints, from several threads, and holds them back.
#include <pthread.h>
#include <sys/wait.h>

#include "guest.h"
#include "../../plugins/include/ulpm.h"

static void *wishes(void *unused)
{
    (void)unused;
    int result = ulpm_checkpoint(-1);
    CHECK(result == ULPM_CHECKPOINTED || result == ULPM_RESTARTED);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[2], "natively") == 0) {
        CHECK(!ulpm_present());
        CHECK_EQ(ulpm_job(), 0);
        CHECK_EQ(ulpm_restarts(), 0);
        CHECK_EQ(ulpm_checkpoint(0), -1);
        CHECK_EQ(errno, ENOSYS);
        CHECK_EQ(ulpm_hold(), -1);
        CHECK_EQ(ulpm_release(), -1);
        guest_line("ok natively");
        return 0;
    }
    CHECK(ulpm_present());
    CHECK_EQ(ulpm_release(), -1);
    CHECK_EQ(errno, EINVAL);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, wishes, NULL), 0);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    // A child of fork has its own wishes.
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        wishes(NULL);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    // Held back, so that it cannot come in time.
    CHECK_EQ(ulpm_hold(), 0);
    CHECK_EQ(ulpm_hold(), 0);
    CHECK_EQ(ulpm_release(), 0);
    CHECK_EQ(ulpm_checkpoint(100), -1);
    CHECK_EQ(errno, ETIMEDOUT);
    long steps = guest_steps(argc, argv);
    for (long step = 1; step <= steps; step++) {
        guest_step(step);
        if (step == 3)
            CHECK_EQ(ulpm_release(), 0);
    }
    guest_line("ok asks");
    return 0;
}
