//! Objects that tell of events.

use ulpm_tests::Program;

use crate::whole_life;

whole_life! {
    eventfd => Program::guest("eventfd", 200);
    epoll => Program::guest("epoll", 200);
    timerfd => Program::guest("timerfd", 200);
    signalfd => Program::guest("signalfd", 200);
    inotify => Program::guest("inotify", 200).changes_files();
    pidfd => Program::guest("pidfd", 200);
}
