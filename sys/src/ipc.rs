//! System V shared memory, semaphores and message queues.
//!
//! Numbers are those of include/uapi/linux/{ipc,shm,sem,msg}.h, structures those of
//! include/uapi/asm-generic/{ipcbuf,shmbuf,msgbuf}.h and arch/x86/include/uapi/asm/sembuf.h.

use crate::arch::{nr, syscall};
use crate::calls::word;
use crate::{Errno, check};

/// What sort of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A shared memory segment.
    Memory = 1,
    /// A set of semaphores.
    Semaphores = 2,
    /// A message queue.
    Messages = 3,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Memory),
            2 => Some(Self::Semaphores),
            3 => Some(Self::Messages),
            _ => None,
        }
    }

    /// What a user calls it.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Memory => "shared memory segment",
            Self::Semaphores => "set of semaphores",
            Self::Messages => "message queue",
        }
    }

    /// The object's control call, with its command in front of the argument.
    fn control(self, id: i32, command: usize, argument: usize) -> [usize; 7] {
        let id = word(id);
        match self {
            Self::Memory => [nr::SHMCTL, id, command, argument, 0, 0, 0],
            Self::Semaphores => [nr::SEMCTL, id, 0, command, argument, 0, 0],
            Self::Messages => [nr::MSGCTL, id, command, argument, 0, 0, 0],
        }
    }
}

/// The key of objects that have none.
pub const PRIVATE: i32 = 0;
/// Make the object if there is none.
pub const CREAT: i32 = 0o1000;
/// Fail if there is one.
pub const EXCL: i32 = 0o2000;
/// In a segment's mode: it goes with its last attachment.
pub const DEST: u32 = 0o1000;
/// In a segment's mode: it is locked in memory.
pub const LOCKED: u32 = 0o2000;
/// Attach for reading only.
pub const RDONLY: usize = 0o10_000;
/// Replace what is mapped at the address.
pub const REMAP: usize = 0o40_000;
/// Attach executable.
pub const EXEC: usize = 0o100_000;
/// In an operation's flags: undo it when the process ends.
pub const UNDO: i16 = 0x1000;
/// In an operation's flags: do not wait.
pub const NOWAIT: i16 = 0o4000;

/// Commands of the control calls.
#[expect(missing_docs, reason = "shmctl(2), semctl(2), msgctl(2)")]
pub mod command {
    pub const RMID: i32 = 0;
    pub const SET: i32 = 1;
    pub const STAT: i32 = 2;
    pub const SHM_LOCK: i32 = 11;
    pub const SHM_UNLOCK: i32 = 12;
    pub const SHM_STAT: i32 = 13;
    pub const SHM_STAT_ANY: i32 = 15;
    pub const SEM_GETPID: i32 = 11;
    pub const SEM_GETALL: i32 = 13;
    pub const SEM_SETVAL: i32 = 16;
    pub const SEM_SETALL: i32 = 17;
    pub const SEM_STAT: i32 = 18;
    pub const SEM_STAT_ANY: i32 = 20;
    pub const MSG_STAT: i32 = 11;
    pub const MSG_STAT_ANY: i32 = 13;
}

/// `struct shmid64_ds`, `semid64_ds` or `msqid64_ds`, all of which begin with `struct ipc64_perm`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Status {
    /// Changes with IPC_RMID to [`PRIVATE`] where the object lives on.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Permissions, [`DEST`] and [`LOCKED`].
    pub mode: u32,
    seq: u32,
    pad: [u32; 5],
    rest: [u64; 10],
}

impl Status {
    /// Bytes of a segment, semaphores of a set, or bytes that a queue may hold.
    #[must_use]
    pub const fn size(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Memory => self.rest[0],
            Kind::Semaphores => self.rest[4],
            Kind::Messages => self.rest[5],
        }
    }

    /// Sets the bytes that a queue may hold.
    pub const fn set_queue_bytes(&mut self, bytes: u64) {
        self.rest[5] = bytes;
    }

    /// Attachments of a segment.
    #[must_use]
    pub const fn attachments(&self) -> u64 {
        self.rest[5]
    }

    /// Messages in a queue.
    #[must_use]
    pub const fn messages(&self) -> u64 {
        self.rest[4]
    }

    /// Bytes of all messages in a queue.
    #[must_use]
    pub const fn message_bytes(&self) -> u64 {
        self.rest[3]
    }
}

/// Where in a status the ids of the two processes lie that made or used a segment or queue.
///
/// # Safety
///
/// `status` points to the status of an object of this kind, as long as that kind's is.
#[must_use]
pub unsafe fn pids(kind: Kind, status: *mut Status) -> Option<*mut [i32; 2]> {
    // SAFETY: the caller vouches for it; a segment's lie in word 4, a queue's in word 6.
    unsafe {
        match kind {
            Kind::Memory => Some((&raw mut (*status).rest[4]).cast()),
            Kind::Semaphores => None,
            Kind::Messages => Some((&raw mut (*status).rest[6]).cast()),
        }
    }
}

/// What is known of an object.
///
/// # Errors
///
/// INVAL, IDRM: there is none. ACCES.
pub fn status(kind: Kind, id: i32) -> Result<Status, Errno> {
    let mut status = Status::default();
    let at = core::ptr::from_mut(&mut status).addr();
    control(kind, id, command::STAT, at)?;
    Ok(status)
}

/// Gives an object the owner and permissions, and a queue the bytes that it may hold, of `status`.
///
/// # Errors
///
/// INVAL, IDRM, PERM.
pub fn set(kind: Kind, id: i32, status: &Status) -> Result<(), Errno> {
    control(kind, id, command::SET, core::ptr::from_ref(status).addr()).map(drop)
}

/// Removes an object.
///
/// # Errors
///
/// INVAL, IDRM, PERM.
pub fn remove(kind: Kind, id: i32) -> Result<(), Errno> {
    control(kind, id, command::RMID, 0).map(drop)
}

/// Locks a segment in memory.
///
/// # Errors
///
/// PERM, NOMEM.
pub fn lock(id: i32) -> Result<(), Errno> {
    control(Kind::Memory, id, command::SHM_LOCK, 0).map(drop)
}

fn control(kind: Kind, id: i32, command: i32, argument: usize) -> Result<usize, Errno> {
    let [number, args @ ..] = kind.control(id, word(command), argument);
    // SAFETY: the callers above and below pass the address of what the command reads or fills, which
    // outlives the call, or a command that takes none.
    check(unsafe { syscall(number, args) })
}

/// Finds or makes an object of `size` bytes or semaphores.
///
/// # Errors
///
/// EXIST, NOENT, INVAL, NOSPC, ACCES, NOMEM.
pub fn get(kind: Kind, key: i32, size: usize, flags: i32) -> Result<i32, Errno> {
    let (key, flags) = (word(key), word(flags));
    let (number, args) = match kind {
        Kind::Memory => (nr::SHMGET, [key, size, flags, 0, 0, 0]),
        Kind::Semaphores => (nr::SEMGET, [key, size, flags, 0, 0, 0]),
        Kind::Messages => (nr::MSGGET, [key, flags, 0, 0, 0, 0]),
    };
    // SAFETY: the calls take numbers only.
    let id = check(unsafe { syscall(number, args) })?;
    #[expect(clippy::cast_possible_truncation, reason = "the kernel returns an int")]
    Ok(id as i32)
}

/// Attaches a segment at an address of the kernel's choice.
///
/// # Errors
///
/// INVAL, IDRM, ACCES, NOMEM.
pub fn attach(id: i32, flags: usize) -> Result<usize, Errno> {
    // SAFETY: a new mapping; nothing lies there.
    check(unsafe { syscall(nr::SHMAT, [word(id), 0, flags, 0, 0, 0]) })
}

/// Detaches the segment that is attached at an address.
///
/// # Safety
///
/// Nobody uses it any more.
pub unsafe fn detach(address: usize) {
    // SAFETY: the caller vouches for the address.
    unsafe { syscall(nr::SHMDT, [address, 0, 0, 0, 0, 0]) };
}

/// The values of all semaphores of a set; there are as many as `values` is long.
///
/// # Errors
///
/// INVAL, IDRM, ACCES.
pub fn semaphores(id: i32, values: &mut [u16]) -> Result<(), Errno> {
    // The kernel stores as many as there are.
    if status(Kind::Semaphores, id)?.size(Kind::Semaphores) != values.len() as u64 {
        return Err(Errno::INVAL);
    }
    control(Kind::Semaphores, id, command::SEM_GETALL, values.as_mut_ptr().addr()).map(drop)
}

/// Sets the values of all semaphores of a set; as [`semaphores`].
///
/// # Errors
///
/// INVAL, IDRM, ACCES, RANGE.
pub fn set_semaphores(id: i32, values: &[u16]) -> Result<(), Errno> {
    if status(Kind::Semaphores, id)?.size(Kind::Semaphores) != values.len() as u64 {
        return Err(Errno::INVAL);
    }
    control(Kind::Semaphores, id, command::SEM_SETALL, values.as_ptr().addr()).map(drop)
}

/// `struct sembuf`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Operation {
    /// Which semaphore.
    pub semaphore: u16,
    /// What is added.
    pub change: i16,
    /// [`UNDO`], [`NOWAIT`].
    pub flags: i16,
}

/// Operates on semaphores, all at once.
///
/// # Errors
///
/// INVAL, IDRM, ACCES, RANGE, AGAIN, NOSPC.
pub fn operate(id: i32, operations: &[Operation]) -> Result<(), Errno> {
    let at = operations.as_ptr().addr();
    // SAFETY: the kernel reads the operations, which outlive the call.
    check(unsafe { syscall(nr::SEMOP, [word(id), at, operations.len(), 0, 0, 0]) }).map(drop)
}

/// Makes the kernel owe `adjust` to a semaphore when the calling process ends, and leaves its value.
///
/// # Errors
///
/// As [`operate`].
pub fn owe(id: i32, semaphore: u16, adjust: i16) -> Result<(), Errno> {
    // What a process has done is taken back: so it is to have done the opposite, and that without anyone
    // seeing it. The operation that adds comes first, for the other could not wait.
    let own = Operation { semaphore, change: adjust.wrapping_neg(), flags: UNDO | NOWAIT };
    let back = Operation { semaphore, change: adjust, flags: NOWAIT };
    operate(id, &if adjust > 0 { [back, own] } else { [own, back] })
}

/// Copies the message at a place in a queue, which stays as it is: its type to the first word of
/// `buffer`, its text behind that. Returns the length of the text.
///
/// # Errors
///
/// NOMSG: there is none. NOSYS: the kernel was built without CONFIG_CHECKPOINT_RESTORE.
pub fn copy_message(id: i32, place: usize, buffer: &mut [u64]) -> Result<usize, Errno> {
    const NOERROR: usize = 0o10_000;
    const COPY: usize = 0o40_000;
    let room = size_of_val(buffer).saturating_sub(8);
    let flags = COPY | NOERROR | NOWAIT as usize;
    // SAFETY: the kernel fills one word and as many bytes as it is told.
    check(unsafe {
        let at = buffer.as_mut_ptr().addr();
        syscall(nr::MSGRCV, [word(id), at, room, place, flags, 0])
    })
}

/// Takes the first message out of a queue.
///
/// # Errors
///
/// NOMSG: there is none.
pub fn take_message(id: i32) -> Result<(), Errno> {
    const NOERROR: usize = 0o10_000;
    let mut buffer = [0u64; 1];
    let flags = NOERROR | NOWAIT as usize;
    // SAFETY: the kernel fills one word; the text is cut to nothing.
    check(unsafe {
        let at = buffer.as_mut_ptr().addr();
        syscall(nr::MSGRCV, [word(id), at, 0, 0, flags, 0])
    })
    .map(drop)
}

/// Puts a message at the end of a queue: the type in the first word of `buffer`, `len` bytes of text behind.
///
/// # Errors
///
/// AGAIN: there is no room. INVAL: it is too long.
pub fn send_message(id: i32, buffer: &[u64], len: usize) -> Result<(), Errno> {
    if len > size_of_val(buffer).saturating_sub(8) {
        return Err(Errno::INVAL);
    }
    // SAFETY: the kernel reads one word and `len` bytes, which lie in the buffer.
    check(unsafe {
        let at = buffer.as_ptr().addr();
        syscall(nr::MSGSND, [word(id), at, len, NOWAIT as usize, 0, 0])
    })
    .map(drop)
}

const _: () = assert!(size_of::<Status>() == 128 && core::mem::offset_of!(Status, rest) == 48);

#[cfg(test)]
mod tests {
    use super::*;

    /// An object that goes when the test ends.
    struct Object(Kind, i32);

    impl Object {
        fn new(kind: Kind, size: usize) -> Self {
            Self(kind, get(kind, PRIVATE, size, CREAT | 0o600).unwrap())
        }
    }

    impl Drop for Object {
        fn drop(&mut self) {
            remove(self.0, self.1).unwrap();
        }
    }

    #[test]
    fn messages_are_copied_and_stay() {
        let queue = Object::new(Kind::Messages, 0);
        send_message(queue.1, &[7, 0x006f_6c6c_6568], 5).unwrap();
        send_message(queue.1, &[8, 0], 0).unwrap();
        let mut buffer = [0u64; 4];
        for _ in 0..2 {
            match copy_message(queue.1, 0, &mut buffer) {
                Err(Errno::NOSYS) => return,
                copied => assert_eq!((copied, buffer[0], buffer[1]), (Ok(5), 7, 0x006f_6c6c_6568)),
            }
        }
        assert_eq!(copy_message(queue.1, 1, &mut buffer), Ok(0));
        assert_eq!(copy_message(queue.1, 2, &mut buffer), Err(Errno::NOMSG));
        let status = status(Kind::Messages, queue.1).unwrap();
        assert_eq!((status.messages(), status.message_bytes()), (2, 5));
    }

    #[test]
    fn what_is_owed_does_not_change_the_value() {
        let set = Object::new(Kind::Semaphores, 3);
        set_semaphores(set.1, &[0, 5, 1]).unwrap();
        for (semaphore, adjust) in [(0, 3), (1, -2), (2, 1)] {
            owe(set.1, semaphore, adjust).unwrap();
        }
        let mut values = [9; 3];
        semaphores(set.1, &mut values).unwrap();
        assert_eq!(values, [0, 5, 1]);
        assert_eq!(semaphores(set.1, &mut [0; 2]), Err(Errno::INVAL));
    }

    #[test]
    fn a_segment_says_how_long_it_is() {
        let segment = Object::new(Kind::Memory, 5000);
        let at = attach(segment.1, 0).unwrap();
        let found = status(Kind::Memory, segment.1).unwrap();
        assert_eq!((found.size(Kind::Memory), found.attachments()), (5000, 1));
        // SAFETY: nobody uses it.
        unsafe { detach(at) };
    }
}
