/* Pseudo-terminals of its own: how they are set, what is in them, who has them as controlling terminal, and who is in
 * the foreground. Everything is looked at in every step. */
#include "guest.h"

#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

/* One that nobody reads: lines, an unfinished one, output, and a size. */
static int quiet_master, quiet_slave;
/* The same in raw mode, with output that the stop key has stopped. */
static int raw_master, raw_slave;
/* Its slave was closed. */
static int closed_master;
/* Its master was. */
static int orphan_slave;
/* Its slave was never opened. */
static int fresh_master;
/* In packet mode. */
static int packet_master, packet_slave;
/* The same open file, which has O_CLOEXEC as it was opened by ioctl(2): with and without the flag of its own. */
static int peer, closed_by_exec;
static struct termios quiet_modes;

static int readable(int fd)
{
    struct pollfd poll_fd = {fd, POLLIN, 0};
    CHECK(poll(&poll_fd, 1, 0) >= 0);
    return (poll_fd.revents & POLLIN) != 0;
}

static void wait_readable(int fd, int wanted)
{
    for (int tries = 0; readable(fd) != wanted; tries++) {
        CHECK(tries < 2000);
        guest_nap_us(1000);
    }
}

static void expect(int fd, const char *wanted)
{
    char found[256];
    size_t len = strlen(wanted), done = 0;
    wait_readable(fd, 1);
    while (done < len) {
        ssize_t n = read(fd, found + done, len - done);
        CHECK(n > 0);
        done += (size_t)n;
        if (done < len)
            wait_readable(fd, 1);
    }
    CHECK(memcmp(found, wanted, len) == 0);
}

static void send_text(int fd, const char *text)
{
    CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
}

static void make(int *master, int *slave)
{
    *master = posix_openpt(O_RDWR | O_NOCTTY);
    CHECK(*master >= 0 && grantpt(*master) == 0 && unlockpt(*master) == 0);
    if (slave != NULL) {
        *slave = open(ptsname(*master), O_RDWR | O_NOCTTY);
        CHECK(*slave >= 0);
    }
}

static void fill_quiet(void)
{
    send_text(quiet_master, "first\nsecond\nthi");
    send_text(quiet_slave, "said\n");
}

static void make_all(void)
{
    make(&quiet_master, &quiet_slave);
    struct winsize size = {43, 132, 7, 9};
    CHECK(ioctl(quiet_slave, TIOCSWINSZ, &size) == 0);
    CHECK(tcgetattr(quiet_slave, &quiet_modes) == 0);
    quiet_modes.c_lflag &= ~(tcflag_t)(ECHO | ECHONL);
    quiet_modes.c_cc[VINTR] = 7;
    quiet_modes.c_cc[VEOL] = ';';
    CHECK(cfsetspeed(&quiet_modes, B19200) == 0);
    CHECK(tcsetattr(quiet_slave, TCSANOW, &quiet_modes) == 0);
    fill_quiet();

    make(&raw_master, &raw_slave);
    struct termios raw;
    CHECK(tcgetattr(raw_slave, &raw) == 0);
    cfmakeraw(&raw);
    raw.c_iflag |= IXON;
    CHECK(tcsetattr(raw_slave, TCSANOW, &raw) == 0);
    send_text(raw_master, "\x04\x03\n\x16y");
    send_text(raw_slave, "before");
    send_text(raw_master, "\x13");
    CHECK(fcntl(raw_slave, F_SETFL, O_RDWR | O_NONBLOCK) == 0);

    make(&closed_master, &orphan_slave);
    send_text(orphan_slave, "left");
    CHECK(close(orphan_slave) == 0);

    int master;
    make(&master, &orphan_slave);
    CHECK(close(master) == 0);

    fresh_master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    CHECK(fresh_master >= 0);

    make(&packet_master, &packet_slave);
    int on = 1;
    CHECK(ioctl(packet_master, TIOCPKT, &on) == 0);
    send_text(packet_slave, "packet");
    CHECK(ioctl(packet_slave, TIOCEXCL) == 0);

    peer = ioctl(quiet_master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    CHECK(peer >= 0 && fcntl(peer, F_SETFD, 0) == 0);
    closed_by_exec = fcntl(peer, F_DUPFD_CLOEXEC, 0);
    CHECK(closed_by_exec >= 0);
}

static void check_all(void)
{
    struct winsize size;
    struct termios modes;
    CHECK(ioctl(quiet_master, TIOCGWINSZ, &size) == 0);
    CHECK(size.ws_row == 43 && size.ws_col == 132 && size.ws_xpixel == 7 && size.ws_ypixel == 9);
    CHECK(tcgetattr(quiet_slave, &modes) == 0);
    CHECK(memcmp(&modes, &quiet_modes, sizeof modes) == 0);
    CHECK_EQ(cfgetospeed(&modes), B19200);
    CHECK(isatty(quiet_slave) && ttyname(quiet_slave) != NULL);
    CHECK(strcmp(ttyname(quiet_slave), ptsname(quiet_master)) == 0);
    expect(quiet_master, "said\r\n");
    char line[64];
    CHECK_EQ(read(quiet_slave, line, sizeof line), 6);
    CHECK(memcmp(line, "first\n", 6) == 0);
    CHECK_EQ(read(quiet_slave, line, sizeof line), 7);
    CHECK(!readable(quiet_slave));
    /* What is unfinished is still to be edited, and ends at a character that was chosen. */
    send_text(quiet_master, "\x7frd;");
    expect(quiet_slave, "thrd;");
    fill_quiet();

    /* Stopped output is stopped; the start key lets it go on. */
    CHECK(write(raw_slave, "x", 1) < 0 && errno == EAGAIN);
    send_text(raw_master, "\x11");
    for (int tries = 0; write(raw_slave, "x", 1) < 0; tries++) {
        CHECK(errno == EAGAIN && tries < 2000);
        guest_nap_us(1000);
    }
    expect(raw_master, "beforex");
    expect(raw_slave, "\x04\x03\n\x16y");
    CHECK(!readable(raw_slave) && !readable(raw_master));
    send_text(raw_master, "\x04\x03\n\x16y");
    send_text(raw_slave, "before");
    send_text(raw_master, "\x13");
    for (int tries = 0;; tries++) {
        struct pollfd stopped = {raw_slave, POLLOUT, 0};
        CHECK(poll(&stopped, 1, 0) >= 0);
        if ((stopped.revents & POLLOUT) == 0)
            break;
        CHECK(tries < 2000);
        guest_nap_us(1000);
    }

    struct pollfd hung = {closed_master, POLLIN, 0};
    CHECK(poll(&hung, 1, 0) == 1 && (hung.revents & POLLHUP) != 0);
    expect(closed_master, "left");
    CHECK(read(closed_master, line, 1) < 0 && errno == EIO);
    int slave = open(ptsname(closed_master), O_RDWR | O_NOCTTY);
    CHECK(slave >= 0);
    send_text(slave, "left");
    CHECK(close(slave) == 0);

    CHECK_EQ(read(orphan_slave, line, 1), 0);
    CHECK(write(orphan_slave, line, 1) < 0 && errno == EIO);
    CHECK(!isatty(orphan_slave));

    int locked = 0;
    CHECK(ioctl(fresh_master, TIOCGPTLCK, &locked) == 0 && locked == 1);
    struct pollfd fresh = {fresh_master, POLLIN, 0};
    CHECK(poll(&fresh, 1, 0) == 0);
    CHECK_EQ(fcntl(fresh_master, F_GETFD), FD_CLOEXEC);

    int on = 0;
    CHECK(ioctl(packet_master, TIOCGPKT, &on) == 0 && on == 1);
    CHECK_EQ(read(packet_master, line, sizeof line), 7);
    CHECK(memcmp(line, "\0packet", 7) == 0);
    CHECK(ioctl(packet_slave, TIOCGEXCL, &on) == 0 && on == 1);
    send_text(packet_slave, "packet");
    wait_readable(packet_master, 1);

    CHECK_EQ(fcntl(quiet_slave, F_GETFD), 0);
    CHECK_EQ(fcntl(quiet_slave, F_GETFL) & (O_ACCMODE | O_CLOEXEC), O_RDWR);
    CHECK_EQ(fcntl(peer, F_GETFD), 0);
    CHECK_EQ(fcntl(peer, F_GETFL) & (O_ACCMODE | O_CLOEXEC), O_RDWR | O_CLOEXEC);
    CHECK_EQ(fcntl(closed_by_exec, F_GETFD), FD_CLOEXEC);
}

/* By ioctl(2), and by what libc makes of it. */
static void check_ids(int tty, pid_t group, pid_t leader)
{
    pid_t found = -1;
    CHECK_EQ(tcgetpgrp(tty), group);
    CHECK(ioctl(tty, TIOCGPGRP, &found) == 0);
    CHECK_EQ(found, group);
    CHECK_EQ(tcgetsid(tty), leader);
    CHECK(ioctl(tty, TIOCGSID, &found) == 0);
    CHECK_EQ(found, leader);
}

static volatile sig_atomic_t interrupts;

static void interrupted(int signal)
{
    (void)signal;
    interrupts++;
}

/* A session of its own on a terminal, with a group in the foreground that is not the leader's. */
static int foreground_group(void)
{
    char line[64];
    CHECK(signal(SIGINT, interrupted) != SIG_ERR);
    CHECK(setpgid(0, 0) == 0);
    while (tcgetpgrp(STDIN_FILENO) != getpgrp())
        guest_nap_us(1000);
    send_text(STDOUT_FILENO, "ready\n");
    for (;;) {
        ssize_t n = read(STDIN_FILENO, line, sizeof line);
        if (n < 0 && errno == EINTR)
            continue;
        CHECK(n > 0);
        CHECK_EQ(tcgetpgrp(STDIN_FILENO), getpgrp());
        if (memcmp(line, "end", 3) == 0)
            return 7;
        char answer[64];
        int len = snprintf(answer, sizeof answer, "%.*s %d\n", (int)n - 1, line, (int)interrupts);
        CHECK_EQ(write(STDOUT_FILENO, answer, (size_t)len), len);
    }
}

static int session(void)
{
    CHECK(signal(SIGTTOU, SIG_IGN) != SIG_ERR);
    /* The controlling terminal by its own name. */
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
    CHECK(tty >= 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(foreground_group());
    CHECK(setpgid(child, child) == 0 || errno == EACCES);
    CHECK(tcsetpgrp(tty, child) == 0);
    for (;;) {
        int status;
        pid_t ended = waitpid(child, &status, WNOHANG);
        CHECK(ended >= 0);
        CHECK(strcmp(ctermid(NULL), "/dev/tty") == 0);
        if (ended == child) {
            CHECK_EQ(tcgetsid(tty), getpid());
            CHECK(WIFEXITED(status));
            return WEXITSTATUS(status);
        }
        /* Given to whom it belongs already. */
        CHECK(ioctl(tty, TIOCSPGRP, &child) == 0);
        check_ids(tty, child, getpid());
        check_ids(STDIN_FILENO, child, getpid());
        guest_nap_us(2000);
    }
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    make_all();
    int master;
    struct winsize size = {24, 80, 0, 0};
    struct termios modes = quiet_modes;
    modes.c_cc[VINTR] = 3;
    modes.c_cc[VEOL] = 0;
    pid_t leader = forkpty(&master, NULL, &modes, &size);
    CHECK(leader >= 0);
    if (leader == 0)
        _exit(session());
    expect(master, "ready\r\n");
    for (long step = 1; step <= steps; step++) {
        guest_step(step);
        check_all();
        CHECK_EQ(tcgetsid(master), leader);
        pid_t found = -1;
        CHECK(ioctl(master, TIOCGSID, &found) == 0);
        CHECK_EQ(found, leader);
        char line[64], wanted[64];
        /* The key goes to the group in the foreground, and nobody else. */
        send_text(master, "\x03");
        snprintf(line, sizeof line, "line %ld\n", step);
        for (int tries = 0;; tries++) {
            send_text(master, line);
            snprintf(wanted, sizeof wanted, "line %ld %ld\r\n", step, step);
            char found[64];
            wait_readable(master, 1);
            ssize_t n = 0;
            do {
                ssize_t more = read(master, found + n, sizeof found - 1 - (size_t)n);
                CHECK(more > 0);
                n += more;
            } while (found[n - 1] != '\n');
            found[n] = 0;
            if (strcmp(found, wanted) == 0)
                break;
            CHECK(tries < 1000);
            guest_nap_us(1000);
        }
    }
    send_text(master, "end\n");
    int status;
    CHECK(waitpid(leader, &status, 0) == leader);
    CHECK(WIFEXITED(status));
    guest_line("ok %d", WEXITSTATUS(status));
    return 0;
}
