//! The names of a socket's two ends, and of those who send messages.
//!
//! Reason: *names* that change after a restart. A connection that was made again has other addresses than the
//! one that the program had; the job table keeps those, by the socket's inode, for all processes that have it.

use core::ffi::{c_int, c_void};

use ulpm_protocol::table::SocketName;

use super::names;
use crate::critical::holding_name;
use crate::next::next;
use crate::process;

next! {
    GETSOCKNAME = c"getsockname": unsafe extern "C" fn(c_int, *mut c_void, *mut u32) -> c_int;
    GETPEERNAME = c"getpeername": unsafe extern "C" fn(c_int, *mut c_void, *mut u32) -> c_int;
    RECVMSG = c"recvmsg": unsafe extern "C" fn(c_int, *mut Message, c_int) -> isize;
    SENDMSG = c"sendmsg": unsafe extern "C" fn(c_int, *const Message, c_int) -> isize;
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
            && name.credentials().is_none()
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

/// `struct msghdr`
#[derive(Clone, Copy)]
#[repr(C)]
struct Message {
    name: usize,
    name_len: u32,
    parts: usize,
    part_count: usize,
    control: *mut u8,
    control_len: usize,
    flags: c_int,
}

/// Changes the process ids in the control data of a message (SCM_CREDENTIALS); returns whether there were any.
fn change_senders(control: &mut [u8], name: fn(c_int) -> c_int) -> bool {
    /// `struct cmsghdr`: a length, level and type.
    const HEADER: usize = 16;
    const SCM_CREDENTIALS: [u8; 8] = [1, 0, 0, 0, 2, 0, 0, 0];
    let (mut at, mut found) = (0, false);
    while let Some(rest) = control.get_mut(at..)
        && let Some((header, data)) = rest.split_first_chunk_mut::<HEADER>()
    {
        let len = header.first_chunk().map_or(0, |bytes| usize::from_ne_bytes(*bytes));
        if len < HEADER || len - HEADER > data.len() {
            break;
        }
        if header[8..] == SCM_CREDENTIALS
            && let Some(pid) = data.first_chunk_mut()
        {
            *pid = name(c_int::from_ne_bytes(*pid)).to_ne_bytes();
            found = true;
        }
        at += len.next_multiple_of(8);
    }
    found
}

/// Whether there may be names in a message's control data.
///
/// # Safety
///
/// `message` is null or points to a message.
unsafe fn may_have_senders(message: *const Message) -> bool {
    // SAFETY: the caller vouches for it.
    process::is_restarted()
        && unsafe { message.as_ref() }.is_some_and(|given| !given.control.is_null())
}

/// `recvmsg()`: the *name* of a sender (SCM_CREDENTIALS). Nothing but a look at a flag stands before it as long as there
/// was no restart.
#[unsafe(no_mangle)]
unsafe extern "C" fn recvmsg(fd: c_int, message: *mut Message, flags: c_int) -> isize {
    // SAFETY: the caller vouches for the message, as the manual page demands.
    unsafe {
        if may_have_senders(message) {
            receive(fd, message, flags)
        } else {
            RECVMSG.get()(fd, message, flags)
        }
    }
}

/// # Safety
///
/// As recvmsg(2), with room for control data.
#[inline(never)]
unsafe fn receive(fd: c_int, message: *mut Message, flags: c_int) -> isize {
    let next = RECVMSG.get();
    // It may be stopped while it waits: see `critical`.
    // SAFETY: the caller vouches for the message, and the kernel has filled it.
    holding_name(|| unsafe {
        let received = next(fd, message, flags);
        let Message { control, control_len, .. } = *message;
        if received >= 0 && !control.is_null() {
            change_senders(core::slice::from_raw_parts_mut(control, control_len), names::virt);
        }
        received
    })
}

/// `sendmsg()`: the *name* by which the program gives itself, or another process, as the sender.
#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const Message, flags: c_int) -> isize {
    // SAFETY: as above.
    unsafe {
        if may_have_senders(message) {
            send(fd, message, flags)
        } else {
            SENDMSG.get()(fd, message, flags)
        }
    }
}

/// # Safety
///
/// As sendmsg(2), with control data.
#[inline(never)]
unsafe fn send(fd: c_int, message: *const Message, flags: c_int) -> isize {
    /// SCM_MAX_FD (253) descriptors, credentials, and what else there may be.
    const ROOM: usize = 2048;
    let next = SENDMSG.get();
    let mut room = [0; ROOM];
    // SAFETY: the caller vouches for the message.
    unsafe {
        let mut given = *message;
        if given.control_len > ROOM {
            return next(fd, message, flags);
        }
        let control = &mut room[..given.control_len];
        // What cannot be read the kernel refuses (EFAULT), and does not end the program.
        if ulpm_sys::read_own_bytes(given.control.expose_provenance(), control) < control.len() {
            return next(fd, message, flags);
        }
        holding_name(|| {
            if !change_senders(control, names::real) {
                return None;
            }
            given.control = control.as_mut_ptr();
            Some(next(fd, &raw const given, flags))
        })
        .unwrap_or_else(|| next(fd, message, flags))
    }
}
