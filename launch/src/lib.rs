//! Starts a program so that it can be checkpointed and migrated.
//!
//! The program is a child of `ulpm_launch`, in the same process group and session and with the same
//! streams. `ulpm_launch` only waits, passes on the signals that are sent to it, and ends as the program
//! ends, on this host or, after a migration, on another.

#![deny(unsafe_code)]

pub mod check;
mod elf;
pub mod options;
mod os;
pub mod plugin;
pub mod run;
