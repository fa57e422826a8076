/* A server without SO_REUSEADDR and a client. "closes": each connection is closed by the server, so that its port stays in TIME_WAIT; "keeps": one connection that stays. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>

static struct sockaddr_in server = {.sin_family = AF_INET};

static int reach(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK_EQ(connect(fd, (struct sockaddr *)&server, sizeof server), 0);
    return fd;
}

static void serve(int listener, int closes)
{
    char byte;
    for (int fd = -1;;) {
        if (fd < 0)
            fd = accept(listener, NULL, NULL);
        CHECK(fd >= 0);
        ssize_t n = recv(fd, &byte, 1, 0);
        CHECK(n >= 0);
        if (n == 1)
            CHECK_EQ(send(fd, &byte, 1, MSG_NOSIGNAL), 1);
        if (byte == 'e' || n == 0)
            _exit(7);
        if (closes) {
            CHECK_EQ(close(fd), 0);
            fd = -1;
        }
    }
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int closes = argc > 2 && strcmp(argv[2], "closes") == 0, listener = socket(AF_INET, SOCK_STREAM, 0), reuse = -1;
    socklen_t len = sizeof server, size = sizeof reuse;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_EQ(bind(listener, (struct sockaddr *)&server, sizeof server), 0);
    CHECK_EQ(listen(listener, 8), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&server, &len), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        serve(listener, closes);
    int fd = reach();
    for (long i = 1; i <= steps; i++) {
        char byte = i == steps ? 'e' : 'x', answer = 0;
        CHECK_EQ(send(fd, &byte, 1, MSG_NOSIGNAL), 1);
        CHECK_EQ(recv(fd, &answer, 1, 0), 1);
        CHECK_EQ(answer, byte);
        if (closes && i < steps) {
            CHECK_EQ(recv(fd, &answer, 1, 0), 0);
            CHECK_EQ(close(fd), 0);
            fd = reach();
        }
        guest_step(i);
        struct sockaddr_in now;
        CHECK_EQ(getsockname(listener, (struct sockaddr *)&now, &len), 0);
        CHECK_EQ(now.sin_port, server.sin_port);
        CHECK_EQ(getsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &reuse, &size), 0);
        CHECK_EQ(reuse, 0);
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    guest_line("ok listener");
    return 0;
}
