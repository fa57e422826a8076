/* Every way to start a program, with the usual and with an empty environment; each program counts steps of its own. */
#include "guest.h"
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

enum { SUB_STEPS = 4 };

static const char *limit_file;

/* exec_env child FORM STEP LIMIT WANTED: counts, and checks that the environment is what it was given. */
static int child(char **argv)
{
    long step = atol(argv[3]);
    const char *mark = getenv("EXEC_ENV");
    CHECK(strcmp(argv[5], mark == NULL ? "none" : mark) == 0);
    if (mark == NULL) {
        /* Empty is empty: what ULPM needs for itself is not to be seen. */
        for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
            guest_line("note inherited %.200s", *entry);
            CHECK(strncmp(*entry, "LD_PRELOAD=", 11) == 0 || strncmp(*entry, "ULPM", 4) == 0 ||
                  strncmp(*entry, "PWD=", 4) == 0 || strncmp(*entry, "SHLVL=", 6) == 0 ||
                  strncmp(*entry, "_=", 2) == 0 || strncmp(*entry, "OLDPWD", 6) == 0);
        }
    }
    for (long i = 0; i < SUB_STEPS; i++) {
        guest_pace(step + i, argv[4]);
        guest_line("step %ld %s", step + i, argv[2]);
    }
    return 17;
}

static char *self, *arguments[8];
static char step_text[24], command[8192];
static char *empty[] = {NULL}, *marked[] = {"EXEC_ENV=given", NULL};

static void set(const char *form, const char *wanted)
{
    static char form_text[32], wanted_text[16];
    snprintf(form_text, sizeof form_text, "%s", form);
    snprintf(wanted_text, sizeof wanted_text, "%s", wanted);
    char *list[] = {self, "child", form_text, step_text, (char *)limit_file, wanted_text, NULL};
    memcpy(arguments, list, sizeof list);
    snprintf(command, sizeof command, "'%s' child %s %s '%s' %s", self, form, step_text, limit_file, wanted);
}

static int finished(pid_t pid)
{
    int status = 0;
    CHECK(pid > 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#define ARGUMENTS arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]

/* The exec functions, each in a child of its own. */
static void replace(int form)
{
    switch (form) {
    case 0:
        set("execl", "usual");
        execl(self, ARGUMENTS, (char *)NULL);
        break;
    case 1:
        set("execle", "none");
        execle(self, ARGUMENTS, (char *)NULL, empty);
        break;
    case 2:
        set("execlp", "usual");
        execlp(self, ARGUMENTS, (char *)NULL);
        break;
    case 3:
        set("execv", "usual");
        execv(self, arguments);
        break;
    case 4:
        set("execve", "given");
        execve(self, arguments, marked);
        break;
    case 5:
        set("execve-empty", "none");
        execve(self, arguments, empty);
        break;
    case 6:
        set("execvp", "usual");
        execvp(self, arguments);
        break;
    case 7:
        set("execvpe", "none");
        execvpe(self, arguments, empty);
        break;
    case 8:
        set("fexecve", "given");
        fexecve(open(self, O_RDONLY | O_CLOEXEC), arguments, marked);
        break;
    case 9:
        set("execveat", "none");
        execveat(AT_FDCWD, self, arguments, empty, 0);
        break;
    case 10:
        set("env-i", "none");
        execlp("env", "env", "-i", ARGUMENTS, (char *)NULL);
        break;
    default:
        set("clearenv", "none");
        CHECK_EQ(clearenv(), 0);
        execv(self, arguments);
    }
    CHECK(!"exec returned");
}

enum { EXEC_FORMS = 12, FORMS = EXEC_FORMS + 8 };

static int start(int form)
{
    pid_t pid;
    int status;
    FILE *pipe;
    if (form < EXEC_FORMS) {
        pid = fork();
        if (pid == 0)
            replace(form);
        return finished(pid);
    }
    switch (form - EXEC_FORMS) {
    case 0:
        set("vfork-execv", "usual");
        pid = vfork();
        if (pid == 0) {
            execv(self, arguments);
            _exit(98);
        }
        return finished(pid);
    case 1:
        set("vfork-execve", "none");
        pid = vfork();
        if (pid == 0) {
            execve(self, arguments, empty);
            _exit(98);
        }
        return finished(pid);
    case 2:
        set("posix_spawn", "usual");
        CHECK_EQ(posix_spawn(&pid, self, NULL, NULL, arguments, environ), 0);
        return finished(pid);
    case 3:
        set("posix_spawn-empty", "none");
        CHECK_EQ(posix_spawn(&pid, self, NULL, NULL, arguments, empty), 0);
        return finished(pid);
    case 4: {
        posix_spawn_file_actions_t actions;
        CHECK_EQ(posix_spawn_file_actions_init(&actions), 0);
        CHECK_EQ(posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0), 0);
        set("posix_spawnp", "given");
        CHECK_EQ(posix_spawnp(&pid, self, &actions, NULL, arguments, marked), 0);
        CHECK_EQ(posix_spawn_file_actions_destroy(&actions), 0);
        return finished(pid);
    }
    case 5:
        set("system", "usual");
        status = system(command);
        CHECK(WIFEXITED(status));
        return WEXITSTATUS(status);
    case 6:
        set("popen", "usual");
        pipe = popen(command, "r");
        CHECK(pipe != NULL);
        for (char line[512]; fgets(line, sizeof line, pipe) != NULL;) {
            line[strcspn(line, "\n")] = 0;
            guest_line("%s", line);
        }
        status = pclose(pipe);
        CHECK(WIFEXITED(status));
        return WEXITSTATUS(status);
    default: {
        /* A script, with an interpreter of its own. */
        set("script", "usual");
        int fd = open("exec_env.sh", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);
        CHECK(fd >= 0);
        CHECK(dprintf(fd, "#!/bin/sh\n%s\nexit $?\n", command) > 0);
        CHECK_EQ(close(fd), 0);
        pid = fork();
        if (pid == 0) {
            execl("./exec_env.sh", "./exec_env.sh", (char *)NULL);
            _exit(98);
        }
        return finished(pid);
    }
    }
}

/* exec_env STEPS: with fewer steps than there are forms to try, the first ones. */
int main(int argc, char **argv)
{
    if (argc > 5 && strcmp(argv[1], "child") == 0)
        return child(argv);
    long steps = guest_steps(argc, argv);
    self = argv[0];
    limit_file = getenv("GUEST_LIMIT") != NULL ? getenv("GUEST_LIMIT") : "/nonexistent";
    CHECK_EQ(setenv("EXEC_ENV", "usual", 1), 0);
    for (long step = 1, form = 0; form < FORMS && step <= steps; step += SUB_STEPS, form++) {
        snprintf(step_text, sizeof step_text, "%ld", step);
        CHECK_EQ(start((int)form), 17);
    }
    guest_line("ok exec_env");
    return 0;
}
