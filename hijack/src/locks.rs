//! File locks and leases, which a restarted process takes again.
//!
//! They are noted while the process is saved, and taken at the first thaw: not before, for until then the process
//! that was moved may hold them on a file system that both hosts see. No process of the job goes on before all
//! have theirs, or one that waited for a lock would get it first.
//!
//! A lock of fcntl(2) belongs to the process's table of descriptors, which the manager does not have. So one of
//! the stopped threads takes them.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use ulpm_image::meta::{Lock, lock_kind as kind};
use ulpm_protocol::table::Table;
use ulpm_sys::fmt::Text;
use ulpm_sys::{Errno, Timespec};

use crate::process::PerProcess;
use crate::threads;

/// Locks that a process can hold to be saved.
pub(crate) const MAX: usize = 1024;

/// How long others may hold what was ours: the process that was moved ends meanwhile.
const PATIENCE_NS: i64 = 60_000_000_000;
/// How long to wait before a lock is tried again.
const PAUSE_NS: i64 = 1_000_000;

/// A descriptor and what is held through it.
#[derive(Clone, Copy)]
struct Held {
    fd: i32,
    kind: u32,
    write: bool,
    start: u64,
    end: u64,
    signal: u32,
}

struct List(UnsafeCell<[Held; MAX]>);
// SAFETY: written by the manager in a freeze, read in a restarted process by the one thread that `TAKEN` elects.
unsafe impl Sync for List {}
static LIST: List = List(UnsafeCell::new(
    [Held { fd: 0, kind: 0, write: false, start: 0, end: 0, signal: 0 }; MAX],
));
static LEN: AtomicUsize = AtomicUsize::new(0);
/// 1 once a thread has begun to take the locks.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Forgets what an earlier checkpoint has noted.
pub(crate) fn forget() {
    LEN.store(0, Ordering::Relaxed);
}

/// Notes a lock; false if there are too many.
pub(crate) fn note(fd: i32, lock: &Lock) -> bool {
    let index = LEN.load(Ordering::Relaxed);
    // SAFETY: see `List`.
    let Some(place) = (unsafe { &mut *LIST.0.get() }).get_mut(index) else { return false };
    *place = Held {
        fd,
        kind: lock.kind,
        write: lock.write,
        start: lock.start,
        end: lock.end,
        signal: lock.signal,
    };
    LEN.store(index + 1, Ordering::Relaxed);
    true
}

/// Says that this process has locks to take. Before any process of the job may go on.
pub(crate) fn announce(table: &Table) {
    TAKEN.store(0, Ordering::Relaxed);
    if LEN.load(Ordering::Relaxed) != 0 {
        table.header().without_locks.fetch_add(1, Ordering::AcqRel);
    }
}

/// Has a thread take the locks, and waits until every process of the job has its own. On the manager, at the first
/// thaw.
pub(crate) fn take_all(own: &PerProcess, table: &Table) {
    let until = ulpm_sys::monotonic_ns() + PATIENCE_NS + PATIENCE_NS / 4;
    let missing = &table.header().without_locks;
    if LEN.load(Ordering::Relaxed) != 0 {
        if !threads::have_locks_taken(own, until) {
            crate::die("no thread could take the file locks of the restarted process");
        }
        missing.fetch_sub(1, Ordering::AcqRel);
        ulpm_sys::futex_wake_all(missing);
    }
    loop {
        let count = missing.load(Ordering::Acquire);
        if count == 0 {
            return;
        }
        let left = until - ulpm_sys::monotonic_ns();
        if left <= 0 {
            crate::die("another process of the job could not take its file locks");
        }
        let _ = ulpm_sys::futex_wait(missing, count, Some(Timespec::from_ns(left)));
    }
}

/// Takes the locks, if no other thread does. On a stopped thread.
pub(crate) fn take() {
    if TAKEN.swap(1, Ordering::AcqRel) != 0 {
        return;
    }
    let until = ulpm_sys::monotonic_ns() + PATIENCE_NS;
    // SAFETY: see `List`.
    let held = unsafe { &*LIST.0.get() };
    for lock in &held[..LEN.load(Ordering::Relaxed).min(MAX)] {
        loop {
            match try_to_take(lock) {
                Ok(()) => break,
                Err(Errno::AGAIN | Errno::ACCES) if ulpm_sys::monotonic_ns() < until => {
                    let pause = AtomicU32::new(0);
                    let _ = ulpm_sys::futex_wait(&pause, 0, Some(Timespec::from_ns(PAUSE_NS)));
                }
                Err(errno) => lost(lock, errno),
            }
        }
    }
}

fn try_to_take(lock: &Held) -> Result<(), Errno> {
    match lock.kind {
        kind::FLOCK => ulpm_sys::flock(lock.fd, lock.write),
        kind::LEASE => {
            if lock.signal != 0 {
                ulpm_sys::fcntl(lock.fd, ulpm_sys::F_SETSIG, lock.signal as usize)?;
            }
            // F_RDLCK and F_WRLCK
            ulpm_sys::fcntl(lock.fd, ulpm_sys::F_SETLEASE, usize::from(lock.write)).map(drop)
        }
        other => {
            let of_description = other == kind::DESCRIPTION;
            ulpm_sys::lock_range(lock.fd, of_description, lock.write, [lock.start, lock.end])
        }
    }
}

fn lost(lock: &Held, errno: Errno) -> ! {
    let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{}", lock.fd));
    let mut buffer = [0; 4096];
    let path = ulpm_sys::readlink(link.c_str(), &mut buffer).unwrap_or_default();
    let text = Text::<4352>::of(format_args!(
        "cannot take the lock on {} (descriptor {}) again, which another program may hold: {errno}",
        path.escape_ascii(),
        lock.fd
    ));
    crate::die(core::str::from_utf8(text.bytes()).unwrap_or("cannot take a file lock again"))
}
