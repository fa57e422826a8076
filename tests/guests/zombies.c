/* Zombies with their status, orphans, stopped children, process groups and sessions: all are what they were. */
#include "guest.h"
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

static struct {
    atomic_int end;
    atomic_long orphan_beats, stopped_beats, group_beats, session_beats;
    atomic_int orphan, stopped, leader, follower, session, session_child;
} *shared;

/* Counts until the end, or until the first process is gone. */
static void beat(atomic_long *beats, pid_t root)
{
    pid_t me = getpid(), group = getpgrp(), session = getsid(0);
    while (!shared->end && kill(root, 0) == 0) {
        (*beats)++;
        guest_nap_us(2000);
        CHECK_EQ(getpid(), me);
        CHECK_EQ(getpgrp(), group);
        CHECK_EQ(getsid(0), session);
    }
}

static pid_t forked(void)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    return pid;
}

static void wait_past(atomic_long *beats, long count)
{
    while (*beats <= count)
        guest_nap_us(500);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    pid_t root = getpid();
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);

    /* Two zombies, one that left and one that was killed; they are waited for at the end. */
    pid_t left = forked();
    if (left == 0)
        _exit(7);
    pid_t killed = forked();
    if (killed == 0) {
        raise(SIGKILL);
        _exit(98);
    }
    siginfo_t info;
    CHECK_EQ(waitid(P_PID, (id_t)left, &info, WEXITED | WNOWAIT), 0);
    CHECK_EQ(waitid(P_PID, (id_t)killed, &info, WEXITED | WNOWAIT), 0);

    /* An orphan: its parent is dead and waited for. */
    pid_t parent = forked();
    if (parent == 0) {
        pid_t dead = getpid();
        if (forked() == 0) {
            shared->orphan = getpid();
            while (getppid() == dead)
                guest_nap_us(500);
            beat(&shared->orphan_beats, root);
            _exit(0);
        }
        while (shared->orphan == 0)
            guest_nap_us(500);
        _exit(3);
    }
    int status = 0;
    CHECK_EQ(waitpid(parent, &status, 0), parent);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);

    /* A stopped child; its parent has seen that it stopped. */
    pid_t stopped = forked();
    if (stopped == 0) {
        raise(SIGSTOP);
        beat(&shared->stopped_beats, root);
        _exit(4);
    }
    CHECK_EQ(waitpid(stopped, &status, WUNTRACED), stopped);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);

    /* One whose stop nobody has asked for. */
    pid_t quiet = forked();
    if (quiet == 0) {
        for (;;)
            pause();
    }
    CHECK_EQ(kill(quiet, SIGSTOP), 0);
    CHECK_EQ(waitid(P_PID, (id_t)quiet, &info, WSTOPPED | WNOWAIT), 0);

    /* A group of two whose leader is a zombie. */
    pid_t leader = forked();
    if (leader == 0) {
        CHECK_EQ(setpgid(0, 0), 0);
        shared->leader = getpid();
        while (shared->follower == 0)
            guest_nap_us(500);
        _exit(5);
    }
    while (shared->leader == 0)
        guest_nap_us(500);
    pid_t follower = forked();
    if (follower == 0) {
        CHECK_EQ(setpgid(0, leader), 0);
        shared->follower = getpid();
        beat(&shared->group_beats, root);
        _exit(6);
    }
    CHECK_EQ(waitid(P_PID, (id_t)leader, &info, WEXITED | WNOWAIT), 0);
    CHECK_EQ(info.si_status, 5);

    /* A session whose leader has a child in a group of its own. */
    pid_t session = forked();
    if (session == 0) {
        CHECK_EQ(setsid(), getpid());
        pid_t child = forked();
        if (child == 0) {
            CHECK_EQ(setpgid(0, 0), 0);
            shared->session_child = getpid();
            beat(&shared->session_beats, root);
            _exit(8);
        }
        shared->session = getpid();
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 8);
        _exit(9);
    }
    while (shared->session_child == 0 || shared->session == 0)
        guest_nap_us(500);
    wait_past(&shared->session_beats, 0);
    wait_past(&shared->group_beats, 0);

    pid_t own_group = getpgrp(), own_session = getsid(0);
    for (long i = 1; i <= steps; i++) {
        long orphan = shared->orphan_beats, group = shared->group_beats, sessions = shared->session_beats;
        guest_step(i);
        CHECK_EQ(getpid(), root);
        CHECK_EQ(getpgrp(), own_group);
        CHECK_EQ(getsid(0), own_session);
        /* Zombies are children still, and can be signalled. */
        CHECK_EQ(kill(left, 0), 0);
        CHECK_EQ(getpgid(follower), leader);
        CHECK_EQ(getpgid(leader), leader);
        CHECK_EQ(kill(-leader, 0), 0);
        CHECK_EQ(getsid(shared->session_child), session);
        CHECK_EQ(getpgid(shared->session_child), shared->session_child);
        CHECK_EQ(getsid(session), session);
        CHECK_EQ(getpgid(shared->orphan), own_group);
        CHECK_EQ(kill(shared->orphan, 0), 0);
        /* All beat on, but for the stopped one. */
        wait_past(&shared->orphan_beats, orphan);
        wait_past(&shared->group_beats, group);
        wait_past(&shared->session_beats, sessions);
        CHECK_EQ(shared->stopped_beats, 0);
        /* What was told is not told again; what was not told still is. */
        CHECK_EQ(waitpid(stopped, &status, WNOHANG | WUNTRACED), 0);
        CHECK_EQ(waitpid(stopped, &status, WNOHANG | WCONTINUED), 0);
        CHECK_EQ(waitpid(quiet, &status, WNOHANG | WCONTINUED), 0);
        if (i == steps / 2) {
            CHECK_EQ(waitpid(quiet, &status, WNOHANG | WUNTRACED), quiet);
            CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        }
        if (i >= steps / 2)
            CHECK_EQ(waitpid(quiet, &status, WNOHANG | WUNTRACED), 0);
    }

    CHECK_EQ(kill(quiet, SIGKILL), 0);
    CHECK_EQ(waitpid(quiet, &status, 0), quiet);
    CHECK(WIFSIGNALED(status));
    CHECK_EQ(kill(stopped, SIGCONT), 0);
    CHECK_EQ(waitpid(stopped, &status, WCONTINUED), stopped);
    CHECK(WIFCONTINUED(status));
    wait_past(&shared->stopped_beats, 0);
    shared->end = 1;
    CHECK_EQ(waitpid(left, &status, 0), left);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    CHECK_EQ(waitpid(killed, &status, 0), killed);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK_EQ(waitpid(stopped, &status, 0), stopped);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 4);
    /* By group: the leader first or the follower first, but both. */
    int seen = 0;
    for (int i = 0; i < 2; i++) {
        pid_t one = waitpid(-leader, &status, 0);
        CHECK(one == leader || one == follower);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (one == leader ? 5 : 6));
        seen |= one == leader ? 1 : 2;
    }
    CHECK_EQ(seen, 3);
    CHECK_EQ(waitid(P_PID, (id_t)session, &info, WEXITED), 0);
    CHECK(info.si_pid == session && info.si_code == CLD_EXITED && info.si_status == 9);
    CHECK(wait(NULL) == -1 && errno == ECHILD);
    guest_line("ok zombies");
    return 0;
}
