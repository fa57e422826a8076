//! One function for each libc symbol that is interposed, by theme.
//!
//! Each is passed on to libc unless the process is a member of a job and the call needs something:
//! before a restart, virtual names are the real ones, and nothing is translated.

#![expect(
    clippy::missing_safety_doc,
    reason = "what a caller has to keep stands in the manual page of the function of that name"
)]

mod descriptors;
mod exec;
pub(crate) mod fork;
mod inotify;
mod ipc;
pub(crate) mod names;
pub(crate) mod paths;
pub(crate) mod pthread;
mod queues;
pub(crate) mod raw;
mod scheduling;
pub(crate) mod shell;
pub(crate) mod signals;
mod sockets;
mod uring;
mod wait;
