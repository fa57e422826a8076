//! Descriptors and the open file descriptions behind them.
//!
//! Each kind of description is a module, with the one of the same name in `restart/src/objects/` as its other
//! half. Its `kind` looks at a descriptor and says what it is, or why it cannot be saved; its `save` takes
//! the state of a description, in the one process that was elected for it.

mod epoll;
mod events;
mod file;
mod inotify;
mod lock;
mod pipe;
mod queue;
mod socket;
mod terminal;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use ulpm_image::Meta;
use ulpm_image::meta::{Description, Descriptor, description_kind as kind};
use ulpm_protocol::table::StreamId;
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{decimal, octal, value};
use ulpm_sys::{Errno, FileStatus, OwnedFd, mode, oflag};

use self::epoll::Epoll;
use self::inotify::Notifying;
use super::text::{Directory, read_file};
use super::{Subject, unsupported};
use crate::freeze::Failed;
use crate::{connections, locks, notices, owners, seals, threads};

/// The election of the process that saves a description.
const DESCRIPTION: u64 = 1;

/// A descriptor of the program, and our duplicate of it.
struct Open {
    fd: i32,
    ours: i32,
    status: FileStatus,
    flags: u32,
    position: u64,
    path: Vec<u8>,
    /// Whether it, or the process through it, holds file locks.
    locked: bool,
    /// The beginning of its fdinfo.
    info: Vec<u8>,
    /// Whether this was found under way in a socket, and stays open until [`let_go`].
    kept: bool,
    /// Of a regular file: the kind of its file system, as statfs(2) says it.
    filesystem: u64,
}

impl Open {
    /// A socket that was looked at before, and is needed again.
    fn socket(fd: i32, ours: i32, kept: bool, inode: u64) -> Self {
        let mut status = FileStatus::default();
        (status.ino, status.mode) = (inode, mode::SOCKET);
        let path = socket_path(inode);
        Self {
            fd,
            ours,
            status,
            flags: 0,
            position: 0,
            path,
            locked: false,
            info: Vec::new(),
            kept,
            filesystem: 0,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // One that is under way in a socket has to stay until all processes have compared theirs with it.
        if self.kept {
            return;
        }
        if self.filesystem == file::MQUEUE_MAGIC {
            notices::close(self.ours);
        } else {
            ulpm_sys::close(self.ours);
        }
    }
}

/// From here on, those that stay open after a capture are under way in sockets; the manager keeps fewer of its own.
const FIRST_KEPT: i32 = 64;

/// How long the stopped threads may take to tell the flags of a descriptor.
const ANSWER_NS: i64 = 5_000_000_000;

/// Moves a descriptor that was received to where it stays until [`let_go`].
fn keep(fd: i32) -> Result<i32, Errno> {
    /// F_DUPFD_CLOEXEC
    const DUPLICATE: i32 = 1030;
    let kept = ulpm_sys::fcntl(fd, DUPLICATE, FIRST_KEPT as usize);
    ulpm_sys::close(fd);
    kept
}

/// Closes what was kept: every process of the job was saved, or none will be.
pub(crate) fn let_go() {
    let _ = ulpm_sys::close_range(FIRST_KEPT.cast_unsigned(), u32::MAX, false);
}

pub(super) fn collect(subject: &Subject<'_>, meta: &mut Meta) -> Result<(), Failed> {
    let pid = ulpm_sys::getpid();
    // When the leading thread has ended, so has its view of the descriptors.
    let task = match threads::stopped(subject.own).next() {
        // SAFETY: the thread stands still.
        Some(stopped) if subject.leader_gone => unsafe { (*stopped).tid },
        _ => pid,
    };
    let pidfd = ulpm_sys::pidfd_open(pid)
        .map(OwnedFd::new)
        .map_err(|e| Failed::system("open a pidfd of itself", e))?;
    collect_from(subject, meta, task, pidfd.get())
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
    locks::forget();
    owners::clear();
    seals::clear();
    connections::clear();
    notices::clear();
    let mut found = Found::default();
    for fd in numbers {
        let open = open_again(task, pidfd, fd)?;
        owners::note(subject.table, fd, open.ours)?;
        seals::note(fd, open.ours, &open.path)?;
        let description = describe(subject, task, &open)?;
        if description.kind == kind::QUEUE {
            queue::collect(subject, &open, meta)?;
        }
        meta.descriptors.push(Descriptor {
            fd,
            cloexec: closes_on_exec(subject, &open)?,
            description: description.id,
        });
        take(subject, task, &open, description, &mut found, meta)?;
    }
    let manager = ulpm_sys::gettid();
    while let Some((open, description)) = found.sockets.in_flight.pop() {
        if description.kind == kind::QUEUE {
            return Err(cannot(&open, "is a message queue"));
        }
        if seals::is_sealed_late(open.ours, &open.path) {
            return Err(cannot(&open, "has the seal F_SEAL_FUTURE_WRITE"));
        }
        found.under_way.push((open.fd, description.id));
        take(subject, manager, &open, description, &mut found, meta)?;
    }
    socket::finish(subject, &mut found.sockets, meta, |fd| duplicate(pidfd, fd))?;
    events::look_again(task, pidfd, meta)?;
    inotify::save_all(task, &found.notifying, meta)?;
    epoll::save_all(subject, task, &found, meta)
}

/// What the descriptors of a process have led to.
#[derive(Default)]
struct Found {
    sockets: socket::Context,
    /// Descriptions that this process has saved.
    saved: BTreeSet<u64>,
    /// All that it has met.
    met: BTreeSet<u64>,
    /// Epoll instances that it saves, when all that they may watch is known.
    epolls: Vec<Epoll>,
    /// Inotify instances, likewise.
    notifying: Vec<Notifying>,
    /// Descriptors of the manager's own that it has found under way in sockets, and their descriptions.
    under_way: Vec<(i32, u64)>,
}

/// Takes note of a description.
///
/// Its state is saved by the process from which it has its number: the first to come across it, or the one in
/// which somebody else has found it.
fn take(
    subject: &Subject<'_>,
    task: i32,
    open: &Open,
    description: Description,
    found: &mut Found,
    meta: &mut Meta,
) -> Result<(), Failed> {
    if open.locked {
        lock::collect(task, open, description.id, meta)?;
    }
    if description.id >> 32 == own_number(task, 0) >> 32 && found.saved.insert(description.id) {
        if description.kind == kind::EPOLL {
            found.epolls.push(Epoll { task, fd: open.fd, description: description.id });
        } else if description.kind == kind::NOTIFIER {
            found.notifying.push(Notifying::new(open, description.id)?);
        } else {
            save(subject, open, &description, &mut found.sockets, meta)?;
        }
    } else if subject.repairs && description.kind == kind::SOCKET && !open.kept {
        socket::share(open);
    }
    // One that was found under way in a socket may have been met again at a descriptor before its turn came.
    if found.met.insert(description.id) {
        if description.kind == kind::STREAM {
            terminal::save(open, &description, meta);
        }
        meta.descriptions.push(description);
    }
    Ok(())
}

fn open_again(task: i32, pidfd: i32, fd: i32) -> Result<Open, Failed> {
    look_at(task, fd, duplicate(pidfd, fd)?, false).map_err(look)
}

/// A descriptor of our own for what the program has at a number.
fn duplicate(pidfd: i32, fd: i32) -> Result<i32, Failed> {
    ulpm_sys::pidfd_getfd(pidfd, fd).map_err(look)
}

fn look(errno: Errno) -> Failed {
    Failed::system("look at a descriptor", errno)
}

/// `O_CLOEXEC` if the description itself has it, as only TIOCGPTPEER leaves it there.
fn cloexec(open: &Open) -> u32 {
    /// F_GETFL
    const GET: i32 = 3;
    ulpm_sys::fcntl(open.ours, GET, 0).unwrap_or(0).cast_unsigned() & oflag::CLOEXEC.cast_unsigned()
}

/// Whether a descriptor is closed by an exec.
///
/// The kernel's list shows the descriptor's flag and that of its description as one. Where the description has it, a
/// thread of the program is asked.
fn closes_on_exec(subject: &Subject<'_>, open: &Open) -> Result<bool, Failed> {
    /// FD_CLOEXEC
    const CLOSES: i32 = 1;
    if open.flags & oflag::CLOEXEC.cast_unsigned() == 0 || cloexec(open) == 0 {
        return Ok(open.flags & oflag::CLOEXEC.cast_unsigned() != 0);
    }
    let until = ulpm_sys::monotonic_ns() + ANSWER_NS;
    threads::descriptor_flags(subject.own, open.fd, until)
        .map(|flags| flags & CLOSES != 0)
        .ok_or_else(|| Failed::system("ask for the flags of a descriptor", Errno::TIMEDOUT))
}

/// A descriptor of the manager's own table, which it has found under way in a socket.
fn under_way(fd: i32) -> Result<Open, Failed> {
    look_at(ulpm_sys::gettid(), fd, fd, true)
        .map_err(|errno| Failed::system("look at a descriptor under way", errno))
}

fn look_at(task: i32, fd: i32, ours: i32, kept: bool) -> Result<Open, Errno> {
    let mut info_buffer = [0; 1024];
    let info_path = Text::<64>::path(format_args!("/proc/{task}/fdinfo/{fd}"));
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
        // The first of them stands near the beginning.
        locked: value(info, b"lock:").is_some(),
        info: info.to_vec(),
        kept,
        filesystem: 0,
    };
    open.status = ulpm_sys::fstat(ours)?;
    if open.status.mode & mode::TYPE == mode::REGULAR {
        open.filesystem = ulpm_sys::filesystem(ours).unwrap_or(0);
    }
    if open.status.mode & mode::TYPE == mode::SOCKET
        && open.flags & oflag::PATH.cast_unsigned() == 0
    {
        open.path = socket_path(open.status.ino);
        return Ok(open);
    }
    let link = Text::<64>::path(format_args!("/proc/{task}/fd/{fd}"));
    let mut path = [0; 4096];
    open.path = ulpm_sys::readlink(link.c_str(), &mut path)?.to_vec();
    Ok(open)
}

/// What the kernel shows for a socket.
fn socket_path(inode: u64) -> Vec<u8> {
    Text::<32>::of(format_args!("socket:[{inode}]")).bytes().to_vec()
}

fn describe(subject: &Subject<'_>, task: i32, open: &Open) -> Result<Description, Failed> {
    let status = &open.status;
    let mut description = Description {
        id: 0,
        kind: kind::FILE,
        flags: open.flags & !oflag::CLOEXEC.cast_unsigned() | cloexec(open),
        position: open.position,
        dev: status.dev,
        inode: status.ino,
        mode: status.mode,
        file_len: u64::try_from(status.size).unwrap_or(0),
        mtime: [status.mtime, status.mtime_ns],
        path: virtual_path(subject, &open.path),
    };
    if let Some(stream) = stream(subject, open) {
        // Each descriptor on its own: the streams of a restart need not be one, as these may be.
        description.kind = kind::STREAM;
        description.inode = stream;
        description.id = 1 << 63 | stream << 32 | u64::from(open.fd.cast_unsigned());
        return Ok(description);
    }
    description.kind = match status.mode & mode::TYPE {
        _ if [&b"anon_inode:"[..], b"pidfd:"].iter().any(|name| open.path.starts_with(name)) => {
            events::kind(subject, open)?
        }
        _ if open.flags & oflag::PATH.cast_unsigned() != 0 => path_only(open, &mut description)?,
        mode::REGULAR | mode::DIRECTORY => file::kind(open, &mut description)?,
        mode::CHARACTER => {
            events::device(open)?;
            terminal::kind(open)?
        }
        mode::FIFO => pipe::kind(open),
        mode::SOCKET => socket::kind(open)?,
        _ => return Err(cannot(open, "is of a kind that ULPM does not know")),
    };
    if description.kind == kind::FIFO {
        description.position = pipe::hung_up(open);
    }
    if description.kind == kind::MASTER {
        description.inode = terminal::index(open)?;
    }
    description.id = identity(subject, task, open)?;
    Ok(description)
}

/// What only names a file (O_PATH), of whichever type.
fn path_only(open: &Open, description: &mut Description) -> Result<u32, Failed> {
    match open.status.mode & mode::TYPE {
        mode::REGULAR | mode::DIRECTORY => file::kind(open, description),
        _ if open.path.starts_with(b"/") && !open.path.ends_with(b" (deleted)") => Ok(kind::FILE),
        _ => Err(cannot(open, "names something that has no name any more")),
    }
}

/// Saves the state of a description.
fn save(
    subject: &Subject<'_>,
    open: &Open,
    description: &Description,
    sockets: &mut socket::Context,
    meta: &mut Meta,
) -> Result<(), Failed> {
    match description.kind {
        kind::EVENT => events::save(subject, open, description, meta),
        kind::SOCKET => socket::save(subject, open, description, sockets, meta),
        kind::PIPE | kind::FIFO => pipe::save(subject, open, description, meta),
        kind::DELETED => file::save(subject, open, meta),
        kind::FILE if subject.with_files => file::save_with_name(subject, open, meta),
        kind::MASTER => terminal::save_master(subject, open, meta),
        kind::TERMINAL => {
            terminal::save(open, description, meta);
            Ok(())
        }
        _ => Ok(()),
    }
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
    if open.kept {
        return unsupported(format_args!(
            "a descriptor ({path}) that is under way in a unix socket {why}, which cannot be saved yet"
        ));
    }
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

/// The number that a description gets if a task's descriptor is the first to claim it.
fn own_number(task: i32, fd: i32) -> u64 {
    u64::from(task.cast_unsigned()) << 32 | u64::from(fd.cast_unsigned())
}

/// A number that all descriptors of the job share which share an open file description.
///
/// Descriptions that look alike meet at one claim. The first to come gives it its own process and
/// descriptor as number; whoever comes later compares with kcmp(2), and goes on to the next claim if
/// it is another description after all. All are frozen, so the descriptors stay what they are.
fn identity(subject: &Subject<'_>, task: i32, open: &Open) -> Result<u64, Failed> {
    let me = own_number(task, open.fd);
    let looks = [
        open.status.dev,
        open.status.ino,
        open.position,
        u64::from(open.flags & 0o3),
        events::looks(open),
    ];
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
