//! Descriptors and what is behind them.

use alloc::vec::Vec;

use crate::wire::record;

record! {
/// A descriptor.
Descriptor {
    /// Its number.
    fd: i32,
    /// FD_CLOEXEC.
    cloexec: bool,
    /// The open file description behind it.
    description: u64,
}
}

/// `Description::kind`.
pub mod description_kind {
    /// A file with a path: regular, directory or device.
    pub const FILE: u32 = 1;
    /// An end of a pipe whose id is `inode`.
    pub const PIPE: u32 = 2;
    /// A standard stream of the launcher: 0, 1 or 2 as `inode`.
    pub const STREAM: u32 = 3;
    /// A directory that was deleted, or a regular file: a [`DeletedFile`](crate::meta::DeletedFile) with this `dev` and
    /// `inode` has its content. Shared memory regions with them are the same object.
    pub const DELETED: u32 = 4;
    /// A named pipe: a [`Fifo`](crate::meta::Fifo) with this `dev` and `inode` has its content. `position` is 1 for
    /// a reading end that is told that the writers have gone (POLLHUP).
    pub const FIFO: u32 = 5;
    /// An object that tells of events: an [`EventCounter`](crate::meta::EventCounter),
    /// [`EventTimer`](crate::meta::EventTimer), [`EventSignals`](crate::meta::EventSignals) or
    /// [`EventProcess`](crate::meta::EventProcess) says what it is.
    pub const EVENT: u32 = 6;
    /// An epoll instance: each [`Interest`](crate::meta::Interest) that names it is something that it watches.
    pub const EPOLL: u32 = 7;
    /// A socket: the [`Socket`](crate::meta::Socket) with this `inode` says what it is.
    pub const SOCKET: u32 = 8;
    /// The master of a pseudo-terminal: a [`Master`](crate::meta::Master) with `inode` as its index has what is in it.
    pub const MASTER: u32 = 9;
    /// A slave or `/dev/tty`: a [`Terminal`](crate::meta::Terminal) says which.
    pub const TERMINAL: u32 = 10;
    /// An instance of inotify_init(2): a [`Notifier`](crate::meta::Notifier) says more, and each
    /// [`FileWatch`](crate::meta::FileWatch) that names it is something that it watches.
    pub const NOTIFIER: u32 = 40;
    /// A POSIX message queue: a [`Queue`](crate::meta::Queue) with this `dev` and `inode` has what is in it.
    pub const QUEUE: u32 = 42;
}

record! {
/// An open file description. Equal `id`s in the images of a checkpoint are the same one.
Description {
    /// Names it in the checkpoint.
    id: u64,
    /// `description_kind`.
    kind: u32,
    /// O_… flags.
    flags: u32,
    /// File offset.
    position: u64,
    /// Device.
    dev: u64,
    /// Inode, or what `kind` says.
    inode: u64,
    /// Mode of the file.
    mode: u32,
    /// Length of the file when it was saved.
    file_len: u64,
    /// Modification time of the file when it was saved, seconds and nanoseconds.
    mtime: [i64; 2],
    /// Path.
    path: Vec<u8>,
}
}

record! {
/// A pipe, saved by one of its holders.
Pipe {
    /// Its inode.
    id: u64,
    /// F_GETPIPE_SZ.
    capacity: u64,
    /// What was in it.
    content: Vec<u8>,
    /// The lengths of its parts, in order. [`PACKET`] marks one that a single read takes; what others hold may
    /// be joined. Empty if nothing is marked.
    parts: Vec<u32>,
}
}

/// The bit of `Pipe::parts` that says so.
pub const PACKET: u32 = 1 << 31;

record! {
/// A named pipe, saved by one of those who have it open.
Fifo {
    /// Device.
    dev: u64,
    /// Inode.
    inode: u64,
    /// Its mode bits.
    mode: u32,
    /// Whether its name was gone.
    deleted: bool,
    /// What it holds; its `id` is the inode.
    pipe: Pipe,
}
}

record! {
/// A file that has no name any more, saved by one of those who have it open.
DeletedFile {
    /// Device.
    dev: u64,
    /// Inode.
    inode: u64,
    /// How long it is.
    len: u64,
    /// What it holds; elsewhere there are holes.
    parts: Vec<FilePart>,
}
}

record! {
/// A part of a file.
FilePart {
    /// Where it begins.
    offset: u64,
    /// Its bytes.
    content: Vec<u8>,
}
}
