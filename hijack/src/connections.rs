//! TCP connections of a process that ends with its checkpoint, or goes on elsewhere.
//!
//! What becomes of them is noted while they are saved. The list lies in the library's memory, so a restarted process
//! has it too: connections that were repaired (TCP_REPAIR) are silent until it thaws.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use ulpm_sys::socket::{self, so, tcp};

const MOST: usize = 4096;

/// The level of TCP's options.
const TCP: i32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Its other end is in the job too, and ends with it: a reset that nobody sees leaves no TIME_WAIT behind, in
    /// which the kernel would keep a listener's port from the next restart.
    Inside,
    /// Its other end is not to notice. The value is the program's SO_REUSEADDR, which repair mode forgets; -1 where
    /// another process puts that back.
    Repaired(i32),
}

struct List(UnsafeCell<[(i32, How); MOST]>);
// SAFETY: used by the manager only, while it holds every other thread.
unsafe impl Sync for List {}
static LIST: List = List(UnsafeCell::new([(-1, How::Inside); MOST]));
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Begins a capture.
pub(crate) fn clear() {
    COUNT.store(0, Ordering::Relaxed);
}

/// The connection at `fd` has its other end in the job.
pub(crate) fn note_inside(fd: i32) {
    // Where there are too many, some linger for a minute.
    let _ = note(fd, How::Inside);
}

/// The connection at `fd` was saved for a repair. False: there are too many.
pub(crate) fn note_repaired(fd: i32, reuse: i32) -> bool {
    note(fd, How::Repaired(reuse))
}

fn note(fd: i32, how: How) -> bool {
    let count = COUNT.load(Ordering::Relaxed);
    // SAFETY: see `List`.
    let Some(place) = (unsafe { &mut *LIST.0.get() }).get_mut(count) else { return false };
    *place = (fd, how);
    COUNT.store(count + 1, Ordering::Relaxed);
    true
}

/// Calls `each` with a duplicate of each descriptor that was noted.
fn for_each(mut each: impl FnMut(i32, How)) {
    let count = COUNT.load(Ordering::Relaxed).min(MOST);
    if count == 0 {
        return;
    }
    let Ok(pidfd) = ulpm_sys::pidfd_open(ulpm_sys::getpid()) else { return };
    // SAFETY: see `List`.
    for &(fd, how) in unsafe { &(&*LIST.0.get())[..count] } {
        if let Ok(ours) = ulpm_sys::pidfd_getfd(pidfd, fd) {
            each(ours, how);
            ulpm_sys::close(ours);
        }
    }
    ulpm_sys::close(pidfd);
}

fn set(fd: i32, level: i32, name: i32, value: i32) {
    let _ = socket::set_option(fd, level, name, &value.to_le_bytes());
}

/// Whether nothing reaches a connection, because it was saved for a repair or made by one.
fn is_hushed(fd: i32) -> bool {
    let mut filter = [0; 8];
    socket::get_option(fd, so::SOL_SOCKET, so::FILTER, &mut []) == Ok(1)
        && socket::filter(fd, &mut filter).is_ok()
        && filter == socket::DROP_ALL
}

/// The process ends next.
pub(crate) fn end() {
    for_each(|ours, how| match how {
        How::Inside => {
            // struct linger: on, without time.
            let linger = [1, 0, 0, 0, 0, 0, 0, 0];
            let _ = socket::set_option(ours, so::SOL_SOCKET, so::LINGER, &linger);
        }
        // Nothing is sent when it is closed.
        How::Repaired(_) if is_hushed(ours) => set(ours, TCP, tcp::REPAIR, tcp::REPAIR_ON),
        // Another process has found that it cannot be repaired.
        How::Repaired(_) => {}
    });
}

/// The process goes on: after a restart, or because it was not handed over after all.
///
/// Each process does this for all that it holds, so that none is too early for another's.
pub(crate) fn go_on() {
    for_each(|ours, how| {
        let How::Repaired(reuse) = how else { return };
        if is_hushed(ours) {
            set(ours, so::SOL_SOCKET, so::DETACH_FILTER, 0);
        }
        if socket::get_int_option(ours, TCP, tcp::REPAIR) == Ok(tcp::REPAIR_ON) {
            // A window probe tells the other end that somebody is there.
            set(ours, TCP, tcp::REPAIR, tcp::REPAIR_OFF);
        }
        if reuse >= 0 {
            set(ours, so::SOL_SOCKET, so::REUSEADDR, reuse);
        }
    });
    clear();
}
