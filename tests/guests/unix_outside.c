/* Connected to a program outside the job: what was received stays, and after a restart the other end is gone. */
#include "guest.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
    CHECK_EQ(argc, 4);
    long steps = guest_steps(argc, argv);
    CHECK(signal(SIGPIPE, SIG_IGN) == SIG_DFL);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), log = socket(AF_UNIX, SOCK_DGRAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, argv[2]);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    strcpy(address.sun_path, argv[3]);
    CHECK_EQ(connect(log, (struct sockaddr *)&address, sizeof address), 0);
    struct pollfd poll_fd = {fd, POLLIN, 0};
    CHECK_EQ(poll(&poll_fd, 1, 10000), 1);
    char words[16];
    int gone = 0;
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        CHECK_EQ(recv(fd, words, sizeof words, MSG_PEEK), 5);
        CHECK(memcmp(words, "hello", 5) == 0);
        if (send(fd, "x", 1, MSG_NOSIGNAL) != 1) {
            CHECK_EQ(errno, EPIPE);
            gone = 1;
        } else {
            CHECK(!gone);
        }
        /* Such a service is found again. */
        CHECK_EQ(send(log, "line", 4, MSG_DONTWAIT), 4);
    }
    CHECK_EQ(recv(fd, words, sizeof words, 0), 5);
    if (gone)
        CHECK_EQ(recv(fd, words, sizeof words, 0), 0);
    guest_line("ok unix_outside %s", gone ? "gone" : "there");
    return 0;
}
