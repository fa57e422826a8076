/* Starts programs without pause by fork and exec, posix_spawn, vfork, system and popen, and now and then becomes itself anew. */
#include "guest.h"
#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static void *other_thread(void *argument)
{
    pause();
    return argument;
}

static int finished(pid_t pid)
{
    int status = 0;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* exec_storm STEPS [NEXT PID]: NEXT and PID come from the incarnation before. */
int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "child") == 0) {
        CHECK_EQ(argc, 4);
        CHECK(getenv("EXEC_STORM") != NULL && strcmp(getenv("EXEC_STORM"), argv[3]) == 0);
        return atoi(argv[2]);
    }
    long steps = guest_steps(argc, argv);
    long first = argc > 2 ? atol(argv[2]) : 1;
    if (argc > 3)
        CHECK_EQ(getpid(), atol(argv[3]));
    for (long i = first; i <= steps; i++) {
        guest_step(i);
        char status[16], command[4096], line[64];
        snprintf(status, sizeof status, "%ld", i % 50);
        CHECK_EQ(setenv("EXEC_STORM", status, 1), 0);
        char *arguments[] = {argv[0], "child", status, status, NULL};
        pid_t pid;
        switch (i % 5) {
        case 0:
            pid = fork();
            CHECK(pid >= 0);
            if (pid == 0) {
                execv("/proc/self/exe", arguments);
                _exit(98);
            }
            CHECK_EQ(finished(pid), i % 50);
            break;
        case 1:
            CHECK_EQ(posix_spawn(&pid, argv[0], NULL, NULL, arguments, environ), 0);
            CHECK_EQ(finished(pid), i % 50);
            break;
        case 2:
            pid = vfork();
            CHECK(pid >= 0);
            if (pid == 0) {
                execve(argv[0], arguments, environ);
                _exit(98);
            }
            CHECK_EQ(finished(pid), i % 50);
            break;
        case 3: {
            snprintf(command, sizeof command, "'%s' child %s %s", argv[0], status, status);
            int got = system(command);
            CHECK(WIFEXITED(got) && WEXITSTATUS(got) == i % 50);
            break;
        }
        default: {
            snprintf(command, sizeof command, "'%s' child 0 %s && echo said %s", argv[0], status, status);
            FILE *pipe = popen(command, "re");
            CHECK(pipe != NULL);
            CHECK(fgets(line, sizeof line, pipe) != NULL);
            CHECK(strncmp(line, "said ", 5) == 0 && atol(line + 5) == i % 50);
            CHECK_EQ(pclose(pipe), 0);
        }
        }
        if (i % 16 == 0) {
            /* A process with threads becomes another program; its pid stays. */
            pthread_t thread;
            CHECK_EQ(pthread_create(&thread, NULL, other_thread, NULL), 0);
            char all[24], next[24], me[24];
            snprintf(all, sizeof all, "%ld", steps);
            snprintf(next, sizeof next, "%ld", i + 1);
            snprintf(me, sizeof me, "%d", (int)getpid());
            execl(argv[0], argv[0], all, next, me, (char *)NULL);
            CHECK(!"execl returned");
        }
    }
    guest_line("ok exec_storm");
    return 0;
}
