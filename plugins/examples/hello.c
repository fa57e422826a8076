/* cc -shared -fPIC -Wl,-z,now -I plugins/include -o hello.so plugins/examples/hello.c */
#include "ulpm_plugin.h"

static int hello(const struct ulpm_event *event, const struct ulpm_services *services)
{
    services->log(services, event->number == ULPM_EVENT_INIT ? "hello" : "hello again");
    return 0;
}

const struct ulpm_plugin ulpm_plugin = {
    sizeof ulpm_plugin, ULPM_PLUGIN_ABI, "hello", "1.0",
    ULPM_EVENT_BIT(ULPM_EVENT_INIT) | ULPM_EVENT_BIT(ULPM_EVENT_THAW_RESTART), 0, 0, hello,
};
