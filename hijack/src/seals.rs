//! Seals of files of memfd_create(2).
//!
//! They come back with the file, before its processes do. Only F_SEAL_FUTURE_WRITE may have been added while the
//! file was mapped for writing, and the kernel refuses such a mapping behind it: it is added when all processes have
//! their memory, by each that has a descriptor, before it goes on. What they need for that is kept in the library's
//! own memory, which is saved with the process.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use ulpm_sys::fmt::Text;
use ulpm_sys::{Errno, F_ADD_SEALS, F_GET_SEALS, F_SEAL_FUTURE_WRITE, oflag};

use crate::capture::unsupported;
use crate::freeze::Failed;

const MAX_FILES: usize = 1024;

/// A descriptor, and the seals of its file.
struct List(UnsafeCell<[(i32, i32); MAX_FILES]>);
// SAFETY: used by the manager only, while it holds every other thread.
unsafe impl Sync for List {}
static LIST: List = List(UnsafeCell::new([(-1, 0); MAX_FILES]));
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The seals of a file that memfd_create(2) has made; `path` is where the kernel says that it is.
pub(crate) fn of(fd: i32, path: &[u8]) -> Option<u32> {
    if !path.starts_with(b"/memfd:") {
        return None;
    }
    ulpm_sys::fcntl(fd, F_GET_SEALS, 0).ok().map(i32::cast_unsigned)
}

/// Whether a file may be mapped in a way in which it cannot be mapped again.
pub(crate) fn is_sealed_late(fd: i32, path: &[u8]) -> bool {
    of(fd, path).is_some_and(|seals| seals.cast_signed() & F_SEAL_FUTURE_WRITE != 0)
}

/// Begins a capture.
pub(crate) fn clear() {
    COUNT.store(0, Ordering::Relaxed);
}

/// Takes note of a descriptor, of which `ours` is a duplicate, if its file is sealed so. Only on the manager thread, in a freeze.
///
/// # Errors
///
/// [`Failed`]: there are too many.
pub(crate) fn note(fd: i32, ours: i32, path: &[u8]) -> Result<(), Failed> {
    if !is_sealed_late(ours, path) {
        return Ok(());
    }
    let seals = of(ours, path).map_or(0, u32::cast_signed);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // SAFETY: see `List`.
    let place = unsafe { &mut *LIST.0.get() }.get_mut(count).ok_or_else(|| {
        unsupported(format_args!(
            "it has more than {MAX_FILES} descriptors of files with the seal F_SEAL_FUTURE_WRITE"
        ))
    })?;
    *place = (fd, seals);
    Ok(())
}

/// Gives the files of a restarted process the seals that they lack, when all processes of the job have their memory.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn give_back() -> Result<(), Errno> {
    let count = COUNT.load(Ordering::Relaxed).min(MAX_FILES);
    if count == 0 {
        return Ok(());
    }
    // SAFETY: the manager of a restarted process holds all its threads until the first thaw.
    let list = unsafe { &(&*LIST.0.get())[..count] };
    let pidfd = ulpm_sys::pidfd_open(ulpm_sys::getpid())?;
    let result = list.iter().try_for_each(|&(fd, seals)| {
        let ours = ulpm_sys::pidfd_getfd(pidfd, fd)?;
        let result = add(ours, seals);
        ulpm_sys::close(ours);
        result
    });
    ulpm_sys::close(pidfd);
    result
}

fn add(fd: i32, seals: i32) -> Result<(), Errno> {
    if ulpm_sys::fcntl(fd, F_GET_SEALS, 0)? == seals {
        return Ok(()); // Another process was quicker, or nobody has it mapped so.
    }
    // By a descriptor for writing, which the program's may not be.
    let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{fd}"));
    let writable = ulpm_sys::open(link.c_str(), oflag::RDWR | oflag::CLOEXEC)?;
    let added = ulpm_sys::fcntl(writable, F_ADD_SEALS, seals.cast_unsigned() as usize);
    ulpm_sys::close(writable);
    match added {
        Err(_) if ulpm_sys::fcntl(fd, F_GET_SEALS, 0) == Ok(seals) => Ok(()),
        other => other.map(drop),
    }
}
