//! POSIX message queues.
//!
//! Nobody can look at a message without taking it. So the messages of a queue that the job has made are taken, and sent
//! again in the order in which they came, by one of the processes that have it open. All processes of the job stand
//! still meanwhile; a program outside of the job that has the queue open too may find it empty for that moment, or get
//! a message of its own between them. Should the process that does it be killed in that moment, what it has taken is
//! lost. Queues that others have made are left alone: a restart opens them by their names.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU32;

use ulpm_image::Meta;
use ulpm_image::meta::{Queue, QueueMessage};
use ulpm_sys::fmt::Text;
use ulpm_sys::mq::{self, Attributes, Notice};
use ulpm_sys::{Errno, Timespec, mode, oflag};

use super::socket::later;
use super::{Open, Subject, cannot};
use crate::capture::ipc::place;
use crate::freeze::Failed;
use crate::notices;

/// The election of the process that saves a queue.
const QUEUE: u64 = 33;

/// How long others may keep a queue full whose messages are to be put back.
const PUT_BACK_NS: i64 = 5_000_000_000;

/// A description of our own.
struct Ours(i32);

impl Ours {
    fn open(open: &Open, flags: i32) -> Result<Self, Errno> {
        let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{}", open.ours));
        ulpm_sys::open(link.c_str(), flags | oflag::NONBLOCK | oflag::CLOEXEC).map(Self)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        notices::close(self.0);
    }
}

/// Saves the queue that a descriptor leads to, unless it was saved already or another process has to do it: that which
/// is to be told of a message (mq_notify), for no other can ask for that again.
pub(super) fn collect(subject: &Subject<'_>, open: &Open, meta: &mut Meta) -> Result<(), Failed> {
    let (dev, inode) = (open.status.dev, open.status.ino);
    if meta.queues.iter().any(|queue| (queue.dev, queue.inode) == (dev, inode)) {
        return Ok(());
    }
    let failed = |errno| Failed::system("look at a message queue", errno);
    let name = open.path.strip_prefix(b"/").unwrap_or(&open.path);
    let deleted = name.strip_suffix(b" (deleted)").filter(|_| open.status.nlink == 0);
    let created = subject.table.has_made_queue(inode);
    if !created && deleted.is_some() {
        return Err(cannot(
            open,
            "is a message queue that was made outside of the job and has no name any more",
        ));
    }
    let attributes = mq::attributes(open.ours).map_err(failed)?;
    let notice = notice(open)?;
    let me = ulpm_sys::getpid();
    match notice {
        Some(notice) if notice.pid == me => {
            wait_again(subject, open, notice, attributes.messages != 0)?;
        }
        // That process does it, which has the queue open too: it would not be told any more if it had not.
        Some(notice) if subject.table.by_real(notice.pid).is_some() => return Ok(()),
        Some(_) if created && attributes.messages != 0 => {
            return Err(cannot(
                open,
                "is a message queue with messages, of whose next a program outside of the job is to be told",
            ));
        }
        _ => {}
    }
    if !subject.wins(QUEUE, &[dev, inode])? {
        return Ok(());
    }
    let mut queue = Queue {
        dev,
        inode,
        place: place(),
        name: deleted.unwrap_or(name).to_vec(),
        deleted: deleted.is_some(),
        created,
        mode: open.status.mode & !mode::TYPE,
        max_messages: attributes.max_messages,
        message_size: attributes.message_size,
        messages: Vec::new(),
    };
    if created {
        let told = notice.filter(|notice| notice.pid == me);
        queue.messages = messages(open, &attributes, told)?;
        if !queue.deleted {
            let status = ulpm_sys::fstat(open.ours).map_err(failed)?;
            notices::goes_along(&queue.name, &status);
        }
    }
    meta.queues.push(queue);
    Ok(())
}

/// Who is to be told of the next message.
fn notice(open: &Open) -> Result<Option<Notice>, Failed> {
    let own = Ours::open(open, oflag::RDONLY);
    let reads = open.flags & oflag::ACCMODE.cast_unsigned() != oflag::WRONLY.cast_unsigned();
    let mut text = [0; 128];
    let len = match &own {
        Ok(own) => ulpm_sys::pread(own.0, &mut text, 0),
        Err(_) if reads => ulpm_sys::pread(open.ours, &mut text, 0),
        Err(errno) => Err(*errno),
    };
    let len = len.map_err(|errno| Failed::system("read what a message queue says", errno))?;
    Ok(Notice::parse(&text[..len]))
}

/// Has the process ask again for what it waits for, when it is restarted.
fn wait_again(
    subject: &Subject<'_>,
    open: &Open,
    notice: Notice,
    has_messages: bool,
) -> Result<(), Failed> {
    let function = notices::function(open.status.ino);
    let why = match notices::known(open.status.ino, notice) {
        // To take the messages would wake libc's thread.
        Some(_) if notice.notify == notices::BY_THREAD && has_messages => {
            "is a message queue with messages, of whose next a new thread is to be told (mq_notify with SIGEV_THREAD)"
        }
        Some(_) if notice.notify == notices::BY_THREAD && function.is_none() => {
            "is a message queue of whose next message a new thread with attributes is to be told (mq_notify with SIGEV_THREAD)"
        }
        Some(mut event) if notice.notify == notices::BY_THREAD => {
            let Some(socket) = notices::libc_socket(subject.own) else {
                return Err(later(
                    open,
                    "is a message queue for whose next message no thread of libc waits now, which",
                ));
            };
            event.signo = socket;
            if notices::waits(open.fd, event, function) {
                return Ok(());
            }
            "is one of more message queues of whose messages it is to be told than can be saved"
        }
        Some(event) if notices::waits(open.fd, event, None) => return Ok(()),
        Some(_) => {
            "is one of more message queues of whose messages it is to be told than can be saved"
        }
        None => "is a message queue of which it is to be told (mq_notify), and how nobody knows",
    };
    Err(cannot(open, why))
}

/// The messages of a queue, which are there again afterwards.
fn messages(
    open: &Open,
    attributes: &Attributes,
    told: Option<Notice>,
) -> Result<Vec<QueueMessage>, Failed> {
    if attributes.messages == 0 {
        return Ok(Vec::new());
    }
    let failed = |errno| Failed::system("look at the messages of a queue", errno);
    let own = Ours::open(open, oflag::RDWR);
    let both = open.flags & oflag::ACCMODE.cast_unsigned() == oflag::RDWR.cast_unsigned();
    let fd = match &own {
        Ok(own) => own.0,
        Err(_) if both => open.ours,
        Err(_) => {
            return Err(cannot(
                open,
                "is a message queue whose mode forbids its owner to read and write",
            ));
        }
    };
    // The first to be put back would be told.
    let event = told.and_then(|notice| notices::known(open.status.ino, notice));
    if event.is_some() {
        mq::notify(fd, None).map_err(failed)?;
    }
    let taken = take(fd, attributes);
    let messages = match taken {
        Ok(messages) => messages,
        Err((errno, messages)) => {
            put_back(open, fd, &messages)?;
            return Err(failed(errno));
        }
    };
    put_back(open, fd, &messages)?;
    if let Some(event) = event {
        mq::notify(fd, Some(&event)).map_err(failed)?;
    }
    Ok(messages)
}

/// Takes all messages; when that fails, the answer has those that were taken.
fn take(fd: i32, attributes: &Attributes) -> Result<Vec<QueueMessage>, (Errno, Vec<QueueMessage>)> {
    // Room first, so that nothing fails when a message has been taken.
    let most = usize::try_from(attributes.max_messages).unwrap_or(0);
    let mut buffer = alloc::vec![0; usize::try_from(attributes.message_size).unwrap_or(0)];
    let mut messages = Vec::with_capacity(most);
    while messages.len() < most {
        match mq::receive(fd, &mut buffer) {
            Ok((len, priority)) => {
                messages.push(QueueMessage { priority, text: buffer[..len].to_vec() });
            }
            Err(Errno::AGAIN | Errno::TIMEDOUT) => break,
            Err(errno) => return Err((errno, messages)),
        }
    }
    Ok(messages)
}

fn put_back(open: &Open, fd: i32, messages: &[QueueMessage]) -> Result<(), Failed> {
    const PAUSE: Timespec = Timespec { sec: 0, nsec: 1_000_000 };
    let until = ulpm_sys::monotonic_ns() + PUT_BACK_NS;
    for message in messages {
        loop {
            match mq::send(fd, &message.text, message.priority) {
                Ok(()) => break,
                // Others have filled it meanwhile.
                Err(Errno::AGAIN | Errno::TIMEDOUT) if ulpm_sys::monotonic_ns() < until => {
                    let _ = ulpm_sys::futex_wait(&AtomicU32::new(0), 0, Some(PAUSE));
                }
                Err(_) => {
                    return Err(cannot(
                        open,
                        "is a message queue that others have filled before its messages were put back: some are lost",
                    ));
                }
            }
        }
    }
    Ok(())
}
