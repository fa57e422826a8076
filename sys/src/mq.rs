//! POSIX message queues (mq_overview(7)).
//!
//! Names are without the leading slash that libc's functions ask for.

use core::ffi::CStr;

use crate::arch::{nr, syscall};
use crate::calls::{int, word};
use crate::{Errno, SigEvent, Timespec, check, oflag};

/// `struct mq_attr` (include/uapi/linux/mqueue.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Attributes {
    /// `O_NONBLOCK` of the description.
    pub flags: i64,
    /// How many messages the queue may hold.
    pub max_messages: i64,
    /// How long one may be, in bytes.
    pub message_size: i64,
    /// How many it holds.
    pub messages: i64,
    reserved: [i64; 4],
}

impl Attributes {
    /// Those that a queue is made with.
    #[must_use]
    pub const fn new(max_messages: i64, message_size: i64) -> Self {
        Self { flags: 0, max_messages, message_size, messages: 0, reserved: [0; 4] }
    }
}

/// Who is to be told of the next message, as a queue says it that is read like a file (ipc/mqueue.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// `SIGEV_…`
    pub notify: i32,
    /// The signal, if that is `SIGEV_SIGNAL`.
    pub signo: i32,
    /// The process; 0 for one of another pid namespace.
    pub pid: i32,
}

impl Notice {
    /// Reads what a queue says. `None`: nobody is to be told, or it says something else.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let field = |name: &[u8]| -> Option<i32> {
            let at = text.windows(name.len()).position(|part| part == name)? + name.len();
            let digits = text[at..].split(|&byte| byte == b' ' || byte == b'\n').next()?;
            crate::proc::decimal(digits).and_then(|value| i32::try_from(value).ok())
        };
        // The space tells the process from the kind.
        let (notify, signo, pid) = (field(b" NOTIFY:")?, field(b" SIGNO:")?, field(b"_PID:")?);
        (notify != 0 || signo != 0 || pid != 0).then_some(Self { notify, signo, pid })
    }
}

/// Opens a queue, or makes one that did not exist if `made` says its mode and attributes.
///
/// # Errors
///
/// The kernel's, as of mq_open(3).
pub fn open(name: &CStr, flags: i32, made: Option<(u32, &Attributes)>) -> Result<i32, Errno> {
    let (mode, attributes) = made.map_or((0, 0), |(mode, attributes)| {
        (mode as usize, core::ptr::from_ref(attributes).addr())
    });
    let flags = match made {
        Some(_) => flags | oflag::CREAT | oflag::EXCL,
        None => flags,
    };
    // SAFETY: the call reads the name, which is NUL-terminated, and the attributes, which live as long.
    let made = unsafe {
        syscall(nr::MQ_OPEN, [name.as_ptr().addr(), word(flags), mode, attributes, 0, 0])
    };
    check(made).map(int)
}

/// Removes the name of a queue.
///
/// # Errors
///
/// The kernel's, as of mq_unlink(3).
pub fn unlink(name: &CStr) -> Result<(), Errno> {
    // SAFETY: the call reads the name, which is NUL-terminated.
    check(unsafe { syscall(nr::MQ_UNLINK, [name.as_ptr().addr(), 0, 0, 0, 0, 0]) }).map(drop)
}

/// The attributes of a queue.
///
/// # Errors
///
/// BADF: it is none.
pub fn attributes(fd: i32) -> Result<Attributes, Errno> {
    let mut found = Attributes::default();
    // SAFETY: the call fills the structure.
    check(unsafe { syscall(nr::MQ_GETSETATTR, [word(fd), 0, (&raw mut found).addr(), 0, 0, 0]) })?;
    Ok(found)
}

/// A time that has passed: nothing is waited for.
static AT_ONCE: Timespec = Timespec { sec: 0, nsec: 0 };

/// Takes the first message of those with the highest priority, not waiting; returns its length and priority.
/// `buffer` is as long as the longest message of the queue.
///
/// # Errors
///
/// AGAIN or TIMEDOUT: there is none.
pub fn receive(fd: i32, buffer: &mut [u8]) -> Result<(usize, u32), Errno> {
    let mut priority = 0u32;
    let until = (&raw const AT_ONCE).addr();
    let arguments =
        [word(fd), buffer.as_mut_ptr().addr(), buffer.len(), (&raw mut priority).addr(), until, 0];
    // SAFETY: the call writes to the buffer and the word, and reads the time.
    let len = check(unsafe { syscall(nr::MQ_TIMEDRECEIVE, arguments) })?;
    Ok((len, priority))
}

/// Sends a message, not waiting.
///
/// # Errors
///
/// AGAIN or TIMEDOUT: the queue is full.
pub fn send(fd: i32, message: &[u8], priority: u32) -> Result<(), Errno> {
    let until = (&raw const AT_ONCE).addr();
    let arguments = [word(fd), message.as_ptr().addr(), message.len(), priority as usize, until, 0];
    // SAFETY: the call reads the message and the time.
    check(unsafe { syscall(nr::MQ_TIMEDSEND, arguments) }).map(drop)
}

/// Asks for notice of the next message to an empty queue, or not any more.
///
/// # Errors
///
/// BUSY: another process has asked.
pub fn notify(fd: i32, event: Option<&SigEvent>) -> Result<(), Errno> {
    let event = event.map_or(0, |event| core::ptr::from_ref(event).addr());
    // SAFETY: the call reads the event.
    check(unsafe { syscall(nr::MQ_NOTIFY, [word(fd), event, 0, 0, 0, 0]) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_says_who_is_to_be_told() {
        let nobody = b"QSIZE:129     NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n";
        assert_eq!(Notice::parse(nobody), None);
        let signal = b"QSIZE:0          NOTIFY:0     SIGNO:10    NOTIFY_PID:8260  \n";
        assert_eq!(Notice::parse(signal), Some(Notice { notify: 0, signo: 10, pid: 8260 }));
        let none = b"QSIZE:0          NOTIFY:1     SIGNO:0     NOTIFY_PID:8260  \n";
        assert_eq!(Notice::parse(none), Some(Notice { notify: 1, signo: 0, pid: 8260 }));
        assert_eq!(Notice::parse(b""), None);
    }
}
