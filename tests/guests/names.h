/* Names of sockets. */
#include "guest.h"
#include <sys/socket.h>

/* What comes of an AF_… and an address of it. */
struct name {
    struct sockaddr_storage address;
    socklen_t len;
};

static struct name name_of(int fd, int (*ask)(int, struct sockaddr *, socklen_t *))
{
    struct name name = {.len = sizeof name.address};
    memset(&name.address, 0, sizeof name.address);
    CHECK_EQ(ask(fd, (struct sockaddr *)&name.address, &name.len), 0);
    return name;
}

static void check_name(const struct name *wanted, int fd, int (*ask)(int, struct sockaddr *, socklen_t *))
{
    struct name found = name_of(fd, ask);
    CHECK_EQ(found.len, wanted->len);
    CHECK(memcmp(&found.address, &wanted->address, found.len) == 0);
}
