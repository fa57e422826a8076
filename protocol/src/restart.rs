//! What `ulpm_restart` tells the library in an image when it hands a rebuilt process over.
//!
//! The library may be of an older release than `ulpm_restart`: fields are only ever added at the end,
//! and the length says how many there are.

/// Behind the path of the job table: the file that lists what is to be renamed when a job that was handed over
/// goes on, as pairs of paths, each ended by a NUL.
pub const NAMES: &str = ".names";

/// What is added to the job table's path for the file with the environment that the job was restarted in, each variable
/// with a NUL behind it. It is there for plugins.
pub const ENVIRONMENT: &str = ".environment";

/// Passed by address to the entry that the image names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RestartInfo {
    /// Length of this structure in bytes.
    pub len: u64,
    /// The restorer's window, as address and length: to be unmapped.
    pub window: [u64; 2],
    /// Real id of the parent, if it is outside the job, and the id by which the program knows it.
    pub outside_parent: [i32; 2],
    /// Interval timers, in microseconds: interval and time to the next, each.
    pub timers: [[u64; 2]; 3],
    /// 1 if the process is to be stopped when it first thaws.
    pub stopped: u64,
    /// Limits that its rebuilding could exceed, and that it gets behind that: resource, current, maximum.
    pub limits: [[u64; 3]; 4],
    /// Where this kernel's vDSO is, and its length.
    pub vdso: [u64; 2],
}
