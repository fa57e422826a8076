//! The path of the program.
//!
//! Reason: a *name* that changes after a restart: without privileges nobody can make /proc/self/exe lead
//! anywhere but to the program that was executed last, which is `ulpm_restart`.

use core::ffi::{CStr, c_char, c_int};

use ulpm_sys::AT_FDCWD;

use crate::next::next;
use crate::process;

next! {
    READLINK = c"readlink": unsafe extern "C" fn(*const c_char, *mut c_char, usize) -> isize;
    READLINKAT = c"readlinkat":
        unsafe extern "C" fn(c_int, *const c_char, *mut c_char, usize) -> isize;
    REALPATH = c"realpath":
        unsafe extern "C" fn(*const c_char, *mut c_char) -> *mut c_char;
}

/// The program's path, if that is what `path` asks for and the kernel does not know it.
///
/// # Safety
///
/// `path` is null or a C string.
pub(super) unsafe fn program_for(path: *const c_char) -> Option<&'static CStr> {
    let program = process::program()?;
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for the string.
    match unsafe { CStr::from_ptr(path) }
        .to_bytes()
        .strip_prefix(b"/proc/")?
        .strip_suffix(b"/exe")?
    {
        b"self" | b"thread-self" => Some(program),
        pid => {
            let pid = i32::try_from(ulpm_sys::proc::decimal(pid)?).ok()?;
            (pid == process::virtual_pid(process::own()?)).then_some(program)
        }
    }
}

// The caller vouches for the pointers, as the manual pages demand.

#[unsafe(no_mangle)]
unsafe extern "C" fn readlink(path: *const c_char, buffer: *mut c_char, len: usize) -> isize {
    // SAFETY: see above.
    unsafe {
        match program_for(path) {
            None => READLINK.get()(path, buffer, len),
            Some(program) => {
                let program = program.to_bytes();
                let len = program.len().min(len);
                buffer.cast::<u8>().copy_from_nonoverlapping(program.as_ptr(), len);
                len.cast_signed()
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn readlinkat(
    dir: c_int,
    path: *const c_char,
    buffer: *mut c_char,
    len: usize,
) -> isize {
    // SAFETY: see above.
    unsafe {
        if dir == AT_FDCWD || program_for(path).is_some() {
            return readlink(path, buffer, len);
        }
        READLINKAT.get()(dir, path, buffer, len)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realpath(path: *const c_char, resolved: *mut c_char) -> *mut c_char {
    // SAFETY: see above.
    unsafe { REALPATH.get()(program_for(path).map_or(path, CStr::as_ptr), resolved) }
}
