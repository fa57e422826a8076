//! Calls on inotify descriptors, and on the handles by which the kernel names what they watch.

use core::ffi::CStr;

use crate::arch::{nr, syscall};
use crate::calls::{int, word};
use crate::{Errno, check, oflag};

/// Bits of include/uapi/linux/inotify.h.
#[expect(missing_docs, reason = "inotify(7)")]
pub mod bit {
    pub const DELETE_SELF: u32 = 0x400;
    pub const DONT_FOLLOW: u32 = 0x0200_0000;
}

/// A new instance, of which nobody waits for anything.
///
/// # Errors
///
/// MFILE: the user has too many.
pub fn new() -> Result<i32, Errno> {
    let flags = oflag::CLOEXEC | oflag::NONBLOCK;
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::INOTIFY_INIT1, [word(flags), 0, 0, 0, 0, 0]) }).map(int)
}

/// Watches the file at `path`; the number of the watch.
///
/// # Errors
///
/// ACCES, NOENT, NOSPC and others of the kernel's.
pub fn watch(fd: i32, path: &CStr, mask: u32) -> Result<i32, Errno> {
    let arguments = [word(fd), path.as_ptr().addr(), mask as usize, 0, 0, 0];
    // SAFETY: the kernel reads the string, which outlives the call.
    check(unsafe { syscall(nr::INOTIFY_ADD_WATCH, arguments) }).map(int)
}

/// Removes a watch.
pub fn forget(fd: i32, wd: i32) {
    // SAFETY: no memory is involved. It fails only for a watch that is gone already.
    unsafe { syscall(nr::INOTIFY_RM_WATCH, [word(fd), word(wd), 0, 0, 0, 0]) };
}

/// Opens a file by its handle (O_PATH), for root. `handle` has its bytes behind the head; `mount` is a
/// descriptor in its file system.
///
/// # Errors
///
/// PERM; STALE if the file is gone.
pub fn open_by_handle(mount: i32, kind: i32, bytes: &[u8]) -> Result<i32, Errno> {
    /// struct file_handle (include/linux/fs.h) with MAX_HANDLE_SZ bytes.
    #[repr(C)]
    struct Handle {
        len: u32,
        kind: i32,
        bytes: [u8; 128],
    }
    let mut handle = Handle { len: 0, kind, bytes: [0; 128] };
    handle.bytes.get_mut(..bytes.len()).ok_or(Errno::INVAL)?.copy_from_slice(bytes);
    handle.len = u32::try_from(bytes.len()).map_err(|_| Errno::INVAL)?;
    let at = core::ptr::from_ref(&handle).addr();
    let flags = word(oflag::PATH | oflag::CLOEXEC);
    // SAFETY: the kernel reads the handle, which outlives the call.
    check(unsafe { syscall(nr::OPEN_BY_HANDLE_AT, [word(mount), at, flags, 0, 0, 0]) }).map(int)
}
