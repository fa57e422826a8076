//! The kernel's raw interface: every other crate's only door to its odd corners.
//!
//! Nothing here touches libc, `errno`, thread-local storage or a heap, so all of it may be called
//! from a signal handler, from a thread that libc does not know, and from a process whose libc is
//! frozen at any instruction.

#![cfg_attr(not(test), no_std)]

pub mod aio;
#[cfg_attr(target_arch = "x86_64", path = "arch/x86_64.rs")]
pub mod arch;
mod calls;
pub mod diag;
mod errno;
pub mod events;
pub mod fmt;
pub mod inotify;
pub mod ipc;
pub mod mq;
pub mod proc;
pub mod pty;
pub mod signal;
pub mod socket;
pub mod vdso;

pub use calls::*;
pub use errno::Errno;

/// Bytes of a page. x86-64 has no other base page size.
pub const PAGE: usize = 4096;

/// `value` rounded up to a whole page.
#[must_use]
pub const fn page_up(value: usize) -> usize {
    (value + PAGE - 1) & !(PAGE - 1)
}
