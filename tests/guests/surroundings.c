// Says what the variables CHOSEN, ADDED and LEFT are when one has changed; and that no child appears that it has not made.
#include <sys/wait.h>

#include "guest.h"

int main(int argc, char **argv)
{
    char last[512] = "";
    long steps = guest_steps(argc, argv);
    for (long step = 1; step <= steps; step++) {
        char now[512];
        const char *const names[] = {"CHOSEN", "ADDED", "LEFT"};
        size_t len = 0;
        for (int i = 0; i < 3; i++) {
            const char *value = getenv(names[i]);
            len += (size_t)snprintf(now + len, sizeof now - len, " %s", value ? value : "-");
        }
        if (strcmp(now, last) != 0)
            guest_line("variables%s", now);
        strcpy(last, now);
        CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
        CHECK_EQ(errno, ECHILD);
        // Ours works still.
        CHECK_EQ(setenv("OWN", now, 1), 0);
        CHECK_EQ(system("test -n \"$OWN\""), 0);
        guest_step(step);
    }
    guest_line("ok surroundings");
    return 0;
}
