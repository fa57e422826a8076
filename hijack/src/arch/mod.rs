//! What is particular to the machine: entering and leaving a parked thread, new threads, vfork.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;
