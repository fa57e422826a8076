//! What is known of open files beside their descriptions.

use alloc::vec::Vec;

use crate::wire::record;

record! {
/// A working directory that was deleted; descriptions with its `dev` and `inode` are the same one.
DeletedDirectory {
    /// Device.
    dev: u64,
    /// Inode.
    inode: u64,
    /// Mode bits.
    mode: u32,
}
}

record! {
/// A file of memfd_create(2), saved with its content: the [`DeletedFile`](crate::meta::DeletedFile) with this `dev`
/// and `inode`.
MemoryFile {
    /// Device.
    dev: u64,
    /// Inode.
    inode: u64,
    /// F_SEAL_… bits.
    seals: u32,
}
}

/// `Lock::kind`.
pub mod lock_kind {
    /// flock(2).
    pub const FLOCK: u32 = 1;
    /// fcntl(2) with `F_SETLK`: the process's.
    pub const PROCESS: u32 = 2;
    /// fcntl(2) with `F_OFD_SETLK`: the description's.
    pub const DESCRIPTION: u32 = 3;
    /// fcntl(2) with `F_SETLEASE`.
    pub const LEASE: u32 = 4;
}

record! {
/// A file lock. The process takes it again by a list in its memory; this is for checks before, and the reader.
Lock {
    /// The description through which it was taken.
    description: u64,
    /// `lock_kind`.
    kind: u32,
    /// Whether it excludes readers.
    write: bool,
    /// First byte.
    start: u64,
    /// Last byte; the highest number for all to the end.
    end: u64,
    /// The signal that tells that a lease is wanted by others; 0 for SIGIO.
    signal: u32,
}
}
