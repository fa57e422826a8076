//! Ids of processes, threads and groups that are asked of descriptors.
//!
//! Reason: *names* that change after a restart. What is asked for anything else is passed on to the kernel as
//! libc would, without a look at libc, which may be in the middle of its own start.

use core::ffi::{c_int, c_ulong, c_void};

use ulpm_sys::arch::{nr, syscall};
use ulpm_sys::socket::so;
use ulpm_sys::{Errno, Owner, check, word};

use super::names::{
    real, real_group, real_or_group, real_task, virt, virt_group, virt_session, virt_task,
};
use crate::critical::holding_name;
use crate::next::next;
use crate::{libc_result, process, set_errno};

next! {
    FCNTL = c"fcntl": unsafe extern "C" fn(c_int, c_int, usize) -> c_int;
}

const OWNER_PGRP: c_int = 2;

/// # Safety
///
/// The arguments are what the call takes.
unsafe fn call(number: usize, args: [usize; 5]) -> c_int {
    let [a, b, c, d, e] = args;
    // SAFETY: the caller vouches for the arguments.
    let returned = unsafe { syscall(number, [a, b, c, d, e, 0]) };
    #[expect(clippy::cast_possible_truncation, reason = "the kernel returns an int")]
    libc_result(check(returned).map(|value| value as c_int))
}

/// A process, or a negative process group, by the id that the program knows.
fn virt_or_group(id: c_int) -> c_int {
    if id < -1 { -virt_group(-id) } else { virt_task(id) }
}

// The caller vouches for the arguments, as the manual pages demand. The functions are variadic in C; on x86-64
// one more integer or pointer comes in the next register all the same.

#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    const GETLK: c_int = 5;
    const SETLKW: c_int = 7;
    const SETOWN: c_int = 8;
    const GETOWN: c_int = 9;
    const SETOWN_EX: c_int = 15;
    const GETOWN_EX: c_int = 16;
    const OFD_SETLKW: c_int = 38;
    // SAFETY: see above.
    unsafe {
        let plain = |argument| call(nr::FCNTL, [word(fd), word(command), argument, 0, 0]);
        if matches!(command, SETLKW | OFD_SETLKW) {
            return FCNTL.get()(fd, command, argument); // A cancellation point.
        }
        // libc asks for it in the other way, for a group could look like an error.
        if command == GETOWN {
            let mut owner = Owner::default();
            let at = (&raw mut owner).addr();
            let result = holding_name(|| call(nr::FCNTL, [word(fd), word(GETOWN_EX), at, 0, 0]));
            return match (result, owner.kind) {
                (0, OWNER_PGRP) => -virt_group(owner.id),
                (0, _) => virt_task(owner.id),
                _ => result,
            };
        }
        if !process::is_restarted() {
            return plain(argument);
        }
        match command {
            #[expect(clippy::cast_possible_truncation, reason = "it is an int")]
            SETOWN => holding_name(|| plain(word(real_or_group(argument as c_int)))),
            SETOWN_EX if argument != 0 => holding_name(|| {
                let mut owner = core::ptr::with_exposed_provenance::<Owner>(argument).read();
                owner.id = match owner.kind {
                    OWNER_PGRP => real_group(owner.id),
                    _ => real_task(owner.id),
                };
                plain((&raw const owner).addr())
            }),
            GETOWN_EX => holding_name(|| {
                let result = plain(argument);
                if result == 0 {
                    let owner = core::ptr::with_exposed_provenance_mut::<Owner>(argument);
                    (*owner).id = match (*owner).kind {
                        OWNER_PGRP => virt_group((*owner).id),
                        _ => virt_task((*owner).id),
                    };
                }
                result
            }),
            GETLK => holding_name(|| {
                /// `l_pid` of `struct flock`.
                const PID: usize = 24;
                let result = plain(argument);
                if result == 0 {
                    let pid = core::ptr::with_exposed_provenance_mut::<c_int>(argument + PID);
                    pid.write(virt(pid.read()));
                }
                result
            }),
            _ => plain(argument),
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: see above. On x86-64 the two are one.
    unsafe { fcntl(fd, command, argument) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
    // include/uapi/asm-generic/ioctls.h and sockios.h
    const TIOCGPGRP: c_ulong = 0x540f;
    const TIOCSPGRP: c_ulong = 0x5410;
    const TIOCGSID: c_ulong = 0x5429;
    const FIOSETOWN: c_ulong = 0x8901;
    const SIOCSPGRP: c_ulong = 0x8902;
    const FIOGETOWN: c_ulong = 0x8903;
    const SIOCGPGRP: c_ulong = 0x8904;
    // SAFETY: see above.
    unsafe {
        let plain = |argument| call(nr::IOCTL, [word(fd), request as usize, argument, 0, 0]);
        let set = |translate: fn(c_int) -> c_int| {
            holding_name(|| {
                let id = translate(core::ptr::with_exposed_provenance::<c_int>(argument).read());
                plain((&raw const id).addr())
            })
        };
        let get = |translate: fn(c_int) -> c_int| {
            holding_name(|| {
                let result = plain(argument);
                if result == 0 {
                    let id = core::ptr::with_exposed_provenance_mut::<c_int>(argument);
                    id.write(translate(id.read()));
                }
                result
            })
        };
        if !process::is_restarted() || argument == 0 {
            return plain(argument);
        }
        match request {
            TIOCGPGRP => get(virt_group),
            TIOCSPGRP => set(real_group),
            TIOCGSID => get(virt_session),
            FIOSETOWN | SIOCSPGRP => set(real_or_group),
            FIOGETOWN | SIOCGPGRP => get(virt_or_group),
            _ => plain(argument),
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *mut c_void,
    len: *mut u32,
) -> c_int {
    let args = [word(fd), word(level), word(option), value.addr(), len.addr()];
    // SAFETY: see above.
    let plain = || unsafe { call(nr::GETSOCKOPT, args) };
    if level != so::SOL_SOCKET
        || !matches!(option, so::PEERCRED | so::PEERPIDFD)
        || !process::is_restarted()
    {
        return plain();
    }
    // Of a socket that was made again the kernel says that ulpm_restart has connected it.
    let known = process::table().and_then(|table| {
        let status = ulpm_sys::fstat(fd).ok()?;
        table.socket_name(status.ino)?.credentials()
    });
    if let (so::PEERPIDFD, Some([pid, ..])) = (option, known) {
        // SAFETY: see above; a null or a bad pointer ends the program as it would in libc's own functions.
        return unsafe {
            if *len < 4 {
                set_errno(Errno::INVAL);
                return -1;
            }
            let pidfd = pidfd_open(pid.cast_signed(), 0);
            if pidfd < 0 {
                return pidfd;
            }
            // It is closed by an exec, as is what the kernel gives.
            value.cast::<c_int>().write_unaligned(pidfd);
            *len = 4;
            0
        };
    }
    holding_name(|| {
        let result = plain();
        // SAFETY: the kernel has stored so many bytes of a `struct ucred`, which begins with the process id.
        unsafe {
            if result == 0 && option == so::PEERCRED && *len >= 4 {
                let place = value.cast::<u32>();
                match known {
                    Some(words) => {
                        let count = (*len as usize).min(size_of_val(&words));
                        value.cast::<u8>().copy_from_nonoverlapping(words.as_ptr().cast(), count);
                    }
                    None => {
                        let pid = place.read_unaligned().cast_signed();
                        place.write_unaligned(virt(pid).cast_unsigned());
                    }
                }
            }
        }
        result
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn pidfd_open(pid: c_int, flags: u32) -> c_int {
    // SAFETY: the call takes numbers.
    holding_name(|| unsafe {
        call(nr::PIDFD_OPEN, [word(open_by(pid, flags)), flags as usize, 0, 0, 0])
    })
}

/// Whom pidfd_open means: a process, or with PIDFD_THREAD a thread.
fn open_by(pid: c_int, flags: u32) -> c_int {
    const PIDFD_THREAD: u32 = 0o200;
    if flags & PIDFD_THREAD != 0 { real_task(pid) } else { real(pid) }
}
