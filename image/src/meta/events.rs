//! Objects that tell of events: eventfd, timerfd, signalfd, pidfd, and what epoll watches.

use alloc::vec::Vec;

use crate::wire::record;

record! {
/// A counter of eventfd(2).
EventCounter {
    /// `Description::id`.
    description: u64,
    /// The count.
    count: u64,
    /// EFD_SEMAPHORE.
    semaphore: bool,
}
}

record! {
/// A timer of timerfd_create(2).
EventTimer {
    /// `Description::id`.
    description: u64,
    /// CLOCK_….
    clock: i32,
    /// Expirations that were not read yet.
    ticks: u64,
    /// TFD_TIMER_… flags; with TFD_TIMER_ABSTIME `value_ns` is a date, else the time that was left.
    flags: i32,
    /// When it expires next; 0 if it is not armed.
    value_ns: i64,
    /// Interval.
    interval_ns: i64,
}
}

record! {
/// Signals of signalfd(2).
EventSignals {
    /// `Description::id`.
    description: u64,
    /// Their set.
    mask: u64,
}
}

record! {
/// A process of pidfd_open(2).
EventProcess {
    /// `Description::id`.
    description: u64,
    /// Its id as the program knows it; -1 if it has ended and was waited for.
    pid: i32,
}
}

record! {
/// What an epoll instance watches: one registration.
Interest {
    /// `Description::id` of the instance.
    epoll: u64,
    /// `Description::id` of what it watches.
    target: u64,
    /// The descriptor number that was given when it was registered. It names the registration; the
    /// program may have closed it since, or have something else there.
    fd: i32,
    /// EPOLL… bits, as the kernel keeps them.
    events: u32,
    /// The program's word.
    data: u64,
}
}

record! {
/// An instance of inotify_init(2).
Notifier {
    /// `Description::id`.
    description: u64,
    /// Whether it had events that were not read. They are not saved: after a restart it says that events
    /// were lost (IN_Q_OVERFLOW).
    unread: bool,
}
}

record! {
/// A file that is watched by inotify.
FileWatch {
    /// `Description::id` of the instance.
    notifier: u64,
    /// The number by which the program knows the watch.
    wd: i32,
    /// IN_… bits, as the kernel keeps them.
    mask: u32,
    /// Where the file is; empty if only `target` leads to it.
    path: Vec<u8>,
    /// Whether it is the symbolic link at `path`, and not what that leads to.
    link: bool,
    /// `Description::id` of a file without a name; 0 for one that has a path.
    target: u64,
    /// How long the file was; 0 unless `mtime` is known.
    len: u64,
    /// Its time of change, in seconds and nanoseconds; 0 if it is not known.
    mtime: [i64; 2],
}
}
