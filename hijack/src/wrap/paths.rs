//! Paths that lead to processes, and to the program.
//!
//! Reason: *names* that change after a restart: ids in paths below /proc; and the path of the program, for without
//! privileges nobody can make /proc/self/exe lead anywhere but to the program that was executed last, which is
//! `ulpm_restart`. Before a restart nothing but a look at a flag stands before the call.
//!
//! What is read below /proc, directories too, has the kernel's ids in it.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};

use ulpm_sys::fmt::Text;
use ulpm_sys::proc;

use super::names;
use crate::critical::holding_name;
use crate::next::next;
use crate::{process, threads};

/// Looks up what a signal handler, or the forked child of a program with threads, may call first: there the dynamic linker's
/// lock may be held.
pub(crate) fn prepare() {
    OPEN.get();
    OPEN64.get();
    OPENAT.get();
    OPENAT64.get();
    OPENDIR.get();
    ACCESS.get();
}

/// Longer paths have no id in them that is looked at.
const LONGEST: usize = 512;

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
        pid => (id(pid)? == process::virtual_pid(process::own()?)).then_some(program),
    }
}

fn id(digits: &[u8]) -> Option<c_int> {
    c_int::try_from(proc::decimal(digits)?).ok()
}

/// The first part of a path, and the rest with its slash.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().position(|&byte| byte == b'/').unwrap_or(path.len()))
}

/// The kernel's path of what the program knows as this below /proc; `None` if it is the same.
fn real_path(below: &[u8]) -> Option<Text<LONGEST>> {
    let (process, rest) = split(below);
    let own = process::own().map(process::virtual_pid);
    let is_self = process == b"self";
    let virt = if is_self { own? } else { id(process)? };
    let task = if Some(virt) == own { rest.strip_prefix(b"/task/") } else { None };
    let thread = task.map(split).and_then(|(digits, rest)| Some((id(digits)?, rest)));
    let real = names::real_task(virt);
    if (is_self || real == virt) && thread.is_none_or(|(tid, _)| threads::real_tid(tid) == tid) {
        return None;
    }
    let mut path = Text::of(format_args!("/proc/{real}"));
    match thread {
        Some((tid, rest)) => {
            path.push(Text::<32>::of(format_args!("/task/{}", threads::real_tid(tid))).bytes());
            path.push(rest);
        }
        None => path.push(rest),
    }
    Some(path)
}

/// Runs `call` with the path by which the kernel knows what `path` leads to.
///
/// # Safety
///
/// `path` is null or a C string.
#[inline(always)]
unsafe fn with_path<R>(path: *const c_char, call: impl FnOnce(*const c_char) -> R) -> R {
    if process::is_restarted() {
        // SAFETY: the caller vouches for the string.
        unsafe { with_real_path(path, call) }
    } else {
        call(path)
    }
}

#[inline(never)]
unsafe fn with_real_path<R>(path: *const c_char, call: impl FnOnce(*const c_char) -> R) -> R {
    /// What ids can grow by.
    const MORE: usize = 32;
    if path.is_null() {
        return call(path);
    }
    // SAFETY: the caller vouches for the string.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    match bytes.strip_prefix(b"/proc/") {
        Some(below) if bytes.len() < LONGEST - MORE => holding_name(|| match real_path(below) {
            Some(real) => call(real.c_str().as_ptr()),
            None => call(path),
        }),
        _ => call(path),
    }
}

/// The same, where the program is meant by the link that leads to it.
///
/// # Safety
///
/// As [`with_path`].
#[inline(always)]
unsafe fn with_file<R>(path: *const c_char, call: impl FnOnce(*const c_char) -> R) -> R {
    if !process::is_restarted() {
        return call(path);
    }
    // SAFETY: the caller vouches for the string.
    match unsafe { program_for(path) } {
        Some(program) => call(program.as_ptr()),
        // SAFETY: as above.
        None => unsafe { with_real_path(path, call) },
    }
}

// The caller vouches for the arguments of each function below, as the manual pages demand. open and openat are variadic
// in C; on x86-64 one more integer comes in the next register all the same.

macro_rules! by_path {
    ($($name:ident = $next:ident $symbol:literal $with:ident
       ($($before:ident: $before_type:ty)? ; $($after:ident: $after_type:ty),*) -> $result:ty;)+) => {
        next! {
            $($next = $symbol: unsafe extern "C" fn(
                $($before_type,)?
                *const c_char,
                $($after_type),*
            ) -> $result;)+
        }

        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name(
                $($before: $before_type,)?
                path: *const c_char,
                $($after: $after_type),*
            ) -> $result {
                let next = $next.get();
                // SAFETY: see above.
                unsafe { $with(path, |path| next($($before,)? path, $($after),*)) }
            }
        )+
    };
}

by_path! {
    open = OPEN c"open" with_file (; flags: c_int, mode: c_uint) -> c_int;
    open64 = OPEN64 c"open64" with_file (; flags: c_int, mode: c_uint) -> c_int;
    __open_2 = OPEN_2_CHECKED c"__open_2" with_file (; flags: c_int) -> c_int;
    __open64_2 = OPEN64_2_CHECKED c"__open64_2" with_file (; flags: c_int) -> c_int;
    openat = OPENAT c"openat" with_file (dir: c_int; flags: c_int, mode: c_uint) -> c_int;
    openat64 = OPENAT64 c"openat64" with_file (dir: c_int; flags: c_int, mode: c_uint) -> c_int;
    __openat_2 = OPENAT_2_CHECKED c"__openat_2" with_file (dir: c_int; flags: c_int) -> c_int;
    __openat64_2 = OPENAT64_2_CHECKED c"__openat64_2" with_file (dir: c_int; flags: c_int) -> c_int;
    fopen = FOPEN c"fopen" with_file (; mode: *const c_char) -> *mut c_void;
    fopen64 = FOPEN64 c"fopen64" with_file (; mode: *const c_char) -> *mut c_void;
    opendir = OPENDIR c"opendir" with_path (;) -> *mut c_void;
    access = ACCESS c"access" with_file (; mode: c_int) -> c_int;
    stat = STAT c"stat" with_file (; status: *mut c_void) -> c_int;
    stat64 = STAT64 c"stat64" with_file (; status: *mut c_void) -> c_int;
    lstat = LSTAT c"lstat" with_path (; status: *mut c_void) -> c_int;
    lstat64 = LSTAT64 c"lstat64" with_path (; status: *mut c_void) -> c_int;
    fstatat = FSTATAT c"fstatat" with_path (dir: c_int; status: *mut c_void, flags: c_int) -> c_int;
    fstatat64 = FSTATAT64 c"fstatat64" with_path (dir: c_int; status: *mut c_void, flags: c_int) -> c_int;
    statx = STATX c"statx" with_path
        (dir: c_int; flags: c_int, mask: c_uint, status: *mut c_void) -> c_int;
    faccessat = FACCESSAT c"faccessat" with_path (dir: c_int; mode: c_int, flags: c_int) -> c_int;
    scandir = SCANDIR c"scandir" with_path
        (; names: *mut c_void, filter: *const c_void, compare: *const c_void) -> c_int;
    scandir64 = SCANDIR64 c"scandir64" with_path
        (; names: *mut c_void, filter: *const c_void, compare: *const c_void) -> c_int;
    realpath = REALPATH c"realpath" with_file (; resolved: *mut c_char) -> *mut c_char;
    __realpath_chk = REALPATH_CHECKED c"__realpath_chk" with_file
        (; resolved: *mut c_char, room: usize) -> *mut c_char;
}

next! {
    READLINK = c"readlink": unsafe extern "C" fn(*const c_char, *mut c_char, usize) -> isize;
    READLINKAT = c"readlinkat":
        unsafe extern "C" fn(c_int, *const c_char, *mut c_char, usize) -> isize;
    READLINK_CHECKED = c"__readlink_chk":
        unsafe extern "C" fn(*const c_char, *mut c_char, usize, usize) -> isize;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn readlink(path: *const c_char, buffer: *mut c_char, len: usize) -> isize {
    // SAFETY: see above.
    unsafe { read_link(path, buffer, len, |path| READLINK.get()(path, buffer, len)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn readlinkat(
    dir: c_int,
    path: *const c_char,
    buffer: *mut c_char,
    len: usize,
) -> isize {
    // SAFETY: see above.
    unsafe { read_link(path, buffer, len, |path| READLINKAT.get()(dir, path, buffer, len)) }
}

/// `readlink()` of a program that was built with `_FORTIFY_SOURCE`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __readlink_chk(
    path: *const c_char,
    buffer: *mut c_char,
    len: usize,
    room: usize,
) -> isize {
    let next = READLINK_CHECKED.get();
    // SAFETY: see above. What does not fit ends the program there.
    unsafe { read_link(path, buffer, len.min(room), |path| next(path, buffer, len, room)) }
}

/// # Safety
///
/// As readlink(2).
unsafe fn read_link(
    path: *const c_char,
    buffer: *mut c_char,
    len: usize,
    call: impl FnOnce(*const c_char) -> isize,
) -> isize {
    let give = |bytes: &[u8]| {
        let len = bytes.len().min(len);
        // SAFETY: the caller vouches for the buffer.
        unsafe { buffer.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), len) };
        len.cast_signed()
    };
    // SAFETY: the caller vouches for the path.
    unsafe {
        if let Some(program) = program_for(path) {
            return give(program.to_bytes());
        }
        if process::is_restarted()
            && !path.is_null()
            && CStr::from_ptr(path) == c"/proc/self"
            && let Some(own) = process::own()
        {
            return give(Text::<16>::of(format_args!("{}", process::virtual_pid(own))).bytes());
        }
        with_path(path, call)
    }
}
