/* A program with its own plans for SIGUSR2: default, ignored, handled, blocked, waited for, or read from a signalfd. */
#include "guest.h"
#include <pthread.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

static volatile sig_atomic_t caught;

static void handler(int number)
{
    caught += number == SIGUSR2;
}

/* sigusr2 STEPS MODE */
int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    const char *mode = argc > 2 ? argv[2] : "default";
    sigset_t two;
    int fd = -1;
    sigemptyset(&two);
    sigaddset(&two, SIGUSR2);
    if (strcmp(mode, "ignored") == 0)
        CHECK(signal(SIGUSR2, SIG_IGN) == SIG_DFL);
    if (strcmp(mode, "handled") == 0)
        CHECK(signal(SIGUSR2, handler) == SIG_DFL);
    if (strcmp(mode, "blocked") == 0 || strcmp(mode, "waited") == 0 || strcmp(mode, "signalfd") == 0)
        CHECK_EQ(sigprocmask(SIG_BLOCK, &two, NULL), 0);
    if (strcmp(mode, "signalfd") == 0)
        CHECK((fd = signalfd(-1, &two, SFD_CLOEXEC)) >= 0);
    if (strcmp(mode, "blocked") == 0)
        CHECK_EQ(kill(getpid(), SIGUSR2), 0);
    for (long i = 1; i <= steps; i++) {
        if (strcmp(mode, "waited") == 0 || strcmp(mode, "signalfd") == 0)
            CHECK_EQ(kill(getpid(), SIGUSR2), 0);
        guest_step(i);
        struct sigaction found;
        CHECK_EQ(sigaction(SIGUSR2, NULL, &found), 0);
        if (strcmp(mode, "ignored") == 0) {
            CHECK(found.sa_handler == SIG_IGN);
            CHECK_EQ(raise(SIGUSR2), 0);
        } else if (strcmp(mode, "handled") == 0) {
            CHECK(found.sa_handler == handler);
            CHECK_EQ(raise(SIGUSR2), 0);
            CHECK_EQ(caught, i);
        } else {
            CHECK(found.sa_handler == SIG_DFL);
        }
        if (strcmp(mode, "waited") == 0) {
            int number = 0;
            CHECK_EQ(sigwait(&two, &number), 0);
            CHECK_EQ(number, SIGUSR2);
        }
        if (strcmp(mode, "signalfd") == 0) {
            struct signalfd_siginfo info;
            CHECK_EQ(read(fd, &info, sizeof info), sizeof info);
            CHECK_EQ(info.ssi_signo, SIGUSR2);
            CHECK_EQ(info.ssi_pid, getpid());
        }
        sigset_t pending;
        CHECK_EQ(sigpending(&pending), 0);
        CHECK_EQ(sigismember(&pending, SIGUSR2), strcmp(mode, "blocked") == 0);
    }
    if (strcmp(mode, "default") == 0) {
        /* The default is to end the process. */
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            raise(SIGUSR2);
            _exit(98);
        }
        int status = 0;
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR2);
    }
    guest_line("ok sigusr2 %s", mode);
    return 0;
}
