/* Unix datagram and seqpacket sockets keep their messages, each with its length and sender, and whom they are connected to. */
#include "guest.h"
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

static struct sockaddr_un address;

static socklen_t name_to(const char *name)
{
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    size_t len = strlen(name);
    memcpy(address.sun_path, name, len);
    if (name[0] == '@') {
        address.sun_path[0] = 0;
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    }
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + 1);
}

static int bound(const char *name)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(fd >= 0);
    socklen_t len = name_to(name);
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, len), 0);
    return fd;
}

static void connect_to(int fd, const char *name)
{
    socklen_t len = name_to(name);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, len), 0);
}

static void say(int fd, const char *words)
{
    CHECK_EQ(send(fd, words, strlen(words), MSG_NOSIGNAL), strlen(words));
}

static void say_to(int fd, const char *words, const char *name)
{
    socklen_t len = name_to(name);
    CHECK_EQ(sendto(fd, words, strlen(words), 0, (struct sockaddr *)&address, len), strlen(words));
}

/* The next message is `words`, of whoever has `name`; "" is nobody's. */
static void hears_from(int fd, const char *words, const char *name)
{
    char found[256];
    struct sockaddr_un source;
    socklen_t len = sizeof source;
    memset(&source, 0, sizeof source);
    CHECK_EQ(recvfrom(fd, found, sizeof found, 0, (struct sockaddr *)&source, &len), strlen(words));
    CHECK(memcmp(found, words, strlen(words)) == 0);
    socklen_t wanted = *name ? name_to(name) : 0;
    CHECK_EQ(len, wanted);
    CHECK(wanted == 0 || memcmp(&source, &address, wanted) == 0);
}

static void peer_is(int fd, const char *name)
{
    struct sockaddr_un found;
    socklen_t len = sizeof found;
    CHECK_EQ(getpeername(fd, (struct sockaddr *)&found, &len), 0);
    socklen_t wanted = *name ? name_to(name) : 2;
    CHECK_EQ(len, wanted);
    CHECK(wanted == 2 || memcmp(&found, &address, wanted) == 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK(signal(SIGPIPE, SIG_IGN) == SIG_DFL);
    char box[64], words[64];
    /* Two hosts that are one have one set of abstract names: then it is to do without. */
    if (argc > 2)
        strcpy(box, "box");
    else
        snprintf(box, sizeof box, "@ulpm-box-%d", (int)getpid());

    int pair[2], packets[2], ended[2], deaf[2], cut[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ended), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, deaf), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, cut), 0);
    say(ended[1], "one");
    say(ended[1], "two");
    CHECK_EQ(close(ended[1]), 0);
    say(deaf[1], "from one that is gone");
    CHECK_EQ(close(deaf[1]), 0);
    say(cut[1], "last");
    CHECK_EQ(shutdown(cut[1], SHUT_WR), 0);

    /* Many to one: some with names, one without, one that is gone and has left its file, one gone altogether. */
    int inbox = bound(box), postbox = bound("postbox");
    int alice = bound("alice"), bob = bound("bob"), nobody = socket(AF_UNIX, SOCK_DGRAM, 0);
    connect_to(alice, box);
    connect_to(nobody, "postbox");
    int stranger = bound("stranger");
    say_to(stranger, "hello", "postbox");
    CHECK_EQ(close(stranger), 0);
    stranger = bound("ghost");
    say_to(stranger, "boo", "postbox");
    CHECK(close(stranger) == 0 && unlink("ghost") == 0);
    say(nobody, "anonymous");
    say_to(alice, "a letter", "postbox");
    /* Connected to itself, and one that hears of one sender only. */
    int self = bound("self");
    connect_to(self, "self");
    int picky = bound("picky");
    connect_to(picky, "bob");
    /* A listener for packets, with a path that was removed. */
    int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    socklen_t len = name_to("packets");
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, len), 0);
    CHECK_EQ(listen(listener, 3), 0);
    int client = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    connect_to(client, "packets");
    int server = accept(listener, NULL, NULL);
    CHECK(server >= 0 && unlink("packets") == 0);
    char *large = malloc(100000);
    CHECK(large != NULL);

    int to[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, to), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(close(to[1]), 0);
        long numbers[8];
        ssize_t n;
        while ((n = recv(to[0], numbers, sizeof numbers, 0)) > 0) {
            for (size_t k = 0; k < (size_t)n / sizeof *numbers; k++)
                numbers[k]++;
            /* The parent ends with two under way. */
            if (send(to[0], numbers, (size_t)n, MSG_NOSIGNAL) != n)
                break;
        }
        _exit(24);
    }
    CHECK_EQ(close(to[0]), 0);
    long numbers[8] = {0};
    CHECK_EQ(send(to[1], numbers, 8, 0), 8);
    CHECK_EQ(send(to[1], numbers, 64, 0), 64);

    for (long i = 1; i <= steps; i++) {
        snprintf(words, sizeof words, "first %ld", i);
        say(pair[0], words);
        say(packets[0], words);
        say(pair[0], "");
        say(pair[0], "second");
        say(packets[0], "second");
        memset(large, (int)i, 100000);
        CHECK_EQ(send(packets[1], large, 100000, 0), 100000);
        say(pair[1], "back");
        say(alice, words);
        say_to(bob, words, box);
        say(alice, "again");
        say(self, words);
        say_to(bob, words, "picky");
        say(client, words);
        guest_step(i);
        hears_from(pair[1], words, "");
        hears_from(pair[1], "", "");
        hears_from(pair[1], "second", "");
        hears_from(pair[0], "back", "");
        hears_from(packets[1], words, "");
        hears_from(packets[1], "second", "");
        CHECK_EQ(recv(packets[0], large, 100000, 0), 100000);
        for (size_t k = 0; k < 100000; k++)
            CHECK_EQ(large[k], (char)i);
        CHECK(recv(packets[0], large, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
        hears_from(inbox, words, "alice");
        hears_from(inbox, words, "bob");
        hears_from(inbox, "again", "alice");
        hears_from(self, words, "self");
        hears_from(picky, words, "bob");
        hears_from(server, words, "");
        /* Nobody else may write to it. */
        len = name_to("picky");
        CHECK(sendto(alice, "x", 1, 0, (struct sockaddr *)&address, len) == -1 && errno == EPERM);
        peer_is(alice, box);
        peer_is(nobody, "postbox");
        peer_is(self, "self");
        peer_is(picky, "bob");
        peer_is(pair[0], "");
        peer_is(client, "packets");
        CHECK(access("packets", F_OK) == -1 && errno == ENOENT);
        CHECK(access("ghost", F_OK) == -1 && errno == ENOENT);

        size_t count = i % 2 ? 1 : 8;
        CHECK_EQ(recv(to[1], numbers, sizeof numbers, 0), count * 8);
        CHECK_EQ(send(to[1], numbers, count * 8, 0), count * 8);
        CHECK_EQ(numbers[0], (i + 1) / 2);
    }
    hears_from(postbox, "hello", "stranger");
    hears_from(postbox, "boo", "ghost");
    hears_from(postbox, "anonymous", "");
    hears_from(postbox, "a letter", "alice");
    CHECK(recv(postbox, words, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    hears_from(ended[0], "one", "");
    hears_from(ended[0], "two", "");
    CHECK_EQ(recv(ended[0], words, 1, 0), 0);
    hears_from(cut[0], "last", "");
    CHECK_EQ(recv(cut[0], words, 1, 0), 0);
    say(cut[0], "back");
    hears_from(cut[1], "back", "");
    hears_from(deaf[0], "from one that is gone", "");
    CHECK(send(deaf[0], "x", 1, 0) == -1 && errno == ECONNREFUSED);
    CHECK_EQ(close(to[1]), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 24);
    guest_line("ok unix_messages %ld", numbers[0]);
    return 0;
}
