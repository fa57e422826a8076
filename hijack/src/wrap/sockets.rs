//! The names of a socket's two ends.
//!
//! Reason: *names* that change after a restart. A connection that was made again has other addresses than the
//! one that the program had; the job table keeps those, by the socket's inode, for all processes that have it.

use core::ffi::{c_int, c_void};

use ulpm_protocol::table::SocketName;

use crate::next::next;
use crate::process;

next! {
    GETSOCKNAME = c"getsockname": unsafe extern "C" fn(c_int, *mut c_void, *mut u32) -> c_int;
    GETPEERNAME = c"getpeername": unsafe extern "C" fn(c_int, *mut c_void, *mut u32) -> c_int;
}

type GetName = unsafe extern "C" fn(c_int, *mut c_void, *mut u32) -> c_int;

/// Asks libc, and puts the address that the program knows in place of the real one.
///
/// # Safety
///
/// The pointers are what getsockname(2) takes.
unsafe fn name(
    next: GetName,
    fd: c_int,
    address: *mut c_void,
    len: *mut u32,
    virt: fn(&SocketName) -> &[u8],
) -> c_int {
    // SAFETY: the caller vouches for the pointers; libc passes null on to the kernel, which refuses it.
    unsafe {
        if !process::is_restarted() || len.is_null() || address.is_null() {
            return next(fd, address, len);
        }
        let room = *len as usize;
        let result = next(fd, address, len);
        if result == 0
            && let Some(table) = process::table()
            && let Ok(status) = ulpm_sys::fstat(fd)
            && let Some(name) = table.socket_name(status.ino)
            && let virt @ [_, ..] = virt(&name)
        {
            core::ptr::copy_nonoverlapping(virt.as_ptr(), address.cast(), virt.len().min(room));
            *len = u32::try_from(virt.len()).unwrap_or(0);
        }
        result
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getsockname(fd: c_int, address: *mut c_void, len: *mut u32) -> c_int {
    // SAFETY: the caller vouches for the pointers, as the manual page demands.
    unsafe { name(GETSOCKNAME.get(), fd, address, len, |name| name.local.bytes()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getpeername(fd: c_int, address: *mut c_void, len: *mut u32) -> c_int {
    // SAFETY: as above.
    unsafe { name(GETPEERNAME.get(), fd, address, len, |name| name.peer.bytes()) }
}
