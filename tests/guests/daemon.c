/* A daemon: two forks, a session of its own, every descriptor closed; what it does stands in files in its directory. */
#include "guest.h"
#include <limits.h>
#include <sys/stat.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char folder[PATH_MAX], progress[PATH_MAX + 20];
    CHECK(getcwd(folder, sizeof folder) != NULL);
    snprintf(progress, sizeof progress, "%s/daemon.progress", folder);

    pid_t first = fork();
    CHECK(first >= 0);
    if (first != 0) {
        int status = 0;
        CHECK_EQ(waitpid(first, &status, 0), first);
        CHECK_EQ(status, 0);
        guest_line("ok daemon started");
        return 0;
    }
    CHECK_EQ(setsid(), getpid());
    CHECK(signal(SIGHUP, SIG_IGN) != SIG_ERR); /* Whoever runs us may ignore it. */
    pid_t second = fork();
    CHECK(second >= 0);
    if (second != 0)
        _exit(0);
    CHECK_EQ(chdir("/"), 0);
    umask(0);
    for (int fd = 0; fd < 4096; fd++)
        close(fd);
    CHECK_EQ(open("/dev/null", O_RDWR), 0);
    CHECK_EQ(dup(0), 1);
    CHECK_EQ(dup(0), 2);
    CHECK_EQ(close_range(3, ~0u, 0), 0);

    /* The lowest numbers are free: nobody else has descriptors here. */
    int fd = open(progress, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK_EQ(fd, 3);
    pid_t me = getpid(), session = getsid(0);
    CHECK(session != me);
    for (long i = 1; i <= steps; i++) {
        guest_pace(i, NULL);
        char line[32];
        int len = snprintf(line, sizeof line, "step %10ld\n", i);
        CHECK_EQ(pwrite(fd, line, (size_t)len, (i - 1) * len), len);
        CHECK_EQ(getpid(), me);
        CHECK_EQ(getsid(0), session);
        int next = open("/dev/null", O_RDONLY);
        CHECK_EQ(next, 4);
        CHECK_EQ(close(next), 0);
        char root[8];
        CHECK(getcwd(root, sizeof root) != NULL && strcmp(root, "/") == 0);
    }
    CHECK(lseek(fd, 0, SEEK_END) == steps * 16);
    CHECK_EQ(write(fd, "ok daemon\n", 10), 10);
    return 0;
}
