//! The library that is preloaded into every process of a job.
//!
//! # Rules for this crate
//!
//! It runs inside other people's programs, between their call and the kernel.
//!
//! 1. **Nothing of libc in the frozen world.** Between freeze and thaw, and on the manager thread at
//!    all times, only `ulpm_sys` is called: a thread may have been stopped with any of libc's locks
//!    held.
//! 2. **The heap belongs to the manager thread.** `heap` has no lock; user threads never allocate.
//! 3. **Every exported symbol keeps the contract of the function that it replaces**, `errno`,
//!    cancellation and async-signal-safety included. Each says which of the four reasons it has: a
//!    *name* that changes after a restart, a *fact* that the kernel cannot be asked later, an *EINTR*
//!    that the program must not see, or the *protection* of our own memory and signal.
//! 4. **No panic.** An impossible state ends the process through `die`, in words.
//! 5. **Natively quiet.** A process without `process::table` is not a member of a job, and every
//!    wrapper passes its call on.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod arch;
mod capture;
mod clock;
mod connections;
mod critical;
mod cut;
mod freeze;
mod heap;
mod locks;
mod manager;
mod next;
mod notices;
mod owners;
mod plugins;
mod private;
mod process;
mod program;
mod requests;
mod restart;
mod seals;
mod stops;
mod threads;
mod timed;
mod timers;
mod watched;
mod wrap;

use core::ffi::c_int;

#[link(name = "c")]
unsafe extern "C" {
    safe fn __errno_location() -> *mut c_int;
}

/// Stores `errno` for the calling thread.
fn set_errno(errno: ulpm_sys::Errno) {
    // SAFETY: libc returns a valid pointer to this thread's own errno.
    unsafe { *__errno_location() = errno.raw() };
}

/// What a libc function returns for `result`: -1 with `errno` set for an error.
fn libc_result(result: Result<c_int, ulpm_sys::Errno>) -> c_int {
    result.unwrap_or_else(|errno| {
        set_errno(errno);
        -1
    })
}

/// Reports `message` on fd 2 and ends the process; usable at any point, in any handler.
fn die(message: &str) -> ! {
    let _ = ulpm_sys::write(2, b"libulpm_hijack: ");
    let _ = ulpm_sys::write(2, message.as_bytes());
    let _ = ulpm_sys::write(2, b"\n");
    ulpm_sys::exit_group(70)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    use core::fmt::Write as _;

    let mut text = ulpm_sys::fmt::Text::<256>::new();
    let _ = write!(text, "internal error: {info}");
    die(core::str::from_utf8(text.bytes()).unwrap_or("internal error"))
}

// `core` refers to this symbol although nothing here unwinds. It is hidden so that it cannot stand in
// for the one of a Rust program that we are loaded into.
#[cfg(not(test))]
core::arch::global_asm!(
    ".globl rust_eh_personality",
    ".hidden rust_eh_personality",
    "rust_eh_personality: ud2",
    ".globl _Unwind_Resume",
    ".hidden _Unwind_Resume",
    "_Unwind_Resume: ud2",
);

/// Joins the job, if the environment names one.
#[ctor::ctor(unsafe)]
fn constructor() {
    process::join();
}
