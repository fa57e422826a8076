//! Descriptors: regular files, directories and devices that can be opened again, pipes with their
//! content, and the standard streams of the launcher.

use alloc::vec::Vec;

use ulpm_image::Meta;
use ulpm_image::meta::{DeletedFile, Description, Descriptor, Pipe, description_kind as kind};
use ulpm_protocol::table::StreamId;
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{decimal, octal, value};
use ulpm_sys::{Errno, FileStatus, mode, oflag};

use super::text::{Directory, read_file};
use super::{Subject, unsupported};
use crate::freeze::Failed;
use crate::threads;

/// Kinds of elections.
const DESCRIPTION: u64 = 1;
const PIPE: u64 = 2;
const DELETED: u64 = 5;

/// The longest file without a name whose content is saved, in bytes.
const MAX_DELETED: i64 = 256 << 20;

/// The file system of POSIX message queues (ipc/mqueue.c).
const MQUEUE_MAGIC: u64 = 0x1980_0202;

/// A descriptor of the program, and our duplicate of it.
struct Open {
    fd: i32,
    ours: i32,
    status: FileStatus,
    flags: u32,
    position: u64,
    path: Vec<u8>,
}

impl Drop for Open {
    fn drop(&mut self) {
        ulpm_sys::close(self.ours);
    }
}

pub(super) fn collect(subject: &Subject<'_>, meta: &mut Meta) -> Result<(), Failed> {
    let pid = ulpm_sys::getpid();
    // When the leading thread has ended, so has its view of the descriptors.
    let task = match threads::stopped(subject.own).next() {
        // SAFETY: the thread stands still.
        Some(stopped) if subject.leader_gone => unsafe { (*stopped).tid },
        _ => pid,
    };
    let pidfd =
        ulpm_sys::pidfd_open(pid).map_err(|e| Failed::system("open a pidfd of itself", e))?;
    let result = collect_from(subject, meta, task, pidfd);
    ulpm_sys::close(pidfd);
    result
}

fn collect_from(
    subject: &Subject<'_>,
    meta: &mut Meta,
    task: i32,
    pidfd: i32,
) -> Result<(), Failed> {
    let path = Text::<64>::path(format_args!("/proc/self/task/{task}/fd"));
    let mut names =
        Directory::open(path.c_str()).map_err(|e| Failed::system("list descriptors", e))?;
    let mut numbers: Vec<i32> = Vec::new();
    while let Some(name) = names.next() {
        numbers.extend(decimal(name).and_then(|fd| i32::try_from(fd).ok()));
    }
    numbers.sort_unstable();
    for fd in numbers {
        let open = open_again(task, pidfd, fd)?;
        let description = describe(subject, task, &open)?;
        meta.descriptors.push(Descriptor {
            fd,
            cloexec: open.flags & oflag::CLOEXEC.cast_unsigned() != 0,
            description: description.id,
        });
        if description.kind == kind::PIPE
            && subject.wins(PIPE, &[open.status.dev, open.status.ino])?
        {
            meta.pipes.push(pipe(&open)?);
        }
        if description.kind == kind::DELETED
            && subject.wins(DELETED, &[open.status.dev, open.status.ino])?
        {
            meta.deleted.push(deleted(&open)?);
        }
        if !meta.descriptions.iter().any(|known| known.id == description.id) {
            meta.descriptions.push(description);
        }
    }
    Ok(())
}

fn open_again(task: i32, pidfd: i32, fd: i32) -> Result<Open, Failed> {
    let failed = |errno| Failed::system("look at a descriptor", errno);
    let ours = ulpm_sys::pidfd_getfd(pidfd, fd).map_err(failed)?;
    let mut info_buffer = [0; 1024];
    let info_path = Text::<64>::path(format_args!("/proc/self/task/{task}/fdinfo/{fd}"));
    let info = read_file(info_path.c_str(), &mut info_buffer);
    let mut open = Open {
        fd,
        ours,
        status: FileStatus::default(),
        flags: value(info, b"flags:")
            .and_then(octal)
            .and_then(|flags| u32::try_from(flags).ok())
            .unwrap_or(0),
        position: value(info, b"pos:").and_then(decimal).unwrap_or(0),
        path: Vec::new(),
    };
    open.status = ulpm_sys::fstat(ours).map_err(failed)?;
    let link = Text::<64>::path(format_args!("/proc/self/task/{task}/fd/{fd}"));
    let mut path = [0; 4096];
    open.path = ulpm_sys::readlink(link.c_str(), &mut path).map_err(failed)?.to_vec();
    Ok(open)
}

fn describe(subject: &Subject<'_>, task: i32, open: &Open) -> Result<Description, Failed> {
    let status = &open.status;
    let mut description = Description {
        id: 0,
        kind: kind::FILE,
        flags: open.flags & !oflag::CLOEXEC.cast_unsigned(),
        position: open.position,
        dev: status.dev,
        inode: status.ino,
        mode: status.mode,
        file_len: u64::try_from(status.size).unwrap_or(0),
        path: virtual_path(subject, &open.path),
    };
    if let Some(stream) = stream(subject, open) {
        // Each descriptor on its own: the streams of a restart need not be one, as these may be.
        description.kind = kind::STREAM;
        description.inode = stream;
        description.id = 1 << 63 | stream << 32 | u64::from(open.fd.cast_unsigned());
        return Ok(description);
    }
    match status.mode & mode::TYPE {
        mode::FIFO if open.path.starts_with(b"pipe:") => {
            if open.flags & oflag::DIRECT.cast_unsigned() != 0 {
                return Err(cannot(open, "is a pipe of packets (O_DIRECT)"));
            }
            description.kind = kind::PIPE;
        }
        mode::REGULAR if ulpm_sys::filesystem(open.ours) == Ok(MQUEUE_MAGIC) => {
            return Err(cannot(open, "is a message queue"));
        }
        mode::REGULAR if open.path.ends_with(b" (deleted)") => {
            if status.size > MAX_DELETED {
                return Err(cannot(
                    open,
                    "was deleted, and is longer than what is saved of such a file",
                ));
            }
            description.kind = kind::DELETED;
        }
        mode::DIRECTORY if open.path.ends_with(b" (deleted)") => {
            return Err(cannot(open, "is a directory that was deleted"));
        }
        mode::CHARACTER if open.path.ends_with(b"/ptmx") => {
            return Err(cannot(open, "is the master of a pseudo-terminal"));
        }
        mode::REGULAR | mode::DIRECTORY | mode::CHARACTER => {}
        mode::SOCKET => return Err(cannot(open, "is a socket")),
        _ if open.path.starts_with(b"anon_inode:") => {
            return Err(cannot(open, "is an object of the kernel"));
        }
        mode::FIFO => return Err(cannot(open, "is a named pipe")),
        _ => return Err(cannot(open, "is of a kind that ULPM does not know")),
    }
    description.id = identity(subject, task, open)?;
    Ok(description)
}

/// A path below /proc/PID with the id by which the program knows that process.
fn virtual_path(subject: &Subject<'_>, path: &[u8]) -> Vec<u8> {
    let parts = || {
        let rest = path.strip_prefix(b"/proc/")?;
        let end = rest.iter().position(|&byte| byte == b'/')?;
        let real = decimal(&rest[..end]).and_then(|pid| i32::try_from(pid).ok())?;
        Some((subject.table.virtual_of(real), &rest[end..]))
    };
    let Some((virt, rest)) = parts() else { return path.to_vec() };
    [Text::<32>::of(format_args!("/proc/{virt}")).bytes(), rest].concat()
}

fn cannot(open: &Open, why: &str) -> Failed {
    let path = open.path.escape_ascii();
    let fd = open.fd;
    unsupported(format_args!(
        "descriptor {fd} ({path}) {why}, which cannot be saved yet; close it before a checkpoint"
    ))
}

/// Which standard stream of the launcher a descriptor is.
fn stream(subject: &Subject<'_>, open: &Open) -> Option<u64> {
    let wanted = StreamId { dev: open.status.dev, ino: open.status.ino, open: true };
    let matches = |index: usize| subject.table.streams().any(|streams| streams[index] == wanted);
    let own = usize::try_from(open.fd).ok().filter(|&fd| fd < 3);
    let found = match own {
        // A file to read from goes on where it stood; no other one can stand for it.
        Some(0) if open.status.mode & mode::TYPE == mode::REGULAR => None,
        Some(fd) if matches(fd) => Some(fd),
        // A file or device that the launcher's streams lead to can be open for another reason too.
        _ if !is_channel(open) => None,
        _ => (0..3).find(|&index| matches(index)),
    };
    found.map(|index| index as u64)
}

/// Whether a descriptor is of a kind that leads to one particular other end: a pipe, a socket, a terminal.
fn is_channel(open: &Open) -> bool {
    match open.status.mode & mode::TYPE {
        mode::FIFO | mode::SOCKET => true,
        mode::CHARACTER => {
            open.path.starts_with(b"/dev/pts/") || open.path.starts_with(b"/dev/tty")
        }
        _ => false,
    }
}

/// A number that all descriptors of the job share which share an open file description.
///
/// Descriptions that look alike meet at one claim. The first to come gives it its own process and
/// descriptor as number; whoever comes later compares with kcmp(2), and goes on to the next claim if
/// it is another description after all. All are frozen, so the descriptors stay what they are.
fn identity(subject: &Subject<'_>, task: i32, open: &Open) -> Result<u64, Failed> {
    let me = u64::from(task.cast_unsigned()) << 32 | u64::from(open.fd.cast_unsigned());
    let looks = [open.status.dev, open.status.ino, open.position, u64::from(open.flags & 0o3)];
    for attempt in 0..=u64::from(u32::MAX) {
        let key = subject.key(DESCRIPTION, &[&looks[..], &[attempt]].concat());
        let found = subject
            .table
            .claim(key, me)
            .map_err(|error| unsupported(format_args!("too many open files: {error}")))?;
        if found == me {
            return Ok(me);
        }
        #[expect(clippy::cast_possible_truncation, reason = "the two halves that `me` has")]
        let (other, other_fd) = ((found >> 32) as i32, found as i32);
        match ulpm_sys::same_description([task, other], [open.fd, other_fd]) {
            Ok(true) => return Ok(found),
            Ok(false) => {}
            Err(errno) => return Err(Failed::system("compare descriptors with kcmp", errno)),
        }
    }
    Ok(me)
}

/// The content of a file that nobody could open again.
fn deleted(open: &Open) -> Result<DeletedFile, Failed> {
    let failed = |errno| Failed::system("read a file that was deleted", errno);
    // Opened anew, for the descriptor may be for writing only.
    let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{}", open.ours));
    let from = ulpm_sys::open(link.c_str(), oflag::RDONLY | oflag::CLOEXEC).map_err(failed)?;
    let mut content = alloc::vec![0; usize::try_from(open.status.size).unwrap_or(0)];
    let mut read = 0;
    let result = loop {
        match ulpm_sys::pread(from, &mut content[read..], read) {
            Ok(0) => break Ok(()),
            Ok(more) => read += more,
            Err(errno) => break Err(failed(errno)),
        }
    };
    ulpm_sys::close(from);
    content.truncate(read);
    result.map(|()| DeletedFile { dev: open.status.dev, inode: open.status.ino, content })
}

/// Copies what is in a pipe, and leaves it there.
fn pipe(open: &Open) -> Result<Pipe, Failed> {
    let failed = |errno: Errno| Failed::system("copy the content of a pipe", errno);
    let capacity = ulpm_sys::fcntl(open.ours, ulpm_sys::F_GETPIPE_SZ, 0).map_err(failed)?;
    let mut content = Vec::new();
    let len = ulpm_sys::bytes_to_read(open.ours).map_err(failed)?;
    if len != 0 {
        // Opened anew for reading, whichever end this is: an open through /proc makes a description
        // of its own, so the program's flags stay as they are.
        let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{}", open.ours));
        let flags = oflag::RDONLY | oflag::NONBLOCK | oflag::CLOEXEC;
        let from = ulpm_sys::open(link.c_str(), flags).map_err(failed)?;
        let copied = match copy_pipe(from, capacity, len, &mut content) {
            Err(Errno::PERM) => take_out_and_put_back(from, link.c_str(), len, &mut content),
            other => other,
        };
        ulpm_sys::close(from);
        copied.map_err(failed)?;
    }
    let capacity = u64::try_from(capacity).unwrap_or(0);
    Ok(Pipe { id: open.status.ino, capacity, content })
}

/// For a user who has so many pipes that no further one gets enough buffers (fs.pipe-user-pages-soft).
///
/// All processes of the job stand still meanwhile, and what came out fits in again.
fn take_out_and_put_back(
    from: i32,
    link: &core::ffi::CStr,
    len: usize,
    content: &mut Vec<u8>,
) -> Result<(), Errno> {
    let into = ulpm_sys::open(link, oflag::WRONLY | oflag::CLOEXEC)?;
    content.resize(len, 0);
    let taken = ulpm_sys::read(from, content);
    content.truncate(taken.unwrap_or(0));
    let mut rest = &content[..];
    while !rest.is_empty() {
        // It can fail in no other way than to be interrupted: we hold a reader.
        rest = &rest[ulpm_sys::write(into, rest).unwrap_or(0)..];
    }
    ulpm_sys::close(into);
    match taken? {
        all if all == len => Ok(()),
        _ => Err(Errno::IO),
    }
}

fn copy_pipe(from: i32, capacity: i32, len: usize, content: &mut Vec<u8>) -> Result<(), Errno> {
    let [out, into] = ulpm_sys::pipe(oflag::CLOEXEC | oflag::NONBLOCK)?;
    let result = (|| {
        // As many buffers as the original has: tee copies buffers, not bytes.
        let size = usize::try_from(capacity).unwrap_or(ulpm_sys::PAGE);
        ulpm_sys::fcntl(into, ulpm_sys::F_SETPIPE_SZ, size)?;
        let copied = ulpm_sys::tee(from, into, len)?;
        content.resize(copied, 0);
        let mut read = 0;
        while read < copied {
            match ulpm_sys::read(out, &mut content[read..])? {
                0 => return Err(Errno::IO),
                more => read += more,
            }
        }
        if copied == len { Ok(()) } else { Err(Errno::IO) }
    })();
    ulpm_sys::close(out);
    ulpm_sys::close(into);
    result
}
