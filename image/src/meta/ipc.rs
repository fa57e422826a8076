//! System V objects, and POSIX message queues.

use alloc::vec::Vec;

use crate::wire::record;

record! {
/// A message in a queue.
Message {
    /// Its type.
    kind: i64,
    /// Its text.
    text: Vec<u8>,
}
}

record! {
/// A System V object that the job uses, saved by one of its processes.
IpcObject {
    /// 1 for shared memory, 2 for semaphores, 3 for messages.
    kind: u32,
    /// The id that the program knows.
    id: i32,
    /// The id that the kernel knew.
    real: i32,
    /// The host and namespace in which that means something, in words.
    place: Vec<u8>,
    /// The key that leads to it; 0 for none.
    key: i32,
    /// Whether that key led somewhere else outside the job.
    hidden: bool,
    /// Whether a process of the job had made it.
    created: bool,
    /// Permissions; bit 9: it was removed, and goes with its last attachment; bit 10: locked in memory.
    mode: u32,
    /// Owner.
    uid: u32,
    /// Owner's group.
    gid: u32,
    /// Length of a segment in bytes, semaphores of a set, or bytes that a queue may hold.
    size: u64,
    /// Whether `content` is that of a segment. If not, regions are.
    has_content: bool,
    /// Content of a segment, or values of semaphores, two bytes each.
    content: Vec<u8>,
    /// Messages, the first first.
    messages: Vec<Message>,
}
}

record! {
/// A message in a POSIX message queue.
QueueMessage {
    /// Its priority.
    priority: u32,
    /// Its bytes.
    text: Vec<u8>,
}
}

record! {
/// A POSIX message queue, saved by one of those who have it open.
Queue {
    /// Device.
    dev: u64,
    /// Inode.
    inode: u64,
    /// The host and namespace in which that means something, in words.
    place: Vec<u8>,
    /// Its name, without the slash in front; the one that it had, if it was unlinked.
    name: Vec<u8>,
    /// Whether it was unlinked.
    deleted: bool,
    /// Whether a process of the job had made it. Of others nothing but the name is saved.
    created: bool,
    /// Its mode bits.
    mode: u32,
    /// How many messages it may hold.
    max_messages: i64,
    /// How long each may be, in bytes.
    message_size: i64,
    /// Those that it holds, the first first.
    messages: Vec<QueueMessage>,
}
}
