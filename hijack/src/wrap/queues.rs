//! POSIX message queues.
//!
//! Reasons: two *facts* that the kernel cannot be asked later: whether the job has made a queue, and what it wants to
//! be told of a message.

use core::ffi::{c_char, c_int};

use ulpm_sys::{Errno, SigEvent, mq, oflag};

use crate::critical::holding_name;
use crate::next::next;
use crate::{__errno_location, manager, notices, process};

next! {
    MQ_OPEN = c"mq_open":
        unsafe extern "C" fn(*const c_char, c_int, u32, *const mq::Attributes) -> c_int;
    MQ_NOTIFY = c"mq_notify": unsafe extern "C" fn(c_int, *const SigEvent) -> c_int;
}

/// Opens or makes a queue by `call`, which is given flags, step by step where only that tells whether it was made.
pub(super) fn open(flags: c_int, call: impl Fn(c_int) -> isize) -> isize {
    let Some(table) = process::table().filter(|_| flags & oflag::CREAT != 0) else {
        return call(flags);
    };
    // SAFETY: libc returns a valid pointer to this thread's own errno.
    let last_error = || unsafe { *__errno_location() };
    holding_name(|| {
        let before = last_error();
        let (fd, made) = loop {
            let made = call(flags | oflag::EXCL);
            if made >= 0 || flags & oflag::EXCL != 0 || last_error() != Errno::EXIST.raw() {
                break (made, true);
            }
            let found = call(flags & !oflag::CREAT);
            if found >= 0 || last_error() != Errno::NOENT.raw() {
                break (found, false);
            }
        };
        if let (Ok(fd @ 0..), true) = (c_int::try_from(fd), made)
            && let Ok(status) = ulpm_sys::fstat(fd)
        {
            table.note_queue(status.ino);
        }
        if fd >= 0 {
            // SAFETY: as above.
            unsafe { *__errno_location() = before };
        }
        fd
    })
}

/// Asks by `call` to be told, and takes note of it. With libc's own function, a new thread may be told (`SIGEV_THREAD`).
///
/// # Safety
///
/// `event` is null, or can be read.
pub(super) unsafe fn notify(
    fd: c_int,
    event: *const SigEvent,
    by_libc: bool,
    call: impl FnOnce() -> isize,
) -> isize {
    let Some(own) = process::own().filter(|_| process::table().is_some()) else { return call() };
    manager::wait_for_start(own);
    holding_name(|| {
        let result = call();
        // SAFETY: the caller vouches for it, and the kernel has read it.
        if let (0, Some(event)) = (result, unsafe { event.as_ref() })
            && let Ok(status) = ulpm_sys::fstat(fd)
        {
            notices::asked(status.ino, event, event.function().filter(|_| by_libc));
        }
        result
    })
}

/// `mq_open(name, flags, …)`: the mode and the attributes are there for some flags only, and are passed on as they
/// came.
#[unsafe(no_mangle)]
unsafe extern "C" fn mq_open(
    name: *const c_char,
    flags: c_int,
    mode: u32,
    attributes: *const mq::Attributes,
) -> c_int {
    // SAFETY: the caller vouches for the arguments, as the manual page demands.
    let call = |flags| unsafe { MQ_OPEN.get()(name, flags, mode, attributes) as isize };
    c_int::try_from(open(flags, call)).unwrap_or(-1)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mq_notify(fd: c_int, event: *const SigEvent) -> c_int {
    // SAFETY: as above.
    let result = unsafe { notify(fd, event, true, || MQ_NOTIFY.get()(fd, event) as isize) };
    c_int::try_from(result).unwrap_or(-1)
}
