//! Who is told of a message in a POSIX message queue (mq_notify), and the names of the job's queues.
//!
//! A queue tells which process has asked, and for which signal, but not the value that comes with it. So what was
//! asked for is kept here, beside what the kernel says; and what was waited for when the process was saved, it asks
//! for again when it is restarted.
//!
//! For a new thread (`SIGEV_THREAD`) libc has a thread of its own wait on a netlink socket, and gives the kernel the
//! number of that and 32 bytes to be sent there: the function, its argument, a copy of the thread's attributes, and room
//! for what has happened (sysdeps/unix/sysv/linux/mq_notify.c). Without attributes all of it is known.
//!
//! Whoever asked is not told any more when his process closes a descriptor of that queue, be it another one. The
//! manager's are therefore closed by another process, see [`close`]; and who asks waits until the manager has left the
//! process's descriptors.

use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use ulpm_sys::mq::{self, Notice};
use ulpm_sys::socket::{self, so};
use ulpm_sys::{Errno, FileStatus, SigEvent, oflag};

use crate::process::PerProcess;
use crate::{arch, threads};

/// Queues of which a process can be told at a time, and that a process can save.
const MAX_QUEUES: usize = 64;

/// What the process has asked for last, for each queue.
#[derive(Debug)]
struct Asked {
    inode: AtomicU64,
    value: AtomicU64,
    signo: AtomicI32,
    notify: AtomicI32,
    /// Of a thread that is to be told; 0 for none that is known.
    function: AtomicU64,
}
static ASKED: [Asked; MAX_QUEUES] = [const {
    Asked {
        inode: AtomicU64::new(0),
        value: AtomicU64::new(0),
        signo: AtomicI32::new(0),
        notify: AtomicI32::new(0),
        function: AtomicU64::new(0),
    }
}; MAX_QUEUES];

/// Takes note of what the process has asked of a queue. On any thread, which is not stopped meanwhile.
pub(crate) fn asked(inode: u64, event: &SigEvent, function: Option<u64>) {
    let place = |wanted| ASKED.iter().find(|asked| asked.inode.load(Ordering::Relaxed) == wanted);
    // Without room a checkpoint says that it does not know.
    let Some(asked) = place(inode).or_else(|| place(0)).or_else(|| ASKED.first()) else { return };
    asked.inode.store(inode, Ordering::Relaxed);
    asked.value.store(event.value, Ordering::Relaxed);
    asked.signo.store(event.signo, Ordering::Relaxed);
    asked.notify.store(event.notify, Ordering::Relaxed);
    asked.function.store(function.unwrap_or(0), Ordering::Relaxed);
}

/// What the process has asked for, if it is what the queue says.
pub(crate) fn known(inode: u64, notice: Notice) -> Option<SigEvent> {
    let asked = ASKED.iter().find(|asked| asked.inode.load(Ordering::Relaxed) == inode)?;
    let [signo, notify] = [&asked.signo, &asked.notify].map(|field| field.load(Ordering::Relaxed));
    let is_it = notify == notice.notify && (notice.signo == 0 || signo == notice.signo);
    is_it.then(|| SigEvent::new(asked.value.load(Ordering::Relaxed), signo, notify, 0))
}

/// The function that a new thread is to call.
pub(crate) fn function(inode: u64) -> Option<u64> {
    let asked = ASKED.iter().find(|asked| asked.inode.load(Ordering::Relaxed) == inode)?;
    Some(asked.function.load(Ordering::Relaxed)).filter(|&function| function != 0)
}

/// The netlink socket on which libc's thread waits. Only while all threads stand still.
pub(crate) fn libc_socket(own: &PerProcess) -> Option<i32> {
    /// AF_NETLINK
    const NETLINK: i32 = 16;
    let pidfd = ulpm_sys::pidfd_open(ulpm_sys::getpid()).ok()?;
    let is_netlink = |fd: &i32| {
        let Ok(ours) = ulpm_sys::pidfd_getfd(pidfd, *fd) else { return false };
        let family = socket::get_int_option(ours, so::SOL_SOCKET, so::DOMAIN);
        ulpm_sys::close(ours);
        family == Ok(NETLINK)
    };
    let found = threads::that_receive(own, COOKIE_LEN, COOKIE_FLAGS).find(is_netlink);
    ulpm_sys::close(pidfd);
    found
}

/// How libc's thread receives: 32 bytes, with MSG_NOSIGNAL | MSG_WAITALL.
const COOKIE_LEN: usize = 32;
const COOKIE_FLAGS: usize = 0x4000 | 0x100;

/// `SIGEV_THREAD`
pub(crate) const BY_THREAD: i32 = 2;

/// A list of the manager's.
struct List<T>(UnsafeCell<[T; MAX_QUEUES]>, AtomicUsize);
// SAFETY: used by the manager only, while it holds every other thread.
unsafe impl<T> Sync for List<T> {}

impl<T: Copy> List<T> {
    const fn new(empty: T) -> Self {
        Self(UnsafeCell::new([empty; MAX_QUEUES]), AtomicUsize::new(0))
    }

    fn items(&self) -> &[T] {
        // SAFETY: see above; each user lets go of it before it adds something.
        unsafe { &(&*self.0.get())[..self.1.load(Ordering::Relaxed).min(MAX_QUEUES)] }
    }

    /// False if there is no room.
    fn add(&self, item: T) -> bool {
        let count = self.1.load(Ordering::Relaxed);
        // SAFETY: see above.
        let Some(place) = (unsafe { &mut *self.0.get() }).get_mut(count) else { return false };
        *place = item;
        self.1.store(count + 1, Ordering::Relaxed);
        true
    }

    fn clear(&self) {
        self.1.store(0, Ordering::Relaxed);
    }
}

/// A descriptor of a queue of which the process is to be told, and what it asked; for a new thread with libc's socket in
/// the place of a signal, and with the function.
type Waiting = (i32, SigEvent, Option<u64>);
static WAITING: List<Waiting> = List::new((-1, SigEvent::new(0, 0, 0, 0), None));

/// The longest name of a queue, with the NUL behind it.
const NAME: usize = 256;

/// A queue that the process has saved, and that goes with the job.
#[derive(Clone, Copy, Debug)]
struct Own {
    name: [u8; NAME],
    inode: u64,
    changed: [i64; 2],
}
static OWN: List<Own> = List::new(Own { name: [0; NAME], inode: 0, changed: [0; 2] });

/// Begins a capture.
pub(crate) fn clear() {
    WAITING.clear();
    OWN.clear();
}

/// Takes note that the process is to be told of a message in a queue. False: there is no room.
pub(crate) fn waits(fd: i32, event: SigEvent, function: Option<u64>) -> bool {
    WAITING.add((fd, event, function))
}

/// Takes note of a queue that goes with the job. Without room its name stays when the job leaves.
pub(crate) fn goes_along(name: &[u8], status: &FileStatus) {
    let mut own =
        Own { name: [0; NAME], inode: status.ino, changed: [status.mtime, status.mtime_ns] };
    if let Some(place) = own.name[..NAME - 1].get_mut(..name.len()) {
        place.copy_from_slice(name);
        OWN.add(own);
    }
}

/// Asks again for what was waited for when the process was saved.
///
/// # Errors
///
/// The kernel's. BUSY: another process waits for that.
pub(crate) fn ask_again() -> Result<(), Errno> {
    OWN.clear();
    // Others, of queues that were called by other numbers.
    for asked in &ASKED {
        asked.inode.store(0, Ordering::Relaxed);
    }
    if WAITING.items().is_empty() {
        return Ok(());
    }
    let pidfd = ulpm_sys::pidfd_open(ulpm_sys::getpid())?;
    let result = WAITING.items().iter().try_for_each(|(fd, event, function)| {
        let ours = ulpm_sys::pidfd_getfd(pidfd, *fd)?;
        let told = match function {
            None => mq::notify(ours, Some(event)),
            Some(function) => {
                let cookie = [*function, event.value, 0, 0];
                let at = cookie.as_ptr().expose_provenance() as u64;
                ulpm_sys::pidfd_getfd(pidfd, event.signo).and_then(|socket| {
                    let told = mq::notify(ours, Some(&SigEvent::new(at, socket, BY_THREAD, 0)));
                    ulpm_sys::close(socket);
                    told
                })
            }
        };
        let result = told
            .and_then(|()| ulpm_sys::fstat(ours))
            .map(|status| asked(status.ino, event, *function));
        close(ours);
        result
    });
    ulpm_sys::close(pidfd);
    result
}

/// Takes away the names of queues that a checkpoint or another host has now; not of those that somebody has used since,
/// be it the job itself in a new place on this host.
pub(crate) fn unlink_own() {
    for own in OWN.items() {
        let Ok(name) = CStr::from_bytes_until_nul(&own.name) else { continue };
        let flags = oflag::RDONLY | oflag::NONBLOCK | oflag::CLOEXEC;
        let Ok(fd) = mq::open(name, flags, None) else { continue };
        let is_it = |status: FileStatus| {
            (status.ino, [status.mtime, status.mtime_ns]) == (own.inode, own.changed)
        };
        if ulpm_sys::fstat(fd).is_ok_and(is_it) {
            let _ = mq::unlink(name);
        }
        ulpm_sys::close(fd);
    }
}

/// Closes a descriptor of the manager's in such a way that the kernel does not take it for the process's: by a process
/// that has no memory and no descriptors of its own. If there can be none, it stays open. Only on the manager thread.
pub(crate) fn close(fd: i32) {
    TO_CLOSE.store(fd, Ordering::Relaxed);
    by_another(close_and_end);
}

/// Gives the manager a table of descriptors of its own, with nothing in it.
///
/// # Errors
///
/// The kernel's: there is no such call.
pub(crate) fn leave_descriptors() -> Result<(), Errno> {
    // The kernel copies the table and closes what is in the copy.
    if ASKED.iter().any(|asked| asked.inode.load(Ordering::Relaxed) != 0)
        && ulpm_sys::unshare_descriptors().is_ok()
    {
        by_another(close_all_and_end);
    }
    ulpm_sys::close_range(0, u32::MAX, true)
}

/// Has a process with our memory and descriptors do something, if there can be one.
fn by_another(function: extern "C" fn() -> !) {
    /// CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_VFORK, and no signal at its end.
    const SHARING: usize = 0x100 | 0x200 | 0x400 | 0x4000;
    let mut stack: Vec<u64> = alloc::vec![0; 1024];
    let top = stack.as_mut_ptr_range().end.expose_provenance();
    // SAFETY: the stack is this child's alone, which has ended when the call returns.
    let pid = unsafe { arch::clone_thread(SHARING, top, function) };
    if let Ok(pid @ 1..) = i32::try_from(pid) {
        let _ = ulpm_sys::wait4(pid, ulpm_sys::WCLONE);
    }
}

static TO_CLOSE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn close_and_end() -> ! {
    ulpm_sys::close(TO_CLOSE.load(Ordering::Relaxed));
    ulpm_sys::exit_thread()
}

extern "C" fn close_all_and_end() -> ! {
    let _ = ulpm_sys::close_range(0, u32::MAX, false);
    ulpm_sys::exit_thread()
}
