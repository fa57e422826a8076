// A plugin that logs every event, says no where the file PLUGIN_VETO is, and does what PLUGIN_DOES says in an event.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ulpm_plugin.h"

static const char *const names[] = {
    "", "init", "exit", "thread-start", "thread-exit", "fork-parent", "fork-child", "before-exec", "after-exec",
    "exec-failed", "pre-freeze", "frozen", "thaw-checkpoint", "thaw-restart", "thaw-abort", "pre-migrate",
    "post-migrate", "restored",
};

// PLUGIN_DOES is EVENT=crash or EVENT=block.
static int does(uint32_t number, const char *what)
{
    const char *todo = getenv("PLUGIN_DOES");
    size_t len = strlen(names[number]);
    return todo && !strncmp(todo, names[number], len) && todo[len] == '=' && !strcmp(todo + len + 1, what);
}

static int told(const struct ulpm_event *event, const struct ulpm_services *services)
{
    if (event->size < sizeof *event || event->number == 0 || event->number >= sizeof names / sizeof *names)
        return 0;
    services->log(services, names[event->number]);
    if (event->number == ULPM_EVENT_INIT)
        services->set_section(services, 3, "from told", 9);
    if (event->number == ULPM_EVENT_FROZEN || event->number == ULPM_EVENT_RESTORED)
        return 0; // No libc there.
    if (does(event->number, "crash"))
        *(volatile int *)8 = 0;
    if (does(event->number, "abort"))
        abort();
    while (does(event->number, "block"))
        sleep(1);
    const char *veto = getenv("PLUGIN_VETO");
    if (event->reason && veto && access(veto, F_OK) == 0) {
        snprintf(event->reason, event->reason_size, "the file %s is there", strrchr(veto, '/') + 1);
        return 1;
    }
    return 0;
}

const struct ulpm_plugin ulpm_plugin = {
    sizeof ulpm_plugin, ULPM_PLUGIN_ABI, "told", "1.0", ~UINT64_C(0), 500, 0, told,
};
