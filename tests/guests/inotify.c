/* What inotify watches: numbers with gaps, a directory, links, files that are renamed, replaced or deleted, watches for one
 * event, instances that are shared, in epoll and waited for. What is told must be true, or that something was lost. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int unread(int fd)
{
    int bytes = -1;
    CHECK_EQ(ioctl(fd, FIONREAD, &bytes), 0);
    return bytes;
}

/* Reads all there is: only events with these bits of this watch and name, or that something was lost; 1 if either is told. */
static int told(int fd, int wd, uint32_t mask, const char *name)
{
    int found = 0;
    while (unread(fd) > 0) {
        _Alignas(struct inotify_event) char buffer[8192];
        ssize_t len = read(fd, buffer, sizeof buffer);
        CHECK(len >= (ssize_t)sizeof(struct inotify_event));
        for (ssize_t at = 0; at < len;) {
            struct inotify_event *event = (struct inotify_event *)(buffer + at);
            at += (ssize_t)(sizeof *event + event->len);
            found = 1;
            if (event->mask & IN_Q_OVERFLOW) {
                CHECK_EQ(event->wd, -1);
                continue;
            }
            CHECK_EQ(event->wd, wd);
            CHECK((event->mask & mask) != 0);
            CHECK_EQ(event->mask & ~(mask | IN_ISDIR), 0);
            CHECK_EQ(strcmp(event->len > 0 ? event->name : "", name), 0);
        }
    }
    return found;
}

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    CHECK_EQ(close(fd), 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(mkdir("dir", 0700), 0);
    CHECK_EQ(mkdir("dir/sub", 0700), 0);
    put("dir/sub/file", "1");
    put("other", "1");
    put("before", "1");
    put("gone", "1");
    put("oneshot", "1");
    put("raw", "1");
    CHECK_EQ(symlink("other", "link"), 0);

    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(inotify_add_watch(fd, "dir", IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_EXCL_UNLINK), 1);
    /* By a path that means nothing later. */
    CHECK_EQ(chdir("dir"), 0);
    CHECK_EQ(inotify_add_watch(fd, "../dir/./sub/file", IN_MODIFY), 2);
    CHECK_EQ(chdir(".."), 0);
    /* Numbers that are free again. */
    for (int wd = 3; wd <= 40; wd++) {
        CHECK_EQ(inotify_add_watch(fd, "other", IN_ATTRIB), wd);
        CHECK_EQ(inotify_rm_watch(fd, wd), 0);
    }
    char ignored[8192];
    while (unread(fd) > 0)
        CHECK(read(fd, ignored, sizeof ignored) > 0);
    CHECK_EQ(inotify_add_watch(fd, "link", IN_MODIFY), 41);
    CHECK_EQ(inotify_add_watch(fd, "link", IN_ATTRIB | IN_DONT_FOLLOW), 42);
    /* Renamed, and open. */
    CHECK_EQ(inotify_add_watch(fd, "before", IN_MODIFY), 43);
    int renamed = open("before", O_WRONLY | O_APPEND | O_CLOEXEC);
    CHECK(renamed >= 0);
    CHECK_EQ(rename("before", "after"), 0);
    /* Deleted, and open. */
    CHECK_EQ(inotify_add_watch(fd, "gone", IN_MODIFY), 44);
    int gone = open("gone", O_RDWR | O_CLOEXEC);
    CHECK_EQ(unlink("gone"), 0);
    /* For one event. */
    int once = inotify_add_watch(fd, "oneshot", IN_MODIFY | IN_ONESHOT);
    CHECK_EQ(once, 45);
    /* Not through libc, and open. */
    int raw = open("raw", O_WRONLY | O_APPEND | O_CLOEXEC);
    CHECK_EQ(syscall(SYS_inotify_add_watch, fd, "raw", IN_MODIFY), 46);
    CHECK_EQ(inotify_add_watch(fd, "link", IN_ACCESS | IN_MASK_ADD), 41);

    /* One that waits, shared with a child which answers. */
    int waiting = inotify_init();
    CHECK_EQ(inotify_add_watch(waiting, "dir/sub", IN_CLOSE_WRITE), 1);
    int answers[2];
    CHECK_EQ(pipe(answers), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(close(answers[0]), 0);
        for (;;) {
            _Alignas(struct inotify_event) char buffer[8192];
            CHECK(read(waiting, buffer, sizeof buffer) >= (ssize_t)sizeof(struct inotify_event));
            struct inotify_event *event = (struct inotify_event *)buffer;
            CHECK(event->mask & IN_Q_OVERFLOW || (event->wd == 1 && event->mask == IN_CLOSE_WRITE));
            /* After an overflow it is to look for itself, and finds "end" when it is there. */
            if (access("dir/sub/end", F_OK) == 0)
                _exit(0);
            if (write(answers[1], "a", 1) != 1)
                _exit(96);
        }
    }
    CHECK_EQ(close(answers[1]), 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
    CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);

    for (long i = 1; i <= steps; i++) {
        /* Waits there while the step is waited for, in which most checkpoints come. */
        put("dir/kept", "1");
        guest_step(i);
        CHECK(told(fd, 1, IN_CREATE, "kept"));
        CHECK_EQ(unlink("dir/kept"), 0);
        CHECK(told(fd, 1, IN_DELETE, "kept"));
        CHECK_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
        CHECK_EQ(fcntl(waiting, F_GETFL) & O_NONBLOCK, 0);

        put("dir/new", "1");
        CHECK_EQ(epoll_wait(epoll, &event, 1, 0), 1);
        CHECK_EQ(event.data.u64, 7);
        CHECK(told(fd, 1, IN_CREATE, "new"));
        CHECK_EQ(epoll_wait(epoll, &event, 1, 0), unread(fd) > 0);
        CHECK_EQ(unlink("dir/new"), 0);
        CHECK(told(fd, 1, IN_DELETE, "new"));
        put("dir/sub/file", "2");
        CHECK(told(fd, 2, IN_MODIFY, ""));
        put("other", "2");
        CHECK(told(fd, 41, IN_MODIFY, ""));
        CHECK_EQ(utimensat(AT_FDCWD, "link", NULL, AT_SYMLINK_NOFOLLOW), 0);
        CHECK(told(fd, 42, IN_ATTRIB, ""));
        CHECK_EQ(write(renamed, "2", 1), 1);
        CHECK(told(fd, 43, IN_MODIFY, ""));
        CHECK_EQ(pwrite(gone, "2", 1, 0), 1);
        CHECK(told(fd, 44, IN_MODIFY, ""));
        CHECK_EQ(write(raw, "2", 1), 1);
        CHECK(told(fd, 46, IN_MODIFY, ""));
        if (i % 20 == 0) {
            put("oneshot", "2");
            CHECK(told(fd, once, IN_MODIFY | IN_IGNORED, ""));
            put("oneshot", "3");
            told(fd, -1, 0, "");
            int next = inotify_add_watch(fd, "oneshot", IN_MODIFY | IN_ONESHOT);
            CHECK(next > 0 && next != 41 && next != 46);
            once = next;
        }
        /* Nothing else is told; and a number that is free is not known. */
        CHECK_EQ(inotify_rm_watch(fd, 40), -1);

        put("dir/sub/for-child", "2");
        char answer;
        CHECK_EQ(read(answers[0], &answer, 1), 1);
        /* Several, after an overflow: what is left is from before. */
        int bytes = 0;
        CHECK_EQ(ioctl(answers[0], FIONREAD, &bytes), 0);
        while (bytes-- > 0)
            CHECK_EQ(read(answers[0], &answer, 1), 1);
    }
    put("dir/sub/end", "1");
    char answer;
    while (read(answers[0], &answer, 1) == 1) {
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    guest_line("ok inotify");
    return 0;
}
